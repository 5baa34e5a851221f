//! The snapshot keeper: writes snapshots while the applier goes on, opens them to be sent, removes old ones.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};

use super::handle::{Event, Shared};
use super::incoming::SnapshotHeader;
use super::traits::{SnapshotTransfer, SnapshotView, StateMachine, Transport};
use crate::core::Membership;
use crate::core::types::{NodeId, SnapshotMeta, Term};
use crate::error::RaftError;
use crate::planted::{Mistake, planted};
use crate::snapshot::SnapshotStore;

/// Work for the snapshot keeper, done in order.
pub(super) enum SnapshotJob {
    /// Write the state at `snapshot`, when the group had these members.
    Write { snapshot: SnapshotMeta, members: Membership, view: Box<dyn SnapshotView> },
    /// Send `snapshot`, or a newer one, as the leader `from` of `term`.
    Send { from: NodeId, to: NodeId, term: Term, snapshot: SnapshotMeta },
    /// The newest snapshot is the one that the log begins after: the older ones go.
    Purge,
}

pub(super) struct SnapshotKeeper<M: StateMachine> {
    pub snapshots: Arc<SnapshotStore>,
    pub jobs: Receiver<SnapshotJob>,
    pub events: Sender<Event<M>>,
    pub transport: Arc<dyn Transport>,
    pub shared: Arc<Shared>,
}

impl<M: StateMachine> SnapshotKeeper<M> {
    /// Works until everybody hangs up. A snapshot that cannot be written or sent stops nothing: the log still
    /// has everything, and the next attempt may succeed.
    pub fn run(self) -> Result<(), RaftError> {
        while let Ok(job) = self.jobs.recv() {
            match job {
                SnapshotJob::Write { snapshot, members, view } => {
                    if planted(Mistake::CutBeforeSnapshot) {
                        let _ = self.events.send(Event::SnapshotTaken(Some(snapshot)));
                        let _ = self.write(snapshot, &members, view);
                        continue;
                    }
                    let taken = match self.write(snapshot, &members, view) {
                        Ok(()) => Some(snapshot),
                        Err(_) if self.shared.stopping.load(Ordering::Relaxed) => None,
                        Err(error) => {
                            log::error!("cannot write the snapshot at {}: {error}", snapshot.index);
                            None
                        }
                    };
                    let _ = self.events.send(Event::SnapshotTaken(taken));
                }
                SnapshotJob::Send { from, to, term, snapshot } => self.send(from, to, term, snapshot),
                SnapshotJob::Purge => {
                    if let Err(error) = self.snapshots.purge_older(1) {
                        log::warn!("cannot remove old snapshots: {error}");
                    }
                }
            }
        }
        Ok(())
    }

    fn write(
        &self,
        snapshot: SnapshotMeta,
        members: &Membership,
        view: Box<dyn SnapshotView>,
    ) -> io::Result<()> {
        let file = self.snapshots.create(snapshot, members)?;
        let mut out = Stoppable { out: file, shared: &self.shared };
        view.write_to(&mut out)?;
        out.out.finish()?;
        Ok(())
    }

    fn send(&self, from: NodeId, to: NodeId, term: Term, snapshot: SnapshotMeta) {
        let events = self.events.clone();
        let report = move |ok| {
            let _ = events.send(Event::SnapshotSent { to, ok });
        };
        // The newest on disk, which may be newer than what the core asked for: one received from an earlier leader,
        // or one taken since. Any snapshot is of committed state, so it serves as well.
        let newest = self.snapshots.list().map(|metas| metas.first().copied().unwrap_or(snapshot));
        match newest.and_then(|newest| Ok((newest, self.snapshots.raw_reader(newest)?))) {
            Ok((snapshot, (file, total_bytes))) => {
                let header = SnapshotHeader { from, to, term, snapshot, total_bytes };
                self.transport.send_snapshot(to, SnapshotTransfer::new(header, file, report));
            }
            Err(error) => {
                // The leader asks again.
                log::warn!("cannot send the snapshot at {} to node {to}: {error}", snapshot.index);
                report(false);
            }
        }
    }
}

/// Ends a long write when the group stops.
struct Stoppable<'a, W> {
    out: W,
    shared: &'a Shared,
}

impl<W: Write> Write for Stoppable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shared.stopping.load(Ordering::Relaxed) {
            return Err(io::Error::other("the raft group stops"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
