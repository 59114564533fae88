//! What operators are told of a stream beside what it needs itself: since when it is open, and by
//! what name its client goes.
//!
//! Owns 2 bytes a stream, 2 more once a client has said its name, and the names, which are shared:
//! most clients are of a few kinds. Only so many are kept at a time; one more is passed over. Never
//! knows an address.

use std::sync::Arc;

use hashbrown::HashMap;

use crate::time::Mono;

/// Longest name of a client in bytes; a longer one is cut.
pub(in crate::engine) const NAME_BYTES_MAX: usize = 128;

/// As many moments are told from each other.
const MOMENTS: u64 = 1 << u16::BITS;
/// Different names that a shard keeps at a time: with what the table takes some 200 bytes each.
const NAMES_MAX: usize = 1_023;

/// The readers of a shard's streams, by their places.
#[derive(Debug)]
pub(super) struct Readers {
    step_ms: u64,
    /// When each was opened, in steps, modulo a time that is longer than two lives of a stream.
    opened: Vec<u16>,
    /// The place of its name; 0: none is kept. Empty until one is.
    named: Vec<u16>,
    names: Names,
}

/// What is known of a stream's reader.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::engine) struct Reader<'n> {
    pub(in crate::engine) opened: Mono,
    pub(in crate::engine) name: Option<&'n str>,
}

impl Readers {
    /// Of streams that live for so long.
    pub(super) fn new(stream_life_ms: u64) -> Readers {
        Readers {
            step_ms: stream_life_ms.saturating_mul(2).div_ceil(MOMENTS).max(1),
            opened: Vec::new(),
            named: Vec::new(),
            names: Names::default(),
        }
    }

    /// A stream has been opened by a client of this name. False: the name is one too many, and is
    /// not kept.
    pub(super) fn enter(&mut self, index: u32, name: Option<&str>, now: Mono) -> bool {
        self.leave(index);
        let kept = match name {
            Some(name) => self.names.enter(name),
            None => Some(0),
        };
        put(
            &mut self.opened,
            index,
            (now.ms() / self.step_ms % MOMENTS) as u16,
        );
        if let Some(name @ 1..) = kept {
            put(&mut self.named, index, name);
        }
        kept.is_some()
    }

    /// The stream at a place has ended.
    pub(super) fn leave(&mut self, index: u32) {
        if let Some(name) = self.named.get_mut(index as usize).map(std::mem::take) {
            self.names.leave(name);
        }
    }

    /// The reader of the stream at a place.
    pub(super) fn of(&self, index: u32, now: Mono) -> Reader<'_> {
        let at = |table: &[u16]| table.get(index as usize).copied().unwrap_or_default();
        let newest = now.ms() / self.step_ms;
        let ago = (newest % MOMENTS + MOMENTS - u64::from(at(&self.opened))) % MOMENTS;
        Reader {
            opened: Mono::default().plus_ms(newest.saturating_sub(ago) * self.step_ms),
            name: self.names.name(at(&self.named)),
        }
    }

    /// Places from here on are for nobody.
    pub(super) fn cut_off(&mut self, places: u32) {
        for table in [&mut self.opened, &mut self.named] {
            table.truncate(places as usize);
            crate::realtime::give_back(table);
        }
        if self.names.places.is_empty() {
            self.named = Vec::new();
        }
    }
}

fn put(table: &mut Vec<u16>, index: u32, value: u16) {
    let index = index as usize;
    if table.len() <= index {
        table.resize(index + 1, 0);
    }
    table[index] = value;
}

/// Names, each once, for as long as a stream has it. They count from 1.
#[derive(Debug, Default)]
struct Names {
    places: HashMap<Arc<str>, u16, foldhash::fast::RandomState>,
    /// The name, and how many streams have it; none: the place is free.
    kept: Vec<(Arc<str>, u32)>,
    free: Vec<u16>,
}

impl Names {
    fn enter(&mut self, name: &str) -> Option<u16> {
        if let Some(place) = self.places.get(name) {
            self.kept[*place as usize - 1].1 += 1;
            return Some(*place);
        }
        if self.free.is_empty() && self.kept.len() >= NAMES_MAX {
            return None;
        }
        let name: Arc<str> = name.into();
        let entry = (Arc::clone(&name), 1);
        let place = match self.free.pop() {
            Some(place) => {
                self.kept[place as usize - 1] = entry;
                place
            }
            None => {
                self.kept.push(entry);
                self.kept.len() as u16
            }
        };
        self.places.insert(name, place);
        Some(place)
    }

    fn leave(&mut self, place: u16) {
        let Some(at) = place.checked_sub(1) else {
            return;
        };
        let (name, streams) = &mut self.kept[at as usize];
        *streams -= 1;
        if *streams > 0 {
            return;
        }
        self.places.remove(&**name);
        *name = Arc::default();
        self.free.push(place);
        if self.places.is_empty() {
            *self = Names::default();
        }
    }

    fn name(&self, place: u16) -> Option<&str> {
        let (name, _) = self.kept.get(place.checked_sub(1)? as usize)?;
        Some(name)
    }
}

/// A client's name as it is kept: text without control characters, cut to
/// [`NAME_BYTES_MAX`]. None: it says none.
pub(in crate::engine) fn name_of(user_agent: &[u8]) -> Option<Box<str>> {
    let cut = &user_agent[..user_agent.len().min(NAME_BYTES_MAX)];
    let text = String::from_utf8_lossy(cut);
    let mut name = String::with_capacity(text.len());
    for char in text.trim().chars() {
        let shown = match char.is_control() {
            true => char::REPLACEMENT_CHARACTER,
            false => char,
        };
        if name.len() + shown.len_utf8() > NAME_BYTES_MAX {
            break;
        }
        name.push(shown);
    }
    (!name.is_empty()).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn opened(readers: &Readers, index: u32, now_ms: u64) -> u64 {
        readers.of(index, at(now_ms)).opened.ms()
    }

    #[test]
    fn when_a_stream_was_opened_is_known_for_twice_its_longest_life() {
        for life_ms in [1, HOUR_MS, 30 * 24 * HOUR_MS, u64::MAX / 4] {
            let mut readers = Readers::new(life_ms);
            let step_ms = readers.step_ms;
            for began_ms in [0, 5_000_123, 77 * HOUR_MS + 1] {
                readers.enter(3, None, at(began_ms));
                for age_ms in [0, 1, life_ms / 2, life_ms, life_ms + life_ms / 5] {
                    let told_ms = opened(&readers, 3, began_ms + age_ms);
                    assert!(
                        told_ms <= began_ms && began_ms - told_ms < step_ms,
                        "{life_ms} {began_ms} {age_ms}: {told_ms}"
                    );
                }
            }
        }
        // A stream of an hour is known to a tenth of a second.
        assert_eq!(Readers::new(HOUR_MS).step_ms, 110);
    }

    #[test]
    fn names_are_shared_and_go_with_the_last_who_has_them() {
        let mut readers = Readers::new(HOUR_MS);
        let name = |readers: &Readers, index| readers.of(index, at(0)).name.map(str::to_owned);
        assert!(readers.enter(0, Some("curl/8"), at(0)));
        assert!(readers.enter(1, Some("curl/8"), at(0)));
        assert!(readers.enter(2, Some("Firefox"), at(0)));
        assert!(readers.enter(3, None, at(0)));
        assert_eq!(readers.names.kept.len(), 2);
        let told: Vec<_> = (0..5).map(|index| name(&readers, index)).collect();
        let curl = Some("curl/8".to_owned());
        assert_eq!(
            told,
            [
                curl.clone(),
                curl.clone(),
                Some("Firefox".into()),
                None,
                None
            ]
        );
        readers.leave(0);
        readers.leave(0);
        assert_eq!((name(&readers, 0), name(&readers, 1)), (None, curl));
        readers.leave(1);
        assert!(readers.enter(4, Some("Safari"), at(0)));
        assert_eq!(readers.names.kept.len(), 2, "a place is used again");
        for index in 0..9 {
            readers.leave(index);
        }
        assert!(readers.names.places.is_empty() && readers.names.kept.is_empty());
    }

    #[test]
    fn one_name_too_many_is_passed_over() {
        let mut readers = Readers::new(HOUR_MS);
        let name = |n: usize| format!("client {n}");
        for n in 0..NAMES_MAX {
            assert!(readers.enter(n as u32, Some(&name(n)), at(9)));
        }
        let last = NAMES_MAX as u32;
        assert!(!readers.enter(last, Some("one more"), at(10)));
        let reader = readers.of(last, at(20));
        assert_eq!((reader.opened, reader.name), (at(0), None));
        assert!(
            readers.enter(last + 1, Some(&name(7)), at(9)),
            "it is known"
        );
        readers.leave(3);
        assert!(readers.enter(last, Some("one more"), at(10)));
        assert_eq!(readers.of(last, at(20)).name, Some("one more"));
        let kept = |index: u32| readers.of(index, at(20)).name.map(str::to_owned);
        assert_eq!(kept(NAMES_MAX as u32 - 1), Some(name(NAMES_MAX - 1)));
    }

    #[test]
    fn a_crowd_leaves_no_room_behind() {
        let mut readers = Readers::new(HOUR_MS);
        for index in 0..100_000 {
            readers.enter(index, Some("crowd"), at(0));
        }
        (0..100_000).for_each(|index| readers.leave(index));
        readers.cut_off(4);
        assert!(readers.opened.capacity() <= 4_096 && readers.names.kept.capacity() == 0);
    }

    #[test]
    fn a_name_is_short_text() {
        let kept = |bytes: &[u8]| name_of(bytes).map(String::from);
        assert_eq!(kept(b"curl/8.5.0").as_deref(), Some("curl/8.5.0"));
        assert_eq!(kept(b" \t "), None);
        assert_eq!(kept(b""), None);
        assert_eq!(
            kept("a\tb\u{9b}31m".as_bytes()).as_deref(),
            Some("a\u{fffd}b\u{fffd}31m")
        );
        let long = [b'x'; 1_000];
        assert_eq!(kept(&long), Some("x".repeat(NAME_BYTES_MAX)));
        // What is no UTF-8 grows, and is cut all the same; a character is never cut in two.
        let name = kept(&[0xff; 500]).unwrap_or_default();
        assert!(name.len() <= NAME_BYTES_MAX && name.len() > NAME_BYTES_MAX - 3);
        let name = kept("\u{e9}x\u{e9}".repeat(100).as_bytes()).unwrap_or_default();
        assert!(name.len() <= NAME_BYTES_MAX, "{}", name.len());
    }
}
