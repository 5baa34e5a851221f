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
use core::mem::offset_of;

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

impl Saved {
    pub(crate) const PC_OFFSET: usize = offset_of!(Saved, resume_at);
    pub(crate) const FP_OFFSET: usize = offset_of!(Saved, rbp);
    pub(crate) const REGISTER_OFFSET: usize = offset_of!(Saved, rbx);
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
            fp: (&raw const (*saved).rbp).read_volatile(),
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
