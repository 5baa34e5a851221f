//! Asks a worker's thread what it is running: by a signal, because a fiber that runs cannot be looked at from outside.
//!
//! The thread that asks waits; the handler writes the answer into one static place, walking the stack that it has interrupted.
//! One question is under way at a time. The signal is a real-time one that nobody had a handler for when the first scheduler was
//! made. A system call that it interrupts is restarted, but for those that never are (`poll`, `nanosleep`, ...), which a fiber
//! only makes where the hooks do not reach.

use crate::arch;
use crate::backtrace::Chain;
use crate::context::with_current;
use crate::sys;
use core::cell::UnsafeCell;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread may take to answer: one that does not is in a system call that no signal interrupts, or gets no processor.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Longer names are cut.
const NAME_BYTES: usize = 64;

const IDLE: u32 = 0;
const ASKED: u32 = 1;
const ANSWERING: u32 = 2;
const ANSWERED: u32 = 3;

struct Question {
    state: AtomicU32,
    /// The thread that is asked.
    thread_id: AtomicI32,
    /// Filled in place: a signal handler has little stack.
    answer: UnsafeCell<Running>,
}

// SAFETY: `answer` belongs to the handler while the state is ANSWERING, and otherwise to the holder of `ASKING`.
unsafe impl Sync for Question {}

static QUESTION: Question = Question {
    state: AtomicU32::new(IDLE),
    thread_id: AtomicI32::new(0),
    answer: UnsafeCell::new(Running {
        fiber: 0,
        name: [0; NAME_BYTES],
        name_length: None,
        runs: 0,
        stack_depth: 0,
        chain: Chain::new(),
    }),
};
static ASKING: Mutex<()> = Mutex::new(());

/// The fiber that a thread was running when it was asked.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    /// Its id; 0 if the thread ran no fiber.
    pub(crate) fiber: u64,
    name: [u8; NAME_BYTES],
    name_length: Option<usize>,
    pub(crate) runs: u64,
    pub(crate) stack_depth: usize,
    pub(crate) chain: Chain,
}

impl Running {
    /// The fiber's name, or its beginning.
    pub(crate) fn name(&self) -> Option<String> {
        self.name_length.map(|length| String::from_utf8_lossy(&self.name[..length]).into_owned())
    }
}

/// The real-time signal by which running fibers are asked where they stand: one that had no handler when the first scheduler was made.
/// `None` if all had.
pub fn signal() -> Option<c_int> {
    static SIGNAL: OnceLock<Option<c_int>> = OnceLock::new();
    *SIGNAL.get_or_init(|| (libc::SIGRTMIN()..libc::SIGRTMAX()).rev().find(|signal| install(*signal)))
}

fn install(signal: c_int) -> bool {
    let mut present = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: only asks; an all-zero sigaction is valid.
    let free = unsafe {
        libc::sigaction(signal, core::ptr::null(), present.as_mut_ptr()) == 0
            && present.assume_init().sa_sigaction == libc::SIG_DFL
    };
    if !free {
        return false;
    }
    // SAFETY: an all-zero sigaction is valid, and the handler has the signature that SA_SIGINFO asks for. On the alternate stack,
    // because the fiber may have no room left on its own.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_question as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(signal, &action, core::ptr::null_mut()) == 0
    }
}

/// Makes sure that the calling thread, a worker's, takes the signal, whatever its creator had blocked.
pub(crate) fn listen() {
    let Some(signal) = signal() else { return };
    let set = 1u64 << (signal - 1);
    // SAFETY: the kernel's own signal set is 8 bytes; only this thread's mask changes.
    unsafe {
        sys::raw_syscall(
            libc::SYS_rt_sigprocmask,
            [libc::SIG_UNBLOCK as i64, (&raw const set) as i64, 0, size_of::<u64>() as i64, 0, 0],
        );
    }
}

/// What a thread said when it was asked.
pub(crate) enum Answer {
    /// It runs a fiber.
    Fiber(Box<Running>),
    /// It runs none.
    Nothing,
    /// It did not answer in time, or is gone.
    Silence,
}

/// Asks a thread of this process which fiber it runs, and where that stands.
///
/// # Blocking
/// Blocks the thread until the answer is there, at most half a second.
pub(crate) fn ask(thread_id: i32) -> Answer {
    let Some(signal) = signal() else { return Answer::Silence };
    let _asking = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
    QUESTION.thread_id.store(thread_id, Ordering::Relaxed);
    QUESTION.state.store(ASKED, Ordering::Release);
    // SAFETY: the signal has a handler; a thread that is gone is an error.
    let sent = unsafe {
        sys::raw_syscall(libc::SYS_tgkill, [libc::getpid() as i64, thread_id as i64, signal as i64, 0, 0, 0])
    };
    let deadline = Instant::now() + if sent == 0 { ANSWER_TIMEOUT } else { Duration::ZERO };
    loop {
        match QUESTION.state.load(Ordering::Acquire) {
            ANSWERED => break,
            state => {
                let left = deadline.saturating_duration_since(Instant::now());
                // A handler that has begun is not waited for in vain.
                let withdrawn = left.is_zero()
                    && QUESTION
                        .state
                        .compare_exchange(ASKED, IDLE, Ordering::Acquire, Ordering::Relaxed)
                        .is_ok();
                if withdrawn {
                    return Answer::Silence;
                }
                sys::futex_wait(&QUESTION.state, state, Some(left.max(Duration::from_millis(1))));
            }
        }
    }
    // SAFETY: the handler is done, and this thread holds the lock.
    let running = unsafe { &*QUESTION.answer.get() };
    let answer = match running.fiber {
        0 => Answer::Nothing,
        _ => Answer::Fiber(Box::new(running.clone())),
    };
    QUESTION.state.store(IDLE, Ordering::Relaxed);
    answer
}

/// May not allocate, lock, or touch errno.
extern "C" fn on_question(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // A signal that comes late, when the question has been withdrawn, or another thread is being asked, finds nothing to do.
    if QUESTION.thread_id.load(Ordering::Relaxed) != sys::thread_id()
        || QUESTION.state.compare_exchange(ASKED, ANSWERING, Ordering::Acquire, Ordering::Relaxed).is_err()
    {
        return;
    }
    // SAFETY: the state says that the answer is this handler's to write.
    let answer = unsafe { &mut *QUESTION.answer.get() };
    // SAFETY: the kernel has passed the context.
    let at = unsafe { arch::interrupted_standpoint(context) };
    answer.fiber = 0;
    with_current(|current| {
        let Some(fiber) = current.map(|current| current.inner()) else { return };
        let (low, top) = (fiber.guard_end.load(Ordering::Relaxed), fiber.trace.stack_top());
        if !(low..top).contains(&at.sp) {
            // The worker has it in hand, and has not switched to it yet or any more.
            return;
        }
        answer.fiber = fiber.id;
        answer.name_length = fiber.name.as_deref().map(|name| {
            let length = name.len().min(NAME_BYTES);
            answer.name[..length].copy_from_slice(&name.as_bytes()[..length]);
            length
        });
        answer.runs = fiber.trace.runs();
        answer.stack_depth = top - at.sp;
        answer.chain.clear();
        // SAFETY: the fiber's own stack, from where it stands to its top.
        unsafe { answer.chain.walk_interrupted(at, top) };
    });
    QUESTION.state.store(ANSWERED, Ordering::Release);
    sys::futex_wake(&QUESTION.state, 1);
}
