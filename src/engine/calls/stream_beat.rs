//! `POST /v1/stream/{stream}/beat`: a stream's holder says that it is here, to any shard.
//!
//! Owns both ends: what asks, and what is done where the stream is. A beat for a stream on another
//! shard travels as mail, all of a turn in one piece, and the request is parked until its outcome
//! is back.

use super::caller::Caller;
use super::refused::Refused;
use super::served::{Served, intern_detail, overloaded};
use super::stream_id;
use crate::engine::mail::{BeatFound, ShardId, StreamBeat};
use crate::engine::parts::Engine;
use crate::metrics::Counter;
use crate::presence::InternFault;
use crate::realtime::ConnId;
use crate::slot::Slot;
use crate::time::Now;
use crate::wire::response::{Answer, problems};

pub(super) fn beat(
    engine: &mut Engine,
    asker: ConnId,
    stream: &str,
    idle_ms: Option<u64>,
    caller: &Caller,
    now: Now,
) -> Served {
    if let Err(refused) = caller.check_publishes() {
        return refused.into();
    }
    // Who makes an id up is told so here: only real ones cost another shard anything.
    let Some((shard, stream)) = stream_id::parse(&engine.node.secret, stream) else {
        return beaten(BeatFound::Nobody).into();
    };
    let beat = StreamBeat {
        stream,
        holder: engine.holder_of(caller),
        unattended: engine.is_idle(idle_ms),
        asker,
    };
    if shard == engine.node.shard {
        return beaten(engine.take_stream_beat(&beat, now)).into();
    }
    engine.posts.beat(shard, beat);
    Served::Parked {
        until: now.mono.plus_ms(engine.settings.request_deadline_ms),
        unanswered: "the shard that holds the stream has not answered; the beat may have counted",
        refused: Refused::default(),
        waits: None,
    }
}

fn beaten(found: BeatFound) -> Answer {
    let detail = match found {
        BeatFound::Holder => return Answer::no_content(),
        BeatFound::TooFast => return overloaded(intern_detail(InternFault::TooFast)),
        BeatFound::Nobody => {
            "no stream with this id is open; open it anew: a stream's id is in its hello event and \
             ends with it"
        }
        BeatFound::NoUser => "the stream was opened without a user, so there is nobody to beat for",
    };
    Answer::problem(problems::UNKNOWN_STREAM, detail)
}

impl Engine {
    /// The holder of one of this shard's streams has beaten: a proof of life like any other, and of
    /// this stream.
    fn take_stream_beat(&mut self, beat: &StreamBeat, now: Now) -> BeatFound {
        let stream = beat.stream;
        if !self.conns.is_stream_of(stream, beat.holder) {
            return BeatFound::Nobody;
        }
        if self.awaits_holder(stream) && self.try_holder(stream, now).is_none() {
            return BeatFound::TooFast;
        }
        let Some(slot) = self.conns.at(stream.index).publisher() else {
            return BeatFound::NoUser;
        };
        // Its user has been logged out, and it is about to end.
        if self.passes.logging_out.ends(slot, stream) {
            return BeatFound::Nobody;
        }
        self.conns.hear(stream.index);
        self.conns.at(stream.index).set_unattended(beat.unattended);
        self.vouch_for_stream(stream, Slot::new(slot), Counter::BeatsHolder, now);
        BeatFound::Holder
    }

    /// Beats that other shards have heard of this one's streams.
    pub(in crate::engine) fn take_stream_beats(
        &mut self,
        from: ShardId,
        beats: &[StreamBeat],
        now: Now,
    ) {
        for beat in beats {
            let found = self.take_stream_beat(beat, now);
            self.posts.beaten(from, beat.asker, found);
        }
    }

    /// What became of beats that requests wait for.
    pub(in crate::engine) fn finish_stream_beats(
        &mut self,
        outcomes: &[(ConnId, BeatFound)],
        now: Now,
    ) {
        for (asker, found) in outcomes {
            if let Some(pending) = self.conns.unpark(*asker) {
                self.answer(*asker, pending, beaten(*found), now);
            }
        }
    }

    /// The mailbox of the shard that holds their streams is full.
    pub(in crate::engine) fn refuse_stream_beats(&mut self, beats: &[StreamBeat], now: Now) {
        for beat in beats {
            if let Some(pending) = self.conns.unpark(beat.asker) {
                let answer = overloaded("the shard that holds the stream is busy; beat again");
                self.answer(beat.asker, pending, answer, now);
            }
        }
    }
}
