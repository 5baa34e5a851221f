//! Futexes for fibers: what makes std's Mutex, Condvar, Once, park and channels, and parking_lot, wait as fibers wait.
//!
//! All of them call `syscall(SYS_futex, ...)`. A fiber that waits goes into a table here, keyed by address; a wake-up, from a
//! fiber or a thread, first wakes fibers from the table and passes what is left of its count to the kernel, for threads.
//!
//! Why no wake-up is lost. The waiter announces itself in its bucket's counter and then, under the bucket's lock, compares
//! the word and enters the queue. The waker has changed the word before it looks at the counter. Both do so by an atomic exchange, so one
//! of the two comes first: if it is the waiter's, the waker sees the count; if it is the waker's, the waiter sees what the waker wrote before,
//! which is the new word.
//!
//! As long as no fiber has ever waited, wakers are spared even that: see [`FIBERS_WAIT`].

use crate::errno::{Errno, Result};
use crate::kernel;
use crate::os::Os;
use core::ffi::{c_int, c_long};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering, compiler_fence};
use squall_fiber::lock::Lock;
use squall_fiber::{Current, WaitKind, Wake, Waker};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

const BUCKETS: usize = 256;
pub(crate) const ANY_BIT: u32 = u32::MAX;

struct Waiter {
    address: usize,
    bits: u32,
    waker: Waker,
}

/// Alone on its cache line, which every waker that hashes to it takes for itself.
#[repr(align(64))]
struct Bucket {
    /// Fibers that are in the queue or about to enter it.
    announced: AtomicUsize,
    /// In the order of arrival.
    queue: Lock<VecDeque<Waiter>>,
}

static TABLE: [Bucket; BUCKETS] =
    [const { Bucket { announced: AtomicUsize::new(0), queue: Lock::new(VecDeque::new()) } }; BUCKETS];

fn bucket(address: usize) -> &'static Bucket {
    // Fibonacci hashing of the word's number; futex words are aligned to 4 bytes.
    let hash = (address >> 2).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    &TABLE[hash >> (usize::BITS - BUCKETS.trailing_zeros())]
}

impl Bucket {
    /// Whether fibers may wait here, or be about to. What the caller has written before is seen by those that come later.
    #[inline(always)]
    fn may_have_waiters(&self) -> bool {
        self.announced.compare_exchange(0, 0, Ordering::SeqCst, Ordering::SeqCst).is_err()
    }
}

/// Whether a fiber has ever waited: [`NEVER`], [`SOON`], [`YES`].
///
/// A waker reads it without a barrier between its write to the word and this read. The first waiter makes up for that: it says
/// `SOON`, makes every thread of the process pass a barrier (`membarrier`), and only then begins to wait. A thread that read `NEVER` passes the
/// barrier after that, and so has made its write to the word visible.
static FIBERS_WAIT: AtomicU8 = AtomicU8::new(NEVER);
const NEVER: u8 = 0;
const SOON: u8 = 1;
const YES: u8 = 2;

const MEMBARRIER_CMD_PRIVATE_EXPEDITED: c_long = 1 << 3;
const MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED: c_long = 1 << 4;

fn membarrier(command: c_long) -> bool {
    // SAFETY: the call takes no memory.
    unsafe { kernel::call(libc::SYS_membarrier, [command, 0, 0, 0, 0, 0]).is_ok() }
}

/// To be called once, before there is a second thread.
pub(crate) fn prepare() {
    if !membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) {
        // Without it wakers always look at their bucket.
        FIBERS_WAIT.store(YES, Ordering::SeqCst);
    }
}

#[cold]
fn note_first_wait() {
    FIBERS_WAIT.store(SOON, Ordering::SeqCst);
    let has_passed = membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    assert!(has_passed, "membarrier, which the process is registered for, has failed");
    FIBERS_WAIT.store(YES, Ordering::SeqCst);
}

/// Whether a futex call is none of this table's business, and the kernel can answer it as it is.
#[inline(always)]
pub(crate) fn is_for_kernel(address: usize, operation: c_int) -> bool {
    let is_private = (operation & libc::FUTEX_PRIVATE_FLAG) != 0;
    match operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) {
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => !is_private || !may_wake_fibers(address),
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => !squall_fiber::in_fiber(),
        _ => false,
    }
}

#[inline(always)]
fn may_wake_fibers(address: usize) -> bool {
    compiler_fence(Ordering::SeqCst);
    FIBERS_WAIT.load(Ordering::Acquire) != NEVER && bucket(address).may_have_waiters()
}

/// `FUTEX_WAIT` and `FUTEX_WAIT_BITSET` in a fiber.
pub(crate) fn wait(
    current: Current<'_>,
    word: &AtomicU32,
    expected: u32,
    deadline: Option<Instant>,
    bits: u32,
) -> Result<usize> {
    if bits == 0 {
        return Err(Errno::INVAL);
    }
    let is_over = || word.load(Ordering::SeqCst) != expected;
    match wait_unless(current, word.as_ptr() as usize, bits, is_over, |_| deadline) {
        None => Err(Errno::AGAIN),
        Some(Wake::TimedOut) => Err(Errno::TIMEDOUT),
        Some(_) => Ok(0),
    }
}

/// Waits for a wake-up of `address` with one of `bits`. Before, but when no later wake-up can be missed any more, asks `is_over` whether
/// there is anything to wait for; `None` if not. `deadline` is told whether others wait for the same.
///
/// # Blocking
/// Suspends the fiber; nothing interrupts it.
pub(crate) fn wait_unless(
    current: Current<'_>,
    address: usize,
    bits: u32,
    is_over: impl FnOnce() -> bool,
    deadline: impl FnOnce(bool) -> Option<Instant>,
) -> Option<Wake> {
    let bucket = bucket(address);
    if FIBERS_WAIT.load(Ordering::Acquire) != YES {
        note_first_wait();
    }
    bucket.announced.fetch_add(1, Ordering::SeqCst);
    let outcome = {
        let mut queue = bucket.queue.lock();
        if is_over() {
            None
        } else {
            let deadline = deadline(queue.iter().any(|waiter| waiter.address == address));
            let wait = current.begin_wait(WaitKind::Futex, address as u64);
            let waker = wait.waker();
            queue.push_back(Waiter { address, bits, waker: waker.clone() });
            drop(queue);
            let wake = wait.block(deadline);
            if wake == Wake::TimedOut {
                bucket.queue.lock().retain(|waiter| !waiter.waker.is_same(&waker));
            }
            Some(wake)
        }
    };
    bucket.announced.fetch_sub(1, Ordering::SeqCst);
    outcome
}

/// Wakes at most `count` fibers that wait for `address` with one of `bits`, longest first. Returns how many.
pub(crate) fn wake_fibers(address: usize, count: usize, bits: u32) -> usize {
    if !may_wake_fibers(address) {
        return 0;
    }
    wake_from(&mut bucket(address).queue.lock(), address, count, bits)
}

/// Wakes the fiber that has waited longest for `address`, and if its bits are `crowd` all others with these bits.
pub(crate) fn wake_first_or_crowd(address: usize, crowd: u32) {
    if !may_wake_fibers(address) {
        return;
    }
    let mut queue = bucket(address).queue.lock();
    let first = queue.iter().find(|waiter| waiter.address == address);
    let count = if first.is_some_and(|waiter| waiter.bits == crowd) { usize::MAX } else { 1 };
    let bits = if count == 1 { ANY_BIT } else { crowd };
    wake_from(&mut queue, address, count, bits);
}

fn wake_from(queue: &mut VecDeque<Waiter>, address: usize, count: usize, bits: u32) -> usize {
    let mut woken = 0;
    while woken < count
        && let Some(place) =
            queue.iter().position(|waiter| waiter.address == address && (waiter.bits & bits) != 0)
        && let Some(waiter) = queue.remove(place)
    {
        // False: its time was up first. It takes itself for timed out, so the wake-up is for the next.
        woken += usize::from(waiter.waker.wake(Wake::Ready));
    }
    woken
}

/// Sleeps the calling thread while `*word == expected`, at most for `time`. May return early.
pub(crate) fn sleep_thread(word: &AtomicU32, expected: u32, time: Option<Duration>) {
    let time = time.map(|time| libc::timespec {
        tv_sec: time.as_secs().min(i64::MAX as u64) as libc::time_t,
        tv_nsec: time.subsec_nanos() as c_long,
    });
    let time = time.as_ref().map_or(core::ptr::null(), |time| time as *const libc::timespec);
    let operation = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as c_long;
    let arguments = [word.as_ptr() as c_long, operation, expected as c_long, time as c_long, 0, 0];
    // SAFETY: the word is live, and the time null or live.
    unsafe { squall_fiber::sys::raw_syscall(libc::SYS_futex, arguments) };
}

/// Wakes the thread that sleeps in [`sleep_thread`].
pub(crate) fn wake_thread(word: &AtomicU32) {
    let operation = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as c_long;
    // SAFETY: the address is only a key.
    unsafe {
        squall_fiber::sys::raw_syscall(libc::SYS_futex, [word.as_ptr() as c_long, operation, 1, 0, 0, 0])
    };
}

/// `syscall(SYS_futex, ...)`, from a fiber (`current`) or a thread.
///
/// # Safety
/// As for the system call.
pub(crate) unsafe fn futex(fiber: Option<(Current<'_>, &dyn Os)>, arguments: [c_long; 6]) -> Result<usize> {
    // SAFETY: by the caller's contract.
    let kernel = |arguments: [c_long; 6]| unsafe { kernel::call(libc::SYS_futex, arguments) };
    let [address, operation, value, timeout, _, bits] = arguments;
    let operation = operation as c_int;
    let command = operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    let is_private = (operation & libc::FUTEX_PRIVATE_FLAG) != 0;
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
            let Some((current, os)) = fiber else { return kernel(arguments) };
            if !is_private {
                // Another process may be the one that wakes: only the kernel knows of it.
                return squall_fiber::run_blocking(|| kernel(arguments));
            }
            // SAFETY: the caller passes null or a timespec.
            let timeout = unsafe { (timeout as *const libc::timespec).as_ref() };
            if address == 0 || (address & 3) != 0 || timeout.is_some_and(|timeout| !is_possible(timeout)) {
                // It refuses them.
                return kernel(arguments);
            }
            // SAFETY: the caller passes a futex word, aligned as just checked.
            let word = unsafe { AtomicU32::from_ptr(address as *mut u32) };
            let (deadline, bits) = if command == libc::FUTEX_WAIT {
                (timeout.map(|relative| Instant::now().checked_add(duration(relative))), ANY_BIT)
            } else {
                let clock = if (operation & libc::FUTEX_CLOCK_REALTIME) != 0 {
                    libc::CLOCK_REALTIME
                } else {
                    libc::CLOCK_MONOTONIC
                };
                (timeout.map(|absolute| deadline_on(clock, absolute)), bits as u32)
            };
            let deadline = deadline.flatten().map(|deadline| os.deadline(current, deadline));
            wait(current, word, value as u32, deadline, bits)
        }
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            // The kernel counts before it compares.
            let wanted = (value as c_int).max(1) as usize;
            let bits = if command == libc::FUTEX_WAKE { ANY_BIT } else { bits as u32 };
            let woken = if is_private { wake_fibers(address as usize, wanted, bits) } else { 0 };
            let are_all_fibers = fiber.is_some_and(|(_, os)| os.world().is_some());
            if woken == wanted || are_all_fibers {
                return Ok(woken);
            }
            let mut rest = arguments;
            rest[2] = (wanted - woken) as c_long;
            kernel(rest).map(|threads| woken + threads)
        }
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => {
            if !is_private || address == 0 || (address & 3) != 0 {
                return kernel(arguments);
            }
            // SAFETY: the caller passes a futex word, aligned as just checked.
            let word = unsafe { AtomicU32::from_ptr(address as *mut u32) };
            if command == libc::FUTEX_CMP_REQUEUE && word.load(Ordering::SeqCst) != bits as u32 {
                return Err(Errno::AGAIN);
            }
            // Fibers are woken instead of moved: a futex wait may always end early, and they will wait on the other word by
            // themselves.
            let (to_wake, to_move) = ((value as c_int).max(0) as usize, (timeout as c_int).max(0) as usize);
            let woken = wake_fibers(address as usize, to_wake, ANY_BIT);
            let moved = wake_fibers(address as usize, to_move, ANY_BIT);
            let mut rest = arguments;
            (rest[2], rest[3]) = ((to_wake - woken) as c_long, (to_move - moved) as c_long);
            kernel(rest).map(|threads| woken + moved + threads)
        }
        _ => kernel(arguments),
    }
}

fn is_possible(time: &libc::timespec) -> bool {
    time.tv_sec >= 0 && (0..1_000_000_000).contains(&time.tv_nsec)
}

fn duration(time: &libc::timespec) -> Duration {
    Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec.clamp(0, 999_999_999) as u32)
}

/// When an absolute time on some clock will be, on the clock that timers run on. `None` if never.
pub(crate) fn deadline_on(clock: libc::clockid_t, absolute: &libc::timespec) -> Option<Instant> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct it is given.
    unsafe { libc::clock_gettime(clock, &mut now) };
    Instant::now().checked_add(duration(absolute).saturating_sub(duration(&now)))
}
