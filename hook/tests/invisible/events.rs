//! Descriptors for events: eventfd, timerfd, signalfd, inotify, pidfd.

use crate::harness::*;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

#[test]
fn eventfds_block_until_written() {
    differ(true, |notes| {
        // SAFETY: no memory is involved; the descriptor is new.
        let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) };
        let fd = event.as_raw_fd();
        let writer = companion(move || {
            thread::sleep(pause());
            let value = 5u64;
            // SAFETY: eight live bytes.
            assert_eq!(unsafe { libc::write(fd, (&raw const value).cast(), 8) }, 8);
        });
        let mut value = 0u64;
        // SAFETY: eight live bytes.
        raw_size(notes, "read", unsafe { libc::read(fd, (&raw mut value).cast(), 8) });
        notes.push(format!("{value}"));
        writer();
    });
}
