//! Reads a log directory back and judges what it finds: whole, torn at the end, or corrupt.
//!
//! Reads only. Whatever it returns, no byte on disk has changed, so a refusal leaves the evidence as it was, and
//! the log itself applies the verdict when there is one. Called by `Wal::open` only.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::codec::{
    self, ALIGN, BadHeader, BadPayload, Chain, Decoded, HEADER_BYTES, Kind, LogState, RECORD_HEADER_BYTES,
    RecordHeader, SegmentHeader, Tail,
};
use super::disk::{DiskFault, file_names};
use super::{Identity, TornTail, WalError};
use crate::core::types::{Entry, Index};
use crate::planted::{Mistake, planted};

/// Read at once, and kept in memory while a segment is read.
const WINDOW_BYTES: usize = 1 << 20;

/// The files of a log directory, by what their names say.
pub(super) struct Listing {
    /// In order of their sequence numbers; headers read, whole and of the right identity.
    pub(super) segments: Vec<FoundSegment>,
    /// Segments taken out of use, whose blocks may be used again.
    pub(super) spares: Vec<PathBuf>,
    /// Left by a crash in the middle of creating a segment.
    pub(super) leftovers: Vec<PathBuf>,
}

/// A segment as it was found.
pub(super) struct FoundSegment {
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    pub(super) chain: Chain,
    pub(super) file_bytes: u64,
    /// Set while the log is replayed: no entry above this one is live in this segment.
    pub(super) last_live: Index,
}

/// What a directory holds.
pub(super) struct Recovery {
    /// The segments that make up the log, oldest first.
    pub(super) segments: Vec<FoundSegment>,
    /// Older segments that the log no longer needs: a crash interrupted their removal.
    pub(super) obsolete: Vec<FoundSegment>,
    pub(super) state: LogState,
    /// Exactly the entries from `state.first_index` up to `state.next_index`.
    pub(super) entries: Vec<Entry>,
    /// The end of the last segment; none when there is no segment yet.
    pub(super) end: Option<End>,
}

/// Where a segment's records end.
pub(super) struct End {
    pub(super) tail: Tail,
    /// The records prove that the segment was durable up to here.
    pub(super) synced_to: u64,
    /// The records from there on, as they were verified.
    pub(super) unproven: Vec<u8>,
    pub(super) torn: Option<TornTail>,
}

/// Lists `dir` and reads every segment's header.
pub(super) fn list(dir: &Path, identity: &Identity) -> Result<Listing, WalError> {
    let mut listing = Listing { segments: Vec::new(), spares: Vec::new(), leftovers: Vec::new() };
    for name in file_names(dir)? {
        let path = dir.join(&name);
        let Some((sequence, kind)) = parse_name(&name) else { continue };
        match kind {
            "wal" => listing.segments.push(read_segment_header(path, sequence, identity)?),
            "spare" => listing.spares.push(path),
            "wal.tmp" => listing.leftovers.push(path),
            _ => {}
        }
    }
    listing.segments.sort_unstable_by_key(|segment| segment.header.sequence);
    let foreign =
        listing.segments.windows(2).find(|pair| pair[0].header.incarnation != pair[1].header.incarnation);
    if let Some(pair) = foreign {
        let reason = "the segment is of another life of this node's log than the one before it".into();
        let index = pair[1].header.state.next_index;
        return Err(WalError::Corrupt { file: pair[1].path.clone(), offset: 0, index, reason });
    }
    if listing.segments.is_empty() && !listing.spares.is_empty() {
        // A segment becomes a spare only when a newer one is in place.
        let reason = "there are spare segments, but the log's segments are missing".into();
        return Err(WalError::Corrupt { file: dir.to_path_buf(), offset: 0, index: 0, reason });
    }
    Ok(listing)
}

/// The number and the kind of a file of ours. Others may lie in the directory, and are left alone.
fn parse_name(name: &str) -> Option<(u64, &str)> {
    let (number, kind) = name.split_once('.')?;
    let sequence = number.parse().ok()?;
    (format!("{sequence:020}") == number).then_some((sequence, kind))
}

fn read_segment_header(path: PathBuf, sequence: u64, identity: &Identity) -> Result<FoundSegment, WalError> {
    let file = File::open(&path).map_err(DiskFault::of("open", &path))?;
    let file_bytes = file.metadata().map_err(DiskFault::of("look at", &path))?.len();
    let mut block = [0; HEADER_BYTES];
    let decoded = match file.read_exact_at(&mut block, 0) {
        Ok(()) => SegmentHeader::decode(&block),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(BadHeader::Damaged("the file is shorter than its header"))
        }
        Err(error) => return Err(DiskFault::of("read", &path)(error).into()),
    };
    let (header, chain) = match decoded {
        Ok(decoded) => decoded,
        Err(BadHeader::Version(version)) => {
            return Err(WalError::Unsupported { file: path, what: format!("format version {version}") });
        }
        // A header is synced before its file gets its name, so no crash leaves a bad one.
        Err(BadHeader::Damaged(reason)) => {
            return Err(WalError::Corrupt { file: path, offset: 0, index: 0, reason: reason.into() });
        }
    };
    if header.identity != *identity {
        return Err(WalError::WrongIdentity { file: path, expected: *identity, found: header.identity });
    }
    if header.sequence != sequence {
        let reason = format!("the file is segment {} under another name", header.sequence);
        return Err(WalError::Corrupt { file: path, offset: 0, index: header.state.next_index, reason });
    }
    Ok(FoundSegment { path, header, chain, file_bytes, last_live: 0 })
}

/// Replays the log from the segments that were listed.
pub(super) fn recover(dir: &Path, mut listed: Vec<FoundSegment>) -> Result<Recovery, WalError> {
    // Segments are taken out of use oldest first, but a file system may make the later of two removals durable
    // first. So the log is the newest unbroken run; whether the run is all that is needed is checked below.
    let gap = listed.windows(2).rposition(|pair| pair[0].header.sequence + 1 != pair[1].header.sequence);
    let run = listed.split_off(gap.map_or(0, |before| before + 1));

    let mut replay = Replay { segments: run, state: LogState::EMPTY, entries: Vec::new() };
    let mut end = None;
    for at in 0..replay.segments.len() {
        end = Some(replay.segment(at)?);
    }
    let Replay { segments, state, entries } = replay;
    if entries.len() as u64 != state.next_index - state.first_index {
        return Err(WalError::Corrupt {
            file: dir.to_path_buf(),
            offset: 0,
            index: state.first_index,
            reason: format!(
                "the log needs entries {} to {}, but has only {} of them: its older segments are missing",
                state.first_index,
                state.next_index - 1,
                entries.len()
            ),
        });
    }
    Ok(Recovery { segments, obsolete: listed, state, entries, end })
}

/// The log as far as it was replayed.
struct Replay {
    segments: Vec<FoundSegment>,
    state: LogState,
    entries: Vec<Entry>,
}

impl Replay {
    /// Replays the segment at position `at` of the run.
    fn segment(&mut self, at: usize) -> Result<End, WalError> {
        let segment = &self.segments[at];
        let (path, header, chain) = (segment.path.clone(), segment.header, segment.chain);
        // A segment with a successor was synced to its end before the successor was created, and the successor says
        // where that end is. What lies beyond is a cut tail, or an older life of the file.
        let known_end = self.segments.get(at + 1).map(|next| next.header.previous);
        let limit = known_end.map_or(segment.file_bytes, |tail| tail.end.min(segment.file_bytes));

        if at == 0 || header.restarts {
            self.restart(header.state);
        } else if self.state != header.state {
            let reason = format!("its header continues {:?}, but the log has {:?}", header.state, self.state);
            return Err(self.corrupt(&path, 0, reason));
        }

        let mut window = Window::open(path.clone(), limit)?;
        let mut tail = Tail { end: HEADER_BYTES as u64, link: chain.seed };
        let mut synced_to = tail.end;
        let stop = loop {
            match window.record(chain, tail)? {
                Found::Record { header, crc, payload } => {
                    self.apply(at, &path, tail.end, header.kind, payload)?;
                    synced_to = synced_to.max(header.synced_to);
                    tail = Tail { end: tail.end + header.record_bytes(), link: crc };
                }
                Found::Seal => {
                    synced_to = tail.end;
                    break None;
                }
                Found::Nothing => break None,
                Found::Damage(reason) => break Some(reason),
            }
        };

        if let Some(known) = known_end {
            if tail != known {
                let reason = stop.unwrap_or("records are missing");
                let reason = format!(
                    "{reason}, but a later segment proves that this one was synced up to byte {}",
                    known.end
                );
                return Err(self.corrupt(&path, tail.end, reason));
            }
            return Ok(End { tail, synced_to: tail.end, unproven: Vec::new(), torn: None });
        }

        // A disk that returned the bytes of another place, once, makes a whole log look torn, or empty: what was acknowledged would be cut.
        let (second, unproven) = read_again(&path, chain, limit, synced_to)?;
        if second != tail {
            let reason = "the disk returned other bytes when it was read again".into();
            return Err(self.corrupt(&path, tail.end, reason));
        }
        let found = window.later_headers(chain, tail.end)?;
        if found.synced_to > tail.end && !planted(Mistake::CutCorruptMiddle) {
            let reason = format!(
                "{}, but a later record proves that the log was synced up to byte {}",
                stop.unwrap_or("a record is missing"),
                found.synced_to
            );
            return Err(self.corrupt(&path, tail.end, reason));
        }
        let torn = (stop.is_some() || found.after > 0).then_some(TornTail {
            file: path,
            offset: tail.end,
            later_records: found.after,
        });
        Ok(End { tail, synced_to, unproven, torn })
    }

    fn restart(&mut self, state: LogState) {
        self.state = state;
        self.entries.clear();
        for segment in &mut self.segments {
            segment.last_live = 0;
        }
    }

    fn apply(
        &mut self,
        at: usize,
        path: &Path,
        offset: u64,
        kind: u8,
        payload: Bytes,
    ) -> Result<(), WalError> {
        match codec::decode_payload(kind, &payload) {
            Ok(Decoded::HardState(hard_state)) => self.state.hard_state = hard_state,
            Ok(Decoded::Entries(entries)) => {
                let (first, last) = (entries[0].index, entries[0].index + entries.len() as u64 - 1);
                if first <= self.state.snapshot.index || first > self.state.next_index {
                    let reason = format!("entry {first} does not continue {:?}", self.state);
                    return Err(self.corrupt(path, offset, reason));
                }
                match self.entries.first() {
                    Some(oldest) if first > oldest.index => {
                        self.entries.truncate((first - oldest.index) as usize);
                    }
                    _ => self.entries.clear(),
                }
                self.entries.extend(entries);
                self.state.next_index = last + 1;
                for segment in &mut self.segments[..at] {
                    segment.last_live = segment.last_live.min(first - 1);
                }
                self.segments[at].last_live = last;
            }
            Ok(Decoded::Compaction(snapshot, first_index)) => {
                let state = LogState { snapshot, first_index, ..self.state };
                if !state.is_sound() {
                    let reason = format!("a compaction to {state:?} contradicts {:?}", self.state);
                    return Err(self.corrupt(path, offset, reason));
                }
                self.state = state;
                let dropped = self.entries.partition_point(|entry| entry.index < first_index);
                self.entries.drain(..dropped);
            }
            Err(BadPayload::Unknown(what)) => {
                return Err(WalError::Unsupported { file: path.to_path_buf(), what });
            }
            Err(BadPayload::Malformed) => {
                let reason = "a record with a right checksum contradicts itself".into();
                return Err(self.corrupt(path, offset, reason));
            }
        }
        Ok(())
    }

    fn corrupt(&self, path: &Path, offset: u64, reason: String) -> WalError {
        WalError::Corrupt { file: path.to_path_buf(), offset, index: self.state.next_index, reason }
    }
}

/// Reads a segment once more: where its unbroken run of records ends, and the bytes of those from `unproven_from` on.
fn read_again(
    path: &Path,
    chain: Chain,
    limit: u64,
    unproven_from: u64,
) -> Result<(Tail, Vec<u8>), WalError> {
    let mut window = Window::open(path.to_path_buf(), limit)?;
    let mut tail = Tail { end: HEADER_BYTES as u64, link: chain.seed };
    let mut unproven = Vec::new();
    while let Found::Record { header, crc, payload } = window.record(chain, tail)? {
        if tail.end >= unproven_from {
            unproven.extend_from_slice(&header.encode(chain, tail.end).0);
            unproven.extend_from_slice(&payload);
            unproven.resize(unproven.len() + codec::padded(payload.len()) - payload.len(), 0);
        }
        tail = Tail { end: tail.end + header.record_bytes(), link: crc };
    }
    Ok((tail, unproven))
}

/// What stands where the next record is expected.
enum Found {
    Record {
        header: RecordHeader,
        crc: u32,
        payload: Bytes,
    },
    /// A seal: the end, and all before it was synced.
    Seal,
    /// Zeroes, or the end of the file: the end.
    Nothing,
    /// Anything else.
    Damage(&'static str),
}

/// The headers of this life of the file that stand at or after an offset.
struct Later {
    /// Those that stand behind the offset, or on it with a payload that is not whole.
    after: usize,
    /// How far the segment was durable according to them.
    synced_to: u64,
}

/// Reads a file front to back through a buffer that follows.
struct Window {
    file: File,
    path: PathBuf,
    /// Nothing is read at or after this offset.
    limit: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn open(path: PathBuf, limit: u64) -> Result<Window, WalError> {
        let file = File::open(&path).map_err(DiskFault::of("open", &path))?;
        Ok(Window { file, path, limit, start: 0, bytes: Vec::new() })
    }

    /// Returns `length` bytes at `offset`, fewer only at the limit.
    fn get(&mut self, offset: u64, length: usize) -> Result<&[u8], WalError> {
        let left = self.limit.saturating_sub(offset);
        let length = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        let inside = offset >= self.start
            && offset - self.start <= self.bytes.len() as u64
            && self.bytes.len() - (offset - self.start) as usize >= length;
        if !inside {
            let ahead = length.max(WINDOW_BYTES).min(usize::try_from(left).unwrap_or(usize::MAX));
            self.bytes.resize(ahead, 0);
            self.bytes.shrink_to(WINDOW_BYTES);
            self.start = offset;
            self.file.read_exact_at(&mut self.bytes, offset).map_err(DiskFault::of("read", &self.path))?;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.bytes[from..from + length])
    }

    fn record(&mut self, chain: Chain, tail: Tail) -> Result<Found, WalError> {
        let offset = tail.end;
        let limit = self.limit;
        let bytes = self.get(offset, RECORD_HEADER_BYTES)?;
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Found::Nothing);
        }
        let Some((header, crc)) = RecordHeader::decode(bytes, chain, offset) else {
            return Ok(Found::Damage("the header of a record is damaged"));
        };
        if header.link != tail.link {
            return Ok(Found::Damage("a record does not continue the one before it"));
        }
        if header.kind == Kind::Seal as u8 {
            return Ok(Found::Seal);
        }
        if header.record_bytes() > limit - offset {
            return Ok(Found::Damage("a record reaches beyond the end of the file"));
        }
        let length = header.length as usize;
        // The header is proven genuine, and the record fits in the file: so the allocation is bounded.
        let payload = self.get(offset + RECORD_HEADER_BYTES as u64, codec::padded(length))?;
        if crc32c::crc32c(payload) != header.payload_crc {
            return Ok(Found::Damage("a record's content does not match its checksum"));
        }
        Ok(Found::Record { header, crc, payload: Bytes::copy_from_slice(&payload[..length]) })
    }

    /// Searches the rest of the file, from the end of the last good record on.
    fn later_headers(&mut self, chain: Chain, from: u64) -> Result<Later, WalError> {
        let mut later = Later { after: 0, synced_to: 0 };
        let mut offset = from;
        while offset + RECORD_HEADER_BYTES as u64 <= self.limit {
            let bytes = self.get(offset, WINDOW_BYTES)?;
            let last = bytes.len() - RECORD_HEADER_BYTES;
            for at in (0..=last).step_by(ALIGN) {
                let position = offset + at as u64;
                let candidate = &bytes[at..at + RECORD_HEADER_BYTES];
                if let Some((header, _)) = RecordHeader::decode(candidate, chain, position) {
                    later.synced_to = later.synced_to.max(header.synced_to);
                    let seals_the_end = position == from && header.kind == Kind::Seal as u8;
                    later.after += usize::from(!seals_the_end);
                }
            }
            offset += (last / ALIGN * ALIGN + ALIGN) as u64;
        }
        Ok(later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::types::{HardState, SnapshotMeta};

    const IDENTITY: Identity = Identity { cluster_id: [1; 16], node_id: 1 };

    /// Recovers a segment made of records, given as (kind, payload, change of the link).
    fn recover_records(records: &[(u8, &[u8], u32)]) -> Result<Recovery, WalError> {
        let previous = Tail { end: 0, link: 0 };
        let (identity, state) = (IDENTITY, LogState::EMPTY);
        let header = SegmentHeader {
            identity,
            incarnation: 6,
            sequence: 1,
            salt: 8,
            restarts: false,
            previous,
            state,
        };
        let (block, chain) = header.encode();
        let mut file = block.to_vec();
        let mut link = chain.seed;
        for (kind, payload, change) in records {
            let header = RecordHeader {
                kind: *kind,
                length: payload.len() as u32,
                payload_crc: crc32c::crc32c(payload),
                link: link ^ change,
                synced_to: HEADER_BYTES as u64,
            };
            let (bytes, crc) = header.encode(chain, file.len() as u64);
            file.extend_from_slice(&bytes);
            file.extend_from_slice(payload);
            link = crc;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("{:020}.wal", 1)), file).unwrap();
        recover(dir.path(), list(dir.path(), &IDENTITY)?.segments)
    }

    fn payload(payload: codec::Payload) -> Vec<u8> {
        let mut bytes = Vec::new();
        payload.encode(&mut bytes);
        bytes
    }

    #[test]
    fn a_record_that_does_not_continue_the_one_before_ends_the_log() {
        let terms = [1, 2, 3].map(|term| HardState { term, vote: None, commit: 0 });
        let payloads = terms.each_ref().map(|hard_state| payload(codec::Payload::HardState(hard_state)));
        let recovery = recover_records(&[(1, &payloads[0], 0), (1, &payloads[1], 0), (1, &payloads[2], 0)]);
        assert_eq!(recovery.unwrap().state.hard_state, terms[2]);
        let recovery = recover_records(&[(1, &payloads[0], 0), (1, &payloads[1], 1), (1, &payloads[2], 0)]);
        let recovery = recovery.unwrap();
        assert_eq!(recovery.state.hard_state, terms[0]);
        assert_eq!(recovery.end.unwrap().torn.unwrap().later_records, 2);
    }

    #[test]
    fn records_that_contradict_the_log_or_themselves_are_corrupt_despite_their_checksums() {
        let beyond = payload(codec::Payload::Compaction(SnapshotMeta { index: 1, term: 1 }, 1));
        let malformed = [0; 8];
        let gap = [2u64.to_le_bytes(), 1u64.to_le_bytes(), [0; 8], [0; 8]].concat();
        for (kind, payload) in [(3, &beyond[..]), (1, &malformed), (2, &gap), (2, &malformed)] {
            let error = recover_records(&[(kind, payload, 0)]).map(drop).unwrap_err();
            assert!(matches!(error, WalError::Corrupt { offset: 4096, index: 1, .. }), "{error}");
        }
    }

    #[test]
    fn a_record_of_a_newer_release_is_not_dropped_but_refused() {
        let error = recover_records(&[(77, &[0; 8], 0)]).map(drop).unwrap_err();
        assert!(matches!(&error, WalError::Unsupported { what, .. } if what.contains("77")), "{error}");
    }
}
