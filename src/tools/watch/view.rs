//! What `greendot watch` shows: states in, words and lines out. Pure.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// A publisher's state as the stream tells it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    pub user: String,
    /// `online`, `away`, `busy`, `offline` or `unknown`.
    pub status: String,
    /// Whether that is a way of being here.
    pub online: bool,
    /// Unix ms of the last transition.
    pub since: Option<u64>,
    /// Unix ms of the last beat.
    pub last_active: Option<u64>,
    /// The last state known: there may be a newer one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

impl Record {
    /// Whether it is known to be so now: what is stale has a grey dot.
    fn is_online(&self) -> bool {
        self.online && !self.stale
    }

    fn dot(&self) -> &'static str {
        match &*self.status {
            _ if !self.is_online() => GREY_DOT,
            "away" => YELLOW_DOT,
            "busy" => RED_DOT,
            _ => GREEN_DOT,
        }
    }
}

/// Most rows of the table: it is redrawn in place, which a table taller than the terminal cannot
/// be.
const ROWS_MAX: usize = 20;

/// The watched users in the order given, and what is known of each.
///
/// A stream's own order is right: the last state told is the state. Between two streams it is not,
/// for the next may come from a node that has heard less. So what a new stream tells that is older
/// than what a former one told waits for the stream's next id, which says up to when it has been
/// told everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    rows: Vec<Row>,
    /// The stream's last id.
    told_up_to: Option<u64>,
    /// Nothing is heard: what is not this stream's word is the last known.
    stale: bool,
    /// Silence after which the server calls somebody offline, in ms; as long as no hello has named
    /// it, any.
    pub offline_after_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    user: String,
    shown: Option<Record>,
    /// `shown` is this stream's word, not a former one's.
    ours: bool,
    /// This stream's word that is older than `shown`.
    held: Option<Record>,
}

impl Row {
    /// The state as it is shown, if nothing or something is heard now.
    fn known(&self, stale: bool) -> Option<Record> {
        let mut record = self.shown.clone()?;
        record.stale |= stale && !self.ours;
        Some(record)
    }
}

impl View {
    /// Nothing known yet.
    pub fn new(users: &[String]) -> View {
        let mut rows: Vec<Row> = Vec::with_capacity(users.len());
        for user in users {
            if rows.iter().all(|row| row.user != *user) {
                rows.push(Row {
                    user: user.clone(),
                    shown: None,
                    ours: false,
                    held: None,
                });
            }
        }
        View {
            rows,
            told_up_to: None,
            stale: false,
            offline_after_ms: u64::MAX,
        }
    }

    /// What is told from now on is told by another stream.
    pub fn begin_stream(&mut self) {
        self.told_up_to = None;
        for row in &mut self.rows {
            row.ours = false;
            row.held = None;
        }
    }

    /// Nothing is heard any more. Returns the states that are the last known since now.
    pub fn lose(&mut self) -> Vec<Record> {
        if std::mem::replace(&mut self.stale, true) {
            return Vec::new();
        }
        for row in &mut self.rows {
            row.ours = false;
        }
        self.rows.iter().filter_map(|row| row.known(true)).collect()
    }

    /// The stream has told all that it has to: what it did not tell is as it was. Returns the
    /// states that are right again.
    pub fn settle(&mut self) -> Vec<Record> {
        if !std::mem::replace(&mut self.stale, false) {
            return Vec::new();
        }
        let others = self.rows.iter().filter(|row| !row.ours);
        others.filter_map(|row| row.known(false)).collect()
    }

    /// Takes a state in; true if it changed what is shown of somebody watched.
    pub fn apply(&mut self, record: &Record) -> bool {
        let Some(row) = self.rows.iter_mut().find(|row| row.user == record.user) else {
            return false;
        };
        row.held = None;
        let was_stale = self.stale && !row.ours;
        match &row.shown {
            // Another node's not knowing yet takes back nothing.
            Some(_) if record.status == "unknown" => false,
            Some(shown) if !row.ours && shown.since > record.since => {
                row.held = Some(record.clone());
                false
            }
            shown => {
                let changed = was_stale || shown.as_ref() != Some(record);
                row.shown = Some(record.clone());
                row.ours = true;
                changed
            }
        }
    }

    /// The stream has been told everything up to `id`: what it says replaces what former streams
    /// told of that time (the server has lost it). Returns the states that are shown now and were
    /// not. An id that comes again says nothing new.
    ///
    /// After a step back of the server's clock ids are small, and take back nothing until they have
    /// come up to what is shown: a node that has heard less looks just so.
    pub fn told_up_to(&mut self, id: u64) -> Vec<Record> {
        let mut changes = Vec::new();
        if self.told_up_to.replace(id) == Some(id) {
            return changes;
        }
        for row in &mut self.rows {
            let counted = row
                .shown
                .as_ref()
                .is_some_and(|shown| shown.since <= Some(id));
            if let Some(held) = row.held.take_if(|_| counted) {
                changes.push(held.clone());
                row.shown = Some(held);
                row.ours = true;
            }
        }
        changes
    }

    /// The table, one line per user, each with its newline. `now_ms` is the server's time.
    pub fn table(&self, now_ms: u64) -> String {
        let mut out = String::new();
        let shown = &self.rows[..self.rows.len().min(ROWS_MAX)];
        let width = shown
            .iter()
            .map(|row| row.user.chars().count())
            .max()
            .unwrap_or(0);
        for row in shown {
            let (user, record) = (&row.user, row.known(self.stale));
            let pad = " ".repeat(width - user.chars().count());
            let (dot, words) = match &record {
                Some(record) if record.stale => {
                    let words = self.words(record, now_ms);
                    (record.dot(), format!("{words} (last known)"))
                }
                Some(record) => (record.dot(), self.words(record, now_ms)),
                None => (GREY_DOT, "no answer yet".into()),
            };
            writeln!(out, "{dot} {user}{pad}  {words}").expect("a String takes everything");
        }
        let rest = &self.rows[shown.len()..];
        if !rest.is_empty() {
            let online = rest
                .iter()
                .filter_map(|row| row.known(self.stale))
                .filter(Record::is_online)
                .count();
            writeln!(out, "  and {} more, {online} of them online", rest.len())
                .expect("a String takes everything");
        }
        out
    }

    /// `online for 3 min, last active at most 25 s ago`, `offline for 2 h, last active 2 h ago`.
    fn words(&self, record: &Record, now_ms: u64) -> String {
        let online = record.online;
        if record.since.is_none() && record.last_active.is_none() && !online {
            let known = record.status != "unknown";
            return if known { "never seen" } else { "not known yet" }.into();
        }
        let ago_ms = |then: u64| now_ms.saturating_sub(then);
        let mut words = record.status.clone();
        if let Some(since) = record.since {
            words = format!("{words} for {}", span(ago_ms(since)));
        }
        match record.last_active.map(ago_ms) {
            None => {}
            // A stream tells no beats. But who is online has beaten since the time that would make
            // an absence.
            Some(ms) if online => {
                words = format!(
                    "{words}, last active at most {} ago",
                    span(ms.min(self.offline_after_ms))
                );
            }
            Some(ms) => words = format!("{words}, last active {} ago", span(ms)),
        }
        words
    }

    /// Number of lines of the table.
    pub fn lines(&self) -> usize {
        self.rows.len().min(ROWS_MAX) + usize::from(self.rows.len() > ROWS_MAX)
    }
}

const GREEN_DOT: &str = "\x1b[32m\u{25cf}\x1b[0m";
const YELLOW_DOT: &str = "\x1b[33m\u{25cf}\x1b[0m";
const RED_DOT: &str = "\x1b[31m\u{25cf}\x1b[0m";
const GREY_DOT: &str = "\x1b[90m\u{25cf}\x1b[0m";

/// A length of time in its largest whole unit.
pub(in crate::tools) fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// One change as a line for machines: the record's JSON as the API gives it.
pub fn line(record: &Record) -> String {
    serde_json::to_string(record).expect("strings and numbers are JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(
        user: &str,
        status: &str,
        since: impl Into<Option<u64>>,
        last_active: impl Into<Option<u64>>,
    ) -> Record {
        Record {
            user: user.into(),
            status: status.into(),
            online: matches!(status, "online" | "away" | "busy"),
            since: since.into(),
            last_active: last_active.into(),
            stale: false,
        }
    }

    #[test]
    fn each_way_of_being_here_has_its_dot() {
        let mut view = View::new(&["bob".into()]);
        for (status, dot) in [
            ("online", GREEN_DOT),
            ("away", YELLOW_DOT),
            ("busy", RED_DOT),
            ("offline", GREY_DOT),
        ] {
            view.apply(&record("bob", status, 10, 10));
            let at_most = if status == "offline" { "" } else { "at most " };
            let table = format!("{dot} bob  {status} for 2 s, last active {at_most}2 s ago\n");
            assert_eq!(view.table(2_010), table);
        }
    }

    #[test]
    fn a_dead_servers_dot_is_never_green() {
        let mut view = View::new(&["bob".into(), "carol".into()]);
        let (bob, carol) = (
            record("bob", "online", 10, 10),
            record("carol", "online", 10, 10),
        );
        assert!(view.apply(&bob) && view.apply(&carol));
        assert_eq!(view.settle(), []);
        assert!(view.table(5_000).contains(GREEN_DOT));
        let stale = |record: &Record| Record {
            stale: true,
            ..record.clone()
        };
        assert_eq!(view.lose(), [stale(&bob), stale(&carol)]);
        assert_eq!(view.lose(), []);
        let table = view.table(5_000);
        assert!(!table.contains(GREEN_DOT), "{table}");
        assert!(table.contains("at most 4 s ago (last known)"), "{table}");
        assert!(line(&stale(&bob)).ends_with(",\"stale\":true}"));
        // Another stream tells of one of them; the other is as it was.
        view.begin_stream();
        assert!(view.apply(&bob));
        assert_eq!(view.table(5_000).matches(GREEN_DOT).count(), 1);
        assert_eq!(view.settle(), [carol]);
        assert_eq!(view.table(5_000).matches(GREEN_DOT).count(), 2);
    }

    #[test]
    fn spans() {
        let given = [
            0,
            59_999,
            60_000,
            3_599_999,
            3_600_000,
            172_799_999,
            172_800_000,
        ];
        assert_eq!(
            given.map(span),
            ["0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 days"]
        );
    }

    #[test]
    fn sentences() {
        let mut view = View::new(&[]);
        view.offline_after_ms = 25_000;
        let now = 1_000_000_000;
        let words =
            |status, since, last_active| view.words(&record("b", status, since, last_active), now);
        assert_eq!(
            words("online", Some(now - 180_000), Some(now - 170_000)),
            "online for 3 min, last active at most 25 s ago"
        );
        assert_eq!(
            words("online", Some(now - 4_000), Some(now - 4_000)),
            "online for 4 s, last active at most 4 s ago"
        );
        assert_eq!(
            words("offline", Some(now - 7_175_000), Some(now - 7_200_000)),
            "offline for 1 h, last active 2 h ago"
        );
        assert_eq!(
            words("offline", Some(now - 60_000), None),
            "offline for 1 min"
        );
        assert_eq!(words("offline", None, None), "never seen");
        assert_eq!(words("unknown", None, None), "not known yet");
        // The server's clock may be ahead of what is estimated.
        assert_eq!(
            words("online", Some(now + 5), Some(now + 5)),
            "online for 0 s, last active at most 0 s ago"
        );
    }

    #[test]
    fn newer_states_win() {
        let mut view = View::new(&["bob".into(), "bob".into(), "carol".into()]);
        assert_eq!(view.lines(), 2);
        assert!(view.apply(&record("bob", "online", 10, 10)));
        assert!(!view.apply(&record("bob", "online", 10, 10)));
        view.begin_stream();
        assert!(!view.apply(&record("bob", "offline", 9, 9)));
        assert!(!view.apply(&record("eve", "online", 10, 10)));
        assert!(view.apply(&record("bob", "offline", 11, 10)));
        assert_eq!(
            view.table(5_000),
            format!(
                "{GREY_DOT} bob    offline for 4 s, last active 4 s ago\n{GREY_DOT} carol  no \
                 answer yet\n"
            )
        );
    }

    fn shown(view: &View) -> Record {
        view.rows[0].shown.clone().expect("bob has been told of")
    }

    #[test]
    fn what_the_server_has_lost_is_taken_back_by_an_id() {
        let mut view = View::new(&["bob".into()]);
        let (online, never) = (
            record("bob", "online", 20, 20),
            record("bob", "offline", None, None),
        );
        assert!(view.apply(&online));
        assert_eq!(view.told_up_to(30), []);
        view.begin_stream();
        assert!(!view.apply(&never));
        assert_eq!(shown(&view), online);
        // Its clock went back, or it has heard less than who told the other.
        assert_eq!(view.told_up_to(19), []);
        assert_eq!(view.told_up_to(20), std::slice::from_ref(&never));
        assert_eq!(shown(&view), never);
        assert_eq!(view.told_up_to(21), []);
        // Within a stream the last word counts, whatever its time.
        assert!(view.apply(&record("bob", "online", 25, 25)));
        assert!(view.apply(&record("bob", "offline", 24, 24)));
    }

    #[test]
    fn only_an_ids_own_stream_is_taken_at_its_word() {
        let mut view = View::new(&["bob".into()]);
        let (online, older) = (
            record("bob", "online", 20, 20),
            record("bob", "offline", 10, 10),
        );
        assert!(view.apply(&online));
        view.begin_stream();
        assert!(!view.apply(&older));
        view.begin_stream();
        // What the stream before said is not this one's word.
        assert_eq!(view.told_up_to(40), []);
        // The same id again came before this was said.
        assert!(!view.apply(&older));
        assert_eq!(view.told_up_to(40), []);
        assert!(!view.apply(&record("bob", "unknown", None, None)));
        assert_eq!(view.told_up_to(41), []);
        assert_eq!(shown(&view), online);
    }

    #[test]
    fn tall_tables_are_cut() {
        let users: Vec<String> = (0..25).map(|n| format!("u{n}")).collect();
        let mut view = View::new(&users);
        view.apply(&record("u24", "online", 1, 1));
        assert_eq!(view.table(1).lines().count(), view.lines());
        assert!(view.table(1).ends_with("  and 5 more, 1 of them online\n"));
    }

    #[test]
    fn lines_are_records() {
        let printed = line(&record("b\"", "offline", 3, None));
        assert_eq!(
            serde_json::from_str::<Record>(&printed).unwrap(),
            record("b\"", "offline", 3, None)
        );
    }
}
