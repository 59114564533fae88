//! A whole platform: one node of both halves, or a real-time node and a presence node with the
//! links between them, and a network without delay.
//!
//! A request of a link is served by the other node's engine, as real bytes on a connection of its
//! own; what an answer means is decided by the links themselves. All of that happens on the last
//! shard of each node, so that others' shards have served the same connections whatever goes on
//! between the nodes.

use std::sync::Arc;

use greendot::auth::Revoked;
use greendot::engine::{Outbound, Role, instance_of};
use greendot::links::{Answerer, Asking, Effect, Fault, Publishing, Reply, Request, Said};
use greendot::wire::feed::Held;
use greendot::wire::nodes::Nodes;

use super::harness::World;

/// Rounds of both nodes at one moment after which their links are said to spin.
const ROUNDS_MAX: usize = 2_000;
/// Between two turns while one of two nodes is down, in ms: less than a stall.
const DOWN_STEP_MS: u64 = 500;

/// Which node of a platform is meant. One of both halves is either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Half {
    /// It holds streams.
    Streams,
    /// It decides who is online.
    Presence,
}

pub(crate) struct Platform {
    presence: World,
    realtime: Option<(World, Links)>,
    /// What has been put to the real-time node since the last look.
    puts: Vec<String>,
}

struct Links {
    nodes: Arc<Nodes>,
    asking: Asking,
    publishing: Publishing,
    revoked: Arc<Revoked>,
    /// This one is down.
    down: Option<Half>,
    cut: bool,
}

impl Links {
    fn reach(&self) -> bool {
        self.down.is_none() && !self.cut
    }
}

impl Platform {
    /// One node of both halves, or a presence node by itself.
    pub(crate) fn of(presence: World) -> Platform {
        Platform {
            presence,
            realtime: None,
            puts: Vec::new(),
        }
    }

    /// A node of each half, of so many shards.
    pub(crate) fn split(shards: u16) -> Platform {
        let nodes = Arc::new(Nodes::new(["10.0.0.1:8081"]));
        let presence = World::of_presence(shards, 1);
        let realtime = World::of_role(shards, Role::Realtime(Arc::clone(&nodes)), 10_000);
        let revoked = Arc::new(Revoked::new(1_000, 86_400_000));
        let links = Links {
            asking: asking(&realtime, &revoked),
            publishing: publishing(&presence, &revoked),
            nodes,
            revoked,
            down: None,
            cut: false,
        };
        let mut platform = Platform {
            presence,
            realtime: Some((realtime, links)),
            puts: Vec::new(),
        };
        // Until both have seen each other.
        for _ in 0..3 {
            platform.jump(1_000).turn();
        }
        platform
    }

    pub(crate) fn is_split(&self) -> bool {
        self.realtime.is_some()
    }

    /// Whether its nodes are in each other's sight.
    pub(crate) fn is_well(&self) -> bool {
        let Some((_, links)) = &self.realtime else {
            return true;
        };
        !links.asking.standing().down && !links.publishing.standing().down
    }

    /// Whether beats are taken not to arrive as datagrams.
    pub(crate) fn beats_are_gone(&self) -> bool {
        let links = self.realtime.as_ref().map(|(_, links)| links);
        links.is_some_and(|links| links.asking.standing().beats_gone)
    }

    /// The nodes do not reach each other, or do again.
    pub(crate) fn cut(&mut self, cut: bool) {
        if let Some((_, links)) = &mut self.realtime {
            links.cut = cut;
        }
    }

    /// The presence node is started without its files.
    pub(crate) fn lose_files(&mut self) {
        let (shards, ms) = (self.presence.shards() as u16, self.presence.ms());
        let lives = self.presence.lives();
        self.presence = World::of_presence(shards, 1);
        self.presence.jump(ms).count_lives(lives).restart(0);
        if let Some((_, links)) = &mut self.realtime {
            links.publishing = publishing(&self.presence, &links.revoked);
        }
        self.turn();
    }

    pub(crate) fn at(&mut self, half: Half) -> &mut World {
        match (&mut self.realtime, half) {
            (Some((realtime, _)), Half::Streams) => realtime,
            _ => &mut self.presence,
        }
    }

    pub(crate) fn check_nothing(&mut self) {
        self.presence.checks = false;
        if let Some((realtime, _)) = &mut self.realtime {
            realtime.checks = false;
        }
    }

    /// So many ms pass.
    pub(crate) fn jump(&mut self, ms: u64) -> &mut Platform {
        self.presence.jump(ms);
        if let Some((realtime, _)) = &mut self.realtime {
            realtime.jump(ms);
        }
        self
    }

    /// So many ms pass, with a turn of all now and then.
    pub(crate) fn pass(&mut self, mut ms: u64) -> &mut Platform {
        while ms > 0 {
            let step_ms = ms.min(DOWN_STEP_MS);
            self.jump(step_ms).turn();
            ms -= step_ms;
        }
        self
    }

    /// All take turns, and tell each other what they have to tell, until all are quiet.
    pub(crate) fn turn(&mut self) -> &mut Platform {
        for _ in 0..ROUNDS_MAX {
            if !self.round() {
                return self;
            }
        }
        panic!("the links spin at {} ms", self.presence.ms());
    }

    fn round(&mut self) -> bool {
        let presence = &mut self.presence;
        let Some((realtime, links)) = &mut self.realtime else {
            presence.turn();
            return false;
        };
        let last = presence.shards() - 1;
        let now = presence.now();
        let mut goes_on = false;
        if links.down != Some(Half::Streams) {
            for (_, outbound) in realtime.outbound() {
                goes_on = true;
                match outbound {
                    Outbound::Beats { datagrams, .. } => {
                        let datagrams = datagrams.iter().filter(|_| links.reach());
                        for datagram in datagrams {
                            presence.datagram(last, datagram);
                        }
                    }
                    outbound => {
                        let effect = links.asking.take(outbound, now.mono);
                        carry_out(realtime, effect);
                    }
                }
            }
            if let Some(request) = links.asking.poll_request(now.mono) {
                goes_on = true;
                let reply = match links.reach() {
                    true => call(presence, last, &request),
                    false => Err(Fault("it is out of reach".into())),
                };
                let follower = Arc::clone(realtime.presence());
                let effects = links
                    .asking
                    .handle_reply(&reply, &follower, &links.nodes, now);
                carry_out(realtime, effects);
            }
        }
        if links.down != Some(Half::Presence) {
            let store = Arc::clone(presence.presence());
            for (_, outbound) in presence.outbound() {
                goes_on = true;
                let effect = links.publishing.take(outbound, &store, now.mono);
                carry_out(presence, effect);
            }
            let up_to = store.published_up_to();
            if let Some(request) = links.publishing.poll_request(&store, up_to, now) {
                goes_on = true;
                if request.method == "PUT" {
                    self.puts
                        .push(String::from_utf8(request.body.clone()).expect("JSON"));
                }
                let reply = match links.reach() {
                    true => call(realtime, last, &request),
                    false => Err(Fault("it is out of reach".into())),
                };
                let effects = links.publishing.handle_reply(&reply, now.mono);
                carry_out(presence, effects);
            }
        }
        goes_on
    }

    /// What has been put to the real-time node since the last look.
    pub(crate) fn take_puts(&mut self) -> Vec<String> {
        std::mem::take(&mut self.puts)
    }

    /// A node is killed and started again after so long.
    pub(crate) fn restart(&mut self, half: Half, down_ms: u64) {
        let Some((_, links)) = &mut self.realtime else {
            self.presence.restart(down_ms);
            return;
        };
        links.down = Some(half);
        let mut left_ms = down_ms;
        while left_ms > 0 {
            let step_ms = left_ms.min(DOWN_STEP_MS);
            // It takes no turns meanwhile.
            self.jump(step_ms).turn();
            left_ms -= step_ms;
        }
        let Some((realtime, links)) = &mut self.realtime else {
            return;
        };
        links.down = None;
        match half {
            Half::Streams => {
                realtime.restart(0);
                links.asking = asking(realtime, &links.revoked);
            }
            Half::Presence => {
                self.presence.restart(0);
                links.publishing = publishing(&self.presence, &links.revoked);
            }
        }
        self.turn();
    }
}

fn asking(realtime: &World, revoked: &Arc<Revoked>) -> Asking {
    Asking::new(1, 0, realtime.shards(), revoked)
}

fn publishing(presence: &World, revoked: &Arc<Revoked>) -> Publishing {
    let store = presence.presence();
    store.expect_links(1);
    Publishing::new(2, instance_of(&presence.secret()), store.link(0), revoked)
}

/// What a link wants done.
pub(crate) fn carry_out(world: &mut World, effects: impl IntoIterator<Item = Effect>) {
    for effect in effects {
        if let Effect::Tell(mail) = effect {
            world.post_all(&mail);
        }
    }
    world.turn();
}

/// A request of a link, and what the other node answers.
pub(crate) fn call(world: &mut World, shard: usize, request: &Request) -> Reply {
    let (method, path, media, body) = (request.method, &request.path, request.media, &request.body);
    let line = |(name, value): &(&str, String)| format!("{name}: {value}\r\n");
    let lines = request.field.as_ref().map_or_else(String::new, line);
    let token = world.key().service_token();
    let bytes = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{lines}\
         Content-Type: {media}\r\nContent-Length: {bytes}\r\n\r\n"
    );
    let peer = world.connect(shard);
    world.send(peer, [head.as_bytes(), body].concat());
    let answer = world.received(peer);
    world.reset(peer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    Ok(Said {
        status: status.expect("a status"),
        node: field(head, "Greendot-Node").and_then(Answerer::parse),
        held: field(head, "Greendot-Feed").and_then(Held::parse),
        life: field(head, "Greendot-Life").and_then(|life| u64::from_str_radix(life, 16).ok()),
        body: body.as_bytes().to_vec(),
    })
}

/// The value of a line of a head.
fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find_map(|(known, value)| (known == name).then_some(value))
}
