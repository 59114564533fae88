//! Webhooks, as `greendot doctor` looks at them: the secrets, and whether anybody is to be met.
//!
//! Owns one connection to each receiver, over which nothing is said. Never sends a message: a
//! receiver would take it for one.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::config::Config;
use crate::config::webhooks::Webhook;
use crate::key_files;
use crate::limits::{Finding, Verdict};
use crate::lookup;

const SUBJECT: &str = "webhook";

/// How long a receiver may take to be met.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What there is to be said of them, nothing if there are none.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let config = &config.webhooks;
    let secrets = config.secret_files.iter().map(|path| {
        let subject = "webhook secrets";
        match key_files::webhook(path) {
            Ok(_) => Finding::new(
                Verdict::Ok,
                subject,
                format!("{} can be read", path.display()),
            ),
            Err(fault) => Finding::new(Verdict::Fail, subject, fault.to_string()),
        }
    });
    let reach = config.reach();
    let hooks = config.hooks.iter().map(|hook| {
        let may = |at: &SocketAddr| reach.allows(at.ip(), hook.seals());
        receiver(hook, may)
    });
    secrets.chain(hooks).collect()
}

/// A receiver may be down for good reasons, so that is no fault; one that is never dialled is.
fn receiver(hook: &Webhook, may: impl Fn(&SocketAddr) -> bool) -> Finding {
    let place = &hook.place;
    let found = match lookup::addresses(&hook.authority()) {
        Ok(found) if !found.is_empty() => found,
        Ok(_) => return Finding::new(Verdict::Warn, SUBJECT, format!("{place}: no such name")),
        Err(error) => return Finding::new(Verdict::Warn, SUBJECT, format!("{place}: {error}")),
    };
    let Some(at) = found.iter().find(|at| may(at)) else {
        let detail = format!(
            "{place} leads to {}, which is not dialled: an address in a network of your own takes \
             --webhook-private, one of the world https://",
            found[0].ip()
        );
        return Finding::new(Verdict::Fail, SUBJECT, detail);
    };
    match TcpStream::connect_timeout(at, TIMEOUT) {
        Ok(_) => Finding::new(
            Verdict::Ok,
            SUBJECT,
            format!("{place}: somebody listens at {at}"),
        ),
        Err(error) => Finding::new(
            Verdict::Warn,
            SUBJECT,
            format!("{place}: {at}: {error}; start the receiver, or name where it is"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::{Sources, load};

    /// Of each finding its verdict and what it says.
    fn found(lines: &[String]) -> Vec<(Verdict, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("greendot.toml");
        std::fs::write(&path, lines.join("\n")).unwrap();
        let sources = Sources {
            config_file: Some(path),
            ..Sources::default()
        };
        let config = load(&sources).unwrap().config;
        let findings = findings(&config).into_iter();
        findings
            .map(|finding| (finding.verdict, finding.detail))
            .collect()
    }

    #[test]
    fn secrets_are_read_and_receivers_are_met_and_told_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("hook.secret");
        let mode = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&secret, mode).unwrap();
        };
        std::fs::write(&secret, format!("whsec_{}=\n", "A".repeat(43))).unwrap();
        mode(0o600);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let secrets = format!("webhook_secret_file = [\"{}\"]", secret.display());
        let private = "webhook_private = true".to_owned();
        let hook = |host: &str| format!("webhook = [\"http://{host}:{}/hook?x=1\"]", at.port());
        let lines = [hook("localhost"), secrets.clone(), private];
        let readable = (Verdict::Ok, format!("{} can be read", secret.display()));
        let place = format!("http://localhost:{}", at.port());
        let met = format!("{place}: somebody listens at {at}");
        assert_eq!(found(&lines), [readable.clone(), (Verdict::Ok, met)]);
        let (mut conn, _) = listener.accept().unwrap();
        assert_eq!(std::io::Read::read(&mut conn, &mut [0]).unwrap(), 0);

        drop(listener);
        let nobody = found(&lines);
        assert_eq!((&nobody[0], nobody[1].0), (&readable, Verdict::Warn));
        assert!(
            nobody[1].1.starts_with(&format!("{place}: {at}: ")),
            "{nobody:?}"
        );

        mode(0o644);
        assert_eq!(found(&lines)[0].0, Verdict::Fail, "everybody may read it");
        mode(0o600);
        let lines = [
            "webhook = [\"https://localhost/hook\"]".to_owned(),
            "tls_ca = \"a\"".to_owned(),
            secrets,
        ];
        let never = "https://localhost leads to 127.0.0.1, which is not dialled: an address in a \
                     network of your own takes --webhook-private, one of the world https://";
        assert_eq!(found(&lines), [readable, (Verdict::Fail, never.to_owned())]);
    }

    #[test]
    fn without_webhooks_there_is_nothing_to_be_said() {
        assert_eq!(found(&[]), []);
    }
}
