//! Segment files: created, reopened, extended, closed, recycled.
//!
//! Owns the order of writes, syncs and renames that makes each step safe against a crash; knows nothing of what the
//! records say. It reports failures and leaves it to the log to stop. Called by the log only.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::codec::{
    Chain, HEADER_BYTES, Kind, LogState, RECORD_HEADER_BYTES, RecordHeader, SegmentHeader, Tail,
};
use super::disk::{Disk, DiskFault};
use super::recovery::{End, FoundSegment};
use super::{Identity, WalOptions};
use crate::core::types::Index;
use crate::planted::{Mistake, planted};

/// Room behind the last record for the zeroes, or the seal, that mark the end.
pub(super) const END_BYTES: usize = RECORD_HEADER_BYTES;
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A segment that is written no more; all of it is durable.
pub(super) struct ClosedSegment {
    path: PathBuf,
    /// Where its records end.
    pub(super) end: u64,
    file_bytes: u64,
    /// No entry above this one is live in this segment.
    pub(super) last_live: Index,
}

impl ClosedSegment {
    fn new(found: &FoundSegment, end: u64) -> ClosedSegment {
        let FoundSegment { path, file_bytes, last_live, .. } = found;
        ClosedSegment { path: path.clone(), end, file_bytes: *file_bytes, last_live: *last_live }
    }
}

/// The segment that is written.
///
/// Invariant: `synced_to <= written <= tail.end`, and `tail.end + END_BYTES <= zeroed_to` while anything is
/// buffered or unsynced.
pub(super) struct ActiveSegment {
    file: File,
    path: PathBuf,
    pub(super) sequence: u64,
    pub(super) chain: Chain,
    /// Where the next record goes, and its link.
    pub(super) tail: Tail,
    /// The file has everything before this offset, the log's buffer the rest.
    pub(super) written: u64,
    /// Everything before this offset is durable.
    pub(super) synced_to: u64,
    /// The file's length: writes below it change neither length nor extents.
    zeroed_to: u64,
    /// No entry above this one is live in this segment.
    pub(super) last_live: Index,
}

impl ActiveSegment {
    /// Everything was synced before.
    pub(super) fn close(self) -> ClosedSegment {
        let ActiveSegment { path, tail, zeroed_to, last_live, .. } = self;
        ClosedSegment { path, end: tail.end, file_bytes: zeroed_to, last_live }
    }
}

/// The segments' directory.
pub(super) struct SegmentStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    /// Of the log; see [`SegmentHeader`].
    pub(super) incarnation: u64,
    pub(super) options: WalOptions,
    spares: Vec<PathBuf>,
}

impl SegmentStore {
    /// `incarnation` is that of the log found in `dir`; without one it begins a new life.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        incarnation: Option<u64>,
        options: WalOptions,
        spares: Vec<PathBuf>,
    ) -> Result<SegmentStore, DiskFault> {
        let dir = dir.to_path_buf();
        let incarnation = match incarnation {
            Some(incarnation) => incarnation,
            None => getrandom::u64()
                .map_err(|error| io::Error::other(error.to_string()))
                .map_err(DiskFault::of("draw a random incarnation for the log in", &dir))?
                .max(1),
        };
        let mut store = SegmentStore { disk, dir, identity, incarnation, options, spares };
        while store.spares.len() > options.spare_segments_max
            && let Some(surplus) = store.spares.pop()
        {
            store.remove(&surplus)?;
        }
        Ok(store)
    }

    /// Makes the recovered segments ready to be continued, or creates the first one. `end` is where the last one
    /// ends; a torn end is cut by a new segment, and stays as evidence.
    pub(super) fn resume(
        &mut self,
        found: &[FoundSegment],
        state: LogState,
        end: Option<&End>,
    ) -> Result<(VecDeque<ClosedSegment>, ActiveSegment), DiskFault> {
        let (Some((last, older)), Some(end)) = (found.split_last(), end) else {
            let draft = self.draft(1, Tail { end: 0, link: 0 }, state, false)?;
            return Ok((VecDeque::new(), self.publish(draft)?));
        };
        let mut closed: VecDeque<ClosedSegment> = older
            .iter()
            .zip(&found[1..])
            .map(|(segment, next)| ClosedSegment::new(segment, next.header.previous.end))
            .collect();
        let mut active = self.reopen(last, end)?;
        if end.torn.is_some() {
            closed.push_back(ClosedSegment::new(last, end.tail.end));
            let draft = self.draft(active.sequence + 1, end.tail, state, false)?;
            active = self.publish(draft)?;
        } else if end.synced_to < end.tail.end {
            self.seal(&mut active)?;
        }
        Ok((closed, active))
    }

    /// Opens the last segment. Records that no later one proves to be durable may be in the kernel's memory only,
    /// and even marked as written there if an earlier process saw its sync fail: they are written once more and synced.
    fn reopen(&self, found: &FoundSegment, end: &End) -> Result<ActiveSegment, DiskFault> {
        let path = &found.path;
        let file = OpenOptions::new().read(true).write(true).open(path);
        let mut active = ActiveSegment {
            file: file.map_err(DiskFault::of("open", path))?,
            path: path.clone(),
            sequence: found.header.sequence,
            chain: found.chain,
            tail: end.tail,
            written: end.tail.end,
            synced_to: end.synced_to,
            zeroed_to: found.file_bytes,
            last_live: found.last_live,
        };
        if end.synced_to < end.tail.end {
            // What was verified, not what another read returns: a disk that mistakes the address then would have it destroy the log.
            self.write(&active, &end.unproven, end.synced_to)?;
            self.sync(&active)?;
            active.synced_to = end.tail.end;
        }
        Ok(active)
    }

    /// Makes a segment, from a spare if there is one: whole and durable, but not yet under its name.
    pub(super) fn draft(
        &mut self,
        sequence: u64,
        previous: Tail,
        state: LogState,
        restarts: bool,
    ) -> Result<ActiveSegment, DiskFault> {
        let salt = getrandom::u32()
            .map_err(|error| io::Error::other(error.to_string()))
            .map_err(DiskFault::of("draw a random salt for a segment in", &self.dir))?
            .max(1);
        let SegmentStore { identity, incarnation, .. } = *self;
        let (header, chain) =
            SegmentHeader { identity, incarnation, sequence, salt, restarts, previous, state }.encode();
        let (path, file) = match self.spares.pop() {
            Some(spare) => {
                let file = OpenOptions::new().read(true).write(true).open(&spare);
                (spare, file)
            }
            None => {
                let fresh = self.segment_path(sequence).with_extension("wal.tmp");
                let file = self.disk.create(&fresh);
                (fresh, file)
            }
        };
        let file = file.map_err(DiskFault::of("open", &path))?;
        let file_bytes = file.metadata().map_err(DiskFault::of("look at", &path))?.len();
        let start = HEADER_BYTES as u64;
        let mut draft = ActiveSegment {
            file,
            path,
            sequence,
            chain,
            tail: Tail { end: start, link: chain.seed },
            written: start,
            synced_to: start,
            zeroed_to: file_bytes.max(start),
            last_live: 0,
        };
        let filled = self
            .write(&draft, &header[..], 0)
            // A spare's old records begin where the new end is.
            .and_then(|()| self.write(&draft, &ZEROES[..END_BYTES], start))
            .and_then(|()| self.zero(&mut draft, start + END_BYTES as u64))
            .and_then(|()| self.sync(&draft));
        if let Err(fault) = filled {
            // Best effort: the next open removes it anyway, but a full disk wants its space back now.
            let _ = self.remove(&draft.path);
            return Err(fault);
        }
        Ok(draft)
    }

    /// Gives a drafted segment its name, durably.
    pub(super) fn publish(&self, draft: ActiveSegment) -> Result<ActiveSegment, DiskFault> {
        let path = self.segment_path(draft.sequence);
        self.disk.rename(&draft.path, &path).map_err(DiskFault::of("rename", &draft.path))?;
        if !planted(Mistake::NameNotSynced) {
            self.sync_dir()?;
        }
        Ok(ActiveSegment { path, ..draft })
    }

    pub(super) fn write(&self, segment: &ActiveSegment, bytes: &[u8], offset: u64) -> Result<(), DiskFault> {
        self.disk.write_at(&segment.file, bytes, offset).map_err(DiskFault::of("write", &segment.path))
    }

    pub(super) fn sync(&self, segment: &ActiveSegment) -> Result<(), DiskFault> {
        if planted(Mistake::NoSync) {
            return Ok(());
        }
        if planted(Mistake::SyncRetried) && self.disk.sync_data(&segment.file).is_ok() {
            return Ok(());
        }
        self.disk.sync_data(&segment.file).map_err(DiskFault::of("sync", &segment.path))
    }

    /// Makes sure that everything before `end` has zeroes, or older bytes, under it: to the end of a slice, but not
    /// beyond the segment's size unless `end` is.
    pub(super) fn zero(&self, segment: &mut ActiveSegment, end: u64) -> Result<(), DiskFault> {
        if end <= segment.zeroed_to {
            return Ok(());
        }
        let slice_end = end.next_multiple_of(self.options.zeroed_slice_bytes.max(1));
        let slice_end = slice_end.min(self.options.segment_bytes).max(end);
        while segment.zeroed_to < slice_end {
            let count = (slice_end - segment.zeroed_to).min(ZEROES.len() as u64);
            self.write(segment, &ZEROES[..count as usize], segment.zeroed_to)?;
            segment.zeroed_to += count;
        }
        Ok(())
    }

    /// Called when all was synced: says so on disk, where the next record will overwrite it. It need not be durable;
    /// when it is, the last records can no longer be taken for a torn tail.
    pub(super) fn seal(&self, segment: &mut ActiveSegment) -> Result<(), DiskFault> {
        let Tail { end, link } = segment.tail;
        let header = RecordHeader { kind: Kind::Seal as u8, length: 0, payload_crc: 0, link, synced_to: end };
        let (seal, _) = header.encode(segment.chain, end);
        self.write(segment, &seal, end)?;
        segment.zeroed_to = segment.zeroed_to.max(end + END_BYTES as u64);
        segment.synced_to = end;
        Ok(())
    }

    /// Takes a segment out of use: a spare, or gone. Not durable before [`SegmentStore::sync_dir`].
    pub(super) fn retire(&mut self, segment: &ClosedSegment) -> Result<(), DiskFault> {
        let has_usual_size = segment.file_bytes <= self.options.segment_bytes;
        if has_usual_size && self.spares.len() < self.options.spare_segments_max {
            let spare = segment.path.with_extension("spare");
            self.disk.rename(&segment.path, &spare).map_err(DiskFault::of("rename", &segment.path))?;
            self.spares.push(spare);
            Ok(())
        } else {
            self.remove(&segment.path)
        }
    }

    pub(super) fn remove(&self, path: &Path) -> Result<(), DiskFault> {
        self.disk.remove(path).map_err(DiskFault::of("remove", path))
    }

    pub(super) fn sync_dir(&self) -> Result<(), DiskFault> {
        self.disk.sync_dir(&self.dir).map_err(DiskFault::of("sync the directory", &self.dir))
    }

    fn segment_path(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!("{sequence:020}.wal"))
    }
}
