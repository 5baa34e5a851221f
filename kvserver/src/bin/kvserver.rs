//! The server program: one node, or a whole cluster on this machine.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::{io, thread};

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use squall_kvserver::cluster::{self, EXIT_EVICTED, EXIT_PERMANENT};
use squall_kvserver::config::{ClusterConfig, ConfigError};
use squall_kvserver::explain;
use squall_kvserver::node::{self, Node, NodeError, NodeOptions};

const AFTER_HELP: &str = "\
Examples:
  kvserver                                   three nodes on this machine, data in ./squall-data
  kvserver cluster -n 5 -f test.conf         five nodes; test.conf is written if it is missing
  kvserver node --id 1 -f test.conf          node 1 (node0 in the file) in the foreground
  kvserver node --id 4 -f test.conf --join   a node that `kvctl member add 4` adds to the running cluster

  redis-cli -p 7379 set greeting hello       any Redis client, any node
  kvctl status                               who leads, how far each node is
  curl http://127.0.0.1:7479/metrics         for Prometheus

Log lines go to standard error; RUST_LOG=debug shows more. Ctrl-C stops in order. SIGUSR1 lists a
node's fibers on its standard error, with what each waits for and where.
Exit codes: 0 stopped on request, 1 failed while running, 2 cannot run as configured, 3 not a member of the cluster
(removed, or its data were lost).";

/// A replicated, linearizable, durable key-value store that any Redis client can use.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Run a cluster on this machine: one process per node, restarted when it dies, stopped together.
    Cluster {
        /// Nodes of a new configuration file; an existing one says by itself.
        #[arg(short, default_value_t = 3, value_name = "NODES")]
        n: usize,
        /// The configuration file; written if it is missing. TOML if the name ends in .toml.
        #[arg(short, value_name = "FILE")]
        file: PathBuf,
        /// Where the nodes keep their data, each in a directory of its own.
        #[arg(long, default_value = "squall-data", value_name = "DIR")]
        data: PathBuf,
    },
    /// Run one node in the foreground.
    Node {
        /// Which one, from 1: node 1 is node0 in the file.
        #[arg(long)]
        id: u64,
        /// The cluster's configuration file, the same for every node.
        #[arg(short, value_name = "FILE")]
        file: PathBuf,
        /// Where the node keeps its data, in a directory of its own.
        #[arg(long, default_value = "squall-data", value_name = "DIR")]
        data: PathBuf,
        /// Join a cluster that exists: a node without data waits until `kvctl member add` names it, instead of founding
        /// a cluster with the others in the file. The file must name the cluster's id.
        #[arg(long)]
        join: bool,
        /// Worker threads that run the node's fibers.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
        workers: u16,
        /// Stop when standard input ends: how a supervisor makes sure that no node outlives it.
        #[arg(long, hide = true)]
        supervised: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        None => run_default(),
        Some(Action::Cluster { n, file, data }) => run_cluster(n, &file, &data),
        Some(Action::Node { id, file, data, join, workers, supervised }) => {
            run_node(id, &file, &data, join, workers, supervised)
        }
        Some(Action::Completions { shell }) => {
            clap_complete::generate(shell, &mut Arguments::command(), "kvserver", &mut io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvserver: {}", explain(error.as_ref()));
            let permanent = error.downcast_ref::<NodeError>().is_some_and(NodeError::is_permanent)
                || error.downcast_ref::<ConfigError>().is_some()
                || error.downcast_ref::<cluster::SupervisorError>().is_some();
            let evicted = error.downcast_ref::<NodeError>().is_some_and(NodeError::is_evicted);
            let code = if evicted {
                EXIT_EVICTED
            } else if permanent {
                EXIT_PERMANENT
            } else {
                1
            };
            ExitCode::from(code as u8)
        }
    }
}

/// Log lines on standard error, with the node they are from.
fn start_log(origin: String) {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info"))
        .format(move |out, record| {
            use std::io::Write;
            let (time, level) = (out.timestamp_millis(), record.level());
            writeln!(out, "{time} {level:5} {origin} {}", record.args())
        })
        .init();
}

fn run_default() -> anyhow::Result<()> {
    let data = cluster::default_data_dir();
    std::fs::create_dir_all(&data).with_context(|| format!("cannot create {}", data.display()))?;
    run_cluster(3, &data.join("cluster.conf"), &data)
}

fn run_cluster(nodes: usize, file: &Path, data: &Path) -> anyhow::Result<()> {
    start_log("cluster".into());
    if !file.exists() {
        ClusterConfig::write_default(file, nodes)?;
        log::info!("wrote {}", file.display());
    }
    let config = ClusterConfig::load(file)?;
    std::fs::create_dir_all(data).with_context(|| format!("cannot create {}", data.display()))?;
    let (sender, events) = mpsc::channel();
    let stop = sender.clone();
    on_stop_signal(move || stop.send(cluster::Event::Stop).is_ok())?;
    for node in &config.nodes {
        println!("{}", node::describe(node));
    }
    println!("data in {}, configuration in {}; Ctrl-C stops", data.display(), file.display());
    let ids: Vec<u64> = config.nodes.iter().map(|node| node.id).collect();
    Ok(cluster::supervise(&ids, file, data, &sender, &events)?)
}

enum NodeEvent {
    Ended(Result<(), NodeError>),
    Stop,
}

fn run_node(
    id: u64,
    file: &Path,
    data: &Path,
    join: bool,
    workers: u16,
    supervised: bool,
) -> anyhow::Result<()> {
    start_log(format!("node-{id}"));
    squall_fiber::dump_on_signal(SIGUSR1).context("SIGUSR1 cannot be handled")?;
    let config = ClusterConfig::load(file)?;
    if join && config.settings.cluster_id_is_derived {
        // Made of the addresses in the file, to which the new node's own was added: no other node has that id.
        let problem = "a node joins a cluster by its id; add cluster_id=… as `kvctl member list` shows it";
        return Err(ConfigError::Invalid {
            path: file.to_owned(),
            line: None,
            key: Some("cluster_id".into()),
            problem: problem.into(),
        }
        .into());
    }
    squall_hook::set_workers(workers.into());
    let (sender, events) = mpsc::channel();
    let stop = sender.clone();
    on_stop_signal(move || stop.send(NodeEvent::Stop).is_ok())?;
    if supervised {
        let stop = sender.clone();
        thread::Builder::new().name("lifeline".into()).spawn(move || {
            // Nothing is ever written to it: it ends when the supervisor does.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            let _ = stop.send(NodeEvent::Stop);
        })?;
    }
    // From here on everything runs on fibers: what a fiber spawns becomes a fiber.
    let data = data.to_owned();
    let node = squall_hook::Builder::new()
        .name(format!("node-{id}"))
        .spawn(move || {
            let options = NodeOptions { join, ..NodeOptions::default() };
            Node::start_with(&config, id, &data, options).map(Arc::new)
        })
        .join()
        .expect("starting a node does not panic")?;
    let (waiting, stopping) = (node.clone(), node.clone());
    drop(squall_hook::spawn(move || sender.send(NodeEvent::Ended(waiting.wait()))));
    match events.recv().context("nothing is left that could stop the node")? {
        NodeEvent::Ended(result) => {
            if result.as_ref().is_err_and(NodeError::is_evicted) {
                // Somebody may wait for the answer to the very request that removed this node.
                squall_hook::spawn(move || stopping.stop()).join().expect("stopping a node does not panic");
            }
            Ok(result?)
        }
        NodeEvent::Stop => {
            log::info!("node {id} stops");
            squall_hook::spawn(move || node.stop()).join().expect("stopping a node does not panic");
            Ok(())
        }
    }
}

/// Calls `stop` for each SIGINT and SIGTERM, as long as it returns true; after that, or when stopping takes too long for the
/// user, a further signal ends the process at once.
fn on_stop_signal(stop: impl Fn() -> bool + Send + 'static) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for (count, _) in signals.forever().enumerate() {
            if count >= 2 || !stop() {
                std::process::exit(130);
            }
        }
    })?;
    Ok(())
}
