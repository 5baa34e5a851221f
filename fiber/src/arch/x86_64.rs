//! x86_64: the thread pointer is the FS base; `wrfsbase` writes it from user space in about 12 ns where the kernel
//! has enabled FSGSBASE (Linux 5.9 and later), which the auxiliary vector reports.
//!
//! Layout around the thread pointer (TLS variant II): the static TLS images lie below it, glibc's `struct pthread`
//! starts at it.
//!
//! ```text
//!   | ... libc's TLS | libs' TLS | executable's TLS | TCB: self, dtv, self, threads, sysinfo, canary, guard, ... |
//!                                                   ^ FS base
//! ```

use core::arch::asm;

/// Bit in `AT_HWCAP2`: the kernel lets user space execute `wrfsbase`.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// Whether this machine lets user space move its thread pointer.
pub(crate) fn can_set_thread_pointer() -> bool {
    // SAFETY: getauxval only reads the auxiliary vector.
    (unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE) != 0
}

/// The calling context's thread pointer. The ABI keeps it readable at `fs:0`.
#[inline(always)]
pub(crate) fn thread_pointer() -> usize {
    let value: usize;
    // SAFETY: the x86_64 TLS ABI stores the thread pointer's own value in the first word of the TCB.
    unsafe { asm!("mov {}, fs:[0]", out(reg) value, options(nostack, preserves_flags, readonly)) };
    value
}

/// Moves the thread pointer.
///
/// # Safety
/// `value` is the address of an initialised TCB (see `tls.rs`) that no other thread is running on, and
/// [`can_set_thread_pointer`] said yes. Until the old value is back, the caller's function touches no thread-local:
/// the compiler may have read the old address already.
#[inline(always)]
pub(crate) unsafe fn set_thread_pointer(value: usize) {
    // SAFETY: the caller vouches for `value`; the instruction has no other effect. Memory is clobbered (no `nomem`), so
    // that no access moves across the write.
    unsafe { asm!("wrfsbase {}", in(reg) value, options(nostack, preserves_flags)) };
}

/// A system call without libc: touches neither errno nor any interposed symbol. Returns `-errno` on failure.
///
/// # Safety
/// As for the system call itself.
#[inline(always)]
pub(crate) unsafe fn raw_syscall(number: i64, args: [i64; 6]) -> i64 {
    let result: i64;
    // SAFETY: registers as the x86_64 Linux system-call convention names them; rcx and r11 are clobbered by it.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5], lateout("rcx") _, lateout("r11") _,
            options(nostack));
    }
    result
}
