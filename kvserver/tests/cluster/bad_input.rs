//! What operators, disks, clients and strangers get wrong: each is told what is wrong, and nothing is lost.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;

use crate::harness::{Cluster, PATIENCE, Ports, Redis, Reply, files_below, free_ports};

/// Checks that a node refuses to start for good, and says all of `words`.
#[track_caller]
fn assert_refuses(cluster: &Cluster, node: u64, words: &[&str]) {
    let (code, text) = cluster.run_node_to_its_end(node);
    assert_eq!(code, Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// Writes some keys, all of them acknowledged.
fn write_keys(cluster: &Cluster, count: usize) {
    let mut redis = cluster.redis(1);
    for number in 0..count {
        assert_eq!(redis.call(&["SET", &format!("key {number}"), &number.to_string()]), Reply::ok());
    }
}

#[track_caller]
fn check_keys(cluster: &Cluster, node: u64, count: usize) {
    let mut redis = cluster.redis(node);
    for number in 0..count {
        let value = redis.call(&["GET", &format!("key {number}")]);
        assert_eq!(value, Reply::bulk(number.to_string()), "key {number} through node {node}");
    }
}

fn stop_all(cluster: &mut Cluster) {
    for id in cluster.ids() {
        assert_eq!(cluster.stop_node(id).code(), Some(0));
    }
}

fn start_all(cluster: &mut Cluster) {
    for id in cluster.ids() {
        cluster.start_node(id);
    }
    cluster.wait_for_leader();
}

#[test]
fn a_configuration_that_makes_no_sense_is_refused_with_file_line_and_key() {
    let cluster = Cluster::prepare(&[]);
    for (setting, words) in [
        ("bogus=1", &["test.conf:2", "bogus"][..]),
        ("heartbeat_ms=0", &["test.conf:2", "heartbeat_ms", "5"]),
        ("heartbeat_ms=400", &["test.conf:2", "heartbeat_ms", "third of election_timeout_ms"]),
        ("election_timeout_ms=soon", &["test.conf:2", "election_timeout_ms", "soon"]),
        ("node7ip=127.0.0.1", &["test.conf", "node3ip", "missing"]),
        ("node0ip=127.0.0.2", &["test.conf:3", "node0ip", "line 2"]),
        ("node0fax=1", &["test.conf:2", "node0fax"]),
        ("what is this", &["test.conf:2", "what is this"]),
    ] {
        cluster.write_config("127.0.0.1", &["# first line", setting]);
        assert_refuses(&cluster, 1, words);
        // The supervisor reads the same file and says the same.
        let output = cluster.kvserver(&["cluster"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{setting}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    cluster.write_config("127.0.0.1", &[]);
    assert_refuses(&cluster, 4, &["no node 4", "nodes 1 to 3"]);
    assert!(!cluster.data_dir().exists(), "a wrong configuration creates nothing");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let cluster = Cluster::prepare(&[]);
    for address in [cluster.redis_address(1), cluster.admin_address(1), cluster.rpc_address(1)] {
        let _taken = TcpListener::bind(address).unwrap();
        assert_refuses(
            &cluster,
            1,
            &[&format!("node 1: cannot listen on {address}"), "is another process using the port?"],
        );
        let (_, text) = cluster.run_node_to_its_end(1);
        assert_eq!(text.matches("in use").count(), 1, "said once: {text}");
    }
}

#[test]
fn data_of_another_cluster_or_another_node_is_refused_and_left_alone() {
    const MINE: &str = "cluster_id=11111111-2222-3333-4444-555555555555";
    const OTHER: &str = "cluster_id=99999999-2222-3333-4444-555555555555";
    let mut cluster = Cluster::start(&[MINE]);
    write_keys(&cluster, 20);
    stop_all(&mut cluster);
    let before = files_below(&cluster.data_dir());

    cluster.write_config("127.0.0.1", &[OTHER]);
    for id in cluster.ids() {
        assert_refuses(&cluster, id, &["belongs to", "nothing was changed", &format!("node-{id}")]);
    }
    cluster.write_config("127.0.0.1", &[MINE]);
    let (one, two, aside) = (cluster.node_dir(1), cluster.node_dir(2), cluster.data_dir().join("aside"));
    let swap = || {
        fs::rename(&one, &aside).unwrap();
        fs::rename(&two, &one).unwrap();
        fs::rename(&aside, &two).unwrap();
    };
    swap();
    assert_refuses(&cluster, 1, &["belongs to", "node 2", "node 1", "nothing was changed"]);
    assert_refuses(&cluster, 2, &["belongs to", "nothing was changed"]);
    swap();
    assert!(files_below(&cluster.data_dir()) == before, "the refusals changed files");

    start_all(&mut cluster);
    cluster.ids().into_iter().for_each(|id| check_keys(&cluster, id, 20));
}

#[test]
fn a_node_that_runs_already_is_not_started_again() {
    let mut cluster = Cluster::start(&[]);
    write_keys(&cluster, 5);
    assert_refuses(&cluster, 1, &["cannot listen on", "is another process using the port?"]);

    // With ports of its own, but the same data.
    let same_cluster = format!("cluster_id={}", cluster_id(&cluster));
    let ports = cluster.ports.clone();
    let free = free_ports(3);
    cluster.ports[0] = Ports { rpc: free[0], redis: free[1], admin: free[2] };
    cluster.write_config("127.0.0.1", &[&same_cluster]);
    assert_refuses(&cluster, 1, &["is locked", "another process uses this directory"]);
    cluster.ports = ports;
    cluster.write_config("127.0.0.1", &[]);

    cluster.ids().into_iter().for_each(|id| check_keys(&cluster, id, 5));
    write_keys(&cluster, 5);
}

/// The whole id, which is derived from the addresses when the file names none.
fn cluster_id(cluster: &Cluster) -> String {
    let id = format!("{:032x}", cluster.config().settings.cluster_id);
    format!("{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..])
}

/// The segment of a node's log that was written last, and where its records end.
fn last_segment(cluster: &Cluster, node: u64) -> (PathBuf, Vec<u8>, usize) {
    let files = files_below(&cluster.node_dir(node).join("wal"));
    let mut segments = files.into_iter().filter(|(_, content)| content.starts_with(b"SQUALWAL"));
    let (path, content) = segments.next_back().expect("a log has a segment");
    let end = content.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    (path, content, end)
}

#[test]
fn a_log_that_is_damaged_in_the_middle_stops_its_node_and_no_other() {
    let mut cluster = Cluster::start(&[]);
    write_keys(&cluster, 200);
    cluster.wait_until_replicas_agree();
    let victim = cluster.wait_for_leader();
    cluster.kill_node(victim);
    let (path, mut content, end) = last_segment(&cluster, victim);
    let middle = 4096 + (end - 4096) / 2;
    content[middle] ^= 0x10;
    fs::write(&path, &content).unwrap();
    let damaged = files_below(&cluster.node_dir(victim));

    let file = path.file_name().unwrap().to_str().unwrap();
    assert_refuses(&cluster, victim, &[file, "is corrupt at byte", "nothing was changed", "join anew"]);
    assert!(files_below(&cluster.node_dir(victim)) == damaged, "the refusal changed files");
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != victim).collect();
    cluster.wait_for_other_leader(victim);
    others.iter().for_each(|id| check_keys(&cluster, *id, 200));
    write_keys_through(&cluster, others[0], 300);

    // The damage undone, the node is as good as before.
    content[middle] ^= 0x10;
    fs::write(&path, &content).unwrap();
    cluster.start_node(victim);
    cluster.wait_until_replicas_agree();
    check_keys(&cluster, victim, 300);
}

fn write_keys_through(cluster: &Cluster, node: u64, count: usize) {
    let mut redis = cluster.redis(node);
    for number in 0..count {
        assert_eq!(redis.call(&["SET", &format!("key {number}"), &number.to_string()]), Reply::ok());
    }
}

#[test]
fn a_log_whose_last_record_was_cut_is_taken_up_to_there_and_completed_by_the_peers() {
    let mut cluster = Cluster::start(&[]);
    write_keys(&cluster, 200);
    cluster.wait_until_replicas_agree();
    let victim = cluster.wait_for_leader();
    cluster.kill_node(victim);
    let (path, content, end) = last_segment(&cluster, victim);
    fs::write(&path, &content[..end - 10]).unwrap();

    cluster.start_node(victim);
    cluster.wait_until_replicas_agree();
    cluster.ids().into_iter().for_each(|id| check_keys(&cluster, id, 200));
    write_keys_through(&cluster, victim, 210);
    check_keys(&cluster, victim, 210);
}

/// The memory that a node's process occupies.
fn resident_bytes(cluster: &Cluster, node: u64) -> usize {
    let pages = fs::read_to_string(format!("/proc/{}/statm", cluster.pid(node))).unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn impossible_requests_are_protocol_errors_and_take_no_memory() {
    const MIB: usize = 1 << 20;
    let cluster = Cluster::start(&[]);
    write_keys(&cluster, 1);
    let process = cluster.pid(1);
    let before = resident_bytes(&cluster, 1);
    for (request, error) in [
        ("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10737418240\r\n", "invalid bulk length"),
        ("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$-7\r\n", "invalid bulk length"),
        // A key of 512 MiB and a byte.
        ("*2\r\n$3\r\nGET\r\n$536870913\r\n", "invalid bulk length"),
        ("*2\r\n$3\r\nGET\r\n$99999999999999999999\r\n", "invalid bulk length"),
        ("*2147483648\r\n", "invalid multibulk length"),
        ("*1\r\nGET\r\n", "expected '$', got 'G'"),
    ] {
        let mut redis = cluster.redis(1);
        redis.send(request.as_bytes()).unwrap();
        assert_eq!(redis.rest(), format!("-ERR Protocol error: {error}\r\n"), "{request}");
    }
    // The longest key the protocol knows, announced but not sent.
    let mut announced: Vec<Redis> = (0..20).map(|_| cluster.redis(1)).collect();
    for redis in &mut announced {
        redis.send(b"*2\r\n$3\r\nGET\r\n$536870912\r\nonly this").unwrap();
    }
    check_keys(&cluster, 1, 1);
    let grown = resident_bytes(&cluster, 1).saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
    assert_eq!(cluster.pid(1), process);
}

#[test]
fn what_is_over_a_limit_is_refused_and_the_connection_goes_on() {
    let cluster = Cluster::start(&["value_bytes_max=1000", "key_bytes_max=100"]);
    for node in cluster.ids() {
        let mut redis = cluster.redis(node);
        let error = |text: &str| Reply::Error(text.into());
        let large = "x".repeat(1001);
        let over = error("ERR value is 1001 bytes, the limit is 1000 (value_bytes_max)");
        let key = format!("key {node}");
        assert_eq!(redis.call(&["SET", &key, &large]), over);
        assert_eq!(redis.call(&["SET", &key, &large[1..]]), Reply::ok());
        assert_eq!(redis.call(&["APPEND", &key, "y"]), over);
        assert_eq!(redis.call(&["STRLEN", &key]), Reply::Integer(1000));
        let long = "k".repeat(101);
        assert_eq!(
            redis.call(&["GET", &long]),
            error("ERR key is 101 bytes, the limit is 100 (key_bytes_max)")
        );
        assert_eq!(redis.call(&["GET"]), error("ERR wrong number of arguments for 'get' command"));
        assert_eq!(redis.call(&["SET", &key]), error("ERR wrong number of arguments for 'set' command"));
        let unknown = redis.call(&["NOSUCH", "a"]).text();
        assert!(unknown.starts_with("ERR unknown command 'NOSUCH'"), "{unknown}");
        assert_eq!(redis.call(&["GET", &key]), Reply::bulk(&large[1..]));
    }
}

/// Sends bytes to a port and reads until the other side has had enough of them.
fn pester(address: SocketAddr, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // The other side may close the connection at any point of this; that is an answer, too.
    let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn garbage_on_any_port_hurts_nobody_else() {
    let cluster = Cluster::start(&[]);
    write_keys(&cluster, 10);
    let processes: Vec<_> = cluster.ids().into_iter().map(|id| cluster.pid(id)).collect();
    let mut random = 0x5eed_u64;
    let mut garbage = |length: usize| -> Vec<u8> {
        let next = std::iter::repeat_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        });
        next.take(length).collect()
    };
    for node in cluster.ids() {
        for address in [cluster.redis_address(node), cluster.rpc_address(node), cluster.admin_address(node)] {
            for length in [1, 7, 64, 5_000, 300_000] {
                pester(address, &garbage(length));
            }
            pester(address, b"");
            pester(address, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
            pester(address, b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nset key\\ 0 changed\r\n");
            pester(address, b"*3\r\n$3\r\nSET\r\n$5\r\nkey 0\r\n$9\r\nhalf of a");
            // TLS, as a client that was told the wrong port would begin.
            pester(
                address,
                &[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &garbage(506)].concat(),
            );
        }
    }
    for (id, process) in cluster.ids().into_iter().zip(processes) {
        check_keys(&cluster, id, 10);
        assert_eq!(cluster.pid(id), process);
        assert_eq!(cluster.number(id, "process_id"), Some(process.as_raw() as u64));
    }
    write_keys(&cluster, 10);
}
