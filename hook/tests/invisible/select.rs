//! `select` and `pselect`.

use crate::harness::*;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

#[test]
fn select_waits_reports_and_times_out() {
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let (idle, _idle_writer) = std::io::pipe().unwrap();
        let select = |notes: &mut Notes, fds: &[RawFd], timeout_ms: Option<i64>| {
            // SAFETY: the sets are live, and the descriptors below FD_SETSIZE.
            unsafe {
                let mut read: libc::fd_set = std::mem::zeroed();
                fds.iter().for_each(|fd| libc::FD_SET(*fd, &mut read));
                let mut time =
                    timeout_ms.map(|ms| libc::timeval { tv_sec: ms / 1000, tv_usec: ms % 1000 * 1000 });
                let time = time.as_mut().map_or(std::ptr::null_mut(), |time| time as *mut _);
                let (none, limit) = (std::ptr::null_mut(), fds.iter().max().unwrap() + 1);
                raw(notes, "select", libc::select(limit, &mut read, none, none, time));
                notes.push(format!(
                    "{:?}",
                    fds.iter().map(|fd| libc::FD_ISSET(*fd, &read)).collect::<Vec<_>>()
                ));
            }
        };
        let fds = [server.as_raw_fd(), idle.as_raw_fd()];
        select(notes, &fds, Some(20));
        let writer = companion(move || {
            thread::sleep(pause());
            client.write_all(b"x").unwrap();
            thread::sleep(pause());
        });
        select(notes, &fds, None);
        writer();
    });
}
