//! The files of `src/web/`, compiled in: dashboard, demo, browser client, API description.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::LazyLock;

/// A file as it is served.
#[derive(PartialEq, Eq, Debug)]
pub struct Page {
    pub content_type: &'static str,
    /// The whole body.
    pub body: String,
    /// Its entity tag, in quotes.
    pub tag: String,
    /// Pages of every origin may have it: it is code for them, and secret to nobody.
    pub for_all: bool,
}

/// A file of `src/web/`, compiled in.
pub type File = LazyLock<Page>;

/// `/`: the dashboard.
pub static DASHBOARD: File = LazyLock::new(|| Page {
    for_all: false,
    ..page(
        "text/html; charset=utf-8",
        include_str!("../web/dashboard/index.html"),
    )
});
/// `/demo`: for trying things out.
pub static DEMO: File = LazyLock::new(|| Page {
    for_all: false,
    ..page(
        "text/html; charset=utf-8",
        include_str!("../web/demo/index.html"),
    )
});
/// `/client.js`: the browser client, one file of several: a page waits for one.
pub static CLIENT: File = LazyLock::new(|| script(&CLIENT_PARTS));
/// `/green-dot.js`: the element `<green-dot>`.
pub static ELEMENT: File = LazyLock::new(|| script(&[ELEMENT_SOURCE]));
/// `/client.d.ts`: its types.
pub static CLIENT_TYPES: File = LazyLock::new(|| {
    page(
        "text/plain; charset=utf-8",
        include_str!("../web/client/client.d.ts"),
    )
});
/// `/openapi.json`: the API description.
pub static API: File =
    LazyLock::new(|| page("application/json", include_str!("../web/openapi.json")));

fn page(content_type: &'static str, body: impl Into<String>) -> Page {
    let body = body.into();
    // Of fixed keys: the same on all nodes of one build.
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    Page {
        content_type,
        tag: format!("\"{:016x}\"", hasher.finish()),
        body,
        for_all: true,
    }
}

/// Each imports those before it; the last is what a page imports.
const CLIENT_PARTS: [&str; 7] = [
    include_str!("../web/client/page.js"),
    include_str!("../web/client/server.js"),
    include_str!("../web/client/known.js"),
    include_str!("../web/client/edits.js"),
    include_str!("../web/client/stream.js"),
    include_str!("../web/client/tabs.js"),
    include_str!("../web/client/client.js"),
];
const ELEMENT_SOURCE: &str = include_str!("../web/client/green-dot.js");

/// One module of several, without the lines that are comments and without indentation: who visits a
/// page reads none, and waits for each byte.
fn script(parts: &[&str]) -> Page {
    let (last, inner) = parts.split_last().expect("a module has a part");
    let mut body = "// greendot: types are in client.d.ts.\n".to_owned();
    let mut in_text = false;
    let mut add = |line: &str| {
        if !is_comment(line) && !line.trim().is_empty() {
            body.push_str(if in_text { line } else { line.trim_start() });
            body.push('\n');
            in_text ^= opens_text(line);
        }
    };
    // What one part imports of another stands in the same module.
    let is_own = |line: &&str| parts.len() == 1 || !line.starts_with("import ");
    for line in inner.iter().flat_map(|part| part.lines()).filter(is_own) {
        add(line.strip_prefix("export ").unwrap_or(line));
    }
    last.lines().filter(is_own).for_each(add);
    page("text/javascript; charset=utf-8", body)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// Whether a text of several lines begins or ends in a line.
fn opens_text(line: &str) -> bool {
    line.matches('`').count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::wire::response::PROBLEMS;

    fn api() -> Value {
        serde_json::from_str(&API.body).unwrap()
    }

    /// Nothing on a page comes from elsewhere, and what it asks for is served here.
    #[test]
    fn pages_are_self_contained() {
        let served = [
            "/",
            "/client.js",
            "/green-dot.js",
            "/demo",
            "/metrics",
            "/openapi.json",
        ];
        for text in [&*DASHBOARD.body, &*DEMO.body] {
            for attribute in ["src=\"", "href=\"", "from \""] {
                for rest in text.split(attribute).skip(1) {
                    let target = rest.split('"').next().unwrap();
                    assert!(
                        served.contains(&target) || target.starts_with("data:"),
                        "{target}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_module_of_several_parts() {
        let parts = [
            "// One.\n\nexport const ONE = 1;\n",
            "import { ONE } from \"./one.js\";\n\nexport class Two {\n  // Why.\n\
             \x20 two = `\n    a\n  `;\n}\n",
        ];
        let body = script(&parts).body;
        let (comment, rest) = body.split_once('\n').unwrap();
        assert!(is_comment(comment));
        assert_eq!(
            rest,
            "const ONE = 1;\nexport class Two {\ntwo = `\n    a\n  `;\n}\n"
        );
        // One alone imports what is served beside it.
        assert!(
            ELEMENT
                .body
                .contains("\nimport { Greendot } from \"./client.js\";\n")
        );
        assert!(!CLIENT.body.contains("\nimport "));
        assert_eq!(CLIENT.body.matches("\nexport ").count(), 1);
    }

    /// No line of a text looks like a comment or an import, and no import takes several lines.
    #[test]
    fn what_is_left_out_of_scripts_is_no_code() {
        for source in CLIENT_PARTS.iter().chain([&ELEMENT_SOURCE]) {
            let mut in_text = false;
            for line in source.lines() {
                assert!(!in_text || !is_comment(line), "{line}");
                assert!(
                    !line.starts_with("import ") || line.ends_with(';'),
                    "{line}"
                );
                in_text ^= !is_comment(line) && opens_text(line);
            }
        }
    }

    #[test]
    fn the_package_has_the_version_of_the_server() {
        let package: Value =
            serde_json::from_str(include_str!("../web/client/package.json")).unwrap();
        assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_api_has_the_version_of_the_server() {
        assert_eq!(api()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn the_api_names_every_problem() {
        let api = api();
        let named = api["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
            .as_array()
            .unwrap();
        let expected: Vec<_> = PROBLEMS
            .iter()
            .map(|problem| Value::from(format!("https://greendot.dev/problems/{}", problem.slug)))
            .collect();
        assert_eq!(*named, expected);
    }

    /// Each `$ref` leads somewhere, and each operation says what it answers.
    #[test]
    fn the_api_is_consistent() {
        fn refs<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| refs(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| refs(value, found)),
                _ => {}
            }
        }
        let api = api();
        let mut found = Vec::new();
        refs(&api, &mut found);
        assert!(found.len() > 30);
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(api.pointer(pointer).is_some(), "{reference}");
        }
        let mut ids = BTreeSet::new();
        for operation in api["paths"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|item| item.as_object().unwrap().values())
        {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()));
            assert!(
                operation["responses"]
                    .as_object()
                    .unwrap()
                    .keys()
                    .any(|status| status.starts_with('2'))
            );
        }
    }
}
