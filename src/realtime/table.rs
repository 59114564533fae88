//! The connection table: a slab of small fixed records with generations.
//!
//! Owns which place belongs to which life. The lowest free place is used first and free places at
//! the end are cut off, so that what a crowd took is given back once it has gone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::conn::{Conn, Phase};
use super::give_back;

/// Names one life of one connection: `index` is dense and reused, `generation` tells the lives
/// apart, so that a late event finds nobody rather than a stranger.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct ConnId {
    /// Place in the table.
    pub index: u32,
    /// Which life of that place.
    pub generation: u32,
}

#[derive(Debug, Default)]
pub struct ConnTable {
    table: Vec<Conn>,
    /// Free places, lowest first, and places that have been cut off since they were freed. The
    /// table grows only when this is empty, so no place stands in it twice.
    free: BinaryHeap<Reverse<u32>>,
    live: usize,
    /// The first generation of a place that is made (again): see [`first_generation`].
    generation_floor: u32,
}

impl ConnTable {
    /// A new connection, in phase [`Phase::Idle`].
    pub fn insert(&mut self) -> ConnId {
        let places = self.places();
        let index = match self.free.pop() {
            Some(Reverse(index)) if index < places => index,
            _ => {
                // The lowest has been cut off, so all have.
                self.free.clear();
                self.table.push(Conn::free(self.generation_floor));
                places
            }
        };
        self.live += 1;
        let conn = &mut self.table[index as usize];
        conn.go(Phase::Idle);
        ConnId {
            index,
            generation: conn.generation,
        }
    }

    /// Ends a life; its place is free for the next, or cut off with the free places at the end. If
    /// `held`, it is for nobody until [`ConnTable::release`]. True if places were cut off.
    pub fn remove(&mut self, id: ConnId, held: bool) -> bool {
        let Some(conn) = self.get_mut(id) else {
            return false;
        };
        *conn = Conn::free(conn.generation.wrapping_add(1));
        conn.hold(held);
        self.live -= 1;
        !held && self.vacate(id.index)
    }

    /// The place at `index` is free for the next if it was held for one whose life is over. True if
    /// places were cut off.
    pub fn release(&mut self, index: u32) -> bool {
        let conn = &mut self.table[index as usize];
        if !conn.is_held() {
            return false;
        }
        conn.hold(false);
        self.vacate(index)
    }

    fn vacate(&mut self, index: u32) -> bool {
        if index + 1 < self.places() {
            self.free.push(Reverse(index));
            return false;
        }
        while let Some(conn) = self.table.pop_if(|conn| conn.is_free()) {
            self.generation_floor = first_generation(self.generation_floor, conn.generation);
        }
        give_back(&mut self.table);
        self.forget_cut_off();
        true
    }

    /// Drops places that have been cut off from `free` once they are most of it: as many lives
    /// ended since as are looked at.
    fn forget_cut_off(&mut self) {
        let (places, free) = (self.places(), self.table.len() - self.live);
        if self.free.len() > 2 * free {
            self.free.retain(|Reverse(index)| *index < places);
            let mut kept = std::mem::take(&mut self.free).into_vec();
            give_back(&mut kept);
            self.free = kept.into();
        }
    }

    /// The connection, if this life of it goes on.
    pub fn get(&self, id: ConnId) -> Option<&Conn> {
        self.table
            .get(id.index as usize)
            .filter(|conn| conn.generation == id.generation && conn.phase() != Phase::Free)
    }

    /// The connection, if this life of it goes on.
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.table
            .get_mut(id.index as usize)
            .filter(|conn| conn.generation == id.generation && conn.phase() != Phase::Free)
    }

    /// The connection at an index that the caller knows to be live.
    pub fn at(&mut self, index: u32) -> &mut Conn {
        &mut self.table[index as usize]
    }

    /// The id of the life at `index`, if there is one.
    pub fn id_at(&self, index: u32) -> Option<ConnId> {
        let conn = self.table.get(index as usize)?;
        (conn.phase() != Phase::Free).then_some(ConnId {
            index,
            generation: conn.generation,
        })
    }

    pub fn len(&self) -> usize {
        self.live
    }

    /// No live connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Places, live or free: the bound of [`ConnTable::id_at`].
    pub fn places(&self) -> u32 {
        self.table.len() as u32
    }
}

/// The generation at which a place that was cut off at `cut` may begin again, if others may at
/// `floor`: one that is later than all its lives, so that a stale [`ConnId`] still finds nobody.
/// Later is meant around the wrap of a u32, and of its low 24 bits, which are all that the table of
/// sockets keeps.
fn first_generation(floor: u32, cut: u32) -> u32 {
    const LOW_BITS: u32 = (1 << 24) - 1;
    let ahead = cut.wrapping_sub(floor);
    if ahead < 1 << 31 {
        return cut;
    }
    let low_ahead = ahead & LOW_BITS;
    floor.wrapping_add(if low_ahead < 1 << 23 { low_ahead } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_finds_nobody() {
        let mut conns = ConnTable::default();
        let first = conns.insert();
        conns.get_mut(first).unwrap().set_publisher(0);
        conns.remove(first, false);
        assert!(conns.get(first).is_none() && conns.is_empty());
        let second = conns.insert();
        assert_eq!(
            (second.index, second.generation),
            (first.index, first.generation + 1)
        );
        assert!(conns.get(first).is_none());
        conns.remove(first, false);
        assert_eq!(
            (conns.len(), conns.get(second).unwrap().publisher()),
            (1, None)
        );
    }

    #[test]
    fn a_place_that_was_cut_off_begins_after_all_its_lives() {
        let mut conns = ConnTable::default();
        let ids: Vec<ConnId> = (0..3).map(|_| conns.insert()).collect();
        // The highest place has three lives, the others one.
        assert!(conns.remove(ids[2], false));
        let second = conns.insert();
        assert_eq!((second.index, second.generation), (2, 1));
        assert!(conns.remove(second, false));
        assert!(!conns.remove(ids[0], false));
        assert!(conns.remove(ids[1], false));
        assert_eq!((conns.places(), conns.len()), (0, 0));
        for (index, generation) in [(0, 2), (1, 2), (2, 2)] {
            assert_eq!(conns.insert(), ConnId { index, generation });
        }
        for stale in ids.into_iter().chain([second]) {
            assert!(conns.get(stale).is_none(), "{stale:?}");
        }
    }

    #[test]
    fn generations_go_on_around_their_wraps() {
        assert_eq!(first_generation(5, 7), 7);
        assert_eq!(first_generation(7, 5), 7);
        assert_eq!(first_generation(u32::MAX, 1), 1);
        assert_eq!(first_generation(1, u32::MAX), 1);
        // Far ahead, but a table that keeps 24 bits would take the next lives for the last ones.
        assert_eq!(first_generation((1 << 24) + 1, 9), (1 << 24) + 9);
        assert_eq!(first_generation((1 << 24) + 9, 1), (1 << 24) + 9);
    }

    /// The lowest place is used first; the table ends with the last who lives, and its memory with
    /// it.
    #[test]
    fn what_a_crowd_took_is_given_back() {
        let mut conns = ConnTable::default();
        let ids: Vec<ConnId> = (0..100_000).map(|_| conns.insert()).collect();
        let stays = ids[1_000];
        for id in ids.iter().filter(|id| **id != stays) {
            conns.remove(*id, false);
        }
        assert_eq!(
            (conns.len(), conns.places(), conns.free.len()),
            (1, 1_001, 1_000)
        );
        assert!(conns.table.capacity() <= 4_096 && conns.free.capacity() <= 4_096);
        assert_eq!(conns.insert().index, 0);
        assert!(conns.get(stays).is_some());
        let last = conns.insert();
        assert!(conns.remove(stays, false));
        assert_eq!((conns.len(), conns.places(), last.index), (2, 2, 1));
        assert_eq!([conns.insert().index, conns.insert().index], [2, 3]);
    }
}
