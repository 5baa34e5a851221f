//! What members of a group say to each other. Plain data; the encoding belongs to the transport.

use super::membership::Membership;
use super::types::{Entry, EntryKind, Index, NodeId, SnapshotMeta, Term};

/// Terms and indices at or above this are refused when they come from a peer or a disk: no real cluster gets
/// near, and below it `+ 1` cannot overflow.
pub(crate) const POSITION_MAX: u64 = u64::MAX / 2;

/// One message from one member to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub from: NodeId,
    /// Whom it is for.
    pub to: NodeId,
    /// The sender's incarnation (see [`Member`](super::Member)); 0 if it has none.
    pub incarnation: u64,
    /// The sender's term; for [`Body::PreVote`] and a granted [`Body::PreVoteReply`] the term that would be
    /// campaigned for.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// "Would you vote for me?", asked before raising the term, so that a node that cannot win
    /// disturbs nobody.
    PreVote {
        /// The asker's last log entry.
        last_index: Index,
        /// That entry's term.
        last_term: Term,
    },
    /// The answer to a [`Body::PreVote`].
    PreVoteReply {
        /// Whether the sender would vote for the asker.
        granted: bool,
    },
    /// RequestVote of the paper.
    Vote {
        /// The candidate's last log entry.
        last_index: Index,
        /// That entry's term.
        last_term: Term,
        /// The leader has asked the sender to take over: whoever hears that leader may vote all the same.
        transfer: bool,
    },
    /// The answer to a [`Body::Vote`].
    VoteReply {
        /// Whether the sender voted for the candidate.
        granted: bool,
    },
    /// AppendEntries of the paper; without entries it is a probe, or carries news of `commit`.
    Append {
        /// The entry that precedes `entries` in the leader's log.
        prev_index: Index,
        /// That entry's term.
        prev_term: Term,
        /// Consecutive entries from `prev_index + 1` on.
        entries: Vec<Entry>,
        /// The leader's commit index.
        commit: Index,
    },
    /// The log now equals the leader's up to and including `matched`, durably.
    AppendAccepted {
        /// The last index known to be equal.
        matched: Index,
    },
    /// The log does not contain the entry at `rejected` of the append (its `prev_index`).
    AppendRejected {
        /// The `prev_index` that did not match.
        rejected: Index,
        /// The highest index at which the two logs may still agree, in the follower's view.
        hint_index: Index,
        /// The follower's term at `hint_index`.
        hint_term: Term,
    },
    /// "I still lead."
    Heartbeat {
        /// The leader's commit index, as far as this follower is known to have the entries.
        commit: Index,
        /// The latest ReadIndex round; sent back in the reply.
        context: u64,
    },
    /// The answer to a [`Body::Heartbeat`].
    HeartbeatReply {
        /// The round of the heartbeat that is answered.
        context: u64,
    },
    /// The leader has compacted the entries that the follower needs. On the leader's side this asks the
    /// owner to send the snapshot's bytes; on the follower's side the owner steps it in once the bytes are
    /// durable on its disk.
    InstallSnapshot {
        /// The snapshot's position.
        snapshot: SnapshotMeta,
        /// The configuration at that position.
        members: Membership,
    },
    /// The leader wants the receiver, which has the whole log, to take over at once (dissertation, section 3.10).
    TimeoutNow,
    /// The leader does not know the sender of some message: it was removed, or another disk came up under a member's id.
    Refused {
        /// Where the configuration stands that says so. It is committed.
        members_index: Index,
    },
}

impl Body {
    /// Whether only a leader of the message's term sends this.
    pub(crate) fn is_from_leader(&self) -> bool {
        matches!(
            self,
            Body::Append { .. } | Body::Heartbeat { .. } | Body::InstallSnapshot { .. } | Body::TimeoutNow
        )
    }

    /// Whether this is an answer that its receiver counts.
    pub(crate) fn is_reply(&self) -> bool {
        matches!(
            self,
            Body::PreVoteReply { .. }
                | Body::VoteReply { .. }
                | Body::AppendAccepted { .. }
                | Body::AppendRejected { .. }
                | Body::HeartbeatReply { .. }
        )
    }
}

impl Message {
    /// Checks what can be checked without knowing this node's state; a well-behaved peer always passes.
    pub(crate) fn check_shape(&self) -> Result<(), &'static str> {
        let small = |positions: &[u64]| positions.iter().all(|&p| p < POSITION_MAX);
        let fits = match &self.body {
            Body::PreVote { last_index, last_term } | Body::Vote { last_index, last_term, .. } => {
                small(&[*last_index, *last_term])
            }
            Body::Append { prev_index, prev_term, entries, commit } => {
                let mut index = *prev_index;
                let mut term = *prev_term;
                if !small(&[index, term, *commit])
                    || index.saturating_add(entries.len() as u64) >= POSITION_MAX
                {
                    return Err("position out of range");
                }
                for entry in entries {
                    if entry.index != index + 1 {
                        return Err("entries are not consecutive");
                    }
                    if entry.term < term || entry.term > self.term {
                        return Err("entry terms are not in order");
                    }
                    if entry.kind == EntryKind::Members && Membership::decode(&entry.data).is_none() {
                        return Err("a configuration that cannot be read");
                    }
                    index = entry.index;
                    term = entry.term;
                }
                true
            }
            Body::AppendAccepted { matched } => small(&[*matched]),
            Body::AppendRejected { rejected, hint_index, hint_term } => {
                small(&[*rejected, *hint_index, *hint_term])
            }
            Body::Heartbeat { commit, .. } => small(&[*commit]),
            Body::InstallSnapshot { members, .. } if members.is_empty() => {
                return Err("a snapshot of nobody's");
            }
            Body::InstallSnapshot { snapshot, .. } => {
                if snapshot.index == 0 || snapshot.term == 0 || snapshot.term > self.term {
                    return Err("impossible snapshot position");
                }
                small(&[snapshot.index, snapshot.term])
            }
            Body::Refused { members_index } => small(&[*members_index]),
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::HeartbeatReply { .. }
            | Body::TimeoutNow => true,
        };
        if !fits || self.term == 0 || self.term >= POSITION_MAX {
            return Err("position out of range");
        }
        Ok(())
    }
}
