//! Request bodies: JSON objects of lists of users and of strings.
//!
//! Owns which members each body has and how a refusal reads. How an object is read is `object`'s.

use std::fmt;

use super::item::Entry;
use super::object::{Kind, Member, Value, parse};
use super::said::{BAD_STATUS, Said};
use crate::wire::beat::{DEVICE_BYTES_MAX, device_name};
use crate::wire::{UserBuf, UserFault};

/// Deepest nesting of a JSON body.
pub const BODY_DEPTH_MAX: usize = 8;

/// Why a JSON body was refused (400 unless said otherwise).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BodyFault {
    /// Not JSON, or not of the form; what and where (line, column).
    Malformed(String),
    /// Nested deeper than [`BODY_DEPTH_MAX`].
    TooDeep,
    /// `member`, which holds one user, holds none.
    User {
        /// Member name.
        member: &'static str,
        /// What is wrong with it.
        fault: UserFault,
    },
    /// `member` has more than `max` entries (413).
    TooMany {
        /// Member name.
        member: &'static str,
        /// Allowed.
        max: usize,
        /// Given.
        given: usize,
    },
}

/// Longest part of a parser's complaint that is repeated: it quotes the body, escaped.
const COMPLAINT_CHARS_MAX: usize = 200;

impl BodyFault {
    /// What the parser says, cut where it quotes at length, and where.
    pub(super) fn malformed(error: &serde_json::Error) -> BodyFault {
        let complaint = error.to_string();
        BodyFault::Malformed(match complaint.char_indices().nth(COMPLAINT_CHARS_MAX) {
            None => complaint,
            Some((end, _)) => {
                let (line, column) = (error.line(), error.column());
                format!("{}.. at line {line} column {column}", &complaint[..end])
            }
        })
    }
}

impl fmt::Display for BodyFault {
    /// What was wrong and what is allowed, for an error's `detail`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyFault::Malformed(what) => write!(f, "the body is not of the form expected: {what}"),
            BodyFault::TooDeep => {
                write!(f, "the body is nested deeper than {BODY_DEPTH_MAX} levels")
            }
            BodyFault::User { member, fault } => write!(f, "{member}: {}", fault.explain()),
            BodyFault::TooMany { member, max, given } => {
                write!(
                    f,
                    "{member} has {given} entries; at most {max} are taken at once"
                )
            }
        }
    }
}

/// Reads `{"users":[..]}`; order and repeats kept.
///
/// Errors: it is no such object, or names too many.
pub fn parse_users(body: &[u8], users_max: usize) -> Result<Vec<Entry>, BodyFault> {
    const USERS: Member = Member {
        name: "users",
        kind: Kind::Users,
    };
    let [users] = parse(body, [USERS], &["users"], users_max)?;
    users
        .map(Value::into_users)
        .ok_or_else(|| BodyFault::Malformed("missing field `users`".into()))
}

/// Reads `{"device":"phone"}`: a name as a user's id is one, of at most 64 bytes.
///
/// Errors: it is no such object, or the name is none.
pub fn parse_device(body: &[u8]) -> Result<UserBuf, BodyFault> {
    const DEVICE: Member = Member {
        name: "device",
        kind: Kind::User,
    };
    let [device] = parse(body, [DEVICE], &["device"], 1)?;
    let device = device
        .and_then(Value::into_user)
        .ok_or_else(|| BodyFault::Malformed("missing field `device`".into()))?;
    if device_name(device.as_str().as_bytes()).is_err() {
        let long = format!("device is longer than {DEVICE_BYTES_MAX} bytes");
        return Err(BodyFault::Malformed(long));
    }
    Ok(device)
}

/// Reads `{"key":"gds_.."}`, the body of `POST /v1/session`. None: it is no such object. Why it is
/// none is not said, for that would quote a secret.
pub fn parse_session(body: &[u8]) -> Option<String> {
    const KEY: Member = Member {
        name: "key",
        kind: Kind::Text,
    };
    let [key] = parse(body, [KEY], &["key"], 0).ok()?;
    key.and_then(Value::into_text)
}

/// What `POST /v1/revoke` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RevokeAsk {
    /// All tokens of a user that were made before `before`, in seconds since 1970; without it all
    /// that there are.
    User {
        /// Whose.
        user: UserBuf,
        /// When they were made at the earliest that are not meant.
        before: Option<u64>,
    },
    /// The keys of this device of a user's.
    Device {
        /// Whose.
        user: UserBuf,
        /// Its name.
        device: UserBuf,
    },
    /// The token with this `jti`.
    Token(String),
}

/// Reads the JSON body of `POST /v1/revoke`: `{"user":"alice","before":1764009600}`, where `before`
/// is optional, `{"user":"alice","device":"phone"}`, or `{"jti":".."}`.
///
/// Errors: it is no such object, or names more than one of these, or none.
pub fn parse_revoke(body: &[u8]) -> Result<RevokeAsk, BodyFault> {
    const MEMBERS: [Member; 4] = [
        Member {
            name: "user",
            kind: Kind::User,
        },
        Member {
            name: "before",
            kind: Kind::Number,
        },
        Member {
            name: "device",
            kind: Kind::User,
        },
        Member {
            name: "jti",
            kind: Kind::Text,
        },
    ];
    let names = &["user", "before", "device", "jti"];
    let [user, before, device, jti] = parse(body, MEMBERS, names, 0)?;
    let before = before.and_then(Value::into_number);
    let [user, device] = [user, device].map(|it| it.and_then(Value::into_user));
    let jti = jti.and_then(Value::into_text);
    match (user, before, device, jti) {
        (Some(user), before, None, None) => Ok(RevokeAsk::User { user, before }),
        (Some(user), None, Some(device), None) => Ok(RevokeAsk::Device { user, device }),
        (None, None, None, Some(jti)) => Ok(RevokeAsk::Token(jti)),
        _ => Err(BodyFault::Malformed(
            "it takes `user`, alone or with one of `before` and `device`, or `jti` alone".into(),
        )),
    }
}

const STATUS: Member = Member {
    name: "status",
    kind: Kind::Text,
};
const INVISIBLE: Member = Member {
    name: "invisible",
    kind: Kind::Flag,
};

const IDLE_MS: Member = Member {
    name: "idle_ms",
    kind: Kind::Number,
};

/// Reads `{"idle_ms":300000}`, the body of `POST /v1/stream/{stream}/beat`, which need not be
/// there: for how long nobody has been at the device.
///
/// Errors: it is no such object.
pub fn parse_idle(body: &[u8]) -> Result<Option<u64>, BodyFault> {
    if body.is_empty() {
        return Ok(None);
    }
    let [idle_ms] = parse(body, [IDLE_MS], &["idle_ms"], 0)?;
    Ok(idle_ms.and_then(Value::into_number))
}

/// What is said of a status by these members of a body.
fn said(status: Option<Value>, invisible: Option<Value>) -> Result<Said, BodyFault> {
    let bad = || BodyFault::Malformed(BAD_STATUS.into());
    let status = match status.and_then(Value::into_text) {
        None => None,
        Some(word) => Some(Said::status_of(word.as_bytes()).ok_or_else(bad)?),
    };
    Ok(Said {
        status,
        invisible: invisible.and_then(Value::into_flag),
    })
}

/// Whom a beat names, and what their statuses become with it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BeatAsk {
    /// Who beats.
    pub users: Vec<Entry>,
    /// What all of them say.
    pub said: Said,
    /// For how long nobody has been at the device that beats for them.
    pub idle_ms: Option<u64>,
}

/// Reads `{"users":[..],"status":"busy","invisible":true,"idle_ms":300000}`, the body of
/// `POST /v1/beat`; all but the first are optional.
///
/// Errors: it is no such object, or names too many.
pub fn parse_beat(body: &[u8], users_max: usize) -> Result<BeatAsk, BodyFault> {
    const USERS: Member = Member {
        name: "users",
        kind: Kind::Users,
    };
    const MEMBERS: [Member; 4] = [USERS, STATUS, INVISIBLE, IDLE_MS];
    let names = &["users", "status", "invisible", "idle_ms"];
    let [users, status, invisible, idle_ms] = parse(body, MEMBERS, names, users_max)?;
    let missing = || BodyFault::Malformed("missing field `users`".into());
    Ok(BeatAsk {
        users: users.map(Value::into_users).ok_or_else(missing)?,
        said: said(status, invisible)?,
        idle_ms: idle_ms.and_then(Value::into_number),
    })
}

/// What `POST /v1/status` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StatusAsk {
    /// Whose it is; none: the caller's own.
    pub user: Option<UserBuf>,
    /// A node says it for several users at once.
    pub users: Option<Vec<Entry>>,
    /// What it becomes.
    pub said: Said,
    /// For how long nobody has been at the device that says it.
    pub idle_ms: Option<u64>,
}

/// Reads `{"user":"alice","status":"busy","invisible":true,"idle_ms":0}`, the body of
/// `POST /v1/status`; one of the latter three must be there. In the place of `user` there may be
/// `users`, for whom nothing else need be there.
///
/// Errors: it is no such object, says nothing, or names too many.
pub fn parse_status(body: &[u8], users_max: usize) -> Result<StatusAsk, BodyFault> {
    const USER: Member = Member {
        name: "user",
        kind: Kind::User,
    };
    const USERS: Member = Member {
        name: "users",
        kind: Kind::Users,
    };
    const MEMBERS: [Member; 5] = [USER, USERS, STATUS, INVISIBLE, IDLE_MS];
    let names = &["user", "users", "status", "invisible", "idle_ms"];
    let [user, users, status, invisible, idle_ms] = parse(body, MEMBERS, names, users_max)?;
    let idle_ms = idle_ms.and_then(Value::into_number);
    let said = said(status, invisible)?;
    if said.is_empty() && idle_ms.is_none() && users.is_none() {
        let missing = "missing field `status`, `invisible` or `idle_ms`";
        return Err(BodyFault::Malformed(missing.into()));
    }
    Ok(StatusAsk {
        user: user.and_then(Value::into_user),
        users: users.map(Value::into_users),
        said,
        idle_ms,
    })
}

/// What `POST /v1/leave` says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LeaveAsk {
    /// Who says goodbye.
    pub users: Vec<Entry>,
    /// This stream ends, and its holder says goodbye.
    pub stream: Option<String>,
    /// All streams of the users end, everywhere.
    pub everywhere: bool,
    /// The goodbye counts so much later, in ms.
    pub after_ms: u64,
    /// A node says when it was told so, in Unix ms.
    pub sent_at: Option<u64>,
}

/// Reads the JSON body of `POST /v1/leave`:
/// `{"users":["bob"],"stream":"..","everywhere":false,"after_ms":3000,"sent_at":1764009600123}`,
/// all optional but that somebody must be named, by `users` or by `stream`.
///
/// Errors: it is no such object, or names nobody, nobody legal or too many.
pub fn parse_leave(body: &[u8], users_max: usize) -> Result<LeaveAsk, BodyFault> {
    const MEMBERS: [Member; 5] = [
        Member {
            name: "users",
            kind: Kind::Users,
        },
        Member {
            name: "stream",
            kind: Kind::Text,
        },
        Member {
            name: "everywhere",
            kind: Kind::Flag,
        },
        Member {
            name: "after_ms",
            kind: Kind::Number,
        },
        Member {
            name: "sent_at",
            kind: Kind::Number,
        },
    ];
    let names = &["users", "stream", "everywhere", "after_ms", "sent_at"];
    let [users, stream, everywhere, after_ms, sent_at] = parse(body, MEMBERS, names, users_max)?;
    let stream = stream.and_then(Value::into_text);
    if users.is_none() && stream.is_none() {
        return Err(BodyFault::Malformed(
            "missing field `users` or `stream`".into(),
        ));
    }
    Ok(LeaveAsk {
        users: users.map(Value::into_users).unwrap_or_default(),
        stream,
        everywhere: everywhere.and_then(Value::into_flag).unwrap_or_default(),
        after_ms: after_ms.and_then(Value::into_number).unwrap_or_default(),
        sent_at: sent_at.and_then(Value::into_number),
    })
}

/// `{"add":[..],"remove":[..]}`, both optional.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WatchEdit {
    /// Users to watch from now on.
    pub add: Vec<Entry>,
    /// To watch no longer.
    pub remove: Vec<Entry>,
}

/// Reads a watch edit; each list at most `watch_max` long.
///
/// Errors: it is no such object, or a list names too many.
pub fn parse_watch_edit(body: &[u8], watch_max: usize) -> Result<WatchEdit, BodyFault> {
    const ADD: Member = Member {
        name: "add",
        kind: Kind::Users,
    };
    const REMOVE: Member = Member {
        name: "remove",
        kind: Kind::Users,
    };
    let [add, remove] = parse(body, [ADD, REMOVE], &["add", "remove"], watch_max)?;
    let users = |value: Option<Value>| value.map(Value::into_users).unwrap_or_default();
    Ok(WatchEdit {
        add: users(add),
        remove: users(remove),
    })
}

/// Who beats for a stream's holder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Vouch {
    /// The platform does while the stream is open: `vouch=stream`.
    #[default]
    Stream,
    /// The holder does, who answers pings: `vouch=self`.
    Holder,
}

impl Vouch {
    /// Reads the value of a parameter or member.
    pub fn parse(text: &[u8]) -> Option<Vouch> {
        match text {
            b"stream" => Some(Vouch::Stream),
            b"self" => Some(Vouch::Holder),
            _ => None,
        }
    }
}

/// What is said of a `vouch` that is neither.
pub const BAD_VOUCH: &str = "vouch is \"stream\" (the server beats for the stream's holder) or \
                             \"self\" (its holder does, at each ping)";

/// What `GET` or `POST /v1/stream` asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamAsk {
    /// Whom the stream makes a publisher.
    pub user: Option<UserBuf>,
    /// Whom it watches.
    pub watch: Vec<Entry>,
    /// The event id of the stream before this one; none: a stream from the start.
    pub last_event_id: Option<String>,
    /// Who beats for the user.
    pub vouch: Vouch,
    /// What the user's status becomes with it.
    pub said: Said,
}

/// Reads the JSON body of `POST /v1/stream`:
/// `{"user":"alice","watch":["bob"],"last_event_id":"1764009600123","vouch":"self"}` and
/// `"status":"busy","invisible":true`, all optional; null is the same as leaving a single one out.
///
/// Errors: it is no such object, `user` is none, or `watch` names too many.
pub fn parse_stream_ask(body: &[u8], watch_max: usize) -> Result<StreamAsk, BodyFault> {
    const MEMBERS: [Member; 6] = [
        Member {
            name: "user",
            kind: Kind::User,
        },
        Member {
            name: "watch",
            kind: Kind::Users,
        },
        Member {
            name: "last_event_id",
            kind: Kind::Text,
        },
        Member {
            name: "vouch",
            kind: Kind::Text,
        },
        STATUS,
        INVISIBLE,
    ];
    let names = &[
        "user",
        "watch",
        "last_event_id",
        "vouch",
        "status",
        "invisible",
    ];
    let [user, watch, last_event_id, vouch, status, invisible] =
        parse(body, MEMBERS, names, watch_max)?;
    let vouch = match vouch.and_then(Value::into_text) {
        None => Vouch::Stream,
        Some(text) => {
            let malformed = || BodyFault::Malformed(BAD_VOUCH.into());
            Vouch::parse(text.as_bytes()).ok_or_else(malformed)?
        }
    };
    Ok(StreamAsk {
        user: user.and_then(Value::into_user),
        watch: watch.map(Value::into_users).unwrap_or_default(),
        last_event_id: last_event_id.and_then(Value::into_text),
        vouch,
        said: said(status, invisible)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn malformed(what: &str) -> BodyFault {
        BodyFault::Malformed(what.into())
    }

    #[test]
    fn a_complaint_does_not_repeat_the_body() {
        let body = format!("{{\"users\":\"{}\"}}", "\u{7f}".repeat(1_000));
        let expected = format!("invalid type: string \"{}", "\\u{7f}".repeat(100));
        let expected = format!(
            "{}.. at line 1 column 1011",
            &expected[..COMPLAINT_CHARS_MAX]
        );
        assert_eq!(users(&body), Err(malformed(&expected)));
    }

    fn owned(users: &[&str]) -> Vec<UserBuf> {
        let owned = |user: &&str| UserBuf::from_text(*user).unwrap();
        users.iter().map(owned).collect()
    }

    fn entries(users: &[&str]) -> Vec<Entry> {
        owned(users).into_iter().map(Ok).collect()
    }

    fn users(body: &str) -> Result<Vec<Entry>, BodyFault> {
        parse_users(body.as_bytes(), 3)
    }

    #[test]
    fn lists_of_users() {
        assert_eq!(
            users(r#"{"users":["b","a","b"]}"#),
            Ok(entries(&["b", "a", "b"]))
        );
        assert_eq!(users(" { \"users\" : [ ] }\n"), Ok(vec![]));
        assert_eq!(
            users(r#"{"us\u0065rs":["\u00e9\"\ud83d\udfe2/"]}"#),
            Ok(entries(&["é\"\u{1F7E2}/"]))
        );
    }

    #[test]
    fn goodbyes_in_all_their_forms() {
        let leave = |body: &str| parse_leave(body.as_bytes(), 3);
        let bob = LeaveAsk {
            users: entries(&["bob"]),
            ..LeaveAsk::default()
        };
        assert_eq!(leave(r#"{"users":["bob"]}"#), Ok(bob.clone()));
        let put_off = LeaveAsk {
            stream: Some("0.1".into()),
            after_ms: 3_000,
            ..bob.clone()
        };
        let text = r#"{"after_ms":3000,"stream":"0.1","users":["bob"],"everywhere":null}"#;
        assert_eq!(leave(text), Ok(put_off));
        let everywhere = LeaveAsk {
            everywhere: true,
            ..bob
        };
        let text = r#"{"users":["bob"],"everywhere":true,"after_ms":null}"#;
        assert_eq!(leave(text), Ok(everywhere));
        for nobody in ["{}", r#"{"stream":null}"#] {
            assert_eq!(
                leave(nobody),
                Err(malformed("missing field `users` or `stream`"))
            );
        }
        for bad in [
            r#"{"users":["bob"],"after_ms":-1}"#,
            r#"{"users":["bob"],"after_ms":1.5}"#,
            r#"{"users":["bob"],"everywhere":1}"#,
            r#"{"stream":7}"#,
        ] {
            assert!(matches!(leave(bad), Err(BodyFault::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn refusals_name_what_and_where() {
        assert_eq!(
            users(""),
            Err(malformed("EOF while parsing a value at line 1 column 0"))
        );
        assert_eq!(users("{}"), Err(malformed("missing field `users`")));
        assert_eq!(
            users(r#"{"users":[],"user":"x"}"#),
            Err(malformed(
                "unknown field `user`, expected `users` at line 1 column 18"
            ))
        );
        assert_eq!(
            users("{\"users\":[],\n\"users\":[]}"),
            Err(malformed("duplicate field `users` at line 2 column 7"))
        );
        assert_eq!(
            users(r#"["a"]"#),
            Err(malformed(
                "invalid type: sequence, expected an object of users at line 1 column 0"
            ))
        );
        assert_eq!(
            users(r#"{"users":"a"}"#),
            Err(malformed(
                "invalid type: string \"a\", expected a list of user ids at line 1 column 12"
            ))
        );
        assert_eq!(
            users(r#"{"users":null}"#),
            Err(malformed(
                "invalid type: null, expected a list of user ids at line 1 column 13"
            ))
        );
        assert_eq!(
            users(r#"{"users":["a",]}"#),
            Err(malformed("trailing comma at line 1 column 15"))
        );
        assert_eq!(
            users(r#"{"users":[]} x"#),
            Err(malformed("trailing characters at line 1 column 14"))
        );
        assert_eq!(
            parse_users(b"{\"users\":[\"\xff\"]}", 3),
            Err(malformed("invalid unicode code point at line 1 column 12"))
        );
    }

    #[test]
    fn a_bad_entry_refuses_itself_alone() {
        let long = format!(r#"{{"users":["{}"]}}"#, "x".repeat(129));
        for (body, at, fault) in [
            (r#"{"users":[""]}"#, 0, UserFault::Empty),
            (r#"{"users":["a","\u0000"]}"#, 1, UserFault::Control),
            (r#"{"users":["a","b","\u0085"]}"#, 2, UserFault::Control),
            (r#"{"users":["\ud800","b"]}"#, 0, UserFault::NotUtf8),
            (r#"{"users":["a",1,"b"]}"#, 1, UserFault::NotText),
            (r#"{"users":[{"a":[]},"b"]}"#, 0, UserFault::NotText),
            (&long, 0, UserFault::TooLong),
        ] {
            let read = users(body).unwrap();
            for (index, entry) in read.iter().enumerate() {
                assert_eq!(
                    entry.as_ref().err(),
                    (index == at).then_some(&fault),
                    "{body}"
                );
            }
        }
    }

    #[test]
    fn lists_are_bounded() {
        let too_many = |given| {
            Err(BodyFault::TooMany {
                member: "users",
                max: 3,
                given,
            })
        };
        assert_eq!(users(r#"{"users":["a","b","c","d"]}"#), too_many(4));
        assert_eq!(
            users(r#"{"users":["a","b","c",1,[],"x"]}"#),
            too_many(4),
            "what is beyond is not read"
        );
        assert_eq!(
            users(r#"{"users":["a","b","c",}"#),
            Err(malformed("expected value at line 1 column 23"))
        );
        assert_eq!(parse_users(br#"{"users":[]}"#, 0), Ok(vec![]));
    }

    #[test]
    fn depth_is_bounded() {
        assert_eq!(users(&"[".repeat(9)), Err(BodyFault::TooDeep));
        assert_eq!(users(&"{\"a\":".repeat(100_000)), Err(BodyFault::TooDeep));
        assert_eq!(
            users(&"[".repeat(8)),
            Err(malformed(
                "invalid type: sequence, expected an object of users at line 1 column 0"
            ))
        );
        assert_eq!(
            users(r#"{"users":["[[[[[[[[[[","\"[[[[[[[[[["]}"#).map(|users| users.len()),
            Ok(2),
            "inside strings"
        );
    }

    #[test]
    fn watch_edits() {
        let edit = |body: &str| parse_watch_edit(body.as_bytes(), 1);
        let to = |add: &[&str], remove: &[&str]| {
            Ok(WatchEdit {
                add: entries(add),
                remove: entries(remove),
            })
        };
        assert_eq!(edit("{}"), to(&[], &[]));
        assert_eq!(edit(r#"{"remove":["b"],"add":["a"]}"#), to(&["a"], &["b"]));
        assert_eq!(edit(r#"{"add":["a"]}"#), to(&["a"], &[]));
        assert_eq!(
            edit(r#"{"remove":["a","b"]}"#),
            Err(BodyFault::TooMany {
                member: "remove",
                max: 1,
                given: 2
            })
        );
        assert_eq!(
            edit(r#"{"Add":[]}"#),
            Err(malformed(
                "unknown field `Add`, expected `add` or `remove` at line 1 column 6"
            ))
        );
    }

    #[test]
    fn stream_asks() {
        let ask = |body: &str| parse_stream_ask(body.as_bytes(), 2);
        assert_eq!(ask("{}"), Ok(StreamAsk::default()));
        assert_eq!(
            ask(r#"{"user":null,"last_event_id":null}"#),
            Ok(StreamAsk::default())
        );
        assert_eq!(
            ask(r#"{"user":"alice","watch":["bob"],"last_event_id":"1764009600123"}"#),
            Ok(StreamAsk {
                user: owned(&["alice"]).pop(),
                watch: entries(&["bob"]),
                last_event_id: Some("1764009600123".into()),
                vouch: Vouch::Stream,
                said: Said::default(),
            })
        );
        let vouch = |text: &str| ask(&format!("{{\"vouch\":{text}}}")).map(|ask| ask.vouch);
        assert_eq!(vouch("\"self\""), Ok(Vouch::Holder));
        assert_eq!(vouch("\"stream\""), Ok(Vouch::Stream));
        assert_eq!(vouch("null"), Ok(Vouch::Stream));
        assert_eq!(vouch("\"me\""), Err(malformed(BAD_VOUCH)));
        assert_eq!(
            ask(r#"{"user":""}"#),
            Err(BodyFault::User {
                member: "user",
                fault: UserFault::Empty
            })
        );
        assert_eq!(
            ask(r#"{"last_event_id":1}"#),
            Err(malformed(
                "invalid type: integer `1`, expected a string at line 1 column 18"
            ))
        );
        assert_eq!(
            ask(r#"{"user":"a","user":null}"#),
            Err(malformed("duplicate field `user` at line 1 column 18"))
        );
    }

    #[test]
    fn details() {
        let detail = |body: &str| users(body).unwrap_err().to_string();
        let fault = parse_stream_ask(br#"{"user":""}"#, 1).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "user: the user id is empty; it takes 1 to 128 bytes of UTF-8"
        );
        assert_eq!(
            detail(r#"{"users":["a","a","a","a"]}"#),
            "users has 4 entries; at most 3 are taken at once"
        );
        assert_eq!(
            detail("[[[[[[[[["),
            "the body is nested deeper than 8 levels"
        );
        assert_eq!(
            detail("{}"),
            "the body is not of the form expected: missing field `users`"
        );
    }
}
