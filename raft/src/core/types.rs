//! The words that the core, the log on disk and the driver share. Plain data: no behaviour, no I/O.

use bytes::Bytes;

/// A member of the group; unique in the cluster for ever, never 0.
pub type NodeId = u64;
/// A position in the replicated log; the first entry has index 1, index 0 is "before the log".
pub type Index = u64;
/// An election term; 0 is "before the first election".
pub type Term = u64;

/// What an entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A command for the state machine.
    Command,
    /// The empty entry with which a new leader opens its term (Raft paper, section 8), so that it can
    /// learn the commit index before it serves anything.
    Noop,
    /// A configuration of the group, encoded by [`Membership::encode`](super::Membership::encode). It is in force from the
    /// moment it is in the log, committed or not.
    Members,
}

/// One slot of the replicated log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub index: Index,
    /// The term of the leader that created it.
    pub term: Term,
    /// What it carries.
    pub kind: EntryKind,
    /// The command, opaque to Raft; the configuration for [`EntryKind::Members`]; empty for [`EntryKind::Noop`].
    pub data: Bytes,
}

/// What a node must remember across restarts before it may answer (Raft paper, figure 2: currentTerm, votedFor).
/// `commit` is a hint that saves work after a restart; losing it is harmless.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// An index known to be committed.
    pub commit: Index,
}

/// The position that a snapshot stands for: it holds the effect of every entry up to and including `index`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry included.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
}
