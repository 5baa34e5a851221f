//! The other names that libc gives its calls: those with underscores, and those that C code compiled with `_FORTIFY_SOURCE` calls.

use crate::calls::*;
use crate::harness::*;
use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};
use std::thread;

use libc::{c_char, c_int, c_ulong, c_void, nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t, timespec};

unsafe extern "C" {
    fn __read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t;
    fn __write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t;
    fn __read_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t) -> ssize_t;
    fn __recv_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t, flags: c_int) -> ssize_t;
    fn __recvfrom_chk(
        fd: c_int,
        buffer: *mut c_void,
        length: size_t,
        room: size_t,
        flags: c_int,
        address: *mut sockaddr,
        address_length: *mut socklen_t,
    ) -> ssize_t;
    fn __send(fd: c_int, buffer: *const c_void, length: size_t, flags: c_int) -> ssize_t;
    fn __connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
    fn __poll(entries: *mut pollfd, count: nfds_t, timeout_ms: c_int) -> c_int;
    fn __poll_chk(entries: *mut pollfd, count: nfds_t, timeout_ms: c_int, room: size_t) -> c_int;
    fn __ppoll_chk(
        entries: *mut pollfd,
        count: nfds_t,
        time: *const timespec,
        mask: *const libc::sigset_t,
        room: size_t,
    ) -> c_int;
    fn __select(
        limit: c_int,
        read: *mut libc::fd_set,
        write: *mut libc::fd_set,
        except: *mut libc::fd_set,
        time: *mut libc::timeval,
    ) -> c_int;
    fn __close(fd: c_int) -> c_int;
    fn __dup2(fd: c_int, target: c_int) -> c_int;
    fn __fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int;
    fn __nanosleep(request: *const timespec, remaining: *mut timespec) -> c_int;
    fn __sched_yield() -> c_int;
    fn __waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn __open(name: *const c_char, flags: c_int, mode: c_int) -> c_int;
    fn __open64(name: *const c_char, flags: c_int, mode: c_int) -> c_int;
    fn __open_2(name: *const c_char, flags: c_int) -> c_int;
    fn __open64_2(name: *const c_char, flags: c_int) -> c_int;
    fn __openat_2(directory: c_int, name: *const c_char, flags: c_int) -> c_int;
    fn __openat64_2(directory: c_int, name: *const c_char, flags: c_int) -> c_int;
    fn __pread64(fd: c_int, buffer: *mut c_void, length: size_t, offset: i64) -> ssize_t;
    fn __pread_chk(fd: c_int, buffer: *mut c_void, length: size_t, offset: i64, room: size_t) -> ssize_t;
    fn __pread64_chk(fd: c_int, buffer: *mut c_void, length: size_t, offset: i64, room: size_t) -> ssize_t;
    fn __pwrite64(fd: c_int, buffer: *const c_void, length: size_t, offset: i64) -> ssize_t;
    fn lockf64(fd: c_int, command: c_int, length: i64) -> c_int;
    fn preadv64v2(fd: c_int, vectors: *const libc::iovec, count: c_int, offset: i64, flags: c_int)
    -> ssize_t;
    fn pwritev64v2(
        fd: c_int,
        vectors: *const libc::iovec,
        count: c_int,
        offset: i64,
        flags: c_int,
    ) -> ssize_t;
}

#[test]
fn the_other_names_of_calls_wait_like_the_calls() {
    differ(true, |notes| {
        let (client, server) = tcp_pair();
        let (near, far) = (server.as_raw_fd(), client.as_raw_fd());
        let bytes = 8;
        let writer = companion(move || {
            for _ in 0..bytes {
                thread::sleep(pause());
                // SAFETY: one live byte.
                assert_eq!(unsafe { __write(far, b"x".as_ptr().cast(), 1) }, 1);
            }
        });
        let mut byte = 0u8;
        let at = (&raw mut byte).cast();
        // SAFETY: one live byte, one live entry, a live set.
        unsafe {
            raw_size(notes, "__read", __read(near, at, 1));
            raw_size(notes, "__read_chk", __read_chk(near, at, 1, 1));
            raw_size(notes, "__recv_chk", __recv_chk(near, at, 1, 1, 0));
            raw_size(notes, "__recvfrom_chk", __recvfrom_chk(near, at, 1, 1, 0, null_mut(), null_mut()));
            let one = size_of::<pollfd>();
            raw(notes, "__poll", __poll(&mut entry(near, libc::POLLIN), 1, -1));
            raw_size(notes, "__read", __read(near, at, 1));
            let answer = __poll_chk(&mut entry(near, libc::POLLIN), 1, -1, one);
            raw(notes, "__poll_chk", answer);
            raw_size(notes, "__read", __read(near, at, 1));
            let answer = __ppoll_chk(&mut entry(near, libc::POLLIN), 1, null(), null(), one);
            raw(notes, "__ppoll_chk", answer);
            raw_size(notes, "__read", __read(near, at, 1));
            let mut set = std::mem::zeroed();
            libc::FD_SET(near, &mut set);
            raw(notes, "__select", __select(near + 1, &mut set, null_mut(), null_mut(), null_mut()));
            raw_size(notes, "__read", __read(near, at, 1));
            raw_size(notes, "__send", __send(near, at, 1, 0));
            let moment = timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            raw(notes, "__nanosleep", __nanosleep(&moment, null_mut()));
            raw(notes, "__sched_yield", __sched_yield());
        }
        writer();
    });
}

#[test]
fn the_other_names_of_connecting_and_closing() {
    differ(false, |notes| {
        let (_listening, address) = listener(3);
        let socket = std::os::fd::IntoRawFd::into_raw_fd(socket(libc::AF_INET, libc::SOCK_STREAM));
        let address = sockaddr(address);
        // SAFETY: a live address; numbers that nobody else has.
        unsafe {
            raw(notes, "__connect", __connect(socket, (&raw const address).cast(), 16));
            raw(notes, "__fcntl", __fcntl(socket, libc::F_GETFL, 0));
            raw(notes, "__fcntl", __fcntl(socket, libc::F_SETFL, libc::O_NONBLOCK as c_ulong));
            raw_size(notes, "__read", __read(socket, [0u8; 1].as_mut_ptr().cast(), 1));
            raw(notes, "__dup2", i32::from(__dup2(socket, socket) == socket));
            raw(notes, "__dup2", __dup2(-1, socket));
            raw(notes, "__close", __close(socket));
            raw(notes, "__close", __close(-1));
            raw(notes, "__waitpid", __waitpid(i32::MAX, null_mut(), 0));
        }
    });
}

#[test]
fn the_other_names_of_opening_reading_and_writing() {
    differ(false, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = CString::new(directory.path().join("file").as_os_str().as_bytes()).unwrap();
        let path = path.as_ptr();
        // SAFETY: a C string, live buffers and vectors.
        unsafe {
            let flags = libc::O_RDWR | libc::O_CLOEXEC;
            let files = [
                __open(path, flags | libc::O_CREAT, 0o600),
                __open64(path, flags, 0),
                __open_2(path, flags),
                __open64_2(path, flags),
                __openat_2(libc::AT_FDCWD, path, flags),
                __openat64_2(libc::AT_FDCWD, path, flags),
            ]
            .map(owned);
            let mut buffer = [0u8; 4];
            let at = (&raw mut buffer).cast::<c_void>();
            let vector = libc::iovec { iov_base: at, iov_len: 4 };
            for file in &files {
                let fd = file.as_raw_fd();
                raw_size(notes, "__pwrite64", __pwrite64(fd, b"abcdef".as_ptr().cast(), 6, 1));
                raw_size(notes, "__pread64", __pread64(fd, at, 4, 2));
                raw_size(notes, "__pread_chk", __pread_chk(fd, at, 4, 0, 4));
                raw_size(notes, "__pread64_chk", __pread64_chk(fd, at, 4, 5, 4));
                raw_size(notes, "pwritev64", libc::pwritev64(fd, &vector, 1, 3));
                raw_size(notes, "preadv64", libc::preadv64(fd, &vector, 1, 2));
                raw_size(notes, "pwritev64v2", pwritev64v2(fd, &vector, 1, 3, 0));
                raw_size(notes, "preadv64v2", preadv64v2(fd, &vector, 1, 2, 0));
                raw(notes, "lockf64", lockf64(fd, libc::F_TLOCK, 0));
                notes.push(format!("{buffer:?}"));
            }
            raw(notes, "no such file", __open_2(c"/no/such/file".as_ptr(), libc::O_RDONLY));
        }
    });
}

/// How a forked child ends that makes a call. It makes system calls only.
fn ends_by(call: fn() -> i64) -> i32 {
    // SAFETY: the child closes its standard error, so that libc's message goes nowhere, calls, and exits.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::close(2);
            call();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}

#[test]
fn a_call_beyond_its_buffer_ends_the_program() {
    differ(false, |notes| {
        // SAFETY: the calls that fit have their room, the others are refused.
        let calls: [fn() -> i64; 8] = unsafe {
            [
                || __read_chk(-1, [0u8; 4].as_mut_ptr().cast(), 4, 4) as i64,
                || __read_chk(-1, [0u8; 4].as_mut_ptr().cast(), 5, 4) as i64,
                || __recv_chk(-1, [0u8; 4].as_mut_ptr().cast(), 5, 4, 0) as i64,
                || __recvfrom_chk(-1, [0u8; 4].as_mut_ptr().cast(), 5, 4, 0, null_mut(), null_mut()) as i64,
                || __pread_chk(-1, [0u8; 4].as_mut_ptr().cast(), 5, 0, 4) as i64,
                || __poll_chk(&mut entry(-1, 0), 2, 0, size_of::<pollfd>()).into(),
                || __ppoll_chk(&mut entry(-1, 0), 2, null(), null(), size_of::<pollfd>()).into(),
                || __open_2(c"/no/such/file".as_ptr(), libc::O_CREAT).into(),
            ]
        };
        for call in calls {
            notes.push(format!("{}", ends_by(call)));
        }
    });
}
