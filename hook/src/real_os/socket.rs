//! Receiving and sending on sockets.

use super::kind::{self, Kind};
use super::poll::{has_error, is_ended, is_ready};
use super::wait::{Pauses, Waiting, is_nonblocking, retry, retry_stream, timeout};
use crate::errno::{Errno, Result};
use crate::os::{AddressMut, Buffer, BufferMut};
use crate::{kernel, real};
use core::ffi::{c_int, c_void};
use squall_fiber::with_current;
use squall_iomanager::descriptor::{Direction, Slot};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Linux's `UIO_MAXIOV`.
const VECTORS_MAX: usize = 1024;

/// What nearly every receive is, in few instructions: without flags and without asking for the sender.
#[inline(always)]
fn receive_plainly(fd: RawFd, start: *mut c_void, size: usize) -> Option<Result<usize>> {
    let (kind, slot) = kind::pollable(fd)?;
    // SAFETY: the kernel judges the caller's buffer.
    let attempt = move || unsafe { kernel::recv(fd, start, size, libc::MSG_DONTWAIT) };
    match kind {
        _ if size == 0 => None,
        Kind::Tcp if kind::short_count_is_conclusive(kind) => Some(retry_stream(fd, slot, size, attempt)),
        Kind::Tcp | Kind::Socket => Some(retry(fd, slot, Direction::Read, attempt)),
        _ => None,
    }
}

pub(super) fn receive(fd: RawFd, buffer: BufferMut, flags: c_int, from: Option<AddressMut>) -> Result<usize> {
    if flags == 0
        && from.is_none()
        && let Some(answer) = receive_plainly(fd, buffer.start(), buffer.len())
    {
        return answer;
    }
    receive_otherwise(fd, buffer, flags, from)
}

#[inline(never)]
fn receive_otherwise(fd: RawFd, buffer: BufferMut, flags: c_int, from: Option<AddressMut>) -> Result<usize> {
    let (mut address, mut length) = (core::ptr::null_mut(), core::ptr::null_mut());
    if let Some(from) = &from {
        (address, length) = (from.address, from.length);
    }
    let (start, size) = (buffer.start(), buffer.len());
    let attempt = |offset: usize, flags| {
        // SAFETY: `start..start+size` is the caller's buffer and `offset` at most `size`; the address is the caller's, too.
        unsafe {
            kernel::recvfrom(fd, start.wrapping_byte_add(offset), size - offset, flags, address, length)
        }
    };
    receive_with(fd, size, flags, attempt)
}

pub(super) fn receive_message(fd: RawFd, message: &mut libc::msghdr, flags: c_int) -> Result<usize> {
    let size = total(vectors(message).map(|vector| vector.iov_len));
    let mut vectors_left = VectorWindow::new();
    receive_with(fd, size, flags, |offset, flags| {
        if offset == 0 {
            // SAFETY: the caller's message.
            return unsafe { kernel::recvmsg(fd, message, flags) };
        }
        let window = vectors_left.after(vectors(message).copied(), offset);
        let mut rest = libc::msghdr { msg_iov: window.0, msg_iovlen: window.1 as _, ..*message };
        // The control data and the address came with the first piece.
        (rest.msg_control, rest.msg_controllen) = (core::ptr::null_mut(), 0);
        (rest.msg_name, rest.msg_namelen) = (core::ptr::null_mut(), 0);
        // SAFETY: the window points into the caller's buffers.
        unsafe { kernel::recvmsg(fd, &mut rest, flags) }
    })
}

pub(super) fn receive_messages(
    fd: RawFd,
    messages: &mut [libc::mmsghdr],
    flags: c_int,
    timeout: Option<Duration>,
) -> Result<usize> {
    let limit = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let wait_for_one = (flags & libc::MSG_WAITFORONE) != 0;
    let flags = flags & !libc::MSG_WAITFORONE;
    let mut received = 0;
    loop {
        let rest = &mut messages[received..];
        let flags = if wait_for_one && received > 0 { flags | libc::MSG_DONTWAIT } else { flags };
        let is_empty = vectors(&rest[0].msg_hdr).all(|vector| vector.iov_len == 0);
        let answer = if (flags & libc::MSG_WAITALL) != 0 || is_empty {
            receive_message(fd, &mut rest[0].msg_hdr, flags).map(|size| {
                rest[0].msg_len = size as u32;
                1
            })
        } else {
            // The time is looked at after each message. Without a limit to it the kernel gives as many as there are.
            let room = if limit.is_some() { 1 } else { rest.len() };
            receive_with(fd, room, flags, |_, flags| {
                // The try would take an error that comes behind the messages, which is for the next call.
                if received > 0 && has_error(fd) {
                    return Err(Errno(libc::EIO));
                }
                // SAFETY: so many of the caller's messages.
                unsafe { kernel::recvmmsg(fd, rest.as_mut_ptr(), room as _, flags) }
            })
        };
        match answer {
            Ok(count) => received += count,
            // The time was up, or nobody wanted to wait for more.
            Err(_) if received > 0 => return Ok(received),
            Err(errno) => return Err(errno),
        }
        let is_over = limit.is_some_and(|limit| limit <= Instant::now());
        if received == messages.len() || is_over {
            return Ok(received);
        }
    }
}

/// The receiving calls: `attempt(offset, flags)` receives into what is behind `offset`.
fn receive_with(
    fd: RawFd,
    size: usize,
    flags: c_int,
    mut attempt: impl FnMut(usize, c_int) -> Result<usize>,
) -> Result<usize> {
    let Some((kind, slot)) = kind::socket(fd) else { return attempt(0, flags) };
    if flags == 0 && size > 0 && kind::short_count_is_conclusive(kind) {
        return retry_stream(fd, slot, size, || attempt(0, libc::MSG_DONTWAIT));
    }
    if (flags & libc::MSG_DONTWAIT) != 0 {
        return attempt(0, flags);
    }
    // Neither the error queue nor urgent data makes anybody wait.
    if (flags & (libc::MSG_ERRQUEUE | libc::MSG_OOB)) != 0 {
        return attempt(0, flags);
    }
    let try_flags = flags | libc::MSG_DONTWAIT;
    let peek = (flags & libc::MSG_PEEK) != 0;
    // Unix sockets do not wait for more to peek at.
    let collects = (flags & libc::MSG_WAITALL) != 0 && is_stream(fd) && (!peek || is_tcp(fd));
    if !collects {
        let answer = retry_receive(fd, kind, slot, || attempt(0, try_flags));
        // Linux's TCP waits also for the chance to receive nothing, but when the time for that is up answers 0.
        if size == 0 && answer == Err(Errno::AGAIN) && is_tcp(fd) && !is_nonblocking(fd)? {
            return Ok(0);
        }
        return answer;
    }
    // The kernel drops MSG_WAITALL when told not to wait, so the pieces are collected here.
    let mut waiting = Waiting::new(fd, slot, Direction::Read);
    let mut received = 0;
    loop {
        let seen_edges = slot.edges(Direction::Read);
        let before = received;
        if received > 0 && has_error(fd) {
            // Receiving would take the error, and the count leaves no room to tell it: the next call does.
            return Ok(received);
        }
        match attempt(if peek { 0 } else { received }, try_flags) {
            Ok(0) => return Ok(received),
            Ok(count) => received = if peek { count } else { received + count },
            Err(Errno::AGAIN) => {}
            // The error comes again with the next call; what was received must not be lost.
            Err(_) if received > 0 => return Ok(received),
            Err(errno) => return Err(errno),
        }
        if received >= size {
            return Ok(received);
        }
        if received > before {
            // The end of the stream may have come with the same edge: only "nothing more" proves that there is one to wait for.
            continue;
        }
        // A peek cannot run into the end: it would see the same bytes before it again and again.
        if peek && is_ended(fd) {
            return Ok(received);
        }
        match waiting.wait(slot, seen_edges) {
            Ok(()) => {}
            Err(_) if received > 0 => return Ok(received),
            Err(errno) => return Err(errno),
        }
    }
}

/// [`retry`] for a receive that is content with what there is, on any kind of socket.
#[inline]
pub(super) fn retry_receive(
    fd: RawFd,
    kind: Kind,
    slot: &Slot,
    mut attempt: impl FnMut() -> Result<usize>,
) -> Result<usize> {
    match kind {
        Kind::LowWater => retry_above_low_water(fd, slot, attempt),
        // The kernel tells the end only to those that wait, and that it may come while somebody does.
        Kind::Datagram | Kind::EndedDatagram => retry(fd, slot, Direction::Read, || match attempt() {
            Err(Errno::AGAIN) if kind::of(slot) == Some(Kind::EndedDatagram) && !is_nonblocking(fd)? => Ok(0),
            answer => answer,
        }),
        _ => retry(fd, slot, Direction::Read, attempt),
    }
}

/// An attempt takes less than the mark, too, so it must not be made before polling finds that much, or the time is up.
#[cold]
fn retry_above_low_water(
    fd: RawFd,
    slot: &Slot,
    mut attempt: impl FnMut() -> Result<usize>,
) -> Result<usize> {
    let answer = retry(fd, slot, Direction::Read, || {
        if is_ready(fd, Direction::Read) { attempt() } else { Err(Errno::AGAIN) }
    });
    if answer == Err(Errno::AGAIN) { attempt() } else { answer }
}

pub(super) fn send(fd: RawFd, buffer: Buffer, flags: c_int, to: Option<&[u8]>) -> Result<usize> {
    // What nearly every send is, in few instructions: to whom the socket is connected, and all of it fits.
    let mut sent = 0;
    if to.is_none()
        && (flags & !libc::MSG_NOSIGNAL) == 0
        && let Some((Kind::Tcp | Kind::Socket, _)) = kind::pollable(fd)
    {
        // SAFETY: the kernel judges the caller's buffer.
        match unsafe { kernel::send(fd, buffer.start(), buffer.len(), flags | libc::MSG_DONTWAIT) } {
            Ok(count) if count < buffer.len() => sent = count,
            Err(Errno::AGAIN) => {}
            answer => return answer,
        }
    }
    send_on(fd, buffer, flags, to, sent)
}

/// Sends what is behind the first `sent` bytes. Says how many bytes that makes in all.
#[inline(never)]
fn send_on(fd: RawFd, buffer: Buffer, flags: c_int, to: Option<&[u8]>, sent: usize) -> Result<usize> {
    send_with(fd, 1, buffer.len(), sent, flags, |offset, flags| {
        let rest = buffer.skip(offset);
        // SAFETY: the kernel judges the caller's buffer and address.
        unsafe {
            match to {
                None => kernel::send(fd, rest.start(), rest.len(), flags),
                Some(to) => kernel::sendto(
                    fd,
                    rest.start(),
                    rest.len(),
                    flags,
                    to.as_ptr().cast(),
                    to.len() as libc::socklen_t,
                ),
            }
        }
    })
}

pub(super) fn send_message(fd: RawFd, message: &libc::msghdr, flags: c_int) -> Result<usize> {
    let size = total(vectors(message).map(|vector| vector.iov_len));
    let mut vectors_left = VectorWindow::new();
    send_with(fd, message.msg_iovlen, size, 0, flags, |offset, flags| {
        if offset == 0 {
            // SAFETY: the caller's message.
            return unsafe { kernel::sendmsg(fd, message, flags) };
        }
        let window = vectors_left.after(vectors(message).copied(), offset);
        let mut rest = libc::msghdr { msg_iov: window.0, msg_iovlen: window.1 as _, ..*message };
        // The control data went with the first piece.
        (rest.msg_control, rest.msg_controllen) = (core::ptr::null_mut(), 0);
        // SAFETY: the window points into the caller's buffers.
        unsafe { kernel::sendmsg(fd, &rest, flags) }
    })
}

/// The sending calls: `attempt(offset, flags)` sends what is behind `offset` in `pieces` pieces of memory. A blocking send on a stream
/// sends everything. The first `sent` bytes have been.
fn send_with(
    fd: RawFd,
    pieces: usize,
    size: usize,
    sent: usize,
    flags: c_int,
    mut attempt: impl FnMut(usize, c_int) -> Result<usize>,
) -> Result<usize> {
    let Some((kind, slot)) = kind::socket(fd) else { return attempt(0, flags) };
    if (flags & libc::MSG_DONTWAIT) != 0 {
        return attempt(0, flags);
    }
    // With other flags a count may be short for reasons of theirs.
    let is_plain = (flags & !(libc::MSG_NOSIGNAL | libc::MSG_MORE)) == 0;
    let kind = if is_plain { kind } else { Kind::Socket };
    send_on_socket(fd, kind, slot, pieces, size, sent, |sent, try_flags| attempt(sent, flags | try_flags))
}

/// Calls `attempt(offset, flags)` until `size` bytes in `pieces` pieces are sent, of which the first `sent` have been, on a socket.
pub(super) fn send_on_socket(
    fd: RawFd,
    kind: Kind,
    slot: &Slot,
    pieces: usize,
    size: usize,
    sent: usize,
    mut attempt: impl FnMut(usize, c_int) -> Result<usize>,
) -> Result<usize> {
    if matches!(kind, Kind::Datagram | Kind::EndedDatagram) {
        return send_datagram(fd, slot, attempt);
    }
    // An attempt that does not offer all the rest sends less without the buffer being full.
    let kind = if pieces > VectorWindow::PIECES { Kind::Socket } else { kind };
    send_all(fd, kind, slot, size, sent, |sent| {
        if sent == 0 {
            return attempt(0, libc::MSG_DONTWAIT);
        }
        // For the kernel this is another call, which tells errors and raises SIGPIPE; for the user it is still the one that has sent
        // something, and does neither. The error stays for the next call, as a reset would otherwise look like an orderly end.
        if has_error(fd) {
            return Err(Errno(libc::EPIPE));
        }
        attempt(sent, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    })
}

/// A datagram goes as a whole. That its socket has room does not say that the receiver's queue has, which a Unix socket waits for, too; of
/// that the kernel reports no event unless the two are connected, so it is tried again and again.
fn send_datagram(
    fd: RawFd,
    slot: &Slot,
    mut attempt: impl FnMut(usize, c_int) -> Result<usize>,
) -> Result<usize> {
    let mut deadline = None;
    let mut pauses = Pauses::up_to(Duration::from_millis(10));
    let answer = retry(fd, slot, Direction::Write, || {
        loop {
            match attempt(0, libc::MSG_DONTWAIT) {
                Err(Errno::AGAIN) if is_ready(fd, Direction::Write) && !is_nonblocking(fd)? => {}
                Err(Errno::AGAIN) => return Err(Errno::AGAIN),
                answer => return Ok(answer),
            }
            let deadline = *deadline
                .get_or_insert_with(|| timeout(fd, Direction::Write).map(|timeout| Instant::now() + timeout));
            // In a fiber, as all that calls this.
            let paused = with_current(|current| {
                current.map_or(Err(Errno::AGAIN), |current| pauses.make(current, deadline))
            });
            if let Err(errno) = paused {
                return Ok(Err(errno));
            }
        }
    });
    answer.and_then(|answer| answer)
}

/// Calls `attempt(offset)` until `size` bytes are sent, of which the first `sent` have been.
pub(super) fn send_all(
    fd: RawFd,
    kind: Kind,
    slot: &Slot,
    size: usize,
    mut sent: usize,
    mut attempt: impl FnMut(usize) -> Result<usize>,
) -> Result<usize> {
    let mut waiting = Waiting::new(fd, slot, Direction::Write);
    loop {
        let seen_edges = slot.edges(Direction::Write);
        match attempt(sent) {
            Ok(count) => {
                sent += count;
                if sent >= size {
                    return Ok(sent);
                }
                // TCP takes a part only when its buffer is full, and has promised an edge by then. Others are asked.
                if !kind::short_count_is_conclusive(kind) {
                    continue;
                }
            }
            Err(Errno::AGAIN) => {}
            // As the kernel does: the count now, the error with the next call.
            Err(_) if sent > 0 => return Ok(sent),
            Err(errno) => return Err(errno),
        }
        match waiting.wait(slot, seen_edges) {
            Ok(()) => {}
            Err(_) if sent > 0 => return Ok(sent),
            Err(errno) => return Err(errno),
        }
    }
}

fn is_stream(fd: RawFd) -> bool {
    socket_option(fd, libc::SO_TYPE) == Some(libc::SOCK_STREAM)
}

fn is_tcp(fd: RawFd) -> bool {
    socket_option(fd, libc::SO_PROTOCOL) == Some(libc::IPPROTO_TCP)
}

fn socket_option(fd: RawFd, option: c_int) -> Option<c_int> {
    let mut value: c_int = 0;
    let mut length = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the option fills an int of the length given.
    let result =
        unsafe { real::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &mut length) };
    (result == 0).then_some(value)
}

/// The sum of lengths, of which the kernel refuses the impossible.
pub(super) fn total(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.fold(0, usize::saturating_add)
}

fn vectors(message: &libc::msghdr) -> impl Iterator<Item = &libc::iovec> {
    // With more of them the kernel refuses the call.
    let is_possible = !message.msg_iov.is_null() && message.msg_iovlen <= VECTORS_MAX;
    let count = if is_possible { message.msg_iovlen } else { 0 };
    // SAFETY: by the contract of the C calls, `msg_iov` points to `msg_iovlen` vectors; none if null.
    (0..count).map(|index| unsafe { &*message.msg_iov.add(index) })
}

/// What is left of a scattered buffer after some bytes, without touching the caller's vectors and without allocating: at most
/// the next few pieces.
pub(super) struct VectorWindow([libc::iovec; Self::PIECES]);

impl VectorWindow {
    const PIECES: usize = 32;

    pub(super) fn new() -> Self {
        Self([libc::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; Self::PIECES])
    }

    pub(super) fn after(
        &mut self,
        vectors: impl Iterator<Item = libc::iovec>,
        mut offset: usize,
    ) -> (*mut libc::iovec, usize) {
        let mut count = 0;
        for vector in vectors {
            if offset >= vector.iov_len {
                offset -= vector.iov_len;
                continue;
            }
            let Some(slot) = self.0.get_mut(count) else { break };
            slot.iov_base = vector.iov_base.wrapping_byte_add(offset);
            slot.iov_len = vector.iov_len - offset;
            offset = 0;
            count += 1;
        }
        (self.0.as_mut_ptr(), count)
    }
}
