//! A scheduler: its workers, the queue they share, and where a fiber goes that has become ready.

use crate::completion::Completion;
use crate::context;
use crate::driver::{Driver, ThreadDriver};
use crate::dump::{self, FiberInfo};
use crate::fiber::{Inner, NewFiber, Ready, Tls, WaitKind};
use crate::handle::{Builder, JoinHandle};
use crate::lock::Lock;
use crate::metrics::{self, SchedulerMetrics};
use crate::overflow;
use crate::reference::FiberRef;
use crate::register::Register;
use crate::task::Task;
use crate::tls;
use crate::watchdog;
use crate::worker::Worker;
use core::any::Any;
use core::fmt;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Once, Weak};
use std::thread;

/// How a scheduler is built.
pub struct SchedulerConfig {
    /// Prefix of the worker threads' names.
    pub name: String,
    /// How many workers; at least 1.
    pub threads: usize,
    /// Whether the calling thread is one of the workers: it begins to work when it calls [`Scheduler::stop`].
    pub use_caller: bool,
    /// Makes the driver of the worker with the given index.
    pub driver: Box<dyn Fn(usize) -> io::Result<Box<dyn Driver>>>,
    /// Anything that the layers above want to find from inside a fiber (see [`crate::Current::extension`]).
    pub extension: Option<&'static (dyn Any + Send + Sync)>,
}

impl Default for SchedulerConfig {
    /// As many workers as processors, no I/O.
    fn default() -> Self {
        Self {
            name: "squall".into(),
            threads: thread::available_parallelism().map_or(1, |n| n.get()),
            use_caller: false,
            driver: Box::new(|_| Ok(Box::<ThreadDriver>::default())),
            extension: None,
        }
    }
}

impl fmt::Debug for SchedulerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SchedulerConfig")
            .field("name", &self.name)
            .field("threads", &self.threads)
            .field("use_caller", &self.use_caller)
            .finish_non_exhaustive()
    }
}

/// What the workers and fibers of one scheduler share.
pub(crate) struct Shared {
    own: Weak<Shared>,
    pub(crate) workers: Box<[Worker]>,
    extension: Option<&'static (dyn Any + Send + Sync)>,
    /// Ready fibers that no worker has: those spawned from outside.
    injected: Lock<VecDeque<Ready>>,
    injected_len: AtomicUsize,
    /// Workers that sleep.
    pub(crate) sleepers: AtomicUsize,
    /// Workers that were woken to look for work and have not found any yet. While there is one, nobody wakes another: it would find the
    /// same work, and waking costs a system call here and tens of microseconds there.
    pub(crate) searchers: AtomicUsize,
    pub(crate) register: Register,
    stopping: AtomicBool,
    stopped: Completion,
}

/// The most fibers that a worker takes from the shared queue at a time.
const INJECTED_BATCH: usize = 32;

impl Shared {
    /// Queues a fiber whose wait has ended: where the caller runs, if the fiber may move there, else on the worker that parked it.
    ///
    /// It goes to the caller's worker because whoever ends a wait has usually just written what the fiber will read, and because a sleeping
    /// worker takes tens of microseconds to wake. If the caller goes on for long, the fiber is stolen.
    pub(crate) fn make_runnable(fiber: Ready) {
        // SAFETY: the fiber is in hand.
        unsafe { fiber.scheduler().forget_timer(&fiber) };
        let home = fiber.home.load(Ordering::Relaxed);
        let here = context::with_worker(|worker| {
            // SAFETY: the fiber is in hand, so it has not ended.
            worker.and_then(|(shared, index)| ptr::eq(shared, unsafe { fiber.scheduler() }).then_some(index))
        });
        match here {
            // SAFETY: the fiber is in hand.
            Some(index) if index == home || unsafe { fiber.may_move() } => {
                // SAFETY: as above. Read before the fiber is queued: another worker may run and end it then. The scheduler is that of
                // the caller, so it stays.
                let shared = unsafe { &*ptr::from_ref(fiber.scheduler()) };
                // SAFETY: `here` says that this is that worker's thread.
                unsafe { shared.workers[index].push_local(fiber) };
                shared.wake_thief_for(index);
            }
            // SAFETY: the fiber is in hand, so it has not ended; `push_remote` keeps the scheduler as long as it uses it.
            _ => unsafe { &*ptr::from_ref(fiber.scheduler()) }.workers[home].push_remote(fiber),
        }
    }

    /// A reference that keeps the scheduler.
    pub(crate) fn keep(&self) -> Arc<Self> {
        self.own.upgrade().expect("a scheduler that has live fibers is kept by its workers")
    }

    /// Cancels the fiber's timer, if it has one.
    ///
    /// # Safety
    /// The fiber is in hand.
    pub(crate) unsafe fn forget_timer(&self, fiber: &Inner) {
        // SAFETY: who has the fiber in hand has its timer.
        if let Some((worker, id)) = unsafe { (*fiber.timer.get()).take() } {
            self.workers[worker].timers.lock().cancel(id);
        }
    }

    /// Wakes a worker to steal from one that has more than it can run next.
    ///
    /// A sleeper that goes to sleep in this very moment may be missed: the owner looks again every few dozen fibers, and the watchdog for an owner
    /// that does not.
    pub(crate) fn wake_thief_for(&self, index: usize) {
        if self.sleepers.load(Ordering::Relaxed) != 0 && self.workers[index].stealable_len() > 1 {
            self.wake_searcher();
        }
    }

    /// Wakes a sleeping worker to look for work, unless one is looking already.
    pub(crate) fn wake_searcher(&self) {
        if self.sleepers.load(Ordering::SeqCst) == 0 || self.searchers.load(Ordering::SeqCst) != 0 {
            return;
        }
        self.searchers.fetch_add(1, Ordering::SeqCst);
        if !self.workers.iter().any(|worker| worker.unpark(self, true)) {
            self.searchers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Puts a fiber where any worker takes it, and wakes one that sleeps.
    fn inject(&self, fiber: Ready) {
        {
            let mut injected = self.injected.lock();
            injected.push_back(fiber);
            self.injected_len.store(injected.len(), Ordering::SeqCst);
        }
        self.wake_searcher();
    }

    /// Moves some of the shared queue to a worker's own. False if there was nothing.
    ///
    /// # Safety
    /// The caller is on the thread that runs `worker`.
    pub(crate) unsafe fn take_injected(&self, worker: &Worker) -> bool {
        if !self.has_injected() {
            return false;
        }
        let mut injected = self.injected.lock();
        // A fair share, so that the first who comes does not take what the others would have to steal back.
        let count = injected.len().div_ceil(self.workers.len()).min(INJECTED_BATCH);
        for fiber in injected.drain(..count) {
            // SAFETY: by the caller's contract.
            unsafe { worker.push_local(fiber) };
        }
        self.injected_len.store(injected.len(), Ordering::SeqCst);
        count > 0
    }

    pub(crate) fn injected_len(&self) -> usize {
        self.injected_len.load(Ordering::Relaxed)
    }

    pub(crate) fn has_injected(&self) -> bool {
        self.injected_len.load(Ordering::SeqCst) != 0
    }

    /// Nothing left to run, ever.
    pub(crate) fn is_finished(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) && self.register.close_if_empty()
    }

    /// The fiber has ended, and its memory has been given back.
    ///
    /// # Safety
    /// The caller is on the thread that runs the worker. The fiber was in hand, and nobody has it in hand from now on.
    #[inline]
    pub(crate) unsafe fn retire(&self, worker: usize, fiber: Ready) {
        // SAFETY: it has been in the register since its spawn.
        let fiber = unsafe { self.register.retire(worker, fiber.as_ptr()) };
        fiber.end(self);
    }

    /// Runs what the worker's loop must not run itself, because it is user code and may wait: in a fiber of that worker, which is
    /// the caller's.
    #[cold]
    pub(crate) fn run_in_a_fiber(&self, worker: usize, f: impl FnOnce() + Send + 'static) {
        if self.register.hold().is_ok() {
            Builder::new().worker(worker).spawn(f);
            self.register.release_hold();
        } else {
            // The scheduler has ended, and with it what the worker has to do.
            f();
        }
    }

    fn unpark_all_if_stopping(&self) {
        if self.stopping.load(Ordering::SeqCst) {
            self.unpark_all();
        }
    }

    pub(crate) fn unpark_all(&self) {
        for worker in &self.workers {
            worker.unpark(self, false);
        }
    }

    fn spawn(&self, builder: Builder, task: Task) -> FiberRef {
        let tls = if tls::support().is_ok() { builder.tls } else { Tls::Shared };
        let here = context::with_worker(|worker| {
            worker.and_then(|(shared, index)| ptr::eq(shared, self).then_some(index))
        });
        let wanted = builder.worker.map(|worker| worker % self.workers.len());
        let inherited = || here.and_then(|_| context::with_current(|current| current?.extension()));
        let home = wanted.or(here).unwrap_or(0);
        // SAFETY: `here` says that this is that worker's thread, and a fiber's call: the worker's loop spawns nothing.
        let (id, spare, slot) = match here.map(|index| (index, &self.workers[index])) {
            // SAFETY: see above.
            Some((index, worker)) => unsafe {
                (worker.take_id(), worker.take_spare(), Ok(self.register.enter(index)))
            },
            None => (take_ids(1).start, None, self.register.enter_from_outside()),
        };
        let Ok(slot) = slot else {
            // SAFETY: nobody will run it. What it has captured must not be lost: others may wait for it to be dropped.
            unsafe { task.discard() };
            panic!("a fiber cannot be started in a scheduler that has stopped");
        };
        let fiber = FiberRef::new_pair(spare, || {
            Inner::new(
                self,
                NewFiber {
                    id,
                    name: builder.name.map(String::into_boxed_str),
                    stack_bytes: builder.stack_bytes,
                    tls,
                    pinned: wanted.is_some(),
                    home,
                    extension: builder.extension.or_else(inherited).or(self.extension),
                    slot,
                    task,
                },
            )
        });
        // SAFETY: slots live as long as the register, and this one is the fiber's.
        unsafe { slot.as_ref() }.store(fiber.as_ptr().cast_mut(), Ordering::Release);
        // SAFETY: the fiber is new, so it is in this function's hand.
        let queued = unsafe { Ready::new(&fiber) };
        match (wanted, here) {
            (Some(index), Some(own)) if index == own => {
                // SAFETY: `here` says that this is that worker's thread.
                unsafe { self.workers[index].push_local(queued) }
            }
            (Some(index), _) => self.workers[index].push_remote(queued),
            (None, Some(index)) => {
                // SAFETY: as above.
                unsafe { self.workers[index].push_local(queued) };
                // Even a single one: behind a fiber that computes for long this worker may not come to it for as long.
                if self.sleepers.load(Ordering::Relaxed) != 0 {
                    self.wake_searcher();
                }
            }
            (None, None) => self.inject(queued),
        }
        fiber
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Ids that are nobody else's.
pub(crate) fn take_ids(count: u64) -> Range<u64> {
    let first = NEXT_ID.fetch_add(count, Ordering::Relaxed);
    first..first + count
}

/// Takes the power from fibers: every fiber of the caller's scheduler that has this very `extension` stops where it is, for ever. Nothing of
/// them is dropped or unwound, their stacks, thread-locals and whatever they own stay allocated, and whoever waits for one of them
/// to end waits for ever: a simulation throws away a whole simulated process that way, with all who could wait. Returns how many there
/// were.
///
/// # Panics
/// Outside a fiber, from one of those fibers, or in a scheduler with several workers, where others could be running.
///
/// # Blocking
/// Never.
pub fn abandon(extension: &'static (dyn Any + Send + Sync)) -> usize {
    let is_meant = |fiber: &Inner| fiber.extension.is_some_and(|own| core::ptr::addr_eq(own, extension));
    assert!(context::in_fiber(), "only a fiber can abandon others");
    context::with_worker(|worker| {
        let (shared, index) = worker.expect("a fiber runs on a worker");
        assert_eq!(shared.workers.len(), 1, "fibers can be abandoned only where no other worker runs them");
        let mut meant = shared.register.all();
        meant.retain(|fiber| is_meant(fiber));
        context::with_current(|current| {
            let own = current.map(|current| current.id());
            assert!(meant.iter().all(|fiber| Some(fiber.id) != own), "a fiber cannot abandon itself");
        });
        // SAFETY: the caller is a fiber on that worker's thread.
        unsafe { shared.workers[index].forget_queued(shared, is_meant) };
        for fiber in &meant {
            // SAFETY: no other worker runs, and none of them runs here: they are in the caller's hand.
            unsafe { shared.forget_timer(fiber) };
            fiber.give_up();
            // SAFETY: on the worker's thread; it was in the register, and nothing else will retire it.
            drop(unsafe { shared.register.retire(index, fiber.as_ptr()) });
        }
        meant.len()
    })
}

/// Runs fibers on a fixed set of worker threads.
///
/// ```
/// use squall_fiber::{Builder, Scheduler, SchedulerConfig};
///
/// let scheduler = Scheduler::new(SchedulerConfig { threads: 2, ..Default::default() }).unwrap();
/// let answer = scheduler.spawn(Builder::new(), || 6 * 7);
/// assert_eq!(answer.join().unwrap(), 42);
/// scheduler.stop();
/// ```
pub struct Scheduler {
    shared: Arc<Shared>,
    use_caller: bool,
    threads: Lock<Vec<thread::JoinHandle<()>>>,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler").field("workers", &self.shared.workers.len()).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// Builds the workers and starts their threads.
    ///
    /// # Errors
    /// When a driver cannot be made or a thread cannot be started.
    ///
    /// # Panics
    /// When `threads` is 0.
    pub fn new(config: SchedulerConfig) -> io::Result<Self> {
        assert!(config.threads > 0, "a scheduler needs at least one worker");
        static ANNOUNCE: Once = Once::new();
        ANNOUNCE.call_once(|| {
            overflow::install_handler();
            context::install_fork_handler();
            if let Err(reason) = tls::support() {
                log::warn!("fibers share their worker's thread-locals and stay on it: {reason}");
            }
        });
        if config.use_caller {
            log::debug!(target: "scheduler", "current thread as called thread");
        }
        let workers: Box<[Worker]> = (0..config.threads)
            .map(|index| Ok(Worker::new(index, config.threads > 1, (config.driver)(index)?)))
            .collect::<io::Result<_>>()?;
        let shared = Arc::new_cyclic(|own| Shared {
            own: own.clone(),
            workers,
            extension: config.extension,
            injected: Lock::new(VecDeque::new()),
            injected_len: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            searchers: AtomicUsize::new(0),
            register: Register::new(config.threads),
            stopping: AtomicBool::new(false),
            stopped: Completion::new(),
        });
        if config.use_caller {
            log::debug!(target: "fiber", "create fiber , id = 0");
            log::debug!(target: "scheduler", "init caller thread's main fiber success");
            log::debug!(target: "scheduler", "init caller thread's caller fiber success");
        }
        log::debug!(target: "", "-------scheduler init success-------");
        metrics::register(&shared);
        watchdog::start();
        let first = usize::from(config.use_caller);
        let threads = (first..config.threads)
            .map(|index| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("{}-{index}", config.name))
                    .spawn(move || shared.workers[index].run(&shared))
            })
            .collect::<io::Result<Vec<_>>>()
            .inspect_err(|_| {
                // Those that did start must not wait for ever for work that never comes.
                shared.stopping.store(true, Ordering::SeqCst);
                shared.unpark_all();
            })?;
        log::debug!(target: "scheduler", "scheduler start");
        Ok(Self { shared, use_caller: config.use_caller, threads: Lock::new(threads) })
    }

    /// Starts a fiber here, from anywhere.
    ///
    /// # Panics
    /// When the scheduler has stopped.
    ///
    /// # Blocking
    /// Never.
    pub fn spawn<F, T>(&self, builder: Builder, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let fiber = self.shared.spawn(builder, Task::new(f));
        // SAFETY: the task was just made of `f`.
        unsafe { JoinHandle::new(fiber) }
    }

    /// Keeps the scheduler going until the hold is dropped, as a live fiber would: for what will spawn fibers later. `None` if
    /// it has stopped.
    pub fn hold(&self) -> Option<Hold> {
        self.shared.register.hold().is_ok().then(|| Hold(Arc::clone(&self.shared)))
    }

    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.shared.workers.len()
    }

    /// Waits until every fiber has ended and every [`Hold`] is gone, then ends the workers. With `use_caller` the calling thread works meanwhile.
    /// Later calls wait for the first and return.
    ///
    /// # Panics
    /// When called from a fiber of this scheduler, which could never end.
    ///
    /// # Blocking
    /// Blocks the thread.
    pub fn stop(&self) {
        let inside =
            context::with_worker(|worker| worker.is_some_and(|(shared, _)| ptr::eq(shared, &*self.shared)));
        assert!(!inside, "a scheduler cannot be stopped from one of its own fibers");
        if self.shared.stopping.swap(true, Ordering::SeqCst) {
            self.shared.stopped.wait(WaitKind::Join, 0);
            return;
        }
        log::debug!(target: "scheduler", "stop");
        self.shared.unpark_all();
        if self.use_caller {
            log::debug!(target: "scheduler", "begin run");
            // A worker needs a thread; if the caller is a fiber of another scheduler, that is one of the blocking pool's.
            crate::run_blocking(|| self.shared.workers[0].run(&self.shared));
        }
        let threads = core::mem::take(&mut *self.threads.lock());
        for thread in threads {
            // A worker's loop runs user code only inside fibers, which catch panics.
            thread.join().expect("a worker's loop does not panic");
        }
        self.shared.stopped.set();
    }

    /// Cancels every fiber that is live now, as [`crate::Fiber::cancel`] does: the way to an orderly end before [`Scheduler::stop`], which
    /// waits for fibers that may wait for ever. Whoever goes on spawning fibers does so.
    ///
    /// # Blocking
    /// Never.
    pub fn cancel_fibers(&self) {
        for fiber in self.shared.register.all() {
            fiber.cancel();
        }
    }

    /// A list of the live fibers, by id.
    pub fn fibers(&self) -> Vec<FiberInfo> {
        dump::list(&self.shared)
    }

    /// Counters since the start.
    pub fn metrics(&self) -> SchedulerMetrics {
        metrics::of_scheduler(&self.shared)
    }
}

/// A promise to a scheduler of fibers to come: it does not end while it is held.
pub struct Hold(Arc<Shared>);

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

impl Hold {
    /// Starts a fiber.
    ///
    /// # Blocking
    /// Never.
    pub fn spawn<F, T>(&self, builder: Builder, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let fiber = self.0.spawn(builder, Task::new(f));
        // SAFETY: the task was just made of `f`.
        unsafe { JoinHandle::new(fiber) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.register.release_hold();
        self.0.unpark_all_if_stopping();
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Calls `f` with the driver of the worker that the calling fiber runs on; `None` outside a fiber.
/// `f` must not suspend the fiber.
pub fn with_driver<R>(f: impl FnOnce(&dyn Driver) -> R) -> Option<R> {
    if !context::in_fiber() {
        return None;
    }
    context::with_worker(|worker| {
        worker.map(|(shared, index)| {
            // SAFETY: the caller is a fiber on that worker's thread.
            f(unsafe { shared.workers[index].driver() })
        })
    })
}

/// Spawns where the caller runs: in its fiber's scheduler, or in the process's default one.
pub(crate) fn spawn_here(builder: Builder, task: Task) -> FiberRef {
    context::with_worker(|worker| match worker {
        Some((shared, _)) => shared.spawn(builder, task),
        None => default_scheduler().shared.spawn(builder, task),
    })
}

type Factory = fn() -> io::Result<Scheduler>;
static FACTORY: Lock<Option<Factory>> = Lock::new(None);

/// Says how the process's default scheduler is made, for `spawn` outside any fiber. The layer that adds I/O calls this before
/// the first such spawn; without it the default scheduler has no I/O.
pub fn set_default_scheduler(factory: Factory) {
    *FACTORY.lock() = Some(factory);
}

fn default_scheduler() -> &'static Scheduler {
    static DEFAULT: std::sync::OnceLock<Scheduler> = std::sync::OnceLock::new();
    DEFAULT.get_or_init(|| {
        let factory = *FACTORY.lock();
        let scheduler = match factory {
            Some(factory) => factory(),
            None => Scheduler::new(SchedulerConfig::default()),
        };
        scheduler.unwrap_or_else(|error| panic!("the default scheduler cannot be started: {error}"))
    })
}
