//! Why a group cannot start, or had to stop.

use std::io;

use crate::core::{ConfigError, LogError, NewError};
use crate::snapshot::SnapshotError;
use crate::wal::WalError;

/// Why a group cannot start, or had to stop. A group never goes on after one of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RaftError {
    /// The caller's: the settings of the algorithm.
    #[error("raft settings: {0}")]
    Config(#[from] ConfigError),
    /// The caller's: a setting of the group.
    #[error("raft settings: {field} must not be 0")]
    Zero {
        /// The setting.
        field: &'static str,
    },
    /// The disk's: the log failed. What is on disk is not known any more, so nothing is retried.
    #[error("the log failed: {0}")]
    Log(#[from] WalError),
    /// The disk's: a snapshot that is needed cannot be read.
    #[error("a snapshot failed: {0}")]
    Snapshot(#[from] SnapshotError),
    /// The disk's: the log that was read back contradicts itself.
    #[error(
        "the log is not consistent: {0}; remove this node's data, remove it from the group, and let it join anew"
    )]
    Inconsistent(#[from] LogError),
    /// The disk's: the log starts behind the state, and no snapshot fills the gap.
    #[error(
        "entries before {first_index} are compacted, and there is no snapshot to stand for them; \
         remove this node's data, remove it from the group, and let it join anew"
    )]
    SnapshotMissing {
        /// The first entry that the log still has.
        first_index: u64,
    },
    /// The state machine's: it does not accept a snapshot that is sound as a file.
    #[error("the state machine refuses the snapshot at {index}: {source}")]
    Restore {
        /// The snapshot.
        index: u64,
        /// Its reason.
        source: io::Error,
    },
    /// The system's: no activity can be started.
    #[error("cannot start an activity: {0}")]
    Spawn(io::Error),
    /// The system's: it has no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// The group's: it has no place for this node. It was removed, or its data were lost and its id belongs to the disk it had before.
    #[error(
        "the group does not know this node: it was removed, or its data were lost. To bring it back: remove \
         what is left of its data, remove it from the group if it is a member, add it, and start it to join"
    )]
    Evicted,
    /// A bug: an activity of the group panicked.
    #[error("the {activity} ended unexpectedly")]
    ActivityDied {
        /// Which one.
        activity: &'static str,
    },
}

impl From<NewError> for RaftError {
    fn from(error: NewError) -> RaftError {
        match error {
            NewError::Config(error) => RaftError::Config(error),
            NewError::Log(error) => RaftError::Inconsistent(error),
        }
    }
}
