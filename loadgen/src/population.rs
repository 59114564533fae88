//! Who is in the world: user ids made from a number and back.
//!
//! Owns the form of the ids: 16 bytes, `g`, five letters that stand for the seed, ten hex digits of
//! the user's number. Two runs with different seeds therefore never share a user, on whatever
//! server they run.

/// Bytes of every id that the generator makes.
pub const ID_BYTES: usize = 16;
const TAG_BYTES: usize = 6;

/// The users of one seed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Population {
    tag: [u8; TAG_BYTES],
}

impl Population {
    /// The users of `seed`.
    pub fn new(seed: u64) -> Population {
        let mut tag = *b"g00000";
        let mut bits = mix(seed);
        for letter in &mut tag[1..] {
            *letter = b"abcdefghijklmnopqrstuvwxyz234567"[(bits & 31) as usize];
            bits >>= 5;
        }
        Population { tag }
    }

    /// The id of user `number` (below 2^40).
    pub fn id(&self, number: u64) -> [u8; ID_BYTES] {
        let mut id = [0; ID_BYTES];
        id[..TAG_BYTES].copy_from_slice(&self.tag);
        for (at, digit) in id[TAG_BYTES..].iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(number >> (36 - 4 * at) & 15) as usize];
        }
        id
    }

    /// Appends the id of user `number`.
    pub fn push_id(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id(number));
    }

    /// The number of the user named `id`; None if it is nobody of this population.
    pub fn number(&self, id: &[u8]) -> Option<u64> {
        let digits = id.strip_prefix(&self.tag)?;
        if digits.len() != ID_BYTES - TAG_BYTES {
            return None;
        }
        digits.iter().try_fold(0, |number, digit| match digit {
            b'0'..=b'9' => Some(number << 4 | u64::from(digit - b'0')),
            b'a'..=b'f' => Some(number << 4 | u64::from(digit - b'a' + 10)),
            _ => None,
        })
    }
}

/// SplitMix64's finaliser: neighbouring inputs give unrelated outputs.
pub fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_its_number() {
        let p = Population::new(1);
        assert_eq!(
            std::str::from_utf8(&p.id(0x2a)).unwrap(),
            "gbgxeq000000002a"
        );
        for number in [0, 1, 0xff, 0xff_ffff_ffff] {
            assert_eq!(p.number(&p.id(number)), Some(number));
        }
    }

    #[test]
    fn strangers_have_no_number() {
        let p = Population::new(1);
        assert_eq!(p.number(&Population::new(2).id(1)), None);
        assert_eq!(p.number(b"bob"), None);
        assert_eq!(p.number(b"gbgxeq000000002A"), None);
        assert_eq!(p.number(b"gbgxeq000000002a0"), None);
    }

    #[test]
    fn the_mix_is_splitmix64() {
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }
}
