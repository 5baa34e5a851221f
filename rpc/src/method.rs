//! The ids of everything that can be asked for, in one place, so that two never collide.
//!
//! Ids are for ever: a method that is dropped leaves its number unused.

use std::fmt;

/// What a request or a one-way message asks for. Any number may arrive; the handler refuses those it does
/// not know with [`StatusCode::Unimplemented`](crate::StatusCode::Unimplemented).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method(pub u16);

impl Method {
    /// One-way: a `raft::MessageBatch` for the receiver's Raft core.
    pub const RAFT_MESSAGES: Method = Method(1);
    /// `raft::SnapshotChunkRequest` → `raft::SnapshotChunkResponse`.
    pub const RAFT_SNAPSHOT_CHUNK: Method = Method(2);
    /// `kv::ExecuteRequest` → `kv::ExecuteResponse`.
    pub const KV_EXECUTE: Method = Method(16);
    /// `kv::MembersRequest` → `kv::MembersResponse`.
    pub const KV_MEMBERS: Method = Method(17);

    /// A name for logs and metrics; `unknown` for a number without one.
    pub const fn name(self) -> &'static str {
        match self {
            Method::RAFT_MESSAGES => "raft_messages",
            Method::RAFT_SNAPSHOT_CHUNK => "raft_snapshot_chunk",
            Method::KV_EXECUTE => "kv_execute",
            Method::KV_MEMBERS => "kv_members",
            _ => "unknown",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}
