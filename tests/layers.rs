//! Imports go down only: reads the `use` lines and the paths of `src/` and holds the layers of
//! DESIGN.md section 10.

#![expect(clippy::unwrap_used, reason = "a test's unwrap is an assertion")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer of each module of the crate; a module may name modules of lower layers, and itself.
const LAYERS: [(&str, u32); 21] = [
    ("time", 0),
    ("metrics", 0),
    ("logs", 0),
    ("planted", 0),
    ("slot", 0),
    ("status", 0),
    ("wire", 1),
    ("presence", 2),
    ("realtime", 2),
    ("pages", 2),
    ("engine", 3),
    ("shard", 4),
    ("links", 4),
    ("cluster", 4),
    ("fleet_key", 4),
    ("config", 5),
    ("limits", 6),
    ("node", 7),
    ("tools", 7),
    ("cli", 8),
    ("main", 9),
];

/// Crates that only one module may use, and why it is that one.
const KEEPERS: [(&str, &[&str]); 4] = [
    ("mio", &["shard", "node"]),
    ("memmap2", &["presence"]),
    ("httparse", &["wire"]),
    ("prometheus_client", &["pages"]),
];

fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path);
            }
        }
    }
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    files.sort();
    let module = |path: &Path| {
        let first = path
            .strip_prefix(&src)
            .unwrap()
            .components()
            .next()
            .unwrap();
        Path::new(first.as_os_str())
            .file_stem()
            .unwrap()
            .to_string_lossy()
            .into_owned()
    };
    files
        .iter()
        .map(|path| {
            (
                module(path),
                path.clone(),
                fs::read_to_string(path).unwrap(),
            )
        })
        .collect()
}

/// The code of a file without comments and without its tests, where these stand at its end: `mod
/// tests;` ends nothing.
fn code(text: &str) -> String {
    let end = text
        .find("\n#[cfg(test)]\nmod tests {")
        .unwrap_or(text.len());
    let lines = text[..end]
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every module that follows `root` in paths, nested groups at the root included.
fn named(code: &str, root: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(root) {
        let rest = &code[at + root.len()..];
        let group = match rest.strip_prefix('{') {
            None => rest
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .take(1)
                .collect::<Vec<_>>(),
            Some(group) => {
                let end = group.find("};").unwrap_or(group.len());
                group[..end]
                    .split(',')
                    .map(|item| item.trim().split([':', '}']).next().unwrap_or(""))
                    .collect()
            }
        };
        names.extend(
            group
                .into_iter()
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        );
    }
    names
}

#[test]
fn imports_go_down_only() {
    let layers: BTreeMap<&str, u32> = LAYERS.into();
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (module, path, text) in sources().iter().filter(|(module, ..)| module != "lib") {
        let code = code(text);
        let own = *layers
            .get(module.as_str())
            .unwrap_or_else(|| panic!("{module} has no layer: {}", path.display()));
        for name in ["crate::", "greendot::"]
            .iter()
            .flat_map(|root| named(&code, root))
        {
            let Some(layer) = layers.get(name.as_str()) else {
                continue;
            };
            checked += 1;
            if name != *module && *layer >= own {
                wrong.push(format!(
                    "{}: {module} (layer {own}) names {name} (layer {layer})",
                    path.display()
                ));
            }
        }
    }
    assert!(
        checked > 50,
        "the check saw only {checked} imports: has the layout changed?"
    );
    assert!(
        wrong.is_empty(),
        "imports that do not go down:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn crates_have_their_keepers() {
    let mut wrong = Vec::new();
    for (module, path, text) in sources() {
        let code = code(&text);
        for (name, keepers) in KEEPERS {
            if code.contains(&format!("{name}::")) && !keepers.contains(&module.as_str()) {
                wrong.push(format!(
                    "{}: {name} is for {keepers:?} only",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the simulator drives gets its time as an argument, or its runs would not be functions of
/// their seeds.
#[test]
fn clocks_are_read_in_the_shell_only() {
    let mut wrong = Vec::new();
    for (module, path, text) in sources() {
        let code = code(&text);
        let sans_io =
            ["wire", "presence", "realtime", "pages", "engine"].contains(&module.as_str());
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        if sans_io
            && words
                .into_iter()
                .any(|word| word == "boottime" || word == "Clock")
        {
            wrong.push(format!("{}: {module} reads a clock", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_what_it_must() {
    assert_eq!(
        named(
            "use crate::{time::Now, wire};\nlet x = crate::engine::Mail;",
            "crate::"
        ),
        ["time", "wire", "engine"]
    );
    assert_eq!(
        code(
            "use a; // crate::b\n//! crate::c\nfn f() {}\n#[cfg(test)]\nmod tests { use crate::d; }"
        ),
        "use a; \n\nfn f() {}"
    );
    // Tests in a file of their own are named where modules are: at the top.
    assert_eq!(
        code("mod a;\n#[cfg(test)]\nmod tests;\nuse crate::b;"),
        "mod a;\n#[cfg(test)]\nmod tests;\nuse crate::b;"
    );
}
