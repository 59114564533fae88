//! `GET /v1/online`: who is online, page by page.
//!
//! Owns the order of such a walk, and what makes it exact. It goes through the slots once for those
//! who are online. Then it goes through them again for what was published since it began, and so
//! each further time since the time before. So what is held of a user after a round is what was
//! published of it when the round began, or later. Keeps nothing between two pages: all of it is in
//! the cursor.

use super::caller::Caller;
use super::cursor::{CursorFault, Walk};
use super::online_in_fleet;
use super::page::Page;
use super::served::Served;
use crate::engine::parts::Engine;
use crate::engine::records::told_of;
use crate::engine::role::Role;
use crate::realtime::ConnId;
use crate::time::{Now, Unix};
use crate::wire::json::{write_str, write_u64};
use crate::wire::response::Answer;

/// Slots that one page looks at the users of: a few cache misses each.
const LOOKED_PER_PAGE: usize = 2_048;
/// The walk's name in its cursors.
const WALK: &str = "online";
/// Bytes of a place.
const PLACE_BYTES: usize = 32;

/// Where a walk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    /// What is looked for: what was published at that moment or later. None: who is online.
    since: Option<Unix>,
    /// When this round began: what is published later is for the next.
    began: Unix,
    /// The next slot.
    slot: u32,
    /// Steps back of the clock by then: after one more, moments say nothing.
    steps_back: u64,
}

impl Place {
    /// The first page of a round.
    fn of_round(since: Option<Unix>, engine: &Engine) -> Place {
        let presence = &engine.presence;
        Place {
            since,
            // Before anything is read.
            steps_back: presence.clock_steps_back(),
            began: presence.published_up_to(),
            slot: 0,
        }
    }

    fn bytes(&self) -> [u8; PLACE_BYTES] {
        let mut bytes = [0; PLACE_BYTES];
        let since = self.since.map_or(u64::MAX, Unix::ms);
        bytes[..8].copy_from_slice(&since.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.began.ms().to_be_bytes());
        bytes[16..24].copy_from_slice(&self.steps_back.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.slot.to_be_bytes());
        bytes
    }

    fn read(bytes: &[u8; PLACE_BYTES]) -> Place {
        let word = |at: usize| {
            let word = bytes[at..].first_chunk();
            u64::from_be_bytes(*word.expect("a place is longer"))
        };
        let since = word(0);
        Place {
            since: (since != u64::MAX).then(|| Unix::from_ms(since)),
            began: Unix::from_ms(word(8)),
            steps_back: word(16),
            slot: (word(24) >> 32) as u32,
        }
    }
}

pub(super) fn online(
    engine: &mut Engine,
    conn: ConnId,
    page: Page,
    _: &Caller,
    now: Now,
) -> Served {
    if matches!(engine.node.role, Role::Fleet(_)) {
        return online_in_fleet::ask(engine, conn, page, now);
    }
    match place_of(engine, &page) {
        Ok(place) => told(engine, place, &page, now).into(),
        Err(fault) => Answer::from(fault).into(),
    }
}

pub(super) fn walk<'w>(engine: &'w Engine, page: &'w Page) -> Walk<'w> {
    Walk {
        secret: &engine.node.secret,
        node: engine.node.name,
        name: WALK,
        filter: page.filter(),
    }
}

fn place_of(engine: &Engine, page: &Page) -> Result<Place, CursorFault> {
    let Some(cursor) = &page.cursor else {
        return Ok(Place::of_round(None, engine));
    };
    let place = Place::read(&walk(engine, page).place(cursor)?);
    if place.steps_back != engine.presence.clock_steps_back() {
        return Err(CursorFault::Gone);
    }
    Ok(match place.slot {
        0 => Place::of_round(place.since, engine),
        _ => place,
    })
}

/// One page from a place on.
fn told(engine: &mut Engine, place: Place, page: &Page, now: Now) -> Answer {
    let mut body = engine.conns.scratch();
    let presence = &engine.presence;
    let mut slots = Vec::new();
    let end = match place.since {
        None => presence.online_from(place.slot, LOOKED_PER_PAGE, &mut slots),
        Some(since) => presence.published_from(place.slot, since, LOOKED_PER_PAGE, &mut slots),
    };
    body.extend_from_slice(b"{\"presence\":[");
    let (mut told, mut next) = (0, end);
    for slot in slots {
        if told == page.limit {
            next = Some(slot.index());
            break;
        }
        if !presence.user(slot).as_str().starts_with(page.filter()) {
            continue;
        }
        let record = told_of(presence, slot, now);
        // Who has gone since is told in the next round, and who is nobody any more in none.
        let is_news = match place.since {
            None => record.status.is_online(),
            Some(_) => record.since.is_some(),
        };
        if is_news {
            body.extend_from_slice(if told > 0 { b"," } else { b"" });
            record.write(&mut body);
            told += 1;
        }
    }
    let (next, is_over) = match next {
        Some(slot) => (Place { slot, ..place }, false),
        None => {
            let since = Some(place.began);
            let next = Place {
                since,
                slot: 0,
                ..place
            };
            // One page is no time in which anything could be missed.
            (next, place.since.is_some() || page.cursor.is_none())
        }
    };
    body.extend_from_slice(b"],\"as_of\":");
    write_u64(place.began.ms(), &mut body);
    let cursor = walk(engine, page).cursor(&next.bytes());
    ended(body, is_over, &cursor, page)
}

/// The answer, of which a page and when its round began have been written.
pub(super) fn ended(mut body: Vec<u8>, is_over: bool, cursor: &str, page: &Page) -> Answer {
    body.extend_from_slice(if is_over {
        b",\"more\":false"
    } else {
        b",\"more\":true"
    });
    body.extend_from_slice(b",\"cursor\":");
    write_str(cursor, &mut body);
    page.ignored.write(usize::MAX, &mut body);
    body.push(b'}');
    Answer::json(body)
}
