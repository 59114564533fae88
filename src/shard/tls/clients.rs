//! How many handshakes each client has in progress.
//!
//! Owns the counts; a handshake keeps 4 bytes. Who counts, and how many are too many, is decided
//! elsewhere.

use core::num::NonZeroU32;

use hashbrown::HashMap;
use slab::Slab;

use crate::engine::Client;

/// Where a client's count is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place(NonZeroU32);

/// The clients that have any.
#[derive(Debug, Default)]
pub(super) struct Clients {
    places: HashMap<Client, Place, foldhash::fast::RandomState>,
    counted: Slab<(Client, usize)>,
}

impl Clients {
    /// A client has one more, if it has fewer than `max`.
    pub(super) fn enter(&mut self, client: Client, max: usize) -> Option<Place> {
        let counted = &mut self.counted;
        let place = *self.places.entry(client).or_insert_with(|| {
            let index = counted.insert((client, 0)) as u32;
            Place(NonZeroU32::MIN.saturating_add(index))
        });
        let (_, count) = &mut counted[place.index()];
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(place)
    }

    /// One of a client's is over.
    pub(super) fn leave(&mut self, place: Place) {
        let (client, count) = &mut self.counted[place.index()];
        *count -= 1;
        if *count == 0 {
            self.places.remove(client);
            self.counted.remove(place.index());
        }
    }
}

impl Place {
    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::settings::Settings;

    #[test]
    fn each_has_its_share_and_leaves_nothing_behind() {
        let settings = Settings::default();
        let [one, other, same] = ["192.0.2.1", "2001:db8::1", "2001:db8::2"]
            .map(|text| settings.client_at(text.parse().unwrap()).unwrap());
        let mut clients = Clients::default();
        let first = clients.enter(one, 2).unwrap();
        assert!(clients.enter(one, 2).is_some() && clients.enter(one, 2).is_none());
        let second = clients.enter(other, 1).unwrap();
        assert!(first != second && clients.enter(same, 1).is_none());
        clients.leave(second);
        assert!(clients.enter(same, 1).is_some());
        clients.leave(first);
        assert!(clients.enter(one, 2).is_some() && clients.enter(one, 2).is_none());
        clients.leave(first);
        clients.leave(first);
        assert_eq!((clients.places.len(), clients.counted.len()), (1, 1));
    }
}
