//! Runs the cluster's simulation for many seeds, or for one again.
//!
//! Seeds are run by child processes, some seeds each: a program that is killed in a simulation leaves its memory behind, and a child that
//! dies names the seed it died of.

#![forbid(unsafe_code)]

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use squall_sim_cluster::plan::{self, Profile, Step};
use squall_sim_cluster::run::{Options, Report, run};
use squall_sim_cluster::shrink::shrink;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many seeds a child runs.
const SEEDS_PER_CHILD: u64 = 20;
/// Every so many seeds one is run twice, and must do the same.
const TWICE_EVERY: u64 = 25;
/// How often a failing run is repeated with fewer faults.
const SHRINK_RUNS_MAX: usize = 60;
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Fresh seeds begin below it: short enough to be typed.
const FRESH_MAX: u64 = 1_000_000_000;

const EXPLANATION: &str = "\
Runs a whole cluster, clients, and faults in a simulated world.

A seed decides everything in a run: what goes wrong and when, what the clients do, which fiber runs next, how long each message and each \
sync takes. The nodes are the real server; its operating system is simulated. In the end everything that clients saw must be explained, \
and everything that the nodes did must be sound; a seed that passes says nothing of others, so run many.";

const EXAMPLES: &str = "\
Examples:
  sim --seeds 1..1000 --jobs 2                  these seeds, with a summary of what went wrong in their worlds
  sim --seeds fresh --time 60s --profile all    seeds that nobody has run, for a minute, of every profile
  sim --replay 17                               what happened in this run, as a timeline of all nodes
  sim --replay 17 --trace trace.txt             the same with every call, message and decision
  sim --scenario sim/cluster/scenarios/chained.txt --seeds 1..50
                                                faults from a file, in runs that differ in everything else

When a seed fails, it is run again with fewer and fewer of its faults. What is left is printed as a scenario, with the timeline of that run. \
The same seed fails in the same way on every machine, until the code changes.

Exit status: 0 if all seeds passed, 1 if one failed.";

/// Runs a whole cluster, clients, and faults in a simulated world.
#[derive(Parser, Debug, Clone)]
#[command(name = "sim", version, long_about = EXPLANATION, after_long_help = EXAMPLES)]
struct Arguments {
    /// The seeds to run, the last one included; `fresh` draws where to begin.
    #[arg(long, value_name = "FIRST..LAST|FIRST..|fresh", default_value = "1..100", value_parser = parse_seeds)]
    seeds: (u64, u64),
    /// Stops after this long, whatever seeds are left.
    #[arg(long, value_name = "SECONDS", value_parser = parse_time)]
    time: Option<Duration>,
    /// How many to run at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// What may go wrong; several with commas, `all` for each in turn.
    #[arg(long, value_name = "NAME,...", default_value = "swarm", value_parser = parse_profiles)]
    profile: Profiles,
    /// How long clients work and faults come in each run, in simulated seconds.
    #[arg(long, value_name = "SECONDS", default_value = "60s", value_parser = parse_time)]
    length: Duration,
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
    /// Prints the summary as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Runs the seeds here and prints a line for each: what the children of this program do.
    #[arg(long, hide = true)]
    child: bool,
}

/// A list that is one argument.
#[derive(Debug, Clone)]
struct Profiles(Vec<Profile>);

fn parse_seeds(text: &str) -> Result<(u64, u64), String> {
    if text == "fresh" {
        return Ok((RandomState::new().build_hasher().finish() % FRESH_MAX, u64::MAX));
    }
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("`{text}` is not a seed"));
    let Some((first, last)) = text.split_once("..") else {
        let only = number(text)?;
        return Ok((only, only));
    };
    let (first, last) = (number(first)?, if last.is_empty() { u64::MAX } else { number(last)? });
    if first > last { Err("the first seed is after the last".into()) } else { Ok((first, last)) }
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>();
    seconds.map(Duration::from_secs).map_err(|_| format!("`{text}` is not a number of seconds, such as 60s"))
}

fn parse_profiles(text: &str) -> Result<Profiles, String> {
    let names = || Profile::value_variants().iter().map(|profile| profile.name()).collect::<Vec<_>>();
    let profile = |name: &str| {
        let found = Profile::value_variants().iter().copied().find(|profile| profile.name() == name);
        found.ok_or_else(|| format!("`{name}` is none of {} and all", names().join(", ")))
    };
    match text {
        "all" => Ok(Profiles(Profile::FAULTY.to_vec())),
        text => text.split(',').map(profile).collect::<Result<_, _>>().map(Profiles),
    }
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
        profile: arguments.profile.0[0],
        length: arguments.length,
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
#[derive(Serialize, Default)]
struct Sum {
    first_seed: u64,
    seeds: u64,
    /// Seeds that were run twice, and did the same both times.
    replayed: u64,
    seconds: f64,
    simulated_seconds: f64,
    operations: u64,
    operations_of_unknown_outcome: u64,
    histories_given_up: u64,
    elections: u64,
    faults: BTreeMap<String, u64>,
    failures: Vec<Failure>,
}

/// A seed that failed.
#[derive(Serialize, Clone)]
struct Failure {
    seed: u64,
    profile: &'static str,
    failure: String,
}

impl Sum {
    fn add(&mut self, line: Line, profile: Profile) {
        self.seeds += 1;
        self.replayed += u64::from(line.seed.is_multiple_of(TWICE_EVERY));
        self.simulated_seconds += line.simulated.as_secs_f64();
        self.operations += line.operations;
        self.operations_of_unknown_outcome += line.unknown;
        self.histories_given_up += line.undecided;
        self.elections += line.elections;
        for (fault, count) in line.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        if !line.failure.is_empty() {
            self.fail(line.seed, profile, line.failure);
        }
    }

    fn fail(&mut self, seed: u64, profile: Profile, failure: String) {
        println_unless_broken(&format!("FAILED, seed {seed} of profile {}: {failure}", profile.name()));
        self.failures.push(Failure { seed, profile: profile.name(), failure });
    }
}

/// To the terminal: whoever reads the summary from a pipe is not to be bothered.
fn println_unless_broken(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Seeds for one child.
#[derive(Clone, Copy)]
struct Piece {
    first: u64,
    last: u64,
    profile: Profile,
}

/// What the threads that wait for children share.
struct Runner {
    arguments: Arguments,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    sum: Sum,
    /// The next seed that no child has, and how many pieces there were.
    next: Option<u64>,
    pieces: usize,
    /// What children that died have left.
    left: VecDeque<Piece>,
    children: Vec<Arc<Mutex<Child>>>,
    stopped: bool,
    shown: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_all(arguments: &Arguments) -> anyhow::Result<bool> {
    let state = State {
        sum: Sum { first_seed: arguments.seeds.0, ..Sum::default() },
        next: Some(arguments.seeds.0),
        pieces: 0,
        left: VecDeque::new(),
        children: Vec::new(),
        stopped: false,
        shown: None,
    };
    let runner =
        Arc::new(Runner { arguments: arguments.clone(), started: Instant::now(), state: Mutex::new(state) });
    let (stopper, mut signals) =
        (Arc::clone(&runner), signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?);
    std::thread::spawn(move || signals.forever().for_each(|_| stopper.stop()));
    if let Some(time) = arguments.time {
        let stopper = Arc::clone(&runner);
        std::thread::spawn(move || {
            std::thread::sleep(time);
            stopper.stop();
        });
    }
    let results: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.jobs.max(1)).map(|_| scope.spawn(|| runner.work())).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
            .collect()
    });
    results.into_iter().collect::<anyhow::Result<()>>()?;
    let mut state = lock(&runner.state);
    state.sum.seconds = runner.started.elapsed().as_secs_f64();
    show_progress(&state.sum, runner.started);
    if arguments.json {
        println!("{}", serde_json::to_string(&state.sum)?);
    } else {
        show_summary(&state.sum, arguments.jobs.max(1));
    }
    let failed = state.sum.failures.first().cloned();
    drop(state);
    if let (Some(Failure { seed, profile, .. }), false) = (&failed, arguments.json) {
        println!();
        let mut replay = same_options(arguments, profile)?;
        replay.args(["--replay", &seed.to_string()]).status()?;
        println!(
            "\nto see it again: sim --replay {seed} --profile {profile} --length {}s",
            arguments.length.as_secs()
        );
    }
    Ok(failed.is_none())
}

fn show_summary(sum: &Sum, jobs: usize) {
    println!(
        "{} seeds from {} in {:.0} s, {:.1} a minute and job; {:.2} simulated hours, {:.0} times as fast as the clock",
        sum.seeds,
        sum.first_seed,
        sum.seconds,
        sum.seeds as f64 * 60.0 / sum.seconds / jobs as f64,
        sum.simulated_seconds / 3600.0,
        sum.simulated_seconds / sum.seconds
    );
    println!(
        "{} operations, {} more of unknown outcome, {} elections; {} seeds run twice; {} histories given up",
        sum.operations,
        sum.operations_of_unknown_outcome,
        sum.elections,
        sum.replayed,
        sum.histories_given_up
    );
    for (fault, count) in &sum.faults {
        println!("{count:>8} {fault}");
    }
    for Failure { seed, profile, failure } in &sum.failures {
        println!("FAILED, seed {seed} of profile {profile}: {failure}");
    }
}

fn same_options(arguments: &Arguments, profile: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--profile", profile, "--length", &format!("{}s", arguments.length.as_secs())]);
    command.args(["--nodes", &arguments.nodes.to_string()]);
    if let Some(path) = &arguments.scenario {
        command.arg("--scenario").arg(path);
    }
    Ok(command)
}

fn show_progress(sum: &Sum, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    println_unless_broken(&format!(
        "{:>6} seeds, {} failed; {:.1} seeds/s, {:.3} simulated hours/s",
        sum.seeds,
        sum.failures.len(),
        sum.seeds as f64 / seconds,
        sum.simulated_seconds / 3600.0 / seconds
    ));
}

impl Runner {
    /// Ends the run: what was seen so far is summed up.
    fn stop(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        for child in &state.children {
            // It may have ended by itself a moment ago.
            let _ = lock(child).kill();
        }
    }

    fn next_piece(&self) -> Option<Piece> {
        let mut state = lock(&self.state);
        if state.stopped || (!state.sum.failures.is_empty() && !self.arguments.keep_going) {
            return None;
        }
        if let Some(piece) = state.left.pop_front() {
            return Some(piece);
        }
        let (first, end) = (state.next?, self.arguments.seeds.1);
        let last = end.min(first.saturating_add(SEEDS_PER_CHILD - 1));
        let profiles = &self.arguments.profile.0;
        let profile = profiles[state.pieces % profiles.len()];
        state.pieces += 1;
        state.next = last.checked_add(1).filter(|next| *next <= end);
        Some(Piece { first, last, profile })
    }

    /// Has children run pieces until none are left.
    fn work(&self) -> anyhow::Result<()> {
        while let Some(piece) = self.next_piece() {
            self.run_piece(piece)?;
        }
        Ok(())
    }

    fn run_piece(&self, Piece { first, last, profile }: Piece) -> anyhow::Result<()> {
        let mut command = same_options(&self.arguments, profile.name())?;
        command.args(["--child", "--seeds", &format!("{first}..{last}")]);
        // In a group of its own, so that Ctrl-C reaches this process alone, which then sums up.
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the child has a pipe")?).lines();
        let words = child.stderr.take().context("the child has a pipe")?;
        let child = Arc::new(Mutex::new(child));
        {
            let mut state = lock(&self.state);
            state.children.push(Arc::clone(&child));
            if state.stopped {
                let _ = lock(&child).kill();
            }
        }
        let mut next = first;
        for line in lines {
            let line = Line::parse(&line?)?;
            ensure!(line.seed == next, "a child ran seed {} instead of {next}", line.seed);
            next += 1;
            let mut state = lock(&self.state);
            state.sum.add(line, profile);
            if state.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL) {
                state.shown = Some(Instant::now());
                show_progress(&state.sum, self.started);
            }
        }
        let last_words = std::io::read_to_string(words)?;
        let status = lock(&child).wait()?;
        let mut state = lock(&self.state);
        state.children.retain(|other| !Arc::ptr_eq(other, &child));
        if next <= last && !state.stopped {
            let last_words: Vec<&str> = last_words.lines().rev().take(8).collect();
            state.sum.seeds += 1;
            state.sum.fail(
                next,
                profile,
                format!("the process ended ({status}): {}", last_words.join(" / ")),
            );
            if next < last {
                state.left.push_front(Piece { first: next + 1, last, profile });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_profiles_are_read_as_the_help_says() {
        assert_eq!(parse_seeds("3..7"), Ok((3, 7)));
        assert_eq!(parse_seeds("3"), Ok((3, 3)));
        assert_eq!(parse_seeds("3.."), Ok((3, u64::MAX)));
        assert!(parse_seeds("7..3").is_err() && parse_seeds("x").is_err());
        assert!(parse_seeds("fresh").is_ok_and(|(first, last)| first < FRESH_MAX && last == u64::MAX));
        assert_eq!(parse_time("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_profiles("net,disk").unwrap().0, [Profile::Net, Profile::Disk]);
        assert_eq!(parse_profiles("all").unwrap().0, Profile::FAULTY);
        assert!(parse_profiles("nothing").unwrap_err().contains("swarm"));
    }

    #[test]
    fn the_help_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
