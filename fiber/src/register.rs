//! The register of live fibers: every one that was spawned and has not ended. It is what keeps a parked fiber's memory.
//!
//! A fiber has a slot that holds its address. Workers keep free slots of their own, so entering and leaving cost no lock and no
//! read-modify-write: whoever lists the fibers, which happens rarely, pays for that.
//!
//! How a list is taken while fibers end. The lister announces itself in `listers` and then calls [`barrier::heavy`], which makes every
//! thread of the process pass a full barrier. A worker that retires a fiber empties the slot, then reads `listers`. If it reads 0, it has
//! emptied the slot before its barrier, and the lister, who looks after all barriers, does not find the fiber. Else it waits until the
//! lister is done before it gives up the register's reference, so that what the lister finds is alive.
//!
//! How the end is recognised. Each worker counts the fibers it has entered and those it has retired; both only grow. Whoever reads
//! first all of the second and then all of the first, and finds equal sums, knows that there was a moment without a live fiber; and
//! without one only the outside, which must get past `Outside::is_closed`, can make another.

use crate::barrier;
use crate::debugger::{CHUNK, Chunk};
use crate::fiber::Inner;
use crate::lock::Lock;
use crate::reference::FiberRef;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Where a live fiber's address is; null while the slot is free. Slots live as long as the register.
pub(crate) type Slot = NonNull<AtomicPtr<Inner>>;

/// The scheduler has ended: it takes no more fibers.
#[derive(Debug)]
pub(crate) struct Closed;

/// One worker's part: written by the worker alone.
pub(crate) struct Entries {
    entered: AtomicU64,
    retired: AtomicU64,
    /// Free slots.
    free: core::cell::UnsafeCell<Vec<Slot>>,
}

// SAFETY: `free` is touched by the worker's own thread only (see `enter` and `retire`); slots are shared memory.
unsafe impl Sync for Entries {}
// SAFETY: as above.
unsafe impl Send for Entries {}

/// What others than workers do.
struct Outside {
    /// Fibers entered from outside the workers.
    entered: u64,
    /// Promises of fibers to come.
    holds: u64,
    is_closed: bool,
    free: Vec<Slot>,
    chunks: Vec<Box<Chunk>>,
}

// SAFETY: slots are shared memory, and the vector is behind a lock.
unsafe impl Send for Outside {}

pub(crate) struct Register {
    workers: Box<[Entries]>,
    outside: Lock<Outside>,
    /// Set while somebody lists the fibers, under the lock.
    listers: AtomicU32,
}

impl Register {
    pub(crate) fn new(workers: usize) -> Self {
        barrier::prepare();
        let entries = || Entries {
            entered: AtomicU64::new(0),
            retired: AtomicU64::new(0),
            free: core::cell::UnsafeCell::default(),
        };
        Self {
            workers: (0..workers).map(|_| entries()).collect(),
            outside: Lock::new(Outside {
                entered: 0,
                holds: 0,
                is_closed: false,
                free: Vec::new(),
                chunks: Vec::new(),
            }),
            listers: AtomicU32::new(0),
        }
    }

    /// A slot for a fiber that a fiber of the same scheduler spawns. The scheduler cannot be closed: it has a live fiber.
    ///
    /// # Safety
    /// The caller is a fiber on the thread that runs the worker.
    #[inline]
    pub(crate) unsafe fn enter(&self, worker: usize) -> Slot {
        let entries = &self.workers[worker];
        // SAFETY: on the worker's thread, and nothing inside comes here again.
        let free = unsafe { &mut *entries.free.get() };
        let slot = free.pop().unwrap_or_else(|| self.refill(free));
        entries.entered.store(entries.entered.load(Ordering::Relaxed) + 1, Ordering::Release);
        slot
    }

    #[cold]
    fn refill(&self, free: &mut Vec<Slot>) -> Slot {
        let mut outside = self.outside.lock();
        outside.make_free();
        let keep = outside.free.len().saturating_sub(CHUNK);
        free.extend(outside.free.drain(keep..));
        free.pop().expect("free slots were made")
    }

    /// A slot for a fiber that is spawned from outside.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub(crate) fn enter_from_outside(&self) -> Result<Slot, Closed> {
        let mut outside = self.outside.lock();
        if outside.is_closed {
            return Err(Closed);
        }
        outside.make_free();
        outside.entered += 1;
        Ok(outside.free.pop().expect("free slots were made"))
    }

    /// Takes a fiber out of its slot and returns the register's reference.
    ///
    /// # Safety
    /// The caller is on the thread that runs the worker; the fiber was entered here and its slot set, with one count for the
    /// register, and it has not been retired.
    #[inline]
    pub(crate) unsafe fn retire(&self, worker: usize, fiber: *const Inner) -> FiberRef {
        let entries = &self.workers[worker];
        // SAFETY: the register's reference keeps it.
        let slot = unsafe { (*fiber).slot };
        // SAFETY: slots live as long as the register.
        unsafe { slot.as_ref() }.store(ptr::null_mut(), Ordering::Release);
        barrier::light();
        if self.listers.load(Ordering::Relaxed) != 0 {
            // The lister holds the lock until it is done.
            drop(self.outside.lock());
        }
        // SAFETY: on the worker's thread, and nothing inside comes here again.
        let free = unsafe { &mut *entries.free.get() };
        free.push(slot);
        if free.len() > 4 * CHUNK {
            // Fibers that are spawned here and end there would otherwise carry all slots there.
            let keep = free.len() - CHUNK;
            self.outside.lock().free.extend(free.drain(keep..));
        }
        entries.retired.store(entries.retired.load(Ordering::Relaxed) + 1, Ordering::Release);
        // SAFETY: by the contract there is a count for the register.
        unsafe { FiberRef::from_raw(fiber) }
    }

    /// Announces fibers to come: as long as the hold is not given back, the register does not close.
    ///
    /// # Errors
    /// When the scheduler has ended.
    pub(crate) fn hold(&self) -> Result<(), Closed> {
        let mut outside = self.outside.lock();
        if outside.is_closed {
            return Err(Closed);
        }
        outside.holds += 1;
        Ok(())
    }

    /// Gives a hold back.
    pub(crate) fn release_hold(&self) {
        self.outside.lock().holds -= 1;
    }

    /// Closes the register if nothing is in it. True if it is closed.
    pub(crate) fn close_if_empty(&self) -> bool {
        let mut outside = self.outside.lock();
        if !outside.is_closed {
            outside.is_closed = outside.holds == 0 && self.count(&outside) == 0;
        }
        outside.is_closed
    }

    /// The live fibers. 0 is exact: there was such a moment during the call.
    fn count(&self, outside: &Outside) -> u64 {
        let sum = |counter: fn(&Entries) -> &AtomicU64| {
            self.workers.iter().map(|entries| counter(entries).load(Ordering::Acquire)).sum::<u64>()
        };
        let retired = sum(|entries| &entries.retired);
        (outside.entered + sum(|entries| &entries.entered)).saturating_sub(retired)
    }

    /// How many fibers there are.
    pub(crate) fn len(&self) -> usize {
        self.count(&self.outside.lock()) as usize
    }

    /// How many fibers there have ever been.
    pub(crate) fn entered(&self) -> u64 {
        let outside = self.outside.lock().entered;
        outside + self.workers.iter().map(|entries| entries.entered.load(Ordering::Relaxed)).sum::<u64>()
    }

    /// Every live fiber.
    ///
    /// # Blocking
    /// Workers on which a fiber ends wait meanwhile.
    pub(crate) fn all(&self) -> Vec<FiberRef> {
        let outside = self.outside.lock();
        let mut all = Vec::with_capacity(self.count(&outside) as usize);
        self.listers.store(1, Ordering::SeqCst);
        barrier::heavy();
        for slot in outside.chunks.iter().flat_map(|chunk| &chunk.slots) {
            let fiber = slot.load(Ordering::Acquire);
            if !fiber.is_null() {
                // SAFETY: found after the barrier: the register's reference is not given up before `listers` is 0.
                all.push(unsafe { FiberRef::from_borrowed(fiber) });
            }
        }
        self.listers.store(0, Ordering::SeqCst);
        all
    }
}

impl Outside {
    fn make_free(&mut self) {
        if !self.free.is_empty() {
            return;
        }
        let chunk = Chunk::new();
        // Addresses stay what they are when the box moves into the vector.
        self.free.extend(chunk.slots.iter().map(NonNull::from));
        self.chunks.push(chunk);
    }
}
