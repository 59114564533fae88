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
    let tree = tree(&["--workspace", "--all-features", "--edges=normal,build,dev"]);
    let has = |name: &str| {
        tree.lines()
            .any(|line| line.starts_with(&format!("{name} v")))
    };
    assert!(has("rustls") && has("aws-lc-rs"), "{tree}");
    assert!(!has("ring"), "{tree}");
}

/// A node of no fleet is built without a runtime.
#[test]
fn without_a_fleet_there_is_no_runtime() {
    let built = |feature: &[&str]| {
        let package = [
            "--package=greendot",
            "--edges=normal,build",
            "--no-default-features",
        ];
        let tree = tree(&[&package[..], feature].concat());
        let of_runtime = |line: &&str| line.starts_with("tokio") || line.starts_with("redis");
        let names = tree.lines().filter(of_runtime).map(|line| {
            let name = line.split(' ').next();
            name.unwrap_or_default().to_owned()
        });
        names.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(built(&[]), [].into());
    let expected = ["tokio", "tokio-macros", "tokio-rustls"].map(str::to_owned);
    assert_eq!(built(&["--features=cluster"]), expected.into());
}

/// Where it can not run its build is one error, which has to come before any of a dependency.
#[test]
fn elsewhere_nothing_is_built_but_the_error() {
    for target in [
        "x86_64-apple-darwin",
        "aarch64-apple-darwin",
        "x86_64-pc-windows-msvc",
    ] {
        let target = format!("--target={target}");
        let tree = tree(&["--package=greendot", "--edges=normal,build", &target]);
        let built: Vec<_> = tree.lines().map(|line| line.split(' ').next()).collect();
        assert_eq!(built, [Some("greendot")], "{target}");
    }
}

/// The crates that a build takes, one a line.
fn tree(args: &[&str]) -> String {
    let tree = Command::new(env!("CARGO"))
        // What no build of this machine has needed may have to be fetched: other systems' crates.
        .args(["tree", "--locked", "--prefix=none", "--format={p}"])
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test");
    let said = String::from_utf8_lossy(&tree.stderr);
    assert!(tree.status.success(), "{said}");
    String::from_utf8(tree.stdout).expect("names are text")
}
