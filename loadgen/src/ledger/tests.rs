use super::*;

const ALLOW: Allowance = Allowance {
    settle_us: 50_000,
    late_us: 1_000_000,
};

/// Two watchers of one publisher; changes every 100 ms, the first one online, sent at 1,000 ms.
fn ledger(changes: u64) -> Ledger {
    let mut ledger = Ledger::new(0, 2, 1);
    for n in 0..changes {
        ledger.cause(0, n % 2 == 0, n * 100_000, 1_000 + n * 100);
    }
    ledger
}

fn tell(ledger: &mut Ledger, watcher: usize, number: u64, after_us: u64) {
    ledger.tell(
        watcher,
        0,
        number.is_multiple_of(2),
        1_000 + number * 100 + 1,
        number * 100_000 + after_us,
    );
}

/// Missing, coalesced, never caused, late, doubled, out of order.
fn sums(ledger: &Ledger) -> [u64; 6] {
    let j = ledger.judge(&ALLOW, 10_000_000);
    [
        j.missing,
        j.coalesced,
        j.never_caused,
        j.late,
        ledger.doubled(),
        ledger.out_of_order(),
    ]
}

#[test]
fn all_is_well() {
    let mut l = ledger(3);
    for n in 0..3 {
        tell(&mut l, 0, n, 400);
        tell(&mut l, 1, n, 900);
    }
    assert_eq!(sums(&l), [0; 6]);
    let j = l.judge(&ALLOW, 10_000_000);
    assert_eq!((j.each.count(), j.each.max_us()), (6, 900));
    assert_eq!((j.first.count(), j.first.max_us()), (3, 400));
    assert_eq!((j.last.count(), j.last.percentile_us(0.0)), (3, 900));
    assert_eq!(
        (l.deliveries(), l.unsettled(&ALLOW), l.changes()),
        (6, 0, 3)
    );
}

#[test]
fn books_kept_by_two_processes_say_the_same() {
    let mut whole = ledger(3);
    let mut parts = [Ledger::new(0, 1, 1), Ledger::new(50, 1, 1)];
    for (watcher, part) in parts.iter_mut().enumerate() {
        for (n, after_us) in [(0, 400), (1, 500), (1, 500), (2, 1_000_001)] {
            if (watcher, n) != (1, 1) {
                tell(&mut whole, watcher, n, after_us);
                tell(part, 0, n, after_us);
            }
        }
    }
    let mut merged = ledger(3);
    for (first, part) in parts.into_iter().enumerate() {
        let text = serde_json::to_string(&part.into_books()).unwrap();
        merged
            .absorb(first, serde_json::from_str(&text).unwrap())
            .unwrap();
    }
    assert_eq!(sums(&merged), [1, 0, 0, 2, 1, 0]);
    assert_eq!(sums(&merged), sums(&whole));
    assert_eq!((merged.surplus(), whole.surplus()), (1, 1));
    assert_eq!(
        (&merged.tellings[..], &whole.tellings[..]),
        (&[4, 2][..], &[4, 2][..])
    );
    assert_eq!((merged.views, merged.told), (whole.views, whole.told));
    let stranger = Ledger::new(0, 1, 2).into_books();
    assert!(ledger(1).absorb(0, stranger).is_none());
    assert!(
        ledger(1)
            .absorb(2, Ledger::new(0, 1, 1).into_books())
            .is_none()
    );
}

#[test]
fn a_dropped_event_is_missing() {
    let mut l = ledger(3);
    for n in 0..3 {
        tell(&mut l, 0, n, 400);
    }
    tell(&mut l, 1, 0, 400);
    tell(&mut l, 1, 2, 400);
    assert_eq!(sums(&l), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn a_dropped_final_event_is_missing_and_unsettled() {
    let mut l = ledger(2);
    (0..2).for_each(|n| tell(&mut l, 0, n, 400));
    tell(&mut l, 1, 0, 400);
    assert_eq!(l.unsettled(&ALLOW), 1);
    assert_eq!(sums(&l), [1, 0, 0, 0, 0, 0]);
}

#[test]
fn there_and_back_in_one_burst_is_no_change() {
    let mut l = Ledger::new(0, 2, 1);
    for n in 0..4 {
        l.cause(0, n % 2 == 0, 0, 1_000);
    }
    // Both set out from offline and are told nothing; then one is told online alone.
    assert_eq!((sums(&l), l.unsettled(&ALLOW)), ([0, 8, 0, 0, 0, 0], 0));
    l.tell(0, 0, true, 1_001, 400);
    assert_eq!((sums(&l), l.unsettled(&ALLOW)), ([1, 6, 0, 0, 0, 0], 1));
}

#[test]
fn an_earlier_state_that_says_the_same_is_not_the_last() {
    let mut l = ledger(3);
    (0..2).for_each(|watcher| tell(&mut l, watcher, 0, 400));
    assert_eq!(l.unsettled(&ALLOW), 2);
    (0..2).for_each(|watcher| tell(&mut l, watcher, 2, 400));
    assert_eq!(l.unsettled(&ALLOW), 0);
}

#[test]
fn a_round_ends_when_all_are_told() {
    let mut l = ledger(1);
    l.begin_round();
    tell(&mut l, 0, 0, 400);
    assert!(!l.round_is_told());
    tell(&mut l, 0, 0, 400);
    assert!(!l.round_is_told());
    tell(&mut l, 1, 0, 400);
    assert!(l.round_is_told());
    l.begin_round();
    assert!(!l.round_is_told());
}

#[test]
fn an_event_told_to_nobody_is_missing() {
    let mut l = ledger(5);
    for n in [0, 3, 4] {
        tell(&mut l, 0, n, 400);
        tell(&mut l, 1, n, 400);
    }
    assert_eq!(sums(&l), [4, 0, 0, 0, 0, 0]);
}

#[test]
fn a_skipped_state_is_coalesced_while_others_are_still_told() {
    let mut l = ledger(3);
    tell(&mut l, 0, 0, 400);
    tell(&mut l, 1, 0, 400);
    // Told to the one only 90 ms after, when the next is due: the other was still waiting and may
    // skip it.
    tell(&mut l, 0, 1, 90_000);
    tell(&mut l, 0, 2, 95_000);
    tell(&mut l, 1, 2, 95_000);
    assert_eq!(sums(&l), [0, 1, 0, 0, 0, 0]);
}

#[test]
fn a_doubled_event_and_one_out_of_order() {
    let mut l = ledger(2);
    for n in [0, 1, 1, 0] {
        tell(&mut l, 0, n, 400);
        tell(&mut l, 1, n, 400);
    }
    assert_eq!(sums(&l), [0, 0, 0, 0, 2, 2]);
    assert_eq!(l.surplus(), 2);
}

#[test]
fn a_state_told_again_in_place_of_a_skipped_one_is_no_surplus() {
    let mut l = ledger(3);
    for n in [0, 2, 2] {
        tell(&mut l, 0, n, 400);
    }
    for n in [0, 1, 2] {
        tell(&mut l, 1, n, 400);
    }
    assert_eq!((l.doubled(), l.surplus()), (1, 0));
    tell(&mut l, 0, 2, 500);
    assert_eq!((l.doubled(), l.surplus()), (2, 1));
    tell(&mut l, 1, 2, 500);
    assert_eq!((l.doubled(), l.surplus()), (3, 2));
}

#[test]
fn a_delayed_event_is_late() {
    let mut l = ledger(1);
    tell(&mut l, 0, 0, 400);
    tell(&mut l, 1, 0, 1_000_001);
    assert_eq!(sums(&l), [0, 0, 0, 1, 0, 0]);
}

#[test]
fn another_status_with_the_same_time_is_another_state() {
    let mut l = ledger(4);
    for n in 0..4 {
        tell(&mut l, 0, n, 400);
    }
    for n in [0, 1, 3] {
        tell(&mut l, 1, n, 400);
    }
    // Watcher 1 is told that the third change was to offline.
    let mut lied_to = ledger(4);
    for n in 0..4 {
        tell(&mut lied_to, 0, n, 400);
        lied_to.tell(
            1,
            0,
            n.is_multiple_of(2) && n != 2,
            1_001 + n * 100,
            n * 100_000 + 400,
        );
    }
    assert_eq!(sums(&l), [1, 0, 0, 0, 0, 0]);
    assert_eq!(sums(&lied_to), [1, 0, 1, 0, 0, 0]);
}

#[test]
fn a_state_that_comes_before_its_cause_is_none() {
    // Offline is told 50 ms after online, and again nothing when the publisher leaves 100 ms after
    // it came.
    let mut l = ledger(4);
    for n in 0..4 {
        let early_ms = if n % 2 == 1 { 50 } else { 0 };
        for watcher in 0..2 {
            l.tell(
                watcher,
                0,
                n % 2 == 0,
                1_001 + n * 100 - early_ms,
                n * 100_000 + 400 - early_ms * 1_000,
            );
        }
    }
    // The last goodbye is told to nobody, and what was told first follows from nothing.
    let [missing, coalesced, never_caused, ..] = sums(&l);
    assert_eq!((missing + coalesced, never_caused), (4, 4));
    assert_eq!(l.unsettled(&ALLOW), 2);
    // By a clock that may be wrong by so much it would be no lie.
    l.set_slack(60);
    assert_eq!(sums(&l), [0; 6]);
}

#[test]
fn a_flip_that_nobody_caused() {
    let mut l = ledger(1);
    for watcher in 0..2 {
        tell(&mut l, watcher, 0, 400);
        l.tell(watcher, 0, false, 1_050, 50_000);
    }
    assert_eq!(l.unsettled(&ALLOW), 2);
    assert_eq!(sums(&l), [0, 0, 2, 0, 0, 0]);
}
