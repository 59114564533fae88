//! A user is erased at its presence node: what real-time nodes make of it.

use crate::harness::{pause, until};
use crate::http::Conn;

use super::watcher::Watcher;
use super::world::{Setup, Split};

#[test]
fn watchers_at_real_time_nodes_are_told_of_an_erasure_and_the_users_streams_end_there() {
    let setup = Setup {
        flags: &[
            "--beat-interval-ms=30s",
            "--offline-after-ms=60s",
            "--shards=2",
        ],
        // For bob, for who stays, and for bob when he comes back.
        presence_flags: &["--users-max=3"],
        taps: None,
    };
    Split::run(setup, |split| {
        let users = split.users_of(0, 2);
        let bob = &users[0];
        let mut watchers = [0, 1].map(|node| Watcher::new(split.realtime[node].front(), &users));
        let mut streams = users.iter().map(|user| {
            let mut stream = split.realtime[1].publish(user);
            stream.expect("hello");
            stream.expect("snapshot");
            stream
        });
        let (mut own, mut other) = (streams.next().unwrap(), streams.next().unwrap());
        watchers
            .iter_mut()
            .for_each(|watcher| watcher.expect_all(&users, true));
        let since = watchers[0].last(bob).since();
        let erase = |http| {
            let token = split.key.service_token();
            let path = format!("/v1/presence/{bob}");
            let mut conn = Conn::to(http);
            conn.send(
                format!(
                    "DELETE {path} HTTP/1.1\r\nHost: e2e\r\nAuthorization: Bearer {token}\r\n\r\n"
                )
                .as_bytes(),
            );
            conn.answer().status
        };
        assert_eq!(erase(split.realtime[0].server().http), 405);
        assert_eq!(erase(split.presence[0].server().http), 204);
        for watcher in &mut watchers {
            watcher.read_until("bob is gone", |watcher| {
                watcher.last(bob).online == Some(false)
            });
            assert_eq!(watcher.last(bob).last_active, None);
        }
        own.expect("bye");
        // A beat of the erasure's own millisecond is taken for one from before it.
        pause(20);
        // Who comes back is new to everybody.
        split.sender(0).beat(&[bob]);
        for watcher in &mut watchers {
            watcher.expect_all(&users, true);
            assert!(watcher.last(bob).since() > since);
        }
        other.expect_quiet(100);
        // All real-time nodes have been told, so his first slot is another's.
        let carol = &split.users_of(0, 3)[2];
        until("carol has the slot", || {
            split.sender(0).beat(&[carol]);
            split.presence[0]
                .server()
                .record(carol)
                .online
                .then_some(())
        });
    });
}
