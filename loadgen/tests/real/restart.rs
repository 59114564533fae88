//! `storm --restart`: the server is restarted in good order, and killed, while all streams are
//! open.

use std::process::Command;

use super::{Turn, generate, own_host, program, value, words};

/// Starts a server and its successors; what is left of them ends with it.
struct Service {
    folder: tempfile::TempDir,
    http: String,
    udp: String,
    _turn: Turn,
}

impl Drop for Service {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.folder.path().join("pid")).unwrap_or_default();
        let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
    }
}

/// `stop SIGNAL` ends the server and waits for that; `start` begins another one at the same
/// addresses with the same files, and returns when it listens. Both are for a shell.
#[expect(clippy::unwrap_used, reason = "the helper of a test")]
fn service() -> Option<(Service, String, String)> {
    let program = program()?;
    let folder = tempfile::tempdir().unwrap();
    let host = own_host();
    let [http, udp] = [8_470, 8_471].map(|port| format!("{host}:{port}"));
    let at = folder.path().display();
    // Whoever waits for the shell's output must not wait for the server's.
    let start = format!(
        "{} serve --http {http} --udp {udp} --shards 2 --data-dir {at}/data --key-file \
         {at}/fleet.key --beat-interval-ms 500 --offline-after-ms 10000 --retry-ms 300 --drain-ms \
         2000 --memory off > {at}/out 2> {at}/err < /dev/null & echo $! > {at}/pid; for i in \
         $(seq 200); do grep -q ^listening {at}/out && exit 0; sleep 0.05; done; exit 1",
        program.display()
    );
    let stop = format!(
        "pid=$(cat {at}/pid); kill -SIGNAL $pid; while grep -qs '^State:.[^ZX]' /proc/$pid/status; \
         do sleep 0.02; done; : > {at}/out; "
    );
    let key_file = folder.path().join("fleet.key");
    std::fs::write(&key_file, "6d".repeat(32)).unwrap();
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&key_file, own).unwrap();
    std::fs::write(folder.path().join("out"), "").unwrap();
    let service = Service {
        folder,
        http,
        udp,
        _turn: Turn::beside(),
    };
    assert!(
        Command::new("sh")
            .args(["-c", &start])
            .status()
            .unwrap()
            .success()
    );
    Some((service, stop, start))
}

fn all_come_back(signal: &str) {
    let Some((service, stop, start)) = service() else {
        return;
    };
    let restart = format!("{}{start}", stop.replace("SIGNAL", signal));
    let servers = [
        "--http",
        &service.http,
        "--udp",
        &service.udp,
        "--restart",
        &restart,
    ];
    let storm = words("storm --streams 100 --rate 1000 --watch 5 --hold 1s");
    let report = generate(service.folder.path(), &[&storm[..], &servers].concat());
    let [back, given_up, flips] =
        ["streams_back", "given_up", "false_transitions"].map(|name| value(&report, name));
    assert_eq!((back, given_up), (100.0, 0.0), "{report:#}");
    assert!(value(&report, "reconnects") >= 100.0, "{report:#}");
    // Nobody was away for so long that it would be true.
    assert_eq!(flips, 0.0, "{report:#}");
    assert!(value(&report, "all_back_s") > 0.0 && value(&report, "connects_per_s_peak") > 0.0);
}

#[test]
fn all_come_back_to_a_server_restarted_in_good_order() {
    all_come_back("TERM");
}

#[test]
fn all_come_back_to_a_server_that_was_killed() {
    all_come_back("KILL");
}
