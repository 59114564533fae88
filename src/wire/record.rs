//! The JSON of presence: records out, lists of users in.

use crate::time::Unix;
use crate::wire::{User, UserFault};

/// One publisher's state as told to anybody who asks or watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// Whose.
    pub user: User<'a>,
    /// online or offline.
    pub online: bool,
    /// Time of the last transition; None: never seen.
    pub since: Option<Unix>,
    /// Time of the last beat; None: never seen.
    pub last_active: Option<Unix>,
}

impl Record<'_> {
    /// Appends `{"user":"bob","status":"online","since":1,"last_active":2}`, members in this order, no spaces.
    pub fn write(&self, _out: &mut Vec<u8>) {
        todo!()
    }
}

/// Why a JSON body was refused (400 unless said otherwise).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BodyFault {
    /// Not JSON, or not of the form; what and where (line, column).
    Malformed(String),
    /// Nested deeper than `BODY_DEPTH_MAX`.
    TooDeep,
    /// Entry `index` of `member` is not a user id.
    User {
        /** member name */
        member: &'static str,
        /** from 0 */
        index: usize,
        /** why */
        fault: UserFault,
    },
    /// `member` has more than `max` entries (413).
    TooMany {
        /** member name */
        member: &'static str,
        /** allowed */
        max: usize,
        /** given */
        given: usize,
    },
}
/// Deepest nesting of a JSON body.
pub const BODY_DEPTH_MAX: usize = 8;

/// `{"users":[..]}`, unknown members refused; order and repeats kept.
pub fn parse_users(_body: &[u8], _users_max: usize) -> Result<Vec<String>, BodyFault> {
    todo!()
}

/// `{"add":[..],"remove":[..]}`, both optional.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WatchEdit {
    /** to watch */
    pub add: Vec<String>,
    /** to watch no longer */
    pub remove: Vec<String>,
}
/// Reads a watch edit; each list at most `watch_max` long.
pub fn parse_watch_edit(_body: &[u8], _watch_max: usize) -> Result<WatchEdit, BodyFault> {
    todo!()
}

/// What `GET` or `POST /v1/stream` asks for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamAsk {
    /** whom the stream makes a publisher */
    pub user: Option<String>,
    /** whom it watches */
    pub watch: Vec<String>,
    /** resume from */
    pub last_event_id: Option<String>,
}
/// Reads the JSON body of `POST /v1/stream`: `{"user":"alice","watch":["bob"],"last_event_id":"1764009600123"}`, all optional.
pub fn parse_stream_ask(_body: &[u8], _watch_max: usize) -> Result<StreamAsk, BodyFault> {
    todo!()
}
