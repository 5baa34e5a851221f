//! What kind of thing a descriptor is, which decides how it is tried without blocking. Cached in the descriptor table, which
//! forgets it when the descriptor is closed or its number is given out anew.

use squall_iomanager::descriptor::{self, Slot};
use std::os::fd::RawFd;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Tried with `MSG_DONTWAIT`.
    Socket = 1,
    /// A pipe, eventfd, timerfd and the like: tried with `RWF_NOWAIT`.
    NoWait = 2,
    /// A terminal or device that can be polled but knows no `RWF_NOWAIT`: polled, then called.
    PollFirst = 3,
    /// A file, a directory, the standard streams, or nothing at all: called as it is. The standard streams are shared with
    /// the shell and with children, and must stay usable from a panic: they never suspend a fiber.
    Direct = 4,
}

/// The kind, with the slot of the descriptor table where it waits. `None` for descriptors that are called directly.
#[inline]
pub(crate) fn pollable(fd: RawFd) -> Option<(Kind, &'static Slot)> {
    let slot = descriptor::slot(fd)?;
    let kind = match slot.note() {
        1 => Kind::Socket,
        2 => Kind::NoWait,
        3 => Kind::PollFirst,
        4 => Kind::Direct,
        _ => {
            let kind = look(fd)?;
            slot.set_note(kind as u32);
            kind
        }
    };
    (kind != Kind::Direct).then_some((kind, slot))
}

/// The slot of a socket; `None` for anything else, whose call then fails by itself.
#[inline]
pub(crate) fn socket(fd: RawFd) -> Option<&'static Slot> {
    match pollable(fd)? {
        (Kind::Socket, slot) => Some(slot),
        _ => None,
    }
}

/// `None` for what is not open: not worth remembering, since the number may be given out past the hooks.
fn look(fd: RawFd) -> Option<Kind> {
    if fd <= 2 {
        return Some(Kind::Direct);
    }
    let mut stat = core::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the struct it is given, or fails.
    let mode = unsafe {
        if libc::fstat(fd, stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init().st_mode
    };
    Some(match mode & libc::S_IFMT {
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK => Kind::Direct,
        _ => Kind::NoWait,
    })
}
