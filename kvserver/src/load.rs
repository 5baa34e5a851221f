//! Load on a cluster, and how it copes: many clients of the Redis port at once, in a closed loop (each as fast as it is answered) or in an
//! open one (so many requests a second, whether answered or not).
//!
//! In an open loop the time of a request counts from when it was due, not from when a client that waited for the one before
//! could send it: else a server that stalls for a second would be charged one slow request instead of all that should have been made in that
//! second (Tene, "How NOT to Measure Latency", on coordinated omission).

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::resp::{Reply, RespClient};

/// Longer times than this are counted as this.
const LATENCY_US_MAX: u64 = 600_000_000;
const TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before a client that was refused or disconnected tries again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
const ZIPF_EXPONENT: f64 = 0.99;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `GET`.
    Get,
    /// `SET`.
    Put,
    /// `APPEND`.
    Append,
}

/// All operations.
pub const OPERATIONS: [Operation; 3] = [Operation::Get, Operation::Put, Operation::Append];

impl Operation {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::Put => "put",
            Operation::Append => "append",
        }
    }
}

/// Which keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// All equally often.
    Uniform,
    /// Few of them most of the time, as in YCSB: the nth most popular with a weight of n to the power of -0.99.
    Zipfian,
}

/// What load to make.
#[derive(Clone, Debug)]
pub struct Load {
    /// The Redis ports of the nodes; the clients are spread over them.
    pub addresses: Vec<SocketAddr>,
    /// What to authenticate with.
    pub password: Option<Vec<u8>>,
    /// How many connections.
    pub clients: usize,
    /// How many requests a client sends before it waits for their replies.
    pub pipeline: usize,
    /// How often each of [`OPERATIONS`] is made, as weights.
    pub mix: [u32; 3],
    /// How many keys there are.
    pub keys: u64,
    /// Which of them are asked for.
    pub distribution: Distribution,
    /// How long values are, in bytes. What is appended is 16 bytes at most.
    pub value_bytes: usize,
    /// Requests a second, of all clients together; `None` for as many as are answered.
    pub rate: Option<f64>,
    /// How long to measure.
    pub duration: Duration,
    /// How long to work before that.
    pub warm_up: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// How long was measured.
    pub elapsed: Duration,
    /// The times of each of [`OPERATIONS`] in microseconds.
    pub latency_us: [Histogram<u64>; 3],
    /// Requests that were answered with an error, or whose connection broke.
    pub errors: u64,
    /// The first error.
    pub first_error: Option<String>,
    /// Requests answered in each second of the measurement.
    pub timeline: Vec<Second>,
}

/// One second of a measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second {
    /// Requests answered.
    pub requests: u64,
    /// The longest time of one of them, in microseconds.
    pub latency_us_max: u64,
}

impl Report {
    /// Requests answered without an error.
    pub fn requests(&self) -> u64 {
        self.latency_us.iter().map(Histogram::len).sum()
    }

    /// Requests answered per second.
    pub fn rate(&self) -> f64 {
        self.requests() as f64 / self.elapsed.as_secs_f64()
    }

    /// The times of all operations together.
    pub fn all_latency_us(&self) -> Histogram<u64> {
        let mut all = new_histogram();
        for latency_us in &self.latency_us {
            // Of the same bounds, so it fits.
            let _ = all.add(latency_us);
        }
        all
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are in order")
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the first request.
    pub elapsed: Duration,
    /// Requests answered so far, the warm-up's among them.
    pub requests: u64,
    /// Errors so far.
    pub errors: u64,
}

/// What the clients of a run have in common.
struct Run {
    load: Load,
    keys: Keys,
    started: Instant,
    requests: AtomicU64,
    errors: AtomicU64,
    stopping: AtomicBool,
    first_error: Mutex<Option<String>>,
}

/// Makes the load until it is done or `goes_on` says no; that is asked about four times a second.
///
/// # Errors
/// When no client can connect.
///
/// # Blocking
/// For the duration of the run.
pub fn run(load: Load, mut goes_on: impl FnMut(Progress) -> bool) -> io::Result<Report> {
    // Fail at once, and with the system's words, rather than as so many clients that fail.
    for address in &load.addresses {
        RespClient::connect(*address, load.password.as_deref(), TIMEOUT)
            .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
    }
    let total = load.warm_up + load.duration;
    let clients = load.clients.max(1);
    let run = Arc::new(Run {
        keys: Keys::new(load.keys, load.distribution),
        load,
        started: Instant::now(),
        requests: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        first_error: Mutex::default(),
    });
    let (sender, measured) = mpsc::channel();
    for number in 0..clients {
        let (run, sender) = (Arc::clone(&run), sender.clone());
        crate::spawn(format!("load-{number}"), move || {
            let _ = sender.send(Client::new(&run, number, clients).work());
        })?;
    }
    drop(sender);
    while run.started.elapsed() < total {
        let progress = Progress {
            elapsed: run.started.elapsed(),
            requests: run.requests.load(Ordering::Relaxed),
            errors: run.errors.load(Ordering::Relaxed),
        };
        if !goes_on(progress) {
            break;
        }
        std::thread::sleep((total.saturating_sub(run.started.elapsed())).min(Duration::from_millis(250)));
    }
    run.stopping.store(true, Ordering::Relaxed);
    let elapsed = run.started.elapsed().saturating_sub(run.load.warm_up);
    let mut report = Report {
        elapsed,
        latency_us: std::array::from_fn(|_| new_histogram()),
        errors: 0,
        first_error: None,
        timeline: Vec::new(),
    };
    for measured in measured {
        for (all, own) in report.latency_us.iter_mut().zip(&measured.latency_us) {
            let _ = all.add(own);
        }
        if report.timeline.len() < measured.timeline.len() {
            report.timeline.resize(measured.timeline.len(), Second::default());
        }
        for (all, own) in report.timeline.iter_mut().zip(&measured.timeline) {
            all.requests += own.requests;
            all.latency_us_max = all.latency_us_max.max(own.latency_us_max);
        }
    }
    report.errors = run.errors.load(Ordering::Relaxed);
    report.first_error = run.first_error.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(report)
}

struct Measured {
    latency_us: [Histogram<u64>; 3],
    timeline: Vec<Second>,
}

struct Client<'a> {
    run: &'a Run,
    random: fastrand::Rng,
    value: Vec<u8>,
    /// When its next request is due, and how long after that the one that follows, in an open loop.
    due: Option<(Instant, Duration)>,
    number: usize,
    measured: Measured,
}

impl<'a> Client<'a> {
    fn new(run: &'a Run, number: usize, clients: usize) -> Self {
        let load = &run.load;
        let mut random = fastrand::Rng::new();
        let value = (0..load.value_bytes).map(|_| random.alphanumeric() as u8).collect();
        let due = load.rate.map(|rate| {
            let interval = Duration::from_secs_f64(clients as f64 / rate);
            // Spread, so that the clients do not all send at the same moments.
            (run.started + interval.mul_f64(number as f64 / clients as f64), interval)
        });
        let measured =
            Measured { latency_us: std::array::from_fn(|_| new_histogram()), timeline: Vec::new() };
        Self { run, random, value, due, number, measured }
    }

    fn work(mut self) -> Measured {
        let addresses = &self.run.load.addresses;
        let mut node = self.number % addresses.len();
        while !self.is_stopping() {
            let connected = RespClient::connect(addresses[node], self.run.load.password.as_deref(), TIMEOUT);
            if let Err(error) = connected.and_then(|client| self.converse(client)) {
                self.note_error(&format!("{}: {error}", addresses[node]));
                node = (node + 1) % addresses.len();
                std::thread::sleep(RETRY_PAUSE);
            }
        }
        self.measured
    }

    fn is_stopping(&self) -> bool {
        self.run.stopping.load(Ordering::Relaxed)
    }

    fn note_error(&self, error: &str) {
        self.run.errors.fetch_add(1, Ordering::Relaxed);
        self.run
            .first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(|| error.into());
    }

    fn converse(&mut self, mut client: RespClient) -> io::Result<()> {
        let mut sent = Vec::new();
        while !self.is_stopping() {
            for _ in 0..self.run.load.pipeline.max(1) {
                let Some(due) = self.wait_until_due() else { break };
                let operation = self.choose();
                self.push(&mut client, operation);
                sent.push((operation, due));
            }
            client.flush()?;
            for (operation, due) in sent.drain(..) {
                match client.receive()? {
                    Reply::Error(text) => {
                        self.note_error(&text);
                        std::thread::sleep(RETRY_PAUSE);
                    }
                    _ => self.count(operation, due),
                }
            }
        }
        Ok(())
    }

    /// When the next request is due, which is now; `None` if the run ends before.
    fn wait_until_due(&mut self) -> Option<Instant> {
        let Some((due, interval)) = &mut self.due else { return Some(Instant::now()) };
        let next = *due;
        *due += *interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(next);
            }
            if self.run.stopping.load(Ordering::Relaxed) {
                return None;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn choose(&mut self) -> Operation {
        let mix = self.run.load.mix;
        let mut point = self.random.u32(0..mix.iter().sum::<u32>().max(1));
        for (operation, weight) in OPERATIONS.into_iter().zip(mix) {
            if point < weight {
                return operation;
            }
            point -= weight;
        }
        Operation::Get
    }

    fn push(&mut self, client: &mut RespClient, operation: Operation) {
        let key = format!("key:{:010}", self.run.keys.choose(&mut self.random));
        let key = key.as_bytes();
        match operation {
            Operation::Get => client.push(&[b"GET", key]),
            Operation::Put => client.push(&[b"SET", key, &self.value]),
            Operation::Append => client.push(&[b"APPEND", key, &self.value[..self.value.len().min(16)]]),
        }
    }

    fn count(&mut self, operation: Operation, due: Instant) {
        self.run.requests.fetch_add(1, Ordering::Relaxed);
        let (now, warm_up) = (Instant::now(), self.run.load.warm_up);
        let Some(measured_for) = now.duration_since(self.run.started).checked_sub(warm_up) else { return };
        let latency_us = (now.duration_since(due).as_micros() as u64).clamp(1, LATENCY_US_MAX);
        let kind = OPERATIONS.iter().position(|other| *other == operation).unwrap_or_default();
        self.measured.latency_us[kind].saturating_record(latency_us);
        let second = measured_for.as_secs() as usize;
        if self.measured.timeline.len() <= second {
            self.measured.timeline.resize(second + 1, Second::default());
        }
        let second = &mut self.measured.timeline[second];
        second.requests += 1;
        second.latency_us_max = second.latency_us_max.max(latency_us);
    }
}

/// Chooses keys.
enum Keys {
    Uniform(u64),
    /// The sums of the weights of the first keys by popularity.
    Zipfian(Vec<f64>),
}

impl Keys {
    fn new(keys: u64, distribution: Distribution) -> Self {
        let keys = keys.max(1);
        match distribution {
            Distribution::Uniform => Keys::Uniform(keys),
            Distribution::Zipfian => {
                let weights = (1..=keys).map(|rank| (rank as f64).powf(-ZIPF_EXPONENT));
                Keys::Zipfian(
                    weights
                        .scan(0.0, |sum, weight| {
                            *sum += weight;
                            Some(*sum)
                        })
                        .collect(),
                )
            }
        }
    }

    fn choose(&self, random: &mut fastrand::Rng) -> u64 {
        match self {
            Keys::Uniform(keys) => random.u64(0..*keys),
            Keys::Zipfian(sums) => {
                let point = random.f64() * sums.last().copied().unwrap_or_default();
                sums.partition_point(|sum| *sum <= point).min(sums.len() - 1) as u64
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn popular_keys_are_as_popular_as_they_should_be() {
        let mut random = fastrand::Rng::with_seed(7);
        let keys = Keys::new(1000, Distribution::Zipfian);
        let mut counts = vec![0_u32; 1000];
        for _ in 0..200_000 {
            counts[keys.choose(&mut random) as usize] += 1;
        }
        let sum: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-ZIPF_EXPONENT)).sum();
        let expected = 200_000.0 / sum;
        assert!((f64::from(counts[0]) / expected - 1.0).abs() < 0.05, "{} of {expected}", counts[0]);
        assert!(counts[0] > counts[9] && counts[9] > counts[99]);
        let uniform = Keys::new(3, Distribution::Uniform);
        let mut seen = [false; 3];
        (0..200).for_each(|_| seen[uniform.choose(&mut random) as usize] = true);
        assert_eq!(seen, [true; 3]);
    }
}
