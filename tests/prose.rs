//! How the repository's text is set: no line over 100 columns, no sentence over 40 words.
//!
//! Lines are checked in every text file that git tracks, sentences in the documents. Judges no
//! wording: readers do.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

use std::fs;
use std::path::Path;
use std::process::Command;

const COLUMNS_MAX: usize = 100;
const WORDS_MAX: usize = 40;

/// Files that a tool writes.
const WRITTEN_BY_TOOLS: [&str; 3] = ["Cargo.lock", "proptest-regressions/", ".baseline"];

/// Documents whose sentences are not checked: history stays as it was written.
const HISTORY: [&str; 1] = ["CHANGELOG.md"];

fn tracked() -> Vec<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let listed = Command::new("git")
        .args(["-C", root, "ls-files", "-z"])
        .output()
        .unwrap();
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let names = String::from_utf8(listed.stdout).unwrap();
    let names = names
        .split_terminator('\0')
        .filter(|name| !WRITTEN_BY_TOOLS.iter().any(|part| name.contains(part)));
    names.map(str::to_owned).collect()
}

/// Text of a tracked file; none of one that is gone or is no text.
fn text(name: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).ok()
}

/// The numbers of the lines that are too long and could be shorter.
fn long_lines(name: &str, text: &str) -> Vec<usize> {
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| line.chars().count() > COLUMNS_MAX && can_wrap(name, line))
        .map(|(at, _)| at + 1)
        .collect()
}

/// An address alone on its line can not, nor can a string in JSON.
fn can_wrap(name: &str, line: &str) -> bool {
    let line = line.trim_start_matches([' ', '/', '!', '#', '*', '-', '<']);
    let is_address = line.contains("://") && !line.trim_end().contains(' ');
    let is_string = name.ends_with(".json") && line.starts_with('"') && line.contains("\": \"");
    !is_address && !is_string
}

/// The sentences of a document that have too many words: first line, words.
fn long_sentences(text: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (line, paragraph) in paragraphs(text) {
        let words = words(&paragraph);
        for sentence in words.split_inclusive(|word| ends_sentence(word)) {
            let count = sentence
                .iter()
                .filter(|word| word.contains(char::is_alphanumeric))
                .count();
            if count > WORDS_MAX {
                found.push((line, count));
            }
        }
    }
    found
}

/// Paragraphs and items of lists, each with its first line's number; no code, tables or headings.
fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut in_code, mut open) = (false, false);
    for (at, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        let is_fence = trimmed.starts_with("```");
        in_code ^= is_fence;
        let is_item = trimmed.starts_with("- ") || is_numbered(trimmed);
        if in_code || is_fence || trimmed.is_empty() || trimmed.starts_with(['#', '|', '<']) {
            open = false;
        } else if open && !is_item {
            let paragraph = &mut found.last_mut().unwrap().1;
            paragraph.push(' ');
            paragraph.push_str(trimmed);
        } else {
            found.push((at + 1, trimmed.to_owned()));
            open = true;
        }
    }
    found
}

fn is_numbered(line: &str) -> bool {
    line.split_once(". ")
        .is_some_and(|(number, _)| number.parse::<u32>().is_ok())
}

/// The words of a paragraph; code in backticks is one word.
fn words(paragraph: &str) -> Vec<String> {
    let pieces = paragraph.split('`').enumerate();
    let prose: String = pieces
        .map(|(at, piece)| if at % 2 == 0 { piece } else { "code" })
        .collect();
    prose.split_whitespace().map(str::to_owned).collect()
}

fn ends_sentence(word: &str) -> bool {
    word.trim_end_matches([')', '"', '*', '_'])
        .ends_with(['.', '!', '?'])
}

fn is_document(name: &str) -> bool {
    name.ends_with(".md") && !HISTORY.contains(&name)
}

#[test]
fn no_line_is_too_long() {
    let names = tracked();
    assert!(names.len() > 200, "git tracks only {} files", names.len());
    let mut wrong = Vec::new();
    for name in &names {
        for line in text(name).iter().flat_map(|text| long_lines(name, text)) {
            wrong.push(format!("{name}:{line}: over {COLUMNS_MAX} columns"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn no_sentence_is_too_long() {
    let mut wrong = Vec::new();
    for name in tracked().iter().filter(|name| is_document(name)) {
        for (line, words) in text(name).iter().flat_map(|text| long_sentences(text)) {
            wrong.push(format!("{name}:{line}: a sentence of {words} words"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_what_it_must() {
    let at = |width: usize| "é".repeat(width);
    assert_eq!(
        long_lines("a.rs", &format!("{}\n{}\n", at(100), at(101))),
        [2]
    );
    let address = format!("https://{}", at(100));
    assert_eq!(
        long_lines("a.rs", &format!("//! <{address}>\n/// see {address}")),
        [2]
    );
    let string = format!("  \"description\": \"{}\",", at(100));
    assert_eq!(long_lines("a.json", &string), [0_usize; 0]);
    assert_eq!(long_lines("a.js", &string), [1]);

    let sentence = |words: usize| format!("{}end.", "word ".repeat(words - 1));
    assert_eq!(long_sentences(&sentence(40)), []);
    assert_eq!(long_sentences(&sentence(41)), [(1, 41)]);
    assert_eq!(
        long_sentences(&format!("# {}\n\n- a\n  {}", sentence(50), sentence(41))),
        [(3, 42)]
    );
    assert_eq!(
        long_sentences(&format!("{}\n{}", sentence(40), sentence(40))),
        []
    );
    assert_eq!(
        long_sentences(&format!("```\n{}\n```\n| {} |", sentence(50), sentence(50))),
        []
    );
    assert_eq!(
        long_sentences(&format!("`{}` is one word.", sentence(50))),
        []
    );
    assert_eq!(
        long_sentences(&format!("(Done.) {}", sentence(41))),
        [(1, 41)]
    );
}
