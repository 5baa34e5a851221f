//! A healthy cluster: any node serves any client.

use std::process::{Command, Output};

use crate::harness::{Cluster, Reply, http_get};

fn code_and_texts(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_is_written_through_one_node_is_read_through_every_node() {
    let cluster = Cluster::start(&[]);
    for writer in cluster.ids() {
        let key = format!("from {writer}");
        assert_eq!(cluster.redis(writer).call(&["SET", &key, "value"]), Reply::ok());
        for reader in cluster.ids() {
            assert_eq!(
                cluster.redis(reader).call(&["GET", &key]),
                Reply::bulk("value"),
                "{writer}, {reader}"
            );
        }
    }
    cluster.wait_until_replicas_agree();
}

#[test]
fn a_connection_to_any_node_takes_pipelines_inline_commands_and_select() {
    const COMMANDS: i64 = 3_000;
    let cluster = Cluster::start(&[]);
    for node in cluster.ids() {
        let mut redis = cluster.redis(node);
        let count = vec!["INCR".to_owned(), format!("count {node}")];
        let replies = redis.pipeline(&vec![count; COMMANDS as usize]).unwrap();
        assert_eq!(replies, (1..=COMMANDS).map(Reply::Integer).collect::<Vec<_>>());

        redis.send(b"set inline \"two words\"\r\nget inline\r\n\r\nping\r\n").unwrap();
        let replies: Vec<Reply> = (0..3).map(|_| redis.receive().unwrap()).collect();
        assert_eq!(replies, [Reply::ok(), Reply::bulk("two words"), Reply::Status("PONG".into())]);

        assert_eq!(redis.call(&["SELECT", "0"]), Reply::ok());
        assert_eq!(redis.call(&["SELECT", "1"]), Reply::Error("ERR DB index is out of range".into()));

        // Reads and writes of one pipeline see each other in order.
        let key = format!("order {node}");
        let words = |line: &str| line.split(' ').map(str::to_owned).chain([key.clone()]).collect::<Vec<_>>();
        let replies = redis
            .pipeline(&[
                words("INCR"),
                words("GET"),
                words("STRLEN"),
                words("INCR"),
                words("DEL"),
                words("GET"),
            ])
            .unwrap();
        let one = Reply::Integer(1);
        assert_eq!(replies, [one.clone(), Reply::bulk("1"), one.clone(), Reply::Integer(2), one, Reply::Nil]);
    }
}

#[test]
fn each_node_tells_its_part_in_the_cluster() {
    // Long enough that the leader stays the leader on a busy machine.
    let cluster = Cluster::start(&["election_timeout_ms=2000"]);
    let leader = cluster.wait_for_leader();
    cluster.redis(leader).call(&["SET", "a", "1"]);
    cluster.wait_until_replicas_agree();
    for node in cluster.ids() {
        let info = cluster.redis(node).call(&["INFO", "raft"]).text();
        assert!(info.starts_with("# Raft\r\n"), "{info}");
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("no {name} in {info}")).to_owned()
        };
        assert_eq!(field("raft_node_id"), node.to_string());
        assert_eq!(field("raft_leader"), leader.to_string());
        assert_eq!(field("raft_role"), if node == leader { "leader" } else { "follower" });
        for number in ["raft_term", "raft_commit_index", "raft_applied_index", "raft_log_bytes"] {
            assert!(field(number).parse::<u64>().unwrap() > 0, "{info}");
        }

        let (code, metrics) = http_get(cluster.admin_address(node), "/metrics").unwrap();
        assert_eq!(code, 200);
        assert!(
            metrics.contains(&format!("squall_raft_is_leader {}\n", u8::from(node == leader))),
            "{metrics}"
        );
        let (code, fibers) = http_get(cluster.admin_address(node), "/fibers").unwrap();
        assert_eq!(code, 200);
        assert!(fibers.contains(&format!("raft-{node}-owner")), "{fibers}");
        let (code, fibers) = http_get(cluster.admin_address(node), "/fibers?backtraces=1").unwrap();
        assert_eq!(code, 200);
        assert!(fibers.contains("src/group/owner.rs:"), "{fibers}");
        assert_eq!(http_get(cluster.admin_address(node), "/nothing").unwrap().0, 404);
    }
}

#[test]
fn kvctl_does_what_it_says_and_its_exit_codes_tell_how_it_went() {
    let mut cluster = Cluster::start(&[]);
    let run = |arguments: &[&str]| code_and_texts(&cluster.kvctl(arguments));
    let done = |out: &str| (Some(0), out.to_owned(), String::new());
    assert_eq!(run(&["put", "greeting", "hello"]), done(""));
    assert_eq!(run(&["append", "greeting", " world"]), done("11\n"));
    assert_eq!(run(&["get", "greeting"]), done("hello world\n"));
    assert_eq!(run(&["del", "greeting"]), done(""));
    for action in ["get", "del"] {
        let (code, out, error) = run(&[action, "greeting"]);
        assert_eq!((code, out.as_str()), (Some(1), ""));
        assert!(error.contains("no key 'greeting'"), "{error}");
    }

    let (code, table, error) = run(&["status"]);
    assert_eq!((code, error.as_str()), (Some(0), ""));
    assert_eq!(table.lines().count(), 4, "{table}");
    assert_eq!(table.matches("leader").count(), 2, "a column and one leader: {table}");
    let (code, json, _) = run(&["status", "--json"]);
    assert_eq!(code, Some(0));
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    let roles: Vec<_> =
        status.as_array().unwrap().iter().map(|node| node["role"].as_str().unwrap()).collect();
    assert_eq!(roles.iter().filter(|role| **role == "leader").count(), 1, "{roles:?}");
    assert_eq!(roles.iter().filter(|role| **role == "follower").count(), 2, "{roles:?}");

    assert_eq!(run(&["nonsense"]).0, Some(2));
    for id in cluster.ids() {
        cluster.kill_node(id);
    }
    let run = |arguments: &[&str]| code_and_texts(&cluster.kvctl(arguments));
    let (code, _, error) = run(&["--timeout", "1", "put", "greeting", "hello"]);
    assert_eq!(code, Some(2));
    assert!(error.contains("no leader was found"), "{error}");
    let (code, table, error) = run(&["status"]);
    assert_eq!(code, Some(2));
    assert_eq!(table.matches("unreachable").count(), 3, "{table}");
    assert!(error.contains("cannot reach 127.0.0.1:"), "{error}");
}

#[test]
fn redis_cli_works_with_any_node() {
    if Command::new("redis-cli").arg("--version").output().is_err() {
        println!("SKIPPED: redis-cli is not installed");
        return;
    }
    let cluster = Cluster::start(&[]);
    let run = |node: usize, arguments: &[&str]| {
        let port = cluster.ports[node - 1].redis.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(1, &["set", "a", "1"]), "OK\n");
    assert_eq!(run(3, &["get", "a"]), "1\n");
    assert_eq!(run(2, &["incr", "a"]), "2\n");
    // RESP3, as newer clients ask for.
    assert_eq!(run(2, &["-3", "mget", "a", "b"]), "2\n\n");
    assert!(run(1, &["info"]).contains("# Raft"));
}
