//! What the user of a group brings: the replicated state, the way to the peers, and the log (normally the [`Wal`]).

use std::fs::File;
use std::io::{self, Read, Write};

use bytes::Bytes;

use super::incoming::SnapshotHeader;
use crate::core::types::{Entry, HardState, Index, NodeId, SnapshotMeta, Term};
use crate::core::{Membership, Message, SoftState};
use crate::wal::{Wal, WalError};

/// The replicated state. It is owned by one activity, which calls it in log order.
///
/// The state must be a function of the commands applied, and of nothing else: no clock, no randomness, no
/// iteration order that differs between processes.
pub trait StateMachine: Send + 'static {
    /// A read.
    type Query: Send + 'static;
    /// The answer to a command or a read.
    type Output: Send + 'static;

    /// Applies the committed command at `index`. What comes out goes to the proposer, if it waits on this node.
    fn apply(&mut self, index: Index, term: Term, command: &Bytes) -> Self::Output;

    /// Answers a read from the current state.
    fn query(&mut self, query: Self::Query) -> Self::Output;

    /// A view of the state as it is now, taken without delay: applying goes on while another activity writes it.
    fn snapshot(&mut self) -> Box<dyn SnapshotView>;

    /// Replaces the whole state by what a view has written, on this node or another.
    ///
    /// # Errors
    /// The content cannot be read or understood. The state may be anything then: the group stops.
    fn restore(&mut self, content: &mut dyn Read) -> io::Result<()>;
}

/// The state at one index, to be written out.
pub trait SnapshotView: Send {
    /// Writes all of it.
    ///
    /// # Errors
    /// Those of `out` are to be passed on.
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()>;
}

/// What became of messages that were given to a [`Transport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// All are on their way; they may still be lost.
    Queued,
    /// Some were dropped: the peer is not connected, or its queue is full.
    Dropped,
}

/// The way to the peers. What arrives goes to [`GroupHandle::receive`](super::GroupHandle::receive) and its siblings.
pub trait Transport: Send + Sync + 'static {
    /// Queues messages, in order.
    ///
    /// # Blocking
    /// Must not: a queue that is full drops. Raft repeats what matters.
    fn send(&self, to: NodeId, messages: Vec<Message>) -> Sent;

    /// The group has these members from now on, this node perhaps not among them: where they are reached is in their addresses. Called
    /// before the first message to any of them. Default: nothing.
    ///
    /// # Blocking
    /// Must not.
    fn members_changed(&self, members: &Membership) {
        let _ = members;
    }

    /// Starts to send a snapshot file; the receiver is given the header, the chunks, and the end
    /// ([`GroupHandle::begin_snapshot`](super::GroupHandle::begin_snapshot) and so on).
    ///
    /// # Blocking
    /// Must not: an activity of the transport's own does the work, and reports.
    fn send_snapshot(&self, to: NodeId, transfer: SnapshotTransfer);
}

/// A snapshot on its way to a peer. Dropped without [`SnapshotTransfer::finish`], it counts as failed and is tried again.
pub struct SnapshotTransfer {
    /// What the receiver must know first.
    pub header: SnapshotHeader,
    /// The file, to be sent as it is from its beginning.
    pub file: File,
    report: Option<Box<dyn FnOnce(bool) + Send>>,
}

impl SnapshotTransfer {
    pub(super) fn new(
        header: SnapshotHeader,
        file: File,
        report: impl FnOnce(bool) + Send + 'static,
    ) -> SnapshotTransfer {
        SnapshotTransfer { header, file, report: Some(Box::new(report)) }
    }

    /// The receiver's `finish_snapshot` succeeded.
    pub fn finish(mut self) {
        self.end(true);
    }

    fn end(&mut self, ok: bool) {
        if let Some(report) = self.report.take() {
            report(ok);
        }
    }
}

impl Drop for SnapshotTransfer {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Watches members from inside, for simulations and tests: what several members do can be compared, which no member can. It is called
/// by the members' own activities, and must not wait.
pub trait Observer: std::fmt::Debug + Send + Sync {
    /// A member has another part, leader or term.
    fn part(&self, node: NodeId, state: SoftState);

    /// A member is about to write to its log: the first entry and all behind it replace what stood there; with a snapshot, which may
    /// overlap them, they are the whole log. Also as it starts, with the log that it found.
    fn writes(&self, node: NodeId, snapshot: Option<SnapshotMeta>, entries: &[Entry]);

    /// A member takes the entries up to `index` for committed.
    fn commits(&self, node: NodeId, index: Index);

    /// A member is about to apply an entry.
    fn applies(&self, node: NodeId, entry: &Entry);

    /// A member has taken a snapshot in place of its state, also as it starts: it has applied all up to there.
    fn restored(&self, node: NodeId, snapshot: SnapshotMeta);

    /// Whether the state after the entry at `index` is to be shown.
    fn wants_state(&self, node: NodeId, index: Index) -> bool;

    /// A member's state after the entry at `index`, as in a snapshot.
    fn state(&self, node: NodeId, index: Index, content: &[u8]);
}

/// Where the log is kept. One activity owns it. Any error is fatal: what is on disk is not known any more.
pub trait LogStore: Send + 'static {
    /// Appends; an entry at or below the last index replaces everything from there on. Not durable before [`LogStore::sync`].
    ///
    /// # Errors
    /// The write failed.
    fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) -> Result<(), WalError>;

    /// Makes everything appended durable.
    ///
    /// # Errors
    /// The sync failed.
    fn sync(&mut self) -> Result<(), WalError>;

    /// Notes durably that `snapshot` stands for the log up to its index, and gives up the entries before `keep_from`.
    ///
    /// # Errors
    /// The write failed.
    fn compact(&mut self, snapshot: SnapshotMeta, keep_from: Index) -> Result<(), WalError>;

    /// Starts anew after an installed snapshot; durable when it returns.
    ///
    /// # Errors
    /// The write failed.
    fn reset(&mut self, snapshot: SnapshotMeta, hard_state: HardState) -> Result<(), WalError>;

    /// Bytes on disk.
    fn size_bytes(&self) -> u64;
}

impl LogStore for Wal {
    fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) -> Result<(), WalError> {
        Wal::append(self, hard_state, entries)
    }

    fn sync(&mut self) -> Result<(), WalError> {
        Wal::sync(self)
    }

    fn compact(&mut self, snapshot: SnapshotMeta, keep_from: Index) -> Result<(), WalError> {
        Wal::compact(self, snapshot, keep_from)
    }

    fn reset(&mut self, snapshot: SnapshotMeta, hard_state: HardState) -> Result<(), WalError> {
        Wal::reset(self, snapshot, hard_state)
    }

    fn size_bytes(&self) -> u64 {
        Wal::size_bytes(self)
    }
}
