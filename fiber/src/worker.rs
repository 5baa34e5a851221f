//! One worker: a run queue, timers, a driver, and the loop that runs fibers.
//!
//! `Worker` is shared; the part marked as the owner's is touched only by the thread that runs the loop, which includes
//! the fibers running on it. Others hand fibers in through the inbox.

use crate::arch;
use crate::context;
use crate::driver::{Driver, Unpark};
use crate::fiber::{AbortOnUnwind, Body, FiberCoroutine, Inner, Suspend, Tls, Wake, Waker};
use crate::lock::Lock;
use crate::scheduler::Shared;
use crate::stack;
use crate::timer::Timers;
use crate::tls::TlsBlock;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use corosensei::{Coroutine, CoroutineResult};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// After so many fibers the worker looks at its timers, its driver and the shared queue, so that a flood of ready fibers
/// starves neither I/O nor sleepers nor fibers that nobody has taken yet.
const RUNS_BETWEEN_POLLS: u32 = 61;

/// What only the thread that runs the loop may touch.
struct Owned {
    queue: VecDeque<Arc<Inner>>,
    timers: Timers<Waker>,
}

pub(crate) struct Worker {
    pub(crate) index: usize,
    owned: UnsafeCell<Owned>,
    driver: UnsafeCell<Box<dyn Driver>>,
    /// The driver says which fiber runs next.
    driver_picks: bool,
    unparker: Arc<dyn Unpark>,
    inbox: Lock<Vec<Arc<Inner>>>,
    inbox_len: AtomicUsize,
    /// True from before the last look at the queues until the driver's poll has returned or somebody has unparked it.
    pub(crate) sleeping: AtomicBool,
    pub(crate) switches: AtomicU64,
    pub(crate) parks: AtomicU64,
}

// SAFETY: `owned` and `driver` are touched only on the thread that runs this worker's loop (see `owned()`); the rest is made
// to be shared.
unsafe impl Sync for Worker {}
// SAFETY: the worker is built on one thread and run on another; nothing in it is bound to a thread.
unsafe impl Send for Worker {}

impl Worker {
    pub(crate) fn new(index: usize, driver: Box<dyn Driver>) -> Self {
        Self {
            index,
            owned: UnsafeCell::new(Owned { queue: VecDeque::new(), timers: Timers::new() }),
            unparker: driver.unparker(),
            driver_picks: driver.picks(),
            driver: UnsafeCell::new(driver),
            inbox: Lock::new(Vec::new()),
            inbox_len: AtomicUsize::new(0),
            sleeping: AtomicBool::new(false),
            switches: AtomicU64::new(0),
            parks: AtomicU64::new(0),
        }
    }

    /// Calls `f` on the owner's part.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker, and `f` does not switch fibers or call this again.
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

    /// Hands a runnable fiber over from another thread.
    pub(crate) fn push_remote(&self, fiber: Arc<Inner>) {
        {
            let mut inbox = self.inbox.lock();
            inbox.push(fiber);
            self.inbox_len.store(inbox.len(), Ordering::SeqCst);
        }
        self.unpark();
    }

    /// Queues a fiber that this worker has parked and that has been woken, or that is new.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker.
    pub(crate) unsafe fn push_local(&self, fiber: Arc<Inner>) {
        // SAFETY: on the owner's thread; nothing inside switches fibers.
        unsafe {
            self.owned(|owned| {
                cancel_timer(owned, &fiber);
                owned.queue.push_back(fiber);
            });
        }
    }

    /// Takes the fibers that are meant out of every queue.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker, the only one of its scheduler.
    pub(crate) unsafe fn forget_queued(&self, shared: &Shared, is_meant: impl Fn(&Inner) -> bool) {
        self.drain_inbox();
        while let Some(fiber) = shared.pop_injected() {
            // SAFETY: on the owner's thread.
            unsafe { self.push_local(fiber) };
        }
        // SAFETY: on the owner's thread; dropping an Arc that the register holds, too, runs nothing.
        unsafe { self.owned(|owned| owned.queue.retain(|fiber| !is_meant(fiber))) };
    }

    /// Cancels the fiber's timer, if it has one.
    ///
    /// # Safety
    /// The caller is on the thread that runs this worker, the fiber's home.
    pub(crate) unsafe fn forget_timer(&self, fiber: &Arc<Inner>) {
        // SAFETY: on the owner's thread; nothing inside switches fibers.
        unsafe { self.owned(|owned| cancel_timer(owned, fiber)) };
    }

    /// Ends the worker's sleep, if it sleeps. True if it did.
    pub(crate) fn unpark(&self) -> bool {
        // A worker that is awake looks at its inbox before it sleeps: no system call needed.
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            self.unparker.unpark();
            return true;
        }
        false
    }

    /// Runs fibers on the calling thread until the scheduler stops and the last fiber has ended.
    pub(crate) fn run(&self, shared: &Arc<Shared>) {
        // The fibers of a worker that has gone would wait for ever, and so would everybody who waits for them.
        let _guard = AbortOnUnwind("a worker panicked");
        context::set_worker(shared, self.index);
        let mut runs = 0u32;
        loop {
            if runs.is_multiple_of(RUNS_BETWEEN_POLLS) {
                self.poll(Some(Duration::ZERO));
                self.share_surplus(shared);
            }
            runs = runs.wrapping_add(1);
            self.drain_inbox();
            let from_shared_first = runs.is_multiple_of(RUNS_BETWEEN_POLLS);
            match self.next(shared, from_shared_first) {
                Some(fiber) => self.run_fiber(fiber),
                None if shared.is_finished() => break,
                None => {
                    self.sleep(shared);
                    runs = 1;
                }
            }
        }
        // SAFETY: on the owner's thread, and no fiber runs any more.
        unsafe { (*self.driver.get()).close() };
        context::set_worker(core::ptr::null(), 0);
    }

    fn next(&self, shared: &Shared, from_shared_first: bool) -> Option<Arc<Inner>> {
        if self.driver_picks {
            return self.next_picked(shared);
        }
        if from_shared_first && let Some(fiber) = shared.pop_injected() {
            return Some(fiber);
        }
        // SAFETY: on the owner's thread.
        unsafe { self.owned(|owned| owned.queue.pop_front()) }.or_else(|| shared.pop_injected())
    }

    /// Every fiber that is ready is in the local queue, and the driver takes its choice.
    fn next_picked(&self, shared: &Shared) -> Option<Arc<Inner>> {
        while let Some(fiber) = shared.pop_injected() {
            // SAFETY: on the owner's thread.
            unsafe { self.push_local(fiber) };
        }
        // SAFETY: on the owner's thread, and no fiber runs while the loop is here.
        let (driver, queue_len) = unsafe { (&mut *self.driver.get(), self.owned(|owned| owned.queue.len())) };
        if queue_len == 0 {
            return None;
        }
        let index = driver.pick(queue_len);
        // SAFETY: on the owner's thread.
        unsafe { self.owned(|owned| owned.queue.remove(index)) }
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

    /// While others sleep, gives half of what waits here to the shared queue.
    fn share_surplus(&self, shared: &Shared) {
        if !shared.has_sleepers_besides(self.index) {
            return;
        }
        // SAFETY: on the owner's thread.
        let surplus = unsafe {
            self.owned(|owned| {
                let keep = owned.queue.len().div_ceil(2);
                let (give, stay): (VecDeque<_>, VecDeque<_>) =
                    owned.queue.drain(keep..).partition(|fiber| !fiber.pinned);
                owned.queue.extend(stay);
                give
            })
        };
        for fiber in surplus {
            shared.inject(fiber);
        }
    }

    fn sleep(&self, shared: &Shared) {
        self.sleeping.store(true, Ordering::SeqCst);
        // Whoever queued something before the store above is seen here; whoever does so after it sees `sleeping`.
        let work_left =
            self.inbox_len.load(Ordering::SeqCst) != 0 || shared.has_injected() || shared.is_finished();
        if work_left {
            self.poll(Some(Duration::ZERO));
        } else {
            self.parks.fetch_add(1, Ordering::Relaxed);
            // SAFETY: on the owner's thread.
            let next = unsafe { self.owned(|owned| owned.timers.next_deadline()) };
            self.poll(next.map(|deadline| deadline.saturating_duration_since(self.now())));
        }
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Lets the driver wait, then queues the fibers whose time has come.
    fn poll(&self, timeout: Option<Duration>) {
        // SAFETY: on the owner's thread, and no fiber runs while the loop is here.
        let driver = unsafe { &mut *self.driver.get() };
        if timeout != Some(Duration::ZERO) || driver.has_events() {
            driver.poll(timeout);
        }
        // SAFETY: on the owner's thread.
        if unsafe { self.owned(|owned| owned.timers.next_deadline()) }.is_none() {
            return;
        }
        let now = self.now();
        // SAFETY: on the owner's thread. The waker is called outside, because it queues the fiber here.
        while let Some(waker) = unsafe { self.owned(|owned| owned.timers.pop_expired(now)) } {
            // SAFETY: rule 3 in fiber.rs: the timer is set, so this is the home worker's thread.
            unsafe { *waker.fiber().timer.get() = None };
            waker.wake(Wake::TimedOut);
        }
    }

    fn now(&self) -> Instant {
        // SAFETY: on the owner's thread, in its loop.
        unsafe { (*self.driver.get()).now() }
    }

    fn run_fiber(&self, fiber: Arc<Inner>) {
        fiber.home.store(self.index, Ordering::Relaxed);
        self.switches.store(self.switches.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        // SAFETY: rule 2 in fiber.rs: the fiber came out of a queue, so its body is this worker's.
        let body = unsafe { &mut *fiber.body.get() };
        if body.coroutine.is_none() {
            start(&fiber, body);
        }
        let coroutine = body.coroutine.as_mut().expect("a queued fiber has a coroutine");
        let result = match (&body.tls, fiber.tls) {
            (Some(tls), Tls::Private) => {
                let thread_pointer = tls.thread_pointer();
                // SAFETY: the block is the fiber's, and only the worker that has the fiber in hand runs on it.
                unsafe { resume_with_thread_pointer(coroutine, thread_pointer) }
            }
            _ => {
                context::set_current(Arc::as_ptr(&fiber));
                let result = coroutine.resume(());
                context::set_current(core::ptr::null());
                result
            }
        };
        match result {
            CoroutineResult::Yield(Suspend::Yield) => {
                // SAFETY: on the owner's thread.
                unsafe { self.owned(|owned| owned.queue.push_back(fiber)) };
            }
            CoroutineResult::Yield(Suspend::Wait { deadline }) => self.park(fiber, deadline),
            CoroutineResult::Return(()) => self.finish(fiber),
        }
    }

    fn park(&self, fiber: Arc<Inner>, deadline: Option<Instant>) {
        if let Some(deadline) = deadline {
            let waker = Inner::waker_of_current_wait(&fiber);
            // SAFETY: on the owner's thread.
            let id = unsafe { self.owned(|owned| owned.timers.insert(deadline, waker)) };
            // SAFETY: rule 3 in fiber.rs: this is the home worker's thread.
            unsafe { *fiber.timer.get() = Some(id) };
        }
        if !fiber.park() {
            // Woken between its decision to wait and here.
            // SAFETY: on the owner's thread.
            unsafe { self.push_local(fiber) };
        }
    }

    fn finish(&self, fiber: Arc<Inner>) {
        // SAFETY: the body is this worker's, as in `run_fiber`.
        let body = unsafe { &mut *fiber.body.get() };
        if let Some(coroutine) = body.coroutine.take() {
            stack::release(coroutine.into_stack());
        }
        if let Some(tls) = body.tls.take() {
            tls.release();
        }
        Shared::retire(fiber);
    }
}

/// Gives a new fiber a stack and thread-locals.
fn start(fiber: &Arc<Inner>, body: &mut Body) {
    let stack = match stack::acquire(fiber.stack_bytes) {
        Ok(stack) => stack,
        // The join handle has no error to return for a fiber that cannot start: the process ends, as for any memory it lacks.
        Err(error) => panic!("no memory for a fiber's stack of {} bytes: {error}", fiber.stack_bytes),
    };
    let guard = stack.guard_range();
    fiber.guard_start.store(guard.start, Ordering::Relaxed);
    fiber.guard_end.store(guard.end, Ordering::Relaxed);
    if fiber.tls == Tls::Private {
        body.tls = TlsBlock::acquire();
        assert!(body.tls.is_some(), "no memory for a fiber's thread-local storage");
    }
    let this = Arc::as_ptr(fiber) as usize;
    body.coroutine = Some(Coroutine::with_stack(stack, move |yielder, ()| {
        // SAFETY: the registry keeps the fiber alive until `finish`, and this is its coroutine.
        unsafe { Inner::main(this as *const Inner, yielder) }
    }));
}

fn cancel_timer(owned: &mut Owned, fiber: &Arc<Inner>) {
    // SAFETY: rule 3 in fiber.rs: the caller is on the home worker's thread.
    if let Some(id) = unsafe { (*fiber.timer.get()).take() } {
        owned.timers.cancel(id);
    }
}

/// Runs the fiber on its own thread-locals until it switches back.
///
/// Kept apart and never inlined: between the two writes nothing may touch a thread-local, because the compiler is free to
/// compute a thread-local's address before the first write and use it after. The worker's own pointer is what it was, so what
/// the caller has cached stays right.
///
/// # Safety
/// `thread_pointer` is that of an initialised block on which nobody else runs.
#[inline(never)]
unsafe fn resume_with_thread_pointer(
    coroutine: &mut FiberCoroutine,
    thread_pointer: usize,
) -> CoroutineResult<Suspend, ()> {
    let own = arch::thread_pointer();
    // SAFETY: by the caller's contract, and back to this thread's own pointer right after.
    unsafe {
        arch::set_thread_pointer(thread_pointer);
        let result = coroutine.resume(());
        arch::set_thread_pointer(own);
        result
    }
}
