//! Mail is a hint: what a full mailbox did not take is read from the published states.

use greendot::metrics::Counter;

use super::harness::{World, record, snapshot, told, told_of_many};

#[test]
fn what_was_lost_is_told_after_a_resync() {
    let mut world = World::with(2, |settings| settings.mailbox_max = 2);
    let users: Vec<String> = (0..20).map(|n| format!("u{n:02}")).collect();
    // Half of them have slots; the others are watched by name.
    for user in &users[..10] {
        world.beat(0, &[user]);
    }
    let (alice, _) = world.stream(1, &format!("watch={}", users.join("&watch=")), 20);
    world.received(alice);
    world.at(1_000).hold_mail(1, true);
    for (n, user) in users.iter().enumerate() {
        world.at(1_000 + n as u64 * 10);
        if n < 10 {
            world.leave(0, &[user]);
        } else {
            world.beat(0, &[user]);
        }
        world.turn();
    }
    world.expect_nothing(alice);
    let at = world.ms();
    world.hold_mail(1, false).turn();
    let received = world.received(alice);
    for (n, user) in users.iter().enumerate() {
        let ms = 1_000 + n as u64 * 10;
        let status = if n < 10 { "offline" } else { "online" };
        let expected = record(user, status, ms, ms);
        assert!(received.contains(&expected), "{user} in {received}");
    }
    assert!(received.ends_with(&told(at, &record("u19", "online", at, at))));
    assert_eq!(world.count(1, Counter::Resyncs), 1);
    assert_eq!(world.count(1, Counter::LimitMailbox), 1);
    // Nothing is left by name, and later changes come by mail again.
    world.engine(1).check_invariants();
    world.at(2_000).leave(0, &["u15"]);
    assert!(
        world
            .received(alice)
            .contains(&record("u15", "offline", 2_000, 2_000))
    );
}

/// Delivery is at least once: a state read before the word of it arrives is told again with that
/// word, and stays as it was.
#[test]
fn a_state_read_ahead_of_its_mail_is_told_again() {
    let mut world = World::with(2, |settings| settings.outbox_bytes_max = 2_048);
    // Behind a snapshot.
    world
        .beat(0, &["bob"])
        .at(10)
        .hold_mail(1, true)
        .leave(0, &["bob"]);
    let (alice, _) = world.stream(1, "watch=bob", 1);
    let left = record("bob", "offline", 10, 10);
    world.expect(alice, snapshot(10, std::slice::from_ref(&left)));
    world.hold_mail(1, false);
    world.expect(alice, told(10, &left));
    world.expect_nothing(alice);

    // In place of a state that was skipped.
    let users: Vec<String> = (0..40).map(|n| format!("u{n:02}")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let (alice, _) = world.stream(1, &format!("watch={}", users.join("&watch=")), 40);
    world.received(alice);
    world.stall(alice).at(20).beat(0, &users).turn();
    world.hold_mail(1, true).at(30).leave(0, &users).turn();
    let received = world.read(alice, None).received(alice);
    let told_of =
        |received: &str, record: String| received.matches(&format!("data: {record}\n\n")).count();
    let mut skipped = 0;
    for user in &users {
        let [online, offline] = [("online", 20), ("offline", 30)]
            .map(|(status, since)| told_of(&received, record(user, status, since, since)));
        assert_eq!(online + offline, 1, "{user} in {received}");
        skipped += offline;
    }
    assert!((1..40).contains(&skipped), "{skipped} skipped");
    let received = world.hold_mail(1, false).received(alice);
    for user in &users {
        assert_eq!(
            told_of(&received, record(user, "offline", 30, 30)),
            1,
            "{user} in {received}"
        );
    }
    assert_eq!(received.matches("event: presence").count(), 40);
}

#[test]
fn a_lost_look_is_found_by_the_owners_sweep() {
    let mut world = World::with(2, |settings| settings.mailbox_max = 1);
    world.make_slots(4_096);
    let (alice, _) = world.stream(1, "watch=a&watch=b&watch=c", 3);
    world.received(alice);
    world.hold_mail(1, true);
    for user in ["a", "b", "c"] {
        world.beat(0, &[user]).turn();
    }
    world.expect_nothing(alice);
    world.hold_mail(1, false);
    world.at(250);
    let received = world.received(alice);
    for user in ["a", "b", "c"] {
        assert!(
            received.contains(&format!("\"user\":\"{user}\",\"status\":\"online\"")),
            "{received}"
        );
    }
}

#[test]
fn a_resync_over_many_slots_takes_many_turns() {
    let mut world = World::with(2, |settings| settings.mailbox_max = 1);
    world.checks = false;
    world.make_slots(40_960);
    world.beat(0, &["first"]);
    world.make_slots(49_152);
    world.beat(0, &["second"]).turn();
    let (alice, _) = world.stream(1, "watch=first&watch=second", 2);
    world.received(alice);
    world.hold_mail(1, true).at(70_000);
    for (ms, user) in [(70_000, "first"), (70_010, "second"), (70_020, "third")] {
        world.at(ms).beat(0, &[user]).turn();
    }
    world.hold_mail(1, false);
    let received = world.received(alice);
    assert!(
        received.contains(&record("first", "online", 70_000, 70_000)),
        "{received}"
    );
    assert!(
        received.contains(&record("second", "online", 70_010, 70_010)),
        "{received}"
    );
    assert_eq!(world.count(1, Counter::Resyncs), 1);
}

#[test]
fn a_resync_goes_on_while_mail_overflows() {
    let mut world = World::with(2, |settings| settings.mailbox_max = 1);
    world.checks = false;
    world.make_slots(49_152);
    world.beat(0, &["last"]).at(10).leave(0, &["last"]).at(20);
    let (alice, _) = world.stream(1, "watch=last", 1);
    world.expect(alice, snapshot(20, &[record("last", "offline", 10, 10)]));
    // Each time, shard 0 posts two turns' transitions into a mailbox for one; shard 1 takes a turn.
    let lose = |world: &mut World, users: [&str; 2]| {
        for user in users {
            world.beat(0, &[user]).pass_without(1, 100);
        }
        world.pass_without(0, 100);
    };
    lose(&mut world, ["x", "last"]);
    let at = world.ms() - 200;
    for n in 0..30 {
        lose(&mut world, [&format!("a{n}"), &format!("b{n}")]);
    }
    world.has_received(alice, &record("last", "online", at, at));
    assert_eq!(world.count(1, Counter::Resyncs), 31);
}

/// A stream that resumed from an id would never be told of what its shard had not heard of for
/// longer than the slack of a resume.
#[test]
fn a_shard_that_hears_late_tells_no_ids() {
    let mut world = World::new(2);
    // Shard 1 owns carol, shard 0 owns bob.
    world.make_slots(4_096);
    world.beat(1, &["carol"]).turn().make_slots(8_192);
    world
        .beat(0, &["bob"])
        .at(10)
        .leave(0, &["bob", "carol"])
        .at(20);
    let (alice, _) = world.stream(1, "watch=bob&watch=carol", 2);
    world.received(alice);

    // Mail that was long on its way.
    world.hold_mail(1, true).at(1_000).beat(0, &["bob"]).turn();
    world.at(7_000).hold_mail(1, false);
    world.expect(alice, told_of_many(&record("bob", "online", 1_000, 1_000)));
    world.at(7_100).beat(1, &["carol"]);
    world.expect(alice, told(7_100, &record("carol", "online", 7_100, 7_100)));

    // A shard that may publish what it decided long ago.
    world
        .pass_without(0, 5_100)
        .leave(1, &["carol"])
        .pass_without(0, 100);
    world.expect(
        alice,
        told_of_many(&record("carol", "offline", 12_200, 12_200)),
    );
    world.at(12_400).beat(1, &["carol"]);
    world.expect(
        alice,
        told(12_400, &record("carol", "online", 12_400, 12_400)),
    );

    // A resync under way.
    world.make_slots(100_000);
    world
        .at(13_000)
        .lose_mail(1)
        .leave(1, &["carol"])
        .pass_without(0, 100);
    let received = world.received(alice);
    assert!(
        received.contains(&told_of_many(&record("carol", "offline", 13_000, 13_000))),
        "{received}"
    );
    world.at(14_000).beat(1, &["carol"]);
    let received = world.received(alice);
    assert!(
        received.ends_with(&told(14_000, &record("carol", "online", 14_000, 14_000))),
        "{received}"
    );
}

/// What was published just before looks an hour old after it: no slack of a resume reaches back so
/// far.
#[test]
fn no_id_is_told_for_a_while_after_a_forward_step() {
    let mut world = World::new(2);
    world.make_slots(4_096);
    world.beat(1, &["carol"]).turn().make_slots(8_192);
    world
        .beat(0, &["bob"])
        .at(10)
        .leave(0, &["bob", "carol"])
        .at(20);
    let (alice, _) = world.stream(1, "watch=bob&watch=carol", 2);
    world.received(alice);
    const STEP: u64 = 3_600_000;
    world.at(1_000).hold_mail(1, true).beat(0, &["bob"]).turn();
    world.step_wall(STEP as i64).at(2_000).beat(1, &["carol"]);
    let carol = |status, ms: u64| record("carol", status, STEP + ms, STEP + ms);
    world.expect(alice, told_of_many(&carol("online", 2_000)));
    world.hold_mail(1, false);
    world.expect(alice, told_of_many(&record("bob", "online", 1_000, 1_000)));
    // The first turn after the step was at 1,000 ms.
    world.at(10_990).leave(1, &["carol"]);
    world.expect(alice, told_of_many(&carol("offline", 10_990)));
    world.at(11_100).beat(1, &["carol"]);
    world.expect(alice, told(STEP + 11_100, &carol("online", 11_100)));
}

/// What a piece of mail costs of a turn's budget is its weight, in production as in every test: an
/// edit of a thousand watches is worth seventeen hints.
#[test]
fn heavy_mail_uses_up_a_turn() {
    let mut world = World::with(2, |settings| settings.mail_per_turn_max = 64);
    let (alice, id) = world.stream(1, "", 0);
    let names: Vec<String> = (0..1_024).map(|n| format!("\"u{n:04}\"")).collect();
    let edit = format!("{{\"add\":[{}]}}", names.join(","));
    world.hold_mail(1, true);
    let askers: Vec<_> = (0..10).map(|_| world.connect(0)).collect();
    for asker in &askers {
        world.post(*asker, &format!("/v1/stream/{id}/watch"), &edit);
    }
    world.turn();
    let received = world.count(1, Counter::MailReceived);
    world.hold_mail(1, false).turn_of(1);
    // Three weigh 51, and the fourth begins within the budget of 64.
    assert_eq!(world.count(1, Counter::MailReceived) - received, 4);
    assert_eq!(world.count(1, Counter::LimitMailPerTurn), 1);
    world.turn();
    assert_eq!(world.count(1, Counter::MailReceived) - received, 10);
    assert_eq!(world.count(1, Counter::LimitMailPerTurn), 2);
    for asker in askers {
        let answer = world.received(asker);
        assert!(answer.ends_with("{\"watching\":1024}"), "{answer}");
    }
    assert!(world.received(alice).contains("u1023"));
}
