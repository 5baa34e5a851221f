//! epoll of the user's own.

use crate::harness::*;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

#[test]
fn epoll_waits_reports_and_times_out() {
    differ(true, |notes| {
        let (mut client, mut server) = tcp_pair();
        // SAFETY: no memory is involved; the descriptor is new.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 77 };
        // SAFETY: one live event.
        unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, server.as_raw_fd(), &mut interest);
        }
        let wait = |notes: &mut Notes, capacity: i32, timeout_ms| {
            let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
            // SAFETY: room for four events, and the capacity is at most that.
            let count =
                unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), capacity, timeout_ms) };
            raw(notes, "epoll_wait", count);
            let (bits, data) = (events[0].events, events[0].u64);
            notes.push(format!("{bits} {data}"));
        };
        wait(notes, 4, 20);
        wait(notes, 0, 20);
        let writer = companion(move || {
            thread::sleep(pause());
            client.write_all(b"x").unwrap();
            thread::sleep(pause() * 2);
            client.write_all(b"y").unwrap();
            thread::sleep(pause() * 2);
        });
        wait(notes, 4, -1);
        // Level-triggered: what was not read is reported again, at once.
        wait(notes, 4, -1);
        server.read_exact(&mut [0]).unwrap();
        wait(notes, 4, 5000);
        server.read_exact(&mut [0]).unwrap();
        wait(notes, 4, 5000);
        kind(notes, "the end", server.read(&mut [0]));
        writer();
        // SAFETY: one live event; a bad descriptor is an error.
        raw(notes, "bad", unsafe { libc::epoll_wait(999_999, &mut interest, 1, 5) });
    });
}
