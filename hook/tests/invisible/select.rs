//! `select` and `pselect`.

use crate::calls::*;
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

/// One of select's sets, with some descriptors in it.
fn set(fds: &[RawFd]) -> libc::fd_set {
    // SAFETY: an all-zero set is empty; the descriptors are below FD_SETSIZE.
    unsafe {
        let mut set: libc::fd_set = std::mem::zeroed();
        fds.iter().for_each(|fd| libc::FD_SET(*fd, &mut set));
        set
    }
}

/// Which of some descriptors are in a set.
fn members(set: &libc::fd_set, fds: &[RawFd]) -> Vec<bool> {
    // SAFETY: the descriptors are below FD_SETSIZE.
    fds.iter().map(|fd| unsafe { libc::FD_ISSET(*fd, set) }).collect()
}

fn limit(fds: &[RawFd]) -> i32 {
    fds.iter().max().unwrap() + 1
}

#[test]
fn each_set_is_answered_for_itself() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let (listener, _) = listener(5);
        let fds = [ours.as_raw_fd(), theirs.as_raw_fd(), listener.as_raw_fd()];
        // Open to the end: its descriptor is in the sets.
        let peer = theirs.as_raw_fd();
        let sender = companion(move || {
            thread::sleep(pause());
            send(peer, b"x");
            send_with(peer, b"!", libc::MSG_OOB);
        });
        for ask_write in [false, true] {
            let mut sets = [set(&fds), set(if ask_write { &fds[..2] } else { &[] }), set(&fds)];
            let [read, write, except] = &mut sets;
            // SAFETY: live sets.
            let count = unsafe { libc::select(limit(&fds), read, write, except, std::ptr::null_mut()) };
            raw(notes, "select", count.min(1));
            notes.push(format!("{:?}", members(&sets[1], &fds)));
            thread::sleep(pause());
        }
        // By now both are there.
        let mut sets = [set(&fds), set(&fds), set(&fds)];
        let [read, write, except] = &mut sets;
        // SAFETY: live sets.
        raw(notes, "select", unsafe { libc::select(limit(&fds), read, write, except, std::ptr::null_mut()) });
        notes.push(format!("{:?}", sets.map(|set| members(&set, &fds))));
        sender();
    });
}

#[test]
fn the_time_left_is_told() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let fds = [reader.as_raw_fd()];
        for round in 0..3 {
            let mut time = match round {
                0 => libc::timeval { tv_sec: 0, tv_usec: 0 },
                1 => libc::timeval { tv_sec: 0, tv_usec: 20_000 },
                _ => libc::timeval { tv_sec: 1000, tv_usec: 0 },
            };
            if round == 2 {
                write(writer.as_raw_fd(), b"x");
            }
            let mut read = set(&fds);
            let null = std::ptr::null_mut();
            // SAFETY: a live set and a live time.
            raw(notes, "select", unsafe { libc::select(limit(&fds), &mut read, null, null, &mut time) });
            notes.push(format!("{:?} {} {}", members(&read, &fds), time.tv_sec > 900, time.tv_usec > 0));
        }
    });
}

#[test]
fn select_without_descriptors_is_a_pause() {
    differ(true, |notes| {
        let null = std::ptr::null_mut();
        let mut time = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
        // SAFETY: a live time.
        raw(notes, "select", unsafe { libc::select(0, null, null, null, &mut time) });
        notes.push(format!("{} {}", time.tv_sec, time.tv_usec));
        // More microseconds than a second has are as good.
        let mut time = libc::timeval { tv_sec: 0, tv_usec: 1_010_000 };
        let (reader, writer) = pipe(0);
        write(writer.as_raw_fd(), b"x");
        let mut read = set(&[reader.as_raw_fd()]);
        // SAFETY: a live set and a live time.
        raw(notes, "select", unsafe {
            libc::select(reader.as_raw_fd() + 1, &mut read, null, null, &mut time)
        });
        notes.push(format!("{}", time.tv_sec));
    });
}

#[test]
fn bad_arguments_are_refused_and_the_sets_left() {
    differ(false, |notes| {
        let (reader, _writer) = pipe(0);
        let fd = reader.as_raw_fd();
        let null = std::ptr::null_mut();
        // Above the numbers of other tests, but not above the kernel's table, beyond which it does not look.
        // SAFETY: no memory is involved.
        let bad = owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 640) }).as_raw_fd();
        let mut read = set(&[fd, bad]);
        let mut times = [(0, -1), (-1, 0)].map(|(tv_sec, tv_usec)| libc::timeval { tv_sec, tv_usec });
        // SAFETY: live sets and times.
        unsafe {
            raw(
                notes,
                "a bad descriptor",
                libc::select(limit(&[fd, bad]), &mut read, null, null, std::ptr::null_mut()),
            );
            notes.push(format!("{:?}", members(&read, &[fd, bad])));
            raw(notes, "a negative limit", libc::select(-1, &mut read, null, null, std::ptr::null_mut()));
            for time in &mut times {
                raw(notes, "a bad time", libc::select(fd + 1, &mut read, null, null, time));
            }
            let bad = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
            raw(notes, "a bad time", libc::pselect(fd + 1, &mut read, null, null, &bad, std::ptr::null()));
            notes.push(format!("{:?}", members(&read, &[fd])));
        }
    });
}

#[test]
fn what_is_above_the_limit_is_not_looked_at() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let (low, high) = (reader.as_raw_fd(), writer.as_raw_fd());
        // SAFETY: no memory is involved.
        let [low, near, far] = [(low, 576), (high, 580), (high, 650)]
            .map(|(fd, number)| owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, number) }));
        let fds = [low.as_raw_fd(), near.as_raw_fd(), far.as_raw_fd()];
        let mut sets = [set(&fds), set(&fds)];
        let mut time = libc::timeval { tv_sec: 0, tv_usec: 20_000 };
        let [read, write] = &mut sets;
        // SAFETY: live sets and a live time.
        raw(notes, "select", unsafe {
            libc::select(fds[0] + 1, read, write, std::ptr::null_mut(), &mut time)
        });
        notes.push(format!("{:?}", sets.map(|set| members(&set, &fds))));
    });
}

#[test]
fn select_waits_for_room() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let held = fill(ours.as_raw_fd());
        let fds = [ours.as_raw_fd()];
        let log = Log::default();
        let order = log.clone();
        let reader = companion(move || {
            thread::sleep(pause());
            order.note("makes room");
            let mut left = held as isize;
            while left > 0 {
                left -= read(theirs.as_raw_fd(), &mut [0; 65536]);
            }
        });
        let mut write = set(&fds);
        let null = std::ptr::null_mut();
        // SAFETY: a live set.
        let count = unsafe { libc::select(limit(&fds), null, &mut write, null, std::ptr::null_mut()) };
        log.note(format!("{count} {:?}", members(&write, &fds)));
        reader();
        log.close(notes);
    });
}

#[test]
fn pselect_waits_and_leaves_its_timeout_alone() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let fds = [reader.as_raw_fd()];
        let null = std::ptr::null_mut();
        let short = libc::timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let mut read = set(&fds);
        // SAFETY: live sets and times.
        raw(notes, "pselect", unsafe {
            libc::pselect(limit(&fds), &mut read, null, null, &raw const short, std::ptr::null())
        });
        notes.push(format!("{:?} {} {}", members(&read, &fds), short.tv_sec, short.tv_nsec));
        let sender = companion(move || {
            thread::sleep(pause());
            write(writer.as_raw_fd(), b"x");
            thread::sleep(pause());
        });
        let mut read = set(&fds);
        // SAFETY: a live set.
        raw(notes, "for ever", unsafe {
            libc::pselect(limit(&fds), &mut read, null, null, std::ptr::null(), std::ptr::null())
        });
        notes.push(format!("{:?}", members(&read, &fds)));
        sender();
    });
}

#[test]
fn the_end_of_a_pipe_is_readable() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let fds = [reader.as_raw_fd()];
        let closer = companion(move || {
            thread::sleep(pause());
            drop(writer);
        });
        let mut read = set(&fds);
        let null = std::ptr::null_mut();
        // SAFETY: a live set.
        raw(notes, "select", unsafe {
            libc::select(limit(&fds), &mut read, null, null, std::ptr::null_mut())
        });
        notes.push(format!("{:?}", members(&read, &fds)));
        closer();
    });
}
