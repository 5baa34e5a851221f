//! A group in good times: it elects, replicates, answers, restarts, and refuses what it must.

mod cluster;

use std::sync::mpsc;
use std::thread;

use cluster::{Cluster, bytes, numbered, wait_for};
use squall_raft::group::{ProposeError, ReadError};

#[test]
fn a_group_of_one_survives_a_restart() {
    let mut cluster = Cluster::new(1);
    for command in numbered(10) {
        cluster.propose(&command);
    }
    assert_eq!(cluster.read(), numbered(10));
    cluster.stop(1);
    cluster.start(1);
    assert_eq!(cluster.read(), numbered(10));
}

#[test]
fn three_nodes_elect_one_leader_and_apply_the_same() {
    let cluster = Cluster::new(3);
    for command in numbered(50) {
        cluster.propose(&command);
    }
    assert_eq!(cluster.read(), numbered(50));
    cluster.converge();
    for id in cluster.ids() {
        let status = cluster.node(id).status().unwrap();
        assert_eq!(status.messages_refused, 0);
        assert_eq!(status.proposal_bytes, 0);
    }
}

#[test]
fn a_follower_refuses_and_names_the_leader() {
    let cluster = Cluster::steady(3);
    cluster.propose("a");
    let leader = cluster.leader();
    let follower = cluster.ids().into_iter().find(|&id| id != leader).unwrap();
    let follower = cluster.node(follower);
    let known = follower.wait_for_leader(cluster::PATIENCE).unwrap();
    assert_eq!(known, leader);
    let refused = follower.propose(bytes("b")).unwrap_err();
    assert_eq!(refused, ProposeError::NotLeader { leader: Some(leader) });
    assert!(refused.is_definite());
    assert_eq!(follower.read(()).unwrap_err(), ReadError::NotLeader { leader: Some(leader) });
    assert_eq!(cluster.read(), ["a"]);
}

#[test]
fn many_clients_get_their_answers_and_their_order() {
    let cluster = Cluster::steady(3);
    cluster.propose("first");
    let leader = cluster.node(cluster.leader());
    thread::scope(|scope| {
        for client in 0..8 {
            let leader = leader.clone();
            scope.spawn(move || {
                for n in 0..50 {
                    leader.propose(bytes(&format!("{client} {n}"))).unwrap();
                    let seen = leader.read(()).unwrap();
                    assert!(seen.contains(&format!("{client} {n}")), "a read misses the write before it");
                }
            });
        }
    });
    let all = cluster.read();
    assert_eq!(all.len(), 401);
    for client in 0..8 {
        let own: Vec<_> = all.iter().filter(|line| line.starts_with(&format!("{client} "))).collect();
        assert_eq!(
            own,
            (0..50).map(|n| format!("{client} {n}")).collect::<Vec<_>>().iter().collect::<Vec<_>>()
        );
    }
}

#[test]
fn proposals_are_answered_in_log_order() {
    let cluster = Cluster::steady(3);
    cluster.propose("first");
    let leader = cluster.node(cluster.leader());
    let (sender, answers) = mpsc::channel();
    for n in 0..1000 {
        let sender = sender.clone();
        leader.propose_with(bytes(&n.to_string()), move |result| sender.send((n, result.is_ok())).unwrap());
    }
    drop(sender);
    assert_eq!(answers.iter().collect::<Vec<_>>(), (0..1000).map(|n| (n, true)).collect::<Vec<_>>());
    assert_eq!(cluster.read()[1..], numbered(1000));
}

#[test]
fn the_whole_cluster_restarts_from_its_disks() {
    let mut cluster = Cluster::new(3);
    for command in numbered(30) {
        cluster.propose(&command);
    }
    for id in cluster.ids() {
        cluster.stop(id);
    }
    for id in 1..=3 {
        cluster.start(id);
    }
    assert_eq!(cluster.read(), numbered(30));
}

#[test]
fn what_is_too_much_is_refused_before_it_enters_the_log() {
    let cluster = Cluster::tuned(3, |config| {
        config.raft.election_ticks = 100;
        config.command_bytes_max = 1000;
        config.proposal_bytes_max = 2000;
    });
    cluster.propose("first");
    let id = cluster.leader();
    let leader = cluster.node(id);
    let large = leader.propose(bytes(&"x".repeat(1001))).unwrap_err();
    assert_eq!(large, ProposeError::TooLarge { bytes: 1001, limit: 1000 });

    for disk in cluster.disks.values() {
        disk.hold();
    }
    let (sender, answers) = mpsc::channel();
    for _ in 0..10 {
        let sender = sender.clone();
        leader.propose_with(bytes(&"y".repeat(500)), move |result| sender.send(result).unwrap());
    }
    for _ in 0..7 {
        let refused = answers.recv().unwrap().unwrap_err();
        assert!(matches!(refused, ProposeError::Overloaded { limit: 2000, .. }), "{refused}");
        assert!(refused.is_definite());
    }
    for disk in cluster.disks.values() {
        disk.release();
    }
    for _ in 0..3 {
        answers.recv().unwrap().unwrap();
    }
    wait_for("room again", || (leader.proposal_bytes() == 0).then_some(()));
}
