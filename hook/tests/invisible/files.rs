//! Regular files, devices, terminals, the standard streams, `sendfile`.

use crate::calls::*;
use crate::harness::*;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::Duration;

#[test]
fn files_are_read_written_and_synced() {
    differ(false, |notes| {
        let mut file = tempfile::tempfile().unwrap();
        kind(notes, "write", file.write(b"some bytes"));
        kind(notes, "sync_data", file.sync_data());
        kind(notes, "sync_all", file.sync_all());
        kind(notes, "metadata", file.metadata().map(|metadata| metadata.len()));
    });
}

#[test]
fn syncing_judges_its_descriptor() {
    differ(false, |notes| {
        let (reader, _writer) = pipe(0);
        let (socket, _peer) = tcp_pair();
        let null = File::open("/dev/null").unwrap();
        let directory = File::open("/tmp").unwrap();
        let [reader, socket, null, directory] =
            [reader.as_raw_fd(), socket.as_raw_fd(), null.as_raw_fd(), directory.as_raw_fd()];
        for fd in [-1, 999_999, reader, socket, null, directory] {
            // SAFETY: no memory is involved.
            raw(notes, "fsync", unsafe { libc::fsync(fd) });
            // SAFETY: as above.
            raw(notes, "fdatasync", unsafe { libc::fdatasync(fd) });
        }
    });
}

#[test]
fn the_end_of_a_file_is_an_end_for_every_call() {
    differ(false, |notes| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        let fd = file.as_raw_fd();
        for call in [read as Receive, readv] {
            raw_size(notes, "at the end", call(fd, &mut [0; 5]));
            file.seek(SeekFrom::Start(1)).unwrap();
            raw_size(notes, "before it", call(fd, &mut [0; 5]));
            raw_size(notes, "again", call(fd, &mut [0; 5]));
            raw_size(notes, "nothing", call(fd, &mut []));
        }
        kind(notes, "position", file.stream_position());
        raw_size(notes, "no socket", recv(fd, &mut [0; 5]));
        raw_size(notes, "no socket", send(fd, b"x"));
    });
}

#[test]
fn a_file_is_open_for_what_it_was_opened_for() {
    differ(false, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, b"abc").unwrap();
        let readable = File::open(&path).unwrap();
        let writable = OpenOptions::new().write(true).open(&path).unwrap();
        let appending = OpenOptions::new().append(true).open(&path).unwrap();
        raw_size(notes, "write", write(readable.as_raw_fd(), b"x"));
        raw_size(notes, "read", read(writable.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, "append", write(appending.as_raw_fd(), b"de"));
        raw_size(notes, "append", writev(appending.as_raw_fd(), b"fg"));
        notes.push(std::fs::read_to_string(&path).unwrap());
        raw_size(notes, "a folder", read(File::open("/").unwrap().as_raw_fd(), &mut [0; 5]));
        notes.push(format!("{} {}", getfl(readable.as_raw_fd()), getfl(appending.as_raw_fd())));
    });
}

#[test]
fn a_nonblocking_file_is_read_all_the_same() {
    differ(false, |notes| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abc").unwrap();
        file.rewind().unwrap();
        set_nonblocking(file.as_raw_fd(), true);
        raw_size(notes, "read", read(file.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, "write", write(file.as_raw_fd(), b"de"));
        notes.push(format!("{}", getfl(file.as_raw_fd()) & libc::O_NONBLOCK));
    });
}

#[test]
fn devices_are_what_they_are() {
    differ(false, |notes| {
        let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        for path in ["/dev/zero", "/dev/null", "/dev/full"] {
            let device = open(path);
            let mut buffer = [9; 5];
            raw_size(notes, path, read(device.as_raw_fd(), &mut buffer));
            notes.push(format!("{buffer:?}"));
            raw_size(notes, path, readv(device.as_raw_fd(), &mut buffer));
            raw_size(notes, path, write(device.as_raw_fd(), &[7; 100_000]));
            raw_size(notes, path, writev(device.as_raw_fd(), b"abc"));
        }
        let random = File::open("/dev/urandom").unwrap();
        raw_size(notes, "random", read(random.as_raw_fd(), &mut [0; 100]));
        let mut text = String::new();
        kind(notes, "proc", File::open("/proc/self/comm").unwrap().read_to_string(&mut text).map(|_| ()));
        // SAFETY: a C string.
        let memory = owned(unsafe { libc::memfd_create(c"memory".as_ptr(), 0) });
        raw_size(notes, "memory", write(memory.as_raw_fd(), b"abc"));
        raw_size(notes, "memory", read(memory.as_raw_fd(), &mut [0; 5]));
    });
}

/// The two sides of a pseudo-terminal: what a program behind a screen holds, and the terminal.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut controller, mut terminal) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: fills the two descriptors.
    let result =
        unsafe { libc::openpty(&mut controller, &mut terminal, null, std::ptr::null(), std::ptr::null()) };
    assert_eq!(result, 0);
    (owned(controller), owned(terminal))
}

#[test]
fn a_terminal_gives_lines_to_whoever_waits() {
    differ(true, |notes| {
        let (controller, terminal) = terminal();
        let fd = controller.as_raw_fd();
        let typist = companion(move || {
            for text in [&b"hel"[..], b"lo\n", b"two\nthree\n", b"\x04"] {
                thread::sleep(pause());
                write(fd, text);
            }
        });
        for call in [read as Receive, readv, read, read] {
            let mut buffer = [0; 16];
            raw_size(notes, "a line", call(terminal.as_raw_fd(), &mut buffer));
            notes.push(String::from_utf8_lossy(&buffer).into_owned());
        }
        typist();
        notes.push(format!("{}", getfl(terminal.as_raw_fd()) & libc::O_NONBLOCK));
    });
}

#[test]
fn a_terminals_screen_shows_what_is_written() {
    differ(true, |notes| {
        let (controller, terminal) = terminal();
        let fd = terminal.as_raw_fd();
        let writer = companion(move || {
            thread::sleep(pause());
            write(fd, b"a line\n");
            thread::sleep(pause());
            // More than a terminal holds.
            assert_eq!(write(fd, &[b'x'; 50_000]), 50_000);
        });
        let mut shown = Vec::new();
        while shown.len() < 50_008 {
            let mut buffer = [0; 4096];
            let count = read(controller.as_raw_fd(), &mut buffer);
            assert!(count > 0);
            shown.extend_from_slice(&buffer[..count as usize]);
            thread::sleep(Duration::from_micros(100));
        }
        notes.push(String::from_utf8_lossy(&shown[..8]).into_owned());
        notes.push(format!("{}", shown[8..].iter().all(|byte| *byte == b'x')));
        writer();
    });
}

#[test]
fn a_terminal_that_is_hung_up_says_so() {
    differ(true, |notes| {
        let (controller, terminal) = terminal();
        let closer = companion(move || {
            thread::sleep(pause());
            drop(controller);
        });
        raw_size(notes, "a read that waits", read(terminal.as_raw_fd(), &mut [0; 5]));
        closer();
        raw_size(notes, "a later read", read(terminal.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, "write", write(terminal.as_raw_fd(), b"x"));
        let (controller, terminal) = self::terminal();
        let closer = companion(move || {
            thread::sleep(pause());
            drop(terminal);
        });
        raw_size(notes, "the other side", read(controller.as_raw_fd(), &mut [0; 5]));
        closer();
    });
}

#[test]
fn a_nonblocking_terminal_does_not_wait() {
    differ(false, |notes| {
        let (controller, terminal) = terminal();
        for fd in [controller.as_raw_fd(), terminal.as_raw_fd()] {
            set_nonblocking(fd, true);
            raw_size(notes, "read", read(fd, &mut [0; 5]));
            raw_size(notes, "readv", readv(fd, &mut [0; 5]));
        }
    });
}

#[test]
fn a_terminal_is_polled() {
    differ(true, |notes| {
        let (controller, terminal) = terminal();
        let fd = controller.as_raw_fd();
        let mut entries = [entry(terminal.as_raw_fd(), libc::POLLIN)];
        raw(notes, "nothing", poll(&mut entries, 20));
        let typist = companion(move || {
            thread::sleep(pause());
            write(fd, b"a line\n");
            thread::sleep(pause());
        });
        raw(notes, "a line", poll(&mut entries, -1));
        notes.push(entries[0].revents.to_string());
        typist();
    });
}

#[test]
fn standard_streams_are_left_alone() {
    differ(false, |notes| {
        for fd in 0..3 {
            // SAFETY: F_GETFL takes no argument.
            let before = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            std::io::stderr().write_all(b"").unwrap();
            // SAFETY: as above.
            notes.push(format!("{}", before == unsafe { libc::fcntl(fd, libc::F_GETFL) }));
        }
    });
}

fn sendfile(out: RawFd, input: RawFd, offset: Option<&mut i64>, count: usize) -> isize {
    let offset = offset.map_or(std::ptr::null_mut(), |offset| offset as *mut i64);
    // SAFETY: the offset is null or live.
    unsafe { libc::sendfile(out, input, offset, count) }
}

fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    file
}

#[test]
fn sendfile_sends_all_that_is_there() {
    differ(true, |notes| {
        let content: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let file = file_of(&content);
        let (client, mut server) = tcp_pair();
        small_buffers(&client);
        small_buffers(&server);
        let reader = companion(move || {
            let mut received = Vec::new();
            let mut buffer = vec![0; 100_000];
            loop {
                thread::sleep(Duration::from_micros(200));
                match server.read(&mut buffer).unwrap() {
                    0 => break,
                    count => received.extend_from_slice(&buffer[..count]),
                }
            }
            assert_eq!(received.len(), 999_000 + 1000);
            assert!(received[..999_000] == content[1000..] && received[999_000..] == content[..1000]);
        });
        let (out, input) = (client.as_raw_fd(), file.as_raw_fd());
        let mut offset = 1000i64;
        raw_size(notes, "to the end", sendfile(out, input, Some(&mut offset), 5_000_000));
        notes.push(format!("{offset}"));
        raw_size(notes, "at the end", sendfile(out, input, Some(&mut offset), 10));
        raw_size(notes, "where the file stands", sendfile(out, input, None, 1000));
        raw_size(notes, "nothing", sendfile(out, input, None, 0));
        drop(client);
        reader();
    });
}

#[test]
fn sendfile_stops_when_its_time_is_up_or_it_must_not_wait() {
    differ(true, |notes| {
        let file = file_of(&vec![7; 1 << 20]);
        for nonblocking in [false, true] {
            let (ours, _theirs) = socketpair(libc::SOCK_STREAM);
            let out = ours.as_raw_fd();
            set_timeout(out, libc::SO_SNDTIMEO, pause());
            set_nonblocking(out, nonblocking);
            let mut offset = 0;
            let sent = sendfile(out, file.as_raw_fd(), Some(&mut offset), 1 << 20);
            notes.push(format!("a part {} {}", sent > 0 && sent < 1 << 20, sent as i64 == offset));
            let last = (0..1000)
                .map(|_| sendfile(out, file.as_raw_fd(), Some(&mut offset), 1 << 20))
                .find(|count| *count < 0);
            raw_size(notes, "no more", last.unwrap_or(0));
            notes.push(format!("{}", getfl(out) & libc::O_NONBLOCK));
        }
    });
}

#[test]
fn sendfile_into_a_pipe_waits_for_its_reader() {
    differ(true, |notes| {
        let file = file_of(&vec![7; 300_000]);
        let (reader, writer) = pipe(0);
        raw_size(notes, "as much as it holds", sendfile(writer.as_raw_fd(), file.as_raw_fd(), None, 400_000));
        let drainer = companion(move || {
            thread::sleep(pause());
            assert_eq!(drain(reader.as_raw_fd()), 300_000);
        });
        let mut left = 300_000 - 65536;
        while left > 0 {
            let sent = sendfile(writer.as_raw_fd(), file.as_raw_fd(), None, 400_000);
            assert!(sent > 0);
            left -= sent;
        }
        raw_size(notes, "at the end", sendfile(writer.as_raw_fd(), file.as_raw_fd(), None, 10));
        drop(writer);
        drainer();
    });
}

#[test]
fn sendfile_judges_its_arguments() {
    differ(false, |notes| {
        let file = file_of(b"abc");
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (out, input) = (ours.as_raw_fd(), file.as_raw_fd());
        for (out, input) in [(-1, input), (out, -1), (999_999, input), (out, theirs.as_raw_fd())] {
            raw_size(notes, "bad descriptors", sendfile(out, input, None, 10));
        }
        raw_size(notes, "a bad offset", sendfile(out, input, Some(&mut -1), 10));
        // SAFETY: the kernel judges the pointer.
        raw_size(notes, "a bad pointer", unsafe { libc::sendfile(out, input, 16 as *mut _, 10) });
        raw_size(notes, "to a file", sendfile(tempfile::tempfile().unwrap().as_raw_fd(), input, None, 10));
        drop(theirs);
        raw_size(notes, "nobody reads", sendfile(out, input, Some(&mut 0), 10));
    });
}

#[test]
fn a_receive_is_not_disturbed_by_a_sendfile_on_the_same_socket() {
    differ(true, |notes| {
        // Two directions of one socket, used at once, also on two workers.
        let file = file_of(&vec![7; 1 << 20]);
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (fd, peer) = (ours.as_raw_fd(), theirs.as_raw_fd());
        let drainer = companion(move || assert_eq!(drain(peer), 1 << 20));
        let receiver = companion(move || {
            for _ in 0..50 {
                assert_eq!(recv(fd, &mut [0; 1]), 1);
            }
        });
        let sender = companion(move || {
            for _ in 0..50 {
                assert_eq!(send(peer, b"x"), 1);
                thread::sleep(Duration::from_micros(100));
            }
        });
        for offset in 0..64i64 {
            let mut offset = offset << 14;
            assert_eq!(sendfile(fd, file.as_raw_fd(), Some(&mut offset), 1 << 14), 1 << 14);
        }
        sender();
        receiver();
        shutdown(fd, libc::SHUT_WR);
        drainer();
        notes.push(format!("{}", getfl(fd) & libc::O_NONBLOCK));
    });
}
