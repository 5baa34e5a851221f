//! A disk with a page cache: what programs see, what would survive a power loss, and the changes in between.
//!
//! A file's changes are kept in order since the last sync. Losing power keeps any of them, none, or parts of them, sector by sector; a
//! directory's changes are kept up to some point, because file systems journal names in order. A rename within a directory is one change.
//! Syncing a file says nothing about its name: that is the directory's.

use crate::random::Random;
use squall_hook::{Errno, Result};
use std::collections::BTreeMap;

/// What a disk writes as a whole, or not at all.
const SECTOR_BYTES: usize = 512;

/// The number of a file or directory.
pub(crate) type Inode = usize;

pub(crate) const ROOT: Inode = 0;

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Default)]
pub(crate) struct File {
    /// What programs see.
    bytes: Vec<u8>,
    /// What survives.
    durable: Vec<u8>,
    /// The way from `durable` to `bytes`, but for what a failed sync has dropped.
    pending: Vec<Change>,
    /// How many changes have left `pending`: the number of its first.
    settled: u64,
    /// When it was last changed.
    modified: u64,
}

type Names = BTreeMap<Vec<u8>, Inode>;

#[derive(Debug, Default)]
pub(crate) struct Directory {
    names: Names,
    durable: Names,
    /// Each is one step: names with what they mean afterwards.
    pending: Vec<Vec<(Vec<u8>, Option<Inode>)>>,
    /// As for files.
    settled: u64,
}

#[derive(Debug)]
enum Node {
    File(File),
    Directory(Directory),
}

/// What goes wrong on a disk, as the scenario has set it.
#[derive(Debug, Clone, Copy)]
pub struct DiskFaults {
    /// The probability that a read fails with EIO.
    pub read_error: f64,
    /// The probability that a read gets what stands elsewhere on the disk. The next few reads are right then: of a disk that lies every
    /// time nothing can be known.
    pub misdirected_read: f64,
    /// The probability that a write fails with EIO.
    pub write_error: f64,
    /// The probability that a sync fails with EIO; the changes it should have saved never will be, though programs still see them.
    pub sync_error: f64,
    /// How many bytes all files together may have: beyond it writes fail with ENOSPC.
    pub capacity_bytes: u64,
    /// How many times as long a sync takes as on a good disk.
    pub slowness: f64,
    /// Syncs do not end.
    pub hangs: bool,
}

impl Default for DiskFaults {
    /// A good disk.
    fn default() -> Self {
        Self {
            read_error: 0.0,
            misdirected_read: 0.0,
            write_error: 0.0,
            sync_error: 0.0,
            capacity_bytes: u64::MAX,
            slowness: 1.0,
            hangs: false,
        }
    }
}

/// What a power loss does to changes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// They are gone.
    All,
    /// They happened to be written just before.
    None,
    /// Each may be there, or not, or in part.
    Some,
}

#[derive(Debug)]
pub(crate) struct Disk {
    nodes: Vec<Node>,
    used_bytes: u64,
    pub(crate) faults: DiskFaults,
    /// So many reads must be right before one may be misdirected.
    right_reads: u32,
}

/// How many reads are right after one that was not.
const RIGHT_READS: u32 = 8;

impl Disk {
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node::Directory(Directory::default())],
            used_bytes: 0,
            faults: DiskFaults::default(),
            right_reads: 0,
        }
    }

    /// Whether the next read is misdirected.
    pub(crate) fn mistakes(&mut self, random: &mut Random) -> bool {
        let probability = self.faults.misdirected_read;
        self.right_reads = self.right_reads.saturating_sub(1);
        let mistakes = probability > 0.0 && self.right_reads == 0 && random.chance(probability);
        if mistakes {
            self.right_reads = RIGHT_READS;
        }
        mistakes
    }

    fn file(&self, inode: Inode) -> Result<&File> {
        match &self.nodes[inode] {
            Node::File(file) => Ok(file),
            Node::Directory(_) => Err(Errno(libc::EISDIR)),
        }
    }

    fn file_mut(&mut self, inode: Inode) -> Result<&mut File> {
        match &mut self.nodes[inode] {
            Node::File(file) => Ok(file),
            Node::Directory(_) => Err(Errno(libc::EISDIR)),
        }
    }

    fn directory(&self, inode: Inode) -> Result<&Directory> {
        match &self.nodes[inode] {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(Errno(libc::ENOTDIR)),
        }
    }

    fn directory_mut(&mut self, inode: Inode) -> Result<&mut Directory> {
        match &mut self.nodes[inode] {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(Errno(libc::ENOTDIR)),
        }
    }

    pub(crate) fn is_directory(&self, inode: Inode) -> bool {
        matches!(self.nodes[inode], Node::Directory(_))
    }

    pub(crate) fn length(&self, inode: Inode) -> usize {
        self.file(inode).map_or(4096, |file| file.bytes.len())
    }

    pub(crate) fn modified(&self, inode: Inode) -> u64 {
        self.file(inode).map_or(0, |file| file.modified)
    }

    // Names.

    /// The parts of a path from the root.
    fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
        if path.is_empty() {
            return Err(Errno(libc::ENOENT));
        }
        let mut parts = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop();
                }
                part if part.len() > 255 => return Err(Errno(libc::ENAMETOOLONG)),
                part => parts.push(part),
            }
        }
        Ok(parts)
    }

    pub(crate) fn find(&self, path: &[u8]) -> Result<Inode> {
        Self::parts(path)?.into_iter().try_fold(ROOT, |inode, part| {
            self.directory(inode)?.names.get(part).copied().ok_or(Errno(libc::ENOENT))
        })
    }

    /// The directory that a path's last name is in, and that name.
    fn parent<'a>(&self, path: &'a [u8]) -> Result<(Inode, &'a [u8])> {
        let mut parts = Self::parts(path)?;
        let name = parts.pop().ok_or(Errno(libc::EEXIST))?;
        let parent = parts.into_iter().try_fold(ROOT, |inode, part| {
            self.directory(inode)?.names.get(part).copied().ok_or(Errno(libc::ENOENT))
        })?;
        self.directory(parent)?;
        Ok((parent, name))
    }

    fn change_names(&mut self, directory: Inode, step: Vec<(Vec<u8>, Option<Inode>)>) -> Result<()> {
        let directory = self.directory_mut(directory)?;
        apply_names(&mut directory.names, &step);
        directory.pending.push(step);
        Ok(())
    }

    fn add(&mut self, path: &[u8], node: Node) -> Result<Inode> {
        let (parent, name) = self.parent(path)?;
        if self.directory(parent)?.names.contains_key(name) {
            return Err(Errno(libc::EEXIST));
        }
        let inode = self.nodes.len();
        self.nodes.push(node);
        self.change_names(parent, vec![(name.to_vec(), Some(inode))])?;
        Ok(inode)
    }

    pub(crate) fn create_file(&mut self, path: &[u8], now: u64) -> Result<Inode> {
        self.add(path, Node::File(File { modified: now, ..File::default() }))
    }

    pub(crate) fn create_directory(&mut self, path: &[u8]) -> Result<Inode> {
        self.add(path, Node::Directory(Directory::default()))
    }

    pub(crate) fn remove(&mut self, path: &[u8], directory: bool) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let inode = *self.directory(parent)?.names.get(name).ok_or(Errno(libc::ENOENT))?;
        match (&self.nodes[inode], directory) {
            (Node::File(file), false) => self.used_bytes -= file.bytes.len() as u64,
            (Node::Directory(content), true) if content.names.is_empty() => {}
            (Node::Directory(_), true) => return Err(Errno(libc::ENOTEMPTY)),
            (Node::Directory(_), false) => return Err(Errno(libc::EISDIR)),
            (Node::File(_), true) => return Err(Errno(libc::ENOTDIR)),
        }
        self.change_names(parent, vec![(name.to_vec(), None)])
    }

    pub(crate) fn rename(&mut self, from: &[u8], to: &[u8]) -> Result<()> {
        let (from_parent, from_name) = self.parent(from)?;
        let (to_parent, to_name) = self.parent(to)?;
        let inode = *self.directory(from_parent)?.names.get(from_name).ok_or(Errno(libc::ENOENT))?;
        if let Some(replaced) = self.directory(to_parent)?.names.get(to_name).copied() {
            match (self.is_directory(inode), self.is_directory(replaced)) {
                _ if replaced == inode => return Ok(()),
                (false, true) => return Err(Errno(libc::EISDIR)),
                (true, false) => return Err(Errno(libc::ENOTDIR)),
                (true, true) if !self.directory(replaced)?.names.is_empty() => {
                    return Err(Errno(libc::ENOTEMPTY));
                }
                (true, true) => {}
                (false, false) => self.used_bytes -= self.length(replaced) as u64,
            }
        }
        let (gone, there) = ((from_name.to_vec(), None), (to_name.to_vec(), Some(inode)));
        if from_parent == to_parent {
            self.change_names(to_parent, vec![gone, there])
        } else {
            self.change_names(to_parent, vec![there])?;
            self.change_names(from_parent, vec![gone])
        }
    }

    pub(crate) fn names(&self, inode: Inode) -> Result<impl Iterator<Item = (&[u8], Inode)>> {
        Ok(self.directory(inode)?.names.iter().map(|(name, inode)| (name.as_slice(), *inode)))
    }

    // Content.

    /// The bytes from `offset`, at most `length`.
    pub(crate) fn read(&self, inode: Inode, offset: usize, length: usize) -> Result<&[u8]> {
        let bytes = &self.file(inode)?.bytes;
        let start = offset.min(bytes.len());
        Ok(&bytes[start..bytes.len().min(start.saturating_add(length))])
    }

    /// What a disk returns that has mistaken the address: as many bytes of another place, of this or another file.
    pub(crate) fn read_elsewhere(&self, length: usize, random: &mut Random) -> Vec<u8> {
        let files = self.nodes.iter().filter_map(|node| match node {
            Node::File(file) if !file.bytes.is_empty() => Some(&file.bytes),
            _ => None,
        });
        let files: Vec<_> = files.collect();
        let mut bytes = vec![0; length];
        if !files.is_empty() {
            let file = *random.choice(&files);
            let start = random.index(file.len().div_ceil(SECTOR_BYTES)) * SECTOR_BYTES;
            let count = length.min(file.len() - start);
            bytes[..count].copy_from_slice(&file[start..start + count]);
        }
        bytes
    }

    /// The paths of the files below a directory, in order.
    pub(crate) fn files(&self, directory: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let names = self.find(directory).and_then(|inode| self.directory(inode)).map(|found| &found.names);
        for (name, inode) in names.into_iter().flatten() {
            let path = [directory.strip_suffix(b"/").unwrap_or(directory), b"/", name].concat();
            match &self.nodes[*inode] {
                Node::File(_) => found.push(path),
                Node::Directory(_) => found.extend(self.files(&path)),
            }
        }
        found
    }

    pub(crate) fn write(&mut self, inode: Inode, offset: usize, bytes: &[u8], now: u64) -> Result<()> {
        let capacity = self.faults.capacity_bytes;
        let used = self.used_bytes;
        let file = self.file_mut(inode)?;
        let end = offset.checked_add(bytes.len()).ok_or(Errno(libc::EFBIG))?;
        let growth = end.saturating_sub(file.bytes.len()) as u64;
        if growth > 0 && used + growth > capacity {
            return Err(Errno(libc::ENOSPC));
        }
        put(&mut file.bytes, offset, bytes);
        file.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
        file.modified = now;
        self.used_bytes += growth;
        Ok(())
    }

    pub(crate) fn set_length(&mut self, inode: Inode, length: usize, now: u64) -> Result<()> {
        let (capacity, used) = (self.faults.capacity_bytes, self.used_bytes);
        let file = self.file_mut(inode)?;
        let before = file.bytes.len() as u64;
        let after = used - before + length as u64;
        if after > capacity && length as u64 > before {
            return Err(Errno(libc::ENOSPC));
        }
        file.bytes.resize(length, 0);
        file.pending.push(Change::Length(length));
        file.modified = now;
        self.used_bytes = after;
        Ok(())
    }

    /// Which changes a sync that begins now is about.
    pub(crate) fn sync_mark(&self, inode: Inode) -> u64 {
        match &self.nodes[inode] {
            Node::File(file) => file.settled + file.pending.len() as u64,
            Node::Directory(directory) => directory.settled + directory.pending.len() as u64,
        }
    }

    /// A sync has ended: the changes before the mark are durable, or if it failed, given up.
    pub(crate) fn settle(&mut self, inode: Inode, mark: u64, saved: bool) {
        match &mut self.nodes[inode] {
            Node::File(file) => {
                // Another sync may have ended meanwhile, and settled some of them.
                let count = mark.saturating_sub(file.settled) as usize;
                for change in file.pending.drain(..count) {
                    if saved {
                        apply(&mut file.durable, &change);
                    }
                }
                file.settled += count as u64;
            }
            Node::Directory(directory) => {
                if saved {
                    let count = mark.saturating_sub(directory.settled) as usize;
                    for step in directory.pending.drain(..count) {
                        apply_names(&mut directory.durable, &step);
                    }
                    directory.settled += count as u64;
                }
            }
        }
    }

    /// The power goes: what was not synced is lost in a way that is drawn.
    pub(crate) fn lose_power(&mut self, loss: Loss, random: &mut Random) {
        for node in &mut self.nodes {
            match node {
                Node::File(file) => {
                    let pending = core::mem::take(&mut file.pending);
                    file.settled += pending.len() as u64;
                    for change in pending {
                        match (loss, &change) {
                            (Loss::All, _) => {}
                            (Loss::None, _) => apply(&mut file.durable, &change),
                            (Loss::Some, Change::Length(_)) => {
                                if random.chance(0.5) {
                                    apply(&mut file.durable, &change);
                                }
                            }
                            (Loss::Some, Change::Write { offset, bytes }) => match random.below(3) {
                                0 => {}
                                1 => apply(&mut file.durable, &change),
                                _ => tear(&mut file.durable, *offset, bytes, random),
                            },
                        }
                    }
                    file.bytes.clone_from(&file.durable);
                }
                Node::Directory(directory) => {
                    let kept = match loss {
                        Loss::All => 0,
                        Loss::None => directory.pending.len(),
                        Loss::Some => random.index(directory.pending.len() + 1),
                    };
                    directory.settled += directory.pending.len() as u64;
                    for step in directory.pending.drain(..).take(kept) {
                        apply_names(&mut directory.durable, &step);
                    }
                    directory.names.clone_from(&directory.durable);
                }
            }
        }
        self.used_bytes = self.count_used();
    }

    fn count_used(&self) -> u64 {
        let mut todo = vec![ROOT];
        let mut used = 0;
        while let Some(inode) = todo.pop() {
            match &self.nodes[inode] {
                Node::File(file) => used += file.bytes.len() as u64,
                Node::Directory(directory) => todo.extend(directory.names.values()),
            }
        }
        used
    }

    /// Flips one bit of a file, in the cache and on the disk. False if the file is empty.
    pub(crate) fn rot(&mut self, inode: Inode, random: &mut Random) -> Result<bool> {
        let file = self.file_mut(inode)?;
        let length = file.bytes.len().min(file.durable.len());
        if length == 0 {
            return Ok(false);
        }
        let (at, bit) = (random.index(length), 1 << random.below(8));
        file.bytes[at] ^= bit;
        file.durable[at] ^= bit;
        Ok(true)
    }
}

fn apply_names(names: &mut Names, step: &[(Vec<u8>, Option<Inode>)]) {
    for (name, meaning) in step {
        match meaning {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

fn put(into: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if into.len() < end {
        into.resize(end, 0);
    }
    into[offset..end].copy_from_slice(bytes);
}

fn apply(to: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, bytes } => put(to, *offset, bytes),
        Change::Length(length) => to.resize(*length, 0),
    }
}

/// Some of the sectors that a write touches have it.
fn tear(to: &mut Vec<u8>, offset: usize, bytes: &[u8], random: &mut Random) {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done;
        let end = (done + SECTOR_BYTES - at % SECTOR_BYTES).min(bytes.len());
        if random.chance(0.5) {
            put(to, at, &bytes[done..end]);
        }
        done = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(disk: &Disk, path: &[u8]) -> Vec<String> {
        let inode = disk.find(path).unwrap();
        disk.names(inode).unwrap().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
    }

    #[test]
    fn only_what_was_synced_survives_the_worst_power_loss() {
        let mut disk = Disk::new();
        let mut random = Random::new(1, "test");
        let directory = disk.create_directory(b"/d").unwrap();
        disk.settle(ROOT, disk.sync_mark(ROOT), true);
        let file = disk.create_file(b"/d/a", 0).unwrap();
        disk.write(file, 0, b"first", 0).unwrap();
        disk.settle(file, disk.sync_mark(file), true);
        disk.settle(directory, disk.sync_mark(directory), true);
        disk.write(file, 0, b"LOST!", 0).unwrap();
        disk.create_file(b"/d/b", 0).unwrap();
        disk.rename(b"/d/a", b"/d/c").unwrap();
        assert_eq!(
            (names(&disk, b"/d"), disk.read(file, 0, 9).unwrap()),
            (vec!["b".into(), "c".into()], &b"LOST!"[..])
        );
        disk.lose_power(Loss::All, &mut random);
        assert_eq!((names(&disk, b"/d"), disk.read(file, 0, 9).unwrap()), (vec!["a".into()], &b"first"[..]));
    }

    #[test]
    fn a_sync_saves_what_was_written_before_it_began_and_a_failed_one_saves_nothing_ever() {
        let mut disk = Disk::new();
        let mut random = Random::new(1, "test");
        let file = disk.create_file(b"/f", 0).unwrap();
        disk.settle(ROOT, disk.sync_mark(ROOT), true);
        disk.write(file, 0, b"aa", 0).unwrap();
        let mark = disk.sync_mark(file);
        disk.write(file, 2, b"bb", 0).unwrap();
        disk.settle(file, mark, true);
        disk.settle(file, disk.sync_mark(file), false);
        disk.settle(file, disk.sync_mark(file), true);
        assert_eq!(disk.read(file, 0, 9).unwrap(), b"aabb");
        disk.lose_power(Loss::None, &mut random);
        assert_eq!(disk.read(file, 0, 9).unwrap(), b"aa");
    }

    #[test]
    fn a_partial_loss_tears_at_sectors_and_keeps_renames_whole() {
        let mut torn = 0;
        for seed in 0..200 {
            let mut disk = Disk::new();
            let mut random = Random::new(seed, "test");
            let file = disk.create_file(b"/new", 0).unwrap();
            disk.settle(ROOT, disk.sync_mark(ROOT), true);
            disk.write(file, 100, &[1; 2000], 0).unwrap();
            disk.rename(b"/new", b"/old").unwrap();
            disk.lose_power(Loss::Some, &mut random);
            assert_eq!(names(&disk, b"/").len(), 1);
            let bytes = disk.read(file, 0, 4000).unwrap();
            let sectors: Vec<_> = bytes.chunks(512).map(|sector| sector.contains(&1)).collect();
            torn += usize::from(sectors.contains(&true) && (sectors.contains(&false) || sectors.len() < 5));
            let kept = bytes.chunks(512).enumerate().filter(|(_, sector)| sector.contains(&1));
            for (index, sector) in kept {
                let start = if index == 0 { 100 } else { 0 };
                let end = sector.len().min(2100 - index * 512);
                assert!(sector[start..end].iter().all(|byte| *byte == 1), "a sector was torn");
            }
        }
        assert!(torn > 20, "only {torn} torn writes");
    }

    #[test]
    fn a_misdirected_read_returns_another_place_and_not_twice_in_a_row() {
        let mut disk = Disk::new();
        let mut random = Random::new(1, "test");
        let file = disk.create_file(b"/f", 0).unwrap();
        disk.write(file, 0, &[7; 2000], 0).unwrap();
        disk.faults.misdirected_read = 1.0;
        let mistakes: Vec<bool> = (0..20).map(|_| disk.mistakes(&mut random)).collect();
        assert_eq!(mistakes.iter().filter(|mistake| **mistake).count(), 3, "{mistakes:?}");
        let other = disk.read_elsewhere(600, &mut random);
        assert!(other.len() == 600 && other.starts_with(&[7; 100]), "{other:?}");
        assert_eq!(disk.files(b"/"), [b"/f"]);
    }

    #[test]
    fn a_full_disk_refuses_growth_only() {
        let mut disk = Disk::new();
        disk.faults.capacity_bytes = 10;
        let file = disk.create_file(b"/f", 0).unwrap();
        disk.write(file, 0, &[0; 8], 0).unwrap();
        assert_eq!(disk.write(file, 8, &[0; 3], 0), Err(Errno(libc::ENOSPC)));
        disk.write(file, 6, &[0; 4], 0).unwrap();
        disk.remove(b"/f", false).unwrap();
        let other = disk.create_file(b"/g", 0).unwrap();
        disk.write(other, 0, &[0; 10], 0).unwrap();
    }
}
