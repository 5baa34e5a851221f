//! Everything stops, in order or not, and comes back.

use nix::sys::signal::Signal;

use crate::harness::load::Load;
use crate::harness::{Cluster, Reply, eventually};

const PATIENT: &str = "no_leader_wait_ms=30000";

fn kill_all(cluster: &mut Cluster) {
    // All are hit before the first is gone: none has a moment to carry on alone.
    for id in cluster.ids() {
        cluster.signal(id, Signal::SIGKILL);
    }
    for id in cluster.ids() {
        cluster.wait_for_node(id);
    }
}

fn start_all(cluster: &mut Cluster) {
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_for_leader();
}

#[test]
fn a_cluster_that_is_killed_under_load_again_and_again_loses_nothing() {
    let mut cluster = Cluster::start(&[PATIENT]);
    let load = Load::start(&cluster);
    for _ in 0..4 {
        load.wait_for_rounds(&cluster.ids(), 100);
        kill_all(&mut cluster);
        start_all(&mut cluster);
    }
    load.wait_for_rounds(&cluster.ids(), 1);
    load.stop().check(&cluster, &cluster.ids());
    cluster.wait_until_replicas_agree();
}

#[test]
fn a_cluster_that_is_stopped_under_load_loses_nothing() {
    let mut cluster = Cluster::start(&[PATIENT]);
    let load = Load::start(&cluster);
    load.wait_for_rounds(&cluster.ids(), 100);
    for id in cluster.ids() {
        assert_eq!(cluster.stop_node(id).code(), Some(0), "node {id}");
    }
    start_all(&mut cluster);
    load.wait_for_rounds(&cluster.ids(), 1);
    load.stop().check(&cluster, &cluster.ids());
    cluster.wait_until_replicas_agree();
}

#[test]
fn snapshots_cut_the_log_and_bring_back_a_node_that_was_away_for_long() {
    const LOG_BYTES: u64 = 1 << 20;
    let mut cluster = Cluster::start(&[PATIENT, "snapshot_log_bytes=1048576"]);
    let leader = cluster.wait_for_leader();
    let away = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    cluster.redis(leader).call(&["SET", "before", "1"]);
    cluster.wait_until_replicas_agree();
    cluster.kill_node(away);
    let missed_from = cluster.number(leader, "last_index").unwrap();

    let load = Load::start(&cluster);
    let pad = "x".repeat(20_000);
    let mut redis = cluster.redis(leader);
    let mut written = 0;
    // Until even the oldest entry that the absent node needs is gone from the leader's log.
    while cluster.number(leader, "first_index").unwrap() <= missed_from + 1 || written < 400 {
        for _ in 0..50 {
            let (key, value) = (format!("large {written}"), format!("{written} {pad}"));
            assert_eq!(redis.call(&["SET", &key, &value]), Reply::ok());
            written += 1;
        }
        assert!(written < 20_000, "the log is never cut: {:?}", cluster.status(leader));
    }
    cluster.start_node(away);
    load.wait_for_rounds(&cluster.ids(), 5);
    let record = load.stop();
    cluster.wait_until_replicas_agree();
    assert!(cluster.number(away, "snapshot_index").unwrap() > missed_from, "{:?}", cluster.status(away));
    let logs: String = cluster.ids().iter().map(|id| cluster.log(&format!("node-{id}"))).collect();
    assert!(logs.contains(&format!("node {away} has the snapshot at")), "no snapshot was sent:\n{logs}");
    for id in cluster.ids() {
        let log_bytes = cluster.number(id, "log_bytes").unwrap();
        println!("node {id}: {log_bytes} bytes of log after {} of writes", written * pad.len());
    }

    let check = |cluster: &Cluster| {
        record.check(cluster, &cluster.ids());
        for node in cluster.ids() {
            let mut redis = cluster.redis(node);
            for number in 0..written {
                let value = redis.call(&["GET", &format!("large {number}")]);
                assert_eq!(value, Reply::bulk(format!("{number} {pad}")), "node {node}");
            }
        }
    };
    check(&cluster);
    // And once more from what is on disk: snapshots and what is left of the logs.
    kill_all(&mut cluster);
    start_all(&mut cluster);
    cluster.wait_until_replicas_agree();
    check(&cluster);
    eventually("the log stays short", || {
        let bytes: Option<Vec<u64>> =
            cluster.ids().into_iter().map(|id| cluster.number(id, "log_bytes")).collect();
        bytes?.iter().all(|bytes| *bytes < 8 * LOG_BYTES).then_some(())
    });
}
