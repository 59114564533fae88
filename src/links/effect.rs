//! What a link wants done: counted, told to the shards, logged.
//!
//! Owns the words of the log. A link without a kernel returns effects; its thread, or the
//! simulator, carries them out.

use std::fmt;

use crate::engine::Mail;
use crate::metrics::Counter;

/// Something to carry out.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Add so many to a counter of the process.
    Count(Counter, u64),
    /// Tell all shards.
    Tell(Mail),
    /// Log it, with the node's address.
    Say(Notice),
}

/// What a request comes to in the counters; `states` of one that was taken or answered.
pub(super) fn counts(states: Option<usize>) -> Vec<Effect> {
    match states {
        Some(states) => vec![
            Effect::Count(Counter::RelayRequestsDone, 1),
            Effect::Count(Counter::RelayStates, states as u64),
        ],
        None => vec![Effect::Count(Counter::RelayRequestsFailed, 1)],
    }
}

/// Why a node was last warned of: once for each reason in a row.
#[derive(Default, Debug)]
pub(super) struct Warned(Option<String>);

impl Warned {
    /// The warning, unless it was the last one too.
    pub(super) fn of(&mut self, why: String, notice: fn(String) -> Notice) -> Option<Effect> {
        let again = self.0.as_ref() == Some(&why);
        self.0 = Some(why.clone());
        (!again).then(|| Effect::Say(notice(why)))
    }

    /// All is well. True: it had been warned.
    pub(super) fn clear(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// Something that is refused for what is in it: the last reason, and whether that was said.
#[derive(Default, Debug)]
pub(super) struct Refusals {
    why: Option<String>,
    said: bool,
}

impl Refusals {
    pub(super) fn note(&mut self, why: String) {
        self.why = Some(why);
    }

    /// One is passed over for it: that is counted each time, and said once.
    pub(super) fn passed_over(
        &mut self,
        counter: Counter,
        notice: fn(String) -> Notice,
    ) -> Vec<Effect> {
        let mut effects = vec![Effect::Count(counter, 1)];
        if !std::mem::replace(&mut self.said, true) {
            let why = self.why.clone();
            let why = why.unwrap_or_else(|| "it does not say why".into());
            effects.push(Effect::Say(notice(why)));
        }
        effects
    }
}

/// Something that an operator should know of a node of the other role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// It takes what is published again.
    TakesAgain,
    /// It does not take what is published; why.
    NotTaken(String),
    /// It refuses some states each by itself; why.
    StatesRefused(String),
    /// It has no room for so many users.
    NoRoom(u64),
    /// It did not take over so many states; why the first.
    ItemsRefused(u64, String),
    /// It does not answer questions; why.
    NotAnswering(String),
    /// It refuses questions about some users each by itself; why.
    QuestionsRefused(String),
    /// Beats do not arrive there as datagrams; they go over the link's connection too.
    BeatsGone,
    /// They arrive again.
    BeatsArrive,
    /// It answers again, and nothing that it told was missed.
    InSight,
    /// Something that it told was missed, or may have been: it is asked about everybody who is
    /// watched.
    Missed,
    /// It answers questions and does not tell everything.
    Untold,
    /// A webhook's receiver does not take what it is told; why.
    HookFails(String),
    /// It takes it again.
    HookTakes,
    /// What it is told may be incomplete in a way that the store knows nothing of: it is told the
    /// last state of everybody.
    HookToldAll,
}

impl Notice {
    /// Something is wrong.
    pub fn is_warning(&self) -> bool {
        !matches!(
            self,
            Notice::TakesAgain
                | Notice::BeatsArrive
                | Notice::InSight
                | Notice::Missed
                | Notice::HookTakes
                | Notice::HookToldAll
        )
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::TakesAgain => out.write_str("the real-time node answers again"),
            Notice::NotTaken(why) => write!(
                out,
                "the real-time node does not take what is published ({why}); trying again"
            ),
            Notice::StatesRefused(why) => write!(
                out,
                "the real-time node refuses some states each by itself ({why}); they are passed \
                 over. Give all nodes the same version and no smaller --body-bytes-max and \
                 --head-bytes-max than the default"
            ),
            Notice::NoRoom(users) => write!(
                out,
                "the real-time node has no room for {users} users; raise its --users-max"
            ),
            Notice::ItemsRefused(states, why) => write!(
                out,
                "the real-time node did not take {states} states over ({why}); it asks about them. \
                 Do the nodes' clocks agree?"
            ),
            Notice::NotAnswering(why) => write!(
                out,
                "the presence node does not answer ({why}); what is known of its publishers stands"
            ),
            Notice::QuestionsRefused(why) => write!(
                out,
                "the presence node refuses questions about some users each by itself ({why}); they \
                 are passed over for a while. Give all nodes the same version and no smaller \
                 --body-bytes-max and --query-users-max than the default"
            ),
            Notice::BeatsGone => out.write_str(
                "beats do not arrive at the presence node as datagrams; they go over HTTP until \
                 they do. Does something drop UDP in between? Have both nodes the same --key-file?",
            ),
            Notice::BeatsArrive => {
                out.write_str("beats arrive at the presence node as datagrams again")
            }
            Notice::InSight => out.write_str("the presence node answers again"),
            Notice::Missed => out.write_str(
                "the presence node is in sight and may have told what this node missed; asking it \
                 about everybody who is watched",
            ),
            Notice::Untold => out.write_str(
                "the presence node answers and does not tell this node everything; is this one in \
                 its --realtime, and reachable from it?",
            ),
            Notice::HookFails(why) => write!(
                out,
                "the webhook's receiver does not take what it is told ({why}); trying again, and \
                 keeping each user's last state"
            ),
            Notice::HookTakes => out.write_str("the webhook's receiver takes what it is told"),
            Notice::HookToldAll => out.write_str(
                "nobody knows what the webhook's receiver has been told; telling it everybody's \
                 last state",
            ),
        }
    }
}
