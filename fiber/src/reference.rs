//! A counted reference to a fiber.
//!
//! Not std's `Arc`, for what that cannot do: a new fiber starts with the two references it always has, the register's and the
//! handle's; the last one is given back without a read-modify-write; and the memory comes from, and goes back to, the worker that
//! the caller runs on. Each of those is an atomic operation or a trip to malloc less, of the few that a spawn has.

use crate::context;
use crate::fiber::Inner;
use core::mem::MaybeUninit;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};

/// Memory for a fiber that is not in use.
pub(crate) type Spare = Box<MaybeUninit<Inner>>;

/// Keeps a fiber's memory.
pub(crate) struct FiberRef(NonNull<Inner>);

// SAFETY: `Inner` may be shared between threads, and the count is atomic.
unsafe impl Send for FiberRef {}
// SAFETY: as above.
unsafe impl Sync for FiberRef {}

impl FiberRef {
    /// A new fiber in `memory`, whose count says two: the reference returned, and one that the caller makes with
    /// [`FiberRef::from_raw`].
    pub(crate) fn new_pair(memory: Option<Spare>, fiber: impl FnOnce() -> Inner) -> Self {
        let mut memory = memory.unwrap_or_else(Box::new_uninit);
        memory.write(fiber());
        Self(NonNull::from(Box::leak(memory)).cast())
    }

    /// # Safety
    /// A count of the fiber belongs to the caller, who passes it on, or keeps it and never drops the reference.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(fiber: *const Inner) -> Self {
        // SAFETY: a counted fiber is not at address 0.
        Self(unsafe { NonNull::new_unchecked(fiber.cast_mut()) })
    }

    /// # Safety
    /// The fiber is alive: somebody has a reference.
    pub(crate) unsafe fn from_borrowed(fiber: *const Inner) -> Self {
        // SAFETY: by the caller's contract; the clone counts itself, and the first never drops.
        unsafe { core::mem::ManuallyDrop::new(Self::from_raw(fiber)).deref().clone() }
    }

    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.0.as_ptr()
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Deref for FiberRef {
    type Target = Inner;
    #[inline(always)]
    fn deref(&self) -> &Inner {
        // SAFETY: this reference keeps it.
        unsafe { self.0.as_ref() }
    }
}

impl Clone for FiberRef {
    #[inline]
    fn clone(&self) -> Self {
        let before = self.references.fetch_add(1, Ordering::Relaxed);
        if before > u32::MAX / 2 {
            // References were leaked by the billion; counting on would free a fiber that is in use.
            std::process::abort();
        }
        Self(self.0)
    }
}

impl Drop for FiberRef {
    #[inline]
    fn drop(&mut self) {
        // The only one: nobody is there to make another, so the count stands still.
        if self.references.load(Ordering::Acquire) != 1 {
            if self.references.fetch_sub(1, Ordering::Release) != 1 {
                return;
            }
            fence(Ordering::Acquire);
        }
        // SAFETY: this was the last reference, and the memory is a box's, made by `new_pair`.
        unsafe {
            self.0.drop_in_place();
            let spare: Spare = Box::from_raw(self.0.cast().as_ptr());
            context::with_worker(|worker| match worker {
                // SAFETY: the caller is on that worker's thread.
                Some((shared, index)) => shared.workers[index].keep_spare(spare),
                None => drop(spare),
            });
        }
    }
}
