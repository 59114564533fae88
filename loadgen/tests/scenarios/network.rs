//! A network of the test's own, in which a node can be cut off from servers.
//!
//! Owns a network namespace, which ends with the last process inside, and the packets that are
//! dropped there. Needs the right to make it (root), `ip` and `nft`; where one is missing a
//! scenario that cuts is skipped, which is said.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::thread::UnshareFlags;

/// Groups of nodes' processes: by them the kernel knows whose packets are whose.
const FIRST_GROUP: u32 = 50_001;

/// Connections are marked by who opened them, so that what is dropped is dropped both ways.
const RULES: &str = "table inet cuts {
    set cut { type mark . inet_service; }
    chain out { type filter hook output priority 0; policy accept;
        meta skgid 50001 ct mark set 50001
        meta skgid 50002 ct mark set 50002
        meta skgid 50003 ct mark set 50003
        ct mark . tcp dport @cut drop
        ct mark . tcp sport @cut drop
    }
}";

/// Where processes of this thread run.
pub(crate) struct Network {
    is_own: bool,
}

/// Packets are dropped until this is.
pub(crate) struct Cut(String);

impl Network {
    /// The one that everybody has.
    pub(crate) fn shared() -> Network {
        Network { is_own: false }
    }

    /// Moves this thread, and all processes and threads that it starts, into a new one. None: it
    /// can not be made here, which has been said.
    pub(crate) fn enter() -> Option<Network> {
        // SAFETY: this thread shares no network state with others that it relies on: sockets that
        // are open stay where they are, and descriptors are not touched.
        let entered = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
        let entered = entered.map_err(|error| error.to_string());
        let made = entered
            .and_then(|()| run("ip", &["link", "set", "lo", "up"], ""))
            .and_then(|()| run("nft", &["-f", "-"], RULES));
        if let Err(why) = made {
            eprintln!("notice: no network of a test's own: {why}; skipped");
            return None;
        }
        Some(Network { is_own: true })
    }

    /// How a node's program is started.
    pub(crate) fn command(&self, node: usize, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self.is_own {
            command.gid(group(node));
        }
        command
    }

    /// From now on nothing gets from the node to those ports, or back.
    pub(crate) fn cut(&self, node: usize, ports: &[u16]) -> Cut {
        assert!(self.is_own, "a cut is made in a network of one's own");
        let elements: Vec<String> = ports
            .iter()
            .map(|port| format!("{} . {port}", group(node)))
            .collect();
        let elements = elements.join(", ");
        let added = format!("add element inet cuts cut {{ {elements} }}");
        run("nft", &["-f", "-"], &added).unwrap();
        Cut(elements)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let deleted = format!("delete element inet cuts cut {{ {} }}", self.0);
        if let Err(why) = run("nft", &["-f", "-"], &deleted) {
            eprintln!("a cut is not mended: {why}");
        }
    }
}

fn group(node: usize) -> u32 {
    FIRST_GROUP + node as u32
}

fn run(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    // One that does not read it has failed, and says why.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}
