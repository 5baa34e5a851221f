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

use crate::backtrace::Standpoint;
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

// The function at the bottom of every fiber's stack. It ends the chain of frame pointers with a 0 and tells unwinders by its CFI that
// nobody called it: what lies beyond is the worker that resumed the fiber last, whose frames are long gone while the fiber is
// parked. Without it perf and gdb would go on into whatever that worker's stack holds now.
global_asm!(
    ".pushsection .text.squall_fiber_root,\"ax\",@progbits",
    ".balign 16",
    ".globl squall_fiber_root",
    ".hidden squall_fiber_root",
    ".type squall_fiber_root,@function",
    "squall_fiber_root:",
    ".cfi_startproc",
    ".cfi_undefined rip",
    "push rbp",
    "xor ebp, ebp",
    "call rsi",
    ".globl squall_fiber_root_return",
    ".hidden squall_fiber_root_return",
    "squall_fiber_root_return:",
    "pop rbp",
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
    // SAFETY: by the caller's contract; the function above keeps rbp and calls by the C convention.
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
            "lea {scratch}, [rip]",
            "mov [{at}], {scratch}",
            "mov [{at} + 8], rbp",
            "mov [{at} + 16], rsp",
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
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    Standpoint {
        pc: registers[libc::REG_RIP as usize] as usize,
        fp: registers[libc::REG_RBP as usize] as usize,
        sp: registers[libc::REG_RSP as usize] as usize,
    }
}

/// The address to which the function returns that a signal has interrupted, if that function has no frame of its own just then: at
/// its very beginning or end. The frame pointer is its caller's then, and without this the caller would be missing.
///
/// # Safety
/// `at` is where running code was interrupted, and two words at its stack pointer may be read.
pub(crate) unsafe fn return_address_without_frame(at: Standpoint) -> Option<usize> {
    const PUSH_RBP: u8 = 0x55;
    const MOV_RBP_RSP: [[u8; 3]; 2] = [[0x48, 0x89, 0xE5], [0x48, 0x8B, 0xEC]];
    const RET: u8 = 0xC3;
    let code = at.pc as *const u8;
    let stack = at.sp as *const usize;
    // SAFETY: the processor was about to execute the instruction at `pc`, so its bytes may be read: the first says whether it has more.
    // What lies before a `mov` of this kind is another instruction of the same function. The stack by the contract.
    unsafe {
        match *code {
            PUSH_RBP | RET => Some(stack.read_volatile()),
            0x48 if MOV_RBP_RSP.contains(&[*code, *code.add(1), *code.add(2)])
                && *code.sub(1) == PUSH_RBP =>
            {
                Some(stack.add(1).read_volatile())
            }
            _ => None,
        }
    }
}
