//! Parts of calls at a real-time node that its callers wait for, for their presence node to answer.
//!
//! Owns them until the node has answered or does not, in order; what asks for the same goes in one
//! request. None is sent twice: a beat that came late could undo a goodbye. How many may wait the
//! shards decide (`passed_users_max`). Without a kernel.

use std::collections::VecDeque;

use super::STATES_PER_REQUEST_MAX;
use super::reply::{JSON, Reply, Request};
use crate::engine::{Came, Part, Passed, USERS_PER_PART_MAX, Wanted};
use crate::presence::Presence;
use crate::time::Mono;
use crate::wire::UserBuf;
use crate::wire::record::{
    BeatsTaken, Said, Told, parse_beats_taken, parse_own_list, parse_told_list,
};

// Each part fits into a request.
const _: () = assert!(USERS_PER_PART_MAX <= STATES_PER_REQUEST_MAX);

#[derive(Debug, Default)]
pub(super) struct Passing {
    waiting: VecDeque<Part>,
    /// Those of the request under way.
    under_way: Vec<Part>,
}

impl Passing {
    pub(super) fn push(&mut self, part: Part) {
        self.waiting.push_back(part);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The next request: the first part that somebody waits for, and those behind it that ask for
    /// the same.
    pub(super) fn poll_request(&mut self, now: Mono) -> Option<Request> {
        while self.waiting.front()?.asker.until <= now {
            self.waiting.pop_front();
        }
        let wanted = self.waiting.front()?.wanted;
        let mut states = 0;
        let fits = |part: &&Part| {
            states += part.users.len();
            part.wanted == wanted && states <= STATES_PER_REQUEST_MAX
        };
        let count = self.waiting.iter().take_while(fits).count();
        self.under_way = self.waiting.drain(..count).collect();
        let users: Vec<&str> = users_of(&self.under_way).map(UserBuf::as_str).collect();
        let states = users.len();
        let mut body = serde_json::json!({ "users": users });
        let path = match wanted {
            Wanted::States => "/v1/presence/query",
            // A status of nobody's saying: it is answered what each user alone is told.
            Wanted::Own => "/v1/status",
            Wanted::Beats { said, idle_ms } => {
                if let Some(status) = said.status {
                    body["status"] = status.name().into();
                }
                if let Some(invisible) = said.invisible {
                    body["invisible"] = invisible.into();
                }
                if let Some(idle_ms) = idle_ms {
                    body["idle_ms"] = idle_ms.into();
                }
                "/v1/beat"
            }
        };
        Some(Request {
            method: "POST",
            path: path.into(),
            media: JSON,
            field: None,
            body: body.to_string().into_bytes(),
            states,
        })
    }

    /// What came of it, for each part; of beats that say something it is noted of users who have
    /// streams here.
    pub(super) fn handle_reply(&mut self, reply: &Reply, presence: &Presence) -> Vec<Passed> {
        let sent = std::mem::take(&mut self.under_way);
        let came = sent
            .first()
            .and_then(|part| came_of(reply, part.wanted, &sent));
        let Some(came) = came else {
            return sent.into_iter().map(unanswered).collect();
        };
        let passed = |(part, came): (Part, Came)| {
            note(&part, &came, presence);
            let came = Some(came);
            Passed {
                came,
                ..unanswered(part)
            }
        };
        sent.into_iter().zip(came).map(passed).collect()
    }

    /// The node does not answer: nobody is to wait.
    pub(super) fn forget(&mut self) -> Vec<Passed> {
        self.waiting.drain(..).map(unanswered).collect()
    }
}

fn users_of(parts: &[Part]) -> impl Iterator<Item = &UserBuf> {
    parts.iter().flat_map(|part| &part.users)
}

/// It can not be told.
pub(super) fn unanswered(part: Part) -> Passed {
    Passed {
        asker: part.asker,
        index: part.index,
        came: None,
    }
}

/// What a reply says of each part. None: it is no answer to them.
fn came_of(reply: &Reply, wanted: Wanted, parts: &[Part]) -> Option<Vec<Came>> {
    let said = reply.as_ref().ok()?;
    let users = users_of(parts).count();
    match (wanted, said.status) {
        (Wanted::States, 200) => {
            let told = parse_told_list(&said.body, users).ok()?;
            let told: Vec<Told> = told.into_iter().collect::<Result<_, _>>().ok()?;
            let asked = users_of(parts);
            let is_whole = told.len() == users && asked.eq(told.iter().map(|told| &told.user));
            let mut told = told.into_iter();
            let states = |part: &Part| Came::States(told.by_ref().take(part.users.len()).collect());
            is_whole.then(|| parts.iter().map(states).collect())
        }
        (Wanted::Own, 200) => {
            let own = parse_own_list(&said.body, users).ok()?;
            let mut own = own.into_iter().peekable();
            // Of whom the node has never heard it says nothing.
            let found = |user: &UserBuf| Came::Own(own.next_if(|(told, _)| told.user == *user));
            let came = users_of(parts).map(found).collect();
            own.peek().is_none().then_some(came)
        }
        (Wanted::Beats { .. }, 204) => Some(beaten(BeatsTaken::default(), parts)),
        (Wanted::Beats { .. }, 200) => {
            let taken = parse_beats_taken(&said.body, users).ok()?;
            Some(beaten(taken, parts))
        }
        _ => None,
    }
}

/// What became of the beats of each part.
fn beaten(taken: BeatsTaken, parts: &[Part]) -> Vec<Came> {
    let mut invisible = taken.invisible.into_iter().peekable();
    let mut begins = 0;
    let mut came = Vec::with_capacity(parts.len());
    for part in parts {
        let ends = begins + part.users.len();
        let hidden = part.users.iter().enumerate().filter(|(_, user)| {
            let is_next = |name: &String| name == user.as_str();
            invisible.next_if(is_next).is_some()
        });
        let hidden = hidden.map(|(at, user)| (at, user.clone())).collect();
        let of_part = taken
            .refused
            .iter()
            .filter(|(at, _)| (begins..ends).contains(at));
        let refused = of_part.map(|(at, word)| (at - begins, word.as_str().into()));
        came.push(Came::Beaten {
            invisible: hidden,
            refused: refused.collect(),
        });
        begins = ends;
    }
    came
}

/// The beats of users' streams here say what these beats have said, and that was taken.
fn note(part: &Part, came: &Came, presence: &Presence) {
    let (Wanted::Beats { said, .. }, Came::Beaten { invisible, refused }) = (part.wanted, came)
    else {
        return;
    };
    if said.is_empty() {
        return;
    }
    for (at, user) in part.users.iter().enumerate() {
        if refused.iter().any(|(place, _)| *place == at) {
            continue;
        }
        if let Some(slot) = presence.lookup(user.user()) {
            let invisible = Some(invisible.iter().any(|(place, _)| *place == at));
            let status = said.status;
            presence.note_said(slot, Said { status, invisible });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::at;
    use super::super::reply::{self, lost, said};
    use super::*;
    use crate::presence::FollowerOptions;

    fn part(wanted: Wanted, users: &[&str]) -> Part {
        Part::fixture(wanted, users, at(5_000).mono)
    }

    fn follower() -> Presence {
        let options = FollowerOptions {
            sources: 1,
            users_max: 100,
            shards: 1,
            offline_after_ms: 25_000,
        };
        Presence::follower(options, at(1_000)).expect("memory")
    }

    fn ok(body: &str) -> Reply {
        said(200).map(|said| reply::Said {
            body: body.as_bytes().to_vec(),
            ..said
        })
    }

    /// What comes of these parts by this reply; None: they are unanswered.
    fn come(parts: &[Part], reply: &Reply) -> Vec<Option<Came>> {
        let mut passing = Passing::default();
        parts.iter().for_each(|part| passing.push(part.clone()));
        assert!(passing.poll_request(at(1_000).mono).is_some());
        assert!(passing.is_empty() && passing.is_under_way(), "one request");
        let passed = passing.handle_reply(reply, &follower());
        assert!(!passing.is_under_way());
        passed.into_iter().map(|passed| passed.came).collect()
    }

    fn polled(passing: &mut Passing) -> Option<(String, String)> {
        let request = passing.poll_request(at(1_000).mono)?;
        let body = String::from_utf8(request.body).expect("JSON");
        passing.handle_reply(&lost(), &follower());
        Some((request.path, body))
    }

    #[test]
    fn what_asks_for_the_same_goes_together_in_order_and_not_more_than_a_node_takes() {
        let mut passing = Passing::default();
        let many: Vec<String> = (0..999).map(|n| format!("u{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let said = Said {
            status: Said::status_of(b"away"),
            invisible: None,
        };
        let idle_ms = Some(3);
        for part in [
            part(Wanted::States, &["a", "b"]),
            part(Wanted::States, &["a"]),
            part(Wanted::Own, &["a"]),
            part(Wanted::Beats { said, idle_ms }, &["a"]),
            part(Wanted::States, &many),
            part(Wanted::States, &["a", "b"]),
        ] {
            passing.push(part);
        }
        let expected = [
            ("/v1/presence/query", r#"{"users":["a","b","a"]}"#),
            ("/v1/status", r#"{"users":["a"]}"#),
            ("/v1/beat", r#"{"idle_ms":3,"status":"away","users":["a"]}"#),
        ];
        for (path, body) in expected {
            let polled = polled(&mut passing);
            assert_eq!(polled, Some((path.to_owned(), body.to_owned())));
        }
        let (_, longest) = polled(&mut passing).expect("another");
        assert_eq!(longest.matches("\"u").count(), 1_000, "and `users`");
        let (_, rest) = polled(&mut passing).expect("another");
        assert_eq!(rest, r#"{"users":["a","b"]}"#);
        assert_eq!(polled(&mut passing), None);
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_sent() {
        let mut passing = Passing::default();
        passing.push(part(Wanted::States, &["a"]));
        assert_eq!(passing.poll_request(at(5_000).mono), None);
        assert!(passing.is_empty() && !passing.is_under_way());
    }

    #[test]
    fn an_answer_about_others_is_none() {
        let parts = [part(Wanted::States, &["a"]), part(Wanted::States, &["b"])];
        let a = r#"{"user":"a","status":"offline"}"#;
        let b = r#"{"user":"b","status":"busy","since":3,"last_active":4}"#;
        let list = |records: &[&str]| ok(&format!("{{\"presence\":[{}]}}", records.join(",")));
        let came = come(&parts, &list(&[a, b]));
        let [Some(Came::States(first)), Some(Came::States(second))] = &came[..] else {
            panic!("{came:?}");
        };
        assert_eq!((first[0].user.as_str(), first.len()), ("a", 1));
        assert_eq!((second[0].status.name(), second.len()), ("busy", 1));
        for other in [
            list(&[b, a]),
            list(&[a]),
            list(&[a, r#"{"user":"b","status":"asleep"}"#]),
            ok("{}"),
            said(204),
            said(413),
            lost(),
        ] {
            assert_eq!(come(&parts, &other), [None, None], "{other:?}");
        }
    }

    #[test]
    fn what_users_alone_are_told() {
        let parts = ["a", "b", "a"].map(|user| part(Wanted::Own, &[user]));
        let a = r#"{"user":"a","status":"busy","since":3,"last_active":4,"invisible":true}"#;
        let came = come(&parts, &ok(&format!("{{\"presence\":[{a},{a}]}}")));
        let [
            Some(Came::Own(Some((told, true)))),
            Some(Came::Own(None)),
            third,
        ] = &came[..]
        else {
            panic!("{came:?}");
        };
        assert_eq!(told.status.name(), "busy");
        assert_eq!(third, &came[0]);
        let other = r#"{"user":"c","status":"offline","invisible":true}"#;
        let came = come(&parts, &ok(&format!("{{\"presence\":[{other}]}}")));
        assert_eq!(came, [None, None, None]);
    }

    #[test]
    fn what_became_of_beats_is_told_by_the_places_in_each_part() {
        let beats = |users: &[&str]| {
            let (said, idle_ms) = (Said::default(), None);
            part(Wanted::Beats { said, idle_ms }, users)
        };
        let parts = [beats(&["a", "b"]), beats(&["b", "c", "d"])];
        let beaten = |invisible: &[(usize, &str)], refused: &[(usize, &str)]| {
            let user = |user: &str| UserBuf::from_text(user).expect("a user");
            Some(Came::Beaten {
                invisible: invisible.iter().map(|(at, it)| (*at, user(it))).collect(),
                refused: refused.iter().map(|(at, it)| (*at, (*it).into())).collect(),
            })
        };
        let nothing = beaten(&[], &[]);
        assert_eq!(come(&parts, &reply::said(204)), [nothing.clone(), nothing]);
        let reply = ok(concat!(
            r#"{"invisible":["b","b","d"],"refused":[{"index":0,"reason":"too_fast"},"#,
            r#"{"index":3,"reason":"users_max"}],"refused_total":2}"#
        ));
        let expected = [
            beaten(&[(1, "b")], &[(0, "too_fast")]),
            beaten(&[(0, "b"), (2, "d")], &[(1, "users_max")]),
        ];
        assert_eq!(come(&parts, &reply), expected);
        assert_eq!(come(&parts, &reply::said(503)), [None, None]);
    }
}
