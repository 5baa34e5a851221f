//! Bringing a member back: which snapshot, which entries, and what to do when the two do not fit.

use std::path::Path;
use std::sync::Arc;

use super::traits::{LogStore, StateMachine};
use crate::core::Membership;
use crate::core::types::{Entry, EntryKind, HardState, Index, SnapshotMeta};
use crate::error::RaftError;
use crate::snapshot::{SnapshotError, SnapshotOptions, SnapshotStore};
use crate::wal::{Identity, Recovered, Wal, WalOptions};

/// What a member keeps on disk, opened.
pub struct Storage {
    /// The log.
    pub log: Box<dyn LogStore>,
    /// What was in it.
    pub recovered: Recovered,
    /// The snapshots.
    pub snapshots: Arc<SnapshotStore>,
}

impl Storage {
    /// Opens the log in `dir/wal` and the snapshots in `dir/snapshots`, or creates them.
    ///
    /// # Blocking
    /// Reads the whole log.
    ///
    /// # Errors
    /// [`RaftError::Log`], [`RaftError::Snapshot`].
    pub fn open(
        dir: &Path,
        identity: Identity,
        wal: WalOptions,
        snapshots: SnapshotOptions,
    ) -> Result<Storage, RaftError> {
        let (log, recovered) = Wal::open(&dir.join("wal"), identity, wal)?;
        let snapshots = Arc::new(SnapshotStore::open(&dir.join("snapshots"), identity, snapshots)?);
        Ok(Storage { log: Box::new(log), recovered, snapshots })
    }
}

/// Where a member goes on.
pub(super) struct Restart {
    pub hard_state: HardState,
    /// The state machine holds this.
    pub snapshot: SnapshotMeta,
    /// The group's members at that snapshot.
    pub members: Membership,
    pub entries: Vec<Entry>,
    /// The snapshot that the log on disk names; it cannot go back before it.
    pub log_snapshot: Index,
}

/// Brings the state machine to the newest snapshot that is sound and fits the log, and the log to that snapshot.
///
/// A snapshot fits if the log contains its last entry, or ends before it: then a crash came after
/// the snapshot was received and before the log was started anew. It is committed state, so the log, which
/// acknowledged nothing beyond it that could matter, gives way. A damaged snapshot is passed over for an older one
/// only if the log reaches back to that.
///
/// A disk that holds nothing at all founds the group with `founders`, or waits to be told by a leader if there are none. The first
/// entry of every founder's log is the same, and committed: from then on the configuration is what the log says, whatever
/// the founders are called with later.
pub(super) fn restart(
    log: &mut dyn LogStore,
    recovered: Recovered,
    snapshots: &SnapshotStore,
    machine: &mut impl StateMachine,
    founders: &Membership,
) -> Result<Restart, RaftError> {
    let log_snapshot = recovered.snapshot.index;
    let mut damaged = None;
    for meta in snapshots.list()? {
        let fit = fit(&recovered, meta);
        if fit == Fit::Unrelated {
            continue;
        }
        match snapshots.verify(meta) {
            Ok(()) => {}
            Err(error @ SnapshotError::Corrupt { .. }) => {
                log::error!("{error}");
                damaged.get_or_insert(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let mut content = snapshots.open_reader(meta)?;
        machine.restore(&mut content).map_err(|source| RaftError::Restore { index: meta.index, source })?;
        let members = content.members().clone();
        content.finish()?;
        let mut hard_state = recovered.hard_state;
        if fit == Fit::InLog {
            let entries = recovered.entries;
            return Ok(Restart { hard_state, snapshot: meta, members, entries, log_snapshot });
        }
        if hard_state.term < meta.term {
            hard_state = HardState { term: meta.term, vote: None, commit: meta.index };
        }
        hard_state.commit = meta.index;
        log.reset(meta, hard_state)?;
        let entries = Vec::new();
        return Ok(Restart { hard_state, snapshot: meta, members, entries, log_snapshot: meta.index });
    }
    if recovered.entries_after(0).is_none() {
        let first_index = recovered.entries.first().map_or(log_snapshot + 1, |entry| entry.index);
        return Err(damaged.map_or(RaftError::SnapshotMissing { first_index }, RaftError::Snapshot));
    }
    let Recovered { mut hard_state, mut entries, .. } = recovered;
    if hard_state == HardState::default() && entries.is_empty() && !founders.is_empty() {
        let entry = Entry { index: 1, term: 1, kind: EntryKind::Members, data: founders.encode() };
        hard_state = HardState { term: 1, vote: None, commit: 1 };
        entries.push(entry);
        log.append(Some(&hard_state), &entries)?;
        log.sync()?;
    }
    let (snapshot, members) = Default::default();
    Ok(Restart { hard_state, snapshot, members, entries, log_snapshot })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// The log goes on from it.
    InLog,
    /// It is newer than anything in the log.
    Ahead,
    /// The log neither reaches back to it nor ends before it.
    Unrelated,
}

fn fit(recovered: &Recovered, meta: SnapshotMeta) -> Fit {
    let in_entries = recovered.entries.iter().find(|entry| entry.index == meta.index).map(|entry| entry.term);
    let noted = (recovered.snapshot.index == meta.index).then_some(recovered.snapshot.term);
    // An entry just before the first one kept was compacted, so it was committed: its term cannot differ.
    let term = in_entries.or(noted).unwrap_or(meta.term);
    if term == meta.term && recovered.entries_after(meta.index).is_some() {
        Fit::InLog
    } else if meta.index > recovered.snapshot.index {
        Fit::Ahead
    } else {
        Fit::Unrelated
    }
}
