//! Datagrams out, many in one system call.
//!
//! Owns the sockets and the choice between GSO, sendmmsg and single sends. Where the kernel offers
//! GSO and a device on the way then refuses it, sendmmsg takes over for the rest of the run.

use std::io::{self, ErrorKind, IoSlice};
use std::net::{SocketAddr, UdpSocket};

use quinn_udp::{Transmit, UdpSocketState};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};

use super::{Batching, BeatsArgs};
use crate::cause::udp_to;

/// Most bytes that one GSO send may carry, all its datagrams together.
const SEND_BYTES_MAX: usize = 63 << 10;
/// Datagrams of one sendmmsg; more gain nothing.
const MESSAGES_MAX: usize = 64;

/// Sends datagrams to the server, from several ports in turn.
pub(super) struct Sender {
    flows: Vec<(UdpSocket, UdpSocketState)>,
    next_flow: usize,
    target: SocketAddr,
    way: Way,
    blocked: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// This many datagrams in one buffer.
    Gso(usize),
    Mmsg,
    Single,
}

impl Sender {
    pub(super) fn new(
        target: SocketAddr,
        args: &BeatsArgs,
        datagram_bytes: usize,
    ) -> io::Result<Sender> {
        let flows = (0..args.flows.max(1))
            .map(|_| {
                let socket = udp_to(target)?;
                let state = UdpSocketState::new((&socket).into())?;
                Ok((socket, state))
            })
            .collect::<io::Result<Vec<_>>>()?;
        let segments_max = flows
            .first()
            .map_or(1, |(_, state)| state.max_gso_segments());
        let way = match (args.batching, segments_max) {
            (Batching::None, _) => Way::Single,
            (Batching::Mmsg, _) | (Batching::Auto, 0..=1) => Way::Mmsg,
            (Batching::Gso, 0..=1) => {
                return Err(io::Error::other(
                    "--batching gso: this kernel has no UDP_SEGMENT",
                ));
            }
            (_, segments) => Way::Gso(segments.min(SEND_BYTES_MAX / datagram_bytes).max(1)),
        };
        Ok(Sender {
            flows,
            next_flow: 0,
            target,
            way,
            blocked: 0,
        })
    }

    /// Datagrams that one call takes at most.
    pub(super) fn datagrams_per_send(&self) -> usize {
        match self.way {
            Way::Gso(segments) => segments,
            Way::Mmsg => MESSAGES_MAX,
            Way::Single => 1,
        }
    }

    /// Datagrams that a full socket at the other end can drop as one: a segmented send arrives
    /// whole where UDP_GRO is set, and the kernel counts one drop for it.
    pub(super) fn datagrams_per_drop(&self) -> usize {
        match self.way {
            Way::Gso(segments) => segments,
            Way::Mmsg | Way::Single => 1,
        }
    }

    /// The system call in use, for people.
    pub(super) fn way(&self) -> &'static str {
        match self.way {
            Way::Gso(_) => "sendmsg with GSO (UDP_SEGMENT)",
            Way::Mmsg => "sendmmsg",
            Way::Single => "one send each",
        }
    }

    /// Calls that the kernel refused because the socket was full or nobody listened.
    pub(super) fn blocked(&self) -> u64 {
        self.blocked
    }

    /// Sends `datagrams`, each of `datagram_bytes`; how many of them, from the first on, the kernel
    /// took.
    pub(super) fn send(&mut self, datagrams: &[u8], datagram_bytes: usize) -> io::Result<u64> {
        self.next_flow = (self.next_flow + 1) % self.flows.len();
        let count = (datagrams.len() / datagram_bytes) as u64;
        let (socket, state) = &self.flows[self.next_flow];
        let taken = match self.way {
            Way::Mmsg => send_many(socket, datagrams, datagram_bytes),
            Way::Gso(_) | Way::Single => {
                let transmit = Transmit {
                    destination: self.target,
                    ecn: None,
                    contents: datagrams,
                    segment_size: (count > 1).then_some(datagram_bytes),
                    src_ip: None,
                };
                state.try_send(socket.into(), &transmit).map(|()| count)
            }
        };
        match taken {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionRefused
                ) =>
            {
                self.blocked += 1;
                Ok(0)
            }
            // quinn-udp has seen a device refuse a segmented send.
            Err(_) if matches!(self.way, Way::Gso(_)) && state.max_gso_segments() == 1 => {
                self.way = Way::Mmsg;
                self.send(datagrams, datagram_bytes)
            }
            result => result,
        }
    }
}

/// One sendmmsg of at most [`MESSAGES_MAX`] datagrams.
fn send_many(socket: &UdpSocket, datagrams: &[u8], datagram_bytes: usize) -> io::Result<u64> {
    let slices: Vec<[IoSlice<'_>; 1]> = datagrams
        .chunks(datagram_bytes)
        .take(MESSAGES_MAX)
        .map(|datagram| [IoSlice::new(datagram)])
        .collect();
    let mut controls: Vec<_> = slices
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let mut messages: Vec<_> = slices
        .iter()
        .zip(&mut controls)
        .map(|(slice, control)| MMsgHdr::new(slice, control))
        .collect();
    Ok(sendmmsg(socket, &mut messages, SendFlags::DONTWAIT)? as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::common;

    #[test]
    fn datagrams_arrive_whole_and_apart_however_they_are_sent() {
        for (batching, way) in [
            ("auto", None),
            ("mmsg", Some(Way::Mmsg)),
            ("none", Some(Way::Single)),
        ] {
            let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
            receiver
                .set_read_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            let line = format!("--flows 1 --batching {batching}");
            let (_, args) = common::parsed(&line).unwrap();
            let mut sender = Sender::new(receiver.local_addr().unwrap(), &args, 49).unwrap();
            assert!(way.is_none_or(|way| way == sender.way), "{:?}", sender.way);
            let datagrams = [[1; 49], [2; 49], [3; 49]].concat();
            for part in datagrams.chunks(49 * sender.datagrams_per_send().min(3)) {
                assert_eq!(sender.send(part, 49).unwrap(), (part.len() / 49) as u64);
            }
            let mut bytes = [0; 100];
            for number in 1..=3 {
                assert_eq!(receiver.recv(&mut bytes).unwrap(), 49);
                assert_eq!(bytes[..49], [number; 49]);
            }
        }
    }
}
