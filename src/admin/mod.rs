//! The pages that a server shows of itself: metrics, dashboard, browser client, API description.
//!
//! Pure: bytes compiled in, or text made from a snapshot. Knows no connection and no request.

pub mod exposition;

/// A page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page {
    /// Content-Type.
    pub content_type: &'static str,
    /// The whole body.
    pub body: &'static [u8],
}

/// The page at a path, if there is one.
pub fn page(_path: &str) -> Option<Page> {
    None
}
