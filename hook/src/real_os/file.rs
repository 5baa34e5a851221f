//! `read` and `write` on anything: sockets, pipes and their like, files.

use super::disk;
use super::kind::{self, Kind};
use super::poll::{has_error, is_ready};
use super::socket::{VectorWindow, retry_receive, send_all, send_on_socket, total};
use super::wait::{is_nonblocking, retry, retry_stream};
use super::window::without_blocking;
use crate::errno::{Errno, Result, check};
use crate::os::{Buffer, BufferMut};
use crate::{kernel, real};
use core::ffi::c_int;
use squall_fiber::Current;
use squall_iomanager::descriptor::{Direction, Slot};
use std::os::fd::RawFd;

/// What the kernel refuses to read or write more than, at once.
const SIZE_MAX: usize = isize::MAX as usize;

pub(super) fn read(current: Current<'_>, fd: RawFd, buffers: &mut [BufferMut]) -> Result<usize> {
    match read_as_known(current, fd, buffers) {
        Err(Errno::NOTSOCK) => {
            notice_successor(fd);
            read_as_known(current, fd, buffers)
        }
        answer => answer,
    }
}

/// A socket's number stands for something else: it was closed past the hooks (`fclose` does that) and given out past them (`open`).
#[cold]
fn notice_successor(fd: RawFd) {
    super::forget(fd);
}

fn read_as_known(current: Current<'_>, fd: RawFd, buffers: &mut [BufferMut]) -> Result<usize> {
    let vectors: *mut libc::iovec = buffers.as_mut_ptr().cast();
    let count = buffers.len() as c_int;
    let size = total(buffers.iter().map(BufferMut::len));
    let direct = || {
        // SAFETY: a BufferMut has the layout of an iovec, and its memory is the caller's.
        unsafe {
            if count == 1 {
                kernel::read(fd, (*vectors).iov_base, (*vectors).iov_len)
            } else {
                kernel::readv(fd, vectors, count)
            }
        }
    };
    match kind::pollable(fd) {
        // Reading nothing never waits, on sockets neither, unlike receiving nothing. Nor does reading more than there can be.
        _ if size == 0 || size > SIZE_MAX => direct(),
        Some((kind, slot)) if kind.is_socket() => {
            let attempt = || {
                // SAFETY: as above.
                unsafe {
                    if count == 1 {
                        kernel::recv(fd, (*vectors).iov_base, (*vectors).iov_len, libc::MSG_DONTWAIT)
                    } else {
                        let mut message: libc::msghdr = core::mem::zeroed();
                        (message.msg_iov, message.msg_iovlen) = (vectors, count as _);
                        kernel::recvmsg(fd, &mut message, libc::MSG_DONTWAIT)
                    }
                }
            };
            if kind::short_count_is_conclusive(kind) {
                retry_stream(fd, slot, size, attempt)
            } else {
                retry_receive(fd, kind, slot, attempt)
            }
        }
        Some((kind, slot)) => {
            let mut has_waited = false;
            retry(fd, slot, Direction::Read, || {
                if matches!(kind, Kind::NoWait | Kind::Anonymous) {
                    // SAFETY: as above; offset -1 means "where the file stands".
                    match unsafe { kernel::preadv2(fd, vectors, count, -1, libc::RWF_NOWAIT) } {
                        Err(Errno::OPNOTSUPP) if kind == Kind::NoWait => slot.set_note(Kind::PollFirst as u8),
                        Err(Errno::OPNOTSUPP) => {}
                        answer => return answer,
                    }
                }
                if !is_ready(fd, Direction::Read) {
                    has_waited = true;
                    return Err(Errno::AGAIN);
                }
                // Somebody else may take what there is before this thread does.
                match without_blocking(fd, direct)? {
                    // A terminal that was hung up meanwhile: to calls that come later it has ended, but those that it finds waiting fail.
                    Ok(0) if has_waited && has_error(fd) => Err(Errno(libc::EIO)),
                    answer => answer,
                }
            })
        }
        // SAFETY: as above.
        None => unsafe { disk::read(current, fd, vectors, count, size, disk::WHERE_IT_STANDS) },
    }
}

pub(super) fn write(current: Current<'_>, fd: RawFd, buffers: &[Buffer]) -> Result<usize> {
    match write_as_known(current, fd, buffers) {
        Err(Errno::NOTSOCK) => {
            notice_successor(fd);
            write_as_known(current, fd, buffers)
        }
        answer => answer,
    }
}

fn write_as_known(current: Current<'_>, fd: RawFd, buffers: &[Buffer]) -> Result<usize> {
    let vectors: *const libc::iovec = buffers.as_ptr().cast();
    let count = buffers.len() as c_int;
    let size = total(buffers.iter().map(Buffer::len));
    let direct = || {
        // SAFETY: a Buffer has the layout of an iovec, and its memory is the caller's.
        unsafe {
            if count == 1 {
                kernel::write(fd, (*vectors).iov_base, (*vectors).iov_len)
            } else {
                kernel::writev(fd, vectors, count)
            }
        }
    };
    match kind::pollable(fd) {
        _ if size > SIZE_MAX => direct(),
        Some((kind, slot)) if kind.is_socket() => {
            let mut window = VectorWindow::new();
            send_on_socket(fd, kind, slot, buffers.len(), size, 0, |sent, flags| {
                // SAFETY: the vectors are the caller's, or a window into them.
                unsafe {
                    if count == 1 {
                        let rest = buffers[0].skip(sent);
                        kernel::send(fd, rest.start(), rest.len(), flags)
                    } else {
                        let mut message: libc::msghdr = core::mem::zeroed();
                        (message.msg_iov, message.msg_iovlen) = (vectors.cast_mut(), count as _);
                        if sent > 0 {
                            let (start, length) = window.after(iovecs(buffers), sent);
                            (message.msg_iov, message.msg_iovlen) = (start, length as _);
                        }
                        kernel::sendmsg(fd, &message, flags)
                    }
                }
            })
        }
        // What an eventfd says of its room is about a value of 1.
        Some((Kind::Anonymous, slot)) if !is_nonblocking(fd)? => {
            retry(fd, slot, Direction::Write, || without_blocking(fd, direct)?)
        }
        Some((kind, slot)) if size > 0 && !is_nonblocking(fd)? => {
            write_waitable(fd, kind, slot, buffers, size)
        }
        // SAFETY: the vectors are the caller's.
        None => unsafe { disk::write(current, fd, vectors, count, disk::WHERE_IT_STANDS) },
        Some(_) => direct(),
    }
}

/// A blocking write to a pipe or the like: everything, in order.
fn write_waitable(fd: RawFd, kind: Kind, slot: &Slot, buffers: &[Buffer], size: usize) -> Result<usize> {
    let mut window = VectorWindow::new();
    let mut kind = kind;
    // Short for another reason than a full buffer, and not a socket.
    send_all(fd, kind, slot, size, 0, |sent| {
        let (start, count) = window.after(iovecs(buffers), sent);
        if kind == Kind::NoWait {
            // All of them at first: what is short enough for a pipe goes in one piece, whatever pieces it comes in.
            let whole = (buffers.as_ptr().cast::<libc::iovec>(), buffers.len());
            let (start, count) = if sent == 0 { whole } else { (start.cast_const(), count) };
            // SAFETY: the vectors are the caller's, or a window into them; offset -1 means "where the file stands".
            match unsafe { kernel::pwritev2(fd, start, count as c_int, -1, libc::RWF_NOWAIT) } {
                Err(Errno::OPNOTSUPP) => {
                    kind = Kind::PollFirst;
                    slot.set_note(kind as u8);
                }
                answer => return answer,
            }
        }
        if !is_ready(fd, Direction::Write) {
            return Err(Errno::AGAIN);
        }
        // A terminal that polls writable takes a part, and without O_NONBLOCK would keep the thread for the rest.
        // SAFETY: as above.
        without_blocking(fd, || unsafe { kernel::writev(fd, start, count as c_int) })?
    })
}

/// `sendfile` has no flag that keeps it from waiting, so O_NONBLOCK is set for the length of the call.
pub(super) fn send_file(
    out: RawFd,
    input: RawFd,
    mut offset: Option<&mut i64>,
    count: usize,
) -> Result<usize> {
    let mut call = |count| {
        let offset = offset.as_deref_mut().map_or(core::ptr::null_mut(), |offset| offset as *mut i64);
        // SAFETY: the offset is null or live.
        check(unsafe { real::sendfile(out, input, offset, count) })
    };
    let Some((kind, slot)) = kind::pollable(out) else { return call(count) };
    if is_nonblocking(out)? {
        return call(count);
    }
    if !kind.is_socket() {
        // A pipe is filled once.
        return retry(out, slot, Direction::Write, || without_blocking(out, || call(count))?);
    }
    let mut sent_all = 0;
    // A short count may be the input's doing: as on a socket of any kind.
    send_all(out, Kind::Socket, slot, count, 0, |sent| {
        let sent_now = without_blocking(out, || call(count - sent))??;
        sent_all += sent_now;
        // The input's end comes before the count: a blocking call stops there, too.
        Ok(if sent_now == 0 { count - sent } else { sent_now })
    })
    .map(|_| sent_all)
}

fn iovecs(buffers: &[Buffer]) -> impl Iterator<Item = libc::iovec> {
    buffers.iter().map(|buffer| libc::iovec { iov_base: buffer.start().cast_mut(), iov_len: buffer.len() })
}
