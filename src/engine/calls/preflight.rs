//! What a page of another origin may send, for the browser that asks before it does (WHATWG Fetch,
//! "CORS-preflight request").
//!
//! Owns the lines beside those that every answer to the origin has. Whether the origin is listed is
//! decided elsewhere.

/// Headers that clients are known to send: polyfills of EventSource, fetch with JSON, tokens.
const KNOWN: [&str; 5] = [
    "Authorization",
    "Cache-Control",
    "Content-Type",
    "Last-Event-ID",
    "X-Requested-With",
];
/// Most bytes of further headers that are allowed by their names.
const ASKED_BYTES_MAX: usize = 512;

/// Appends what a page may send to `cors`. `asked` are the headers that it would send: a page that
/// is trusted with the answers may name any, such as those of a tracer.
pub(super) fn allow(asked: Option<&str>, cors: &mut String) {
    cors.push_str(
        "Access-Control-Allow-Methods: GET, HEAD, POST\r\nAccess-Control-Allow-Headers: ",
    );
    cors.push_str(&KNOWN.join(", "));
    let asked = asked.filter(|asked| asked.len() <= ASKED_BYTES_MAX);
    for name in asked.unwrap_or("").split(',').map(str::trim) {
        let known = KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name));
        if !known && is_name(name) {
            cors.push_str(", ");
            cors.push_str(name);
        }
    }
    cors.push_str("\r\nAccess-Control-Max-Age: 86400\r\n");
}

/// Letters, digits and dashes: what headers are called in practice, and nothing that could end a
/// line.
fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    !name.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(asked: &str) -> String {
        let mut cors = String::new();
        allow(Some(asked), &mut cors);
        let (_, rest) = cors.split_once("Allow-Headers: ").unwrap();
        rest.split("\r\n").next().unwrap().to_owned()
    }

    #[test]
    fn what_is_asked_for_is_allowed_by_name() {
        let known = KNOWN.join(", ");
        assert_eq!(allowed(""), known);
        assert_eq!(allowed("content-type,last-event-id"), known);
        assert_eq!(
            allowed("traceparent, cache-control,x-a"),
            format!("{known}, traceparent, x-a")
        );
        assert_eq!(allowed("a b,c:d,\u{e9}"), known);
        assert_eq!(allowed(&"x,".repeat(300)), known);
    }
}
