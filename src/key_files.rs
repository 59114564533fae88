//! Key files of identity: read, for a node and for `greendot token`.
//!
//! Owns who may read such a file. What its content means is `auth`'s.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::auth::{
    KeyFault, Keys, ServiceFault, ServiceKeys, Signer, SignerFault, WebhookSecretFault,
    WebhookSecrets,
};

/// Bits of a mode that let everybody on the machine read or write a file. A group may: that is how
/// secrets are mounted.
const WORLD_MASK: u32 = 0o006;
/// The bit that lets everybody write: add a key of their own.
const WORLD_WRITES: u32 = 0o002;

/// Longest key file in bytes; a set of 64 RSA keys has a tenth of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a file gives no key.
#[derive(Debug)]
pub struct FileFault {
    path: PathBuf,
    kind: FaultKind,
}

#[derive(Debug)]
enum FaultKind {
    Read(io::Error),
    Password(io::Error),
    TooLong,
    Open,
    Keys(KeyFault),
    Signer(SignerFault),
    Webhook(WebhookSecretFault),
    NoText,
    Services { line: usize, fault: ServiceFault },
    Writable,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            FaultKind::Read(error) => write!(f, "{path}: the key file can not be read: {error}"),
            FaultKind::Password(error) => write!(
                f,
                "{path}: the file of --cluster-password-file can not be read: {error}"
            ),
            FaultKind::TooLong => write!(f, "{path}: too long for a key file"),
            FaultKind::Open => write!(
                f,
                "{path}: everybody on this machine may use this secret; `chmod o-rw {path}`"
            ),
            FaultKind::Keys(fault) => write!(f, "{path}: {fault}"),
            FaultKind::Signer(fault) => write!(f, "{path}: {fault}"),
            FaultKind::Webhook(fault) => write!(f, "{path}: {fault}"),
            FaultKind::NoText => write!(f, "{path}: it is no text"),
            FaultKind::Services { line, fault } => write!(f, "{path}:{line}: {fault}"),
            FaultKind::Writable => write!(
                f,
                "{path}: everybody on this machine may add a key; `chmod o-w {path}`"
            ),
        }
    }
}

impl std::error::Error for FileFault {}

/// The keys of all files, by which tokens are verified.
///
/// Errors: the first file that gives none, or whose secret everybody may read.
pub fn verifying(paths: &[PathBuf]) -> Result<Keys, FileFault> {
    let mut keys = Keys::default();
    for path in paths {
        let fault = |kind| FileFault {
            path: path.clone(),
            kind,
        };
        let (content, mode) = read(path).map_err(fault)?;
        let before = keys.names().count();
        keys.add(&stem(path), &content)
            .map_err(|content| fault(FaultKind::Keys(content)))?;
        let is_secret = keys.names().skip(before).any(|(_, kind)| kind.is_secret());
        if is_secret && mode & WORLD_MASK != 0 {
            return Err(fault(FaultKind::Open));
        }
    }
    Ok(keys)
}

/// The keys of services, of which a file has the hashes; and what is to be said of the file.
///
/// Errors: a line is none, or everybody may write one.
pub fn services(path: &Path) -> Result<(ServiceKeys, Option<String>), FileFault> {
    let fault = |kind| FileFault {
        path: path.to_owned(),
        kind,
    };
    let (content, mode) = read(path).map_err(fault)?;
    if mode & WORLD_WRITES != 0 {
        return Err(fault(FaultKind::Writable));
    }
    let text = String::from_utf8(content).map_err(|_| fault(FaultKind::NoText))?;
    let keys = ServiceKeys::parse(&text)
        .map_err(|(line, why)| fault(FaultKind::Services { line, fault: why }))?;
    let path = path.display();
    let warning = (mode & WORLD_MASK != 0).then(|| {
        format!(
            "{path}: everybody on this machine may read which services there are; \
             `chmod o-r {path}`"
        )
    });
    Ok((keys, warning))
}

/// The key in a file, whose tokens name it `kid`.
///
/// Errors: it has none that signs, or everybody may read it.
pub fn signing(path: &Path, kid: Option<String>) -> Result<Signer, FileFault> {
    let fault = |kind| FileFault {
        path: path.to_owned(),
        kind,
    };
    let (content, mode) = read(path).map_err(fault)?;
    let signer = Signer::new(kid, &content).map_err(|content| fault(FaultKind::Signer(content)))?;
    if mode & WORLD_MASK != 0 {
        return Err(fault(FaultKind::Open));
    }
    Ok(signer)
}

/// By what a webhook's messages are signed.
///
/// Errors: the file has no secret, or everybody may read it.
pub fn webhook(path: &Path) -> Result<WebhookSecrets, FileFault> {
    let fault = |kind| FileFault {
        path: path.to_owned(),
        kind,
    };
    let (content, mode) = read(path).map_err(fault)?;
    let text = String::from_utf8(content).map_err(|_| fault(FaultKind::NoText))?;
    let secrets =
        WebhookSecrets::parse(&text).map_err(|content| fault(FaultKind::Webhook(content)))?;
    if mode & WORLD_MASK != 0 {
        return Err(fault(FaultKind::Open));
    }
    Ok(secrets)
}

/// The password in a file, with which a node shows itself to a fleet's database; a line's end
/// behind it is none of it.
///
/// Errors: it can not be read, is empty or no text, or everybody on this machine may use it.
pub fn password(path: &Path) -> Result<String, FileFault> {
    let fault = |kind| FileFault {
        path: path.to_owned(),
        kind,
    };
    let (content, mode) = read(path).map_err(|kind| match kind {
        FaultKind::Read(error) => fault(FaultKind::Password(error)),
        kind => fault(kind),
    })?;
    let text = String::from_utf8(content).map_err(|_| fault(FaultKind::NoText))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(fault(FaultKind::NoText));
    }
    if mode & WORLD_MASK != 0 {
        return Err(fault(FaultKind::Open));
    }
    Ok(password.to_owned())
}

/// The name of a key that has none of its own.
fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// A file's content and mode: of the one file, whatever its name leads to by then.
fn read(path: &Path) -> Result<(Vec<u8>, u32), FaultKind> {
    let file = File::open(path).map_err(FaultKind::Read)?;
    let mode = file
        .metadata()
        .map_err(FaultKind::Read)?
        .permissions()
        .mode();
    let mut content = Vec::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content);
    match read.map_err(FaultKind::Read)? as u64 {
        0..=FILE_BYTES_MAX => Ok((content, mode)),
        _ => Err(FaultKind::TooLong),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef\n";
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
                          MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
                          -----END PUBLIC KEY-----\n";

    fn file(dir: &Path, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn told<T>(result: Result<T, FileFault>, dir: &Path) -> String {
        let fault = result.err().unwrap().to_string();
        fault.replace(dir.to_str().unwrap(), "DIR")
    }

    #[test]
    fn a_key_is_named_as_its_file_and_its_group_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            file(dir.path(), "app.secret", SECRET, 0o640),
            file(dir.path(), "web.2026.pem", PUBLIC, 0o644),
        ];
        let keys = verifying(&files).unwrap();
        assert_eq!(
            format!("{keys:?}"),
            r#"[("app", Hs256), ("web.2026", EdDsa)]"#
        );
        assert!(signing(&files[0], None).is_ok());
    }

    #[test]
    fn a_secret_of_everybody_is_none() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o644, 0o602] {
            let open = file(dir.path(), "app.secret", SECRET, mode);
            let why = "DIR/app.secret: everybody on this machine may use this secret; `chmod o-rw \
                       DIR/app.secret`";
            assert_eq!(
                told(verifying(std::slice::from_ref(&open)), dir.path()),
                why
            );
            assert_eq!(told(signing(&open, None), dir.path()), why);
            let secret = format!("whsec_{}", "A".repeat(32));
            let hook = file(dir.path(), "app.secret", &secret, mode);
            assert_eq!(told(webhook(&hook), dir.path()), why);
        }
    }

    #[test]
    fn faults_name_the_file_and_quote_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none");
        assert_eq!(
            told(verifying(&[missing]), dir.path()),
            "DIR/none: the key file can not be read: No such file or directory (os error 2)"
        );
        let short = file(dir.path(), "a", "hunter2", 0o600);
        assert_eq!(
            told(verifying(&[short]), dir.path()),
            "DIR/a: a secret has at least 32 bytes; `openssl rand -hex 32` makes one"
        );
        let public = file(dir.path(), "b", PUBLIC, 0o600);
        assert_eq!(
            told(signing(&public, None), dir.path()),
            "DIR/b: a public key signs nothing; name the private key of the pair"
        );
        let hook = file(dir.path(), "d", "# new\nhunter2", 0o600);
        assert_eq!(
            told(webhook(&hook), dir.path()),
            "DIR/d: line 2 is no webhook secret, which is whsec_ and the base64 of 24 to 64 bytes; \
             `echo whsec_$(openssl rand -base64 32)` makes one"
        );
        let long = file(dir.path(), "c", &"x".repeat(1 << 21), 0o600);
        assert_eq!(
            told(verifying(&[long]), dir.path()),
            "DIR/c: too long for a key file"
        );
    }
}
