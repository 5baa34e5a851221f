//! Shows the scheduler: fibers that yield to each other on several workers, and a check that each of them ran to its end.

#![forbid(unsafe_code)]

use clap::Parser;
use squall::IoManager;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Spawns fibers that yield to each other, and checks that every step of every fiber has run.
///
/// Exits with 1 if a step is missing.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Worker threads, the calling thread among them.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1024))]
    workers: u64,
    /// Fibers.
    #[arg(long, default_value_t = 1000)]
    fibers: u64,
    /// How often each fiber yields.
    #[arg(long, default_value_t = 100)]
    steps: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    squall_test_bins::log_milestones();
    let manager = IoManager::new(arguments.workers as usize, true)?;
    let steps = Arc::new(AtomicU64::new(0));
    let started = std::time::Instant::now();
    let fibers: Vec<_> = (0..arguments.fibers)
        .map(|_| {
            let (steps, count) = (Arc::clone(&steps), arguments.steps);
            manager.spawn(move || {
                for _ in 0..count {
                    steps.fetch_add(1, Ordering::Relaxed);
                    squall::yield_now();
                }
            })
        })
        .collect();
    manager.stop();
    let elapsed = started.elapsed();
    let panicked = fibers.into_iter().filter_map(|fiber| fiber.join().err()).count();
    let (ran, wanted) = (steps.load(Ordering::Relaxed), arguments.fibers * arguments.steps);
    println!(
        "{} fibers on {} workers ran {ran} of {wanted} steps in {elapsed:.2?}, {:.0} ns a step",
        arguments.fibers,
        arguments.workers,
        elapsed.as_nanos() as f64 / ran.max(1) as f64
    );
    anyhow::ensure!(
        panicked == 0 && ran == wanted,
        "{panicked} fibers panicked, {} steps are missing",
        wanted - ran
    );
    Ok(())
}
