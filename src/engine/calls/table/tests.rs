//! The rows, and the documents that list them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::wire::nodes::Nodes;

fn real_time() -> Role {
    Role::Realtime(Arc::new(Nodes::default()))
}

fn name(method: Method) -> String {
    format!("{method:?}").to_uppercase()
}

/// Where a request goes, if it is taken: the path of its row and the segment.
fn way<'p>(method: Method, path: &'p str, role: &Role) -> Option<(&'static str, &'p str)> {
    let (row, segment) = Rows::of(path, true)?.row(method, role)?;
    Some((row.path, segment))
}

#[test]
fn paths_are_matched_whole() {
    let get = |path| way(Get, path, &Role::All);
    let user = "/v1/presence/{user}";
    assert_eq!(get("/v1/presence/bob"), Some((user, "bob")));
    assert_eq!(get("/v1/presence/b%2Fb"), Some((user, "b%2Fb")));
    assert_eq!(get("/v1/presence/{user}"), Some((user, "{user}")));
    assert_eq!(get("/v1/presence"), Some(("/v1/presence", "")));
    for path in [
        "",
        "//",
        "/v1/presence/",
        "/v1/presence/a/b",
        "/livez/",
        "/LIVEZ",
        "/v1",
    ] {
        assert!(Rows::of(path, true).is_none(), "{path}");
    }
    let post = |path| way(Post, path, &Role::All);
    assert_eq!(
        post("/v1/stream/1.2.3/watch"),
        Some((STREAM_WATCH, "1.2.3"))
    );
    for path in [
        "/v1/stream/watch",
        "/v1/stream//watch",
        "/v1/stream/a/b/watch",
    ] {
        assert!(Rows::of(path, true).is_none(), "{path}");
    }
}

#[test]
fn a_user_may_be_called_query() {
    let path = "/v1/presence/query";
    let user = Some(("/v1/presence/{user}", "query"));
    assert_eq!(way(Post, path, &Role::All), Some((path, "")));
    assert_eq!(way(Get, path, &Role::All), user);
    assert_eq!(way(Put, path, &Role::All), None);
    assert_eq!(way(Put, path, &real_time()), user);
}

#[test]
fn what_a_path_allows() {
    let allow = |path, role| Rows::of(path, true).map(|rows| rows.allow(&role));
    for (path, all, presence, realtime) in [
        (
            "/v1/presence/bob",
            "GET, HEAD, DELETE, ",
            "GET, HEAD, DELETE, ",
            "GET, HEAD, PUT, ",
        ),
        (
            "/v1/presence",
            "GET, HEAD, ",
            "GET, HEAD, ",
            "GET, HEAD, PUT, ",
        ),
        (
            "/v1/presence/query",
            "GET, HEAD, POST, DELETE, ",
            "GET, HEAD, POST, DELETE, ",
            "GET, HEAD, POST, PUT, ",
        ),
        // Served elsewhere: what it takes there.
        (
            "/v1/stream",
            "GET, HEAD, POST, ",
            "GET, HEAD, POST, ",
            "GET, HEAD, POST, ",
        ),
        ("/v1/beat", "POST, ", "POST, ", "POST, "),
        ("/metrics", "GET, HEAD, ", "GET, HEAD, ", "GET, HEAD, "),
    ] {
        for (role, methods) in [
            (Role::All, all),
            (Role::Presence, presence),
            (real_time(), realtime),
            (Role::Fleet(Arc::default()), all),
        ] {
            let expected = Some(format!("{methods}OPTIONS"));
            assert_eq!(allow(path, role), expected, "{path}");
        }
    }
}

/// What operators' rows leave of a path where they are not found.
#[test]
fn what_is_hidden() {
    let shown = |method, path| {
        let rows = Rows::of(path, false).filter(|rows| !rows.hide(method));
        rows.map(|rows| rows.allow(&Role::All))
    };
    let user = Some("GET, HEAD, OPTIONS".to_owned());
    for (method, path, allow) in [
        (Get, "/v1/presence/bob", user.clone()),
        (Method::Patch, "/v1/presence/bob", user.clone()),
        (Put, "/v1/presence/bob", None),
        (Delete, "/v1/presence/bob", None),
        (Put, "/v1/presence", None),
        (Get, "/v1/presence", user),
        (Get, "/metrics", None),
        (Method::Head, "/", None),
        (Method::Patch, "/v1/revoke", None),
        (Method::Options, "/v1/session", None),
    ] {
        assert_eq!(shown(method, path), allow, "{method:?} {path}");
    }
}

#[test]
fn no_row_stands_twice() {
    let rows: BTreeSet<_> = TABLE
        .iter()
        .map(|row| (row.path, name(row.method)))
        .collect();
    assert_eq!(rows.len(), TABLE.len());
}

/// Each operation of the API description is a row, and each row is described.
#[test]
fn the_api_description_has_the_same_rows() {
    let api: serde_json::Value = serde_json::from_str(&API.body).unwrap();
    let described: BTreeSet<(String, String)> = api["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|method| (path.clone(), method.to_uppercase()))
        })
        .collect();
    let rows = TABLE
        .iter()
        .map(|row| (row.path.to_owned(), name(row.method)));
    assert_eq!(described, rows.collect());
}

/// What the description says of each operation is what its row says.
#[test]
fn the_api_description_says_what_a_row_says() {
    let api: serde_json::Value = serde_json::from_str(&API.body).unwrap();
    for row in TABLE {
        let operation = &api["paths"][row.path][name(row.method).to_lowercase()];
        let of = format!("{:?} {}", row.method, row.path);
        // What need not be there is described, and not asked for.
        let asked = operation["requestBody"]["required"] == true;
        assert_eq!(asked, row.media().is_some(), "{of}");
        for status in ["400", "411", "413", "415"].iter().filter(|_| asked) {
            assert!(operation["responses"][status].is_object(), "{of}: {status}");
        }
        let scope = row.who.scope().map(Scope::name);
        let security = match row.who {
            Open => serde_json::Value::Null,
            Holder if row.is_to_look() => {
                serde_json::json!([{"user": []}, {"service": ["admin"]}, {}])
            }
            Holder => serde_json::json!([{"user": []}, {}]),
            Either(_) => {
                serde_json::json!([{"user": []}, {"service": [scope]}, {"node": []}, {}])
            }
            Peers(_) | Services(_) => serde_json::json!([{"service": [scope]}, {"node": []}]),
            Nodes => serde_json::json!([{"node": []}]),
            Local(_) | Here(_) => serde_json::json!([{"service": [scope]}, {"node": []}, {}]),
        };
        assert_eq!(operation["security"], security, "{of}");
        let inner = operation["x-admin"].as_bool().unwrap_or_default();
        assert_eq!(inner, row.inner, "{of}");
    }
}

/// A row each, in this order: `| call | nodes | listener | who may | beyond the limit | metric |`.
#[test]
fn the_protocol_lists_every_row() {
    let page = include_str!("../../../../docs/PROTOCOL.md");
    let head = "| call | nodes | listener | who may | beyond `conns-max` | label `call` |\n";
    let (_, listed) = page.split_once(head).expect(head);
    let listed: Vec<_> = listed.lines().skip(1).take(TABLE.len() + 1).collect();
    let nodes = |roles| match roles {
        Every => "all",
        Passes => "any",
        Decides | Keeps => "s, p",
        Shares => "s, p, f",
        Streams => "s, r",
        Mirrors => "r",
    };
    let who = |who| match who {
        Open => "all".to_owned(),
        Holder => "user".to_owned(),
        Either(scope) => format!("user, node, `{}`", scope.name()),
        Peers(scope) => format!("node, `{}`", scope.name()),
        Nodes => "node".to_owned(),
        Services(scope) => format!("`{}`", scope.name()),
        Local(scope) | Here(scope) => format!("`{}`, or this machine", scope.name()),
    };
    let surplus = |surplus| match surplus {
        Refused => "503",
        Later => "200, `overloaded`",
        Fleet => "503 to users",
        Allowed => "served",
    };
    for (line, row) in listed.iter().zip(TABLE) {
        let expected = format!(
            "| `{} {}` | {} | {} | {}{} | {} | `{}` |",
            name(row.method),
            row.path,
            nodes(row.roles),
            if row.inner { "admin" } else { "both" },
            who(row.who),
            if row.is_to_look() {
                ", `admin` to look"
            } else {
                ""
            },
            surplus(row.surplus),
            row.call.name()
        );
        assert_eq!(*line, expected);
    }
    assert!(!listed[TABLE.len()].starts_with('|'), "a row too many");
}
