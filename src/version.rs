//! Which greendot this is: version, commit, and how it was built. The build script finds them.

/// Of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Twelve digits; `unknown` in a build for tests, and where there was neither a repository nor
/// `GREENDOT_COMMIT`.
pub const COMMIT: &str = env!("BUILT_OF");
/// `release` or `debug`.
pub const BUILD: &str = env!("BUILT_AS");
/// The triple of the machine that it runs on.
pub const TARGET: &str = env!("BUILT_FOR");
/// All of it: `0.1.0 (0123456789ab, release, x86_64-unknown-linux-gnu)`.
pub const LINE: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("BUILT_OF"),
    ", ",
    env!("BUILT_AS"),
    ", ",
    env!("BUILT_FOR"),
    ")"
);
