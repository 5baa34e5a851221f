//! Moving data inside the kernel: `splice`, `tee`, `vmsplice`, `copy_file_range`. (`sendfile` is with the files.)

use crate::calls::*;
use crate::harness::*;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::null_mut;
use std::thread;

type Transfer = fn(RawFd, RawFd, usize, u32) -> isize;

fn splice(input: RawFd, output: RawFd, length: usize, flags: u32) -> isize {
    // SAFETY: no offsets.
    unsafe { libc::splice(input, null_mut(), output, null_mut(), length, flags) }
}

fn tee(input: RawFd, output: RawFd, length: usize, flags: u32) -> isize {
    // SAFETY: no memory is involved.
    unsafe { libc::tee(input, output, length, flags) }
}

fn vmsplice(fd: RawFd, bytes: &[u8], flags: u32) -> isize {
    let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one live vector, whose bytes are only read.
    unsafe { libc::vmsplice(fd, &vector, 1, flags) }
}

/// As much as a pipe holds, without waiting.
fn fill_pipe(fd: RawFd) -> usize {
    set_nonblocking(fd, true);
    let total: isize = std::iter::repeat_with(|| write(fd, &[0; 4096])).take_while(|count| *count > 0).sum();
    set_nonblocking(fd, false);
    total as usize
}

#[test]
fn an_empty_pipe_is_waited_for() {
    differ(true, |notes| {
        for (name, call) in [("splice", splice as Transfer), ("tee", tee)] {
            let (input, source) = pipe(0);
            let (result, output) = pipe(0);
            let writer = companion(move || {
                thread::sleep(pause());
                assert_eq!(write(source.as_raw_fd(), b"abc"), 3);
                thread::sleep(pause());
            });
            let (input, output) = (input.as_raw_fd(), output.as_raw_fd());
            raw_size(notes, "not waiting", call(input, output, 10, libc::SPLICE_F_NONBLOCK));
            raw_size(notes, name, call(input, output, 10, 0));
            raw_size(notes, "read", read(result.as_raw_fd(), &mut [0; 10]));
            // The end comes: at once where the bytes were taken, behind them where they were not.
            raw_size(notes, name, call(input, output, 10, 0));
            writer();
            raw_size(notes, name, call(input, output, 10, 0));
        }
    });
}

#[test]
fn a_full_pipe_is_waited_for() {
    differ(true, |notes| {
        for (name, call) in [("splice", splice as Transfer), ("tee", tee)] {
            let (input, source) = pipe(0);
            let (result, output) = pipe(0);
            assert_eq!(write(source.as_raw_fd(), b"abc"), 3);
            let held = fill_pipe(output.as_raw_fd());
            let (input, output) = (input.as_raw_fd(), output.as_raw_fd());
            raw_size(notes, "not waiting", call(input, output, 10, libc::SPLICE_F_NONBLOCK));
            let reader = companion(move || {
                thread::sleep(pause());
                let mut left = held + 3;
                while left > 0 {
                    left -= read(result.as_raw_fd(), &mut vec![0; left]) as usize;
                }
            });
            raw_size(notes, name, call(input, output, 10, 0));
            reader();
        }
    });
}

#[test]
fn memory_goes_into_a_pipe_and_out() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let (input, output) = (reader.as_raw_fd(), writer.as_raw_fd());
        raw_size(notes, "in", vmsplice(output, b"abc", 0));
        let mut got = [0u8; 10];
        let vector = libc::iovec { iov_base: got.as_mut_ptr().cast(), iov_len: got.len() };
        // SAFETY: one live vector.
        raw_size(notes, "out", unsafe { libc::vmsplice(input, &vector, 1, 0) });
        notes.push(format!("{got:?}"));
        let held = fill_pipe(output);
        raw_size(notes, "full", vmsplice(output, b"abc", libc::SPLICE_F_NONBLOCK));
        let other = companion(move || {
            thread::sleep(pause());
            assert!(read(input, &mut vec![0; held]) > 0);
        });
        raw_size(notes, "waits", vmsplice(output, b"abc", 0));
        other();
        raw(notes, "held", fionread(input));
        raw_size(notes, "nothing", vmsplice(output, b"", 0));
        raw_size(notes, "bad descriptor", vmsplice(-1, b"abc", 0));
        let (socket, _peer) = socketpair(libc::SOCK_STREAM);
        raw_size(notes, "a socket", vmsplice(socket.as_raw_fd(), b"abc", 0));
    });
}

#[test]
fn a_socket_is_spliced_through_a_pipe() {
    differ(true, |notes| {
        for (name, near, far) in stream_pairs() {
            let (result, between) = pipe(0);
            let peer = far.as_raw_fd();
            let other = companion(move || {
                thread::sleep(pause());
                assert_eq!(write(peer, b"request"), 7);
                let mut answer = [0; 20];
                assert_eq!(read(peer, &mut answer), 7);
                thread::sleep(pause());
                drop(far);
            });
            raw_size(notes, name, splice(near.as_raw_fd(), between.as_raw_fd(), 100, 0));
            raw_size(notes, name, splice(result.as_raw_fd(), near.as_raw_fd(), 100, 0));
            raw_size(notes, "the end", splice(near.as_raw_fd(), between.as_raw_fd(), 100, 0));
            other();
        }
    });
}

#[test]
fn a_nonblocking_socket_is_not_waited_for() {
    differ(false, |notes| {
        let (a, _b) = socketpair(libc::SOCK_STREAM);
        let (_reader, writer) = pipe(0);
        set_nonblocking(a.as_raw_fd(), true);
        raw_size(notes, "splice", splice(a.as_raw_fd(), writer.as_raw_fd(), 100, 0));
        let (reader, _writer) = pipe(libc::O_NONBLOCK);
        raw_size(notes, "from a nonblocking pipe", splice(reader.as_raw_fd(), writer.as_raw_fd(), 9, 0));
    });
}

#[test]
fn a_file_is_spliced_from_an_offset() {
    differ(false, |notes| {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write(file.as_raw_fd(), b"0123456789"), 10);
        let (reader, writer) = pipe(0);
        let mut at = 4;
        // SAFETY: a live offset.
        let count = unsafe { libc::splice(file.as_raw_fd(), &mut at, writer.as_raw_fd(), null_mut(), 3, 0) };
        raw_size(notes, "splice", count);
        let mut got = [0; 10];
        raw_size(notes, "read", read(reader.as_raw_fd(), &mut got));
        notes.push(format!("{at} {got:?}"));
        raw_size(notes, "at its end", splice(file.as_raw_fd(), writer.as_raw_fd(), 3, 0));
        assert_eq!(write(writer.as_raw_fd(), b"more"), 4);
        raw_size(notes, "back", splice(reader.as_raw_fd(), file.as_raw_fd(), 10, 0));
    });
}

#[test]
fn transfers_judge_their_arguments() {
    differ(false, |notes| {
        let (reader, writer) = pipe(0);
        let (input, output) = (reader.as_raw_fd(), writer.as_raw_fd());
        let (a, b) = socketpair(libc::SOCK_STREAM);
        raw_size(notes, "nothing", splice(input, output, 0, 0));
        raw_size(notes, "the same pipe", splice(input, output, 5, 0));
        raw_size(notes, "no pipe", splice(a.as_raw_fd(), b.as_raw_fd(), 5, libc::SPLICE_F_NONBLOCK));
        raw_size(notes, "bad flags", splice(input, output, 5, 0x8000));
        raw_size(notes, "bad descriptor", splice(-1, output, 5, 0));
        raw_size(notes, "bad descriptor", splice(input, -1, 5, 0));
        raw_size(notes, "tee of nothing", tee(input, output, 0, 0));
        raw_size(notes, "tee to the same pipe", tee(input, output, 5, 0));
        raw_size(notes, "tee without a pipe", tee(a.as_raw_fd(), output, 5, libc::SPLICE_F_NONBLOCK));
        raw_size(notes, "tee of a bad descriptor", tee(-1, output, 5, 0));
        let mut at = 0;
        // SAFETY: a live offset, which a pipe does not have.
        let answer = unsafe { libc::splice(input, &mut at, output, null_mut(), 5, 0) };
        raw_size(notes, "an offset in a pipe", answer);
    });
}

#[test]
fn ranges_are_copied_between_files() {
    differ(false, |notes| {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (input, output) = (from.as_raw_fd(), to.as_raw_fd());
        assert_eq!(write(input, b"0123456789"), 10);
        let copy = |input, mut at: i64, output, mut to: i64, length, flags| {
            // SAFETY: live offsets.
            let count = unsafe { libc::copy_file_range(input, &mut at, output, &mut to, length, flags) };
            (count, at, to)
        };
        let mut note = |what: &str, (count, at, to): (isize, i64, i64)| {
            raw_size(notes, what, count);
            notes.push(format!("{at} {to}"));
        };
        note("a piece", copy(input, 3, output, 2, 4, 0));
        note("to the end", copy(input, 8, output, 0, 100, 0));
        note("behind the end", copy(input, 20, output, 0, 5, 0));
        note("nothing", copy(input, 0, output, 0, 0, 0));
        note("onto itself", copy(input, 0, input, 2, 5, 0));
        note("bad flags", copy(input, 0, output, 0, 5, 1));
        note("a bad descriptor", copy(-1, 0, output, 0, 5, 0));
        let (reader, _writer) = pipe(0);
        note("a pipe", copy(reader.as_raw_fd(), 0, output, 0, 5, 0));
        let mut got = [0; 20];
        // SAFETY: room for so many bytes.
        let count = unsafe { libc::pread(output, got.as_mut_ptr().cast(), 20, 0) };
        notes.push(format!("{count} {got:?}"));
    });
}
