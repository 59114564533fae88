//! Engines without a kernel: inputs and exact outputs, in virtual time (see `harness.rs` for the
//! verbs).

mod accepting;
mod bounded;
mod calls;
mod chunks;
mod delivery;
mod drain;
mod farewells;
mod forget;
mod framing;
mod goodbyes;
mod harness;
mod http;
mod kernel;
mod limits;
mod mailbox;
mod outbox;
mod own_writes;
mod pages;
mod resume;
mod roles;
mod streams;
mod timing;
mod users;
mod vouching;
mod watches;
