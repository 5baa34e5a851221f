//! What the benchmark programs of all runtimes have in common: one command line, one way to measure, one form of result.
//!
//! A program implements [`Runtime`] for each of its variants and calls [`run`]. It runs one test, once, and prints one line of
//! JSON; what pins it to processors, repeats, alternates and compares is the runner (`runtime_bench`). Nothing here knows a runtime:
//! each program links this and its own runtime, so that all of them have the same shape.

#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Bytes of an echoed message.
pub const MESSAGE_BYTES: usize = 64;

/// Bytes of an echo server's buffer: more than a message, as servers have it, so that a read which does not fill it tells that there is no more.
pub const BUFFER_BYTES: usize = 1024;

/// Tasks that one batch of [`Test::SpawnJoin`] starts before it joins the first.
pub const BATCH: u64 = 1000;

/// What a program can be told to do. `count` is that of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// Two tasks give way to each other by the cheapest means there is, `count` times together.
    Yield,
    /// The same by the runtime's own yield function, where that is another.
    YieldNow,
    /// `count` tasks are started and joined, in batches of [`BATCH`].
    SpawnJoin,
    /// `count` round trips between two tasks over two of the runtime's own channels.
    PingPong,
    /// The same over `std::sync::mpsc`.
    StdPingPong,
    /// `count` uncontended locks of a `std::sync::Mutex` in a task.
    Mutex,
    /// `count` hand-overs of a turn between two tasks by `std::sync::Mutex` and `Condvar`.
    HandOver,
    /// `count` tasks wait for something that does not come; what they take of memory.
    Parked,
    /// `count` tasks sleep for a second.
    Sleep,
    /// Echoes what it receives, until it is killed. `count` means nothing.
    Echo,
}

/// What one run has measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How often what was measured happened.
    pub operations: u64,
    /// Nanoseconds that passed.
    pub wall_ns: u64,
    /// Nanoseconds of processor time, user and system, of the process.
    pub cpu_ns: u64,
    /// Bytes by which the resident set has grown between start and end.
    pub memory_bytes: u64,
    /// Bytes of the resident set at its largest, since the process began.
    pub peak_bytes: u64,
}

/// Processor time of this process so far.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// What one call costs through a hook and past it: medians, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HookFigure {
    /// The function.
    pub call: String,
    /// Where it was called.
    pub place: String,
    /// By the name that programs use.
    pub hooked_ns: f64,
    /// libc's function.
    pub libc_ns: f64,
    /// The bare system call, not to wait.
    pub raw_ns: f64,
    /// The median difference, turn by turn, of the hooked call and libc's.
    pub over_libc_ns: f64,
    /// That of the hooked call and the bare system call.
    pub over_raw_ns: f64,
}

impl HookFigure {
    /// As one line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names can be written")
    }
}

/// A number of kB from /proc/self/status, in bytes.
fn status_bytes(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let kibibytes = line.and_then(|line| line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// A measurement that has begun.
#[derive(Debug)]
pub struct Measuring {
    memory_bytes: u64,
    cpu: Duration,
    started: Instant,
}

impl Measuring {
    /// Begins.
    pub fn begin() -> Self {
        Self { memory_bytes: status_bytes("VmRSS"), cpu: cpu_time(), started: Instant::now() }
    }

    /// Ends, after `operations`.
    pub fn end(self, operations: u64) -> Measured {
        let wall = self.started.elapsed();
        let cpu = cpu_time().saturating_sub(self.cpu);
        Measured {
            operations,
            wall_ns: wall.as_nanos() as u64,
            cpu_ns: cpu.as_nanos() as u64,
            memory_bytes: status_bytes("VmRSS").saturating_sub(self.memory_bytes),
            peak_bytes: status_bytes("VmHWM"),
        }
    }
}

/// Measures `f`, which does `operations`.
pub fn measure(operations: u64, f: impl FnOnce()) -> Measured {
    let measuring = Measuring::begin();
    f();
    measuring.end(operations)
}

/// A runtime in one of its variants.
pub trait Runtime {
    /// Runs `test`. `None`: the runtime has no such thing.
    fn run(&self, test: Test, count: u64, workers: usize) -> Option<Measured>;

    /// Echoes on every connection to `listener` ([`MESSAGE_BYTES`] at a time, but any split must work), until the process is
    /// killed. False: the runtime has no sockets.
    fn echo(&self, listener: TcpListener, workers: usize) -> bool;
}

/// Runs one test of a runtime and prints its figures as a line of JSON.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What to run.
    test: Test,
    /// Which variant of the runtime; the first if not said.
    #[arg(long)]
    variant: Option<String>,
    /// How many operations or tasks.
    #[arg(long, default_value_t = 100_000)]
    count: u64,
    /// How many worker threads, where the variant has them.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

/// Lets the process open as many descriptors as it may.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it the program works, for fewer connections.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The `main` of a benchmark program. Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 the runtime cannot do this.
pub fn run(variants: &[(&str, &dyn Runtime)]) -> ExitCode {
    let arguments = Arguments::parse();
    let named = |name: &str| variants.iter().find(|(known, _)| *known == name);
    let variant = match &arguments.variant {
        None => variants.first(),
        Some(name) => named(name),
    };
    let Some((_, runtime)) = variant else {
        let names: Vec<_> = variants.iter().map(|(name, _)| *name).collect();
        eprintln!("error: no such variant; there are: {}", names.join(", "));
        return ExitCode::from(2);
    };
    if arguments.test == Test::Echo {
        raise_descriptor_limit();
        let listener = match TcpListener::bind("127.0.0.1:0") {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("error: listening on 127.0.0.1: {error}");
                return ExitCode::FAILURE;
            }
        };
        match listener.local_addr() {
            Ok(address) => println!("{address}"),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::FAILURE;
            }
        }
        return if runtime.echo(listener, arguments.workers) { ExitCode::SUCCESS } else { ExitCode::from(3) };
    }
    let Some(measured) = runtime.run(arguments.test, arguments.count, arguments.workers) else {
        return ExitCode::from(3);
    };
    println!("{}", serde_json::to_string(&measured).expect("numbers can be written"));
    ExitCode::SUCCESS
}

/// The waiting side of a turn that two activities pass to each other by `std::sync` alone.
#[derive(Debug, Default)]
pub struct Turn {
    taken: std::sync::Mutex<u64>,
    changed: std::sync::Condvar,
}

impl Turn {
    /// Takes every second turn until `count` turns have been taken; `mine` is 0 or 1.
    ///
    /// # Panics
    /// When the other has panicked.
    pub fn play(&self, mine: u64, count: u64) {
        let mut taken = self.taken.lock().expect("nobody panics with it");
        loop {
            while *taken < count && *taken % 2 != mine {
                taken = self.changed.wait(taken).expect("nobody panics with it");
            }
            if *taken >= count {
                self.changed.notify_one();
                return;
            }
            *taken += 1;
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_grows_with_the_work() {
        let measured = measure(7, || {
            let touched = vec![1u8; 32 << 20];
            std::hint::black_box(&touched);
            std::mem::forget(touched);
        });
        assert_eq!(measured.operations, 7);
        assert!(measured.memory_bytes >= 30 << 20, "{measured:?}");
        assert!(measured.peak_bytes >= measured.memory_bytes, "{measured:?}");
        assert!(measured.cpu_ns > 0 && measured.wall_ns > 0, "{measured:?}");
    }

    #[test]
    fn turns_alternate_until_all_are_taken() {
        let turn = std::sync::Arc::new(Turn::default());
        let other = std::sync::Arc::clone(&turn);
        let thread = std::thread::spawn(move || other.play(1, 1001));
        turn.play(0, 1001);
        thread.join().expect("it plays to the end");
        assert_eq!(*turn.taken.lock().expect("nobody panicked"), 1001);
    }
}
