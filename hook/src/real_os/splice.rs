//! `splice`, `tee` and `vmsplice`: moving data through pipes inside the kernel.

use super::kind;
use super::poll::is_ready;
use super::wait::{Pauses, Waiting, is_nonblocking};
use crate::errno::{Errno, Result};
use core::ffi::c_uint;
use squall_fiber::Current;
use squall_iomanager::descriptor::{Direction, Slot};
use std::os::fd::RawFd;
use std::time::Duration;

/// All that the kernel knows.
const FLAGS: c_uint =
    libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MORE | libc::SPLICE_F_GIFT;

/// One end of a transfer.
struct End {
    fd: RawFd,
    is_socket: bool,
    slot: &'static Slot,
    waiting: Waiting,
    direction: Direction,
}

impl End {
    /// `None` for what never makes anybody wait.
    fn new(fd: RawFd, direction: Direction) -> Option<Self> {
        let (kind, slot) = kind::pollable(fd)?;
        let waiting = Waiting::new(fd, slot, direction);
        Some(Self { fd, is_socket: kind.is_socket(), slot, waiting, direction })
    }

    /// Waits until the end is ready. False if it was already.
    fn wait(&mut self) -> Result<bool> {
        let seen_edges = self.slot.edges(self.direction);
        if is_ready(self.fd, self.direction) {
            return Ok(false);
        }
        self.waiting.wait(self.slot, seen_edges)?;
        Ok(true)
    }
}

/// Calls `transfer` with `SPLICE_F_NONBLOCK` until it need not wait, waiting in between for the ends that do. Sockets do not know that
/// flag, so they are looked at before.
pub(crate) fn transfer(
    current: Current<'_>,
    input: Option<RawFd>,
    output: Option<RawFd>,
    flags: c_uint,
    mut transfer: impl FnMut(c_uint) -> Result<usize>,
) -> Result<usize> {
    let mut ends = [
        input.and_then(|fd| End::new(fd, Direction::Read)),
        output.and_then(|fd| End::new(fd, Direction::Write)),
    ];
    // With flags that there are not it is refused, whatever its ends say.
    if (flags & libc::SPLICE_F_NONBLOCK) != 0 || (flags & !FLAGS) != 0 {
        return transfer(flags);
    }
    for end in ends.iter().flatten() {
        if is_nonblocking(end.fd)? {
            return transfer(flags);
        }
    }
    if !ends.iter().flatten().any(|end| end.is_socket) {
        // The kernel says at once what is wrong with the arguments, before there is anything to wait for.
        match transfer(flags | libc::SPLICE_F_NONBLOCK) {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    let mut pauses = Pauses::up_to(Duration::from_millis(1));
    loop {
        let mut waited = false;
        for end in ends.iter_mut().flatten() {
            waited |= end.wait()?;
        }
        if waited {
            // While it waited for one end, the other may have changed.
            continue;
        }
        match transfer(flags | libc::SPLICE_F_NONBLOCK) {
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
        // Both ends say that they are ready, and still it would wait: for more room than a pipe has just now. Nothing tells when.
        pauses.make(current, None)?;
    }
}
