//! Watchers see every change once, in order, whatever becomes of the node they watch at; and go on at another one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::harness::{Cluster, PATIENCE, Redis, Reply, eventually};

/// What a watcher has seen: the revision to go on from, and the numbers that were set, in order.
struct Watcher {
    seen: i64,
    numbers: Vec<u64>,
}

impl Watcher {
    /// Asks once; false if the node is not there, or dies meanwhile.
    fn ask(&mut self, redis: &mut Redis) -> bool {
        let seen = self.seen.to_string();
        let Ok(reply) = redis.try_call(&["CHANGES", &seen, "PREFIX", "watched:", "BLOCK", "200"]) else {
            return false;
        };
        let Reply::Array(page) = reply else { panic!("{reply:?}") };
        let [Reply::Integer(seen), Reply::Array(changes)] = &page[..] else { panic!("{page:?}") };
        assert!(*seen >= self.seen, "a node that is behind does not turn a watcher back");
        let mut previous = self.seen;
        for change in changes {
            let Reply::Array(change) = change else { panic!("{change:?}") };
            assert!(change[0].integer() > previous, "in order");
            previous = change[0].integer();
            assert_eq!(change[1].text(), "set");
            self.numbers.push(change[3].text().parse().unwrap());
        }
        assert!(previous <= *seen);
        self.seen = *seen;
        true
    }
}

#[test]
fn nothing_is_lost_repeated_or_out_of_order_while_nodes_die() {
    let mut cluster = Cluster::start_supervised(&["no_leader_wait_ms=30000"]);
    let finished = AtomicBool::new(false);
    let addresses: Vec<_> = cluster.ids().iter().map(|id| cluster.redis_address(*id)).collect();
    // Ends the watchers also when the writer fails.
    struct Finish<'a>(&'a AtomicBool);
    impl Drop for Finish<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let watch = |first: usize| {
        let mut watcher = Watcher { seen: 0, numbers: Vec::new() };
        let mut node = first;
        // After the last write everything up to the last revision must come, from whichever node.
        let mut quiet = 0;
        while quiet < 3 {
            let is_over = finished.load(Ordering::SeqCst);
            let before = watcher.numbers.len();
            if let Ok(mut redis) = Redis::connect(addresses[node]) {
                // To the next node now and then, also if this one lives on.
                for _ in 0..5 {
                    if !watcher.ask(&mut redis) {
                        break;
                    }
                }
            }
            quiet = if is_over && watcher.numbers.len() == before { quiet + 1 } else { 0 };
            node = (node + 1) % addresses.len();
        }
        watcher.numbers
    };
    let (written, seen) = thread::scope(|scope| {
        let watchers: Vec<_> = (0..addresses.len()).map(|first| scope.spawn(move || watch(first))).collect();
        let finish = Finish(&finished);
        let mut written = Vec::new();
        for round in 0..4_u64 {
            let leader = cluster.wait_for_leader();
            let mut redis = cluster.redis(cluster.ids().into_iter().find(|id| *id != leader).unwrap());
            for number in round * 100..round * 100 + 100 {
                let key = format!("watched:{}", number % 7);
                assert_eq!(redis.call(&["SET", &key, &number.to_string()]), Reply::ok());
                assert_eq!(redis.call(&["SET", "other", "x"]), Reply::ok());
                written.push(number);
            }
            cluster.kill_node(leader);
        }
        drop(finish);
        (written, watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect::<Vec<_>>())
    });
    for seen in seen {
        assert_eq!(seen, written);
    }
}

#[test]
fn a_watcher_that_was_away_too_long_is_told_and_can_start_anew() {
    let cluster = Cluster::start(&["watch_history_bytes=65536"]);
    let mut redis = cluster.redis(1);
    let value = "x".repeat(10_000);
    for number in 0..20 {
        assert_eq!(redis.call(&["SET", &format!("k{number}"), &value]), Reply::ok());
    }
    let refused = redis.call(&["CHANGES", "3"]).text();
    assert!(refused.starts_with("COMPACTED"), "{refused}");
    // The keys and the revision at which they are what they are, in one transaction.
    assert_eq!(redis.call(&["MULTI"]), Reply::ok());
    redis.call(&["REVISION"]);
    redis.call(&["PREFIX", "k", "KEYSONLY"]);
    let Reply::Array(both) = redis.call(&["EXEC"]) else { panic!() };
    assert_eq!(both[0], Reply::Integer(20));
    let Reply::Array(range) = &both[1] else { panic!() };
    assert_eq!(range[0], Reply::Nil);
    assert_eq!(redis.call(&["DEL", "k7"]), Reply::Integer(1));
    let expected = Reply::Array(vec![Reply::Integer(21), Reply::bulk("del"), Reply::bulk("k7")]);
    for node in cluster.ids() {
        let page = cluster.redis(node).call(&["CHANGES", "20", "BLOCK", "10000"]);
        assert_eq!(
            page,
            Reply::Array(vec![Reply::Integer(21), Reply::Array(vec![expected.clone()])]),
            "node {node}"
        );
    }
}

#[test]
fn a_node_stops_though_clients_wait_for_changes() {
    let mut cluster = Cluster::start(&[]);
    let address = cluster.redis_address(1);
    let waiting = thread::spawn(move || {
        let mut redis = Redis::connect(address).unwrap();
        // Either the empty page or the end of the connection.
        redis.try_call(&["CHANGES", "1000000", "BLOCK", "60000"]).ok()
    });
    let started = std::time::Instant::now();
    eventually("the client waits", || (cluster.number(1, "clients")? > 0).then_some(()));
    assert!(cluster.stop_node(1).success());
    waiting.join().unwrap();
    assert!(started.elapsed() < PATIENCE, "only keeps a broken test from passing");
}
