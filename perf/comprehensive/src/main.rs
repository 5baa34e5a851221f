//! The whole test day in one command: runs the project's test programs part by part, keeps all that they say, profiles, and writes a
//! report, as text and as one HTML file.
//!
//! It judges nothing: it reports figures, and fails only where a program's own check failed.

#![forbid(unsafe_code)]

mod parts;
mod plot;
mod programs;
mod report;

use anyhow::{Context, bail};
use clap::Parser;
use parts::{PARTS, Session};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Parts:
  1 cpu         simple_stress_test, fiber_stress_test
  2 hook        test_hook: sleeping fibers share a thread
  3 iomanager   test_iomanager, conn_pool_test: events, and many fibers that share few connections
  4 system      processors, memory, disks, connections, load
  5 perf        perf record, report and script of the stress test
  6 flame       flame graphs of fibers: on the CPU and off it
  7 io          io_speed_test and, on a cluster of its own, kv_raft_performance_test

It writes OUT/test_results_comprehensive/session_<time>/ with the output of each part,
COMPREHENSIVE_TEST_REPORT.md and report.html, and OUT/perf_results_comprehensive/ with what perf and the
profiler have left. What a missing tool prevents is skipped, and said.

Exit status: 0 nothing failed, 1 a check failed, 2 wrong usage, or nothing could be done.";

/// Runs the test programs, profiles them, and writes a report with plots and flame graphs.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Arguments {
    /// Shorter: under three minutes in all.
    #[arg(long)]
    quick: bool,
    /// Where to write.
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
    /// Only these parts, by their numbers.
    #[arg(long, value_delimiter = ',', value_name = "1,3,5")]
    only: Vec<u8>,
    /// Where the test programs are; beside this one if not given.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Tell about the result in one line of JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("comprehensive_performance_test: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    if let Some(unknown) =
        arguments.only.iter().find(|number| !(1..=PARTS.len()).contains(&usize::from(**number)))
    {
        bail!("there is no part {unknown}: they are 1 to {}", PARTS.len());
    }
    let own = std::env::current_exe().context("this program's own path")?;
    let beside = own.parent().context("this program is in no folder")?.to_owned();
    let programs = arguments.programs.clone().unwrap_or(beside);
    let mut session = Session::begin(&arguments.out, programs, arguments.quick)?;
    for (index, part) in PARTS.iter().enumerate() {
        let number = index as u8 + 1;
        if arguments.only.is_empty() || arguments.only.contains(&number) {
            session.say(&format!("part {number}: {}", part.title));
            (part.run)(&mut session).with_context(|| format!("part {number}: {}", part.title))?;
        }
    }
    let written = report::write(&session)?;
    let failed = session.failures();
    if arguments.json {
        let result = serde_json::json!({
            "session": session.folder, "report": written.text, "html": written.html,
            "failed": failed, "skipped": session.skipped,
        });
        let _ = writeln!(std::io::stdout(), "{result}");
    } else {
        session.say(&format!("report: {}", written.text.display()));
        session.say(&format!("report: {}", written.html.display()));
    }
    Ok(failed.is_empty())
}
