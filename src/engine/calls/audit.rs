//! What operators did, a line of the log each.
//!
//! Owns how such a line reads. Whom it was done to it names where the log has user ids, at debug
//! and below.

use tracing::Level;

use super::caller::Caller;
use crate::engine::mail::ShardId;
use crate::realtime::ConnId;
use crate::wire::User;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Deed {
    Erase,
    EndStreams,
    RevokeUser,
    RevokeDevice,
    RevokeToken,
    SignIn,
}

/// Writes the line, unless users did it to themselves, or a node passes on what another has
/// written.
pub(super) fn audit<'u>(caller: &Caller, deed: Deed, users: impl Iterator<Item = User<'u>>) {
    let by = match (caller, deed) {
        (Caller::Service { name, .. }, _) => &**name,
        (Caller::Node, Deed::EndStreams) => return,
        (Caller::Node, _) => "(a node)",
        _ => return,
    };
    let deed = match deed {
        Deed::Erase => "erased users",
        Deed::EndStreams => "ended the streams of users",
        Deed::RevokeUser => "revoked all tokens of users",
        Deed::RevokeDevice => "revoked the keys of a device of users",
        Deed::RevokeToken => "revoked a token by its jti",
        Deed::SignIn => "signed in",
    };
    if tracing::enabled!(Level::DEBUG) {
        let users: Vec<&str> = users.map(User::as_str).collect();
        tracing::info!(service = by, users = users.len(), ids = ?users, "audit: {deed}");
    } else {
        tracing::info!(service = by, users = users.count(), "audit: {deed}");
    }
}

/// Writes the line of a stream that another node of the fleet is to end, by its id without what
/// makes it a secret. That node writes a line of its own, which names a node.
pub(super) fn audit_end_elsewhere(by: &str, stream: &str) {
    let stream = stream.rsplit_once('.').map_or("", |(named, _)| named);
    tracing::info!(service = by, %stream, "audit: asked a node to end a stream");
}

/// Writes the line of a stream that was ended, by its id without what makes it a secret.
pub(super) fn audit_end(by: &str, shard: ShardId, id: ConnId, user: Option<User<'_>>) {
    let stream = format!("{shard}.{}.{}", id.index, id.generation);
    match user.filter(|_| tracing::enabled!(Level::DEBUG)) {
        Some(user) => {
            tracing::info!(service = by, %stream, user = user.as_str(), "audit: ended a stream")
        }
        None => tracing::info!(service = by, %stream, "audit: ended a stream"),
    }
}
