//! How users are dealt out among partitions, and partitions among the slots of a Redis Cluster.
//!
//! Owns the arithmetic and the names of all keys, which must come out the same on every node and in
//! every version. Never knows which server has which slot.

use super::Malformed;
use crate::wire::User;

/// Slots of a Redis Cluster.
pub const CLUSTER_SLOTS: u16 = 16_384;

/// Fewest partitions of a fleet.
pub const PARTITIONS_MIN: u16 = 64;
/// Most: one a slot.
pub const PARTITIONS_MAX: u16 = CLUSTER_SLOTS;

/// The three keys in which nodes renew their leases, one in each third of the slots: no single
/// server of three has two of them.
pub const LANES: [&str; 3] = ["gd:lane:{l3}", "gd:lane:{l1}", "gd:lane:{l0}"];

/// The key of what all nodes of a fleet must agree on.
pub const LAYOUT: &str = "gd:{layout}";

/// One of a fleet's partitions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Partition(u16);

/// All partitions of a fleet: how many there are, and the hash tag of each.
#[derive(Clone, Debug)]
pub struct Partitions {
    tags: Box<[u32]>,
}

impl Partition {
    /// Its number, below the number of partitions.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Partitions {
    /// `count` of them.
    ///
    /// Errors: it is no power of two from 64 to 16,384.
    pub fn new(count: u32) -> Result<Partitions, Malformed> {
        let count = u16::try_from(count)
            .ok()
            .filter(|count| count.is_power_of_two())
            .filter(|count| (PARTITIONS_MIN..=PARTITIONS_MAX).contains(count))
            .ok_or(Malformed(
                "the number of partitions (a power of two from 64 to 16384)",
            ))?;
        let slots_each = CLUSTER_SLOTS / count;
        let mut tags = vec![None; usize::from(count)];
        let mut missing = tags.len();
        let mut digits = itoa::Buffer::new();
        // CRC16 spreads decimal numbers evenly enough: the last of 16,384 is found at 109,757.
        for number in 0_u32.. {
            let share = slot_of(digits.format(number).as_bytes()) / slots_each;
            let tag = &mut tags[usize::from(share)];
            if tag.is_none() {
                *tag = Some(number);
                missing -= 1;
                if missing == 0 {
                    break;
                }
            }
        }
        Ok(Partitions {
            tags: tags.into_iter().flatten().collect(),
        })
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.tags.len() as u16
    }

    /// All of them in order.
    pub fn all(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.count()).map(Partition)
    }

    /// The one of this number, modulo how many there are.
    pub fn at(&self, number: u16) -> Partition {
        Partition(number % self.count())
    }

    /// The one that `user` belongs to: the first eight bytes of its BLAKE3 hash, as a number in the
    /// network's order, modulo how many there are.
    pub fn of(&self, user: User<'_>) -> Partition {
        let hash = blake3::hash(user.as_bytes());
        let first: [u8; 8] = *hash
            .as_bytes()
            .first_chunk()
            .expect("a BLAKE3 hash has 32 bytes");
        Partition((u64::from_be_bytes(first) % u64::from(self.count())) as u16)
    }

    /// The smallest decimal number whose slot lies in the partition's share of the slots.
    pub fn tag(&self, partition: Partition) -> u32 {
        self.tags[partition.index()]
    }

    /// The key with all of a partition's state; also the name of its sharded channel.
    pub fn hot_key(&self, partition: Partition) -> String {
        format!("gd:{{{}}}", self.tag(partition))
    }

    /// One of the keys with a partition's users who are offline.
    pub fn offline_key(&self, partition: Partition, bucket: u32) -> String {
        format!("gd:{{{}}}:off:{bucket}", self.tag(partition))
    }

    /// The slot of a partition's keys.
    pub fn slot(&self, partition: Partition) -> u16 {
        slot_of(itoa::Buffer::new().format(self.tag(partition)).as_bytes())
    }
}

/// The key with who was logged out or erased lately, beside a partition's hot key.
pub fn ends_key(hot_key: &str) -> String {
    format!("{hot_key}:ends")
}

/// Which of `buckets` a user's offline entry is in: the second eight bytes of its hash, so that the
/// users of a partition spread over all of them.
pub fn bucket_of(user: User<'_>, buckets: u32) -> u32 {
    let hash = blake3::hash(user.as_bytes());
    let second: [u8; 8] = *hash.as_bytes()[8..]
        .first_chunk()
        .expect("a BLAKE3 hash has 32 bytes");
    (u64::from_be_bytes(second) % u64::from(buckets.max(1))) as u32
}

/// The slot of a key, as `CLUSTER KEYSLOT` says: of what stands between its first `{` and the next
/// `}`, if that is anything, or of all of it.
pub fn key_slot(key: &[u8]) -> u16 {
    let tag = key
        .iter()
        .position(|&byte| byte == b'{')
        .and_then(|open| {
            let inside = &key[open + 1..];
            let close = inside.iter().position(|&byte| byte == b'}')?;
            Some(&inside[..close])
        })
        .filter(|tag| !tag.is_empty());
    slot_of(tag.unwrap_or(key))
}

fn slot_of(bytes: &[u8]) -> u16 {
    crc16(bytes) % CLUSTER_SLOTS
}

/// CRC16/XMODEM: the polynomial 0x1021, from 0, nothing reflected.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_is_that_of_redis_cluster() {
        // The check value of the specification.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        for (key, slot) in [
            ("a", 15_495),
            ("gd:{0}", 13_907),
            ("{}a", slot_of(b"{}a")),
            ("a{b}{c}", slot_of(b"b")),
            ("a{b", slot_of(b"a{b")),
            ("a{{b}}", slot_of(b"{b")),
        ] {
            assert_eq!(key_slot(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn tags_are_part_of_the_protocol() {
        for (count, expected) in [
            (64, [10, 18, 113, 12, 40]),
            (1_024, [460, 491, 3_121, 716, 430]),
            (16_384, [3_560, 22_179, 48_756, 8_209, 39_296]),
        ] {
            let partitions = Partitions::new(count).unwrap();
            let all: Vec<Partition> = partitions.all().collect();
            let last = all.len() - 1;
            let tags = [0, 1, 2, all.len() / 2, last].map(|at| partitions.tag(all[at]));
            assert_eq!(tags, expected);
            let share = CLUSTER_SLOTS / partitions.count();
            for partition in all {
                assert_eq!(partitions.slot(partition) / share, partition.0);
                let hot = partitions.hot_key(partition);
                assert_eq!(key_slot(hot.as_bytes()), partitions.slot(partition));
                let offline = partitions.offline_key(partition, 7);
                assert_eq!(key_slot(offline.as_bytes()), partitions.slot(partition));
            }
        }
    }

    #[test]
    fn a_users_partition_is_part_of_the_protocol() {
        let partitions = Partitions::new(1_024).unwrap();
        let users = ["alice", "bob", "carol", "\u{1f7e2}"].map(|id| User::from_text(id).unwrap());
        assert_eq!(users.map(|user| partitions.of(user).0), [71, 487, 115, 418]);
        assert_eq!(users.map(|user| bucket_of(user, 16)), [0, 5, 14, 2]);
        assert_eq!(bucket_of(users[0], 0), 0);
    }

    #[test]
    fn shares_are_even() {
        let partitions = Partitions::new(64).unwrap();
        let mut counts = [0_u32; 64];
        for number in 0..64_000 {
            let id = format!("user-{number}");
            counts[partitions.of(User::from_text(&id).unwrap()).index()] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(1_000) < 160));
    }

    #[test]
    fn no_other_number_of_partitions() {
        for count in [0, 1, 32, 63, 65, 1_000, 32_768, 65_536 + 64, u32::MAX] {
            assert!(Partitions::new(count).is_err(), "{count}");
        }
    }

    #[test]
    fn lanes_stand_in_three_thirds() {
        let thirds = LANES.map(|lane| u32::from(key_slot(lane.as_bytes())) * 3 / 16_384);
        assert_eq!(thirds, [0, 1, 2]);
    }
}
