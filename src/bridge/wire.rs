//! A connection's two halves: frames in, commands out.
//!
//! Owns the buffers. Both halves may be given up at any moment and taken up again: what was read or
//! written by then is not lost.

use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};

use super::resp::{self, Decoded, Frame};

/// A socket, or TLS over one.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;

/// A buffer that has grown beyond that is given back when it is empty.
const KEPT_BYTES: usize = 1 << 20;

/// What comes.
pub(super) struct Incoming {
    half: ReadHalf<Box<dyn Stream>>,
    bytes: Vec<u8>,
    at: usize,
    /// Bytes behind `at` before which there is no whole frame.
    least: usize,
    /// Bytes so far.
    pub(super) total: u64,
}

/// What goes.
pub(super) struct Outgoing {
    half: WriteHalf<Box<dyn Stream>>,
    bytes: Vec<u8>,
    at: usize,
    is_flushed: bool,
    /// Bytes so far.
    pub(super) total: u64,
}

pub(super) fn halves(stream: Box<dyn Stream>) -> (Incoming, Outgoing) {
    let (reader, writer) = split(stream);
    let incoming = Incoming {
        half: reader,
        bytes: Vec::new(),
        at: 0,
        least: 0,
        total: 0,
    };
    let outgoing = Outgoing {
        half: writer,
        bytes: Vec::new(),
        at: 0,
        is_flushed: true,
        total: 0,
    };
    (incoming, outgoing)
}

impl Incoming {
    /// The next frame of what has been read.
    ///
    /// Errors: it is none.
    pub(super) fn frame(&mut self) -> Result<Option<Frame>> {
        let rest = &self.bytes[self.at..];
        if rest.len() < self.least.max(1) {
            return Ok(None);
        }
        match resp::decode(rest) {
            Ok(Decoded::Frame(frame, used)) => {
                self.at += used;
                self.least = 0;
                Ok(Some(frame))
            }
            Ok(Decoded::More(least)) => {
                self.least = least;
                Ok(None)
            }
            Err(_) => Err(Error::new(
                ErrorKind::InvalidData,
                "it answers with what is no RESP3",
            )),
        }
    }

    /// Reads what there is.
    ///
    /// Errors: the socket's; the peer has closed.
    pub(super) async fn fill(&mut self) -> Result<()> {
        self.bytes.drain(..self.at);
        self.at = 0;
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        self.bytes.reserve(READ_BYTES);
        let read = self.half.read_buf(&mut self.bytes).await?;
        self.total += read as u64;
        match read {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    pub(super) async fn next(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.frame()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }
}

impl Outgoing {
    pub(super) fn say<'w>(&mut self, words: impl ExactSizeIterator<Item = &'w [u8]>) {
        resp::encode(words, &mut self.bytes);
    }

    /// Bytes that have not been written.
    pub(super) fn waiting(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn is_done(&self) -> bool {
        self.waiting() == 0 && self.is_flushed
    }

    /// Writes some; to be called until all is done.
    ///
    /// Errors: the socket's.
    pub(super) async fn advance(&mut self) -> Result<()> {
        if self.waiting() == 0 {
            self.half.flush().await?;
            self.is_flushed = true;
            return Ok(());
        }
        self.is_flushed = false;
        let written = self.half.write(&self.bytes[self.at..]).await?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        self.at += written;
        self.total += written as u64;
        if self.waiting() == 0 {
            self.at = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_BYTES);
        }
        Ok(())
    }
}
