//! The TLS of one connection: rustls, which is shown one record at a time and keeps no buffer.
//!
//! Owns what has come and is not a whole record, what is opened and not taken, and what is sealed
//! and not written. Reads and writes a socket that does not block; knows no poll and no clock, and
//! nothing of what the plaintext means. Everything that a peer can send ends in a value.
//!
//! The object of the library is made when the first record is whole: who is silent costs next to
//! nothing. One record is shown at a time, so that what stands behind the handshake's last is not
//! opened before somebody takes it.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};

use super::cipher::Sealer;
use super::fault::Fault;
use crate::cache::prefetch;

/// Bytes of a record's head.
const HEAD_BYTES: usize = 5;
/// Longest record: TLS 1.2 allows its content to grow by so much (RFC 5246, section 6.2.3).
const RECORD_BYTES_MAX: usize = HEAD_BYTES + (1 << 14) + 2_048;
/// Most bytes of handshake messages that are not whole, over all their records. The longest honest
/// one, a first message with a post-quantum share, has two thousand.
const SHOWN_BYTES_MAX: usize = 16_384 + RECORD_BYTES_MAX;
/// Most bytes that one system call reads: what is behind the records that are taken waits in
/// memory.
const READ_BYTES: usize = RECORD_BYTES_MAX;
/// Most plaintext of one record that is sealed.
const SEALED_BYTES_MAX: usize = 16_384;
/// What sealing adds to it at most, with a key update before it.
const SEAL_BYTES_MAX: usize = 256;
/// Most ciphertext that is opened before others have their turn.
const BYTES_PER_READ: usize = 131_072;
/// The same of records: an empty one is soon opened, and there may be many.
const RECORDS_PER_READ: usize = 2_048;
/// The same during a handshake.
const RECORDS_PER_STEP: usize = 16;

/// Bytes of a record that is not whole which may wait whatever others hold.
const PARTIAL_BYTES_KEPT: usize = 1_024;
/// Most ciphertext that waits for the next write, beside that of one record: a handshake's flight,
/// whose length the chain of certificates decides, tickets and key updates.
const OUT_BYTES_MAX: usize = 1 << 18;

/// What a browser or a tool is told that speaks plain HTTP here.
const PLAIN_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\
    Connection: close\r\n\r\nThis port speaks TLS: use https:// in the place of http://.\n";

/// Buffers that all connections of a shard use in turn.
pub(super) struct Desk {
    incoming: Box<[u8]>,
    outgoing: Vec<u8>,
}

impl Desk {
    pub(super) fn new() -> Desk {
        let incoming = vec![0; SHOWN_BYTES_MAX + RECORD_BYTES_MAX + READ_BYTES];
        Desk {
            incoming: incoming.into_boxed_slice(),
            outgoing: Vec::new(),
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The peer may not say anything yet.
    Shaking,
    Open,
    /// We have said that nothing more comes.
    Closed,
    /// It broke a rule, or said that we did.
    Failed,
}

/// How a handshake ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shaken {
    Full,
    Resumed,
}

/// One connection's TLS.
pub(super) struct Session {
    /// None: no whole record has come.
    engine: Option<UnbufferedServerConnection>,
    /// Ciphertext that has come. The first `shown` bytes have been shown to the engine, which wants
    /// to see them again with what follows.
    heard: Vec<u8>,
    shown: usize,
    /// What was opened and found no room.
    plain: Vec<u8>,
    /// Ciphertext that is not written.
    out: Vec<u8>,
    /// So many bytes of plaintext does it stand for, of which nobody has been told yet.
    owed: usize,
    stage: Stage,
    /// Nothing more will come from the peer.
    ended: bool,
    /// The end has been told.
    end_told: bool,
    /// More has come than was opened, or may have.
    more: bool,
    sealer: Sealer,
}

impl Session {
    pub(super) fn new() -> Session {
        Session {
            engine: None,
            heard: Vec::new(),
            shown: 0,
            plain: Vec::new(),
            out: Vec::new(),
            owed: 0,
            stage: Stage::Shaking,
            ended: false,
            end_told: false,
            more: false,
            sealer: Sealer::default(),
        }
    }

    /// Goes on with the handshake as far as what has come allows. None: it waits for the peer.
    pub(super) fn shake(
        &mut self,
        io: &mut (impl Read + Write),
        config: &Arc<ServerConfig>,
        desk: &mut Desk,
    ) -> Result<Option<Shaken>, Fault> {
        self.read_into(io, config, desk, &mut [])?;
        if self.stage == Stage::Shaking && self.ended {
            return Err(Fault::Gone);
        }
        // In TLS 1.2 the peer waits for what ends the handshake; in 1.3 the ticket goes with the
        // first answer.
        let done = self.stage == Stage::Open && (self.out.is_empty() || self.is_tls13());
        Ok(done.then(|| self.how()))
    }

    /// Opens what has come, as far as there is room for it. 0: the end.
    ///
    /// Errors: nothing has come (`WouldBlock`); there is more, and others are to have their turn
    /// first (`Interrupted`); or the connection is of no use any more.
    pub(super) fn read(
        &mut self,
        io: &mut (impl Read + Write),
        config: &Arc<ServerConfig>,
        desk: &mut Desk,
        room: &mut [u8],
    ) -> Result<usize, Fault> {
        let n = self.read_into(io, config, desk, room)?;
        if n > 0 {
            return Ok(n);
        }
        if self.ended {
            self.end_told = true;
            return Ok(0);
        }
        let kind = match self.more {
            true => io::ErrorKind::Interrupted,
            false => io::ErrorKind::WouldBlock,
        };
        Err(Fault::Io(kind.into()))
    }

    /// Whether [`Session::read`] has something to give although no edge will tell of it.
    pub(super) fn holds_more(&self) -> bool {
        self.more || !self.plain.is_empty() || (self.ended && !self.end_told)
    }

    /// Whether something is sealed that the socket has not taken.
    pub(super) fn waits_for_room(&self) -> bool {
        !self.out.is_empty()
    }

    /// Memory of what waits, in bytes.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.heard.capacity() + self.plain.capacity() + self.out.capacity()
    }

    /// Whether much has come of a record that is not whole.
    pub(super) fn holds_much_of_a_record(&self) -> bool {
        self.heard.len() > PARTIAL_BYTES_KEPT
    }

    /// Where the keys are that it seals with.
    pub(super) fn sealer(&self) -> Sealer {
        self.sealer
    }

    /// Fetches itself into the cache. Looks at nothing of it: that would wait.
    pub(super) fn prefetch(&self) {
        let begin = std::ptr::from_ref(self).cast::<u8>();
        for at in (0..size_of::<Session>()).step_by(64) {
            prefetch(begin.wrapping_add(at));
        }
    }

    /// Whether the handshake is over, and neither side has ended what follows it.
    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// That what waits is no more than it may be, whatever has come. For the fuzz target.
    pub(super) fn check_bounds(&self) {
        assert!(self.shown <= self.heard.len());
        assert!(self.heard.len() <= SHOWN_BYTES_MAX + RECORD_BYTES_MAX + READ_BYTES);
        assert!(self.plain.len() <= RECORD_BYTES_MAX);
        assert!(self.out.len() <= OUT_BYTES_MAX + SEALED_BYTES_MAX + 2 * SEAL_BYTES_MAX);
        assert!(self.owed <= SEALED_BYTES_MAX);
    }

    fn is_tls13(&self) -> bool {
        let version = self.engine.as_ref().and_then(|it| it.protocol_version());
        version == Some(ProtocolVersion::TLSv1_3)
    }

    fn how(&self) -> Shaken {
        let kind = self.engine.as_ref().and_then(|it| it.handshake_kind());
        match kind {
            Some(HandshakeKind::Resumed) => Shaken::Resumed,
            _ => Shaken::Full,
        }
    }

    fn read_into(
        &mut self,
        io: &mut (impl Read + Write),
        config: &Arc<ServerConfig>,
        desk: &mut Desk,
        room: &mut [u8],
    ) -> Result<usize, Fault> {
        match self.stage {
            Stage::Shaking | Stage::Open => {}
            Stage::Closed => return self.drop_rest(io),
            Stage::Failed => return Err(Fault::Misbehaved),
        }
        let was_shaking = self.stage == Stage::Shaking;
        if was_shaking {
            self.write_out(io)?;
        }
        let n = self.take_plain(room);
        let mut work = Work {
            incoming: &mut desk.incoming,
            at: 0,
            have: self.heard.len(),
            room,
            n,
            records: match was_shaking {
                true => RECORDS_PER_STEP,
                false => RECORDS_PER_READ,
            },
        };
        work.incoming[..work.have].copy_from_slice(&self.heard);
        self.heard = Vec::new();
        self.more = false;
        let outcome = self.read_while_wanted(io, config, &mut work);
        // A vector of its own size: this is what an idle connection keeps.
        self.heard = work.incoming[work.at..work.have].to_vec();
        self.more |= !self.ended && record(&self.heard[self.shown..]).is_some();
        let n = work.n;
        match outcome {
            Ok(()) => {}
            // The peer may have said something and gone.
            Err(Fault::Io(_)) if n > 0 => self.more = true,
            Err(fault) => {
                self.stage = Stage::Failed;
                // Says why, if the socket takes it.
                let _closed_next = self.write_out(io);
                return Err(fault);
            }
        }
        if was_shaking && (self.stage == Stage::Shaking || !self.is_tls13()) {
            self.write_out(io)?;
        }
        Ok(n)
    }

    /// Reads what comes when we have said that we are done, and opens nothing of it: the end is
    /// waited for, and a fault could not be answered any more.
    fn drop_rest(&mut self, io: &mut impl Read) -> Result<usize, Fault> {
        let mut dropped = [0; 4_096];
        self.more = false;
        self.plain = Vec::new();
        for _ in 0..BYTES_PER_READ / dropped.len() {
            match io.read(&mut dropped) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(0);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Io(error)),
            }
        }
        self.more = true;
        Ok(0)
    }

    fn read_while_wanted(
        &mut self,
        io: &mut impl Read,
        config: &Arc<ServerConfig>,
        work: &mut Work<'_>,
    ) -> Result<(), Fault> {
        let (mut is_empty, mut read_bytes) = (false, 0);
        loop {
            self.open_records(config, work)?;
            if self.ended || self.more || is_empty || !self.wants(work) {
                return Ok(());
            }
            if read_bytes >= BYTES_PER_READ {
                self.more = true;
                return Ok(());
            }
            work.make_room();
            let end = work.incoming.len().min(work.have + READ_BYTES);
            let asked = end - work.have;
            match io.read(&mut work.incoming[work.have..end]) {
                // Without a close_notify too: what was whole has been given, and a request that is
                // not whole is answered to nobody.
                Ok(0) => self.ended = true,
                Ok(n) => {
                    work.have += n;
                    read_bytes += n;
                    // epoll(7): a read that brings less has emptied the socket.
                    is_empty = n < asked;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(Fault::Io(error)),
                },
            }
        }
    }

    /// Whether another record is to be opened.
    fn wants(&self, work: &Work<'_>) -> bool {
        self.stage == Stage::Shaking || work.n < work.room.len()
    }

    /// Opens the records that are whole, while they are wanted.
    fn open_records(
        &mut self,
        config: &Arc<ServerConfig>,
        work: &mut Work<'_>,
    ) -> Result<(), Fault> {
        while !self.ended && self.wants(work) {
            let unseen = &work.incoming[work.at + self.shown..work.have];
            let Some(record_bytes) = record(unseen) else {
                return Ok(());
            };
            if work.records == 0 {
                self.more = true;
                return Ok(());
            }
            work.records -= 1;
            if self.engine.is_none() {
                if unseen[0].is_ascii_uppercase() {
                    self.out = PLAIN_HTTP.to_vec();
                    return Err(Fault::NotTls);
                }
                let made = UnbufferedServerConnection::new(Arc::clone(config));
                self.engine = Some(made.map_err(|error| Fault::of(&error))?);
            }
            self.shown += record_bytes;
            if self.shown > SHOWN_BYTES_MAX {
                return Err(Fault::Misbehaved);
            }
            let was_shaking = self.stage == Stage::Shaking;
            let dropped = self.show(work)?;
            self.sealer = Sealer::made().unwrap_or(self.sealer);
            work.at += dropped;
            self.shown -= dropped;
            let is_shaking = self.engine.as_ref().is_some_and(|it| it.is_handshaking());
            if was_shaking && !is_shaking {
                self.stage = Stage::Open;
            }
        }
        Ok(())
    }

    /// Shows the engine what it has not let go of yet, with the record that has just been added.
    /// Returns how much it has let go of.
    fn show(&mut self, work: &mut Work<'_>) -> Result<usize, Fault> {
        let Some(engine) = self.engine.as_mut() else {
            return Err(Fault::Misbehaved);
        };
        let end = work.at + self.shown;
        let mut dropped = 0;
        loop {
            let shown = &mut work.incoming[work.at + dropped..end];
            let UnbufferedStatus { mut discard, state } = engine.process_tls_records(shown);
            let goes_on = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|error| Fault::of(&error))?;
                        discard += record.discard;
                        let taken = record.payload.len().min(work.room.len() - work.n);
                        let (now, later) = record.payload.split_at(taken);
                        work.room[work.n..work.n + taken].copy_from_slice(now);
                        work.n += taken;
                        self.plain.extend_from_slice(later);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, &mut self.out)?;
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.ended = true;
                    true
                }
                Ok(
                    ConnectionState::BlockedHandshake
                    | ConnectionState::WriteTraffic(_)
                    | ConnectionState::Closed,
                ) => false,
                // Early data, which no ticket of ours allows.
                Ok(_) => return Err(Fault::Misbehaved),
                Err(error) => {
                    // No further than that: another look would find the fault anew. And with the
                    // buffer that it was found in: rustls 0.23.46 panics on a shorter one while a
                    // message is split.
                    let shown = &mut work.incoming[work.at + dropped..end];
                    while engine.wants_write() {
                        let UnbufferedStatus { state, .. } = engine.process_tls_records(shown);
                        let Ok(ConnectionState::EncodeTlsData(mut data)) = state else {
                            break;
                        };
                        encode(&mut data, &mut self.out)?;
                    }
                    return Err(Fault::of(&error));
                }
            };
            dropped += discard;
            if self.out.len() > OUT_BYTES_MAX {
                return Err(Fault::Misbehaved);
            }
            if !goes_on {
                return Ok(dropped);
            }
        }
    }

    /// Gives what was opened before.
    fn take_plain(&mut self, room: &mut [u8]) -> usize {
        let n = self.plain.len().min(room.len());
        room[..n].copy_from_slice(&self.plain[..n]);
        self.plain.drain(..n);
        if self.plain.is_empty() {
            self.plain = Vec::new();
        }
        n
    }

    /// Seals and writes as much as the socket takes, and tells of whole records alone: what is
    /// sealed and not gone is to be offered again, as the first bytes of the next call.
    ///
    /// Errors: the socket takes nothing now (`WouldBlock`), or the connection is of no use any
    /// more.
    pub(super) fn write(
        &mut self,
        io: &mut impl Write,
        desk: &mut Desk,
        bytes: &[u8],
    ) -> Result<usize, Fault> {
        match self.stage {
            Stage::Open => {}
            Stage::Shaking => return Err(Fault::Io(io::ErrorKind::WouldBlock.into())),
            Stage::Closed | Stage::Failed => {
                return Err(Fault::Io(io::ErrorKind::BrokenPipe.into()));
            }
        }
        let mut told = 0;
        if self.owed > 0 {
            // Other bytes than those that were sealed are no stream's.
            if self.owed > bytes.len() {
                self.stage = Stage::Failed;
                return Err(Fault::Misbehaved);
            }
            self.write_out(io)?;
            if !self.out.is_empty() {
                return Err(Fault::Io(io::ErrorKind::WouldBlock.into()));
            }
            told = std::mem::take(&mut self.owed);
        }
        while told < bytes.len() {
            let left = bytes.len() - told;
            let next = &bytes[told..told + left.min(SEALED_BYTES_MAX)];
            // What waits to be told with it (a ticket, a key update) goes in the same write.
            let outgoing = &mut desk.outgoing;
            outgoing.clear();
            outgoing.append(&mut self.out);
            self.seal(next, outgoing)?;
            let written = write_some(io, outgoing)?;
            if written < outgoing.len() {
                self.out = outgoing[written..].to_vec();
                self.owed = next.len();
                break;
            }
            told += next.len();
        }
        match told {
            0 if !bytes.is_empty() => Err(Fault::Io(io::ErrorKind::WouldBlock.into())),
            _ => Ok(told),
        }
    }

    /// Says that nothing more comes, if the socket takes it now, and nothing sealed is left.
    pub(super) fn close(&mut self, io: &mut impl Write, desk: &mut Desk) {
        if self.stage != Stage::Open {
            return;
        }
        if self.owed == 0 {
            let outgoing = &mut desk.outgoing;
            outgoing.clear();
            outgoing.append(&mut self.out);
            let sealed = self.traffic(outgoing, 0, |traffic, room| {
                traffic.queue_close_notify(room)
            });
            if sealed.is_ok() {
                let _closed_next = io.write(&desk.outgoing);
            }
        }
        self.stage = Stage::Closed;
    }

    fn seal(&mut self, plain: &[u8], outgoing: &mut Vec<u8>) -> Result<(), Fault> {
        self.traffic(outgoing, plain.len(), |traffic, room| {
            traffic.encrypt(plain, room)
        })
    }

    /// Appends what the engine makes in the state in which it takes traffic.
    fn traffic(
        &mut self,
        outgoing: &mut Vec<u8>,
        plain_bytes: usize,
        make: impl Fn(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> Result<(), Fault> {
        let Some(engine) = self.engine.as_mut() else {
            return Err(Fault::Misbehaved);
        };
        loop {
            // What was shown and not let go of is shown again: never less.
            let shown = &mut self.heard[..self.shown];
            let UnbufferedStatus { discard, state } = engine.process_tls_records(shown);
            match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, outgoing)?,
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.ended = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let at = outgoing.len();
                    let mut room = plain_bytes + SEAL_BYTES_MAX;
                    loop {
                        outgoing.resize(at + room, 0);
                        match make(&mut traffic, &mut outgoing[at..]) {
                            Ok(n) => {
                                outgoing.truncate(at + n);
                                return Ok(());
                            }
                            Err(EncryptError::InsufficientSize(wanted))
                                if wanted.required_size > room =>
                            {
                                room = wanted.required_size;
                            }
                            Err(_) => {
                                outgoing.truncate(at);
                                return Err(Fault::Worn);
                            }
                        }
                    }
                }
                Ok(_) => return Err(Fault::Misbehaved),
                Err(error) => return Err(Fault::of(&error)),
            }
            self.heard.drain(..discard);
            self.shown -= discard;
        }
    }

    /// Writes what is sealed, as far as the socket takes it.
    fn write_out(&mut self, io: &mut impl Write) -> Result<(), Fault> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = write_some(io, &self.out)?;
        self.out.drain(..written);
        if self.out.is_empty() {
            self.out = Vec::new();
        }
        Ok(())
    }
}

/// One call's work with what has come.
struct Work<'a> {
    incoming: &'a mut [u8],
    /// Where begins what the engine has not let go of.
    at: usize,
    /// Where ends what has come.
    have: usize,
    room: &'a mut [u8],
    /// So much of the room is used.
    n: usize,
    /// So many records may be opened.
    records: usize,
}

impl Work<'_> {
    fn make_room(&mut self) {
        self.incoming.copy_within(self.at..self.have, 0);
        self.have -= self.at;
        self.at = 0;
    }
}

/// The length of the record that begins there, if it is whole; also of what can be seen to be none,
/// which the engine is to refuse. None: more must come.
fn record(bytes: &[u8]) -> Option<usize> {
    let &[kind, ..] = bytes else {
        return None;
    };
    // change_cipher_spec to application_data (RFC 8446, section 5.1).
    if !(20..=23).contains(&kind) {
        return Some(bytes.len());
    }
    let &[_, major, _, high, low, ..] = bytes else {
        return None;
    };
    let len = HEAD_BYTES + usize::from(u16::from_be_bytes([high, low]));
    match len {
        _ if major != 3 || len > RECORD_BYTES_MAX => Some(bytes.len()),
        _ if len <= bytes.len() => Some(len),
        _ => None,
    }
}

fn encode(
    data: &mut EncodeTlsData<'_, ServerConnectionData>,
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let at = out.len();
    let mut room = 0;
    loop {
        out.resize(at + room, 0);
        match data.encode(&mut out[at..]) {
            Ok(n) => {
                out.truncate(at + n);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(wanted)) if wanted.required_size > room => {
                room = wanted.required_size;
            }
            Err(_) => {
                out.truncate(at);
                return Err(Fault::Misbehaved);
            }
        }
    }
}

/// Writes what the socket takes now: 0 if it is full.
fn write_some(io: &mut impl Write, bytes: &[u8]) -> Result<usize, Fault> {
    loop {
        match io.write(bytes) {
            Ok(0) => return Err(Fault::Io(io::ErrorKind::WriteZero.into())),
            Ok(n) => return Ok(n),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(0),
                io::ErrorKind::Interrupted => {}
                _ => return Err(Fault::Io(error)),
            },
        }
    }
}
