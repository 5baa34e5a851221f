//! The end of a supervised cluster: nothing is left behind.

use std::net::TcpListener;

use nix::sys::signal::{Signal, kill};

use crate::harness::{Cluster, eventually, is_alive};

fn supervised() -> (Cluster, Vec<nix::unistd::Pid>) {
    let cluster = Cluster::start_supervised(&[]);
    let nodes = cluster.supervised_pids();
    assert_eq!(nodes.len(), 3);
    (cluster, nodes)
}

#[test]
fn ctrl_c_and_sigterm_stop_every_process_in_order() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut cluster, nodes) = supervised();
        kill(cluster.supervisor_pid(), signal).unwrap();
        assert_eq!(cluster.wait_for_supervisor().code(), Some(0), "{signal}");
        assert!(!nodes.into_iter().any(is_alive), "{signal}");
        let log = cluster.log("cluster");
        for id in cluster.ids() {
            assert!(log.contains(&format!("node {id} has stopped")), "{signal}: {log}");
        }
    }
}

#[test]
fn nodes_do_not_outlive_a_supervisor_that_is_killed() {
    let (mut cluster, nodes) = supervised();
    kill(cluster.supervisor_pid(), Signal::SIGKILL).unwrap();
    cluster.wait_for_supervisor();
    eventually("all nodes have ended", || (!nodes.iter().any(|pid| is_alive(*pid))).then_some(()));
}

#[test]
fn a_node_that_cannot_run_stops_the_cluster_with_a_message() {
    let mut cluster = Cluster::prepare(&[]);
    let _taken = TcpListener::bind(cluster.redis_address(2)).unwrap();
    cluster.start_supervisor();
    assert_eq!(cluster.wait_for_supervisor().code(), Some(2));
    let log = cluster.log("cluster");
    let address = cluster.redis_address(2).to_string();
    assert!(log.contains(&format!("node 2: cannot listen on {address}")), "{log}");
    assert!(log.contains("node 2 cannot run"), "{log}");
    assert!(!log.contains("starting it again"), "{log}");
    for id in cluster.ids() {
        assert!(cluster.status(id).is_none(), "node {id} still runs");
    }
}
