//! Descriptors for events: eventfd, timerfd, inotify, pidfd. (signalfd is with the signals.)

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

fn eventfd(initial: u32, flags: i32) -> OwnedFd {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::eventfd(initial, flags) })
}

fn add(fd: i32, value: u64) -> isize {
    write(fd, &value.to_ne_bytes())
}

/// Reads a counter, and notes what the call returned and what it read.
fn take(notes: &mut Notes, what: &str, fd: i32) {
    let mut value = [0; 8];
    raw_size(notes, what, read(fd, &mut value));
    notes.push(u64::from_ne_bytes(value).to_string());
}

#[test]
fn eventfds_block_until_written() {
    differ(true, |notes| {
        let event = eventfd(0, 0);
        let fd = event.as_raw_fd();
        let writer = companion(move || {
            for value in [5, 3] {
                thread::sleep(pause());
                assert_eq!(add(fd, value), 8);
            }
        });
        take(notes, "first", fd);
        take(notes, "second", fd);
        writer();
        add(fd, 1);
        add(fd, 2);
        take(notes, "together", fd);
        notes.push(format!("{}", getfl(fd)));
    });
}

#[test]
fn an_eventfd_semaphore_gives_one_at_a_time() {
    differ(true, |notes| {
        let event = eventfd(2, libc::EFD_SEMAPHORE);
        let fd = event.as_raw_fd();
        take(notes, "first", fd);
        take(notes, "second", fd);
        let writer = companion(move || {
            thread::sleep(pause());
            assert_eq!(add(fd, 2), 8);
        });
        take(notes, "third", fd);
        take(notes, "fourth", fd);
        writer();
    });
}

#[test]
fn two_that_wait_for_a_semaphore_are_both_let_through() {
    differ(true, |notes| {
        let event = eventfd(0, libc::EFD_SEMAPHORE);
        let fd = event.as_raw_fd();
        let takers: Vec<_> =
            (0..2).map(|_| companion(move || assert_eq!(read(fd, &mut [0; 8]), 8))).collect();
        thread::sleep(pause());
        add(fd, 1);
        thread::sleep(pause());
        add(fd, 1);
        takers.into_iter().for_each(|taker| taker());
        set_nonblocking(fd, true);
        take(notes, "nothing left", fd);
    });
}

#[test]
fn an_eventfd_that_would_overflow_makes_its_writer_wait() {
    differ(true, |notes| {
        let event = eventfd(0, 0);
        let fd = event.as_raw_fd();
        raw_size(notes, "as much as fits", add(fd, u64::MAX - 1));
        let log = Log::default();
        let order = log.clone();
        let reader = companion(move || {
            thread::sleep(pause());
            order.note("makes room");
            assert_eq!(read(fd, &mut [0; 8]), 8);
        });
        let count = add(fd, 1);
        log.note(format!("added {count}"));
        reader();
        log.close(notes);
        take(notes, "what was added", fd);
    });
}

#[test]
fn an_eventfd_that_takes_a_little_makes_a_writer_of_more_wait() {
    differ(true, |notes| {
        let event = eventfd(0, 0);
        let fd = event.as_raw_fd();
        // Polling says "writable", since 1 would fit.
        raw_size(notes, "almost as much as fits", add(fd, u64::MAX - 3));
        let log = Log::default();
        let order = log.clone();
        let reader = companion(move || {
            thread::sleep(pause());
            order.note("makes room");
            assert_eq!(read(fd, &mut [0; 8]), 8);
        });
        let count = add(fd, 5);
        log.note(format!("added {count}"));
        reader();
        log.close(notes);
        take(notes, "what was added", fd);
    });
}

#[test]
fn a_nonblocking_eventfd_does_not_wait() {
    differ(false, |notes| {
        let from_birth = eventfd(0, libc::EFD_NONBLOCK);
        let later = eventfd(0, 0);
        set_nonblocking(later.as_raw_fd(), true);
        for fd in [from_birth.as_raw_fd(), later.as_raw_fd()] {
            take(notes, "nothing", fd);
            raw_size(notes, "all", add(fd, u64::MAX - 1));
            raw_size(notes, "too much", add(fd, 1));
            notes.push(format!("{}", getfl(fd)));
        }
    });
}

#[test]
fn eventfds_judge_sizes_and_values() {
    differ(false, |notes| {
        let event = eventfd(1, 0);
        let fd = event.as_raw_fd();
        raw_size(notes, "a short read", read(fd, &mut [0; 7]));
        raw_size(notes, "a short write", write(fd, &[1; 7]));
        raw_size(notes, "the impossible value", add(fd, u64::MAX));
        raw_size(notes, "a long write", write(fd, &[0; 16]));
        raw_size(notes, "a long read", read(fd, &mut [0; 16]));
        raw_size(notes, "nothing", write(fd, b""));
        raw_size(notes, "nothing", read(fd, &mut []));
        raw_size(notes, "in pieces", writev(fd, &1u64.to_ne_bytes()));
        add(fd, 1);
        raw_size(notes, "in pieces", readv(fd, &mut [0; 8]));
        raw_size(notes, "no socket", recv(fd, &mut [0; 8]));
        // SAFETY: the kernel judges the pointer.
        raw_size(notes, "a bad pointer", unsafe { libc::write(fd, 16 as *const _, 8) });
    });
}

fn timerfd(flags: i32) -> OwnedFd {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })
}

fn arm(fd: i32, flags: i32, first: Duration, interval: Duration) {
    let spec = |time: Duration| libc::timespec {
        tv_sec: time.as_secs() as i64,
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    let spec = libc::itimerspec { it_value: spec(first), it_interval: spec(interval) };
    // SAFETY: a live spec.
    assert_eq!(unsafe { libc::timerfd_settime(fd, flags, &raw const spec, std::ptr::null_mut()) }, 0);
}

#[test]
fn a_timerfd_is_waited_for() {
    differ(true, |notes| {
        let timer = timerfd(0);
        let fd = timer.as_raw_fd();
        for _ in 0..2 {
            arm(fd, 0, pause(), Duration::ZERO);
            take(notes, "once", fd);
        }
        arm(fd, libc::TFD_TIMER_ABSTIME, Duration::from_nanos(1), Duration::ZERO);
        take(notes, "long past", fd);
    });
}

#[test]
fn a_timerfd_counts_what_was_missed() {
    differ(true, |notes| {
        let timer = timerfd(0);
        let fd = timer.as_raw_fd();
        arm(fd, 0, Duration::from_millis(1), Duration::from_millis(1));
        thread::sleep(pause());
        let mut value = [0; 8];
        raw_size(notes, "read", read(fd, &mut value));
        notes.push(format!("{}", u64::from_ne_bytes(value) > 1));
        raw_size(notes, "the next", read(fd, &mut value));
    });
}

#[test]
fn a_timerfd_may_be_armed_while_somebody_waits() {
    differ(true, |notes| {
        let timer = timerfd(0);
        let fd = timer.as_raw_fd();
        let other = companion(move || {
            thread::sleep(pause());
            arm(fd, 0, Duration::from_millis(1), Duration::ZERO);
        });
        take(notes, "armed late", fd);
        arm(fd, 0, Duration::from_secs(1000), Duration::ZERO);
        let other_again = companion(move || {
            thread::sleep(pause());
            arm(fd, 0, Duration::from_millis(1), Duration::ZERO);
        });
        take(notes, "armed anew", fd);
        other();
        other_again();
    });
}

#[test]
fn a_nonblocking_timerfd_does_not_wait_and_sizes_are_judged() {
    differ(false, |notes| {
        let timer = timerfd(libc::TFD_NONBLOCK);
        let fd = timer.as_raw_fd();
        take(notes, "not armed", fd);
        arm(fd, 0, Duration::from_secs(1000), Duration::ZERO);
        take(notes, "not yet", fd);
        raw_size(notes, "a short read", read(fd, &mut [0; 7]));
        raw_size(notes, "a write", write(fd, &[0; 8]));
        notes.push(format!("{}", getfl(fd) & libc::O_NONBLOCK));
    });
}

#[test]
fn inotify_tells_of_files_that_appear() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        // SAFETY: no memory is involved.
        let watch = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) });
        let fd = watch.as_raw_fd();
        let path = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: a C string.
        raw(notes, "watch", unsafe { libc::inotify_add_watch(fd, path.as_ptr(), libc::IN_CREATE) });
        let file = directory.path().join("new");
        let creator = companion(move || {
            thread::sleep(pause());
            std::fs::write(file, b"x").unwrap();
        });
        let mut buffer = [0; 512];
        let count = read(fd, &mut buffer);
        notes.push(format!("{count} {:?}", &buffer[..count.max(0) as usize]));
        creator();
        raw_size(notes, "too small", {
            std::fs::write(directory.path().join("another"), b"x").unwrap();
            read(fd, &mut [0; 8])
        });
        set_nonblocking(fd, true);
        raw_size(notes, "the second", read(fd, &mut buffer));
        raw_size(notes, "no more", read(fd, &mut buffer));
    });
}

#[test]
fn a_pidfd_becomes_readable_when_the_child_ends() {
    differ(true, |notes| {
        let mut child = Command::new("sleep").arg("0.02").stdin(Stdio::null()).spawn().unwrap();
        // SAFETY: no memory is involved.
        let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) } as i32);
        let mut entries = [entry(pidfd.as_raw_fd(), libc::POLLIN)];
        raw(notes, "poll", poll(&mut entries, -1));
        notes.push(format!("{}", entries[0].revents & libc::POLLIN));
        raw_size(notes, "it cannot be read", read(pidfd.as_raw_fd(), &mut [0; 8]));
        notes.push(format!("{}", child.wait().unwrap()));
    });
}

#[test]
fn closing_an_eventfd_ends_the_waits_for_it() {
    let manager = IoManager::new(1, false).unwrap();
    let calls: [fn(i32) -> isize; 2] = [|fd| read(fd, &mut [0; 8]), |fd| add(fd, u64::MAX - 1)];
    for (call, initial) in calls.into_iter().zip([0, 1]) {
        let event = eventfd(initial, 0);
        let fd = event.as_raw_fd();
        let waiting = manager.spawn(move || (call(fd), errno()));
        manager.spawn(move || {
            thread::sleep(pause());
            drop(event);
        });
        assert_eq!(waiting.join().unwrap(), (-1, libc::EBADF));
    }
}
