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

use core::arch::{asm, global_asm};
use core::ffi::c_void;

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

/// What lies on a stack on which nothing runs: pushed by the switch away, popped by the switch back.
#[repr(C)]
pub(crate) struct Saved {
    resume_at: usize,
    rbx: usize,
    rbp: usize,
}

// Where a new fiber begins. It ends the chain of frame pointers with a 0 and tells unwinders by its CFI that nobody called it: the worker
// that switched to it is on another stack, and another worker the next time.
global_asm!(
    ".pushsection .text.squall_fiber_root,\"ax\",@progbits",
    ".balign 16",
    ".globl squall_fiber_root",
    ".hidden squall_fiber_root",
    ".type squall_fiber_root,@function",
    "squall_fiber_root:",
    ".cfi_startproc",
    ".cfi_undefined rip",
    "pop rdi",
    "pop rax",
    "xor ebp, ebp",
    "call rax",
    ".globl squall_fiber_root_return",
    ".hidden squall_fiber_root_return",
    "squall_fiber_root_return:",
    "ud2",
    ".cfi_endproc",
    ".size squall_fiber_root, . - squall_fiber_root",
    ".popsection",
);

unsafe extern "C" {
    fn squall_fiber_root();
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
    // Popped by `switch` (the first word) and by the root (two); then the stack pointer is `base`, as the C convention wants it
    // before a call. The switch pops rbx and rbp only where it returns, which is not here.
    let words = (base as *mut usize).wrapping_sub(3);
    // SAFETY: by the caller's contract the words are the new stack's own.
    unsafe {
        words.write(squall_fiber_root as *const () as usize);
        words.add(1).write(argument as usize);
        words.add(2).write(function as *const () as usize);
    }
    words.cast()
}

/// Leaves the running stack, noting in `from` where it stands, and goes on where `to` stands, with another thread pointer if one
/// is given. Returns when somebody switches back, with the thread pointer that whoever does so gives.
///
/// By jumps, not by a call and a return. A call would leave the address of this side on the processor's own stack of return addresses, where
/// the other side's next return would find it: each return on the other side's way up would be predicted wrongly, at about 12 ns
/// each. For the same reason this is inlined, and whoever calls it should be, too, up to the loop that goes on for ever.
///
/// # Safety
/// `to` came from [`prepare_stack`] or was noted by a switch, nothing has run on that stack since, and it stays alive. The thread pointer is
/// that of an initialised block on which nobody else runs, and is the one that the other side expects.
#[inline(always)]
pub(crate) unsafe fn switch(from: *mut *mut Saved, to: *mut Saved, thread_pointer: Option<usize>) {
    // SAFETY: by the caller's contract. rbx and rbp cannot be named as clobbered and are saved by hand; everything else that a
    // function must keep is. The code after the jump finds the stack as it left it.
    unsafe {
        match thread_pointer {
            Some(thread_pointer) => asm!(
                "push rbp",
                "push rbx",
                "lea rax, [rip + 2f]",
                "push rax",
                "mov [rdi], rsp",
                "mov rsp, rsi",
                "wrfsbase rdx",
                "pop rax",
                "jmp rax",
                "2:",
                "pop rbx",
                "pop rbp",
                inlateout("rdi") from => _,
                inlateout("rsi") to => _,
                inlateout("rdx") thread_pointer => _,
                lateout("r12") _,
                lateout("r13") _,
                lateout("r14") _,
                lateout("r15") _,
                clobber_abi("sysv64"),
            ),
            None => asm!(
                "push rbp",
                "push rbx",
                "lea rax, [rip + 2f]",
                "push rax",
                "mov [rdi], rsp",
                "mov rsp, rsi",
                "pop rax",
                "jmp rax",
                "2:",
                "pop rbx",
                "pop rbp",
                inlateout("rdi") from => _,
                inlateout("rsi") to => _,
                lateout("r12") _,
                lateout("r13") _,
                lateout("r14") _,
                lateout("r15") _,
                clobber_abi("sysv64"),
            ),
        }
    }
}
