//! Snapshots: taken as the log grows, sent to who lags, and what a restart makes of them.

mod cluster;

use std::fs;
use std::io::Write;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cluster::{Cluster, numbered, wait_for};
use squall_raft::RaftError;
use squall_raft::core::types::{HardState, SnapshotMeta};
use squall_raft::core::{MemberChange, Membership};
use squall_raft::group::{GroupConfig, IncomingError, SnapshotHeader, Storage};

fn often(config: &mut GroupConfig) {
    config.snapshot_log_entries = 20;
    config.log_keep_entries = 5;
}

fn snapshot_index(cluster: &Cluster, id: u64) -> u64 {
    cluster.node(id).status().unwrap().raft.snapshot.index
}

#[test]
fn the_log_is_compacted_as_it_grows_and_a_restart_needs_no_more_than_what_is_left() {
    let mut cluster = Cluster::tuned(1, often);
    for command in numbered(200) {
        cluster.propose(&command);
    }
    let status = wait_for("a compaction", || {
        cluster.node(1).status().filter(|s| s.raft.first_index > 100 && !s.snapshot_running)
    });
    assert!(status.raft.snapshot.index - status.raft.first_index < 6, "{status:?}");
    let files = || fs::read_dir(cluster.dir(1).join("snapshots")).unwrap();
    wait_for("old snapshots to go", || {
        let snapshots =
            files().filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "snap"));
        (snapshots.count() == 1).then_some(())
    });
    for _ in 0..2 {
        cluster.kill(1);
        cluster.start(1);
        assert_eq!(cluster.read(), numbered(200));
    }
    cluster.propose("more");
    assert_eq!(cluster.read().len(), 201);
}

#[test]
fn a_follower_that_lags_far_gets_a_snapshot_and_goes_on() {
    let mut cluster = Cluster::tuned(3, often);
    cluster.propose("first");
    let leader = cluster.leader();
    let lagging = cluster.ids().into_iter().find(|&id| id != leader).unwrap();
    cluster.isolate(lagging);
    for command in numbered(150) {
        cluster.propose(&command);
    }
    wait_for("the leader's compaction", || (snapshot_index(&cluster, cluster.leader()) > 100).then_some(()));
    cluster.heal();
    cluster.converge();
    assert!(cluster.links.snapshots_delivered.load(Ordering::SeqCst) >= 1);
    assert!(snapshot_index(&cluster, lagging) > 100);
    cluster.propose("more");
    cluster.converge();

    // It stands on the snapshot it was sent, also across a crash.
    cluster.kill(lagging);
    cluster.start(lagging);
    cluster.converge();
    let others: Vec<_> = cluster.ids().into_iter().filter(|&id| id != lagging).collect();
    cluster.stop(others[0]);
    assert_eq!(cluster.read().len(), 152);
}

#[test]
fn an_empty_node_joins_by_snapshot_while_writes_go_on() {
    let mut cluster = Cluster::tuned(3, often);
    cluster.propose("first");
    let leader = cluster.leader();
    let late = cluster.ids().into_iter().find(|&id| id != leader).unwrap();
    cluster.stop(late);
    fs::remove_dir_all(cluster.dir(late)).unwrap();
    // Under its old id with its new disk it is another member.
    let change = |cluster: &Cluster, change: MemberChange| {
        let attempt = || cluster.node(cluster.leader()).change_members(vec![change.clone()]).ok();
        wait_for("the change", attempt)
    };
    change(&cluster, MemberChange::Remove { id: late });
    change(&cluster, MemberChange::AddLearner { id: late, address: Bytes::new(), incarnation: 0 });
    for command in numbered(100) {
        cluster.propose(&command);
    }
    wait_for("the leader's compaction", || (snapshot_index(&cluster, cluster.leader()) > 50).then_some(()));
    let before = cluster.links.snapshots_delivered.load(Ordering::SeqCst);
    cluster.start(late);
    for command in numbered(100) {
        cluster.propose(&command);
    }
    cluster.converge();
    assert!(cluster.links.snapshots_delivered.load(Ordering::SeqCst) > before);
    assert_eq!(cluster.read().len(), 201);
    let members = change(&cluster, MemberChange::Promote { id: late });
    assert_eq!(members.to_string(), "voters 1 2 3");
}

/// A snapshot file, as another node would have written it, of a list of these lines.
fn put_snapshot(storage: &Storage, meta: SnapshotMeta, lines: &[String]) {
    let mut file = storage.snapshots.create(meta, &Membership::of_voters([1])).unwrap();
    for line in lines {
        writeln!(file, "{line}").unwrap();
    }
    file.finish().unwrap();
}

#[test]
fn a_crash_between_a_received_snapshot_and_the_new_log_is_repaired_at_the_start() {
    let mut cluster = Cluster::new(1);
    cluster.propose("old");
    cluster.stop(1);
    let storage = cluster.storage(1).unwrap();
    put_snapshot(&storage, SnapshotMeta { index: 500, term: 90 }, &numbered(7));
    drop(storage);
    cluster.start(1);
    assert_eq!(cluster.read(), numbered(7));
    let status = cluster.node(1).status().unwrap().raft;
    assert_eq!(status.first_index, 501);
    assert!(status.term > 90, "the log's own term was lower than the snapshot's");
    cluster.kill(1);
    cluster.start(1);
    assert_eq!(cluster.read(), numbered(7));
}

#[test]
fn a_damaged_snapshot_is_passed_over_only_if_the_log_reaches_back() {
    let mut cluster = Cluster::new(1);
    for command in numbered(10) {
        cluster.propose(&command);
    }
    let status = cluster.node(1).status().unwrap().raft;
    cluster.stop(1);
    let meta = SnapshotMeta { index: status.last_index, term: status.term };
    let storage = cluster.storage(1).unwrap();
    put_snapshot(&storage, meta, &numbered(10));
    drop(storage);
    let damage = || {
        let path = fs::read_dir(cluster.dir(1).join("snapshots"))
            .unwrap()
            .map(|f| f.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "snap"))
            .unwrap();
        let mut content = fs::read(&path).unwrap();
        let at = content.len() - 30;
        content[at] ^= 1;
        fs::write(path, content).unwrap();
    };
    damage();
    cluster.start(1);
    assert_eq!(cluster.read(), numbered(10), "the log still has everything");
    cluster.stop(1);

    let mut storage = cluster.storage(1).unwrap();
    storage.log.compact(meta, meta.index + 1).unwrap();
    drop(storage);
    let refused = cluster.try_start(1).unwrap_err();
    assert!(matches!(refused, RaftError::Snapshot(_)), "{refused}");
}

#[test]
fn a_log_without_its_snapshot_is_refused() {
    let mut cluster = Cluster::new(1);
    cluster.stop(1);
    let mut storage = cluster.storage(1).unwrap();
    let hard_state = HardState { term: 3, vote: None, commit: 9 };
    storage.log.reset(SnapshotMeta { index: 9, term: 2 }, hard_state).unwrap();
    drop(storage);
    let refused = cluster.try_start(1).unwrap_err();
    assert!(matches!(refused, RaftError::SnapshotMissing { first_index: 10 }), "{refused}");
}

#[test]
fn a_transfer_resumes_survives_repeats_and_refuses_damage() {
    let cluster = Cluster::tuned(3, |config| config.raft.election_ticks = 100_000);
    let snapshot = SnapshotMeta { index: 30, term: 2 };
    let sender = cluster.storage(9).unwrap();
    put_snapshot(&sender, snapshot, &numbered(30));
    let (_, total_bytes) = sender.snapshots.raw_reader(snapshot).unwrap();
    let file = fs::read_dir(cluster.dir(9).join("snapshots")).unwrap().map(|f| f.unwrap().path());
    let file =
        fs::read(file.into_iter().find(|p| p.extension().is_some_and(|e| e == "snap")).unwrap()).unwrap();
    let node = cluster.node(1);
    let header = SnapshotHeader { from: 2, to: 1, term: 3, snapshot, total_bytes };
    let half = file.len() / 2;

    assert!(matches!(node.finish_snapshot(&header), Err(IncomingError::NotBegun)));
    let stray = SnapshotHeader { to: 3, ..header };
    assert!(matches!(node.begin_snapshot(stray), Err(IncomingError::Misdelivered { .. })));
    assert_eq!(node.begin_snapshot(header).unwrap(), 0);
    let crc = crc32c::crc32c(&file[..half]);
    let damaged = node.snapshot_chunk(&header, 0, &file[1..half], crc);
    assert!(matches!(damaged, Err(IncomingError::Damaged { offset: 0 })));
    for _ in 0..2 {
        assert_eq!(node.snapshot_chunk(&header, 0, &file[..half], crc).unwrap(), half as u64);
    }
    let late = SnapshotHeader { term: 2, ..header };
    assert!(matches!(node.begin_snapshot(late), Err(IncomingError::NotBegun)), "of a deposed leader");
    assert_eq!(node.begin_snapshot(header).unwrap(), half as u64, "resumed");
    let rest = &file[half..];
    node.snapshot_chunk(&header, half as u64, rest, crc32c::crc32c(rest)).unwrap();
    node.finish_snapshot(&header).unwrap();
    let applied = || node.status().filter(|s| s.raft.applied == 30);
    assert_eq!(wait_for("the snapshot to be installed", applied).raft.leader, Some(2));
}
