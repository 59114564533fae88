//! The sockets under ureq: given up means gone.
//!
//! Owns three differences to ureq's own. A connection that is dropped takes back what the kernel
//! has not delivered yet (SO_LINGER 0): otherwise a request that was given up during an outage
//! would still be delivered by the kernel when the outage ends, ahead of everything that is to come
//! first then. A peer that reads little by little gets no more time than one that does not. And an
//! address that is out of reach is not dialled, whatever name has led to it.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};

use crate::reach::Reach;
use crate::time::boottime;

/// Makes [`Socket`]s.
#[derive(Debug)]
pub(super) struct Connect {
    /// How far.
    pub(super) reach: Reach,
}

/// Every address that a name leads to is out of reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OutOfReach;

impl fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it has no address that may be dialled")
    }
}

impl std::error::Error for OutOfReach {}

/// A connection to another node.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    buffers: LazyBuffers,
}

impl Connector for Connect {
    type Out = Socket;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Socket>, Error> {
        let seals = details.needs_tls();
        let within = |addr: &&SocketAddr| self.reach.allows(addr.ip(), seals);
        let share = details.addrs.iter().filter(within).count().max(1) as u32;
        let mut outcome = Err(match details.addrs.is_empty() {
            true => Error::HostNotFound,
            false => Error::Io(std::io::Error::other(OutOfReach)),
        });
        for addr in details.addrs.iter().filter(within) {
            outcome = open(*addr, limit(details.timeout).map(|left| left / share));
            if outcome.is_ok() {
                break;
            }
        }
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        outcome.map(|stream| Some(Socket { stream, buffers }))
    }
}

fn open(addr: SocketAddr, limit: Option<Duration>) -> Result<TcpStream, Error> {
    let stream = match limit {
        Some(limit) => TcpStream::connect_timeout(&addr, limit)?,
        None => TcpStream::connect(addr)?,
    };
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(stream)
}

/// What is left, and not nothing: the kernel takes that for an endless wait.
fn limit(timeout: NextTimeout) -> Option<Duration> {
    timeout
        .not_zero()
        .map(|left| (*left).max(Duration::from_millis(1)))
}

fn fault(error: std::io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => error.into(),
    }
}

impl Transport for Socket {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let until = limit(timeout).map(|left| boottime().plus_ms(left.as_millis() as u64));
        let mut output = &self.buffers.output()[..amount];
        while !output.is_empty() {
            if let Some(until) = until {
                let left_ms = until.ms_since(boottime());
                if left_ms == 0 {
                    return Err(Error::Timeout(timeout.reason));
                }
                self.stream
                    .set_write_timeout(Some(Duration::from_millis(left_ms)))?;
            }
            match self.stream.write(output) {
                Ok(taken) => output = &output[taken..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(fault(error, timeout)),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(limit(timeout))?;
        let input = self.buffers.input_append_buf();
        let amount = self
            .stream
            .read(input)
            .map_err(|error| fault(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// Whether another request may be sent: nothing has come unasked, not even the end.
    fn is_open(&mut self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return false;
        }
        let peeked = self.stream.peek(&mut [0]).map_err(|error| error.kind());
        let quiet = peeked == Err(ErrorKind::WouldBlock);
        quiet && self.stream.set_nonblocking(false).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_is_given_up_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = open(
            listener.local_addr().unwrap(),
            Some(Duration::from_secs(10)),
        )
        .unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        drop(stream);
        // A reset, where an orderly end would read as one.
        let read = peer.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(read, Err(ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_peer_that_trickles_gets_no_more_time() {
        const BYTES: usize = 8 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = open(listener.local_addr().unwrap(), None).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        // Or the kernel would take it all.
        SockRef::from(&stream)
            .set_send_buffer_size(1 << 16)
            .unwrap();
        SockRef::from(&peer).set_recv_buffer_size(1 << 16).unwrap();
        let mut socket = Socket {
            stream,
            buffers: LazyBuffers::new(16, BYTES),
        };
        // Takes something well within each timeout, and all of it well beyond.
        let reader = std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 17];
            while peer.read(&mut bytes).is_ok_and(|length| length > 0) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let timeout = NextTimeout {
            after: Duration::from_millis(300).into(),
            reason: ureq::Timeout::Global,
            ..NextTimeout::default()
        };
        socket.buffers().output();
        let sent = socket.transmit_output(BYTES, timeout);
        assert!(matches!(sent, Err(Error::Timeout(_))), "{sent:?}");
        drop(socket);
        reader.join().unwrap();
    }

    #[test]
    fn a_connection_is_kept_and_seen_to_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = open(listener.local_addr().unwrap(), None).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let mut socket = Socket {
            stream,
            buffers: LazyBuffers::new(16, 16),
        };
        assert!(socket.is_open());
        drop(peer);
        // The end takes its way through the loopback device.
        let ended = (0..1_000).any(|_| {
            std::thread::yield_now();
            !socket.is_open()
        });
        assert!(ended);
    }
}
