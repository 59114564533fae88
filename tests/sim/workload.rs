//! What the clients do: a weighted table of actions, each a few bytes sent somewhere.

use greendot::time::Unix;
use greendot::wire::User;
use greendot::wire::beat::{FleetKey, Writer};

use crate::client::{Conn, Sub, Tear, Want, escape, get, json_list, post};
use crate::world::{Answering, Datagram, Device, Parcel, World};

/// Users of whom nothing is heard but the beats of their faithful devices; they sit in different
/// chunks, one in a last slot.
const FAITHFUL: [usize; 3] = [2, 9, 16];

/// An action and its weight.
type Weighted = (&'static str, u32, fn(&mut World));

pub(crate) const ACTIONS: &[Weighted] = &[
    ("subscribe", 14, World::subscribe),
    ("edit", 8, World::edit),
    ("end a stream", 4, World::end_stream),
    ("end one behind mail", 8, World::end_stream_behind_mail),
    ("query", 8, World::query),
    ("http beat", 6, World::http_beat),
    ("http leave", 3, World::http_leave),
    ("pipeline", 3, World::pipeline),
    ("garbage", 3, World::garbage),
    ("slow request", 2, World::slow_request),
    ("last request", 3, World::last_request),
    ("crowd", 1, World::crowd),
    ("farewell", 4, World::farewell),
    ("log out", 1, World::log_out),
    ("come back from bye", 1, World::come_back_from_bye),
    ("udp beat", 24, World::udp_beat),
    ("udp leave", 4, World::udp_leave),
    ("a device leaves", 5, World::device_leaves),
    ("shake a list", 4, World::shake),
    ("forged datagram", 4, World::forge),
    ("replay", 5, World::replay),
    ("stall a reader", 8, World::stall_reader),
    ("a reader goes on", 6, World::resume_reader),
    ("reset", 1, World::reset),
    ("freeze a holder", 6, World::freeze),
    ("vanish", 4, World::vanish),
    ("a vanished peer is given up", 1, World::give_up),
];

impl World {
    /// Subscribers and devices.
    pub(crate) fn populate(&mut self) {
        for _ in 0..self.workload.usize(4..14) {
            let user = (self.workload.u8(0..3) > 0).then(|| self.any_user());
            let by_holder = user.is_some() && self.workload.bool();
            self.subs.push(Sub {
                user,
                by_holder,
                ..Sub::default()
            });
        }
        let skew_ms = self.rules.beat_skew_max_ms as i64;
        for _ in 0..self.workload.usize(2..7) {
            let user = self.any_user();
            // Some have several, each with a clock of its own.
            for _ in 0..[1, 1, 2, 3][self.workload.usize(0..4)] {
                let off_ms = match self.workload.u8(0..3) {
                    0 => 0,
                    1 => self.workload.i64(-100..=100),
                    _ => self.workload.i64(-skew_ms..=skew_ms),
                };
                self.devices.push(Device {
                    user,
                    due: self.mono + 100,
                    off_ms,
                    port: self.workload.usize(0..1_024),
                    faithful: false,
                });
            }
        }
        for user in FAITHFUL {
            self.devices.push(Device {
                user,
                due: self.mono + 100,
                off_ms: 0,
                port: 0,
                faithful: true,
            });
        }
    }

    pub(crate) fn act(&mut self) {
        if self.forgetful && self.workload.u8(0..10) == 0 {
            return self.erase();
        }
        let total: u32 = ACTIONS.iter().map(|(_, weight, _)| weight).sum();
        let mut pick = self.workload.u32(0..total);
        for (_, weight, action) in ACTIONS {
            if pick < *weight {
                return action(self);
            }
            pick -= weight;
        }
    }

    pub(crate) fn any_user(&mut self) -> usize {
        loop {
            let user = self.workload.usize(0..self.names.len());
            if !FAITHFUL.contains(&user) {
                return user;
            }
        }
    }

    fn any_users(&mut self, max: usize) -> Vec<usize> {
        (0..self.workload.usize(1..=max))
            .map(|_| self.any_user())
            .collect()
    }

    fn any_shard(&mut self) -> usize {
        self.workload.usize(0..self.shards.len())
    }

    fn named(&self, users: &[usize]) -> Vec<&str> {
        users
            .iter()
            .map(|user| self.names[*user].as_str())
            .collect()
    }

    /// A connection to some shard, in the accept queue.
    pub(crate) fn connect(&mut self) -> u32 {
        let shard = self.any_shard();
        let tear = match self.network.u8(0..10) {
            0 => Tear::Bytes,
            1..=3 => Tear::Pieces,
            _ => Tear::Whole,
        };
        self.conns_made += 1;
        let key = self.conns_made;
        self.conns.insert(key, Conn::new(shard, tear));
        self.shards[shard].backlog.push_back(key);
        self.shards[shard].clients_came = true;
        self.wake(shard);
        key
    }

    pub(crate) fn ask(&mut self, key: u32, bytes: &[u8], want: Want) {
        let conn = self.conns.get_mut(&key).expect("chosen from those open");
        conn.send(bytes, want);
        let shard = conn.shard;
        self.wake(shard);
    }

    /// An idle connection that is no stream, or a new one.
    fn api_conn(&mut self) -> u32 {
        let idle =
            |conn: &Conn| conn.plain && !conn.half_closed && !conn.reset && conn.wants.len() < 4;
        let open: Vec<u32> = self
            .conns
            .iter()
            .filter(|(_, conn)| idle(conn))
            .map(|(key, _)| *key)
            .collect();
        if open.is_empty() || self.workload.u8(0..4) == 0 {
            let key = self.connect();
            self.conns.get_mut(&key).expect("new").plain = true;
            return key;
        }
        open[self.workload.usize(0..open.len())]
    }

    /// A subscriber without a connection opens its stream.
    fn subscribe(&mut self) {
        let sub = self.workload.usize(0..self.subs.len());
        self.open_stream(sub);
    }

    pub(crate) fn open_stream(&mut self, sub: usize) {
        if self.subs[sub].conn.is_some() || self.subs[sub].retry_at > self.mono {
            return;
        }
        let fresh = self.subs[sub].watched.is_empty() && self.subs[sub].perhaps.is_empty();
        if !self.healed && (fresh || self.workload.u8(0..8) == 0) {
            // Another list, hence nothing to go on from.
            let max = if self.workload.u8(0..12) == 0 { 8 } else { 6 };
            let mut list = self.any_users(max);
            if self.workload.u8(0..3) == 0 {
                // Those with long names fill an outbox.
                list = (0..self.names.len())
                    .filter(|user| self.names[*user].len() > 100)
                    .take(6)
                    .collect();
            }
            list.truncate(max - 1);
            list.push(FAITHFUL[self.workload.usize(0..3)]);
            let subscriber = &mut self.subs[sub];
            subscriber.watched = list.into_iter().collect();
            subscriber.perhaps.clear();
            subscriber.last_id = None;
        }
        let forgets = self.workload.u8(0..5) == 0;
        let subscriber = &mut self.subs[sub];
        let perhaps = std::mem::take(&mut subscriber.perhaps);
        subscriber.watched.extend(perhaps);
        subscriber.edit = None;
        let list: Vec<usize> = subscriber.watched.iter().copied().collect();
        // Only who has been told of everybody may ask for what has changed since.
        if forgets || !list.iter().all(|user| subscriber.views.contains_key(user)) {
            subscriber.last_id = None;
        }
        if subscriber.last_id.is_none() {
            subscriber.views.clear();
        }
        let (last_id, user) = (subscriber.last_id, subscriber.user);
        let by_holder = subscriber.by_holder;
        let key = self.connect();
        self.subs[sub].conn = Some(key);
        let mut header = match (last_id, key % 8) {
            (Some(id), _) => format!("Last-Event-ID: {id}\r\n"),
            // From something else, or from before this store: that is told everything too.
            (None, 0) => "Last-Event-ID: another server's\r\n".to_owned(),
            (None, 1) => "Last-Event-ID: 17\r\n".to_owned(),
            (None, _) => String::new(),
        };
        let bytes = if self.workload.bool() {
            let mut query: Vec<String> = list
                .iter()
                .map(|user| format!("watch={}", escape(&self.names[*user])))
                .collect();
            query.extend(user.map(|user| format!("user={}", escape(&self.names[user]))));
            query.extend(by_holder.then(|| "vouch=self".to_owned()));
            if self.workload.bool()
                && let Some(id) = last_id
            {
                header.clear();
                query.push(format!("last_event_id={id}"));
            }
            let bytes = get(&format!("/v1/stream?{}", query.join("&")), &header);
            if bytes.len() > self.settings.head_bytes_max {
                None
            } else {
                Some(bytes)
            }
        } else {
            None
        };
        let bytes = bytes.unwrap_or_else(|| {
            let mut body = format!("{{\"watch\":{}", json_list(&self.named(&list)));
            if let Some(user) = user {
                body.push_str(&format!(
                    ",\"user\":{}",
                    serde_json::to_string(&self.names[user]).expect("JSON")
                ));
            }
            if by_holder {
                body.push_str(",\"vouch\":\"self\"");
            }
            body.push('}');
            post("/v1/stream", &header, &body, None)
        });
        self.say(|| format!("sub {sub} connects from {last_id:?} with {list:?}"));
        let conn = self.conns.get_mut(&key).expect("new");
        conn.sub = Some(sub);
        conn.user = user;
        conn.by_holder = by_holder;
        self.ask(key, &bytes, Want::Stream);
    }

    fn edit(&mut self) {
        let sub = self.workload.usize(0..self.subs.len());
        let Some(stream) = self.subs[sub]
            .stream
            .clone()
            .filter(|_| self.subs[sub].edit.is_none())
        else {
            return;
        };
        let add = if self.workload.u8(0..4) > 0 {
            self.any_users(3)
        } else {
            Vec::new()
        };
        let remove: Vec<usize> = if self.workload.bool() {
            self.subs[sub]
                .watched
                .iter()
                .copied()
                .take(self.workload.usize(0..3))
                .collect()
        } else {
            Vec::new()
        };
        // Whom it may watch or not is left alone, so that each outcome is clear.
        let perhaps = &self.subs[sub].perhaps;
        let add: Vec<usize> = add
            .into_iter()
            .filter(|user| !perhaps.contains(user))
            .collect();
        let body = format!(
            "{{\"add\":{},\"remove\":{}}}",
            json_list(&self.named(&add)),
            json_list(&self.named(&remove))
        );
        let chunk = (self.workload.u8(0..4) == 0).then_some(13);
        let key = self.connect();
        let subscriber = &mut self.subs[sub];
        // Until the answer comes, these may be watched or not.
        let fresh: Vec<usize> = add
            .iter()
            .copied()
            .filter(|user| !subscriber.watched.contains(user))
            .collect();
        for user in &remove {
            subscriber.watched.remove(user);
        }
        subscriber.perhaps.extend(fresh.iter().chain(&remove));
        let kept: Vec<usize> = add
            .into_iter()
            .filter(|user| fresh.contains(user) || remove.contains(user))
            .collect();
        subscriber.edit = Some((kept, remove, key));
        self.ask(
            key,
            &post(&format!("/v1/stream/{stream}/watch"), "", &body, chunk),
            Want::Edit { sub },
        );
        if self.workload.u8(0..4) == 0 {
            self.listen(key);
        }
    }

    /// The holder of a stream has read a ping: it answers on another connection, to any shard.
    pub(crate) fn answer_ping(&mut self, sub: usize) {
        let subscriber = &self.subs[sub];
        let (Some(user), Some(stream)) = (subscriber.user, subscriber.stream.clone()) else {
            return;
        };
        if !subscriber.by_holder || self.mono < subscriber.frozen_until {
            return;
        }
        let Some(held) = subscriber.conn else {
            return;
        };
        let key = self.connect();
        self.answers.push(Answering {
            key,
            user,
            stream: held,
            sent_at: self.mono,
            open: true,
        });
        let target = format!("/v1/stream/{stream}/beat");
        let bytes = format!("POST {target} HTTP/1.1\r\nHost: sim\r\nContent-Length: 0\r\n\r\n");
        self.ask(key, bytes.as_bytes(), Want::Answer);
    }

    /// A page is frozen, or gone behind a proxy: its socket is read, and nobody answers.
    fn freeze(&mut self) {
        let holds = |sub: &usize| self.subs[*sub].by_holder && self.subs[*sub].conn.is_some();
        let holders: Vec<usize> = (0..self.subs.len()).filter(holds).collect();
        if !holders.is_empty() {
            let sub = holders[self.workload.usize(0..holders.len())];
            self.subs[sub].frozen_until = self.mono + self.workload.u64(2_000..90_000);
        }
    }

    /// A reader is gone without a word, and so is its kernel.
    fn vanish(&mut self) {
        if let Some(key) = self.some_stream()
            && let Some(conn) = self.conns.get_mut(&key)
            && conn.is_calm()
            && conn.live_since.is_some()
        {
            conn.vanished_at = Some(self.mono);
            conn.acknowledged_at = self.mono;
        }
    }

    /// The kernel gives up a peer that acknowledges nothing.
    fn give_up(&mut self) {
        let vanished = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.vanished_at.is_some());
        let keys: Vec<u32> = vanished.map(|(key, _)| *key).collect();
        if !keys.is_empty() {
            let key = keys[self.workload.usize(0..keys.len())];
            self.hang_up(key, true);
        }
    }

    fn some_stream(&mut self) -> Option<u32> {
        let live: Vec<u32> = self.subs.iter().filter_map(|sub| sub.conn).collect();
        (!live.is_empty()).then(|| live[self.workload.usize(0..live.len())])
    }

    /// A subscriber closes its connection.
    fn end_stream(&mut self) {
        if let Some(key) = self.some_stream() {
            let rude = self.workload.bool();
            self.hang_up(key, rude);
        }
    }

    /// A stream ends that was told an id later than something that it was not told, for the mail
    /// that says so is late; it comes back at once. Without such a stream, any that was just told
    /// an id on a shard whose mail is late.
    fn end_stream_behind_mail(&mut self) {
        if let Some(sub) = (0..self.subs.len()).find(|sub| self.is_behind(*sub)) {
            let key = self.subs[sub]
                .conn
                .expect("one that is behind is connected");
            self.hang_up(key, true);
            self.subs[sub].retry_at = self.mono;
            return self.open_stream(sub);
        }
        let late: Vec<usize> = self
            .parcels
            .values()
            .filter_map(|parcel| match parcel {
                Parcel::Mail(shard, _) => Some(*shard),
                Parcel::Datagram(..) => None,
            })
            .collect();
        let told = |conn: &Conn| {
            let lately = conn.last_id.is_some_and(|(_, at)| at + 100 >= self.mono);
            conn.sub.is_some() && lately && late.contains(&conn.shard)
        };
        let key = self.conns.iter().find(|(_, conn)| told(conn));
        if let Some(key) = key.map(|(key, _)| *key) {
            self.hang_up(key, true);
        }
    }

    /// Whether a subscriber has been told an id and not something that was published before it.
    fn is_behind(&mut self, sub: usize) -> bool {
        let subscriber = &self.subs[sub];
        let (Some(id), true) = (subscriber.last_id, subscriber.snapshot_seen) else {
            return false;
        };
        let watched: Vec<usize> = subscriber.watched.iter().copied().collect();
        watched.into_iter().any(|user| {
            let since = self.state(user).since;
            let view = self.subs[sub].views.get(&user).map(|view| view.since);
            since.is_some_and(|since| since <= id) && view.is_some_and(|view| view < since)
        })
    }

    pub(crate) fn hang_up(&mut self, key: u32, rude: bool) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        if rude {
            conn.reset = true;
        }
        conn.half_closed = true;
        let shard = conn.shard;
        if rude {
            self.client_gone(key);
        }
        self.wake(shard);
    }

    fn reset(&mut self) {
        let keys: Vec<u32> = self.conns.keys().copied().collect();
        if !keys.is_empty() {
            let key = keys[self.workload.usize(0..keys.len())];
            self.hang_up(key, true);
        }
    }

    fn query_bytes(&mut self) -> (Vec<u8>, Want) {
        let asked_at = self.mono;
        let bytes;
        let users;
        match self.workload.u8(0..3) {
            0 => {
                users = vec![self.any_user()];
                bytes = get(
                    &format!("/v1/presence/{}", escape(&self.names[users[0]])),
                    "",
                );
            }
            1 => {
                users = self.any_users(2);
                let query: Vec<String> = users
                    .iter()
                    .map(|user| format!("user={}", escape(&self.names[*user])))
                    .collect();
                bytes = get(&format!("/v1/presence?{}", query.join("&")), "");
            }
            _ => {
                users = self.any_users(3);
                let body = format!("{{\"users\":{}}}", json_list(&self.named(&users)));
                bytes = post(
                    "/v1/presence/query",
                    "",
                    &body,
                    (self.workload.u8(0..3) == 0).then_some(7),
                );
            }
        }
        (bytes, Want::Query { users, asked_at })
    }

    fn query(&mut self) {
        let key = self.api_conn();
        let (bytes, want) = self.query_bytes();
        self.ask(key, &bytes, want);
    }

    fn beat_bytes(&mut self, path: &str, max: usize) -> (Vec<u8>, Vec<usize>) {
        let users = self.any_users(max);
        let body = format!("{{\"users\":{}}}", json_list(&self.named(&users)));
        (
            post(path, "", &body, (self.workload.u8(0..4) == 0).then_some(20)),
            users,
        )
    }

    fn http_beat(&mut self) {
        let key = self.api_conn();
        let (bytes, users) = self.beat_bytes("/v1/beat", 3);
        self.ask(key, &bytes, Want::Beat(users));
    }

    fn http_leave(&mut self) {
        let key = self.api_conn();
        let (bytes, users) = self.beat_bytes("/v1/leave", 2);
        self.ask(key, &bytes, Want::Leave(users));
    }

    /// A user is erased; those who have come last are so often that their slots find others.
    fn erase(&mut self) {
        let known = crate::store::known_users();
        let user = match self.workload.u8(0..3) {
            0 => self.any_user(),
            _ => self.workload.usize(known..self.names.len()),
        };
        let key = self.api_conn();
        let (name, token) = (escape(&self.names[user]), self.key.service_token());
        let bytes = format!(
            "DELETE /v1/presence/{name} HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {token}\r\n\
             \r\n"
        );
        let theirs = |conn: &Conn| conn.live_since.is_some() && conn.user == Some(user);
        let streams = self.conns.iter().filter(|(_, conn)| theirs(conn));
        let streams = streams.map(|(key, _)| *key).collect();
        self.ask(key, bytes.as_bytes(), Want::Forget { user, streams });
        if self.workload.u8(0..16) == 0 {
            // Slots that nobody holds any more are another's from here on.
            (0..2).for_each(|_| self.write_back());
        }
    }

    /// Several requests in one write.
    fn pipeline(&mut self) {
        let key = self.api_conn();
        for _ in 0..self.workload.usize(2..9) {
            let (bytes, want) = self.query_bytes();
            self.ask(key, &bytes, want);
        }
    }

    /// What no server should take.
    fn garbage(&mut self) {
        let key = self.connect();
        let long = "x".repeat(2_000);
        let many: String = (0..12).map(|n| format!("X-{n}: y\r\n")).collect();
        let deep = format!("{}{}", "[".repeat(20), "]".repeat(20));
        let five = json_list(&self.named(&[0, 1, 2, 3, 4]));
        let seven: Vec<String> = (0..7).map(|n| format!("watch=u{n}")).collect();
        let bytes = match self.workload.u8(0..11) {
            0 => get(&format!("/{long}"), ""),
            1 => get("/", &format!("X: {long}\r\n")),
            2 => get("/", &many),
            3 => post("/v1/beat", "", &format!("{{\"users\":[\"{long}\"]}}"), None),
            4 => post("/v1/beat", "", &deep, None),
            5 => post("/v1/beat", "", &format!("{{\"users\":{five}}}"), None),
            6 => b"GET / HTTP/1.1\nHost: sim\n\n".to_vec(),
            7 => b"POST /v1/beat HTTP/1.1\r\nHost: sim\r\nContent-Length: 1\r\n\
                   Transfer-Encoding: chunked\r\n\r\n"
                .to_vec(),
            8 => get(&format!("/v1/stream?{}", seven.join("&")), ""),
            9 => post(
                "/v1/stream/0.0.00000000000000000000000000000000/watch",
                "",
                "{\"add\":[\"u0\"]}",
                None,
            ),
            _ => {
                let mut noise: Vec<u8> = (0..40).map(|_| self.workload.u8(..)).collect();
                noise.extend_from_slice(b"\r\n\r\n");
                noise.insert(0, b'\x01');
                noise
            }
        };
        self.ask(key, &bytes, Want::Refusal);
    }

    /// A request that never ends, or a connection that asks for nothing.
    fn slow_request(&mut self) {
        let key = self.connect();
        if self.workload.bool() {
            self.ask(key, b"GET /v1/presence/u0 HTTP/1.1\r\nHo", Want::Anything);
        }
    }

    /// A request behind which the client shuts its sending half.
    fn last_request(&mut self) {
        let key = self.connect();
        let (bytes, want) = match self.workload.u8(0..3) {
            0 => self.query_bytes(),
            1 => {
                let (bytes, users) = self.beat_bytes("/v1/beat", 3);
                (bytes, Want::Beat(users))
            }
            _ => {
                let (bytes, users) = self.beat_bytes("/v1/leave", 2);
                (bytes, Want::Leave(users))
            }
        };
        self.ask(key, &bytes, want);
        self.listen(key);
    }

    /// The client of a connection with one request under way shuts its sending half and waits for
    /// the answer.
    fn listen(&mut self, key: u32) {
        let conn = self.conns.get_mut(&key).expect("it has just asked");
        conn.half_closed = true;
        conn.listens = true;
    }

    /// More connections than a shard takes.
    fn crowd(&mut self) {
        for _ in 0..self.workload.usize(4..24) {
            let key = self.connect();
            let (bytes, want) = self.query_bytes();
            self.ask(key, &bytes, want);
        }
    }

    fn datagram(&mut self, leave: bool, users: Vec<usize>, sent_at: u64) -> Datagram {
        let mut writer = Writer::new(leave, Unix::from_ms(sent_at), &self.key);
        let mut held = Vec::new();
        for user in users {
            if writer.push(User::parse(self.names[user].as_bytes()).expect("a legal name")) {
                held.push(user);
            }
        }
        Datagram {
            bytes: writer.seal(&self.key),
            forged: false,
            leave,
            sent_at,
            users: held,
        }
    }

    /// A sender's clock is a little off, seldom a lot.
    fn sender_clock(&mut self) -> u64 {
        let skew_ms = match self.workload.u8(0..10) {
            0 => self.workload.i64(-3_500..3_500),
            1 | 2 => self.workload.i64(-300..300),
            _ => 0,
        };
        (self.wall() as i64 + skew_ms) as u64
    }

    /// Hands a datagram to the network, which may lose, delay and duplicate it.
    pub(crate) fn cast(&mut self, datagram: Datagram) {
        let shard = self.network.usize(0..self.shards.len());
        if self.sent.len() < 64 {
            self.sent.push(datagram.clone());
        } else {
            let at = self.network.usize(0..64);
            self.sent[at] = datagram.clone();
        }
        let copies = match self.network.u8(0..20) {
            0 => 0,
            1 | 2 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay_ms = match self.network.u8(0..10) {
                0..=5 => 0,
                6..=8 => self.network.u64(1..200),
                _ => self.network.u64(1..4_000),
            };
            self.send(Parcel::Datagram(shard, datagram.clone()), delay_ms);
        }
    }

    fn udp_beat(&mut self) {
        let max = if self.workload.u8(0..4) == 0 { 12 } else { 2 };
        let (users, sent_at) = (self.any_users(max), self.sender_clock());
        let datagram = self.datagram(false, users, sent_at);
        self.cast(datagram);
    }

    /// All whom one stream watches come or go at once, but for the faithful.
    fn shake(&mut self) {
        let sub = self.workload.usize(0..self.subs.len());
        let watched = self.subs[sub].watched.iter().copied();
        let users: Vec<usize> = watched.filter(|user| !FAITHFUL.contains(user)).collect();
        if users.is_empty() {
            return;
        }
        let (leave, sent_at) = (self.workload.bool(), self.wall());
        let datagram = self.datagram(leave, users, sent_at);
        self.cast(datagram);
    }

    fn udp_leave(&mut self) {
        let (users, sent_at) = (self.any_users(2), self.sender_clock());
        let datagram = self.datagram(true, users, sent_at);
        self.cast(datagram);
    }

    /// An old datagram again: an honest duplicate, or an attacker's.
    fn replay(&mut self) {
        if !self.sent.is_empty() {
            let again = self.sent[self.workload.usize(0..self.sent.len())].clone();
            let shard = self.any_shard();
            self.send(Parcel::Datagram(shard, again), 0);
        }
    }

    /// A datagram that nobody may believe.
    fn forge(&mut self) {
        let (users, sent_at, leave) = (self.any_users(2), self.wall(), self.workload.bool());
        let mut datagram = self.datagram(leave, users, sent_at);
        datagram.forged = true;
        let last = datagram.bytes.len() - 1;
        match self.workload.u8(0..7) {
            0 => datagram.bytes[last] ^= 1,
            1 => datagram.bytes[0] ^= 1,
            2 => datagram.bytes[2] = 9,
            3 => datagram.bytes[17] ^= 0x20,
            4 => datagram.bytes.truncate(20),
            5 => {
                let other = FleetKey::new([9; 32]);
                datagram.bytes = Writer::new(leave, Unix::from_ms(sent_at), &other).seal(&other);
                datagram.bytes.extend_from_slice(&[0; 8]);
            }
            // Signed, and its only entry is longer than the datagram.
            _ => {
                let mut writer = Writer::new(leave, Unix::from_ms(sent_at), &self.key);
                assert!(writer.push(User::parse(b"ab").expect("a legal name")));
                let sealed = writer.seal(&self.key);
                let mut signed = sealed[..sealed.len() - 16].to_vec();
                signed[16] = 200;
                let mac = blake3::keyed_hash(&[7; 32], &signed);
                signed.extend_from_slice(&mac.as_bytes()[..16]);
                datagram.bytes = signed;
            }
        }
        let shard = self.any_shard();
        self.send(Parcel::Datagram(shard, datagram), 0);
    }

    /// Devices beat on their own, on the grid of the sweeps, where expiry is decided to the
    /// millisecond.
    pub(crate) fn fire_devices(&mut self) {
        for at in 0..self.devices.len() {
            let Device {
                user,
                due,
                off_ms,
                port,
                faithful,
            } = self.devices[at];
            if due > self.mono {
                continue;
            }
            let skips = match self.workload.u8(0..8) {
                0 if !faithful => self.workload.u64(20..60),
                _ => 0,
            };
            let grid = self.rules.sweep_interval_ms;
            self.devices[at].due = (self.mono / grid + self.workload.u64(5..=10) + skips) * grid;
            let sent_at = self.wall().saturating_add_signed(off_ms);
            let datagram = self.datagram(false, vec![user], sent_at);
            self.send(Parcel::Datagram(port, datagram), 0);
        }
    }

    /// A device says goodbye, and may be back at once. What its socket sends arrives in order.
    fn device_leaves(&mut self) {
        let at = self.workload.usize(0..self.devices.len());
        let Device {
            user,
            off_ms,
            port,
            faithful,
            ..
        } = self.devices[at];
        if faithful {
            return;
        }
        let sent_at = self.wall().saturating_add_signed(off_ms);
        let delay_ms = self.workload.u64(0..20);
        let leave = self.datagram(true, vec![user], sent_at);
        self.send(Parcel::Datagram(port, leave), delay_ms);
        if self.workload.bool() {
            let gap_ms = self.workload.u64(0..=10);
            let beat = self.datagram(false, vec![user], sent_at + gap_ms);
            self.send(Parcel::Datagram(port, beat), delay_ms + gap_ms);
        }
    }

    /// A reader takes no more than a little.
    fn stall_reader(&mut self) {
        if let Some(key) = self.some_stream() {
            let room = [0, 1, 100, 700][self.workload.usize(0..4)];
            if let Some(conn) = self.conns.get_mut(&key)
                && conn.vanished_at.is_none()
            {
                conn.room = room;
            }
        }
    }

    /// A reader that had stopped reads all there is, and keeps up or stops again.
    fn resume_reader(&mut self) {
        let stopped: Vec<u32> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.room != usize::MAX)
            .map(|(key, _)| *key)
            .collect();
        if !stopped.is_empty() {
            let key = stopped[self.workload.usize(0..stopped.len())];
            let trickle = self.workload.u8(0..3) == 0;
            self.read_again(key, if trickle { 300 } else { usize::MAX });
        }
    }

    pub(crate) fn read_again(&mut self, key: u32, room: usize) {
        let Some(conn) = self.conns.get_mut(&key) else {
            return;
        };
        conn.room = room;
        let shard = conn.shard;
        self.client_reads(key);
        self.wake(shard);
    }
}
