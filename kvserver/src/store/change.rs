//! What happened to the records, in the order in which it happened: for those who watch keys.
//!
//! Every change of a store has a revision, one more than that of the change before it. A record's version is the revision of the last change
//! to it, so no two states of a key, nor of two keys that follow each other under one name, have the same version.

use std::sync::Arc;

use bytes::Bytes;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The number of the change, from 1, without gaps.
    pub revision: u64,
    /// What happened.
    pub kind: ChangeKind,
}

/// What happened to a record, or to all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The key has this value and expiry now, whatever it had before.
    Set {
        /// The key.
        key: Arc<[u8]>,
        /// Its value.
        value: Bytes,
        /// When it expires, in milliseconds since the Unix epoch.
        expires_at_ms: Option<u64>,
    },
    /// This was appended to the key's value.
    Appended {
        /// The key.
        key: Arc<[u8]>,
        /// What was appended.
        suffix: Bytes,
    },
    /// The key expires at another time now, or not at all.
    Expiry {
        /// The key.
        key: Arc<[u8]>,
        /// When it expires, in milliseconds since the Unix epoch.
        expires_at_ms: Option<u64>,
    },
    /// The key was removed.
    Removed {
        /// The key.
        key: Arc<[u8]>,
    },
    /// The key was removed because its time had come.
    Expired {
        /// The key.
        key: Arc<[u8]>,
    },
    /// All keys were removed.
    Cleared,
}

impl Change {
    /// The key that it concerns; `None` if all.
    pub fn key(&self) -> Option<&[u8]> {
        match &self.kind {
            ChangeKind::Set { key, .. }
            | ChangeKind::Appended { key, .. }
            | ChangeKind::Expiry { key, .. }
            | ChangeKind::Removed { key }
            | ChangeKind::Expired { key } => Some(key),
            ChangeKind::Cleared => None,
        }
    }

    /// What it is counted for in memory, in bytes. The value may be shared with the store; as long as the change is kept, so is it.
    pub(crate) fn bytes(&self) -> usize {
        let payload = match &self.kind {
            ChangeKind::Set { value, .. } => value.len(),
            ChangeKind::Appended { suffix, .. } => suffix.len(),
            _ => 0,
        };
        size_of::<Self>() + self.key().map_or(0, <[u8]>::len) + payload
    }
}
