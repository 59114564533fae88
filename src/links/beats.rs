//! Beat datagrams on their way to the presence nodes.
//!
//! Owns one shard's sockets: several to each node, used in turn, so that what spreads packets by
//! their addresses (a card's receive queues) has something to spread. Their ports stand in a row,
//! as far as the kernel has so many: a presence node gives a port to the shard that is its number
//! modulo theirs, so they spread evenly whatever their number. A datagram that the kernel does not
//! take is lost and counted, like one that the network loses: the next beat is at most an interval
//! away.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};

use crate::engine::Datagrams;
use crate::metrics::{Board, Counter};

/// Datagrams that go out by one system call, from one port.
pub(super) const BATCH: usize = 16;

/// Sends in a row that met "nobody listens" before it is told: each port has met it twice, so it is
/// no restart's moment.
const REFUSALS_TOLD: usize = 2 * BeatSender::PORTS;

/// Rows of ports that are tried, each from a port that the kernel has chosen.
const ROW_TRIES: usize = 32;

/// The sockets to one node, and whose turn it is.
struct Ports {
    node: SocketAddr,
    sockets: Vec<UdpSocket>,
    turn: usize,
    /// Batches in a row whose port had been told that nobody listens.
    refused: usize,
}

/// One shard's sockets.
pub struct BeatSender {
    nodes: Vec<Ports>,
    board: Arc<Board>,
}

impl BeatSender {
    /// Sockets, hence source ports, of one shard to one node.
    pub const PORTS: usize = 16;

    /// Connects to each of `nodes`.
    ///
    /// Errors: the kernel gives no socket, or has no route to a node.
    pub fn new(nodes: &[SocketAddr], board: &Arc<Board>) -> io::Result<BeatSender> {
        let ports = |node: &SocketAddr| {
            let sockets = in_a_row(*node)?;
            for socket in &sockets {
                socket.connect(node)?;
                socket.set_nonblocking(true)?;
            }
            Ok(Ports {
                node: *node,
                sockets,
                turn: 0,
                refused: 0,
            })
        };
        Ok(BeatSender {
            nodes: nodes.iter().map(ports).collect::<io::Result<_>>()?,
            board: Arc::clone(board),
        })
    }

    /// Sends datagrams to a node, by its index.
    pub fn send(&mut self, node: usize, datagrams: &Datagrams) {
        let slices: Vec<[IoSlice<'_>; 1]> = datagrams
            .iter()
            .map(|datagram| [IoSlice::new(datagram)])
            .collect();
        let (mut sent, mut refused) = (0, 0);
        for batch in slices.chunks(BATCH) {
            let ports = &mut self.nodes[node];
            ports.turn = (ports.turn + 1) % BeatSender::PORTS;
            let outcome = send_batch(&ports.sockets[ports.turn], None, batch);
            sent += outcome.taken;
            refused += u64::from(outcome.refused);
            ports.refused = if outcome.refused {
                ports.refused + 1
            } else {
                0
            };
            if ports.refused == REFUSALS_TOLD {
                tracing::warn!(
                    "nobody receives beats at udp://{}, as its host says; users vouched for there \
                     will be offline",
                    ports.node
                );
            }
        }
        self.board
            .process
            .add(Counter::RelayDatagramsRefused, refused);
        self.board.process.add(Counter::RelayDatagrams, sent as u64);
        self.board
            .process
            .add(Counter::RelayDatagramsLost, (slices.len() - sent) as u64);
    }
}

/// Sockets on ports in a row. Where no such row is found, the ports are as the kernel gives them:
/// then some shard of the node has more to do than another.
pub(super) fn in_a_row(node: SocketAddr) -> io::Result<Vec<UdpSocket>> {
    let any: IpAddr = match node {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let beside = |first: &UdpSocket| -> io::Result<Vec<UdpSocket>> {
        let first = first.local_addr()?.port();
        let ports = (1..BeatSender::PORTS as u16).map(|n| first.checked_add(n));
        ports
            .map(|port| UdpSocket::bind((any, port.ok_or(io::ErrorKind::AddrNotAvailable)?)))
            .collect()
    };
    for _ in 0..ROW_TRIES {
        let first = UdpSocket::bind((any, 0))?;
        if let Ok(rest) = beside(&first) {
            return Ok(std::iter::once(first).chain(rest).collect());
        }
    }
    (0..BeatSender::PORTS)
        .map(|_| UdpSocket::bind((any, 0)))
        .collect()
}

/// What became of a batch.
#[derive(Default)]
pub(super) struct Outcome {
    /// Datagrams that the kernel took.
    pub(super) taken: usize,
    /// An earlier datagram from this port had met nobody (ICMP port unreachable).
    refused: bool,
}

/// `to`: where they go, if the socket is connected to nobody.
pub(super) fn send_batch(
    socket: &UdpSocket,
    to: Option<SocketAddr>,
    batch: &[[IoSlice<'_>; 1]],
) -> Outcome {
    let to = to.map(SocketAddrAny::from);
    let mut from = 0;
    let mut outcome = Outcome::default();
    // The first of `from` has been refused once.
    let mut again = false;
    while from < batch.len() {
        let mut controls: Vec<_> = batch[from..]
            .iter()
            .map(|_| SendAncillaryBuffer::default())
            .collect();
        let mut messages: Vec<MMsgHdr<'_>> = batch[from..]
            .iter()
            .zip(&mut controls)
            .map(|(slices, control)| match &to {
                Some(to) => MMsgHdr::new_with_addr(to, slices, control),
                None => MMsgHdr::new(slices, control),
            })
            .collect();
        match sendmmsg(socket, &mut messages, SendFlags::empty()) {
            Ok(count) => {
                from += count.max(1);
                outcome.taken += count;
                again = false;
            }
            Err(rustix::io::Errno::INTR) => {}
            // What an earlier datagram met (ICMP: nobody listens) is told by the next call, which
            // then sends nothing: each port would lose one more beat to a node that is back.
            Err(error) if !again => {
                outcome.refused |= error == rustix::io::Errno::CONNREFUSED;
                again = true;
            }
            Err(error) => {
                tracing::debug!(%error, "a beat datagram was not sent");
                from += 1;
                again = false;
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::metrics::Board;

    #[test]
    fn all_arrive_whole_and_from_several_ports() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let board = Arc::new(Board::new(1));
        let mut sender = BeatSender::new(&[receiver.local_addr().unwrap()], &board).unwrap();
        let mut ports = BTreeSet::new();
        let mut buffer = [0; 2_000];
        for round in 0..40_u8 {
            let sent: Vec<Vec<u8>> = (0..20).map(|n| vec![round; n + 1]).collect();
            sender.send(0, &Datagrams::from_iter(sent.iter().map(Vec::as_slice)));
            let mut received = Vec::new();
            for _ in &sent {
                let (length, from) = receiver.recv_from(&mut buffer).unwrap();
                received.push(buffer[..length].to_vec());
                ports.insert(from.port());
            }
            assert_eq!(received, sent);
        }
        assert_eq!(ports.len(), BeatSender::PORTS);
        // In a row: so each shard of a node gets as many of them as any other.
        let (first, last) = (*ports.first().unwrap(), *ports.last().unwrap());
        assert_eq!(usize::from(last - first), BeatSender::PORTS - 1);
        assert_eq!(
            board.process.snapshot().counter(Counter::RelayDatagrams),
            800
        );
    }

    #[test]
    fn who_listens_again_misses_nothing() {
        let node = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = node.local_addr().unwrap();
        drop(node);
        let board = Arc::new(Board::new(1));
        let mut sender = BeatSender::new(&[addr], &board).unwrap();
        let beat = Datagrams::from_iter([&b"beat"[..]]);
        for _ in 0..2 {
            for _ in 0..BeatSender::PORTS {
                sender.send(0, &beat);
            }
            // A busy kernel says a little later that nobody listens.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        // Each port but for its first time.
        let refused = || {
            board
                .process
                .snapshot()
                .counter(Counter::RelayDatagramsRefused)
        };
        assert_eq!(refused(), BeatSender::PORTS as u64);
        assert_eq!(sender.nodes[0].refused, BeatSender::PORTS);
        let node = UdpSocket::bind(addr).unwrap();
        node.set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        for _ in 0..2 * BeatSender::PORTS {
            sender.send(0, &beat);
        }
        for _ in 0..2 * BeatSender::PORTS {
            assert_eq!(node.recv(&mut [0; 8]).unwrap(), 4);
        }
        assert_eq!(sender.nodes[0].refused, 0, "somebody listens again");
        let counted = board.process.snapshot();
        let (sent, lost) = (
            counted.counter(Counter::RelayDatagrams),
            counted.counter(Counter::RelayDatagramsLost),
        );
        assert_eq!((sent, lost), (4 * BeatSender::PORTS as u64, 0));
    }
}
