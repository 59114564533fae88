//! Beat datagrams off the socket: many per system call, and where the kernel merged some (GRO),
//! split again.
//!
//! Owns the receive buffers, preallocated once, from where each datagram came, and how many the
//! kernel had no room for. Never looks into a datagram and never answers one.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSockRef, UdpSocketState};

/// Bytes of one receive buffer: what the kernel merges into one (GRO) is at most one IP packet
/// long.
const BUFFER_BYTES: usize = 65_536;
/// Datagrams handed over at once. Enough for what one `recvmmsg` of unmerged ones brings; merged
/// ones take several rounds.
const HANDED_MAX: usize = 256;

const _: () = assert!(BATCH_SIZE <= HANDED_MAX);

/// One shard's beat socket and its buffers.
pub(super) struct Datagrams {
    socket: std::net::UdpSocket,
    state: UdpSocketState,
    buffers: Box<[u8]>,
    /// What the last call filled.
    filled: Vec<RecvMeta>,
    /// The kernel's count of what it dropped, when it was last asked.
    dropped: u32,
}

impl Datagrams {
    /// Takes over a bound socket and registers it.
    pub(super) fn new(
        socket: std::net::UdpSocket,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Datagrams> {
        // Also switches GRO on, where the kernel has it.
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        registry.register(
            &mut SourceFd(&socket.as_raw_fd()),
            token,
            Interest::READABLE,
        )?;
        let buffers = vec![0; BUFFER_BYTES * BATCH_SIZE].into_boxed_slice();
        Ok(Datagrams {
            socket,
            state,
            buffers,
            filled: Vec::with_capacity(BATCH_SIZE),
            dropped: 0,
        })
    }

    /// One system call's worth of datagrams, handed over in batches to `hand_over`, which answers
    /// how many beats each was; returns their sum. How many a datagram holds is seen only then, so
    /// the call may bring more than were wanted: it asks for no more buffers than `beats_max`, at
    /// most [`BATCH_SIZE`], each of which the kernel may have filled up to [`BUFFER_BYTES`].
    pub(super) fn receive(
        &mut self,
        beats_max: usize,
        mut hand_over: impl FnMut(&[&[u8]]) -> usize,
    ) -> io::Result<usize> {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut chunks = self.buffers.chunks_exact_mut(BUFFER_BYTES);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let wanted = beats_max.min(BATCH_SIZE);
        let buffers = self.state.recv(
            UdpSockRef::from(&self.socket),
            &mut slices[..wanted],
            &mut meta[..wanted],
        )?;
        self.filled.clear();
        self.filled.extend_from_slice(&meta[..buffers]);
        Ok(split(&self.buffers, &self.filled, &mut hand_over))
    }

    /// Datagrams that the kernel has dropped at this socket since the last call, for want of room.
    pub(super) fn lost(&mut self) -> u32 {
        let dropped = dropped(&self.socket).unwrap_or(self.dropped);
        // The kernel's count begins anew after 2^32.
        let lost = dropped.wrapping_sub(self.dropped);
        self.dropped = dropped;
        lost
    }

    /// From where the datagram came that was handed over `nth` in the last call, from 0.
    pub(super) fn source_of(&self, mut nth: usize) -> Option<SocketAddr> {
        for meta in &self.filled {
            let datagrams = meta.len.div_ceil(meta.stride.max(1)).max(1);
            match nth.checked_sub(datagrams) {
                None => return Some(meta.addr),
                Some(behind) => nth = behind,
            }
        }
        None
    }
}

/// SO_MEMINFO, socket(7): the count that SO_RXQ_OVFL tells with a datagram. Asked for, it costs
/// nothing for each datagram, and is told although no other comes.
fn dropped(socket: &std::net::UdpSocket) -> Option<u32> {
    // linux/sock_diag.h: SK_MEMINFO_DROPS is the last of SK_MEMINFO_VARS.
    const DROPS: usize = 8;
    let mut found = [0u32; DROPS + 1];
    let mut length = size_of_val(&found) as libc::socklen_t;
    // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most `length`
    // bytes to `found`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            found.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of_val(&found)).then_some(found[DROPS])
}

/// Hands over the datagrams of the filled buffers, at most [`HANDED_MAX`] at a time; returns the
/// sum of what it answers.
fn split(
    buffers: &[u8],
    meta: &[RecvMeta],
    hand_over: &mut impl FnMut(&[&[u8]]) -> usize,
) -> usize {
    let mut batch: [&[u8]; HANDED_MAX] = [&[]; HANDED_MAX];
    let (mut len, mut total) = (0, 0);
    for (buffer, meta) in buffers.chunks_exact(BUFFER_BYTES).zip(meta) {
        let mut rest = &buffer[..meta.len.min(BUFFER_BYTES)];
        // At least once: an empty datagram (stride 0) is refused and counted like any other that is
        // too short.
        loop {
            let (datagram, behind) = rest.split_at(meta.stride.max(1).min(rest.len()));
            batch[len] = datagram;
            len += 1;
            if len == HANDED_MAX {
                total += hand_over(&batch);
                len = 0;
            }
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
    }
    if len > 0 {
        total += hand_over(&batch[..len]);
    }
    total
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn each_datagram_has_the_address_of_its_buffer() {
        let (mut datagrams, _, _poll) = pair();
        let from = |port: u16, len, stride| {
            let mut meta = meta(len, stride);
            meta.addr = ([127, 0, 0, 1], port).into();
            meta
        };
        datagrams.filled = vec![from(1, 5, 2), from(2, 3, 3), from(3, 0, 0), from(4, 4, 2)];
        let ports = |nth| datagrams.source_of(nth).map(|source| source.port());
        let expected = [1, 1, 1, 2, 3, 4, 4].map(Some);
        assert_eq!(std::array::from_fn(ports), expected);
        assert_eq!(ports(7), None);
    }

    fn pair() -> (Datagrams, UdpSocket, mio::Poll) {
        let poll = mio::Poll::new().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(socket.local_addr().unwrap()).unwrap();
        let datagrams = Datagrams::new(socket, poll.registry(), Token(0)).unwrap();
        (datagrams, sender, poll)
    }

    fn meta(len: usize, stride: usize) -> RecvMeta {
        let mut meta = RecvMeta::default();
        (meta.len, meta.stride) = (len, stride);
        meta
    }

    #[test]
    fn what_found_no_room_is_counted_once() {
        let (mut datagrams, sender, _poll) = pair();
        assert_eq!(datagrams.lost(), 0);
        socket2::SockRef::from(&datagrams.socket)
            .set_recv_buffer_size(0)
            .unwrap();
        for _ in 0..1_000 {
            sender.send(&[7; 1_000]).unwrap();
        }
        let mut received = 0;
        while let Ok(n) = datagrams.receive(1_000, |batch| batch.len()) {
            received += n;
        }
        assert!(received < 1_000, "{received}");
        assert_eq!(datagrams.lost() as usize, 1_000 - received);
        assert_eq!(datagrams.lost(), 0);
    }

    #[test]
    fn merged_datagrams_are_split_by_stride() {
        let mut buffers = vec![0u8; 3 * BUFFER_BYTES];
        buffers[..5].copy_from_slice(b"aabbc");
        buffers[BUFFER_BYTES..BUFFER_BYTES + 3].copy_from_slice(b"xyz");
        let mut got = Vec::new();
        let metas = [meta(5, 2), meta(3, 3), meta(0, 0)];
        let total = split(&buffers, &metas, &mut |batch: &[&[u8]]| {
            got.extend(batch.iter().map(|d| d.to_vec()));
            batch.len()
        });
        assert_eq!(total, 5);
        assert_eq!(got, [&b"aa"[..], b"bb", b"c", b"xyz", b""]);
    }

    #[test]
    fn large_merges_come_in_rounds() {
        let buffers = vec![7u8; 4 * BUFFER_BYTES];
        let mut rounds = Vec::new();
        let total = split(&buffers, &[meta(640, 10); 4], &mut |batch: &[&[u8]]| {
            rounds.push(batch.len());
            batch.len()
        });
        assert_eq!(total, 256);
        assert_eq!(rounds, [256]);
        let mut rounds = Vec::new();
        split(&buffers, &[meta(650, 10); 4], &mut |batch: &[&[u8]]| {
            rounds.push(batch.len());
            batch.len()
        });
        assert_eq!(rounds, [256, 4]);
    }

    #[test]
    fn what_is_sent_is_handed_over_by_the_buffer() {
        let (mut datagrams, sender, _poll) = pair();
        for n in 0..20u8 {
            sender.send(&[n; 3]).unwrap();
        }
        let mut got = Vec::new();
        let mut take = |batch: &[&[u8]]| {
            got.extend(batch.iter().map(|d| d[0]));
            // Ten beats in each.
            10 * batch.len()
        };
        assert_eq!(datagrams.receive(1, &mut take).unwrap(), 10, "one buffer");
        assert_eq!(
            datagrams.receive(11, &mut take).unwrap(),
            110,
            "eleven buffers, since each may hold one beat"
        );
        assert_eq!(datagrams.receive(10_000, &mut take).unwrap(), 80);
        let empty = datagrams.receive(10_000, &mut take).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        assert!(got.iter().copied().eq(0..20));
    }
}
