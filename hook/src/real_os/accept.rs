//! Accepting connections.
//!
//! `accept` has no flag that keeps it from waiting, and polling alone would leave the thread blocked if somebody else took the
//! connection in between. So it is called with O_NONBLOCK set for the length of the call, once polling says that there is something.

use super::kind;
use super::poll::{is_ended, is_ready};
use super::wait::{retry, timeout};
use super::window;
use crate::errno::{Errno, Result, check_int};
use crate::os::AddressMut;
use crate::real;
use core::ffi::c_int;
use squall_iomanager::descriptor::Direction;
use std::os::fd::RawFd;
use std::time::Instant;

pub(super) fn accept(fd: RawFd, peer: AddressMut, flags: c_int) -> Result<RawFd> {
    let Some((_, slot)) = kind::socket(fd) else { return call(fd, &peer, flags) };
    let mut tried = false;
    let accepted = retry(fd, slot, Direction::Read, || {
        // The first try is also what finds bad arguments.
        if core::mem::replace(&mut tried, true) && !is_ready(fd, Direction::Read) {
            return Err(Errno::AGAIN);
        }
        match window::without_blocking(fd, || call(fd, &peer, flags))? {
            // After a shutdown. A Unix socket tells those that wait of it, but not those that do not.
            Err(Errno::AGAIN) if is_ended(fd) => Err(Errno::INVAL),
            answer => answer,
        }
    })?;
    super::forget(accepted);
    Ok(accepted)
}

/// `accept4` from a plain thread. A fiber's call must not make this one return early.
pub(crate) fn accept_in_thread(fd: RawFd, peer: AddressMut, flags: c_int) -> Result<RawFd> {
    let before = window::Witness::new();
    let accepted = match call(fd, &peer, flags) {
        Err(Errno::AGAIN) if before.has_seen_a_window() => accept_again(fd, &peer, flags)?,
        answer => answer?,
    };
    super::forget(accepted);
    Ok(accepted)
}

/// After an EAGAIN that need not be the user's.
#[cold]
fn accept_again(fd: RawFd, peer: &AddressMut, flags: c_int) -> Result<RawFd> {
    let deadline = timeout(fd, Direction::Read).map(|timeout| Instant::now() + timeout);
    loop {
        if (window::flags(fd)? & libc::O_NONBLOCK) != 0
            || deadline.is_some_and(|deadline| deadline <= Instant::now())
        {
            return Err(Errno::AGAIN);
        }
        match call(fd, peer, flags) {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
}

fn call(fd: RawFd, peer: &AddressMut, flags: c_int) -> Result<RawFd> {
    // SAFETY: the address is the caller's, or null.
    check_int(unsafe { real::accept4(fd, peer.address, peer.length, flags) })
}
