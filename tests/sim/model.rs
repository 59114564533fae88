//! The oracle: what must be true of each user, from the beats and goodbyes that were accepted.
//!
//! Shares nothing with the server but the meaning of its settings. Where the server may honestly do
//! either of two things (a goodbye whose record a restart lost, the exact moment at which a stream
//! was vouched for) the model keeps an interval and claims only what holds at both ends. `mono` is
//! in ms since the simulation began, `wall` in Unix ms.

/// What the model needs to know of the settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) beat_interval_ms: u64,
    pub(crate) offline_after_ms: u64,
    pub(crate) sweep_interval_ms: u64,
    pub(crate) beat_skew_max_ms: u64,
}

/// Whether the user's last word was a goodbye.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    No,
    /// Beats sent up to `lo` do not undo it, those sent after `hi` do; in between the server may do
    /// either.
    Yes {
        lo: u64,
        hi: u64,
    },
    /// The server may or may not think so; a beat sent after `hi` settles it.
    Maybe {
        lo: u64,
        hi: u64,
    },
}

/// One user.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// It has a slot.
    pub(crate) known: bool,
    pub(crate) left: Left,
    /// When the last beat was accepted: not before `beat_lo`, not after `beat_hi`. None: never.
    pub(crate) beat_lo: Option<u64>,
    pub(crate) beat_hi: Option<u64>,
    /// When (mono) `left` last became something else than No.
    left_at: u64,
    /// When (mono) it was last published offline.
    pub(crate) offline_since: u64,
    /// The newest goodbye: when it was sent, by the sender's clock, and until when (mono) the
    /// server remembers it.
    goodbye: Option<(u64, u64)>,
    /// The server's memory of goodbyes was lost, or its clock went back: `goodbye` may count or
    /// not.
    goodbye_doubtful: bool,
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
            left_at: 0,
            offline_since: 0,
            goodbye: None,
            goodbye_doubtful: false,
            active_exactly: None,
            online_due: None,
            leave_due: None,
        }
    }

    /// The same, with a slot at least.
    pub(crate) fn with_a_slot(&self) -> User {
        User {
            known: true,
            ..self.clone()
        }
    }

    /// A beat that was sent at `sent_at` reached the presence service, authentic and not stale.
    pub(crate) fn beat(&mut self, sent_at: u64, mono: u64, wall: u64, rules: &Rules) {
        match self.left {
            Left::Yes { lo, .. } if sent_at <= lo => return,
            Left::No => {}
            Left::Yes { hi, .. } | Left::Maybe { hi, .. } if sent_at > hi => {}
            Left::Yes { lo, hi } | Left::Maybe { lo, hi } => {
                self.left = Left::Maybe { lo, hi };
                self.beat_hi = Some(mono);
                self.active_exactly = None;
                self.online_due = None;
                self.leave_due = None;
                return;
            }
        }
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

    /// A goodbye that was sent at `sent_at` reached the presence service, authentic and not stale.
    pub(crate) fn leave(
        &mut self,
        sent_at: u64,
        mono: u64,
        wall: u64,
        rules: &Rules,
        clock_doubtful: bool,
    ) {
        if !self.known {
            return;
        }
        self.left_at = mono;
        let remembered = self.goodbye.filter(|(newest, _)| sent_at <= *newest);
        if let Some((_, kept_until)) = remembered {
            if mono < kept_until && !self.goodbye_doubtful {
                return;
            }
            return self.doubt(sent_at, wall);
        }
        if clock_doubtful {
            return self.doubt(sent_at, wall + 3 * rules.beat_skew_max_ms);
        }
        let was = self.left;
        self.goodbye = Some((sent_at, mono + 2 * rules.beat_skew_max_ms));
        self.goodbye_doubtful = false;
        self.left = Left::Yes {
            lo: sent_at,
            hi: sent_at,
        };
        self.online_due = None;
        match was {
            Left::No if self.beat_hi.is_some() => {
                self.active_exactly = Some(wall);
                self.leave_due = Some(mono);
            }
            Left::No | Left::Yes { .. } => {}
            Left::Maybe { .. } => {
                self.active_exactly = None;
                self.leave_due = Some(mono);
            }
        }
    }

    /// It may have been taken as a goodbye, or not.
    fn doubt(&mut self, sent_at: u64, wall: u64) {
        let hi = sent_at.max(wall);
        self.left = match self.left {
            Left::No => Left::Maybe { lo: 0, hi },
            Left::Yes { lo, hi: other } => Left::Yes {
                lo: lo.min(sent_at),
                hi: other.max(hi),
            },
            Left::Maybe { lo, hi: other } => Left::Maybe {
                lo: lo.min(sent_at),
                hi: other.max(hi),
            },
        };
        let newest = self
            .goodbye
            .map_or(sent_at, |(newest, _)| newest.max(sent_at));
        self.goodbye = Some((newest, u64::MAX));
        self.goodbye_doubtful = true;
        self.active_exactly = None;
        self.online_due = None;
        self.leave_due = None;
    }

    /// A stream of this user's is open: it may have been vouched for at any moment up to now, and,
    /// if `certain_from` is given, surely was at some moment since then.
    pub(crate) fn vouched(&mut self, certain_from: Option<u64>, mono: u64) {
        match self.left {
            Left::Yes { lo, hi } => {
                self.left = Left::Maybe { lo, hi };
                self.leave_due = None;
            }
            Left::Maybe { .. } | Left::No => {}
        }
        self.beat_hi = Some(mono);
        self.active_exactly = None;
        let Some(from) = certain_from else { return };
        if let Left::Yes { .. } | Left::Maybe { .. } = self.left {
            if from <= self.left_at {
                return;
            }
            self.online_due = Some(mono);
        }
        self.beat_lo = Some(self.beat_lo.map_or(from, |lo| lo.max(from)));
        self.left = Left::No;
    }

    /// The wall clock went back to `wall`: goodbyes carry times that may mean nothing now.
    pub(crate) fn clock_went_back(&mut self, mono: u64, wall: u64, rules: &Rules) {
        self.left_at = mono;
        self.active_exactly = None;
        self.goodbye_doubtful = true;
        if self.left != Left::No {
            self.doubt(0, wall + 3 * rules.beat_skew_max_ms);
        }
    }

    /// The process was started anew: the table of goodbyes is gone, the time at which one came is
    /// what is left of it.
    pub(crate) fn restarted(&mut self, wall: u64) {
        self.goodbye_doubtful = true;
        self.online_due = None;
        self.leave_due = None;
        if let Left::Yes { lo, hi } | Left::Maybe { lo, hi } = self.left {
            let came = self.active_exactly.unwrap_or(0);
            let (lo, hi) = (lo.min(came), hi.max(self.active_exactly.unwrap_or(wall)));
            self.left = match self.left {
                Left::Yes { .. } => Left::Yes { lo, hi },
                _ => Left::Maybe { lo, hi },
            };
        }
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
        if let Left::Yes { .. } = self.left {
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
    /// disturbed the process since `calm_since`.
    ///
    /// `ahead_ms`: stamps may be so far ahead of the clock.
    pub(crate) fn is_in_time(
        &self,
        online: bool,
        mono: u64,
        calm_since: u64,
        ahead_ms: u64,
        rules: &Rules,
    ) -> Result<(), String> {
        let sweep_ms = rules.sweep_interval_ms + 1;
        if online {
            let silent_since = self.beat_hi.unwrap_or(0).max(calm_since);
            if mono > silent_since + rules.offline_after_ms + sweep_ms + ahead_ms {
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
