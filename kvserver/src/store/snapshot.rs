//! The records of a store as a stream of bytes: the store's revision, the number of records, then each record as
//!
//! ```text
//! version  varint   the revision of the last change to it
//! expiry   varint   milliseconds since the Unix epoch plus one; 0 for none
//! key      varint length, bytes
//! value    varint length, bytes
//! ```
//!
//! in the store's order. The order is not relied on when reading, so a snapshot can seed a cluster with
//! another hash key. The frame around this (version, sessions, checksum) is the state machine's, see
//! [`crate::machine`].

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::{Slot, Store, StoreView};
use crate::codec;

/// No key or value is longer: it is what a single bulk string of the protocol can carry.
const BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Why a snapshot could not be read. All but [`SnapshotError::Io`] say that its bytes are damaged, or not
/// those of a snapshot of a release that this one knows.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The source failed, or ended too early.
    #[error("reading the snapshot: {0}")]
    Io(#[from] io::Error),
    /// The first bytes are not those of a snapshot.
    #[error("not a snapshot of a Squall store")]
    NotASnapshot,
    /// The format is of another release.
    #[error("snapshot format {found} is not known; this release reads format {known}")]
    UnknownVersion {
        /// The version found in the snapshot.
        found: u32,
        /// The version this release reads.
        known: u32,
    },
    /// The bytes contradict themselves.
    #[error("damaged snapshot: {0}")]
    Damaged(&'static str),
    /// The bytes were changed since they were written.
    #[error("damaged snapshot: its checksum is {computed:#010x}, and {stored:#010x} was stored")]
    ChecksumMismatch {
        /// The checksum of what was read.
        computed: u32,
        /// The checksum that was stored.
        stored: u32,
    },
}

impl StoreView {
    pub(crate) fn write_records(self, out: &mut impl Write) -> io::Result<()> {
        let mut header = Vec::with_capacity(64);
        codec::put_varint(&mut header, self.revision);
        codec::put_varint(&mut header, self.len as u64);
        out.write_all(&header)?;
        for bucket in self.into_buckets() {
            for Slot { record, .. } in bucket.iter() {
                header.clear();
                codec::put_varint(&mut header, record.version);
                codec::put_varint(
                    &mut header,
                    record.expires_at_ms.map_or(0, |at_ms| at_ms.saturating_add(1)),
                );
                codec::put_bytes(&mut header, &record.key);
                codec::put_varint(&mut header, record.value.len() as u64);
                out.write_all(&header)?;
                out.write_all(&record.value)?;
            }
        }
        Ok(())
    }
}

impl Store {
    /// Reads records into a new store.
    pub(crate) fn read_records(hash_key: u128, input: &mut impl Read) -> Result<Self, SnapshotError> {
        let mut store = Self::new(hash_key);
        store.revision = codec::read_varint(input)?;
        let mut keys = Vec::new();
        for _ in 0..codec::read_varint(input)? {
            let version = codec::read_varint(input)?;
            if !(1..=store.revision).contains(&version) {
                return Err(SnapshotError::Damaged("a version that the store has not reached"));
            }
            let expires_at_ms = codec::read_varint(input)?.checked_sub(1);
            let key = codec::read_bytes(input, BYTES_MAX)?;
            let value = Bytes::from(codec::read_bytes(input, BYTES_MAX)?);
            let (key, is_new) = store.insert(&key, value, expires_at_ms, version);
            if !is_new {
                return Err(SnapshotError::Damaged("a key occurs twice"));
            }
            keys.push(key);
        }
        // Sorted and built at once, which takes a fraction of the time of a million insertions.
        store.keys = keys.into_iter().collect();
        Ok(store)
    }
}
