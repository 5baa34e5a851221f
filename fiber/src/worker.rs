//! One worker: its queues of ready fibers, timers, a driver, and the loop that runs fibers.
//!
//! `Worker` is shared; the part marked as the owner's is touched only by the thread that runs the loop, which includes
//! the fibers running on it. Others hand fibers in through the inbox, and steal from the queue.

use crate::context;
use crate::driver::{Driver, Unpark};
use crate::fiber::{AbortOnUnwind, Body, Inner, Ready, Suspend, Tls, Wake, Waker};
use crate::lock::Lock;
use crate::metrics::WorkerStats;
use crate::overflow::AlternateStack;
use crate::probe;
use crate::queue::{StealQueue, Turn};
use crate::reference::Spare;
use crate::scheduler::{Shared, take_ids};
use crate::stack::StackCache;
use crate::sys;
use crate::timer::Timers;
use crate::tls::TlsCache;
use crate::watchdog;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After so many fibers the worker looks at its timers, its driver and the shared queue, so that a flood of ready fibers
/// starves neither I/O nor sleepers nor fibers that nobody has taken yet.
const RUNS_BETWEEN_POLLS: u32 = 61;
/// The most fibers whose memory a worker keeps for new ones.
const SPARES_MAX: usize = 2048;
/// Ids that a worker takes at a time.
const IDS: u64 = 64;
/// How long a worker looks for work before it sleeps: less than the 50 to 100 microseconds that a sleeping virtual processor takes
/// to wake.
const SPIN: Duration = Duration::from_micros(30);
/// After spins that found nothing so many sleeps come without one; doubled each time, up to the last.
const SLEEPS_WITHOUT_SPIN_MAX: u32 = 256;

/// Runs fibers or looks for some.
const AWAKE: u8 = 0;
/// Asleep, or about to be: who queues something for it must wake it.
const SLEEPING: u8 = 1;
/// As awake, and `Shared::searchers` counts it until it has found something to run, or nothing.
const WOKEN_TO_SEARCH: u8 = 2;

/// What only the thread that runs the loop may touch, which includes the fibers that run on it.
struct Owned {
    /// Ready fibers that must run here, each with the turn at which everything that was in `queue` before it has been taken.
    pinned: VecDeque<(Turn, Ready)>,
    stacks: StackCache,
    blocks: TlsCache,
    ids: Range<u64>,
    /// Memory for fibers to come.
    spares: Vec<Spare>,
}

pub(crate) struct Worker {
    pub(crate) index: usize,
    owned: UnsafeCell<Owned>,
    /// Ready fibers that any worker may run. Pushed and popped by the owner.
    queue: StealQueue<Inner>,
    /// A lock, because whoever ends a wait cancels its timer.
    pub(crate) timers: Lock<Timers<Waker>>,
    driver: UnsafeCell<Box<dyn Driver>>,
    /// The driver says which fiber runs next.
    driver_picks: bool,
    unparker: Arc<dyn Unpark>,
    inbox: Lock<Vec<Ready>>,
    inbox_len: AtomicUsize,
    /// `SLEEPING` from before the last look at the queues until the driver's poll has returned or somebody has unparked it.
    sleep: AtomicU8,
    pub(crate) switches: AtomicU64,
    pub(crate) parks: AtomicU64,
    pub(crate) steals: AtomicU64,
    pub(crate) stats: WorkerStats,
    /// The kernel's id of the thread that runs the loop; 0 before and after.
    thread_id: AtomicI32,
}

// SAFETY: `owned` and `driver` are touched only on the thread that runs this worker's loop (see `owned()`); the rest is made
// to be shared.
unsafe impl Sync for Worker {}
// SAFETY: the worker is built on one thread and run on another; nothing in it is bound to a thread.
unsafe impl Send for Worker {}

impl Worker {
    /// `has_others`: the scheduler has more workers than this one.
    pub(crate) fn new(index: usize, has_others: bool, driver: Box<dyn Driver>) -> Self {
        Self {
            index,
            owned: UnsafeCell::new(Owned {
                pinned: VecDeque::new(),
                stacks: StackCache::new(),
                blocks: TlsCache::new(),
                ids: 0..0,
                spares: Vec::new(),
            }),
            queue: StealQueue::new(has_others),
            timers: Lock::new(Timers::new()),
            unparker: driver.unparker(),
            driver_picks: driver.picks(),
            driver: UnsafeCell::new(driver),
            inbox: Lock::new(Vec::new()),
            inbox_len: AtomicUsize::new(0),
            sleep: AtomicU8::new(AWAKE),
            switches: AtomicU64::new(0),
            parks: AtomicU64::new(0),
            steals: AtomicU64::new(0),
            stats: WorkerStats::default(),
            thread_id: AtomicI32::new(0),
        }
    }

    /// Calls `f` on the owner's part.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker, and `f` does not switch fibers or call this again.
    #[inline(always)]
    unsafe fn owned<R>(&self, f: impl FnOnce(&mut Owned) -> R) -> R {
        // SAFETY: one thread, no re-entry: the only reference.
        f(unsafe { &mut *self.owned.get() })
    }

    /// The driver, for a fiber that runs on this worker.
    ///
    /// # Safety
    /// The caller is a fiber on the thread that runs this worker: the loop borrows the driver mutably only while it polls,
    /// when no fiber runs.
    pub(crate) unsafe fn driver(&self) -> &dyn Driver {
        // SAFETY: see above.
        unsafe { &**self.driver.get() }
    }

    /// An id for a new fiber.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker.
    #[inline]
    pub(crate) unsafe fn take_id(&self) -> u64 {
        // SAFETY: on the owner's thread.
        unsafe {
            self.owned(|owned| {
                if owned.ids.is_empty() {
                    owned.ids = take_ids(IDS);
                }
                owned.ids.next().expect("a range of ids is not empty")
            })
        }
    }

    /// Memory for a new fiber, if there is some.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker.
    #[inline]
    pub(crate) unsafe fn take_spare(&self) -> Option<Spare> {
        // SAFETY: on the owner's thread.
        unsafe { self.owned(|owned| owned.spares.pop()) }
    }

    /// Takes back what a fiber lay in.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker.
    pub(crate) unsafe fn keep_spare(&self, spare: Spare) {
        // SAFETY: on the owner's thread.
        unsafe {
            self.owned(|owned| {
                if owned.spares.len() < SPARES_MAX {
                    owned.spares.push(spare);
                }
            });
        }
    }

    /// Hands a ready fiber over from another thread.
    pub(crate) fn push_remote(&self, fiber: Ready) {
        // SAFETY: the fiber is in hand, so it has not ended. Kept here, because it may run and end, and its scheduler with it, while this
        // worker is still being woken.
        let scheduler = unsafe { fiber.scheduler().keep() };
        {
            let mut inbox = self.inbox.lock();
            inbox.push(fiber);
            self.inbox_len.store(inbox.len(), Ordering::SeqCst);
        }
        self.unpark(&scheduler, false);
    }

    /// Queues a ready fiber here.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker.
    #[inline]
    pub(crate) unsafe fn push_local(&self, fiber: Ready) {
        // SAFETY: on the owner's thread, with the fiber in hand; nothing inside switches fibers.
        unsafe {
            if fiber.may_move() && !self.driver_picks {
                self.queue.push(fiber.into_raw());
            } else {
                self.owned(|owned| owned.pinned.push_back((self.queue.turn_of_next(), fiber)));
            }
        }
    }

    /// Takes the fibers that are meant out of every queue.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker, the only one of its scheduler.
    pub(crate) unsafe fn forget_queued(&self, shared: &Shared, is_meant: impl Fn(&Inner) -> bool) {
        self.drain_inbox();
        // SAFETY: on the owner's thread; queues hold what `push_local` put there.
        unsafe {
            while shared.take_injected(self) {}
            self.owned(|owned| owned.pinned.retain(|(_, fiber)| !is_meant(fiber)));
            for _ in 0..self.queue.len() {
                let fiber = self.queue.pop().map(|raw| Ready::from_raw(raw));
                if let Some(fiber) = fiber.filter(|fiber| !is_meant(fiber)) {
                    self.queue.push(fiber.into_raw());
                }
            }
        }
    }

    /// How many fibers another worker could take from here.
    pub(crate) fn stealable_len(&self) -> usize {
        self.queue.len()
    }

    /// Ends the worker's sleep, if it sleeps. True if it did. `to_search`: `Shared::searchers` has counted it.
    pub(crate) fn unpark(&self, shared: &Shared, to_search: bool) -> bool {
        // A worker that is awake looks at its inbox before it sleeps: no system call needed.
        let woken = if to_search { WOKEN_TO_SEARCH } else { AWAKE };
        if self.sleep.load(Ordering::SeqCst) != SLEEPING
            || self.sleep.compare_exchange(SLEEPING, woken, Ordering::SeqCst, Ordering::SeqCst).is_err()
        {
            return false;
        }
        shared.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.unparker.unpark();
        true
    }

    /// Runs fibers on the calling thread until the scheduler stops and the last fiber has ended.
    pub(crate) fn run(&self, shared: &Arc<Shared>) {
        // The fibers of a worker that has gone would wait for ever, and so would everybody who waits for them.
        let _guard = AbortOnUnwind("a worker panicked");
        let _alternate_stack = AlternateStack::install();
        probe::listen();
        self.thread_id.store(sys::thread_id(), Ordering::SeqCst);
        watchdog::worker_woke();
        context::set_worker(Arc::as_ptr(shared), self.index);
        let mut runs = 0u32;
        let mut spin = Spin::new();
        // It was woken to look for work and has not found any yet.
        let mut searching = false;
        loop {
            if runs.is_multiple_of(RUNS_BETWEEN_POLLS) {
                self.poll(Some(Duration::ZERO));
                // SAFETY: on the owner's thread.
                unsafe { shared.take_injected(self) };
                if shared.has_injected() {
                    shared.wake_searcher();
                }
                shared.wake_thief_for(self.index);
            }
            runs = runs.wrapping_add(1);
            self.drain_inbox();
            let next = self.next(shared);
            if searching {
                searching = false;
                shared.searchers.fetch_sub(1, Ordering::SeqCst);
                // While this one searched nobody else was woken, and where it has found something there may be more.
                if next.is_some() && (shared.has_injected() || self.stealable_len() > 0) {
                    shared.wake_searcher();
                }
            }
            match next {
                Some(fiber) => self.run_fiber(shared, fiber),
                None if shared.is_finished() => {
                    // The others may have looked before the last fiber ended.
                    shared.unpark_all();
                    break;
                }
                None => {
                    searching = self.idle(shared, &mut spin);
                    runs = 1;
                }
            }
        }
        // SAFETY: on the owner's thread, and no fiber runs any more.
        unsafe {
            (*self.driver.get()).close();
            self.owned(|owned| {
                owned.stacks = StackCache::new();
                owned.blocks = TlsCache::new();
            });
        }
        context::set_worker(core::ptr::null(), 0);
        self.thread_id.store(0, Ordering::SeqCst);
    }

    /// The kernel's id of its thread; 0 if it has none.
    pub(crate) fn thread_id(&self) -> i32 {
        self.thread_id.load(Ordering::SeqCst)
    }

    /// Whether it runs fibers or looks for some.
    pub(crate) fn is_awake(&self) -> bool {
        self.thread_id() != 0 && self.sleep.load(Ordering::SeqCst) != SLEEPING
    }

    /// Fibers that are ready to run here, but for pinned ones that have come since the worker looked last.
    pub(crate) fn ready_len(&self) -> usize {
        self.queue.len() + self.inbox_len.load(Ordering::Relaxed) + self.stats.pinned()
    }

    fn next(&self, shared: &Shared) -> Option<Ready> {
        if self.driver_picks {
            return self.next_picked(shared);
        }
        if let Some(fiber) = self.next_local() {
            return Some(fiber);
        }
        // SAFETY: on the owner's thread.
        if unsafe { shared.take_injected(self) } {
            return self.next_local();
        }
        self.steal(shared)
    }

    /// Takes the fiber that has been ready longest, of either queue: if they took turns, the only fiber of one would run as often as all of the
    /// other together.
    #[inline]
    fn next_local(&self) -> Option<Ready> {
        // SAFETY: on the owner's thread; the queue holds what `push_local` put there.
        unsafe {
            let is_due = |pinned: &mut (Turn, Ready)| self.queue.has_reached(pinned.0);
            if let Some((_, fiber)) = self.owned(|owned| owned.pinned.pop_front_if(is_due)) {
                return Some(fiber);
            }
            // Not due means that the queue had something; thieves may have taken it since.
            match self.queue.pop() {
                Some(raw) => Some(Ready::from_raw(raw)),
                None => self.owned(|owned| owned.pinned.pop_front()).map(|(_, fiber)| fiber),
            }
        }
    }

    /// Every fiber that is ready is in the local queue, and the driver takes its choice.
    fn next_picked(&self, shared: &Shared) -> Option<Ready> {
        // SAFETY: on the owner's thread.
        while unsafe { shared.take_injected(self) } {}
        // SAFETY: on the owner's thread, and no fiber runs while the loop is here.
        let (driver, ready) = unsafe { (&mut *self.driver.get(), self.owned(|owned| owned.pinned.len())) };
        if ready == 0 {
            return None;
        }
        let index = driver.pick(ready);
        // SAFETY: on the owner's thread.
        unsafe { self.owned(|owned| owned.pinned.remove(index)) }.map(|(_, fiber)| fiber)
    }

    /// Takes fibers from other workers: half of a queue, or what has been handed to a worker that does not come to look.
    fn steal(&self, shared: &Shared) -> Option<Ready> {
        let workers = &shared.workers;
        // From the next one on, so that not all thieves begin at the same victim.
        let others = (1..workers.len()).map(|offset| &workers[(self.index + offset) % workers.len()]);
        for victim in others {
            // SAFETY: on the owner's thread; queues hold what `push_local` put there.
            let first = unsafe { victim.queue.steal_into(&self.queue).map(|raw| Ready::from_raw(raw)) };
            if let Some(fiber) = first.or_else(|| victim.steal_from_inbox()) {
                self.steals.store(self.steals.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return Some(fiber);
            }
        }
        None
    }

    fn steal_from_inbox(&self) -> Option<Ready> {
        if self.inbox_len.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut inbox = self.inbox.lock();
        // SAFETY: what is in an inbox is in the hand of whoever holds its lock.
        let index = inbox.iter().position(|fiber| unsafe { fiber.may_move() })?;
        let fiber = inbox.remove(index);
        self.inbox_len.store(inbox.len(), Ordering::SeqCst);
        Some(fiber)
    }

    fn drain_inbox(&self) {
        if self.inbox_len.load(Ordering::SeqCst) == 0 {
            return;
        }
        let fibers = {
            let mut inbox = self.inbox.lock();
            self.inbox_len.store(0, Ordering::SeqCst);
            core::mem::take(&mut *inbox)
        };
        for fiber in fibers {
            // SAFETY: on the owner's thread.
            unsafe { self.push_local(fiber) };
        }
    }

    /// Whether there is anything that this worker could run or must look at. Called with `sleep` set before it sleeps: whoever queued
    /// something before that is seen here; whoever does so after it sees `SLEEPING`.
    fn has_work(&self, shared: &Shared) -> bool {
        self.inbox_len.load(Ordering::SeqCst) != 0
            || shared.has_injected()
            || shared.workers.iter().any(|worker| worker.queue.len() != 0)
    }

    /// Nothing to run: looks for a moment longer if that has been worth it lately, then sleeps. True if it was woken to look for
    /// work.
    fn idle(&self, shared: &Shared, spin: &mut Spin) -> bool {
        if spin.is_worth_it() && !self.driver_picks {
            let found = self.spin(shared);
            spin.learn(found);
            if found {
                return false;
            }
        }
        shared.sleepers.fetch_add(1, Ordering::SeqCst);
        self.sleep.store(SLEEPING, Ordering::SeqCst);
        if self.has_work(shared) || shared.is_finished() {
            self.poll(Some(Duration::ZERO));
        } else {
            self.parks.fetch_add(1, Ordering::Relaxed);
            let next = self.timers.lock().next_deadline();
            self.poll(next.map(|deadline| deadline.saturating_duration_since(self.now())));
        }
        let sleep = self.sleep.swap(AWAKE, Ordering::SeqCst);
        watchdog::worker_woke();
        if sleep == SLEEPING {
            shared.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
        sleep == WOKEN_TO_SEARCH
    }

    /// Looks for work for a while. False if there was none.
    fn spin(&self, shared: &Shared) -> bool {
        let begin = Instant::now();
        loop {
            self.poll(Some(Duration::ZERO));
            // SAFETY: on the owner's thread.
            let has_pinned = unsafe { self.owned(|owned| !owned.pinned.is_empty()) };
            if has_pinned || self.has_work(shared) {
                return true;
            }
            if begin.elapsed() >= SPIN {
                return false;
            }
            // Whoever else waits for this processor goes first: it may be the one who makes the work that this worker waits for.
            sys::yield_thread();
        }
    }

    /// Lets the driver wait, then queues the fibers whose time has come.
    fn poll(&self, timeout: Option<Duration>) {
        // SAFETY: on the owner's thread, and no fiber runs while the loop is here.
        let driver = unsafe { &mut *self.driver.get() };
        if timeout != Some(Duration::ZERO) || driver.has_events() {
            driver.poll(timeout);
        }
        // SAFETY: on the owner's thread.
        self.stats.refresh(unsafe { self.owned(|owned| owned.pinned.len()) });
        if self.timers.lock().next_deadline().is_none() {
            return;
        }
        let now = self.now();
        loop {
            // Outside the lock: waking cancels the fiber's timer, which needs it.
            let expired = self.timers.lock().pop_expired(now);
            let Some(waker) = expired else { break };
            waker.wake(Wake::TimedOut);
        }
    }

    fn now(&self) -> Instant {
        // SAFETY: on the owner's thread, in its loop.
        unsafe { (*self.driver.get()).now() }
    }

    /// Inlined into the loop: see `arch::switch`.
    #[inline(always)]
    fn run_fiber(&self, shared: &Shared, fiber: Ready) {
        fiber.home.store(self.index, Ordering::Relaxed);
        self.switches.store(self.switches.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // SAFETY: the fiber is in hand, so its body is this worker's.
        let body = unsafe { &mut *fiber.body.get() };
        if body.stack.is_none() {
            self.start(&fiber, body);
        }
        let suspend = match &body.tls {
            // SAFETY: the fiber is in hand and has been prepared.
            Some(tls) => unsafe { fiber.resume(Some(tls.thread_pointer())) },
            None => {
                context::set_current(fiber.as_ptr());
                // SAFETY: as above.
                let suspend = unsafe { fiber.resume(None) };
                context::set_current(core::ptr::null());
                suspend
            }
        };
        match suspend {
            // SAFETY: on the owner's thread.
            Suspend::Yield => unsafe { self.push_local(fiber) },
            Suspend::Wait { deadline } => self.park(fiber, deadline),
            Suspend::End => self.finish(shared, fiber),
        }
    }

    fn park(&self, fiber: Ready, deadline: Option<Instant>) {
        fiber.trace.waits(self.stats.now_ms());
        self.stats.absorb(&fiber.hooks);
        if let Some(deadline) = deadline {
            let waker = fiber.waker_of_current_wait();
            let id = self.timers.lock().insert(deadline, waker);
            // SAFETY: the fiber is in hand until it is parked.
            unsafe { *fiber.timer.get() = Some((self.index, id)) };
        }
        if let Some(fiber) = fiber.park() {
            // Woken between its decision to wait and here.
            // SAFETY: still in hand, and on the owner's thread.
            unsafe {
                fiber.scheduler().forget_timer(&fiber);
                self.push_local(fiber);
            }
        }
    }

    /// Gives a new fiber a stack and thread-locals.
    #[inline(never)]
    fn start(&self, fiber: &Ready, body: &mut Body) {
        // SAFETY: on the owner's thread.
        let (stack, tls) = unsafe {
            self.owned(|owned| {
                let tls = (fiber.tls == Tls::Private).then(|| owned.blocks.acquire());
                (owned.stacks.acquire(fiber.stack_bytes), tls)
            })
        };
        let stack = match stack {
            Ok(stack) => stack,
            // The join handle has no error to return for a fiber that cannot start: the process ends, as for any memory it
            // lacks.
            Err(error) => panic!("no memory for a fiber's stack of {} bytes: {error}", fiber.stack_bytes),
        };
        let guard = stack.guard_range();
        fiber.guard_start.store(guard.start, Ordering::Relaxed);
        fiber.guard_end.store(guard.end, Ordering::Relaxed);
        body.tls = tls.map(|block| block.expect("no memory for a fiber's thread-local storage"));
        // SAFETY: the fiber is in hand and new; the stack stays in its body until it has ended.
        unsafe { fiber.prepare(&stack) };
        body.stack = Some(stack);
    }

    fn finish(&self, shared: &Shared, fiber: Ready) {
        // SAFETY: the body is this worker's, as in `run_fiber`.
        let body = unsafe { &mut *fiber.body.get() };
        let (stack, tls) = (body.stack.take(), body.tls.take());
        fiber.trace.ended();
        // SAFETY: on the owner's thread.
        unsafe {
            self.owned(|owned| {
                if let Some(stack) = stack {
                    owned.stacks.release(stack);
                }
                if let Some(tls) = tls {
                    owned.blocks.release(tls);
                }
            });
        }
        self.stats.absorb(&fiber.hooks);
        // SAFETY: the fiber is in hand for the last time, and on the owner's thread.
        unsafe { shared.retire(self.index, fiber) };
    }
}

/// Whether spinning before a sleep has been worth it lately. On a machine with more threads than processors it is not, and takes
/// time from those who have work; so each failure makes the next attempt rarer.
struct Spin {
    sleeps_left: u32,
    penalty: u32,
    /// The process has more than one processor: on a single one nobody could make work meanwhile.
    has_others: bool,
}

impl Spin {
    fn new() -> Self {
        let has_others = std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1);
        Self { sleeps_left: 0, penalty: 0, has_others }
    }

    fn is_worth_it(&mut self) -> bool {
        if self.sleeps_left == 0 {
            return self.has_others;
        }
        self.sleeps_left -= 1;
        false
    }

    fn learn(&mut self, found: bool) {
        if found {
            self.penalty /= 2;
        } else {
            self.penalty = (2 * self.penalty).clamp(1, SLEEPS_WITHOUT_SPIN_MAX);
            self.sleeps_left = self.penalty;
        }
    }
}
