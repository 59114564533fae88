//! Tells the program what it was built of, and how. Takes no network, and no git where there is
//! none.

use std::path::Path;
use std::process::Command;

/// Digits of a commit that are told.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=GREENDOT_COMMIT");
    let variable = |name| std::env::var(name).unwrap_or_default();
    let (profile, target) = (variable("PROFILE"), variable("TARGET"));
    let commit = told().or_else(|| {
        // A build for tests is not built anew for each commit.
        let found = (profile == "release").then(|| packed().or_else(checked_out));
        found.flatten()
    });
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=BUILT_OF={commit}");
    println!("cargo::rustc-env=BUILT_AS={profile}");
    println!("cargo::rustc-env=BUILT_FOR={target}");
}

/// What whoever builds says: a packager without the repository.
fn told() -> Option<String> {
    let said = std::env::var("GREENDOT_COMMIT").ok()?;
    let said = said.trim();
    let commit = (!said.is_empty()).then(|| shortened(said))?;
    assert!(
        commit.is_some(),
        "GREENDOT_COMMIT is {said:?}, which is no commit's hexadecimal id"
    );
    commit
}

/// What `cargo package` wrote into the package.
fn packed() -> Option<String> {
    let path = Path::new(".cargo_vcs_info.json");
    let text = std::fs::read_to_string(path).ok()?;
    let (_, behind) = text.split_once("\"sha1\"")?;
    shortened(
        behind
            .trim_start_matches([' ', ':', '"'])
            .split('"')
            .next()?,
    )
}

/// The repository's, if this folder is its root: a tree unpacked within another one is not of that.
fn checked_out() -> Option<String> {
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // Each commit and each change of the branch writes into one of them.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    shortened(&git(&["rev-parse", "--verify", "HEAD"])?)
}

fn git(args: &[&str]) -> Option<String> {
    let done = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(done.stdout).ok()?;
    done.status.success().then(|| text.trim_end().to_owned())
}

fn shortened(commit: &str) -> Option<String> {
    let legal = commit.len() >= 7 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    legal.then(|| commit[..DIGITS.min(commit.len())].to_ascii_lowercase())
}
