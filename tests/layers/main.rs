//! Imports go down only: every path that the sources name is held against the tables below, which
//! are the layers of docs/ARCHITECTURE.md as a list of edges.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

mod crates;
mod judge;
mod paths;
mod tests;
mod tree;

/// A name, and names.
type Table = &'static [(&'static str, &'static str)];

/// Each module, and what it may name. From the ground up: what a row names stands in rows above it.
///
/// The list is exact: an edge that no source has any more must go. A part of a folder may have a
/// row of its own (`engine::calls`); what has none belongs to the row of the folder around it.
#[rustfmt::skip]
const EDGES: Table = &[
    ("time", ""),
    ("trust", ""),
    ("backoff", ""),
    ("version", ""),
    ("lookup", ""),
    ("random", ""),
    ("reach", ""),
    ("redis_url", ""),
    ("cgroup", ""),
    ("cache", ""),
    ("metrics", "time"),
    ("logs", "metrics time"),
    ("planted", ""),
    ("slot", ""),
    ("status", ""),
    ("wire", "status time"),
    ("auth", "time wire"),
    ("key_files", "auth"),
    ("store", "cache cgroup planted random slot status time wire"),
    ("presence", "cache planted random slot status store time wire"),
    ("realtime", "time wire"),
    ("pages", "metrics time version"),
    ("engine", "auth metrics pages planted presence realtime slot status time wire"),
    ("shard", "auth cache engine logs metrics random realtime time wire"),
    (
        "links",
        "auth backoff engine lookup metrics planted presence reach slot status time trust wire",
    ),
    ("fleet", "planted slot status time wire"),
    (
        "bridge",
        "auth backoff engine fleet metrics presence redis_url slot status time trust wire",
    ),
    ("fleet_key", "random wire"),
    ("config", "auth engine reach redis_url slot store wire"),
    ("limits", "cgroup config engine links store"),
    (
        "node",
        "auth bridge cgroup config engine fleet fleet_key key_files limits links logs lookup \
         metrics presence random redis_url shard store time trust version wire",
    ),
    // `greendot store` reads a folder as the presence database keeps it.
    (
        "tools",
        "auth bridge config engine fleet fleet_key key_files limits lookup presence random \
         redis_url store time trust wire",
    ),
    ("cli", "auth config tools version"),
    ("main", "cli config limits logs node time tools"),
    ("loadgen", "time wire"),
];

/// The load generator's modules from the ground up: each names those of earlier rows only, so there
/// is no circle. Above the last row stand its `lib.rs` and `main.rs`.
#[rustfmt::skip]
const LOADGEN: &[&str] = &[
    "affinity clock gone http knee population procfs progress record schedule server_clock servers",
    "seal sse stats truth units",
    "asks chunked common effort exposition graph ledger",
    "fleet report target",
    "answers cause html shards workers",
    "count herd",
    "crew",
    "beats churn cores fanout plan query streams",
    "storm",
    "cli",
];

/// What the tests of a module, which are compiled with it, may name beside.
const EDGES_OF_TESTS: Table = &[
    ("pages", "config wire"),
    ("shard", "presence"),
    ("tools", "metrics pages"),
];

/// Neither may ever name the other, whatever EDGES says.
const STRANGERS: &[(&str, &str)] = &[
    ("presence", "realtime"),
    ("shard", "links"),
    ("shard", "fleet"),
    ("links", "fleet"),
    ("shard", "bridge"),
    ("links", "bridge"),
];

/// What no kernel is needed for: the simulators drive it, and a run is a function of its seed.
const PURE: &[&str] = &[
    "wire", "auth", "presence", "realtime", "pages", "engine", "fleet",
];

/// What asks the kernel, or reads a clock. Tests may.
const KERNEL: &[&str] = &[
    "std::net",
    "std::thread",
    "std::fs",
    "std::time",
    "std::process",
    "rustix",
    "libc",
    "socket2",
    "quinn_udp",
    "greendot::time::Clock",
    "greendot::time::boottime",
];

/// Below these, and yet no more than values.
const VALUES: &[&str] = &[
    "std::net::IpAddr",
    "std::net::Ipv4Addr",
    "std::net::Ipv6Addr",
    "std::net::SocketAddr",
];

/// Crates that only these modules may name.
const KEEPERS: Table = &[
    ("mio", "shard"),
    ("memmap2", "store"),
    ("httparse", "wire"),
    ("tokio", "bridge"),
    ("tokio_rustls", "bridge"),
    ("aws_lc_rs", "auth shard::tls"),
    ("base64", "auth"),
    ("prometheus_client", "pages"),
    ("rustls", "shard::tls trust"),
    ("x509_cert", "shard::tls"),
];

/// What breaks a rule and is known: the file, what it names, since when it is known and why it is
/// so. One that is not needed any more must go.
const KNOWN: &[(&str, &str, &str)] = &[
    ("src/presence/index.rs", "std::thread", CORES),
    ("src/presence/interner.rs", "std::thread", CORES),
    (
        "src/presence/follower.rs",
        "rustix",
        "2026-11-28: a follower's cells stand in a memfd",
    ),
    (
        "src/presence/follower.rs",
        "std::fs",
        "2026-11-28: a follower's cells stand in a memfd",
    ),
];
const CORES: &str = "2026-11-28: users.log is read on all cores at the start";

#[test]
fn imports_go_down_only() {
    let faults = judge::edges(&tree::files());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_load_generator_has_no_circle() {
    let faults = judge::loadgen(&tree::files());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn what_is_pure_asks_no_kernel_and_crates_have_their_keepers() {
    let faults = judge::kernel(&tree::files());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_tables_are_sound() {
    let faults = judge::tables();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
