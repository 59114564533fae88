//! A real-time node's link to one presence node, without a kernel: what it is asked, and what each
//! of its answers means.
//!
//! Owns what is concluded: that the node is in sight, what must be doubted and asked for anew, that
//! it does not tell everything; and what is warned of, once for each reason in a row. Who waits to
//! be asked about is the [`Inquiry`]'s. Time is an argument; requests, replies and effects are
//! values.

use std::sync::Arc;

use super::delivery::{Delivery, Found, Heard};
use super::effect::{Effect, Notice, Refusals, Warned, counts};
use super::inquiry::Inquiry;
use super::log_outs::LogOuts;
use super::passing::{Passing, unanswered};
use super::reply::{JSON, Meaning, Reply, Request, reason};
use super::revocations::Revocations;
use super::statuses::Statuses;
use super::{Answerer, STATES_PER_REQUEST_MAX, Standing};
use crate::auth::Revoked;
use crate::engine::{Mail, Outbound, adopt_answers};
use crate::metrics::Counter;
use crate::presence::{Presence, UNTOLD_MS_MAX};
use crate::time::{Mono, Now};
use crate::wire::nodes::Nodes;
use crate::wire::record::{Told, parse_told_list};

#[derive(Debug)]
pub struct Asking {
    inquiry: Inquiry,
    delivery: Delivery,
    /// The request under way brings datagrams.
    brings_bundle: bool,
    log_outs: LogOuts,
    statuses: Statuses,
    passing: Passing,
    /// Whose request was the last of those that take turns.
    last: Turn,
    revocations: Revocations,
    /// The presence node's index.
    node: usize,
    /// Users in the request under way.
    asked: usize,
    /// When it left.
    asked_at: Mono,
    /// While the node is out of sight.
    warned: Warned,
    refusals: Refusals,
    /// When it came in sight, or was found to have another life or a gap. What it tells takes a
    /// while to come from then on.
    seen_at: Mono,
    /// It was warned that the node does not tell everything.
    untold_said: bool,
}

/// Requests that take turns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    Status,
    Call,
    Bundle,
    Question,
}

impl Turn {
    /// Whose turn it is behind this one, the next first, itself last.
    fn those_behind(self) -> [Turn; 4] {
        use Turn::{Bundle, Call, Question, Status};
        match self {
            Question => [Status, Call, Bundle, Question],
            Status => [Call, Bundle, Question, Status],
            Call => [Bundle, Question, Status, Call],
            Bundle => [Question, Status, Call, Bundle],
        }
    }
}

impl Asking {
    /// To the presence node at this index, which has not been seen yet, for a node of so many
    /// shards. `seed` is of the jitter.
    pub fn new(seed: u64, node: usize, shards: usize, revoked: &Arc<Revoked>) -> Asking {
        Asking {
            inquiry: Inquiry::new(seed, shards),
            delivery: Delivery::new(),
            brings_bundle: false,
            log_outs: LogOuts::new(),
            statuses: Statuses::default(),
            passing: Passing::default(),
            last: Turn::Question,
            revocations: Revocations::new(Arc::clone(revoked)),
            node,
            asked: 0,
            asked_at: Mono::default(),
            warned: Warned::default(),
            refusals: Refusals::default(),
            seen_at: Mono::default(),
            untold_said: false,
        }
    }

    /// A shard has this for the node.
    pub fn take(&mut self, outbound: Outbound, now: Mono) -> Option<Effect> {
        match outbound {
            Outbound::Asks {
                users,
                anew,
                through,
                ..
            } => self.inquiry.ask(users, anew, through, now),
            Outbound::Sample { sample, .. } => self.delivery.look_for(sample),
            Outbound::Bundled { datagrams, .. } => {
                let lost = self.delivery.bridge(&datagrams) as u64;
                return (lost > 0).then_some(Effect::Count(Counter::RelayDatagramsLost, lost));
            }
            Outbound::LogOut { logged_out, .. } => {
                let lost = self.log_outs.push(logged_out) as u64;
                return (lost > 0).then_some(Effect::Count(Counter::RelayLogOutsLost, lost));
            }
            Outbound::Say { say, .. } => {
                let untaken = match self.inquiry.is_in_sight() {
                    true => self.statuses.push(say),
                    false => Some(Statuses::untaken(say)),
                };
                return untaken.map(|taken| Effect::Tell(Mail::Taken([taken].into())));
            }
            Outbound::Pass { part, .. } => {
                if self.inquiry.is_in_sight() {
                    self.passing.push(part);
                } else {
                    let passed = [unanswered(part)].into();
                    return Some(Effect::Tell(Mail::Passed(passed)));
                }
            }
            // Datagrams, and what another role says.
            Outbound::Beats { .. }
            | Outbound::Homeward { .. }
            | Outbound::Words(_)
            | Outbound::Heard(_)
            | Outbound::Goodbyes(_)
            | Outbound::Ticket { .. }
            | Outbound::Online { .. }
            | Outbound::Streams(_)
            | Outbound::Forward(_)
            | Outbound::Erase(..)
            | Outbound::FleetLogOut { .. }
            | Outbound::Publish(_)
            | Outbound::Holders(_)
            | Outbound::EndStreams(_)
            | Outbound::Erased(_) => {}
            // The journal is looked at before each request.
            Outbound::Revoked(_) => {}
        }
        None
    }

    /// When [`Asking::poll_request`] has something.
    pub fn next(&self) -> Mono {
        match () {
            () if self.is_busy() => Mono::NEVER,
            () if self.may_revoke() => self.revocations.next().min(self.next_without()),
            () if self.may_log_out() => self.log_outs.next().min(self.next_without()),
            () => self.next_without(),
        }
    }

    /// When there is something else than a log-out.
    fn next_without(&self) -> Mono {
        match () {
            () if self.may_bring_bundle() || self.may_say() || self.may_pass() => Mono::default(),
            () if self.inquiry.is_asking() || !self.inquiry.is_in_sight() => self.inquiry.next(),
            () => self.inquiry.next().min(self.delivery.due()),
        }
    }

    /// No question is under way, and somebody has been logged out.
    fn may_log_out(&self) -> bool {
        !self.log_outs.is_empty() && self.inquiry.is_in_sight() && !self.inquiry.is_asking()
    }

    fn may_say(&self) -> bool {
        !self.statuses.is_empty() && self.inquiry.is_in_sight() && !self.inquiry.is_asking()
    }

    fn may_pass(&self) -> bool {
        !self.passing.is_empty() && self.inquiry.is_in_sight() && !self.inquiry.is_asking()
    }

    /// A request other than a question is under way.
    fn is_busy(&self) -> bool {
        self.brings_bundle
            || self.log_outs.is_under_way()
            || self.statuses.is_under_way()
            || self.passing.is_under_way()
            || self.revocations.is_under_way()
    }

    fn may_revoke(&self) -> bool {
        self.revocations.has_news() && self.inquiry.is_in_sight() && !self.inquiry.is_asking()
    }

    fn may_bring_bundle(&self) -> bool {
        self.delivery.has_bundle() && self.inquiry.is_in_sight() && !self.inquiry.is_asking()
    }

    /// The next request, if it is time. One at a time: its reply comes first. Statuses, calls,
    /// datagrams and questions take turns.
    pub fn poll_request(&mut self, now: Mono) -> Option<Request> {
        if self.is_busy() {
            return None;
        }
        if self.may_revoke()
            && let Some(request) = self.revocations.poll_request(now)
        {
            return Some(request);
        }
        if self.may_log_out()
            && let Some(request) = self.log_outs.poll_request(now)
        {
            return Some(request);
        }
        if self.inquiry.is_in_sight() && self.delivery.due() <= now {
            self.inquiry.ask_beside(now);
        }
        self.last.those_behind().into_iter().find_map(|turn| {
            let request = self.poll_turn(turn, now)?;
            self.last = turn;
            Some(request)
        })
    }

    /// The next request of this kind.
    fn poll_turn(&mut self, turn: Turn, now: Mono) -> Option<Request> {
        match turn {
            Turn::Status if self.may_say() => self.statuses.poll_request(now),
            Turn::Call if self.may_pass() => self.passing.poll_request(now),
            Turn::Bundle if self.may_bring_bundle() => {
                self.brings_bundle = true;
                let (body, datagrams) = self.delivery.poll_bundle().unwrap_or_default();
                self.asked = datagrams;
                Some(Request {
                    method: "POST",
                    path: "/v1/datagrams".into(),
                    media: "application/octet-stream",
                    field: None,
                    body,
                    states: 0,
                })
            }
            Turn::Question => self.poll_question(now),
            Turn::Status | Turn::Call | Turn::Bundle => None,
        }
    }

    fn poll_question(&mut self, now: Mono) -> Option<Request> {
        let users = self.inquiry.poll_request(now)?;
        (self.asked, self.asked_at) = (users.len(), now);
        let sample = match users.len() < STATES_PER_REQUEST_MAX {
            true => self.delivery.poll_sample(now),
            false => None,
        };
        let users = users.iter().map(|user| &**user).chain(sample);
        Some(question(users, self.asked))
    }

    /// What came of the request: answers are taken over.
    pub fn handle_reply(
        &mut self,
        reply: &Reply,
        presence: &Presence,
        nodes: &Nodes,
        now: Now,
    ) -> Vec<Effect> {
        if self.log_outs.is_under_way() {
            self.log_outs.handle_reply(Meaning::of(reply), now.mono);
            let mut effects = counts((Meaning::of(reply) == Meaning::Done).then_some(0));
            if reply.is_err() {
                effects.extend(self.failed(reply, presence, now.mono));
            }
            return effects;
        }
        if self.statuses.is_under_way() {
            let taken = self.statuses.handle_reply(reply, presence);
            let mut effects = counts((Meaning::of(reply) == Meaning::Done).then_some(taken.len()));
            if reply.is_err() {
                effects.extend(self.failed(reply, presence, now.mono));
            }
            effects.push(Effect::Tell(Mail::Taken(taken.into())));
            return effects;
        }
        if self.passing.is_under_way() {
            let passed = self.passing.handle_reply(reply, presence);
            let answered = passed.iter().all(|it| it.came.is_some());
            let mut effects = counts(answered.then_some(passed.len()));
            if reply.is_err() {
                effects.extend(self.failed(reply, presence, now.mono));
            }
            effects.push(Effect::Tell(Mail::Passed(passed.into())));
            return effects;
        }
        if self.revocations.is_under_way() {
            self.revocations.handle_reply(Meaning::of(reply), now.mono);
            let lost = reply.is_err();
            let effects = lost.then(|| self.failed(reply, presence, now.mono));
            return effects.unwrap_or_default();
        }
        if std::mem::take(&mut self.brings_bundle) {
            return self.bundle_reply(reply, presence, now.mono);
        }
        let sampled = self.delivery.is_asked();
        let answers = answers_of(reply, self.asked + usize::from(sampled));
        let mut effects = counts(answers.is_some().then_some(self.asked));
        if self.inquiry.handle_beside() {
            match answers {
                Some((answerer, mut told)) => {
                    self.beat_found(Heard::of(told.pop(), answerer), now.mono, &mut effects);
                }
                None => self.delivery.unanswered(),
            }
            return effects;
        }
        match answers {
            Some((answerer, mut told)) => {
                let sample = if sampled { told.pop() } else { None };
                self.warned.clear();
                let Answerer { birth, clock, .. } = answerer;
                self.revocations.lives(birth);
                presence.source_answered(self.node, birth, clock, self.asked_at, now.mono);
                if !told.is_empty() {
                    let (answered, refused) = adopt_answers(presence, &told, answerer.as_of, now);
                    effects.push(Effect::Count(Counter::RelayStatesRefused, refused));
                    effects.push(Effect::Tell(Mail::Answered(Arc::new(answered))));
                }
                self.conclude(presence, nodes, now.mono, &mut effects);
                self.beat_found(Heard::of(sample, answerer), now.mono, &mut effects);
            }
            None => {
                self.delivery.unanswered();
                let meaning = Meaning::of(reply);
                let of_content = matches!(meaning, Meaning::TooLong | Meaning::Refused);
                let too_long = meaning == Meaning::TooLong;
                if of_content && sampled {
                    // It may be for that one.
                    self.inquiry.handle_unasked(now.mono);
                    return effects;
                }
                if of_content && self.inquiry.handle_refusal(too_long, now.mono) {
                    self.refusals.note(reason(reply));
                    return effects;
                }
                effects.extend(self.failed(reply, presence, now.mono));
            }
        }
        effects
    }

    /// The node does not answer.
    fn failed(&mut self, reply: &Reply, presence: &Presence, now: Mono) -> Vec<Effect> {
        presence.source_failed(self.node);
        self.inquiry.handle_failure(now);
        self.delivery.forget();
        let untaken = self.statuses.forget();
        let untaken = (!untaken.is_empty()).then(|| Effect::Tell(Mail::Taken(untaken.into())));
        let passed = self.passing.forget();
        let passed = (!passed.is_empty()).then(|| Effect::Tell(Mail::Passed(passed.into())));
        // For a node that was never in sight too.
        let warning = self.warned.of(reason(reply), Notice::NotAnswering);
        let effects = untaken.into_iter().chain(passed);
        effects.chain(warning).collect()
    }

    /// What came of a request that brought datagrams.
    fn bundle_reply(&mut self, reply: &Reply, presence: &Presence, now: Mono) -> Vec<Effect> {
        match Meaning::of(reply) {
            Meaning::Done => vec![
                Effect::Count(Counter::RelayRequestsDone, 1),
                Effect::Count(Counter::RelayBundled, self.asked as u64),
            ],
            Meaning::TooLong | Meaning::Refused => {
                self.delivery.bundle_refused();
                counts(None)
            }
            Meaning::Failed => {
                let mut effects = counts(None);
                // One that says why is there: a shard of it is late.
                if reply.is_err() {
                    effects.extend(self.failed(reply, presence, now));
                }
                effects
            }
        }
    }

    /// What the node says of the user whose beat was looked for.
    fn beat_found(&mut self, heard: Heard, now: Mono, effects: &mut Vec<Effect>) {
        let Some((found, user)) = self.delivery.answered(heard, now) else {
            return;
        };
        let (node, found_at) = (self.node, now);
        let by_connection = |on| Effect::Tell(Mail::ByConnection { node, on });
        match found {
            Found::Arrived | Found::Unstored => return,
            Found::Again => {
                effects.push(by_connection(false));
                effects.push(Effect::Say(Notice::BeatsArrive));
                return;
            }
            Found::Lost => {}
            Found::Gone => {
                effects.push(by_connection(true));
                // All are late already.
                effects.push(Effect::Tell(Mail::Revouch { node, found_at }));
                effects.push(Effect::Say(Notice::BeatsGone));
            }
        }
        let user = user.into();
        effects.push(Effect::Tell(Mail::Resample { node, user }));
    }

    /// The node has answered: whom to ask about now.
    fn conclude(
        &mut self,
        presence: &Presence,
        nodes: &Nodes,
        now: Mono,
        effects: &mut Vec<Effect>,
    ) {
        let (node, was_in_sight) = (self.node, self.inquiry.is_in_sight());
        // No question is under way here: what is answered from now on was asked after the miss.
        let missed = presence.is_out_of_step(node);
        let due = self.inquiry.handle_answer(missed, now);
        if let Some(pass) = due.settled {
            // Shards tell ids again when they have read this, behind the answers.
            presence.asked_everything(node);
            effects.push(Effect::Tell(Mail::Settled { node, pass }));
        }
        if due.passes_over {
            let (counter, notice) = (Counter::RelayStatesUnasked, Notice::QuestionsRefused);
            effects.extend(self.refusals.passed_over(counter, notice));
        }
        if missed || !was_in_sight {
            self.seen_at = now;
        }
        if missed {
            presence.begin_asking(node, |user| nodes.of(user.as_bytes()) == node);
            effects.push(Effect::Count(Counter::RelayReasks, 1));
            effects.push(Effect::Say(Notice::Missed));
        } else if !was_in_sight {
            effects.push(Effect::Say(Notice::InSight));
        }
        if due.was_away {
            let found_at = now;
            effects.push(Effect::Tell(Mail::Revouch { node, found_at }));
        }
        if let Some(whom) = due.whom {
            effects.push(Effect::Tell(Mail::Reask {
                node,
                pass: due.pass,
                whom,
                not_before: due.not_before,
            }));
        }
    }

    /// A node that answers and does not publish here: what changes there is not heard of. To be
    /// called after each reply, and when [`Asking::next`] has come.
    pub fn look(&mut self, presence: &Presence, now: Mono) -> Vec<Effect> {
        let untold_ms = presence.untold_ms(self.node, now);
        let seen_ms = now.ms_since(self.seen_at);
        let untold_ms = untold_ms.unwrap_or(u64::MAX).min(seen_ms);
        let untold = untold_ms > UNTOLD_MS_MAX && self.inquiry.is_in_sight();
        let warns = untold && self.inquiry.is_caught_up() && !self.untold_said;
        self.untold_said = untold && (self.untold_said || warns);
        let said = warns.then_some(Effect::Say(Notice::Untold));
        said.into_iter().collect()
    }

    /// The request under way looks for a beat and for nothing else: what comes of it says nothing
    /// of the node.
    pub fn is_looking(&self) -> bool {
        self.inquiry.is_asking_beside()
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        Standing {
            queued: self.inquiry.len(),
            down: !self.inquiry.is_in_sight(),
            beats_gone: self.delivery.is_by_connection(),
        }
    }

    /// Everybody who is watched has been asked about since the node came in sight.
    pub fn is_caught_up(&self) -> bool {
        self.inquiry.is_caught_up()
    }
}

fn question<'u>(users: impl Iterator<Item = &'u str>, states: usize) -> Request {
    let users: Vec<&str> = users.collect();
    Request {
        method: "POST",
        path: "/v1/presence/query".into(),
        media: JSON,
        field: None,
        body: serde_json::json!({ "users": users })
            .to_string()
            .into_bytes(),
        states,
    }
}

/// The answers to a question about so many, and who gave them.
fn answers_of(reply: &Reply, asked: usize) -> Option<(Answerer, Vec<Told>)> {
    let said = reply.as_ref().ok().filter(|said| said.status == 200)?;
    let told = parse_told_list(&said.body, asked).ok()?;
    let whole = told.len() == asked;
    // A record that can not be read leaves its user unanswered for; the others are.
    whole.then_some((said.node?, told.into_iter().flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::at;
    use super::super::reply::{Said, lost, said};
    use super::super::{OUTAGE_MS, PROBE_MS};
    use super::*;
    use crate::presence::FollowerOptions;
    use crate::time::Unix;
    use crate::wire::feed::Place;

    const FAILED: &str = "Count(RelayRequestsFailed, 1)";
    const DONE: &str = "Count(RelayRequestsDone, 1)";

    struct World {
        presence: Presence,
        nodes: Nodes,
        link: Asking,
        ms: u64,
    }

    impl World {
        fn new() -> World {
            let options = FollowerOptions {
                sources: 1,
                users_max: 100,
                shards: 1,
                offline_after_ms: 25_000,
            };
            World {
                presence: Presence::follower(options, at(1_000)).unwrap(),
                nodes: Nodes::new(["127.0.0.1:1"]),
                link: Asking::new(1, 0, 1, &Arc::new(Revoked::new(9, 1))),
                ms: 1_000,
            }
        }

        fn poll(&mut self) -> Request {
            self.ms = self.ms.max(self.link.next().ms());
            let request = self.link.poll_request(at(self.ms).mono);
            request.expect("it is time")
        }

        /// What the next request comes to, in words.
        fn reply(&mut self, reply: &Reply) -> Vec<String> {
            let (now, presence) = (at(self.ms), &self.presence);
            let mut effects = self.link.handle_reply(reply, presence, &self.nodes, now);
            effects.extend(self.link.look(presence, now.mono));
            // The one shard has come to the end of its pass at once, and asks for nobody yet.
            for effect in &effects {
                if let Effect::Tell(Mail::Reask { pass, .. }) = effect {
                    let (node, users, anew) = (0, Vec::new(), true);
                    let through = Some(*pass);
                    let asks = Outbound::Asks {
                        node,
                        users,
                        anew,
                        through,
                    };
                    self.link.take(asks, now.mono);
                }
            }
            let words = |effect: &Effect| match effect {
                Effect::Tell(Mail::Answered(answered)) => format!(
                    "Answered({}, {})",
                    answered.sure.len(),
                    answered.unseen.len()
                ),
                Effect::Tell(Mail::Reask { whom, .. }) => format!("Reask({whom:?})"),
                Effect::Tell(Mail::Revouch { .. }) => "Revouch".into(),
                Effect::Tell(Mail::Settled { pass, .. }) => format!("Settled({pass})"),
                other => format!("{other:?}"),
            };
            effects.iter().map(words).collect()
        }

        fn found() -> World {
            let mut world = World::new();
            world.poll();
            world.reply(&answer(""));
            world
        }

        fn ask(&mut self, users: &[&str]) {
            let users = users.iter().map(|user| Box::from(*user)).collect();
            let asks = Outbound::Asks {
                node: 0,
                users,
                anew: true,
                through: None,
            };
            self.link.take(asks, at(self.ms).mono);
        }

        fn is_behind(&self) -> bool {
            self.presence.is_behind(at(self.ms).mono)
        }

        /// The node's next message: everything is told.
        fn hear(&self, previous: u64, number: u64) {
            let place = Place {
                birth: 7,
                previous,
                number,
                up_to: Some(Unix::from_ms(self.ms)),
            };
            let taken = self.presence.take_message(&place, at(self.ms).mono);
            assert!(taken.is_some_and(|taken| taken.in_step));
        }

        fn standing(&self) -> Standing {
            self.link.standing()
        }
    }

    /// By life 7 of the node.
    fn answer(records: &str) -> Reply {
        let node = Answerer {
            birth: 7,
            as_of: Unix::from_ms(900),
            clock: Unix::from_ms(900),
            refuses_new: false,
        };
        Ok(Said {
            status: 200,
            node: Some(node),
            held: None,
            life: None,
            body: format!(r#"{{"presence":[{records}]}}"#).into_bytes(),
        })
    }

    #[test]
    fn a_node_is_found_and_asked() {
        let mut world = World::new();
        assert!(world.standing().down && world.is_behind());
        let request = world.poll();
        assert_eq!(
            (request.method, &*request.path, &*request.body),
            ("POST", "/v1/presence/query", &br#"{"users":[]}"#[..])
        );
        let found = [
            DONE,
            "Count(RelayStates, 0)",
            "Count(RelayReasks, 1)",
            "Say(Missed)",
            "Reask(Everybody)",
        ];
        assert_eq!(world.reply(&answer("")), found);
        world.ask(&["a", "b"]);
        assert_eq!(world.standing().queued, 2);
        assert_eq!(world.poll().states, 2);
        let records = concat!(
            r#"{"user":"a","status":"online","online":true,"since":500,"last_active":800},"#,
            r#"{"user":"b","status":"offline","online":false,"since":null,"last_active":null}"#
        );
        let (asked, refused) = ("Count(RelayStates, 2)", "Count(RelayStatesRefused, 0)");
        // The answers first: shards that have read the last word have read them.
        let answered = [DONE, asked, refused, "Answered(1, 1)", "Settled(1)"];
        assert_eq!(world.reply(&answer(records)), answered);
        assert_eq!(world.standing().queued, 0);
    }

    #[test]
    fn a_node_out_of_sight_is_warned_of_once_for_each_reason() {
        let mut world = World::new();
        let warned = |why: &str| format!("Say(NotAnswering({why:?}))");
        let not_its = warned("its answer is not that of a presence node");
        for (reply, warned) in [
            (lost(), Some(warned("timeout"))),
            (lost(), None),
            (said(500), Some(warned("status 500"))),
            (said(400), Some(warned("status 400"))),
            (said(400), None),
            (said(200), Some(not_its)),
        ] {
            world.poll();
            let effects = std::iter::once(FAILED.to_owned()).chain(warned);
            assert_eq!(world.reply(&reply), effects.collect::<Vec<_>>());
            assert!(world.standing().down);
        }
        world.ms += OUTAGE_MS;
        world.poll();
        let back = world.reply(&answer(""));
        assert_eq!(back[back.len() - 2..], ["Revouch", "Reask(Everybody)"]);
        world.poll();
        assert_eq!(world.reply(&lost()), [FAILED, &warned("timeout")]);
    }

    #[test]
    fn a_question_that_is_too_long_is_made_shorter_and_the_node_stays_in_sight() {
        let mut world = World::found();
        world.ask(&["a", "b", "c", "d"]);
        assert_eq!(world.poll().states, 4);
        assert_eq!(world.reply(&said(413)), [FAILED]);
        assert_eq!((world.standing().queued, world.standing().down), (4, false));
        assert_eq!(world.poll().states, 2);
    }

    #[test]
    fn a_question_that_is_refused_for_its_content_is_passed_over_and_that_is_said_once() {
        for status in [400, 413, 414, 422, 431] {
            let mut world = World::found();
            for said_before in [false, true] {
                world.ask(&["a"]);
                assert_eq!(world.poll().states, 1, "{status}");
                assert_eq!(world.reply(&said(status)), [FAILED]);
                assert!(!world.standing().down);
                assert_eq!(world.poll().states, 0, "is it the node?");
                let effects = world.reply(&answer(""));
                let untold = ["Count(RelayStatesUnasked, 1)".to_owned()];
                let notice = format!("Say(QuestionsRefused(\"status {status}\"))");
                let expected = untold.into_iter().chain((!said_before).then_some(notice));
                let passed_over: Vec<String> = effects[2..].to_vec();
                let passed_over = passed_over
                    .into_iter()
                    .filter(|effect| !effect.starts_with("Settled"));
                assert_eq!(
                    passed_over.collect::<Vec<_>>(),
                    expected.collect::<Vec<_>>()
                );
                assert_eq!(world.standing().queued, 1, "not answered for");
            }
            // A node that refuses an empty question as well is another matter.
            world.ms += PROBE_MS;
            assert_eq!(world.poll().states, 0);
            assert_eq!(world.reply(&said(status)).len(), 2);
            assert!(world.standing().down);
        }
    }

    #[test]
    fn an_answer_about_others_than_were_asked_for_is_none() {
        let mut world = World::found();
        world.ask(&["a"]);
        world.poll();
        assert_eq!(world.reply(&answer(""))[0], FAILED);
        assert!(world.standing().down);
    }

    #[test]
    fn a_node_that_answers_and_tells_nothing_is_warned_of_once() {
        let mut world = World::new();
        let mut said = Vec::new();
        for _ in 0..10 {
            world.poll();
            said.extend(world.reply(&answer("")));
            world.ms += PROBE_MS;
        }
        said.retain(|effect| effect == "Say(Untold)");
        assert_eq!(said.len(), 1);
        assert!(world.is_behind() && !world.standing().down);
        world.hear(0, 1);
        assert!(!world.is_behind());
    }

    #[test]
    fn a_node_back_in_sight_has_been_missed_for_nothing_if_the_numbers_say_so() {
        let mut world = World::found();
        world.hear(0, 1);
        world.ms += PROBE_MS;
        world.poll();
        world.reply(&answer(""));
        assert!(!world.is_behind());
        world.poll();
        world.reply(&lost());
        assert!(world.is_behind());
        world.ms += OUTAGE_MS;
        world.poll();
        let back = world.reply(&answer(""));
        assert_eq!(back[2..], ["Say(InSight)", "Revouch", "Reask(Unsure)"]);
        // What it has to tell after the outage follows what it told before.
        world.hear(1, 2);
        assert!(world.presence.is_in_step(0));
    }

    #[test]
    fn a_gap_has_everybody_asked_about_at_the_next_answer() {
        let mut world = World::found();
        world.hear(0, 1);
        world.ms += PROBE_MS;
        world.poll();
        world.reply(&answer(""));
        world.hear(4, 5);
        assert!(world.is_behind());
        world.poll();
        let effects = world.reply(&answer(""));
        let again = ["Count(RelayReasks, 1)", "Say(Missed)", "Reask(Everybody)"];
        assert_eq!(effects[2..], again);
        world.hear(5, 6);
        world.ms += PROBE_MS;
        world.poll();
        assert!(world.is_behind());
        world.reply(&answer(""));
        assert!(!world.is_behind());
    }
}
