//! How every node is.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use squall_kvserver::explain;

use crate::{Cluster, FAILED};

const ADMIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks every node, and succeeds if one of them leads.
pub fn run(cluster: &Cluster) -> anyhow::Result<ExitCode> {
    let config = &cluster.config;
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
    if cluster.json {
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

/// What a node answers at its administrative port.
pub fn get_json(address: SocketAddr, path: &str) -> anyhow::Result<Value> {
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
