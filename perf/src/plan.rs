//! What is measured: the experiments, who takes part in each, and what Squall is held to.

use squall_bench_harness::Test;

/// A runtime in a variant, as a program runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    /// Its name in tables.
    pub label: &'static str,
    /// The program.
    pub program: &'static str,
    /// The program's `--variant`.
    pub variant: &'static str,
}

const fn contender(label: &'static str, program: &'static str, variant: &'static str) -> Contender {
    Contender { label, program, variant }
}

/// Squall, fibers with their own thread-locals.
pub const PRIVATE: Contender = contender("Squall, private TLS", "bench_squall", "private");
/// Squall, fibers with their worker's thread-locals.
pub const SHARED: Contender = contender("Squall, shared TLS", "bench_squall", "shared");
const TOKIO: Contender = contender("tokio current_thread", "bench_tokio", "current-thread");
const TOKIO_MULTI: Contender = contender("tokio multi_thread", "bench_tokio", "multi-thread");
const MAY: Contender = contender("may", "bench_may", "may");
const OPEN_COROUTINE: Contender = contender("open-coroutine", "bench_open_coroutine", "open-coroutine");
const GO: Contender = contender("Go", "bench_go", "go");
const THREADS: Contender = contender("std threads", "bench_threads", "threads");
const EPOLL: Contender = contender("raw epoll", "bench_epoll", "epoll");

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    /// Who.
    pub contender: Contender,
    /// What tells this row from another of the same contender.
    pub note: &'static str,
    /// What it runs.
    pub test: Test,
    /// How many, in a full run.
    pub count: u64,
    /// What the figure should be at most: a ratio to the baseline or, where the experiment has none, the figure itself.
    pub target: Option<f64>,
}

/// What the figure of an experiment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Processor time per operation: on one core the time it takes, without what other programs take from the machine.
    CpuNs,
    /// Seconds that passed in all.
    WallSeconds,
    /// Memory per task.
    MemoryBytes,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Experiment {
    /// For the command line.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// What is compared.
    pub metric: Metric,
    /// The label (with its note) of the entry that ratios are taken to.
    pub baseline: Option<&'static str>,
    /// Who takes part.
    pub entries: Vec<Entry>,
    /// At most so many rounds, because one takes long.
    pub rounds_max: u16,
}

impl Entry {
    /// The contender's label, with the note if there is one.
    pub fn label(&self) -> String {
        if self.note.is_empty() {
            return self.contender.label.into();
        }
        format!("{}, {}", self.contender.label, self.note)
    }
}

fn entry(contender: Contender, test: Test, count: u64) -> Entry {
    Entry { contender, note: "", test, count, target: None }
}

impl Entry {
    fn at_most(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }
    fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }
}

const ANY_ROUNDS: u16 = u16::MAX;

/// Everything but the echo servers and the hooks.
pub fn experiments() -> Vec<Experiment> {
    use Test::*;
    vec![
        Experiment {
            key: "yield",
            title: "yield, per switch (two tasks on one core)",
            metric: Metric::CpuNs,
            baseline: Some("tokio current_thread, own waker"),
            rounds_max: ANY_ROUNDS,
            entries: vec![
                entry(PRIVATE, Yield, 2_000_000).at_most(0.75),
                entry(SHARED, Yield, 2_000_000).at_most(0.35),
                entry(TOKIO, Yield, 2_000_000).note("own waker"),
                entry(TOKIO, YieldNow, 500_000).note("yield_now"),
                entry(TOKIO_MULTI, Yield, 2_000_000).note("own waker"),
                entry(TOKIO_MULTI, YieldNow, 500_000).note("yield_now"),
                entry(MAY, Yield, 1_000_000),
                entry(GO, Yield, 1_000_000),
                entry(THREADS, Yield, 100_000),
            ],
        },
        Experiment {
            key: "spawn",
            title: "spawn + join, batches of 1,000, per task (one core)",
            metric: Metric::CpuNs,
            baseline: Some("tokio current_thread"),
            rounds_max: ANY_ROUNDS,
            entries: vec![
                entry(PRIVATE, SpawnJoin, 300_000).at_most(1.0),
                entry(SHARED, SpawnJoin, 300_000).at_most(0.6),
                entry(TOKIO, SpawnJoin, 300_000),
                entry(TOKIO_MULTI, SpawnJoin, 300_000),
                entry(MAY, SpawnJoin, 100_000),
                entry(GO, SpawnJoin, 300_000),
                entry(OPEN_COROUTINE, SpawnJoin, 1_000),
                entry(THREADS, SpawnJoin, 5_000),
            ],
        },
        Experiment {
            key: "channel",
            title: "channel ping-pong, per round trip (one core, unbounded channels; Go's unbuffered)",
            metric: Metric::CpuNs,
            baseline: Some("tokio current_thread"),
            rounds_max: ANY_ROUNDS,
            entries: vec![
                entry(PRIVATE, PingPong, 500_000).at_most(0.7),
                entry(SHARED, PingPong, 500_000).at_most(0.5),
                entry(PRIVATE, StdPingPong, 200_000).note("std::sync::mpsc"),
                entry(TOKIO, PingPong, 500_000),
                entry(TOKIO_MULTI, PingPong, 500_000),
                entry(MAY, PingPong, 200_000),
                entry(GO, PingPong, 500_000),
                entry(THREADS, StdPingPong, 20_000).note("std::sync::mpsc"),
            ],
        },
        Experiment {
            key: "hand-over",
            title: "hand-over by Mutex and Condvar, per turn (one core; std's in Squall and threads)",
            metric: Metric::CpuNs,
            baseline: Some("std threads"),
            rounds_max: ANY_ROUNDS,
            entries: vec![
                entry(PRIVATE, HandOver, 500_000),
                entry(SHARED, HandOver, 500_000),
                entry(MAY, HandOver, 200_000),
                entry(GO, HandOver, 500_000),
                entry(THREADS, HandOver, 20_000),
            ],
        },
        Experiment {
            key: "mutex",
            title: "uncontended std::sync::Mutex, lock + unlock (one core)",
            metric: Metric::CpuNs,
            baseline: Some("std threads"),
            rounds_max: ANY_ROUNDS,
            entries: vec![
                entry(PRIVATE, Mutex, 5_000_000),
                entry(SHARED, Mutex, 5_000_000),
                entry(GO, Mutex, 5_000_000).note("sync.Mutex"),
                entry(THREADS, Mutex, 5_000_000),
            ],
        },
        Experiment {
            key: "memory",
            title: "memory per parked task, bytes (100,000 tasks; may 30,000, threads 10,000)",
            metric: Metric::MemoryBytes,
            baseline: None,
            rounds_max: 5,
            entries: vec![
                entry(PRIVATE, Parked, 100_000).at_most(10.0 * 1024.0),
                entry(SHARED, Parked, 100_000).at_most(5.0 * 1024.0),
                entry(TOKIO, Parked, 100_000),
                entry(TOKIO_MULTI, Parked, 100_000),
                entry(MAY, Parked, 30_000),
                entry(GO, Parked, 100_000),
                entry(THREADS, Parked, 10_000),
            ],
        },
        Experiment {
            key: "sleep",
            title: "100,000 tasks sleep 1 s, seconds in all (one core; may 30,000)",
            metric: Metric::WallSeconds,
            baseline: Some("tokio current_thread"),
            rounds_max: 5,
            entries: vec![
                entry(PRIVATE, Sleep, 100_000).at_most(1.0),
                entry(SHARED, Sleep, 100_000).at_most(1.0),
                entry(TOKIO, Sleep, 100_000),
                entry(TOKIO_MULTI, Sleep, 100_000),
                entry(MAY, Sleep, 30_000),
                entry(GO, Sleep, 100_000),
            ],
        },
        Experiment {
            key: "million",
            title: "1,000,000 tasks sleep 1 s, seconds in all (one core)",
            metric: Metric::WallSeconds,
            baseline: Some("Go"),
            rounds_max: 5,
            entries: vec![
                entry(PRIVATE, Sleep, 1_000_000),
                entry(SHARED, Sleep, 1_000_000).at_most(1.0),
                entry(TOKIO, Sleep, 1_000_000),
                entry(TOKIO_MULTI, Sleep, 1_000_000),
                entry(GO, Sleep, 1_000_000),
            ],
        },
    ]
}

/// Whether valgrind runs the contender as it is: it knows neither FSGSBASE nor Go's stacks, and threads are the kernel's work.
pub fn counts_instructions(contender: &Contender) -> bool {
    [SHARED, TOKIO, TOKIO_MULTI, MAY].contains(contender)
}

/// Who echoes, the baseline among them. open-coroutine comes last, and only where it takes no ages (see the README).
pub const ECHO: [Contender; 9] =
    [PRIVATE, SHARED, EPOLL, TOKIO, TOKIO_MULTI, MAY, GO, THREADS, OPEN_COROUTINE];

/// What echo servers are compared to.
pub const ECHO_BASELINE: &str = TOKIO.label;

/// More connections than open-coroutine is asked to serve: setting them up alone takes longer than a run may.
pub const OPEN_COROUTINE_CONNECTIONS_MAX: usize = 64;

/// Numbers of connections.
pub const ECHO_CONNECTIONS: [usize; 4] = [1, 64, 1_000, 8_000];

/// What a hooked call in a fiber may cost over the bare system call, in nanoseconds.
pub const HOOK_IN_FIBER_NS_MAX: f64 = 40.0;
/// What a hooked call outside a fiber may cost over libc's, in nanoseconds.
pub const HOOK_OUTSIDE_NS_MAX: f64 = 3.0;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn baselines_take_part_and_labels_are_unambiguous() {
        for experiment in experiments() {
            let labels: HashSet<_> = experiment.entries.iter().map(Entry::label).collect();
            assert_eq!(labels.len(), experiment.entries.len(), "{}", experiment.key);
            if let Some(baseline) = experiment.baseline {
                assert!(labels.contains(baseline), "{}: {baseline}", experiment.key);
            }
        }
        assert!(ECHO.iter().any(|contender| contender.label == ECHO_BASELINE));
    }
}
