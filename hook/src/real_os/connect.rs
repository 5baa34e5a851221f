//! Connecting.

use super::kind;
use super::poll::is_ready;
use super::wait::{is_nonblocking, refuse_if_interrupted, timeout};
use super::window::without_blocking;
use crate::errno::{Errno, Result, check_int};
use crate::real;
use core::ffi::c_int;
use squall_fiber::{Current, Wake, run_blocking};
use squall_iomanager::descriptor::Direction;
use std::os::fd::RawFd;
use std::time::Instant;

pub(super) fn connect(current: Current<'_>, fd: RawFd, address: &[u8]) -> Result<()> {
    let Some((_, slot)) = kind::socket(fd) else { return call(fd, address) };
    if is_nonblocking(fd)? {
        return call(fd, address);
    }
    let seen_edges = slot.edges(Direction::Write);
    let going_on = match without_blocking(fd, || call(fd, address))? {
        // The second: begun by a non-blocking call, or one whose time was up.
        Err(errno @ (Errno::INPROGRESS | Errno::ALREADY)) => errno,
        // A Unix socket whose listener's backlog is full: there is nothing that the kernel would report an edge for.
        Err(Errno::AGAIN) => {
            refuse_if_interrupted(current)?;
            return run_blocking(|| call(fd, address));
        }
        answer => return answer,
    };
    let deadline = timeout(fd, Direction::Write).map(|timeout| Instant::now() + timeout);
    let mut seen_edges = seen_edges;
    // An edge from before the connect (a fresh socket reports a hang-up) must not pass for the answer.
    while !is_ready(fd, Direction::Write) {
        match slot.wait(Direction::Write, seen_edges, deadline) {
            Ok(Wake::Ready) => seen_edges = slot.edges(Direction::Write),
            // What the kernel says when SO_SNDTIMEO ends a connect, which goes on in the background.
            Ok(Wake::TimedOut) => return Err(going_on),
            Ok(Wake::Cancelled) => return Err(Errno::CANCELED),
            Ok(Wake::Expired) => return Err(Errno::TIMEDOUT),
            Ok(Wake::Closed) => return Err(Errno::BADF),
            Err(error) => return Err(Errno(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
    match socket_error(fd)? {
        // Only when asked again does the kernel note that the connection is made. Without that, the user's next call would be that one
        // and succeed, too, instead of failing with EISCONN. Some families note it by themselves.
        0 => match without_blocking(fd, || call(fd, address))? {
            Err(Errno::ISCONN) => Ok(()),
            answer => answer,
        },
        errno => {
            start_afresh(fd, address);
            Err(Errno(errno))
        }
    }
}

/// What the kernel does at the end of a connect that waited and failed: the socket may try again.
fn start_afresh(fd: RawFd, address: &[u8]) {
    let family = address.first_chunk().map(|bytes| c_int::from(u16::from_ne_bytes(*bytes)));
    if matches!(family, Some(libc::AF_INET | libc::AF_INET6)) {
        let nobody = (libc::AF_UNSPEC as u16).to_ne_bytes();
        let mut unspecified = [0; size_of::<libc::sockaddr>()];
        unspecified[..nobody.len()].copy_from_slice(&nobody);
        // The error to tell is the one of the connect.
        let _ = call(fd, &unspecified);
    }
}

fn call(fd: RawFd, address: &[u8]) -> Result<()> {
    // SAFETY: the address is a live slice.
    check_int(unsafe { real::connect(fd, address.as_ptr().cast(), address.len() as libc::socklen_t) })
        .map(drop)
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
