//! Snapshot files: the state of the state machine at one index, written, verified, sent and received as files.
//!
//! Owns the directory's files and nothing else. It must not know what a snapshot contains or when one is due. A
//! [`SnapshotStore`] is shared: one activity writes a snapshot while others send or receive some.
//!
//! # Files
//!
//! | name | what it is |
//! |---|---|
//! | `snapshot.lock` | held with `flock` while the store is open; never removed |
//! | `snapshot-INDEX-TERM.snap` | a snapshot: whole, and durable before it had this name |
//! | `snapshot-*.tmp` | being written or received; removed when given up, or at the next open |
//!
//! # Format, version 2
//!
//! Numbers are little-endian; every byte is covered by a checksum that is verified when it is read.
//!
//! | bytes | field |
//! |---|---|
//! | 8, 4 | magic `SQUALSNP`, version |
//! | 4 | no block has more bytes than this |
//! | 16, 8 | cluster id, id of the node that wrote it |
//! | 8, 8 | index, term |
//! | 4, 4 | zeroes, CRC-32C of all before |
//! | | **blocks**, each: |
//! | 4, 4 | length, not 0; CRC-32C of the data, seeded with the header's CRC and the block's number from 0 (8 bytes) |
//! | length | data, which begin, all blocks taken together, with the group's members: length (4), configuration; then the state |
//! | | **footer**: |
//! | 4, 8 | 0, length of all data |
//! | 4 | CRC-32C of the whole file before |
//!
//! A file is sent to a peer as it is. So the node id in it says who wrote it, and only the cluster id is checked.
//!
//! # What a crash leaves
//!
//! | crash | found | verdict |
//! |---|---|---|
//! | while a snapshot is written or received | a `.tmp` file | removed at the next open |
//! | between the sync and the rename becoming durable | the `.tmp` file or the whole snapshot | removed, or valid |
//! | while old ones are removed | some of them | older ones are of no harm |
//!
//! So a snapshot that does not verify was damaged after it was written. It is reported
//! ([`SnapshotError::Corrupt`]), never skipped or removed: an older one is of use only if the log still reaches
//! back to it, which the caller knows ([`SnapshotStore::list`], `Recovered::entries_after`).

mod error;
mod format;

#[cfg(test)]
mod crash_tests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::Membership;
use crate::core::types::SnapshotMeta;
use crate::planted::{Mistake, planted};
use crate::wal::Identity;
use crate::wal::disk::{DirLock, Disk, DiskFault, OsDisk, create_dir_durably, file_names};
pub use error::SnapshotError;
use format::{BLOCK_BYTES_MAX, BLOCK_HEADER_BYTES, Bad, Decoder, Encoder, Header};

const LOCK_NAME: &str = "snapshot.lock";
/// The longest configuration that a reader takes.
const MEMBERS_BYTES_MAX: u32 = 1 << 20;
/// An unfinished file is synced each time it has grown by this: one sync of a large file at its end would keep the
/// disk from the log's small ones for as long as it takes.
const SYNC_EVERY_BYTES: u64 = 8 << 20;

/// Sizes of snapshot files.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotOptions {
    /// Data are checksummed, and buffered, in blocks of this size; from 1 byte to 16 MiB, values beyond are moved
    /// into this range. Default 1 MiB. Files of any other block size can be read.
    pub block_bytes: u32,
}

impl Default for SnapshotOptions {
    fn default() -> SnapshotOptions {
        SnapshotOptions { block_bytes: 1 << 20 }
    }
}

/// A directory of snapshots.
pub struct SnapshotStore {
    directory: Arc<Directory>,
    identity: Identity,
    options: SnapshotOptions,
    /// Makes the names of unfinished files distinct.
    unfinished: AtomicU64,
}

struct Directory {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    _lock: DirLock,
}

impl SnapshotStore {
    /// Opens the snapshots in `dir`, or creates the directory. Removes what a crash left unfinished.
    ///
    /// # Blocking
    ///
    /// Reads the files' headers; verifies no snapshot.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::WrongIdentity`] and [`SnapshotError::Locked`] leave the directory as it was. A damaged
    /// snapshot is no error here.
    pub fn open(
        dir: &Path,
        identity: Identity,
        options: SnapshotOptions,
    ) -> Result<SnapshotStore, SnapshotError> {
        SnapshotStore::open_on(Arc::new(OsDisk), dir, identity, options)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: SnapshotOptions,
    ) -> Result<SnapshotStore, SnapshotError> {
        for meta in list(dir)? {
            let file = dir.join(file_name(meta));
            // Any other trouble with a file is reported when that snapshot is asked for.
            if let Err(error @ SnapshotError::WrongIdentity { .. }) = open_file(&file, &identity, meta) {
                return Err(error);
            }
        }
        create_dir_durably(&*disk, dir)?;
        let lock_path = dir.join(LOCK_NAME);
        let lock = DirLock::acquire(&lock_path)?.ok_or(SnapshotError::Locked { path: lock_path })?;
        for name in file_names(dir)? {
            if name.starts_with("snapshot-") && name.ends_with(".tmp") {
                let path = dir.join(name);
                disk.remove(&path).map_err(DiskFault::of("remove", &path))?;
            }
        }
        let block_bytes = options.block_bytes.clamp(1, BLOCK_BYTES_MAX);
        Ok(SnapshotStore {
            directory: Arc::new(Directory { path: dir.to_path_buf(), disk, _lock: lock }),
            identity,
            options: SnapshotOptions { block_bytes },
            unfinished: AtomicU64::new(0),
        })
    }

    /// Starts the file of a snapshot at which the group had these members. Nothing of it can be seen before
    /// [`SnapshotFileWriter::finish`].
    ///
    /// # Errors
    ///
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Io`].
    pub fn create(
        &self,
        meta: SnapshotMeta,
        members: &Membership,
    ) -> Result<SnapshotFileWriter, SnapshotError> {
        let block_bytes = self.options.block_bytes;
        let (header, encoder) = Encoder::new(&Header { writer: self.identity, meta, block_bytes });
        let mut draft = self.draft(meta)?;
        draft.write(&header)?;
        let block_bytes = block_bytes as usize;
        let block = vec![0; BLOCK_HEADER_BYTES];
        let mut writer = SnapshotFileWriter { draft, encoder, block, block_bytes };
        let members = members.encode();
        writer.put(&(members.len() as u32).to_le_bytes())?;
        writer.put(&members)?;
        Ok(writer)
    }

    /// Starts to receive the file of `total_bytes` that a peer sends of its snapshot at `meta`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Io`].
    pub fn receive(&self, meta: SnapshotMeta, total_bytes: u64) -> Result<SnapshotReceiver, SnapshotError> {
        Ok(SnapshotReceiver { draft: self.draft(meta)?, total_bytes, identity: self.identity })
    }

    /// The snapshots in the directory by their names, newest first. None of them was verified.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn list(&self) -> Result<Vec<SnapshotMeta>, SnapshotError> {
        Ok(list(&self.directory.path)?)
    }

    /// The newest snapshot with its file, verified from the first byte to the last.
    ///
    /// # Blocking
    ///
    /// Reads the whole file.
    ///
    /// # Errors
    ///
    /// As [`SnapshotStore::verify`], for the newest: never passes over a damaged one to an older one. The caller
    /// may go through [`SnapshotStore::list`] for one that the log still reaches back to.
    pub fn latest(&self) -> Result<Option<(SnapshotMeta, PathBuf)>, SnapshotError> {
        let Some(meta) = self.list()?.first().copied() else { return Ok(None) };
        self.verify(meta)?;
        Ok(Some((meta, self.path(meta))))
    }

    /// Verifies a snapshot from the first byte to the last.
    ///
    /// # Blocking
    ///
    /// Reads the whole file.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Corrupt`], [`SnapshotError::Unsupported`], [`SnapshotError::WrongIdentity`],
    /// [`SnapshotError::Io`], also when there is no such snapshot.
    pub fn verify(&self, meta: SnapshotMeta) -> Result<(), SnapshotError> {
        self.open_reader(meta)?.finish()
    }

    /// Opens a snapshot's content, verified block by block as it is read.
    ///
    /// # Errors
    ///
    /// As [`SnapshotStore::verify`], for the beginning.
    pub fn open_reader(&self, meta: SnapshotMeta) -> Result<SnapshotReader, SnapshotError> {
        let path = self.path(meta);
        let decoder = open_file(&path, &self.identity, meta)?;
        SnapshotReader::begin(path, decoder)
    }

    /// Opens a snapshot's file to be sent as it is, with its length in bytes. It stays readable when it is purged.
    /// Not verified: the receiver does that.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`], also when there is no such snapshot.
    pub fn raw_reader(&self, meta: SnapshotMeta) -> Result<(File, u64), SnapshotError> {
        let path = self.path(meta);
        let file = File::open(&path).map_err(DiskFault::of("open", &path))?;
        let bytes = file.metadata().map_err(DiskFault::of("look at", &path))?.len();
        Ok((file, bytes))
    }

    /// Removes all but the newest `keep` snapshots, at least one; returns how many. Call it only when the newest is
    /// known to be good: nothing is verified here.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn purge_older(&self, keep: usize) -> Result<usize, SnapshotError> {
        let metas = self.list()?;
        let surplus = metas.get(keep.max(1)..).unwrap_or_default();
        for meta in surplus {
            let path = self.path(*meta);
            self.directory.disk.remove(&path).map_err(DiskFault::of("remove", &path))?;
        }
        if !surplus.is_empty() {
            self.directory.sync()?;
        }
        Ok(surplus.len())
    }

    fn path(&self, meta: SnapshotMeta) -> PathBuf {
        self.directory.path.join(file_name(meta))
    }

    fn draft(&self, meta: SnapshotMeta) -> Result<Draft, SnapshotError> {
        let number = self.unfinished.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path.join(format!("{}.{number}.tmp", file_name(meta)));
        let file = self.directory.disk.create(&path).map_err(DiskFault::of("create", &path))?;
        let directory = Arc::clone(&self.directory);
        Ok(Draft { directory, meta, path, file, bytes: 0, synced_bytes: 0, state: DraftState::Open })
    }
}

impl Directory {
    fn sync(&self) -> Result<(), DiskFault> {
        self.disk.sync_dir(&self.path).map_err(DiskFault::of("sync the directory", &self.path))
    }
}

fn file_name(meta: SnapshotMeta) -> String {
    format!("snapshot-{:020}-{:020}.snap", meta.index, meta.term)
}

fn parse_file_name(name: &str) -> Option<SnapshotMeta> {
    let (index, term) = name.strip_prefix("snapshot-")?.strip_suffix(".snap")?.split_once('-')?;
    let meta = SnapshotMeta { index: index.parse().ok()?, term: term.parse().ok()? };
    (file_name(meta) == name).then_some(meta)
}

/// Newest first.
fn list(dir: &Path) -> Result<Vec<SnapshotMeta>, DiskFault> {
    let mut metas: Vec<SnapshotMeta> =
        file_names(dir)?.iter().filter_map(|name| parse_file_name(name)).collect();
    metas.sort_unstable_by_key(|meta| std::cmp::Reverse((meta.index, meta.term)));
    Ok(metas)
}

/// Opens a file and checks that its header is that of the snapshot at `meta`.
fn open_file(path: &Path, identity: &Identity, meta: SnapshotMeta) -> Result<Decoder<File>, SnapshotError> {
    let file = File::open(path).map_err(DiskFault::of("open", path))?;
    let decoder = Decoder::new(file).map_err(|bad| bad_file(bad, path))?;
    let header = decoder.header();
    if header.writer.cluster_id != identity.cluster_id {
        let (file, expected, found) = (path.to_path_buf(), *identity, header.writer);
        return Err(SnapshotError::WrongIdentity { file, expected, found });
    }
    if header.meta != meta {
        return Err(bad_file(Bad::Damaged(0, "it is another snapshot under this name"), path));
    }
    Ok(decoder)
}

fn bad_file(bad: Bad, path: &Path) -> SnapshotError {
    let file = path.to_path_buf();
    match bad {
        Bad::Version(version) => SnapshotError::Unsupported { file, version },
        Bad::Damaged(offset, reason) => SnapshotError::Corrupt { file, offset, reason },
        Bad::Io(error) => DiskFault::of("read", path)(error).into(),
    }
}

/// An unfinished file; removed when dropped before it was finished.
struct Draft {
    directory: Arc<Directory>,
    meta: SnapshotMeta,
    path: PathBuf,
    file: File,
    bytes: u64,
    synced_bytes: u64,
    state: DraftState,
}

#[derive(PartialEq, Eq)]
enum DraftState {
    Open,
    /// A call failed: what the file holds is unknown.
    GivenUp,
    Finished,
}

impl Draft {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.attempt(|draft| {
            let disk = &draft.directory.disk;
            disk.write_at(&draft.file, bytes, draft.bytes).map_err(DiskFault::of("write", &draft.path))?;
            draft.bytes += bytes.len() as u64;
            if draft.bytes - draft.synced_bytes >= SYNC_EVERY_BYTES { draft.sync() } else { Ok(()) }
        })
    }

    /// Makes the file durable, then its name: the other way round a crash could leave a name for half a file.
    fn finish(&mut self) -> Result<PathBuf, SnapshotError> {
        let path = self.directory.path.join(file_name(self.meta));
        self.attempt(|draft| {
            if !planted(Mistake::SnapshotNotSynced) {
                draft.sync()?;
            }
            let disk = &draft.directory.disk;
            disk.rename(&draft.path, &path).map_err(DiskFault::of("rename", &draft.path))?;
            draft.state = DraftState::Finished;
            draft.directory.sync()
        })?;
        Ok(path)
    }

    fn sync(&mut self) -> Result<(), DiskFault> {
        let synced = self.directory.disk.sync_data(&self.file);
        self.synced_bytes = self.bytes;
        synced.map_err(DiskFault::of("sync", &self.path))
    }

    /// After a failure nothing more is attempted: a second sync may succeed though the data were dropped.
    fn attempt(
        &mut self,
        action: impl FnOnce(&mut Draft) -> Result<(), DiskFault>,
    ) -> Result<(), SnapshotError> {
        if self.state != DraftState::Open {
            return Err(SnapshotError::GivenUp { path: self.path.clone() });
        }
        action(self).map_err(|fault| {
            if self.state == DraftState::Open {
                self.state = DraftState::GivenUp;
            }
            fault.into()
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.state != DraftState::Finished {
            // Best effort: the next open removes it, too.
            let _ = self.directory.disk.remove(&self.path);
        }
    }
}

/// Writes a snapshot through [`std::io::Write`]. Dropped before [`SnapshotFileWriter::finish`], it leaves nothing.
pub struct SnapshotFileWriter {
    draft: Draft,
    encoder: Encoder,
    /// The block being filled, behind room for its header.
    block: Vec<u8>,
    block_bytes: usize,
}

impl SnapshotFileWriter {
    /// Makes the snapshot durable and visible under its name, which replaces one of the same position; returns its file.
    ///
    /// # Blocking
    ///
    /// Waits for the disk.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::NoSpace`], [`SnapshotError::Io`], and [`SnapshotError::GivenUp`] after a failed write. The
    /// snapshot is not to be relied on then, though after a failed sync of the directory it may be there, whole.
    pub fn finish(mut self) -> Result<PathBuf, SnapshotError> {
        self.write_block()?;
        self.draft.write(&self.encoder.footer())?;
        self.draft.finish()
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), SnapshotError> {
        while !bytes.is_empty() {
            let room = BLOCK_HEADER_BYTES + self.block_bytes - self.block.len();
            let (taken, rest) = bytes.split_at(bytes.len().min(room));
            self.block.extend_from_slice(taken);
            if taken.len() == room {
                self.write_block()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn write_block(&mut self) -> Result<(), SnapshotError> {
        if self.block.len() > BLOCK_HEADER_BYTES {
            self.encoder.block(&mut self.block);
            self.draft.write(&self.block)?;
            self.block.truncate(BLOCK_HEADER_BYTES);
        }
        Ok(())
    }
}

impl Write for SnapshotFileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes)?;
        Ok(bytes.len())
    }

    /// Does nothing: only [`SnapshotFileWriter::finish`] makes anything durable.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a snapshot's content through [`std::io::Read`]; no byte is handed out before its block was verified.
/// The end is verified when a read returns 0, or by [`SnapshotReader::finish`]. Errors of the content have the
/// kind `InvalidData` and a [`SnapshotError`] as their cause.
pub struct SnapshotReader {
    path: PathBuf,
    members: Membership,
    decoder: Decoder<File>,
    block: Vec<u8>,
    /// How much of the block was handed out.
    taken: usize,
    ended: bool,
}

impl SnapshotReader {
    /// Reads up to where the state begins.
    fn begin(path: PathBuf, decoder: Decoder<File>) -> Result<SnapshotReader, SnapshotError> {
        let members = Membership::default();
        let mut reader = SnapshotReader { path, members, decoder, block: Vec::new(), taken: 0, ended: false };
        let mut length = [0; 4];
        reader.fill(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > MEMBERS_BYTES_MAX {
            return Err(reader.without_members());
        }
        let mut encoded = vec![0; length as usize];
        reader.fill(&mut encoded)?;
        match Membership::decode(&encoded) {
            Some(members) => Ok(SnapshotReader { members, ..reader }),
            None => Err(reader.without_members()),
        }
    }

    /// The group's members at the snapshot.
    #[must_use]
    pub fn members(&self) -> &Membership {
        &self.members
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<(), SnapshotError> {
        while !out.is_empty() {
            if self.taken == self.block.len() {
                self.next_block()?;
                if self.ended {
                    return Err(self.without_members());
                }
            }
            let count = (&self.block[self.taken..]).read(out).expect("memory can be read");
            self.taken += count;
            out = &mut out[count..];
        }
        Ok(())
    }

    fn without_members(&self) -> SnapshotError {
        bad_file(Bad::Damaged(0, "it does not begin with the group's members"), &self.path)
    }

    /// Verifies what was not read yet, up to the end of the file. Without it, or a read to the end, a file cut
    /// between two blocks could pass as whole.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Corrupt`], [`SnapshotError::Io`].
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        while !self.ended {
            self.next_block()?;
        }
        Ok(())
    }

    fn next_block(&mut self) -> Result<(), SnapshotError> {
        self.taken = 0;
        // Cleared first: after an error nothing of a block that failed may be handed out.
        self.block.clear();
        match self.decoder.next_block(&mut self.block) {
            Ok(more) => self.ended = !more,
            Err(bad) => {
                self.block.clear();
                return Err(bad_file(bad, &self.path));
            }
        }
        Ok(())
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.block.len() && !self.ended && !out.is_empty() {
            self.next_block()?;
        }
        let count = (&self.block[self.taken..]).read(out)?;
        self.taken += count;
        Ok(count)
    }
}

/// Takes a snapshot file from a peer in chunks. Dropped before [`SnapshotReceiver::finish`], it leaves nothing.
pub struct SnapshotReceiver {
    draft: Draft,
    total_bytes: u64,
    identity: Identity,
}

impl SnapshotReceiver {
    /// The snapshot being received.
    #[must_use]
    pub fn meta(&self) -> SnapshotMeta {
        self.draft.meta
    }

    /// The offset of the chunk that is wanted next, in bytes; the announced length when all is there.
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.draft.bytes
    }

    /// Takes a chunk if it is the one wanted next; a chunk that came twice, or too early, is ignored. Returns the offset
    /// wanted next, from which the sender is to go on.
    ///
    /// # Blocking
    ///
    /// Writes to the disk, and syncs now and then.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadTransfer`] for more bytes than were announced; [`SnapshotError::NoSpace`],
    /// [`SnapshotError::Io`], and [`SnapshotError::GivenUp`] after these: start again.
    pub fn chunk(&mut self, offset: u64, bytes: &[u8]) -> Result<u64, SnapshotError> {
        if offset == self.draft.bytes {
            if bytes.len() as u64 > self.total_bytes - offset {
                return Err(self.bad_transfer(format!(
                    "it goes on behind the {} bytes that were announced",
                    self.total_bytes
                )));
            }
            self.draft.write(bytes)?;
        }
        Ok(self.draft.bytes)
    }

    /// Verifies the whole file, then makes it durable and visible under its name. Returns the group's members at the snapshot, too.
    ///
    /// # Blocking
    ///
    /// Reads the whole file, and waits for the disk.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::BadTransfer`] when it is not whole, not the announced snapshot, or of another cluster; it is
    /// removed then. Else as [`SnapshotFileWriter::finish`].
    pub fn finish(mut self) -> Result<(SnapshotMeta, Membership, PathBuf), SnapshotError> {
        if self.draft.bytes != self.total_bytes {
            return Err(
                self.bad_transfer(format!("{} of {} bytes arrived", self.draft.bytes, self.total_bytes))
            );
        }
        let path = self.draft.path.clone();
        let verified = open_file(&path, &self.identity, self.draft.meta).and_then(|decoder| {
            let reader = SnapshotReader::begin(path, decoder)?;
            let members = reader.members().clone();
            reader.finish().map(|()| members)
        });
        match verified {
            Ok(members) => Ok((self.draft.meta, members, self.draft.finish()?)),
            Err(error @ SnapshotError::Io { .. }) => Err(error),
            Err(error) => Err(self.bad_transfer(error.to_string())),
        }
    }

    fn bad_transfer(&self, reason: String) -> SnapshotError {
        SnapshotError::BadTransfer { index: self.draft.meta.index, reason }
    }
}
