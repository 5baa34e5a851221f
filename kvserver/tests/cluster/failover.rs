//! The leader dies under load.

use std::time::Duration;

use crate::harness::load::Load;
use crate::harness::{Cluster, eventually};

/// Longer than any election on a busy machine: a client of a node that lives should notice nothing but a pause.
const PATIENT: &str = "no_leader_wait_ms=30000";
/// The goal is 2 s; this bound only tells a slow machine from a cluster that waits for something that never comes.
const RESUME_MAX: Duration = Duration::from_secs(10);

/// Waits until each of `nodes` takes writes again.
#[track_caller]
fn wait_until_writes_resume(load: &Load, nodes: &[u64]) {
    let resumed = load.wait_for_rounds(nodes, 1);
    println!("writes through nodes {nodes:?} resumed within {resumed:?}");
    assert!(resumed < RESUME_MAX, "{resumed:?}");
}

fn others(cluster: &Cluster, id: u64) -> Vec<u64> {
    cluster.ids().into_iter().filter(|other| *other != id).collect()
}

#[test]
fn a_supervised_leader_that_is_killed_again_and_again_loses_nothing() {
    let mut cluster = Cluster::start_supervised(&[PATIENT]);
    let load = Load::start(&cluster);
    load.wait_for_rounds(&cluster.ids(), 100);
    for _ in 0..3 {
        let leader = cluster.wait_for_leader();
        let process = cluster.pid(leader);
        cluster.kill_node(leader);
        wait_until_writes_resume(&load, &others(&cluster, leader));
        eventually("the supervisor has started the node again", || {
            cluster.number(leader, "process_id").filter(|pid| *pid != process.as_raw() as u64)
        });
        load.wait_for_rounds(&cluster.ids(), 100);
    }
    let record = load.stop();
    record.check(&cluster, &cluster.ids());
    cluster.wait_until_replicas_agree();
}

#[test]
fn a_leader_that_stays_dead_is_replaced_and_catches_up_when_it_returns() {
    let mut cluster = Cluster::start(&[PATIENT]);
    let load = Load::start(&cluster);
    load.wait_for_rounds(&cluster.ids(), 100);
    let dead = cluster.wait_for_leader();
    let survivors = others(&cluster, dead);
    cluster.kill_node(dead);
    wait_until_writes_resume(&load, &survivors);
    load.wait_for_rounds(&survivors, 50);
    let record = load.stop();
    record.check(&cluster, &survivors);
    // What a surviving node forwarded to the dead leader was asked of the next one again, under the same number.
    for node in &survivors {
        assert_eq!(record.in_doubt(*node), 0, "a client of node {node} was left in doubt");
    }

    cluster.start_node(dead);
    cluster.wait_until_replicas_agree();
    record.check(&cluster, &cluster.ids());

    // Now the one that was dead is needed for every quorum, and what it has is all that another one can add to its own.
    let next = cluster.wait_for_leader();
    cluster.kill_node(next);
    cluster.wait_for_other_leader(next);
    record.check(&cluster, &others(&cluster, next));
}
