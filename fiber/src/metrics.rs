//! What the runtime counts, and how it is read.
//!
//! A worker's counters are written by its own thread alone, without atomic read-modify-write and in no cache line that others
//! write; readers add them up. Nothing here may slow a switch down: it is loads and stores of hot lines.

use crate::blocking;
use crate::context;
use crate::lock::Lock;
use crate::scheduler::Shared;
use crate::stack;
use crate::watchdog;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// What one worker counts. Each field is written by the worker's thread alone.
#[derive(Debug, Default)]
pub(crate) struct WorkerStats {
    /// The coarse clock as of the worker's last look at it, in milliseconds.
    now_ms: AtomicU64,
    /// Fibers that are ready and pinned to it, as of its last look.
    pinned: AtomicUsize,
    hook_hits: AtomicU64,
    /// Written by the watchdog.
    pub(crate) incidents: AtomicU64,
}

/// An addition by the only thread that writes.
#[inline(always)]
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

impl WorkerStats {
    /// Called by the worker now and then, and after every sleep, with the number of fibers that are ready and pinned to it.
    pub(crate) fn refresh(&self, pinned: usize) {
        self.now_ms.store(coarse_now_ms(), Ordering::Relaxed);
        self.pinned.store(pinned, Ordering::Relaxed);
    }

    pub(crate) fn pinned(&self) -> usize {
        self.pinned.load(Ordering::Relaxed)
    }

    /// The time of the last [`WorkerStats::refresh`].
    #[inline(always)]
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// Takes over what a fiber has counted, which does not run now.
    #[inline(always)]
    pub(crate) fn absorb(&self, hooks: &HookCounts) {
        let hits = hooks.hits.load(Ordering::Relaxed);
        if hits != 0 {
            add(&self.hook_hits, hits);
            hooks.hits.store(0, Ordering::Relaxed);
        }
    }
}

/// Hooked calls of one fiber. Written by the fiber while it runs, emptied by its worker when it does not.
#[derive(Debug, Default)]
pub(crate) struct HookCounts {
    hits: AtomicU64,
}

impl HookCounts {
    #[inline(always)]
    pub(crate) fn hit(&self) {
        add(&self.hits, 1);
    }
}

/// Rare: in fibers that unwind a panic on thread-locals that they share.
static HOOK_BYPASSES: AtomicU64 = AtomicU64::new(0);

#[cold]
pub(crate) fn count_hook_bypass() {
    HOOK_BYPASSES.fetch_add(1, Ordering::Relaxed);
}

/// The kernel's clock that is read without looking at the hardware: a few nanoseconds, exact to a few milliseconds.
pub(crate) fn coarse_now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

static SCHEDULERS: Lock<Vec<Weak<Shared>>> = Lock::new(Vec::new());

/// Makes a scheduler known to those who look at the whole process.
pub(crate) fn register(shared: &Arc<Shared>) {
    let mut schedulers = SCHEDULERS.lock();
    schedulers.retain(|scheduler| scheduler.strong_count() != 0);
    schedulers.push(Arc::downgrade(shared));
}

/// The schedulers of the process, in the order in which they were made.
pub(crate) fn schedulers() -> Vec<Arc<Shared>> {
    SCHEDULERS.lock().iter().filter_map(Weak::upgrade).collect()
}

/// Counters of one worker since its start, and how long its queues are now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerMetrics {
    /// Fibers that are ready to run on it.
    pub run_queue: usize,
    /// Switches into a fiber.
    pub switches: u64,
    /// Times it went to sleep.
    pub parks: u64,
    /// Fibers that it took from other workers.
    pub steals: u64,
    /// Timers that are set.
    pub timers: usize,
    /// Hooked calls in a fiber that the hook layer served. Those that a fiber has made since its last wait are not in it yet.
    pub hook_hits: u64,
    /// Times that the watchdog found a fiber which kept it for too long.
    pub watchdog_incidents: u64,
}

/// Counters of a scheduler since its start; where the same name is in [`WorkerMetrics`], the sum over its workers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchedulerMetrics {
    /// Fibers that have been spawned and have not ended.
    pub fibers_live: usize,
    /// Fibers that have been spawned.
    pub fibers_spawned: u64,
    /// Fibers that are ready to run, with those that no worker has taken yet.
    pub run_queue: usize,
    /// Switches into a fiber.
    pub switches: u64,
    /// Times a worker went to sleep.
    pub parks: u64,
    /// Fibers that a worker took from another.
    pub steals: u64,
    /// Timers that are set.
    pub timers: usize,
    /// See [`WorkerMetrics::hook_hits`].
    pub hook_hits: u64,
    /// See [`WorkerMetrics::watchdog_incidents`].
    pub watchdog_incidents: u64,
    /// One by one.
    pub workers: Vec<WorkerMetrics>,
}

/// The blocking pool: threads for calls that nothing can make non-blocking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockingMetrics {
    /// Calls that wait for a thread.
    pub queued: usize,
    /// Its threads.
    pub threads: usize,
    /// Calls that were handed to it.
    pub calls: u64,
}

/// The counters of the whole process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// One by one, in the order in which they were made.
    pub schedulers: Vec<SchedulerMetrics>,
    /// See there.
    pub blocking: BlockingMetrics,
    /// Stacks that exist, in use or pooled. Only what a fiber has touched of one takes memory.
    pub stacks_mapped: usize,
    /// Address space of those stacks.
    pub stack_bytes_mapped: usize,
    /// See [`stack_high_water_bytes`](crate::stack_high_water_bytes).
    pub stack_high_water_bytes: usize,
    /// Times that the watchdog found a fiber which kept its worker for too long.
    pub watchdog_incidents: u64,
    /// Hooked calls in a fiber that went straight to libc, because the fiber must not be suspended where it is.
    pub hook_bypasses: u64,
}

pub(crate) fn of_scheduler(shared: &Shared) -> SchedulerMetrics {
    let mut total = SchedulerMetrics {
        fibers_live: shared.register.len(),
        fibers_spawned: shared.register.entered(),
        run_queue: shared.injected_len(),
        ..Default::default()
    };
    for worker in &shared.workers {
        let stats = &worker.stats;
        let metrics = WorkerMetrics {
            run_queue: worker.ready_len(),
            switches: worker.switches.load(Ordering::Relaxed),
            parks: worker.parks.load(Ordering::Relaxed),
            steals: worker.steals.load(Ordering::Relaxed),
            timers: worker.timers.lock().len(),
            hook_hits: stats.hook_hits.load(Ordering::Relaxed),
            watchdog_incidents: stats.incidents.load(Ordering::Relaxed),
        };
        total.run_queue += metrics.run_queue;
        total.switches += metrics.switches;
        total.parks += metrics.parks;
        total.steals += metrics.steals;
        total.timers += metrics.timers;
        total.hook_hits += metrics.hook_hits;
        total.watchdog_incidents += metrics.watchdog_incidents;
        total.workers.push(metrics);
    }
    total
}

/// The counters of every scheduler in the process, the blocking pool and the stacks.
///
/// ```
/// squall_fiber::spawn(|| ()).join().unwrap();
/// let metrics = squall_fiber::metrics();
/// assert!(metrics.schedulers.iter().any(|scheduler| scheduler.fibers_spawned > 0));
/// ```
///
/// # Blocking
/// Never.
pub fn metrics() -> Metrics {
    let (stacks_mapped, stack_bytes_mapped) = stack::mapped();
    Metrics {
        schedulers: schedulers().iter().map(|shared| of_scheduler(shared)).collect(),
        blocking: blocking::metrics(),
        stacks_mapped,
        stack_bytes_mapped,
        stack_high_water_bytes: stack::stack_high_water_bytes(),
        watchdog_incidents: watchdog::incidents(),
        hook_bypasses: HOOK_BYPASSES.load(Ordering::Relaxed),
    }
}

/// The counters of the scheduler that the caller runs in; zeroes outside a fiber.
pub fn current_metrics() -> SchedulerMetrics {
    context::with_worker(|worker| worker.map_or_else(Default::default, |(shared, _)| of_scheduler(shared)))
}
