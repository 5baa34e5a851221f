//! The operator's and scripter's tool: reads and writes keys, watches them, tells how the cluster is, and measures it.
//!
//! Here are the command line and the way to the cluster; what each command does is in the file of its name.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod keys;
mod members;
mod output;
mod shell;
mod status;
mod watch;

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use squall_kvserver::clerk::Clerk;
use squall_kvserver::config::ClusterConfig;
use squall_kvserver::explain;
use squall_kvserver::resp::RespClient;

const AFTER_HELP: &str = "\
Examples:
  kvctl put greeting hello               kvctl get greeting
  kvctl append greeting ' world'         kvctl del greeting
  kvctl put lock me --if-absent --ttl 30 kvctl del lock --if-value me
  kvctl list user: --values              kvctl watch --prefix user:
  kvctl bench --clients 64 --seconds 10  kvctl -f test.conf status
  kvctl exec INCR counter                kvctl shell
  kvctl member list                      kvctl member add 4 10.0.0.4:7001
  kvctl member promote 4                 kvctl transfer 4

Writes are applied exactly once, whatever fails on the way. Values go to standard output as they are, messages to standard error.
Exit codes: 0 done, 1 no such key, the condition does not hold, or the nodes differ, 2 failed.";

/// Reads and writes keys of a Squall cluster, watches them, shows its status, and measures it.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Arguments {
    /// The cluster's configuration file.
    #[arg(short, default_value = "squall-data/cluster.conf", value_name = "FILE", global = true)]
    file: PathBuf,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", global = true)]
    timeout: u64,
    /// Print JSON, for scripts.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Set a key, always or under a condition.
    Put(keys::Put),
    /// Print the value of a key.
    Get(keys::Get),
    /// Append to the value of a key; prints the new length.
    Append(keys::Append),
    /// Delete a key, always or under a condition.
    Del(keys::Del),
    /// List keys in the order of their bytes.
    List(keys::List),
    /// Execute a Redis command and print its reply.
    Exec(keys::Exec),
    /// Print every change of a key, or of all that begin alike, as it happens.
    Watch(watch::Watch),
    /// Type commands at a prompt, with a history.
    Shell,
    /// Make load and measure how the cluster copes.
    Bench(bench::Bench),
    /// Show every node: its role, term and progress.
    Status,
    /// Show who belongs to the cluster, or change it.
    #[command(subcommand)]
    Member(members::Member),
    /// Hand leadership over to a node, or to whichever is furthest.
    Transfer(members::Transfer),
    /// Have all nodes sum up their state at the same entry of the log, and compare.
    Check,
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// No such key, or a condition that does not hold.
const NOT_DONE: u8 = 1;
const FAILED: u8 = 2;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvctl: {}", explain(error.as_ref()));
            ExitCode::from(FAILED)
        }
    }
}

/// Whoever read the output has seen enough, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Action::Completions { shell } = arguments.action {
        clap_complete::generate(shell, &mut Arguments::command(), "kvctl", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster {
        config: ClusterConfig::load(&arguments.file)?,
        timeout: Duration::from_secs(arguments.timeout),
        json: arguments.json,
    };
    match arguments.action {
        Action::Put(put) => put.run(&cluster),
        Action::Get(get) => get.run(&cluster),
        Action::Append(append) => append.run(&cluster),
        Action::Del(del) => del.run(&cluster),
        Action::List(list) => list.run(&cluster),
        Action::Exec(exec) => exec.run(&cluster),
        Action::Watch(watch) => watch.run(&cluster),
        Action::Shell => shell::run(&cluster),
        Action::Bench(bench) => bench.run(&cluster),
        Action::Status => status::run(&cluster),
        Action::Member(member) => member.run(&cluster),
        Action::Transfer(transfer) => transfer.run(&cluster),
        Action::Check => check::run(&cluster),
        Action::Completions { .. } => unreachable!("answered above"),
    }
}

/// The cluster that the command line names, and how to speak of it.
struct Cluster {
    config: ClusterConfig,
    timeout: Duration,
    json: bool,
}

impl Cluster {
    fn clerk(&self) -> anyhow::Result<Clerk> {
        Ok(Clerk::new(&self.config)?.with_timeout(self.timeout))
    }

    fn password(&self) -> Option<&[u8]> {
        self.config.settings.password.as_ref().map(|password| password.expose())
    }

    /// The Redis ports of the nodes that answer.
    fn redis_addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let is_there = |address: &SocketAddr| TcpStream::connect_timeout(address, self.timeout).is_ok();
        let all = self.config.nodes.iter().map(|node| node.redis_address());
        let answering: Vec<_> = all.filter(is_there).collect();
        anyhow::ensure!(
            !answering.is_empty(),
            "no node of the cluster answers at its Redis port; `kvctl status` tells more"
        );
        Ok(answering)
    }

    /// A connection to the Redis port of a node, the first that answers from `node` on. Waits for replies up to `patience` longer than
    /// the timeout.
    fn redis(&self, node: &mut usize, patience: Duration) -> anyhow::Result<RespClient> {
        let nodes = &self.config.nodes;
        let mut last_error = None;
        for _ in 0..nodes.len() {
            let address = nodes[*node % nodes.len()].redis_address();
            match RespClient::connect(address, self.password(), self.timeout + patience) {
                Ok(client) => return Ok(client),
                Err(error) => {
                    last_error = Some(anyhow::Error::new(error).context(format!("cannot use {address}")))
                }
            }
            *node += 1;
        }
        Err(last_error.context("the cluster has no nodes")?)
    }
}
