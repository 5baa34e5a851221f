//! The log on a disk that loses power and fails calls, against a model of what must survive. Every random choice
//! comes from a seed, which a failure prints.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::crash_disk::{CrashDisk, EIO, ENOSPC, Rng};
use super::{Identity, Recovered, Wal, WalError, WalOptions};
use crate::core::types::{Entry, EntryKind, HardState, Index, SnapshotMeta};

const IDENTITY: Identity = Identity { cluster_id: [7; 16], node_id: 1 };

/// What the log should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    hard_state: HardState,
    snapshot: SnapshotMeta,
    /// Starts at the first index kept.
    entries: Vec<Entry>,
}

impl Model {
    fn next_index(&self) -> Index {
        self.entries.last().map_or(self.snapshot.index, |entry| entry.index) + 1
    }

    fn append(&mut self, entries: &[Entry]) {
        self.entries.retain(|entry| entry.index < entries[0].index);
        self.entries.extend_from_slice(entries);
    }

    /// As the log reports it: the commit index is within the log.
    fn recovered(&self) -> Model {
        let mut model = self.clone();
        let commit = &mut model.hard_state.commit;
        *commit = (*commit).clamp(self.snapshot.index, self.next_index() - 1);
        model
    }
}

impl From<Recovered> for Model {
    fn from(recovered: Recovered) -> Model {
        let Recovered { hard_state, snapshot, entries, .. } = recovered;
        Model { hard_state, snapshot, entries }
    }
}

/// A log with the states that it may be in after a crash: the last durable one, and all since, in order.
struct Tested {
    root: tempfile::TempDir,
    generation: usize,
    disk: Arc<CrashDisk>,
    options: WalOptions,
    wal: Option<Wal>,
    possible: Vec<Model>,
}

impl Tested {
    fn new() -> Tested {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("0")).unwrap();
        let options = WalOptions { segment_bytes: 7000, zeroed_slice_bytes: 1000, spare_segments_max: 1 };
        let empty = Model {
            hard_state: HardState::default(),
            snapshot: SnapshotMeta::default(),
            entries: Vec::new(),
        };
        let disk = Arc::new(CrashDisk::default());
        Tested { root, generation: 0, disk, options, wal: None, possible: vec![empty] }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join(self.generation.to_string())
    }

    fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().unwrap()
    }

    fn open(&mut self) -> Result<(), WalError> {
        let (wal, recovered) = Wal::open_on(self.disk.clone(), &self.dir(), IDENTITY, self.options)?;
        self.wal = Some(wal);
        let recovered = Model::from(recovered);
        let Some(found) = self.possible.iter().find(|model| model.recovered() == recovered) else {
            panic!("recovered {recovered:?}, which is none of {:?}", self.possible);
        };
        // What open returns is durable.
        self.possible = vec![found.clone()];
        Ok(())
    }

    /// The process dies, the kernel lives on.
    fn kill(&mut self) {
        self.wal = None;
    }

    fn lose_power(&mut self, rng: &mut Rng) {
        self.wal = None;
        self.generation += 1;
        fs::create_dir(self.dir()).unwrap();
        self.disk.lose_power(rng, &self.dir());
        self.disk = Arc::new(self.disk.after_the_loss(&self.dir()));
    }

    fn current(&self) -> Model {
        self.possible.last().unwrap().clone()
    }

    /// One random operation; the model is told first, so that a failure leaves every state possible.
    fn step(&mut self, rng: &mut Rng) -> Result<(), WalError> {
        let mut model = self.current();
        match rng.below(100) {
            0..=54 => {
                let hard_state = rng.percent(40).then(|| HardState {
                    term: model.hard_state.term + rng.below(2),
                    vote: Some(rng.below(3)).filter(|vote| *vote != 0),
                    commit: rng.below(model.next_index()),
                });
                if let Some(hard_state) = hard_state {
                    model.hard_state = hard_state;
                    self.possible.push(model.clone());
                }
                let lowest = model.snapshot.index + 1;
                let next = model.next_index();
                let first = if rng.percent(20) { lowest + rng.below(next - lowest + 1) } else { next };
                let count = rng.below(4);
                let entries: Vec<Entry> = (first..first + count)
                    .map(|index| Entry {
                        index,
                        term: model.hard_state.term,
                        kind: if rng.percent(10) { EntryKind::Noop } else { EntryKind::Command },
                        data: vec![rng.next() as u8; rng.below(700) as usize].into(),
                    })
                    .collect();
                if !entries.is_empty() {
                    model.append(&entries);
                    self.possible.push(model);
                }
                self.wal().append(hard_state.as_ref(), &entries)
            }
            55..=84 => {
                self.wal().sync()?;
                self.possible = vec![model];
                Ok(())
            }
            85..=95 => {
                let index = model.snapshot.index + rng.below(model.next_index() - model.snapshot.index);
                let term = rng.below(9);
                let oldest = model.entries.first().map_or(model.snapshot.index + 1, |entry| entry.index);
                let keep_from = oldest + rng.below(index + 2 - oldest);
                model.snapshot = SnapshotMeta { index, term };
                model.entries.retain(|entry| entry.index >= keep_from);
                self.possible.push(model.clone());
                self.wal().compact(model.snapshot, keep_from)?;
                self.possible = vec![model];
                Ok(())
            }
            _ => {
                model.snapshot = SnapshotMeta { index: model.next_index() + rng.below(50), term: 3 };
                model.entries.clear();
                model.hard_state.term += 1;
                self.possible.push(model.clone());
                self.wal().reset(model.snapshot, model.hard_state)?;
                self.possible = vec![model];
                Ok(())
            }
        }
    }
}

#[test]
fn every_synced_record_survives_random_losses_of_power() {
    for seed in 0..150 {
        let context = SeedOnPanic(seed);
        let mut rng = Rng(seed);
        let mut tested = Tested::new();
        tested.open().unwrap();
        for _ in 0..rng.below(12) + 3 {
            for _ in 0..rng.below(40) {
                tested.step(&mut rng).unwrap();
            }
            if rng.percent(30) {
                tested.kill()
            } else {
                tested.lose_power(&mut rng)
            }
            tested.open().unwrap();
        }
        drop(context);
    }
}

/// Each call to the disk fails once, with each error; then the process dies, or the power is lost, and both
/// again. Nothing synced may be lost, and a poisoned log takes no call.
#[test]
fn every_single_failed_call_is_final_and_loses_nothing() {
    for code in [EIO, ENOSPC] {
        let mut poisoned = 0;
        let mut refused = 0;
        for call in 1.. {
            let context = SeedOnPanic(call as u64);
            let mut rng = Rng(3);
            let mut tested = Tested::new();
            tested.disk.fail_call(call, code);
            let mut failed = false;
            for round in 0..3 {
                while tested.wal.is_none() {
                    if let Err(error) = tested.open() {
                        assert!(matches!(error, WalError::Io { .. } | WalError::NoSpace { .. }), "{error}");
                        failed = true;
                    }
                }
                for _ in 0..50 {
                    let before = tested.possible.clone();
                    let Err(error) = tested.step(&mut rng) else { continue };
                    failed = true;
                    assert_eq!(matches!(error, WalError::NoSpace { .. }), code == ENOSPC, "{error}");
                    match tested.wal().sync() {
                        Ok(()) => {
                            assert_eq!(code, ENOSPC);
                            refused += 1;
                            tested.possible = vec![before.last().unwrap().clone()];
                        }
                        Err(error) => {
                            assert!(matches!(error, WalError::Poisoned { .. }), "{error}");
                            let possible = tested.possible.clone();
                            let again = tested.step(&mut rng);
                            assert!(matches!(again, Err(WalError::Poisoned { .. })));
                            // What was refused while poisoned cannot have happened.
                            tested.possible = possible;
                            poisoned += 1;
                            break;
                        }
                    }
                }
                if round % 2 == 0 { tested.kill() } else { tested.lose_power(&mut rng) }
            }
            tested.disk.fail_no_call();
            tested.open().unwrap();
            drop(context);
            if !failed {
                break;
            }
        }
        assert!(poisoned > 20, "{poisoned} calls poisoned the log");
        assert_eq!(refused > 5, code == ENOSPC, "{refused} calls were refused without poison");
    }
}

#[test]
fn a_failed_sync_is_not_retried_and_later_calls_name_the_cause() {
    let mut tested = Tested::new();
    tested.open().unwrap();
    let entry = Entry { index: 1, term: 1, kind: EntryKind::Noop, data: Default::default() };
    tested.wal().append(None, &[entry]).unwrap();
    tested.disk.fail_call(tested.disk.calls() + 2, EIO);
    assert!(matches!(tested.wal().sync(), Err(WalError::Io { action: "sync", .. })));
    let calls = tested.disk.calls();
    let snapshot = SnapshotMeta::default();
    for result in [
        tested.wal().sync(),
        tested.wal().append(None, &[]),
        tested.wal().compact(snapshot, 1),
        tested.wal().reset(snapshot, HardState::default()),
    ] {
        let Err(WalError::Poisoned { cause }) = result else { panic!("{result:?}") };
        assert!(cause.contains("sync"), "{cause}");
    }
    assert_eq!(tested.disk.calls(), calls, "a poisoned log leaves the disk alone");
}

/// What a process wrote and did not sync, or failed to sync, the living kernel shows to the next process; after a
/// failure it even takes the pages for written. The next process must not build on it before it is durable.
#[test]
fn records_read_back_after_a_kill_are_made_durable_first() {
    for seed in 0..8 {
        for sync_fails in [false, true] {
            let context = SeedOnPanic(seed);
            let mut tested = Tested::new();
            tested.open().unwrap();
            let entries =
                [1, 2].map(|index| Entry { index, term: 1, kind: EntryKind::Noop, data: Default::default() });
            let mut model = tested.current();
            model.append(&entries);
            tested.possible.push(model);
            tested.wal().append(None, &entries).unwrap();
            // Either the sync itself fails, or the process dies in its place, with the records written.
            tested.disk.fail_call(tested.disk.calls() + 2, EIO);
            tested.disk.keep_unsynced(!sync_fails);
            assert!(tested.wal().sync().is_err());
            tested.kill();
            tested.open().unwrap();
            assert_eq!(tested.current().entries, entries, "the kernel still shows them");
            tested.lose_power(&mut Rng(seed));
            tested.open().unwrap();
            drop(context);
        }
    }
}

/// Prints the seed when a test panics.
struct SeedOnPanic(u64);

impl Drop for SeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed or call {}", self.0);
        }
    }
}
