//! What the primitives are built on: atomics, the internal lock, and the sleep of a plain thread. Under `cfg(loom)` all of it is
//! loom's, so that the models in `models.rs` check the very code that runs.
//!
//! Nothing else in this folder, but for latch.rs, may name `core::sync::atomic` or [`crate::sys`].

#[cfg(loom)]
pub(super) use in_model::*;
#[cfg(not(loom))]
pub(super) use real::*;

/// A constructor that is `const`, except in a model: loom's objects cannot be made at compile time.
macro_rules! constructor {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($arguments:tt)*) -> Self $body:block) => {
        $(#[$attribute])*
        #[cfg(not(loom))]
        $visibility const fn $name($($arguments)*) -> Self $body

        $(#[$attribute])*
        #[cfg(loom)]
        $visibility fn $name($($arguments)*) -> Self $body
    };
}
pub(super) use constructor;

#[cfg(not(loom))]
mod real {
    pub(in crate::sync) use crate::sync::latch::{Latch, LatchGuard};
    use crate::sys;
    pub(in crate::sync) use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
    use std::time::Instant;

    /// core's, with loom's interface: a model knows when an access begins and ends, and finds those that overlap.
    pub(in crate::sync) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(in crate::sync) fn new(value: T) -> Self {
            Self(core::cell::UnsafeCell::new(value))
        }

        pub(in crate::sync) fn into_inner(self) -> T {
            self.0.into_inner()
        }

        #[inline(always)]
        pub(in crate::sync) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline(always)]
        pub(in crate::sync) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Sleeps the thread while `*word == expected`. False if `deadline` has come first.
    pub(in crate::sync) fn sleep(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> bool {
        while word.load(Ordering::Acquire) == expected {
            let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                return false;
            }
            sys::futex_wait(word, expected, timeout);
        }
        true
    }

    /// Wakes a thread from [`sleep`], after somebody has changed the word.
    pub(in crate::sync) struct Sleeper(*const AtomicU32);

    // SAFETY: the pointer is an address to wake, and is never followed.
    unsafe impl Send for Sleeper {}

    impl Sleeper {
        /// For the calling thread, which will sleep on `word`.
        pub(in crate::sync) fn new(word: &AtomicU32) -> Self {
            Self(word)
        }

        /// The word itself may be gone by now: who sees it changed does not wait for this call.
        pub(in crate::sync) fn wake(self) {
            sys::futex_wake(self.0, 1);
        }
    }
}

#[cfg(loom)]
mod in_model {
    use core::ops::{Deref, DerefMut};
    pub(in crate::sync) use loom::cell::UnsafeCell;
    pub(in crate::sync) use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
    use std::time::Instant;

    pub(in crate::sync) struct Latch<T> {
        inner: loom::sync::Mutex<()>,
        value: core::cell::UnsafeCell<T>,
    }

    // SAFETY: as for the lock that it stands for, on one thread of the system.
    unsafe impl<T: Send> Sync for Latch<T> {}
    // SAFETY: as above.
    unsafe impl<T: Send> Send for Latch<T> {}

    impl<T> Latch<T> {
        pub(in crate::sync) fn new(value: T) -> Self {
            Self { inner: loom::sync::Mutex::new(()), value: core::cell::UnsafeCell::new(value) }
        }

        pub(in crate::sync) fn lock(&self) -> LatchGuard<'_, T> {
            let held = self.inner.lock();
            LatchGuard { value: self.value.get(), _held: held.expect("a model does not panic in a lock") }
        }
    }

    pub(in crate::sync) struct LatchGuard<'a, T> {
        value: *mut T,
        _held: loom::sync::MutexGuard<'a, ()>,
    }

    impl<T> Deref for LatchGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            // SAFETY: the lock is held.
            unsafe { &*self.value }
        }
    }

    impl<T> DerefMut for LatchGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            // SAFETY: the lock is held, and this is the only reference made through the guard.
            unsafe { &mut *self.value }
        }
    }

    /// A deadline, in a model, passes as soon as the thread is in the queue: at whatever moment the others let it go on, which is
    /// every moment that there is.
    pub(in crate::sync) fn sleep(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> bool {
        while word.load(Ordering::Acquire) == expected {
            if deadline.is_some() {
                return false;
            }
            loom::thread::park();
        }
        true
    }

    pub(in crate::sync) struct Sleeper(loom::thread::Thread);

    impl Sleeper {
        pub(in crate::sync) fn new(_: &AtomicU32) -> Self {
            Self(loom::thread::current())
        }

        pub(in crate::sync) fn wake(self) {
            self.0.unpark();
        }
    }
}
