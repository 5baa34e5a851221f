//! What can go wrong with the log, split by who can do something about it.

use std::io;
use std::path::PathBuf;

use super::Identity;
use super::disk::DiskFault;
use crate::core::types::Index;

/// Why the log cannot be opened or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// The operator's: the directory belongs to another cluster or another node. Nothing was changed.
    #[error("{} belongs to {found}, but this is {expected}: nothing was changed; check the data directory and the node id in the configuration", file.display())]
    WrongIdentity {
        /// The first file that says so.
        file: PathBuf,
        /// Who opened the directory.
        expected: Identity,
        /// Whom the directory belongs to.
        found: Identity,
    },
    /// The operator's: another process, or another owner in this one, has the directory open.
    #[error("{} is locked: another process uses this directory; stop it first", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The operator's: the log was written by a newer release.
    #[error("{} has {what}, which this release does not know: start the release that wrote it", file.display())]
    Unsupported {
        /// The segment.
        file: PathBuf,
        /// What was not understood, with its number.
        what: String,
    },
    /// The disk's: bytes that were once durable are no longer what was written. Nothing was changed.
    #[error(
        "{} is corrupt at byte {offset}, where entry {index} was expected: {reason}; nothing was changed. \
         This is not a crash's torn tail, so entries that were acknowledged may be lost here: do not repair the \
         file by hand. Replace the disk if it is failing, remove this node from the group, remove its data \
         directory, and let it join anew (docs/members.md)",
        file.display()
    )]
    Corrupt {
        /// The segment, or the directory when a whole segment is missing.
        file: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// The entry that was to come next: what lies before it was read without error.
        index: Index,
        /// What was found, and what proves that it is not a torn tail.
        reason: String,
    },
    /// The disk's: it is full.
    #[error("the disk is full: cannot {action} {}: {source}", path.display())]
    NoSpace {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The disk's, or the system's: any other failed call.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An earlier write or sync failed, so what is on disk is unknown; the log takes no more calls.
    #[error("the log stopped after a failure: {cause}")]
    Poisoned {
        /// The failure's message.
        cause: String,
    },
    /// The caller's bug: entries that do not continue the log, or that replace what a snapshot covers.
    #[error("entry {got} cannot be appended: the log takes {lowest} to {next}")]
    OutOfOrder {
        /// The offending entry.
        got: Index,
        /// The lowest index that may be replaced.
        lowest: Index,
        /// The index after the last entry.
        next: Index,
    },
    /// The caller's bug: a compaction or a reset to where the log cannot go.
    #[error(
        "cannot compact to snapshot {snapshot} keeping entries from {keep_from}: the log has snapshot {current} and ends before {next}"
    )]
    BadCompaction {
        /// The snapshot asked for.
        snapshot: Index,
        /// The first entry to keep.
        keep_from: Index,
        /// The snapshot that the log has.
        current: Index,
        /// The index after the last entry.
        next: Index,
    },
    /// The caller's: an entry over the size that a record can carry.
    #[error("entry {index} has {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The entry.
        index: Index,
        /// Its size.
        bytes: usize,
        /// The limit, in bytes.
        limit: usize,
    },
}

impl From<DiskFault> for WalError {
    fn from(fault: DiskFault) -> WalError {
        let full = fault.is_full();
        let DiskFault { action, path, source } = fault;
        if full { WalError::NoSpace { action, path, source } } else { WalError::Io { action, path, source } }
    }
}
