//! Reading, writing, polling and syncing anything that has a descriptor.

use super::time;
use crate::errno::{Errno, answer_int, answer_size};
use crate::os::{Buffer, BufferMut, hot_hook, in_fiber_or};
use crate::real;
use crate::real_os::masked::{self, Mask};
use core::ffi::{c_int, c_void};
use libc::{iovec, nfds_t, off_t, pollfd, size_t, ssize_t, timespec};
use std::time::Duration;

/// Linux's `UIO_MAXIOV`.
pub(super) const VECTORS_MAX: c_int = 1024;

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t {
    hot_hook!(read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t, |current, os| {
        // SAFETY: the caller passes a buffer of that length.
        let buffer = unsafe { BufferMut::new(buffer, length) };
        answer_size(os.read(current, fd, &mut [buffer]))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t {
    hot_hook!(write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t, |current, os| {
        // SAFETY: the caller passes a buffer of that length.
        let buffer = unsafe { Buffer::new(buffer, length) };
        answer_size(os.write(current, fd, &[buffer]))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn readv(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t {
    hot_hook!(readv(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t, |current, os| {
        if vectors.is_null() || !(1..=VECTORS_MAX).contains(&count) {
            // SAFETY: the kernel judges the caller's own arguments.
            return unsafe { real::readv(fd, vectors, count) };
        }
        // SAFETY: the caller passes `count` vectors, and a BufferMut has the layout of an iovec. The vectors themselves
        // are only read.
        let buffers = unsafe {
            core::slice::from_raw_parts_mut(vectors.cast_mut().cast::<BufferMut>(), count as usize)
        };
        answer_size(os.read(current, fd, buffers))
    })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t {
    hot_hook!(writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t, |current, os| {
        if vectors.is_null() || !(1..=VECTORS_MAX).contains(&count) {
            // SAFETY: the kernel judges the caller's own arguments.
            return unsafe { real::writev(fd, vectors, count) };
        }
        // SAFETY: the caller passes `count` vectors, and a Buffer has the layout of an iovec.
        let buffers = unsafe { core::slice::from_raw_parts(vectors.cast::<Buffer>(), count as usize) };
        answer_size(os.write(current, fd, buffers))
    })
}

/// # Safety
/// `entries` points to `count` entries.
unsafe fn poll_in_fiber(
    current: squall_fiber::Current<'_>,
    os: &dyn crate::Os,
    entries: *mut pollfd,
    count: nfds_t,
    timeout: Option<Duration>,
    mask: Option<Mask>,
) -> c_int {
    let entries = match (entries.is_null(), count) {
        (_, 0) => &mut [],
        (true, _) => return answer_int(Err(Errno(libc::EFAULT))),
        // More than memory can hold is more than any limit on descriptors.
        (false, count) if count > (isize::MAX as nfds_t) / size_of::<pollfd>() as nfds_t => {
            return answer_int(Err(Errno::INVAL));
        }
        // SAFETY: by the contract.
        (false, count) => unsafe { core::slice::from_raw_parts_mut(entries, count as usize) },
    };
    answer_int(poll_with(current, os, entries, timeout, mask).map(|ready| ready as c_int))
}

/// `poll`, with a signal mask if that is given and makes a difference. A simulation has no signals.
pub(super) fn poll_with(
    current: squall_fiber::Current<'_>,
    os: &dyn crate::Os,
    entries: &mut [pollfd],
    timeout: Option<Duration>,
    mask: Option<Mask>,
) -> crate::Result<usize> {
    match mask.and_then(Mask::unless_current) {
        Some(mask) if os.world().is_none() => masked::poll(current, entries, timeout, mask),
        _ => os.poll(current, entries, timeout),
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn poll(entries: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int {
    in_fiber_or!(
        |current, os| {
            let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
            // SAFETY: the caller passes that many entries.
            unsafe { poll_in_fiber(current, os, entries, count, timeout, None) }
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::poll(entries, count, timeout_ms) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn ppoll(
    entries: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const libc::sigset_t,
) -> c_int {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes null or a timespec.
            let timeout = match unsafe { time::timeout(timeout) } {
                Ok(timeout) => timeout,
                Err(errno) => return answer_int(Err(errno)),
            };
            // SAFETY: the caller passes that many entries, and null or a mask.
            unsafe { poll_in_fiber(current, os, entries, count, timeout, Mask::new(mask)) }
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::ppoll(entries, count, timeout, mask) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    in_fiber_or!(
        |current, os| answer_int(os.sync_file(current, fd, false).map(|()| 0)),
        // SAFETY: no memory is involved.
        || unsafe { real::fsync(fd) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    in_fiber_or!(
        |current, os| answer_int(os.sync_file(current, fd, true).map(|()| 0)),
        // SAFETY: no memory is involved.
        || unsafe { real::fdatasync(fd) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sendfile(
    out: c_int,
    input: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes null or an offset.
            let offset = unsafe { offset.as_mut() };
            answer_size(os.send_file(current, out, input, offset, count))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::sendfile(out, input, offset, count) },
    )
}

/// The same on 64-bit Linux; what std calls.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sendfile64(
    out: c_int,
    input: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    // SAFETY: the caller's own arguments.
    unsafe { sendfile(out, input, offset, count) }
}
