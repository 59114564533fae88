//! Reads a JSON object of known members.
//!
//! Owns the bounds: nesting is checked before the parser starts, and a list is read no further than
//! one entry beyond its limit. Unknown members are refused, since a misspelt optional one would
//! otherwise do nothing in silence, and so are repeated ones. An entry of a list that is no user
//! refuses itself alone.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::body::{BODY_DEPTH_MAX, BodyFault};
use super::item::Entry;
use super::whole::Whole;
use crate::wire::{User, UserBuf, UserFault};

/// A member that a body may have.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A list of users.
    Users,
    /// One user, or null.
    User,
    /// Any string, or null.
    Text,
    /// A whole number, or null.
    Number,
    /// true or false, or null.
    Flag,
}

/// What a member held.
pub(super) enum Value {
    Users(Vec<Entry>),
    User(Option<UserBuf>),
    Text(Option<String>),
    Number(Option<u64>),
    Flag(Option<bool>),
}

impl Value {
    pub(super) fn into_users(self) -> Vec<Entry> {
        match self {
            Value::Users(users) => users,
            _ => Vec::new(),
        }
    }

    pub(super) fn into_user(self) -> Option<UserBuf> {
        match self {
            Value::User(user) => user,
            _ => None,
        }
    }

    pub(super) fn into_text(self) -> Option<String> {
        match self {
            Value::Text(text) => text,
            _ => None,
        }
    }

    pub(super) fn into_number(self) -> Option<u64> {
        match self {
            Value::Number(number) => number,
            _ => None,
        }
    }

    pub(super) fn into_flag(self) -> Option<bool> {
        match self {
            Value::Flag(flag) => flag,
            _ => None,
        }
    }
}

/// Reads an object of these members, each at most once and no others; `names` are their names
/// again, in serde's form.
pub(super) fn parse<const N: usize>(
    body: &[u8],
    members: [Member; N],
    names: &'static [&'static str],
    list_max: usize,
) -> Result<[Option<Value>; N], BodyFault> {
    if depth(body) > BODY_DEPTH_MAX {
        return Err(BodyFault::TooDeep);
    }
    let fault = Cell::new(None);
    let object = Object {
        members,
        names,
        list_max,
        fault: &fault,
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = object
        .deserialize(&mut json)
        .and_then(|values| json.end().map(|()| values));
    read.map_err(|error| fault.take().unwrap_or_else(|| BodyFault::malformed(&error)))
}

/// Nesting of a JSON text, found before it is parsed. Of a text that is no JSON it is some number,
/// which is enough: the parser refuses the rest.
pub(super) fn depth(body: &[u8]) -> usize {
    let mut open: usize = 0;
    let mut deepest = 0;
    let mut in_string = false;
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match (in_string, byte) {
            (true, b'\\') => {
                bytes.next();
            }
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{') => {
                open += 1;
                deepest = deepest.max(open);
            }
            (false, b']' | b'}') => open = open.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Reads the object. `fault` carries a refusal that serde's error type has no room for.
struct Object<'f, const N: usize> {
    members: [Member; N],
    names: &'static [&'static str],
    list_max: usize,
    fault: &'f Cell<Option<BodyFault>>,
}

impl<const N: usize> Object<'_, N> {
    /// The user of a member that holds one.
    fn check<E: de::Error>(&self, member: &'static str, user: String) -> Result<UserBuf, E> {
        UserBuf::from_text(user).map_err(|fault| {
            self.fault.set(Some(BodyFault::User { member, fault }));
            E::custom(fault.explain())
        })
    }
}

impl<'de, const N: usize> DeserializeSeed<'de> for Object<'_, N> {
    type Value = [Option<Value>; N];

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Object<'_, N> {
    type Value = [Option<Value>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object of {}", self.names.join(", "))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values = [const { None }; N];
        while let Some(index) = map.next_key_seed(Name(self.names))? {
            let Member { name, kind } = self.members[index];
            if values[index].is_some() {
                return Err(de::Error::duplicate_field(name));
            }
            values[index] = Some(match kind {
                Kind::Users => map.next_value_seed(Members {
                    member: name,
                    list_max: self.list_max,
                    fault: self.fault,
                })?,
                Kind::User => {
                    let user: Option<String> = map.next_value()?;
                    Value::User(user.map(|user| self.check(name, user)).transpose()?)
                }
                Kind::Text => Value::Text(map.next_value()?),
                Kind::Number => {
                    let number: Option<Whole> = map.next_value()?;
                    Value::Number(number.map(|Whole(number)| number))
                }
                Kind::Flag => Value::Flag(map.next_value()?),
            });
        }
        Ok(values)
    }
}

/// Reads a member's name into its index.
struct Name(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Name {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<usize, E> {
        self.0
            .iter()
            .position(|known| *known == name)
            .ok_or_else(|| E::unknown_field(name, self.0))
    }
}

/// Reads a list of users.
struct Members<'f> {
    member: &'static str,
    list_max: usize,
    fault: &'f Cell<Option<BodyFault>>,
}

/// What an entry of a list comes to, as it stands in the body: JSON that is whole.
fn entry(json: &str) -> Entry {
    let text = json
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    let text = text.ok_or(UserFault::NotText)?;
    if !text.contains('\\') {
        return Ok(User::from_text(text)?.into());
    }
    // Its escapes are whole, so all that can be wrong is half of a surrogate pair.
    let text: String = serde_json::from_str(json).map_err(|_| UserFault::NotUtf8)?;
    UserBuf::from_text(text)
}

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of user ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut users: Vec<Entry> = Vec::new();
        while users.len() < self.list_max {
            let Some(json) = list.next_element::<&RawValue>()? else {
                return Ok(Value::Users(users));
            };
            users.push(entry(json.get()));
        }
        if list.next_element::<IgnoredAny>()?.is_none() {
            return Ok(Value::Users(users));
        }
        // What lies beyond would cost as much as the whole list may.
        self.fault.set(Some(BodyFault::TooMany {
            member: self.member,
            max: self.list_max,
            given: users.len() + 1,
        }));
        Err(de::Error::custom("too many entries"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_user_or_says_why_not() {
        let user = |text: &str| Ok(UserBuf::from_text(text).unwrap());
        for (json, expected) in [
            (r#""bob""#, user("bob")),
            (r#""b\u006fb\"\\""#, user("bob\"\\")),
            (r#""\ud83d\udfe2""#, user("\u{1F7E2}")),
            (r#""""#, Err(UserFault::Empty)),
            (r#""a\u0000""#, Err(UserFault::Control)),
            (r#""\ud800""#, Err(UserFault::NotUtf8)),
            (r#""\udfe2\ud83d""#, Err(UserFault::NotUtf8)),
            ("1", Err(UserFault::NotText)),
            ("null", Err(UserFault::NotText)),
            (r#"["a"]"#, Err(UserFault::NotText)),
            (r#"{"a":"b"}"#, Err(UserFault::NotText)),
        ] {
            assert_eq!(entry(json), expected, "{json}");
        }
    }

    #[test]
    fn depths() {
        assert_eq!(depth(b""), 0);
        assert_eq!(depth(br#"[{"a":[]},"\\",[[]]]"#), 3);
        assert_eq!(depth(br#"["[[\"[[",[]]"#), 2);
        assert_eq!(depth(b"]]]["), 1);
        assert_eq!(depth(b"\"\\"), 0);
    }
}
