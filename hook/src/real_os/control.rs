//! `fcntl`: duplicates begin with nothing known, and O_NONBLOCK shows as the user set it.

use super::wait::settings_changed;
use super::{forget, note_shared, window};
use crate::errno::{Result, check_int};
use crate::real;
use core::ffi::{c_int, c_ulong};
use std::os::fd::RawFd;

pub(crate) fn control(fd: RawFd, command: c_int, argument: c_ulong) -> Result<c_int> {
    // SAFETY: the caller's own arguments: the kernel judges them.
    let call = |argument| check_int(unsafe { real::fcntl(fd, command, argument) });
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => call(argument).map(|copy| note_duplicate(fd, copy)),
        libc::F_GETFL => window::flags(fd),
        libc::F_SETFL => {
            let answer = window::change(fd, || call(argument));
            settings_changed(fd);
            answer
        }
        _ => call(argument),
    }
}

/// A duplicate has been made, if `copy` is a descriptor; its number means nothing that it meant before.
pub(crate) fn note_duplicate(fd: RawFd, copy: RawFd) -> RawFd {
    if copy >= 0 && copy != fd {
        forget(copy);
        note_shared(fd);
        note_shared(copy);
    }
    copy
}
