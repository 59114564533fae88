//! The client commands: each a small program around the library. Run by `main.rs`; the server never
//! names them.

mod admin;
mod agent;
pub mod beat;
pub mod doctor;
pub mod endpoint;
#[cfg(feature = "cluster")]
pub mod fleet;
pub mod health;
pub mod key;
mod key_check;
pub mod online;
pub mod reload;
pub mod store;
pub mod streams;
pub mod token;
pub mod top;
pub mod watch;

/// What an output that takes nothing more comes to: whoever closed the pipe has read enough.
fn read_enough(error: &std::io::Error) -> Result<(), String> {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(format!("output: {error}")),
    }
}
