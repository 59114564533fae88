//! Values as people type them: durations, sizes, counts, switches, lists.
//!
//! Owns the grammar of a value and the sentence that says what is allowed. Knows neither flags nor
//! files.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Milliseconds: a bare number, or one with `ms`, `s`, `m`, `h` or `d`.
///
/// Errors: what is wrong with the text, as the end of a sentence that names it.
pub fn millis(text: &str, allowed: &RangeInclusive<u64>) -> Result<u64, String> {
    let why = || {
        format!(
            "is not a time of {} to {} ms; write milliseconds, or a whole number with ms, s, m, h \
             or d: 10000, 10s",
            allowed.start(),
            allowed.end()
        )
    };
    let (digits, unit) = split_unit(text);
    let factor = match unit {
        "" | "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(why()),
    };
    number(digits, factor, allowed).ok_or_else(why)
}

/// Bytes: a bare number, or one with `K`, `M` or `G` (powers of 1,024), with or without `B` or
/// `iB`.
///
/// Errors: as of [`millis`].
pub fn bytes(text: &str, allowed: &RangeInclusive<u64>) -> Result<u64, String> {
    let why = || {
        format!(
            "is not a size of {} to {} bytes; write bytes, or a whole number with K, M or G (of \
             1024): 65536, 64K",
            allowed.start(),
            allowed.end()
        )
    };
    let (digits, unit) = split_unit(text);
    let factor = match unit {
        "" | "B" => 1,
        "K" | "KB" | "KiB" | "k" => 1 << 10,
        "M" | "MB" | "MiB" => 1 << 20,
        "G" | "GB" | "GiB" => 1 << 30,
        _ => return Err(why()),
    };
    number(digits, factor, allowed).ok_or_else(why)
}

/// A count: digits, `_` between them allowed.
///
/// Errors: as of [`millis`].
pub fn count(text: &str, allowed: &RangeInclusive<u64>) -> Result<u64, String> {
    number(text, 1, allowed).ok_or_else(|| {
        format!(
            "is not a whole number from {} to {}",
            allowed.start(),
            allowed.end()
        )
    })
}

/// `true` or `false`.
///
/// Errors: it is neither.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

/// An IP address and a port.
///
/// Errors: it is a name, or lacks the port.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let why = "is not an IP address and a port; write 127.0.0.1:8080 or [::1]:8080 (port 0: the \
               kernel picks one)";
    text.parse().map_err(|_| why.into())
}

/// Words between commas; nothing is no words.
pub fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .map(String::from)
        .collect()
}

/// Addresses and nets between commas.
///
/// Errors: as of [`millis`].
pub fn nets(text: &str) -> Result<Vec<IpNet>, String> {
    let net = |word: &String| {
        let address = word.parse::<IpAddr>().map(IpNet::from);
        let net = address.or_else(|_| word.parse::<IpNet>());
        net.map(|net| net.trunc()).map_err(|_| {
            format!("has {word:?}, which is no address and no net; write 10.0.0.1 or 10.0.0.0/8")
        })
    };
    list(text).iter().map(net).collect()
}

/// What [`nets`] reads.
pub fn written_nets(nets: &[IpNet]) -> String {
    let words: Vec<String> = nets.iter().map(IpNet::to_string).collect();
    words.join(",")
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    text.split_at(end)
}

fn number(digits: &str, factor: u64, allowed: &RangeInclusive<u64>) -> Option<u64> {
    if !digits.starts_with(|c: char| c.is_ascii_digit()) || digits.contains('+') {
        return None;
    }
    let value: u64 = digits.replace('_', "").parse().ok()?;
    value
        .checked_mul(factor)
        .filter(|value| allowed.contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let all = 0..=u64::MAX;
        let good = [
            ("0", 0),
            ("10000", 10_000),
            ("10_000", 10_000),
            ("10s", 10_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ];
        for (text, ms) in good {
            assert_eq!(millis(text, &all), Ok(ms), "{text}");
        }
        for text in [
            "",
            "s",
            "-1",
            "+1",
            "1.5s",
            "10 s",
            "10S",
            "_1",
            "18446744073709551616",
            "18446744073709551615s",
        ] {
            assert!(millis(text, &all).is_err(), "{text}");
        }
        assert_eq!(
            millis("0", &(1..=5)),
            Err(
                "is not a time of 1 to 5 ms; write milliseconds, or a whole number with ms, s, m, \
                 h or d: 10000, 10s"
                    .into()
            )
        );
    }

    #[test]
    fn sizes() {
        let all = 0..=u64::MAX;
        let good = [
            ("0", 0),
            ("65536", 65_536),
            ("64K", 65_536),
            ("64KiB", 65_536),
            ("1M", 1_048_576),
            ("2G", 2 << 30),
        ];
        for (text, size) in good {
            assert_eq!(bytes(text, &all), Ok(size), "{text}");
        }
        for text in ["", "K", "1T", "1.5M", "-1K", "17179869184G"] {
            assert!(bytes(text, &all).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_and_nets() {
        assert_eq!(
            nets("10.0.0.1, 10.9.9.9/8,2001:db8::1/32").map(|nets| written_nets(&nets)),
            Ok("10.0.0.1/32,10.0.0.0/8,2001:db8::/32".to_owned())
        );
        assert_eq!(nets(""), Ok(Vec::new()));
        assert_eq!(
            nets("10.0.0.1,proxy"),
            Err(
                "has \"proxy\", which is no address and no net; write 10.0.0.1 or 10.0.0.0/8"
                    .into()
            )
        );
    }

    #[test]
    fn others() {
        assert_eq!(count("1_000", &(0..=1_000)), Ok(1_000));
        assert_eq!(
            count("1001", &(0..=1_000)),
            Err("is not a whole number from 0 to 1000".into())
        );
        assert_eq!(switch("true"), Ok(true));
        assert!(switch("yes").is_err());
        assert_eq!(address("[::1]:0").map(|a| a.port()), Ok(0));
        assert!(address("localhost:80").is_err());
        assert_eq!(list(" a, b,,"), ["a", "b"]);
        assert_eq!(list(""), [""; 0]);
    }
}
