//! Short ordered lists of u32 by the million, in one arena.
//!
//! Owns the streams' side of the watch lists: whom each watches. They come whole and seldom change.
//! A list is eight bytes where it is kept ([`List`]); its entries live in blocks of a few size
//! classes, so that there is no allocator header and at most a quarter of slack. Never gives memory
//! back by itself: the owner moves what is left of a crowd to a new arena.

/// A list: where its block starts and how many entries it has. The block's size class follows from
/// the length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    offset: u32,
    len: u32,
}

#[derive(Debug, Default)]
pub(super) struct Lists {
    words: Vec<u32>,
    /// For each size class the first free block, plus one; a free block's first word is the next.
    free: Vec<u32>,
    /// Words that were written or moved.
    #[cfg(test)]
    written: usize,
}

impl List {
    pub(super) fn len(self) -> usize {
        self.len as usize
    }
}

impl Lists {
    pub(super) fn get(&self, list: List) -> &[u32] {
        &self.words[list.offset as usize..(list.offset + list.len) as usize]
    }

    pub(super) fn get_mut(&mut self, list: List) -> &mut [u32] {
        &mut self.words[list.offset as usize..(list.offset + list.len) as usize]
    }

    /// Removes and returns the entry at `at`; the order of the rest stays.
    pub(super) fn remove(&mut self, list: &mut List, at: usize) -> u32 {
        let block = self.get_mut(*list);
        let word = block[at];
        block.copy_within(at + 1.., at);
        self.resize(list, list.len - 1);
        word
    }

    /// Replaces the entries.
    pub(super) fn set(&mut self, list: &mut List, words: &[u32]) {
        self.clear(list);
        self.resize(list, words.len() as u32);
        self.get_mut(*list).copy_from_slice(words);
    }

    /// Drops the entries from `len` on.
    pub(super) fn truncate(&mut self, list: &mut List, len: usize) {
        debug_assert!(len <= list.len());
        self.resize(list, len as u32);
    }

    pub(super) fn clear(&mut self, list: &mut List) {
        self.resize(list, 0);
    }

    /// Gives the list `len` entries: the first ones stay, new ones hold anything.
    fn resize(&mut self, list: &mut List, len: u32) {
        #[cfg(test)]
        {
            self.written += list.len.max(len) as usize;
        }
        let (old, new) = (class_of(list.len), class_of(len));
        if old != new {
            let offset = new.map_or(0, |class| self.allocate(class));
            let kept = list.len.min(len) as usize;
            self.words.copy_within(
                list.offset as usize..list.offset as usize + kept,
                offset as usize,
            );
            if let Some(class) = old {
                self.release(class, list.offset);
            }
            list.offset = offset;
        }
        list.len = len;
    }

    fn allocate(&mut self, class: usize) -> u32 {
        if self.free.len() <= class {
            self.free.resize(class + 1, 0);
        }
        match self.free[class] {
            0 => {
                let offset = self.words.len();
                let end = offset + block_words(class) as usize;
                assert!(
                    end <= u32::MAX as usize,
                    "a shard's watch lists are bounded by watches_per_shard_max"
                );
                self.words.resize(end, 0);
                offset as u32
            }
            first => {
                let offset = first - 1;
                self.free[class] = self.words[offset as usize];
                offset
            }
        }
    }

    fn release(&mut self, class: usize, offset: u32) {
        self.words[offset as usize] = self.free[class];
        self.free[class] = offset + 1;
    }

    /// At most so many words were written or moved so far.
    #[cfg(test)]
    pub(super) fn written(&self) -> usize {
        self.written
    }

    /// Room, in words.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.words.capacity()
    }
}

/// Size classes: 1 to 8 words singly, then four to a doubling (10, 12, 14, 16, 20, ..).
fn class_of(len: u32) -> Option<usize> {
    match len {
        0 => None,
        1..=8 => Some(len as usize - 1),
        _ => {
            let top = (len - 1).ilog2();
            let quarter = (len - 1 - (1 << top)) >> (top - 2);
            Some(8 + (top as usize - 3) * 4 + quarter as usize)
        }
    }
}

fn block_words(class: usize) -> u32 {
    if class < 8 {
        return class as u32 + 1;
    }
    let (top, quarter) = ((class - 8) as u32 / 4 + 3, (class - 8) as u32 % 4);
    (1 << top) + ((quarter + 1) << (top - 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn classes_hold_their_lengths_with_little_slack() {
        for len in 1..100_000_u32 {
            let class = class_of(len).unwrap();
            let words = block_words(class);
            assert!(
                words >= len && (len <= 8 || words <= len + len / 4 + 1),
                "{len}: class {class}, {words} words"
            );
        }
        assert_eq!(
            [9, 10, 11, 16, 17, 20, 21].map(|n| block_words(class_of(n).unwrap())),
            [10, 10, 12, 16, 20, 20, 24]
        );
    }

    proptest! {
        #[test]
        fn many_lists_behave_as_vectors(
            ops in prop::collection::vec((0..6_usize, 0..3_u8, any::<u32>()), 1..400)
        ) {
            let mut lists = Lists::default();
            let mut heads = [List::default(); 6];
            let mut models: [Vec<u32>; 6] = Default::default();
            for (which, op, word) in ops {
                let (head, model) = (&mut heads[which], &mut models[which]);
                match op {
                    0 | 1 => {
                        model.push(word);
                        lists.set(head, model);
                    }
                    _ if !model.is_empty() => {
                        let at = word as usize % model.len();
                        prop_assert_eq!(lists.remove(head, at), model.remove(at));
                    }
                    _ => lists.clear(head),
                }
                for (head, model) in heads.iter().zip(&models) {
                    prop_assert_eq!(lists.get(*head), &model[..]);
                }
            }
        }
    }
}
