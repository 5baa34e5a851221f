//! Closing, replacing and reusing descriptors that somebody waits for.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

#[test]
fn closing_wakes_the_fiber_that_waits_with_ebadf() {
    // A plain thread would go on waiting (the kernel does not wake it); a fiber learns of it.
    let manager = IoManager::new(1, false).unwrap();
    let (client, server) = tcp_pair();
    let fd = server.as_raw_fd();
    let reader = manager.spawn(move || {
        let mut byte = 0u8;
        // SAFETY: one live byte.
        let count = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, 0) };
        (count, std::io::Error::last_os_error().raw_os_error())
    });
    manager.spawn(move || {
        thread::sleep(pause());
        drop(server);
    });
    assert_eq!(reader.join().unwrap(), (-1, Some(libc::EBADF)));
    drop(client);
}

#[test]
fn dup2_over_a_live_descriptor_wakes_whoever_waits_for_the_old_one() {
    let manager = IoManager::new(1, false).unwrap();
    let (client, server) = tcp_pair();
    let (mut other_client, other_server) = tcp_pair();
    let fd = server.as_raw_fd();
    let receive = move || {
        let mut byte = 0u8;
        // SAFETY: one live byte.
        let count = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, 0) };
        (count, byte)
    };
    let reader = manager.spawn(receive);
    let replaced = manager.spawn(move || {
        thread::sleep(pause());
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::dup2(other_server.as_raw_fd(), fd) }, fd);
    });
    assert_eq!(reader.join().unwrap().0, -1);
    replaced.join().unwrap();
    // The number now stands for the other connection, and waits on it work.
    let reader = manager.spawn(receive);
    manager.spawn(move || {
        thread::sleep(pause());
        other_client.write_all(b"y").unwrap();
    });
    assert_eq!(reader.join().unwrap(), (1, b'y'));
    drop((client, server));
}

#[test]
fn a_reused_descriptor_number_inherits_nothing() {
    let manager = IoManager::new(1, false).unwrap();
    let fiber = manager.spawn(|| {
        for round in 0..200u8 {
            let (mut client, mut server) = tcp_pair();
            server.set_read_timeout(Some(Duration::from_micros(200))).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            drop(server);
            // The number is taken by a pipe now, which has to be found out anew.
            let (mut reader, mut writer) = std::io::pipe().unwrap();
            let other = squall_hook::spawn(move || writer.write_all(&[round]).unwrap());
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], round);
            other.join().unwrap();
            let _ = client.write(b"x");
        }
    });
    fiber.join().unwrap();
}

#[test]
fn whoever_was_woken_for_a_descriptor_does_not_read_from_its_successor() {
    // Both the reader and the closer are woken; the closer, if it runs first, gives the reader's number to another socket that has
    // data. A thread would still hold the old one.
    for reader_is_woken_first in [true, false] {
        let manager = IoManager::new(1, false).unwrap();
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (signal, signaller) = socketpair(libc::SOCK_STREAM);
        let (successor, successors_peer) = socketpair(libc::SOCK_STREAM);
        let fd = ours.as_raw_fd();
        let reader = manager.spawn(move || {
            let mut byte = [0];
            (recv(fd, &mut byte), byte[0])
        });
        let closer = manager.spawn(move || {
            assert_eq!(recv(signal.as_raw_fd(), &mut [0]), 1);
            // SAFETY: the number stays with `ours`, for another socket.
            assert_eq!(unsafe { libc::dup2(successor.as_raw_fd(), fd) }, fd);
        });
        manager.spawn(move || {
            thread::sleep(pause());
            send(successors_peer.as_raw_fd(), b"B");
            let mut wake = [(&theirs, b"A"), (&signaller, b"!")];
            wake.rotate_left(usize::from(!reader_is_woken_first));
            wake.iter().for_each(|(socket, byte)| assert_eq!(send(socket.as_raw_fd(), *byte), 1));
        });
        closer.join().unwrap();
        let (count, byte) = reader.join().unwrap();
        assert!((count, byte) == (1, b'A') || (count, byte) == (-1, 0), "{count} {byte}");
        drop(ours);
    }
}

#[test]
fn a_descriptor_is_closed_once() {
    differ(false, |notes| {
        // Far above the numbers that other tests are given meanwhile.
        // SAFETY: no memory is involved.
        let high = unsafe { libc::fcntl(duplicate(2).as_raw_fd(), libc::F_DUPFD_CLOEXEC, 800) };
        raw(notes, "close", close(high));
        raw(notes, "again", close(high));
        raw(notes, "negative", close(-1));
        raw(notes, "never open", close(i32::MAX));
        raw_size(notes, "read", read(high, &mut [0; 5]));
        raw_size(notes, "write", write(high, b"x"));
    });
}

#[test]
fn closing_one_duplicate_leaves_those_alone_that_wait_on_the_other() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let copy = duplicate(ours.as_raw_fd());
            let sender = companion(move || {
                thread::sleep(pause());
                drop(ours);
                thread::sleep(pause());
                send(theirs.as_raw_fd(), b"late");
            });
            raw_size(notes, name, recv(copy.as_raw_fd(), &mut [0; 5]));
            raw_size(notes, "the end", recv(copy.as_raw_fd(), &mut [0; 5]));
            sender();
        }
    });
}

#[test]
fn whoever_waited_on_one_duplicate_may_wait_on_the_other() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let copy = duplicate(ours.as_raw_fd());
            let sender = companion(move || {
                for _ in 0..4 {
                    thread::sleep(pause());
                    send(theirs.as_raw_fd(), b"x");
                }
            });
            for fd in [ours.as_raw_fd(), copy.as_raw_fd(), ours.as_raw_fd()] {
                raw_size(notes, name, recv(fd, &mut [0; 5]));
            }
            drop(ours);
            raw_size(notes, name, recv(copy.as_raw_fd(), &mut [0; 5]));
            sender();
        }
    });
}

#[test]
fn the_end_reaches_the_peer_when_the_last_duplicate_is_closed() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let copy = ours.try_clone().unwrap();
        let log = Log::default();
        let order = log.clone();
        let closer = companion(move || {
            drop(ours);
            thread::sleep(pause());
            order.note("the last");
            drop(copy);
        });
        let count = recv(theirs.as_raw_fd(), &mut [0; 5]);
        log.note(format!("the end: {count}"));
        closer();
        log.close(notes);
    });
}

#[test]
fn dup2_over_a_connection_ends_it_for_the_peer() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let (reader, writer) = pipe(0);
        let fd = ours.as_raw_fd();
        let replacer = companion(move || {
            thread::sleep(pause());
            // SAFETY: the number stays with its owner, for the pipe.
            assert_eq!(unsafe { libc::dup2(reader.as_raw_fd(), fd) }, fd);
        });
        raw_size(notes, "the end", recv(theirs.as_raw_fd(), &mut [0; 5]));
        replacer();
        raw_size(notes, "into the pipe", write(writer.as_raw_fd(), b"abc"));
        raw_size(notes, "out of the number", read(fd, &mut [0; 5]));
        raw_size(notes, "no socket any more", recv(fd, &mut [0; 5]));
    });
}

#[test]
fn duplicating_calls_judge_their_arguments() {
    differ(false, |notes| {
        let (reader, writer) = pipe(0);
        let fd = reader.as_raw_fd();
        // SAFETY: no memory is involved; what is duplicated is closed again, and the bad numbers are the point.
        unsafe {
            raw(notes, "dup of nothing", libc::dup(-1));
            raw(notes, "dup2 of nothing", libc::dup2(i32::MAX, fd));
            raw(notes, "dup2 to itself", libc::dup2(fd, fd) - fd);
            raw(notes, "dup2 to a negative", libc::dup2(fd, -1));
            raw(notes, "dup3 to itself", libc::dup3(fd, fd, 0));
            raw(notes, "dup3 with bad flags", libc::dup3(fd, fd + 1, 12345));
            raw(notes, "dupfd of nothing", libc::fcntl(-1, libc::F_DUPFD, 0));
            raw(notes, "dupfd from a negative", libc::fcntl(fd, libc::F_DUPFD, -1));
            let high = libc::fcntl(fd, libc::F_DUPFD, 900);
            notes.push(format!("from 900 on: {} {}", high >= 900, libc::fcntl(high, libc::F_GETFD)));
            let cloexec = libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 900);
            notes.push(format!("cloexec: {}", libc::fcntl(cloexec, libc::F_GETFD)));
            let replaced = libc::dup3(fd, high, libc::O_CLOEXEC);
            notes.push(format!("dup3: {} {}", replaced == high, libc::fcntl(high, libc::F_GETFD)));
            raw_size(notes, "write", write(writer.as_raw_fd(), b"abcdef"));
            for copy in [high, cloexec, fd] {
                raw_size(notes, "read", read(copy, &mut [0; 2]));
            }
            raw(notes, "close", close(high));
            raw(notes, "close", close(cloexec));
        }
    });
}

#[test]
fn a_number_closed_past_the_hooks_means_what_it_means_now() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        send(theirs.as_raw_fd(), b"x");
        // SAFETY: the number is above what other tests are given, and the stream takes the descriptor over.
        unsafe {
            let number = libc::fcntl(ours.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 700);
            raw_size(notes, "a socket", read(number, &mut [0; 5]));
            let stream = libc::fdopen(number, c"r".as_ptr());
            // libc closes the descriptor inside itself.
            raw(notes, "fclose", libc::fclose(stream));
            let event = owned(libc::eventfd(0, 0));
            // Given out anew past the hooks as well, as a call that is not hooked does.
            let reused = libc::syscall(libc::SYS_dup3, event.as_raw_fd(), number, 0);
            raw(notes, "reused", i32::from(reused == i64::from(number)));
            let waker = companion(move || {
                thread::sleep(pause());
                write(event.as_raw_fd(), &1u64.to_ne_bytes());
            });
            raw_size(notes, "an eventfd", read(number, &mut [0; 8]));
            waker();
            raw(notes, "close", close(number));
        }
    });
}

/// What a fiber that waits for a number answers once `close` was called.
fn wait_is_ended_by(close: impl FnOnce(i32) + std::marker::Send + 'static) -> (isize, Option<i32>) {
    let manager = IoManager::new(1, false).unwrap();
    let (reader, writer) = pipe(0);
    // Far above what others use, since some calls close whatever is above.
    // SAFETY: a live limit; the rest involves no memory.
    let fd = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        let high = limit.rlim_cur.min(1_000_000) as i32 - 10;
        libc::fcntl(reader.as_raw_fd(), libc::F_DUPFD_CLOEXEC, high)
    };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    let waits = manager.spawn(move || {
        let count = read(fd, &mut [0; 5]);
        (count, (count < 0).then(errno))
    });
    manager.spawn(move || {
        thread::sleep(pause());
        close(fd);
    });
    let answer = waits.join().unwrap();
    manager.stop();
    drop(writer);
    answer
}

#[test]
fn every_call_that_closes_ends_the_waits() {
    unsafe extern "C" {
        fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_int) -> libc::c_int;
        fn closefrom(first: libc::c_int);
    }
    let badf = (-1, Some(libc::EBADF));
    // One after the other: the last ones close all that is above.
    assert_eq!(wait_is_ended_by(|fd| assert_eq!(close(fd), 0)), badf);
    assert_eq!(
        wait_is_ended_by(|fd| {
            // SAFETY: the stream takes the descriptor over.
            unsafe { assert_eq!(libc::fclose(libc::fdopen(fd, c"r".as_ptr())), 0) }
        }),
        badf
    );
    assert_eq!(
        wait_is_ended_by(|fd| {
            // SAFETY: as above; the stream is closed at the end.
            unsafe {
                let stream = libc::fdopen(fd, c"r".as_ptr());
                let stream = libc::freopen(c"/dev/null".as_ptr(), c"r".as_ptr(), stream);
                assert!(!stream.is_null());
                libc::fclose(stream);
            }
        }),
        badf
    );
    // SAFETY: no memory is involved; nobody else has these numbers.
    unsafe {
        assert_eq!(wait_is_ended_by(|fd| assert_eq!(close_range(fd as u32, fd as u32, 0), 0)), badf);
        assert_eq!(wait_is_ended_by(|fd| closefrom(fd)), badf);
    }
}

#[test]
fn marking_a_range_for_exec_closes_nothing() {
    unsafe extern "C" {
        fn close_range(first: libc::c_uint, last: libc::c_uint, flags: libc::c_int) -> libc::c_int;
    }
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let (fd, output) = (reader.as_raw_fd(), writer.as_raw_fd());
        let other = companion(move || {
            thread::sleep(pause());
            // SAFETY: no memory is involved.
            let marked = unsafe { close_range(fd as u32, fd as u32, 4) };
            assert_eq!(marked, 0);
            thread::sleep(pause());
            assert_eq!(write(output, b"abc"), 3);
        });
        raw_size(notes, "read", read(fd, &mut [0; 5]));
        other();
        // SAFETY: no memory is involved.
        raw(notes, "upside down", unsafe { close_range(9, 5, 0) });
        // SAFETY: as above.
        raw(notes, "bad flags", unsafe { close_range(fd as u32, fd as u32, 64) });
        raw_size(notes, "still there", write(output, b"abc"));
    });
}
