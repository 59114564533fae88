//! Goodbyes of which other nodes have told this one, the home of their users.
//!
//! A goodbye may overtake the beat before it: the fleet was told of it when it knew of no beat, and
//! this node claims the user a moment later. So each is looked at once more, when what was sent
//! before it has come. Owns the wait, of at most [`PARTED_MAX`] goodbyes and [`LATER_MS`].

use std::collections::VecDeque;

use crate::time::{Mono, Unix};
use crate::wire::UserBuf;

/// Longer than a beat is on its way from node to node, and its claim to the fleet's database, in
/// ms.
const LATER_MS: u64 = 500;
/// Goodbyes that wait; beyond, the oldest is looked at before its time.
const PARTED_MAX: usize = 16_384;

/// Who said goodbye, and when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Goodbye {
    pub(in crate::engine) user: UserBuf,
    pub(in crate::engine) sent_at: Unix,
    /// Since when the user was told as here when the goodbye came, if that was long before it was
    /// sent. The fleet judged it knowing that: if it is told so still, it was another device's.
    pub(in crate::engine) here_since: Option<Unix>,
}

/// Those that wait, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Parted(VecDeque<(Mono, Goodbye)>);

impl Parted {
    pub(super) fn push(&mut self, goodbye: Goodbye, now: Mono) {
        self.0.push_back((now.plus_ms(LATER_MS), goodbye));
    }

    /// When [`Parted::poll`] has something.
    pub(super) fn due(&self) -> Mono {
        match self.0.front() {
            Some(_) if self.0.len() > PARTED_MAX => Mono::default(),
            Some((due, _)) => *due,
            None => Mono::NEVER,
        }
    }

    /// One that is to be looked at now.
    pub(super) fn poll(&mut self, now: Mono) -> Option<Goodbye> {
        let is_due = now >= self.due();
        let (_, goodbye) = self.0.pop_front_if(|_| is_due)?;
        Some(goodbye)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_looked_at_once_and_those_beyond_the_limit_before_their_time() {
        let goodbye = |number: u64| {
            let user = UserBuf::from_text(format!("user-{number}")).unwrap();
            Goodbye {
                user,
                sent_at: Unix::from_ms(number),
                here_since: None,
            }
        };
        let at = |ms| Mono::default().plus_ms(ms);
        let mut parted = Parted::default();
        assert_eq!((parted.due(), parted.poll(at(9_000))), (Mono::NEVER, None));
        parted.push(goodbye(1), at(0));
        parted.push(goodbye(2), at(10));
        assert_eq!((parted.due(), parted.poll(at(499))), (at(500), None));
        assert_eq!(parted.poll(at(500)), Some(goodbye(1)));
        assert_eq!((parted.due(), parted.poll(at(500))), (at(510), None));
        for number in 3..3 + PARTED_MAX as u64 {
            parted.push(goodbye(number), at(20));
        }
        assert_eq!(parted.poll(at(20)), Some(goodbye(2)));
        assert_eq!((parted.due(), parted.poll(at(20))), (at(520), None));
    }
}
