//! Bytes to values and back: HTTP requests and responses, server-sent events, beat datagrams,
//! presence records.
//!
//! Owns every format that leaves or enters the process. Never opens a socket, never reads a clock,
//! never panics on a byte.

pub mod beat;
pub mod feed;
#[doc(hidden)]
pub mod fuzz;
pub(crate) mod json;
pub mod nodes;
pub mod record;
pub mod request;
pub mod response;
pub mod sse;
mod user;

pub use user::{USER_BYTES_MAX, User, UserBuf, UserFault};
