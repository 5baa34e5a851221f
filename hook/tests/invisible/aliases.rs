//! The other names that libc gives its calls.

use crate::harness::*;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::thread;

#[test]
fn the_other_names_of_calls_wait_like_the_calls() {
    unsafe extern "C" {
        fn __read(fd: libc::c_int, buffer: *mut libc::c_void, length: usize) -> isize;
        fn __read_chk(fd: libc::c_int, buffer: *mut libc::c_void, length: usize, room: usize) -> isize;
        fn __recv_chk(
            fd: libc::c_int,
            buffer: *mut libc::c_void,
            length: usize,
            room: usize,
            flags: libc::c_int,
        ) -> isize;
        fn __poll(entries: *mut libc::pollfd, count: libc::nfds_t, timeout_ms: libc::c_int) -> libc::c_int;
    }
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let fd = server.as_raw_fd();
        let writer = companion(move || {
            for _ in 0..4 {
                thread::sleep(pause());
                client.write_all(b"x").unwrap();
            }
        });
        let mut byte = 0u8;
        let at = (&raw mut byte).cast();
        // SAFETY: one live byte, one live entry.
        unsafe {
            raw_size(notes, "__read", __read(fd, at, 1));
            raw_size(notes, "__read_chk", __read_chk(fd, at, 1, 1));
            raw_size(notes, "__recv_chk", __recv_chk(fd, at, 1, 1, 0));
            raw(notes, "__poll", __poll(&mut entry(fd, libc::POLLIN), 1, -1));
        }
        writer();
    });
}
