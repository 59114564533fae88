//! Random bytes of the kernel's.
//!
//! Owns that they come by the system call, and so also where there is no /dev: a static program in
//! an empty root finds neither that nor the C library's symbol by name, which crates look for.

use std::io;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fills all of it. Waits only in a machine that has just been booted.
pub fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(taken) => bytes = &mut bytes[taken..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_it_is_filled() {
        // More than the kernel gives in one piece once a signal comes.
        let (mut one, mut other) = (vec![0; 4_096], vec![0; 4_096]);
        fill(&mut one).unwrap();
        fill(&mut other).unwrap();
        assert_ne!(one, other);
        for bytes in [one, other] {
            assert!(
                bytes
                    .chunks(64)
                    .all(|some| some.iter().any(|&byte| byte != 0))
            );
        }
        fill(&mut []).unwrap();
    }
}
