//! What Cargo.lock may hold, and what is built of it.

use std::process::Command;

/// Versions of a package that Cargo.lock has.
fn versions(name: &str) -> usize {
    let lock = include_str!("../../Cargo.lock");
    lock.matches(&format!("\nname = \"{name}\"\n")).count()
}

#[test]
fn there_is_one_library_of_cryptography() {
    for once in ["rustls", "aws-lc-rs", "aws-lc-sys"] {
        assert_eq!(versions(once), 1, "{once}");
    }
    assert_eq!(versions("openssl-sys") + versions("aws-lc-fips-sys"), 0);
    // Cargo.lock names ring for a feature that nothing switches on; nothing of it is built.
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--workspace",
            "--all-features",
        ])
        .args(["--edges=normal,build,dev", "--prefix=none", "--format={p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test");
    let said = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "{said}");
    let tree = String::from_utf8(tree.stdout).expect("names are text");
    let has = |name: &str| {
        tree.lines()
            .any(|line| line.starts_with(&format!("{name} v")))
    };
    assert!(has("rustls") && has("aws-lc-rs"), "{tree}");
    assert!(!has("ring"), "{tree}");
}
