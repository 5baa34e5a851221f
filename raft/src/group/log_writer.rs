//! The log writer: turns whatever waits into one sync. The only activity that touches the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender};

use super::handle::{Event, Shared};
use super::owner::send_messages;
use super::snapshots::SnapshotJob;
use super::traits::{LogStore, StateMachine, Transport};
use crate::core::Message;
use crate::core::types::{Entry, HardState, Index, SnapshotMeta};
use crate::error::RaftError;
use crate::planted::{Mistake, planted};

/// Writes in a row that share a sync: what a group can have under way is bounded by its peers' windows and its
/// clients, this only bounds how long a peer waits for the first of them.
const JOBS_MAX: usize = 1024;

/// Work for the log writer, done in order.
pub(super) enum LogJob {
    /// The persistent part of a `Ready`.
    Write {
        seq: u64,
        hard_state: Option<HardState>,
        snapshot: Option<SnapshotMeta>,
        entries: Vec<Entry>,
        /// Sent when this and everything before is durable.
        messages: Vec<Message>,
    },
    /// The entries before `keep_from` are no longer needed: `snapshot` is durable.
    Compact { snapshot: SnapshotMeta, keep_from: Index },
}

pub(super) struct LogWriter<M: StateMachine> {
    pub log: Box<dyn LogStore>,
    pub hard_state: HardState,
    pub jobs: Receiver<LogJob>,
    pub events: Sender<Event<M>>,
    pub snapshot_jobs: Sender<SnapshotJob>,
    pub transport: Arc<dyn Transport>,
    pub shared: Arc<Shared>,
}

impl<M: StateMachine> LogWriter<M> {
    /// Works until the owner hangs up.
    pub fn run(mut self) -> Result<(), RaftError> {
        while let Ok(first) = self.jobs.recv() {
            let mut written = 0;
            let mut messages = Vec::new();
            let mut compacted = false;
            let mut jobs = 0;
            let mut next = Some(first);
            while let Some(job) = next {
                match job {
                    LogJob::Write { seq, hard_state, snapshot, entries, messages: released } => {
                        self.write(hard_state, snapshot, &entries)?;
                        written = seq;
                        messages.extend(released);
                    }
                    LogJob::Compact { snapshot, keep_from } => {
                        self.log.compact(snapshot, keep_from)?;
                        compacted = true;
                    }
                }
                jobs += 1;
                next = if jobs < JOBS_MAX { self.jobs.try_recv().ok() } else { None };
            }
            self.log.sync()?;
            self.shared.log_disk_bytes.store(self.log.size_bytes(), Ordering::Relaxed);
            if written != 0 {
                // The acknowledgements first: the leader waits for them.
                // One that is dropped is asked for again after the next heartbeat.
                send_messages(&*self.transport, messages, |_| ());
                let _ = self.events.send(Event::Persisted(written));
            }
            if compacted {
                // Only now: before, the log on disk still began after an older snapshot.
                let _ = self.snapshot_jobs.send(SnapshotJob::Purge);
            }
        }
        Ok(())
    }

    fn write(
        &mut self,
        hard_state: Option<HardState>,
        snapshot: Option<SnapshotMeta>,
        entries: &[Entry],
    ) -> Result<(), RaftError> {
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        match snapshot {
            Some(snapshot) => {
                if planted(Mistake::VoteLostOnInstall) {
                    self.hard_state.vote = None;
                }
                self.log.reset(snapshot, self.hard_state)?;
                self.log.append(None, entries)?;
            }
            None => self.log.append(hard_state.as_ref(), entries)?,
        }
        Ok(())
    }
}
