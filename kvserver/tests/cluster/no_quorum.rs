//! Too few nodes: better no answer than a wrong one.

use crate::harness::{Cluster, Reply, eventually};

fn cluster_down() -> Reply {
    Reply::Error("CLUSTERDOWN no leader".into())
}

#[test]
fn a_node_alone_neither_writes_nor_reads_until_a_second_one_returns() {
    let mut cluster = Cluster::start(&["no_leader_wait_ms=300"]);
    let alone = cluster.wait_for_leader();
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != alone).collect();
    assert_eq!(cluster.redis(others[0]).call(&["SET", "a", "1"]), Reply::ok());
    for id in &others {
        cluster.kill_node(*id);
    }
    let mut redis = cluster.redis(alone);
    // It was the leader, and until it notices that it is alone, it may take a write of which it cannot say what will become.
    eventually("the leader has stepped down", || (cluster.leader() != Some(alone)).then_some(()));
    for _ in 0..2 {
        assert_eq!(redis.call(&["SET", "a", "2"]), cluster_down());
        assert_eq!(redis.call(&["GET", "a"]), cluster_down());
        assert_eq!(redis.call(&["DBSIZE"]), cluster_down());
    }
    assert_eq!(redis.call(&["PING"]), Reply::Status("PONG".into()), "the connection itself is fine");
    let info = redis.call(&["INFO", "raft"]).text();
    assert!(info.contains("raft_leader:none"), "{info}");

    cluster.start_node(others[0]);
    cluster.wait_for_leader();
    assert_eq!(redis.call(&["GET", "a"]), Reply::bulk("1"), "what was refused was not executed");
    assert_eq!(redis.call(&["SET", "a", "3"]), Reply::ok());
    assert_eq!(cluster.redis(others[0]).call(&["GET", "a"]), Reply::bulk("3"));
}

#[test]
fn a_leader_that_has_just_lost_its_followers_answers_no_read() {
    let mut cluster = Cluster::start(&["no_leader_wait_ms=300"]);
    let leader = cluster.wait_for_leader();
    let mut redis = cluster.redis(leader);
    assert_eq!(redis.call(&["SET", "a", "1"]), Reply::ok());
    for id in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.kill_node(id);
    }
    // Others may have elected a new leader for all that this one knows, so it must ask, and nobody answers.
    assert_eq!(redis.call(&["GET", "a"]), cluster_down());
    let write = redis.call(&["SET", "a", "2"]).text();
    assert!(write.starts_with("CLUSTERDOWN") || write.starts_with("UNCERTAIN"), "{write}");
}
