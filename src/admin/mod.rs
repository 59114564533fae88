//! The pages that a server shows of itself: metrics, dashboard, browser client, API description.
//!
//! Pure: bytes compiled in, or text made from a snapshot. Knows no connection and no request.

pub mod exposition;
mod pages;

pub use pages::{Page, page};
