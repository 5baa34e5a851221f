//! epoll of the user's own.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const EDGE: u32 = libc::EPOLLET as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;

fn create() -> OwnedFd {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

fn control(epoll: &OwnedFd, operation: i32, fd: RawFd, events: u32, data: u64) -> i32 {
    let mut event = libc::epoll_event { events, u64: data };
    // SAFETY: a live event.
    unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &mut event) }
}

/// Waits, and notes the count and the events, which come in no order.
fn wait(notes: &mut Notes, what: &str, epoll: RawFd, capacity: i32, timeout_ms: i32) -> i32 {
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
    // SAFETY: room for eight events, and the capacity is at most that.
    let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), capacity, timeout_ms) };
    raw(notes, what, count);
    let mut seen: Vec<_> =
        events[..count.max(0) as usize].iter().map(|event| ({ event.u64 }, { event.events })).collect();
    seen.sort_unstable();
    notes.push(format!("{seen:?}"));
    count
}

#[test]
fn an_edge_is_told_once() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (fd, peer, epoll) = (ours.as_raw_fd(), theirs.as_raw_fd(), create());
        raw(notes, "add", control(&epoll, libc::EPOLL_CTL_ADD, fd, IN | EDGE, 7));
        let sender = companion(move || {
            thread::sleep(pause());
            send(peer, b"abcdef");
        });
        wait(notes, "the edge", epoll.as_raw_fd(), 8, -1);
        sender();
        wait(notes, "not again", epoll.as_raw_fd(), 8, 20);
        // A part is read; what is left makes no event, until the user asks anew.
        raw_size(notes, "read", read(fd, &mut [0; 2]));
        wait(notes, "not for the rest", epoll.as_raw_fd(), 8, 20);
        raw(notes, "modify", control(&epoll, libc::EPOLL_CTL_MOD, fd, IN | EDGE, 8));
        wait(notes, "asked anew", epoll.as_raw_fd(), 8, 20);
        send(peer, b"g");
        wait(notes, "more comes", epoll.as_raw_fd(), 8, 20);
    });
}

#[test]
fn one_shot_is_silent_until_armed_again() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (fd, peer, epoll) = (ours.as_raw_fd(), theirs.as_raw_fd(), create());
        raw(notes, "add", control(&epoll, libc::EPOLL_CTL_ADD, fd, IN | ONE_SHOT, 7));
        let sender = companion(move || {
            thread::sleep(pause());
            send(peer, b"x");
        });
        wait(notes, "first", epoll.as_raw_fd(), 8, -1);
        sender();
        wait(notes, "silent", epoll.as_raw_fd(), 8, 20);
        raw(notes, "arm", control(&epoll, libc::EPOLL_CTL_MOD, fd, IN | ONE_SHOT, 8));
        wait(notes, "again", epoll.as_raw_fd(), 8, -1);
    });
}

#[test]
fn changes_count_while_somebody_waits() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        send(theirs.as_raw_fd(), b"x");
        let epoll = create();
        let (copy, fd) = (epoll.try_clone().unwrap(), ours.as_raw_fd());
        let changer = companion(move || {
            thread::sleep(pause());
            assert_eq!(control(&copy, libc::EPOLL_CTL_ADD, fd, IN, 3), 0);
        });
        wait(notes, "added meanwhile", epoll.as_raw_fd(), 8, -1);
        changer();
        raw(notes, "modify", control(&epoll, libc::EPOLL_CTL_MOD, fd, 0, 3));
        let copy = epoll.try_clone().unwrap();
        let changer = companion(move || {
            thread::sleep(pause());
            assert_eq!(control(&copy, libc::EPOLL_CTL_MOD, fd, OUT, 4), 0);
        });
        wait(notes, "modified meanwhile", epoll.as_raw_fd(), 8, -1);
        changer();
        raw(notes, "delete", control(&epoll, libc::EPOLL_CTL_DEL, fd, 0, 0));
        wait(notes, "deleted", epoll.as_raw_fd(), 8, 20);
    });
}

#[test]
fn an_epoll_in_an_epoll() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (inner, outer) = (create(), create());
        raw(notes, "inner", control(&inner, libc::EPOLL_CTL_ADD, ours.as_raw_fd(), IN, 1));
        raw(notes, "outer", control(&outer, libc::EPOLL_CTL_ADD, inner.as_raw_fd(), IN, 2));
        wait(notes, "nothing", outer.as_raw_fd(), 8, 20);
        let peer = theirs.as_raw_fd();
        let sender = companion(move || {
            thread::sleep(pause());
            send(peer, b"x");
        });
        wait(notes, "outer", outer.as_raw_fd(), 8, -1);
        wait(notes, "inner", inner.as_raw_fd(), 8, -1);
        sender();
        let mut entries = [entry(outer.as_raw_fd(), libc::POLLIN)];
        raw(notes, "poll", poll(&mut entries, -1));
        notes.push(entries[0].revents.to_string());
        raw_size(notes, "read", read(ours.as_raw_fd(), &mut [0; 5]));
        wait(notes, "nothing left", outer.as_raw_fd(), 8, 20);
        raw(notes, "itself", control(&outer, libc::EPOLL_CTL_ADD, outer.as_raw_fd(), IN, 3));
        raw(notes, "a loop", control(&inner, libc::EPOLL_CTL_ADD, outer.as_raw_fd(), IN, 3));
    });
}

#[test]
fn an_epoll_may_be_polled_by_several() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let epoll = create();
        raw(notes, "add", control(&epoll, libc::EPOLL_CTL_ADD, ours.as_raw_fd(), IN, 1));
        let fd = epoll.as_raw_fd();
        let pollers: Vec<_> = (0..2)
            .map(|_| {
                companion(move || {
                    // Level-triggered, and nobody reads: both see it.
                    let mut event = libc::epoll_event { events: 0, u64: 0 };
                    // SAFETY: room for one event.
                    assert_eq!(unsafe { libc::epoll_wait(fd, &mut event, 1, -1) }, 1);
                })
            })
            .collect();
        thread::sleep(pause());
        send(theirs.as_raw_fd(), b"x");
        pollers.into_iter().for_each(|poller| poller());
    });
}

#[test]
fn a_one_shot_event_goes_to_one_of_several() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let epoll = create();
        raw(notes, "add", control(&epoll, libc::EPOLL_CTL_ADD, ours.as_raw_fd(), IN | ONE_SHOT, 1));
        let (fd, log) = (epoll.as_raw_fd(), Log::default());
        let pollers: Vec<_> = (0..2)
            .map(|_| {
                let log = log.clone();
                companion(move || {
                    let mut event = libc::epoll_event { events: 0, u64: 0 };
                    let timeout = (pause() * 5).as_millis() as i32;
                    // SAFETY: room for one event.
                    let count = unsafe { libc::epoll_wait(fd, &mut event, 1, timeout) };
                    log.note(format!("{count}"));
                })
            })
            .collect();
        thread::sleep(pause());
        send(theirs.as_raw_fd(), b"x");
        pollers.into_iter().for_each(|poller| poller());
        log.close(notes);
    });
}

#[test]
fn few_events_at_a_time_come_in_turn() {
    differ(false, |notes| {
        let pipes: Vec<_> = (0..3).map(|_| pipe(0)).collect();
        let epoll = create();
        for (number, (reader, writer)) in pipes.iter().enumerate() {
            control(&epoll, libc::EPOLL_CTL_ADD, reader.as_raw_fd(), IN, number as u64);
            write(writer.as_raw_fd(), b"x");
        }
        for _ in 0..6 {
            wait(notes, "one", epoll.as_raw_fd(), 1, -1);
        }
        wait(notes, "all", epoll.as_raw_fd(), 8, -1);
    });
}

#[test]
fn ends_and_hangups_come_unasked() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (reader, writer) = pipe(0);
        let epoll = create();
        let ask = libc::EPOLLRDHUP as u32;
        control(&epoll, libc::EPOLL_CTL_ADD, ours.as_raw_fd(), ask | EDGE, 1);
        control(&epoll, libc::EPOLL_CTL_ADD, reader.as_raw_fd(), EDGE, 2);
        let closer = companion(move || {
            thread::sleep(pause());
            shutdown(theirs.as_raw_fd(), libc::SHUT_WR);
            thread::sleep(pause());
            drop(theirs);
            thread::sleep(pause());
            drop(writer);
        });
        for _ in 0..3 {
            wait(notes, "event", epoll.as_raw_fd(), 8, -1);
        }
        closer();
    });
}

#[test]
fn what_epoll_refuses() {
    differ(false, |notes| {
        let (reader, _writer) = pipe(0);
        let epoll = create();
        let file = tempfile::tempfile().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        raw(notes, "a file", control(&epoll, libc::EPOLL_CTL_ADD, file.as_raw_fd(), IN, 0));
        raw(notes, "/dev/null", control(&epoll, libc::EPOLL_CTL_ADD, null.as_raw_fd(), IN, 0));
        raw(notes, "nothing", control(&epoll, libc::EPOLL_CTL_ADD, 999_999, IN, 0));
        raw(notes, "add", control(&epoll, libc::EPOLL_CTL_ADD, reader.as_raw_fd(), IN, 0));
        raw(notes, "add again", control(&epoll, libc::EPOLL_CTL_ADD, reader.as_raw_fd(), IN, 0));
        raw(notes, "delete", control(&epoll, libc::EPOLL_CTL_DEL, reader.as_raw_fd(), IN, 0));
        raw(notes, "delete again", control(&epoll, libc::EPOLL_CTL_DEL, reader.as_raw_fd(), IN, 0));
        wait(notes, "no room", epoll.as_raw_fd(), 0, 0);
        wait(notes, "negative room", epoll.as_raw_fd(), -1, 0);
        wait(notes, "no epoll", reader.as_raw_fd(), 1, 0);
        wait(notes, "no epoll, waiting", reader.as_raw_fd(), 1, -1);
        wait(notes, "no descriptor", -1, 1, -1);
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: the kernel judges the arguments.
        unsafe {
            raw(notes, "null", libc::epoll_wait(epoll.as_raw_fd(), std::ptr::null_mut(), 1, 0));
            raw(notes, "far too much room", libc::epoll_wait(epoll.as_raw_fd(), &mut event, i32::MAX, 0));
        }
    });
}

#[test]
fn epoll_pwait_waits_and_times_out() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let epoll = create();
        control(&epoll, libc::EPOLL_CTL_ADD, reader.as_raw_fd(), IN, 5);
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event; no mask.
        let mut pwait = |timeout| unsafe {
            libc::epoll_pwait(epoll.as_raw_fd(), &mut event, 1, timeout, std::ptr::null())
        };
        raw(notes, "at once", pwait(0));
        raw(notes, "in time", pwait(20));
        let sender = companion(move || {
            thread::sleep(pause());
            write(writer.as_raw_fd(), b"x");
            thread::sleep(pause());
        });
        raw(notes, "for ever", pwait(-1));
        notes.push(format!("{} {}", { event.events }, { event.u64 }));
        sender();
    });
}

#[test]
fn a_users_epoll_and_a_wait_of_the_runtime_do_not_disturb_each_other() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let fd = ours.as_raw_fd();
        let epoll = create();
        raw(notes, "add", control(&epoll, libc::EPOLL_CTL_ADD, fd, IN | OUT | EDGE, 1));
        wait(notes, "writable", epoll.as_raw_fd(), 8, -1);
        let sender = companion(move || {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"x");
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"y");
            thread::sleep(pause());
        });
        raw_size(notes, "a receive waits", recv(fd, &mut [0; 5]));
        wait(notes, "the edge was there", epoll.as_raw_fd(), 8, -1);
        wait(notes, "and the next", epoll.as_raw_fd(), 8, -1);
        sender();
    });
}

#[test]
fn success_keeps_errno() {
    differ(true, |notes| {
        let epoll = create();
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        set_errno(libc::EXDEV);
        // SAFETY: room for one event.
        let count = unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, 20) };
        notes.push(format!("{count} {}", errno()));
    });
}

#[test]
fn closing_an_epoll_ends_the_waits_for_it() {
    let manager = IoManager::new(1, false).unwrap();
    let epoll = create();
    let fd = epoll.as_raw_fd();
    let waiting = manager.spawn(move || {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        (unsafe { libc::epoll_wait(fd, &mut event, 1, -1) }, errno())
    });
    manager.spawn(move || {
        thread::sleep(pause());
        drop(epoll);
    });
    assert_eq!(waiting.join().unwrap(), (-1, libc::EBADF));
}
