//! Errors as the kernel gives them, and the C convention for returning them.

use crate::real;
use core::ffi::{c_int, c_long};
use squall_fiber::Interrupt;

/// An errno value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Nothing there, or no room, right now (`EAGAIN`, the same as `EWOULDBLOCK` on Linux).
    pub const AGAIN: Errno = Errno(libc::EAGAIN);
    /// Not an open descriptor.
    pub const BADF: Errno = Errno(libc::EBADF);
    /// The fiber has been cancelled.
    pub const CANCELED: Errno = Errno(libc::ECANCELED);
    /// A signal came.
    pub const INTR: Errno = Errno(libc::EINTR);
    /// Invalid argument.
    pub const INVAL: Errno = Errno(libc::EINVAL);
    /// The operation goes on.
    pub const INPROGRESS: Errno = Errno(libc::EINPROGRESS);
    /// The operation goes on since an earlier call.
    pub const ALREADY: Errno = Errno(libc::EALREADY);
    /// There is a connection.
    pub const ISCONN: Errno = Errno(libc::EISCONN);
    /// The time is up.
    pub const TIMEDOUT: Errno = Errno(libc::ETIMEDOUT);
    /// Not supported by this kind of descriptor.
    pub const OPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);
    /// Not a socket.
    pub const NOTSOCK: Errno = Errno(libc::ENOTSOCK);

    /// What a call returns that ends because its fiber is interrupted.
    pub fn of_interrupt(interrupt: Interrupt) -> Errno {
        match interrupt {
            Interrupt::Cancelled => Errno::CANCELED,
            Interrupt::DeadlineExceeded => Errno::TIMEDOUT,
        }
    }

    /// The caller's current errno.
    pub fn last() -> Errno {
        Errno(real::errno())
    }
}

/// The result of an operating-system call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Reads the C convention: -1 means "see errno".
pub(crate) fn check(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

/// As [`check`], for calls that return an int.
pub(crate) fn check_int(result: c_int) -> Result<c_int> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// Writes the C convention for an int.
pub(crate) fn answer_int(result: Result<c_int>) -> c_int {
    result.unwrap_or_else(|errno| {
        real::set_errno(errno.0);
        -1
    })
}

/// Writes the C convention for a size.
pub(crate) fn answer_size(result: Result<usize>) -> isize {
    match result {
        Ok(size) => size as isize,
        Err(errno) => {
            real::set_errno(errno.0);
            -1
        }
    }
}

/// Writes the C convention for a long.
pub(crate) fn answer_long(result: Result<usize>) -> c_long {
    answer_size(result) as c_long
}
