//! Receiving and sending on sockets.

use super::kind::{self, Kind};
use super::poll::{has_error, is_ended};
use super::wait::{Waiting, is_nonblocking, retry, retry_stream};
use crate::errno::{Errno, Result, check};
use crate::os::{AddressMut, Buffer, BufferMut};
use crate::real;
use core::ffi::c_int;
use squall_iomanager::descriptor::{Direction, Slot};
use std::os::fd::RawFd;

pub(super) fn receive(
    fd: RawFd,
    mut buffer: BufferMut,
    flags: c_int,
    from: Option<AddressMut>,
) -> Result<usize> {
    let (mut address, mut length) = (core::ptr::null_mut(), core::ptr::null_mut());
    if let Some(from) = &from {
        (address, length) = (from.address, from.length);
    }
    let room = buffer.as_mut_slice();
    let (start, size) = (room.as_mut_ptr(), room.len());
    let attempt = |offset: usize, flags| {
        // SAFETY: `start..start+size` is the caller's buffer and `offset` at most `size`; the address is the caller's, too.
        check(unsafe {
            if address.is_null() {
                real::recv(fd, start.add(offset).cast(), size - offset, flags)
            } else {
                real::recvfrom(fd, start.add(offset).cast(), size - offset, flags, address, length)
            }
        })
    };
    receive_with(fd, size, flags, attempt)
}

pub(super) fn receive_message(fd: RawFd, message: &mut libc::msghdr, flags: c_int) -> Result<usize> {
    let size = vectors(message).map(|vector| vector.iov_len).sum();
    let mut vectors_left = VectorWindow::new();
    receive_with(fd, size, flags, |offset, flags| {
        if offset == 0 {
            // SAFETY: the caller's message.
            return check(unsafe { real::recvmsg(fd, message, flags) });
        }
        let window = vectors_left.after(vectors(message).copied(), offset);
        let mut rest = libc::msghdr { msg_iov: window.0, msg_iovlen: window.1 as _, ..*message };
        // The control data and the address came with the first piece.
        (rest.msg_control, rest.msg_controllen) = (core::ptr::null_mut(), 0);
        (rest.msg_name, rest.msg_namelen) = (core::ptr::null_mut(), 0);
        // SAFETY: the window points into the caller's buffers.
        check(unsafe { real::recvmsg(fd, &mut rest, flags) })
    })
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
    // The error queue never makes anybody wait.
    if (flags & libc::MSG_ERRQUEUE) != 0 {
        return attempt(0, flags);
    }
    let try_flags = flags | libc::MSG_DONTWAIT;
    if (flags & libc::MSG_WAITALL) == 0 || !is_stream(fd) {
        let answer = retry(fd, slot, Direction::Read, || attempt(0, try_flags));
        // Linux's TCP waits also for the chance to receive nothing, but when the time for that is up answers 0.
        if size == 0 && answer == Err(Errno::AGAIN) && is_tcp(fd) && !is_nonblocking(fd)? {
            return Ok(0);
        }
        return answer;
    }
    // The kernel drops MSG_WAITALL when told not to wait, so the pieces are collected here.
    let peek = (flags & libc::MSG_PEEK) != 0;
    let mut waiting = Waiting::new(fd, Direction::Read);
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

pub(super) fn send(fd: RawFd, buffer: Buffer, flags: c_int, to: Option<&[u8]>) -> Result<usize> {
    let bytes = buffer.as_slice();
    send_with(fd, bytes.len(), flags, |offset, flags| {
        let rest = &bytes[offset..];
        // SAFETY: the slices are live; a missing address is null with length 0.
        check(unsafe {
            match to {
                None => real::send(fd, rest.as_ptr().cast(), rest.len(), flags),
                Some(to) => real::sendto(
                    fd,
                    rest.as_ptr().cast(),
                    rest.len(),
                    flags,
                    to.as_ptr().cast(),
                    to.len() as libc::socklen_t,
                ),
            }
        })
    })
}

pub(super) fn send_message(fd: RawFd, message: &libc::msghdr, flags: c_int) -> Result<usize> {
    let size = vectors(message).map(|vector| vector.iov_len).sum();
    let mut vectors_left = VectorWindow::new();
    send_with(fd, size, flags, |offset, flags| {
        if offset == 0 {
            // SAFETY: the caller's message.
            return check(unsafe { real::sendmsg(fd, message, flags) });
        }
        let window = vectors_left.after(vectors(message).copied(), offset);
        let mut rest = libc::msghdr { msg_iov: window.0, msg_iovlen: window.1 as _, ..*message };
        // The control data went with the first piece.
        (rest.msg_control, rest.msg_controllen) = (core::ptr::null_mut(), 0);
        // SAFETY: the window points into the caller's buffers.
        check(unsafe { real::sendmsg(fd, &rest, flags) })
    })
}

/// The sending calls: `attempt(offset, flags)` sends what is behind `offset`. A blocking send on a stream sends everything.
fn send_with(
    fd: RawFd,
    size: usize,
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
    send_on_socket(fd, kind, slot, size, |sent, try_flags| attempt(sent, flags | try_flags))
}

/// Calls `attempt(offset, flags)` until `size` bytes are sent, on a socket.
pub(super) fn send_on_socket(
    fd: RawFd,
    kind: Kind,
    slot: &Slot,
    size: usize,
    mut attempt: impl FnMut(usize, c_int) -> Result<usize>,
) -> Result<usize> {
    send_all(fd, kind, slot, size, |sent| {
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

/// Calls `attempt(offset)` until `size` bytes are sent.
pub(super) fn send_all(
    fd: RawFd,
    kind: Kind,
    slot: &Slot,
    size: usize,
    mut attempt: impl FnMut(usize) -> Result<usize>,
) -> Result<usize> {
    let mut waiting = Waiting::new(fd, Direction::Write);
    let mut sent = 0;
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

fn vectors(message: &libc::msghdr) -> impl Iterator<Item = &libc::iovec> {
    let count = if message.msg_iov.is_null() { 0 } else { message.msg_iovlen };
    // SAFETY: by the contract of the C calls, `msg_iov` points to `msg_iovlen` vectors; none if null.
    (0..count).map(|index| unsafe { &*message.msg_iov.add(index) })
}

/// What is left of a scattered buffer after some bytes, without touching the caller's vectors and without allocating: at most
/// the next few pieces.
pub(super) struct VectorWindow([libc::iovec; 32]);

impl VectorWindow {
    pub(super) fn new() -> Self {
        Self([libc::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 }; 32])
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
