//! A bug planted for the simulator: the snapshot is taken a turn before its watches are indexed
//! (see `crate::planted`).

use super::parts::Engine;
use crate::realtime::ConnId;
use crate::realtime::watches::Target;
use crate::time::Now;
use crate::wire::UserBuf;

impl Engine {
    /// Encodes a stream's snapshot at once and takes its watches out of the index until the next
    /// turn.
    pub(super) fn index_later(&mut self, id: ConnId, users: &[UserBuf], now: Now) {
        self.encode(id.index, false, now.mono, now);
        if self.conns.watches.marks(id.index) == 0 {
            self.conns.watches.clear(id.index);
            self.late.push((id, users.to_vec()));
        }
    }

    /// Indexes what was put off.
    pub(super) fn index_late(&mut self) {
        for (id, users) in std::mem::take(&mut self.late) {
            if self.conns.is_stream(id) {
                let mut targets: Vec<Target> =
                    users.iter().map(|user| self.target(user.user())).collect();
                self.conns.watches.add(id.index, &mut targets, false);
            }
        }
    }
}
