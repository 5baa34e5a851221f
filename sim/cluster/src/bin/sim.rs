//! Runs the cluster's simulation for many seeds, or for one again.
//!
//! Seeds are run by child processes, some seeds each: a program that is killed in a simulation leaves its memory behind, and a child that
//! dies names the seed it died of.

#![forbid(unsafe_code)]

use anyhow::{Context, bail, ensure};
use clap::Parser;
use squall_sim_cluster::plan::{self, Profile, Step};
use squall_sim_cluster::run::{Options, Report, run};
use squall_sim_cluster::shrink::shrink;
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many seeds a child runs.
const SEEDS_PER_CHILD: u64 = 20;
/// Every so many seeds one is run twice, and must do the same.
const TWICE_EVERY: u64 = 25;
/// How often a failing run is repeated with fewer faults.
const SHRINK_RUNS_MAX: usize = 60;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Runs a cluster of the real server, clients, and faults in a simulated world.
#[derive(Parser, Debug, Clone)]
#[command(name = "sim", version)]
struct Arguments {
    /// The seeds to run, the last one included.
    #[arg(long, value_name = "FIRST..LAST", default_value = "1..100", value_parser = parse_seeds)]
    seeds: (u64, u64),
    /// How many to run at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// How long clients work and faults come in each run, in simulated seconds.
    #[arg(long, default_value = "60s", value_parser = parse_length)]
    time: Duration,
    /// Which kinds of faults there may be.
    #[arg(long, value_enum, default_value_t = Profile::Swarm)]
    profile: Profile,
    /// How many nodes the cluster has.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// The faults of this file, a line each, instead of those drawn from the seed.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Runs one seed and shows its timeline; if it fails, with as few of its faults as it takes.
    #[arg(long, value_name = "SEED")]
    replay: Option<u64>,
    /// Writes every event of the replayed run here.
    #[arg(long, value_name = "FILE", requires = "replay")]
    trace: Option<PathBuf>,
    /// Runs on after a seed has failed.
    #[arg(long)]
    keep_going: bool,
    /// Runs the seeds here and prints a line for each: what the children of this program do.
    #[arg(long, hide = true)]
    child: bool,
}

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    let (first, last) = text.split_once("..").ok_or("seeds are given as FIRST..LAST")?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a seed"));
    let (first, last) = (number(first)?, number(last)?);
    if first > last { Err("the first seed is after the last".into()) } else { Ok((first, last)) }
}

fn parse_length(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>();
    seconds.map(Duration::from_secs).map_err(|_| format!("`{text}` is not a number of seconds"))
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let steps = match &arguments.scenario {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            Some(plan::parse(&text).with_context(|| path.display().to_string())?)
        }
        None => None,
    };
    let options = Options {
        profile: arguments.profile,
        length: arguments.time,
        nodes: arguments.nodes,
        steps,
        detailed: false,
    };
    let passed = match (arguments.replay, arguments.child) {
        (Some(seed), _) => replay(seed, &options, &arguments)?,
        (None, true) => {
            run_here(arguments.seeds, &options)?;
            true
        }
        (None, false) => run_all(&arguments)?,
    };
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows one run.
fn replay(seed: u64, options: &Options, arguments: &Arguments) -> anyhow::Result<bool> {
    let detailed = Options { detailed: arguments.trace.is_some(), ..options.clone() };
    let report = run(seed, &detailed);
    let mut out = std::io::stdout().lock();
    if let Some(path) = &arguments.trace {
        let mut file =
            std::io::BufWriter::new(std::fs::File::create(path).with_context(|| path.display().to_string())?);
        for line in &report.timeline {
            writeln!(file, "{line}")?;
        }
        file.flush()?;
        writeln!(out, "{} events are in {}", report.timeline.len(), path.display())?;
    } else if report.failures.is_empty() {
        show_timeline(&mut out, &report)?;
    }
    writeln!(out, "{}", summary(&report))?;
    if report.failures.is_empty() {
        return Ok(true);
    }
    show_failures(&mut out, &report)?;
    let still_fails = |steps: &[Step]| {
        !run(seed, &Options { steps: Some(steps.to_vec()), ..options.clone() }).failures.is_empty()
    };
    writeln!(out, "looking for the faults that it takes, of {}", report.steps.len())?;
    let few = shrink(&report.steps, SHRINK_RUNS_MAX, still_fails);
    let short = run(seed, &Options { steps: Some(few), ..options.clone() });
    writeln!(out, "\nit fails with these faults alone; as a file for --scenario:\n")?;
    for step in &short.steps {
        writeln!(out, "{step}")?;
    }
    writeln!(out, "\nand its timeline is then:\n")?;
    show_timeline(&mut out, &short)?;
    show_failures(&mut out, &short)?;
    Ok(false)
}

fn show_timeline(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    report.timeline.iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn show_failures(out: &mut impl Write, report: &Report) -> std::io::Result<()> {
    report.failures.iter().try_for_each(|failure| writeln!(out, "\nFAILED, seed {}: {failure}", report.seed))
}

fn summary(report: &Report) -> String {
    let (known, unknown) = report.operations;
    format!(
        "seed {}: digest {:016x} of {} events, {known} operations and {unknown} of unknown outcome, {} elections, {:.1} s",
        report.seed,
        report.digest,
        report.events,
        report.elections,
        report.simulated.as_secs_f64()
    )
}

/// What a child says of a seed, in words that `Line::parse` understands.
fn run_here((first, last): (u64, u64), options: &Options) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for seed in first..=last {
        let mut report = run(seed, options);
        if seed.is_multiple_of(TWICE_EVERY) {
            let again = run(seed, options);
            if (again.digest, again.events) != (report.digest, report.events) {
                report
                    .failures
                    .push("two runs of the same seed differ: something of the machine leaks in".into());
            }
        }
        let faults: Vec<String> =
            report.faults.iter().map(|(fault, count)| format!("{fault}={count}")).collect();
        writeln!(
            out,
            "{seed}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            report.simulated.as_millis(),
            report.operations.0,
            report.operations.1,
            report.undecided,
            report.elections,
            faults.join(","),
            report.failures.join(" | ").replace(['\n', '\t'], " ")
        )?;
        out.flush()?;
    }
    Ok(())
}

/// One seed's line.
struct Line {
    seed: u64,
    simulated: Duration,
    operations: u64,
    unknown: u64,
    undecided: u64,
    elections: u64,
    faults: Vec<(String, u64)>,
    failure: String,
}

impl Line {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let fields: Vec<&str> = text.split('\t').collect();
        let [seed, ms, operations, unknown, undecided, elections, faults, failure] = fields[..] else {
            bail!("a child said: {text}");
        };
        let fault = |pair: &str| {
            let (fault, count) = pair.split_once('=')?;
            Some((fault.to_owned(), count.parse().ok()?))
        };
        Ok(Self {
            seed: seed.parse()?,
            simulated: Duration::from_millis(ms.parse()?),
            operations: operations.parse()?,
            unknown: unknown.parse()?,
            undecided: undecided.parse()?,
            elections: elections.parse()?,
            faults: faults.split(',').filter_map(fault).collect(),
            failure: failure.to_owned(),
        })
    }
}

/// What all runs together came to.
#[derive(Default)]
struct Sum {
    /// Seeds that no child has taken yet.
    waiting: VecDeque<(u64, u64)>,
    seeds: u64,
    simulated: Duration,
    operations: u64,
    unknown: u64,
    undecided: u64,
    elections: u64,
    faults: BTreeMap<String, u64>,
    failed: BTreeMap<u64, String>,
    shown: Option<Instant>,
}

impl Sum {
    fn add(&mut self, line: Line) {
        self.seeds += 1;
        self.simulated += line.simulated;
        self.operations += line.operations;
        self.unknown += line.unknown;
        self.undecided += line.undecided;
        self.elections += line.elections;
        for (fault, count) in line.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        if !line.failure.is_empty() {
            self.failed.insert(line.seed, line.failure);
        }
    }
}

fn run_all(arguments: &Arguments) -> anyhow::Result<bool> {
    let (first, last) = arguments.seeds;
    let (started, total) = (Instant::now(), last - first + 1);
    let mut sum = Sum::default();
    let mut seed = first;
    while seed <= last {
        let end = last.min(seed + SEEDS_PER_CHILD - 1);
        sum.waiting.push_back((seed, end));
        seed = end + 1;
    }
    let sum = Mutex::new(sum);
    let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs.max(1))
            .map(|_| scope.spawn(|| run_children(arguments, &sum, started, total)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
            .collect()
    });
    results.into_iter().collect::<anyhow::Result<()>>()?;
    let sum = lock(&sum);
    show_progress(&sum, started, total);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds in {seconds:.0} s, {:.1} a minute and job; {:.2} simulated hours, {:.0} times as fast as the clock",
        sum.seeds,
        sum.seeds as f64 * 60.0 / seconds / arguments.jobs.max(1) as f64,
        sum.simulated.as_secs_f64() / 3600.0,
        sum.simulated.as_secs_f64() / seconds
    );
    println!(
        "{} operations, {} more of unknown outcome, {} elections, {} histories given up",
        sum.operations, sum.unknown, sum.elections, sum.undecided
    );
    for (fault, count) in &sum.faults {
        println!("{count:>8} {fault}");
    }
    for (seed, failure) in &sum.failed {
        println!("FAILED, seed {seed}: {failure}");
    }
    if let Some(seed) = sum.failed.keys().next() {
        println!();
        let mut replay = same_options(arguments)?;
        replay.args(["--replay", &seed.to_string()]).status()?;
        println!(
            "\nto see it again: sim --replay {seed} --profile {:?} --time {}s",
            arguments.profile,
            arguments.time.as_secs()
        );
    }
    Ok(sum.failed.is_empty())
}

fn lock(sum: &Mutex<Sum>) -> MutexGuard<'_, Sum> {
    sum.lock().unwrap_or_else(PoisonError::into_inner)
}

fn same_options(arguments: &Arguments) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    let profile = clap::ValueEnum::to_possible_value(&arguments.profile).context("a profile has a name")?;
    command.args(["--profile", profile.get_name(), "--time", &format!("{}s", arguments.time.as_secs())]);
    command.args(["--nodes", &arguments.nodes.to_string()]);
    if let Some(path) = &arguments.scenario {
        command.arg("--scenario").arg(path);
    }
    Ok(command)
}

/// Takes seeds and has children run them until none are left.
fn run_children(arguments: &Arguments, sum: &Mutex<Sum>, started: Instant, total: u64) -> anyhow::Result<()> {
    loop {
        let (first, last) = {
            let mut sum = lock(sum);
            if !sum.failed.is_empty() && !arguments.keep_going {
                return Ok(());
            }
            let Some(seeds) = sum.waiting.pop_front() else { return Ok(()) };
            seeds
        };
        let mut command = same_options(arguments)?;
        command.args(["--child", "--seeds", &format!("{first}..{last}")]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the child has a pipe")?).lines();
        let mut next = first;
        for line in lines {
            let line = Line::parse(&line?)?;
            ensure!(line.seed == next, "a child ran seed {} instead of {next}", line.seed);
            next += 1;
            let mut sum = lock(sum);
            sum.add(line);
            if sum.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL) {
                sum.shown = Some(Instant::now());
                show_progress(&sum, started, total);
            }
        }
        let output = child.wait_with_output()?;
        if next <= last {
            let last_words = String::from_utf8_lossy(&output.stderr);
            let last_words: Vec<&str> = last_words.lines().rev().take(8).collect();
            let mut sum = lock(sum);
            sum.seeds += 1;
            sum.failed
                .insert(next, format!("the process ended ({}): {}", output.status, last_words.join(" / ")));
            if next < last {
                sum.waiting.push_front((next + 1, last));
            }
        }
    }
}

fn show_progress(sum: &Sum, started: Instant, total: u64) {
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{:>6} of {total} seeds, {} failed; {:.1} seeds/s, {:.2} simulated hours/s",
        sum.seeds,
        sum.failed.len(),
        sum.seeds as f64 / seconds,
        sum.simulated.as_secs_f64() / 3600.0 / seconds
    );
}
