//! The applier: owns the state machine, applies in log order, answers proposals and reads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};

use super::handle::Shared;
use super::owner::{PendingProposal, PendingRead};
use super::reply::ProposeError;
use super::snapshots::SnapshotJob;
use super::traits::{Observer, StateMachine};
use crate::core::Membership;
use crate::core::types::{Entry, EntryKind, Index, NodeId, SnapshotMeta};
use crate::error::RaftError;
use crate::planted::{Mistake, planted};
use crate::snapshot::SnapshotStore;

/// Work for the applier, done in order.
pub(super) enum ApplyJob<M: StateMachine> {
    /// Committed entries, and the proposals among them that were made on this node, in the same order.
    Apply { entries: Vec<Entry>, proposals: VecDeque<PendingProposal<M>> },
    /// Reads that may be answered once `index` is applied.
    Read { index: Index, reads: Vec<PendingRead<M>> },
    /// A snapshot takes the place of the state.
    Restore(SnapshotMeta),
    /// Take a snapshot of the state as it is.
    Snapshot,
}

pub(super) struct Applier<M: StateMachine> {
    machine: M,
    /// The last entry applied.
    applied: SnapshotMeta,
    /// The group's members as of that entry.
    members: Membership,
    /// Reads that wait for the state to catch up, in the order of their indices.
    reads: VecDeque<(Index, Vec<PendingRead<M>>)>,
    jobs: Receiver<ApplyJob<M>>,
    snapshot_jobs: Sender<SnapshotJob>,
    snapshots: Arc<SnapshotStore>,
    shared: Arc<Shared>,
    observer: Option<(NodeId, Arc<dyn Observer>)>,
}

impl<M: StateMachine> Applier<M> {
    pub fn new(
        machine: M,
        (applied, members): (SnapshotMeta, Membership),
        jobs: Receiver<ApplyJob<M>>,
        snapshot_jobs: Sender<SnapshotJob>,
        snapshots: Arc<SnapshotStore>,
        shared: Arc<Shared>,
        observer: Option<(NodeId, Arc<dyn Observer>)>,
    ) -> Applier<M> {
        if let Some((node, observer)) = &observer {
            observer.restored(*node, applied);
        }
        let reads = VecDeque::new();
        Applier { machine, applied, members, reads, jobs, snapshot_jobs, snapshots, shared, observer }
    }

    /// Works until the owner hangs up.
    pub fn run(mut self) -> Result<(), RaftError> {
        while let Ok(job) = self.jobs.recv() {
            match job {
                ApplyJob::Apply { entries, proposals } => self.apply(entries, proposals),
                ApplyJob::Read { index, reads } => self.reads.push_back((index, reads)),
                ApplyJob::Restore(snapshot) => self.restore(snapshot)?,
                ApplyJob::Snapshot => {
                    let view = self.machine.snapshot();
                    let mut snapshot = self.applied;
                    if planted(Mistake::SnapshotIndexOffByOne) {
                        snapshot.index += 1;
                    }
                    let _ = self.snapshot_jobs.send(SnapshotJob::Write {
                        snapshot,
                        members: self.members.clone(),
                        view,
                    });
                }
            }
            let applied = self.applied.index;
            let may_answer = |index: Index| index <= applied || planted(Mistake::ReadBeforeApplied);
            while let Some((_, reads)) = self.reads.pop_front_if(|(index, _)| may_answer(*index)) {
                for PendingRead { query, reply } in reads {
                    reply.answer(Ok(self.machine.query(query)));
                }
            }
        }
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>, mut proposals: VecDeque<PendingProposal<M>>) {
        for entry in entries {
            if let Some((node, observer)) = &self.observer {
                observer.applies(*node, &entry);
            }
            let Entry { index, term, kind, data } = entry;
            let output = match kind {
                EntryKind::Command => Some(self.machine.apply(index, term, &data)),
                EntryKind::Noop => None,
                EntryKind::Members => {
                    self.members = Membership::decode(&data).expect("the core has read it before");
                    None
                }
            };
            self.applied = SnapshotMeta { index, term };
            self.show_state();
            while let Some(proposal) = proposals.pop_front_if(|p| p.index < index) {
                proposal.reply.answer(Err(ProposeError::Indefinite));
            }
            if let (Some(proposal), Some(output)) =
                (proposals.pop_front_if(|p| p.index == index && p.term == term), output)
            {
                proposal.reply.answer(Ok(output));
            }
        }
        self.publish();
    }

    fn restore(&mut self, snapshot: SnapshotMeta) -> Result<(), RaftError> {
        let mut content = self.snapshots.open_reader(snapshot)?;
        let index = snapshot.index;
        self.machine.restore(&mut content).map_err(|source| RaftError::Restore { index, source })?;
        self.members = content.members().clone();
        content.finish()?;
        self.applied = snapshot;
        if let Some((node, observer)) = &self.observer {
            observer.restored(*node, snapshot);
        }
        self.show_state();
        self.publish();
        Ok(())
    }

    fn show_state(&mut self) {
        let Some((node, observer)) = &self.observer else { return };
        if observer.wants_state(*node, self.applied.index) {
            let mut content = Vec::new();
            // Writing to memory cannot fail; a view that fails by itself will fail as a snapshot, too, and be reported there.
            if self.machine.snapshot().write_to(&mut content).is_ok() {
                observer.state(*node, self.applied.index, &content);
            }
        }
    }

    fn publish(&self) {
        self.shared.applied.store(self.applied.index, Ordering::Release);
    }
}
