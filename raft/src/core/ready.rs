//! What the core asks its owner to do. Plain data; the contract is in the module documentation of `core`.

use std::sync::Arc;

use super::membership::Membership;
use super::message::Message;
use super::types::{Entry, HardState, Index, NodeId, SnapshotMeta, Term};

/// The part a node plays in its term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads its term.
    Leader,
}

/// What is worth telling clients; never persisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SoftState {
    /// This node's part.
    pub role: Role,
    /// The leader it knows of, itself included.
    pub leader: Option<NodeId>,
    /// The term in which that holds.
    pub term: Term,
}

/// A confirmed [`read_index`](super::Raft::read_index): a read that sees everything applied up to
/// `index` is linearizable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadState {
    /// What the caller passed to `read_index`.
    pub context: u64,
    /// The index that must be applied before the read.
    pub index: Index,
}

/// One batch of work for the owner.
#[derive(Debug, Default)]
pub struct Ready {
    /// The number of the write that this batch asks for, to be given to
    /// [`persisted`](super::Raft::persisted); 0 when there is nothing to write and nothing that waits for a write.
    pub seq: u64,
    /// The hard state to write, if it changed.
    pub hard_state: Option<HardState>,
    /// A snapshot from the leader replaces the whole log and state; written before `entries`.
    pub snapshot: Option<SnapshotMeta>,
    /// The configuration in force, if it changed. It need not be committed.
    pub membership: Option<Arc<Membership>>,
    /// This node does not belong to the group: it was removed, or its disk is not the one with which its id joined. The
    /// owner carries out the rest of this batch and stops it.
    pub evicted: bool,
    /// Entries to write. The first one's index may lie within the log: what stood there and after is replaced.
    pub entries: Vec<Entry>,
    /// To be sent at once.
    pub messages: Vec<Message>,
    /// To be sent when write `seq` is durable.
    pub messages_after_persist: Vec<Message>,
    /// Entries to apply, in order. All of them are durable on this node.
    pub committed: Vec<Entry>,
    /// Reads that may be served.
    pub read_states: Vec<ReadState>,
    /// The new soft state, if it changed.
    pub soft_state: Option<SoftState>,
}

impl Ready {
    pub(crate) fn is_empty(&self) -> bool {
        self.seq == 0
            && self.messages.is_empty()
            && self.committed.is_empty()
            && self.read_states.is_empty()
            && self.soft_state.is_none()
            && self.membership.is_none()
            && !self.evicted
    }
}
