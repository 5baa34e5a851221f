//! `fcntl`: duplicates inherit what is known, and a hidden O_NONBLOCK does not show.

use super::wait::settings_changed;
use super::{forget, listener, note_shared, window};
use crate::errno::{Result, check_int};
use crate::real;
use core::ffi::{c_int, c_ulong};
use std::os::fd::RawFd;

pub(crate) fn control(fd: RawFd, command: c_int, argument: c_ulong) -> Result<c_int> {
    // SAFETY: the caller's own arguments: the kernel judges them.
    let call = |argument| check_int(unsafe { real::fcntl(fd, command, argument) });
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => call(argument).map(|copy| note_duplicate(fd, copy)),
        libc::F_GETFL => {
            let flags = window::flags(fd)?;
            Ok(if listener::is_hidden(fd) { flags & !libc::O_NONBLOCK } else { flags })
        }
        libc::F_SETFL => {
            let wanted = argument as c_int;
            let keep = listener::user_sets_nonblocking(fd, (wanted & libc::O_NONBLOCK) != 0);
            let flags = if keep { wanted | libc::O_NONBLOCK } else { wanted };
            let answer = window::change(fd, || call(flags as c_ulong));
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
        listener::duplicate(fd, copy);
    }
    copy
}
