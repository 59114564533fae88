//! What each server says of itself while the day goes on: whether it may be holding expiries, and
//! whether a balancer would send anybody there.
//!
//! After a stall of its own a server puts off telling anybody offline for silence, as it should.
//! Owns the threads that ask, one a server. A server that does not answer may be stalled, and hold
//! them next.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use crate::exposition::Exposition;
use crate::http::Client;

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(250);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_millis(500);
/// Who has not answered for this long, us, may be stalled; and nobody is sent there any more.
const SILENCE_US_MAX: u64 = 750_000;

/// Of what use a server is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Health {
    /// It takes no connection, or does not answer.
    Gone,
    /// It answers, and says that it is not ready.
    Unready,
    /// It is ready.
    Ready,
}

impl Health {
    const ALL: [Health; 3] = [Health::Gone, Health::Unready, Health::Ready];
}

#[derive(Default)]
struct Known {
    answered_us: AtomicU64,
    held_us: AtomicU64,
    /// Place in [`Health::ALL`].
    health: AtomicU8,
    /// When it was found gone last, us; 0: never.
    gone_us: AtomicU64,
    /// When it had answered last then, us.
    last_us: AtomicU64,
    /// When it was last unready, or has just become something else, us; 0: never.
    amiss_us: AtomicU64,
}

/// What is known of the servers.
pub(super) struct Holds {
    known: Vec<Arc<Known>>,
    stop: Arc<AtomicBool>,
}

/// A server that is gone: what it last heard, nobody may have been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Death {
    /// When it answered last, us.
    pub(super) answered_us: u64,
    /// When it was found gone, us.
    pub(super) found_us: u64,
}

impl Holds {
    /// Asks `nodes` again and again, until dropped. All are taken to be ready now.
    pub(super) fn watch(nodes: &[SocketAddr]) -> Holds {
        let stop = Arc::new(AtomicBool::default());
        let known = nodes.iter().map(|node| {
            let known = Arc::new(Known::ready(clock::now_us()));
            let (node, asker, stop) = (*node, Arc::clone(&known), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut before = None;
                while !stop.load(Ordering::Relaxed) {
                    let asked = ask(node);
                    asker.note(asked, &mut before, clock::now_us());
                    std::thread::sleep(INTERVAL);
                }
            });
            known
        });
        Holds {
            known: known.collect(),
            stop,
        }
    }

    /// Whether an expiry that was due before `now_us` may have been put off; `settle_us`: within
    /// this it would have been told.
    pub(super) fn may_hold(&self, now_us: u64, settle_us: u64) -> bool {
        // Who is gone holds nothing; what it left to the others is trouble, and counts as that.
        let is_alone = self.known.len() == 1;
        let mut there = self
            .known
            .iter()
            .filter(|known| is_alone || !known.is_gone());
        there.any(|known| {
            let [answered_us, held_us] =
                [&known.answered_us, &known.held_us].map(|us| us.load(Ordering::Relaxed));
            now_us > answered_us + SILENCE_US_MAX || (held_us > 0 && now_us < held_us + settle_us)
        })
    }

    /// Of what use each server is.
    pub(super) fn health(&self, node: usize) -> Health {
        Health::ALL[usize::from(self.known[node].health.load(Ordering::Relaxed)).min(2)]
    }

    /// When a server was last gone, us; None: never.
    pub(super) fn death(&self, node: usize) -> Option<Death> {
        let known = &self.known[node];
        let found_us = known.gone_us.load(Ordering::Acquire);
        let death = Death {
            answered_us: known.last_us.load(Ordering::Relaxed),
            found_us,
        };
        (found_us > 0).then_some(death)
    }

    /// When anything was last amiss, us: a server was not ready, went or came. 0: never.
    pub(super) fn amiss_us(&self) -> u64 {
        let all = self.known.iter();
        all.map(|known| known.amiss_us.load(Ordering::Relaxed))
            .max()
            .unwrap_or(0)
    }

    /// Where to send somebody who was at `node`: there if it is ready, else to one that is, else to
    /// one that answers. `chance`: any number.
    pub(super) fn choose(&self, node: usize, chance: usize) -> usize {
        let count = self.known.len();
        // Of those who are of the same use the last is taken, so the nearest comes last.
        let others = (0..count).rev().map(|step| (chance + step) % count);
        let better = others.filter(|other| self.health(*other) > self.health(node));
        better
            .max_by_key(|other| self.health(*other))
            .unwrap_or(node)
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What a server has said.
#[derive(Clone, Copy)]
struct Said {
    is_ready: bool,
    /// When it was started, s.
    started: f64,
    /// How often it was stalled.
    stalls: f64,
    /// How many expiries it holds.
    held: f64,
}

fn ask(node: SocketAddr) -> io::Result<Said> {
    let ready = Client::connect_within(node, PATIENCE)?.call("GET", "/readyz", b"")?;
    let all = Exposition::of(Client::connect_within(node, PATIENCE)?, node)?;
    Ok(Said {
        is_ready: ready.status == 200,
        started: all.sum("process_start_time_seconds", &[]),
        stalls: all.sum("greendot_stalls_total", &[]),
        held: all.sum("greendot_expiries_held", &[]),
    })
}

impl Known {
    fn ready(now_us: u64) -> Known {
        let known = Known::default();
        known.answered_us.store(now_us, Ordering::Relaxed);
        known.health.store(Health::Ready as u8, Ordering::Relaxed);
        known
    }

    fn is_gone(&self) -> bool {
        self.health.load(Ordering::Relaxed) == Health::Gone as u8
    }

    /// Takes in what came of a question. `before`: what it said last.
    fn note(&self, asked: io::Result<Said>, before: &mut Option<Said>, now_us: u64) {
        let was = self.health.load(Ordering::Relaxed);
        let answered_us = self.answered_us.load(Ordering::Relaxed);
        let health = match &asked {
            Ok(said) if said.is_ready => Health::Ready,
            Ok(_) => Health::Unready,
            // A slow one is waited for; one that takes no connection is not.
            Err(error)
                if error.kind() != ErrorKind::ConnectionRefused
                    && now_us <= answered_us + SILENCE_US_MAX =>
            {
                return;
            }
            Err(_) => Health::Gone,
        } as u8;
        // Whoever was killed may be back before it was missed.
        let is_anew = |said: &Said| before.is_some_and(|before| before.started != said.started);
        let is_gone = match &asked {
            Ok(said) => is_anew(said),
            Err(_) => true,
        };
        if is_gone && was != Health::Gone as u8 {
            self.last_us.store(answered_us, Ordering::Relaxed);
            self.gone_us.store(now_us, Ordering::Release);
        }
        if health != was || health == Health::Unready as u8 {
            self.amiss_us.store(now_us, Ordering::Relaxed);
        }
        self.health.store(health, Ordering::Relaxed);
        let Ok(said) = asked else {
            return;
        };
        // Fewer than before: it was started anew.
        let before = before.replace(said);
        if before.is_some_and(|before| before.stalls != said.stalls) || said.held > 0.0 {
            self.held_us.store(now_us, Ordering::Relaxed);
        }
        self.answered_us.store(now_us, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(known: Vec<Known>) -> Holds {
        Holds {
            known: known.into_iter().map(Arc::new).collect(),
            stop: Arc::default(),
        }
    }

    fn said(is_ready: bool, stalls: f64) -> io::Result<Said> {
        Ok(Said {
            is_ready,
            started: 1_764_009_600.25,
            stalls,
            held: 0.0,
        })
    }

    fn refused() -> io::Result<Said> {
        Err(ErrorKind::ConnectionRefused.into())
    }

    #[test]
    fn a_hold_is_over_when_what_it_put_off_must_have_been_told() {
        let holds = of(vec![Known::ready(10_000_000)]);
        assert!(!holds.may_hold(10_750_000, 500_000));
        assert!(holds.may_hold(10_750_001, 500_000));
        holds.known[0].held_us.store(10_000_000, Ordering::Relaxed);
        assert!(holds.may_hold(10_499_999, 500_000));
        assert!(!holds.may_hold(10_500_000, 500_000));
    }

    #[test]
    fn a_server_is_gone_when_it_refuses_or_has_long_been_silent() {
        let holds = of(vec![Known::ready(10_000_000)]);
        let mut before = None;
        let mut note = |asked, now_us| holds.known[0].note(asked, &mut before, now_us);
        note(said(true, 3.0), 10_000_000);
        assert_eq!((holds.health(0), holds.amiss_us()), (Health::Ready, 0));
        let slow = || Err(ErrorKind::WouldBlock.into());
        note(slow(), 10_750_000);
        assert_eq!((holds.health(0), holds.death(0)), (Health::Ready, None));
        note(slow(), 10_750_001);
        let death = |answered_us, found_us| {
            Some(Death {
                answered_us,
                found_us,
            })
        };
        assert_eq!(holds.health(0), Health::Gone);
        assert_eq!(holds.death(0), death(10_000_000, 10_750_001));
        note(refused(), 11_000_000);
        assert_eq!(
            holds.death(0),
            death(10_000_000, 10_750_001),
            "it is so still"
        );
        // It is there again, has forgotten its stalls, and is not ready for a while.
        note(said(false, 0.0), 12_000_000);
        assert_eq!(
            (holds.health(0), holds.amiss_us()),
            (Health::Unready, 12_000_000)
        );
        assert!(holds.may_hold(12_400_000, 500_000));
        note(said(false, 0.0), 12_250_000);
        assert_eq!(holds.amiss_us(), 12_250_000);
        note(said(true, 0.0), 12_500_000);
        note(said(true, 0.0), 12_750_000);
        assert_eq!(
            (holds.health(0), holds.amiss_us()),
            (Health::Ready, 12_500_000)
        );
        assert_eq!(holds.death(0).unwrap().found_us, 10_750_001);
    }

    #[test]
    fn a_server_that_was_started_anew_was_gone_however_short() {
        let holds = of(vec![Known::ready(10_000_000)]);
        let mut before = None;
        let mut note = |started, now_us| {
            let said = said(true, 0.0).map(|said| Said { started, ..said });
            holds.known[0].note(said, &mut before, now_us);
            holds.death(0)
        };
        assert_eq!(note(1.0, 10_000_000), None);
        assert_eq!(note(1.0, 10_250_000), None);
        let death = Death {
            answered_us: 10_250_000,
            found_us: 10_500_000,
        };
        assert_eq!(note(1.5, 10_500_000), Some(death));
        assert_eq!(note(1.5, 10_750_000), Some(death));
    }

    #[test]
    fn whoever_was_at_a_server_of_no_use_is_sent_to_the_best_there_is() {
        let holds = of((0..4).map(|_| Known::ready(10_000_000)).collect());
        let set = |node: usize, asked| holds.known[node].note(asked, &mut None, 11_000_000);
        assert_eq!([0, 1, 2, 3].map(|chance| holds.choose(1, chance)), [1; 4]);
        set(1, said(false, 0.0));
        assert_eq!(
            [0, 1, 2, 3].map(|chance| holds.choose(1, chance)),
            [0, 2, 2, 3]
        );
        set(0, refused());
        set(2, said(false, 0.0));
        set(3, refused());
        // None is ready: who is at one that answers stays, and the others go there.
        assert_eq!([0, 1, 2, 3].map(|chance| holds.choose(1, chance)), [1; 4]);
        assert_eq!(
            [0, 1, 2, 3].map(|chance| holds.choose(3, chance)),
            [1, 1, 2, 1]
        );
        set(1, refused());
        set(2, refused());
        assert_eq!(holds.choose(3, 0), 3, "nobody is of use");
    }
}
