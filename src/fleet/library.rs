//! The library of Redis functions: its text, and under which name this program loads and calls it.
//!
//! Owns the name. What it says or keeps never changes under one name: another version is another
//! library beside it, over the same keys, while a fleet is upgraded node by node. docs/CLUSTER.md
//! has what another version may change.

use std::sync::OnceLock;

use crate::planted;

/// The library's name in Redis, and how the names of its functions begin.
pub const LIBRARY_NAME: &str = "gd1";

/// The text that `FUNCTION LOAD` takes, under [`LIBRARY_NAME`].
pub const LIBRARY: &str = include_str!("library.lua");

/// Names of all versions begin so, and nobody else's should: an access list and
/// `FUNCTION LIST LIBRARYNAME gd*` go by it.
pub const PREFIX: &str = "gd";

/// The name that this program goes by: [`LIBRARY_NAME`], unless a test has it be another version.
pub fn name() -> &'static str {
    planted::library().unwrap_or(LIBRARY_NAME)
}

/// What this program loads, under [`name`].
pub fn text() -> &'static str {
    static OTHER: OnceLock<String> = OnceLock::new();
    match name() {
        LIBRARY_NAME => LIBRARY,
        other => OTHER.get_or_init(|| renamed(other)),
    }
}

/// The same library as another version of it would stand beside it.
pub fn renamed(name: &str) -> String {
    LIBRARY.replace(LIBRARY_NAME, name)
}

/// The full name of one of its functions.
pub fn function(which: &str) -> String {
    format!("{}_{which}", name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_has_no_name_in_common() {
        assert!(LIBRARY_NAME.starts_with(PREFIX));
        assert_eq!((name(), text()), (LIBRARY_NAME, LIBRARY));
        let next = renamed("gd2");
        assert!(next.starts_with("#!lua name=gd2\n"));
        assert!(!next.contains(LIBRARY_NAME));
        for which in ["vouch", "fence", "renew"] {
            let registered = format!("redis.register_function('{}', ", function(which));
            assert!(LIBRARY.contains(&registered), "{registered}");
        }
    }
}
