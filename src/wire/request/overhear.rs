//! What can be told of a head that is refused, or has not come whole.
//!
//! Owns for whom a refusal is written: a page of another origin must be able to read it, or its
//! script takes it for a network that failed, and tries again for ever. Decides nothing else: what
//! is read here has not been checked.

/// What a torn or illegal head says, as far as it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Overheard<'b> {
    /// The method is HEAD.
    pub head_only: bool,
    /// The version is HTTP/1.0.
    pub http10: bool,
    /// The one whole `Origin` line.
    pub origin: Option<&'b str>,
}

/// Looks at the lines of one head, and no further than its blank line.
pub fn overhear(heard: &[u8]) -> Overheard<'_> {
    let mut overheard = Overheard::default();
    let lines = heard.split_inclusive(|byte| *byte == b'\n');
    let mut lines = lines.skip_while(|line| line.trim_ascii().is_empty());
    if let Some(line) = lines.next() {
        overheard.head_only = line.starts_with(b"HEAD ");
        overheard.http10 = line.trim_ascii_end().ends_with(b" HTTP/1.0");
    }
    let mut seen = false;
    for line in lines {
        if line.trim_ascii().is_empty() {
            break;
        }
        if let Some(origin) = origin_of(line) {
            overheard.origin = if seen { None } else { Some(origin) };
            seen = true;
        }
    }
    overheard
}

fn origin_of(line: &[u8]) -> Option<&str> {
    let (name, value) = line.split_at_checked(b"origin:".len())?;
    if !name.eq_ignore_ascii_case(b"origin:") {
        return None;
    }
    std::str::from_utf8(value.strip_suffix(b"\n")?.trim_ascii()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(heard: &str) -> Option<&str> {
        overhear(heard.as_bytes()).origin
    }

    #[test]
    fn the_origin_of_a_torn_head() {
        assert_eq!(
            origin("GET / HTTP/1.1\r\nOrigin: https://a\r\nX"),
            Some("https://a")
        );
        assert_eq!(
            origin("\r\nBREW / HTTP/9\r\nORIGIN:https://a\r\n"),
            Some("https://a")
        );
        for none in [
            "",
            "Origin: https://a\r\n",
            "GET / HTTP/1.1\r\nOrigin: https://a",
            "GET / HTTP/1.1\r\n\r\nOrigin: https://a\r\n",
            "GET / HTTP/1.1\r\nX-Origin: https://a\r\n",
            "GET / HTTP/1.1\r\nOrigin: a\r\nOrigin: b\r\n",
        ] {
            assert_eq!(origin(none), None, "{none}");
        }
        assert_eq!(overhear(b"GET / HTTP/1.1\r\nOrigin: \xff\r\n").origin, None);
    }

    #[test]
    fn method_and_version() {
        let of = |heard: &'static str| {
            let overheard = overhear(heard.as_bytes());
            (overheard.head_only, overheard.http10)
        };
        assert_eq!(of("HEAD / HTTP/1.1\r\n"), (true, false));
        assert_eq!(of("GET / HTTP/1.0\r\nHost"), (false, true));
        assert_eq!(of("GET /a"), (false, false));
    }
}
