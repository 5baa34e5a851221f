//! Invariant 3, its other half: no global mutable state, so a whole cluster lives in one process, on fibers that share workers. A node
//! that stops and starts again finds its data and the others.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use squall_kvserver::clerk::Clerk;
use squall_kvserver::config::ClusterConfig;
use squall_kvserver::node::Node;

/// A cluster of three on ports that are free now.
fn config() -> ClusterConfig {
    let listeners: Vec<_> = (0..9).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
    let node = |n: usize| {
        let [rpc, redis, admin] = [ports[3 * n], ports[3 * n + 1], ports[3 * n + 2]];
        format!(
            "node{n}ip=127.0.0.1\nnode{n}port={rpc}\nnode{n}redisport={redis}\nnode{n}adminport={admin}\n"
        )
    };
    let text: String = (0..3).map(node).collect();
    ClusterConfig::parse(Path::new("test.conf"), &text).unwrap()
}

/// Nodes live in fibers: what a fiber starts becomes fibers.
fn start(config: &ClusterConfig, id: u64, data: &Path) -> Node {
    let (config, data) = (config.clone(), data.to_owned());
    squall_hook::spawn(move || Node::start(&config, id, &data)).join().unwrap().unwrap()
}

fn stop(node: Node) {
    squall_hook::spawn(move || node.stop()).join().unwrap();
}

fn redis(config: &ClusterConfig, id: u64, command: &str) -> String {
    let mut stream = TcpStream::connect(config.node(id).unwrap().redis_address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(format!("{command}\r\n").as_bytes()).unwrap();
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap().unwrap();
    if first.starts_with('$') && first != "$-1" { lines.next().unwrap().unwrap() } else { first }
}

#[test]
fn three_nodes_serve_fail_over_and_recover_in_one_process() {
    let directory = tempfile::tempdir().unwrap();
    let config = config();
    let mut nodes: Vec<Node> = (1..=3).map(|id| start(&config, id, directory.path())).collect();
    assert_eq!(redis(&config, 1, "SET greeting hello"), "+OK");
    for id in 1..=3 {
        assert_eq!(redis(&config, id, "GET greeting"), "hello");
    }

    // Two of three go on without the third, whichever leads.
    stop(nodes.remove(0));
    assert_eq!(redis(&config, 2, "SET greeting again"), "+OK");
    assert_eq!(redis(&config, 3, "GET greeting"), "again");
    nodes.insert(0, start(&config, 1, directory.path()));
    assert_eq!(redis(&config, 1, "GET greeting"), "again");

    // And all of them after all have stopped.
    nodes.drain(..).for_each(stop);
    let nodes: Vec<Node> = (1..=3).map(|id| start(&config, id, directory.path())).collect();
    assert_eq!(redis(&config, 3, "GET greeting"), "again");

    let clerk = Clerk::new(&config).unwrap().with_timeout(Duration::from_secs(60));
    clerk.put("k", "1").unwrap();
    assert_eq!(clerk.append("k", "2").unwrap(), 2);
    assert_eq!(clerk.get("k").unwrap().unwrap(), "12");
    drop(clerk);
    nodes.into_iter().for_each(stop);
}

#[test]
fn a_lone_node_waits_for_a_leader_and_says_that_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config();
    config.settings.no_leader_wait_ms = 300;
    let node = start(&config, 2, directory.path());
    let started = Instant::now();
    assert_eq!(redis(&config, 2, "SET a 1"), "-CLUSTERDOWN no leader");
    assert_eq!(redis(&config, 2, "GET a"), "-CLUSTERDOWN no leader");
    assert!(started.elapsed() >= Duration::from_millis(600), "it did not wait");
    stop(node);
}
