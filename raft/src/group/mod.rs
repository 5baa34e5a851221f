//! The driver: one member of a Raft group as a handful of blocking activities.
//!
//! ```text
//!   clients, peers --> mailbox --> owner (core) --> log writer (LogStore) --> acks to peers
//!                                    |  ^                     |
//!                                    |  +----- persisted -----+
//!                                    +--> applier (StateMachine) --> replies to clients
//!                                              |
//!                                              +--> snapshot keeper (SnapshotStore) --> owner
//! ```
//!
//! - The **owner** holds the core. It drains its mailbox, a batch at a time, so that many proposals become one
//!   append without an added wait, and ticks on a schedule that no flood of messages can delay by more than one batch.
//!   It never touches the disk and never waits for a peer.
//! - The **log writer** writes everything that waits for it and syncs once, then releases what depends on it.
//! - The **applier** owns the state machine, applies in log order and answers proposals and reads.
//! - The **snapshot keeper** writes snapshots out while the applier goes on, opens them to be sent, and
//!   removes old ones.
//!
//! They share nothing but channels and a few counters. Nothing is acknowledged before a quorum has synced it.
//!
//! A failed write or sync of the log, and a panic of any activity, stop the group for good: every waiting
//! client gets an error, and [`GroupHandle::wait`] returns the reason.

mod applier;
mod handle;
mod incoming;
mod log_writer;
mod owner;
mod recovery;
mod reply;
mod snapshots;
mod traits;

use std::sync::Arc;
use std::time::Duration;

use crate::core::{self, Membership};
use crate::error::RaftError;

pub use handle::{Group, GroupHandle, GroupStatus};
pub use incoming::{IncomingError, SnapshotHeader};
pub use recovery::Storage;
pub use reply::{MemberError, ProposeError, ReadError};
pub use traits::{LogStore, Observer, Sent, SnapshotTransfer, SnapshotView, StateMachine, Transport};

/// Settings of one member.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// The algorithm's settings, in ticks. The incarnation is set by [`Group::start`]: it is the log's.
    pub raft: core::Config,
    /// The members of a group that is founded; looked at only if the disk holds nothing. Empty on a node that joins a group which
    /// exists. The same on every founder. Default empty.
    pub founders: Membership,
    /// The length of a tick. Default 50 ms: with the core's defaults a follower waits 0.5 to 1 s for its leader.
    pub tick: Duration,
    /// Bytes of commands that may be proposed on this node and not yet answered; beyond it a proposal is
    /// refused as [`ProposeError::Overloaded`], unless it is the only one. Default 64 MiB.
    pub proposal_bytes_max: usize,
    /// A larger command is refused as [`ProposeError::TooLarge`]. Default 64 MiB.
    pub command_bytes_max: usize,
    /// A snapshot is taken when the commands committed since the last one have this many bytes. Default 64 MiB.
    pub snapshot_log_bytes: u64,
    /// A snapshot is taken when this many entries were committed since the last one. Default 1,000,000.
    pub snapshot_log_entries: u64,
    /// Entries before a snapshot that stay in the log, so that a follower that lags a little needs no snapshot; 0
    /// keeps none. Default 10,000.
    pub log_keep_entries: u64,
    /// And at most so many bytes of them. Default 16 MiB.
    pub log_keep_bytes: u64,
    /// But on the leader, for a follower that is heard from and lacks them, at most so many bytes of entries. Default 64 MiB.
    pub log_keep_lagging_bytes: u64,
    /// Who watches. Default nobody.
    pub observer: Option<Arc<dyn Observer>>,
}

impl GroupConfig {
    /// The defaults for one member.
    pub fn new(raft: core::Config) -> GroupConfig {
        GroupConfig {
            raft,
            founders: Membership::default(),
            tick: Duration::from_millis(50),
            proposal_bytes_max: 64 << 20,
            command_bytes_max: 64 << 20,
            snapshot_log_bytes: 64 << 20,
            snapshot_log_entries: 1_000_000,
            log_keep_entries: 10_000,
            log_keep_bytes: 16 << 20,
            log_keep_lagging_bytes: 64 << 20,
            observer: None,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`RaftError::Config`], [`RaftError::Zero`].
    pub fn validate(&self) -> Result<(), RaftError> {
        self.raft.validate()?;
        for (field, value) in [
            ("tick", self.tick.as_nanos()),
            ("command_bytes_max", self.command_bytes_max as u128),
            ("snapshot_log_bytes", self.snapshot_log_bytes.into()),
            ("snapshot_log_entries", self.snapshot_log_entries.into()),
        ] {
            if value == 0 {
                return Err(RaftError::Zero { field });
            }
        }
        Ok(())
    }
}
