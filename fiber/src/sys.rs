//! System calls that the runtime itself makes, past libc and so past every hook.
//!
//! Must stay free of allocation, logging and thread-locals: hooks call in here before anything is initialised.

use crate::arch;
use core::sync::atomic::AtomicU32;
use std::time::Duration;

/// Any system call, by number. Returns `-errno` on failure and never touches `errno` itself.
///
/// # Safety
/// As for the system call.
///
/// # Blocking
/// Blocks the thread if the call does.
#[inline(always)]
pub unsafe fn raw_syscall(number: libc::c_long, args: [libc::c_long; 6]) -> libc::c_long {
    // SAFETY: passed through to the caller's contract.
    unsafe { arch::raw_syscall(number, args) }
}

/// Sleeps the thread while `*word == expected`, at most `timeout`. May return early for no reason.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timespec = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: t.subsec_nanos() as libc::c_long,
    });
    let timespec = timespec.as_ref().map_or(core::ptr::null(), |t| t as *const libc::timespec);
    // SAFETY: `word` is a live, aligned u32 and `timespec` is null or points to a live timespec.
    unsafe {
        raw_syscall(
            libc::SYS_futex,
            [
                word.as_ptr() as i64,
                (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as i64,
                expected as i64,
                timespec as i64,
                0,
                0,
            ],
        );
    }
}

/// Wakes at most `count` threads that sleep in [`futex_wait`] on `word`, which need not exist any more.
pub(crate) fn futex_wake(word: *const AtomicU32, count: u32) {
    // SAFETY: waking touches no memory of ours; the address is only a key.
    unsafe {
        raw_syscall(
            libc::SYS_futex,
            [word as i64, (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as i64, count as i64, 0, 0, 0],
        );
    }
}

/// The kernel's id of the calling thread.
pub(crate) fn thread_id() -> i32 {
    // SAFETY: gettid has no arguments and no effect.
    unsafe { raw_syscall(libc::SYS_gettid, [0; 6]) as i32 }
}

/// Lets another thread of this processor run, if there is one.
pub(crate) fn yield_thread() {
    // SAFETY: the call takes nothing.
    unsafe { raw_syscall(libc::SYS_sched_yield, [0; 6]) };
}
