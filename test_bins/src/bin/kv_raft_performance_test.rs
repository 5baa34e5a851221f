//! Load on the replicated store in the ways in which it is used: mixes of reads and writes, more clients than connections pay for, large values, and a
//! fixed rate, at which the times are those that users would feel.

#![forbid(unsafe_code)]

use anyhow::{Context, bail};
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use squall_kvserver::clerk::Clerk;
use squall_kvserver::config::ClusterConfig;
use squall_kvserver::load::{self, Distribution, Load, OPERATIONS, Report};
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Measures a cluster: one that runs, or three nodes on this machine that are started for it and removed after it.
///
/// Each part is a load of its own; without --only all run. Exits with 1 if requests failed, and with 2 if nothing could be measured.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file of a cluster that runs.
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Seconds for each part.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// One second for each part.
    #[arg(long)]
    quick: bool,
    /// Only these parts: write, read, mixed, append, zipfian, fibers, large, one, paced.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Clients, where the part does not say.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    clients: u32,
    /// Length of values in bytes, where the part does not say.
    #[arg(long, default_value_t = 64)]
    value_bytes: usize,
    /// How many different keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// Requests a second of the part `paced`; half of what `mixed` yields if not said.
    #[arg(long)]
    rate: Option<f64>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// A load, as it differs from the others. No rate, but for `paced`.
struct Part {
    name: &'static str,
    what: &'static str,
    mix: [u32; 3],
    zipfian: bool,
    clients: Option<usize>,
    value_bytes: Option<usize>,
    keys: Option<u64>,
    paced: bool,
}

const PART: Part = Part {
    name: "",
    what: "",
    mix: [1, 1, 0],
    zipfian: false,
    clients: None,
    value_bytes: None,
    keys: None,
    paced: false,
};
const PARTS: [Part; 9] = [
    Part { name: "write", what: "writes alone", mix: [0, 1, 0], ..PART },
    Part { name: "read", what: "linearizable reads alone", mix: [1, 0, 0], ..PART },
    Part { name: "mixed", what: "as many reads as writes", ..PART },
    Part { name: "append", what: "appends to few keys", mix: [0, 0, 1], keys: Some(1000), ..PART },
    Part { name: "zipfian", what: "mostly the same few keys", zipfian: true, ..PART },
    Part { name: "fibers", what: "1,000 clients, each a fiber", clients: Some(1000), ..PART },
    Part {
        name: "large",
        what: "values of 64 KiB, 8 clients",
        clients: Some(8),
        value_bytes: Some(64 << 10),
        keys: Some(500),
        ..PART
    },
    Part { name: "one", what: "one client, one write at a time", mix: [0, 1, 0], clients: Some(1), ..PART },
    Part { name: "paced", what: "at a fixed rate", paced: true, ..PART },
];
const PERCENTILES: [f64; 5] = [50.0, 90.0, 99.0, 99.9, 100.0];
/// A cluster on a busy machine takes a while to come up.
const START_PATIENCE: Duration = Duration::from_secs(60);

fn main() -> anyhow::Result<ExitCode> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    let arguments = Arguments::parse();
    if let Some(unknown) =
        arguments.only.iter().find(|name| PARTS.iter().all(|part| part.name != name.as_str()))
    {
        bail!("there is no part `{unknown}`; the parts are {}", PARTS.map(|part| part.name).join(", "));
    }
    let own = match &arguments.file {
        Some(_) => None,
        None => Some(OwnCluster::start()?),
    };
    let file =
        own.as_ref().map(|own| own.file.clone()).or_else(|| arguments.file.clone()).context("no cluster")?;
    let config = ClusterConfig::load(&file)?;
    wait_for_leader(&config)?;
    let seconds = if arguments.quick { 1.0 } else { arguments.seconds };
    let mut rate = arguments.rate;
    let mut reports = Vec::new();
    if !arguments.json {
        let whose = if own.is_some() { "started for this on this machine" } else { "running" };
        println!("KV performance test: {} nodes, {whose}", config.nodes.len());
        println!(
            "{:<8} {:<32} {:>10} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}  ms",
            "part", "", "requests/s", "errors", "p50", "p90", "p99", "p99.9", "max"
        );
    }
    for part in PARTS
        .iter()
        .filter(|part| arguments.only.is_empty() || arguments.only.iter().any(|name| name == part.name))
    {
        let load = part.load(&arguments, &config, seconds, rate)?;
        let report = run(part, load, &arguments)?;
        if part.name == "mixed" && rate.is_none() {
            rate = Some(report.rate() / 2.0);
        }
        if !arguments.json {
            print_row(part, &report);
        }
        reports.push((part, report));
    }
    if arguments.json {
        println!(
            "{:#}",
            reports.iter().map(|(part, report)| (part.name.to_owned(), to_json(report))).collect::<Value>()
        );
    }
    let errors: u64 = reports.iter().map(|(_, report)| report.errors).sum();
    if let Some(error) = reports.iter().find_map(|(_, report)| report.first_error.as_ref()) {
        eprintln!("{errors} requests failed; the first: {error}");
    }
    Ok(match reports.iter().all(|(_, report)| report.requests() > 0) {
        true if errors == 0 => ExitCode::SUCCESS,
        true => ExitCode::FAILURE,
        false => ExitCode::from(2),
    })
}

impl Part {
    fn load(
        &self,
        arguments: &Arguments,
        config: &ClusterConfig,
        seconds: f64,
        rate: Option<f64>,
    ) -> anyhow::Result<Load> {
        let settings = &config.settings;
        Ok(Load {
            addresses: config.nodes.iter().map(|node| node.redis_address()).collect(),
            password: settings.password.as_ref().map(|password| password.expose().to_vec()),
            clients: self.clients.unwrap_or(arguments.clients as usize),
            pipeline: 1,
            mix: self.mix,
            keys: self.keys.unwrap_or(arguments.keys),
            distribution: if self.zipfian { Distribution::Zipfian } else { Distribution::Uniform },
            value_bytes: self.value_bytes.unwrap_or(arguments.value_bytes),
            // Without a measurement to go by, a rate that any machine manages.
            rate: self.paced.then(|| rate.unwrap_or(500.0)),
            duration: Duration::try_from_secs_f64(seconds).context("--seconds")?,
            warm_up: Duration::from_secs_f64(seconds / 5.0),
        })
    }
}

fn run(part: &Part, load: Load, arguments: &Arguments) -> anyhow::Result<Report> {
    let shows_progress = std::io::stderr().is_terminal() && !arguments.json;
    let report = load::run(load, |progress| {
        if shows_progress {
            eprint!(
                "\r{:<8} {:6.1} s {:>10} requests ",
                part.name,
                progress.elapsed.as_secs_f64(),
                progress.requests
            );
            let _ = std::io::stderr().flush();
        }
        true
    });
    if shows_progress {
        eprint!("\r{:60}\r", "");
    }
    report.with_context(|| format!("part {}", part.name))
}

fn print_row(part: &Part, report: &Report) {
    let latency_us = report.all_latency_us();
    print!("{:<8} {:<32} {:>10.0} {:>8}", part.name, part.what, report.rate(), report.errors);
    for percentile in PERCENTILES {
        print!(" {:>9.3}", latency_us.value_at_percentile(percentile) as f64 / 1000.0);
    }
    println!();
}

fn to_json(report: &Report) -> Value {
    let latency_us = report.all_latency_us();
    let mut value = json!({
        "requests_per_second": report.rate(), "requests": report.requests(), "errors": report.errors,
        "seconds": report.elapsed.as_secs_f64(),
        "timeline": report.timeline.iter().map(|second| json!([second.requests, second.latency_us_max])).collect::<Value>(),
    });
    for (operation, latency_us) in OPERATIONS.iter().zip(&report.latency_us) {
        value[operation.name()] = json!(latency_us.len());
    }
    for percentile in PERCENTILES {
        value[format!("p{percentile}_us")] = json!(latency_us.value_at_percentile(percentile));
    }
    value
}

fn wait_for_leader(config: &ClusterConfig) -> anyhow::Result<()> {
    let clerk = Clerk::new(config)?.with_timeout(START_PATIENCE);
    clerk.get("performance test").context("the cluster does not answer").map(drop)
}

/// Three nodes with their data in a temporary folder. Gone when dropped.
struct OwnCluster {
    child: Child,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl OwnCluster {
    fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("kvserver");
        if !program.exists() {
            bail!("{} is not there to be started; name a cluster that runs with --file", program.display());
        }
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("cluster.conf");
        std::fs::write(&file, configuration()?)?;
        let child = Command::new(&program)
            .arg("cluster")
            .arg("-f")
            .arg(&file)
            .arg("--data")
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, file, _folder: folder })
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        let begun = Instant::now();
        // In order, so that its nodes go with it; by force only if that does not help.
        let _ = kill(pid, Signal::SIGTERM);
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > Duration::from_secs(20) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn configuration() -> anyhow::Result<String> {
    // All at once, so that no two are the same.
    let listeners: Vec<TcpListener> =
        (0..9).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let ports: Vec<u16> = listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address: SocketAddr| address.port()))
        .collect::<Result<_, _>>()?;
    let node = |(index, ports): (usize, &[u16])| {
        let [rpc, redis, admin] = ports else { return String::new() };
        format!(
            "node{index}ip=127.0.0.1\nnode{index}port={rpc}\nnode{index}redisport={redis}\nnode{index}adminport={admin}\n"
        )
    };
    Ok(ports.chunks(3).enumerate().map(node).collect())
}
