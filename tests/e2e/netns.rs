//! Networks of their own: namespaces, cables between them, and packets that are lost.
//!
//! Owns what it makes in the kernel: a namespace and its cables go with their [`Namespace`], also
//! when a test panics. Needs the right to make them (root), the commands `ip` and `nft`, and a
//! kernel with veth and nf_tables; where one is missing [`Namespace::new`] or
//! [`Namespace::connect`] says so on stderr and there is none, so that a test can be skipped for
//! all to see.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// One network namespace, with its loopback device up.
pub(crate) struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// A new one. None: it can not be made here, which has been said.
    pub(crate) fn new() -> Option<Namespace> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "greendot-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let made = try_run("nft", &["--version"], "")
            .and_then(|()| try_run("ip", &["netns", "add", &name], ""));
        made.map_err(|why| say_missing(&why)).ok()?;
        let file = File::open(format!("/run/netns/{name}")).expect("ip has made it");
        let namespace = Namespace { name, file };
        namespace.ip(&["link", "set", "lo", "up"]);
        let firewall = namespace.try_nft("table inet any {}");
        firewall.map_err(|why| say_missing(&why)).ok()?;
        Some(namespace)
    }

    /// A cable (a veth pair) between two namespaces, each end with its address in the same /24.
    /// None: there are no cables here, which has been said.
    pub(crate) fn connect(
        &self,
        address: Ipv4Addr,
        other: &Namespace,
        other_address: Ipv4Addr,
    ) -> Option<()> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cable = NEXT.fetch_add(1, Ordering::Relaxed);
        // Device names have 15 bytes at most.
        let (here, there) = (format!("gd{cable}a"), format!("gd{cable}b"));
        let pair = ["link", "add", &here, "type", "veth", "peer", "name", &there];
        let made = try_run(
            "ip",
            &[&["-n", &self.name], &pair[..], &["netns", &other.name]].concat(),
            "",
        );
        made.map_err(|why| say_missing(&why)).ok()?;
        for (end, device, address) in [(self, here, address), (other, there, other_address)] {
            end.ip(&["address", "add", &format!("{address}/24"), "dev", &device]);
            end.ip(&["link", "set", &device, "up"]);
        }
        Some(())
    }

    /// Runs `work` in a thread inside. Sockets that it opens, threads and processes that it starts
    /// stay inside.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("who may make it");
            work()
        };
        let joined = std::thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs `ip ARGS` inside.
    pub(crate) fn ip(&self, args: &[&str]) {
        must_run("ip", &[&["-n", &self.name], args].concat(), "");
    }

    /// Gives `script` to nft(8) inside.
    pub(crate) fn nft(&self, script: &str) {
        self.try_nft(script)
            .unwrap_or_else(|why| panic!("nft {script}: {why}"));
    }

    fn try_nft(&self, script: &str) -> Result<(), String> {
        try_run(
            "ip",
            &["netns", "exec", &self.name, "nft", "-f", "-"],
            script,
        )
    }

    /// From now on no packet gets in or out: to the others this host has vanished without a word.
    pub(crate) fn vanish(&self) {
        self.nft(
            "table inet vanished {
                chain in { type filter hook input priority 0; policy drop; }
                chain out { type filter hook output priority 0; policy drop; }
            }",
        );
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(why) = try_run("ip", &["netns", "delete", &self.name], "") {
            eprintln!("namespace {} is left: {why}", self.name);
        }
    }
}

/// Not captured by the test harness, as what print! says would be.
fn say_missing(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(
        std::io::stderr(),
        "notice: {test} has no network of its own: {why}"
    );
}

fn must_run(program: &str, args: &[&str], input: &str) {
    try_run(program, args, input).unwrap_or_else(|why| panic!("{program} {args:?}: {why}"));
}

fn try_run(program: &str, args: &[&str], input: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    // One that does not read it has failed, and says why.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it is our child");
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}
