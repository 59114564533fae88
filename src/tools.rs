//! The client commands: each a small program around the library. Run by `main.rs`; the server never names them.

pub mod beat;
pub mod doctor;
pub mod key;
pub mod top;
pub mod watch;
