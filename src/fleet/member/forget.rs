//! Those who have been offline for so long that nothing is kept of them any more.
//!
//! Owns a slow walk: one bucket of one partition at a time. One node of a fleet that does it is
//! enough.

use super::lease::bytes_of;
use super::part::Said;
use super::{Asked, Local, Member};
use crate::fleet::calls::Call;
use crate::fleet::held::Gone;
use crate::fleet::traffic::{Reply, To};
use crate::time::{Mono, Now};
use crate::wire::{User, UserBuf};

/// Of one bucket at once.
const FORGOTTEN_MAX: usize = 1_000;
/// Most time between two buckets: 16 of each of 1,024 partitions are through in four and a half
/// hours.
const BUCKET_MS_MAX: u64 = 1_000;
/// A fleet with more of them is walked faster: else a hundred million users who are gone would be
/// looked at every twelve days, and a thousand million every hundred.
const TURN_MS_MAX: u64 = 86_400_000;

impl<L: Local> Member<L> {
    pub(super) fn forget_due(&self) -> Mono {
        match self.settings.forget_after_ms {
            0 => Mono::NEVER,
            _ => self.forget_at,
        }
    }

    /// Reads the next bucket.
    pub(super) fn forget(&mut self, now: Now) {
        if now.mono < self.forget_due() {
            return;
        }
        let buckets = u64::from(self.settings.layout.buckets.max(1));
        self.forget_at = now
            .mono
            .plus_ms(pause_ms(self.parts.len() as u64 * buckets));
        let at = (self.forget_next / buckets) as usize % self.parts.len();
        let bucket = (self.forget_next % buckets) as u32;
        let part = &self.parts[at];
        let Some(server) = part.server.filter(|_| self.is_well(part, now.mono)) else {
            return;
        };
        let key = self.partitions.offline_key(part.id, bucket);
        let calls = vec![Call::plain([&b"HGETALL"[..], key.as_bytes()])];
        if self.send(
            Asked::Bucket(at),
            To::Partition(part.id),
            server,
            calls,
            now,
        ) {
            self.forget_next += 1;
        }
    }

    /// Forgets those of a bucket who have been gone for long enough, by its server's clock.
    pub(super) fn bucket_read(&mut self, at: usize, replies: &[Reply], now: Now) {
        let part = &self.parts[at];
        let Some(server) = part.server else {
            return;
        };
        let (Some(Reply::List(fields)), Some(clock)) =
            (replies.first(), self.servers.clock(server, now.mono))
        else {
            return;
        };
        let mut old = Vec::new();
        for [user, value] in fields.as_chunks::<2>().0 {
            let (Some(user), Some(value)) = (bytes_of(user), bytes_of(value)) else {
                continue;
            };
            let is_old = |gone: Gone| {
                clock.ms_since(gone.since.max(gone.last_active)) > self.settings.forget_after_ms
            };
            if Gone::parse(value).is_ok_and(is_old) {
                old.extend(User::parse(user).ok().map(UserBuf::from));
            }
        }
        // The rest is found by the next round. Whoever is here is not meant, which Redis knows.
        for user in old.into_iter().take(FORGOTTEN_MAX) {
            self.act(user.user(), Said::Forget, None, now);
        }
    }
}

/// Time between two of so many buckets.
fn pause_ms(buckets: u64) -> u64 {
    (TURN_MS_MAX / buckets).clamp(1, BUCKET_MS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_buckets_are_looked_at_within_a_day() {
        assert_eq!(pause_ms(64 * 3), 1_000);
        assert_eq!(pause_ms(1_024 * 16), 1_000);
        for (partitions, buckets) in [(1_024, 1_024), (4_096, 2_048), (16_384, 4_096)] {
            let count = partitions * buckets;
            assert!(count * pause_ms(count) <= TURN_MS_MAX, "{count}");
        }
        assert_eq!(pause_ms(4_096 * 2_048), 10);
    }
}
