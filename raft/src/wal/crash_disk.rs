//! A disk for tests that loses power and fails calls.
//!
//! It keeps, beside the real files (what a living kernel shows), the image that a loss of power would leave:
//! writes since a file's last sync reach it in any subset of sectors, a sector possibly torn, and names since the
//! directory's last sync in any subset. Random choices come from the caller's seed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::disk::{Disk, OsDisk};

pub(crate) const EIO: i32 = 5;
pub(crate) const ENOSPC: i32 = 28;

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

#[derive(Default)]
struct Image {
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

impl Image {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[offset as usize..end].copy_from_slice(bytes);
    }
}

enum NameChange {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf, usize),
    Unlink(PathBuf),
}

#[derive(Default)]
struct Power {
    images: Vec<Image>,
    by_inode: BTreeMap<u64, usize>,
    names: BTreeMap<PathBuf, usize>,
    pending_names: Vec<NameChange>,
    /// Calls made so far, and which one is to fail with which error.
    calls: usize,
    fail: Option<(usize, i32)>,
    /// Whether a sync that fails leaves the pages to be written later, as if it had not been called.
    keep_unsynced: bool,
}

impl Power {
    fn image_of(&self, inode: u64) -> usize {
        self.by_inode[&inode]
    }

    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.fail {
            Some((at, code)) if at == self.calls => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(()),
        }
    }

    fn change_names(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
        match change {
            NameChange::Link(path, image) => {
                names.insert(path.clone(), *image);
            }
            NameChange::Rename(from, to, image) => {
                names.remove(from);
                names.insert(to.clone(), *image);
            }
            NameChange::Unlink(path) => {
                names.remove(path);
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct CrashDisk(Mutex<Power>);

impl CrashDisk {
    /// Makes call number `call`, from 1, fail with `code`; it does nothing then.
    pub(crate) fn fail_call(&self, call: usize, code: i32) {
        self.0.lock().unwrap().fail = Some((call, code));
    }

    pub(crate) fn fail_no_call(&self) {
        self.0.lock().unwrap().fail = None;
    }

    /// Makes a failing sync keep the pages, as a kill in its place would; else it drops them, as kernels do.
    pub(crate) fn keep_unsynced(&self, keep: bool) {
        self.0.lock().unwrap().keep_unsynced = keep;
    }

    pub(crate) fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }

    /// The disk after the loss of power that left the files of `dir`, with the count of calls going on.
    pub(crate) fn after_the_loss(&self, dir: &Path) -> CrashDisk {
        let before = self.0.lock().unwrap();
        let mut power = Power { calls: before.calls, fail: before.fail, ..Power::default() };
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            power.by_inode.insert(fs::metadata(&path).unwrap().ino(), power.images.len());
            power.names.insert(path.clone(), power.images.len());
            power.images.push(Image { durable: fs::read(&path).unwrap(), pending: Vec::new() });
        }
        CrashDisk(Mutex::new(power))
    }

    /// Writes into `dir` what a loss of power might leave.
    pub(crate) fn lose_power(&self, rng: &mut Rng, dir: &Path) {
        let power = self.0.lock().unwrap();
        let mut names = power.names.clone();
        let kept_percent = [0, 50, 90, 100][rng.below(4) as usize];
        for change in &power.pending_names {
            if rng.percent(kept_percent) {
                Power::change_names(&mut names, change);
            }
        }
        for (path, image) in names {
            let image = &power.images[image];
            let mut left = Image { durable: image.durable.clone(), pending: Vec::new() };
            for (offset, bytes) in &image.pending {
                let mut at = 0;
                while at < bytes.len() {
                    let sector = 512 - (*offset as usize + at) % 512;
                    let piece = &bytes[at..bytes.len().min(at + sector)];
                    if rng.percent(kept_percent) {
                        let kept =
                            if rng.percent(3) { rng.below(piece.len() as u64) as usize } else { piece.len() };
                        left.write(offset + at as u64, &piece[..kept]);
                    }
                    at += piece.len();
                }
            }
            fs::write(dir.join(path.file_name().unwrap()), &left.durable).unwrap();
        }
    }
}

impl Disk for CrashDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        let mut power = self.0.lock().unwrap();
        power.call()?;
        let file = OsDisk.create(path)?;
        let image = power.images.len();
        power.images.push(Image::default());
        power.by_inode.insert(file.metadata()?.ino(), image);
        power.pending_names.push(NameChange::Link(path.to_path_buf(), image));
        Ok(file)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        power.call()?;
        OsDisk.write_at(file, bytes, offset)?;
        let image = power.image_of(file.metadata()?.ino());
        power.images[image].pending.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        let result = power.call();
        if result.is_err() && power.keep_unsynced {
            return result;
        }
        let image = power.image_of(file.metadata()?.ino());
        let image = &mut power.images[image];
        // A failed sync marks the pages clean: the kernel shows the data and will never write it.
        for (offset, bytes) in std::mem::take(&mut image.pending) {
            if result.is_ok() {
                image.write(offset, &bytes);
            }
        }
        result
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        power.call()?;
        let image = power.image_of(fs::metadata(from)?.ino());
        OsDisk.rename(from, to)?;
        power.pending_names.push(NameChange::Rename(from.to_path_buf(), to.to_path_buf(), image));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        power.call()?;
        OsDisk.remove(path)?;
        power.pending_names.push(NameChange::Unlink(path.to_path_buf()));
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        power.call()?;
        for change in std::mem::take(&mut power.pending_names) {
            Power::change_names(&mut power.names, &change);
        }
        Ok(())
    }
}
