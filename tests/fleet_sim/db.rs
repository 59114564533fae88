//! A node's presence databases, as simple as they can be: what it heard itself, and what it was
//! told.

use std::collections::BTreeMap;

use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::Kinds;
use greendot::fleet::member::{Ending, How, Local, Mirrored, Own, State, Ticket};
use greendot::slot::Slot;
use greendot::time::{Mono, Now, Unix};
use greendot::wire::{User, UserBuf};

pub(crate) const OFFLINE_AFTER_MS: u64 = 6_000;

#[derive(Default)]
pub(crate) struct Db {
    names: Vec<UserBuf>,
    slots: BTreeMap<UserBuf, u32>,
    heard: Vec<Heard>,
    mirror: Vec<Option<State>>,
    /// Since when everybody was told something of each. None: nobody was.
    public_since: Vec<Option<Unix>>,
    /// What each user says of itself, as far as it is known here.
    flags: Vec<UserFlags>,
    /// What was said with these tickets has been done.
    pub done: Vec<Ticket>,
    /// What watchers were told since the last look: of whom, whether it is here, how.
    pub told: Vec<(UserBuf, bool, How)>,
    /// Who was logged out here, or erased.
    pub ended: Vec<UserBuf>,
}

/// What a node has heard of a user itself.
#[derive(Clone, Copy, Default, Debug)]
struct Heard {
    /// When, and when it was sent.
    beat: Option<(Mono, Unix)>,
    streams: u32,
    opens: u32,
    last_active: Unix,
    /// Nobody is at its devices.
    unattended: bool,
}

impl Db {
    /// Somebody beats; its slot.
    pub(crate) fn beat(&mut self, user: User<'_>, sent: Unix, now: Now) -> Slot {
        let slot = self.make(user).unwrap();
        let heard = &mut self.heard[slot.index() as usize];
        let sent = heard.beat.map_or(sent, |(_, had)| had.max(sent));
        heard.beat = Some((now.mono, sent));
        heard.last_active = now.unix;
        slot
    }

    /// Somebody is at a user's devices, or nobody is.
    pub(crate) fn attend(&mut self, user: User<'_>, unattended: bool) -> Slot {
        let slot = self.make(user).unwrap();
        self.heard[slot.index() as usize].unattended = unattended;
        slot
    }

    /// A user says this of itself.
    pub(crate) fn say(&mut self, user: User<'_>, said: Saying) {
        let slot = self.make(user).unwrap();
        let flags = &mut self.flags[slot.index() as usize];
        *flags = flags.after(said);
    }

    /// What everybody but the user is told. None: they do not know.
    pub(crate) fn public(&self, user: User<'_>) -> Option<bool> {
        let state = self.view(user)?;
        Some(state.is_here && !state.flags.invisible)
    }

    /// A stream opens or closes. `vouches`: for its holder.
    pub(crate) fn stream(&mut self, user: User<'_>, vouches: bool, opens: bool, now: Now) -> Slot {
        let slot = self.make(user).unwrap();
        let heard = &mut self.heard[slot.index() as usize];
        let count = match vouches {
            true => &mut heard.streams,
            false => &mut heard.opens,
        };
        *count = if opens {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if vouches {
            // As long as it was open the platform beat for its holder.
            heard.beat = Some((now.mono, now.unix));
            heard.last_active = now.unix;
        }
        slot
    }

    /// A goodbye, if no stream is open here: kinds that end with it.
    pub(crate) fn goodbye(&mut self, user: User<'_>, sent: Unix) -> Kinds {
        let slot = self.make(user).unwrap();
        let heard = &mut self.heard[slot.index() as usize];
        if heard.streams + heard.opens > 0 || heard.beat.is_none_or(|(_, had)| had > sent) {
            return Kinds::default();
        }
        let ended = heard.beat.take();
        ended.map_or(Kinds::default(), |(_, sent)| Kinds::beat(sent))
    }

    /// What watchers here take the user to be. None: they do not know.
    pub(crate) fn view(&self, user: User<'_>) -> Option<State> {
        let slot = self.find(user)?;
        self.mirror[slot.index() as usize]
    }

    /// Streams of all users end: the node drains.
    pub(crate) fn kinds(&self, slot: u32, now: Now) -> Kinds {
        self.own(Slot::new(slot), now).kinds
    }
}

impl Local for Db {
    fn slots(&self) -> u32 {
        self.names.len() as u32
    }

    fn user(&self, slot: Slot) -> Option<User<'_>> {
        self.names.get(slot.index() as usize).map(UserBuf::user)
    }

    fn find(&self, user: User<'_>) -> Option<Slot> {
        self.slots
            .get(&UserBuf::from(user))
            .map(|&slot| Slot::new(slot))
    }

    fn make(&mut self, user: User<'_>) -> Option<Slot> {
        if let Some(slot) = self.find(user) {
            return Some(slot);
        }
        let slot = self.names.len() as u32;
        self.names.push(user.into());
        self.slots.insert(user.into(), slot);
        self.heard.push(Heard::default());
        self.mirror.push(None);
        self.public_since.push(None);
        self.flags.push(UserFlags::PLAIN);
        Some(Slot::new(slot))
    }

    fn own(&self, slot: Slot, now: Now) -> Own {
        let heard = self.heard[slot.index() as usize];
        let is_fresh = |at: Mono| now.mono.ms_since(at) <= OFFLINE_AFTER_MS;
        let beat = heard.beat.filter(|(at, _)| is_fresh(*at));
        Own {
            kinds: Kinds {
                beat: beat.map(|(_, sent)| sent),
                stream: heard.streams > 0,
                open: heard.opens > 0,
                unattended: heard.unattended,
            },
            flags: self.flags[slot.index() as usize],
            last_active: heard.last_active,
            since: heard.last_active,
        }
    }

    fn told(&mut self, slot: Slot, state: State, how: How, _: Now) {
        let cell = &mut self.mirror[slot.index() as usize];
        let was_here = cell.is_some_and(|state| state.is_here);
        let is_kept = match how {
            How::InStep | How::Read => false,
            How::Unsettled => was_here,
            How::Alone => was_here,
        };
        if is_kept {
            return;
        }
        self.flags[slot.index() as usize] = state.flags.said();
        let is_seen = |state: State| state.is_here && !state.flags.invisible;
        let was = cell.replace(state).map(is_seen);
        let public_since = &mut self.public_since[slot.index() as usize];
        match (state.flags.invisible, was) {
            (false, _) | (true, Some(true)) => *public_since = Some(state.since),
            // Of who has never been seen it is known that nobody was told anything.
            (true, _) => {
                *public_since = public_since.or(state.gone_since.or(Some(Unix::default())))
            }
        }
        if was.unwrap_or(false) != is_seen(state) {
            let user = self.names[slot.index() as usize].clone();
            self.told.push((user, is_seen(state), how));
        }
    }

    fn is_sure(&self, slot: Slot) -> bool {
        self.mirror[slot.index() as usize].is_some()
    }

    fn mirrored(&self, slot: Slot) -> Option<Mirrored> {
        let state = self.mirror[slot.index() as usize]?;
        let since = self.public_since[slot.index() as usize];
        let is_here = state.is_here;
        Some(Mirrored { is_here, since })
    }

    fn comes_with(&mut self, slot: Slot, flags: UserFlags) {
        let slot = slot.index() as usize;
        self.flags[slot] = flags.said();
        if let Some(state) = &mut self.mirror[slot] {
            state.flags = flags;
        }
    }

    fn erased(&mut self, slot: Slot, since: Unix, _: Now) {
        let slot = slot.index() as usize;
        self.flags[slot] = UserFlags::PLAIN;
        self.public_since[slot] = Some(since);
        self.mirror[slot] = Some(State {
            is_here: false,
            flags: UserFlags::PLAIN,
            since,
            last_active: None,
            gone_since: None,
        });
    }

    fn done(&mut self, ticket: Ticket) {
        self.done.push(ticket);
    }

    fn unseen(&mut self, _: User<'_>, _: Now) {}

    fn ended(&mut self, slot: Slot, ending: Ending, _: Now) {
        let heard = &mut self.heard[slot.index() as usize];
        match ending {
            Ending::SaidGoodbye(sent) => heard.beat = heard.beat.filter(|(_, beat)| *beat > sent),
            Ending::LoggedOut(said) | Ending::Erased(said) => {
                let is_held = heard.streams + heard.opens > 0;
                let beat = heard.beat.filter(|(_, beat)| !is_held && *beat > said);
                *heard = Heard {
                    beat,
                    last_active: heard.last_active,
                    ..Heard::default()
                };
                let user = self.names[slot.index() as usize].clone();
                self.ended.push(user);
            }
        }
    }
}
