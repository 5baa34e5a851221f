//! Where fibers spend their time, by their stacks: on the processors, and waiting. Samples, taken from outside by whoever asks.
//!
//! On the processors: now and then each worker that is awake is asked which fiber it runs and where (`probe.rs`); the answer weighs as much
//! as the processor time that the worker's thread has used since the one before. Waiting, which no profiler of threads can see: now
//! and then the stack of every fiber that waits is walked (`backtrace.rs`), and weighs as much as the time since the last look. So
//! neither costs anything on the way of a switch or a wait, and what is shorter than the time between two looks is seen as often as it
//! is likely to be met: right in sum, not one by one.

use crate::backtrace::{Backtrace, Frame, Names};
use crate::blocking::run_blocking;
use crate::fiber::WaitKind;
use crate::metrics;
use crate::probe::{self, Answer};
use crate::scheduler::Shared;
use crate::sys;
use crate::watchdog::thread_cpu_time;
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// What a [`Profile`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The time that fibers use of a processor.
    OnCpu,
    /// The time that fibers wait: for what they have asked for, or, being ready, for a worker.
    OffCpu,
}

/// A place in which time was spent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    /// The fiber's name, see [`group`].
    fiber: String,
    calls: Option<Backtrace>,
    waits_for: Option<&'static str>,
}

/// Where fibers have spent time.
#[derive(Debug)]
pub struct Profile {
    kind: Kind,
    places: HashMap<Place, Duration>,
    samples: u64,
    names: Names,
}

impl Profile {
    fn new(kind: Kind) -> Self {
        Self { kind, places: HashMap::new(), samples: 0, names: Names::default() }
    }

    fn add(&mut self, place: Place, time: Duration) {
        *self.places.entry(place).or_default() += time;
        self.samples += 1;
    }

    /// How many stacks have been looked at.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The time in all of them. Of fibers that wait at the same time, each counts.
    pub fn total(&self) -> Duration {
        self.places.values().sum()
    }

    /// As "folded stacks", the form that flame graphs are made of: a line per place, the fiber's name and its calls from the function
    /// that was spawned inwards with `;` between them, then a space and the time in microseconds. Numbers in names of fibers become
    /// `#`, so that a crowd is one. Off the processors the innermost element says what is waited for, in brackets.
    ///
    /// # Blocking
    /// Looks up names: reads the program's file the first time, which takes a while.
    pub fn folded(&mut self) -> String {
        let mut lines: HashMap<String, u128> = HashMap::new();
        for (place, time) in &self.places {
            let mut line = place.fiber.clone();
            let frames =
                place.calls.as_ref().map(|calls| calls.own_lines(&mut self.names)).unwrap_or_default();
            for frame in frames.iter().rev() {
                line += ";";
                line += &frame.as_ref().map_or("...".into(), element).replace(';', ",");
            }
            if let Some(reason) = place.waits_for {
                line += &format!(";[{reason}]");
            }
            *lines.entry(line).or_default() += time.as_micros();
        }
        let mut lines: Vec<_> = lines.into_iter().filter(|(_, time)| *time > 0).collect();
        lines.sort();
        lines.iter().map(|(line, time)| format!("{line} {time}\n")).collect()
    }
}

/// A function's name. That of a closure which the compiler has put into its caller says nothing without the file.
fn element(frame: &Frame) -> String {
    let Some(name) = &frame.function else { return format!("{:#x}", frame.address) };
    match frame.file.as_ref().and_then(|file| file.file_name()) {
        Some(file) if name.starts_with("{closure") => format!("{name} ({})", file.display()),
        _ => name.clone(),
    }
}

/// The name of a fiber with its numbers taken out: what a crowd of fibers has in common.
fn group(name: Option<&str>) -> String {
    let mut group = String::new();
    for c in name.unwrap_or("fiber").chars() {
        match c {
            '0'..='9' if group.ends_with('#') => {}
            '0'..='9' => group.push('#'),
            ';' => group.push(','),
            c if c.is_control() => group.push(' '),
            c => group.push(c),
        }
    }
    group
}

/// What a fiber waits for that could run: others come first.
const READY: &str = "ready";

struct Sampler {
    profile: Profile,
    period: Duration,
    last: Instant,
    /// The processor time of the workers' threads at their last answer.
    cpu_times: HashMap<i32, Duration>,
}

/// Looking takes at most one part in so many of the time,
const LOOKING_SHARE: u32 = 10;
/// but happens once in so long: a profile that is asked for shall not be empty, and the end of the process waits for the last one.
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Sampler {
    fn new(kind: Kind, rate_hz: u32) -> Self {
        let period = Duration::from_secs(1) / rate_hz.clamp(1, 10_000);
        let mut sampler =
            Self { profile: Profile::new(kind), period, last: Instant::now(), cpu_times: HashMap::new() };
        for worker in metrics::schedulers().iter().flat_map(|shared| shared.workers.iter()) {
            sampler.cpu_time_since_answer(worker.thread_id());
        }
        sampler
    }

    /// Sleeps until the next look is due, and looks.
    fn step(&mut self) {
        thread::sleep((self.last + self.period).saturating_duration_since(Instant::now()));
        let began = Instant::now();
        let passed = began - self.last;
        for shared in metrics::schedulers() {
            match self.profile.kind {
                Kind::OnCpu => self.ask_workers(&shared),
                Kind::OffCpu => self.visit_waiting(&shared, passed),
            }
        }
        // A crowd takes long to look at.
        let pause = (began.elapsed() * (LOOKING_SHARE - 1)).min(PAUSE_MAX);
        thread::sleep(pause.saturating_sub(self.period));
        self.last = began;
    }

    fn cpu_time_since_answer(&mut self, thread_id: i32) -> Duration {
        let now = thread_cpu_time(thread_id);
        now.saturating_sub(self.cpu_times.insert(thread_id, now).unwrap_or(now))
    }

    fn ask_workers(&mut self, shared: &Shared) {
        for worker in shared.workers.iter().filter(|worker| worker.is_awake()) {
            let place = match probe::ask(worker.thread_id()) {
                Answer::Fiber(running) => Place {
                    fiber: group(running.name().as_deref()),
                    calls: Some(Backtrace::new(&running.chain, true)),
                    waits_for: None,
                },
                Answer::Nothing => Place { fiber: "[scheduler]".into(), calls: None, waits_for: None },
                Answer::Silence => continue,
            };
            let time = self.cpu_time_since_answer(worker.thread_id());
            self.profile.add(place, time);
        }
    }

    fn visit_waiting(&mut self, shared: &Shared, passed: Duration) {
        for fiber in shared.register.all() {
            let waits_for = match fiber.waits_for() {
                (WaitKind::None, _) => READY,
                (kind, _) => WaitKind::NAMES[kind as usize],
            };
            // Nothing if it runs, or has gone on meanwhile, or has not begun.
            let Some(chain) = fiber.trace.capture(fiber.guard_end.load(Ordering::Relaxed)) else { continue };
            let place = Place {
                fiber: group(fiber.name.as_deref()),
                calls: Some(Backtrace::new(&chain, false)),
                waits_for: Some(waits_for),
            };
            self.profile.add(place, passed);
        }
    }
}

fn profile(kind: Kind, duration: Duration, rate_hz: u32) -> Profile {
    // On a thread of its own, so that the caller's worker and its fibers can be looked at like all others.
    run_blocking(move || {
        let end = Instant::now() + duration;
        let mut sampler = Sampler::new(kind, rate_hz);
        while Instant::now() < end {
            sampler.step();
        }
        sampler.profile
    })
}

/// Samples what all fibers of the process compute, for the given time, so many times a second (99 is usual). What runs on other
/// threads than the workers' is not in it: `perf` sees that.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let computing = squall_fiber::Builder::new().name("computing").spawn(|| {
///     let start = Instant::now();
///     while start.elapsed() < Duration::from_millis(200) {}
/// });
/// let mut profile = squall_fiber::profile_on_cpu(Duration::from_millis(100), 99);
/// assert!(profile.folded().contains("computing;"));
/// computing.join().unwrap();
/// ```
///
/// # Blocking
/// For that time: suspends the fiber, or blocks the thread. Workers are interrupted by a signal for each sample, as by [`crate::dump`].
pub fn profile_on_cpu(duration: Duration, rate_hz: u32) -> Profile {
    profile(Kind::OnCpu, duration, rate_hz)
}

/// Samples where all fibers of the process wait, and for what, for the given time, so many times a second (20 is plenty; fewer for
/// crowds that take long to look at). A fiber that could run while others do waits, too: it is `[ready]`.
///
/// ```
/// use std::time::Duration;
///
/// let sleeper = squall_fiber::Builder::new().name("sleeper 7").spawn(|| squall_fiber::sleep(Duration::from_millis(300)));
/// let mut profile = squall_fiber::profile_off_cpu(Duration::from_millis(100), 50);
/// let folded = profile.folded();
/// assert!(folded.lines().any(|line| line.starts_with("sleeper #;") && line.contains(";[sleeps] ")), "{folded}");
/// sleeper.join().unwrap();
/// ```
///
/// # Blocking
/// For that time: suspends the fiber, or blocks the thread.
pub fn profile_off_cpu(duration: Duration, rate_hz: u32) -> Profile {
    profile(Kind::OffCpu, duration, rate_hz)
}

const VARIABLE: &str = "SQUALL_PROFILE";
/// How often the file is written anew while the program runs: soon at first, so that a program that is killed has left something.
const WRITE_PERIOD_FIRST: Duration = Duration::from_millis(250);
const WRITE_PERIOD_LAST: Duration = Duration::from_secs(2);
/// How long the end of the process waits for the last writing.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

const RUNNING: u32 = 0;
const EXITING: u32 = 1;
const WRITTEN: u32 = 2;
/// How far the profile of the whole process is.
static STATE: AtomicU32 = AtomicU32::new(RUNNING);

/// What the environment asks for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    kind: Kind,
    rate_hz: u32,
    path: PathBuf,
}

impl Request {
    /// `on-cpu:RATE:PATH` or `off-cpu:RATE:PATH`; `%p` in the path stands for the number of the process.
    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (rate, path) = rest.split_once(':')?;
        let kind = match kind {
            "on-cpu" => Kind::OnCpu,
            "off-cpu" => Kind::OffCpu,
            _ => return None,
        };
        let rate_hz = rate.parse().ok().filter(|rate| *rate > 0)?;
        let own_path = path.replace("%p", &std::process::id().to_string());
        (!path.is_empty()).then(|| Self { kind, rate_hz, path: own_path.into() })
    }
}

/// For the whole life of the process, if `SQUALL_PROFILE` says so: `on-cpu:99:FILE` or `off-cpu:20:FILE`. The file gets the folded stacks,
/// every few seconds and at the end of the process. `%p` in its name becomes the number of the process, for programs that start others.
pub(crate) fn start_as_the_environment_says() {
    let Ok(value) = std::env::var(VARIABLE) else { return };
    let Some(request) = Request::parse(&value) else {
        log::warn!("{VARIABLE}={value}: neither on-cpu:RATE:FILE nor off-cpu:RATE:FILE");
        return;
    };
    match thread::Builder::new().name("squall-profiler".into()).spawn(move || follow(&request)) {
        // SAFETY: the handler has the signature that is asked for, and is part of the program until its end.
        Ok(_) => drop(unsafe { libc::atexit(await_last_writing) }),
        Err(error) => log::warn!("no thread for {VARIABLE}: {error}"),
    }
}

fn follow(request: &Request) {
    let mut sampler = Sampler::new(request.kind, request.rate_hz);
    let (mut written, mut period) = (Instant::now(), WRITE_PERIOD_FIRST);
    while STATE.load(Ordering::Acquire) == RUNNING {
        sampler.step();
        if written.elapsed() >= period {
            write(&mut sampler.profile, &request.path);
            written = Instant::now();
            period = (2 * period).min(WRITE_PERIOD_LAST);
        }
    }
    write(&mut sampler.profile, &request.path);
    STATE.store(WRITTEN, Ordering::Release);
    sys::futex_wake(&STATE, u32::MAX >> 1);
}

/// Whoever reads the file finds one that is whole.
fn write(profile: &mut Profile, path: &Path) {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let result = std::fs::write(&new, profile.folded()).and_then(|()| std::fs::rename(&new, path));
    if let Err(error) = result {
        log::warn!("{VARIABLE}: {}: {error}", path.display());
    }
}

extern "C" fn await_last_writing() {
    if crate::context::is_forked_child()
        || STATE.compare_exchange(RUNNING, EXITING, Ordering::AcqRel, Ordering::Relaxed).is_err()
    {
        return;
    }
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while STATE.load(Ordering::Acquire) == EXITING {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        sys::futex_wait(&STATE, EXITING, Some(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_one_name() {
        assert_eq!(group(Some("connection 4711 of 12")), "connection # of #");
        assert_eq!(group(Some("a;b\n")), "a,b ");
        assert_eq!(group(None), "fiber");
    }

    #[test]
    fn a_closure_is_told_by_its_file() {
        let frame = |function: Option<&str>| Frame {
            address: 0x10,
            function: function.map(str::to_owned),
            file: Some("src/server.rs".into()),
            line: None,
        };
        assert_eq!(element(&frame(Some("{closure#0}"))), "{closure#0} (server.rs)");
        assert_eq!(element(&frame(Some("serve"))), "serve");
        assert_eq!(element(&frame(None)), "0x10");
    }

    #[test]
    fn the_environment_is_read_strictly() {
        let request = |kind, rate_hz, path: &str| Some(Request { kind, rate_hz, path: path.into() });
        assert_eq!(Request::parse("on-cpu:99:/tmp/a:b"), request(Kind::OnCpu, 99, "/tmp/a:b"));
        assert_eq!(Request::parse("off-cpu:20:out"), request(Kind::OffCpu, 20, "out"));
        let own = format!("out.{}", std::process::id());
        assert_eq!(Request::parse("off-cpu:20:out.%p"), request(Kind::OffCpu, 20, &own));
        for wrong in ["", "on-cpu", "on-cpu:99", "on-cpu:99:", "on-cpu:0:a", "on-cpu:x:a", "both:99:a"] {
            assert_eq!(Request::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_of_the_same_place_add_up() {
        let mut profile = Profile::new(Kind::OffCpu);
        let place = |fiber: &str| Place { fiber: fiber.into(), calls: None, waits_for: Some("sleeps") };
        profile.add(place("b"), Duration::from_micros(3));
        profile.add(place("a"), Duration::from_micros(1));
        profile.add(place("b"), Duration::from_micros(4));
        assert_eq!(profile.folded(), "a;[sleeps] 1\nb;[sleeps] 7\n");
        assert_eq!((profile.samples(), profile.total()), (3, Duration::from_micros(8)));
    }
}
