//! Files on disks. They are always ready, as far as `poll` and epoll can tell, and still a call may wait for the disk.
//!
//! - Reading: what the page cache has is read at once (`RWF_NOWAIT`), the rest on the blocking pool.
//! - Writing goes to the page cache, directly; but to a file that was opened with O_SYNC, O_DSYNC or O_DIRECT it goes to the disk, and so
//!   happens on the pool.
//! - Opening, and all else that only deals with names and inodes, is done directly: a kernel that has them in memory answers faster than a
//!   thread of the pool wakes up. A FIFO is opened on the pool, because that waits for the other end.
//! - Locks on files: see [`lock`].

use super::kind::{self, Kind};
use super::pool::on_pool;
use super::wait::Pauses;
use crate::errno::{Errno, Result, check_int};
use crate::{kernel, real};
use core::ffi::{CStr, c_int};
use core::mem::MaybeUninit;
use libc::{iovec, mode_t, off_t};
use squall_fiber::Current;
use std::os::fd::RawFd;
use std::time::Duration;

/// The offset that means "where the file stands", moving on with what is read.
pub(crate) const WHERE_IT_STANDS: off_t = -1;

/// `read`, `pread` and their siblings, of anything that is not waited for otherwise.
///
/// # Safety
/// `vectors` points to `count` vectors of the caller's, of `size` bytes together.
pub(crate) unsafe fn read(
    current: Current<'_>,
    fd: RawFd,
    vectors: *const iovec,
    count: c_int,
    size: usize,
    offset: off_t,
) -> Result<usize> {
    // SAFETY: by the contract.
    let direct = |(vectors, count): (*const iovec, c_int)| unsafe {
        match (count, offset) {
            (1, WHERE_IT_STANDS) => kernel::read(fd, (*vectors).iov_base, (*vectors).iov_len),
            (_, WHERE_IT_STANDS) => kernel::readv(fd, vectors, count),
            (1, offset) => kernel::pread(fd, (*vectors).iov_base, (*vectors).iov_len, offset),
            (_, offset) => kernel::preadv(fd, vectors, count, offset),
        }
    };
    match kind::file(fd) {
        Some(Kind::File) => {}
        // SAFETY: by the contract.
        Some(_) => return unsafe { on_pool(current, (vectors, count), direct) },
        None => return direct((vectors, count)),
    }
    // SAFETY: by the contract.
    match unsafe { kernel::preadv2(fd, vectors, count, offset, libc::RWF_NOWAIT) } {
        // Nothing at all is the end of the file.
        Ok(read) if read == size || read == 0 => Ok(read),
        // SAFETY: by the contract.
        Ok(read) => unsafe { read_on(current, fd, vectors, count, read, offset) },
        // SAFETY: by the contract.
        Err(Errno::AGAIN) => unsafe { on_pool(current, (vectors, count), direct) },
        // A file system that does not tell: most of them, like /proc, have no disk.
        Err(Errno::OPNOTSUPP) => {
            kind::is_direct(fd);
            direct((vectors, count))
        }
        error => error,
    }
}

/// After a short read: the end of the file, or of what the page cache has.
///
/// # Safety
/// As for [`read`].
#[cold]
unsafe fn read_on(
    current: Current<'_>,
    fd: RawFd,
    vectors: *const iovec,
    count: c_int,
    mut read: usize,
    offset: off_t,
) -> Result<usize> {
    // SAFETY: by the contract.
    let vectors = unsafe { core::slice::from_raw_parts(vectors, count as usize) };
    loop {
        // One vector at a time, so that nothing has to be copied.
        let mut skip = read;
        let Some(vector) = vectors.iter().find(|vector| {
            let is_it = skip < vector.iov_len;
            if !is_it {
                skip -= vector.iov_len;
            }
            is_it
        }) else {
            return Ok(read);
        };
        let rest =
            iovec { iov_base: vector.iov_base.wrapping_byte_add(skip), iov_len: vector.iov_len - skip };
        let here = if offset == WHERE_IT_STANDS { offset } else { offset + read as off_t };
        // SAFETY: what is left of the caller's own vector.
        let answer = match unsafe { kernel::preadv2(fd, &rest, 1, here, libc::RWF_NOWAIT) } {
            Err(Errno::AGAIN) => {
                // SAFETY: as above, and the fiber waits meanwhile.
                unsafe {
                    on_pool(current, (rest.iov_base, rest.iov_len), |(base, length)| {
                        if here == WHERE_IT_STANDS {
                            kernel::read(fd, base, length)
                        } else {
                            kernel::pread(fd, base, length, here)
                        }
                    })
                }
            }
            answer => answer,
        };
        match answer {
            // The error comes again with the next call.
            Ok(0) | Err(_) => return Ok(read),
            Ok(more) => read += more,
        }
    }
}

/// `write`, `pwrite` and their siblings, to anything that is not waited for otherwise.
///
/// # Safety
/// `vectors` points to `count` vectors of the caller's.
pub(crate) unsafe fn write(
    current: Current<'_>,
    fd: RawFd,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
) -> Result<usize> {
    // SAFETY: by the contract.
    let direct = |(vectors, count): (*const iovec, c_int)| unsafe {
        match (count, offset) {
            (1, WHERE_IT_STANDS) => kernel::write(fd, (*vectors).iov_base, (*vectors).iov_len),
            (_, WHERE_IT_STANDS) => kernel::writev(fd, vectors, count),
            (1, offset) => kernel::pwrite(fd, (*vectors).iov_base, (*vectors).iov_len, offset),
            (_, offset) => kernel::pwritev(fd, vectors, count, offset),
        }
    };
    match kind::file(fd) {
        // SAFETY: by the contract.
        Some(Kind::SyncedFile) => unsafe { on_pool(current, (vectors, count), direct) },
        _ => direct((vectors, count)),
    }
}

/// `open` and `openat` in a fiber.
pub(crate) fn open(
    current: Current<'_>,
    directory: RawFd,
    path: &CStr,
    flags: c_int,
    mode: mode_t,
) -> Result<RawFd> {
    // SAFETY: the path is a C string.
    let open = |()| check_int(unsafe { real::openat(directory, path.as_ptr(), flags, mode) });
    let waits_for_the_other_end = (flags & (libc::O_NONBLOCK | libc::O_PATH | libc::O_DIRECTORY)) == 0
        && (flags & libc::O_ACCMODE) != libc::O_RDWR
        && is_fifo(directory, path);
    let fd = if waits_for_the_other_end {
        // SAFETY: the fiber waits meanwhile.
        unsafe { on_pool(current, (), open)? }
    } else {
        open(())?
    };
    super::forget(fd);
    Ok(fd)
}

fn is_fifo(directory: RawFd, path: &CStr) -> bool {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstatat fills the struct it is given, or fails.
    unsafe {
        libc::fstatat(directory, path.as_ptr(), stat.as_mut_ptr(), 0) == 0
            && (stat.assume_init().st_mode & libc::S_IFMT) == libc::S_IFIFO
    }
}

/// Tries until a file is locked.
///
/// Not on the blocking pool: a crowd that waits there for a lock would leave no thread for what its holder has to do first. So the kernel
/// does not see who waits for whom, and has no deadlock to tell of.
///
/// # Errors
/// `ECANCELED` or `ETIMEDOUT` if the fiber was interrupted; those of the call but for the one that says that another has the lock.
pub(crate) fn lock<T>(current: Current<'_>, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut pauses = Pauses::up_to(Duration::from_millis(50));
    loop {
        match attempt() {
            Err(Errno(libc::EAGAIN | libc::EACCES)) => pauses.make(current, None)?,
            answer => return answer,
        }
    }
}
