//! What can go wrong with snapshot files, split by who can do something about it.

use std::io;
use std::path::PathBuf;

use crate::core::types::Index;
use crate::wal::Identity;
use crate::wal::disk::DiskFault;

/// Why a snapshot cannot be read, written or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The operator's: the directory belongs to another cluster. Nothing was changed.
    #[error("{} was written by {found}, but this is {expected}: nothing was changed; check the data directory", file.display())]
    WrongIdentity {
        /// The first file that says so.
        file: PathBuf,
        /// Who opened the directory.
        expected: Identity,
        /// Who wrote the file.
        found: Identity,
    },
    /// The operator's: another process, or another owner in this one, has the directory open.
    #[error("{} is locked: another process uses this directory; stop it first", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The operator's: the snapshot was written by a newer release.
    #[error("{} has format version {version}, which this release does not know: start the release that wrote it", file.display())]
    Unsupported {
        /// The snapshot.
        file: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The disk's: the file is not what was written. It was left as it is.
    #[error(
        "{} is corrupt at byte {offset}: {reason}; it was left as it is. An older snapshot serves if the log still \
         reaches back to it; if none does, remove this node from the group, remove its data directory, and let it join \
         anew (docs/members.md)",
        file.display()
    )]
    Corrupt {
        /// The snapshot.
        file: PathBuf,
        /// Where in the file, in bytes.
        offset: u64,
        /// What was found.
        reason: &'static str,
    },
    /// The peer's, or the wire's: what arrived is not the snapshot that was announced. It was thrown away.
    #[error("the snapshot at {index} that a peer sent is of no use: {reason}")]
    BadTransfer {
        /// The snapshot's index.
        index: Index,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk's: it is full. The unfinished file was removed.
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
    /// The caller's bug: a file whose write or sync failed was used on. Start it again from the beginning.
    #[error("{} was given up after an earlier failure", path.display())]
    GivenUp {
        /// The unfinished file.
        path: PathBuf,
    },
}

impl From<DiskFault> for SnapshotError {
    fn from(fault: DiskFault) -> SnapshotError {
        let full = fault.is_full();
        let DiskFault { action, path, source } = fault;
        match full {
            true => SnapshotError::NoSpace { action, path, source },
            false => SnapshotError::Io { action, path, source },
        }
    }
}

/// For `Read` and `Write`: keeps the kind, and the whole error as the cause.
impl From<SnapshotError> for io::Error {
    fn from(error: SnapshotError) -> io::Error {
        let kind = match &error {
            SnapshotError::NoSpace { source, .. } | SnapshotError::Io { source, .. } => source.kind(),
            SnapshotError::Corrupt { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
