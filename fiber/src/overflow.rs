//! The report of a stack overflow: a SIGSEGV handler that recognises the guard page of the running fiber.
//!
//! Runs on the alternate signal stack, which std gives to every thread it starts. May not allocate or lock.

use crate::context::with_current;
use crate::sys;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;
use std::sync::OnceLock;

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Puts the handler in front of the one that is there (std's, usually), which gets every other fault.
pub(crate) fn install_handler() {
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: an all-zero sigaction is valid; the handler has the signature that SA_SIGINFO asks for.
    unsafe {
        if libc::sigaction(libc::SIGSEGV, core::ptr::null(), previous.as_mut_ptr()) != 0 {
            return;
        }
        let _ = PREVIOUS.set(previous.assume_init());
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, core::ptr::null_mut());
    }
}

extern "C" fn on_fault(_signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo; si_addr is the address that faulted.
    let address = unsafe { (*info).si_addr() } as usize;
    with_current(|current| {
        let Some(current) = current else { return };
        let handle = core::mem::ManuallyDrop::new(current.handle());
        let guard = handle.0.guard_start.load(Ordering::Relaxed)..handle.0.guard_end.load(Ordering::Relaxed);
        if guard.contains(&address) {
            write_stderr(b"\nfiber '");
            write_stderr(handle.name().unwrap_or("<unnamed>").as_bytes());
            write_stderr(b"' has overflowed its stack of ");
            let mut digits = [0u8; 20];
            write_stderr(decimal(handle.0.stack_bytes, &mut digits));
            write_stderr(b" bytes (see Builder::stack_bytes)\n");
            // SAFETY: abort is async-signal-safe.
            unsafe { libc::abort() };
        }
    });
    // Not ours: with the previous handler back in place the faulting instruction runs again and faults into it.
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: what sigaction itself reported when the handler was installed.
        unsafe { libc::sigaction(libc::SIGSEGV, previous, core::ptr::null_mut()) };
    }
}

fn write_stderr(bytes: &[u8]) {
    // SAFETY: write is async-signal-safe and the buffer is live; the raw call keeps hooks out of a signal handler.
    unsafe { sys::raw_syscall(libc::SYS_write, [2, bytes.as_ptr() as i64, bytes.len() as i64, 0, 0, 0]) };
}

fn decimal(mut value: usize, digits: &mut [u8; 20]) -> &[u8] {
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &digits[start..];
        }
    }
}
