//! Web origins: which are listed, and what they are told.
//!
//! Owns the CORS lines of an answer (WHATWG Fetch). What an origin that is not listed may do is
//! decided by `calls/guard.rs`.

use super::Settings;

/// Stands in the list for the origins of this machine, of any port.
pub const LOOPBACK: &str = "loopback";

impl Settings {
    /// Whether the pages of an origin may call the API.
    pub fn lists(&self, origin: &str) -> bool {
        self.cors_origins.iter().any(|allowed| match &**allowed {
            "*" => true,
            LOOPBACK => is_loopback(origin),
            allowed => allowed.eq_ignore_ascii_case(origin),
        })
    }

    /// The CORS lines that answer `origin`, or nothing.
    pub fn cors_lines(&self, origin: Option<&str>) -> String {
        let Some(origin) = origin.filter(|origin| self.lists(origin)) else {
            return String::new();
        };
        if self.cors_origins.iter().any(|allowed| allowed == "*") {
            return "Access-Control-Allow-Origin: *\r\n".to_owned();
        }
        // What a page sends may come with its cookies, for a gateway before this server.
        format!(
            "Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\n"
        )
    }
}

/// Whether an origin is that of a page which this very machine serves.
fn is_loopback(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else {
        return false;
    };
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (authority, ""),
    };
    let name = name.to_ascii_lowercase();
    // Echoed in a header: nothing but what a browser calls an origin.
    matches!(scheme, "http" | "https")
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-[]:".contains(&byte))
        && (name == "localhost"
            || name.ends_with(".localhost")
            || name == "[::1]"
            || octets(&name).is_some_and(|octets| octets[0] == 127))
}

/// The four numbers of an IPv4 address as browsers write it.
pub(in crate::engine) fn octets(text: &str) -> Option<[u8; 4]> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        *octet = Some(part).filter(|_| digits)?.parse().ok()?;
    }
    parts.next().is_none().then_some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_of_this_machine() {
        for origin in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://127.9.9.9",
            "http://[::1]:5173",
            "http://app.localhost:3000",
        ] {
            assert!(is_loopback(origin), "{origin}");
        }
        for origin in [
            "null",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "http://evil.example",
            "http://128.0.0.1",
            "http://[::2]",
            "chrome-extension://localhost",
            "http://a@localhost",
        ] {
            assert!(!is_loopback(origin), "{origin}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(octets("127.0.0.1"), Some([127, 0, 0, 1]));
        assert_eq!(octets("255.255.255.255"), Some([255; 4]));
        for none in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.256",
            "1.2.3.+4",
            "1.2.3.",
            "a.b.c.d",
        ] {
            assert_eq!(octets(none), None, "{none}");
        }
    }

    #[test]
    fn loopback_is_listed_by_its_word() {
        let page = "http://localhost:3000";
        let settings = |listed: &[&str]| Settings {
            cors_origins: listed.iter().map(|origin| (*origin).to_owned()).collect(),
            ..Settings::default()
        };
        assert!(!settings(&[]).lists(page));
        assert!(!settings(&["https://app.example"]).lists(page));
        let both = settings(&["https://app.example", LOOPBACK]);
        assert!(both.lists(page) && both.lists("https://app.example"));
        assert!(!both.lists("https://evil.example"));
        assert_eq!(
            both.cors_lines(Some(page)),
            "Access-Control-Allow-Origin: http://localhost:3000\r\n\
             Access-Control-Allow-Credentials: true\r\n"
        );
        assert_eq!(both.cors_lines(None), "");
    }
}
