//! Accepting connections.
//!
//! `accept` has no flag that keeps it from waiting, and O_NONBLOCK belongs to the open file: whoever inherits the listening socket would
//! find it set, for good if two processes that set it for the length of a call restore each other's. So the flag is left alone. A fiber
//! waits for a connection, and only when there is one does it accept, as a blocking call that does not block. That needs nobody to
//! take the connection between the look and the call:
//! - Fibers take turns, by a lock that belongs to the socket's inode, so that duplicates share it.
//! - A plain thread that is about to accept says so under the same lock. While one is in the call, and for all that is known when
//!   another process may have the socket (this one has forked, or was forked), fibers make the call on the blocking pool, where
//!   a connection that is snatched away costs a thread its time, and no worker.
//!
//! What remains: a socket that was inherited through exec, or passed over another socket, and that another process accepts from as well. If
//! that process is faster, the worker waits for the next connection.

use super::kind;
use super::poll::is_ready;
use super::pool::on_pool;
use super::wait::Waiting;
use super::window::turns;
use crate::errno::{Errno, Result, check_int};
use crate::os::AddressMut;
use crate::real;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering};
use squall_fiber::{Current, is_forked_child};
use squall_iomanager::descriptor::Direction;
use std::os::fd::RawFd;

/// Whether a process with the same open files may exist.
static HAS_FORKED: AtomicBool = AtomicBool::new(false);

/// To be called once, before `main`.
pub(crate) fn watch_forks() {
    unsafe extern "C" fn before_fork() {
        HAS_FORKED.store(true, Ordering::Relaxed);
    }
    // SAFETY: the handler only stores. Fails only without memory; forks are then not noticed.
    unsafe { libc::pthread_atfork(Some(before_fork), None, None) };
}

pub(super) fn accept(current: Current<'_>, fd: RawFd, peer: AddressMut, flags: c_int) -> Result<RawFd> {
    let Some((_, slot)) = kind::socket(fd) else { return call(fd, &peer, flags) };
    if (flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)) != 0 {
        // Refused whether there is a connection or not.
        return call(fd, &peer, flags);
    }
    let mut waiting = Waiting::new(fd, slot, Direction::Read);
    loop {
        let seen_edges = slot.edges(Direction::Read);
        match accept_if_ready(current, fd, &peer, flags) {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
        // Nobody ever connects to what does not listen: the call says so at once.
        if !is_listening(fd) {
            return call(fd, &peer, flags);
        }
        waiting.wait(slot, seen_edges)?;
    }
}

/// # Errors
/// `EAGAIN` if there is no connection; those of `accept`.
fn accept_if_ready(current: Current<'_>, fd: RawFd, peer: &AddressMut, flags: c_int) -> Result<RawFd> {
    let threads_accepting = turns(fd).lock();
    if !is_ready(fd, Direction::Read) {
        return Err(Errno::AGAIN);
    }
    if *threads_accepting == 0 && !HAS_FORKED.load(Ordering::Relaxed) {
        return call(fd, peer, flags);
    }
    drop(threads_accepting);
    // SAFETY: the address is the caller's, which waits.
    unsafe {
        on_pool(current, (peer.address, peer.length), |(address, length)| {
            call(fd, &AddressMut { address, length }, flags)
        })
    }
}

/// `accept4` from a plain thread.
pub(crate) fn accept_in_thread(fd: RawFd, peer: AddressMut, flags: c_int) -> Result<RawFd> {
    if is_forked_child() {
        // There are no fibers here, and a thread that does not exist here may hold the lock.
        return call(fd, &peer, flags);
    }
    let turns = turns(fd);
    *turns.lock() += 1;
    let answer = call(fd, &peer, flags);
    *turns.lock() -= 1;
    answer
}

fn is_listening(fd: RawFd) -> bool {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the option fills an int of the length given.
    let result = unsafe {
        real::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, (&raw mut value).cast(), &mut length)
    };
    result == 0 && value != 0
}

fn call(fd: RawFd, peer: &AddressMut, flags: c_int) -> Result<RawFd> {
    // SAFETY: the address is the caller's, or null.
    let accepted = check_int(unsafe { real::accept4(fd, peer.address, peer.length, flags) })?;
    super::forget(accepted);
    Ok(accepted)
}
