//! Other names that glibc exports for hooked calls: those with underscores, which older code uses, and those that C code compiled
//! with `_FORTIFY_SOURCE` calls, which also pass the size of the buffer behind the pointer.

use super::{descriptors, files, multiplex, signals, sockets, threads, time};
use core::ffi::{c_int, c_ulong, c_void};
use libc::{
    fd_set, nfds_t, pid_t, pollfd, sigset_t, size_t, sockaddr, socklen_t, ssize_t, timespec, timeval,
};

macro_rules! aliases {
    ($($alias:ident = $module:ident::$name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $alias($($argument: $type),*) -> $result {
                // SAFETY: another name of the same function, with the caller's own arguments.
                unsafe { $module::$name($($argument),*) }
            }
        )*
    };
}

aliases! {
    __read = files::read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t;
    __write = files::write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t;
    __poll = files::poll(entries: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int;
    __close = descriptors::close(fd: c_int) -> c_int;
    __dup2 = descriptors::dup2(fd: c_int, target: c_int) -> c_int;
    __fcntl = descriptors::fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int;
    __connect = sockets::connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
    __send = sockets::send(fd: c_int, buffer: *const c_void, length: size_t, flags: c_int) -> ssize_t;
    __nanosleep = time::nanosleep(request: *const timespec, remaining: *mut timespec) -> c_int;
    __sched_yield = time::sched_yield() -> c_int;
    __select = multiplex::select(limit: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval) -> c_int;
    __sigsuspend = signals::sigsuspend(mask: *const sigset_t) -> c_int;
    __wait = threads::wait(status: *mut c_int) -> pid_t;
    __waitpid = threads::waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t;
}

/// What glibc does when a call would write beyond the buffer: says so and aborts.
pub(super) fn check_fits(wanted: usize, room: usize) {
    unsafe extern "C" {
        fn __chk_fail() -> !;
    }
    if wanted > room {
        // SAFETY: takes nothing and does not return.
        unsafe { __chk_fail() }
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __read_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    room: size_t,
) -> ssize_t {
    check_fits(length, room);
    // SAFETY: the caller's own arguments.
    unsafe { files::read(fd, buffer, length) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __recv_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    room: size_t,
    flags: c_int,
) -> ssize_t {
    check_fits(length, room);
    // SAFETY: the caller's own arguments.
    unsafe { sockets::recv(fd, buffer, length, flags) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __recvfrom_chk(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    room: size_t,
    flags: c_int,
    address: *mut sockaddr,
    address_length: *mut socklen_t,
) -> ssize_t {
    check_fits(length, room);
    // SAFETY: the caller's own arguments.
    unsafe { sockets::recvfrom(fd, buffer, length, flags, address, address_length) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __poll_chk(
    entries: *mut pollfd,
    count: nfds_t,
    timeout_ms: c_int,
    room: size_t,
) -> c_int {
    check_fits(count as usize * size_of::<pollfd>(), room);
    // SAFETY: the caller's own arguments.
    unsafe { files::poll(entries, count, timeout_ms) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn __ppoll_chk(
    entries: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    room: size_t,
) -> c_int {
    check_fits(count as usize * size_of::<pollfd>(), room);
    // SAFETY: the caller's own arguments.
    unsafe { files::ppoll(entries, count, timeout, mask) }
}
