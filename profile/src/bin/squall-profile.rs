//! `squall-profile`: flame graphs of programs on fibers, running ones or such that it starts.

#![forbid(unsafe_code)]

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use squall_profile::flame::{self, Subject};
use squall_profile::{node, perf};
use std::ffi::OsString;
use std::fs;
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const AFTER_HELP: &str = "\
Two questions, two graphs:
  on the CPU     what do processors do? By perf if it is there and permitted, which sees all threads and
                 the kernel; else by the runtime's own sampler, which sees fibers.
  off the CPU    where do fibers wait, for what, and for how long? By the runtime, since no profiler of
                 threads can see that. Each fiber counts: a thousand that wait a second are a thousand seconds.

Examples:
  squall-profile run -- bin/simple_stress_test
  squall-profile run --off-cpu --seconds 10 -o waits.svg -- ./server --port 80
  squall-profile attach 4711                     a process, by perf
  squall-profile attach --off-cpu 4711           a kvserver node, by its admin port
  squall-profile attach 127.0.0.1:7479           the same by that port's address
  squall-profile diff before.folded after.folded -o diff.svg

Each writes an SVG, for a browser: click to zoom, Ctrl-F to search; and beside it, ending in .folded, the
stacks as text, for diff and for other tools. From inside a program: squall::profile_on_cpu, profile_off_cpu.
A node answers with the same graphs at http://ADMIN/debug/profile?seconds=10 and /debug/offcpu?seconds=10.

Programs need frame pointers (-C force-frame-pointers=yes) and are best built with line tables.

Exit status: 0 drawn, 1 nothing to draw, 2 wrong usage.";

/// Draws flame graphs of programs on fibers: where they compute, and where they wait.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a program and profile it until it ends.
    Run {
        #[command(flatten)]
        look: Look,
        /// End the program after so long, by SIGTERM.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: Option<u64>,
        #[command(flatten)]
        output: Output,
        /// The program and its arguments.
        #[arg(last = true, required = true, value_name = "PROGRAM")]
        program: Vec<OsString>,
    },
    /// Profile what already runs.
    Attach {
        #[command(flatten)]
        look: Look,
        /// For how long.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
        #[command(flatten)]
        output: Output,
        /// The number of a process, or the address of a kvserver's admin port.
        #[arg(value_name = "PID|ADMIN")]
        target: String,
    },
    /// Draw what has changed from one run to another: red has grown, blue has shrunk.
    Diff {
        /// The folded stacks of the first run.
        before: PathBuf,
        /// Those of the second, which is drawn.
        after: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Draw folded stacks.
    Svg {
        /// The folded stacks.
        folded: PathBuf,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
struct Look {
    /// Where fibers wait, instead of what they compute.
    #[arg(long)]
    off_cpu: bool,
    /// Looks per second; if not given, 499 with perf, 99 without, 20 off the CPU.
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: Option<u32>,
    /// Who looks.
    #[arg(long, value_enum, default_value_t = Sampler::Auto)]
    sampler: Sampler,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sampler {
    /// perf on the CPU if it works here, else the runtime.
    Auto,
    /// perf, or fail.
    Perf,
    /// The runtime in the program.
    Runtime,
}

#[derive(Args)]
struct Output {
    /// Where to write the graph.
    #[arg(short, long, default_value = "squall-profile.svg", value_name = "FILE")]
    output: PathBuf,
    /// The graph's title.
    #[arg(long)]
    title: Option<String>,
    /// Tell about the result in one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Folded stacks, and where they are from.
struct Taken {
    folded: String,
    subject: Subject,
    by: &'static str,
    title: String,
}

fn main() -> ExitCode {
    match act(Arguments::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("squall-profile: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn act(action: Action) -> anyhow::Result<()> {
    match action {
        Action::Run { look, seconds, output, program } => {
            let taken = run(&look, seconds.map(Duration::from_secs), &program)?;
            finish(&taken, &output)
        }
        Action::Attach { look, seconds, output, target } => {
            let taken = attach(&look, Duration::from_secs(seconds), &target)?;
            finish(&taken, &output)
        }
        Action::Svg { folded, output } => {
            let text = read(&folded)?;
            let title = output.title.clone().unwrap_or_else(|| folded.display().to_string());
            let svg = flame::graph(&text, Subject::Unknown, &title)?;
            write(&output.output, &svg)?;
            tell(&output, serde_json::json!({ "svg": output.output }))
        }
        Action::Diff { before, after, output } => {
            let title = output.title.clone();
            let title =
                title.unwrap_or_else(|| format!("{} compared with {}", after.display(), before.display()));
            let svg = flame::difference(&read(&before)?, &read(&after)?, Subject::Unknown, &title)?;
            write(&output.output, &svg)?;
            tell(&output, serde_json::json!({ "svg": output.output }))
        }
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn finish(taken: &Taken, output: &Output) -> anyhow::Result<()> {
    let svg = flame::graph(&taken.folded, taken.subject, output.title.as_ref().unwrap_or(&taken.title))?;
    let folded = output.output.with_extension("folded");
    ensure!(folded != output.output, "the graph cannot go to {}: its stacks go there", folded.display());
    write(&folded, &taken.folded)?;
    write(&output.output, &svg)?;
    let stacks = taken.folded.lines().count();
    let result = serde_json::json!({
        "svg": output.output, "folded": folded, "sampler": taken.by, "stacks": stacks,
        "subject": if taken.subject == Subject::OffCpu { "off-cpu" } else { "on-cpu" },
    });
    tell(output, result)
}

fn tell(output: &Output, result: serde_json::Value) -> anyhow::Result<()> {
    let path = output.output.display();
    let line = match (result["sampler"].as_str(), result["stacks"].as_u64()) {
        _ if output.json => result.to_string(),
        (Some(by), Some(stacks)) => format!("{path}: {stacks} different stacks, by {by}"),
        _ => path.to_string(),
    };
    // What counts is drawn, whether or not anybody reads this.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}

impl Look {
    /// Whether perf is to look.
    fn by_perf(&self) -> anyhow::Result<bool> {
        if self.off_cpu {
            ensure!(self.sampler != Sampler::Perf, "perf sees no fibers that wait: leave --sampler away");
            return Ok(false);
        }
        let objection = if self.sampler == Sampler::Runtime { return Ok(false) } else { perf::objection() };
        match objection {
            None => Ok(true),
            Some(reason) if self.sampler == Sampler::Perf => bail!("{reason}"),
            Some(reason) => {
                eprintln!("squall-profile: {reason}; the runtime samples instead");
                Ok(false)
            }
        }
    }

    fn subject(&self, by_perf: bool) -> Subject {
        match (self.off_cpu, by_perf) {
            (true, _) => Subject::OffCpu,
            (false, true) => Subject::OnCpuSamples,
            (false, false) => Subject::OnCpu,
        }
    }

    fn rate(&self, by_perf: bool) -> u32 {
        self.rate.unwrap_or(match (self.off_cpu, by_perf) {
            (true, _) => 20,
            (false, true) => 499,
            (false, false) => 99,
        })
    }
}

fn run(look: &Look, limit: Option<Duration>, program: &[OsString]) -> anyhow::Result<Taken> {
    let by_perf = look.by_perf()?;
    let rate = look.rate(by_perf);
    let folder = tempfile::tempdir().context("there is no temporary folder")?;
    let name = program[0].to_string_lossy().into_owned();
    let file = folder.path().join("stacks");
    let (mut command, stop) = if by_perf {
        let mut command = perf::record(&file, rate);
        command.arg("--").args(program);
        // perf passes SIGTERM on to the program, and writes its file.
        (command, Signal::SIGINT)
    } else {
        let mut command = Command::new(&program[0]);
        let kind = if look.off_cpu { "off-cpu" } else { "on-cpu" };
        let mut request = OsString::from(format!("{kind}:{rate}:"));
        // Of each process, if it starts others.
        request.push(file.with_extension("%p"));
        command.args(&program[1..]).env("SQUALL_PROFILE", request);
        (command, Signal::SIGTERM)
    };
    let child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    wait(child, limit, stop)?;
    let folded = if by_perf {
        perf::fold(&file).context("cannot read what perf has recorded")?
    } else {
        let stacks = read_all(folder.path())?;
        ensure!(
            !stacks.is_empty(),
            "{name} has left no profile: it uses no squall runtime, started none, or ended before the first look"
        );
        stacks
    };
    let what = if look.off_cpu { "where fibers wait" } else { "on the CPU" };
    let by = if by_perf { "perf" } else { "the runtime" };
    Ok(Taken { folded, subject: look.subject(by_perf), by, title: format!("{name}: {what}") })
}

/// The stacks that the processes of a program have left in a folder.
fn read_all(folder: &Path) -> anyhow::Result<String> {
    let mut stacks = String::new();
    for entry in fs::read_dir(folder).context("the temporary folder is gone")? {
        let path = entry?.path();
        // Being written by a process that goes on, or was killed.
        if path.extension().is_none_or(|extension| extension != "new") {
            stacks += &read(&path)?;
        }
    }
    Ok(stacks)
}

/// Waits until it ends, or ends it when it is time.
fn wait(mut child: Child, limit: Option<Duration>, stop: Signal) -> anyhow::Result<()> {
    /// What a program may take to end after it was told to.
    const PATIENCE: Duration = Duration::from_secs(10);
    let started = Instant::now();
    let mut told_at = None;
    let progress = Progress::new();
    while child.try_wait()?.is_none() {
        progress.show(started.elapsed(), limit);
        if told_at.is_none() && limit.is_some_and(|limit| started.elapsed() >= limit) {
            kill(Pid::from_raw(child.id() as i32), stop).context("cannot end the program")?;
            told_at = Some(Instant::now());
        }
        if told_at.is_some_and(|told_at| told_at.elapsed() > PATIENCE) {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A line on the terminal that says how far it is.
struct Progress {
    is_shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self { is_shown: std::io::stderr().is_terminal() }
    }

    fn show(&self, elapsed: Duration, limit: Option<Duration>) {
        if self.is_shown {
            let of = limit.map_or_else(String::new, |limit| format!(" of {}", limit.as_secs()));
            // The terminal may be gone; the profile is what counts.
            let _ = write!(std::io::stderr(), "\rprofiling: {}{of} s ", elapsed.as_secs());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            let _ = write!(std::io::stderr(), "\r                              \r");
        }
    }
}

fn attach(look: &Look, duration: Duration, target: &str) -> anyhow::Result<Taken> {
    let Ok(pid) = target.parse::<u32>() else {
        let admin = target
            .to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next())
            .with_context(|| format!("{target} is neither the number of a process nor HOST:PORT"))?;
        ensure!(look.sampler != Sampler::Perf, "perf needs the number of a process, not an address");
        return ask(look, duration, admin, target);
    };
    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "there is no process {pid}");
    if look.by_perf()? {
        return attach_perf(look, duration, pid);
    }
    let admin = node::admin_port_of(pid).with_context(|| format!("cannot look at process {pid}"))?;
    let admin = admin.with_context(|| {
        format!("process {pid} has no admin port: only a kvserver can be asked; start other programs with `squall-profile run`")
    })?;
    ask(look, duration, admin, target)
}

fn attach_perf(look: &Look, duration: Duration, pid: u32) -> anyhow::Result<Taken> {
    let folder = tempfile::tempdir().context("there is no temporary folder")?;
    let data = folder.path().join("perf.data");
    let child = perf::record(&data, look.rate(true))
        .args(["--pid", &pid.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run perf")?;
    wait(child, Some(duration), Signal::SIGINT)?;
    let folded = perf::fold(&data).context("cannot read what perf has recorded")?;
    let title = format!("process {pid}: on the CPU");
    Ok(Taken { folded, subject: Subject::OnCpuSamples, by: "perf", title })
}

/// Asks a node.
fn ask(look: &Look, duration: Duration, admin: SocketAddr, target: &str) -> anyhow::Result<Taken> {
    let page = if look.off_cpu { "offcpu" } else { "profile" };
    let path = format!("/debug/{page}?seconds={}&rate={}&folded=1", duration.as_secs(), look.rate(false));
    let progress = Progress::new();
    let asking = std::thread::spawn(move || node::get(admin, &path, duration));
    let started = Instant::now();
    while !asking.is_finished() {
        progress.show(started.elapsed(), Some(duration));
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(progress);
    let answer = asking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let folded = answer.with_context(|| format!("cannot ask the admin port {admin}"))?;
    let what = if look.off_cpu { "where fibers wait" } else { "on the CPU" };
    let title = format!("{target}: {what}");
    Ok(Taken { folded, subject: look.subject(false), by: "the node's runtime", title })
}
