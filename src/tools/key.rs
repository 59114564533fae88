//! `greendot key`: fresh keys of fleets and services, and the ids of those in a file.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::auth::{Scopes, new_service_key};
use crate::random;
use crate::wire::beat::{KeyFault, Keys};

/// What `greendot key` was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Options {
    /// A fresh fleet key.
    Fleet,
    /// The ids of the fleet keys in this file.
    IdsOf(PathBuf),
    /// A fresh key of a service, and its line for the file of `--service-keys`.
    Service { name: String, scopes: Scopes },
}

/// What to print, with its final newline.
///
/// Errors: a sentence for the terminal: the file of `--id` is no key file, or no service has that
/// name.
pub fn run(options: &Options) -> Result<String, String> {
    match options {
        Options::Fleet => fresh().map(|key| key + "\n"),
        Options::IdsOf(path) => ids(path),
        Options::Service { name, scopes } => {
            let made = new_service_key(name, *scopes, &random()?);
            let (key, line) = made.map_err(|fault| format!("--service {name}: {fault}"))?;
            Ok(format!("{key}\n{line}\n"))
        }
    }
}

/// 32 random bytes from the kernel in 64 hex digits.
///
/// Errors: the kernel gives none.
pub fn fresh() -> Result<String, String> {
    let bytes = random()?;
    let mut hex = String::with_capacity(64);
    for byte in bytes {
        write!(hex, "{byte:02x}").expect("a String takes everything");
    }
    Ok(hex)
}

fn random() -> Result<[u8; 32], String> {
    let mut bytes = [0; 32];
    random::fill(&mut bytes)
        .map_err(|error| format!("the kernel gave no random bytes: {error}"))?;
    Ok(bytes)
}

/// Reads a key file; the error names the file and what to do.
pub fn read(path: &Path) -> Result<Keys, String> {
    let text = read_text(path)?;
    Keys::parse(&text).map_err(|fault| explain(path, &fault))
}

fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!(
            "{}: no such key file; `greendot serve` makes fleet.key in its data folder: name that \
             folder with --data-dir, or a key file with --key-file",
            path.display()
        ),
        _ => format!("{}: the key file can not be read: {error}", path.display()),
    })
}

fn explain(path: &Path, fault: &KeyFault) -> String {
    let path = path.display();
    match fault {
        KeyFault::Empty => format!("{path}: no key in it; `greendot key` prints one"),
        KeyFault::NotHex { line } => {
            format!("{path}:{line}: not a key, which is 64 hex digits; `greendot key` prints one")
        }
        KeyFault::Twice { line } => {
            format!("{path}:{line}: the same key a second time; remove the line")
        }
    }
}

fn ids(path: &Path) -> Result<String, String> {
    let text = read_text(path)?;
    Keys::parse(&text).map_err(|fault| explain(path, &fault))?;
    let mut out = String::new();
    // Each line that holds a key is a key file of its own; the others are comments and blank lines.
    for keys in text.lines().filter_map(|line| Keys::parse(line).ok()) {
        let role = if out.is_empty() { " signs" } else { "" };
        writeln!(out, "{:08x}{role}", keys.signing().id()).expect("a String takes everything");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_keys_are_keys() {
        let (one, two) = (fresh().unwrap(), fresh().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 64);
        assert!(Keys::parse(&one).is_ok());
    }

    #[test]
    fn a_service_key_and_its_line() {
        let options = |name: &str| Options::Service {
            name: name.into(),
            scopes: "beat,query".parse().unwrap(),
        };
        let printed = run(&options("app")).unwrap();
        let lines: Vec<&str> = printed.lines().collect();
        let [key, line] = lines[..] else {
            panic!("{printed}")
        };
        let known = crate::auth::ServiceKeys::parse(line).unwrap();
        assert_eq!(known.find(key).unwrap().scopes.to_string(), "beat,query");
        assert_ne!(run(&options("app")).unwrap(), printed);
        assert_eq!(
            run(&options("a b")).unwrap_err(),
            "--service a b: the name of a service has at most 64 letters, digits, - and ."
        );
    }

    #[test]
    fn ids_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let (one, two) = ("11".repeat(32), "22".repeat(32));
        std::fs::write(&path, format!("# old\n{one}\n\n{two}\n")).unwrap();
        let id = |key: &str| Keys::parse(key).unwrap().signing().id();
        let printed = run(&Options::IdsOf(path.clone())).unwrap();
        assert_eq!(
            printed,
            format!("{:08x} signs\n{:08x}\n", id(&one), id(&two))
        );
    }

    #[test]
    fn faults_name_the_file_and_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let fault = || {
            read(&path)
                .err()
                .unwrap()
                .replace(&path.display().to_string(), "K")
        };
        assert!(fault().starts_with("K: no such key file; `greendot serve` makes fleet.key"));
        std::fs::write(&path, "# none\n").unwrap();
        assert_eq!(fault(), "K: no key in it; `greendot key` prints one");
        std::fs::write(&path, "# none\nabc\n").unwrap();
        assert_eq!(
            fault(),
            "K:2: not a key, which is 64 hex digits; `greendot key` prints one"
        );
    }
}
