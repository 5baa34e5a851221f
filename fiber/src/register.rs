//! The register of live fibers: every one that was spawned and has not ended. It is what keeps a parked fiber's memory.
//!
//! A list per worker, linked through the fibers themselves, so that a spawn and an end cost one short lock each and no
//! allocation. Which list a fiber is in is fixed at its spawn. The lists also decide whether a scheduler may end: a list
//! that is closed takes no more fibers.

use crate::fiber::Inner;
use crate::lock::Lock;
use core::cell::UnsafeCell;
use core::ptr;
use std::sync::Arc;

/// A fiber's place in its list. Touched only under the lock of that list.
pub(crate) struct Links(UnsafeCell<(*const Inner, *const Inner)>);

impl Links {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new((ptr::null(), ptr::null())))
    }

    /// `(previous, next)`.
    ///
    /// # Safety
    /// The caller holds the lock of the fiber's list, and makes one reference at a time.
    #[expect(clippy::mut_from_ref, reason = "the list's lock makes the reference unique")]
    unsafe fn get(&self) -> &mut (*const Inner, *const Inner) {
        // SAFETY: see above.
        unsafe { &mut *self.0.get() }
    }
}

struct List {
    first: *const Inner,
    /// Fibers in the list, and, in the first list, holds.
    live: usize,
    is_closed: bool,
}

// SAFETY: the list owns a count of each fiber that it names, and fibers may be shared between threads.
unsafe impl Send for List {}

/// The scheduler has ended: it takes no more fibers.
#[derive(Debug)]
pub(crate) struct Closed;

pub(crate) struct Register {
    lists: Box<[Lock<List>]>,
}

impl Register {
    pub(crate) fn new(lists: usize) -> Self {
        let list = || Lock::new(List { first: ptr::null(), live: 0, is_closed: false });
        Self { lists: (0..lists).map(|_| list()).collect() }
    }

    /// Enters a fiber into the list that it names.
    pub(crate) fn insert(&self, fiber: &Arc<Inner>) -> Result<(), Closed> {
        let mut list = self.lists[fiber.register_list].lock();
        if list.is_closed {
            return Err(Closed);
        }
        let this = Arc::into_raw(Arc::clone(fiber));
        // SAFETY: the lock is held; a fiber in the list is kept alive by the list's count.
        unsafe {
            *fiber.links.get() = (ptr::null(), list.first);
            if let Some(next) = list.first.as_ref() {
                next.links.get().0 = this;
            }
        }
        list.first = this;
        list.live += 1;
        Ok(())
    }

    /// Takes a fiber out, and says whether its list is empty now.
    ///
    /// # Safety
    /// The fiber was inserted and has not been removed.
    pub(crate) unsafe fn remove(&self, fiber: *const Inner) -> (Arc<Inner>, bool) {
        // SAFETY: the list keeps the fiber until it is taken out below.
        let inner = unsafe { &*fiber };
        let mut list = self.lists[inner.register_list].lock();
        // SAFETY: the lock is held, and the neighbours are in the list, which keeps them alive.
        unsafe {
            let (previous, next) = *inner.links.get();
            match previous.as_ref() {
                Some(previous) => previous.links.get().1 = next,
                None => list.first = next,
            }
            if let Some(next) = next.as_ref() {
                next.links.get().0 = previous;
            }
        }
        list.live -= 1;
        let is_empty = list.live == 0;
        drop(list);
        // SAFETY: `insert` turned one count into the list's, which ends here.
        (unsafe { Arc::from_raw(fiber) }, is_empty)
    }

    /// Announces fibers to come: as long as the hold is not given back, the register does not close.
    pub(crate) fn hold(&self) -> Result<(), Closed> {
        let mut list = self.lists[0].lock();
        if list.is_closed {
            return Err(Closed);
        }
        list.live += 1;
        Ok(())
    }

    /// Gives a hold back, and says whether its list is empty now.
    pub(crate) fn release_hold(&self) -> bool {
        let mut list = self.lists[0].lock();
        list.live -= 1;
        list.live == 0
    }

    /// Closes the register if nothing is in it. True if it is closed.
    pub(crate) fn close_if_empty(&self) -> bool {
        // All locks at once, in order: a fiber that ends while it spawns another must not be counted in neither.
        let mut lists: Vec<_> = self.lists.iter().map(Lock::lock).collect();
        if lists.iter().any(|list| list.live != 0) {
            return false;
        }
        lists.iter_mut().for_each(|list| list.is_closed = true);
        true
    }

    /// How many fibers and holds there are.
    pub(crate) fn len(&self) -> usize {
        self.lists.iter().map(|list| list.lock().live).sum()
    }

    /// Every live fiber.
    pub(crate) fn all(&self) -> Vec<Arc<Inner>> {
        let mut all = Vec::new();
        for list in &self.lists {
            let list = list.lock();
            all.reserve(list.live);
            let mut at = list.first;
            while !at.is_null() {
                // SAFETY: the lock is held, so the fiber stays in the list, which owns a count of it.
                unsafe {
                    Arc::increment_strong_count(at);
                    all.push(Arc::from_raw(at));
                    at = (*at).links.get().1;
                }
            }
        }
        all
    }
}
