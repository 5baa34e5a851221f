//! Damaged logs: a torn tail is cut, damage to what was once synced is refused and nothing is touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use squall_raft::core::types::{Entry, EntryKind, HardState, Index, SnapshotMeta};
use squall_raft::wal::{Identity, Recovered, Wal, WalError, WalOptions};

const IDENTITY: Identity = Identity { cluster_id: *b"cluster of tests", node_id: 1 };
const OPTIONS: WalOptions =
    WalOptions { segment_bytes: 8 << 10, zeroed_slice_bytes: 1 << 10, spare_segments_max: 2 };
/// Of a segment's and of a record's header; of a record with one entry of `entry`.
const HEADER: usize = 4096;
const RECORD_HEADER: usize = 32;
const RECORD: usize = RECORD_HEADER + 32 + 40;

fn try_open(dir: &Path) -> Result<(Wal, Recovered), WalError> {
    Wal::open(dir, IDENTITY, OPTIONS)
}

fn open(dir: &Path) -> (Wal, Recovered) {
    try_open(dir).unwrap()
}

fn entry(index: Index) -> Entry {
    Entry { index, term: 1, kind: EntryKind::Command, data: Bytes::from(vec![index as u8; 37]) }
}

fn entries(range: std::ops::RangeInclusive<Index>) -> Vec<Entry> {
    range.map(entry).collect()
}

fn segment(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:020}.wal"))
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn restore(dir: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for file in fs::read_dir(dir).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
}

/// Appends entries 1 to `synced`, each synced by itself, then up to `written` without a sync.
fn log_of(dir: &Path, synced: Index, written: Index) {
    let (mut wal, _) = open(dir);
    for index in 1..=synced {
        wal.append(None, &[entry(index)]).unwrap();
        wal.sync().unwrap();
    }
    if written > synced {
        wal.append(None, &entries(synced + 1..=written)).unwrap();
        // Written as a crash in the middle of a sync would leave it: without a seal.
        let end = HEADER + RECORD * synced as usize;
        wal.sync().unwrap();
        drop(wal);
        let path = segment(dir, 1);
        let mut bytes = fs::read(&path).unwrap();
        let batch = RECORD_HEADER + 16 + (16 + 37) * (written - synced) as usize;
        let seal = end + batch.next_multiple_of(8);
        assert_ne!(bytes[seal..seal + RECORD_HEADER], [0; RECORD_HEADER]);
        bytes[seal..seal + RECORD_HEADER].fill(0);
        fs::write(path, bytes).unwrap();
    }
}

/// The refusal, after a check that it left every byte alone.
fn refused(dir: &Path) -> WalError {
    let before = files(dir);
    let error = try_open(dir).map(drop).unwrap_err();
    assert_eq!(files(dir), before, "{error}");
    error
}

#[test]
fn a_log_cut_at_any_byte_keeps_every_whole_record_before() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 4, 4);
    let before = files(dir.path());
    let path = segment(dir.path(), 1);
    for length in HEADER..before[&path].len() {
        restore(dir.path(), &before);
        fs::write(&path, &before[&path][..length]).unwrap();
        let whole = ((length - HEADER) / RECORD).min(4) as u64;
        let (mut wal, recovered) = open(dir.path());
        assert_eq!(recovered.entries, entries(1..=whole), "cut at {length}");
        let is_boundary = (length - HEADER).is_multiple_of(RECORD);
        if length < HEADER + 4 * RECORD && !is_boundary {
            assert_eq!(
                recovered.torn_tail.map(|torn| torn.offset),
                Some((HEADER + whole as usize * RECORD) as u64)
            );
        }
        // What is appended now is found behind the cut, and the cut is final.
        wal.append(None, &[entry(whole + 1)]).unwrap();
        wal.sync().unwrap();
        drop(wal);
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.entries, entries(1..=whole + 1), "cut at {length}");
        assert_eq!(recovered.torn_tail, None);
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_synced_record_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 5, 5);
    let path = segment(dir.path(), 1);
    let original = fs::read(&path).unwrap();
    // All five were synced, and the seal says so, also for the last.
    for at in HEADER..HEADER + 5 * RECORD {
        let mut damaged = original.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, &damaged).unwrap();
        let error = refused(dir.path());
        let record = (at - HEADER) / RECORD;
        let WalError::Corrupt { file, offset, index, reason } = &error else { panic!("{error}") };
        assert_eq!(*file, path);
        assert_eq!(
            (*offset as usize, *index),
            (HEADER + record * RECORD, record as u64 + 1),
            "byte {at}: {reason}"
        );
        assert!(error.to_string().contains("let it join anew"), "{error}");
    }
    fs::write(&path, original).unwrap();
    assert_eq!(open(dir.path()).1.entries, entries(1..=5));
}

#[test]
fn a_synced_record_lost_as_a_whole_is_refused_too() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 5, 5);
    let path = segment(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER + RECORD..HEADER + 2 * RECORD].fill(0);
    fs::write(&path, bytes).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, WalError::Corrupt { index: 2, .. }), "{error}");
}

#[test]
fn damage_to_a_batch_that_nothing_proves_synced_is_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 3, 6);
    let path = segment(dir.path(), 1);
    let original = fs::read(&path).unwrap();
    let batch = HEADER + 3 * RECORD;
    for at in batch..batch + RECORD_HEADER + 16 + 3 * 53 {
        let mut damaged = original.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        let (wal, recovered) = open(dir.path());
        assert_eq!(recovered.entries, entries(1..=3), "byte {at}");
        let torn = recovered.torn_tail.unwrap();
        assert_eq!((torn.file, torn.offset), (path.clone(), batch as u64));
        // The cut is made by a new segment; the evidence stays.
        assert_eq!(wal.segments(), 2);
        assert_eq!(fs::read(&path).unwrap(), damaged);
        drop(wal);
        fs::remove_file(segment(dir.path(), 2)).unwrap();
    }
}

/// Of two records written since the last sync, the disk had the second only: an ordinary crash.
#[test]
fn a_later_record_of_the_same_unsynced_batch_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 2, 2);
    let (mut wal, _) = open(dir.path());
    wal.append(None, &[entry(3)]).unwrap();
    wal.append(None, &[entry(4)]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let path = segment(dir.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER + 2 * RECORD..HEADER + 3 * RECORD].fill(0);
    bytes[HEADER + 4 * RECORD..HEADER + 4 * RECORD + RECORD_HEADER].fill(0);
    fs::write(&path, bytes).unwrap();

    let (mut wal, recovered) = open(dir.path());
    assert_eq!(recovered.entries, entries(1..=2));
    assert_eq!(recovered.torn_tail.unwrap().later_records, 1);
    // Entry 4 of the cut tail must never come back, not even behind an entry 3 written anew.
    wal.append(None, &[entry(3)]).unwrap();
    wal.sync().unwrap();
    drop(wal);
    let (_, recovered) = open(dir.path());
    assert_eq!(recovered.entries, entries(1..=3));
}

#[test]
fn damage_in_a_closed_segment_is_refused_up_to_its_end_and_harmless_behind() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 60, 60);
    let path = segment(dir.path(), 1);
    assert!(segment(dir.path(), 2).exists());
    let original = fs::read(&path).unwrap();
    // Where the header of the next segment says that this one ends.
    let next = fs::read(segment(dir.path(), 2)).unwrap();
    let used = u64::from_le_bytes(next[64..72].try_into().unwrap()) as usize;
    let mut refusals = 0;
    for at in (0..original.len()).step_by(41) {
        let mut damaged = original.clone();
        damaged[at] ^= 4;
        fs::write(&path, &damaged).unwrap();
        if at < used {
            let error = refused(dir.path());
            assert!(matches!(&error, WalError::Corrupt { file, .. } if *file == path), "byte {at}: {error}");
            refusals += 1;
        } else {
            assert_eq!(open(dir.path()).1.entries, entries(1..=60), "byte {at}");
        }
    }
    assert!(refusals > 150);

    // A cut in a closed segment is no torn tail either.
    fs::write(&path, &original[..used - 1]).unwrap();
    assert!(matches!(refused(dir.path()), WalError::Corrupt { .. }));
}

#[test]
fn a_missing_segment_is_refused_wherever_it_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 100, 100);
    let before = files(dir.path());
    assert!(segment(dir.path(), 3).exists());
    for sequence in [1, 2] {
        restore(dir.path(), &before);
        fs::remove_file(segment(dir.path(), sequence)).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, WalError::Corrupt { .. }), "{error}");
    }
    restore(dir.path(), &before);
    fs::rename(segment(dir.path(), 1), segment(dir.path(), 9)).unwrap();
    assert!(matches!(refused(dir.path()), WalError::Corrupt { .. }));

    restore(dir.path(), &before);
    for path in before.keys().filter(|path| path.extension().is_some_and(|extension| extension == "wal")) {
        fs::rename(path, path.with_extension("spare")).unwrap();
    }
    assert!(matches!(refused(dir.path()), WalError::Corrupt { .. }));
}

/// The removals of a compaction became durable in another order than they were made.
#[test]
fn an_obsolete_segment_left_behind_by_a_crash_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 150, 150);
    let oldest = fs::read(segment(dir.path(), 1)).unwrap();
    let (mut wal, _) = open(dir.path());
    wal.compact(SnapshotMeta { index: 140, term: 1 }, 141).unwrap();
    drop(wal);
    assert!(!segment(dir.path(), 2).exists());
    fs::write(segment(dir.path(), 1), oldest).unwrap();
    let (_, recovered) = open(dir.path());
    assert_eq!(recovered.entries, entries(141..=150));
    assert!(!segment(dir.path(), 1).exists());
}

#[test]
fn bits_flipped_in_the_older_life_of_a_recycled_segment_are_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path());
    let mut next = 1;
    let recycled = loop {
        wal.append(None, &[entry(next)]).unwrap();
        wal.sync().unwrap();
        next += 1;
        if next % 50 == 0 {
            wal.compact(SnapshotMeta { index: next - 1, term: 1 }, next).unwrap();
        }
        // Stop early in the third segment: it is the first one recycled.
        let third = segment(dir.path(), 3);
        if third.exists() {
            break third;
        }
    };
    drop(wal);
    let original = fs::read(&recycled).unwrap();
    let end = HEADER + RECORD + RECORD_HEADER;
    assert!(original[end..].iter().any(|byte| *byte != 0), "the old records are still there");
    for at in end..original.len() {
        let mut damaged = original.clone();
        damaged[at] ^= 1;
        fs::write(&recycled, &damaged).unwrap();
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.entries.last().unwrap().index, next - 1);
        assert_eq!(recovered.torn_tail, None, "byte {at}");
    }
}

#[test]
fn a_damaged_segment_header_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 1, 1);
    let path = segment(dir.path(), 1);
    let original = fs::read(&path).unwrap();
    for at in (0..HEADER).step_by(97) {
        let mut damaged = original.clone();
        damaged[at] ^= 0x80;
        fs::write(&path, damaged).unwrap();
        let error = refused(dir.path());
        assert!(matches!(error, WalError::Corrupt { offset: 0, .. }), "byte {at}: {error}");
    }
    fs::write(&path, &original[..HEADER - 1]).unwrap();
    assert!(matches!(refused(dir.path()), WalError::Corrupt { .. }));
}

/// A reset's new segment is durable before the old ones go; a crash in between leaves both.
#[test]
fn old_segments_beside_a_reset_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    log_of(dir.path(), 20, 20);
    let old = files(dir.path());
    let (mut wal, _) = open(dir.path());
    let snapshot = SnapshotMeta { index: 500, term: 3 };
    wal.reset(snapshot, HardState { term: 3, vote: None, commit: 500 }).unwrap();
    drop(wal);
    let path = segment(dir.path(), 1);
    fs::write(&path, &old[&path]).unwrap();
    let (mut wal, recovered) = open(dir.path());
    assert_eq!((recovered.snapshot, recovered.entries.len()), (snapshot, 0));
    wal.append(None, &[entry(501)]).unwrap();
    wal.compact(SnapshotMeta { index: 501, term: 1 }, 502).unwrap();
    assert_eq!(wal.segments(), 1);
}
