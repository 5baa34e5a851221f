//! Accepting connections.
//!
//! `accept` has no flag that keeps it from waiting, and polling first would leave the thread blocked if another process took the
//! connection in between. So a listening socket on which a fiber waits has O_NONBLOCK set without its user's knowledge, and
//! everything that could show it is covered: `fcntl(F_GETFL)`, `ioctl(FIONBIO)`, an `accept` from a plain thread, duplicates.

use super::kind;
use super::wait::{retry, timeout};
use crate::errno::{Errno, Result, check_int};
use crate::os::AddressMut;
use crate::real;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use squall_fiber::lock::Lock;
use squall_iomanager::descriptor::Direction;
use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::sync::Arc;

/// Listening sockets with a hidden O_NONBLOCK. Duplicates share the flag that says so, as they share the kernel's.
static LISTENERS: Lock<BTreeMap<RawFd, Arc<AtomicBool>>> = Lock::new(BTreeMap::new());
/// How many entries the map has: most processes and most calls find none.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn hidden_flag(fd: RawFd) -> Option<Arc<AtomicBool>> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return None;
    }
    LISTENERS.lock().get(&fd).cloned()
}

/// Whether the kernel's O_NONBLOCK on this descriptor is ours and not the user's.
pub(crate) fn is_hidden(fd: RawFd) -> bool {
    hidden_flag(fd).is_some_and(|flag| flag.load(Ordering::Acquire))
}

/// The user has set or cleared O_NONBLOCK. True if the kernel's flag must stay set.
pub(crate) fn user_sets_nonblocking(fd: RawFd, nonblocking: bool) -> bool {
    match hidden_flag(fd) {
        Some(flag) => {
            flag.store(!nonblocking, Ordering::Release);
            true
        }
        None => nonblocking,
    }
}

/// `copy` is a duplicate of `fd`.
pub(crate) fn duplicate(fd: RawFd, copy: RawFd) {
    if let Some(flag) = hidden_flag(fd) {
        insert(copy, flag);
    }
}

pub(crate) fn forget(fd: RawFd) {
    if COUNT.load(Ordering::Acquire) != 0 {
        let mut listeners = LISTENERS.lock();
        listeners.remove(&fd);
        COUNT.store(listeners.len(), Ordering::Release);
    }
}

fn insert(fd: RawFd, flag: Arc<AtomicBool>) {
    let mut listeners = LISTENERS.lock();
    listeners.insert(fd, flag);
    COUNT.store(listeners.len(), Ordering::Release);
}

/// Makes the kernel's side non-blocking, unless the user has.
fn hide_nonblocking(fd: RawFd) -> Result<()> {
    if hidden_flag(fd).is_some() {
        return Ok(());
    }
    // SAFETY: F_GETFL takes no argument, F_SETFL an int.
    unsafe {
        let flags = check_int(real::fcntl(fd, libc::F_GETFL, 0))?;
        if (flags & libc::O_NONBLOCK) == 0 {
            insert(fd, Arc::new(AtomicBool::new(true)));
            check_int(real::fcntl(fd, libc::F_SETFL, (flags | libc::O_NONBLOCK) as _))?;
        }
    }
    Ok(())
}

pub(super) fn accept(fd: RawFd, peer: AddressMut, flags: c_int) -> Result<RawFd> {
    let Some((_, slot)) = kind::socket(fd) else { return call(fd, &peer, flags) };
    hide_nonblocking(fd)?;
    let accepted = retry(fd, slot, Direction::Read, || call(fd, &peer, flags))?;
    super::forget(accepted);
    Ok(accepted)
}

/// `accept4` from a plain thread: as the user sees the socket, it blocks.
pub(crate) fn accept_in_thread(fd: RawFd, peer: AddressMut, flags: c_int) -> Result<RawFd> {
    loop {
        match call(fd, &peer, flags) {
            Ok(accepted) => {
                super::forget(accepted);
                return Ok(accepted);
            }
            Err(Errno::AGAIN) if is_hidden(fd) => {}
            Err(errno) => return Err(errno),
        }
        let timeout_ms = timeout(fd, Direction::Read)
            .map_or(-1, |timeout| timeout.as_millis().clamp(1, c_int::MAX as u128) as c_int);
        let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one live entry.
        if check_int(unsafe { real::poll(&mut entry, 1, timeout_ms) })? == 0 {
            return Err(Errno::AGAIN);
        }
    }
}

fn call(fd: RawFd, peer: &AddressMut, flags: c_int) -> Result<RawFd> {
    // SAFETY: the address is the caller's, or null.
    check_int(unsafe { real::accept4(fd, peer.address, peer.length, flags) })
}
