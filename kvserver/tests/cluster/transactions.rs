//! Transactions and compare-and-set over several nodes and through failovers.

use std::thread;

use crate::harness::{Cluster, Redis, Reply};

fn integer(reply: &Reply) -> i64 {
    reply.text().parse().unwrap()
}

/// Reads a counter and writes it back plus one, if nobody has changed it meanwhile. False if somebody had.
fn increment_watched(redis: &mut Redis, key: &str) -> bool {
    assert_eq!(redis.call(&["WATCH", key]), Reply::ok());
    let value = redis.call(&["GET", key]);
    let next = if value == Reply::Nil { 1 } else { integer(&value) + 1 };
    assert_eq!(redis.call(&["MULTI"]), Reply::ok());
    assert_eq!(redis.call(&["SET", key, &next.to_string()]).text(), "QUEUED");
    assert_eq!(redis.call(&["INCR", "done"]).text(), "QUEUED");
    match redis.call(&["EXEC"]) {
        Reply::Nil => false,
        Reply::Array(replies) => {
            assert_eq!(replies[0], Reply::ok());
            true
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn optimistic_increments_over_all_nodes_lose_none_while_the_leader_dies() {
    const EACH: usize = 40;
    let mut cluster = Cluster::start_supervised(&["no_leader_wait_ms=30000"]);
    let leader = cluster.wait_for_leader();
    // Not at the leader, which dies and takes its connections along.
    let nodes: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    let addresses: Vec<_> = nodes.iter().map(|id| cluster.redis_address(*id)).collect();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let address = addresses[client % addresses.len()];
                scope.spawn(move || {
                    let mut redis = Redis::connect(address).unwrap();
                    for _ in 0..EACH {
                        while !increment_watched(&mut redis, "counter") {}
                    }
                })
            })
            .collect();
        cluster.kill_node(leader);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    let mut redis = Redis::connect(addresses[0]).unwrap();
    assert_eq!(integer(&redis.call(&["GET", "counter"])), 4 * EACH as i64);
    assert_eq!(integer(&redis.call(&["GET", "done"])), 4 * EACH as i64);
}

#[test]
fn a_key_is_put_only_with_the_version_expected() {
    let cluster = Cluster::start(&[]);
    let mut nodes: Vec<Redis> = cluster.ids().into_iter().map(|id| cluster.redis(id)).collect();
    assert_eq!(nodes[0].call(&["EXSET", "k", "a", "WITHVERSION"]), Reply::Integer(1));
    assert_eq!(nodes[1].call(&["EXGET", "k"]), Reply::Array(vec![Reply::bulk("a"), Reply::Integer(1)]));
    let Reply::Array(done) = nodes[1].call(&["EXCAS", "k", "b", "1"]) else { panic!() };
    assert_eq!(done[2], Reply::Integer(2));
    let Reply::Array(failed) = nodes[2].call(&["EXCAS", "k", "c", "1"]) else { panic!() };
    assert_eq!(
        (failed[0].text(), &failed[1], &failed[2]),
        ("CAS_FAILED".into(), &Reply::bulk("b"), &Reply::Integer(2))
    );
    assert_eq!(nodes[2].call(&["CAS", "k", "b", "d"]), Reply::Integer(1));
    assert_eq!(nodes[0].call(&["CAD", "k", "b"]), Reply::Integer(0));
    assert_eq!(nodes[0].call(&["CAD", "k", "d"]), Reply::Integer(1));
    assert_eq!(nodes[1].call(&["GET", "k"]), Reply::Nil);
}

#[test]
fn above_the_memory_limit_writes_are_refused_and_deletes_are_not() {
    let cluster = Cluster::start(&["memory_bytes_max=1000000"]);
    let leader = cluster.wait_for_leader();
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let value = "x".repeat(100_000);
    for node in [leader, follower] {
        let mut redis = cluster.redis(node);
        let mut stored = 0;
        let refused = loop {
            match redis.call(&["SET", &format!("k{stored}"), &value]) {
                Reply::Error(text) => break text,
                reply => assert_eq!(reply, Reply::ok()),
            }
            stored += 1;
            assert!(stored < 20, "the limit is never reached");
        };
        assert!(
            refused.starts_with("OOM the store has") && refused.contains("memory_bytes_max"),
            "{refused}"
        );
        assert_eq!(redis.call(&["GET", "k0"]), Reply::bulk(&value));
        assert_eq!(redis.call(&["EXPIRE", "k0", "1000"]), Reply::Integer(1));
        for number in 0..stored {
            assert_eq!(redis.call(&["DEL", &format!("k{number}")]), Reply::Integer(1));
        }
        assert_eq!(redis.call(&["SET", "k", "1"]), Reply::ok());
    }
}
