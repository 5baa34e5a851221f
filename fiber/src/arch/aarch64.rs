//! aarch64: the thread pointer is `tpidr_el0`, always writable from user space.
//!
//! Layout around the thread pointer (TLS variant I): glibc's `struct pthread` lies below it, then the two-word TCB
//! (dtv, private), then the static TLS images.
//!
//! ```text
//!   | struct pthread | TCB: dtv, private | executable's TLS | libs' TLS | ...
//!                    ^ tpidr_el0
//! ```

use core::arch::asm;

/// Whether this machine lets user space move its thread pointer: always, by the architecture.
pub(crate) fn can_set_thread_pointer() -> bool {
    true
}

/// The calling context's thread pointer.
#[inline(always)]
pub(crate) fn thread_pointer() -> usize {
    let value: usize;
    // SAFETY: reading tpidr_el0 is permitted at EL0 and has no effect.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) value, options(nostack, preserves_flags, nomem)) };
    value
}

/// Moves the thread pointer.
///
/// # Safety
/// `value` is the address of an initialised TCB (see `tls.rs`) that no other thread is running on. Until the old value
/// is back, the caller's function touches no thread-local: the compiler may have read the old address already.
#[inline(always)]
pub(crate) unsafe fn set_thread_pointer(value: usize) {
    // SAFETY: the caller vouches for `value`; writing tpidr_el0 is permitted at EL0.
    unsafe { asm!("msr tpidr_el0, {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// A system call without libc: touches neither errno nor any interposed symbol. Returns `-errno` on failure.
///
/// # Safety
/// As for the system call itself.
#[inline(always)]
pub(crate) unsafe fn raw_syscall(number: i64, args: [i64; 6]) -> i64 {
    let result: i64;
    // SAFETY: registers as the aarch64 Linux system-call convention names them; only x0 is changed.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") args[0] => result, in("x1") args[1], in("x2") args[2],
            in("x3") args[3], in("x4") args[4], in("x5") args[5], options(nostack));
    }
    result
}
