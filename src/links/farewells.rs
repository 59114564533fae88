//! What a presence node asks and tells one real-time node because somebody has left: is another
//! stream of theirs open there, and whose streams end.
//!
//! Owns what waits for the node, in order: questions until they are too old to matter, log-outs
//! until the node has taken them. Without a kernel: requests and replies are values, time is an
//! argument.

use std::collections::VecDeque;
use std::sync::Arc;

use super::STATES_PER_REQUEST_MAX;
use super::reply::{JSON, Meaning, Reply, Request};
use crate::engine::{HOLDERS_MS_MAX, Held, Holders, LoggedOut, Mail, ShardId};
use crate::time::Mono;

/// Pause after a log-out that the node has not taken, in ms.
const AGAIN_MS: u64 = 500;
/// Most questions that wait, and most users whose log-out does. Beyond, the node counts as one that
/// does not answer, and the oldest log-out is forgotten.
const WAITING_MAX: usize = 65_536;

/// One user, about whom a shard asks.
#[derive(Debug)]
struct Question {
    shard: ShardId,
    id: u64,
    user: Box<str>,
    until: Mono,
}

#[derive(Debug)]
enum InFlight {
    Questions(Vec<Question>),
    End,
}

/// What one node is asked and told.
#[derive(Debug)]
pub(super) struct Farewells {
    questions: VecDeque<Question>,
    ends: VecDeque<Arc<LoggedOut>>,
    /// Users of the first of `ends` who have been told.
    ended: usize,
    /// Users in `ends`.
    users: usize,
    ends_at: Mono,
    in_flight: Option<InFlight>,
    per_request: usize,
}

impl Farewells {
    pub(super) fn new() -> Farewells {
        Farewells {
            questions: VecDeque::new(),
            ends: VecDeque::new(),
            ended: 0,
            users: 0,
            ends_at: Mono::default(),
            in_flight: None,
            per_request: STATES_PER_REQUEST_MAX,
        }
    }

    /// A shard asks.
    pub(super) fn ask(&mut self, holders: &Holders, now: Mono) {
        let room = WAITING_MAX.saturating_sub(self.questions.len());
        let (shard, until) = (holders.shard, now.plus_ms(HOLDERS_MS_MAX));
        let question = |(id, user): &(u64, Box<str>)| Question {
            shard,
            id: *id,
            user: user.clone(),
            until,
        };
        self.questions
            .extend(holders.asks.iter().take(room).map(question));
    }

    /// These have been logged out. Returns how many had to be forgotten for it.
    pub(super) fn end(&mut self, logged_out: Arc<LoggedOut>) -> usize {
        self.users += logged_out.users.len();
        self.ends.push_back(logged_out);
        let mut forgotten = 0;
        while self.users > WAITING_MAX && self.ends.len() > 1 {
            forgotten += self.next_end();
        }
        forgotten
    }

    /// Goes on behind the first log-out; returns how many of its users had not been told.
    fn next_end(&mut self) -> usize {
        let first = self.ends.pop_front();
        let users = first.map_or(0, |first| first.users.len());
        self.users -= users;
        users - std::mem::take(&mut self.ended)
    }

    /// When [`Farewells::poll_request`] has something.
    pub(super) fn next(&self) -> Mono {
        match () {
            () if self.in_flight.is_some() => Mono::NEVER,
            () if !self.questions.is_empty() => Mono::default(),
            () if !self.ends.is_empty() => self.ends_at,
            () => Mono::NEVER,
        }
    }

    /// A request of these is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The next request. Log-outs go first: what is asked about their users is another matter then.
    pub(super) fn poll_request(&mut self, now: Mono) -> Option<Request> {
        if self.in_flight.is_some() {
            return None;
        }
        if now >= self.ends_at
            && let Some(first) = self.ends.front()
        {
            let users = first.users[self.ended..].iter().take(self.per_request);
            let users: Vec<&str> = users.map(|user| &**user).collect();
            let sent_at = first.at.ms();
            let body = serde_json::json!({
                "users": users, "everywhere": true, "sent_at": sent_at,
            });
            self.in_flight = Some(InFlight::End);
            return Some(request("/v1/streams/end", &body));
        }
        self.questions.retain(|question| question.until > now);
        let questions = self.questions.len().min(self.per_request);
        if questions == 0 {
            return None;
        }
        let questions: Vec<Question> = self.questions.drain(..questions).collect();
        let users: Vec<&str> = questions.iter().map(|question| &*question.user).collect();
        let body = serde_json::json!({ "users": users });
        self.in_flight = Some(InFlight::Questions(questions));
        Some(request("/v1/streams/held", &body))
    }

    /// What came of the request: what the shards are to be told.
    pub(super) fn handle_reply(&mut self, reply: &Reply, now: Mono) -> Vec<Mail> {
        let meaning = Meaning::of(reply);
        let of_content = matches!(meaning, Meaning::TooLong | Meaning::Refused);
        match self.in_flight.take() {
            Some(InFlight::Questions(questions)) => match held_of(reply, questions.len()) {
                Some(held) => answers(&questions, &held),
                None => {
                    if of_content && questions.len() > 1 {
                        self.per_request = questions.len() / 2;
                        for question in questions.into_iter().rev() {
                            self.questions.push_front(question);
                        }
                    }
                    // Who is not answered for is waited for in vain.
                    Vec::new()
                }
            },
            Some(InFlight::End) => {
                self.end_replied(meaning, now);
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    fn end_replied(&mut self, meaning: Meaning, now: Mono) {
        let left = self.ends.front().map_or(0, |first| first.users.len());
        let sent = (left - self.ended).min(self.per_request);
        match meaning {
            Meaning::TooLong | Meaning::Refused if sent > 1 => self.per_request = sent / 2,
            // One that is refused alone is passed over.
            Meaning::Done | Meaning::TooLong | Meaning::Refused => {
                self.ended += sent;
                if self.ended >= left {
                    self.next_end();
                }
            }
            Meaning::Failed => self.ends_at = now.plus_ms(AGAIN_MS),
        }
    }

    /// The node is out of sight: nobody waits for its answers, and the log-outs wait for it.
    pub(super) fn out_of_sight(&mut self, now: Mono) {
        self.questions.clear();
        self.ends_at = self.ends_at.max(now.plus_ms(AGAIN_MS));
    }

    /// Nothing is to be told.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

fn request(path: &str, body: &serde_json::Value) -> Request {
    Request {
        method: "POST",
        path: path.into(),
        media: JSON,
        field: None,
        body: body.to_string().into_bytes(),
        states: 0,
    }
}

/// Which of so many are held. None: that is no answer.
fn held_of(reply: &Reply, asked: usize) -> Option<Vec<bool>> {
    let said = reply.as_ref().ok().filter(|said| said.status == 200)?;
    let body: serde_json::Value = serde_json::from_slice(&said.body).ok()?;
    let mut held = vec![false; asked];
    for index in body["held"].as_array()? {
        *held.get_mut(usize::try_from(index.as_u64()?).ok()?)? = true;
    }
    Some(held)
}

/// A piece of mail for each shard that has asked.
fn answers(questions: &[Question], held: &[bool]) -> Vec<Mail> {
    let mut told: Vec<Held> = Vec::new();
    for (question, is_held) in questions.iter().zip(held) {
        let (shard, answer) = (question.shard, (question.id, *is_held));
        match told.iter_mut().find(|other| other.shard == shard) {
            Some(other) => other.answers.push(answer),
            None => told.push(Held {
                shard,
                answers: vec![answer],
            }),
        }
    }
    let mail = |held| Mail::Holders(Arc::new(held));
    told.into_iter().map(mail).collect()
}

#[cfg(test)]
mod tests {
    use super::super::reply::{Said, lost, said};
    use super::*;
    use crate::time::Unix;

    fn at(ms: u64) -> Mono {
        Mono::default().plus_ms(ms)
    }

    fn ask(farewells: &mut Farewells, shard: ShardId, first: u64, users: &[&str]) {
        let users = users.iter().map(|user| Box::from(*user));
        let asks = (first..).zip(users).collect();
        farewells.ask(&Holders { shard, asks }, at(0));
    }

    fn body(request: Option<Request>) -> (String, String) {
        let request = request.expect("it is time");
        (request.path, String::from_utf8(request.body).unwrap())
    }

    fn held(indexes: &str) -> Reply {
        let (node, held, body) = (None, None, format!("{{\"held\":[{indexes}]}}"));
        Ok(Said {
            status: 200,
            node,
            held,
            life: None,
            body: body.into_bytes(),
        })
    }

    fn told(mail: Vec<Mail>) -> Vec<(ShardId, Vec<(u64, bool)>)> {
        let held = |mail| match mail {
            Mail::Holders(held) => (held.shard, held.answers.clone()),
            other => panic!("{other:?}"),
        };
        mail.into_iter().map(held).collect()
    }

    #[test]
    fn questions_of_all_shards_go_together_and_each_has_its_answers() {
        let mut farewells = Farewells::new();
        assert_eq!(farewells.next(), Mono::NEVER);
        ask(&mut farewells, 0, 7, &["a", "b"]);
        ask(&mut farewells, 1, 3, &["c"]);
        let (path, users) = body(farewells.poll_request(at(1)));
        assert_eq!(path, "/v1/streams/held");
        assert_eq!(users, r#"{"users":["a","b","c"]}"#);
        assert_eq!(farewells.next(), Mono::NEVER, "one at a time");
        assert_eq!(
            told(farewells.handle_reply(&held("1,2"), at(2))),
            [(0, vec![(7, false), (8, true)]), (1, vec![(3, true)])]
        );
        assert!(farewells.poll_request(at(3)).is_none());
    }

    #[test]
    fn one_that_is_refused_for_its_length_is_made_shorter_and_a_lost_one_is_not_repeated() {
        let mut farewells = Farewells::new();
        ask(&mut farewells, 0, 0, &["a", "b", "c"]);
        farewells.poll_request(at(0));
        assert_eq!(told(farewells.handle_reply(&said(413), at(0))), []);
        assert_eq!(body(farewells.poll_request(at(0))).1, r#"{"users":["a"]}"#);
        assert_eq!(told(farewells.handle_reply(&lost(), at(0))), []);
        assert_eq!(body(farewells.poll_request(at(0))).1, r#"{"users":["b"]}"#);
        // An answer that names others is none.
        assert_eq!(told(farewells.handle_reply(&held("1"), at(0))), []);
        // Too late to matter.
        assert!(farewells.poll_request(at(HOLDERS_MS_MAX)).is_none());
    }

    #[test]
    fn a_log_out_is_told_until_the_node_has_taken_it() {
        let mut farewells = Farewells::new();
        let users = ["a", "b", "c"].map(Box::from).to_vec();
        let at_ms = Unix::from_ms(17);
        assert_eq!(farewells.end(Arc::new(LoggedOut { users, at: at_ms })), 0);
        let all = r#"{"everywhere":true,"sent_at":17,"users":["a","b","c"]}"#;
        let path = "/v1/streams/end";
        let expected = |users: &str| (path.to_owned(), users.to_owned());
        assert_eq!(body(farewells.poll_request(at(0))), expected(all));
        farewells.handle_reply(&lost(), at(0));
        assert!(farewells.poll_request(at(AGAIN_MS - 1)).is_none());
        assert_eq!(body(farewells.poll_request(at(AGAIN_MS))), expected(all));
        farewells.handle_reply(&said(413), at(AGAIN_MS));
        for user in ["a", "b", "c"] {
            let one = format!(r#"{{"everywhere":true,"sent_at":17,"users":["{user}"]}}"#);
            assert!(!farewells.is_empty());
            assert_eq!(body(farewells.poll_request(at(AGAIN_MS))), expected(&one));
            farewells.handle_reply(&said(204), at(AGAIN_MS));
        }
        assert!(farewells.is_empty() && farewells.next() == Mono::NEVER);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut farewells = Farewells::new();
        let users = vec![Box::from("a"); 1_000];
        let one = Arc::new(LoggedOut {
            users,
            at: Unix::from_ms(1),
        });
        let forgotten: usize = (0..70).map(|_| farewells.end(Arc::clone(&one))).sum();
        assert_eq!(forgotten, 5_000);
        let asks = (0..70_000).map(|id| (id, Box::from("a"))).collect();
        farewells.ask(&Holders { shard: 0, asks }, at(0));
        assert_eq!(farewells.questions.len(), WAITING_MAX);
    }
}
