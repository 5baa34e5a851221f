//! Has all nodes sum up their state after the same entry of the log, and compares.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use squall_kvserver::config::NodeConfig;
use squall_kvserver::operator::Operator;
use squall_kvserver::resp::Reply;

use crate::output::reply_text;
use crate::status::get_json;
use crate::{Cluster, FAILED, NOT_DONE, keys};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub fn run(cluster: &Cluster) -> anyhow::Result<ExitCode> {
    // Any number that nobody has used lately.
    let number = u64::from(fastrand::u32(1..));
    let command = vec![Bytes::from_static(b"CHECK"), Bytes::from(number.to_string())];
    let reply = keys::execute(cluster, command)?;
    anyhow::ensure!(reply == Reply::OK, "{}", reply_text(&reply));
    // Those who belong to it now, which the file may not know.
    let members = Operator::new(&cluster.config, cluster.timeout).members()?;
    let nodes: Vec<NodeConfig> = members.into_iter().filter_map(|member| member.node).collect();
    let started = Instant::now();
    let mut sums: Vec<Option<Value>> = vec![None; nodes.len()];
    while sums.iter().any(Option::is_none) && started.elapsed() < cluster.timeout {
        for (node, sum) in nodes.iter().zip(&mut sums).filter(|(_, sum)| sum.is_none()) {
            let status = get_json(node.admin_address(), "/status").ok();
            *sum = status.map(|status| status["check"].clone()).filter(|check| check["number"] == number);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    let known: Vec<&Value> = sums.iter().flatten().collect();
    let agree = known.windows(2).all(|pair| pair[0] == pair[1]);
    let complete = known.len() == sums.len();
    if cluster.json {
        let nodes = nodes.iter().zip(&sums);
        let nodes: Vec<Value> =
            nodes.map(|(node, sum)| json!({ "node_id": node.id, "check": sum })).collect();
        println!("{}", json!({ "agree": agree, "complete": complete, "nodes": nodes }));
    } else {
        println!("node        index  checksum         bytes");
        for (node, sum) in nodes.iter().zip(&sums) {
            match sum {
                Some(sum) => println!(
                    "{:<5} {:>11}  {:<8} {:>13}",
                    node.id,
                    sum["index"].as_u64().unwrap_or_default(),
                    sum["checksum"].as_str().unwrap_or_default(),
                    sum["bytes"].as_u64().unwrap_or_default()
                ),
                None => println!("{:<5} no answer within {:?}", node.id, cluster.timeout),
            }
        }
    }
    if !agree {
        eprintln!(
            "kvctl: the nodes do NOT hold the same state; keep their data, stop the odd one out, and report this"
        );
        return Ok(ExitCode::from(NOT_DONE));
    }
    if !complete {
        eprintln!(
            "kvctl: {} of {} nodes hold the same state; the others did not answer",
            known.len(),
            sums.len()
        );
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}
