//! Finds out who has which slots.
//!
//! Owns when that is asked, and whom. What comes of it stands on the board.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

use super::about::{self, Kind};
use super::board::{Board, Site};
use super::dial::{Useless, dial};
use super::resp::Frame;
use super::{backoff, sleep_after_failure};
use crate::fleet::calls::Call;
use crate::fleet::traffic::Reply;
use crate::redis_url::Address;

/// How often the map is compared.
const LOOK: Duration = Duration::from_secs(1);

/// Two looks are no closer, however many ask for one.
const PAUSE: Duration = Duration::from_millis(50);

/// Silence is noticed that much later at most.
const PULSE: Duration = Duration::from_millis(200);

/// A look that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest delay between two attempts to find anybody, in ms.
const DISCOVERY_CAP_MS: u64 = 2_000;

pub(super) async fn run(board: Arc<Board>) {
    let mut last = None;
    let mut backoff = backoff(DISCOVERY_CAP_MS);
    loop {
        let began = Instant::now();
        match look(&board, &mut last).await {
            true => backoff.reset(),
            false => sleep_after_failure(&mut backoff).await,
        }
        sleep(PAUSE.saturating_sub(began.elapsed())).await;
        let _ = timeout(LOOK, board.look.notified()).await;
    }
}

pub(super) async fn pulse(board: Arc<Board>) {
    let mut beats = interval(PULSE);
    loop {
        beats.tick().await;
        board.pulse();
    }
}

/// Returns whether anybody was found.
async fn look(board: &Arc<Board>, last: &mut Option<Site>) -> bool {
    if board.kind() == Some(Kind::Cluster)
        && let Some((site, address)) = board.whom_to_ask(*last)
    {
        *last = Some(site);
        let asked = board.ask(site, view_words().map(Call::plain).into());
        return match timeout(PATIENCE, asked).await {
            Ok(Ok(replies)) => take(board, &replies, &address),
            _ => false,
        };
    }
    board.is_served() || discover(board).await
}

pub(super) fn view_words() -> [[&'static [u8]; 2]; 2] {
    [[b"CLUSTER", b"INFO"], [b"CLUSTER", b"SLOTS"]]
}

fn take(board: &Arc<Board>, replies: &[Reply], asked: &Address) -> bool {
    let [info, slots] = replies else {
        return false;
    };
    match about::view_of(info, slots, asked) {
        Some(view) if !view.ranges.is_empty() => {
            board.take_view(view);
            board.fault_of_all(None);
            true
        }
        view => {
            let text = match (info, slots, view) {
                (Reply::Error(error), ..) | (_, Reply::Error(error), _) => {
                    super::dial::refused(error)
                }
                (.., Some(_)) => "the cluster has no slots".to_owned(),
                _ => "CLUSTER does not say who has which slots".to_owned(),
            };
            board.fault_of_all(Some(format!("{asked}: {text}")));
            false
        }
    }
}

/// What one of those who may know more has said.
enum Found {
    /// It is the primary, or one of those without a cluster.
    Primary,
    View(Vec<Reply>),
    Replica,
    Fault(String),
}

/// Asks everybody who may know more.
async fn discover(board: &Arc<Board>) -> bool {
    let candidates = board.candidates();
    let mut dials = JoinSet::new();
    for (at, address) in candidates.iter().enumerate() {
        let (board, address) = (Arc::clone(board), address.clone());
        dials.spawn(async move { (at, ask_one(&board, &address).await) });
    }
    let mut primary: Option<usize> = None;
    let mut faults = Vec::new();
    while let Some(joined) = dials.join_next().await {
        let Ok((at, found)) = joined else {
            continue;
        };
        match found {
            Found::View(replies) => {
                if take(board, &replies, &candidates[at]) {
                    // The others go on no longer than it takes to drop them.
                    return true;
                }
            }
            Found::Primary => primary = Some(primary.map_or(at, |other| other.min(at))),
            Found::Replica => {}
            Found::Fault(text) => faults.push(format!("{}: {text}", candidates[at])),
        }
        // Nobody before it can be one.
        if primary == Some(0) {
            break;
        }
    }
    match primary {
        Some(at) => {
            board.follow(&candidates[at]);
            board.fault_of_all(None);
        }
        None => {
            faults.sort_unstable();
            let text = match &faults[..] {
                [] => "there are replicas only".to_owned(),
                faults => faults.join("; "),
            };
            board.fault_of_all(Some(text));
        }
    }
    primary.is_some()
}

async fn ask_one(board: &Board, address: &Address) -> Found {
    let dialled = match dial(&board.options, address, false).await {
        Ok(dialled) => dialled,
        Err(Useless::Fault(text)) => return Found::Fault(text),
        Err(Useless::Replica(kind, others)) => {
            board.learn(others);
            return match kind {
                Kind::Single => Found::Replica,
                // It knows the map as well, and its primary is learned.
                Kind::Cluster => Found::Fault("it is a replica; its primary is asked next".into()),
            };
        }
    };
    if dialled.kind == Kind::Single {
        board.learn(dialled.others);
        return Found::Primary;
    }
    let (mut incoming, mut outgoing) = (dialled.incoming, dialled.outgoing);
    let view = timeout(PATIENCE, async {
        for words in view_words() {
            outgoing.say(words.into_iter());
        }
        while !outgoing.is_done() {
            outgoing.advance().await?;
        }
        let mut replies = Vec::new();
        while replies.len() < 2 {
            if let Frame::Reply(reply) = incoming.next().await? {
                replies.push(reply);
            }
        }
        Ok::<_, std::io::Error>(replies)
    });
    match view.await {
        Ok(Ok(replies)) => Found::View(replies),
        Ok(Err(error)) => Found::Fault(error.to_string()),
        Err(_) => Found::Fault("it does not answer in time".into()),
    }
}
