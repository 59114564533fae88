//! What the kernel knows of a peer.
//!
//! Owns two questions to a socket: has the peer acknowledged all, and when did it last acknowledge
//! anything. The first is asked once in an interval of each stream that vouches for its holder.
//! Both are asked at each write of connections whose TCP_USER_TIMEOUT is lifted.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::engine::turn::Peer;

/// Asks. A socket that does not answer is taken for one that is behind.
pub(super) fn ask(socket: &TcpStream, patience: Duration) -> Peer {
    match (unacknowledged_bytes(socket), last_heard(socket)) {
        (Some(0), _) => Peer::CaughtUp,
        (Some(_), Some(ago)) if ago >= patience => Peer::Dead,
        _ => Peer::Behind,
    }
}

/// Time since a peer that has not acknowledged all last acknowledged anything, in ms. None: it has,
/// or the socket does not answer.
pub(super) fn unacknowledged_ms(socket: &TcpStream) -> Option<u64> {
    if unacknowledged_bytes(socket)? == 0 {
        return None;
    }
    last_heard(socket).map(|ago| ago.as_millis() as u64)
}

/// SIOCOUTQ, tcp(7): bytes written and not acknowledged.
fn unacknowledged_bytes(socket: &TcpStream) -> Option<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open while `socket` is borrowed, and SIOCOUTQ (= TIOCOUTQ) writes
    // one int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    (result == 0).then(|| u32::try_from(bytes).ok()).flatten()
}

/// TCP_INFO, tcp(7): time since the last acknowledgement.
fn last_heard(socket: &TcpStream) -> Option<Duration> {
    // SAFETY: `tcp_info` is plain numbers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    let at = (&raw mut info).cast();
    // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `length`
    // bytes to `info`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            at,
            &raw mut length,
        )
    };
    (result == 0).then(|| Duration::from_millis(u64::from(info.tcpi_last_ack_recv)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    #[test]
    fn a_peer_that_reads_catches_up_and_one_that_does_not_is_behind() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (theirs, _) = listener.accept().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut socket = ours;
        assert_eq!(ask(&socket, Duration::ZERO), Peer::CaughtUp);
        // Beyond what its window takes.
        while socket.write(&[0; 65_536]).is_ok() {}
        assert_eq!(ask(&socket, Duration::from_secs(3_600)), Peer::Behind);
        assert_eq!(ask(&socket, Duration::ZERO), Peer::Dead);
        drop(theirs);
    }
}
