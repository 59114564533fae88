//! The files of `src/web/`, compiled in: dashboard, browser client, API description.

/// A file as it is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    pub content_type: &'static str,
    /// The whole body.
    pub body: &'static [u8],
    /// Another for another body: its entity tag.
    pub tag: u64,
    /// Pages of every origin may have it: it is code for them, and secret to nobody.
    pub for_all: bool,
}

/// `/`: the dashboard.
pub const DASHBOARD: Page = Page {
    for_all: false,
    ..page(
        "text/html; charset=utf-8",
        include_bytes!("../web/dashboard/index.html"),
    )
};
/// `/client.js`: the browser client.
pub const CLIENT: Page = page(SCRIPT, include_bytes!("../web/client/client.js"));
/// `/openapi.json`: the API description.
pub const API: Page = page("application/json", include_bytes!("../web/openapi.json"));

const SCRIPT: &str = "text/javascript; charset=utf-8";

const fn page(content_type: &'static str, body: &'static [u8]) -> Page {
    Page {
        content_type,
        body,
        tag: fnv1a(body),
        for_all: true,
    }
}

/// FNV-1a, of 64 bits: one that the compiler can run.
const fn fnv1a(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x100_0000_01b3);
        at += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::wire::response::PROBLEMS;

    fn api() -> Value {
        serde_json::from_slice(API.body).unwrap()
    }

    /// Nothing on the dashboard comes from elsewhere, and what it asks for is served here.
    #[test]
    fn the_dashboard_is_self_contained() {
        let text = std::str::from_utf8(DASHBOARD.body).unwrap();
        for (attribute, allowed) in [
            ("src=\"", &["/client.js"][..]),
            ("href=\"", &["/metrics", "/openapi.json", "/client.js"]),
        ] {
            for rest in text.split(attribute).skip(1) {
                let target = rest.split('"').next().unwrap();
                assert!(
                    allowed.contains(&target) || target.starts_with("data:"),
                    "{target}"
                );
            }
        }
    }

    /// The metrics that the dashboard reads exist.
    #[test]
    fn the_dashboard_reads_metrics_that_exist() {
        let text = std::str::from_utf8(DASHBOARD.body).unwrap();
        let metrics = crate::pages::exposition::render(&crate::metrics::Board::new(1));
        let mut names = BTreeSet::new();
        for call in [".get(\"", "rate(\"", "grown(\""] {
            names.extend(
                text.split(call)
                    .skip(1)
                    .map(|rest| rest.split('"').next().unwrap()),
            );
        }
        assert!(names.len() >= 8, "{names:?}");
        for name in names {
            assert!(
                metrics.contains(&format!("# TYPE greendot_{name} ")),
                "{name}"
            );
        }
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
