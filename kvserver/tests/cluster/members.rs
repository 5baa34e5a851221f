//! Nodes that come and go while clients work: grown, shrunk, replaced, and led by one after the other.

use std::fs;

use serde_json::Value;

use crate::harness::history::Clients;
use crate::harness::{Cluster, eventually};

/// Longer than any election on a busy machine: a client of a node that lives should notice nothing but a pause.
const PATIENT: &str = "no_leader_wait_ms=30000";
const CLUSTER_ID: &str = "cluster_id=5e0c9a52-35b0-4b2c-9c2e-8a4f6d1b7c33";

/// Runs `kvctl … --json`, which must succeed, and returns what it prints.
#[track_caller]
fn kvctl(cluster: &Cluster, arguments: &[&str]) -> Value {
    let output = cluster.kvctl(&[&["--timeout", "50"], arguments, &["--json"]].concat());
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "kvctl {arguments:?}: {error}");
    serde_json::from_str(&out).unwrap()
}

/// The members as `kvctl member list` shows them: `1 voter, 2 voter, 4 learner`.
fn members(cluster: &Cluster) -> String {
    let list = kvctl(cluster, &["member", "list"]);
    let members = list["members"].as_array().unwrap().iter();
    let shown = members.map(|member| format!("{} {}", member["node_id"], member["part"].as_str().unwrap()));
    shown.collect::<Vec<_>>().join(", ")
}

/// Starts a node, adds it as a learner, and makes it a voter.
fn grow(cluster: &mut Cluster, id: u64) {
    cluster.start_node_to_join(id);
    kvctl(cluster, &["member", "add", &id.to_string()]);
    kvctl(cluster, &["member", "promote", &id.to_string()]);
}

#[test]
fn a_cluster_grows_from_one_to_three_to_five_and_shrinks_to_three_while_clients_write() {
    let mut cluster = Cluster::prepare_to_grow(5, 1, &[PATIENT, CLUSTER_ID]);
    cluster.start_node(1);
    cluster.wait_for_leader();
    cluster.write_config_of(5, &[PATIENT, CLUSTER_ID]);
    let redis =
        |cluster: &Cluster, ids: &[u64]| ids.iter().map(|id| cluster.redis_address(*id)).collect::<Vec<_>>();
    let clients = Clients::start(&redis(&cluster, &[1]));
    clients.wait_for_operations(50);
    for id in [2, 3] {
        grow(&mut cluster, id);
    }
    assert_eq!(members(&cluster), "1 voter, 2 voter, 3 voter");
    clients.use_nodes(&redis(&cluster, &[1, 2, 3]));
    clients.wait_for_operations(100);
    for id in [4, 5] {
        grow(&mut cluster, id);
    }
    assert_eq!(members(&cluster), "1 voter, 2 voter, 3 voter, 4 voter, 5 voter");
    clients.use_nodes(&redis(&cluster, &[1, 2, 3, 4, 5]));
    clients.wait_for_operations(100);

    // The leader, and another one.
    for _ in 0..2 {
        let leader = cluster.wait_for_leader();
        kvctl(&cluster, &["member", "remove", &leader.to_string()]);
        assert_eq!(cluster.wait_for_node(leader).code(), Some(3), "it says that it was removed, and stops");
        assert!(cluster.log(&format!("node-{leader}")).contains("the group does not know this node"));
        clients.wait_for_operations(50);
    }
    let left: Vec<u64> = cluster.running();
    assert_eq!(left.len(), 3);
    let expected: Vec<String> = left.iter().map(|id| format!("{id} voter")).collect();
    assert_eq!(members(&cluster), expected.join(", "));
    clients.wait_for_operations(100);
    // A client whose file was written before the leader joined.
    let last = *left.last().unwrap();
    if cluster.wait_for_leader() != last {
        kvctl(&cluster, &["transfer", &last.to_string()]);
    }
    cluster.write_config_of(last as usize - 1, &[PATIENT, CLUSTER_ID]);
    let written = cluster.kvctl(&["--timeout", "50", "put", "by", "an old file"]);
    assert!(written.status.success(), "{written:?}");
    println!("{} operations", clients.check());
}

#[test]
fn a_node_whose_data_were_lost_is_refused_and_joins_anew_under_its_id() {
    let mut cluster = Cluster::start(&[PATIENT, CLUSTER_ID]);
    let clients =
        Clients::start(&cluster.ids().iter().map(|id| cluster.redis_address(*id)).collect::<Vec<_>>());
    clients.wait_for_operations(100);
    let lost = 1 + cluster.wait_for_leader() % 3;
    eventually("every member's disk is known", || {
        let list = kvctl(&cluster, &["member", "list"]);
        let members = list["members"].as_array().unwrap();
        members.iter().all(|member| member["incarnation"] != "0000000000000000").then_some(())
    });
    cluster.kill_node(lost);
    fs::remove_dir_all(cluster.node_dir(lost)).unwrap();
    let (code, message) = cluster.run_node_to_its_end(lost);
    assert_eq!(code, Some(3), "{message}");
    assert!(message.contains("its data were lost"), "{message}");
    clients.wait_for_operations(50);

    let name = lost.to_string();
    let twice = cluster.kvctl(&["member", "add", &name]);
    assert_eq!(twice.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&twice.stderr).contains("is a member already"), "{twice:?}");
    kvctl(&cluster, &["member", "remove", &name]);
    fs::remove_dir_all(cluster.node_dir(lost)).unwrap();
    grow(&mut cluster, lost);
    assert_eq!(members(&cluster), "1 voter, 2 voter, 3 voter");
    // Now it is needed: without it, and one that never failed, there is no quorum.
    let other = cluster.ids().into_iter().find(|id| *id != lost && Some(*id) != cluster.leader()).unwrap();
    cluster.kill_node(other);
    clients.wait_for_operations(50);
    clients.check();
    cluster.start_node(other);
    cluster.wait_until_replicas_agree();
}

#[test]
fn leadership_goes_round_under_load_and_no_client_is_left_in_doubt() {
    let cluster = Cluster::start(&[PATIENT]);
    let clients =
        Clients::start(&cluster.ids().iter().map(|id| cluster.redis_address(*id)).collect::<Vec<_>>());
    clients.wait_for_operations(50);
    for to in [1, 2, 3, 1, 2, 3] {
        if cluster.wait_for_leader() != to {
            kvctl(&cluster, &["transfer", &to.to_string()]);
            eventually("it leads", || (cluster.leader() == Some(to)).then_some(()));
        }
        clients.wait_for_operations(50);
    }
    let nobody = cluster.kvctl(&["transfer", "9"]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("node 9 is not another voter"), "{nobody:?}");
    clients.check();
}

#[test]
fn a_leader_that_is_stopped_hands_over_first() {
    let mut cluster = Cluster::start(&[PATIENT]);
    let leader = cluster.wait_for_leader();
    // It has heard from the others lately, or it would not lead.
    assert_eq!(cluster.stop_node(leader).code(), Some(0));
    let log = cluster.log(&format!("node-{leader}"));
    assert!(log.contains(&format!("node {leader} has handed leadership over")), "{log}");
    cluster.wait_for_other_leader(leader);
}

#[test]
fn a_node_joins_by_the_cluster_s_id_only() {
    let mut cluster = Cluster::prepare(&[]);
    let (code, message) = cluster.run_node_to_its_end_with(1, &["--join"]);
    assert_eq!(code, Some(2), "{message}");
    assert!(message.contains("cluster_id"), "{message}");
    let list = cluster.kvctl(&["--timeout", "1", "member", "list"]);
    assert_eq!(list.status.code(), Some(2), "nobody is there");
    cluster.start_node(1);
    drop(cluster);
}
