//! A server whose log goes nowhere: its reader has died, or reads nothing any more, or the disk is
//! full.

use std::fs::{File, OpenOptions};
use std::io::{PipeReader, PipeWriter, Write};
use std::process::Stdio;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;

use crate::harness::{Home, Server, until};
use crate::scrape::Metrics;

/// Makes it log from a shard's thread: it runs out of descriptors and warns of that.
fn exhaust_descriptors(server: &Server) {
    server.limit_descriptors(32);
    let conns: Vec<_> = (0..40).map(|_| server.connect()).collect();
    drop(conns);
    // Accepted in order: when one that comes behind them is alone, all have gone.
    let metrics = until("it serves again", || {
        let answer = server.get("/metrics");
        let metrics = (answer.status == 200).then(|| Metrics::parse(&answer.text()))?;
        (metrics.sum("greendot_conns") == 1.0).then_some(metrics)
    });
    let hits = metrics.sum("greendot_limit_hits_total{limit=\"nofile\"}");
    assert!(hits >= 1.0, "the limit was not reached");
}

/// It is told to end, with a stream open that is told goodbye.
fn drains(mut server: Server) {
    let mut stream = server.stream("user=ann");
    stream.begin();
    server.process.signal(Signal::TERM);
    stream.expect("goodbye");
    assert_eq!(server.process.wait().code(), Some(0));
}

fn pipe() -> (PipeReader, PipeWriter) {
    std::io::pipe().expect("a pipe can be made")
}

#[test]
fn a_dead_reader_of_the_log_costs_nothing_but_the_log() {
    let home = Home::new();
    let (reader, writer) = pipe();
    let server = home.serve_into(Stdio::from(writer), &["--shards=1", "--drain-ms=100"]);
    drop(reader);
    exhaust_descriptors(&server);
    drains(server);
    // What it had was written back.
    let server = home.serve(&[]);
    server.expect_log("1 users known");
    server.expect_log("it was closed cleanly");
}

#[test]
fn a_full_disk_under_the_log_costs_nothing_but_the_log() {
    let home = Home::new();
    let full = OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let server = home.serve_into(Stdio::from(full), &["--shards=1", "--drain-ms=100"]);
    exhaust_descriptors(&server);
    drains(server);
}

/// A terminal that was stopped with Ctrl-S, a log shipper that hangs: open, and full.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let home = Home::new();
    let (reader, writer) = pipe();
    fill(&writer);
    let server = home.serve_into(Stdio::from(writer), &["--shards=1", "--drain-ms=100"]);
    exhaust_descriptors(&server);
    drains(server);
    drop(reader);
}

fn fill(writer: &PipeWriter) {
    let flags = fcntl_getfl(writer).expect("a pipe has flags");
    fcntl_setfl(writer, flags | OFlags::NONBLOCK).expect("they can be set");
    let mut file = File::from(std::os::fd::OwnedFd::from(
        writer.try_clone().expect("a descriptor is free"),
    ));
    while file.write(&[b'\n'; 4_096]).is_ok() {}
    // The flags are the open file's, which the server shares.
    fcntl_setfl(writer, flags).expect("they can be set");
}
