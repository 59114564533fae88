//! The pages that a server shows of itself: metrics, figures, dashboard, client, API description.
//!
//! Pure: the files of `src/web/`, compiled in, or text made from a snapshot. Knows no connection
//! and no request.

pub mod exposition;
pub mod figures;
mod files;

pub use files::{API, CLIENT, CLIENT_TYPES, DASHBOARD, DEMO, ELEMENT, File, Page};
