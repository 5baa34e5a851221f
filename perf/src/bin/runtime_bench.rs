//! Runs the benchmarks of the runtime against its peers and prints tables; the one command behind `make bench`.

#![forbid(unsafe_code)]

use anyhow::{Context, ensure};
use clap::Parser;
use serde_json::{Value, json};
use squall_bench_harness::{BATCH, HookFigure, Measured};
use squall_perf::figures::{Summary, ratio, summarize};
use squall_perf::machine::{Machine, commit, locked_version, now_utc};
use squall_perf::plan::{self, Contender, Entry, Experiment, Metric};
use squall_perf::program::{self, Echo, Programs};
use squall_perf::report::{number, table};
use std::collections::BTreeSet;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measures Squall against other runtimes, each test in a process of its own, in turn, on one processor.
///
/// A peer whose program is not built is skipped, and said to be. Ratios are medians of the ratios within a round.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Rounds that count; one more warms up. Experiments that take long have at most five.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// One round of a tenth of the work, in less than a minute: to see that everything runs, not for its figures.
    #[arg(long)]
    quick: bool,
    /// Only these experiments: yield, spawn, channel, hand-over, mutex, memory, sleep, million, hooks, echo, echo-64 and so on.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only runtimes whose name contains one of these (case does not matter); baselines always take part.
    #[arg(long, value_delimiter = ',')]
    runtimes: Vec<String>,
    /// Seconds that an echo server is under load in a round.
    #[arg(long, default_value_t = 1.5)]
    echo_seconds: f64,
    /// The processor to measure on; the last one if not said.
    #[arg(long)]
    cpu: Option<usize>,
    /// Count instructions under valgrind too, where it can run the program.
    #[arg(long)]
    instructions: bool,
    /// Write what was measured, every round of it, to a dated file in this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// The repository that this program was built from: where the peers' programs and the commit are.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("perf/ is in the repository")
}

struct Session {
    arguments: Arguments,
    programs: Programs,
    missing: BTreeSet<&'static str>,
}

/// The rounds of one contender: figures, or why there is none.
struct Rounds<T> {
    label: String,
    rounds: Vec<Option<T>>,
    failure: Option<String>,
}

impl<T> Rounds<T> {
    fn new(label: String) -> Self {
        Self { label, rounds: Vec::new(), failure: None }
    }

    /// False once there is no point in another round.
    fn goes_on(&self) -> bool {
        self.failure.is_none()
    }

    fn add(&mut self, outcome: anyhow::Result<Option<T>>, counts: bool) {
        match outcome {
            Ok(Some(figures)) if counts => self.rounds.push(Some(figures)),
            Ok(Some(_)) => {}
            Ok(None) => self.failure = Some("-".into()),
            Err(error) => self.failure = Some(format!("{error:#}")),
        }
    }

    fn select(&self, figure: impl Fn(&T) -> f64) -> Vec<Option<f64>> {
        self.rounds.iter().map(|round| round.as_ref().map(&figure)).collect()
    }

    fn summary(&self, figure: impl Fn(&T) -> f64) -> Option<Summary> {
        summarize(&self.select(figure).into_iter().flatten().collect::<Vec<_>>())
    }
}

impl Session {
    fn progress(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{text}");
        }
    }

    fn wants(&self, key: &str) -> bool {
        let only = &self.arguments.only;
        only.is_empty() || only.iter().any(|wanted| wanted == key)
    }

    fn takes_part(&self, contender: &Contender, is_baseline: bool) -> bool {
        let name = contender.label.to_lowercase();
        let filter = &self.arguments.runtimes;
        let wanted =
            is_baseline || filter.is_empty() || filter.iter().any(|part| name.contains(&part.to_lowercase()));
        wanted && !self.missing.contains(contender.program)
    }

    fn rounds(&self, most: u16) -> u16 {
        if self.arguments.quick { 1 } else { self.arguments.rounds.min(most) }
    }

    /// How many operations; at least a batch.
    fn count(&self, entry: &Entry) -> u64 {
        if self.arguments.quick { (entry.count / 10).max(BATCH) } else { entry.count }
    }

    fn experiment(&self, experiment: &Experiment) -> Value {
        let is_baseline = |label: &str| experiment.baseline == Some(label);
        let entries: Vec<_> = experiment
            .entries
            .iter()
            .filter(|entry| self.takes_part(&entry.contender, is_baseline(&entry.label())))
            .collect();
        let mut results: Vec<Rounds<Measured>> =
            entries.iter().map(|entry| Rounds::new(entry.label())).collect();
        let rounds = self.rounds(experiment.rounds_max);
        for round in 0..=rounds {
            for (entry, result) in entries.iter().zip(&mut results) {
                self.progress(&format!("{}: round {round} of {rounds}, {}", experiment.key, result.label));
                if result.goes_on() {
                    let Contender { program, variant, .. } = entry.contender;
                    let outcome = self.programs.run(program, variant, entry.test, self.count(entry), 1);
                    result.add(outcome, round > 0);
                }
            }
        }
        self.progress("");
        let metric = |measured: &Measured| match experiment.metric {
            Metric::CpuNs => measured.cpu_ns as f64 / measured.operations as f64,
            Metric::WallSeconds => measured.wall_ns as f64 / 1e9,
            Metric::MemoryBytes => measured.memory_bytes as f64 / measured.operations as f64,
        };
        let extra = |measured: &Measured| match experiment.metric {
            Metric::CpuNs => measured.wall_ns as f64 / measured.operations as f64,
            Metric::WallSeconds => measured.cpu_ns as f64 / 1e9,
            Metric::MemoryBytes => measured.cpu_ns as f64 / measured.operations as f64,
        };
        let peak_mib = |measured: &Measured| measured.peak_bytes as f64 / f64::from(1 << 20);
        let (figure, further) = match experiment.metric {
            Metric::CpuNs => ("ns CPU", "ns wall"),
            Metric::WallSeconds => ("s", "s CPU"),
            Metric::MemoryBytes => ("bytes", "ns CPU each"),
        };
        let baseline =
            results.iter().find(|result| is_baseline(&result.label)).map(|result| result.select(metric));
        let mut head = vec![experiment.title, figure, "[min-max]", further];
        if experiment.metric == Metric::WallSeconds {
            head.push("peak MiB");
        }
        let ratio_head = experiment.baseline.map(|label| format!("x {label}"));
        head.extend(ratio_head.as_deref());
        head.push("target");
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for (entry, result) in entries.iter().zip(&results) {
            let relative = baseline.as_ref().and_then(|baseline| ratio(&result.select(metric), baseline));
            let mut row = vec![result.label.clone()];
            match result.summary(metric) {
                Some(summary) => {
                    row.push(number(summary.median));
                    row.push(format!("{}-{}", number(summary.min), number(summary.max)));
                    row.push(result.summary(extra).map_or(String::new(), |summary| number(summary.median)));
                    if experiment.metric == Metric::WallSeconds {
                        row.push(
                            result.summary(peak_mib).map_or(String::new(), |summary| number(summary.median)),
                        );
                    }
                    if experiment.baseline.is_some() {
                        row.push(relative.map_or(String::new(), |ratio| format!("{:.2}", ratio.median)));
                    }
                    let judged = if experiment.baseline.is_some() { relative } else { Some(summary) };
                    row.push(target(entry.target, judged.map(|judged| judged.median)));
                }
                None => row.resize(head.len(), "-".into()),
            }
            rows.push(row);
            values.push(json!({
                "label": result.label, "program": entry.contender.program, "variant": entry.contender.variant,
                "test": entry.test, "count": self.count(entry), "summary": result.summary(metric),
                "ratio": relative, "target": entry.target, "failure": result.failure, "rounds": result.rounds,
            }));
        }
        print_table(&head, &rows, &results);
        json!({
            "key": experiment.key, "title": experiment.title, "figure": figure, "baseline": experiment.baseline,
            "entries": values,
        })
    }

    /// Counts the instructions of those that valgrind can run. It has no FSGSBASE, so fibers with private thread-locals cannot be.
    fn instructions(&self) -> Value {
        let experiments = plan::experiments();
        let counted = experiments
            .iter()
            .filter(|experiment| experiment.metric == Metric::CpuNs && self.wants(experiment.key))
            .flat_map(|experiment| experiment.entries.iter().map(move |entry| (experiment, entry)))
            .filter(|(_, entry)| {
                self.takes_part(&entry.contender, false) && plan::counts_instructions(&entry.contender)
            });
        let head = ["instructions per operation (user mode, callgrind)", "instructions"];
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for (experiment, entry) in counted {
            let label = format!("{}: {}", experiment.key, entry.label());
            self.progress(&label);
            let Contender { program, variant, .. } = entry.contender;
            match self.programs.instructions(program, variant, entry.test, (entry.count / 100).max(5 * BATCH))
            {
                Ok(instructions) => {
                    rows.push(vec![label.clone(), number(instructions)]);
                    values.push(json!({ "label": label, "program": program, "instructions": instructions }));
                }
                Err(error) => values
                    .push(json!({ "label": label, "program": program, "failure": format!("{error:#}") })),
            }
        }
        self.progress("");
        println!("{}", table(&head, &rows));
        json!({ "key": "instructions", "entries": values })
    }

    fn echo(&self, connections: usize) -> Value {
        let contenders: Vec<_> = plan::ECHO
            .iter()
            .filter(|contender| self.takes_part(contender, contender.label == plan::ECHO_BASELINE))
            .filter(|contender| {
                contender.program != "bench_open_coroutine"
                    || connections <= plan::OPEN_COROUTINE_CONNECTIONS_MAX
            })
            .collect();
        let mut results: Vec<Rounds<Echo>> =
            contenders.iter().map(|contender| Rounds::new(contender.label.into())).collect();
        let rounds = self.rounds(u16::MAX);
        let seconds = if self.arguments.quick { 0.3 } else { self.arguments.echo_seconds };
        // No warm-up round: each server is new, and the client lets it warm up.
        for round in 1..=rounds {
            for (contender, result) in contenders.iter().zip(&mut results) {
                self.progress(&format!(
                    "echo, {connections}: round {round} of {rounds}, {}",
                    contender.label
                ));
                if result.goes_on() {
                    let Contender { program, variant, .. } = contender;
                    result.add(self.programs.echo(program, variant, 1, connections, seconds), true);
                }
            }
        }
        self.progress("");
        let server = |echo: &Echo| echo.server_user_us + echo.server_system_us;
        // What one core could do if it did nothing else: other programs take of the machine what they take.
        let per_cpu_second = |echo: &Echo| 1e6 / (server(echo) + echo.client_cpu_us);
        let baseline = results.iter().find(|result| result.label == plan::ECHO_BASELINE);
        let title = format!("TCP echo, 64 B, {connections} connections, one core");
        let ratio_head = format!("x {}", plan::ECHO_BASELINE);
        let head = [
            title.as_str(),
            "requests/s",
            "[min-max]",
            "p50 µs",
            "p99 µs",
            "server µs CPU",
            "of it user",
            "requests/CPU-s",
            &ratio_head,
            "p99 x",
            "target",
        ];
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for (contender, result) in contenders.iter().zip(&results) {
            let relative =
                |figure: &dyn Fn(&Echo) -> f64| ratio(&result.select(figure), &baseline?.select(figure));
            let (by_cpu, by_p99) = (relative(&per_cpu_second), relative(&|echo: &Echo| echo.p99_us));
            let by_rate = relative(&|echo: &Echo| echo.requests_per_s);
            let mut row = vec![contender.label.to_owned()];
            let median = |figure: &dyn Fn(&Echo) -> f64| {
                result.summary(figure).map_or(String::new(), |summary| number(summary.median))
            };
            match result.summary(|echo| echo.requests_per_s) {
                Some(rate) => {
                    row.push(number(rate.median));
                    row.push(format!("{}-{}", number(rate.min), number(rate.max)));
                    row.push(median(&|echo| echo.p50_us));
                    row.push(median(&|echo| echo.p99_us));
                    row.push(median(&server));
                    row.push(median(&|echo| echo.server_user_us));
                    row.push(median(&per_cpu_second));
                    row.push(by_cpu.map_or(String::new(), |ratio| format!("{:.2}", ratio.median)));
                    row.push(by_p99.map_or(String::new(), |ratio| format!("{:.2}", ratio.median)));
                    let is_squall = contender.program == plan::PRIVATE.program;
                    let at_least = by_cpu
                        .filter(|_| is_squall)
                        .map(|ratio| if ratio.median >= 1.0 { "≥ 1: met" } else { "≥ 1: missed" });
                    row.push(at_least.unwrap_or("").into());
                }
                None => row.resize(head.len(), "-".into()),
            }
            rows.push(row);
            values.push(json!({
                "label": contender.label, "program": contender.program, "variant": contender.variant,
                "requests_per_s": result.summary(|echo| echo.requests_per_s), "ratio_requests_per_s": by_rate,
                "ratio_requests_per_cpu_s": by_cpu, "ratio_p99": by_p99,
                "failure": result.failure, "rounds": result.rounds,
            }));
        }
        print_table(&head, &rows, &results);
        json!({
            "key": format!("echo-{connections}"), "title": title, "baseline": plan::ECHO_BASELINE,
            "connections": connections, "seconds": seconds, "entries": values,
        })
    }

    fn hooks(&self) -> Value {
        if self.missing.contains("bench_hooks") {
            return Value::Null;
        }
        let mut results: Vec<Rounds<HookFigure>> = Vec::new();
        let rounds = self.rounds(5);
        let turns = if self.arguments.quick { 200 } else { 2000 };
        for round in 0..=rounds {
            self.progress(&format!("hooks: round {round} of {rounds}"));
            let figures = match self.programs.hooks(turns) {
                Ok(figures) => figures,
                Err(error) => {
                    self.progress("");
                    println!("hooks: {error:#}\n");
                    return json!({ "key": "hooks", "failure": format!("{error:#}") });
                }
            };
            if results.is_empty() {
                results = figures
                    .iter()
                    .map(|figure| Rounds::new(format!("{}, {}", figure.call, figure.place)))
                    .collect();
            }
            for (figure, result) in figures.into_iter().zip(&mut results) {
                result.add(Ok(Some(figure)), round > 0);
            }
        }
        self.progress("");
        let head = [
            "a hooked call (ns; 64 B on a Unix socket, data ready)",
            "hooked",
            "libc",
            "bare syscall",
            "over libc",
            "over bare",
            "target",
        ];
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for result in &results {
            let median = |figure: &dyn Fn(&HookFigure) -> f64| {
                result.summary(figure).map_or(0.0, |summary| summary.median)
            };
            let (over_libc, over_raw) =
                (median(&|figure| figure.over_libc_ns), median(&|figure| figure.over_raw_ns));
            let in_fiber = result.label.contains("fiber");
            let judged = if in_fiber {
                target(Some(plan::HOOK_IN_FIBER_NS_MAX), Some(over_raw))
            } else {
                target(Some(plan::HOOK_OUTSIDE_NS_MAX), Some(over_libc))
            };
            rows.push(vec![
                result.label.clone(),
                number(median(&|figure| figure.hooked_ns)),
                number(median(&|figure| figure.libc_ns)),
                number(median(&|figure| figure.raw_ns)),
                number(over_libc),
                number(over_raw),
                judged,
            ]);
            values.push(json!({
                "label": result.label, "over_libc_ns": result.summary(|figure| figure.over_libc_ns),
                "over_raw_ns": result.summary(|figure| figure.over_raw_ns), "rounds": result.rounds,
            }));
        }
        print_table(&head, &rows, &results);
        json!({ "key": "hooks", "entries": values })
    }
}

/// The table, and below it why some of it is empty.
fn print_table<T>(head: &[&str], rows: &[Vec<String>], results: &[Rounds<T>]) {
    println!("{}", table(head, rows));
    let failures = results.iter().filter_map(|result| Some((&result.label, result.failure.as_ref()?)));
    let mut any = false;
    for (label, failure) in failures.filter(|(_, failure)| *failure != "-") {
        println!("{label}: {failure}");
        any = true;
    }
    if any {
        println!();
    }
}

/// The target and whether it is met, for a table.
fn target(at_most: Option<f64>, value: Option<f64>) -> String {
    match (at_most, value) {
        (Some(at_most), Some(value)) => {
            let limit = if at_most < 10.0 { format!("{at_most}") } else { number(at_most) };
            format!("≤ {limit}: {}", if value <= at_most { "met" } else { "missed" })
        }
        _ => String::new(),
    }
}

fn programs_of_the_plan() -> BTreeSet<&'static str> {
    let entries = plan::experiments().into_iter().flat_map(|experiment| experiment.entries);
    let contenders = entries.map(|entry| entry.contender).chain(plan::ECHO);
    contenders.map(|contender| contender.program).chain(["bench_hooks"]).collect()
}

/// The runs of Squall's own programs that have failed, of everything that was measured: what is wrong, and not merely slow.
fn failures(experiments: &[Value]) -> Vec<String> {
    let own = [plan::PRIVATE.program, "bench_hooks"];
    let entries = experiments.iter().flat_map(|experiment| {
        let whole = experiment.get("failure").map(|_| experiment);
        experiment["entries"].as_array().into_iter().flatten().chain(whole)
    });
    entries
        .filter(|entry| entry["program"].as_str().is_none_or(|program| own.contains(&program)))
        .filter_map(|entry| entry["failure"].as_str().filter(|failure| *failure != "-").map(str::to_owned))
        .collect()
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let cpu = arguments.cpu.unwrap_or_else(program::default_cpu);
    let programs = Programs::new(program::folders(repository()), cpu, Duration::from_secs(60));
    let missing: BTreeSet<_> =
        programs_of_the_plan().into_iter().filter(|program| programs.find(program).is_none()).collect();
    for own in ["bench_squall", "bench_load"] {
        ensure!(programs.find(own).is_some(), "{own} is not built: `cargo build --release --workspace`");
    }
    for program in &missing {
        println!("SKIPPED: {program} is not built (see perf/README.md)");
    }
    let machine = Machine::this();
    let (date, commit) = (now_utc(), commit(repository()));
    println!(
        "{date}, commit {commit}, {} x {}, {} MiB, Linux {}, processor {cpu}\n",
        machine.processors, machine.processor, machine.memory_mib, machine.kernel
    );
    let session = Session { arguments, programs, missing };
    let mut experiments = Vec::new();
    for experiment in plan::experiments() {
        if session.wants(experiment.key) && !(session.arguments.quick && experiment.key == "million") {
            experiments.push(session.experiment(&experiment));
        }
    }
    if session.arguments.instructions {
        experiments.push(session.instructions());
    }
    if session.wants("hooks") {
        experiments.push(session.hooks());
    }
    for connections in plan::ECHO_CONNECTIONS {
        let many = connections > 100;
        if (session.wants("echo") || session.wants(&format!("echo-{connections}")))
            && !(session.arguments.quick && many)
        {
            experiments.push(session.echo(connections));
        }
    }
    if let Some(folder) = &session.arguments.out {
        let lock = fs::read_to_string(repository().join("perf/peers/Cargo.lock")).unwrap_or_default();
        let version = |package| (package, locked_version(&lock, package));
        let versions: serde_json::Map<String, Value> = ["tokio", "may", "open-coroutine"]
            .map(version)
            .into_iter()
            .map(|(name, v)| (name.into(), v.into()))
            .collect();
        let command: Vec<String> = std::env::args().skip(1).collect();
        let result = json!({
            "date": date, "commit": commit, "machine": machine, "command": format!("runtime_bench {}", command.join(" ")),
            "processor": cpu, "peers": versions, "skipped": session.missing, "experiments": experiments,
        });
        let name = format!(
            "{}-runtime-{}.json",
            date.replace(':', "").trim_end_matches('Z'),
            commit.replace('+', "-changed")
        );
        let path = folder.join(name);
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        fs::write(&path, serde_json::to_string(&result)? + "\n")
            .with_context(|| format!("writing {}", path.display()))?;
        println!("written to {}", path.display());
    }
    let failures = failures(&experiments);
    ensure!(failures.is_empty(), "Squall has failed: {}", failures.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_failures_of_squall_fail_the_run() {
        let experiment = json!({ "entries": [
            { "program": "bench_squall", "failure": null },
            { "program": "bench_squall", "failure": "-" },
            { "program": "bench_may", "failure": "aborts" },
        ]});
        assert_eq!(failures(&[experiment, Value::Null]), Vec::<String>::new());
        let hangs = json!({ "entries": [{ "program": "bench_squall", "failure": "took more than 60 s" }] });
        let hooks = json!({ "key": "hooks", "failure": "no such file" });
        assert_eq!(failures(&[hangs, hooks]), ["took more than 60 s", "no such file"]);
    }
}
