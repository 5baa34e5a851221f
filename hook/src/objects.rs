//! pthread's locks, condition variables and semaphores for fibers: what C and C++ libraries wait on.
//!
//! glibc's own functions wait in the kernel by system calls of their own, which no hook sees: a fiber would block its worker, and for
//! ever if a fiber of the same worker holds the lock. So a fiber takes a lock by the function that only tries. If that fails the fiber
//! waits in the futex table, under the object's address, and whoever releases the object wakes it after the real release. What an object
//! contains stays glibc's: threads wait for it as ever, and the kinds of mutex work, because each fiber has a thread id of its own.
//!
//! Why no wake-up is lost. The waiter announces itself and then tries once more, in the futex table's usual order; the releaser releases
//! and then looks for announcements. A try and a release both write the object, so one of the two sees the other.
//!
//! A mutex is also released inside `pthread_cond_wait`, where no hook sees it. So once a fiber has waited for any object, threads wait
//! for condition variables as fibers do: in a queue here, which holds both. A signal takes the longest-waiting entry of that queue
//! and goes to glibc's only if there is none; a broadcast goes to both. Whoever waits enters the queue before it releases the mutex, so a
//! signal that is sent under the mutex finds it.
//!
//! Releases that pass no hook at all (a library bound to libc's own symbols, a thread that was in glibc's `pthread_cond_wait`
//! before the first fiber waited) are noticed because of those who wait for an object one is on watch: it looks again from time to
//! time. That is the first, and whoever was woken and came too late; a watch that ends without the object is handed on.
//!
//! Memory that is shared with other processes has no table in common with them: the watch looks again and again, and is handed on
//! by whoever gets the object, too.

use crate::errno::{Errno, Result, check_int};
use crate::futex::{self, ANY_BIT, deadline_on};
use crate::real;
use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use libc::{
    clockid_t, pthread_cond_t, pthread_mutex_t, pthread_once_t, pthread_rwlock_t, pthread_spinlock_t, sem_t,
    timespec,
};
use squall_fiber::lock::Lock;
use squall_fiber::{Current, WaitKind, Wake, Waker, is_forked_child};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long whoever is on watch waits before it looks again. Each time it is longer, since by then it is less likely that there is
/// something to find.
const BACKSTOP: Duration = Duration::from_millis(50);
const BACKSTOP_MAX: Duration = Duration::from_secs(2);
/// The same for memory that other processes may share, always.
const BACKSTOP_SHARED: Duration = Duration::from_millis(1);
/// How often a lock that a thread holds is tried before the fiber waits: a few microseconds.
const SPINS: u32 = 40;
/// For how long an adaptive mutex is. Its users promise to hold it briefly; those of an allocator must not be waited for by giving
/// the worker to others, since these allocate, too.
const SPIN_ADAPTIVE: Duration = Duration::from_millis(10);

/// Fibers that wait for an object or are about to, and everybody in the queues of condition variables.
static WAITING: AtomicUsize = AtomicUsize::new(0);
/// Whether a fiber has ever waited for an object.
static FIBERS_WAIT: AtomicBool = AtomicBool::new(false);

/// Until when a caller wants to wait.
#[derive(Clone, Copy)]
pub(crate) struct Limit(Option<(clockid_t, *const timespec)>);

impl Limit {
    pub(crate) const NONE: Limit = Limit(None);

    /// # Safety
    /// `time` points to a timespec for as long as the value is used.
    pub(crate) unsafe fn at(clock: clockid_t, time: *const timespec) -> Self {
        Limit(Some((clock, time)))
    }

    /// Some functions refuse a time that is none even if they need not wait.
    fn is_valid(self) -> bool {
        // SAFETY: by the contract of `at`.
        self.0.is_none_or(|(_, time)| (0..1_000_000_000).contains(&unsafe { &*time }.tv_nsec))
    }

    fn deadline(self) -> core::result::Result<Option<Instant>, c_int> {
        let Some((clock, time)) = self.0 else { return Ok(None) };
        if !self.is_valid() {
            return Err(libc::EINVAL);
        }
        // SAFETY: by the contract of `at`.
        Ok(deadline_on(clock, unsafe { &*time }))
    }
}

/// Who may have an object next.
#[derive(Clone, Copy)]
pub(crate) enum Next {
    One,
    /// Whoever has waited longest; with a reader all readers.
    OneOrReaders,
    All,
}

/// Bits of those that wait to read, and of those that wait to write or for anything that is not a read-write lock.
const READER: u32 = 1;
const OTHER: u32 = 2;

/// To be called after an object was released: wakes fibers that wait for it.
#[inline(always)]
pub(crate) fn released(address: usize, next: Next) {
    // On x86 the release itself was a barrier, as every atomic change of memory is.
    #[cfg(not(target_arch = "x86_64"))]
    core::sync::atomic::fence(Ordering::SeqCst);
    if WAITING.load(Ordering::SeqCst) != 0 {
        wake_waiters(address, next);
    }
}

#[cold]
fn wake_waiters(address: usize, next: Next) {
    // In a forked child nobody waits, and a thread that does not exist here may hold the table's lock.
    if is_forked_child() {
        return;
    }
    match next {
        Next::One => drop(futex::wake_fibers(address, 1, ANY_BIT)),
        Next::OneOrReaders => futex::wake_first_or_crowd(address, READER),
        Next::All => drop(futex::wake_fibers(address, usize::MAX, ANY_BIT)),
    }
}

/// Counts the caller among those that wait.
struct Waits;

impl Waits {
    fn new() -> Self {
        FIBERS_WAIT.store(true, Ordering::Relaxed);
        WAITING.fetch_add(1, Ordering::SeqCst);
        Waits
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until `attempt` answers anything but `EBUSY`.
fn acquire(
    current: Current<'_>,
    address: usize,
    bits: u32,
    is_shared: bool,
    limit: Limit,
    mut attempt: impl FnMut() -> c_int,
) -> c_int {
    let deadline = match limit.deadline() {
        Ok(deadline) => deadline,
        Err(error) => return error,
    };
    let _waits = Waits::new();
    let mut backstop = if is_shared { BACKSTOP_SHARED } else { BACKSTOP };
    let mut on_watch = false;
    loop {
        let mut answer = libc::EBUSY;
        let is_over = || {
            answer = attempt();
            answer != libc::EBUSY
        };
        let until = |others_wait: bool| {
            on_watch |= !others_wait;
            if !on_watch {
                return deadline;
            }
            let look_again = Instant::now() + backstop;
            Some(deadline.map_or(look_again, |deadline| deadline.min(look_again)))
        };
        let wake = futex::wait_unless(current, address, bits, is_over, until);
        if wake == Some(Wake::Ready) {
            on_watch = true;
            continue;
        }
        if wake == Some(Wake::TimedOut) {
            if deadline.is_none_or(|deadline| Instant::now() < deadline) {
                if !is_shared {
                    backstop = (backstop * 2).min(BACKSTOP_MAX);
                }
                continue;
            }
            answer = attempt();
        }
        let gave_up = answer == libc::EBUSY;
        if is_shared || (on_watch && gave_up) {
            wake_waiters(address, Next::OneOrReaders);
        }
        return if gave_up { libc::ETIMEDOUT } else { answer };
    }
}

/// What glibc keeps in the first words of a mutex: the same in all versions, because static initialisers have it.
#[repr(C)]
struct MutexWords {
    lock: u32,
    count: u32,
    owner: AtomicU32,
    users: u32,
    kind: AtomicU32,
}

const KIND_ERRORCHECK: u32 = libc::PTHREAD_MUTEX_ERRORCHECK as u32;
const KIND_ADAPTIVE: u32 = 3;
const KIND_MASK: u32 = 3;
/// Robust, inheriting or ceiling priority, shared between processes.
const KIND_SPECIAL: u32 = 0x10 | 0x20 | 0x40 | 0x80;

/// # Safety
/// `mutex` is a mutex.
unsafe fn words<'a>(mutex: *mut pthread_mutex_t) -> &'a MutexWords {
    // SAFETY: by the contract; a mutex begins with these words, and those that are read are atomics.
    unsafe { &*mutex.cast::<MutexWords>() }
}

/// The id by which glibc knows the calling thread or fiber as an owner.
fn own_id() -> u32 {
    let mut mutex = MaybeUninit::<pthread_mutex_t>::zeroed();
    // SAFETY: a mutex of zeroes is a static initialiser, here with its kind set; it is the caller's own.
    unsafe {
        words(mutex.as_mut_ptr()).kind.store(KIND_ERRORCHECK, Ordering::Relaxed);
        real::pthread_mutex_trylock(mutex.as_mut_ptr());
        words(mutex.as_mut_ptr()).owner.load(Ordering::Relaxed)
    }
}

/// The ids above belong to fibers, those below to threads.
const FIBER_ID_MIN: u32 = 1 << 23;

/// `pthread_mutex_lock` and its siblings in a fiber.
///
/// # Safety
/// As for the function.
pub(crate) unsafe fn mutex_lock(current: Current<'_>, mutex: *mut pthread_mutex_t, limit: Limit) -> c_int {
    // SAFETY: by the contract.
    let attempt = || unsafe { real::pthread_mutex_trylock(mutex) };
    let answer = attempt();
    if answer != libc::EBUSY {
        return answer;
    }
    // SAFETY: by the contract.
    let words = unsafe { words(mutex) };
    let kind = words.kind.load(Ordering::Relaxed);
    let owner = words.owner.load(Ordering::Relaxed);
    // With thread-locals of the worker's, all its fibers have one id, which says nothing.
    if (kind & KIND_MASK) == KIND_ERRORCHECK && current.has_private_tls() && owner == own_id() {
        return libc::EDEADLK;
    }
    if (kind & KIND_MASK) == KIND_ADAPTIVE {
        let end = Instant::now() + SPIN_ADAPTIVE;
        while Instant::now() < end {
            for _ in 0..SPINS {
                core::hint::spin_loop();
            }
            let answer = attempt();
            if answer != libc::EBUSY {
                return answer;
            }
        }
    } else if owner < FIBER_ID_MIN {
        for _ in 0..SPINS {
            core::hint::spin_loop();
            let answer = attempt();
            if answer != libc::EBUSY {
                return answer;
            }
        }
    }
    acquire(current, mutex as usize, OTHER, (kind & KIND_SPECIAL) != 0, limit, attempt)
}

/// `pthread_mutex_unlock`, by anybody.
///
/// # Safety
/// As for the function.
#[inline(always)]
pub(crate) unsafe fn mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: by the contract.
    let answer = unsafe { real::pthread_mutex_unlock(mutex) };
    released(mutex as usize, Next::One);
    answer
}

/// Which way a read-write lock is to be held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    Read,
    Write,
}

/// `pthread_rwlock_rdlock`, `pthread_rwlock_wrlock` and their siblings in a fiber.
///
/// # Safety
/// As for the functions.
pub(crate) unsafe fn rwlock_lock(
    current: Current<'_>,
    rwlock: *mut pthread_rwlock_t,
    hold: Hold,
    limit: Limit,
) -> c_int {
    if !limit.is_valid() {
        return libc::EINVAL;
    }
    // SAFETY: by the contract.
    let attempt = || unsafe {
        match hold {
            Hold::Read => real::pthread_rwlock_tryrdlock(rwlock),
            Hold::Write => real::pthread_rwlock_trywrlock(rwlock),
        }
    };
    let answer = attempt();
    if answer != libc::EBUSY {
        return answer;
    }
    /// As for the mutex.
    #[repr(C)]
    struct Words {
        counts_and_futexes: [u32; 6],
        writer: AtomicU32,
        shared: u32,
    }
    // SAFETY: a lock begins with these words in all versions of glibc.
    let words = unsafe { &*rwlock.cast::<Words>() };
    if current.has_private_tls() && words.writer.load(Ordering::Relaxed) == own_id() {
        return libc::EDEADLK;
    }
    let bits = if hold == Hold::Read { READER } else { OTHER };
    acquire(current, rwlock as usize, bits, words.shared != 0, limit, attempt)
}

/// `sem_wait` and its siblings in a fiber.
///
/// # Safety
/// As for the functions.
pub(crate) unsafe fn semaphore_wait(
    current: Current<'_>,
    semaphore: *mut sem_t,
    limit: Limit,
) -> Result<c_int> {
    if !limit.is_valid() {
        return Err(Errno::INVAL);
    }
    let attempt = || {
        // SAFETY: by the contract.
        match check_int(unsafe { real::sem_trywait(semaphore) }) {
            Ok(_) => 0,
            Err(Errno::AGAIN) => libc::EBUSY,
            Err(errno) => errno.0,
        }
    };
    let mut answer = attempt();
    if answer == libc::EBUSY {
        // SAFETY: by the contract.
        let is_shared = unsafe { has(semaphore.cast(), &SEMAPHORE_SHARED) };
        answer = acquire(current, semaphore as usize, OTHER, is_shared, limit, attempt);
    }
    if answer == 0 { Ok(0) } else { Err(Errno(answer)) }
}

/// `pthread_spin_lock` in a fiber: the holder may be a fiber that waits for this worker.
///
/// # Safety
/// As for the function.
pub(crate) unsafe fn spin_lock(current: Current<'_>, lock: *mut pthread_spinlock_t) -> c_int {
    loop {
        for _ in 0..SPINS {
            // SAFETY: by the contract.
            let answer = unsafe { real::pthread_spin_trylock(lock) };
            if answer != libc::EBUSY {
                return answer;
            }
            core::hint::spin_loop();
        }
        current.yield_now();
    }
}

/// Where in an object an attribute shows: the byte's place in the high bits, the bit's mask below; 0 if not found. Versions of glibc
/// differ.
static COND_MONOTONIC: AtomicUsize = AtomicUsize::new(0);
static COND_SHARED: AtomicUsize = AtomicUsize::new(0);
static SEMAPHORE_SHARED: AtomicUsize = AtomicUsize::new(0);

/// To be called once, before `main`.
pub(crate) fn find_attributes() {
    const PRIVATE: c_int = libc::PTHREAD_PROCESS_PRIVATE;
    const SHARED: c_int = libc::PTHREAD_PROCESS_SHARED;
    let condition = |clock, shared| {
        let mut attributes = MaybeUninit::<libc::pthread_condattr_t>::uninit();
        let mut condition = MaybeUninit::<pthread_cond_t>::zeroed();
        // SAFETY: all memory is this function's own. A condition variable that nobody has used need not be destroyed.
        unsafe {
            libc::pthread_condattr_init(attributes.as_mut_ptr());
            libc::pthread_condattr_setclock(attributes.as_mut_ptr(), clock);
            libc::pthread_condattr_setpshared(attributes.as_mut_ptr(), shared);
            libc::pthread_cond_init(condition.as_mut_ptr(), attributes.as_ptr());
            core::mem::transmute::<pthread_cond_t, [u8; size_of::<pthread_cond_t>()]>(condition.assume_init())
        }
    };
    let semaphore = |shared| {
        let mut semaphore = MaybeUninit::<sem_t>::zeroed();
        // SAFETY: as above.
        unsafe {
            libc::sem_init(semaphore.as_mut_ptr(), shared, 0);
            core::mem::transmute::<sem_t, [u8; size_of::<sem_t>()]>(semaphore.assume_init())
        }
    };
    fn difference(one: &[u8], other: &[u8]) -> usize {
        let place = one.iter().zip(other).position(|(a, b)| a != b);
        place.map_or(0, |place| (place << 8) | usize::from(one[place] ^ other[place]))
    }
    let plain = condition(libc::CLOCK_REALTIME, PRIVATE);
    let monotonic = difference(&plain, &condition(libc::CLOCK_MONOTONIC, PRIVATE));
    COND_MONOTONIC.store(monotonic, Ordering::Relaxed);
    COND_SHARED.store(difference(&plain, &condition(libc::CLOCK_REALTIME, SHARED)), Ordering::Relaxed);
    SEMAPHORE_SHARED.store(difference(&semaphore(0), &semaphore(1)), Ordering::Relaxed);
}

/// # Safety
/// `object` is of the type that the attribute was found in.
unsafe fn has(object: *mut c_void, attribute: &AtomicUsize) -> bool {
    let attribute = attribute.load(Ordering::Relaxed);
    // SAFETY: by the contract; the place was found in such an object.
    let byte = unsafe { object.cast::<u8>().add(attribute >> 8).read_volatile() };
    (byte & attribute as u8) != 0
}

/// The clock that an absolute time for a condition variable is on.
///
/// # Safety
/// `condition` is a condition variable.
pub(crate) unsafe fn clock_of(condition: *mut pthread_cond_t) -> clockid_t {
    // SAFETY: by the contract.
    if unsafe { has(condition.cast(), &COND_MONOTONIC) } {
        libc::CLOCK_MONOTONIC
    } else {
        libc::CLOCK_REALTIME
    }
}

/// Somebody in the queue of a condition variable.
enum Sleeper {
    Fiber(Waker),
    /// A thread that sleeps until the word is 1.
    Thread(*const AtomicU32),
}

// SAFETY: the word lives on the stack of a thread that takes its entry out before it goes on, or finds it taken out; whoever takes it out
// is done with the word when it gives up the queue's lock.
unsafe impl Send for Sleeper {}

struct Entry {
    condition: usize,
    sleeper: Sleeper,
}

const QUEUES: usize = 64;
/// In the order of arrival.
static SLEEPERS: [Lock<VecDeque<Entry>>; QUEUES] = [const { Lock::new(VecDeque::new()) }; QUEUES];

fn queue(condition: usize) -> &'static Lock<VecDeque<Entry>> {
    let hash = (condition >> 3).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    &SLEEPERS[hash >> (usize::BITS - QUEUES.trailing_zeros())]
}

/// Whether threads have to wait for condition variables here.
#[inline]
pub(crate) fn fibers_wait() -> bool {
    FIBERS_WAIT.load(Ordering::Relaxed)
}

/// Wakes at most `count` of those that wait here for the condition variable, longest first. Says how many.
#[inline]
pub(crate) fn signal(condition: *mut pthread_cond_t, count: usize) -> usize {
    if WAITING.load(Ordering::SeqCst) == 0 { 0 } else { signal_queue(condition as usize, count) }
}

#[cold]
fn signal_queue(condition: usize, count: usize) -> usize {
    if is_forked_child() {
        return 0;
    }
    let mut woken = 0;
    let mut queue = queue(condition).lock();
    while woken < count
        && let Some(place) = queue.iter().position(|entry| entry.condition == condition)
        && let Some(entry) = queue.remove(place)
    {
        woken += match entry.sleeper {
            // False: its time was up first, so the signal is for the next.
            Sleeper::Fiber(waker) => usize::from(waker.wake(Wake::Ready)),
            Sleeper::Thread(word) => {
                // SAFETY: see `Sleeper`: the entry was still there, so the thread is, until the queue is unlocked.
                let word = unsafe { &*word };
                word.store(1, Ordering::Release);
                futex::wake_thread(word);
                1
            }
        };
    }
    woken
}

/// `pthread_cond_wait` and its siblings, in a fiber.
///
/// # Safety
/// As for the functions.
pub(crate) unsafe fn condition_wait(
    current: Current<'_>,
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    limit: Limit,
) -> c_int {
    let deadline = match limit.deadline() {
        Ok(deadline) => deadline,
        Err(error) => return error,
    };
    let _waits = Waits::new();
    // SAFETY: by the contract.
    let is_shared = unsafe { has(condition.cast(), &COND_SHARED) };
    let wait = current.begin_wait(WaitKind::Futex, condition as u64);
    let waker = wait.waker();
    if !is_shared {
        let sleeper = Sleeper::Fiber(waker.clone());
        queue(condition as usize).lock().push_back(Entry { condition: condition as usize, sleeper });
    }
    let leave = || {
        queue(condition as usize)
            .lock()
            .retain(|entry| !matches!(&entry.sleeper, Sleeper::Fiber(other) if other.is_same(&waker)));
    };
    // SAFETY: by the contract.
    let error = unsafe { mutex_unlock(mutex) };
    if error != 0 {
        wait.abandon();
        leave();
        return error;
    }
    // Another process cannot wake a fiber: it wakes by itself, for no reason, which any wait for a condition may.
    let until = match deadline {
        deadline if !is_shared => deadline,
        deadline => {
            let look_again = Instant::now() + BACKSTOP_SHARED;
            Some(deadline.map_or(look_again, |deadline| deadline.min(look_again)))
        }
    };
    let wake = wait.block(until);
    if wake == Wake::TimedOut {
        leave();
    }
    // SAFETY: by the contract.
    let relocked = unsafe { mutex_lock(current, mutex, Limit::NONE) };
    match wake {
        _ if relocked != 0 => relocked,
        Wake::TimedOut if until == deadline => libc::ETIMEDOUT,
        _ => 0,
    }
}

/// The same in a thread, once fibers wait for such objects.
///
/// # Safety
/// As for the functions.
#[cold]
pub(crate) unsafe fn condition_wait_in_thread(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    limit: Limit,
) -> Option<c_int> {
    // SAFETY: by the contract.
    if is_forked_child() || unsafe { has(condition.cast(), &COND_SHARED) } {
        return None;
    }
    let deadline = match limit.deadline() {
        Ok(deadline) => deadline,
        Err(error) => return Some(error),
    };
    let _waits = Waits::new();
    let word = AtomicU32::new(0);
    let here = &raw const word;
    let queue = queue(condition as usize);
    queue.lock().push_back(Entry { condition: condition as usize, sleeper: Sleeper::Thread(here) });
    let leave = || {
        let mut queue = queue.lock();
        let entries = queue.len();
        queue.retain(|entry| !matches!(entry.sleeper, Sleeper::Thread(other) if other == here));
        queue.len() < entries
    };
    // SAFETY: by the contract.
    let error = unsafe { mutex_unlock(mutex) };
    if error != 0 {
        leave();
        return Some(error);
    }
    let mut timed_out = false;
    while word.load(Ordering::Acquire) == 0 {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            // Not there any more: signalled in the last moment.
            timed_out = leave();
            break;
        }
        futex::sleep_thread(&word, 0, left);
    }
    // Whoever has woken this thread has held the lock until it was done with the word.
    drop(queue.lock());
    // SAFETY: by the contract.
    let relocked = unsafe { real::pthread_mutex_lock(mutex) };
    Some(match (relocked, timed_out) {
        (0, true) => libc::ETIMEDOUT,
        (relocked, _) => relocked,
    })
}

/// In a `pthread_once_t` of glibc's: the initialisation runs, or is over.
const ONCE_RUNNING: u32 = 1;
const ONCE_DONE: u32 = 2;

/// The initialisations that fibers run now.
static INITIALISING: Lock<Vec<usize>> = Lock::new(Vec::new());

/// `pthread_once` in a fiber: an initialisation may wait, and whoever needs it meanwhile waits as a fiber, too.
///
/// # Safety
/// As for the function.
pub(crate) unsafe fn once(
    current: Current<'_>,
    control: *mut pthread_once_t,
    initialise: extern "C-unwind" fn(),
) -> c_int {
    /// Ends the turn also when the initialisation unwinds, as C++ allows.
    struct Turn(usize);
    impl Drop for Turn {
        fn drop(&mut self) {
            INITIALISING.lock().retain(|other| *other != self.0);
            released(self.0, Next::All);
        }
    }
    let address = control as usize;
    // SAFETY: by the contract; glibc changes the word atomically.
    let word = unsafe { AtomicU32::from_ptr(control.cast()) };
    let mut took_turn = false;
    let mut take_turn = || {
        let state = word.load(Ordering::Acquire);
        if (state & ONCE_DONE) != 0 {
            return 0;
        }
        let mut initialising = INITIALISING.lock();
        if initialising.contains(&address) || (state & ONCE_RUNNING) != 0 {
            return libc::EBUSY;
        }
        initialising.push(address);
        took_turn = true;
        0
    };
    if take_turn() == libc::EBUSY {
        // A thread that runs it wakes nobody here, so it is looked at often.
        acquire(current, address, OTHER, true, Limit::NONE, take_turn);
    }
    let _turn = took_turn.then(|| Turn(address));
    // SAFETY: by the contract.
    unsafe { real::pthread_once(control, initialise) }
}

/// Makes a call of pthread's on the blocking pool, where the calling thread does not matter. It is not interrupted: it knows no such
/// error.
///
/// # Safety
/// The arguments stay valid while the fiber waits.
pub(crate) unsafe fn on_pool<A: Copy>(arguments: A, call: impl Fn(A) -> c_int + Send) -> c_int {
    struct Borrowed<A>(A);
    // SAFETY: by the contract of the function around it.
    unsafe impl<A> Send for Borrowed<A> {}
    let arguments = Borrowed(arguments);
    squall_fiber::run_blocking(move || {
        // The whole, not the pointers inside, which are not `Send`.
        let arguments = arguments;
        call(arguments.0)
    })
}
