//! The sources that the rules are about, and what each names.
//!
//! Owns which file is which module, and which files only tests compile. Never knows a rule.

use std::fs;
use std::path::{Path, PathBuf};

use crate::paths::{self, Named};

/// A source file.
pub(crate) struct File {
    /// Its path below the repository.
    pub path: String,
    /// The row that it belongs to if no part of it has one: `engine::mail`, `main`, `loadgen::sse`.
    pub module: String,
    pub names: Vec<Name>,
}

/// What one line names.
pub(crate) struct Name {
    /// `greendot::engine::Mail`, `std::fs`: from the root of its crate.
    pub path: String,
    pub line: usize,
    /// Only tests compile it.
    pub test: bool,
    /// It is a `use` that gives all of a crate another name, or its names to everybody.
    pub is_root: bool,
}

/// Every source of the library but its root, of the binary, and of the load generator.
pub(crate) fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &Path| fs::read_to_string(root.join(path)).unwrap();
    let mut paths = Vec::new();
    walk(root, Path::new("src"), &mut paths);
    walk(root, Path::new("loadgen/src"), &mut paths);
    read(
        paths
            .iter()
            .map(|path| (path.to_str().unwrap(), text(path))),
    )
}

/// The same of any sources, by path and text.
pub(crate) fn read<'a>(sources: impl Iterator<Item = (&'a str, String)>) -> Vec<File> {
    let (mut files, mut for_tests) = (Vec::new(), Vec::new());
    for (path, text) in sources {
        let (package, inside) = match path.strip_prefix("loadgen/src/") {
            Some(inside) => ("loadgen", inside),
            None if path == "src/main.rs" => ("main", "main.rs"),
            None if path.starts_with("src/main/") => ("main", &path["src/main/".len()..]),
            None => ("greendot", path.strip_prefix("src/").unwrap()),
        };
        let module = module(Path::new(inside));
        let source = paths::read(
            &text,
            &module.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        let file = [vec![package.to_owned()], module].concat().join("::");
        let module = file.strip_prefix("greendot::").unwrap_or(&file).to_owned();
        for_tests.extend(
            source
                .test_modules
                .iter()
                .map(|test| [package, test].join("::")),
        );
        let names = source
            .named
            .iter()
            .map(|named| name(named, package))
            .collect();
        files.push((
            file,
            File {
                path: path.to_owned(),
                module,
                names,
            },
        ));
    }
    for (file, found) in &mut files {
        if for_tests.iter().any(|test| is_below(file, test)) {
            found.names.iter_mut().for_each(|name| name.test = true);
        }
    }
    let files = files.into_iter().filter(|(file, _)| file != "greendot");
    files.map(|(_, file)| file).collect()
}

/// Whether `path` is `above` or something in it.
pub(crate) fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn name(named: &Named, package: &str) -> Name {
    let path = full(&named.path, package);
    let is_root = named.in_use && ["greendot", "std", package].contains(&path.as_str());
    Name {
        path,
        line: named.line,
        test: named.test,
        is_root,
    }
}

/// `crate` gets the name of its package; `core` and `alloc` are parts of `std`.
fn full(path: &[String], package: &str) -> String {
    let first = match path[0].as_str() {
        "crate" => package,
        "core" | "alloc" => "std",
        first => first,
    };
    let rest = path[1..].iter().map(String::as_str);
    std::iter::once(first)
        .chain(rest)
        .collect::<Vec<_>>()
        .join("::")
}

fn walk(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(root.join(dir)).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for path in names.iter().map(|name| dir.join(name)) {
        if root.join(&path).is_dir() {
            walk(root, &path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

/// The module of a file: `engine/mail.rs` and `engine/mail/mod.rs` are both `engine::mail`.
fn module(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let mut names: Vec<String> = path
        .iter()
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    if matches!(
        names.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        names.pop();
    }
    names
}
