//! Server-sent events (WHATWG HTML, "Server-sent events"): the stream's blocks out, a reader in.

/// The lone comment line that keeps a stream alive.
pub const KEEP_ALIVE: &[u8] = b":\n";

/// The response head of a stream: 200, text/event-stream, no-store, no-transform, X-Accel-Buffering: no, `Connection: close`
/// (the body ends with the connection; no chunk headers, so that one event's bytes serve every stream).
/// `extra`: further header lines (CORS), each `Name: value\r\n`, or empty.
pub fn write_stream_head(_extra: &str, _out: &mut Vec<u8>) {
    todo!()
}

/// The first block of a stream.
#[derive(Clone, Debug)]
pub struct Hello<'a> {
    /** stream id */
    pub stream: &'a str,
    /** watches held */
    pub watching: usize,
    /** server's Unix ms */
    pub server_time: u64,
    /** ms */
    pub beat_interval_ms: u64,
    /** ms */
    pub offline_after_ms: u64,
    /** the reader's reconnect delay, ms */
    pub retry_ms: u64,
}
impl Hello<'_> {
    /// Appends `event: hello\nretry: ..\ndata: {..}\n\n` (DESIGN.md section 5).
    pub fn write(&self, _out: &mut Vec<u8>) {
        todo!()
    }
}
/// `event: goodbye\nretry: N\ndata: {"reason":"draining"}\n\n`.
pub fn write_goodbye(_retry_ms: u64, _out: &mut Vec<u8>) {
    todo!()
}
/// `event: overloaded\nretry: N\ndata: {"reason":REASON}\n\n`.
pub fn write_overloaded(_retry_ms: u64, _reason: &str, _out: &mut Vec<u8>) {
    todo!()
}

/// A parsed event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /** `message` if none was named */
    pub event: String,
    /** lines joined with \n */
    pub data: String,
    /** last event id as it stands after this event */
    pub id: String,
}

/// Incremental reader exactly as WHATWG's "interpreting an event stream": CR, LF, CRLF split anywhere, leading BOM, comments, multi-line data, `id` with NUL ignored, `retry` digits only, no dispatch on empty data (but the id still counts).
#[derive(Clone, Debug, Default)]
pub struct Reader {
    _p: (),
}
impl Reader {
    /// Feeds bytes; calls `each` for every dispatched event.
    pub fn feed(&mut self, _bytes: &[u8], _each: &mut dyn FnMut(&Event)) {
        todo!()
    }
    /// Last `retry` seen, ms.
    pub fn retry_ms(&self) -> Option<u64> {
        todo!()
    }
    /// Last event id, also from blocks without data.
    pub fn last_event_id(&self) -> &str {
        todo!()
    }
}
