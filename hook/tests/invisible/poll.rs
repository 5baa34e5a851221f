//! `poll` and `ppoll`.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::thread;

#[test]
fn poll_waits_reports_and_times_out() {
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let (reader, writer_end) = std::io::pipe().unwrap();
        let mut entries =
            [entry(server.as_raw_fd(), libc::POLLIN), entry(reader.as_raw_fd(), libc::POLLIN), entry(-1, 7)];
        raw(notes, "nothing", poll(&mut entries, 20));
        let writer = companion(move || {
            thread::sleep(pause());
            client.write_all(b"x").unwrap();
            thread::sleep(pause());
            drop(writer_end);
            thread::sleep(pause());
            drop(client);
        });
        raw(notes, "data", poll(&mut entries, -1));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
        raw(notes, "hang-up of a pipe", poll(&mut entries[1..], 5000));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
        writer();
        raw(notes, "a pause", poll(&mut [], 20));
    });
}

#[test]
fn poll_knows_files_devices_and_bad_descriptors() {
    differ(false, |notes| {
        let file = tempfile::tempfile().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut entries = [
            entry(file.as_raw_fd(), libc::POLLIN | libc::POLLOUT),
            entry(null.as_raw_fd(), libc::POLLIN),
            entry(999_999, libc::POLLIN),
        ];
        raw(notes, "poll", poll(&mut entries, -1));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
    });
}

#[test]
fn a_timeout_of_nothing_looks_only() {
    differ(false, |notes| {
        let (reader, writer) = pipe(0);
        let mut entries = [entry(reader.as_raw_fd(), libc::POLLIN), entry(writer.as_raw_fd(), libc::POLLOUT)];
        look(notes, "writable", &mut entries, 0);
        look(notes, "nothing", &mut entries[..1], 0);
        write(writer.as_raw_fd(), b"x");
        look(notes, "both", &mut entries, 0);
    });
}

/// Polls, and notes the count and what was reported for each.
fn look(notes: &mut Notes, what: &str, entries: &mut [libc::pollfd], timeout_ms: i32) {
    raw(notes, what, poll(entries, timeout_ms));
    notes.push(format!("{:?}", entries.iter().map(|entry| entry.revents).collect::<Vec<_>>()));
}

#[test]
fn entries_without_a_descriptor_are_skipped_and_cleared() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let mut entries = [
            libc::pollfd { fd: -1, events: 0x7fff, revents: 0x7f },
            libc::pollfd { fd: i32::MIN, events: 1, revents: 0x7f },
            libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0x7f },
        ];
        look(notes, "nothing", &mut entries, 20);
        write(writer.as_raw_fd(), b"x");
        look(notes, "one", &mut entries, -1);
        look(notes, "only such", &mut entries[..2], 10);
    });
}

#[test]
fn a_bad_descriptor_is_reported_at_once() {
    differ(false, |notes| {
        let (reader, _writer) = pipe(0);
        let mut entries = [entry(reader.as_raw_fd(), libc::POLLIN), entry(999_999, libc::POLLIN)];
        look(notes, "poll", &mut entries, -1);
        entries[1].events = 0;
        look(notes, "without events", &mut entries, -1);
    });
}

#[test]
fn the_same_descriptor_may_come_twice() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let fd = ours.as_raw_fd();
            let mut entries =
                [entry(fd, libc::POLLIN), entry(fd, libc::POLLPRI), entry(fd, libc::POLLIN), entry(fd, 0)];
            look(notes, name, &mut entries, 20);
            let sender = companion(move || {
                thread::sleep(pause());
                send(theirs.as_raw_fd(), b"x");
                thread::sleep(pause());
            });
            look(notes, name, &mut entries, -1);
            sender();
        }
    });
}

#[test]
fn any_negative_timeout_is_for_ever() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let sender = companion(move || {
            thread::sleep(pause());
            write(writer.as_raw_fd(), b"x");
            thread::sleep(pause());
        });
        look(notes, "poll", &mut [entry(reader.as_raw_fd(), libc::POLLIN)], i32::MIN);
        sender();
    });
}

#[test]
fn the_longest_timeout_does_not_overflow() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let sender = companion(move || {
            thread::sleep(pause());
            write(writer.as_raw_fd(), b"x");
            thread::sleep(pause());
        });
        let mut entries = [entry(reader.as_raw_fd(), libc::POLLIN)];
        look(notes, "poll", &mut entries, i32::MAX);
        let longest = libc::timespec { tv_sec: i64::MAX, tv_nsec: 999_999_999 };
        // SAFETY: a live entry and a live timespec.
        raw(notes, "ppoll", unsafe { libc::ppoll(entries.as_mut_ptr(), 1, &longest, std::ptr::null()) });
        sender();
    });
}

#[test]
fn what_pollhup_and_pollerr_mean_for_pipes() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        // Neither has to be asked for.
        let mut entries = [entry(reader.as_raw_fd(), 0)];
        let closer = companion(move || {
            thread::sleep(pause());
            drop(writer);
        });
        look(notes, "the writer goes", &mut entries, -1);
        closer();
        let (reader, writer) = pipe(0);
        let mut entries = [entry(writer.as_raw_fd(), 0)];
        let closer = companion(move || {
            thread::sleep(pause());
            drop(reader);
        });
        look(notes, "the reader goes", &mut entries, -1);
        closer();
        entries[0].events = libc::POLLOUT;
        look(notes, "and to write", &mut entries, -1);
    });
}

#[test]
fn the_stages_of_a_connections_end() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let events = libc::POLLIN | libc::POLLRDHUP;
            let (fd, peer) = (ours.as_raw_fd(), theirs.as_raw_fd());
            let other = companion(move || {
                thread::sleep(pause());
                shutdown(peer, libc::SHUT_WR);
            });
            look(notes, name, &mut [entry(fd, libc::POLLRDHUP)], -1);
            other();
            look(notes, name, &mut [entry(fd, events)], -1);
            shutdown(fd, libc::SHUT_WR);
            look(notes, name, &mut [entry(fd, events), entry(peer, events | libc::POLLOUT)], -1);
            drop(theirs);
            look(notes, name, &mut [entry(fd, 0)], -1);
        }
    });
}

#[test]
fn a_reset_is_an_error_and_a_hangup() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let other = companion(move || {
            thread::sleep(pause());
            reset_on_close(theirs.as_raw_fd());
            drop(theirs);
        });
        look(notes, "reset", &mut [entry(ours.as_raw_fd(), libc::POLLIN | libc::POLLOUT)], -1);
        let mut entries = [entry(ours.as_raw_fd(), 0)];
        other();
        look(notes, "still", &mut entries, -1);
        notes.push(format!("{}", socket_error(ours.as_raw_fd())));
        look(notes, "the error was told", &mut entries, -1);
    });
}

#[test]
fn a_socket_without_a_connection_is_hung_up() {
    differ(false, |notes| {
        let fresh = socket(libc::AF_INET, libc::SOCK_STREAM);
        look(notes, "fresh", &mut [entry(fresh.as_raw_fd(), libc::POLLIN | libc::POLLOUT)], -1);
        let udp = socket(libc::AF_INET, libc::SOCK_DGRAM);
        look(notes, "udp", &mut [entry(udp.as_raw_fd(), libc::POLLIN | libc::POLLOUT)], -1);
    });
}

#[test]
fn pollout_waits_until_there_is_room() {
    differ(true, |notes| {
        // TCP goes on moving what it holds to its peer, and has room again for a while.
        for (name, kind) in [("stream", libc::SOCK_STREAM), ("packets", libc::SOCK_SEQPACKET)] {
            let (ours, theirs) = socketpair(kind);
            // Kept open to the end, or its close would show as well.
            let peer = theirs.as_raw_fd();
            let held = fill(ours.as_raw_fd());
            let mut entries = [entry(ours.as_raw_fd(), libc::POLLOUT)];
            look(notes, name, &mut entries, 20);
            let log = Log::default();
            let order = log.clone();
            let reader = companion(move || {
                thread::sleep(pause());
                order.note("makes room");
                let mut left = held as isize;
                while left > 0 {
                    left -= read(peer, &mut [0; 65536]);
                }
            });
            let count = poll(&mut entries, -1);
            log.note(format!("{name}: {count} {}", entries[0].revents));
            reader();
            log.close(notes);
        }
    });
}

#[test]
fn a_listener_is_readable_when_somebody_connects() {
    differ(true, |notes| {
        let (listener, address) = listener(5);
        let client = companion(move || {
            thread::sleep(pause());
            drop(std::net::TcpStream::connect(address).unwrap());
        });
        look(notes, "poll", &mut [entry(listener.as_raw_fd(), libc::POLLIN | libc::POLLOUT)], -1);
        client();
    });
}

#[test]
fn whoever_finds_the_data_taken_waits_on() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let fd = ours.as_raw_fd();
        let mut entries = [entry(fd, libc::POLLIN)];
        let taker = companion(move || {
            // Woken with the poller, and quicker or not, it takes the byte.
            assert_eq!(recv(fd, &mut [0; 5]), 1);
        });
        let sender = companion(move || {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"x");
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"y");
            thread::sleep(pause());
        });
        // It may see the first byte or, if that is gone, the second; never nothing.
        raw(notes, "poll", poll(&mut entries, -1));
        taker();
        sender();
    });
}

#[test]
fn everything_that_can_be_polled() {
    differ(false, |notes| {
        let directory = std::fs::File::open("/").unwrap();
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let status = std::fs::File::open("/proc/self/status").unwrap();
        // SAFETY: no memory is involved but the C string.
        let (event, memory, epoll) = unsafe {
            (
                owned(libc::eventfd(3, 0)),
                owned(libc::memfd_create(c"memory".as_ptr(), 0)),
                owned(libc::epoll_create1(libc::EPOLL_CLOEXEC)),
            )
        };
        let events = libc::POLLIN | libc::POLLOUT | libc::POLLPRI;
        for fd in [
            directory.as_raw_fd(),
            zero.as_raw_fd(),
            status.as_raw_fd(),
            event.as_raw_fd(),
            memory.as_raw_fd(),
            epoll.as_raw_fd(),
        ] {
            look(notes, "poll", &mut [entry(fd, events)], 0);
        }
        look(
            notes,
            "for ever",
            &mut [entry(memory.as_raw_fd(), events), entry(epoll.as_raw_fd(), events)],
            -1,
        );
    });
}

#[test]
fn ppoll_judges_its_timeout_and_leaves_it_alone() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let mut entries = [entry(reader.as_raw_fd(), libc::POLLIN)];
        for (tv_sec, tv_nsec) in [(0, 20_000_000), (0, 0), (0, -1), (0, 1_000_000_000), (-1, 0)] {
            let timeout = libc::timespec { tv_sec, tv_nsec };
            // SAFETY: a live entry and a live timespec.
            let count = unsafe { libc::ppoll(entries.as_mut_ptr(), 1, &raw const timeout, std::ptr::null()) };
            raw(notes, "ppoll", count);
            notes.push(format!("{} {}", timeout.tv_sec, timeout.tv_nsec));
        }
        let sender = companion(move || {
            thread::sleep(pause());
            write(writer.as_raw_fd(), b"x");
            thread::sleep(pause());
        });
        // SAFETY: a live entry; no timeout is for ever.
        raw(notes, "for ever", unsafe {
            libc::ppoll(entries.as_mut_ptr(), 1, std::ptr::null(), std::ptr::null())
        });
        notes.push(entries[0].revents.to_string());
        sender();
    });
}

#[test]
fn bad_arguments_are_refused() {
    differ(false, |notes| {
        // SAFETY: the kernel judges the arguments.
        unsafe {
            raw(notes, "null", libc::poll(std::ptr::null_mut(), 1, 0));
            raw(notes, "null", libc::ppoll(std::ptr::null_mut(), 1, std::ptr::null(), std::ptr::null()));
            raw(notes, "null and none", libc::poll(std::ptr::null_mut(), 0, 0));
            raw(notes, "impossibly many", libc::poll(16 as *mut _, libc::nfds_t::MAX, 0));
        }
    });
}

#[test]
fn many_descriptors_at_once() {
    differ(true, |notes| {
        let pipes: Vec<_> = (0..60).map(|_| pipe(0)).collect();
        let mut entries: Vec<_> =
            pipes.iter().map(|(reader, _)| entry(reader.as_raw_fd(), libc::POLLIN)).collect();
        raw(notes, "nothing", poll(&mut entries, 20));
        let fd = pipes[41].1.as_raw_fd();
        let writer = companion(move || {
            thread::sleep(pause());
            write(fd, b"x");
            thread::sleep(pause());
        });
        raw(notes, "one", poll(&mut entries, -1));
        notes.push(format!("{:?}", entries.iter().position(|entry| entry.revents != 0)));
        writer();
    });
}

#[test]
fn several_may_poll_the_same_descriptor() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let fd = reader.as_raw_fd();
        let pollers: Vec<_> = (0..3)
            .map(|_| companion(move || assert_eq!(poll(&mut [entry(fd, libc::POLLIN)], -1), 1)))
            .collect();
        thread::sleep(pause());
        raw_size(notes, "write", write(writer.as_raw_fd(), b"x"));
        pollers.into_iter().for_each(|poller| poller());
    });
}

#[test]
fn success_keeps_errno() {
    differ(true, |notes| {
        set_errno(libc::EXDEV);
        let answers = [poll(&mut [], 20), poll(&mut [entry(-1, 1)], 0)];
        notes.push(format!("{answers:?} {}", errno()));
    });
}

#[test]
fn a_closed_descriptor_is_reported_to_a_fiber_that_polls_it() {
    // On a plain thread the poll goes on, on what is no descriptor any more.
    let manager = IoManager::new(1, false).unwrap();
    let (reader, _writer) = pipe(0);
    let fd = reader.as_raw_fd();
    let poller = manager.spawn(move || {
        let mut entries = [entry(fd, libc::POLLIN)];
        (poll(&mut entries, -1), entries[0].revents)
    });
    manager.spawn(move || {
        thread::sleep(pause());
        drop(reader);
    });
    assert_eq!(poller.join().unwrap(), (1, libc::POLLNVAL));
}
