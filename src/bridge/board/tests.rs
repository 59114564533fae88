use tokio::runtime::Builder;

use super::*;
use crate::bridge::about::View;

use crate::fleet::calls::Call;
use crate::fleet::traffic::{Command, Tag, To};
use crate::redis_url::Servers;

/// Two servers that nobody listens at.
const A: u16 = 1;
const B: u16 = 2;

fn address(port: u16) -> Address {
    Address {
        host: "127.0.0.1".into(),
        port,
    }
}

fn with_board(test: impl FnOnce(&Arc<Board>)) {
    let options = Options {
        servers: Servers::parse("redis://127.0.0.1:1").unwrap(),
        password: None,
        trust: None,
    };
    let partitions = Arc::new(Partitions::new(64).unwrap());
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let board = Arc::new(Board::new(options, partitions, Instant::now()));
        test(&board);
        board.close();
    });
}

/// The lower half of the slots is `low`'s, the rest `high`'s.
fn view(epoch: u64, is_ok: bool, low: u16, high: u16) -> View {
    View {
        epoch,
        is_ok,
        ranges: vec![(0, 8_191, address(low)), (8_192, 16_383, address(high))],
    }
}

fn site(board: &Arc<Board>, port: u16) -> Site {
    board.site(&mut board.state.lock(), &address(port))
}

fn identity(board: &Board, site: Site, run: &str) -> Server {
    board.identify(site, Identity::new(run, run)).unwrap()
}

fn home(board: &Board, partition: Partition) -> Option<u16> {
    let state = board.state.lock();
    let site = state.homes[partition.index()]?;
    Some(state.sites[&site].address.port)
}

fn expect(board: &Board, expected: &[Event]) {
    let events: Vec<Event> = std::iter::from_fn(|| board.pop()).collect();
    assert_eq!(events, expected);
}

#[test]
fn an_older_view_or_one_of_who_is_cut_off_moves_nobody() {
    with_board(|board| {
        let first = board.partitions.all().next().unwrap();
        for (view, expected) in [
            // Better than none.
            (view(1, false, B, B), B),
            (view(5, true, A, B), A),
            (view(4, true, B, B), A),
            (view(6, false, B, B), A),
            (view(5, true, B, A), B),
            (view(6, true, A, B), A),
        ] {
            board.take_view(view);
            assert_eq!(home(board, first), Some(expected));
        }
    });
}

#[test]
fn a_partition_is_heard_from_one_at_a_time() {
    with_board(|board| {
        let partition = board.partitions.all().next().unwrap();
        board.take_view(view(1, true, A, B));
        let (a, b) = (site(board, A), site(board, B));
        let (at_a, at_b) = (identity(board, a, "a"), identity(board, b, "b"));
        let subscribed = |server| Event::Subscribed { partition, server };
        let published = |server| Event::Published {
            partition,
            server,
            message: b"x".into(),
        };
        let unsubscribed = Event::Unsubscribed { partition };
        board.subscribed(b, at_b, partition);
        expect(board, &[]);
        board.subscribed(a, at_a, partition);
        board.published(b, at_b, partition, b"x".into());
        board.published(a, at_a, partition, b"x".into());
        expect(board, &[subscribed(at_a), published(at_a)]);

        // Its home is another: it may say so before the old one hears of it.
        board.take_view(view(2, true, B, B));
        board.subscribed(b, at_b, partition);
        board.unsubscribed(a, partition);
        board.published(a, at_a, partition, b"x".into());
        board.published(b, at_b, partition, b"x".into());
        let moved = [unsubscribed.clone(), subscribed(at_b), published(at_b)];
        expect(board, &moved);

        // The process is another: what was heard has ended before anything else.
        let again = identity(board, b, "other");
        assert_eq!(identity(board, b, "other"), again);
        board.subscribed(b, again, partition);
        let silent = Event::Silent { server: at_b };
        expect(board, &[unsubscribed.clone(), silent, subscribed(again)]);

        // Who imports its key is heard instead, whatever its home confirms meanwhile.
        board.imports(&mut board.state.lock(), a, partition);
        assert_eq!(board.wanted_at(a)[0], Wanted::Asking);
        assert_eq!(board.wanted_at(b)[0], Wanted::Plainly);
        board.subscribed(a, at_a, partition);
        board.subscribed(b, again, partition);
        expect(board, &[unsubscribed.clone(), subscribed(at_a)]);
        assert_eq!(board.wanted_at(b)[0], Wanted::Not);
        board.has_not_moved(b, [partition].into_iter());
        assert_eq!(board.wanted_at(a)[0], Wanted::Not);
        board.subscribed(b, again, partition);
        expect(board, &[unsubscribed.clone(), subscribed(again)]);
        board.subscriptions_down(b);
        expect(board, &[unsubscribed]);
    });
}

#[test]
fn what_waits_is_bounded_and_fails_when_the_connection_is_gone() {
    with_board(|board| {
        let partition = board.partitions.all().next().unwrap();
        let send = |tag| {
            board.send(Command {
                tag: Tag(tag),
                to: To::Partition(partition),
                calls: vec![Call::plain([&b"PING"[..]])],
            });
        };
        let unreached = |tag| Event::Failed {
            tag: Tag(tag),
            why: Failed::Unreached,
        };
        send(0);
        expect(board, &[unreached(0)]);
        board.take_view(view(1, true, A, A));
        send(1);
        expect(board, &[unreached(1)]);
        let a = site(board, A);
        board.commands_up(a);
        (2..2 + queue::QUEUE_MAX as u64).for_each(send);
        expect(board, &[]);
        send(9_999);
        expect(board, &[unreached(9_999)]);
        assert_eq!(
            (board.figures().refused, board.figures().waiting),
            (1, 4_096)
        );
        let first = board.take(a).unwrap();
        board.answer(a, Server(7), first);
        expect(
            board,
            &[Event::Answered {
                tag: Tag(2),
                server: Server(7),
                replies: vec![],
            }],
        );
        board.commands_down(a);
        let all: Vec<Event> = (3..2 + queue::QUEUE_MAX as u64).map(unreached).collect();
        expect(board, &all);
    });
}
