//! Pipes and FIFOs.

use crate::calls::*;
use crate::harness::*;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::Duration;

#[test]
fn pipes_block_a_reader_and_a_writer_and_end() {
    differ(true, |notes| {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let other = companion(move || {
            thread::sleep(pause());
            // More than the pipe holds: waits for the reader.
            writer.write_all(&vec![3; 300_000]).unwrap();
        });
        let mut buffer = vec![0; 1000];
        kind(notes, "first read", reader.read(&mut buffer));
        thread::sleep(pause());
        let mut rest = Vec::new();
        kind(notes, "the rest", reader.read_to_end(&mut rest));
        // SAFETY: F_GETFL takes no argument.
        raw(notes, "flags", unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_GETFL) });
        other();
    });
}

/// Fills a pipe without waiting; says how much it took.
fn fill_pipe(fd: i32) -> usize {
    set_nonblocking(fd, true);
    let total =
        std::iter::repeat_with(|| write(fd, &[0; 4096])).take_while(|count| *count > 0).sum::<isize>();
    set_nonblocking(fd, false);
    total as usize
}

#[test]
fn a_nonblocking_pipe_does_not_wait_however_it_became_one() {
    differ(false, |notes| {
        type Switch = fn(i32);
        let by_fcntl: Switch = |fd| set_nonblocking(fd, true);
        let by_ioctl: Switch = |fd| fionbio(fd, true);
        let by_copy: Switch = |fd| set_nonblocking(duplicate(fd).as_raw_fd(), true);
        for (flags, switch) in [
            (libc::O_NONBLOCK, None),
            (0, Some(by_fcntl)),
            (libc::O_CLOEXEC, Some(by_ioctl)),
            (0, Some(by_copy)),
        ] {
            let (reader, writer) = pipe(flags);
            for fd in [reader.as_raw_fd(), writer.as_raw_fd()] {
                if let Some(switch) = switch {
                    switch(fd);
                }
                notes.push(format!("{}", getfl(fd)));
            }
            raw_size(notes, "empty", read(reader.as_raw_fd(), &mut [0; 5]));
            raw_size(notes, "empty", readv(reader.as_raw_fd(), &mut [0; 5]));
            raw_size(notes, "a part", write(writer.as_raw_fd(), &[7; 100_000]));
            raw_size(notes, "full", write(writer.as_raw_fd(), b"x"));
            raw_size(notes, "full", writev(writer.as_raw_fd(), b"xy"));
            raw_size(notes, "read", read(reader.as_raw_fd(), &mut [0; 5000]));
            raw_size(notes, "too much in one piece", write(writer.as_raw_fd(), &[7; 4096]));
        }
    });
}

#[test]
fn the_end_of_the_writers_wakes_a_reader() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let copy = duplicate(writer.as_raw_fd());
        let closer = companion(move || {
            thread::sleep(pause());
            drop(writer);
            thread::sleep(pause());
            write(copy.as_raw_fd(), b"last");
        });
        for _ in 0..3 {
            raw_size(notes, "read", read(reader.as_raw_fd(), &mut [0; 9]));
        }
        closer();
    });
}

#[test]
fn the_end_of_the_readers_ends_a_write_that_waits() {
    differ(true, |notes| {
        for filled in [false, true] {
            let (reader, writer) = pipe(0);
            if filled {
                fill_pipe(writer.as_raw_fd());
            }
            let fd = writer.as_raw_fd();
            let closer = companion(move || {
                until_full(fd);
                drop(reader);
            });
            // The count of what went in, or EPIPE if nothing did.
            raw_size(notes, "write", write(fd, &[7; 100_000]));
            raw_size(notes, "again", write(fd, &[7; 100_000]));
            closer();
        }
    });
}

#[test]
fn a_pipe_without_readers_takes_nothing() {
    differ(false, |notes| {
        let (reader, writer) = pipe(0);
        drop(reader);
        raw_size(notes, "write", write(writer.as_raw_fd(), b"abc"));
        raw_size(notes, "writev", writev(writer.as_raw_fd(), b"abc"));
        raw_size(notes, "of nothing", write(writer.as_raw_fd(), b""));
        let (reader, writer) = pipe(0);
        drop(writer);
        raw_size(notes, "read", read(reader.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, "of nothing", read(reader.as_raw_fd(), &mut []));
    });
}

#[test]
fn reading_or_writing_nothing_never_waits() {
    differ(false, |notes| {
        let (reader, writer) = pipe(0);
        raw_size(notes, "read", read(reader.as_raw_fd(), &mut []));
        raw_size(notes, "readv", readv(reader.as_raw_fd(), &mut []));
        fill_pipe(writer.as_raw_fd());
        raw_size(notes, "write", write(writer.as_raw_fd(), b""));
        raw_size(notes, "writev", writev(writer.as_raw_fd(), b""));
    });
}

#[test]
fn the_wrong_end_is_refused() {
    differ(false, |notes| {
        let (reader, writer) = pipe(0);
        raw_size(notes, "write", write(reader.as_raw_fd(), b"abc"));
        raw_size(notes, "read", read(writer.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, "writev", writev(reader.as_raw_fd(), b"abc"));
        raw_size(notes, "readv", readv(writer.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, "write of nothing", write(reader.as_raw_fd(), b""));
        raw_size(notes, "read of nothing", read(writer.as_raw_fd(), &mut []));
    });
}

/// Several write records that are short enough to be written in one piece, through a pipe that is full all the time.
fn records_stay_whole(notes: &mut Notes, write_record: fn(i32, u8)) {
    const WRITERS: u8 = 4;
    const RECORDS: usize = 8;
    let (reader, writer) = pipe(0);
    fill_pipe(writer.as_raw_fd());
    let fd = writer.as_raw_fd();
    let writers: Vec<_> = (1..=WRITERS)
        .map(|number| companion(move || (0..RECORDS).for_each(|_| write_record(fd, number))))
        .collect();
    thread::sleep(pause());
    let mut received = Vec::new();
    while received.len() < 65536 + WRITERS as usize * RECORDS * RECORD {
        // As little as keeps every writer waiting for more room than there is.
        let mut piece = [0; 1000];
        let count = read(reader.as_raw_fd(), &mut piece);
        received.extend_from_slice(&piece[..count as usize]);
        thread::sleep(Duration::from_micros(10));
    }
    writers.into_iter().for_each(|writer| writer());
    let records: Vec<&[u8]> = received[65536..].chunks(RECORD).collect();
    let whole = records.iter().filter(|record| record.iter().all(|byte| byte == &record[0])).count();
    notes.push(format!("{whole} of {}", records.len()));
}

const RECORD: usize = 3000;

#[test]
fn short_writes_to_a_pipe_stay_in_one_piece() {
    differ(true, |notes| {
        records_stay_whole(notes, |fd, number| assert_eq!(write(fd, &[number; RECORD]), RECORD as isize));
    });
}

#[test]
fn short_writes_from_many_pieces_stay_in_one_piece() {
    differ(true, |notes| {
        records_stay_whole(notes, |fd, number| {
            let piece = [number; RECORD / 100];
            let vectors =
                [libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }; 100];
            // SAFETY: a hundred vectors, all of the same live bytes.
            assert_eq!(unsafe { libc::writev(fd, vectors.as_ptr(), 100) }, RECORD as isize);
        });
    });
}

#[test]
fn a_fifo_is_a_pipe() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a C string.
        raw(notes, "mkfifo", unsafe { libc::mkfifo(name.as_ptr(), 0o600) });
        // For both, so that opening does not wait.
        let open = |options: &mut OpenOptions| options.open(&path).unwrap();
        let both = open(OpenOptions::new().read(true).write(true));
        let reader = open(OpenOptions::new().read(true));
        let nonblocking = open(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK));
        raw_size(notes, "one open file does not wait", read(nonblocking.as_raw_fd(), &mut [0; 5]));
        let fd = both.as_raw_fd();
        let writer = companion(move || {
            thread::sleep(pause());
            write(fd, b"abc");
        });
        raw_size(notes, "the other does", read(reader.as_raw_fd(), &mut [0; 5]));
        writer();
        drop(both);
        raw_size(notes, "the end", read(reader.as_raw_fd(), &mut [0; 5]));
    });
}

#[test]
fn a_pipe_in_packet_mode_keeps_packets_apart() {
    differ(true, |notes| {
        let (reader, writer) = pipe(libc::O_DIRECT);
        let sender = companion(move || {
            thread::sleep(pause());
            for packet in [&b"one"[..], b"second", &[9; 5000]] {
                assert_eq!(write(writer.as_raw_fd(), packet), packet.len() as isize);
            }
        });
        raw_size(notes, "the first", read(reader.as_raw_fd(), &mut [0; 100]));
        sender();
        for room in [3, 100, 5000, 5000, 100] {
            raw_size(notes, "read", read(reader.as_raw_fd(), &mut vec![0; room]));
        }
    });
}

#[test]
fn a_larger_pipe_lets_a_writer_go_on() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let fd = writer.as_raw_fd();
        fill_pipe(fd);
        let log = Log::default();
        let order = log.clone();
        let other = companion(move || {
            thread::sleep(pause());
            order.note("more room");
            // SAFETY: F_SETPIPE_SZ takes an int.
            let size = unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, 1 << 17) };
            assert_eq!(size, 1 << 17);
        });
        let count = write(fd, &[7; 5000]);
        log.note(format!("written {count}"));
        other();
        log.close(notes);
        raw(notes, "held", fionread(reader.as_raw_fd()));
    });
}

#[test]
fn two_readers_share_what_comes() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let fd = reader.as_raw_fd();
        let readers: Vec<_> =
            (0..2).map(|_| companion(move || assert_eq!(read(fd, &mut [0; 1]), 1))).collect();
        thread::sleep(pause());
        write(writer.as_raw_fd(), b"x");
        thread::sleep(pause());
        write(writer.as_raw_fd(), b"x");
        readers.into_iter().for_each(|reader| reader());
        raw(notes, "left", fionread(fd));
    });
}

#[test]
fn a_reader_goes_on_waiting_when_a_duplicate_is_made_nonblocking() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let copy = duplicate(reader.as_raw_fd());
        let other = companion(move || {
            thread::sleep(pause());
            set_nonblocking(copy.as_raw_fd(), true);
            thread::sleep(pause());
            write(writer.as_raw_fd(), b"abc");
            thread::sleep(pause());
        });
        raw_size(notes, "read", read(reader.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, "the next sees it", read(reader.as_raw_fd(), &mut [0; 5]));
        other();
    });
}

#[test]
fn a_writer_stops_at_the_next_full_pipe_once_a_duplicate_is_nonblocking() {
    // Unlike a socket's, a pipe's wait looks at the flag each time around.
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let (input, fd) = (reader.as_raw_fd(), writer.as_raw_fd());
        let held = fill_pipe(fd);
        let copy = duplicate(fd);
        let other = companion(move || {
            thread::sleep(pause());
            set_nonblocking(copy.as_raw_fd(), true);
            assert_eq!(read(input, &mut [0; 8192]), 8192);
            thread::sleep(pause() * 2);
            // Whoever still waits is let go.
            assert!(read(input, &mut vec![0; held]) > 0);
        });
        raw_size(notes, "write", write(fd, &[7; 30_000]));
        other();
    });
}

#[test]
fn success_keeps_errno() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let (input, output) = (reader.as_raw_fd(), writer.as_raw_fd());
        let other = companion(move || {
            thread::sleep(pause());
            write(output, b"abc");
        });
        set_errno(libc::EXDEV);
        let count = read(input, &mut [0; 5]);
        notes.push(format!("{count} {}", errno()));
        other();
        let held = fill_pipe(output);
        let other = companion(move || {
            thread::sleep(pause());
            assert!(read(input, &mut vec![0; held]) > 0);
        });
        set_errno(libc::EXDEV);
        let count = write(output, &[7; 5000]);
        notes.push(format!("{count} {}", errno()));
        other();
    });
}
