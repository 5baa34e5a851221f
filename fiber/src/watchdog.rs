//! The observer: one plain thread per process that looks at the workers from outside.
//!
//! - It finds a fiber that keeps its worker for too long, says so once, with the fiber's backtrace, counts it, and says when it is over.
//! - It sees that what waits behind such a fiber is not forgotten ([`Shared::rescue`]).
//! - It writes the list of fibers when a signal asks for it, and the names of the functions on a stack that has overflowed: both
//!   need locks and memory, which a signal handler must not take.
//!
//! It looks every [`TICK`] while a worker is awake and sleeps while none is; a worker that wakes then wakes it, too. All it reads of
//! a worker are atomics that exist anyway: a worker pays one load per sleep for it.

use crate::backtrace::{Backtrace, Chain, Names};
use crate::dump;
use crate::metrics;
use crate::overflow;
use crate::probe::{self, Answer};
use crate::profile;
use crate::scheduler::Shared;
use crate::sys;
use crate::worker::Worker;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Once, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How often the workers are looked at while one of them is awake.
const TICK: Duration = Duration::from_millis(10);
/// How long a fiber may keep its worker before it is reported, unless `SQUALL_WATCHDOG_MS` says otherwise.
const THRESHOLD_MS_DEFAULT: u64 = 100;
const THRESHOLD_VARIABLE: &str = "SQUALL_WATCHDOG_MS";

/// Rung to end the observer's sleep.
static BELL: AtomicU32 = AtomicU32::new(0);
/// The observer sleeps until a worker wakes.
static ASLEEP: AtomicBool = AtomicBool::new(false);
static DUMP_WANTED: AtomicBool = AtomicBool::new(false);
static THRESHOLD_MS: AtomicU64 = AtomicU64::new(THRESHOLD_MS_DEFAULT);
static INCIDENTS: AtomicU64 = AtomicU64::new(0);

/// Sets how long a fiber may keep its worker, without a switch, before it is reported; zero turns the reports off. 100 ms if nobody
/// says otherwise; the environment variable `SQUALL_WATCHDOG_MS` says so from outside.
pub fn set_watchdog(threshold: Duration) {
    THRESHOLD_MS.store(threshold.as_millis().min(u64::MAX as u128) as u64, Ordering::Relaxed);
    // It may be asleep for good.
    ring();
}

/// How many fibers were found that kept their worker for too long.
pub(crate) fn incidents() -> u64 {
    INCIDENTS.load(Ordering::Relaxed)
}

/// Starts the observer with the first scheduler of the process.
pub(crate) fn start() {
    static START: Once = Once::new();
    START.call_once(|| {
        if let Ok(value) = std::env::var(THRESHOLD_VARIABLE) {
            match value.parse() {
                Ok(milliseconds) => THRESHOLD_MS.store(milliseconds, Ordering::Relaxed),
                Err(_) => log::warn!("{THRESHOLD_VARIABLE}={value} is not a number of milliseconds"),
            }
        }
        dump::listen_as_the_environment_says();
        profile::start_as_the_environment_says();
        probe::signal();
        if let Err(error) = thread::Builder::new().name("squall-observer".into()).spawn(observe) {
            log::warn!("no thread for the watchdog: {error}");
        }
    });
    ring();
}

/// Called by a worker that has just ended its sleep.
#[inline(always)]
pub(crate) fn worker_woke() {
    if ASLEEP.load(Ordering::SeqCst) {
        wake();
    }
}

#[cold]
fn wake() {
    if ASLEEP.swap(false, Ordering::SeqCst) {
        ring();
    }
}

/// Async-signal-safe.
pub(crate) fn ring() {
    BELL.fetch_add(1, Ordering::SeqCst);
    sys::futex_wake(&BELL, 1);
}

/// Lets the observer write the list of fibers to standard error. Async-signal-safe.
pub(crate) fn ask_for_dump() {
    DUMP_WANTED.store(true, Ordering::SeqCst);
    ring();
}

fn observe() {
    block_signals();
    let mut watches: Vec<SchedulerWatch> = Vec::new();
    let mut last = Instant::now();
    loop {
        let bell = BELL.load(Ordering::SeqCst);
        overflow::name_functions();
        if DUMP_WANTED.swap(false, Ordering::SeqCst) {
            dump::write_to_stderr();
        }
        let now = Instant::now();
        // If the whole process stood still, or this thread got no processor, nobody else can be blamed for it.
        let elapsed = now.duration_since(last).min(2 * TICK);
        last = now;
        adopt_new_schedulers(&mut watches);
        watches.retain_mut(|watch| watch.look(elapsed));
        if watches.iter().any(SchedulerWatch::is_awake) {
            sys::futex_wait(&BELL, bell, Some(TICK));
            continue;
        }
        ASLEEP.store(true, Ordering::SeqCst);
        // A worker that woke before the line above did not see it; one that wakes later does.
        if !watches.iter().any(SchedulerWatch::is_awake) {
            sys::futex_wait(&BELL, bell, None);
        }
        ASLEEP.store(false, Ordering::SeqCst);
        last = Instant::now();
    }
}

/// Signals of the process are for threads of the program's own.
fn block_signals() {
    let all = u64::MAX;
    // SAFETY: the kernel's own signal set is 8 bytes; only this thread's mask changes.
    unsafe {
        sys::raw_syscall(
            libc::SYS_rt_sigprocmask,
            [libc::SIG_SETMASK as i64, (&raw const all) as i64, 0, size_of::<u64>() as i64, 0, 0],
        );
    }
}

fn adopt_new_schedulers(watches: &mut Vec<SchedulerWatch>) {
    for shared in metrics::schedulers() {
        if !watches.iter().any(|watch| watch.shared.as_ptr() == Arc::as_ptr(&shared)) {
            let workers = shared.workers.iter().map(|_| WorkerWatch::default()).collect();
            watches.push(SchedulerWatch { shared: Arc::downgrade(&shared), workers });
        }
    }
}

struct SchedulerWatch {
    shared: Weak<Shared>,
    workers: Vec<WorkerWatch>,
}

impl SchedulerWatch {
    /// False if the scheduler is gone.
    fn look(&mut self, elapsed: Duration) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        for (worker, watch) in shared.workers.iter().zip(&mut self.workers) {
            watch.look(&shared, worker, elapsed);
        }
        true
    }

    fn is_awake(&self) -> bool {
        self.shared.upgrade().is_some_and(|shared| shared.workers.iter().any(Worker::is_awake))
    }
}

/// What the observer remembers of one worker.
#[derive(Default)]
struct WorkerWatch {
    switches: u64,
    /// How long it has been awake without a switch.
    stuck: Duration,
    /// The processor time of its thread when that began.
    cpu_at_start: Duration,
    incident: Option<Incident>,
}

struct Incident {
    fiber: u64,
    name: String,
}

impl WorkerWatch {
    fn look(&mut self, shared: &Shared, worker: &Worker, elapsed: Duration) {
        let switches = worker.switches.load(Ordering::Relaxed);
        if switches != self.switches || !worker.is_awake() {
            if let Some(incident) = self.incident.take() {
                log::warn!(
                    "fiber {}{} has let go of worker {} after {} ms",
                    incident.fiber,
                    incident.name,
                    worker.index,
                    self.stuck.as_millis()
                );
            }
            *self = Self { switches, cpu_at_start: thread_cpu_time(worker.thread_id()), ..Self::default() };
            return;
        }
        self.stuck += elapsed;
        if self.stuck >= TICK {
            shared.rescue(worker.index);
        }
        let threshold = THRESHOLD_MS.load(Ordering::Relaxed);
        if threshold == 0 || self.stuck < Duration::from_millis(threshold) || self.incident.is_some() {
            return;
        }
        match probe::ask(worker.thread_id()) {
            Answer::Fiber(running) if worker.switches.load(Ordering::Relaxed) == self.switches => {
                let name = running.name().map_or_else(String::new, |name| format!(" '{name}'"));
                let cpu = thread_cpu_time(worker.thread_id()).saturating_sub(self.cpu_at_start);
                log::warn!(
                    "fiber {}{name} keeps worker {}: no switch for {} ms, of which it computed {} ms. It stands at\n{}",
                    running.fiber,
                    worker.index,
                    self.stuck.as_millis(),
                    cpu.min(self.stuck).as_millis(),
                    text(&running.chain)
                );
                INCIDENTS.fetch_add(1, Ordering::Relaxed);
                worker.stats.incidents.fetch_add(1, Ordering::Relaxed);
                self.incident = Some(Incident { fiber: running.fiber, name });
            }
            Answer::Fiber(_) | Answer::Silence => {}
            // It is between two fibers, and gets no processor.
            Answer::Nothing => self.stuck = Duration::ZERO,
        }
    }
}

fn text(chain: &Chain) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = Backtrace::new(chain, true).write(&mut text, &mut Names::default());
    text.truncate(text.trim_end().len());
    text
}

/// The processor time that a thread of this process has used; zero if it is gone.
pub(crate) fn thread_cpu_time(thread_id: i32) -> Duration {
    if thread_id == 0 {
        return Duration::ZERO;
    }
    // The kernel's encoding of "the CPU clock (2) of one thread (4)", see clock_getcpuclockid(3).
    let clock = ((!thread_id) << 3) | 2 | 4;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct that it is given.
    match unsafe { libc::clock_gettime(clock, &mut time) } {
        0 => Duration::new(time.tv_sec as u64, time.tv_nsec as u32),
        _ => Duration::ZERO,
    }
}

impl Shared {
    /// A worker has been in one fiber for a while: whoever is idle shall take what waits behind it.
    fn rescue(&self, stuck: usize) {
        if self.workers[stuck].ready_len() != 0 {
            self.wake_searcher();
        }
    }
}
