//! How what a webhook's receiver is told is signed: Standard Webhooks, version 1.
//!
//! Owns the form of a secret, and of the file that holds some. Every secret of a file signs, so
//! that a receiver may change from one to the next while both are named. Never quotes a secret.

use std::fmt;

use aws_lc_rs::hmac;
use base64::engine::Engine;

use super::{BASE64, from_base64};

/// What every secret begins with.
const PREFIX: &str = "whsec_";
/// Bytes that a secret may have.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Most secrets of a file: the old one and the new one, and some.
const SECRETS_MAX: usize = 8;

/// The secrets of one file, each of which signs.
pub struct WebhookSecrets(Vec<hmac::Key>);

/// Why a file holds no secrets of webhooks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WebhookSecretFault {
    /// There is no line with one.
    None,
    /// There are too many.
    TooMany,
    /// A line is none; from 1.
    Line(usize),
}

impl fmt::Display for WebhookSecretFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WebhookSecretFault::None => f.write_str(
                "there is no webhook secret in it; `echo whsec_$(openssl rand -base64 32)` makes \
                 one",
            ),
            WebhookSecretFault::TooMany => {
                write!(
                    f,
                    "it has more than {SECRETS_MAX} webhook secrets; take old ones out"
                )
            }
            WebhookSecretFault::Line(line) => write!(
                f,
                "line {line} is no webhook secret, which is whsec_ and the base64 of 24 to 64 \
                 bytes; `echo whsec_$(openssl rand -base64 32)` makes one"
            ),
        }
    }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} webhook secrets", self.0.len())
    }
}

impl WebhookSecrets {
    /// One secret a line; lines that are empty or begin with `#` are passed over.
    ///
    /// Errors: a line is none, there is no line with one, or there are too many.
    pub fn parse(text: &str) -> Result<WebhookSecrets, WebhookSecretFault> {
        let lines = (1..).zip(text.lines().map(str::trim));
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let secret = |(at, line): (usize, &str)| {
            let bytes = line.strip_prefix(PREFIX).and_then(from_base64);
            let bytes = bytes.filter(|bytes| SECRET_BYTES.contains(&bytes.len()));
            let bytes = bytes.ok_or(WebhookSecretFault::Line(at))?;
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
        };
        let secrets = lines.map(secret).collect::<Result<Vec<_>, _>>()?;
        match secrets.len() {
            0 => Err(WebhookSecretFault::None),
            1..=SECRETS_MAX => Ok(WebhookSecrets(secrets)),
            _ => Err(WebhookSecretFault::TooMany),
        }
    }

    /// What `webhook-signature` says of a message, sent at this Unix time in seconds: a signature
    /// by each secret.
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let signed = |key| {
            let mut context = hmac::Context::with_key(key);
            context.update(format!("{id}.{timestamp}.").as_bytes());
            context.update(body);
            format!("v1,{}", BASE64.encode(context.sign().as_ref()))
        };
        let signatures: Vec<String> = self.0.iter().map(signed).collect();
        signatures.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn a_known_signature() {
        let secrets = WebhookSecrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signature = secrets.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn each_secret_signs_and_padding_is_as_it_comes() {
        let one = format!("whsec_{}", BASE64.encode([1; 32]));
        let other = format!("whsec_{}", BASE64.encode([2; 32]));
        let text = format!("# new\n{one}\n\n  {}\n", other.trim_end_matches('='));
        let both = WebhookSecrets::parse(&text).unwrap();
        let of = |text: &str| WebhookSecrets::parse(text).unwrap().sign("a", 1, b"{}");
        assert_eq!(
            both.sign("a", 1, b"{}"),
            format!("{} {}", of(&one), of(&other))
        );
        assert_eq!(format!("{both:?}"), "2 webhook secrets");
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_quoted() {
        let good = format!("whsec_{}", BASE64.encode([1; 24]));
        for (text, fault) in [
            (String::new(), WebhookSecretFault::None),
            ("# none\n".into(), WebhookSecretFault::None),
            (format!("{good}\nhunter2"), WebhookSecretFault::Line(2)),
            (good.replace("whsec_", ""), WebhookSecretFault::Line(1)),
            (
                format!("whsec_{}", BASE64.encode([1; 23])),
                WebhookSecretFault::Line(1),
            ),
            (
                format!("whsec_{}", BASE64.encode([1; 65])),
                WebhookSecretFault::Line(1),
            ),
            (
                format!("{good}\n").repeat(SECRETS_MAX + 1),
                WebhookSecretFault::TooMany,
            ),
        ] {
            let refused = WebhookSecrets::parse(&text).unwrap_err();
            assert_eq!(refused, fault, "{text}");
            assert!(!refused.to_string().contains("hunter2"));
        }
    }
}
