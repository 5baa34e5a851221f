//! Waiting for several descriptors at once.

use crate::errno::{Errno, Result};
use crate::kernel;
use crate::os::PollEntry;
use core::ffi::c_int;
use core::mem::MaybeUninit;
use squall_fiber::{Current, WaitKind, Wake, Waker};
use squall_iomanager::descriptor::{self, Direction};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Asks the kernel, without waiting.
fn look(entries: &mut [PollEntry]) -> Result<usize> {
    kernel::poll_now(entries)
}

/// Whether a call in this direction would not wait.
pub(super) fn is_ready(fd: RawFd, direction: Direction) -> bool {
    let events = match direction {
        Direction::Read => libc::POLLIN,
        Direction::Write => libc::POLLOUT,
    };
    look(&mut [PollEntry { fd, events, revents: 0 }]).is_ok_and(|count| count > 0)
}

/// Whether the peer of a stream has sent its last byte.
pub(super) fn is_ended(fd: RawFd) -> bool {
    look(&mut [PollEntry { fd, events: libc::POLLRDHUP, revents: 0 }]).is_ok_and(|count| count > 0)
}

/// Whether an error waits to be told to somebody.
pub(super) fn has_error(fd: RawFd) -> bool {
    let mut entry = [PollEntry { fd, events: 0, revents: 0 }];
    look(&mut entry).is_ok() && (entry[0].revents & libc::POLLERR) != 0
}

pub(super) fn poll(
    current: Current<'_>,
    entries: &mut [PollEntry],
    timeout: Option<Duration>,
) -> Result<usize> {
    let ready = look(entries)?;
    if ready > 0 || timeout == Some(Duration::ZERO) {
        return Ok(ready);
    }
    // A timeout beyond the end of the clock never comes.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let wait = current.begin_interruptible_wait(WaitKind::Poll, entries.len() as u64);
        let waker = wait.waker();
        let mut ready = match add_wakers(entries, &waker) {
            Ok(()) => look(entries),
            Err(errno) => Err(errno),
        };
        // Only now is there nothing between the look and the wait that could be missed.
        let mut wake = Wake::Ready;
        if ready == Ok(0) {
            wake = wait.block_interruptible(deadline);
            ready = look(entries);
        } else {
            wait.abandon();
        }
        remove_wakers(entries, &waker);
        match wake {
            // What became ready in the same moment must not be lost.
            _ if ready != Ok(0) => return ready,
            Wake::TimedOut => return ready,
            Wake::Cancelled => return Err(Errno::CANCELED),
            Wake::Expired => return Err(Errno::TIMEDOUT),
            Wake::Ready | Wake::Closed => {}
        }
    }
}

/// `epoll_wait`: an epoll descriptor is itself readable when it has events, so it waits in the reactor like any other.
pub(super) fn wait_events(
    epoll: RawFd,
    events: &mut [MaybeUninit<libc::epoll_event>],
    timeout: Option<Duration>,
) -> Result<usize> {
    let capacity = events.len().min(c_int::MAX as usize) as c_int;
    let mut look = || {
        // SAFETY: room for `capacity` events.
        unsafe { kernel::events_now(epoll, events.as_mut_ptr().cast(), capacity) }
    };
    let Some(slot) = descriptor::slot(epoll) else { return look() };
    // A timeout beyond the end of the clock never comes.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let seen_edges = slot.edges(Direction::Read);
        let ready = look()?;
        if ready > 0 || timeout == Some(Duration::ZERO) {
            return Ok(ready);
        }
        match slot.wait(Direction::Read, seen_edges, deadline) {
            Ok(Wake::Ready) => {}
            Ok(Wake::TimedOut) => return look(),
            Ok(Wake::Cancelled) => return Err(Errno::CANCELED),
            Ok(Wake::Expired) => return Err(Errno::TIMEDOUT),
            Ok(Wake::Closed) => return Err(Errno::BADF),
            Err(error) => return Err(Errno(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
}

/// An entry without events still waits for errors and hang-ups, which fire both directions.
fn directions(entry: &PollEntry) -> [bool; 2] {
    let read = (entry.events
        & (libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP | libc::POLLRDNORM | libc::POLLRDBAND))
        != 0;
    let write = (entry.events & (libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND)) != 0;
    if read || write { [read, write] } else { [true, true] }
}

fn each_slot(
    entries: &[PollEntry],
    mut f: impl FnMut(&'static descriptor::Slot, Direction) -> Result<()>,
) -> Result<()> {
    for entry in entries {
        let Some(slot) = descriptor::slot(entry.fd) else { continue };
        for (direction, wanted) in [Direction::Read, Direction::Write].into_iter().zip(directions(entry)) {
            if wanted {
                f(slot, direction)?;
            }
        }
    }
    Ok(())
}

fn add_wakers(entries: &[PollEntry], waker: &Waker) -> Result<()> {
    each_slot(entries, |slot, direction| {
        slot.add_waker(direction, waker.clone())
            .map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::ENOMEM)))
    })
}

fn remove_wakers(entries: &[PollEntry], waker: &Waker) {
    let _ = each_slot(entries, |slot, direction| {
        slot.remove_waker(direction, waker);
        Ok(())
    });
}
