//! O_NONBLOCK for the length of one call that has no flag of its own for it: `connect`, `sendfile`.
//!
//! The flag belongs to the open file, so whoever has the same file (other workers, duplicates) could see it meanwhile, take it for the
//! user's, or have a change of their own undone. All in this process that looks at the flag or changes it passes through here. A forked
//! child does not: there are no windows in it, only what a thread that it does not have may have left open.

use crate::errno::{Result, check_int};
use crate::real;
use core::ffi::{c_int, c_ulong};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};
use squall_fiber::is_forked_child;
use squall_fiber::lock::Lock;
use std::os::fd::RawFd;

/// Windows opened and closed so far. Equal before and after a look at a flag, nothing was hidden in between.
static OPENED: AtomicUsize = AtomicUsize::new(0);
static CLOSED: AtomicUsize = AtomicUsize::new(0);

/// Held by whoever changes the flags of a file, or must not be surprised in a call, by the number of its inode: duplicates share it as
/// they share the flags. What it guards is the count of plain threads that are in a blocking `accept` of such a file.
static TURNS: [Lock<usize>; 64] = [const { Lock::new(0) }; 64];

pub(super) fn turns(fd: RawFd) -> &'static Lock<usize> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the struct it is given, or fails.
    let inode = unsafe {
        match libc::fstat(fd, stat.as_mut_ptr()) {
            0 => stat.assume_init().st_ino,
            // Not open: the kernel will say so.
            _ => 0,
        }
    };
    &TURNS[inode as usize % TURNS.len()]
}

/// Makes a call with O_NONBLOCK set. It does not wait, so no fiber of this worker sees the change, and it is gone before anybody could
/// inherit it.
pub(super) fn without_blocking<T>(fd: RawFd, call: impl FnOnce() -> T) -> Result<T> {
    let _changing = turns(fd).lock();
    let flags = get(fd)?;
    OPENED.fetch_add(1, Ordering::SeqCst);
    let answer = set(fd, flags | libc::O_NONBLOCK).map(|()| call());
    let restored = set(fd, flags);
    CLOSED.fetch_add(1, Ordering::SeqCst);
    restored.and(answer)
}

/// The flags of the file as its users left them.
pub(crate) fn flags(fd: RawFd) -> Result<c_int> {
    let witness = Witness::new();
    let flags = get(fd)?;
    if (flags & libc::O_NONBLOCK) == 0 || !witness.has_seen_a_window() || is_forked_child() {
        return Ok(flags);
    }
    // There may be windows all the time, but no more than one for this file.
    let _changing = turns(fd).lock();
    get(fd)
}

/// Tells afterwards whether O_NONBLOCK may have been seen that was not the user's.
pub(super) struct Witness {
    closed: usize,
}

impl Witness {
    pub(super) fn new() -> Self {
        Self { closed: CLOSED.load(Ordering::SeqCst) }
    }

    pub(super) fn has_seen_a_window(&self) -> bool {
        OPENED.load(Ordering::SeqCst) != self.closed
    }
}

/// Makes a change to the flags that no window's end undoes.
pub(crate) fn change<T>(fd: RawFd, change: impl FnOnce() -> T) -> T {
    let _changing = (!is_forked_child()).then(|| turns(fd).lock());
    change()
}

fn get(fd: RawFd) -> Result<c_int> {
    // SAFETY: F_GETFL takes no argument.
    check_int(unsafe { real::fcntl(fd, libc::F_GETFL, 0) })
}

fn set(fd: RawFd, flags: c_int) -> Result<()> {
    // SAFETY: F_SETFL takes an int.
    check_int(unsafe { real::fcntl(fd, libc::F_SETFL, flags as c_ulong) }).map(drop)
}
