//! Fibers by the ten thousand that spawn, sleep, talk and steal, round after round, and check what comes of it.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use serde_json::json;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Runs thousands of fibers through everything that fibers do, and checks the results.
///
/// Each round takes the phases one after the other: spawn, sleep, yield, channels, locks, deadlines, sockets. Exits with 1 if a check
/// fails.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Fibers at a time.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    fibers: u32,
    /// Begin no round after so long.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Worker threads; one for each processor if not said.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// How many connections there are at a time, at most: each takes two descriptors.
const CONNECTIONS_MAX: u32 = 400;
const MESSAGES: u32 = 20;

/// What a phase has done so far.
#[derive(Default)]
struct Tally {
    operations: u64,
    failed: u64,
    took: Duration,
}

type Phase = fn(u32) -> (u64, u64);
const PHASES: [(&str, Phase); 7] = [
    ("spawn", spawn),
    ("sleep", sleep),
    ("yield", give_way),
    ("channels", channels),
    ("locks", locks),
    ("deadlines", deadlines),
    ("sockets", sockets),
];

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(workers) = arguments.workers {
        squall::set_workers(workers.into());
    }
    let limit = Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?;
    let fibers = arguments.fibers;
    let shows_progress = std::io::stderr().is_terminal() && !arguments.json;
    let started = Instant::now();
    let mut rounds = 0;
    let mut tallies: [Tally; PHASES.len()] = Default::default();
    // In a fiber: what joins the others is one itself.
    let tallies = squall::spawn(move || {
        while rounds == 0 || started.elapsed() < limit {
            rounds += 1;
            for ((name, phase), tally) in PHASES.iter().zip(&mut tallies) {
                if shows_progress {
                    eprint!("\r{:6.1} s, round {rounds}: {name:<10}", started.elapsed().as_secs_f64());
                }
                let begun = Instant::now();
                let (operations, failed) = phase(fibers);
                tally.operations += operations;
                tally.failed += failed;
                tally.took += begun.elapsed();
            }
        }
        (rounds, tallies)
    })
    .join();
    let Ok((rounds, tallies)) = tallies else { anyhow::bail!("a phase panicked") };
    if shows_progress {
        eprintln!();
    }
    let metrics = squall::metrics();
    let steals: u64 =
        metrics.schedulers.iter().flat_map(|scheduler| &scheduler.workers).map(|worker| worker.steals).sum();
    let switches: u64 = metrics
        .schedulers
        .iter()
        .flat_map(|scheduler| &scheduler.workers)
        .map(|worker| worker.switches)
        .sum();
    let failed: u64 = tallies.iter().map(|tally| tally.failed).sum();
    let rate = |tally: &Tally| tally.operations as f64 / tally.took.as_secs_f64();
    if arguments.json {
        let phases: Vec<_> = PHASES
            .iter()
            .zip(&tallies)
            .map(|((name, _), tally)| {
                json!({ "phase": name, "operations": tally.operations, "failed": tally.failed, "operations_per_second": rate(tally) })
            })
            .collect();
        println!(
            "{}",
            json!({ "fibers": fibers, "rounds": rounds, "failed": failed, "switches": switches, "steals": steals, "phases": phases })
        );
    } else {
        println!(
            "fiber stress test: {fibers} fibers, {rounds} rounds in {:.1} s",
            started.elapsed().as_secs_f64()
        );
        println!("{:<10} {:>12} {:>8} {:>14}", "phase", "operations", "failed", "operations/s");
        for ((name, _), tally) in PHASES.iter().zip(&tallies) {
            println!("{name:<10} {:>12} {:>8} {:>14.0}", tally.operations, tally.failed, rate(tally));
        }
        println!("switches: {switches}, steals: {steals}");
        println!("failed: {failed}");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts a fiber for each number and joins them: each must return what was given to it. Counts those that did not.
fn each(count: u32, body: impl Fn(u32) -> bool + Clone + Send + 'static) -> u64 {
    let fibers: Vec<_> = (0..count)
        .map(|number| {
            let body = body.clone();
            squall::spawn(move || body(number))
        })
        .collect();
    fibers.into_iter().map(|fiber| u64::from(!fiber.join().unwrap_or(false))).sum()
}

fn spawn(fibers: u32) -> (u64, u64) {
    let sum = Arc::new(AtomicU64::new(0));
    let adding = Arc::clone(&sum);
    let failed = each(fibers, move |number| {
        adding.fetch_add(u64::from(number), Ordering::Relaxed);
        true
    });
    let expected = u64::from(fibers) * u64::from(fibers - 1) / 2;
    (u64::from(fibers), failed + u64::from(sum.load(Ordering::Relaxed) != expected))
}

fn sleep(fibers: u32) -> (u64, u64) {
    let failed = each(fibers, |number| {
        let duration = Duration::from_millis(u64::from(number % 20));
        let begun = Instant::now();
        std::thread::sleep(duration);
        begun.elapsed() >= duration
    });
    (u64::from(fibers), failed)
}

fn give_way(fibers: u32) -> (u64, u64) {
    const TIMES: u32 = 10;
    let turns = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&turns);
    let failed = each(fibers, move |_| {
        for _ in 0..TIMES {
            counting.fetch_add(1, Ordering::Relaxed);
            squall::yield_now();
        }
        true
    });
    let expected = u64::from(fibers) * u64::from(TIMES);
    (expected, failed + u64::from(turns.load(Ordering::Relaxed) != expected))
}

/// A chain of fibers, each of which passes on what it gets, plus one.
fn channels(fibers: u32) -> (u64, u64) {
    let (first, mut input) = mpsc::sync_channel::<u64>(4);
    for _ in 0..fibers {
        let (output, next) = mpsc::sync_channel(4);
        let from = std::mem::replace(&mut input, next);
        squall::spawn(move || {
            while let Ok(number) = from.recv() {
                if output.send(number + 1).is_err() {
                    break;
                }
            }
        });
    }
    squall::spawn(move || (0..u64::from(MESSAGES)).for_each(|number| first.send(number).unwrap_or(())));
    let received: Vec<u64> = input.iter().collect();
    let expected: Vec<u64> = (0..u64::from(MESSAGES)).map(|number| number + u64::from(fibers)).collect();
    (u64::from(fibers) * u64::from(MESSAGES), u64::from(received != expected))
}

/// Everybody counts under one lock, and the last one wakes those who wait for it.
fn locks(fibers: u32) -> (u64, u64) {
    let shared = Arc::new((Mutex::new(0_u32), Condvar::new()));
    let counting = Arc::clone(&shared);
    let failed = each(fibers, move |_| {
        let (count, all_are_here) = &*counting;
        let mut count = count.lock().unwrap();
        *count += 1;
        if *count == fibers {
            all_are_here.notify_all();
        }
        while *count < fibers {
            count = all_are_here.wait(count).unwrap();
        }
        *count == fibers
    });
    (u64::from(fibers), failed)
}

/// Half of them are given up while they wait, the other half are not.
fn deadlines(fibers: u32) -> (u64, u64) {
    let failed = each(fibers, move |number| {
        let given_up = number % 2 == 0;
        let patience = if given_up { Duration::from_millis(1) } else { Duration::from_secs(600) };
        squall::with_deadline(patience, || {
            let semaphore = squall::sync::Semaphore::new(u32::from(!given_up) as usize);
            semaphore.acquire().is_err() == given_up
        })
    });
    (u64::from(fibers), failed)
}

/// Pairs that echo what they get, by blocking reads and writes.
fn sockets(fibers: u32) -> (u64, u64) {
    let connections = (fibers / 2).min(CONNECTIONS_MAX);
    let failed = each(connections, |number| echo(number).unwrap_or(false));
    (u64::from(connections) * u64::from(MESSAGES), failed)
}

fn echo(number: u32) -> std::io::Result<bool> {
    let (mut here, mut there) = UnixStream::pair()?;
    squall::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            match there.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    if there.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            }
        }
    });
    for message in 0..MESSAGES {
        let sent: Vec<u8> =
            (0..1 + (number + message) % 3000).map(|byte| (byte ^ number ^ message) as u8).collect();
        here.write_all(&sent)?;
        let mut received = vec![0; sent.len()];
        here.read_exact(&mut received)?;
        if received != sent {
            return Ok(false);
        }
    }
    Ok(true)
}
