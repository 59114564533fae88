//! greendot behind the proxies and under the readers that the world has: nginx, HAProxy, Caddy,
//! Apache httpd and Varnish, each with its file of docs/deploy; Python's and npm's libraries for
//! event streams.
//!
//! What is not installed is skipped with a notice; `tests/run` installs all. Nothing is held
//! against a clock: the server's pings are ten minutes apart where a proxy might hold events back
//! until the next one, so that what is held back does not come at all.

#[path = "../e2e/harness.rs"]
#[allow(dead_code, reason = "it is the harness of tests/e2e")]
mod harness;
#[path = "../e2e/http.rs"]
#[allow(dead_code, reason = "see harness")]
mod http;
#[path = "../e2e/process.rs"]
#[allow(dead_code, reason = "see harness")]
mod process;
#[path = "../e2e/scrape.rs"]
#[allow(dead_code, reason = "see harness")]
mod scrape;
#[path = "../e2e/stream.rs"]
#[allow(dead_code, reason = "see harness")]
mod stream;

mod client;
mod proxies;
mod proxy;
mod readers;
