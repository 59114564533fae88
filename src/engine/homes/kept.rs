//! What one shard has passed on to homes lately, for a home may be dead and nobody know yet.
//!
//! Owns it for [`KEPT_MS`], at most [`KEPT_BYTES_MAX`] of it. Whoever finds that a home is missed
//! takes what went there, and passes it on anew.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::time::Mono;

/// Longer than it takes to miss a home that has died, in ms: it is asked twice a second and missed
/// after two seconds of silence.
const KEPT_MS: u64 = 3_500;
/// Bytes of datagrams that are kept: of ids of 16 bytes some 60,000 users a second.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// The datagrams, oldest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    sent: VecDeque<Sent>,
    bytes: usize,
}

#[derive(Debug)]
struct Sent {
    at: Mono,
    to: SocketAddr,
    datagram: Box<[u8]>,
}

impl Kept {
    /// One that goes to `to` now. Returns how many had to be forgotten before their time.
    pub(super) fn push(&mut self, to: SocketAddr, datagram: &[u8], now: Mono) -> u64 {
        self.forget_old(now);
        let mut forgotten = 0;
        while self.bytes + datagram.len() > KEPT_BYTES_MAX && !self.sent.is_empty() {
            self.forget_first();
            forgotten += 1;
        }
        self.bytes += datagram.len();
        self.sent.push_back(Sent {
            at: now,
            to,
            datagram: datagram.into(),
        });
        forgotten
    }

    /// What went to these lately, in its order.
    pub(super) fn take(&mut self, homes: &[SocketAddr], now: Mono) -> Vec<Box<[u8]>> {
        self.forget_old(now);
        let (missed, kept) = std::mem::take(&mut self.sent)
            .into_iter()
            .partition::<VecDeque<Sent>, _>(|sent| homes.contains(&sent.to));
        self.sent = kept;
        let missed = missed.into_iter().map(|sent| sent.datagram);
        let missed: Vec<Box<[u8]>> = missed.collect();
        self.bytes -= missed.iter().map(|datagram| datagram.len()).sum::<usize>();
        missed
    }

    fn forget_old(&mut self, now: Mono) {
        while let Some(first) = self.sent.front() {
            if now.ms_since(first.at) <= KEPT_MS {
                return;
            }
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let first = self.sent.pop_front();
        self.bytes -= first.map_or(0, |first| first.datagram.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(node: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, node], 8081))
    }

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    #[test]
    fn what_went_to_a_home_lately_is_there_once() {
        let mut kept = Kept::default();
        for (ms, to, datagram) in [(0, 1, b"a"), (10, 1, b"b"), (20, 2, b"c"), (30, 1, b"d")] {
            assert_eq!(kept.push(udp(to), datagram, at(ms)), 0);
        }
        assert_eq!(kept.take(&[udp(3)], at(40)).len(), 0);
        let missed = kept.take(&[udp(1)], at(3_501));
        assert_eq!(missed, [(*b"b").into(), (*b"d").into()] as [Box<[u8]>; 2]);
        assert_eq!(kept.take(&[udp(1)], at(3_501)).len(), 0);
        assert_eq!(kept.bytes, 1);
        assert_eq!(kept.take(&[udp(2)], at(4_000)).len(), 0);
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut kept = Kept::default();
        let datagram = [7; 1_024];
        let room = (KEPT_BYTES_MAX / datagram.len()) as u64;
        let forgotten: u64 = (0..room + 3)
            .map(|_| kept.push(udp(1), &datagram, at(0)))
            .sum();
        assert_eq!((forgotten, kept.bytes), (3, KEPT_BYTES_MAX));
        assert_eq!(kept.push(udp(1), &datagram, at(5_000)), 0);
        assert_eq!(kept.sent.len(), 1);
    }
}
