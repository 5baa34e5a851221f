//! Waiting for a child process to end.
//!
//! A pidfd is readable once its process has ended, so the wait needs no thread of the pool, of which there are few, and can be
//! interrupted.

use super::poll::is_ready;
use super::pool::on_pool;
use super::{close, forget};
use crate::errno::{Errno, Result};
use crate::real;
use core::ffi::{c_int, c_long};
use libc::pid_t;
use squall_fiber::{Current, Wake};
use squall_iomanager::descriptor::{Direction, slot};
use std::os::fd::RawFd;

/// `waitpid` and its siblings in a fiber: `call` makes the call with the options that it is given, and answers 0 if no child has
/// changed yet. `pid` is that of the child that is waited for, if it is one.
///
/// # Safety
/// `call` may be made by another thread, while the fiber waits.
pub(crate) unsafe fn wait_for(
    current: Current<'_>,
    pid: Option<pid_t>,
    options: c_int,
    call: impl Fn(c_int) -> Result<pid_t>,
) -> Result<pid_t> {
    // A pidfd tells of the end of one process, not that it was stopped.
    let ending = pid.filter(|_| (options & (libc::WSTOPPED | libc::WCONTINUED)) == 0);
    loop {
        let answer = call(options | libc::WNOHANG);
        if answer != Ok(0) || (options & libc::WNOHANG) != 0 {
            return answer;
        }
        match ending {
            Some(pid) if await_end(pid)? => {}
            _ => break,
        }
    }
    // SAFETY: by the contract.
    unsafe { on_pool(current, &raw const call, |call| (*call)(options)) }
}

/// Waits in the reactor until the process has ended. False where that cannot be done: a kernel before 5.3, no room for a
/// descriptor, a scheduler without a reactor.
fn await_end(pid: pid_t) -> Result<bool> {
    // SAFETY: no memory is involved.
    let fd = unsafe { real::syscall(libc::SYS_pidfd_open, [pid as c_long, 0, 0, 0, 0, 0]) } as RawFd;
    if fd < 0 {
        return Ok(false);
    }
    forget(fd);
    let wake = slot(fd).map(|slot| {
        let seen_edges = slot.edges(Direction::Read);
        if is_ready(fd, Direction::Read) {
            return Ok(Wake::Ready);
        }
        slot.wait(Direction::Read, seen_edges, None)
    });
    // It was only looked at: closing it has nothing to fail with.
    let _ = close(fd);
    match wake {
        Some(Ok(Wake::Cancelled)) => Err(Errno::CANCELED),
        Some(Ok(Wake::Expired)) => Err(Errno::TIMEDOUT),
        Some(Ok(_)) => Ok(true),
        Some(Err(_)) | None => Ok(false),
    }
}
