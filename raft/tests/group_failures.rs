//! A group in bad times: crashes, partitions, disks that hang or fail.

mod cluster;

use std::sync::mpsc;
use std::sync::mpsc::TryRecvError;

use bytes::Bytes;
use cluster::{Cluster, bytes, numbered, wait_for};
use squall_raft::RaftError;
use squall_raft::core::Role;
use squall_raft::group::{ProposeError, ReadError};

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::new(3);
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let victim = cluster.leader();
        let handle = cluster.node(victim);
        let (sender, answers) = mpsc::channel();
        for n in 0..200 {
            let sender = sender.clone();
            let command = format!("{round}-{n}");
            handle.propose_with(Bytes::from(command.clone()), move |result| {
                let _ = sender.send((command, result));
            });
        }
        let (first, _) = answers.recv().unwrap();
        cluster.kill(victim);
        drop(sender);
        let rest: Vec<_> = answers.iter().collect();
        assert_eq!(rest.len(), 199, "every proposal is answered");
        acknowledged.push(first);
        acknowledged
            .extend(rest.into_iter().filter(|(_, result)| result.is_ok()).map(|(command, _)| command));

        let seen = cluster.read();
        for command in &acknowledged {
            assert_eq!(seen.iter().filter(|line| *line == command).count(), 1, "{command}");
        }
        cluster.start(victim);
    }
    cluster.propose("last");
    cluster.converge();
}

#[test]
fn a_kill_of_every_node_at_once_loses_nothing_acknowledged() {
    let mut cluster = Cluster::new(3);
    for command in numbered(40) {
        cluster.propose(&command);
    }
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in 1..=3 {
        cluster.start(id);
    }
    assert_eq!(cluster.read(), numbered(40));
}

#[test]
fn nothing_is_acknowledged_before_a_quorum_has_synced_it() {
    let cluster = Cluster::steady(3);
    cluster.propose("first");
    let leader = cluster.leader();
    let before = cluster.node(leader).status().unwrap().raft;
    let followers: Vec<_> = cluster.ids().into_iter().filter(|&id| id != leader).collect();
    for id in &followers {
        cluster.disks[id].hold();
    }
    let (sender, answers) = mpsc::channel();
    cluster.node(leader).propose_with(bytes("second"), move |result| sender.send(result).unwrap());
    wait_for("the leader's own disk", || {
        let status = cluster.node(leader).status()?.raft;
        (status.persisted == status.last_index && status.last_index > before.last_index).then_some(())
    });
    assert_eq!(answers.try_recv().unwrap_err(), TryRecvError::Empty);
    assert_eq!(cluster.node(leader).status().unwrap().raft.committed, before.committed);
    cluster.disks[&followers[0]].release();
    answers.recv().unwrap().unwrap();
}

#[test]
fn a_leader_whose_own_disk_hangs_still_commits_what_the_others_have() {
    let cluster = Cluster::steady(3);
    cluster.propose("first");
    let leader = cluster.leader();
    let before = cluster.node(leader).status().unwrap().raft.committed;
    cluster.disks[&leader].hold();
    let (sender, answers) = mpsc::channel();
    cluster.node(leader).propose_with(bytes("second"), move |result| sender.send(result).unwrap());
    wait_for("the followers' quorum", || {
        (cluster.node(leader).status()?.raft.committed > before).then_some(())
    });
    assert_eq!(answers.try_recv().unwrap_err(), TryRecvError::Empty, "it applies only what it has itself");
    cluster.disks[&leader].release();
    answers.recv().unwrap().unwrap();
}

#[test]
fn a_partitioned_leader_serves_no_stale_read_and_its_writes_are_indefinite() {
    let cluster = Cluster::new(3);
    cluster.propose("before");
    let old = cluster.leader();
    let others: Vec<_> = cluster.ids().into_iter().filter(|&id| id != old).collect();
    cluster.isolate(old);
    let (sender, write) = mpsc::channel();
    cluster.node(old).propose_with(bytes("lost?"), move |result| sender.send(result).unwrap());
    // Asked while it still believes that it leads, or after: in no case may it answer.
    let (sender, reads) = mpsc::channel();
    for _ in 0..20 {
        let sender = sender.clone();
        cluster.node(old).read_with((), move |result| sender.send(result).unwrap());
    }
    drop(sender);

    let new = cluster.leader_among(&others);
    cluster.node(new).propose(bytes("after")).unwrap();
    let result = write.recv().unwrap().unwrap_err();
    assert!(matches!(result, ProposeError::Indefinite | ProposeError::NotLeader { .. }), "{result}");
    for result in reads {
        assert!(matches!(result, Err(ReadError::NotLeader { .. })));
    }
    assert!(matches!(cluster.node(old).read(()), Err(ReadError::NotLeader { .. })));

    cluster.heal();
    cluster.converge();
    let seen = cluster.read();
    assert_eq!((seen.first().unwrap().as_str(), seen.contains(&"after".to_owned())), ("before", true));
    assert!(!seen.contains(&"lost?".to_owned()), "the new leader never had it");
}

#[test]
fn a_failed_sync_stops_the_node_and_tells_everybody() {
    let mut cluster = Cluster::new(3);
    cluster.propose("first");
    let leader = cluster.leader();
    let handle = cluster.node(leader);
    cluster.disks[&leader].hold();
    let (sender, answers) = mpsc::channel();
    handle.propose_with(bytes("second"), move |result| sender.send(result).unwrap());
    cluster.disks[&leader].break_down();
    let cause = handle.wait().unwrap_err();
    assert!(matches!(*cause, RaftError::Log(_)), "{cause}");
    let result = answers.recv().unwrap();
    assert!(matches!(result, Ok(_) | Err(ProposeError::Indefinite)), "{result:?}");
    assert_eq!(handle.propose(bytes("third")).unwrap_err(), ProposeError::Stopped);
    assert_eq!(handle.read(()).unwrap_err(), ReadError::Stopped);
    assert!(handle.status().is_none());
    assert_eq!(handle.wait_for_leader(cluster::PATIENCE).unwrap_err(), ReadError::Stopped);

    cluster.kill(leader);
    cluster.propose("fourth");
    cluster.start(leader);
    cluster.converge();
    let seen = cluster.read();
    assert_eq!(seen.iter().filter(|line| *line == "fourth").count(), 1);
}

#[test]
fn a_stopped_node_can_be_opened_again_while_old_handles_live() {
    let mut cluster = Cluster::new(1);
    cluster.propose("a");
    let old = cluster.node(1);
    cluster.stop(1);
    assert_eq!(old.propose(bytes("b")).unwrap_err(), ProposeError::Stopped);
    cluster.start(1);
    assert_eq!(cluster.read(), ["a"]);
}

#[test]
fn leaders_come_and_go_and_every_answer_is_kept() {
    let mut cluster = Cluster::new(3);
    let (sender, answers) = mpsc::channel();
    for round in 0..12 {
        let leader = cluster.leader();
        for n in 0..40 {
            let (sender, command) = (sender.clone(), format!("{round}-{n}"));
            cluster.node(leader).propose_with(Bytes::from(command.clone()), move |result| {
                let _ = sender.send((command, result));
            });
        }
        match round % 4 {
            0 => cluster.isolate(leader),
            1 => cluster.heal(),
            2 => cluster.kill(leader),
            _ => (1..=3).for_each(|id| {
                if !cluster.ids().contains(&id) {
                    cluster.start(id);
                }
            }),
        }
    }
    drop(sender);
    cluster.heal();
    cluster.propose("last");
    cluster.converge();
    let seen = cluster.read();
    for (command, result) in answers {
        let times = seen.iter().filter(|line| **line == command).count();
        match result {
            Ok(_) => assert_eq!(times, 1, "{command} was acknowledged"),
            Err(error) if error.is_definite() => assert_eq!(times, 0, "{command} was refused: {error}"),
            Err(_) => assert!(times <= 1, "{command}"),
        }
    }
    let leaders =
        cluster.ids().iter().filter(|&&id| cluster.node(id).soft_state().role == Role::Leader).count();
    assert_eq!(leaders, 1);
}
