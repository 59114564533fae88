//! Operators' calls: by which listener they may come.
//!
//! Owns what the two listeners mean to a call. Which calls are operators' is the table's
//! (`calls/table/`), and who may make one is judged in `calls/caller.rs`.

/// By which listener a connection came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entrance {
    /// The one for everybody (`--http`).
    Public,
    /// The one for operators (`--admin`), which serves the others' calls too.
    Admin,
}

/// Where operators' calls are served, and to whom without a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operators {
    /// The public listener serves them too. Else they are found there by nobody.
    pub are_public: bool,
    /// Whoever reaches the listener that serves them may look: it is there for its own machine
    /// alone, or nobody is asked for anything.
    pub are_open: bool,
    /// Whoever reaches that listener may read the metrics.
    pub metrics_are_open: bool,
    /// There is a page for trying things out.
    pub demo: bool,
}

impl Default for Operators {
    /// Those of a node by itself on a loopback address.
    fn default() -> Operators {
        Operators {
            are_public: true,
            are_open: true,
            metrics_are_open: false,
            demo: true,
        }
    }
}

impl Operators {
    /// Whether who comes by this listener finds operators' calls.
    pub(super) fn served_at(self, entrance: Entrance) -> bool {
        self.are_public || entrance == Entrance::Admin
    }

    /// Whether each call by this listener has to show a key or a token, whatever it is.
    pub(super) fn guarded_at(self, entrance: Entrance) -> bool {
        entrance == Entrance::Admin && !self.are_open
    }
}
