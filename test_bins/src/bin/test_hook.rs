//! Shows that sleeping fibers share one worker thread: prints the milestones of a scheduler's life and then one line whenever one of
//! two sleepers wakes.

#![forbid(unsafe_code)]

use clap::Parser;
use squall::IoManager;
use std::thread;
use std::time::{Duration, Instant};

/// Two fibers sleep on one worker thread: one for 6 s at a time, one for 2 s.
///
/// Both call std::thread::sleep, which suspends the fiber and not the thread; so in ten seconds there are four lines of the
/// one and one of the other. Runs until stopped, or for the time given.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Stop by itself after so many seconds.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    squall_test_bins::log_milestones();
    let end = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));

    let id = std::process::id();
    println!("[TASK] tid = {id},test_fiber_sleep begin");
    let manager = IoManager::new(1, true)?;
    for (line, seconds) in [("task 1 sleep for 6s", 6), ("task2 sleep for 2s", 2)] {
        let pause = Duration::from_secs(seconds);
        manager.spawn(move || {
            loop {
                let left = end.map_or(pause, |end| end.saturating_duration_since(Instant::now()));
                thread::sleep(pause.min(left));
                if left < pause {
                    break;
                }
                println!("{line}");
            }
        });
    }
    println!("[TASK] tid = {id},test_fiber_sleep finish");
    // The calling thread is the only worker: from here on it runs the fibers.
    manager.stop();
    Ok(())
}
