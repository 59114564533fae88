//! The public id of an identity, checked once at the door.

/// Longest user id in bytes (DESIGN.md section 2).
pub const USER_BYTES_MAX: usize = 128;

/// A user id known to be legal: 1 to [`USER_BYTES_MAX`] bytes of UTF-8 without control characters (Unicode category Cc:
/// C0, DEL and C1). Every door (URL, JSON, datagram, file) makes one of these, so all accept and refuse the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct User<'a>(&'a str);

/// Why bytes are not a user id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UserFault {
    /// No bytes at all.
    Empty,
    /// More than [`USER_BYTES_MAX`] bytes.
    TooLong,
    /// Not UTF-8.
    NotUtf8,
    /// Holds a control character.
    Control,
}

impl<'a> User<'a> {
    /// Checks `bytes`, which have been unescaped by their carrier (percent-decoding, JSON) exactly once.
    pub fn parse(bytes: &'a [u8]) -> Result<User<'a>, UserFault> {
        if bytes.is_empty() {
            return Err(UserFault::Empty);
        }
        if bytes.len() > USER_BYTES_MAX {
            return Err(UserFault::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| UserFault::NotUtf8)?;
        if text.chars().any(char::is_control) {
            return Err(UserFault::Control);
        }
        Ok(User(text))
    }

    /// The id as text.
    pub fn as_str(self) -> &'a str {
        self.0
    }

    /// The id as bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.as_bytes()
    }
}

impl UserFault {
    /// What was wrong and what is allowed, for an error's `detail`.
    pub fn explain(self) -> &'static str {
        match self {
            UserFault::Empty => "the user id is empty; it takes 1 to 128 bytes of UTF-8",
            UserFault::TooLong => "the user id is longer than 128 bytes",
            UserFault::NotUtf8 => "the user id is not UTF-8",
            UserFault::Control => "the user id holds a control character",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!(User::parse(b"b").map(User::as_str), Ok("b"));
        assert_eq!(User::parse(&[b'x'; 128]).map(|u| u.as_str().len()), Ok(128));
        assert_eq!(User::parse(&[b'x'; 129]), Err(UserFault::TooLong));
        assert_eq!(User::parse(b""), Err(UserFault::Empty));
        assert_eq!(
            User::parse("a/b%2F+ \u{1F7E2}é".as_bytes()).map(User::as_str),
            Ok("a/b%2F+ \u{1F7E2}é")
        );
        assert_eq!(User::parse(b"\xff"), Err(UserFault::NotUtf8));
        assert_eq!(User::parse(b"a\0"), Err(UserFault::Control));
        assert_eq!(User::parse("a\u{85}".as_bytes()), Err(UserFault::Control));
        assert_eq!(User::parse(b"\x7f"), Err(UserFault::Control));
    }
}
