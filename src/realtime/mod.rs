//! Who must be told: connections, watch lists, marks, timers. Knows no stamp and no socket.
//!
//! Everything here is indexed by a connection's dense index and kept in a few parallel tables,
//! because the user memory of an idle stream is what decides how many fit: [`conn::Conn`] 24 bytes,
//! a watch list head 12, a timer link 12.

mod chains;
pub mod conn;
mod lists;
mod names;
pub mod outbox;
mod table;
pub mod timers;
mod watchers;
pub mod watches;

pub use conn::{Conn, Phase};
pub use table::{ConnId, ConnTable};

/// Entries for which any table may keep room.
const IDLE_CAPACITY: usize = 1_024;

/// Gives memory back once three quarters of it are not used: the entries that are left move at
/// most, after three times as many have gone.
pub fn give_back<T>(table: &mut Vec<T>) {
    if table.capacity() > IDLE_CAPACITY && table.len() <= table.capacity() / 4 {
        table.shrink_to(IDLE_CAPACITY.max(table.len() * 2));
    }
}
