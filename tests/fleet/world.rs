//! A partition in a server, as one node after another sees it.

use greendot::fleet::calls::{Caller, Mode, Vouch};
use greendot::fleet::flags::{Saying, UserFlags};
use greendot::fleet::held::{Enrolment, Here, Kinds, META_FIELD, Meta, life_field, ring_field};
use greendot::fleet::message::Record;
use greendot::fleet::message::{Base, What, encode};
use greendot::fleet::replies::{Outcome, Refusal, Vouched};
use greendot::fleet::{Birth, Life};
use greendot::time::Unix;
use greendot::wire::User;

use crate::redis::{Answer, Link, Server};

pub(crate) const HOT: &str = "gd:{460}";
pub(crate) const BIRTH: Birth = Birth(*b"birthday");
pub(crate) const ANN: Life = Life(*b"ann ");
pub(crate) const BEN: Life = Life(*b"ben ");

/// Sent and last active, where a test does not care.
pub(crate) const SENT: Unix = Unix::from_ms(1_000);
pub(crate) const ACTIVE: Unix = Unix::from_ms(900);

pub(crate) struct World {
    pub link: Link,
    channel: Link,
    /// What has been published up to.
    pub base: Base,
    _server: Option<Server>,
}

/// What one life says next.
pub(crate) struct Said<'w> {
    world: &'w mut World,
    vouch: Vouch,
}

impl World {
    /// None: there is no Redis.
    pub(crate) fn start() -> Option<World> {
        let server = Server::start()?;
        let mut world = World::of(server.link(), server.link());
        world.link.load();
        world._server = Some(server);
        Some(world)
    }

    /// Of a server that has the library.
    pub(crate) fn of(link: Link, mut channel: Link) -> World {
        let subscribed = channel.ask(["SSUBSCRIBE", HOT]).list();
        assert_eq!(subscribed[0], Answer::Bytes(b"ssubscribe".into()));
        World {
            link,
            channel,
            base: Base {
                birth: BIRTH,
                number: 0,
            },
            _server: None,
        }
    }

    /// `life` calls as its `k`th call.
    pub(crate) fn in_turn(&mut self, life: Life, k: u64) -> Said<'_> {
        self.says(life, Mode::InTurn, k)
    }

    pub(crate) fn enrol(&mut self, life: Life, k: u64) -> Said<'_> {
        self.says(life, Mode::Enrol, k)
    }

    pub(crate) fn reap(&mut self, life: Life) -> Said<'_> {
        self.says(life, Mode::Reap, 0)
    }

    fn says(&mut self, life: Life, mode: Mode, k: u64) -> Said<'_> {
        let vouch = Vouch::new(&Caller {
            life,
            mode,
            birth: BIRTH,
            k,
            not_after: self.soon(),
        });
        Said { world: self, vouch }
    }

    /// A time at which a call of this test has long been done.
    pub(crate) fn soon(&mut self) -> Unix {
        self.now().plus_ms(60_000)
    }

    pub(crate) fn now(&mut self) -> Unix {
        let time = self.link.ask(["TIME"]).list();
        let number = |at: usize| -> u64 {
            let digits = String::from_utf8(time[at].clone().bytes()).unwrap();
            digits.parse().unwrap()
        };
        Unix::from_ms(number(0) * 1_000 + number(1) / 1_000)
    }

    pub(crate) fn field(&mut self, field: &[u8]) -> Option<Vec<u8>> {
        match self.link.ask([b"HGET", HOT.as_bytes(), field]) {
            Answer::Nothing => None,
            answer => Some(answer.bytes()),
        }
    }

    pub(crate) fn here(&mut self, user: &str) -> Option<Here> {
        let value = self.field(user.as_bytes())?;
        Some(Here::parse(&value).unwrap())
    }

    pub(crate) fn meta(&mut self) -> Option<Meta> {
        let value = self.field(META_FIELD)?;
        Some(Meta::parse(&value).unwrap())
    }

    pub(crate) fn enrolment(&mut self, life: Life) -> Option<Enrolment> {
        let value = self.field(&life_field(life))?;
        Some(Enrolment::parse(&value).unwrap())
    }

    /// How many users `life` claims, by its own counter.
    pub(crate) fn count(&mut self, life: Life) -> u32 {
        self.enrolment(life).map_or(0, |enrolment| enrolment.count)
    }

    pub(crate) fn ring(&mut self, number: u64) -> Option<Vec<u8>> {
        self.field(&ring_field(number))
    }

    /// All of the partition, to be compared or put back.
    pub(crate) fn dump(&mut self) -> Answer {
        self.link.ask(["DUMP", HOT])
    }

    pub(crate) fn restore(&mut self, dump: Answer) {
        let words = [
            b"RESTORE".to_vec(),
            HOT.into(),
            b"0".into(),
            dump.bytes(),
            b"REPLACE".into(),
        ];
        assert_eq!(self.link.ask(words), Answer::Word("OK".to_owned()));
    }

    /// What comes next on the subscription.
    pub(crate) fn push(&mut self) -> Vec<Answer> {
        self.channel.read().list()
    }

    /// The next message's bytes.
    pub(crate) fn heard(&mut self) -> Vec<u8> {
        let push = self.push();
        assert_eq!(push[0], Answer::Bytes(b"smessage".into()));
        assert_eq!(push[1], Answer::Bytes(HOT.into()));
        push[2].clone().bytes()
    }

    /// Nothing was published that has not been heard.
    pub(crate) fn expect_silence(&mut self) {
        // What was published before this would come before it.
        self.link.ask(["SPUBLISH", HOT, "silence"]);
        assert_eq!(self.heard(), b"silence");
    }

    pub(crate) fn expect_message(&mut self, since: Unix, said: &[(&str, What)]) {
        let records: Vec<Record<'_>> = said
            .iter()
            .map(|&(id, what)| Record {
                user: user(id),
                what,
            })
            .collect();
        let expected = encode(self.base, since, &records);
        assert_eq!(self.heard(), expected);
        self.base.number += 1;
        let number = self.base.number;
        assert_eq!(self.ring(number), Some(expected), "the ring keeps it");
    }
}

impl Said<'_> {
    pub(crate) fn claim(mut self, id: &str, kinds: Kinds) -> Self {
        self.vouch
            .claim(user(id), Some(UserFlags::PLAIN), kinds, None);
        self
    }

    /// Its node was told that it is here as that, since then.
    pub(crate) fn claim_as(
        mut self,
        id: &str,
        flags: impl Into<Option<UserFlags>>,
        kinds: Kinds,
        known: Unix,
    ) -> Self {
        self.vouch.claim(user(id), flags.into(), kinds, Some(known));
        self
    }

    pub(crate) fn withdraw(mut self, id: &str, kinds: Kinds) -> Self {
        self.vouch.withdraw(user(id), kinds, ACTIVE);
        self
    }

    pub(crate) fn goodbye(mut self, id: &str, kinds: Kinds, sent: Unix) -> Self {
        self.vouch.goodbye(user(id), kinds, sent, ACTIVE);
        self
    }

    pub(crate) fn log_out(mut self, id: &str) -> Self {
        self.vouch.log_out(user(id), ACTIVE);
        self
    }

    pub(crate) fn say(mut self, id: &str, said: Saying) -> Self {
        self.vouch.set_flags(user(id), said);
        self
    }

    pub(crate) fn set_flags(self, id: &str, flags: UserFlags) -> Self {
        let (status, invisible) = (Some(flags.status()), Some(flags.invisible));
        self.say(id, Saying { status, invisible })
    }

    pub(crate) fn erase(mut self, id: &str) -> Self {
        self.vouch.erase(user(id));
        self
    }

    pub(crate) fn answer(self) -> Answer {
        self.world.link.call(&self.vouch.call(HOT))
    }

    pub(crate) fn vouched(self) -> Vouched {
        Vouched::parse(&self.answer().bytes()).unwrap()
    }

    pub(crate) fn refusal(self) -> Refusal {
        let before = self.world.dump();
        let refused = self.world.link.call(&self.vouch.call(HOT)).refused();
        assert_eq!(self.world.dump(), before, "a refused call changes nothing");
        Refusal::parse(&refused).unwrap_or_else(|| panic!("{refused}"))
    }

    /// What came of each user, and the time of the last message.
    pub(crate) fn done(self) -> (Vec<Outcome>, Unix) {
        match self.vouched() {
            Vouched::Done {
                outcomes, since, ..
            } => (outcomes, since),
            other => panic!("{other:?}"),
        }
    }

    /// Nobody is told anything.
    pub(crate) fn expect_quiet(self, outcomes: &[Outcome]) {
        let World { base, .. } = *self.world;
        let Said { world, vouch } = self;
        let answer = world.link.call(&vouch.call(HOT)).bytes();
        let Vouched::Done {
            number,
            outcomes: found,
            ..
        } = Vouched::parse(&answer).unwrap()
        else {
            panic!("{answer:?}");
        };
        assert_eq!((&found[..], number), (outcomes, base.number));
        world.expect_silence();
    }

    /// One message, of these records, and no other.
    pub(crate) fn expect(self, outcomes: &[Outcome], said: &[(&str, What)]) {
        let Said { world, vouch } = self;
        let answer = world.link.call(&vouch.call(HOT)).bytes();
        let Vouched::Done {
            birth,
            number,
            since,
            outcomes: found,
            ..
        } = Vouched::parse(&answer).unwrap()
        else {
            panic!("{answer:?}");
        };
        assert_eq!(found, outcomes);
        world.expect_message(since, said);
        let meta = world.meta().unwrap();
        let found = (meta.birth, meta.number, meta.since);
        assert_eq!(found, (birth, number, since));
        assert_eq!((birth, number), (world.base.birth, world.base.number));
        world.expect_silence();
    }
}

pub(crate) fn user(id: &str) -> User<'_> {
    User::from_text(id).unwrap()
}

pub(crate) const fn beat() -> Kinds {
    Kinds::beat(SENT)
}

/// It has gone, and said nothing.
pub(crate) fn gone(flags: UserFlags) -> What {
    What::Gone {
        flags,
        last_active: ACTIVE,
        said_at: None,
    }
}
