//! A worker's queue of fibers that are ready, from which other workers may steal.
//!
//! First in, first out, after Chase and Lev, "Dynamic Circular Work-Stealing Deque" (SPAA 2005), with everybody taking from the
//! head: the owner writes at the tail without any read-modify-write, and one compare-exchange on the head takes one item (the
//! owner) or up to half of them (a thief).
//!
//! Why it is right. Head and tail only grow, so a compare-exchange on the head that succeeds says that the head has not moved
//! since it was read; the owner writes to a slot again only after it has seen the head beyond it; so what a thief has read before a
//! successful compare-exchange is what was there. A ring that is full is replaced by one of twice the size with the same items at the same
//! indices; the old one is kept, unchanged, until the queue is dropped, because a thief may still be reading it. What the pusher wrote
//! before `push` is visible to whoever takes the item: the tail is released and acquired.

#[cfg(not(loom))]
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use core::cell::UnsafeCell;

/// Slots of the first ring: a worker with fewer ready fibers than this never allocates.
const SLOTS_FIRST: usize = if cfg!(loom) { 2 } else { 256 };
/// The most that one theft takes: enough to keep a thief busy, little enough to copy in a moment.
const STEAL_MAX: usize = 64;

struct Ring<T> {
    slots: Box<[AtomicPtr<T>]>,
}

impl<T> Ring<T> {
    fn new(slots: usize) -> Self {
        debug_assert!(slots.is_power_of_two());
        Self { slots: (0..slots).map(|_| AtomicPtr::new(core::ptr::null_mut())).collect() }
    }

    fn at(&self, index: usize) -> &AtomicPtr<T> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

/// A place in the order of a queue's items.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn(usize);

/// A queue of pointers with one owner and any number of thieves. It does not own what they point to.
pub(crate) struct StealQueue<T> {
    head: AtomicUsize,
    tail: AtomicUsize,
    ring: AtomicPtr<Ring<T>>,
    /// Somebody may steal.
    has_thieves: bool,
    /// Every ring there has been, the current one last. The owner's.
    #[expect(
        clippy::vec_box,
        reason = "thieves hold the rings' addresses, so the rings stay where they are"
    )]
    rings: UnsafeCell<Vec<Box<Ring<T>>>>,
}

// SAFETY: the queue hands pointers from thread to thread and never follows them; `rings` is the owner's (see `push`).
unsafe impl<T> Send for StealQueue<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for StealQueue<T> {}

impl<T> StealQueue<T> {
    /// `has_thieves`: whether [`StealQueue::steal_into`] will ever be called; if not, nothing needs a read-modify-write.
    pub(crate) fn new(has_thieves: bool) -> Self {
        let first = Box::new(Ring::new(SLOTS_FIRST));
        let ring = AtomicPtr::new(core::ptr::from_ref(&*first).cast_mut());
        Self {
            head: AtomicUsize::new(0),
            tail: AtomicUsize::new(0),
            ring,
            has_thieves,
            rings: UnsafeCell::new(vec![first]),
        }
    }

    /// When the item that is pushed next will be at the head.
    pub(crate) fn turn_of_next(&self) -> Turn {
        Turn(self.tail.load(Ordering::Relaxed))
    }

    /// Whether everything has been taken that was pushed before a turn was asked for.
    pub(crate) fn has_reached(&self, turn: Turn) -> bool {
        (self.head.load(Ordering::Relaxed).wrapping_sub(turn.0) as isize) >= 0
    }

    /// How many items there are; only a hint when others take at the same time.
    pub(crate) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        (self.tail.load(Ordering::Relaxed).wrapping_sub(head) as isize).max(0) as usize
    }

    fn ring(&self, ordering: Ordering) -> &Ring<T> {
        // SAFETY: every ring lives in `rings` until the queue is dropped.
        unsafe { &*self.ring.load(ordering) }
    }

    /// Adds an item at the tail.
    ///
    /// # Safety
    /// The caller is the queue's only owner: no other thread calls `push` or `pop` at the same time.
    #[inline]
    pub(crate) unsafe fn push(&self, item: *mut T) {
        let tail = self.tail.load(Ordering::Relaxed);
        // Acquire: thieves have finished reading the slots that they have taken.
        let head = self.head.load(Ordering::Acquire);
        let mut ring = self.ring(Ordering::Relaxed);
        if tail.wrapping_sub(head) == ring.slots.len() {
            // SAFETY: the caller is the owner.
            ring = unsafe { self.grow(head, tail) };
        }
        ring.at(tail).store(item, Ordering::Relaxed);
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
    }

    /// # Safety
    /// As [`StealQueue::push`].
    #[cold]
    unsafe fn grow(&self, head: usize, tail: usize) -> &Ring<T> {
        let old = self.ring(Ordering::Relaxed);
        let new = Box::new(Ring::new(old.slots.len() * 2));
        let mut index = head;
        while index != tail {
            new.at(index).store(old.at(index).load(Ordering::Relaxed), Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        self.ring.store(core::ptr::from_ref(&*new).cast_mut(), Ordering::Release);
        // SAFETY: only the owner touches `rings`, and it is here.
        unsafe { (*self.rings.get()).push(new) };
        self.ring(Ordering::Relaxed)
    }

    /// Takes the item at the head.
    ///
    /// # Safety
    /// As [`StealQueue::push`].
    #[inline]
    pub(crate) unsafe fn pop(&self) -> Option<*mut T> {
        let tail = self.tail.load(Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            if head == tail {
                return None;
            }
            let item = self.ring(Ordering::Relaxed).at(head).load(Ordering::Relaxed);
            let next = head.wrapping_add(1);
            if !self.has_thieves {
                self.head.store(next, Ordering::Release);
                return Some(item);
            }
            match self.head.compare_exchange_weak(head, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(item),
                Err(moved) => head = moved,
            }
        }
    }

    /// Takes up to half of the items: returns the oldest and puts the others into `own`.
    ///
    /// # Safety
    /// The caller owns `own`, which is another queue.
    pub(crate) unsafe fn steal_into(&self, own: &Self) -> Option<*mut T> {
        let mut taken = [core::ptr::null_mut(); STEAL_MAX];
        loop {
            let head = self.head.load(Ordering::Acquire);
            let tail = self.tail.load(Ordering::Acquire);
            // Negative if the head was read before others took what the tail, read later, no longer shows.
            let len = (tail.wrapping_sub(head) as isize).max(0) as usize;
            if len == 0 {
                return None;
            }
            let count = len.div_ceil(2).min(STEAL_MAX);
            let ring = self.ring(Ordering::Acquire);
            for (offset, item) in taken[..count].iter_mut().enumerate() {
                *item = ring.at(head.wrapping_add(offset)).load(Ordering::Relaxed);
            }
            let next = head.wrapping_add(count);
            if self.head.compare_exchange(head, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                for item in &taken[1..count] {
                    // SAFETY: the caller owns `own`.
                    unsafe { own.push(*item) };
                }
                return Some(taken[0]);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use core::sync::atomic::AtomicBool;
    use std::sync::Mutex;

    fn pointer(number: usize) -> *mut u8 {
        core::ptr::without_provenance_mut(number)
    }

    #[test]
    fn items_come_out_in_order_across_growth() {
        let queue = StealQueue::new(false);
        for number in 1..=1000 {
            // SAFETY: one thread.
            unsafe { queue.push(pointer(number)) };
        }
        assert_eq!(queue.len(), 1000);
        for number in 1..=1000 {
            // SAFETY: one thread.
            assert_eq!(unsafe { queue.pop() }, Some(pointer(number)));
        }
        // SAFETY: one thread.
        assert_eq!(unsafe { queue.pop() }, None);
    }

    #[test]
    fn a_thief_takes_the_older_half() {
        let (queue, own) = (StealQueue::new(true), StealQueue::new(true));
        for number in 1..=5 {
            // SAFETY: one thread.
            unsafe { queue.push(pointer(number)) };
        }
        // SAFETY: one thread.
        unsafe {
            assert_eq!(queue.steal_into(&own), Some(pointer(1)));
            assert_eq!((own.pop(), own.pop(), own.pop()), (Some(pointer(2)), Some(pointer(3)), None));
            assert_eq!((queue.pop(), queue.pop(), queue.pop()), (Some(pointer(4)), Some(pointer(5)), None));
            assert_eq!(queue.steal_into(&own), None);
        }
    }

    #[test]
    fn every_item_is_taken_once_by_owner_and_thieves() {
        const ITEMS: usize = if cfg!(miri) { 500 } else { 200_000 };
        let queue = StealQueue::new(true);
        let finished = AtomicBool::new(false);
        let taken = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let own = StealQueue::new(true);
                    let mut mine = Vec::new();
                    loop {
                        let last_look = finished.load(Ordering::Acquire);
                        // SAFETY: `own` is this thread's.
                        let first = unsafe { queue.steal_into(&own) };
                        mine.extend(first.map(|item: *mut u8| item.addr()));
                        // SAFETY: as above.
                        mine.extend(core::iter::from_fn(|| unsafe { own.pop() }).map(|item| item.addr()));
                        if first.is_none() && last_look {
                            break;
                        }
                    }
                    taken.lock().unwrap().extend(mine);
                });
            }
            let mut mine = Vec::new();
            for number in 1..=ITEMS {
                // SAFETY: this thread is the owner.
                unsafe { queue.push(pointer(number)) };
                if number % 3 == 0 {
                    // SAFETY: as above.
                    mine.extend(unsafe { queue.pop() }.map(|item| item.addr()));
                }
            }
            // SAFETY: as above.
            mine.extend(core::iter::from_fn(|| unsafe { queue.pop() }).map(|item| item.addr()));
            finished.store(true, Ordering::Release);
            taken.lock().unwrap().extend(mine);
        });
        let mut taken = taken.into_inner().unwrap();
        taken.sort_unstable();
        assert_eq!(taken, (1..=ITEMS).collect::<Vec<_>>());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    fn pointer(number: usize) -> *mut u8 {
        core::ptr::without_provenance_mut(number)
    }

    fn take_all(queue: &StealQueue<u8>, into: &mut Vec<usize>) {
        // SAFETY: the caller owns the queue.
        into.extend(core::iter::from_fn(|| unsafe { queue.pop() }).map(|item| item.addr()));
    }

    /// Three items through a ring of two: the owner pushes, grows the ring, and pops while a thief steals.
    #[test]
    fn loom_owner_and_thief_share_without_loss_or_repeat() {
        let mut model = loom::model::Builder::new();
        // More switches than that make the model take minutes.
        model.preemption_bound = Some(3);
        model.check(|| {
            let queue = Arc::new(StealQueue::<u8>::new(true));
            let thief = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || {
                    let own = StealQueue::new(true);
                    let mut taken = Vec::new();
                    // SAFETY: `own` is this thread's.
                    taken.extend(unsafe { queue.steal_into(&own) }.map(|item| item.addr()));
                    take_all(&own, &mut taken);
                    taken
                })
            };
            let mut taken = Vec::new();
            // SAFETY: this thread is the owner.
            unsafe {
                queue.push(pointer(1));
                queue.push(pointer(2));
                taken.extend(queue.pop().map(|item| item.addr()));
                queue.push(pointer(3));
                queue.push(pointer(4));
            }
            take_all(&queue, &mut taken);
            taken.extend(thief.join().unwrap());
            taken.sort_unstable();
            assert_eq!(taken, [1, 2, 3, 4]);
        });
    }
}
