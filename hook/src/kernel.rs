//! The system calls that fibers make all the time, by the bare instruction.
//!
//! In a process with more than one thread libc's own are cancellation points (`pthread_cancel`): two atomic operations around the call, 45-60
//! ns. No fiber is cancelled that way, nor is a thread of the blocking pool, so the calls made for fibers do without. They do not touch errno
//! either. What a plain thread calls goes to libc's functions, in `real`.
//!
//! For `real_os` and `futex` only. The numbers and argument orders are those of 64-bit Linux, x86_64 and aarch64 alike.

use crate::errno::{Errno, Result};
use crate::os::PollEntry;
use core::ffi::{c_int, c_long, c_uint, c_void};
use core::ptr::null_mut;
use libc::{epoll_event, iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t};
use squall_fiber::sys::raw_syscall;
use std::os::fd::RawFd;

/// Any system call.
///
/// # Safety
/// As for the system call.
#[inline(always)]
pub(crate) unsafe fn call(number: c_long, arguments: [c_long; 6]) -> Result<usize> {
    // SAFETY: by the caller's contract.
    let answer = unsafe { raw_syscall(number, arguments) };
    // The kernel's errors are the last page of numbers.
    if (answer as usize) > -4096_isize as usize { Err(Errno(-answer as c_int)) } else { Ok(answer as usize) }
}

/// Defines functions that pass their arguments on, filled up with zeroes.
macro_rules! calls {
    ($($name:ident = $number:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`.")]
            ///
            /// # Safety
            /// As for the libc function of that name.
            #[inline(always)]
            pub(crate) unsafe fn $name($($argument: $type),*) -> Result<usize> {
                let given = [$($argument as c_long),*];
                let mut arguments = [0; 6];
                arguments[..given.len()].copy_from_slice(&given);
                // SAFETY: by the caller's contract.
                unsafe { call(libc::$number, arguments) }
            }
        )*
    };
}

calls! {
    read = SYS_read(fd: RawFd, buffer: *mut c_void, length: size_t);
    readv = SYS_readv(fd: RawFd, vectors: *const iovec, count: c_int);
    write = SYS_write(fd: RawFd, buffer: *const c_void, length: size_t);
    writev = SYS_writev(fd: RawFd, vectors: *const iovec, count: c_int);
    pread = SYS_pread64(fd: RawFd, buffer: *mut c_void, length: size_t, offset: off_t);
    pwrite = SYS_pwrite64(fd: RawFd, buffer: *const c_void, length: size_t, offset: off_t);
    // The offset's upper half, which 64-bit kernels ignore.
    preadv = SYS_preadv(fd: RawFd, vectors: *const iovec, count: c_int, offset: off_t);
    pwritev = SYS_pwritev(fd: RawFd, vectors: *const iovec, count: c_int, offset: off_t);
    recvfrom = SYS_recvfrom(fd: RawFd, buffer: *mut c_void, length: size_t, flags: c_int, address: *mut sockaddr, address_length: *mut socklen_t);
    sendto = SYS_sendto(fd: RawFd, buffer: *const c_void, length: size_t, flags: c_int, address: *const sockaddr, address_length: socklen_t);
    recvmsg = SYS_recvmsg(fd: RawFd, message: *mut msghdr, flags: c_int);
    sendmsg = SYS_sendmsg(fd: RawFd, message: *const msghdr, flags: c_int);
    recvmmsg = SYS_recvmmsg(fd: RawFd, messages: *mut mmsghdr, count: c_uint, flags: c_int);
}

/// `recv`.
///
/// # Safety
/// As for the libc function.
#[inline(always)]
pub(crate) unsafe fn recv(fd: RawFd, buffer: *mut c_void, length: size_t, flags: c_int) -> Result<usize> {
    // SAFETY: by the caller's contract.
    unsafe { recvfrom(fd, buffer, length, flags, null_mut(), null_mut()) }
}

/// `send`.
///
/// # Safety
/// As for the libc function.
#[inline(always)]
pub(crate) unsafe fn send(fd: RawFd, buffer: *const c_void, length: size_t, flags: c_int) -> Result<usize> {
    // SAFETY: by the caller's contract.
    unsafe { sendto(fd, buffer, length, flags, null_mut(), 0) }
}

/// `preadv2`.
///
/// # Safety
/// As for the libc function.
#[inline(always)]
pub(crate) unsafe fn preadv2(
    fd: RawFd,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> Result<usize> {
    // SAFETY: by the caller's contract. The zero is the offset's upper half, which 64-bit kernels ignore.
    unsafe { call(libc::SYS_preadv2, [fd.into(), vectors as c_long, count.into(), offset, 0, flags.into()]) }
}

/// `pwritev2`.
///
/// # Safety
/// As for the libc function.
#[inline(always)]
pub(crate) unsafe fn pwritev2(
    fd: RawFd,
    vectors: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> Result<usize> {
    // SAFETY: as in `preadv2`.
    unsafe { call(libc::SYS_pwritev2, [fd.into(), vectors as c_long, count.into(), offset, 0, flags.into()]) }
}

/// `poll` that only looks.
#[inline(always)]
pub(crate) fn poll_now(entries: &mut [PollEntry]) -> Result<usize> {
    let (start, count) = (entries.as_mut_ptr() as c_long, entries.len() as c_long);
    // SAFETY: the entries are a live slice.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        call(libc::SYS_poll, [start, count, 0, 0, 0, 0])
    }
    // SAFETY: as above, and the time is live.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        call(libc::SYS_ppoll, [start, count, &raw const no_time as c_long, 0, 0, 0])
    }
}

/// `epoll_wait` that only looks.
///
/// # Safety
/// There is room for `capacity` events.
#[inline(always)]
pub(crate) unsafe fn events_now(epoll: RawFd, events: *mut epoll_event, capacity: c_int) -> Result<usize> {
    // SAFETY: by the caller's contract; no mask.
    unsafe { call(libc::SYS_epoll_pwait, [epoll.into(), events as c_long, capacity.into(), 0, 0, 0]) }
}
