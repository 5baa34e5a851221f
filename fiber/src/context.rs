//! Where the running code finds out which fiber it is, and on which worker.
//!
//! In a private-TLS fiber `CURRENT` lies in the fiber's own block and is written once, when the fiber starts. In a
//! shared-TLS fiber it lies in the worker's, and the worker writes it around every switch. Outside a fiber it is null.
//!
//! A forked child has one thread, and none of the workers: whatever it was in the parent, it goes on as a plain thread.

use crate::fiber::{Current, Inner};
use crate::reference::FiberRef;
use crate::scheduler::Shared;
use core::cell::Cell;
use core::mem::ManuallyDrop;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static CURRENT: Cell<*const Inner> = const { Cell::new(ptr::null()) };
    /// Set on worker threads; in a private-TLS fiber it is never set.
    static WORKER: Cell<(*const Shared, usize)> = const { Cell::new((ptr::null(), 0)) };
}

static IS_FORKED_CHILD: AtomicBool = AtomicBool::new(false);

/// Whether this process was forked from one that had a scheduler. Its epoll descriptors are the parent's, too, and must be left
/// alone.
#[inline]
pub fn is_forked_child() -> bool {
    IS_FORKED_CHILD.load(Ordering::Relaxed)
}

pub(crate) fn install_fork_handler() {
    unsafe extern "C" fn in_child() {
        IS_FORKED_CHILD.store(true, Ordering::Relaxed);
        set_current(ptr::null());
        set_worker(ptr::null(), 0);
    }
    // SAFETY: the handler only stores. Fails only without memory; forked children are then not told apart.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
}

/// The running fiber, if the caller is in one.
///
/// This is the test that every hook makes first: one thread-local read.
#[inline(always)]
pub fn with_current<R>(f: impl FnOnce(Option<Current<'_>>) -> R) -> R {
    let pointer = CURRENT.get();
    if pointer.is_null() {
        return f(None);
    }
    // SAFETY: the pointer is that of a fiber that the registry keeps alive while it runs, and it is running,
    // since this code is. ManuallyDrop keeps the count as it is.
    let inner = unsafe { ManuallyDrop::new(FiberRef::from_raw(pointer)) };
    f(Some(Current::new(&inner)))
}

/// Whether the caller is in a fiber.
#[inline(always)]
pub fn in_fiber() -> bool {
    !CURRENT.get().is_null()
}

pub(crate) fn set_current(inner: *const Inner) {
    CURRENT.set(inner);
}

pub(crate) fn set_worker(shared: *const Shared, index: usize) {
    WORKER.set((shared, index));
}

/// The scheduler and the index of the worker that the caller runs on, in a fiber or in the worker's own loop.
pub(crate) fn with_worker<R>(f: impl FnOnce(Option<(&Shared, usize)>) -> R) -> R {
    let pointer = CURRENT.get();
    if !pointer.is_null() {
        // SAFETY: as in `with_current`, and a fiber that runs has not ended.
        let (inner, shared) = unsafe { (&*pointer, (*pointer).scheduler()) };
        return f(Some((shared, inner.home.load(Ordering::Relaxed))));
    }
    let (shared, index) = WORKER.get();
    if shared.is_null() {
        return f(None);
    }
    // SAFETY: the worker's loop keeps it for as long as WORKER is set.
    f(Some((unsafe { &*shared }, index)))
}
