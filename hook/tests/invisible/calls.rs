//! libc's calls with slices instead of pointers and lengths, so that the cases read as what they do. What these return is what libc
//! returned. Pointers that are wrong on purpose are passed by the cases themselves.
//!
//! All descriptors close on exec: the child of another case, started at the same time, would keep a pipe or a connection open that a
//! case waits for the end of.

use std::mem::zeroed;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

/// What the calls answer that take a descriptor and bytes.
pub type Receive = fn(RawFd, &mut [u8]) -> isize;
pub type Send = fn(RawFd, &[u8]) -> isize;

pub fn errno() -> i32 {
    // SAFETY: errno's address is valid for the calling thread or fiber.
    unsafe { *libc::__errno_location() }
}

pub fn set_errno(value: i32) {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = value }
}

/// Takes a descriptor that a call has just made.
pub fn owned(fd: RawFd) -> OwnedFd {
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: it was just made, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

pub fn read(fd: RawFd, buffer: &mut [u8]) -> isize {
    // SAFETY: the buffer has that length.
    unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) }
}

pub fn write(fd: RawFd, bytes: &[u8]) -> isize {
    // SAFETY: the slice has that length.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }
}

/// Cuts a buffer in two vectors, so that the vectored calls have something to put together.
fn in_two(start: *const u8, length: usize) -> [libc::iovec; 2] {
    let first = length / 2;
    [
        libc::iovec { iov_base: start.cast_mut().cast(), iov_len: first },
        libc::iovec { iov_base: start.wrapping_add(first).cast_mut().cast(), iov_len: length - first },
    ]
}

pub fn readv(fd: RawFd, buffer: &mut [u8]) -> isize {
    let vectors = in_two(buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the vectors cover the buffer.
    unsafe { libc::readv(fd, vectors.as_ptr(), 2) }
}

pub fn writev(fd: RawFd, bytes: &[u8]) -> isize {
    let vectors = in_two(bytes.as_ptr(), bytes.len());
    // SAFETY: the vectors cover the slice.
    unsafe { libc::writev(fd, vectors.as_ptr(), 2) }
}

pub fn recv_with(fd: RawFd, buffer: &mut [u8], flags: i32) -> isize {
    // SAFETY: the buffer has that length.
    unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) }
}

pub fn recv(fd: RawFd, buffer: &mut [u8]) -> isize {
    recv_with(fd, buffer, 0)
}

pub fn send_with(fd: RawFd, bytes: &[u8], flags: i32) -> isize {
    // SAFETY: the slice has that length.
    unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) }
}

pub fn send(fd: RawFd, bytes: &[u8]) -> isize {
    send_with(fd, bytes, 0)
}

pub fn recvfrom(fd: RawFd, buffer: &mut [u8]) -> isize {
    // SAFETY: an all-zero address is valid.
    let mut address: libc::sockaddr_storage = unsafe { zeroed() };
    let mut length = size_of_val(&address) as libc::socklen_t;
    let (at, length) = ((&raw mut address).cast(), &raw mut length);
    // SAFETY: the buffer has that length, and the address that room.
    unsafe { libc::recvfrom(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0, at, length) }
}

pub fn sendto(fd: RawFd, bytes: &[u8]) -> isize {
    // SAFETY: the slice has that length; no address means the connected one.
    unsafe { libc::sendto(fd, bytes.as_ptr().cast(), bytes.len(), 0, std::ptr::null(), 0) }
}

/// A message of the two halves of a buffer.
fn message(vectors: &mut [libc::iovec; 2]) -> libc::msghdr {
    // SAFETY: an all-zero message is valid.
    let mut message: libc::msghdr = unsafe { zeroed() };
    (message.msg_iov, message.msg_iovlen) = (vectors.as_mut_ptr(), 2);
    message
}

pub fn recvmsg_with(fd: RawFd, buffer: &mut [u8], flags: i32) -> (isize, i32) {
    let mut vectors = in_two(buffer.as_mut_ptr(), buffer.len());
    let mut message = message(&mut vectors);
    // SAFETY: the message's vectors cover the buffer.
    let count = unsafe { libc::recvmsg(fd, &mut message, flags) };
    (count, message.msg_flags)
}

pub fn recvmsg(fd: RawFd, buffer: &mut [u8]) -> isize {
    recvmsg_with(fd, buffer, 0).0
}

pub fn sendmsg(fd: RawFd, bytes: &[u8]) -> isize {
    let mut vectors = in_two(bytes.as_ptr(), bytes.len());
    // SAFETY: the message's vectors cover the slice.
    unsafe { libc::sendmsg(fd, &message(&mut vectors), 0) }
}

/// One message by `recvmmsg`; answers its length.
pub fn recvmmsg(fd: RawFd, buffer: &mut [u8]) -> isize {
    let mut vectors = in_two(buffer.as_mut_ptr(), buffer.len());
    let mut messages = [libc::mmsghdr { msg_hdr: message(&mut vectors), msg_len: 0 }];
    // SAFETY: one message, whose vectors cover the buffer.
    match unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), 1, 0, null_mut()) } {
        1 => messages[0].msg_len as isize,
        other => other as isize,
    }
}

/// One message by `sendmmsg`; answers its length.
pub fn sendmmsg(fd: RawFd, bytes: &[u8]) -> isize {
    let mut vectors = in_two(bytes.as_ptr(), bytes.len());
    let mut messages = [libc::mmsghdr { msg_hdr: message(&mut vectors), msg_len: 0 }];
    // SAFETY: one message, whose vectors cover the slice.
    match unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), 1, 0) } {
        1 => messages[0].msg_len as isize,
        other => other as isize,
    }
}

pub fn getfl(fd: RawFd) -> i32 {
    // SAFETY: F_GETFL takes no argument.
    unsafe { libc::fcntl(fd, libc::F_GETFL) }
}

/// O_NONBLOCK by `fcntl`.
pub fn set_nonblocking(fd: RawFd, nonblocking: bool) {
    let flags = getfl(fd);
    let wanted = if nonblocking { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: F_SETFL takes an int.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETFL, wanted) }, 0);
}

/// O_NONBLOCK by `ioctl`.
pub fn fionbio(fd: RawFd, nonblocking: bool) {
    let mut value = i32::from(nonblocking);
    // SAFETY: FIONBIO takes an int.
    assert_eq!(unsafe { libc::ioctl(fd, libc::FIONBIO, &raw mut value) }, 0);
}

/// Bytes that can be read at once.
pub fn fionread(fd: RawFd) -> i32 {
    let mut value = -1i32;
    // SAFETY: FIONREAD fills an int.
    assert_eq!(unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut value) }, 0);
    value
}

pub fn duplicate(fd: RawFd) -> OwnedFd {
    // SAFETY: no memory is involved.
    unsafe {
        let copy = owned(libc::dup(fd));
        libc::fcntl(copy.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC);
        copy
    }
}

pub fn shutdown(fd: RawFd, how: i32) -> i32 {
    // SAFETY: no memory is involved.
    unsafe { libc::shutdown(fd, how) }
}

pub fn close(fd: RawFd) -> i32 {
    // SAFETY: the case gives up the descriptor, or means it to be a wrong one.
    unsafe { libc::close(fd) }
}

pub fn socket(domain: i32, kind: i32) -> OwnedFd {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, 0) })
}

/// Two connected Unix sockets of a type (with flags).
pub fn socketpair(kind: i32) -> (OwnedFd, OwnedFd) {
    let mut pair = [0; 2];
    let kind = kind | libc::SOCK_CLOEXEC;
    // SAFETY: fills the pair.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) }, 0);
    (owned(pair[0]), owned(pair[1]))
}

/// The reading and the writing end.
pub fn pipe(flags: i32) -> (OwnedFd, OwnedFd) {
    let mut pair = [0; 2];
    // SAFETY: fills the pair.
    assert_eq!(unsafe { libc::pipe2(pair.as_mut_ptr(), flags | libc::O_CLOEXEC) }, 0);
    (owned(pair[0]), owned(pair[1]))
}

pub fn set_option(fd: RawFd, level: i32, option: i32, value: i32) -> i32 {
    let (at, length) = ((&raw const value).cast(), size_of::<i32>() as libc::socklen_t);
    // SAFETY: the option takes an int.
    unsafe { libc::setsockopt(fd, level, option, at, length) }
}

pub fn option(fd: RawFd, level: i32, option: i32) -> i32 {
    let (mut value, mut length) = (-1i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the option fills an int.
    assert_eq!(unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut length) }, 0);
    value
}

/// The pending error of a socket, which this clears.
pub fn socket_error(fd: RawFd) -> i32 {
    option(fd, libc::SOL_SOCKET, libc::SO_ERROR)
}

/// Makes the close of a connection a reset.
pub fn reset_on_close(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let (at, length) = ((&raw const linger).cast(), size_of::<libc::linger>() as libc::socklen_t);
    // SAFETY: the option takes a linger.
    assert_eq!(unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, at, length) }, 0);
}

/// An IPv4 address for the calls that take one.
pub fn sockaddr(address: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(address) = address else { panic!("the cases use IPv4") };
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

pub fn connect(fd: RawFd, address: SocketAddr) -> i32 {
    let address = sockaddr(address);
    // SAFETY: an address of that length.
    unsafe { libc::connect(fd, (&raw const address).cast(), size_of_val(&address) as u32) }
}

/// A loopback TCP listener with a backlog, and its address.
pub fn listener(backlog: i32) -> (OwnedFd, SocketAddr) {
    let fd = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC);
    let mut address = sockaddr(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let mut length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: an address of that length, which getsockname fills again.
    unsafe {
        assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length), 0);
        assert_eq!(libc::listen(fd.as_raw_fd(), backlog), 0);
        assert_eq!(libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length), 0);
    }
    (fd, SocketAddr::from((Ipv4Addr::LOCALHOST, u16::from_be(address.sin_port))))
}

/// `accept4` without asking for the address.
pub fn accept(fd: RawFd, flags: i32) -> i32 {
    // SAFETY: no address is asked for.
    unsafe { libc::accept4(fd, null_mut(), null_mut(), flags) }
}
