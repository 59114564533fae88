//! The oracle: what must be true of each user, from the beats and goodbyes that were accepted.
//!
//! Shares nothing with the server but the meaning of its settings. Where the server may honestly do
//! either of two things (what was sent around a step back of the clock, the exact moment at which a
//! stream was vouched for) the model keeps an interval and claims only what holds at both ends.
//! `mono` is in ms since the simulation began, `wall` in Unix ms.

/// What the model needs to know of the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) beat_interval_ms: u64,
    pub(crate) offline_after_ms: u64,
    pub(crate) sweep_interval_ms: u64,
    pub(crate) beat_skew_max_ms: u64,
    /// After a start nobody is expired for so long.
    pub(crate) hold_ms: u64,
}

/// Sending times are compared by steps of the Unix clock of so many ms, as docs/PROTOCOL.md says.
const STEP_MS: u64 = 16;
/// After a step back of the clock what was heard before may stay so far ahead of it.
pub(crate) const AHEAD_MS: u64 = 1_000;

/// Whether the user's last word was a goodbye.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    No,
    Yes,
    /// The server may or may not think so.
    Maybe,
}

/// How something compares with the latest that was heard, by when they were sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Earlier,
    /// In the same step: the later to arrive counts.
    Same,
    Later,
    Unclear,
}

/// No time that the server may still have.
const NO_STRAY: (u64, u64) = (u64::MAX, 0);
/// Later than any step.
const UNKNOWN: u64 = u64::MAX / STEP_MS;

/// In which steps something was sent: the first and the last possible one.
type Steps = (u64, u64);

/// One user.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// It has a slot.
    pub(crate) known: bool,
    pub(crate) left: Left,
    /// When the last beat was accepted: not before `beat_lo`, not after `beat_hi`. None: never.
    pub(crate) beat_lo: Option<u64>,
    pub(crate) beat_hi: Option<u64>,
    /// The step in which the latest of all that was accepted had been sent.
    sent: Steps,
    /// Wall times from before the clock went back, by one of which the server may still compare:
    /// the first and the last possible one.
    stray: (u64, u64),
    /// When (mono) `left` last became something else than No.
    left_at: u64,
    /// When (mono) it was last published offline.
    pub(crate) offline_since: u64,
    /// Wall time of the last accepted beat or goodbye, if it is known exactly.
    pub(crate) active_exactly: Option<u64>,
    /// Since when (mono) it should have been online, if it is not yet.
    pub(crate) online_due: Option<u64>,
    /// Since when (mono) it should have gone after a goodbye.
    pub(crate) leave_due: Option<u64>,
}

impl User {
    pub(crate) fn new(known: bool) -> User {
        User {
            known,
            left: Left::No,
            beat_lo: None,
            beat_hi: None,
            sent: (0, 0),
            stray: NO_STRAY,
            left_at: 0,
            offline_since: 0,
            active_exactly: None,
            online_due: None,
            leave_due: None,
        }
    }

    /// Somebody who was erased, and whose erasure has not come to the disk, while all that was
    /// heard of them has been zeroed: but for what was heard since, which counted for nothing.
    pub(crate) fn erased_in_vain(mono: u64) -> User {
        User {
            left: Left::Maybe,
            beat_hi: Some(mono),
            sent: (0, UNKNOWN),
            ..User::new(true)
        }
    }

    /// When something was sent that has come at `wall`: never later than that. What has come over a
    /// connection was sent at u64::MAX.
    fn steps(&self, sent_at: u64, wall: u64) -> Steps {
        let latest = if wall < self.stray.1 {
            wall + AHEAD_MS
        } else {
            wall
        };
        (sent_at.min(wall) / STEP_MS, sent_at.min(latest) / STEP_MS)
    }

    fn order(&self, (first, last): Steps, sent_at: u64, wall: u64) -> Order {
        if sent_at == u64::MAX {
            // As late as anything can be.
            return if wall > self.stray.1 && first > self.sent.1 {
                Order::Later
            } else {
                Order::Same
            };
        }
        let (stray, last_stray) = self.stray;
        if first <= last_stray / STEP_MS && stray <= wall + AHEAD_MS {
            Order::Unclear
        } else if last < self.sent.0 {
            Order::Earlier
        } else if first > self.sent.1 {
            Order::Later
        } else if first == self.sent.1 {
            Order::Same
        } else {
            Order::Unclear
        }
    }

    /// It counted for sure: it is the latest, or the latest is later.
    fn note_sent(&mut self, (first, last): Steps, wall: u64) {
        if self.stray != NO_STRAY {
            let (stray, last_stray) = self.stray;
            let nearby = stray <= wall + AHEAD_MS;
            self.sent.1 = self.sent.1.min((wall + AHEAD_MS) / STEP_MS);
            if nearby {
                let latest = last_stray.min(wall + AHEAD_MS);
                self.sent.1 = self.sent.1.max(latest / STEP_MS);
            }
            if !nearby || wall > last_stray {
                self.stray = NO_STRAY;
            }
        }
        self.sent = (self.sent.0.max(first), self.sent.1.max(last));
    }

    /// It counted or did not.
    fn doubt(&mut self, (_, last): Steps) {
        self.left = match self.left {
            Left::No | Left::Maybe => Left::Maybe,
            Left::Yes => Left::Yes,
        };
        self.sent.1 = self.sent.1.max(last);
        self.active_exactly = None;
        self.online_due = None;
        self.leave_due = None;
    }

    /// A beat that was sent at `sent_at` reached the presence service, authentic and not stale.
    pub(crate) fn beat(&mut self, sent_at: u64, mono: u64, wall: u64, rules: &Rules) {
        let steps = self.steps(sent_at, wall);
        match (self.left, self.order(steps, sent_at, wall)) {
            (Left::No, _) | (_, Order::Same | Order::Later) => {}
            (Left::Yes, Order::Earlier) => return,
            (Left::Maybe, Order::Earlier) | (_, Order::Unclear) => {
                self.doubt(steps);
                self.left = Left::Maybe;
                self.beat_hi = Some(mono);
                return;
            }
        }
        self.note_sent(steps, wall);
        self.left = Left::No;
        self.leave_due = None;
        if self
            .beat_lo
            .is_none_or(|beat| mono > beat + rules.offline_after_ms)
        {
            self.online_due = None;
        }
        self.beat_lo = Some(mono);
        self.beat_hi = Some(mono);
        self.active_exactly = Some(wall);
        self.online_due.get_or_insert(mono);
    }

    /// A goodbye that was sent at `sent_at` reached the presence service, authentic and not stale,
    /// and no stream of the user's is open.
    pub(crate) fn leave(&mut self, sent_at: u64, mono: u64, wall: u64) {
        if !self.known {
            return;
        }
        let steps = self.steps(sent_at, wall);
        let order = self.order(steps, sent_at, wall);
        match (self.left, order) {
            (_, Order::Earlier) => return,
            (Left::Yes, Order::Same) => {
                // The same once more, or a later one.
                if self.sent != (steps.1, steps.1) {
                    self.doubt(steps);
                }
                return;
            }
            (_, Order::Unclear) => {
                self.left_at = mono;
                return self.doubt(steps);
            }
            (_, Order::Same | Order::Later) => {}
        }
        self.left_at = mono;
        self.online_due = None;
        // A goodbye that stands with a time from before the clock went back is left as it is.
        let may_stand = self.left != Left::No && self.stray != NO_STRAY;
        if self.beat_lo.is_some() && !may_stand {
            self.note_sent(steps, wall);
        } else if self.beat_hi.is_some() {
            self.sent.1 = self.sent.1.max(steps.1);
        }
        match std::mem::replace(&mut self.left, Left::Yes) {
            // Who never beat has no last activity.
            Left::No if self.beat_hi.is_some() => {
                self.active_exactly = Some(wall);
                self.leave_due = Some(mono);
            }
            Left::No => {}
            Left::Yes => self.active_exactly = self.active_exactly.map(|_| wall),
            Left::Maybe => {
                self.active_exactly = None;
                self.leave_due = Some(mono);
            }
        }
    }

    /// Whether what was sent then is later than all that was accepted, for sure, and a goodbye that
    /// says so would take the user offline.
    pub(crate) fn is_latest(&self, sent_at: u64, wall: u64) -> bool {
        let order = self.order(self.steps(sent_at, wall), sent_at, wall);
        let counts = matches!(order, Order::Later | Order::Same);
        self.known && self.left == Left::No && self.beat_lo.is_some() && counts
    }

    /// A goodbye came, and nobody here knows whether a stream of the user's was open.
    pub(crate) fn leave_perhaps(&mut self, sent_at: u64, mono: u64, wall: u64) {
        let steps = self.steps(sent_at, wall);
        if self.known && self.order(steps, sent_at, wall) != Order::Earlier {
            self.left_at = mono;
            self.doubt(steps);
        }
    }

    /// A stream of this user's is open: it may have been vouched for at any moment up to now, and,
    /// if `certain_from` is given, surely was at some moment since then.
    pub(crate) fn vouched(&mut self, certain_from: Option<u64>, mono: u64, wall: u64) {
        if self.left == Left::Yes {
            self.left = Left::Maybe;
            self.leave_due = None;
        }
        self.beat_hi = Some(mono);
        self.active_exactly = None;
        let steps = self.steps(u64::MAX, wall);
        self.sent.1 = self.sent.1.max(steps.1);
        let Some(from) = certain_from else { return };
        if self.left != Left::No {
            if from <= self.left_at {
                return;
            }
            self.online_due = Some(mono);
        }
        self.beat_lo = Some(self.beat_lo.map_or(from, |lo| lo.max(from)));
        self.left = Left::No;
    }

    /// What changes with anything that is heard of the user.
    pub(crate) fn last_word(&self) -> (Option<u64>, u64, bool) {
        (self.beat_hi, self.left_at, self.known)
    }

    /// The wall clock went back, from `wall`: what was sent before may be compared by times that
    /// mean nothing now, until the server has brought them back.
    pub(crate) fn clock_went_back(&mut self, mono: u64, wall: u64) {
        self.left_at = mono;
        self.active_exactly = None;
        let last = (self.sent.1.min(UNKNOWN - 1) + 1) * STEP_MS;
        let stray = (self.sent.0 * STEP_MS, last.min(wall + AHEAD_MS));
        self.stray = (self.stray.0.min(stray.0), self.stray.1.max(stray.1));
        self.sent = (0, UNKNOWN);
        if self.left != Left::No {
            self.left = Left::Maybe;
            self.online_due = None;
            self.leave_due = None;
        }
    }

    /// Nothing has disturbed the server for a while: what it could bring back, it has, to `wall` at
    /// the latest.
    pub(crate) fn settled(&mut self, wall: u64) {
        self.sent.1 = self.sent.1.min((wall + AHEAD_MS) / STEP_MS);
    }

    /// The process was started anew.
    pub(crate) fn restarted(&mut self) {
        self.online_due = None;
        self.leave_due = None;
    }

    /// Whether going offline at `mono` is right: after a goodbye, or after a silence of more than
    /// `offline_after_ms` outside the time in which nobody may be expired.
    pub(crate) fn may_go_offline(
        &self,
        mono: u64,
        hold_until: u64,
        rules: &Rules,
    ) -> Result<(), String> {
        if self.left != Left::No {
            return Ok(());
        }
        let Some(beat) = self.beat_lo else {
            return Ok(());
        };
        // To the millisecond, but for whom a hold ends just then: a clock stepped forward has made
        // all stamps old.
        let earliest = beat + rules.offline_after_ms + u64::from(mono != hold_until);
        if mono < earliest {
            return Err(format!("offline {} ms after an accepted beat", mono - beat));
        }
        if mono < hold_until {
            return Err(format!(
                "offline {} ms before anybody may be",
                hold_until - mono
            ));
        }
        Ok(())
    }

    /// Whether being told online at `mono` is right: it has beaten since it was published offline,
    /// not too long ago (by a clock that has not gone back since), and not said goodbye since.
    pub(crate) fn may_go_online(
        &self,
        mono: u64,
        clock_went_back_at: u64,
        rules: &Rules,
    ) -> Result<(), String> {
        // A stamp of before a step back is kept by later beats while the clock is behind it by no
        // more than this.
        let ahead_ms = if clock_went_back_at > 0 { 1_000 } else { 0 };
        let late_ms = rules.offline_after_ms + rules.sweep_interval_ms + ahead_ms;
        if self.left == Left::Yes {
            return Err("online after a goodbye without a later beat".into());
        }
        match self.beat_hi {
            None => Err("online without a beat".into()),
            Some(beat) if beat < self.offline_since => Err(format!(
                "online without a beat since it was offline, {} ms after the last",
                mono - beat
            )),
            Some(beat)
                if mono > beat + late_ms
                    && self.beat_lo.is_some_and(|lo| clock_went_back_at < lo) =>
            {
                Err(format!(
                    "online {} ms after the last accepted beat",
                    mono - beat
                ))
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether being published as `online` at `mono` is still right, given that nothing has
    /// disturbed the process since `calm_since`, and that nobody was expired before `hold_until`.
    ///
    /// `ahead_ms`: stamps may be so far ahead of the clock.
    pub(crate) fn is_in_time(
        &self,
        online: bool,
        mono: u64,
        (calm_since, hold_until): (u64, u64),
        ahead_ms: u64,
        rules: &Rules,
    ) -> Result<(), String> {
        let sweep_ms = rules.sweep_interval_ms + 1;
        if online {
            let silent_since = self.beat_hi.unwrap_or(0).max(calm_since);
            let due = (silent_since + rules.offline_after_ms).max(hold_until);
            if mono > due + sweep_ms + ahead_ms {
                return Err(format!(
                    "online after {} ms of silence",
                    mono - silent_since
                ));
            }
            if let Some(due) = self
                .leave_due
                .filter(|due| mono > due.max(&calm_since) + sweep_ms)
            {
                return Err(format!("online {} ms after a goodbye", mono - due));
            }
        } else if self.left == Left::No
            && let Some(due) = self.online_due
            && self
                .beat_lo
                .is_some_and(|beat| mono <= beat + rules.offline_after_ms)
            && mono > due.max(calm_since) + sweep_ms
        {
            return Err(format!("offline {} ms after a beat", mono - due));
        }
        Ok(())
    }
}
