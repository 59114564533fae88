//! Which items of a list were refused, and why.
//!
//! Owns the form in which every call says so: one bad item spoils nothing else, and is named by its
//! place and a word. Never decides what is refused. A call that refuses nothing allocates nothing.

use crate::metrics::{Counter, Counters};
use crate::presence::InternFault;
use crate::wire::json::write_u64;
use crate::wire::record::{Entry, ItemFault};
use crate::wire::response::Answer;
use crate::wire::{UserBuf, UserFault};

/// Most refused items that an answer names; the others are only counted.
const NAMED_MAX: usize = 100;

/// Why an item was refused. Each has a word that answers say and a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) enum Reason {
    /// For what it is.
    Item(ItemFault),
    /// There is no room for a new user.
    Intern(InternFault),
    /// A published state's `since` is yet to come.
    SinceAhead,
}

impl Reason {
    /// What answers say, and the label of its counter.
    fn word(self) -> (&'static str, Counter) {
        use Counter::{
            ItemBadEscape, ItemBadTime, ItemControl, ItemEmpty, ItemNoSince, ItemNoSpace,
            ItemNotRecord, ItemNotText, ItemNotUtf8, ItemSinceAhead, ItemTooFast, ItemTooLong,
            ItemUsersMax,
        };
        match self {
            Reason::Item(ItemFault::User(UserFault::Empty)) => ("empty", ItemEmpty),
            Reason::Item(ItemFault::User(UserFault::TooLong)) => ("too_long", ItemTooLong),
            Reason::Item(ItemFault::User(UserFault::NotUtf8)) => ("not_utf8", ItemNotUtf8),
            Reason::Item(ItemFault::User(UserFault::Control)) => ("control", ItemControl),
            Reason::Item(ItemFault::User(UserFault::NotText)) => ("not_a_string", ItemNotText),
            Reason::Item(ItemFault::User(UserFault::BadEscape)) => ("bad_escape", ItemBadEscape),
            Reason::Item(ItemFault::NotRecord) => ("not_a_record", ItemNotRecord),
            Reason::Item(ItemFault::BadTime) => ("bad_time", ItemBadTime),
            Reason::Item(ItemFault::NoSince) => ("no_since", ItemNoSince),
            Reason::Intern(InternFault::Full) => ("users_max", ItemUsersMax),
            Reason::Intern(InternFault::NoSpace) => ("no_space", ItemNoSpace),
            Reason::Intern(InternFault::TooFast) => ("too_fast", ItemTooFast),
            Reason::SinceAhead => ("since_ahead", ItemSinceAhead),
        }
    }
}

impl From<ItemFault> for Reason {
    fn from(fault: ItemFault) -> Reason {
        Reason::Item(fault)
    }
}

impl From<UserFault> for Reason {
    fn from(fault: UserFault) -> Reason {
        Reason::Item(fault.into())
    }
}

impl From<InternFault> for Reason {
    fn from(fault: InternFault) -> Reason {
        Reason::Intern(fault)
    }
}

/// The refused items of one request.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Refused {
    named: Vec<Item>,
    named_max: usize,
    total: u64,
}

impl Default for Refused {
    fn default() -> Refused {
        Refused {
            named: Vec::new(),
            named_max: NAMED_MAX,
            total: 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Item {
    /// The list it stands in, if the request has several.
    list: Option<&'static str>,
    index: usize,
    word: &'static str,
}

impl Refused {
    /// Of which all are named: for a node, or until all are known.
    pub(super) fn naming_all() -> Refused {
        Refused {
            named_max: usize::MAX,
            ..Refused::default()
        }
    }

    /// Notes that a presence node has refused the item at `index`, by this word. It has been
    /// counted there. False: the word is unknown.
    pub(super) fn take_over(&mut self, index: usize, word: &str) -> bool {
        let faults = [
            InternFault::Full,
            InternFault::NoSpace,
            InternFault::TooFast,
        ];
        let mut words = faults.map(|fault| Reason::from(fault).word().0).into_iter();
        let Some(word) = words.find(|known| *known == word) else {
            return false;
        };
        let list = None;
        self.total += 1;
        self.named.push(Item { list, index, word });
        true
    }

    /// All are known: in the order of the list, and no more are named than anybody is told.
    pub(super) fn settle(&mut self) {
        self.named.sort_by_key(|item| item.index);
        self.named.truncate(NAMED_MAX);
    }

    /// Notes that the item at `index` of the request's list was refused.
    pub(in crate::engine) fn add(
        &mut self,
        index: usize,
        reason: impl Into<Reason>,
        counters: &mut Counters,
    ) {
        self.note(None, index, reason.into(), counters);
    }

    /// The users of one list of several; the entries that are none are noted.
    pub(super) fn sift(
        &mut self,
        list: Option<&'static str>,
        entries: Vec<Entry>,
        counters: &mut Counters,
    ) -> Vec<UserBuf> {
        let entries = entries.into_iter().enumerate();
        let users = entries.filter_map(|(index, entry)| match entry {
            Ok(user) => Some(user),
            Err(fault) => {
                self.note(list, index, fault.into(), counters);
                None
            }
        });
        users.collect()
    }

    fn note(
        &mut self,
        list: Option<&'static str>,
        index: usize,
        reason: Reason,
        counters: &mut Counters,
    ) {
        let (word, counter) = reason.word();
        counters.add(counter, 1);
        self.total += 1;
        if self.named.len() < self.named_max {
            self.named.push(Item { list, index, word });
        }
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// 204, or 200 with what was refused.
    pub(in crate::engine) fn answer(&self) -> Answer {
        if self.is_empty() {
            return Answer::no_content();
        }
        let mut body = Vec::new();
        self.write(usize::MAX, &mut body);
        body[0] = b'{';
        body.push(b'}');
        Answer::json(body)
    }

    /// Appends `,"refused":[{"index":3,"reason":"empty"},..],"refused_total":N` to an object that
    /// has a member already; nothing if nothing was refused. So many items are named as have room
    /// in `room` bytes.
    pub(in crate::engine) fn write(&self, room: usize, out: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        /// Of the two members without items: their names, and the longest number.
        const FRAME_BYTES: usize = 50;
        let end = out.len().saturating_add(room.saturating_sub(FRAME_BYTES));
        out.extend_from_slice(b",\"refused\":[");
        for (at, item) in self.named.iter().enumerate() {
            let before = out.len();
            out.extend_from_slice(if at > 0 { b"," } else { b"" });
            item.write(out);
            if out.len() > end {
                out.truncate(before);
                break;
            }
        }
        out.extend_from_slice(b"],\"refused_total\":");
        write_u64(self.total, out);
    }
}

impl Item {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        if let Some(list) = self.list {
            out.extend_from_slice(b"\"list\":\"");
            out.extend_from_slice(list.as_bytes());
            out.extend_from_slice(b"\",");
        }
        out.extend_from_slice(b"\"index\":");
        write_u64(self.index as u64, out);
        out.extend_from_slice(b",\"reason\":\"");
        out.extend_from_slice(self.word.as_bytes());
        out.extend_from_slice(b"\"}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(refused: &Refused, room: usize) -> String {
        let mut out = Vec::new();
        refused.write(room, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_first_hundred_are_named_and_all_are_counted() {
        let mut counters = Counters::new();
        let mut refused = Refused::default();
        assert_eq!(refused.answer(), Answer::no_content());
        assert_eq!(text(&refused, 0), "");
        refused.add(3, UserFault::Empty, &mut counters);
        refused.add(7, InternFault::Full, &mut counters);
        let both = r#""refused":[{"index":3,"reason":"empty"},{"index":7,"reason":"users_max"}],"#;
        assert_eq!(
            refused.answer(),
            Answer::json(format!("{{{both}\"refused_total\":2}}").into_bytes())
        );
        for index in 8..1_000 {
            refused.add(index, ItemFault::NotRecord, &mut counters);
        }
        let body: serde_json::Value =
            serde_json::from_slice(&refused.answer().body).expect("it is JSON");
        assert_eq!(body["refused"].as_array().unwrap().len(), NAMED_MAX);
        assert_eq!(body["refused_total"], 994);
        assert_eq!(counters.counter(Counter::ItemNotRecord), 992);
    }

    #[test]
    fn what_nodes_have_refused_stands_in_its_place() {
        let mut counters = Counters::new();
        let mut refused = Refused::naming_all();
        for index in (1..200).rev() {
            assert!(refused.take_over(index, "too_fast"));
        }
        refused.add(0, UserFault::Empty, &mut counters);
        assert!(!refused.take_over(300, "a word of another version"));
        assert!(text(&refused, usize::MAX).contains("\"index\":199,"));
        refused.settle();
        let text = text(&refused, usize::MAX);
        let begins = concat!(
            r#","refused":[{"index":0,"reason":"empty"},{"index":1,"reason":"too_fast"},"#,
            r#"{"index":2,"#
        );
        let ends = r#"{"index":99,"reason":"too_fast"}],"refused_total":200"#;
        assert!(text.starts_with(begins) && text.ends_with(ends), "{text}");
        assert_eq!(counters.counter(Counter::ItemTooFast), 0);
    }

    #[test]
    fn so_many_are_named_as_have_room() {
        let mut counters = Counters::new();
        let mut refused = Refused::default();
        let bad = || vec![Err(UserFault::Control), Err(UserFault::Control)];
        let users = refused.sift(Some("add"), bad(), &mut counters);
        assert_eq!(users, []);
        let item = |index| format!(r#"{{"list":"add","index":{index},"reason":"control"}}"#);
        let (first, second) = (item(0), item(1));
        let tail = r#"],"refused_total":2"#;
        for room in 0..200 {
            let text = text(&refused, room);
            assert!(
                [
                    format!(",\"refused\":[{tail}"),
                    format!(",\"refused\":[{first}{tail}"),
                    format!(",\"refused\":[{first},{second}{tail}"),
                ]
                .contains(&text),
                "{text}"
            );
            assert!(text.len() <= room.max(50), "{room}");
        }
        assert!(text(&refused, 200).contains(&second));
    }

    /// A word is the label of its counter.
    #[test]
    fn words_are_labels() {
        let users = [
            UserFault::Empty,
            UserFault::TooLong,
            UserFault::NotUtf8,
            UserFault::Control,
            UserFault::NotText,
            UserFault::BadEscape,
        ];
        let items = [ItemFault::NotRecord, ItemFault::BadTime, ItemFault::NoSince];
        let reasons = users
            .map(Reason::from)
            .into_iter()
            .chain(items.map(Reason::from))
            .chain([InternFault::Full, InternFault::NoSpace].map(Reason::from))
            .chain([Reason::SinceAhead]);
        for reason in reasons {
            let (word, counter) = reason.word();
            let row = counter.row();
            assert_eq!(
                (row.family, row.labels),
                ("items_refused", &[("reason", word)][..])
            );
        }
    }
}
