//! The check sees what it must: tricky sources, and the exact faults that they are.

use crate::judge;
use crate::paths;
use crate::tree::{self, File};

/// What `text`, the source of engine::mail, names in paths of more than one segment.
fn named(text: &str) -> Vec<String> {
    let source = paths::read(text, &["engine", "mail"]);
    let named = source
        .named
        .iter()
        .filter(|named| named.path.len() > 1 || named.in_use);
    named
        .map(|named| {
            let test = if named.test { "test " } else { "" };
            format!("{test}{} {}", named.line, named.path.join("::"))
        })
        .collect()
}

fn files(sources: &[(&str, &str)]) -> Vec<File> {
    tree::read(
        sources
            .iter()
            .map(|(path, text)| (*path, (*text).to_owned())),
    )
}

/// The edges' faults of these sources, without what is said of edges that they lack.
fn faults(sources: &[(&str, &str)]) -> Vec<String> {
    let mut faults = judge::edges(&files(sources));
    faults.retain(|fault| !fault.starts_with("no source has"));
    faults
}

#[test]
fn a_use_is_read_in_every_form() {
    assert_eq!(named("use crate::wire;"), ["1 crate::wire"]);
    assert_eq!(
        named("pub(crate) use crate::wire::user as w;"),
        ["1 crate::wire::user"]
    );
    assert_eq!(named("use super::super::wire::{self};"), ["1 crate::wire"]);
    assert_eq!(named("use self::super::super::wire::*;"), ["1 crate::wire"]);
    assert_eq!(
        named("use self::inner::A;"),
        ["1 crate::engine::mail::inner::A"]
    );
    assert_eq!(named("use ::wire::A;"), ["1 wire::A"]);
    assert_eq!(named("use crate::r#type::A;"), ["1 crate::type::A"]);
    assert_eq!(
        named("use crate::{\n  time::{self, Now as N},\n  wire::{sse::{A, *}, user},\n};"),
        [
            "2 crate::time",
            "2 crate::time::Now",
            "3 crate::wire::sse::A",
            "3 crate::wire::sse",
            "3 crate::wire::user"
        ]
    );
    // All of a crate under another name.
    assert_eq!(named("use crate as root;"), ["1 crate"]);
    assert_eq!(named("use crate::{self as root};"), ["1 crate"]);
    assert_eq!(named("use super::super::*;"), ["1 crate"]);
    assert_eq!(named("use std as s;"), ["1 std"]);
    // A type that captures a lifetime imports nothing.
    assert_eq!(
        named("fn f<'a>() -> impl Sized + use<'a> { crate::wire::A }"),
        ["1 crate::wire::A"]
    );
}

#[test]
fn paths_are_read_wherever_they_stand() {
    assert_eq!(
        named("let x = crate::wire::User::parse(b);"),
        ["1 crate::wire::User::parse"]
    );
    assert_eq!(
        named("fn f(a: &super::super::wire::A) {}"),
        ["1 crate::wire::A"]
    );
    assert_eq!(
        named("assert!(matches!(x, crate::wire::A(_)));"),
        ["1 crate::wire::A"]
    );
    assert_eq!(
        named("macro_rules! m { () => { $crate::wire::a() } }"),
        ["1 crate::wire::a"]
    );
    assert_eq!(
        named("#[clap(value_parser = crate::wire::parse)]"),
        ["1 crate::wire::parse"]
    );
    assert_eq!(
        named("let v = Vec::<crate::wire::A>::new();"),
        ["1 crate::wire::A"]
    );
    assert_eq!(named("<crate::wire::A as T>::f()"), ["1 crate::wire::A"]);
    assert_eq!(
        named("pub(in crate::engine) fn f() {}"),
        ["1 crate::engine"]
    );
    assert_eq!(
        named("mod a { fn f() { super::super::g() } }"),
        ["1 crate::engine::g"]
    );
}

#[test]
fn comments_and_strings_name_nothing() {
    let empty: [String; 0] = [];
    assert_eq!(
        named("// use crate::a;\n/* use crate::b; /* nested */ use crate::c; */"),
        empty
    );
    assert_eq!(named("//! [crate::a]\n/// [crate::b]\nstruct S;"), empty);
    assert_eq!(named(r##"const A: &str = r#"" use crate::a; "#;"##), empty);
    assert_eq!(named(r#"const A: &str = "\" use crate::a; ";"#), empty);
    assert_eq!(
        named("const A: char = '\"'; use crate::wire; const B: char = '\"';"),
        ["1 crate::wire"]
    );
    assert_eq!(
        named("fn f<'a>(x: &'a str) { crate::wire::a(x, '\\'') }"),
        ["1 crate::wire::a"]
    );
}

#[test]
fn tests_are_told_from_the_rest_and_do_not_end_it() {
    let text = "#[cfg(test)]\nmod tests { use crate::a; }\nuse crate::wire;";
    assert_eq!(named(text), ["test 2 crate::a", "3 crate::wire"]);
    let text = "#[cfg(test)]\n#[derive(Debug)]\nstruct S { a: crate::a::A }\nuse crate::wire;";
    assert_eq!(named(text), ["test 3 crate::a::A", "4 crate::wire"]);
    let text = "#[cfg(test)]\nfn f<A, B>(a: crate::a::A) {}\nuse crate::wire;";
    assert_eq!(named(text), ["test 2 crate::a::A", "3 crate::wire"]);
    let text = "struct S { #[cfg(test)] a: crate::a::A, b: crate::wire::A }";
    assert_eq!(named(text), ["test 1 crate::a::A", "1 crate::wire::A"]);
    let text = "#[cfg(test)] use crate::a; use crate::wire;";
    assert_eq!(named(text), ["test 1 crate::a", "1 crate::wire"]);
    assert_eq!(named("#![cfg(test)]\nuse crate::a;"), ["test 2 crate::a"]);
    assert_eq!(
        named("#[cfg(not(test))] use crate::wire;"),
        ["1 crate::wire"]
    );
    assert_eq!(
        named("#[cfg(any(test, fuzzing))] use crate::wire;"),
        ["1 crate::wire"]
    );
}

#[test]
fn a_module_for_tests_alone_is_a_test_with_all_below_it() {
    let files = files(&[
        ("src/shard/mod.rs", "#[cfg(test)]\nmod tests;\nmod peer;"),
        ("src/shard/peer.rs", "use crate::time::Now;"),
        ("src/shard/tests.rs", "use crate::time::Now;"),
        ("src/shard/tests/more.rs", "use crate::time::Now;"),
    ]);
    let tests = files
        .iter()
        .flat_map(|file| file.names.iter().map(|name| name.test));
    assert_eq!(tests.collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn a_fault_says_which_line_broke_which_rule() {
    assert_eq!(
        faults(&[
            ("src/realtime/timers.rs", "\nuse crate::presence::Slot;"),
            (
                "src/realtime/watches/mod.rs",
                "use super::super::engine as e;"
            ),
            ("src/presence/mod.rs", "use crate as root;"),
            (
                "src/wire/mod.rs",
                "fn f() { crate::VERSION; crate::time::now() }"
            ),
            ("src/nowhere.rs", ""),
            (
                "src/shard/mod.rs",
                "#[cfg(test)]\nmod tests {\nuse crate::presence::A;\n}"
            ),
            ("src/shard/peer.rs", "use crate::presence::A;"),
            ("src/main.rs", "use greendot::engine::A;"),
            (
                "loadgen/src/sse.rs",
                "use crate::clock; use greendot::engine::A;"
            ),
            ("src/lib.rs", "pub mod engine;"),
        ]),
        [
            "src/realtime/timers.rs:2: greendot::presence::Slot: EDGES has no edge realtime -> \
             presence",
            "src/realtime/watches/mod.rs:1: greendot::engine: EDGES has no edge realtime -> engine",
            "src/presence/mod.rs:1: greendot: all of a crate under another name hides edges",
            "src/wire/mod.rs:1: greendot::VERSION: no row of EDGES: name a module, not the crate's \
             root",
            "src/nowhere.rs: EDGES has no row for nowhere",
            "src/shard/peer.rs:1: greendot::presence::A: EDGES has no edge shard -> presence",
            "src/main.rs:1: greendot::engine::A: EDGES has no edge main -> engine",
            "loadgen/src/sse.rs:1: greendot::engine::A: EDGES has no edge loadgen -> engine",
        ]
    );
}

#[test]
fn an_edge_that_no_source_has_is_a_fault() {
    let faults = judge::edges(&files(&[("src/wire/mod.rs", "")]));
    let expected = "no source has the edge wire -> time any more: delete it";
    assert!(faults.iter().any(|fault| fault == expected), "{faults:?}");
}

#[test]
fn a_pure_module_asks_no_kernel() {
    let mut faults = judge::kernel(&files(&[
        (
            "src/wire/mod.rs",
            "use std::{fmt, time::Duration};\nfn f() { core::time::A }",
        ),
        (
            "src/engine/mail.rs",
            "use crate::time::{Clock, Now};\nuse rustix::fs as files;",
        ),
        (
            "src/engine/mod.rs",
            "#[cfg(test)]\nmod tests { use std::thread; }\nuse mio::Poll;",
        ),
        (
            "src/shard/mod.rs",
            "use std::net; use mio::Poll; use httparse::Header;",
        ),
        ("loadgen/src/sse.rs", "use mio::Poll;"),
    ]));
    faults.retain(|fault| fault.starts_with("src/"));
    assert_eq!(
        faults,
        [
            "src/wire/mod.rs:1: std::time::Duration: a pure module asks no kernel",
            "src/wire/mod.rs:2: std::time::A: a pure module asks no kernel",
            "src/engine/mail.rs:1: greendot::time::Clock: a pure module asks no kernel",
            "src/engine/mail.rs:2: rustix::fs: a pure module asks no kernel",
            "src/engine/mod.rs:3: mio::Poll: only shard may",
            "src/shard/mod.rs:1: httparse::Header: only wire may",
        ]
    );
}

#[test]
fn the_load_generator_goes_down() {
    assert_eq!(
        judge::loadgen(&files(&[
            ("loadgen/src/sse.rs", "use crate::sse::inner::A;"),
            (
                "loadgen/src/crew.rs",
                "use crate::herd; use crate::cli::Cli;"
            ),
            (
                "loadgen/src/beats/sender.rs",
                "use super::super::churn::World;"
            ),
            ("loadgen/src/nowhere.rs", ""),
            ("loadgen/src/main.rs", "use greendot_loadgen::cli::Cli;"),
        ])),
        [
            "loadgen/src/crew.rs:1: loadgen::cli::Cli: LOADGEN has it no lower",
            "loadgen/src/beats/sender.rs:1: loadgen::churn::World: LOADGEN has it no lower",
            "loadgen/src/nowhere.rs: LOADGEN has no nowhere",
        ]
    );
}
