//! Snapshot files on a disk that loses power and fails calls: each is there as a whole, or not at all.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::{SnapshotError, SnapshotOptions, SnapshotStore};
use crate::core::Membership;
use crate::core::types::SnapshotMeta;
use crate::wal::Identity;
use crate::wal::crash_disk::{CrashDisk, EIO, ENOSPC, Rng};

const IDENTITY: Identity = Identity { cluster_id: [7; 16], node_id: 1 };
const OPTIONS: SnapshotOptions = SnapshotOptions { block_bytes: 700 };
const METAS: [SnapshotMeta; 3] = [
    SnapshotMeta { index: 10, term: 1 },
    SnapshotMeta { index: 20, term: 1 },
    SnapshotMeta { index: 30, term: 2 },
];

fn members() -> Membership {
    Membership::of_voters([1, 2])
}

fn body(meta: SnapshotMeta) -> Vec<u8> {
    vec![meta.index as u8; 2000 + meta.index as usize]
}

/// Writes one snapshot, receives it in another store as a later one, writes that again, and purges.
fn work(disk: &Arc<CrashDisk>, dir: &Path, finished: &mut Vec<SnapshotMeta>) -> Result<(), SnapshotError> {
    let store = SnapshotStore::open_on(disk.clone(), &dir.join("snapshots"), IDENTITY, OPTIONS)?;
    for meta in [METAS[0], METAS[1]] {
        let mut writer = store.create(meta, &members())?;
        match writer.write_all(&body(meta)) {
            Ok(()) => {}
            Err(error) => {
                assert!(matches!(writer.finish(), Err(SnapshotError::GivenUp { .. })));
                return Err(*error.into_inner().unwrap().downcast().unwrap());
            }
        }
        writer.finish()?;
        finished.push(meta);
    }
    let sender = dir.join("sender");
    let sender = SnapshotStore::open(&sender, Identity { node_id: 2, ..IDENTITY }, OPTIONS).unwrap();
    let mut writer = sender.create(METAS[2], &members()).unwrap();
    writer.write_all(&body(METAS[2])).unwrap();
    let bytes = fs::read(writer.finish().unwrap()).unwrap();
    let mut receiver = store.receive(METAS[2], bytes.len() as u64)?;
    for chunk in bytes.chunks(600) {
        receiver.chunk(receiver.next_offset(), chunk)?;
    }
    receiver.finish()?;
    finished.push(METAS[2]);
    store.purge_older(1).map(drop)
}

#[test]
fn a_failed_call_or_a_loss_of_power_leaves_whole_snapshots_only() {
    for code in [EIO, ENOSPC] {
        let mut failures = 0;
        for call in 1.. {
            let root = tempfile::tempdir().unwrap();
            let disk = Arc::new(CrashDisk::default());
            disk.fail_call(call, code);
            let mut finished = Vec::new();
            let result = work(&disk, root.path(), &mut finished);
            let dir = root.path().join("snapshots");
            if let Err(error) = &result {
                failures += 1;
                assert_eq!(matches!(error, SnapshotError::NoSpace { .. }), code == ENOSPC, "{error}");
                let leftovers = fs::read_dir(&dir).map_or(0, |files| {
                    files.filter(|file| file.as_ref().unwrap().path().extension().unwrap() == "tmp").count()
                });
                assert_eq!(leftovers, 0, "call {call}: {error}");
            }

            let after = root.path().join("after");
            fs::create_dir(&after).unwrap();
            disk.lose_power(&mut Rng(call as u64), &after);
            let store = SnapshotStore::open(&after, IDENTITY, OPTIONS).unwrap();
            let left = store.list().unwrap();
            for meta in &left {
                store.verify(*meta).unwrap();
            }
            // The newest one that was finished is there, or one that is newer still.
            assert!(
                left.first().map(|meta| meta.index) >= finished.last().map(|meta| meta.index),
                "call {call}"
            );
            if result.is_ok() {
                assert_eq!(left, [METAS[2]]);
                break;
            }
        }
        assert!(failures > 20, "{failures}");
    }
}
