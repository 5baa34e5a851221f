//! Makes known mistakes, one at a time, and counts the seeds and seconds until the simulation finds each. Needs a build with
//! `--features planted-bugs`, of this program and of `sim` beside it.

#![forbid(unsafe_code)]

use anyhow::{Context, ensure};
use clap::Parser;
use squall_raft::planted::{Mistake, VARIABLE};
use squall_sim_cluster::plan::Profile;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const SEEDS_PER_CHILD: u64 = 20;

/// Finds planted bugs.
#[derive(Parser, Debug)]
struct Arguments {
    /// The mistakes to make; all of them if none is named.
    mistakes: Vec<String>,
    /// How many seeds to try for each, in pieces of 20 of each profile in turn.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// How many mistakes to look for at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
}

/// What it took to find a mistake.
struct Found {
    seed: u64,
    profile: Profile,
    took: Duration,
    failure: String,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    ensure!(
        cfg!(feature = "planted-bugs"),
        "this build cannot make mistakes; `make planted` builds one that can, and runs it"
    );
    let is_meant = |mistake: &Mistake| {
        arguments.mistakes.is_empty() || arguments.mistakes.iter().any(|name| name == mistake.name())
    };
    let mistakes: Vec<Mistake> = Mistake::ALL.iter().copied().filter(is_meant).collect();
    ensure!(!mistakes.is_empty(), "no mistake has that name");
    let next = Mutex::new(mistakes.iter());
    let missed = Mutex::new(0);
    println!(
        "| mistake | what is done wrong | profile | seeds | seconds | how it shows |\n|---|---|---|---|---|---|"
    );
    std::thread::scope(|scope| {
        let work = || -> anyhow::Result<()> {
            loop {
                let mistake = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(mistake) = mistake else { return Ok(()) };
                let row = match find(*mistake, arguments.seeds)? {
                    Some(found) => {
                        let Found { seed, profile, took, failure } = found;
                        format!("{} | {seed} | {:.0} | {failure}", profile.name(), took.as_secs_f64())
                    }
                    None => {
                        *missed.lock().unwrap_or_else(PoisonError::into_inner) += 1;
                        format!("all | NOT FOUND in {} | | ", arguments.seeds)
                    }
                };
                println!("| {} | {} | {row} |", mistake.name(), mistake.meaning());
            }
        };
        let workers: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a worker panicked")))
    })?;
    let missed = *missed.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs seeds until one fails.
fn find(mistake: Mistake, seeds: u64) -> anyhow::Result<Option<Found>> {
    let started = Instant::now();
    let sim = std::env::current_exe()?.with_file_name("sim");
    let found = |seed, profile, failure: &str| {
        let failure: String = failure.split(" | ").next().unwrap_or("").chars().take(110).collect();
        Some(Found { seed, profile, took: started.elapsed(), failure: failure.replace('|', "/") })
    };
    let mut first = 1;
    while first <= seeds {
        let last = seeds.min(first + SEEDS_PER_CHILD - 1);
        let piece = (first / SEEDS_PER_CHILD) as usize;
        let profile = Profile::FAULTY[piece % Profile::FAULTY.len()];
        let mut child = Command::new(&sim)
            .args(["--child", "--profile", profile.name(), "--seeds", &format!("{first}..{last}")])
            .env(VARIABLE, mistake.name())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", sim.display()))?;
        let lines = BufReader::new(child.stdout.take().context("the child has a pipe")?).lines();
        let mut next = first;
        for line in lines {
            let line = line?;
            let failure = line.rsplit('\t').next().unwrap_or("");
            if !failure.is_empty() {
                child.kill()?;
                child.wait()?;
                return Ok(found(next, profile, failure));
            }
            next += 1;
        }
        let status = child.wait()?;
        first = next;
        // Somebody outside ended it: that says nothing of the mistake.
        let was_stopped = status.signal().is_some_and(|signal| [2, 9, 15].contains(&signal));
        if next <= last && !was_stopped {
            return Ok(found(next, profile, &format!("the process ended: {status}")));
        }
    }
    Ok(None)
}
