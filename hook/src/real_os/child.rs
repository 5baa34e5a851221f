//! Waiting for a child process to end.
//!
//! A pidfd is readable once its process has ended, so the wait needs no thread of the pool, of which there are few, and can be
//! interrupted.

use super::poll::is_ready;
use super::wait::refuse_if_interrupted;
use super::{close, forget};
use crate::errno::{Errno, Result, check_int};
use crate::real;
use core::ffi::{c_int, c_long};
use libc::pid_t;
use squall_fiber::{Current, Wake, run_blocking};
use squall_iomanager::descriptor::{Direction, slot};
use std::os::fd::RawFd;

/// Moves the caller's pointer to the thread that makes the call for it.
struct Borrowed(*mut c_int);

// SAFETY: the caller waits, with its pointer valid, until the call is over.
unsafe impl Send for Borrowed {}

/// `waitpid` in a fiber.
///
/// # Safety
/// `status` is null or writable.
pub(crate) unsafe fn wait_for(
    current: Current<'_>,
    pid: pid_t,
    status: *mut c_int,
    options: c_int,
) -> Result<pid_t> {
    // SAFETY: by the contract.
    let call = |status, options| check_int(unsafe { real::waitpid(pid, status, options) });
    // A pidfd tells of the end of one process, not that it was stopped.
    let one_ends = pid > 0 && (options & (libc::WUNTRACED | libc::WCONTINUED)) == 0;
    loop {
        let answer = call(status, options | libc::WNOHANG);
        if answer != Ok(0) || (options & libc::WNOHANG) != 0 {
            return answer;
        }
        if !(one_ends && await_end(pid)?) {
            break;
        }
    }
    refuse_if_interrupted(current)?;
    let status = Borrowed(status);
    run_blocking(move || {
        // The whole, not the pointer inside, which is not `Send`.
        let status = status;
        loop {
            match call(status.0, options) {
                // A signal that this helper thread happened to get is not for the caller.
                Err(Errno(libc::EINTR)) => {}
                answer => return answer,
            }
        }
    })
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
