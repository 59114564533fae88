//! The public id of an identity, checked once at the door.

/// Longest user id in bytes.
pub const USER_BYTES_MAX: usize = 128;

/// A user id known to be legal: 1 to [`USER_BYTES_MAX`] bytes of UTF-8 without control characters
/// (Unicode category Cc: C0, DEL and C1). Every door (URL, JSON, datagram, file) makes one of
/// these, so all accept and refuse the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct User<'a>(&'a str);

/// A [`User`] that owns its text: what is kept of a user id was checked when it was read, and is
/// never checked again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UserBuf(Box<str>);

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
    /// In JSON: no string at all.
    NotText,
    /// In a URL: its percent-encoding is broken.
    BadEscape,
}

impl<'a> User<'a> {
    /// Fills a place of an array until a user is put there.
    pub const NOBODY: User<'static> = User("-");

    /// Checks `bytes`, which have been unescaped by their carrier (percent-decoding, JSON) exactly
    /// once.
    ///
    /// Errors: what is wrong with them.
    pub fn parse(bytes: &'a [u8]) -> Result<User<'a>, UserFault> {
        check_length(bytes)?;
        User::from_text(std::str::from_utf8(bytes).map_err(|_| UserFault::NotUtf8)?)
    }

    /// Checks `text`, for a carrier that has seen to its being UTF-8.
    ///
    /// Errors: what is wrong with it.
    pub fn from_text(text: &'a str) -> Result<User<'a>, UserFault> {
        check_length(text.as_bytes())?;
        // Only suspects call for a look at characters. Folded rather than `any`: without an early
        // exit the compiler compares sixteen bytes at once.
        let suspicious = text
            .bytes()
            .fold(false, |found, byte| found | is_suspect(byte));
        if suspicious && text.chars().any(char::is_control) {
            return Err(UserFault::Control);
        }
        Ok(User(text))
    }

    /// Text that its carrier has checked as [`User::from_text`] would.
    pub(super) fn vetted(text: &'a str) -> User<'a> {
        debug_assert_eq!(User::from_text(text), Ok(User(text)));
        User(text)
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

impl UserBuf {
    /// Takes over `text`, for a carrier that has seen to its being UTF-8.
    ///
    /// Errors: it is no user id, as [`User::from_text`] says.
    pub fn from_text(text: impl Into<Box<str>>) -> Result<UserBuf, UserFault> {
        let text = text.into();
        User::from_text(&text)?;
        Ok(UserBuf(text))
    }

    /// Borrows it.
    pub fn user(&self) -> User<'_> {
        User(&self.0)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<User<'_>> for UserBuf {
    fn from(user: User<'_>) -> UserBuf {
        UserBuf(user.0.into())
    }
}

/// Whether a byte of UTF-8 may belong to a control character: C0, DEL, or the byte that leads
/// U+0080 to U+00BF, so C1 too.
pub(super) fn is_suspect(byte: u8) -> bool {
    (byte < 0x20) | (byte == 0x7f) | (byte == 0xc2)
}

fn check_length(bytes: &[u8]) -> Result<(), UserFault> {
    match bytes.len() {
        0 => Err(UserFault::Empty),
        1..=USER_BYTES_MAX => Ok(()),
        _ => Err(UserFault::TooLong),
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
            UserFault::NotText => "the user id is not a string",
            UserFault::BadEscape => "a % is not followed by two hex digits",
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

    #[test]
    fn an_owned_id_is_checked_once_and_is_as_small_as_its_text() {
        let bob = UserBuf::from_text("bob").unwrap();
        assert_eq!((bob.user(), bob.as_str()), (User("bob"), "bob"));
        assert_eq!(UserBuf::from(User("bob")), bob);
        assert_eq!(UserBuf::from_text("a\0"), Err(UserFault::Control));
        assert_eq!(size_of::<Option<UserBuf>>(), size_of::<Box<str>>());
    }

    #[test]
    fn every_character_at_every_place() {
        for character in (0..=0x300)
            .chain([0x2028, 0xfeff, 0x1_f7e2, 0x10_ffff])
            .filter_map(char::from_u32)
        {
            for place in 0..34 {
                let id = format!("{:x<place$}{character}y", "");
                let expected = if character.is_control() {
                    Err(UserFault::Control)
                } else {
                    Ok(id.as_str())
                };
                assert_eq!(User::parse(id.as_bytes()).map(User::as_str), expected);
            }
        }
    }
}
