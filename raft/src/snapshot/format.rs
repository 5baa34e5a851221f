//! The bytes of a snapshot file, as specified in the parent module. Pure, but for the reader's source.

use std::io::{self, Read};

use crate::core::types::SnapshotMeta;
use crate::wal::Identity;

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const BLOCK_HEADER_BYTES: usize = 8;
pub(super) const FOOTER_BYTES: usize = 16;
/// The largest block that a reader takes, so that a damaged or hostile header cannot make it allocate more.
pub(super) const BLOCK_BYTES_MAX: u32 = 16 << 20;

const MAGIC: [u8; 8] = *b"SQUALSNP";
const VERSION: u32 = 2;

/// A snapshot file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Who took the snapshot; a file fetched from a peer keeps the peer's node id.
    pub(super) writer: Identity,
    pub(super) meta: SnapshotMeta,
    /// No block is larger.
    pub(super) block_bytes: u32,
}

/// Why bytes are no snapshot.
#[derive(Debug)]
pub(super) enum Bad {
    Version(u32),
    /// What is wrong, and where in the file.
    Damaged(u64, &'static str),
    Io(io::Error),
}

impl Header {
    /// Returns the header and its checksum, with which the blocks' checksums are seeded.
    pub(super) fn encode(&self) -> ([u8; HEADER_BYTES], u32) {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.block_bytes.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.writer.cluster_id);
        bytes[32..40].copy_from_slice(&self.writer.node_id.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.meta.index.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.meta.term.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<(Header, u32), Bad> {
        if !bytes.starts_with(&MAGIC) {
            return Err(Bad::Damaged(0, "it does not start as a snapshot does"));
        }
        let crc = crc32c::crc32c(&bytes[..60]);
        if crc != u32_at(bytes, 60) {
            return Err(Bad::Damaged(0, "the header's checksum does not match"));
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(Bad::Version(version));
        }
        let block_bytes = u32_at(bytes, 12);
        if block_bytes == 0 || block_bytes > BLOCK_BYTES_MAX {
            return Err(Bad::Damaged(12, "the block size is out of range"));
        }
        let mut cluster_id = [0; 16];
        cluster_id.copy_from_slice(&bytes[16..32]);
        let writer = Identity { cluster_id, node_id: u64_at(bytes, 32) };
        let meta = SnapshotMeta { index: u64_at(bytes, 40), term: u64_at(bytes, 48) };
        Ok((Header { writer, meta, block_bytes }, crc))
    }
}

/// The checksum of block `number`, from 0: no block passes in the place of another, or in another snapshot.
fn block_crc(header_crc: u32, number: u64, data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(header_crc, &number.to_le_bytes()), data)
}

/// Makes the pieces that follow a header, and knows the checksum of all pieces so far.
pub(super) struct Encoder {
    header_crc: u32,
    file_crc: u32,
    blocks: u64,
    body_bytes: u64,
}

impl Encoder {
    pub(super) fn new(header: &Header) -> ([u8; HEADER_BYTES], Encoder) {
        let (bytes, header_crc) = header.encode();
        (bytes, Encoder { header_crc, file_crc: crc32c::crc32c(&bytes), blocks: 0, body_bytes: 0 })
    }

    /// Completes a block in place: `block` has room for its header in front of at least one byte.
    pub(super) fn block(&mut self, block: &mut [u8]) {
        let (header, data) = block.split_at_mut(BLOCK_HEADER_BYTES);
        header[..4].copy_from_slice(&(data.len() as u32).to_le_bytes());
        header[4..].copy_from_slice(&block_crc(self.header_crc, self.blocks, data).to_le_bytes());
        self.blocks += 1;
        self.body_bytes += data.len() as u64;
        self.file_crc = crc32c::crc32c_append(self.file_crc, block);
    }

    pub(super) fn footer(&self) -> [u8; FOOTER_BYTES] {
        let mut footer = [0; FOOTER_BYTES];
        footer[4..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        let crc = crc32c::crc32c_append(self.file_crc, &footer[..12]);
        footer[12..].copy_from_slice(&crc.to_le_bytes());
        footer
    }
}

/// Reads blocks, and verifies each before it is handed out.
pub(super) struct Decoder<R> {
    source: R,
    header: Header,
    header_crc: u32,
    file_crc: u32,
    blocks: u64,
    body_bytes: u64,
    /// Of the next byte in the source.
    offset: u64,
}

impl<R: Read> Decoder<R> {
    pub(super) fn new(mut source: R) -> Result<Decoder<R>, Bad> {
        let mut bytes = [0; HEADER_BYTES];
        fill(&mut source, &mut bytes, 0, "the file is shorter than its header")?;
        let (header, header_crc) = Header::decode(&bytes)?;
        let file_crc = crc32c::crc32c(&bytes);
        let offset = HEADER_BYTES as u64;
        Ok(Decoder { source, header, header_crc, file_crc, blocks: 0, body_bytes: 0, offset })
    }

    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    /// Reads the next block into `data`. Returns false at the end, which was verified, too.
    pub(super) fn next_block(&mut self, data: &mut Vec<u8>) -> Result<bool, Bad> {
        let start = self.offset;
        let mut prefix = [0; BLOCK_HEADER_BYTES];
        fill(&mut self.source, &mut prefix, start, "the file ends without a footer")?;
        let length = u32_at(&prefix, 0);
        if length == 0 {
            return self.footer(prefix).map(|()| false);
        }
        if length > self.header.block_bytes {
            return Err(Bad::Damaged(start, "a block is larger than the header allows"));
        }
        data.resize(length as usize, 0);
        fill(&mut self.source, data, start, "the file ends in the middle of a block")?;
        if u32_at(&prefix, 4) != block_crc(self.header_crc, self.blocks, data) {
            return Err(Bad::Damaged(start, "a block does not match its checksum"));
        }
        self.file_crc = crc32c::crc32c_append(crc32c::crc32c_append(self.file_crc, &prefix), data);
        self.blocks += 1;
        self.body_bytes += u64::from(length);
        self.offset += (BLOCK_HEADER_BYTES + data.len()) as u64;
        Ok(true)
    }

    fn footer(&mut self, prefix: [u8; BLOCK_HEADER_BYTES]) -> Result<(), Bad> {
        let start = self.offset;
        let mut footer = [0; FOOTER_BYTES];
        footer[..BLOCK_HEADER_BYTES].copy_from_slice(&prefix);
        fill(&mut self.source, &mut footer[BLOCK_HEADER_BYTES..], start, "the file ends in its footer")?;
        if u32_at(&footer, 12) != crc32c::crc32c_append(self.file_crc, &footer[..12]) {
            return Err(Bad::Damaged(start, "the file does not match its checksum"));
        }
        if u64_at(&footer, 4) != self.body_bytes {
            return Err(Bad::Damaged(start, "the file has not the length that it claims"));
        }
        let mut beyond = [0];
        match self.source.read(&mut beyond) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Bad::Damaged(start + FOOTER_BYTES as u64, "the file goes on behind its footer")),
            Err(error) => Err(Bad::Io(error)),
        }
    }
}

fn fill(source: &mut impl Read, bytes: &mut [u8], offset: u64, short: &'static str) -> Result<(), Bad> {
    source.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Bad::Damaged(offset, short),
        _ => Bad::Io(error),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        writer: Identity { cluster_id: [9; 16], node_id: 4 },
        meta: SnapshotMeta { index: 12, term: 3 },
        block_bytes: 8,
    };

    fn file(blocks: &[&[u8]]) -> Vec<u8> {
        let (header, mut encoder) = Encoder::new(&HEADER);
        let mut file = header.to_vec();
        for data in blocks {
            let mut block = [&[0; BLOCK_HEADER_BYTES], *data].concat();
            encoder.block(&mut block);
            file.extend(block);
        }
        file.extend(encoder.footer());
        file
    }

    fn read(file: &[u8]) -> Result<Vec<u8>, Bad> {
        let mut decoder = Decoder::new(file)?;
        assert_eq!(*decoder.header(), HEADER);
        let (mut body, mut block) = (Vec::new(), Vec::new());
        while decoder.next_block(&mut block)? {
            body.extend_from_slice(&block);
        }
        Ok(body)
    }

    #[test]
    fn a_file_round_trips_and_no_cut_flip_or_addition_passes() {
        let bodies: [&[&[u8]]; 4] = [&[], &[b"x"], &[b"12345678", b"90"], &[b"same", b"same"]];
        for blocks in bodies {
            let file = file(blocks);
            assert_eq!(read(&file).unwrap(), blocks.concat());
            for length in 0..file.len() {
                assert!(matches!(read(&file[..length]), Err(Bad::Damaged(..))), "cut at {length}");
            }
            for bit in 0..file.len() * 8 {
                let mut flipped = file.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(matches!(read(&flipped), Err(Bad::Damaged(..))), "bit {bit}");
            }
            assert!(read(&[&file[..], b"\0"].concat()).is_err());
        }
    }

    #[test]
    fn a_block_in_the_place_of_another_does_not_pass() {
        let file = file(&[b"one1", b"two2"]);
        let (first, second) = (HEADER_BYTES..HEADER_BYTES + 12, HEADER_BYTES + 12..HEADER_BYTES + 24);
        let swapped =
            [&file[..first.start], &file[second.clone()], &file[first], &file[second.end..]].concat();
        assert!(matches!(read(&swapped), Err(Bad::Damaged(at, _)) if at == HEADER_BYTES as u64));
    }

    #[test]
    fn a_later_version_is_told_apart_from_damage() {
        let (mut bytes, _) = HEADER.encode();
        bytes[8] = 3;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(Header::decode(&bytes), Err(Bad::Version(3))));
    }
}
