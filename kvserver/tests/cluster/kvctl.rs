//! What scripts rely on: what the tool prints, and its exit codes.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Cluster, Reply};

#[test]
fn conditions_lists_and_watching_from_the_command_line() {
    let cluster = Cluster::start(&[]);
    let run = |arguments: &[&str]| {
        let output = cluster.kvctl(arguments);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let says = |arguments: &[&str], code: i32, expected: &str| {
        assert_eq!(run(arguments), (code, expected.to_owned()), "{arguments:?}");
    };
    says(&["put", "a", "1", "--if-absent"], 0, "");
    says(&["put", "a", "2", "--if-absent"], 1, "");
    says(&["get", "a", "--with-version"], 0, "1 1\n");
    says(&["put", "a", "2", "--if-version", "1"], 0, "");
    says(
        &["put", "a", "3", "--if-version", "1", "--json"],
        1,
        "{\"done\":false,\"reason\":\"'a' has another version now: (integer) 2\"}\n",
    );
    says(&["put", "a", "3", "--if-value", "1"], 1, "");
    says(&["put", "a", "3", "--if-value", "2"], 0, "");
    says(&["get", "none"], 1, "");
    says(&["del", "a", "--if-value", "2"], 1, "");
    says(&["del", "a", "--if-version", "3", "--json"], 0, "{\"done\":true}\n");
    for key in ["user:1", "user:2", "users", "z"] {
        says(&["put", key, "v"], 0, "");
    }
    says(&["list", "user:"], 0, "user:1\nuser:2\n");
    says(&["list", "--from", "user:2", "--to", "z", "--values"], 0, "user:2\tv\nusers\tv\n");
    says(&["list", "--limit", "1", "--json"], 0, "{\"key\":\"user:1\"}\n");
    says(&["exec", "--json", "MGET", "z", "none"], 0, "[\"v\",null]\n");
    says(&["exec", "GET"], 2, "(error) ERR wrong number of arguments for 'get' command\n");
    says(
        &["watch", "--from", "4", "--prefix", "user", "--count", "3"],
        0,
        "5\tset\tuser:1\tv\t-\n6\tset\tuser:2\tv\t-\n7\tset\tusers\tv\t-\n",
    );

    let mut shell = std::process::Command::new(env!("CARGO_BIN_EXE_kvctl"));
    shell.arg("-f").arg(cluster.config_file()).arg("shell");
    let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    shell
        .stdin
        .take()
        .unwrap()
        .write_all(b"set 'a b' \"x\\ny\"\nget 'a b'\n\nnosuch\nset never 1\n")
        .unwrap();
    let output = shell.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "the first error ends a script");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("OK\n\"x\\ny\"\n(error)"));
    assert_eq!(cluster.redis(1).call(&["EXISTS", "never"]), Reply::Integer(0));
}

#[test]
fn nodes_that_hold_the_same_say_so_and_a_missing_one_is_told() {
    let mut cluster = Cluster::start(&[]);
    let mut redis = cluster.redis(1);
    for number in 0..100 {
        assert_eq!(redis.call(&["SET", &format!("key {number}"), "v"]), Reply::ok());
    }
    let check = |cluster: &Cluster, timeout: &str| {
        let output = cluster.kvctl(&["check", "--json", "--timeout", timeout]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), report)
    };
    let (code, report) = check(&cluster, "30");
    assert_eq!((code, &report["agree"], &report["complete"]), (0, &true.into(), &true.into()), "{report}");
    let first = report["nodes"][0]["check"].clone();
    assert!(first["bytes"].as_u64().unwrap() > 100 * 8, "{first}");
    assert_eq!(redis.call(&["SET", "one more", "v"]), Reply::ok());
    let (_, later) = check(&cluster, "30");
    assert_ne!(later["nodes"][0]["check"]["checksum"], first["checksum"]);
    let follower = cluster.ids().into_iter().find(|id| Some(*id) != cluster.leader()).unwrap();
    cluster.kill_node(follower);
    let (code, report) = check(&cluster, "5");
    assert_eq!((code, &report["agree"], &report["complete"]), (2, &true.into(), &false.into()), "{report}");
}

#[test]
fn load_is_made_and_measured() {
    let cluster = Cluster::start(&["password=secret"]);
    let output = cluster.kvctl(&[
        "bench",
        "--json",
        "--clients",
        "4",
        "--seconds",
        "1",
        "--warm-up",
        "0",
        "--mix",
        "get=1,put=1,append=1",
        "--zipfian",
        "-P",
        "2",
        "--keys",
        "10",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["errors"], 0);
    let counts = ["get", "put", "append"].map(|kind| report[kind]["requests"].as_u64().unwrap());
    assert_eq!(report["all"]["requests"], counts.iter().sum::<u64>());
    assert!(report["all"]["p50_us"].as_u64() <= report["all"]["max_us"].as_u64());
    assert!(counts.iter().all(|count| *count > 0));
    let keys = String::from_utf8(cluster.kvctl(&["list"]).stdout).unwrap();
    assert!((1..=10).contains(&keys.lines().count()), "{keys}");

    let paced = cluster.kvctl(&[
        "bench",
        "--json",
        "--clients",
        "2",
        "--rate",
        "50",
        "--seconds",
        "1",
        "--warm-up",
        "0",
    ]);
    let report: Value = serde_json::from_slice(&paced.stdout).unwrap();
    assert!(report["all"]["requests"].as_u64().unwrap() <= 60, "no more than was asked for");
}
