//! The calls that change a disk, for the log and for snapshots, behind one small seam.
//!
//! Owns: the seam ([`Disk`]), its real form ([`OsDisk`]), the directory lock and the durable creation of
//! directories. Must not know any file format. Used by `wal` and `snapshot` only; tests put a faulty disk
//! behind the seam, because a failed `fdatasync` or a full disk cannot be had on demand otherwise.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Everything that changes what a crash leaves behind. Reading needs no seam: tests damage the files themselves.
pub(crate) trait Disk: Send + Sync {
    /// Opens `path` for reading and writing, as an empty file.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Writes all of `bytes` at `offset`; not durable before [`Disk::sync_data`].
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the file's content durable, and its length.
    fn sync_data(&self, file: &File) -> io::Result<()>;
    /// Renames, replacing `to`; not durable before [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; not durable before [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable: after a crash a renamed file is otherwise free to have its old name.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// The operating system's disk.
pub(crate) struct OsDisk;

impl Disk for OsDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

/// A call to the system that failed, with what was attempted on which file.
#[derive(Debug)]
pub(crate) struct DiskFault {
    pub(crate) action: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) source: io::Error,
}

impl DiskFault {
    /// For `map_err`: turns an I/O error into a fault that says what was attempted.
    pub(crate) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskFault {
        move |source| DiskFault { action, path: path.to_path_buf(), source }
    }

    /// Whether the disk, or the user's quota on it, is full.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Holds a directory for one owner until dropped, against other processes and against a second owner in this one.
pub(crate) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock, or returns `None` when another owner has it. The file stays when the lock is dropped:
    /// removing it would let a third party lock a new file of the same name beside a waiting second one.
    pub(crate) fn acquire(path: &Path) -> Result<Option<DirLock>, DiskFault> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(DiskFault::of("open the lock file", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(DirLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(DiskFault::of("lock", path)(error)),
        }
    }
}

/// Creates `dir` and what is missing above it, each with its name synced in its parent.
pub(crate) fn create_dir_durably(disk: &dyn Disk, dir: &Path) -> Result<(), DiskFault> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_dir_durably(disk, parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(DiskFault::of("create the directory", dir)(error));
        }
        _ => {}
    }
    disk.sync_dir(parent).map_err(DiskFault::of("sync the directory", parent))
}

/// The names in `dir`; empty when the directory does not exist. Names that are not UTF-8 are not ours.
pub(crate) fn file_names(dir: &Path) -> Result<Vec<String>, DiskFault> {
    let fault = || DiskFault::of("list the directory", dir);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fault()(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry.map_err(fault())?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
