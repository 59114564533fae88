//! What a shard's engine is made of.
//!
//! Owns the parts and how they are made. The parts know nothing of each other: the files that bring
//! them together borrow each one openly. Decides nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use super::arrivals::Arrivals;
use super::conn::life::Conns;
use super::errand::Asker;
use super::farewells::Farewells;
use super::followers::Followers;
use super::forgetting::Leaving;
use super::homes::{Homes, Passing};
use super::horizon::Horizon;
use super::mail::{Audience, Posts, ShardId};
use super::operators::Operators;
use super::passes::Passes;
use super::records::Fanout;
use super::refused::HandedOver;
use super::role::Role;
use super::settings::{Settings, SharedSettings};
use super::silence::Silence;
use super::telling::Telling;
use super::upstream::{NodeName, Upstream};
use crate::auth::{Keyring, Keyrings, Revoked};
use crate::metrics::{Board, Counters};
use crate::presence::{Presence, Sweep};
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::Now;
use crate::wire::beat::Epochs;
use crate::wire::request::RequestLimits;
use crate::wire::response::HttpDate;

/// Time in a turn for verifying tokens as their requests come, in microseconds.
pub(super) const VERIFYING_MICROS_PER_TURN: u32 = 2_000;

/// What an engine is made of.
#[derive(Clone)]
pub struct EngineParts {
    /// Intervals and limits.
    pub settings: SharedSettings,
    /// Which shard this is.
    pub shard: ShardId,
    /// Of how many.
    pub shards: ShardId,
    /// What the node is.
    pub role: Role,
    /// Where operators' calls are served.
    pub operators: Operators,
    /// The presence database of which the node tells; a follower in the roles that follow
    /// ([`Role::follows`]) and in no other.
    pub presence: Arc<Presence>,
    /// The one of those whom it hears: the same, but in the role [`Role::Fleet`], where it is the
    /// other's twin ([`Presence::follower_and_heard`]).
    pub heard: Arc<Presence>,
    /// Where the node's keys are found: by what beats are opened, and callers known.
    pub keyrings: Arc<Keyrings>,
    /// Whose tokens are void before their time.
    pub revoked: Arc<Revoked>,
    /// The same for all shards of a process: makes stream ids unguessable.
    pub secret: [u8; 32],
    /// Of the jitter.
    pub seed: u64,
    /// Of a presence node: how many real-time nodes mirror its states.
    pub mirrors: usize,
    /// Whether webhooks are told of transitions too.
    pub has_webhooks: bool,
    /// To which nodes of a fleet users' beats go.
    pub homes: Homes,
    /// By what ids of streams name this node of a fleet. None: it is of none.
    pub name: Option<NodeName>,
    /// What `/metrics` shows.
    pub board: Arc<Board>,
    /// Boot: expiries are held until everybody has had time to return.
    pub now: Now,
}

/// One shard's engine.
pub struct Engine {
    pub(super) settings: Arc<Settings>,
    /// What watchers and those who ask are told.
    pub(super) presence: Arc<Presence>,
    /// Whom this node hears: what beats and goodbyes are written to, and the sweep reads.
    pub(super) heard: Arc<Presence>,
    pub(super) node: Node,
    pub(super) counters: Counters,
    pub(super) random: fastrand::Rng,
    /// This turn's time, as answers say it.
    pub(super) date: HttpDate,
    /// Connections: what is read from them, written to them and closed.
    pub(super) conns: Conns,
    /// Beat datagrams that came lately.
    pub(super) handed_over: HandedOver,
    /// What devices' keys are made of.
    pub(super) epochs: Epochs,
    /// Who is to become a user.
    pub(super) arrivals: Arrivals,
    pub(super) fanout: Fanout,
    /// Whom it has yet to mark.
    pub(super) telling: Telling,
    /// Slots whose users have been forgotten.
    pub(super) leaving: Leaving,
    /// See [`Engine::work_done`].
    pub(super) work_done: u64,
    /// What is left of this turn's time for verifying tokens; then their requests wait for slices.
    pub(super) verifying_micros_left: u32,
    /// What `/metrics` says, once it has been asked for in this turn.
    pub(super) exposition: Option<Arc<str>>,
    /// Who is told the node's figures.
    pub(super) followers: Followers,
    /// Whose silence it was.
    pub(super) silence: Silence,
    /// Whether event ids may be told.
    pub(super) horizon: Horizon,
    /// The link to presence nodes, in the one role that has it.
    pub(super) upstream: Option<Upstream>,
    /// Beats and goodbyes for other nodes of a fleet.
    pub(super) passing: Passing,
    /// Goodbyes that wait for real-time nodes.
    pub(super) farewells: Farewells,
    /// Requests that wait until revocations are on disk.
    pub(super) keeping: VecDeque<Asker>,
    /// Other nodes have told what is to be passed on.
    pub(super) passes_revocations_on: bool,
    /// What time brings.
    pub(super) passes: Passes,
    /// Publishers' streams of which the kernel is to be asked before they are vouched for.
    pub(super) asked: VecDeque<(ConnId, Slot)>,
    /// What other shards are to be told.
    pub(super) posts: Posts,
    #[cfg(any(debug_assertions, feature = "planted"))]
    pub(super) late: Late,
}

/// Streams whose watches are indexed a turn too late, with whom they watch (see `late.rs`).
#[cfg(any(debug_assertions, feature = "planted"))]
pub(super) type Late = Vec<(ConnId, Vec<crate::wire::UserBuf>)>;

/// What an engine knows of its node from the start.
pub(super) struct Node {
    pub(super) shard: ShardId,
    pub(super) shards: ShardId,
    pub(super) role: Role,
    /// See [`EngineParts::has_webhooks`].
    pub(super) has_webhooks: bool,
    pub(super) operators: Operators,
    pub(super) keyrings: Arc<Keyrings>,
    /// The keys of this turn.
    pub(super) keyring: Arc<Keyring>,
    pub(super) secret: [u8; 32],
    /// See [`EngineParts::name`].
    pub(super) name: Option<NodeName>,
    pub(super) revoked: Arc<Revoked>,
    pub(super) board: Arc<Board>,
    /// Where others than this turn's settings come from.
    pub(super) settings: SharedSettings,
    pub(super) limits: RequestLimits,
}

impl Node {
    /// Whether the files of keys have been read anew is seen between two turns. The keys of before,
    /// if they have.
    pub(super) fn take_keyring(&mut self) -> Option<Arc<Keyring>> {
        let latest = self.keyrings.load();
        let is_new = !Arc::ptr_eq(&latest, &self.keyring);
        is_new.then(|| std::mem::replace(&mut self.keyring, Arc::clone(&latest)))
    }
}

impl Engine {
    /// Whether there are other settings is seen between two turns.
    pub(super) fn take_settings(&mut self) {
        if let Some(newer) = self.node.settings.newer(&self.settings) {
            self.node.limits = newer.request_limits();
            self.conns.take_settings(Arc::clone(&newer));
            self.settings = newer;
        }
    }

    /// An engine without connections.
    pub fn new(parts: EngineParts) -> Engine {
        let settings = parts.settings.load();
        let now = parts.now;
        let limits = settings.request_limits();
        let follows = parts.role.follows();
        let new_per_second_max = settings.new_users_per_second_max as u32;
        parts.presence.set_new_per_second_max(new_per_second_max);
        parts.heard.set_new_per_second_max(new_per_second_max);
        assert_eq!(
            follows,
            parts.presence.is_follower(),
            "the database is the role's"
        );
        // A presence node's publishers are others' readers, who go on vouching for them.
        let hold_ms = match parts.role {
            Role::All => {
                // Where nobody was online there is nobody to wait for.
                let hold_ms = match parts.presence.online() {
                    0 => settings.offline_after_ms,
                    crowd => settings.hold_ms(crowd, parts.presence.away_ms_before()),
                };
                parts.presence.note_told_back(settings.retry_ms_max(), now);
                hold_ms
            }
            Role::Presence | Role::Realtime(_) | Role::Fleet(_) => settings.offline_after_ms,
        };
        let mut conns = Conns::new(Arc::clone(&settings), Arc::clone(&parts.presence), now.mono);
        if matches!(parts.role, Role::Fleet(_)) {
            conns.note_held();
        }
        Engine {
            counters: Counters::new(),
            random: fastrand::Rng::with_seed(parts.seed),
            date: HttpDate::at(now.unix),
            conns,
            handed_over: HandedOver::default(),
            epochs: Epochs::new(
                &parts.keyrings.load().fleet,
                settings.device_key_epoch_ms,
                now.unix,
            ),
            arrivals: Arrivals::default(),
            fanout: Fanout::default(),
            telling: Telling::default(),
            leaving: Leaving::default(),
            work_done: 0,
            verifying_micros_left: VERIFYING_MICROS_PER_TURN,
            exposition: None,
            followers: Followers::default(),
            silence: Silence::new(now, hold_ms, settings.offline_after_ms),
            horizon: Horizon::new(now.mono),
            upstream: Upstream::of(&parts.role),
            passing: Passing::new(parts.homes),
            farewells: Farewells::new(parts.mirrors),
            keeping: VecDeque::new(),
            passes_revocations_on: false,
            passes: Passes::new(
                (!parts.role.passes_on()).then(|| {
                    Sweep::new(parts.shard, parts.shards).with_rules(settings.sweep_rules())
                }),
                parts.revoked.end(),
                now.mono,
            ),
            asked: VecDeque::new(),
            posts: Posts::new(
                parts.shard,
                parts.shards,
                Audience {
                    shards: !matches!(parts.role, Role::Presence),
                    outside: matches!(parts.role, Role::Presence) || parts.has_webhooks,
                    bridge: matches!(parts.role, Role::Fleet(_)),
                },
            ),
            #[cfg(any(debug_assertions, feature = "planted"))]
            late: Vec::new(),
            presence: parts.presence,
            heard: parts.heard,
            settings,
            node: Node {
                shard: parts.shard,
                shards: parts.shards,
                role: parts.role,
                has_webhooks: parts.has_webhooks,
                operators: parts.operators,
                keyring: parts.keyrings.load_full(),
                keyrings: parts.keyrings,
                secret: parts.secret,
                name: parts.name,
                revoked: parts.revoked,
                board: parts.board,
                settings: parts.settings,
                limits,
            },
        }
    }
}
