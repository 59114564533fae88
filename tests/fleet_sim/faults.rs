//! What befalls a fleet, as multiples of a lease of six seconds.

use fastrand::Rng;

use crate::cluster::SHARDS;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    NodeKilled,
    AllButOneKilled,
    NodeRestarted,
    PrimaryKilled,
    WritesLost,
    WritesLostAndNodeCut,
    MessagesLost,
    Graceful,
    AllStopped,
    OneStopped,
    NodeCutShort,
    NodeCutLong,
    NodeCutFromOne,
    NodeStoppedShort,
    NodeStoppedLong,
    Migrated,
    Deleted,
    Flushed,
    LanesLost,
    Disconnected,
    AllStoppedAndNodeCut,
    KilledAndStopped,
    /// All servers stand still when a node is about to be fenced, and it comes back meanwhile.
    FencesStuck,
    AnswersLost,
}

/// One act of a fault.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    KillNode(usize),
    StartNode(usize),
    Leave(usize),
    Deafen(usize),
    Undeafen(usize),
    /// It hears no answers to what it says of users.
    Muffle(usize),
    Unmuffle(usize),
    /// There some are logged out.
    LogOutSome(usize),
    /// There some say something of themselves.
    SaySome(usize),
    StopNode(usize),
    ResumeNode(usize),
    /// From one server.
    Cut(usize, usize),
    Heal(usize),
    /// It may be taken for dead for so long, in ms.
    Excuse(usize, u64),
    StopServer(usize),
    /// All of them, when somebody fences a node.
    StopAtFence,
    ResumeServer(usize),
    KillServer(usize),
    FallBehind(usize),
    FailOver(usize),
    Migrate(usize, usize),
    Delete(usize),
    FlushAll,
    DeleteLanes,
    Disconnect(usize, usize),
}

const LEASE: u64 = 6_000;
/// How long a cluster takes to find that a primary is dead.
const NODE_TIMEOUT: u64 = 2_500;

impl Fault {
    pub(crate) const ALL: [Fault; 25] = [
        Fault::None,
        Fault::NodeKilled,
        Fault::AllButOneKilled,
        Fault::NodeRestarted,
        Fault::PrimaryKilled,
        Fault::WritesLost,
        Fault::WritesLostAndNodeCut,
        Fault::MessagesLost,
        Fault::Graceful,
        Fault::AllStopped,
        Fault::OneStopped,
        Fault::NodeCutShort,
        Fault::NodeCutLong,
        Fault::NodeCutFromOne,
        Fault::NodeStoppedShort,
        Fault::NodeStoppedLong,
        Fault::Migrated,
        Fault::Deleted,
        Fault::Flushed,
        Fault::LanesLost,
        Fault::Disconnected,
        Fault::AllStoppedAndNodeCut,
        Fault::KilledAndStopped,
        Fault::FencesStuck,
        Fault::AnswersLost,
    ];

    /// Whether no node that lives may be taken for dead.
    pub(crate) fn spares_leases(self) -> bool {
        !matches!(self, Fault::NodeCutLong | Fault::NodeStoppedLong)
    }

    /// Whether Redis keeps all that it was told, and nodes reach it.
    pub(crate) fn spares_redis(self) -> bool {
        matches!(self, Fault::None | Fault::AnswersLost)
    }

    /// Whether of two things that are said of a user, one so long after the other, either may
    /// count: the first one, or both, may be said again.
    pub(crate) fn mixes(self, apart_ms: u64) -> bool {
        self == Fault::AnswersLost && apart_ms < 8_000
    }

    /// What happens when, and when all is whole again.
    pub(crate) fn plan(self, random: &mut Rng, at: u64) -> (Vec<(u64, Step)>, u64) {
        let (node, shard) = (random.usize(..3), random.usize(..SHARDS));
        let other = (node + 1 + random.usize(..2)) % 3;
        let third = 3 - node - other;
        let mut plan = Vec::new();
        let mut end = at;
        let mut step = |at: u64, step: Step| {
            plan.push((at, step));
            end = end.max(at);
        };
        match self {
            Fault::None => {}
            Fault::NodeKilled => {
                step(at, Step::KillNode(node));
                step(at + LEASE * 3, Step::StartNode(node));
            }
            Fault::AllButOneKilled => {
                step(at, Step::KillNode(node));
                step(at + random.u64(..2_000), Step::KillNode(other));
                step(at + LEASE * 3, Step::StartNode(node));
                step(at + LEASE * 3, Step::StartNode(other));
            }
            Fault::NodeRestarted => {
                for (nth, node) in [node, other, third].into_iter().enumerate() {
                    let at = at + nth as u64 * 9_000;
                    step(at, Step::Leave(node));
                    step(at + 1_500, Step::KillNode(node));
                    step(at + 2_500, Step::StartNode(node));
                }
            }
            Fault::PrimaryKilled => {
                step(at, Step::KillServer(shard));
                step(at + NODE_TIMEOUT, Step::FailOver(shard));
            }
            Fault::WritesLost => {
                step(at, Step::FallBehind(shard));
                step(at + 4_000, Step::KillServer(shard));
                step(at + 4_000 + NODE_TIMEOUT, Step::FailOver(shard));
            }
            Fault::WritesLostAndNodeCut => {
                // One node comes to the new server when others have written to it.
                step(at, Step::FallBehind(shard));
                step(at + 4_000, Step::KillServer(shard));
                step(at + 4_000 + NODE_TIMEOUT, Step::Cut(node, shard));
                step(at + 4_000 + NODE_TIMEOUT, Step::FailOver(shard));
                step(at + 8_000 + NODE_TIMEOUT, Step::Heal(node));
            }
            Fault::MessagesLost => {
                step(at, Step::Deafen(node));
                step(at + random.u64(1_000..5_000), Step::Undeafen(node));
            }
            Fault::Graceful => step(at, Step::FailOver(shard)),
            Fault::AllStopped => {
                let ms = random.u64(LEASE / 2..LEASE * 3);
                (0..SHARDS).for_each(|shard| step(at, Step::StopServer(shard)));
                (0..SHARDS).for_each(|shard| step(at + ms, Step::ResumeServer(shard)));
            }
            Fault::OneStopped => {
                let ms = random.u64(500..LEASE * 4);
                step(at, Step::StopServer(shard));
                step(at + ms, Step::ResumeServer(shard));
            }
            Fault::NodeCutShort => {
                (0..SHARDS).for_each(|shard| step(at, Step::Cut(node, shard)));
                step(at + LEASE * 2 / 5, Step::Heal(node));
            }
            Fault::NodeCutLong => {
                step(at, Step::Excuse(node, LEASE * 5));
                (0..SHARDS).for_each(|shard| step(at, Step::Cut(node, shard)));
                step(at + LEASE * 12 / 5, Step::Heal(node));
                step(at + LEASE * 5, Step::Heal(node));
            }
            Fault::NodeCutFromOne => {
                step(at, Step::Cut(node, shard));
                step(at + random.u64(3_000..LEASE * 3), Step::Heal(node));
            }
            Fault::NodeStoppedShort => {
                step(at, Step::StopNode(node));
                step(at + LEASE / 2, Step::ResumeNode(node));
            }
            Fault::NodeStoppedLong => {
                step(at, Step::Excuse(node, LEASE * 5));
                step(at, Step::StopNode(node));
                step(at + LEASE * 2, Step::ResumeNode(node));
                step(at + LEASE * 5, Step::Heal(node));
            }
            Fault::Migrated => {
                for nth in 0..12 {
                    let partition = random.usize(..64);
                    step(
                        at + nth * 300,
                        Step::Migrate(partition, random.usize(..SHARDS)),
                    );
                }
            }
            Fault::Deleted => {
                for nth in 0..8 {
                    step(at + nth * 200, Step::Delete(random.usize(..64)));
                }
            }
            Fault::LanesLost => {
                // And with them when a node was heard of last that dies then.
                step(at, Step::DeleteLanes);
                step(at, Step::KillNode(node));
                step(at + LEASE * 5, Step::StartNode(node));
            }
            Fault::Flushed => step(at, Step::FlushAll),
            Fault::Disconnected => {
                for nth in 0..8 {
                    for shard in 0..SHARDS {
                        step(at + nth * 1_000, Step::Disconnect(node, shard));
                    }
                }
            }
            Fault::AllStoppedAndNodeCut => {
                // Redis was away for longer than a lease; one node comes back later than others.
                let ms = LEASE * 3 / 2;
                (0..SHARDS).for_each(|shard| step(at, Step::StopServer(shard)));
                (0..SHARDS).for_each(|shard| step(at + ms - 500, Step::Cut(node, shard)));
                (0..SHARDS).for_each(|shard| step(at + ms, Step::ResumeServer(shard)));
                step(at + ms + random.u64(3_000..4_200), Step::Heal(node));
            }
            Fault::FencesStuck => {
                step(at, Step::Excuse(node, LEASE * 5));
                step(at, Step::StopAtFence);
                (0..SHARDS).for_each(|shard| step(at, Step::Cut(node, shard)));
                step(at + LEASE * 7 / 4, Step::Heal(node));
                let ms = random.u64(13_000..16_000);
                (0..SHARDS).for_each(|shard| step(at + ms, Step::ResumeServer(shard)));
                step(at + LEASE * 5, Step::Heal(node));
            }
            Fault::AnswersLost => {
                step(at, Step::Muffle(node));
                step(at + 50, Step::LogOutSome(node));
                step(at + 1_500, Step::SaySome(node));
                step(at + 4_500, Step::Unmuffle(node));
            }
            Fault::KilledAndStopped => {
                // A node dies, and until it is to be reaped a server is away.
                step(at, Step::KillNode(node));
                let from = random.u64(50..2_000);
                step(at + from, Step::StopServer(shard));
                let ms = random.u64(7_200..10_000);
                step(at + ms, Step::ResumeServer(shard));
                step(at + LEASE * 4, Step::StartNode(node));
            }
        }
        plan.sort_by_key(|(at, _)| *at);
        (plan, end)
    }
}
