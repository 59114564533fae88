//! From bytes to requests: framing, pipelining, deadlines, back-pressure.
//!
//! Owns what a connection does until it becomes a stream. A request is served when it is whole, in
//! order; while its answers wait for the peer, the next ones wait too, and reading pauses. Never
//! decides what a request means: `calls/` does.

use std::borrow::Cow;

use crate::engine::calls::refusal::asks_for_stream;
use crate::engine::calls::served::overloaded;
use crate::engine::conn::pending::Pending;
use crate::engine::parts::Engine;
use crate::engine::settings::OUTBOX_BYTES_FLOOR;
use crate::metrics::{Call, Counter};
use crate::realtime::conn::Chunked;
use crate::realtime::{ConnId, Phase};
use crate::time::Now;
use crate::wire::request::{Framing, Head, Parsed, RequestFault, overhear, parse_head};
use crate::wire::response::{
    Answer, Asker, CONTINUE, Ends, Problem, problem_of, problems, write_answer,
};

/// What becomes of a request that takes long to serve: many words, or a long answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Long {
    /// It waits for its slice, so that short ones of others need not wait for it.
    Deferred,
    /// This is its slice.
    Served,
}

/// How far one look at the input got.
enum Step {
    /// A request was served or refused; so many bytes are used.
    Used(usize),
    /// More bytes are needed.
    Partial,
}

impl Engine {
    /// Bytes arrived. False: stop reading this connection until [`Engine::poll_resume`] names it.
    pub fn handle_bytes(&mut self, id: ConnId, bytes: &[u8], now: Now) -> bool {
        let goes_on = self.hear(id, bytes, now);
        self.conns.count(id);
        self.crowd_out(id, now);
        goes_on
    }

    fn hear(&mut self, id: ConnId, bytes: &[u8], now: Now) -> bool {
        let Some(conn) = self.conns.get_mut(id) else {
            return true;
        };
        self.counters.add(Counter::BytesIn, bytes.len() as u64);
        let waits = matches!(conn.phase(), Phase::Deferred | Phase::Waiting) || conn.is_paused();
        match conn.phase() {
            Phase::Idle | Phase::Reading | Phase::Deferred | Phase::Waiting if waits => {
                conn.io().input.extend_from_slice(bytes);
                conn.pause();
                return false;
            }
            Phase::Idle | Phase::Reading => {}
            // A stream's reader has nothing to say, and one that is being closed has said enough.
            _ => return true,
        }
        match conn.io.as_mut().map(|io| std::mem::take(&mut io.input)) {
            Some(mut input) if !input.is_empty() => {
                let need_bytes = self.conns.at(id.index).io().need_bytes;
                extend(&mut input, bytes, need_bytes);
                self.serve_buffer(id, input, Long::Deferred, now);
            }
            _ => {
                let used = self.serve(id, bytes, Long::Deferred, now);
                self.keep(id, bytes[used..].to_vec(), now);
            }
        }
        self.conns.get(id).is_none_or(|conn| !conn.is_paused())
    }

    /// Answers have gone out: goes on with the requests that waited for that.
    pub(in crate::engine) fn serve_held(&mut self, id: ConnId, now: Now) {
        self.go_on(id, Long::Deferred, now);
    }

    /// Whether requests that take long wait for their slices.
    pub fn has_deferred(&self) -> bool {
        self.conns.has_deferred()
    }

    /// How many connections wait to be written to.
    pub fn awaiting_flush(&self) -> usize {
        self.conns.awaiting_flush()
    }

    /// Whose request takes long and has waited for its slice longest.
    pub fn poll_deferred(&mut self) -> Option<ConnId> {
        self.conns.next_deferred()
    }

    /// Serves a request that takes long, in a slice of its own.
    pub fn serve_deferred(&mut self, id: ConnId, now: Now) {
        if self.conns.take_up(id) {
            self.go_on(id, Long::Served, now);
        }
    }

    /// Goes on with input that has waited.
    fn go_on(&mut self, id: ConnId, long: Long, now: Now) {
        let conn = self.conns.at(id.index);
        let was_paused = conn.is_paused();
        conn.unpause();
        let input = std::mem::take(&mut conn.io().input);
        self.serve_buffer(id, input, long, now);
        let Some(conn) = self.conns.get(id) else {
            return;
        };
        if conn.is_paused() {
            return;
        }
        match conn.phase() {
            Phase::Streaming if conn.has_hung_up() => {
                self.counters.add(Counter::ClosedPeer, 1);
                self.conns.cut(id);
            }
            Phase::Idle | Phase::Reading if conn.has_hung_up() => {
                self.conns
                    .end(id, Counter::ClosedPeer, now.mono, &mut self.counters)
            }
            _ if was_paused => self.conns.resume(id),
            _ => {}
        }
        self.conns.count(id);
    }

    /// Refuses a request that is not whole, if buffers take as much as they may and it is no short
    /// one.
    fn crowd_out(&mut self, id: ConnId, now: Now) {
        if !self.conns.is_crowded() {
            return;
        }
        let conn = self
            .conns
            .get(id)
            .filter(|conn| conn.phase() == Phase::Reading);
        let Some(io) = conn.and_then(|conn| conn.io.as_ref()) else {
            return;
        };
        if io.received_bytes() > self.settings.request_bytes_at_once() {
            let heard = match &io.chunked {
                Some(chunked) => chunked.head.clone(),
                None => io.input.clone(),
            };
            let head = parse_head(&heard, &self.node.limits);
            let is_trusted = match head {
                Parsed::Head { head, .. } => self.proof(id, &head, now).is_trusted(),
                Parsed::Partial | Parsed::Fault(_) => false,
            };
            if !is_trusted {
                self.refuse_for_room(id, &heard, now);
            }
        }
    }

    /// `heard` begins with the request's head, as far as there is one.
    fn refuse_for_room(&mut self, id: ConnId, heard: &[u8], now: Now) {
        self.counters.add(Counter::LimitBufferBytes, 1);
        let mut pending = Pending::new(Call::Other, self.overheard(id, heard));
        pending.asker.keep_alive = false;
        self.conns.at(id.index).linger();
        if asks_for_stream(heard) {
            return self.refuse_stream(id, &pending, "buffers", now);
        }
        let detail = "the server holds as many bytes of requests and answers as it may \
                      (buffer-bytes-max); try again later";
        self.answer(id, pending, overloaded(detail), now);
    }

    fn serve_buffer(&mut self, id: ConnId, mut input: Vec<u8>, long: Long, now: Now) {
        let need = self.conns.at(id.index).io().need_bytes;
        if input.len() >= need {
            let used = self.serve(id, &input, long, now);
            input.drain(..used);
        }
        self.keep(id, input, now);
    }

    /// Keeps what could not be used yet.
    fn keep(&mut self, id: ConnId, input: Vec<u8>, now: Now) {
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        // Half of an empty line begins no request: the whole one does not (RFC 9112 section 2.2).
        let begun = !matches!(&*input, b"" | b"\r");
        let under_way = begun || conn.io.as_ref().is_some_and(|io| io.chunked.is_some());
        if !input.is_empty() {
            conn.io().input = input;
        }
        conn.tidy();
        // Requests held back wait for their peer to read, not for the peer to send: the stall rule
        // judges that.
        if under_way && conn.phase() == Phase::Idle && !conn.is_paused() {
            self.conns.request_begins(id.index, now.mono);
        }
    }

    /// Serves the whole requests at the start of `input`; returns how many bytes are used.
    fn serve(&mut self, id: ConnId, input: &[u8], mut long: Long, now: Now) -> usize {
        let mut used = 0;
        // A chunked body that waited for its slice is no input any more.
        while used < input.len() || long == Long::Served {
            let outbox_bytes_max = self.conns.outbox_bytes_max();
            let Some(conn) = self.conns.get_mut(id) else {
                return input.len();
            };
            match conn.phase() {
                Phase::Idle | Phase::Reading => {}
                Phase::Waiting => {
                    conn.pause();
                    return used;
                }
                Phase::Deferred => return used,
                _ => return input.len(),
            }
            // What follows may be a stream, whose first words must fit behind the answers.
            if conn.unsent_bytes() + OUTBOX_BYTES_FLOOR > outbox_bytes_max {
                self.counters.add(Counter::LimitOutboxBytes, 1);
                conn.pause();
                return used;
            }
            let rest = &input[used..];
            let step = match conn.io.as_mut().and_then(|io| io.chunked.take()) {
                Some(chunked) => self.serve_chunked(id, chunked, rest, &mut long, now),
                // RFC 9112 section 2.2: an empty line before a request means nothing.
                None if rest.starts_with(b"\r\n") => Step::Used(2),
                None => self.serve_head(id, rest, &mut long, now),
            };
            match step {
                Step::Used(n) => used += n,
                Step::Partial => return used,
            }
        }
        used
    }

    fn serve_head(&mut self, id: ConnId, rest: &[u8], long: &mut Long, now: Now) -> Step {
        let (head, head_bytes) = match parse_head(rest, &self.node.limits) {
            Parsed::Partial => return Step::Partial,
            Parsed::Fault(fault) => return self.refuse(id, fault, rest, rest.len(), now),
            Parsed::Head { head, head_bytes } => (head, head_bytes),
        };
        if let Err(fault) = head.framing.check(&self.node.limits) {
            return self.refuse(id, fault, rest, rest.len(), now);
        }
        match head.framing {
            Framing::None => {
                if self.lacks_room(id, &head, 0, *long, now) {
                    self.refuse_for_room(id, rest, now);
                    return Step::Used(rest.len());
                }
                if self.defers(id, &head, 0, long, now) {
                    return Step::Partial;
                }
                self.dispatch(id, &head, &[], now);
                Step::Used(head_bytes)
            }
            Framing::Length(length) => {
                // Framing::check held it under body_bytes_max.
                let total = head_bytes + length as usize;
                if rest.len() < total {
                    if !self.expect_body(id, &head, now) {
                        return Step::Used(rest.len());
                    }
                    self.conns.at(id.index).io().need_bytes = total;
                    return Step::Partial;
                }
                self.conns.at(id.index).io().need_bytes = 0;
                if self.lacks_room(id, &head, total - head_bytes, *long, now) {
                    self.refuse_for_room(id, rest, now);
                    return Step::Used(rest.len());
                }
                if self.defers(id, &head, total - head_bytes, long, now) {
                    return Step::Partial;
                }
                self.dispatch(id, &head, &rest[head_bytes..total], now);
                Step::Used(total)
            }
            Framing::Chunked => {
                if rest.len() == head_bytes && !self.expect_body(id, &head, now) {
                    return Step::Used(rest.len());
                }
                let chunked = Box::new(Chunked {
                    head: rest[..head_bytes].to_vec(),
                    ..Chunked::default()
                });
                self.conns.at(id.index).io().chunked = Some(chunked);
                Step::Used(head_bytes)
            }
        }
    }

    fn serve_chunked(
        &mut self,
        id: ConnId,
        mut chunked: Box<Chunked>,
        rest: &[u8],
        long: &mut Long,
        now: Now,
    ) -> Step {
        let mut consumed = 0;
        if !chunked.is_whole {
            let limits = &self.node.limits;
            match chunked.decoder.decode(rest, &mut chunked.body, limits) {
                Ok(step) => (consumed, chunked.is_whole) = (step.consumed, step.done),
                Err(fault) => return self.refuse(id, fault, &chunked.head, rest.len(), now),
            }
        }
        if !chunked.is_whole {
            self.conns.at(id.index).io().chunked = Some(chunked);
            return match consumed {
                0 => Step::Partial,
                some => Step::Used(some),
            };
        }
        let head = match parse_head(&chunked.head, &self.node.limits) {
            Parsed::Head { head, .. } => head,
            Parsed::Fault(fault) => return self.refuse(id, fault, &chunked.head, rest.len(), now),
            // Kept whole, so this is nothing that a peer can bring about. It is refused all the
            // same: a connection is worth less than a shard.
            Parsed::Partial => {
                let fault = RequestFault::BadHead;
                return self.refuse(id, fault, &chunked.head, rest.len(), now);
            }
        };
        if self.lacks_room(id, &head, chunked.body.len(), *long, now) {
            self.refuse_for_room(id, &chunked.head, now);
            return Step::Used(rest.len());
        }
        if self.defers(id, &head, chunked.body.len(), long, now) {
            self.conns.at(id.index).io().chunked = Some(chunked);
            return Step::Used(consumed);
        }
        self.dispatch(id, &head, &chunked.body, now);
        Step::Used(consumed)
    }

    /// Whether a request has many words: its answer may have many, too.
    fn is_long(&self, head: &Head<'_>, body_bytes: usize) -> bool {
        let words = head.query.map_or(0, str::len) + body_bytes;
        words > self.settings.request_bytes_at_once()
    }

    /// Whether a whole request is refused since buffers take as much as they may. One that has
    /// waited for its slice is served: that makes room. So are nodes and services: what
    /// strangers send must not hold up the fleet.
    fn lacks_room(
        &self,
        id: ConnId,
        head: &Head<'_>,
        body_bytes: usize,
        long: Long,
        now: Now,
    ) -> bool {
        long == Long::Deferred
            && self.conns.is_crowded()
            && self.is_long(head, body_bytes)
            && !self.proof(id, head, now).is_trusted()
    }

    /// Whether a whole request waits for a slice of its own: it takes long, and this is not its
    /// slice. The slice is then used up.
    fn defers(
        &mut self,
        id: ConnId,
        head: &Head<'_>,
        body_bytes: usize,
        long: &mut Long,
        now: Now,
    ) -> bool {
        let is_short = !self.is_long(head, body_bytes);
        if is_short && !self.takes_long(id, head) && !self.has_verified_enough(head) {
            return false;
        }
        match std::mem::replace(long, Long::Deferred) {
            Long::Served => false,
            Long::Deferred => {
                self.counters.add(Counter::RequestsDeferred, 1);
                self.conns.defer(id, now.mono);
                true
            }
        }
    }

    /// A body is on its way: a client that waits to be asked for it is asked, or told that nothing
    /// will come of it. False: the latter.
    fn expect_body(&mut self, id: ConnId, head: &Head<'_>, now: Now) -> bool {
        if !head.expect_continue || self.conns.at(id.index).io().continued {
            return true;
        }
        if self.refuse_by_head(id, head, now) {
            return false;
        }
        let io = self.conns.at(id.index).io();
        io.continued = true;
        io.unsent.extend_from_slice(CONTINUE);
        self.conns.queue_if_due(id.index, now.mono);
        true
    }

    /// Refuses a request on its form: nothing behind it can be trusted, so the connection ends.
    /// `heard` begins with its head, as far as there is one; `used` bytes of input are done with.
    fn refuse(
        &mut self,
        id: ConnId,
        fault: RequestFault,
        heard: &[u8],
        used: usize,
        now: Now,
    ) -> Step {
        let limit = match fault {
            RequestFault::TargetTooLong | RequestFault::HeadTooLarge => {
                Some(Counter::LimitHeadBytes)
            }
            RequestFault::TooManyHeaders => Some(Counter::LimitHeaderCount),
            RequestFault::BodyTooLarge => Some(Counter::LimitBodyBytes),
            _ => None,
        };
        if let Some(limit) = limit {
            self.counters.add(limit, 1);
        }
        let (problem, detail) = problem_of(fault);
        let asker = self.overheard(id, heard);
        self.fail(id, asker, problem, detail, now);
        Step::Used(used)
    }

    /// For whom the refusal of a head that was not taken is written.
    fn overheard(&self, id: ConnId, heard: &[u8]) -> Asker {
        let overheard = overhear(heard);
        Asker::overheard(overheard, self.cors_lines(id, overheard.origin))
    }

    /// Refuses a request that has not come whole in its time.
    pub(in crate::engine) fn time_out(&mut self, id: ConnId, now: Now) {
        let conn = self.conns.get(id);
        let is_whole = conn.is_some_and(|conn| conn.phase() == Phase::Deferred);
        let io = conn.and_then(|conn| conn.io.as_ref());
        let heard = io.map_or(&[][..], |io| match &io.chunked {
            Some(chunked) => &chunked.head,
            None => &io.input,
        });
        let asker = self.overheard(id, heard);
        if is_whole {
            let mut pending = Pending::new(Call::Other, asker);
            pending.asker.keep_alive = false;
            let detail = "the server had no time to serve the request; try again later";
            return self.answer(id, pending, overloaded(detail), now);
        }
        let detail = "the request was not complete in time; its time is counted from its beginning";
        self.fail(id, asker, problems::REQUEST_TIMEOUT, detail, now);
    }

    /// Answers what is no request, and ends the connection, reading a little more so that the peer
    /// reads the answer.
    fn fail(&mut self, id: ConnId, asker: Asker, problem: Problem, detail: &str, now: Now) {
        let pending = Pending::new(Call::Other, asker);
        self.conns.at(id.index).linger();
        self.answer(id, pending, Answer::problem(problem, detail), now);
    }

    /// Sends an answer, and moves the connection on: to its next request, or to its end.
    pub(in crate::engine) fn answer(
        &mut self,
        id: ConnId,
        mut pending: Pending,
        answer: Answer,
        now: Now,
    ) {
        let draining = self.passes.is_draining();
        let conn = self.conns.at(id.index);
        let counted = answer.ends == Ends::Counted;
        // A client that meant to go on may have: closed with bytes unread, the answers before them
        // would be lost with it.
        let unasked = pending.asker.keep_alive && counted && !conn.is_surplus();
        let keep_alive = unasked && !draining && self.settings.keep_alive_idle_ms > 0;
        pending.asker.keep_alive = keep_alive;
        self.send(id.index, &pending, &answer);
        if keep_alive {
            self.conns.request_ends(id.index, now.mono);
        } else {
            if unasked {
                self.conns.at(id.index).linger();
            }
            let reason = match answer.status.code() {
                400..500 => Counter::ClosedFault,
                _ => Counter::ClosedDone,
            };
            self.conns.end(id, reason, now.mono, &mut self.counters);
        }
        if let Cow::Owned(body) = answer.body {
            self.conns.give_back(body);
        }
    }

    /// Counts an answer and appends it to what the connection has to send.
    pub(in crate::engine) fn send(&mut self, index: u32, pending: &Pending, answer: &Answer) {
        self.counters
            .add_request(pending.call, answer.status.code());
        let conn = self.conns.at(index);
        conn.serve();
        let io = conn.io();
        write_answer(&mut io.unsent, answer, &pending.asker, &self.date);
        io.continued = false;
        io.need_bytes = 0;
    }
}

/// Appends to what waits for `need_bytes`: its room doubles as a vector's does, and no further.
fn extend(input: &mut Vec<u8>, bytes: &[u8], need_bytes: usize) {
    let len = input.len() + bytes.len();
    if len > input.capacity() {
        let doubled = (2 * input.capacity()).min(need_bytes);
        input.reserve_exact(doubled.max(len) - input.len());
    }
    input.extend_from_slice(bytes);
}
