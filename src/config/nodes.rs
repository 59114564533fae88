//! The nodes of the other role: how their addresses are typed.

use std::fmt;
use std::net::Ipv6Addr;

use super::value;

/// A presence node, as a real-time node names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PresenceNode {
    /// `HOST:PORT` that takes beats. Also the node's name, by which publishers are spread: the same
    /// on every node.
    pub udp: String,
    /// `http://HOST:PORT`, or with `https`, that answers queries.
    pub http: String,
}

/// A real-time node, as a presence node names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RealtimeNode {
    /// `http://HOST:PORT`, or with `https`, that is published to.
    pub http: String,
}

impl fmt::Display for PresenceNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp://{},{}", self.udp, self.http)
    }
}

/// Most nodes of one role.
const NODES_MAX: usize = 1_024;

/// Reads `udp://HOST:PORT,http://HOST:PORT`, any number of them.
pub(super) fn presence(text: &str) -> Result<Vec<PresenceNode>, String> {
    let words = value::list(text);
    let (pairs, rest) = words.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("is no udp://HOST:PORT,http://HOST:PORT".into());
    }
    let node = |[udp, http]: &[String; 2]| {
        Ok(PresenceNode {
            udp: address(udp, "udp://")?.to_owned(),
            http: web(http)?,
        })
    };
    let nodes = pairs.iter().map(node).collect::<Result<Vec<_>, String>>()?;
    distinct(nodes.iter().map(|node| node.udp.as_str()))?;
    Ok(nodes)
}

/// Reads `http://HOST:PORT`, any number of them between commas.
pub(super) fn realtime(text: &str) -> Result<Vec<RealtimeNode>, String> {
    let node = |word: &String| Ok(RealtimeNode { http: web(word)? });
    let nodes = value::list(text)
        .iter()
        .map(node)
        .collect::<Result<Vec<_>, String>>()?;
    distinct(nodes.iter().map(|node| node.http.as_str()))?;
    Ok(nodes)
}

/// A node's address for requests, as it is kept.
fn web(word: &str) -> Result<String, String> {
    let scheme = match word.starts_with("https://") {
        true => "https://",
        false => "http://",
    };
    Ok(format!("{scheme}{}", address(word, scheme)?))
}

/// The `HOST:PORT` behind a scheme.
fn address<'t>(word: &'t str, scheme: &str) -> Result<&'t str, String> {
    let fault = || format!("has {word:?}, which is no {scheme}HOST:PORT");
    let authority = word.strip_prefix(scheme).ok_or_else(fault)?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = authority.rsplit_once(':').ok_or_else(fault)?;
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let numbered = bracketed.is_some_and(|host| host.parse::<Ipv6Addr>().is_ok());
    let named = !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    match port.parse::<u16>() {
        Ok(1..) if numbered || named => Ok(authority),
        _ => Err(fault()),
    }
}

fn distinct<'n>(names: impl Iterator<Item = &'n str>) -> Result<(), String> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("names {} twice", pair[0])),
        None if names.len() > NODES_MAX => Err(format!(
            "names {} nodes; at most {NODES_MAX} are taken",
            names.len()
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_nodes() {
        let node = |udp: &str, http: &str| PresenceNode {
            udp: udp.into(),
            http: http.into(),
        };
        assert_eq!(
            presence(
                "udp://10.0.0.1:8081,http://10.0.0.1:8080/, udp://[::1]:1,https://p-2.example:2"
            ),
            Ok(vec![
                node("10.0.0.1:8081", "http://10.0.0.1:8080"),
                node("[::1]:1", "https://p-2.example:2")
            ])
        );
        for (bad, why) in [
            ("udp://a:1", "is no udp://HOST:PORT,http://HOST:PORT"),
            (
                "http://a:1,udp://a:2",
                "has \"http://a:1\", which is no udp://HOST:PORT",
            ),
            (
                "udp://a,http://a:2",
                "has \"udp://a\", which is no udp://HOST:PORT",
            ),
            (
                "udp://a:1,https://a",
                "has \"https://a\", which is no https://HOST:PORT",
            ),
            (
                "udp://a:0,http://a:2",
                "has \"udp://a:0\", which is no udp://HOST:PORT",
            ),
            (
                "udp://a:1,http://a:2/x",
                "has \"http://a:2/x\", which is no http://HOST:PORT",
            ),
            (
                "udp://[x]:1,http://a:2",
                "has \"udp://[x]:1\", which is no udp://HOST:PORT",
            ),
            (
                "udp://[]:1,http://a:2",
                "has \"udp://[]:1\", which is no udp://HOST:PORT",
            ),
            (
                "udp://a:1,http://[::1/]:2",
                "has \"http://[::1/]:2\", which is no http://HOST:PORT",
            ),
            (
                "udp://a:1,http://[127.0.0.1]:2",
                "has \"http://[127.0.0.1]:2\", which is no http://HOST:PORT",
            ),
            (
                "udp://a:1,http://a:2,udp://a:1,http://b:2",
                "names a:1 twice",
            ),
        ] {
            assert_eq!(presence(bad), Err(why.into()), "{bad}");
        }
    }

    #[test]
    fn realtime_nodes() {
        let http = |text: &str| {
            realtime(text).map(|nodes| nodes.into_iter().map(|node| node.http).collect::<Vec<_>>())
        };
        assert_eq!(
            http("http://a:1,http://b:2"),
            Ok(vec!["http://a:1".into(), "http://b:2".into()])
        );
        assert_eq!(
            http("http://a:1,http://a:1"),
            Err("names http://a:1 twice".into())
        );
        assert_eq!((http(""), presence("")), (Ok(vec![]), Ok(vec![])));
        let many = |count: usize| {
            (1..=count)
                .map(|port| format!("http://a:{port}"))
                .collect::<Vec<_>>()
                .join(",")
        };
        assert_eq!(
            http(&many(NODES_MAX)).map(|nodes| nodes.len()),
            Ok(NODES_MAX)
        );
        assert_eq!(
            http(&many(NODES_MAX + 1)),
            Err("names 1025 nodes; at most 1024 are taken".into())
        );
        assert_eq!(
            http("a:1"),
            Err("has \"a:1\", which is no http://HOST:PORT".into())
        );
    }
}
