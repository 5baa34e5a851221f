//! The other half of a simulated operating system: the calls that never wait.
//!
//! For the real system these are libc's own business, and no hook looks at them. A simulation must answer them, too, or its programs would
//! see the machine's clock and files. It implements [`World`] besides [`Os`](crate::Os) and says so in [`Os::world`](crate::Os::world). The
//! symbols are interposed in two places: those that this crate takes over anyway divert here; all others are defined in
//! `squall-hook-world`, which only programs that link a simulation contain.

use crate::errno::{Errno, Result};
use crate::os::{AddressMut, Buffer, BufferMut, Os};
use core::ffi::{CStr, c_int};
use core::mem::MaybeUninit;
use squall_fiber::{Current, with_current};
use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::os::OsExtension;

/// Which file a call means.
#[derive(Debug, Clone, Copy)]
pub enum FileName<'a> {
    /// The one at a path.
    Path(&'a CStr),
    /// An open one.
    Descriptor(RawFd),
}

/// What `stat` tells, as far as a world has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStatus {
    /// Its number in its file system.
    pub inode: u64,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last changed, since 1970.
    pub modified: Duration,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name.
    pub name: CString,
    /// The number of what it names.
    pub inode: u64,
    /// Whether that is a directory.
    pub is_directory: bool,
}

/// An operating system that answers everything itself. Every call behaves as its manual page says; what the world does not have, it
/// refuses with ENOSYS.
///
/// # Blocking
/// Any method may suspend the calling fiber: a simulation lets others run wherever it likes.
pub trait World: Os {
    /// `clock_gettime`, `gettimeofday`, `time`: what the clock shows.
    fn clock(&self, current: Current<'_>, clock: libc::clockid_t) -> Duration;
    /// `getrandom`. Fills all of it.
    fn fill_random(&self, current: Current<'_>, buffer: &mut [MaybeUninit<u8>]);
    /// `getpid`.
    fn process_id(&self, current: Current<'_>) -> i32;
    /// The address of a host, for `getaddrinfo`; `None` if there is no such name. Numbers are not asked for.
    fn resolve(&self, current: Current<'_>, name: &CStr) -> Option<IpAddr>;

    /// `socket`.
    fn socket(&self, current: Current<'_>, domain: c_int, kind: c_int, protocol: c_int) -> Result<RawFd>;
    /// `socketpair`.
    fn socket_pair(
        &self,
        current: Current<'_>,
        domain: c_int,
        kind: c_int,
        protocol: c_int,
    ) -> Result<[RawFd; 2]>;
    /// `bind`.
    fn bind(&self, current: Current<'_>, fd: RawFd, address: &[u8]) -> Result<()>;
    /// `listen`.
    fn listen(&self, current: Current<'_>, fd: RawFd, backlog: c_int) -> Result<()>;
    /// `shutdown`.
    fn shutdown(&self, current: Current<'_>, fd: RawFd, how: c_int) -> Result<()>;
    /// `getsockname`.
    fn own_address(&self, current: Current<'_>, fd: RawFd, address: AddressMut) -> Result<()>;
    /// `getpeername`.
    fn peer_address(&self, current: Current<'_>, fd: RawFd, address: AddressMut) -> Result<()>;
    /// `getsockopt`: stores the option's value and returns its length.
    fn get_option(
        &self,
        current: Current<'_>,
        fd: RawFd,
        level: c_int,
        option: c_int,
        value: BufferMut,
    ) -> Result<usize>;
    /// `setsockopt`.
    fn set_option(
        &self,
        current: Current<'_>,
        fd: RawFd,
        level: c_int,
        option: c_int,
        value: &[u8],
    ) -> Result<()>;
    /// `ioctl` with a request that takes an int (`FIONBIO`, `FIONREAD`).
    fn io_control(&self, current: Current<'_>, fd: RawFd, request: u64, argument: &mut c_int) -> Result<()>;

    /// `open`.
    fn open(&self, current: Current<'_>, path: &CStr, flags: c_int, mode: u32) -> Result<RawFd>;
    /// `stat` and its siblings.
    fn status(&self, current: Current<'_>, file: FileName<'_>) -> Result<FileStatus>;
    /// `pread`, `preadv`.
    fn read_at(
        &self,
        current: Current<'_>,
        fd: RawFd,
        buffers: &mut [BufferMut],
        offset: u64,
    ) -> Result<usize>;
    /// `pwrite`, `pwritev`.
    fn write_at(&self, current: Current<'_>, fd: RawFd, buffers: &[Buffer], offset: u64) -> Result<usize>;
    /// `lseek`: the new offset.
    fn seek(&self, current: Current<'_>, fd: RawFd, offset: i64, whence: c_int) -> Result<u64>;
    /// `ftruncate`.
    fn set_length(&self, current: Current<'_>, fd: RawFd, length: u64) -> Result<()>;
    /// `flock`.
    fn lock_file(&self, current: Current<'_>, fd: RawFd, operation: c_int) -> Result<()>;
    /// `rename`.
    fn rename(&self, current: Current<'_>, from: &CStr, to: &CStr) -> Result<()>;
    /// `unlink`.
    fn remove_file(&self, current: Current<'_>, path: &CStr) -> Result<()>;
    /// `rmdir`.
    fn remove_directory(&self, current: Current<'_>, path: &CStr) -> Result<()>;
    /// `mkdir`.
    fn create_directory(&self, current: Current<'_>, path: &CStr, mode: u32) -> Result<()>;
    /// What the open directory contains, for `readdir`.
    fn entries(&self, current: Current<'_>, fd: RawFd) -> Result<Vec<DirectoryEntry>>;

    /// A line of the program's log, or of a panic, for the world's own record.
    fn log(&self, current: Current<'_>, line: &str, is_panic: bool);
    /// The program made a call that this world does not have. The call fails with what is returned.
    fn refuse(&self, current: Current<'_>, call: &'static str) -> Errno;
}

/// In a fiber whose operating system is a [`World`] calls `world` with it, else `plain`. For everybody else that is a load and a branch.
#[inline(always)]
pub fn in_world_or<R>(world: impl FnOnce(Current<'_>, &dyn World) -> R, plain: impl FnOnce() -> R) -> R {
    with_current(|current| match current.and_then(|current| Some((current, current.extension()?))) {
        None => plain(),
        Some((current, extension)) => {
            match extension.downcast_ref::<OsExtension>().and_then(|OsExtension(os)| os.world()) {
                Some(answers) => world(current, answers),
                None => plain(),
            }
        }
    })
}
