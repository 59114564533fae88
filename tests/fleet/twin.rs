//! The simulator's servers beside a real one: the same random calls, and the same answers, messages
//! and fields, byte for byte.

use fastrand::Rng;
use greendot::fleet::Life;
use greendot::fleet::calls::{Call, Caller, Mode, Renewal, Vouch, fence, renew};
use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::Kinds;
use greendot::fleet::partition::LANES;
use greendot::fleet::replies::Vouched;
use greendot::fleet::traffic::Reply;
use greendot::status::Status;
use greendot::time::Unix;

use crate::lua::{Data, Library, TEXT};
use crate::redis::Answer;
use crate::world::{BIRTH, HOT, World, user};

const CALLS: u32 = 1_500;
const USERS: [&str; 6] = [
    "ann",
    "bob",
    "carol",
    "dave",
    "h\u{e9}l\u{e8}ne",
    "\u{1f7e2}",
];

struct Twins {
    world: World,
    library: Library,
    data: Data,
}

#[test]
fn the_simulators_library_is_that_of_a_real_redis() {
    let Some(world) = World::start() else {
        return;
    };
    let seed = std::env::var("FLEET_SEED").map_or_else(|_| 7, |seed| seed.parse().unwrap());
    println!("FLEET_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let mut twins = Twins {
        world,
        library: Library::load(),
        data: Data::new(),
    };
    for number in 0..CALLS {
        let call = match random.u8(..20) {
            0 => fence(HOT, life(&mut random, number), BIRTH, twins.world.soon()),
            1 | 2 => twins.renewal(&mut random),
            _ => twins.vouch(&mut random, number),
        };
        twins.check(&call);
    }
}

/// Later ones come as earlier ones are fenced.
fn life(random: &mut Rng, number: u32) -> Life {
    Life((number / 150 + random.u32(..3)).to_be_bytes())
}

impl Twins {
    fn renewal(&mut self, random: &mut Rng) -> Call {
        let renewal = Renewal {
            life: Life(random.u32(..4).to_be_bytes()),
            instance: [random.u8(..20) / 19; 8],
            not_after: self.world.soon(),
            silence_ms: 3,
            amnesty_ms: 1_000,
            info: "10.0.0.1:8080",
        };
        renew(LANES[random.usize(..3)], &renewal)
    }

    fn vouch(&mut self, random: &mut Rng, number: u32) -> Call {
        let mode = match random.u8(..10) {
            0 => Mode::Reap,
            1..4 => Mode::InTurn,
            _ => Mode::Enrol,
        };
        let mut vouch = Vouch::new(&Caller {
            life: life(random, number),
            mode,
            birth: BIRTH,
            k: u64::from(number / 2 + random.u32(..3)),
            not_after: self.world.soon(),
        });
        let mut users = USERS;
        random.shuffle(&mut users);
        for id in &users[..random.usize(1..5)] {
            let now = self.world.now();
            say(&mut vouch, random, (id, now), mode == Mode::Reap);
        }
        vouch.call(HOT)
    }

    fn check(&mut self, call: &Call) {
        let before = self.world.now();
        let real = self.world.link.call(call);
        let words: Vec<&[u8]> = call.words().collect();
        let [_, function, count, rest @ ..] = &words[..] else {
            panic!("{words:?} is no call of a function");
        };
        let (keys, args) = rest.split_at(if *count == b"2" { 2 } else { 1 });
        let key = &keys[0];
        let name = std::str::from_utf8(function).unwrap();
        // When a real server did it can be read from what it wrote.
        let at = self.done_at(name, key, &real).unwrap_or(before);
        let data = &mut self.data;
        let (model, published) = self.library.call(data, at.ms(), name, keys, args);
        assert_eq!(answer(model), sorted(real), "{words:?}");
        for (_, message) in published {
            assert_eq!(self.world.heard(), message);
        }
        let fields = self.world.link.ask([&b"HGETALL"[..], key]).list();
        let fields = fields.into_iter().map(Answer::bytes).collect::<Vec<_>>();
        let real = fields
            .chunks(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()));
        let model = self.data.get(*key).cloned().unwrap_or_default();
        assert_eq!(model, real.collect(), "{words:?}");
        if let Some(ends) = keys.get(1) {
            let real = self.world.link.ask([&b"GET"[..], ends]);
            let model = self.data.get(*ends).and_then(|text| text.get(TEXT));
            let model = model.map_or(Answer::Nothing, |bytes| Answer::Bytes(bytes.clone()));
            assert_eq!(model, real, "{words:?}");
        }
    }

    /// None: nothing that was written says it.
    fn done_at(&mut self, function: &str, key: &[u8], answer: &Answer) -> Option<Unix> {
        let time = |bytes: &[u8]| {
            let ms = bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            Unix::from_ms(ms)
        };
        match (function, answer) {
            ("gd1_vouch", Answer::Bytes(bytes)) => match Vouched::parse(bytes) {
                Ok(Vouched::Done { since, .. }) if since > Unix::default() => Some(since),
                _ => None,
            },
            ("gd1_fence", Answer::Bytes(_)) => {
                let fences = self.world.field(b"\0F")?;
                Some(time(&fences[fences.len() - 6..]))
            }
            ("gd1_renew", Answer::List(_)) => {
                let newest = self.world.link.ask([&b"HGET"[..], key, b"\0t"]).bytes();
                Some(time(&newest[..6]))
            }
            _ => None,
        }
    }
}

fn say(vouch: &mut Vouch, random: &mut Rng, (id, now): (&str, Unix), withdraws: bool) {
    let mut at = || Unix::from_ms(random.u64(1..50));
    let (sent, last_active, beat) = (at(), at(), at());
    let flags = UserFlags::new(Status::ALL[random.usize(..3)], random.u8(..) < 50);
    let bits = random.u8(1..8);
    let kinds = Kinds {
        beat: (bits & 1 != 0).then_some(beat),
        stream: bits & 2 != 0,
        open: bits & 4 != 0,
        unattended: false,
    };
    let claimed = Kinds {
        unattended: random.bool(),
        ..kinds
    };
    let known = match random.u8(..4) {
        0 => Some(now.minus_ms(random.u64(..60))),
        1 => Some(last_active),
        _ => None,
    };
    let part = random.u8(1..4);
    let said = Saying {
        status: (part & 1 != 0).then_some(flags.status()),
        invisible: (part & 2 != 0).then_some(flags.invisible),
    };
    let user = user(id);
    match random.u8(..20) {
        _ if withdraws => vouch.withdraw(user, kinds, last_active),
        0..9 => {
            let flags = (random.u8(..4) > 0).then_some(flags);
            vouch.claim(user, flags, claimed, known)
        }
        9..13 => vouch.withdraw(user, kinds, last_active),
        13..17 => vouch.goodbye(user, kinds, sent, last_active),
        17 => vouch.log_out(user, last_active),
        18 => vouch.set_flags(user, said),
        _ => vouch.erase(user),
    }
}

fn answer(reply: Reply) -> Answer {
    sorted(match reply {
        Reply::Nil => Answer::Nothing,
        Reply::Number(number) => Answer::Number(number),
        Reply::Bytes(bytes) => Answer::Bytes(bytes),
        Reply::Error(why) => Answer::Refused(why),
        Reply::List(list) => Answer::List(list.into_iter().map(answer).collect()),
    })
}

/// The lives of a renewal's answer stand in no order.
fn sorted(answer: Answer) -> Answer {
    let Answer::List(list) = answer else {
        return answer;
    };
    let mut words: Vec<Vec<u8>> = list.into_iter().map(Answer::bytes).collect();
    let mut pairs: Vec<[Vec<u8>; 2]> = Vec::new();
    for pair in words.split_off(1).chunks(2) {
        pairs.push([pair[0].clone(), pair[1].clone()]);
    }
    pairs.sort();
    words.extend(pairs.into_iter().flatten());
    Answer::List(words.into_iter().map(Answer::Bytes).collect())
}
