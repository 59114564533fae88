//! What a token grants its holder.
//!
//! Owns the claim that says it. Never asks whether the token is genuine: `token` has.

use serde_json::value::RawValue;

use super::Digest;
use super::json::{Others, members, value};
use super::ticket::TicketId;
use crate::time::Unix;
use crate::wire::record::LastActive;
use crate::wire::{User, UserBuf};

/// Most entries of a token's `watch`.
pub const WATCH_ENTRIES_MAX: usize = 256;

/// What a token says: who its holder is, and what they may do until when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The token's `sub`.
    pub user: UserBuf,
    /// The token's `exp`: from then on it is void.
    pub expires: Unix,
    /// The token's `iat`: when it was made, if it says so.
    pub issued: Option<Unix>,
    /// Which token it is: its `jti`, if it has one.
    pub token: Option<Digest>,
    /// How exactly its holder learns when others were last active.
    pub last_active: LastActive,
    /// Its holder may be online. Without it they are a viewer, for whom no slot is ever made.
    pub publish: bool,
    /// It came in this ticket, and is good for one stream.
    pub ticket: Option<TicketId>,
    watch: Watch,
}

/// What a token says beside what it grants.
pub(super) struct Said {
    pub(super) user: UserBuf,
    pub(super) expires: Unix,
    pub(super) issued: Option<Unix>,
    pub(super) token: Option<Digest>,
}

/// Whom a token without `watch` lets its holder watch, beside themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum WatchDefault {
    /// Nobody.
    #[default]
    Nobody,
    /// Everybody.
    Everybody,
}

/// Ids, and prefixes of ids. Both sorted; no prefix begins with another.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Watch {
    ids: Box<[Box<str>]>,
    prefixes: Box<[Box<str>]>,
}

impl Grant {
    /// Reads the claim `greendot`, an object of `watch`, `last_active` and `publish`, each of which
    /// may be absent. None if it holds anything else: a misspelt member must not mean the default.
    pub(super) fn read(
        said: Said,
        claim: Option<&RawValue>,
        watch_default: WatchDefault,
    ) -> Option<Grant> {
        let names = ["watch", "last_active", "publish"];
        let [watch, last_active, publish] = match claim {
            None => [None; 3],
            Some(claim) => members(claim.get(), names, Others::Refused)?,
        };
        let watch = match (watch, watch_default) {
            (Some(list), _) => Watch::read(&value::<Vec<String>>(list)?)?,
            (None, WatchDefault::Nobody) => Watch::default(),
            (None, WatchDefault::Everybody) => Watch::everybody(),
        };
        let last_active = match last_active {
            None => LastActive::default(),
            Some(word) => LastActive::parse(&value::<String>(word)?)?,
        };
        let publish = match publish {
            None => true,
            Some(flag) => value(flag)?,
        };
        let Said {
            user,
            expires,
            issued,
            token,
        } = said;
        Some(Grant {
            user,
            expires,
            issued,
            token,
            last_active,
            publish,
            ticket: None,
            watch,
        })
    }

    /// Appends it as a ticket carries it: `exp` u64, flags u8 (bits 0 and 1 `last_active`, bit 2
    /// `publish`, bits 3 and 4 the next two are there), `iat` u64, the digest of `jti` in 16 bytes,
    /// `sub`, entries of `watch`. Each of the last is a length of one byte and so many bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        // What a grant gets more is carried too.
        let Grant {
            user,
            expires,
            issued,
            token,
            last_active,
            publish,
            watch: _,
            ticket: _,
        } = self;
        out.extend_from_slice(&expires.ms().to_be_bytes());
        let levels = LastActive::ALL.iter();
        let level = levels.take_while(|(_, level)| level != last_active).count() as u8;
        let flags = [*publish, issued.is_some(), token.is_some()];
        let flags = flags.into_iter().rev();
        out.push(flags.fold(0, |bits, flag| bits << 1 | u8::from(flag)) << 2 | level);
        out.extend(issued.iter().flat_map(|at| at.ms().to_be_bytes()));
        out.extend(token.iter().flat_map(|token| token.bytes()));
        let entries = self.watch_entries();
        for text in [user.as_str()]
            .into_iter()
            .chain(entries.iter().map(|entry| &**entry))
        {
            out.push(u8::try_from(text.len()).expect("an id has at most 128 bytes"));
            out.extend_from_slice(text.as_bytes());
        }
    }

    /// Reads what [`Grant::write`] wrote.
    pub(super) fn carried(bytes: &[u8], ticket: TicketId) -> Option<Grant> {
        let (expires, rest) = bytes.split_first_chunk()?;
        let (flags, mut rest) = rest.split_first()?;
        let mut issued = None;
        if flags & 8 != 0 {
            let (at, behind) = rest.split_first_chunk()?;
            issued = Some(Unix::from_ms(u64::from_be_bytes(*at)));
            rest = behind;
        }
        let mut token = None;
        if flags & 16 != 0 {
            let (digest, behind) = rest.split_first_chunk()?;
            token = Some(Digest::from_bytes(*digest));
            rest = behind;
        }
        let mut texts = Vec::new();
        while let Some((length, behind)) = rest.split_first() {
            let (text, behind) = behind.split_at_checked(usize::from(*length))?;
            texts.push(std::str::from_utf8(text).ok()?.to_owned());
            rest = behind;
        }
        let watch = texts.split_off(texts.len().min(1));
        let (_, last_active) = *LastActive::ALL.get(usize::from(flags & 3))?;
        Some(Grant {
            user: UserBuf::from_text(texts.pop()?).ok()?,
            expires: Unix::from_ms(u64::from_be_bytes(*expires)),
            issued,
            token,
            last_active,
            publish: flags & 4 != 0,
            watch: Watch::read(&watch)?,
            ticket: Some(ticket),
        })
    }

    /// What its `watch` comes to: ids, and prefixes with their star.
    pub fn watch_entries(&self) -> Vec<String> {
        let ids = self.watch.ids.iter().map(|id| id.to_string());
        let prefixes = self.watch.prefixes.iter();
        ids.chain(prefixes.map(|prefix| format!("{prefix}*")))
            .collect()
    }

    /// Whether its holder may learn who and when `user` is: always of themselves.
    pub fn may_watch(&self, user: User<'_>) -> bool {
        self.user.user() == user || self.watch.has(user.as_str())
    }
}

impl Watch {
    fn everybody() -> Watch {
        Watch {
            ids: Box::default(),
            prefixes: Box::new(["".into()]),
        }
    }

    /// Compiles a claim's list. A star anywhere but at an entry's end is refused: whoever wrote it
    /// took the entry for a pattern.
    fn read(entries: &[String]) -> Option<Watch> {
        if entries.len() > WATCH_ENTRIES_MAX {
            return None;
        }
        let (mut ids, mut prefixes) = (Vec::<Box<str>>::new(), Vec::<Box<str>>::new());
        for entry in entries {
            let prefix = entry.strip_suffix('*');
            let text = prefix.unwrap_or(entry);
            // What begins no legal id is a slip; the empty prefix begins every one.
            let is_sound = (entry == "*") || (User::from_text(text).is_ok() && !text.contains('*'));
            if !is_sound {
                return None;
            }
            match prefix {
                Some(prefix) => prefixes.push(prefix.into()),
                None => ids.push(entry.as_str().into()),
            }
        }
        ids.sort_unstable();
        ids.dedup();
        prefixes.sort_unstable();
        // What begins with an earlier one comes right behind it.
        prefixes.dedup_by(|later, kept| later.starts_with(&**kept));
        Some(Watch {
            ids: ids.into(),
            prefixes: prefixes.into(),
        })
    }

    fn has(&self, user: &str) -> bool {
        // A prefix of `user` is not greater than it, and what lies between the two begins with that
        // prefix too: so the greatest that is not greater is the only one to look at.
        let behind = self.prefixes.partition_point(|prefix| **prefix <= *user);
        let nearest = self.prefixes[..behind].last();
        nearest.is_some_and(|prefix| user.starts_with(&**prefix))
            || self.ids.binary_search_by(|id| (**id).cmp(user)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn grant(claim: Option<&str>, watch_default: WatchDefault) -> Option<Grant> {
        let claim: Option<&RawValue> = claim.map(|claim| serde_json::from_str(claim).unwrap());
        let said = Said {
            user: UserBuf::from_text("alice").unwrap(),
            expires: Unix::from_ms(1),
            issued: None,
            token: None,
        };
        Grant::read(said, claim, watch_default)
    }

    fn may(grant: &Grant, user: &str) -> bool {
        grant.may_watch(User::from_text(user).unwrap())
    }

    #[test]
    fn whom_a_claim_lets_watch() {
        let claim = r#"{"watch":["team-*","bob","team-a*","carol","bob"]}"#;
        let grant = grant(Some(claim), WatchDefault::Everybody).unwrap();
        for user in ["alice", "bob", "carol", "team-", "team-a", "team-\u{1f7e2}"] {
            assert!(may(&grant, user), "{user}");
        }
        for user in [
            "team", "tean-a", "bo", "bobb", "alic", "Alice", "*", "zoe", "a",
        ] {
            assert!(!may(&grant, user), "{user}");
        }
    }

    #[test]
    fn what_is_absent_and_what_is_said() {
        let nobody = |claim| grant(claim, WatchDefault::Nobody).unwrap();
        for claim in [None, Some("{}"), Some(r#"{"watch":[]}"#)] {
            let grant = nobody(claim);
            assert_eq!((may(&grant, "alice"), may(&grant, "bob")), (true, false));
            assert_eq!(
                (grant.last_active, grant.publish),
                (LastActive::Exact, true)
            );
        }
        let everybody = |claim| grant(claim, WatchDefault::Everybody).unwrap();
        assert!(may(&everybody(None), "bob"));
        assert!(!may(&everybody(Some(r#"{"watch":[]}"#)), "bob"));
        assert!(may(&nobody(Some(r#"{"watch":["*","bob"]}"#)), "zoe"));
        let viewer = nobody(Some(r#"{"publish":false,"last_active":"none"}"#));
        assert_eq!(
            (viewer.last_active, viewer.publish),
            (LastActive::None, false)
        );
        assert!(nobody(Some(r#"{"publish":true}"#)).publish);
    }

    #[test]
    fn what_could_be_a_slip_is_refused() {
        let many = format!(
            r#"{{"watch":[{}"x"]}}"#,
            r#""x","#.repeat(WATCH_ENTRIES_MAX)
        );
        for claim in [
            "null",
            "[]",
            r#"[["*"]]"#,
            r#""*""#,
            r#"{"watc":["*"]}"#,
            r#"{"watch":"*"}"#,
            r#"{"watch":null}"#,
            r#"{"watch":[1]}"#,
            r#"{"watch":[""]}"#,
            r#"{"watch":["**"]}"#,
            r#"{"watch":["a*b"]}"#,
            r#"{"watch":["*a"]}"#,
            r#"{"watch":["a\u0000*"]}"#,
            r#"{"watch":["a"],"watch":["b"]}"#,
            r#"{"last_active":"Exact"}"#,
            r#"{"last_active":null}"#,
            r#"{"publish":"false"}"#,
            r#"{"publish":0}"#,
            r#"{"publish":null}"#,
            &many,
        ] {
            assert_eq!(grant(Some(claim), WatchDefault::Nobody), None, "{claim}");
        }
        let most = format!(
            r#"{{"watch":[{}"x"]}}"#,
            r#""x","#.repeat(WATCH_ENTRIES_MAX - 1)
        );
        assert!(grant(Some(&most), WatchDefault::Nobody).is_some());
    }

    proptest! {
        #[test]
        fn a_search_finds_what_looking_at_each_entry_finds(
            entries in prop::collection::vec("[ab\u{e9}]{1,4}\\*?", 0..12),
            user in "[ab\u{e9}]{1,5}",
        ) {
            let watch = Watch::read(&entries).unwrap();
            let is_in = entries.iter().any(|entry| match entry.strip_suffix('*') {
                Some(prefix) => user.starts_with(prefix),
                None => *entry == user,
            });
            prop_assert_eq!(watch.has(&user), is_in);
        }
    }
}
