//! aarch64: the thread pointer is `tpidr_el0`, always writable from user space.
//!
//! Layout around the thread pointer (TLS variant I): glibc's `struct pthread` lies below it, then the two-word TCB
//! (dtv, private), then the static TLS images.
//!
//! ```text
//!   | struct pthread | TCB: dtv, private | executable's TLS | libs' TLS | ...
//!                    ^ tpidr_el0
//! ```

use crate::backtrace::Standpoint;
use core::arch::{asm, global_asm};
use core::ffi::c_void;

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

// The function at the bottom of every fiber's stack; see x86_64.rs for why it exists.
global_asm!(
    ".pushsection .text.squall_fiber_root,\"ax\",@progbits",
    ".balign 16",
    ".globl squall_fiber_root",
    ".hidden squall_fiber_root",
    ".type squall_fiber_root,@function",
    "squall_fiber_root:",
    ".cfi_startproc",
    ".cfi_undefined x30",
    "stp x29, x30, [sp, #-16]!",
    "mov x29, #0",
    "blr x1",
    ".globl squall_fiber_root_return",
    ".hidden squall_fiber_root_return",
    "squall_fiber_root_return:",
    "ldp x29, x30, [sp], #16",
    "ret",
    ".cfi_endproc",
    ".size squall_fiber_root, . - squall_fiber_root",
    ".popsection",
);

unsafe extern "C" {
    fn squall_fiber_root(argument: *const c_void, function: unsafe extern "C" fn(*const c_void));
    static squall_fiber_root_return: u8;
}

/// Calls `function` as the outermost one of a fiber.
///
/// # Safety
/// As for calling `function`.
#[inline(always)]
pub(crate) unsafe fn call_as_root(function: unsafe extern "C" fn(*const c_void), argument: *const c_void) {
    // SAFETY: by the caller's contract; the function above keeps x29 and x30 and calls by the C convention.
    unsafe { squall_fiber_root(argument, function) };
}

/// The return address by which the last frame of a fiber's chain is known.
pub(crate) fn root_return_address() -> usize {
    &raw const squall_fiber_root_return as usize
}

/// Notes where the calling function stands: it is inlined into the function that is about to switch away.
///
/// # Safety
/// `at` may be written.
#[inline(always)]
pub(crate) unsafe fn note_standpoint(at: *mut Standpoint) {
    // SAFETY: three stores to where the caller allows them.
    unsafe {
        asm!(
            "adr {scratch}, .",
            "stp {scratch}, x29, [{at}]",
            "mov {scratch}, sp",
            "str {scratch}, [{at}, #16]",
            at = in(reg) at,
            scratch = out(reg) _,
            options(nostack, preserves_flags)
        );
    }
}

/// Where the code stands that a signal has interrupted.
///
/// # Safety
/// `context` is what the kernel has passed to a handler with SA_SIGINFO.
pub(crate) unsafe fn interrupted_standpoint(context: *const c_void) -> Standpoint {
    // SAFETY: by the contract.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext };
    Standpoint { pc: registers.pc as usize, fp: registers.regs[29] as usize, sp: registers.sp as usize }
}

/// The address to which the function returns that a signal has interrupted, if that function has no frame of its own just then. Here
/// that is in a register whose content a look at the code does not tell: such a caller is missing from the chain.
///
/// # Safety
/// None; unsafe where the stack has to be read for it.
pub(crate) unsafe fn return_address_without_frame(_at: Standpoint) -> Option<usize> {
    None
}
