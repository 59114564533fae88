//! The requests that open streams.
//!
//! Owns the choice between a URL and a body: lists that would not fit a request head of 8 KiB go as
//! JSON.

use std::net::SocketAddr;

use crate::http::write_request;
use crate::population::{ID_BYTES, Population};

/// Watches named in a URL at most: `&watch=` and an id take 23 bytes.
const WATCHES_IN_URL_MAX: usize = 250;

/// Appends the request for a stream of `user` (None: of nobody) that watches `watches`, resuming
/// from `last_id` unless 0, and vouches for itself if `by_holder`.
pub fn write_stream_request(
    population: &Population,
    host: SocketAddr,
    user: Option<u64>,
    watches: &[u64],
    last_id: u64,
    by_holder: bool,
    out: &mut Vec<u8>,
) {
    if watches.len() > WATCHES_IN_URL_MAX {
        return write_long(population, host, user, watches, last_id, by_holder, out);
    }
    let mut target = Vec::with_capacity(64 + watches.len() * (ID_BYTES + 7));
    target.extend_from_slice(b"GET /v1/stream");
    let mut mark = b'?';
    let mut pair = |name: &[u8], number: u64| {
        target.push(std::mem::replace(&mut mark, b'&'));
        target.extend_from_slice(name);
        population.push_id(number, &mut target);
    };
    user.into_iter().for_each(|user| pair(b"user=", user));
    watches.iter().for_each(|watch| pair(b"watch=", *watch));
    if by_holder {
        target.push(mark);
        target.extend_from_slice(b"vouch=self");
    }
    out.extend_from_slice(&target);
    out.extend_from_slice(
        format!(" HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n").as_bytes(),
    );
    if last_id > 0 {
        out.extend_from_slice(format!("Last-Event-ID: {last_id}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_long(
    population: &Population,
    host: SocketAddr,
    user: Option<u64>,
    watches: &[u64],
    last_id: u64,
    by_holder: bool,
    out: &mut Vec<u8>,
) {
    let mut body = b"{".to_vec();
    if let Some(user) = user {
        body.extend_from_slice(b"\"user\":\"");
        population.push_id(user, &mut body);
        body.extend_from_slice(b"\",");
    }
    if last_id > 0 {
        body.extend_from_slice(format!("\"last_event_id\":\"{last_id}\",").as_bytes());
    }
    if by_holder {
        body.extend_from_slice(b"\"vouch\":\"self\",");
    }
    body.extend_from_slice(b"\"watch\":");
    push_users(population, watches.iter().copied(), &mut body);
    body.push(b'}');
    write_request("POST", "/v1/stream", host, &body, out);
}

/// Appends a JSON array of the ids of `users`.
pub fn push_users(population: &Population, users: impl Iterator<Item = u64>, out: &mut Vec<u8>) {
    for (at, user) in users.enumerate() {
        out.extend_from_slice(if at == 0 { b"[\"" } else { b"\",\"" });
        population.push_id(user, out);
    }
    out.extend_from_slice(if out.ends_with(b":") { b"[]" } else { b"\"]" });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(user: Option<u64>, watches: &[u64], last_id: u64) -> String {
        let mut out = Vec::new();
        write_stream_request(
            &Population::new(1),
            "127.0.0.1:80".parse().unwrap(),
            user,
            watches,
            last_id,
            false,
            &mut out,
        );
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn short_lists_go_in_the_url() {
        assert_eq!(
            request(Some(1), &[2, 3], 7),
            "GET /v1/stream?user=gbgxeq0000000001&watch=gbgxeq0000000002&watch=gbgxeq0000000003 \
             HTTP/1.1\r\n\
             Host: 127.0.0.1:80\r\nAccept: text/event-stream\r\nLast-Event-ID: 7\r\n\r\n"
        );
        assert_eq!(
            request(None, &[], 0),
            "GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:80\r\nAccept: text/event-stream\r\n\r\n"
        );
    }

    #[test]
    fn long_lists_go_in_the_body() {
        let text = request(Some(1), &(0..251).collect::<Vec<_>>(), 7);
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("POST /v1/stream HTTP/1.1\r\n")
                && head.ends_with(&format!("Content-Length: {}", body.len()))
        );
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (json["user"].as_str(), json["last_event_id"].as_str()),
            (Some("gbgxeq0000000001"), Some("7"))
        );
        assert_eq!(json["watch"].as_array().unwrap().len(), 251);
    }

    #[test]
    fn an_empty_list_is_a_list() {
        let mut out = b"\"users\":".to_vec();
        push_users(&Population::new(1), [].into_iter(), &mut out);
        assert_eq!(out, b"\"users\":[]");
    }
}
