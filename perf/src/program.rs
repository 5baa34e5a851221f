//! Finding the benchmark programs and running them, pinned to processors and within a time limit.

use anyhow::{Context, bail, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use squall_bench_harness::{HookFigure, Measured, Test};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// The exit code of a program whose runtime cannot do what it was told to (see the harness).
const CANNOT: i32 = 3;

/// The programs that are built, and the processors that they get.
#[derive(Debug)]
pub struct Programs {
    folders: Vec<PathBuf>,
    /// The processor of everything that is measured on one.
    cpu: usize,
    /// Longest that one run may take.
    limit: Duration,
}

/// What the client of an echo server has measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Echo {
    /// Echoes that have come back.
    pub requests: u64,
    /// The same per second.
    pub requests_per_s: f64,
    /// The middle latency.
    pub p50_us: f64,
    /// The latency of the slowest hundredth.
    pub p99_us: f64,
    /// The server's processor time per request in its own code.
    pub server_user_us: f64,
    /// The same in the kernel.
    pub server_system_us: f64,
    /// The client's processor time per request, of both kinds.
    pub client_cpu_us: f64,
}

/// A program that runs. Ends the process when the run is over, however it ends.
struct Running {
    child: Child,
    output: Receiver<String>,
    errors: Receiver<String>,
}

/// Gathers the lines of a stream, so that a program which says much does not wait for somebody to read it.
fn lines(stream: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Running {
    /// Why it has failed, in its own words, if it has ended.
    fn last_words(&self) -> String {
        let words: Vec<String> = self.errors.iter().filter(|line| !line.trim().is_empty()).collect();
        words.join(" ").chars().take(300).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Programs {
    /// Those in `folders`, the first that has a program counts; pinned to `cpu`.
    pub fn new(folders: Vec<PathBuf>, cpu: usize, limit: Duration) -> Self {
        Self { folders, cpu, limit }
    }

    /// Where a program is, if it has been built.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }

    /// Starts a program on the measured processor alone or, for more than one worker, on all. A child inherits the affinity of the
    /// thread that starts it.
    fn start(&self, program: &str, arguments: &[String], workers: usize) -> anyhow::Result<Running> {
        let path = self.find(program).with_context(|| format!("{program} is not built"))?;
        let own = sched_getaffinity(None).context("asking for the affinity")?;
        if workers == 1 {
            let mut one = CpuSet::new();
            one.set(self.cpu);
            sched_setaffinity(None, &one).with_context(|| format!("pinning to processor {}", self.cpu))?;
        }
        let child = Command::new(&path)
            .args(arguments)
            // open-coroutine's hooks are a shared library, which cargo leaves there.
            .env("LD_LIBRARY_PATH", path.with_file_name("deps"))
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", path.display()));
        sched_setaffinity(None, &own).context("restoring the affinity")?;
        let mut child = child?;
        let output = lines(child.stdout.take().context("a pipe")?);
        let errors = lines(child.stderr.take().context("a pipe")?);
        Ok(Running { child, output, errors })
    }

    /// Waits for a program to end and returns the lines of JSON that it has printed; some print more. `None`: its runtime cannot do this.
    fn output(
        &self,
        program: &str,
        arguments: &[String],
        workers: usize,
    ) -> anyhow::Result<Option<Vec<String>>> {
        let mut running = self.start(program, arguments, workers)?;
        let deadline = Instant::now() + self.limit;
        let status = loop {
            match running.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() > deadline => bail!("took more than {} s", self.limit.as_secs()),
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        if status.success() {
            return Ok(Some(running.output.iter().filter(|line| line.starts_with('{')).collect()));
        }
        if status.code() == Some(CANNOT) {
            return Ok(None);
        }
        bail!("{status}: {}", running.last_words())
    }

    /// Runs a test once.
    ///
    /// # Errors
    /// When the program is missing, fails, or takes too long.
    pub fn run(
        &self,
        program: &str,
        variant: &str,
        test: Test,
        count: u64,
        workers: usize,
    ) -> anyhow::Result<Option<Measured>> {
        match self.output(program, &arguments(test, variant, count, workers), workers)? {
            Some(lines) => Ok(Some(parse(&lines)?)),
            None => Ok(None),
        }
    }

    /// Instructions that one operation takes in user mode, by valgrind: what two runs of different length differ by, so that starting and
    /// ending do not count. Not a figure of time, but one that nothing else on the machine can disturb.
    ///
    /// # Errors
    /// When valgrind or the program is missing or fails, as Go's does under valgrind.
    pub fn instructions(&self, program: &str, variant: &str, test: Test, count: u64) -> anyhow::Result<f64> {
        let path = self.find(program).with_context(|| format!("{program} is not built"))?;
        let collected = |count: u64| -> anyhow::Result<f64> {
            let output = Command::new("valgrind")
                .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
                .arg(&path)
                .args(arguments(test, variant, count, 1))
                .env("LD_LIBRARY_PATH", path.with_file_name("deps"))
                .output()
                .context("starting valgrind")?;
            let text = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{}", output.status);
            let line = text
                .lines()
                .find_map(|line| line.split_once("Collected :"))
                .context("valgrind counts nothing")?;
            Ok(line.1.trim().parse()?)
        };
        Ok((collected(3 * count)? - collected(count)?) / (2 * count) as f64)
    }

    /// Starts an echo server, puts load on it from the same processor (from any, with more than one worker), ends it.
    ///
    /// # Errors
    /// When a program is missing or fails, or the server does not answer.
    pub fn echo(
        &self,
        program: &str,
        variant: &str,
        workers: usize,
        connections: usize,
        seconds: f64,
    ) -> anyhow::Result<Option<Echo>> {
        let mut server = self.start(program, &arguments(Test::Echo, variant, 0, workers), workers)?;
        let deadline = Instant::now() + self.limit;
        let address: SocketAddr = loop {
            match server.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Ok(address) = line.parse() {
                        break address;
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!("the server does not say where it listens"),
                Err(RecvTimeoutError::Disconnected) => match server.child.wait()?.code() {
                    Some(CANNOT) => return Ok(None),
                    _ => bail!("the server has ended: {}", server.last_words()),
                },
            }
        };
        let load = [
            address.to_string(),
            format!("--server={}", server.child.id()),
            format!("--connections={connections}"),
            format!("--seconds={seconds}"),
        ];
        let lines = self.output("bench_load", &load, workers)?.context("the client says nothing")?;
        Ok(Some(parse(&lines)?))
    }

    /// Measures what hooks cost.
    ///
    /// # Errors
    /// When the program is missing or fails.
    pub fn hooks(&self, turns: u64) -> anyhow::Result<Vec<HookFigure>> {
        let lines = self.output("bench_hooks", &[turns.to_string()], 1)?.context("it can")?;
        lines.iter().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// The figures on the last line.
fn parse<T: DeserializeOwned>(lines: &[String]) -> anyhow::Result<T> {
    let line = lines.last().context("the program has printed no figures")?;
    serde_json::from_str(line).with_context(|| format!("the program printed {line:?}"))
}

fn arguments(test: Test, variant: &str, count: u64, workers: usize) -> Vec<String> {
    let name = serde_json::to_value(test).expect("a name");
    vec![
        name.as_str().expect("an enum without fields is a string").to_owned(),
        format!("--variant={variant}"),
        format!("--count={count}"),
        format!("--workers={workers}"),
    ]
}

/// The processor to measure on unless told otherwise: the last that may be used, because the first serves most interrupts.
pub fn default_cpu() -> usize {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu)).unwrap_or(0)
}

/// Where programs are: beside this one, and where the peers' workspace puts them unless it shares a target folder with this one.
pub fn folders(repository: &Path) -> Vec<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let peers = repository.join("perf/peers/target/release");
    own.into_iter().chain([peers, repository.join("target/release")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_that_the_programs_take() {
        let words = arguments(Test::StdPingPong, "private", 10, 1);
        assert_eq!(words, ["std-ping-pong", "--variant=private", "--count=10", "--workers=1"]);
    }

    #[test]
    fn a_missing_program_is_named() {
        let programs = Programs::new(vec!["/nowhere".into()], default_cpu(), Duration::from_secs(1));
        let error =
            programs.run("bench_nothing", "x", Test::Yield, 1, 1).expect_err("there is no such program");
        assert_eq!(error.to_string(), "bench_nothing is not built");
    }

    #[test]
    fn a_program_that_fails_or_hangs_is_an_error_and_ends() {
        let programs =
            Programs::new(vec!["/bin".into(), "/usr/bin".into()], default_cpu(), Duration::from_millis(200));
        let error =
            programs.output("ls", &["/no/such/folder".into()], 1).expect_err("there is no such folder");
        assert!(error.to_string().contains("No such file"), "{error}");
        let error = programs.output("sleep", &["60".into()], 1).expect_err("it takes too long");
        assert!(error.to_string().contains("took more than"), "{error}");
    }
}
