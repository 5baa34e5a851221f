//! The operator's and scripter's tool: reads and writes keys, and tells how the cluster is.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use serde_json::{Value, json};
use squall_kvserver::clerk::Clerk;
use squall_kvserver::config::ClusterConfig;
use squall_kvserver::explain;

const ADMIN_TIMEOUT: Duration = Duration::from_secs(2);

const AFTER_HELP: &str = "\
Examples:
  kvctl put greeting hello          kvctl get greeting
  kvctl append greeting ' world'    kvctl del greeting
  kvctl -f test.conf status         kvctl status --json

Writes are applied exactly once, whatever fails on the way. Values go to standard output as they are, messages to standard error.
Exit codes: 0 done, 1 no such key, 2 failed.";

/// Reads and writes keys of a Squall cluster, and shows its status.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Arguments {
    /// The cluster's configuration file.
    #[arg(short, default_value = "squall-data/cluster.conf", value_name = "FILE")]
    file: PathBuf,
    /// Give up after so many seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    timeout: u64,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Set a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: String,
    },
    /// Print the value of a key.
    Get {
        /// The key.
        key: String,
    },
    /// Append to the value of a key; prints the new length.
    Append {
        /// The key.
        key: String,
        /// What to append.
        value: String,
    },
    /// Delete a key.
    Del {
        /// The key.
        key: String,
    },
    /// Show every node: its role, term and progress.
    Status {
        /// Print JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

const NO_SUCH_KEY: u8 = 1;
const FAILED: u8 = 2;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kvctl: {}", explain(error.as_ref()));
            ExitCode::from(FAILED)
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Action::Completions { shell } = arguments.action {
        clap_complete::generate(shell, &mut Arguments::command(), "kvctl", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let config = ClusterConfig::load(&arguments.file)?;
    if let Action::Status { json } = arguments.action {
        return status(&config, json);
    }
    let clerk = Clerk::new(&config)?.with_timeout(Duration::from_secs(arguments.timeout));
    let missing = |key: &str| {
        eprintln!("kvctl: there is no key '{key}'");
        ExitCode::from(NO_SUCH_KEY)
    };
    Ok(match arguments.action {
        Action::Put { key, value } => {
            clerk.put(&key, &value)?;
            ExitCode::SUCCESS
        }
        Action::Get { key } => match clerk.get(&key)? {
            Some(value) => {
                let mut out = std::io::stdout();
                out.write_all(&value)?;
                out.write_all(b"\n")?;
                ExitCode::SUCCESS
            }
            None => missing(&key),
        },
        Action::Append { key, value } => {
            println!("{}", clerk.append(&key, &value)?);
            ExitCode::SUCCESS
        }
        Action::Del { key } if clerk.delete(&key)? => ExitCode::SUCCESS,
        Action::Del { key } => missing(&key),
        Action::Status { .. } | Action::Completions { .. } => unreachable!("answered above"),
    })
}

/// Asks every node, and succeeds if one of them leads.
fn status(config: &ClusterConfig, as_json: bool) -> anyhow::Result<ExitCode> {
    let nodes: Vec<Value> = config
        .nodes
        .iter()
        .map(|node| {
            get_json(node.admin_address(), "/status").unwrap_or_else(|error| {
                let error = explain(error.as_ref());
                json!({ "node_id": node.id, "role": "unreachable", "error": error })
            })
        })
        .collect();
    if as_json {
        println!("{:#}", Value::Array(nodes.clone()));
    } else {
        println!("node  role           term  leader      commit     applied        keys   log MiB  redis");
        for (node, status) in config.nodes.iter().zip(&nodes) {
            let number = |name: &str| status[name].as_u64().map_or("-".to_owned(), |value| value.to_string());
            let log_mib = status["log_bytes"]
                .as_u64()
                .map_or("-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / f64::from(1 << 20)));
            println!(
                "{:<5} {:<13} {:>5}  {:>6} {:>11} {:>11} {:>11} {:>9}  {}",
                node.id,
                status["role"].as_str().unwrap_or("-"),
                number("term"),
                number("leader"),
                number("commit"),
                number("applied"),
                number("keys"),
                log_mib,
                node.redis_address()
            );
        }
        for status in nodes.iter().filter(|status| status["error"].is_string()) {
            let (id, error) = (&status["node_id"], status["error"].as_str().unwrap_or_default());
            eprintln!("kvctl: node {id}: {error}");
        }
    }
    let has_leader = nodes.iter().any(|status| status["role"] == "leader");
    Ok(if has_leader { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn get_json(address: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, ADMIN_TIMEOUT)
        .with_context(|| format!("cannot reach {address}"))?;
    stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
    stream.set_write_timeout(Some(ADMIN_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("{address} does not answer"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "{}", body.trim());
    serde_json::from_str(body).context("the answer is not JSON")
}
