//! Numbers of six bytes, and pieces off the front of a slice.
//!
//! Owns the byte order: the network's, as `struct.pack('>I6')` of the library.

use crate::time::Unix;

/// The largest number of six bytes.
pub(super) const U48_MAX: u64 = (1 << 48) - 1;

/// Six bytes of `number`. A larger one than fits is the largest that does.
pub(super) fn u48(number: u64) -> [u8; 6] {
    let [_, _, low @ ..] = number.min(U48_MAX).to_be_bytes();
    low
}

/// Six bytes of a time in ms.
pub(super) fn time(at: Unix) -> [u8; 6] {
    u48(at.ms())
}

/// Takes `N` bytes off the front.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

pub(super) fn take_u8(bytes: &mut &[u8]) -> Option<u8> {
    take::<1>(bytes).map(|[byte]| byte)
}

pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).map(u32::from_be_bytes)
}

pub(super) fn take_u48(bytes: &mut &[u8]) -> Option<u64> {
    let [a, b, c, d, e, f] = take(bytes)?;
    Some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

pub(super) fn take_time(bytes: &mut &[u8]) -> Option<Unix> {
    take_u48(bytes).map(Unix::from_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_six_bytes() {
        for (number, bytes) in [
            (0, [0; 6]),
            (0x0102_0304_0506, [1, 2, 3, 4, 5, 6]),
            (U48_MAX, [0xff; 6]),
            (u64::MAX, [0xff; 6]),
        ] {
            assert_eq!(u48(number), bytes);
            let mut rest = &bytes[..];
            assert_eq!(take_u48(&mut rest), Some(number.min(U48_MAX)));
            assert_eq!((take_u8(&mut rest), rest.len()), (None, 0));
        }
    }
}
