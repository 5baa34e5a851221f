//! A memory barrier with a free side and a dear one, for two who each write one thing and then read the other's (Dekker's problem),
//! when one does it all the time and the other hardly ever.
//!
//! [`light`] costs nothing but for the compiler; [`heavy`] makes every thread of the process pass a full barrier, by a system call. If
//! one writes A, calls `light`, and reads B, while the other writes B, calls `heavy`, and reads A, then at least one of the two
//! sees what the other wrote: the first is interrupted by the barrier either before it reads B, or after it wrote A.

#[cfg(not(loom))]
use crate::sys;
#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

/// Whether the kernel offers `membarrier`; without it `light` is a full barrier, too.
#[cfg(not(loom))]
static HAS_MEMBARRIER: AtomicBool = AtomicBool::new(false);
#[cfg(not(loom))]
const MEMBARRIER_CMD_PRIVATE_EXPEDITED: i64 = 1 << 3;
#[cfg(not(loom))]
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: i64 = 1 << 4;

#[cfg(not(loom))]
fn membarrier(command: i64) -> bool {
    // SAFETY: the call takes no memory.
    unsafe { sys::raw_syscall(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]) == 0 }
}

/// Called before either of the others.
#[cfg(not(loom))]
pub(crate) fn prepare() {
    HAS_MEMBARRIER.store(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED), Ordering::SeqCst);
}

/// The side for the many.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) fn light() {
    if HAS_MEMBARRIER.load(Ordering::Relaxed) {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// The side for the few: a microsecond or two.
#[cfg(not(loom))]
pub(crate) fn heavy() {
    fence(Ordering::SeqCst);
    if HAS_MEMBARRIER.load(Ordering::Relaxed) {
        membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    }
}

/// In a model both sides are what they stand for.
#[cfg(loom)]
pub(crate) fn light() {
    loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
}

#[cfg(loom)]
pub(crate) use light as heavy;

#[cfg(loom)]
pub(crate) fn prepare() {}
