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
use core::mem::offset_of;

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
unsafe fn set_thread_pointer(value: usize) {
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

/// What lies on a stack on which nothing runs: stored by the switch away, loaded by the switch back.
#[repr(C)]
pub(crate) struct Saved {
    x19: usize,
    x29: usize,
    resume_at: usize,
    unused: usize,
}

impl Saved {
    pub(crate) const PC_OFFSET: usize = offset_of!(Saved, resume_at);
    pub(crate) const FP_OFFSET: usize = offset_of!(Saved, x29);
    pub(crate) const REGISTER_OFFSET: usize = offset_of!(Saved, x19);
}

// Where a new fiber begins; see x86_64.rs for why it is written by hand.
global_asm!(
    ".pushsection .text.squall_fiber_root,\"ax\",@progbits",
    ".balign 16",
    ".globl squall_fiber_root",
    ".hidden squall_fiber_root",
    ".type squall_fiber_root,@function",
    "squall_fiber_root:",
    ".cfi_startproc",
    ".cfi_undefined x30",
    "ldr x0, [sp]",
    "ldr x9, [sp, #8]",
    "add sp, sp, #32",
    "mov x29, #0",
    "mov x30, #0",
    "blr x9",
    ".globl squall_fiber_root_return",
    ".hidden squall_fiber_root_return",
    "squall_fiber_root_return:",
    "brk #1",
    ".cfi_endproc",
    ".size squall_fiber_root, . - squall_fiber_root",
    ".popsection",
);

unsafe extern "C" {
    fn squall_fiber_root();
    static squall_fiber_root_return: u8;
}

/// Lays out a new stack so that the first switch to it calls `function(argument)`. Returns its stack pointer.
///
/// # Safety
/// `base` is the high end of a stack that nothing runs on, aligned to 16 bytes; `function` does not return.
pub(crate) unsafe fn prepare_stack(
    base: usize,
    function: unsafe extern "C" fn(*const c_void),
    argument: *const c_void,
) -> *mut Saved {
    // Read by the root, which leaves the stack pointer at `base`; x19 and x29 are loaded only where a switch returns.
    let words = (base as *mut usize).wrapping_sub(4);
    // SAFETY: by the caller's contract the words are the new stack's own.
    unsafe {
        words.write(argument as usize);
        words.add(1).write(function as *const () as usize);
        words.add(2).write(squall_fiber_root as *const () as usize);
    }
    words.cast()
}

/// Leaves the running stack and goes on where `to` stands; see x86_64.rs.
///
/// # Safety
/// As there.
#[inline(always)]
pub(crate) unsafe fn switch(from: *mut *mut Saved, to: *mut Saved, thread_pointer: Option<usize>) {
    if let Some(thread_pointer) = thread_pointer {
        // SAFETY: by the caller's contract. Nothing between here and the switch touches a thread-local.
        unsafe { set_thread_pointer(thread_pointer) };
    }
    // SAFETY: by the caller's contract. x19 and x29 cannot be named as clobbered and are saved by hand; everything else that a
    // function must keep is, the low halves of v8 to v15 among it.
    unsafe {
        asm!(
            "stp x19, x29, [sp, #-32]!",
            "adr x9, 2f",
            "str x9, [sp, #16]",
            "mov x9, sp",
            "str x9, [x0]",
            "mov sp, x1",
            "ldr x9, [sp, #16]",
            "br x9",
            "2:",
            "ldp x19, x29, [sp], #32",
            inlateout("x0") from => _,
            inlateout("x1") to => _,
            lateout("x20") _, lateout("x21") _, lateout("x22") _, lateout("x23") _, lateout("x24") _,
            lateout("x25") _, lateout("x26") _, lateout("x27") _, lateout("x28") _, lateout("x30") _,
            lateout("v8") _, lateout("v9") _, lateout("v10") _, lateout("v11") _,
            lateout("v12") _, lateout("v13") _, lateout("v14") _, lateout("v15") _,
            clobber_abi("C"),
        );
    }
}

/// The return address by which the last frame of a fiber's chain is known.
pub(crate) fn root_return_address() -> usize {
    &raw const squall_fiber_root_return as usize
}

/// Where a fiber stands that has switched away.
///
/// # Safety
/// `saved` lies within a stack. If the fiber runs meanwhile, the answer is nonsense.
pub(crate) unsafe fn standpoint(saved: *const Saved) -> Standpoint {
    // SAFETY: stacks stay mapped; volatile, because another thread may be writing there.
    unsafe {
        Standpoint {
            pc: (&raw const (*saved).resume_at).read_volatile(),
            fp: (&raw const (*saved).x29).read_volatile(),
            sp: saved as usize,
        }
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
