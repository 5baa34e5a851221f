//! The list of live fibers: what each one does or waits for, since when, and where it stands.

use crate::backtrace::{Backtrace, Names};
use crate::blocking::run_blocking;
use crate::context;
use crate::fiber::{Inner, Tls, WaitKind};
use crate::metrics;
use crate::probe::{self, Answer};
use crate::scheduler::Shared;
use crate::watchdog;
use core::ffi::c_int;
use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// Where a fiber is between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FiberState {
    /// It was spawned and has not run yet.
    New,
    /// It could run, and others come first.
    Ready,
    /// It runs.
    Running,
    /// It waits: see [`FiberInfo::waits_for`].
    Waiting,
}

/// One live fiber, for people to read.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct FiberInfo {
    /// Unique in the process.
    pub id: u64,
    /// The name given by its builder.
    pub name: Option<String>,
    /// The worker that ran it last.
    pub worker: usize,
    /// What it is doing.
    pub state: FiberState,
    /// What it waits for; [`WaitKind::None`] if it runs or is queued.
    pub waits_for: WaitKind,
    /// The descriptor, address or count that goes with `waits_for`.
    pub wait_detail: u64,
    /// How long its wait will last at most from now on; `None` if that is not limited.
    pub deadline_in: Option<Duration>,
    /// How long it has waited, to within a few milliseconds; `None` if it does not wait.
    pub waiting_for: Option<Duration>,
    /// How often it has been switched to.
    pub runs: u64,
    /// Bytes of its stack.
    pub stack_bytes: usize,
    /// How much of that was in use when it last switched away, or when it was interrupted to be looked at; 0 if that is not known.
    pub stack_depth_bytes: usize,
    /// Whether its thread-locals are its own or its worker's.
    pub tls: Tls,
    /// The calls on its stack, if they were asked for, and it has started, and answered.
    pub backtrace: Option<Backtrace>,
}

/// When the waits of a scheduler's fibers end by themselves, by the fibers' ids.
fn deadlines(shared: &Shared) -> HashMap<u64, Instant> {
    let timers = shared.workers.iter().map(|worker| worker.timers.lock());
    timers
        .flat_map(|timers| {
            timers.iter().map(|(deadline, waker)| (waker.fiber_id(), deadline)).collect::<Vec<_>>()
        })
        .collect()
}

impl FiberInfo {
    fn of(fiber: &Inner) -> Self {
        let trace = &fiber.trace;
        let (waits_for, wait_detail) = fiber.waits_for();
        let state = match waits_for {
            _ if !trace.has_started() => FiberState::New,
            _ if !trace.is_suspended() => FiberState::Running,
            WaitKind::None => FiberState::Ready,
            _ => FiberState::Waiting,
        };
        Self {
            id: fiber.id,
            name: fiber.name.as_deref().map(str::to_owned),
            worker: fiber.home.load(Ordering::Relaxed),
            state,
            waits_for: if state == FiberState::Waiting { waits_for } else { WaitKind::None },
            wait_detail,
            deadline_in: None,
            waiting_for: (state == FiberState::Waiting)
                .then(|| Duration::from_millis(metrics::coarse_now_ms().saturating_sub(trace.since_ms()))),
            runs: trace.runs(),
            stack_bytes: fiber.stack_bytes,
            stack_depth_bytes: trace.stack_depth(),
            tls: fiber.tls,
            backtrace: None,
        }
    }

    /// As [`FiberInfo::of`], with its backtrace.
    fn with_backtrace(shared: &Shared, fiber: &Inner) -> Self {
        let low = fiber.guard_end.load(Ordering::Relaxed);
        // Again if it went on meanwhile, so that the backtrace belongs to the state that is told; but not for ever.
        for _ in 0..ATTEMPTS {
            let runs = fiber.trace.runs();
            let info = Self::of(fiber);
            match info.state {
                FiberState::New => return info,
                FiberState::Running => match probe::ask(shared.workers[info.worker].thread_id()) {
                    Answer::Fiber(running) if running.fiber == fiber.id => {
                        return Self {
                            backtrace: Some(Backtrace::new(&running.chain, true)),
                            stack_depth_bytes: running.stack_depth,
                            ..info
                        };
                    }
                    Answer::Silence => return info,
                    Answer::Fiber(_) | Answer::Nothing => {}
                },
                FiberState::Ready | FiberState::Waiting => {
                    if let Some(chain) = fiber.trace.capture(low)
                        && fiber.trace.runs() == runs
                    {
                        return Self { backtrace: Some(Backtrace::new(&chain, false)), ..info };
                    }
                }
            }
        }
        Self::of(fiber)
    }
}

/// How often a fiber is looked at that runs on whenever one looks.
const ATTEMPTS: usize = 8;

impl fmt::Display for FiberInfo {
    /// One line without an end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fiber {}", self.id)?;
        if let Some(name) = &self.name {
            write!(f, " '{name}'")?;
        }
        write!(f, " on worker {}: ", self.worker)?;
        match self.state {
            FiberState::New => write!(f, "has not started")?,
            FiberState::Ready => write!(f, "ready to run")?,
            FiberState::Running => write!(f, "runs")?,
            FiberState::Waiting => write_wait(f, self.waits_for, self.wait_detail)?,
        }
        if let Some(time) = self.waiting_for {
            write!(f, " for {}", seconds(time))?;
        }
        if let Some(time) = self.deadline_in {
            write!(f, ", at most {} more", seconds(time))?;
        }
        if self.stack_depth_bytes != 0 {
            write!(
                f,
                "; stack {} of {} KiB",
                self.stack_depth_bytes.div_ceil(1024),
                self.stack_bytes / 1024
            )?;
        }
        if self.tls == Tls::Shared {
            write!(f, "; shared TLS")?;
        }
        Ok(())
    }
}

fn seconds(time: Duration) -> String {
    match time.as_millis() {
        milliseconds @ ..1000 => format!("{milliseconds} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

fn write_wait(f: &mut fmt::Formatter<'_>, kind: WaitKind, detail: u64) -> fmt::Result {
    match kind {
        WaitKind::Sleep => write!(f, "sleeps"),
        WaitKind::Park => write!(f, "parked"),
        WaitKind::Join => write!(f, "waits for fiber {detail} to end"),
        WaitKind::Readable => write!(f, "waits to read from descriptor {detail}"),
        WaitKind::Writable => write!(f, "waits to write to descriptor {detail}"),
        WaitKind::Poll => write!(f, "waits for one of {detail} descriptors"),
        WaitKind::Futex => write!(f, "waits at futex {detail:#x}"),
        WaitKind::Blocking => write!(f, "waits for a call on the blocking pool"),
        WaitKind::Lock => write!(f, "waits for the lock at {detail:#x}"),
        WaitKind::Condvar => write!(f, "waits for the condition variable at {detail:#x}"),
        WaitKind::Semaphore => write!(f, "waits for permits of the semaphore at {detail:#x}"),
        WaitKind::Barrier => write!(f, "waits for the others at the barrier at {detail:#x}"),
        WaitKind::WaitGroup => write!(f, "waits for the wait group at {detail:#x}"),
        WaitKind::Once => write!(f, "waits for the initialisation at {detail:#x}"),
        WaitKind::Send => write!(f, "waits to send to the channel at {detail:#x}"),
        WaitKind::Receive => write!(f, "waits to receive from the channel at {detail:#x}"),
        WaitKind::Select => write!(f, "waits for one of {detail} channel operations"),
        WaitKind::None => write!(f, "waits"),
    }
}

/// All fibers of the process at about one moment; its text form is for people, and groups fibers that stand at the same place.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Dump {
    /// By id.
    pub fibers: Vec<FiberInfo>,
    /// How many workers there are in all schedulers.
    pub workers: usize,
}

/// So many fibers of those that stand at the same place are listed one by one.
const LISTED_PER_PLACE: usize = 16;

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} fibers on {} workers", self.fibers.len(), self.workers)?;
        let mut places: Vec<(Option<&Backtrace>, Vec<&FiberInfo>)> = Vec::new();
        let mut index_of: HashMap<Option<&Backtrace>, usize> = HashMap::new();
        for fiber in &self.fibers {
            let place = fiber.backtrace.as_ref();
            let index = *index_of.entry(place).or_insert_with(|| {
                places.push((place, Vec::new()));
                places.len() - 1
            });
            places[index].1.push(fiber);
        }
        let mut names = Names::default();
        for (place, fibers) in places {
            writeln!(f)?;
            let listed = if place.is_some() { LISTED_PER_PLACE } else { usize::MAX };
            for fiber in fibers.iter().take(listed) {
                writeln!(f, "{fiber}")?;
            }
            if fibers.len() > listed {
                writeln!(f, "and {} more fibers", fibers.len() - listed)?;
            }
            if let Some(place) = place {
                place.write(f, &mut names)?;
            }
        }
        Ok(())
    }
}

/// Lists every live fiber of the process with its backtrace. A fiber that runs is interrupted by a signal for that.
///
/// ```
/// let sleeper = squall_fiber::Builder::new()
///     .name("sleeper")
///     .spawn(|| squall_fiber::sleep(std::time::Duration::from_millis(50)));
/// let dump = squall_fiber::dump();
/// assert!(dump.fibers.iter().any(|fiber| fiber.name.as_deref() == Some("sleeper")));
/// sleeper.join().unwrap();
/// ```
///
/// Only the text form looks up the names of functions; `dump().to_string()` is best made in a plain thread or inside
/// [`run_blocking`], because reading the debug information takes stack and time.
///
/// # Blocking
/// Suspends the fiber; in a plain thread, blocks it for as long as the running fibers take to answer, at most half a second each.
pub fn dump() -> Dump {
    // On a thread of its own, so that the worker and its fibers can be asked like all others.
    run_blocking(|| {
        let schedulers = metrics::schedulers();
        let mut fibers: Vec<FiberInfo> = Vec::new();
        for shared in &schedulers {
            fibers.extend(list_with(shared, |fiber| FiberInfo::with_backtrace(shared, fiber)));
        }
        fibers.sort_by_key(|fiber| fiber.id);
        Dump { fibers, workers: schedulers.iter().map(|shared| shared.workers.len()).sum() }
    })
}

/// The live fibers of one scheduler, by id, without backtraces.
pub(crate) fn list(shared: &Shared) -> Vec<FiberInfo> {
    list_with(shared, FiberInfo::of)
}

fn list_with(shared: &Shared, look: impl Fn(&Inner) -> FiberInfo) -> Vec<FiberInfo> {
    let mut fibers: Vec<FiberInfo> = shared.register.all().iter().map(|fiber| look(fiber)).collect();
    // From the timers, not from the fibers: a wait would take longer if it noted its deadline for us.
    let deadlines = deadlines(shared);
    let now = Instant::now();
    for fiber in fibers.iter_mut().filter(|fiber| fiber.state == FiberState::Waiting) {
        fiber.deadline_in = deadlines.get(&fiber.id).map(|deadline| deadline.saturating_duration_since(now));
    }
    fibers.sort_by_key(|fiber| fiber.id);
    fibers
}

/// The live fibers of the scheduler that the caller runs in, by id, without backtraces; empty outside a fiber.
pub fn fibers() -> Vec<FiberInfo> {
    context::with_worker(|worker| worker.map_or_else(Vec::new, |(shared, _)| list(shared)))
}

const SIGNAL_VARIABLE: &str = "SQUALL_DUMP_SIGNAL";

/// From now on, writes the list of all fibers with their backtraces to standard error whenever the process gets this signal, such as
/// `SIGUSR1`. The environment variable `SQUALL_DUMP_SIGNAL` (a name such as `USR1`, or a number) does the same from outside.
///
/// The handler only wakes a thread, which writes.
///
/// # Errors
/// The system's, for a signal that does not exist or cannot be handled.
pub fn dump_on_signal(signal: c_int) -> io::Result<()> {
    watchdog::start();
    listen(signal)
}

fn listen(signal: c_int) -> io::Result<()> {
    extern "C" fn on_signal(_: c_int) {
        watchdog::ask_for_dump();
    }
    // SAFETY: an all-zero sigaction is valid, and the handler has the signature of one without SA_SIGINFO.
    let result = unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(signal, &action, core::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn listen_as_the_environment_says() {
    let Ok(value) = std::env::var(SIGNAL_VARIABLE) else { return };
    let listening = match signal_number(&value) {
        Some(signal) => listen(signal).map_err(|error| error.to_string()),
        None => Err("no such signal".into()),
    };
    if let Err(error) = listening {
        log::warn!("{SIGNAL_VARIABLE}={value}: {error}");
    }
}

fn signal_number(text: &str) -> Option<c_int> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    match name {
        "USR1" => Some(libc::SIGUSR1),
        "USR2" => Some(libc::SIGUSR2),
        "QUIT" => Some(libc::SIGQUIT),
        "HUP" => Some(libc::SIGHUP),
        _ => name.parse().ok(),
    }
}

/// For the observer's thread.
pub(crate) fn write_to_stderr() {
    let text = dump().to_string();
    // Nobody is left to tell if that fails.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("SIGUSR1"), Some(libc::SIGUSR1));
        assert_eq!(signal_number("USR2"), Some(libc::SIGUSR2));
        assert_eq!(signal_number("12"), Some(12));
        assert_eq!(signal_number("sometimes"), None);
    }
}
