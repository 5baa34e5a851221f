//! The log through its public interface: what is written comes back, and what cannot be written is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use squall_raft::core::types::{Entry, EntryKind, HardState, Index, SnapshotMeta, Term};
use squall_raft::wal::{Identity, Recovered, Wal, WalError, WalOptions};

const IDENTITY: Identity = Identity { cluster_id: *b"cluster of tests", node_id: 1 };

fn small_segments() -> WalOptions {
    WalOptions { segment_bytes: 16 << 10, zeroed_slice_bytes: 4 << 10, spare_segments_max: 2 }
}

fn open(dir: &Path) -> (Wal, Recovered) {
    Wal::open(dir, IDENTITY, small_segments()).unwrap()
}

fn entry(index: Index, term: Term, bytes: usize) -> Entry {
    let data = (0..bytes).map(|at| (at as u64 * 31 + index * 7 + term) as u8).collect::<Bytes>();
    Entry { index, term, kind: EntryKind::Command, data }
}

fn entries(range: std::ops::RangeInclusive<Index>, term: Term) -> Vec<Entry> {
    range.map(|index| entry(index, term, 100)).collect()
}

fn names(dir: &Path) -> Vec<String> {
    files(dir).into_keys().collect()
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

#[test]
fn a_log_is_send() {
    fn is_send<T: Send>() {}
    is_send::<Wal>();
}

#[test]
fn an_empty_log_is_created_with_the_directories_above_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("node-1/data/wal");
    let (wal, recovered) = open(&dir);
    assert_eq!(recovered.hard_state, HardState::default());
    assert_eq!(recovered.snapshot, SnapshotMeta::default());
    assert!(recovered.entries.is_empty() && recovered.torn_tail.is_none());
    assert_eq!(wal.segments(), 1);
    assert_eq!(names(&dir), ["00000000000000000001.wal", "wal.lock"]);
}

#[test]
fn what_is_synced_comes_back_after_each_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for term in 1..6 {
        let (mut wal, recovered) = open(dir.path());
        assert_eq!(recovered.entries, expected);
        let hard_state =
            HardState { term, vote: (term % 2 == 0).then_some(term), commit: expected.len() as u64 };
        let next = expected.len() as u64 + 1;
        let noop = Entry { index: next, term, kind: EntryKind::Noop, data: Bytes::new() };
        expected.push(noop.clone());
        wal.append(Some(&hard_state), &[noop]).unwrap();
        let batch = entries(next + 1..=next + 60, term);
        wal.append(None, &batch).unwrap();
        expected.extend(batch);
        wal.sync().unwrap();
        drop(wal);

        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.hard_state, hard_state);
        assert_eq!(recovered.entries, expected);
        assert_eq!(recovered.torn_tail, None);
    }
    assert!(open(dir.path()).0.segments() > 1);
}

#[test]
fn opening_a_sealed_log_twice_changes_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    wal.append(None, &entries(1..=40, 1)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let before = files(dir.path());
    drop(open(dir.path()));
    assert_eq!(files(dir.path()), before);
}

#[test]
fn an_entry_not_above_the_last_replaces_the_log_from_there_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    wal.append(None, &entries(1..=200, 1)).unwrap();
    wal.append(None, &entries(50..=60, 2)).unwrap();
    wal.append(None, &entries(60..=61, 3)).unwrap();
    wal.sync().unwrap();
    drop(wal);

    let expected = [entries(1..=49, 1), entries(50..=59, 2), entries(60..=61, 3)].concat();
    let (mut wal, recovered) = open(dir.path());
    assert_eq!(recovered.entries, expected);
    wal.append(None, &entries(1..=1, 4)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(dir.path()).1.entries, entries(1..=1, 4));
}

#[test]
fn gaps_and_replacements_under_the_snapshot_are_refused_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    wal.append(None, &entries(1..=10, 1)).unwrap();
    wal.compact(SnapshotMeta { index: 5, term: 1 }, 3).unwrap();

    let holed = [entry(11, 1, 1), entry(13, 1, 1)];
    let overflowing = Entry { index: u64::MAX, ..entry(11, 1, 1) };
    for (batch, got) in [
        (&entries(12..=12, 1)[..], 12),
        (&entries(5..=5, 2), 5),
        (&entries(0..=0, 2), 0),
        (&holed, 13),
        (&[overflowing], u64::MAX),
    ] {
        let error = wal.append(None, batch).unwrap_err();
        assert!(matches!(error, WalError::OutOfOrder { got: index, .. } if index == got), "{error}");
    }
    for (index, keep_from) in [(4, 3), (11, 3), (6, 8), (6, 2), (6, 0), (u64::MAX, 3)] {
        let error = wal.compact(SnapshotMeta { index, term: 1 }, keep_from).unwrap_err();
        assert!(matches!(error, WalError::BadCompaction { .. }), "{error}");
    }
    for index in [4, u64::MAX] {
        let error = wal.reset(SnapshotMeta { index, term: 1 }, HardState::default()).unwrap_err();
        assert!(matches!(error, WalError::BadCompaction { .. }), "{error}");
    }
    wal.append(None, &entries(6..=6, 2)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(dir.path()).1.entries, [entries(3..=5, 1), entries(6..=6, 2)].concat());
}

#[test]
fn a_commit_hint_beyond_the_log_is_moved_into_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    wal.append(Some(&HardState { term: 1, vote: None, commit: 500 }), &entries(1..=3, 1)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(dir.path()).1.hard_state.commit, 3);
}

#[test]
fn compaction_recycles_whole_segments_and_keeps_what_laggards_need() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    for index in 1..=1000 {
        wal.append(None, &[entry(index, 1, 100)]).unwrap();
    }
    wal.append(Some(&HardState { term: 7, vote: Some(2), commit: 950 }), &[]).unwrap();
    wal.sync().unwrap();
    let (segments, bytes) = (wal.segments(), wal.size_bytes());
    assert!(segments > 8, "{segments}");

    wal.compact(SnapshotMeta { index: 900, term: 1 }, 800).unwrap();
    assert!(wal.segments() < segments / 2);
    assert!(wal.size_bytes() < bytes / 2);
    let spares = names(dir.path()).iter().filter(|name| name.ends_with(".spare")).count();
    assert_eq!(spares, small_segments().spare_segments_max);
    drop(wal);

    let (mut wal, recovered) = open(dir.path());
    assert_eq!(recovered.snapshot, SnapshotMeta { index: 900, term: 1 });
    assert_eq!(recovered.hard_state, HardState { term: 7, vote: Some(2), commit: 950 });
    assert_eq!(recovered.entries, entries(800..=1000, 1));
    assert_eq!(recovered.entries_after(900), Some(&entries(901..=1000, 1)[..]));
    assert_eq!(recovered.entries_after(799), Some(&entries(800..=1000, 1)[..]));
    assert_eq!(recovered.entries_after(1000), Some(&[][..]));
    assert_eq!(recovered.entries_after(798), None);
    assert_eq!(recovered.entries_after(1001), None);
    assert_eq!(recovered.entries_after(u64::MAX), None);

    // The spares are used, and nothing of their older life comes back.
    for round in 0..4 {
        let first = 1001 + round * 200;
        for index in first..first + 200 {
            wal.append(None, &[entry(index, 2, 100)]).unwrap();
            wal.sync().unwrap();
        }
        let snapshot = SnapshotMeta { index: first + 190, term: 2 };
        wal.compact(snapshot, first + 191).unwrap();
        drop(wal);
        let (reopened, recovered) = open(dir.path());
        assert_eq!(recovered.entries, entries(first + 191..=first + 199, 2));
        assert_eq!(recovered.snapshot, snapshot);
        assert_eq!(recovered.torn_tail, None);
        wal = reopened;
    }
}

#[test]
fn segments_whose_entries_were_all_replaced_go_with_the_next_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    for index in 1..=500 {
        wal.append(None, &[entry(index, 1, 100)]).unwrap();
    }
    wal.append(None, &entries(10..=20, 2)).unwrap();
    assert!(wal.segments() > 3);
    wal.compact(SnapshotMeta { index: 9, term: 1 }, 10).unwrap();
    assert_eq!(wal.segments(), 1);
    drop(wal);
    assert_eq!(open(dir.path()).1.entries, entries(10..=20, 2));
}

#[test]
fn a_recycled_segment_without_a_record_is_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    for index in 1..=500 {
        wal.append(None, &[entry(index, 1, 100)]).unwrap();
    }
    wal.compact(SnapshotMeta { index: 500, term: 1 }, 501).unwrap();
    wal.reset(SnapshotMeta { index: 600, term: 1 }, HardState::default()).unwrap();
    drop(wal);
    let (_, recovered) = open(dir.path());
    assert_eq!(recovered.torn_tail, None);
    assert!(recovered.entries.is_empty());
}

#[test]
fn compaction_of_everything_leaves_an_empty_log_that_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    wal.append(None, &entries(1..=10, 1)).unwrap();
    let snapshot = SnapshotMeta { index: 10, term: 1 };
    wal.compact(snapshot, 11).unwrap();
    wal.compact(snapshot, 11).unwrap();
    drop(wal);
    let (mut wal, recovered) = open(dir.path());
    assert_eq!((recovered.snapshot, recovered.entries.len()), (snapshot, 0));
    assert_eq!(recovered.entries_after(10), Some(&[][..]));
    assert_eq!(recovered.entries_after(9), None);
    wal.append(None, &entries(11..=11, 2)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(dir.path()).1.entries, entries(11..=11, 2));
}

#[test]
fn a_reset_forgets_the_old_log_and_starts_behind_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    wal.append(None, &entries(1..=500, 1)).unwrap();
    let snapshot = SnapshotMeta { index: 10_000, term: 4 };
    let hard_state = HardState { term: 5, vote: None, commit: 10_000 };
    wal.reset(snapshot, hard_state).unwrap();
    assert_eq!(wal.segments(), 1);
    drop(wal);

    let (mut wal, recovered) = open(dir.path());
    assert_eq!((recovered.snapshot, recovered.hard_state), (snapshot, hard_state));
    assert!(recovered.entries.is_empty());
    assert!(wal.append(None, &entries(501..=501, 5)).is_err());
    wal.append(None, &entries(10_001..=10_002, 5)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    assert_eq!(open(dir.path()).1.entries, entries(10_001..=10_002, 5));
}

#[test]
fn entries_larger_than_a_segment_are_kept_beside_small_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    let batch = [entry(1, 1, 10), entry(2, 1, 65 << 20), entry(3, 1, 0), entry(4, 1, 100_000)];
    wal.append(None, &batch[..1]).unwrap();
    wal.append(None, &batch[1..]).unwrap();
    wal.append(None, &entries(5..=6, 1)).unwrap();
    wal.sync().unwrap();
    assert_eq!(wal.segments(), 3);
    drop(wal);
    let (mut wal, recovered) = open(dir.path());
    assert!(recovered.entries == [&batch[..], &entries(5..=6, 1)].concat());
    drop(recovered);
    // A file of that size is not worth keeping as a spare.
    wal.compact(SnapshotMeta { index: 4, term: 1 }, 5).unwrap();
    assert_eq!(wal.segments(), 1);
    let largest = files(dir.path()).values().map(Vec::len).max();
    assert!(largest <= Some(16 << 10), "{largest:?}");
}

#[test]
fn a_second_opener_is_refused_by_the_path_of_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let error = Wal::open(dir.path(), IDENTITY, small_segments()).map(drop).unwrap_err();
    assert!(matches!(&error, WalError::Locked { path } if *path == dir.path().join("wal.lock")), "{error}");
    assert!(error.to_string().contains("wal.lock"));
    drop(first);
    open(dir.path());
}

#[test]
fn a_directory_of_another_cluster_or_node_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    wal.append(None, &entries(1..=5, 1)).unwrap();
    wal.sync().unwrap();
    drop(wal);
    fs::write(dir.path().join("00000000000000000002.wal.tmp"), "left by a crash").unwrap();
    for with_lock_file in [true, false] {
        if !with_lock_file {
            fs::remove_file(dir.path().join("wal.lock")).unwrap();
        }
        let before = files(dir.path());
        for other in [Identity { node_id: 2, ..IDENTITY }, Identity { cluster_id: [0xab; 16], ..IDENTITY }] {
            let error = Wal::open(dir.path(), other, small_segments()).map(drop).unwrap_err();
            let WalError::WrongIdentity { expected, found, .. } = &error else { panic!("{error}") };
            assert_eq!((*expected, *found), (other, IDENTITY));
            let message = error.to_string();
            assert!(
                message.contains(&other.to_string()) && message.contains(&IDENTITY.to_string()),
                "{message}"
            );
            assert_eq!(files(dir.path()), before);
        }
    }
    assert_eq!(open(dir.path()).1.entries, entries(1..=5, 1));
}

#[test]
fn what_a_crash_left_of_a_new_segment_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("00000000000000000002.wal.tmp"), [0; 5000]).unwrap();
    fs::write(dir.path().join("notes.txt"), "not ours").unwrap();
    drop(open(dir.path()));
    assert_eq!(names(dir.path()), ["00000000000000000001.wal", "notes.txt", "wal.lock"]);
}
