//! The write-ahead log: a member's entries and hard state, in segment files of one directory.
//!
//! Owns the directory's files and nothing else. It must not know what an entry means, who committed it, or
//! when to compact; it never starts anything and never waits but for the disk. One owner calls it (the group's log writer).
//!
//! # Files
//!
//! | name | what it is |
//! |---|---|
//! | `wal.lock` | held with `flock` while the log is open; never removed |
//! | `NNN.wal` | segment number NNN; the numbers of the live segments are consecutive |
//! | `NNN.spare` | a segment taken out of use, whose blocks the next new segment will use |
//! | `NNN.wal.tmp` | a segment that was being created when the process died; removed at the next open |
//!
//! # Format, version 2
//!
//! Numbers are little-endian. A **segment** starts with a header of 4,096 bytes, which is synced before the file gets
//! its name and never changes in that life of the file:
//!
//! | bytes | field |
//! |---|---|
//! | 8, 4 | magic `SQUALWAL`, version |
//! | 4 | salt: random, never 0, new in each life of the file |
//! | 16, 8 | cluster id, node id |
//! | 8 | incarnation: random, never 0, drawn when the log was created; the same in all segments |
//! | 8 | sequence number, as in the name |
//! | 4 | 1 if the log restarts here (after an installed snapshot), else 0 |
//! | 4, 8 | link and offset at which the records of the segment before end |
//! | 24 | hard state: term, vote (0: none), commit |
//! | 16 | snapshot: index, term |
//! | 8, 8 | first index that must be in the log, index after the last |
//! | ... | zeroes |
//! | 4, at 4,092 | CRC-32C of all before |
//!
//! **Records** follow, each at a multiple of 8, each with a header of 32 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 4 | the segment's salt |
//! | 4 | CRC-32C of the rest of this header, seeded with the segment header's CRC and the record's offset |
//! | 4 | CRC-32C of the payload with its padding |
//! | 4 | link: the header CRC of the record before, or of the segment |
//! | 8 | `synced_to`: all before this offset in the segment was durable when the record was written |
//! | 4, 1, 3 | length of the payload without padding, kind, zeroes |
//!
//! | kind | payload |
//! |---|---|
//! | 1 hard state | term, vote, commit: 8 bytes each |
//! | 2 entries | index of the first, count: 8 each; then for each entry: term 8, length 4, kind 4 (0 command, 1 no-op, 2 members), data |
//! | 3 compaction | snapshot index and term, first index kept: 8 each |
//! | 4 seal | none |
//!
//! An entries record whose first index is not above the last one replaces the log from there on. After the last record
//! come 32 zero bytes, or, once the record is synced, a **seal**: a header whose `synced_to` is its own offset.
//! Neither is part of the chain; the next record overwrites them. What lies behind is of no meaning: zeroes written in
//! advance, or an older life of the file. No stale record passes: salt and seed (64 bits) say which life it is from.
//!
//! A segment ends where its successor's header says: the successor is created after the sync of all before.
//!
//! # What a crash leaves, and what the next open makes of it
//!
//! | crash or fault | found | verdict |
//! |---|---|---|
//! | before a sync ended | any part of what was written since the last sync, even later records without earlier ones | **torn tail**: cut at the first bad record, logged, reported in [`Recovered::torn_tail`]; the log goes on in a new segment, whose header makes the cut final, so nothing is overwritten |
//! | process killed, system alive | all that was written, in memory | kept; what no record proves to be synced is written again and synced before anything is built on it |
//! | while a segment is created | `.wal.tmp`, or a `.spare` with a new header | removed; still a spare |
//! | while segments are taken out of use | some of them, perhaps not the oldest | the newest unbroken run is the log, if it is complete; the others go |
//! | between a reset's new segment and the removal of the old | both | the new segment's header says that the log restarts |
//! | a damaged record, with a later genuine header whose `synced_to` lies behind it, or with a later segment | | **corrupt**: [`WalError::Corrupt`], nothing is changed |
//! | a damaged segment header, a missing segment | | **corrupt**: headers and names are durable before they are used |
//! | a bit flipped behind the end | | harmless |
//!
//! The verdict needs the header of any later record only, whose checksum does not depend on the damaged one.
//! One case cannot be told apart from a torn write: damage to the very last batch of records when its seal
//! was lost, which takes damage *and* a loss of power in the seconds between the sync and the kernel's write-back of the seal.
//! Then the batch is cut, as if its sync had never ended; [`Recovered::torn_tail`] tells.
//!
//! # Failure
//!
//! After a failed write or sync the kernel may drop the data, mark the pages clean, and report success the next
//! time. So nothing is retried: the log is poisoned, and each later call returns [`WalError::Poisoned`]. The one
//! exception is a full disk found while room is made, before anything of the call was written: the call
//! returns [`WalError::NoSpace`], had no effect, and may be repeated when there is room.
//!
//! # Cost
//!
//! Space is written with zeroes ahead of its use, a slice at a time, because a synced write that does not change the
//! file's length or its extents takes about half the time; recycled segments need no zeroes.
//! [`Wal::append`] copies into a buffer; [`Wal::sync`] is one write, one `fdatasync` and one write of 32 bytes.

mod codec;
pub(crate) mod disk;
mod error;
mod recovery;
mod segment;

#[cfg(test)]
pub(crate) mod crash_disk;
#[cfg(test)]
mod crash_tests;

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::core::types::{Entry, HardState, Index, SnapshotMeta};
use codec::{ENTRY_BYTES_MAX, HEADER_BYTES, LogState, Payload, RECORD_HEADER_BYTES, RecordHeader, Tail};
use disk::{DirLock, Disk, DiskFault, OsDisk, create_dir_durably};
pub use error::WalError;
use recovery::Recovery;
use segment::{ActiveSegment, ClosedSegment, END_BYTES, SegmentStore};

/// Whose log or snapshot it is; written into every file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, drawn at random when it was created.
    pub cluster_id: [u8; 16],
    /// The member.
    pub node_id: u64,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {:032x}", self.node_id, u128::from_be_bytes(self.cluster_id))
    }
}

/// Sizes of the log's files.
#[derive(Debug, Clone, Copy)]
pub struct WalOptions {
    /// A segment is closed when the next append would take it beyond this size. A larger append gets a segment
    /// of its own, as large as needed. Default 64 MiB.
    pub segment_bytes: u64,
    /// Zeroes are written ahead in slices of this size; 0 writes none. Default 1 MiB.
    pub zeroed_slice_bytes: u64,
    /// Segments kept for use again after a compaction. Default 2.
    pub spare_segments_max: usize,
}

impl Default for WalOptions {
    fn default() -> WalOptions {
        WalOptions { segment_bytes: 64 << 20, zeroed_slice_bytes: 1 << 20, spare_segments_max: 2 }
    }
}

/// What [`Wal::open`] found.
#[derive(Debug)]
pub struct Recovered {
    /// The last one appended. Its `commit` is moved into the bounds of the log: a hint can outlive the entries of
    /// a torn tail.
    pub hard_state: HardState,
    /// The snapshot of the last compaction or reset; index 0 when there was none.
    pub snapshot: SnapshotMeta,
    /// The log, without a gap. It starts at the `keep_from` of the last compaction, which is at most
    /// `snapshot.index + 1`: so it may overlap the snapshot. See [`Recovered::entries_after`].
    pub entries: Vec<Entry>,
    /// Drawn at random when the log was created, never 0: tells it from any other log that may exist under the same identity, before
    /// it or after.
    pub incarnation: u64,
    /// Where the log was cut, if a crash interrupted a write.
    pub torn_tail: Option<TornTail>,
}

impl Recovered {
    /// The entries behind `index`, or `None` when the log does not reach back to it. With the index of a
    /// snapshot, that of the log or an older one, this tells whether a restart from it is possible.
    #[must_use]
    pub fn entries_after(&self, index: Index) -> Option<&[Entry]> {
        let first = self.entries.first().map_or(self.snapshot.index + 1, |entry| entry.index);
        let skipped = usize::try_from(index.checked_add(1)?.checked_sub(first)?).ok()?;
        self.entries.get(skipped..)
    }
}

/// Where a log was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub file: PathBuf,
    /// The offset of the first bad record, in bytes: the log ends there.
    pub offset: u64,
    /// Record headers found whole behind the cut: none of them was ever acknowledged.
    pub later_records: usize,
}

/// An open log.
///
/// Dropping it loses what was appended and not synced, as a crash does.
pub struct Wal {
    store: SegmentStore,
    /// Closed segments, oldest first. All of their bytes are durable.
    closed: VecDeque<ClosedSegment>,
    active: ActiveSegment,
    /// Records not yet written: they end at `active.tail.end`.
    buffer: Vec<u8>,
    state: LogState,
    poison: Option<String>,
    _lock: DirLock,
}

const LOCK_NAME: &str = "wal.lock";
/// The buffer is written out when it has grown to this size, and is not kept much larger.
const BUFFER_BYTES: usize = 1 << 20;

impl Wal {
    /// Opens the log in `dir`, or creates an empty one, and reads it back. What is returned is durable. A torn
    /// tail is cut and logged as a warning.
    ///
    /// # Blocking
    ///
    /// Reads the whole log, and syncs.
    ///
    /// # Errors
    ///
    /// [`WalError::WrongIdentity`], [`WalError::Locked`], [`WalError::Unsupported`] and [`WalError::Corrupt`]
    /// leave the directory as it was. [`WalError::NoSpace`] and [`WalError::Io`] lose nothing.
    pub fn open(dir: &Path, identity: Identity, options: WalOptions) -> Result<(Wal, Recovered), WalError> {
        Wal::open_on(Arc::new(OsDisk), dir, identity, options)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: WalOptions,
    ) -> Result<(Wal, Recovered), WalError> {
        let lock_path = dir.join(LOCK_NAME);
        if !lock_path.exists() {
            // A copied directory has no lock file yet: not even that may be added to another node's data.
            recovery::list(dir, &identity)?;
            create_dir_durably(&*disk, dir)?;
        }
        let lock = DirLock::acquire(&lock_path)?.ok_or(WalError::Locked { path: lock_path })?;
        let listing = recovery::list(dir, &identity)?;
        let incarnation = listing.segments.last().map(|segment| segment.header.incarnation);
        let recovery = recovery::recover(dir, listing.segments)?;

        // The directory is sound and ours: from here on it may be changed.
        let mut store = SegmentStore::new(disk, dir, identity, incarnation, options, listing.spares)?;
        for path in &listing.leftovers {
            store.remove(path)?;
        }
        let Recovery { segments, obsolete, state, entries, end } = recovery;
        for segment in &obsolete {
            store.remove(&segment.path)?;
        }
        let (closed, active) = store.resume(&segments, state, end.as_ref())?;
        store.sync_dir()?;

        let torn_tail = end.and_then(|end| end.torn);
        if let Some(torn) = &torn_tail {
            log::warn!(
                "{}: cut a torn tail at byte {}, before entry {}; {} later records were dropped, none of them acknowledged",
                torn.file.display(),
                torn.offset,
                state.next_index,
                torn.later_records
            );
        }
        let commit = state.hard_state.commit.clamp(state.snapshot.index, state.next_index - 1);
        let hard_state = HardState { commit, ..state.hard_state };
        let incarnation = store.incarnation;
        let recovered = Recovered { hard_state, snapshot: state.snapshot, entries, incarnation, torn_tail };
        let wal = Wal { store, closed, active, buffer: Vec::new(), state, poison: None, _lock: lock };
        Ok((wal, recovered))
    }

    /// Appends a hard state, entries, or both in this order. Nothing is durable before [`Wal::sync`]; a crash
    /// before keeps any prefix of what was appended since the last sync.
    ///
    /// The entries have consecutive indices. The first may be at most one above the last index of the log; if it is
    /// not above it, the log is replaced from there on.
    ///
    /// # Blocking
    ///
    /// Copies the entries. Writes to the disk when a megabyte is buffered or a slice of zeroes is due, and
    /// syncs when a segment is full.
    ///
    /// # Errors
    ///
    /// [`WalError::OutOfOrder`] and [`WalError::TooLarge`]: the caller's bug, no effect. [`WalError::NoSpace`] without
    /// poison (see the module's text): no effect. All else is fatal.
    pub fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) -> Result<(), WalError> {
        self.check_poison()?;
        self.check_entries(entries)?;
        let hard_state_payload = hard_state.map(Payload::HardState);
        let batches = || codec::record_batches(entries).map(Payload::Entries);
        let bytes = hard_state_payload.iter().map(record_bytes).sum::<usize>()
            + batches().map(|batch| record_bytes(&batch)).sum::<usize>();
        if bytes == 0 {
            return Ok(());
        }
        self.make_room(bytes)?;
        if let Some(payload) = hard_state_payload {
            self.push(&payload)?;
        }
        for payload in batches() {
            self.push(&payload)?;
        }
        if let Some(hard_state) = hard_state {
            self.state.hard_state = *hard_state;
        }
        if let [first, ..] = entries {
            if first.index < self.state.next_index {
                for segment in &mut self.closed {
                    segment.last_live = segment.last_live.min(first.index - 1);
                }
            }
            self.state.next_index = first.index + entries.len() as u64;
            self.active.last_live = self.state.next_index - 1;
        }
        Ok(())
    }

    /// Makes everything appended durable, with one `fdatasync`; does nothing when nothing is waiting.
    ///
    /// # Blocking
    ///
    /// Waits for the disk.
    ///
    /// # Errors
    ///
    /// All are fatal: the log is poisoned, and what was appended since the last sync may or may not be durable.
    pub fn sync(&mut self) -> Result<(), WalError> {
        self.check_poison()?;
        self.flush()?;
        let active = &mut self.active;
        if active.synced_to == active.tail.end {
            return Ok(());
        }
        let synced = self.store.sync(active).and_then(|()| self.store.seal(active));
        synced.map_err(|fault| self.fatal(fault))
    }

    /// Notes durably that `snapshot` covers the log up to its index, and gives up the entries before
    /// `keep_from`, which may be lower to serve followers that lag. Segments that hold no other entry are recycled or removed.
    ///
    /// The snapshot itself must be durable before.
    ///
    /// # Blocking
    ///
    /// Waits for the disk: everything appended before is synced, too.
    ///
    /// # Errors
    ///
    /// [`WalError::BadCompaction`] when the snapshot is older than the log's or newer than its last entry, or when
    /// `keep_from` is before what an earlier compaction kept or behind the snapshot: the caller's bug, no effect. Else as
    /// [`Wal::append`] and [`Wal::sync`].
    pub fn compact(&mut self, snapshot: SnapshotMeta, keep_from: Index) -> Result<(), WalError> {
        self.check_poison()?;
        let state = LogState { snapshot, first_index: keep_from, ..self.state };
        let backwards = snapshot.index < self.state.snapshot.index || keep_from < self.state.first_index;
        if backwards || !state.is_sound() {
            return Err(self.bad_compaction(snapshot, keep_from));
        }
        let payload = Payload::Compaction(snapshot, keep_from);
        self.make_room(record_bytes(&payload))?;
        self.push(&payload)?;
        self.sync()?;
        self.state = state;
        self.drop_closed(|segment| segment.last_live < keep_from)
    }

    /// Starts the log anew behind `snapshot`, which was installed and is durable: all entries are given up.
    /// Durable when it returns; a crash leaves either the old log or the new one.
    ///
    /// # Blocking
    ///
    /// Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`WalError::BadCompaction`] when the log has a later snapshot: the caller's bug, no effect. Else as
    /// [`Wal::append`] and [`Wal::sync`].
    pub fn reset(&mut self, snapshot: SnapshotMeta, hard_state: HardState) -> Result<(), WalError> {
        self.check_poison()?;
        let next_index = snapshot.index.saturating_add(1);
        let state = LogState { hard_state, snapshot, first_index: next_index, next_index };
        if snapshot.index < self.state.snapshot.index || !state.is_sound() {
            return Err(self.bad_compaction(snapshot, next_index));
        }
        self.roll(state, true)?;
        self.drop_closed(|_| true)
    }

    /// Bytes of the live segments that are in use; counts neither space written ahead nor spares.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.closed.iter().map(|segment| segment.end).sum::<u64>() + self.active.tail.end
    }

    /// The number of live segments, at least 1.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.closed.len() + 1
    }

    fn check_poison(&self) -> Result<(), WalError> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(WalError::Poisoned { cause: cause.clone() }),
        }
    }

    fn check_entries(&self, entries: &[Entry]) -> Result<(), WalError> {
        let lowest = self.state.snapshot.index + 1;
        let mut next = self.state.next_index;
        for (position, entry) in entries.iter().enumerate() {
            let continues = match position {
                0 => lowest <= entry.index && entry.index <= next,
                _ => entry.index == next,
            };
            // The index after the last must be a number, too.
            let after = entry.index.checked_add(1).filter(|_| continues);
            next = after.ok_or(WalError::OutOfOrder { got: entry.index, lowest, next })?;
            if entry.data.len() > ENTRY_BYTES_MAX {
                let (index, bytes) = (entry.index, entry.data.len());
                return Err(WalError::TooLarge { index, bytes, limit: ENTRY_BYTES_MAX });
            }
        }
        Ok(())
    }

    fn bad_compaction(&self, snapshot: SnapshotMeta, keep_from: Index) -> WalError {
        WalError::BadCompaction {
            snapshot: snapshot.index,
            keep_from,
            current: self.state.snapshot.index,
            next: self.state.next_index,
        }
    }

    /// Poisons the log.
    fn fatal(&mut self, fault: DiskFault) -> WalError {
        let error = WalError::from(fault);
        self.poison = Some(error.to_string());
        error
    }

    /// For calls that only make room: a full disk does not poison, since no record was touched.
    fn fatal_unless_full(&mut self, fault: DiskFault) -> WalError {
        if fault.is_full() { fault.into() } else { self.fatal(fault) }
    }

    /// Makes room for `bytes` of records in the active segment, or in a new one, and zeroes it.
    fn make_room(&mut self, bytes: usize) -> Result<(), WalError> {
        let bytes = (bytes + END_BYTES) as u64;
        let used = self.active.tail.end;
        if used + bytes > self.store.options.segment_bytes && used > HEADER_BYTES as u64 {
            self.roll(self.state, false)?;
        }
        let end = self.active.tail.end + bytes;
        self.store.zero(&mut self.active, end).map_err(|fault| self.fatal_unless_full(fault))
    }

    /// Puts a record into the buffer; room was made.
    fn push(&mut self, payload: &Payload) -> Result<(), WalError> {
        let start = self.buffer.len();
        let body = start + RECORD_HEADER_BYTES;
        let length = payload.length();
        self.buffer.resize(body, 0);
        payload.encode(&mut self.buffer);
        self.buffer.resize(body + codec::padded(length), 0);

        let active = &mut self.active;
        let header = RecordHeader {
            kind: payload.kind() as u8,
            length: u32::try_from(length).expect("no entry is larger than ENTRY_BYTES_MAX"),
            payload_crc: crc32c::crc32c(&self.buffer[body..]),
            link: active.tail.link,
            synced_to: active.synced_to,
        };
        let (bytes, link) = header.encode(active.chain, active.tail.end);
        self.buffer[start..body].copy_from_slice(&bytes);
        active.tail = Tail { end: active.tail.end + header.record_bytes(), link };
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    /// Writes the buffer, followed by the zeroes that mark the end.
    fn flush(&mut self) -> Result<(), WalError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.buffer.resize(self.buffer.len() + END_BYTES, 0);
        let written = self.store.write(&self.active, &self.buffer, self.active.written);
        written.map_err(|fault| self.fatal(fault))?;
        self.active.written = self.active.tail.end;
        self.buffer.clear();
        self.buffer.shrink_to(2 * BUFFER_BYTES);
        Ok(())
    }

    /// Closes the active segment and goes on in a new one, whose header holds `state`.
    fn roll(&mut self, state: LogState, restarts: bool) -> Result<(), WalError> {
        self.sync()?;
        let (sequence, previous) = (self.active.sequence + 1, self.active.tail);
        let draft = self.store.draft(sequence, previous, state, restarts);
        let draft = draft.map_err(|fault| self.fatal_unless_full(fault))?;
        // Fatal even on a full disk: the new segment may have its name, and then nothing may follow in the old one.
        let active = self.store.publish(draft).map_err(|fault| self.fatal(fault))?;
        self.closed.push_back(std::mem::replace(&mut self.active, active).close());
        self.state = state;
        Ok(())
    }

    /// Takes the oldest closed segments out of use for as long as `is_obsolete` says so.
    fn drop_closed(&mut self, is_obsolete: impl Fn(&ClosedSegment) -> bool) -> Result<(), WalError> {
        let mut dropped = false;
        while let Some(segment) = self.closed.pop_front_if(|segment| is_obsolete(segment)) {
            self.store.retire(&segment).map_err(|fault| self.fatal(fault))?;
            dropped = true;
        }
        if dropped {
            // Before a spare's header may be overwritten: after a crash it must not be found under its old name.
            self.store.sync_dir().map_err(|fault| self.fatal(fault))?;
        }
        Ok(())
    }
}

/// Bytes that a record takes in the file.
fn record_bytes(payload: &Payload) -> usize {
    RECORD_HEADER_BYTES + codec::padded(payload.length())
}
