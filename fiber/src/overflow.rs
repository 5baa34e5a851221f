//! The report of a stack overflow: a SIGSEGV handler that recognises the guard page of the running fiber.
//!
//! It runs on the worker's alternate signal stack and may not allocate or lock. Names of functions need both, so it leaves them to
//! the observer (`watchdog.rs`) and waits for that, though not for ever: the fiber that overflowed may hold the very lock that the
//! observer needs. If so, the report has addresses instead.

use crate::arch;
use crate::backtrace::{Backtrace, Chain, Names, Standpoint};
use crate::context::{is_forked_child, with_current};
use crate::sys;
use crate::watchdog;
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

/// Calls that the report shows: enough for the cycle of a recursion, and for where it began.
const INNERMOST: usize = 16;
const OUTERMOST: usize = 16;
/// How long the observer may take: it reads the program's debug information.
const NAMES_TIMEOUT: Duration = Duration::from_secs(5);

static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();
/// Where the program, or the library that this code is in, is loaded: what a raw address is relative to.
static LOAD_ADDRESS: AtomicUsize = AtomicUsize::new(0);

const NONE: u32 = 0;
const WALKING: u32 = 1;
const WALKED: u32 = 2;
const NAMED: u32 = 3;

/// The stack that has overflowed. The process ends with the first.
struct Report {
    state: AtomicU32,
    chain: UnsafeCell<Chain>,
}

// SAFETY: the chain belongs to the handler that has set WALKING; from WALKED on everybody may read it.
unsafe impl Sync for Report {}

static REPORT: Report = Report { state: AtomicU32::new(NONE), chain: UnsafeCell::new(Chain::new()) };

/// Puts the handler in front of the one that is there (std's, usually), which gets every other fault.
pub(crate) fn install_handler() {
    // SAFETY: fills the struct that it is given.
    unsafe {
        let mut info: libc::Dl_info = MaybeUninit::zeroed().assume_init();
        if libc::dladdr(on_fault as *const c_void, &mut info) != 0 {
            LOAD_ADDRESS.store(info.dli_fbase as usize, Ordering::Relaxed);
        }
    }
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

extern "C" fn on_fault(_signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo; si_addr is the address that faulted.
    let address = unsafe { (*info).si_addr() } as usize;
    with_current(|current| {
        let Some(fiber) = current.map(|current| current.inner()) else { return };
        let guard = fiber.guard_start.load(Ordering::Relaxed)..fiber.guard_end.load(Ordering::Relaxed);
        if !guard.contains(&address) {
            return;
        }
        if REPORT.state.compare_exchange(NONE, WALKING, Ordering::Acquire, Ordering::Relaxed).is_err() {
            // Another fiber was first, and will end the process.
            loop {
                sys::futex_wait(&REPORT.state, REPORT.state.load(Ordering::Relaxed), Some(NAMES_TIMEOUT));
            }
        }
        let top = fiber.trace.stack_top();
        // SAFETY: the kernel has passed the context.
        let at = unsafe { arch::interrupted_standpoint(context) };
        let at = Standpoint { sp: at.sp.max(guard.end), ..at };
        // SAFETY: the state says that the chain is this handler's; from above the guard up to its top the stack is readable.
        let chain = unsafe {
            let chain = &mut *REPORT.chain.get();
            chain.walk_interrupted(at, top);
            &*chain
        };
        write_stderr(b"\nfiber '");
        write_stderr(fiber.name.as_deref().unwrap_or("<unnamed>").as_bytes());
        write_stderr(b"' has overflowed its stack of ");
        write_number(fiber.stack_bytes);
        write_stderr(b" bytes (see Builder::stack_bytes): ");
        write_number(chain.count());
        write_stderr(b" calls deep, ");
        write_number(top - address.max(guard.end));
        write_stderr(b" bytes in use\n");
        REPORT.state.store(WALKED, Ordering::Release);
        if !wait_for_names() {
            write_addresses(chain);
        }
        // SAFETY: abort is async-signal-safe.
        unsafe { libc::abort() };
    });
    // Not ours: with the previous handler back in place the faulting instruction runs again and faults into it.
    if let Some(previous) = PREVIOUS.get() {
        // SAFETY: what sigaction itself reported when the handler was installed.
        unsafe { libc::sigaction(libc::SIGSEGV, previous, core::ptr::null_mut()) };
    }
}

fn wait_for_names() -> bool {
    if is_forked_child() {
        // The observer is the parent's.
        return false;
    }
    watchdog::ring();
    let mut left = NAMES_TIMEOUT;
    const STEP: Duration = Duration::from_millis(100);
    while REPORT.state.load(Ordering::Acquire) != NAMED && !left.is_zero() {
        sys::futex_wait(&REPORT.state, WALKED, Some(STEP));
        left = left.saturating_sub(STEP);
    }
    REPORT.state.load(Ordering::Acquire) == NAMED
}

/// For the observer's thread: if a stack has overflowed, writes the calls on it.
pub(crate) fn name_functions() {
    if REPORT.state.load(Ordering::Acquire) != WALKED {
        return;
    }
    // SAFETY: the state says that nobody writes the chain any more.
    let chain = unsafe { &*REPORT.chain.get() };
    let mut text = String::new();
    // Neither writing to a string nor, as far as anybody could still act on it, to standard error can fail.
    let _ = Backtrace::shortened(chain, INNERMOST, OUTERMOST).write(&mut text, &mut Names::default());
    let _ = std::io::stderr().write_all(text.as_bytes());
    REPORT.state.store(NAMED, Ordering::Release);
    sys::futex_wake(&REPORT.state, u32::MAX >> 1);
}

fn write_addresses(chain: &Chain) {
    write_stderr(b"  calls, relative to the program's load address:\n");
    let innermost = chain.innermost(INNERMOST);
    for (index, address) in innermost.chain(chain.outermost(INNERMOST, OUTERMOST)).enumerate() {
        if index == INNERMOST {
            write_stderr(b"  ...\n");
        }
        write_stderr(b"  ");
        write_hexadecimal(address.wrapping_sub(LOAD_ADDRESS.load(Ordering::Relaxed)));
        write_stderr(b"\n");
    }
}

fn write_stderr(bytes: &[u8]) {
    // SAFETY: write is async-signal-safe and the buffer is live; the raw call keeps hooks out of a signal handler.
    unsafe { sys::raw_syscall(libc::SYS_write, [2, bytes.as_ptr() as i64, bytes.len() as i64, 0, 0, 0]) };
}

fn write_number(value: usize) {
    write_digits(value, 10);
}

fn write_hexadecimal(value: usize) {
    write_stderr(b"0x");
    write_digits(value, 16);
}

fn write_digits(mut value: usize, base: usize) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b"0123456789abcdef"[value % base];
        value /= base;
        if value == 0 {
            return write_stderr(&digits[start..]);
        }
    }
}

/// An alternate signal stack for the calling thread: a handler for a fiber that has no stack left must run elsewhere. std gives its
/// threads one, but it is small, and threads of other languages have none.
pub(crate) struct AlternateStack {
    previous: libc::stack_t,
    memory: *mut c_void,
}

const ALTERNATE_STACK_BYTES: usize = 64 * 1024;

impl AlternateStack {
    /// Puts one in place until the value is dropped. Without memory for it, the one that is there stays.
    pub(crate) fn install() -> Option<Self> {
        // SAFETY: a new anonymous mapping aliases nothing; sigaltstack gets a stack that lives until `drop`, and fills `previous`.
        unsafe {
            let memory = libc::mmap(
                core::ptr::null_mut(),
                ALTERNATE_STACK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if memory == libc::MAP_FAILED {
                return None;
            }
            let stack = libc::stack_t { ss_sp: memory, ss_flags: 0, ss_size: ALTERNATE_STACK_BYTES };
            let mut previous: libc::stack_t = MaybeUninit::zeroed().assume_init();
            if libc::sigaltstack(&stack, &mut previous) != 0 {
                libc::munmap(memory, ALTERNATE_STACK_BYTES);
                return None;
            }
            Some(Self { previous, memory })
        }
    }
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        // SAFETY: the stack that was there before is the thread's still; ours is in use by no handler, since this code runs.
        unsafe {
            libc::sigaltstack(&self.previous, core::ptr::null_mut());
            libc::munmap(self.memory, ALTERNATE_STACK_BYTES);
        }
    }
}
