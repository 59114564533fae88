//! Engines without a kernel: inputs and exact outputs, in virtual time (see `harness.rs` for the verbs).

mod framing;
mod harness;
mod http;
mod resume;
mod streams;
mod users;
mod watches;
