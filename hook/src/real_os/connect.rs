//! Connecting.

use super::kind;
use super::poll::is_ready;
use super::wait::{is_nonblocking, refuse_if_interrupted, timeout};
use crate::errno::{Errno, Result, check_int};
use crate::real;
use core::ffi::c_int;
use squall_fiber::{Current, Wake, run_blocking};
use squall_iomanager::descriptor::Direction;
use std::os::fd::RawFd;
use std::time::Instant;

pub(super) fn connect(current: Current<'_>, fd: RawFd, address: &[u8]) -> Result<()> {
    let Some(slot) = kind::socket(fd) else { return call(fd, address) };
    if is_nonblocking(fd)? {
        return call(fd, address);
    }
    let seen_edges = slot.edges(Direction::Write);
    match without_blocking(fd, || call(fd, address))? {
        Err(Errno::INPROGRESS) => {}
        // A Unix socket whose listener's backlog is full: there is nothing that the kernel would report an edge for.
        Err(Errno::AGAIN) => {
            refuse_if_interrupted(current)?;
            return run_blocking(|| call(fd, address));
        }
        answer => return answer,
    }
    let deadline = timeout(fd, Direction::Write).map(|timeout| Instant::now() + timeout);
    let mut seen_edges = seen_edges;
    // An edge from before the connect (a fresh socket reports a hang-up) must not pass for the answer.
    while !is_ready(fd, Direction::Write) {
        match slot.wait(Direction::Write, seen_edges, deadline) {
            Ok(Wake::Ready) => seen_edges = slot.edges(Direction::Write),
            // What the kernel says when SO_SNDTIMEO ends a connect, which goes on in the background.
            Ok(Wake::TimedOut) => return Err(Errno::INPROGRESS),
            Ok(Wake::Cancelled) => return Err(Errno::CANCELED),
            Ok(Wake::Expired) => return Err(Errno::TIMEDOUT),
            Ok(Wake::Closed) => return Err(Errno::BADF),
            Err(error) => return Err(Errno(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
    match socket_error(fd)? {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

fn call(fd: RawFd, address: &[u8]) -> Result<()> {
    // SAFETY: the address is a live slice.
    check_int(unsafe { real::connect(fd, address.as_ptr().cast(), address.len() as libc::socklen_t) })
        .map(drop)
}

/// Sets O_NONBLOCK for the length of one call that has no flag of its own for it. The call does not wait, so no fiber of this
/// worker sees the change, and it is gone before anybody could inherit it.
pub(super) fn without_blocking<T>(fd: RawFd, call: impl FnOnce() -> T) -> Result<T> {
    // SAFETY: F_GETFL takes no argument, F_SETFL an int.
    unsafe {
        let flags = check_int(real::fcntl(fd, libc::F_GETFL, 0))?;
        check_int(real::fcntl(fd, libc::F_SETFL, (flags | libc::O_NONBLOCK) as _))?;
        let answer = call();
        check_int(real::fcntl(fd, libc::F_SETFL, flags as _))?;
        Ok(answer)
    }
}

fn socket_error(fd: RawFd) -> Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the option fills an int of the length given.
    check_int(unsafe {
        real::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut value).cast(), &mut length)
    })?;
    Ok(value)
}
