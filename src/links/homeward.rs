//! Datagrams on their way to other nodes of a fleet.
//!
//! Owns one shard's sockets: as many as to a presence node, and for the same reason, but connected
//! to none: nodes come and go. What the kernel does not take is lost and counted.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;

use super::beats::{BATCH, BeatSender, in_a_row, send_batch};
use crate::engine::Datagrams;
use crate::metrics::{Board, Counter};

/// One shard's sockets. They are opened when something is to be sent.
pub struct HomeSender {
    v4: Vec<UdpSocket>,
    v6: Vec<UdpSocket>,
    turn: usize,
    board: Arc<Board>,
}

impl HomeSender {
    /// `board`: where it is counted.
    pub fn new(board: &Arc<Board>) -> HomeSender {
        HomeSender {
            v4: Vec::new(),
            v6: Vec::new(),
            turn: 0,
            board: Arc::clone(board),
        }
    }

    /// Sends datagrams to where a node takes them.
    pub fn send(&mut self, to: SocketAddr, datagrams: &Datagrams) {
        let taken = self.try_send(to, datagrams).unwrap_or_else(|error| {
            tracing::debug!(%error, %to, "no socket for datagrams to another node");
            0
        });
        let process = &self.board.process;
        process.add(Counter::FleetDatagrams, taken as u64);
        let lost = datagrams.len() - taken;
        process.add(Counter::FleetDatagramsLost, lost as u64);
    }

    /// How many the kernel took.
    ///
    /// Errors: the kernel gives no socket.
    fn try_send(&mut self, to: SocketAddr, datagrams: &Datagrams) -> io::Result<usize> {
        let sockets = match to {
            SocketAddr::V4(_) => &mut self.v4,
            SocketAddr::V6(_) => &mut self.v6,
        };
        if sockets.is_empty() {
            *sockets = in_a_row(to)?;
            for socket in &*sockets {
                socket.set_nonblocking(true)?;
            }
        }
        let slices = datagrams.iter().map(|datagram| [IoSlice::new(datagram)]);
        let slices: Vec<[IoSlice<'_>; 1]> = slices.collect();
        let mut taken = 0;
        for batch in slices.chunks(BATCH) {
            self.turn = (self.turn + 1) % BeatSender::PORTS;
            taken += send_batch(&sockets[self.turn], Some(to), batch).taken;
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_gets_its_own() {
        let nodes = ["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"];
        // A machine may be without IPv6.
        let nodes: Vec<UdpSocket> = nodes
            .iter()
            .filter_map(|at| UdpSocket::bind(at).ok())
            .collect();
        assert!(nodes.len() >= 2);
        let board = Arc::new(Board::new(1));
        let mut sender = HomeSender::new(&board);
        for round in 0..20_u8 {
            for (at, node) in nodes.iter().enumerate() {
                let sent: Vec<Vec<u8>> = (0..20).map(|n| vec![at as u8, round, n]).collect();
                let all = Datagrams::from_iter(sent.iter().map(Vec::as_slice));
                sender.send(node.local_addr().unwrap(), &all);
                let mut buffer = [0; 16];
                for expected in &sent {
                    let length = node.recv(&mut buffer).unwrap();
                    assert_eq!(&buffer[..length], expected);
                }
            }
        }
        let counted = board.process.snapshot();
        let sent = 20 * 20 * nodes.len() as u64;
        assert_eq!(counted.counter(Counter::FleetDatagrams), sent);
        assert_eq!(counted.counter(Counter::FleetDatagramsLost), 0);
    }
}
