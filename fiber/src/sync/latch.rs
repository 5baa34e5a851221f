//! The lock inside the primitives.
//!
//! It differs from [`crate::lock::Lock`] in how it is released: by a plain store, where that one needs a read-modify-write to learn
//! whether somebody sleeps. With a primitive's whole work being a few such operations, that is a fourth of it. The price is paid by
//! those who find the lock held for longer than they care to spin, which takes a holder whose thread was preempted in the middle
//! of its few instructions: they sleep for a moment and look again, because nobody will wake them.
//!
//! The same rules hold for those who have it: a few instructions, no suspension, no user code.

use crate::sys;
use core::cell::UnsafeCell;
use core::hint;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const FREE: u32 = 0;
const HELD: u32 = 1;
/// How often a waiter looks again before it sleeps: about a microsecond, longer than the lock is ever held by a thread that runs.
const SPINS: u32 = 100;
/// How long it sleeps then: about what a processor takes to switch to another thread and back.
const NAP: Duration = Duration::from_micros(50);

pub(super) struct Latch<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out `&mut T` to one holder at a time, on any thread, so it needs no more than `T: Send`.
unsafe impl<T: Send> Send for Latch<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Latch<T> {}

impl<T> Latch<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    /// Takes the lock.
    ///
    /// # Blocking
    /// Blocks the thread, never the fiber alone.
    #[inline]
    pub(super) fn lock(&self) -> LatchGuard<'_, T> {
        if self.state.swap(HELD, Ordering::Acquire) != FREE {
            self.lock_contended();
        }
        LatchGuard { latch: self }
    }

    #[cold]
    fn lock_contended(&self) {
        loop {
            for _ in 0..SPINS {
                hint::spin_loop();
                if self.state.load(Ordering::Relaxed) == FREE
                    && self.state.swap(HELD, Ordering::Acquire) == FREE
                {
                    return;
                }
            }
            // Returns at once if the lock has been released by now.
            sys::futex_wait(&self.state, HELD, Some(NAP));
        }
    }
}

/// Holds a [`Latch`] until dropped.
pub(super) struct LatchGuard<'a, T> {
    latch: &'a Latch<T>,
}

impl<T> Deref for LatchGuard<'_, T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the guard proves that the lock is held, so nobody else has access until it is dropped.
        unsafe { &*self.latch.value.get() }
    }
}

impl<T> DerefMut for LatchGuard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` keeps this the only reference made through the guard.
        unsafe { &mut *self.latch.value.get() }
    }
}

impl<T> Drop for LatchGuard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        self.latch.state.store(FREE, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_threads_that_spin_and_sleep() {
        let latch = Latch::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..20_000 {
                        let mut guard = latch.lock();
                        // A read and a write apart, so that a broken lock loses updates.
                        let seen = *guard;
                        if round % 1000 == 0 {
                            // As if preempted: the others sleep.
                            std::thread::sleep(Duration::from_micros(100));
                        }
                        *guard = hint::black_box(seen) + 1;
                    }
                });
            }
        });
        assert_eq!(*latch.lock(), 80_000);
    }
}
