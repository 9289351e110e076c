//! A table of fixed size: the entry that was used longest ago makes room for a new one.
//!
//! 1. It never holds more than its capacity, so its memory is fixed, whoever fills it.
//! 2. What goes is what was used longest ago; an entry that is used stays.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Entries by key, with the order in which they were last used.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    capacity: usize,
    entries: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    clock: u64,
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Table { capacity, entries: HashMap::new(), order: BTreeMap::new(), clock: 0 }
    }

    /// The entry of `key`, made by `fresh` if there is none, and now the one used last.
    pub(super) fn entry(&mut self, key: &K, fresh: impl FnOnce() -> V) -> &mut V {
        let used = self.clock;
        self.clock += 1;
        match self.entries.get(key) {
            Some((before, _)) => {
                self.order.remove(before);
            }
            None => {
                while self.entries.len() >= self.capacity.max(1) {
                    let Some((_, oldest)) = self.order.pop_first() else { break };
                    self.entries.remove(&oldest);
                }
            }
        }
        self.order.insert(used, key.clone());
        let entry = self.entries.entry(key.clone()).or_insert_with(|| (used, fresh()));
        entry.0 = used;
        &mut entry.1
    }

    /// The entry of `key`, if there is one, and now the one used last.
    pub(super) fn find(&mut self, key: &K) -> Option<&mut V> {
        let (before, value) = self.entries.get_mut(key)?;
        self.order.remove(before);
        *before = self.clock;
        self.order.insert(self.clock, key.clone());
        self.clock += 1;
        Some(value)
    }

    /// Takes the entry of `key` out.
    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (used, value) = self.entries.remove(key)?;
        self.order.remove(&used);
        Some(value)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.entries.len(), self.order.len());
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Invariant 2.
    #[test]
    fn the_one_used_longest_ago_makes_room() {
        let mut table = Table::new(2);
        *table.entry(&1, || 10) += 1;
        table.entry(&2, || 20);
        assert_eq!(table.find(&1), Some(&mut 11));
        table.entry(&3, || 30);
        assert_eq!(table.find(&2), None);
        assert_eq!([table.remove(&1), table.remove(&1)], [Some(11), None]);
        assert_eq!(table.len(), 1);
    }

    proptest! {
        /// Invariant 1, and the two halves stay in step.
        #[test]
        fn it_never_outgrows_its_capacity(capacity in 0usize..8, steps in prop::collection::vec((0u8..3, 0u8..20), 0..200)) {
            let mut table = Table::new(capacity);
            for (action, key) in steps {
                match action {
                    0 => { table.entry(&key, || key); }
                    1 => prop_assert!(table.find(&key).is_none_or(|value| *value == key)),
                    _ => { table.remove(&key); }
                }
                prop_assert!(table.len() <= capacity.max(1));
                prop_assert_eq!(table.entries.len(), table.order.len());
            }
        }
    }
}
