//! A scheduler: its workers, the queue they share, and the register of live fibers.

use crate::completion::Completion;
use crate::context;
use crate::driver::{Driver, ThreadDriver};
use crate::fiber::{Entry, Fiber, Inner, NewFiber, Tls, WaitKind};
use crate::handle::Builder;
use crate::lock::Lock;
use crate::overflow;
use crate::tls;
use crate::worker::Worker;
use core::any::Any;
use core::fmt;
use core::hash::{BuildHasherDefault, Hasher};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Once};
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

/// Above any number of fibers: set in `live_count` when the workers end, so that whoever spawns a fiber in that moment either has
/// it run or learns that it cannot.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// What the workers and fibers of one scheduler share.
pub(crate) struct Shared {
    pub(crate) workers: Box<[Worker]>,
    extension: Option<&'static (dyn Any + Send + Sync)>,
    /// Runnable fibers that belong to no worker yet.
    injected: Lock<VecDeque<Arc<Inner>>>,
    injected_len: AtomicUsize,
    /// Every fiber that has been spawned and has not ended. It is what keeps a parked fiber's memory.
    live: Lock<HashMap<u64, Arc<Inner>, BuildHasherDefault<IdHasher>>>,
    /// How many of those there are, plus the holds; plus `CLOSED` once a worker has found none after `stop`.
    live_count: AtomicUsize,
    stopping: AtomicBool,
    stopped: Completion,
}

/// Hashes a fiber's id. The ids are our own and consecutive, so one multiplication (Fibonacci hashing) spreads them.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("an id is a u64");
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Shared {
    /// Queues a fiber whose wait has ended on the worker that parked it.
    pub(crate) fn make_runnable(fiber: Arc<Inner>) {
        let home = fiber.home.load(Ordering::Relaxed);
        let here = context::with_worker(|worker| {
            worker.is_some_and(|(shared, index)| Arc::ptr_eq(shared, &fiber.scheduler) && index == home)
        });
        let scheduler = Arc::clone(&fiber.scheduler);
        if here {
            // SAFETY: the check above says that this is the home worker's thread.
            unsafe { scheduler.workers[home].push_local(fiber) };
        } else {
            scheduler.workers[home].push_remote(fiber);
        }
    }

    /// Puts a fiber where any worker takes it, and wakes one that sleeps.
    pub(crate) fn inject(&self, fiber: Arc<Inner>) {
        {
            let mut injected = self.injected.lock();
            injected.push_back(fiber);
            self.injected_len.store(injected.len(), Ordering::SeqCst);
        }
        let _ = self.workers.iter().any(Worker::unpark);
    }

    pub(crate) fn pop_injected(&self) -> Option<Arc<Inner>> {
        if !self.has_injected() {
            return None;
        }
        let mut injected = self.injected.lock();
        let fiber = injected.pop_front();
        self.injected_len.store(injected.len(), Ordering::SeqCst);
        fiber
    }

    pub(crate) fn has_injected(&self) -> bool {
        self.injected_len.load(Ordering::SeqCst) != 0
    }

    pub(crate) fn has_sleepers_besides(&self, index: usize) -> bool {
        self.workers.iter().any(|worker| worker.index != index && worker.sleeping.load(Ordering::Relaxed))
    }

    /// Nothing left to run, ever.
    pub(crate) fn is_finished(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
            && match self.live_count.compare_exchange(0, CLOSED, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => true,
                Err(count) => count >= CLOSED,
            }
    }

    /// Announces a fiber or a hold. False if the workers have ended.
    #[must_use]
    fn enter(&self) -> bool {
        let is_open = self.live_count.fetch_add(1, Ordering::SeqCst) < CLOSED;
        if !is_open {
            self.live_count.fetch_sub(1, Ordering::SeqCst);
        }
        is_open
    }

    fn leave(&self) {
        if self.live_count.fetch_sub(1, Ordering::SeqCst) == 1 && self.stopping.load(Ordering::SeqCst) {
            self.unpark_all();
        }
    }

    /// The fiber has ended, and its memory has been given back.
    pub(crate) fn retire(fiber: Arc<Inner>) {
        let shared = Arc::clone(&fiber.scheduler);
        shared.live.lock().remove(&fiber.id);
        fiber.completion.set();
        drop(fiber);
        shared.leave();
    }

    fn unpark_all(&self) {
        for worker in &self.workers {
            worker.unpark();
        }
    }

    fn spawn(self: &Arc<Self>, builder: &Builder, entry: Entry) -> Arc<Inner> {
        assert!(self.enter(), "a fiber cannot be started in a scheduler that has stopped");
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let tls = if tls::support().is_ok() { builder.tls } else { Tls::Shared };
        let here = context::with_worker(|worker| {
            worker.and_then(|(shared, index)| Arc::ptr_eq(shared, self).then_some(index))
        });
        let wanted = builder.worker.map(|worker| worker % self.workers.len());
        let inherited = || here.and_then(|_| context::with_current(|current| current?.extension()));
        let home = wanted.or(here).unwrap_or(0);
        let fiber = Arc::new(Inner::new(
            Arc::clone(self),
            NewFiber {
                id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
                name: builder.name.clone().map(String::into_boxed_str),
                stack_bytes: builder.stack_bytes,
                tls,
                // A shared-TLS fiber may run anywhere until it starts; from then on it must stay. It never waits in a queue
                // that others take from once it has started, because `wanted` or its first worker has it.
                pinned: wanted.is_some() || tls == Tls::Shared,
                home,
                extension: builder.extension.or_else(inherited).or(self.extension),
                entry,
            },
        ));
        self.live.lock().insert(fiber.id, Arc::clone(&fiber));
        let queued = Arc::clone(&fiber);
        match (wanted, here) {
            // While another worker sleeps it is to have the new fiber: behind one that computes for long, this one may not come to
            // it for as long.
            (None, Some(index)) if self.has_sleepers_besides(index) => self.inject(queued),
            // SAFETY: `here` says that this is that worker's thread.
            (None, Some(index)) => unsafe { self.workers[index].push_local(queued) },
            (Some(index), Some(own)) if index == own => {
                // SAFETY: as above.
                unsafe { self.workers[index].push_local(queued) }
            }
            (Some(index), _) => self.workers[index].push_remote(queued),
            (None, None) => self.inject(queued),
        }
        fiber
    }
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
        let meant: Vec<Arc<Inner>> =
            shared.live.lock().values().filter(|fiber| is_meant(fiber)).cloned().collect();
        context::with_current(|current| {
            let own = current.map(|current| current.id());
            assert!(meant.iter().all(|fiber| Some(fiber.id) != own), "a fiber cannot abandon itself");
        });
        // SAFETY: the caller is a fiber on that worker's thread.
        unsafe { shared.workers[index].forget_queued(shared, is_meant) };
        for fiber in &meant {
            // SAFETY: as above.
            unsafe { shared.workers[index].forget_timer(fiber) };
            fiber.give_up();
            shared.live.lock().remove(&fiber.id);
            shared.leave();
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
            .map(|index| Ok(Worker::new(index, (config.driver)(index)?)))
            .collect::<io::Result<_>>()?;
        let shared = Arc::new(Shared {
            workers,
            extension: config.extension,
            injected: Lock::new(VecDeque::new()),
            injected_len: AtomicUsize::new(0),
            live: Lock::new(HashMap::default()),
            live_count: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            stopped: Completion::new(),
        });
        if config.use_caller {
            log::debug!(target: "fiber", "create fiber , id = 0");
            log::debug!(target: "scheduler", "init caller thread's main fiber success");
            log::debug!(target: "scheduler", "init caller thread's caller fiber success");
        }
        log::debug!(target: "", "-------scheduler init success-------");
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
    pub fn spawn<F, T>(&self, builder: Builder, f: F) -> crate::JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        crate::handle::spawn_with(f, |entry| Fiber(self.shared.spawn(&builder, entry)))
    }

    /// Keeps the scheduler going until the hold is dropped, as a live fiber would: for what will spawn fibers later. `None` if
    /// it has stopped.
    pub fn hold(&self) -> Option<Hold> {
        self.shared.enter().then(|| Hold(Arc::clone(&self.shared)))
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
        let inside = context::with_worker(|worker| {
            worker.is_some_and(|(shared, _)| Arc::ptr_eq(shared, &self.shared))
        });
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

    /// A list of the live fibers, by id.
    pub fn fibers(&self) -> Vec<FiberInfo> {
        list(&self.shared)
    }

    /// Counters since the start.
    pub fn metrics(&self) -> SchedulerMetrics {
        metrics(&self.shared)
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
    pub fn spawn<F, T>(&self, builder: Builder, f: F) -> crate::JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        crate::handle::spawn_with(f, |entry| Fiber(self.0.spawn(&builder, entry)))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One live fiber, for people to read.
#[derive(Debug, Clone)]
pub struct FiberInfo {
    /// Unique in the process.
    pub id: u64,
    /// The name given by its builder.
    pub name: Option<String>,
    /// The worker that ran it last.
    pub worker: usize,
    /// What it waits for; `None` if it runs or is queued.
    pub waits_for: WaitKind,
    /// The descriptor, address or count that goes with `waits_for`.
    pub wait_detail: u64,
}

/// Counters of a scheduler since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerMetrics {
    /// Fibers that have been spawned and have not ended.
    pub fibers_live: usize,
    /// Switches into a fiber.
    pub switches: u64,
    /// Times a worker went to sleep.
    pub parks: u64,
}

fn list(shared: &Shared) -> Vec<FiberInfo> {
    // Copied first, because whoever spawns a fiber or ends one waits for this lock.
    let live: Vec<Arc<Inner>> = shared.live.lock().values().cloned().collect();
    let mut fibers: Vec<FiberInfo> = live
        .iter()
        .map(|fiber| {
            let (waits_for, wait_detail) = fiber.waits_for();
            FiberInfo {
                id: fiber.id,
                name: fiber.name.as_deref().map(str::to_owned),
                worker: fiber.home.load(Ordering::Relaxed),
                waits_for,
                wait_detail,
            }
        })
        .collect();
    fibers.sort_by_key(|fiber| fiber.id);
    fibers
}

fn metrics(shared: &Shared) -> SchedulerMetrics {
    SchedulerMetrics {
        fibers_live: shared.live.lock().len(),
        switches: shared.workers.iter().map(|worker| worker.switches.load(Ordering::Relaxed)).sum(),
        parks: shared.workers.iter().map(|worker| worker.parks.load(Ordering::Relaxed)).sum(),
    }
}

/// The live fibers of the scheduler that the caller runs in; empty outside a fiber.
pub fn fibers() -> Vec<FiberInfo> {
    context::with_worker(|worker| worker.map_or_else(Vec::new, |(shared, _)| list(shared)))
}

/// The counters of the scheduler that the caller runs in; zeroes outside a fiber.
pub fn current_metrics() -> SchedulerMetrics {
    context::with_worker(|worker| worker.map_or_else(Default::default, |(shared, _)| metrics(shared)))
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
pub(crate) fn spawn_here(builder: &Builder, entry: Entry) -> Fiber {
    let shared = context::with_worker(|worker| worker.map(|(shared, _)| Arc::clone(shared)))
        .unwrap_or_else(|| Arc::clone(&default_scheduler().shared));
    Fiber(shared.spawn(builder, entry))
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
