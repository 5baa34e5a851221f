//! The real operating system under fibers: try without blocking, and if that would block, wait in the reactor.
//!
//! The kernel is the only record of a descriptor's settings. Sockets are tried with `MSG_DONTWAIT`, pipes and the like with
//! `RWF_NOWAIT`: neither touches O_NONBLOCK, which belongs to the open file and is shared with duplicates, children and whoever
//! was sent the descriptor. Only when a call would block is the kernel asked whether the user wants that (O_NONBLOCK) and for
//! how long (SO_RCVTIMEO, SO_SNDTIMEO); the answer is remembered as long as it cannot be out of date (see `wait.rs`).
//!
//! `accept` has no such flag: see [`accept`]. Neither have `connect` and `sendfile`: see [`window`].

pub(crate) mod accept;
pub(crate) mod child;
mod connect;
pub(crate) mod control;
pub(crate) mod disk;
mod file;
pub(crate) mod kind;
pub(crate) mod masked;
mod poll;
pub(crate) mod pool;
mod socket;
pub(crate) mod splice;
pub(crate) mod wait;
pub(crate) mod window;

use crate::errno::{Result, check_int};
use crate::os::{AddressMut, Buffer, BufferMut, Os, PollEntry};
use crate::real;
use core::ffi::{c_int, c_ulong};
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};
use squall_fiber::{Current, WaitKind};
use squall_iomanager::descriptor;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// The operating system that the process runs on.
#[derive(Debug, Clone, Copy)]
pub struct RealOs;

impl Os for RealOs {
    fn sleep_until(&self, current: Current<'_>, deadline: Option<Instant>) {
        current.begin_interruptible_wait(WaitKind::Sleep, 0).block_interruptible(deadline);
    }

    fn connect(&self, current: Current<'_>, fd: RawFd, address: &[u8]) -> Result<()> {
        connect::connect(current, fd, address)
    }

    fn accept(&self, current: Current<'_>, fd: RawFd, peer: AddressMut, flags: i32) -> Result<RawFd> {
        accept::accept(current, fd, peer, flags)
    }

    fn receive(
        &self,
        _: Current<'_>,
        fd: RawFd,
        buffer: BufferMut,
        flags: i32,
        from: Option<AddressMut>,
    ) -> Result<usize> {
        socket::receive(fd, buffer, flags, from)
    }

    fn send(
        &self,
        _: Current<'_>,
        fd: RawFd,
        buffer: Buffer,
        flags: i32,
        to: Option<&[u8]>,
    ) -> Result<usize> {
        socket::send(fd, buffer, flags, to)
    }

    fn receive_message(
        &self,
        _: Current<'_>,
        fd: RawFd,
        message: &mut libc::msghdr,
        flags: i32,
    ) -> Result<usize> {
        socket::receive_message(fd, message, flags)
    }

    fn receive_messages(
        &self,
        _: Current<'_>,
        fd: RawFd,
        messages: &mut [libc::mmsghdr],
        flags: i32,
        timeout: Option<Duration>,
    ) -> Result<usize> {
        socket::receive_messages(fd, messages, flags, timeout)
    }

    fn send_message(&self, _: Current<'_>, fd: RawFd, message: &libc::msghdr, flags: i32) -> Result<usize> {
        socket::send_message(fd, message, flags)
    }

    fn read(&self, current: Current<'_>, fd: RawFd, buffers: &mut [BufferMut]) -> Result<usize> {
        file::read(current, fd, buffers)
    }

    fn write(&self, current: Current<'_>, fd: RawFd, buffers: &[Buffer]) -> Result<usize> {
        file::write(current, fd, buffers)
    }

    fn poll(
        &self,
        current: Current<'_>,
        entries: &mut [PollEntry],
        timeout: Option<Duration>,
    ) -> Result<usize> {
        poll::poll(current, entries, timeout)
    }

    fn wait_events(
        &self,
        _: Current<'_>,
        epoll: RawFd,
        events: &mut [MaybeUninit<libc::epoll_event>],
        timeout: Option<Duration>,
    ) -> Result<usize> {
        poll::wait_events(epoll, events, timeout)
    }

    fn send_file(
        &self,
        _: Current<'_>,
        out: RawFd,
        input: RawFd,
        offset: Option<&mut i64>,
        count: usize,
    ) -> Result<usize> {
        file::send_file(out, input, offset, count)
    }

    fn control(&self, current: Current<'_>, fd: RawFd, command: c_int, argument: c_ulong) -> Result<c_int> {
        match command {
            libc::F_SETLKW => disk::lock(current, || control::control(fd, libc::F_SETLK, argument)),
            libc::F_OFD_SETLKW => disk::lock(current, || control::control(fd, libc::F_OFD_SETLK, argument)),
            _ => control::control(fd, command, argument),
        }
    }

    fn close(&self, _: Current<'_>, fd: RawFd) -> Result<()> {
        close(fd)
    }

    fn sync_file(&self, current: Current<'_>, fd: RawFd, data_only: bool) -> Result<()> {
        // SAFETY: no memory is involved.
        unsafe {
            pool::on_pool(current, (), |()| {
                check_int(if data_only { real::fdatasync(fd) } else { real::fsync(fd) }).map(drop)
            })
        }
    }
}

/// `close`, from fibers and threads alike: whoever waits for the descriptor learns of it before its number can be reused.
pub(crate) fn close(fd: RawFd) -> Result<()> {
    descriptor::forget(fd);
    // SAFETY: no memory is involved.
    check_int(unsafe { real::close(fd) }).map(drop)
}

/// Whether a duplicate was made of a descriptor that the table did not know yet, and cannot be asked about for that reason.
static UNKNOWN_DUPLICATES: AtomicBool = AtomicBool::new(false);

/// From now on several descriptors name the open file that `fd` names: a duplicate of it was made, sent or received.
pub(crate) fn note_shared(fd: RawFd) {
    match descriptor::known_slot(fd) {
        Some(slot) => slot.set_shared(),
        None => UNKNOWN_DUPLICATES.store(true, Ordering::Relaxed),
    }
}

/// A descriptor number that has just been made: nothing known about it before holds.
pub(crate) fn forget(fd: RawFd) {
    descriptor::forget(fd);
}

/// As [`forget`], for a range of numbers.
pub(crate) fn forget_range(first: u32, last: u32) {
    descriptor::known(first, last).for_each(forget);
}

/// As [`forget`], for the two ends of a pipe or socket pair.
pub(crate) fn forget_both(pair: &[RawFd; 2]) {
    pair.iter().copied().for_each(forget);
}
