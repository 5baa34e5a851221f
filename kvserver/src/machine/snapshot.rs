//! The snapshot of the state machine as a stream of bytes.
//!
//! ```text
//! magic      "SQUALLKV"
//! version    u32, little-endian: 2
//! log time   varint, milliseconds since the Unix epoch
//! records    see store/snapshot.rs
//! sessions   see session.rs
//! checksum   CRC-32C of all of the above, u32, little-endian
//! ```
//!
//! Equal states are equal bytes. The stream must end where the snapshot does.

use std::io::{self, BufWriter, Read, Write};

use super::{KvMachine, MachineOptions};
use crate::codec;
use crate::session::{Sessions, SessionsView};
use crate::store::{SnapshotError, Store, StoreView};
use squall_raft::planted::{Mistake, planted};

const MAGIC: [u8; 8] = *b"SQUALLKV";
const VERSION: u32 = 2;
const BUFFER_BYTES: usize = 64 * 1024;

/// The state as it was at one moment. See [`KvMachine::view`].
#[derive(Clone, Debug)]
pub struct MachineView {
    store: StoreView,
    sessions: SessionsView,
    log_time_ms: u64,
}

impl MachineView {
    pub(super) fn new(store: StoreView, sessions: SessionsView, log_time_ms: u64) -> Self {
        Self { store, sessions, log_time_ms }
    }

    /// Writes the snapshot, and lets go of the state as it is written.
    ///
    /// # Errors
    /// Those of `out`.
    ///
    /// # Blocking
    /// As `out` does; it is written to in pieces of 64 KiB or more.
    pub fn write_snapshot(self, out: &mut dyn Write) -> io::Result<()> {
        let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, ChecksumWriter { out, checksum: 0 });
        buffered.write_all(&MAGIC)?;
        buffered.write_all(&VERSION.to_le_bytes())?;
        let mut log_time = Vec::new();
        codec::put_varint(&mut log_time, self.log_time_ms);
        buffered.write_all(&log_time)?;
        self.store.write_records(&mut buffered)?;
        self.sessions.write(&mut buffered)?;
        let ChecksumWriter { out, checksum } =
            buffered.into_inner().map_err(io::IntoInnerError::into_error)?;
        out.write_all(&checksum.to_le_bytes())
    }
}

impl KvMachine {
    /// Reads a snapshot, up to the end of `input`, into a new machine.
    ///
    /// # Errors
    /// [`SnapshotError`] if the source fails, or holds anything but one whole, undamaged snapshot.
    ///
    /// # Blocking
    /// As `input` does.
    pub fn read_snapshot(options: MachineOptions, input: &mut dyn Read) -> Result<Self, SnapshotError> {
        let mut input =
            ChecksumReader { input, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, summed: 0, checksum: 0 };
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let mut word = [0; 4];
        input.read_exact(&mut word)?;
        let found = u32::from_le_bytes(word);
        if found != VERSION {
            return Err(SnapshotError::UnknownVersion { found, known: VERSION });
        }
        let log_time_ms = codec::read_varint(&mut input)?;
        let store = Store::read_records(options.hash_key, &mut input)?;
        let mut sessions = Sessions::read(options.sessions, &mut input)?;
        if planted(Mistake::SessionsLostInSnapshot) {
            sessions = Sessions::new(options.sessions);
        }
        let computed = input.checksum();
        input.read_exact(&mut word)?;
        let stored = u32::from_le_bytes(word);
        if stored != computed {
            return Err(SnapshotError::ChecksumMismatch { computed, stored });
        }
        if input.read(&mut word)? != 0 {
            return Err(SnapshotError::Damaged("bytes after the end"));
        }
        Ok(Self { options, store, sessions, log_time_ms })
    }
}

/// Sums what is written through it.
struct ChecksumWriter<'a> {
    out: &'a mut dyn Write,
    checksum: u32,
}

impl Write for ChecksumWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.checksum = crc32c::crc32c_append(self.checksum, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Buffers its input, and sums what is taken from the buffer: in large pieces, because most reads are of a
/// few bytes.
struct ChecksumReader<'a> {
    input: &'a mut dyn Read,
    buffer: Vec<u8>,
    /// What is left to be taken is `buffer[start..end]`.
    start: usize,
    end: usize,
    /// What was taken but is not yet in the checksum is `buffer[summed..start]`.
    summed: usize,
    checksum: u32,
}

impl ChecksumReader<'_> {
    /// The checksum of everything taken so far.
    fn checksum(&mut self) -> u32 {
        self.checksum = crc32c::crc32c_append(self.checksum, &self.buffer[self.summed..self.start]);
        self.summed = self.start;
        self.checksum
    }
}

impl Read for ChecksumReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            self.checksum();
            let end = self.input.read(&mut self.buffer)?;
            (self.start, self.end, self.summed) = (0, end, 0);
        }
        let taken = out.len().min(self.end - self.start);
        out[..taken].copy_from_slice(&self.buffer[self.start..self.start + taken]);
        self.start += taken;
        Ok(taken)
    }
}
