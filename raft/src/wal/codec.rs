//! The bytes of the log: segment headers, record headers and payloads, as specified in the parent module.
//!
//! Pure: no file is touched here. Whatever comes from a disk is decoded with every length checked.

use bytes::Bytes;

use super::Identity;
use crate::core::types::{Entry, EntryKind, HardState, Index, SnapshotMeta};

/// Size of a segment's header: a page, so that no record shares a sector with it.
pub(super) const HEADER_BYTES: usize = 4096;
/// Size of a record's header.
pub(super) const RECORD_HEADER_BYTES: usize = 32;
/// Records start at multiples of this, so that a search for them has few places to look at.
pub(super) const ALIGN: usize = 8;
/// The largest entry; keeps every length of a record within its 32 bits.
pub(super) const ENTRY_BYTES_MAX: usize = 1 << 30;
/// A batch of entries is divided into records of about this size.
const RECORD_BYTES_TARGET: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"SQUALWAL";
const VERSION: u32 = 2;
const HEADER_CRC_AT: usize = HEADER_BYTES - 4;
const ENTRIES_PREFIX_BYTES: usize = 16;
const ENTRY_PREFIX_BYTES: usize = 16;

/// What the log says, apart from its entries: repeated in each segment's header, so that older segments can go.
///
/// Invariant: `1 <= first_index <= snapshot.index + 1 <= next_index`; checked when a header or a record is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LogState {
    pub(super) hard_state: HardState,
    pub(super) snapshot: SnapshotMeta,
    /// The first entry that must be in the log.
    pub(super) first_index: Index,
    /// The index after the last entry.
    pub(super) next_index: Index,
}

impl LogState {
    pub(super) const EMPTY: LogState = LogState {
        hard_state: HardState { term: 0, vote: None, commit: 0 },
        snapshot: SnapshotMeta { index: 0, term: 0 },
        first_index: 1,
        next_index: 1,
    };

    pub(super) fn is_sound(&self) -> bool {
        let after_snapshot = self.snapshot.index.checked_add(1);
        self.first_index >= 1
            && after_snapshot.is_some_and(|after| self.first_index <= after && after <= self.next_index)
    }
}

/// Where a segment's records end, and the link that the next record there would carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) end: u64,
    pub(super) link: u32,
}

/// A segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) identity: Identity,
    /// Random, never 0, drawn when the log was created; the same in all segments.
    pub(super) incarnation: u64,
    pub(super) sequence: u64,
    /// Random, never 0; every record of this segment repeats it.
    pub(super) salt: u32,
    /// Set when the log starts anew here, with `state`, whatever the older segments say.
    pub(super) restarts: bool,
    /// The end of the segment before; all zero in a directory's first segment.
    pub(super) previous: Tail,
    pub(super) state: LogState,
}

/// Why a block is not a segment's header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// A checksum or a field is wrong.
    Damaged(&'static str),
    /// A version of the format that is not known here.
    Version(u32),
}

/// What ties records to one segment in one life of its file: a stale record of a recycled file has another
/// salt and another seed, 64 bits in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) salt: u32,
    /// The checksum of the segment's header; also the link of its first record.
    pub(super) seed: u32,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> (Box<[u8; HEADER_BYTES]>, Chain) {
        let mut fields = Vec::with_capacity(160);
        fields.extend_from_slice(&MAGIC);
        put_u32(&mut fields, VERSION);
        put_u32(&mut fields, self.salt);
        fields.extend_from_slice(&self.identity.cluster_id);
        put_u64(&mut fields, self.identity.node_id);
        put_u64(&mut fields, self.incarnation);
        put_u64(&mut fields, self.sequence);
        put_u32(&mut fields, u32::from(self.restarts));
        put_u32(&mut fields, self.previous.link);
        put_u64(&mut fields, self.previous.end);
        put_hard_state(&mut fields, &self.state.hard_state);
        put_u64(&mut fields, self.state.snapshot.index);
        put_u64(&mut fields, self.state.snapshot.term);
        put_u64(&mut fields, self.state.first_index);
        put_u64(&mut fields, self.state.next_index);

        let mut block = Box::new([0; HEADER_BYTES]);
        block[..fields.len()].copy_from_slice(&fields);
        let seed = crc32c::crc32c(&block[..HEADER_CRC_AT]);
        block[HEADER_CRC_AT..].copy_from_slice(&seed.to_le_bytes());
        (block, Chain { salt: self.salt, seed })
    }

    pub(super) fn decode(block: &[u8; HEADER_BYTES]) -> Result<(SegmentHeader, Chain), BadHeader> {
        if !block.starts_with(&MAGIC) {
            return Err(BadHeader::Damaged("it does not start as a segment of this log does"));
        }
        let (fields, crc) = block.split_at(HEADER_CRC_AT);
        let seed = crc32c::crc32c(fields);
        if seed.to_le_bytes() != crc {
            return Err(BadHeader::Damaged("the header's checksum does not match"));
        }
        let mut fields = Fields(&fields[MAGIC.len()..]);
        let header = SegmentHeader::decode_fields(&mut fields)
            .ok_or(BadHeader::Damaged("the header contradicts itself"))??;
        Ok((header, Chain { salt: header.salt, seed }))
    }

    fn decode_fields(fields: &mut Fields) -> Option<Result<SegmentHeader, BadHeader>> {
        let version = fields.u32()?;
        if version != VERSION {
            return Some(Err(BadHeader::Version(version)));
        }
        let salt = fields.u32()?;
        let identity = Identity { cluster_id: fields.take(16)?.try_into().ok()?, node_id: fields.u64()? };
        let incarnation = fields.u64()?;
        let sequence = fields.u64()?;
        let restarts = fields.u32()? != 0;
        let link = fields.u32()?;
        let previous = Tail { end: fields.u64()?, link };
        let state = LogState {
            hard_state: fields.hard_state()?,
            snapshot: SnapshotMeta { index: fields.u64()?, term: fields.u64()? },
            first_index: fields.u64()?,
            next_index: fields.u64()?,
        };
        let header = SegmentHeader { identity, incarnation, sequence, salt, restarts, previous, state };
        (state.is_sound() && incarnation != 0).then_some(Ok(header))
    }
}

/// What a record carries. The numbers are the format's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    HardState = 1,
    Entries = 2,
    Compaction = 3,
    /// Not part of the log: stands where the next record will, and proves that all before it was synced.
    Seal = 4,
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    /// The kind's number, which may be one that only a newer release knows.
    pub(super) kind: u8,
    /// Bytes of payload, without padding.
    pub(super) length: u32,
    /// Covers the payload and its padding.
    pub(super) payload_crc: u32,
    /// The checksum of the record before, or of the segment's header.
    pub(super) link: u32,
    /// Everything in this segment before this offset was durable when the record was written.
    pub(super) synced_to: u64,
}

impl RecordHeader {
    /// Returns the header and its checksum, which is the next record's link.
    pub(super) fn encode(&self, chain: Chain, offset: u64) -> ([u8; RECORD_HEADER_BYTES], u32) {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&chain.salt.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.link.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.synced_to.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28] = self.kind;
        let crc = header_crc(&bytes, chain, offset);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    /// Returns the header and its checksum if these bytes were written as a header at `offset` of this segment
    /// in this life of its file; no other record need be whole to tell.
    pub(super) fn decode(bytes: &[u8], chain: Chain, offset: u64) -> Option<(RecordHeader, u32)> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.try_into().ok()?;
        let mut fields = Fields(bytes);
        // Compared first, for it is what makes the search for headers fast.
        if fields.u32()? != chain.salt {
            return None;
        }
        let crc = fields.u32()?;
        if crc != header_crc(bytes, chain, offset) {
            return None;
        }
        let payload_crc = fields.u32()?;
        let link = fields.u32()?;
        let synced_to = fields.u64()?;
        let length = fields.u32()?;
        let kind = fields.take(1)?[0];
        Some((RecordHeader { kind, length, payload_crc, link, synced_to }, crc))
    }

    /// Bytes that the record takes in the file.
    pub(super) fn record_bytes(&self) -> u64 {
        (RECORD_HEADER_BYTES + padded(self.length as usize)) as u64
    }
}

/// The checksum of a record's header, all of it but the checksum's own field.
fn header_crc(bytes: &[u8; RECORD_HEADER_BYTES], chain: Chain, offset: u64) -> u32 {
    let crc = crc32c::crc32c_append(chain.seed, &offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, &bytes[..4]), &bytes[8..])
}

/// `length` rounded up to a record boundary.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGN)
}

/// A payload, in memory or as it was read.
#[derive(Debug)]
pub(super) enum Payload<'a> {
    HardState(&'a HardState),
    Entries(&'a [Entry]),
    Compaction(SnapshotMeta, Index),
}

impl Payload<'_> {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Payload::HardState(_) => Kind::HardState,
            Payload::Entries(_) => Kind::Entries,
            Payload::Compaction(..) => Kind::Compaction,
        }
    }

    /// Bytes without padding.
    pub(super) fn length(&self) -> usize {
        match self {
            Payload::HardState(_) | Payload::Compaction(..) => 24,
            Payload::Entries(entries) => {
                ENTRIES_PREFIX_BYTES + entries.iter().map(entry_bytes).sum::<usize>()
            }
        }
    }

    /// Appends the payload, without padding.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Payload::HardState(hard_state) => put_hard_state(out, hard_state),
            Payload::Compaction(snapshot, first_index) => {
                put_u64(out, snapshot.index);
                put_u64(out, snapshot.term);
                put_u64(out, *first_index);
            }
            Payload::Entries(entries) => {
                put_u64(out, entries.first().map_or(0, |entry| entry.index));
                put_u64(out, entries.len() as u64);
                for entry in *entries {
                    put_u64(out, entry.term);
                    put_u32(out, entry.data.len() as u32);
                    put_u32(out, entry_kind_number(entry.kind));
                    out.extend_from_slice(&entry.data);
                }
            }
        }
    }
}

/// A payload as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    HardState(HardState),
    /// At least one entry, with consecutive indices from 1 up; the data share one allocation.
    Entries(Vec<Entry>),
    Compaction(SnapshotMeta, Index),
}

/// Why a payload with the right checksum is no payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadPayload {
    /// It contradicts itself.
    Malformed,
    /// A kind of record or of entry that is not known here.
    Unknown(String),
}

/// Decodes a payload whose checksum was found right.
pub(super) fn decode_payload(kind: u8, payload: &Bytes) -> Result<Decoded, BadPayload> {
    let mut fields = Fields(payload);
    let decoded = match kind {
        k if k == Kind::HardState as u8 => fields.hard_state().map(Decoded::HardState),
        k if k == Kind::Compaction as u8 => decode_compaction(&mut fields),
        k if k == Kind::Entries as u8 => return decode_entries(payload),
        other => return Err(BadPayload::Unknown(format!("a record of kind {other}"))),
    };
    decoded.filter(|_| fields.0.is_empty()).ok_or(BadPayload::Malformed)
}

fn decode_compaction(fields: &mut Fields) -> Option<Decoded> {
    let snapshot = SnapshotMeta { index: fields.u64()?, term: fields.u64()? };
    Some(Decoded::Compaction(snapshot, fields.u64()?))
}

fn decode_entries(payload: &Bytes) -> Result<Decoded, BadPayload> {
    let mut fields = Fields(payload);
    let (first, count) = fields.u64().zip(fields.u64()).ok_or(BadPayload::Malformed)?;
    // The last index and the one after it must be numbers, or "the next index" would overflow.
    let past_last = first.checked_add(count).filter(|_| first >= 1 && count >= 1);
    if past_last.is_none() {
        return Err(BadPayload::Malformed);
    }
    let mut entries = Vec::with_capacity((count as usize).min(payload.len() / ENTRY_PREFIX_BYTES));
    for index in first..first + count {
        let (term, length, kind) = (|| Some((fields.u64()?, fields.u32()? as usize, fields.u32()?)))()
            .ok_or(BadPayload::Malformed)?;
        let start = payload.len() - fields.0.len();
        fields.take(length).ok_or(BadPayload::Malformed)?;
        let kind = entry_kind(kind).ok_or_else(|| BadPayload::Unknown(format!("an entry of kind {kind}")))?;
        entries.push(Entry { index, term, kind, data: payload.slice(start..start + length) });
    }
    if fields.0.is_empty() { Ok(Decoded::Entries(entries)) } else { Err(BadPayload::Malformed) }
}

/// Divides a batch into parts that make records of a moderate size; an entry is never divided.
pub(super) fn record_batches(mut entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = entries.iter().take_while(|entry| {
            bytes += entry_bytes(entry);
            bytes <= RECORD_BYTES_TARGET
        });
        let count = fitting.count().max(1).min(entries.len());
        let (batch, rest) = entries.split_at(count);
        entries = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

fn entry_bytes(entry: &Entry) -> usize {
    ENTRY_PREFIX_BYTES + entry.data.len()
}

fn entry_kind_number(kind: EntryKind) -> u32 {
    match kind {
        EntryKind::Command => 0,
        EntryKind::Noop => 1,
        EntryKind::Members => 2,
    }
}

fn entry_kind(number: u32) -> Option<EntryKind> {
    match number {
        0 => Some(EntryKind::Command),
        1 => Some(EntryKind::Noop),
        2 => Some(EntryKind::Members),
        _ => None,
    }
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_hard_state(out: &mut Vec<u8>, hard_state: &HardState) {
    put_u64(out, hard_state.term);
    put_u64(out, hard_state.vote.unwrap_or(0));
    put_u64(out, hard_state.commit);
}

/// Takes little-endian fields off the front; `None` when they run out.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn hard_state(&mut self) -> Option<HardState> {
        let term = self.u64()?;
        let vote = Some(self.u64()?).filter(|vote| *vote != 0);
        Some(HardState { term, vote, commit: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: Chain = Chain { salt: 0x1234_5678, seed: 77 };

    fn header() -> SegmentHeader {
        SegmentHeader {
            identity: Identity { cluster_id: *b"sixteen bytes id", node_id: 3 },
            incarnation: 1 << 40,
            sequence: 9,
            salt: 5,
            restarts: true,
            previous: Tail { end: 4128, link: 99 },
            state: LogState {
                hard_state: HardState { term: 7, vote: Some(2), commit: 40 },
                snapshot: SnapshotMeta { index: 41, term: 6 },
                first_index: 30,
                next_index: 50,
            },
        }
    }

    fn entry(index: Index, bytes: usize) -> Entry {
        Entry { index, term: index / 2, kind: EntryKind::Command, data: vec![index as u8; bytes].into() }
    }

    fn encoded(payload: &Payload) -> Bytes {
        let mut out = Vec::new();
        payload.encode(&mut out);
        assert_eq!(out.len(), payload.length());
        out.into()
    }

    #[test]
    fn segment_header_round_trips_and_any_flipped_bit_is_seen() {
        let (mut block, chain) = header().encode();
        assert_eq!(SegmentHeader::decode(&block), Ok((header(), chain)));
        for bit in 0..HEADER_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&block).is_err(), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_header_of_a_later_version_is_told_apart_from_damage() {
        let (mut block, _) = header().encode();
        block[8] = 3;
        let crc = crc32c::crc32c(&block[..HEADER_CRC_AT]);
        block[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block), Err(BadHeader::Version(3)));
    }

    #[test]
    fn record_header_belongs_to_one_offset_of_one_segment() {
        let header = RecordHeader { kind: 2, length: 10, payload_crc: 1, link: 2, synced_to: 4096 };
        let (bytes, crc) = header.encode(CHAIN, 4128);
        assert_eq!(RecordHeader::decode(&bytes, CHAIN, 4128), Some((header, crc)));
        assert_eq!(RecordHeader::decode(&bytes, CHAIN, 4136), None);
        assert_eq!(RecordHeader::decode(&bytes, Chain { seed: 78, ..CHAIN }, 4128), None);
        assert_eq!(RecordHeader::decode(&bytes, Chain { salt: 1, ..CHAIN }, 4128), None);
        for bit in 0..RECORD_HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped, CHAIN, 4128), None, "bit {bit}");
        }
    }

    #[test]
    fn payloads_round_trip() {
        let hard_state = HardState { term: 3, vote: None, commit: 1 };
        let entries = [
            entry(4, 3),
            Entry { index: 5, term: 3, kind: EntryKind::Noop, data: Bytes::new() },
            entry(6, 100),
        ];
        let snapshot = SnapshotMeta { index: 8, term: 2 };
        for (payload, expected) in [
            (Payload::HardState(&hard_state), Decoded::HardState(hard_state)),
            (Payload::Entries(&entries), Decoded::Entries(entries.to_vec())),
            (Payload::Compaction(snapshot, 7), Decoded::Compaction(snapshot, 7)),
        ] {
            let bytes = encoded(&payload);
            assert_eq!(decode_payload(payload.kind() as u8, &bytes).as_ref(), Ok(&expected));
            for length in 0..bytes.len() {
                let cut = bytes.slice(..length);
                assert_eq!(decode_payload(payload.kind() as u8, &cut), Err(BadPayload::Malformed));
            }
        }
    }

    #[test]
    fn entries_that_claim_impossible_numbers_are_malformed() {
        for (first, count) in [(0, 1), (1, 0), (u64::MAX, 1), (2, u64::MAX), (1, 1 << 40)] {
            let mut payload = Vec::new();
            put_u64(&mut payload, first);
            put_u64(&mut payload, count);
            assert_eq!(
                decode_payload(Kind::Entries as u8, &payload.into()),
                Err(BadPayload::Malformed),
                "{first} {count}"
            );
        }
    }

    #[test]
    fn unknown_kinds_are_named() {
        let unknown_record = decode_payload(9, &Bytes::new());
        assert_eq!(unknown_record, Err(BadPayload::Unknown("a record of kind 9".into())));
        let mut payload = encoded(&Payload::Entries(&[entry(1, 0)])).to_vec();
        payload[28] = 200;
        let unknown_entry = decode_payload(Kind::Entries as u8, &payload.into());
        assert_eq!(unknown_entry, Err(BadPayload::Unknown("an entry of kind 200".into())));
    }

    #[test]
    fn batches_are_divided_without_losing_or_dividing_entries() {
        let entries: Vec<Entry> = [10, 600_000, 600_000, 3 << 20, 5, 5]
            .iter()
            .zip(1..)
            .map(|(bytes, index)| entry(index, *bytes))
            .collect();
        let batches: Vec<&[Entry]> = record_batches(&entries).collect();
        assert_eq!(batches.iter().map(|batch| batch.len()).collect::<Vec<_>>(), [2, 1, 1, 2]);
        assert_eq!(batches.concat(), entries);
        assert_eq!(record_batches(&[]).count(), 0);
    }
}
