//! What kind of thing a descriptor is, which decides how it is tried without blocking. Cached in the descriptor table, which
//! forgets it when the descriptor is closed or its number is given out anew.

use crate::errno::{Errno, Result, check_int};
use crate::real;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering};
use squall_iomanager::descriptor::{self, Slot};
use std::os::fd::RawFd;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Tried with `MSG_DONTWAIT`.
    Socket = 1,
    /// A socket that speaks TCP, on which short reads and writes say that it is drained or full. Unix sockets end a read early
    /// also at a passed descriptor or where another sender begins; datagrams are short by nature.
    Tcp = 2,
    /// A pipe, eventfd, timerfd and the like: tried with `RWF_NOWAIT`.
    NoWait = 3,
    /// A terminal or device that can be polled but knows no `RWF_NOWAIT`: polled, then called.
    PollFirst = 4,
    /// A directory, the standard streams, or nothing at all: called as it is. The standard streams are shared with
    /// the shell and with children, and must stay usable from a panic: they never suspend a fiber.
    Direct = 5,
    /// A datagram socket.
    Datagram = 6,
    /// A datagram socket whose reading side was shut down: whoever waits to receive is told of the end, whoever does not, is not.
    EndedDatagram = 7,
    /// A stream socket with a low-water mark (SO_RCVLOWAT): a receive waits for that much.
    LowWater = 8,
    /// An eventfd or another file without a place in any file system: as `NoWait`, but writable may mean too little room.
    Anonymous = 9,
    /// A file on a disk, through the page cache.
    File = 10,
    /// A file on a disk whose writes go there at once (O_SYNC, O_DSYNC), or past the page cache (O_DIRECT).
    SyncedFile = 11,
}

impl Kind {
    pub(crate) fn is_socket(self) -> bool {
        matches!(self, Kind::Socket | Kind::Tcp | Kind::Datagram | Kind::EndedDatagram | Kind::LowWater)
    }
}

/// The kind, with the slot of the descriptor table where it waits. `None` for descriptors that are called directly.
#[inline]
pub(crate) fn pollable(fd: RawFd) -> Option<(Kind, &'static Slot)> {
    let slot = descriptor::slot(fd)?;
    let kind = match of(slot) {
        Some(kind) => kind,
        None => {
            let kind = look(fd)?;
            slot.set_note(kind as u8);
            kind
        }
    };
    (!matches!(kind, Kind::Direct | Kind::File | Kind::SyncedFile)).then_some((kind, slot))
}

/// Whether it is a file on a disk, and which.
pub(crate) fn file(fd: RawFd) -> Option<Kind> {
    let slot = descriptor::slot(fd)?;
    let kind = match of(slot) {
        Some(kind) => kind,
        None => {
            let kind = look(fd)?;
            slot.set_note(kind as u8);
            kind
        }
    };
    matches!(kind, Kind::File | Kind::SyncedFile).then_some(kind)
}

/// The kind as far as it is known.
#[inline]
pub(crate) fn of(slot: &Slot) -> Option<Kind> {
    Some(match slot.note() {
        1 => Kind::Socket,
        2 => Kind::Tcp,
        3 => Kind::NoWait,
        4 => Kind::PollFirst,
        5 => Kind::Direct,
        6 => Kind::Datagram,
        7 => Kind::EndedDatagram,
        8 => Kind::LowWater,
        9 => Kind::Anonymous,
        10 => Kind::File,
        11 => Kind::SyncedFile,
        _ => return None,
    })
}

/// As [`pollable`], for sockets only; `None` for anything else, whose call then fails by itself.
#[inline]
pub(crate) fn socket(fd: RawFd) -> Option<(Kind, &'static Slot)> {
    pollable(fd).filter(|(kind, _)| kind.is_socket())
}

/// A descriptor is to be called as it is from now on.
pub(crate) fn is_direct(fd: RawFd) {
    if let Some(slot) = descriptor::slot(fd) {
        slot.set_note(Kind::Direct as u8);
    }
}

/// A descriptor's kind has to be found out again: what it depends on was changed.
pub(crate) fn changed(fd: RawFd) {
    if let Some(slot) = descriptor::known_slot(fd) {
        slot.set_note(0);
    }
}

/// The reading side of a descriptor was shut down.
pub(crate) fn reading_ended(fd: RawFd) {
    if option(fd, libc::SO_TYPE) == Ok(libc::SOCK_DGRAM)
        && let Some(slot) = descriptor::slot(fd)
    {
        slot.set_note(Kind::EndedDatagram as u8);
    }
}

/// Some socket of this process has been given a setting under which short counts prove nothing. Others may share or inherit it, so
/// nothing is concluded from short counts any more.
pub(crate) fn short_counts_prove_nothing() {
    PROVE_NOTHING.store(true, Ordering::Relaxed);
}

/// Whether a short count on a descriptor of this kind says that it is drained or full.
#[inline]
pub(crate) fn short_count_is_conclusive(kind: Kind) -> bool {
    kind == Kind::Tcp && !PROVE_NOTHING.load(Ordering::Relaxed)
}

static PROVE_NOTHING: AtomicBool = AtomicBool::new(false);

/// `None` for what is not open: not worth remembering, since the number may be given out past the hooks.
#[cold]
fn look(fd: RawFd) -> Option<Kind> {
    if fd <= 2 {
        return Some(Kind::Direct);
    }
    match option(fd, libc::SO_TYPE) {
        Ok(libc::SOCK_STREAM) => {
            // What is below a low-water mark makes no edge. A family that does not know the option has no mark.
            return Some(match option(fd, libc::SO_RCVLOWAT) {
                Ok(mark) if mark > 1 => Kind::LowWater,
                _ if option(fd, libc::SO_PROTOCOL) == Ok(libc::IPPROTO_TCP) => Kind::Tcp,
                _ => Kind::Socket,
            });
        }
        Ok(libc::SOCK_DGRAM) => return Some(Kind::Datagram),
        Err(Errno::NOTSOCK) => {}
        Err(Errno::BADF) => return None,
        Ok(_) | Err(_) => return Some(Kind::Socket),
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
        libc::S_IFDIR => Kind::Direct,
        libc::S_IFREG | libc::S_IFBLK => {
            // SAFETY: F_GETFL takes no argument.
            let flags = unsafe { real::fcntl(fd, libc::F_GETFL, 0) };
            let is_synced = flags != -1 && (flags & (libc::O_SYNC | libc::O_DSYNC | libc::O_DIRECT)) != 0;
            if is_synced { Kind::SyncedFile } else { Kind::File }
        }
        0 => Kind::Anonymous,
        _ => Kind::NoWait,
    })
}

fn option(fd: RawFd, option: c_int) -> Result<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the option fills an int of the length given.
    check_int(unsafe {
        real::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &mut length)
    })?;
    Ok(value)
}
