//! The timers of one worker: a 4-ary heap whose entries know their place.
//!
//! Deadlines are exact, a cancelled timer is gone at once (a wheel with lazy cancellation keeps one entry per finished
//! request until its timeout passes), equal deadlines fire in the order they were set, and nothing is allocated once the
//! vectors have grown. The worker that owns them keeps them under a lock: whoever ends a wait cancels its timer.

use std::time::Instant;

/// A timer that was set. It may have fired since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimerId {
    slot: u32,
    /// Tells it from a later timer in the same slot.
    order: u64,
}

struct Entry {
    deadline: Instant,
    /// Breaks ties: the timer set first fires first.
    order: u64,
    slot: u32,
}

enum Slot<T> {
    /// Where in the heap the timer is, and what it carries.
    Used { position: u32, payload: T },
    /// The next free slot, or `u32::MAX`.
    Free { next: u32 },
}

const ARITY: usize = 4;
const NONE: u32 = u32::MAX;

/// Timers ordered by deadline, each with a payload.
pub(crate) struct Timers<T> {
    heap: Vec<Entry>,
    slots: Vec<Slot<T>>,
    free: u32,
    order: u64,
}

impl<T> Timers<T> {
    pub(crate) const fn new() -> Self {
        Self { heap: Vec::new(), slots: Vec::new(), free: NONE, order: 0 }
    }

    /// How many are set.
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// All that are set, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Instant, &T)> {
        self.heap.iter().filter_map(|entry| match &self.slots[entry.slot as usize] {
            Slot::Used { payload, .. } => Some((entry.deadline, payload)),
            Slot::Free { .. } => None,
        })
    }

    /// The earliest deadline.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.heap.first().map(|entry| entry.deadline)
    }

    pub(crate) fn insert(&mut self, deadline: Instant, payload: T) -> TimerId {
        let position = self.heap.len();
        let used = Slot::Used { position: position as u32, payload };
        let slot = if self.free == NONE {
            self.slots.push(used);
            (self.slots.len() - 1) as u32
        } else {
            let slot = self.free;
            let Slot::Free { next } = self.slots[slot as usize] else {
                unreachable!("free list names a used slot")
            };
            self.free = next;
            self.slots[slot as usize] = used;
            slot
        };
        let order = self.order;
        self.heap.push(Entry { deadline, order, slot });
        self.order += 1;
        self.sift_up(position);
        TimerId { slot, order }
    }

    /// Cancels a timer and returns what it carried; `None` if it has fired or been cancelled already.
    pub(crate) fn cancel(&mut self, id: TimerId) -> Option<T> {
        let Slot::Used { position, .. } = self.slots[id.slot as usize] else { return None };
        let position = position as usize;
        (self.heap[position].order == id.order).then(|| self.remove_at(position))
    }

    /// Takes the earliest timer if its deadline has passed.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<T> {
        if self.heap.first()?.deadline > now {
            return None;
        }
        Some(self.remove_at(0))
    }

    fn remove_at(&mut self, position: usize) -> T {
        let removed = self.heap.swap_remove(position);
        if position < self.heap.len() {
            self.sift_down(position);
            self.sift_up(position);
        }
        let slot = core::mem::replace(&mut self.slots[removed.slot as usize], Slot::Free { next: self.free });
        self.free = removed.slot;
        match slot {
            Slot::Used { payload, .. } => payload,
            Slot::Free { .. } => unreachable!("heap entry names a free slot"),
        }
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.heap[a], &self.heap[b]);
        (a.deadline, a.order) < (b.deadline, b.order)
    }

    fn note_position(&mut self, at: usize) {
        if let Slot::Used { position, .. } = &mut self.slots[self.heap[at].slot as usize] {
            *position = at as u32;
        }
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / ARITY;
            if !self.before(at, parent) {
                break;
            }
            self.heap.swap(at, parent);
            self.note_position(at);
            at = parent;
        }
        self.note_position(at);
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let first = at * ARITY + 1;
            let last = (first + ARITY).min(self.heap.len());
            let Some(least) = (first..last).reduce(|a, b| if self.before(b, a) { b } else { a }) else {
                break;
            };
            if !self.before(least, at) {
                break;
            }
            self.heap.swap(at, least);
            self.note_position(at);
            at = least;
        }
        self.note_position(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    /// Against a sorted map, with random inserts, cancels and expiries.
    #[test]
    fn behaves_like_a_sorted_map() {
        let start = Instant::now();
        let mut timers = Timers::new();
        let mut model = BTreeMap::new();
        let mut ids = Vec::new();
        let mut ids_of = BTreeMap::new();
        let mut random = 0x9E37_79B9_7F4A_7C15u64;
        let mut now = 0;
        for step in 0..20_000u64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            match random % 4 {
                0 | 1 => {
                    let at = now + random % 500;
                    let id = timers.insert(start + Duration::from_nanos(at), step);
                    model.insert((at, step), ());
                    ids_of.insert((at, step), id);
                    ids.push((at, step));
                }
                2 if !ids.is_empty() => {
                    let key = ids.swap_remove((random >> 8) as usize % ids.len());
                    let id = ids_of[&key];
                    let is_set = model.remove(&key).is_some();
                    // One that has fired is not there any more, even if its slot holds another by now.
                    assert_eq!(timers.cancel(id), is_set.then_some(key.1));
                }
                _ => {
                    now += random % 20;
                    while let Some(payload) = timers.pop_expired(start + Duration::from_nanos(now)) {
                        let (key, _) =
                            model.pop_first().expect("the heap had a timer that the model has not");
                        assert_eq!(payload, key.1);
                        assert!(key.0 <= now);
                    }
                    assert!(model.first_key_value().is_none_or(|(key, _)| key.0 > now));
                }
            }
            assert_eq!(
                timers.next_deadline(),
                model.keys().next().map(|key| start + Duration::from_nanos(key.0))
            );
        }
    }
}
