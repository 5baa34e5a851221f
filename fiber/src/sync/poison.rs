//! What becomes of data whose writer has panicked halfway: whoever locks it next panics, too.
//!
//! Torn data that nobody notices is worse than a second panic, and std's answer (every `lock` returns a `Result`, which nearly
//! everybody unwraps) is the same at greater length. The price is one relaxed load as the lock is taken and one as it is released.

use super::shim::{AtomicBool, Ordering, constructor};
use std::thread;

/// Whether somebody has panicked while holding the lock for writing.
pub(super) struct Poison(AtomicBool);

/// Taken with the lock: whether the holder was panicking then, in which case its panic says nothing about the data.
#[derive(Clone, Copy)]
pub(super) struct Witness {
    was_panicking: bool,
}

impl Poison {
    constructor! {
        pub(super) fn new() -> Self {
            Self(AtomicBool::new(false))
        }
    }

    /// The lock has just been taken for writing.
    #[inline]
    pub(super) fn witness() -> Witness {
        Witness { was_panicking: thread::panicking() }
    }

    /// The lock is about to be released.
    #[inline]
    pub(super) fn leave(&self, witness: Witness) {
        if !witness.was_panicking && thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Relaxed here and above: the lock itself orders its holders.
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Panics if somebody else's panic has left the data in doubt; the caller's guard releases the lock. Not while the caller
    /// unwinds, because a destructor that panics then would end the process.
    #[inline]
    #[track_caller]
    pub(super) fn check(&self) {
        if self.is_set() && !thread::panicking() {
            fail();
        }
    }
}

#[cold]
#[track_caller]
fn fail() -> ! {
    panic!("poisoned: a fiber or thread panicked while it held this lock");
}
