//! Parameters of a query that nobody here knows.
//!
//! Owns how they are named, so that a misspelling is seen. They are passed over: readers, gateways
//! and cache-busters add their own, and an EventSource that is refused for one never comes back.

use crate::wire::json::write_str;

/// Most names that are told.
const NAMES_MAX: usize = 8;
/// Longest name that is told, in bytes; a longer one is cut.
const NAME_BYTES_MAX: usize = 32;

/// The names, each once, in the order of the query.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Ignored {
    names: Vec<String>,
}

impl Ignored {
    /// Notes a name.
    pub(super) fn add(&mut self, name: &[u8]) {
        let cut = &name[..name.len().min(NAME_BYTES_MAX)];
        let name = String::from_utf8_lossy(cut).into_owned();
        if self.names.len() < NAMES_MAX && !self.names.contains(&name) {
            self.names.push(name);
        }
    }

    /// Appends `,"ignored":["wacth",..]` to an object that has a member already; nothing if there
    /// are none. So many are named as have room in `room` bytes.
    pub(super) fn write(&self, room: usize, out: &mut Vec<u8>) {
        if self.names.is_empty() {
            return;
        }
        let begun = out.len();
        let end = begun.saturating_add(room);
        out.extend_from_slice(b",\"ignored\":[");
        let mut named = 0;
        for name in &self.names {
            let before = out.len();
            out.extend_from_slice(if named > 0 { b"," } else { b"" });
            write_str(name, out);
            if out.len() >= end {
                out.truncate(before);
                break;
            }
            named += 1;
        }
        if named == 0 {
            return out.truncate(begun);
        }
        out.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(names: &[&[u8]], room: usize) -> String {
        let mut ignored = Ignored::default();
        names.iter().for_each(|name| ignored.add(name));
        let mut out = Vec::new();
        ignored.write(room, &mut out);
        assert!(out.len() <= room);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_is_named_once() {
        assert_eq!(told(&[], 100), "");
        assert_eq!(
            told(&[b"wacth", b"_", b"wacth"], 100),
            r#","ignored":["wacth","_"]"#
        );
    }

    #[test]
    fn names_are_bounded_in_number_and_in_length() {
        let long = [b'x'; 1_000];
        let cut = "x".repeat(NAME_BYTES_MAX);
        assert_eq!(told(&[&long], 100), format!(r#","ignored":["{cut}"]"#));
        let many: Vec<[u8; 1]> = (b'a'..=b'z').map(|byte| [byte]).collect();
        let many: Vec<&[u8]> = many.iter().map(<[u8; 1]>::as_slice).collect();
        let first = r#","ignored":["a","b","c","d","e","f","g","h"]"#;
        assert_eq!(told(&many, 1_000), first);
        for room in 0..60 {
            told(&many, room);
        }
        assert_eq!(told(&[b"\xff\n"], 100), ",\"ignored\":[\"\u{fffd}\\n\"]");
    }
}
