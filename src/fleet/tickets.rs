//! Which tickets have been used at any node of a fleet.
//!
//! Owns the key that stands for one: whoever makes it has used the ticket. It is in the partition
//! that the ticket's own bytes choose, so that a crowd's tickets are spread over all servers.

use super::calls::Call;
use super::partition::{Partition, Partitions};
use super::traffic::Reply;

/// Takes a ticket, whose id is random in its last eight bytes. It is kept for `ms`.
pub fn take(partitions: &Partitions, id: &[u8; 24], ms: u64) -> (Partition, Call) {
    let (_, random) = id.split_last_chunk::<8>().expect("8 of 24 bytes");
    let chosen = u64::from_be_bytes(*random) % u64::from(partitions.count());
    let partition = partitions.at(chosen as u16);
    let mut key = format!("gd:{{{}}}:t:", partitions.tag(partition));
    for byte in id {
        key.push_str(&format!("{byte:02x}"));
    }
    let ms = ms.to_string();
    let words = [b"SET", key.as_bytes(), b"", b"NX", b"PX", ms.as_bytes()];
    (partition, Call::plain(words))
}

/// Whether it is ours. None: that is not known.
pub fn taken(replies: &[Reply]) -> Option<bool> {
    match replies {
        [Reply::Bytes(_)] => Some(true),
        [Reply::Nil] => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tickets_key() {
        let partitions = Partitions::new(64).unwrap();
        let mut id = [0xab; 24];
        id[16..].copy_from_slice(&65_u64.to_be_bytes());
        let (partition, call) = take(&partitions, &id, 60_000);
        assert_eq!(partition.index(), 1);
        let words: Vec<_> = call.words().map(String::from_utf8_lossy).collect();
        let key = format!("gd:{{18}}:t:{}0000000000000041", "ab".repeat(16));
        assert_eq!(words, ["SET", &key, "", "NX", "PX", "60000"]);
    }

    #[test]
    fn what_the_answer_means() {
        let error = Reply::Error("OOM command not allowed".into());
        for (replies, expected) in [
            (vec![Reply::Bytes(b"OK".to_vec())], Some(true)),
            (vec![Reply::Nil], Some(false)),
            (vec![error], None),
            (vec![], None),
        ] {
            assert_eq!(taken(&replies), expected, "{replies:?}");
        }
    }
}
