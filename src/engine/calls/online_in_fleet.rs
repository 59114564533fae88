//! `GET /v1/online` at a node of a fleet: who is online at all nodes, page by page.
//!
//! Owns the rounds of such a walk. The first is of those who are online; each further one is of
//! what was published since the one before began, or a little earlier. The bridge reads the pages
//! from the fleet's database; where it is, is its business. Keeps nothing between two pages.

use super::cursor::CursorFault;
use super::errands::WAIT_MS_MAX;
use super::online::{ended, walk};
use super::page::Page;
use super::refused::Refused;
use super::served::{Served, Then, Waits};
use crate::engine::errand::{Asker, Verdict};
use crate::engine::mail::Listed;
use crate::engine::parts::Engine;
use crate::engine::upstream::Outbound;
use crate::realtime::ConnId;
use crate::time::{Now, Unix};
use crate::wire::json::write_u64;
use crate::wire::response::{Answer, problems};

/// The clocks of nodes and of the database's servers may differ by so much, in ms.
const SLACK_MS: u64 = 10_000;

const UNTOLD: &str = "the fleet's database has not answered; ask again with the same cursor";

/// A page that is waited for.
#[derive(Debug)]
pub(in crate::engine) struct Round {
    page: Page,
    /// What is looked for: what was published since then. None: who is online.
    since: Option<Unix>,
    /// What was published later is for the next round.
    began: Unix,
}

/// Asks the bridge for a page.
pub(super) fn ask(engine: &mut Engine, conn: ConnId, page: Page, now: Now) -> Served {
    let began = now.unix.minus_ms(SLACK_MS);
    let (since, began, place) = match &page.cursor {
        None => (None, began, Vec::new()),
        Some(cursor) => match place_of(engine, &page, cursor) {
            // The first page of a round.
            Ok((since, _, place)) if place.is_empty() => (since, began, place),
            Ok(place) => place,
            Err(fault) => return Answer::from(fault).into(),
        },
    };
    let asker = Asker {
        shard: engine.node.shard,
        conn,
        until: now.mono.plus_ms(WAIT_MS_MAX),
    };
    if let Some(upstream) = &mut engine.upstream {
        upstream.outbound.push_back(Outbound::Online {
            asker,
            since,
            prefix: page.filter().into(),
            limit: page.limit,
            place: place.into(),
        });
    }
    Served::Parked {
        until: asker.until,
        unanswered: UNTOLD,
        refused: Refused::default(),
        waits: Some(Box::new(Waits {
            errands: 1,
            verdict: Verdict::Done,
            then: Then::Online(Box::new(Round { page, since, began })),
        })),
    }
}

fn place_of(
    engine: &Engine,
    page: &Page,
    cursor: &str,
) -> Result<(Option<Unix>, Unix, Vec<u8>), CursorFault> {
    let (times, place) = walk(engine, page).long_place::<16>(cursor)?;
    let ([since, began], _) = times.as_chunks::<8>() else {
        return Err(CursorFault::Form);
    };
    let [since, began] = [since, began].map(|bytes| u64::from_be_bytes(*bytes));
    let since = (since != u64::MAX).then(|| Unix::from_ms(since));
    Ok((since, Unix::from_ms(began), place))
}

fn cursor_of(since: Option<Unix>, began: Unix, place: &[u8]) -> Vec<u8> {
    let since = since.map_or(u64::MAX, Unix::ms);
    [&since.to_be_bytes(), &began.ms().to_be_bytes(), place].concat()
}

impl Engine {
    /// The bridge has read a page, or could not.
    pub(in crate::engine) fn online_listed(&mut self, id: ConnId, listed: &Listed, now: Now) {
        if self.conns.waits(id).is_none() {
            return;
        }
        let Some(mut pending) = self.conns.unpark(id) else {
            return;
        };
        let then = pending.waits.take().map(|waits| waits.then);
        let Some(Then::Online(round)) = then else {
            return;
        };
        let answer = self.online_answer(*round, listed);
        self.carry_out(id, pending, answer.into(), now);
    }

    fn online_answer(&mut self, round: Round, listed: &Listed) -> Answer {
        let Round { page, since, began } = round;
        let Some(states) = &listed.states else {
            let detail = UNTOLD;
            return Answer::problem(problems::FLEET_AWAY, detail)
                .with_lines(super::served::RETRY_AFTER);
        };
        let mut body = self.conns.scratch();
        body.extend_from_slice(b"{\"presence\":[");
        for (at, told) in states.iter().enumerate() {
            body.extend_from_slice(if at > 0 { b"," } else { b"" });
            told.record().write(&mut body);
        }
        body.extend_from_slice(b"],\"as_of\":");
        write_u64(began.ms(), &mut body);
        let (next, is_over) = match &listed.next {
            Some(place) => (cursor_of(since, began, place), false),
            // One page is no time in which anything could be missed.
            None => (
                cursor_of(Some(began), began, &[]),
                since.is_some() || page.cursor.is_none(),
            ),
        };
        let cursor = walk(self, &page).cursor(&next);
        ended(body, is_over, &cursor, &page)
    }
}
