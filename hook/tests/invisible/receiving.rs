//! Every receiving call under the same conditions: data that comes late, timeouts, O_NONBLOCK in all the ways to set it, the end, a
//! reset, arguments that make no sense.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::os::fd::AsRawFd;
use std::thread;

macro_rules! receiving {
    ($($call:ident)*) => {
        $(cases! { $call:
            waits_for_data_and_sees_the_end true
            times_out_by_so_rcvtimeo true
            a_timeout_counts_from_each_call true
            does_not_wait_if_nonblocking_by_fcntl false
            does_not_wait_if_nonblocking_by_ioctl false
            does_not_wait_if_nonblocking_from_birth false
            does_not_wait_if_nonblocking_through_a_duplicate false
            waits_again_once_blocking_again true
            goes_on_waiting_when_a_duplicate_is_made_nonblocking true
            goes_on_waiting_when_a_duplicate_is_given_a_timeout true
            ends_when_reading_is_shut_down_meanwhile true
            goes_on_when_writing_is_shut_down_meanwhile true
            reports_a_reset_and_then_the_end true
            refuses_bad_arguments false
            of_nothing false
            keeps_errno_when_it_succeeds true
            shares_out_what_arrives_between_two_that_wait true
            keeps_datagrams_apart true
            reports_an_error_that_arrives_meanwhile true
        })*
    };
}

receiving! { read readv recv recvfrom recvmsg recvmmsg }

fn waits_for_data_and_sees_the_end(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        let log = Log::default();
        let sender_log = log.clone();
        let sender = companion(move || {
            thread::sleep(pause());
            sender_log.note("sends");
            send(theirs.as_raw_fd(), b"abc");
            sender_log.until(2);
            thread::sleep(pause());
            sender_log.note("closes");
        });
        for _ in 0..2 {
            let mut buffer = [0; 5];
            log.note(format!("{name}: {} {buffer:?}", receive(ours.as_raw_fd(), &mut buffer)));
        }
        // The end stays.
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        sender();
        log.close(notes);
    }
}

fn times_out_by_so_rcvtimeo(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        set_timeout(ours.as_raw_fd(), libc::SO_RCVTIMEO, pause());
        for _ in 0..2 {
            raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        }
        send(theirs.as_raw_fd(), b"abc");
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        notes.push(format!("{}", getfl(ours.as_raw_fd()) & libc::O_NONBLOCK));
    }
}

fn a_timeout_counts_from_each_call(notes: &mut Notes, receive: Receive) {
    let (ours, theirs) = socketpair(libc::SOCK_STREAM);
    set_timeout(ours.as_raw_fd(), libc::SO_RCVTIMEO, pause() * 20);
    let sender = companion(move || {
        for _ in 0..4 {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"x");
        }
    });
    for _ in 0..5 {
        raw_size(notes, "receive", receive(ours.as_raw_fd(), &mut [0; 5]));
    }
    sender();
}

/// What a non-blocking socket answers: nothing yet, data, the end; and its flag shows.
fn never_waits(notes: &mut Notes, name: &str, ours: i32, theirs: i32, receive: Receive) {
    raw_size(notes, name, receive(ours, &mut [0; 5]));
    send(theirs, b"ab");
    raw_size(notes, name, receive(ours, &mut [0; 5]));
    raw_size(notes, name, receive(ours, &mut [0; 5]));
    shutdown(theirs, libc::SHUT_WR);
    // Loopback delivers before the call returns.
    raw_size(notes, name, receive(ours, &mut [0; 5]));
    notes.push(format!("{} {}", getfl(ours) & libc::O_NONBLOCK, getfl(theirs) & libc::O_NONBLOCK));
}

fn does_not_wait_if_nonblocking_by_fcntl(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        set_nonblocking(ours.as_raw_fd(), true);
        never_waits(notes, name, ours.as_raw_fd(), theirs.as_raw_fd(), receive);
    }
}

fn does_not_wait_if_nonblocking_by_ioctl(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        fionbio(ours.as_raw_fd(), true);
        never_waits(notes, name, ours.as_raw_fd(), theirs.as_raw_fd(), receive);
    }
}

fn does_not_wait_if_nonblocking_from_birth(notes: &mut Notes, receive: Receive) {
    let (ours, theirs) = socketpair(libc::SOCK_STREAM | libc::SOCK_NONBLOCK);
    never_waits(notes, "socketpair", ours.as_raw_fd(), theirs.as_raw_fd(), receive);
    let (listener, address) = listener(1);
    let theirs = socket(libc::AF_INET, libc::SOCK_STREAM);
    raw(notes, "connect", connect(theirs.as_raw_fd(), address));
    let ours = owned(accept(listener.as_raw_fd(), libc::SOCK_NONBLOCK));
    never_waits(notes, "accept4", ours.as_raw_fd(), theirs.as_raw_fd(), receive);
}

fn does_not_wait_if_nonblocking_through_a_duplicate(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        let copy = duplicate(ours.as_raw_fd());
        set_nonblocking(copy.as_raw_fd(), true);
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        drop(ours);
        never_waits(notes, name, copy.as_raw_fd(), theirs.as_raw_fd(), receive);
    }
}

fn waits_again_once_blocking_again(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        let fd = ours.as_raw_fd();
        let copy = duplicate(fd);
        // What the hooks remember of one wait must not outlive the change after it.
        type Switch = fn(i32, bool);
        let switches = [(fd, set_nonblocking as Switch), (fd, fionbio), (copy.as_raw_fd(), set_nonblocking)];
        for (switched, switch) in switches {
            switch(switched, true);
            raw_size(notes, name, receive(fd, &mut [0; 5]));
            switch(switched, false);
            let peer = theirs.as_raw_fd();
            let sender = companion(move || {
                thread::sleep(pause());
                send(peer, b"x");
            });
            raw_size(notes, name, receive(fd, &mut [0; 5]));
            sender();
        }
    }
}

fn goes_on_waiting_when_a_duplicate_is_made_nonblocking(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        let copy = duplicate(ours.as_raw_fd());
        let other = companion(move || {
            thread::sleep(pause());
            set_nonblocking(copy.as_raw_fd(), true);
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"late");
            thread::sleep(pause());
        });
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        // The next call sees the flag.
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        other();
    }
}

fn goes_on_waiting_when_a_duplicate_is_given_a_timeout(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        let copy = duplicate(ours.as_raw_fd());
        let other = companion(move || {
            thread::sleep(pause());
            set_timeout(copy.as_raw_fd(), libc::SO_RCVTIMEO, pause() / 4);
            thread::sleep(pause() * 2);
            send(theirs.as_raw_fd(), b"late");
            thread::sleep(pause() * 2);
        });
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut [0; 5]));
        other();
    }
}

fn ends_when_reading_is_shut_down_meanwhile(notes: &mut Notes, receive: Receive) {
    for how in [libc::SHUT_RD, libc::SHUT_RDWR] {
        for (name, ours, theirs) in stream_pairs() {
            let fd = ours.as_raw_fd();
            let other = companion(move || {
                thread::sleep(pause());
                shutdown(fd, how);
            });
            raw_size(notes, name, receive(fd, &mut [0; 5]));
            other();
            raw_size(notes, name, receive(fd, &mut [0; 5]));
            drop(theirs);
        }
    }
}

fn goes_on_when_writing_is_shut_down_meanwhile(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        let fd = ours.as_raw_fd();
        let other = companion(move || {
            thread::sleep(pause());
            shutdown(fd, libc::SHUT_WR);
            thread::sleep(pause());
            // The other half still works.
            send(theirs.as_raw_fd(), b"x");
        });
        raw_size(notes, name, receive(fd, &mut [0; 5]));
        other();
    }
}

fn reports_a_reset_and_then_the_end(notes: &mut Notes, receive: Receive) {
    let (ours, theirs) = tcp_pair();
    let other = companion(move || {
        thread::sleep(pause());
        reset_on_close(theirs.as_raw_fd());
        drop(theirs);
    });
    for _ in 0..3 {
        raw_size(notes, "receive", receive(ours.as_raw_fd(), &mut [0; 5]));
    }
    other();
}

fn refuses_bad_arguments(notes: &mut Notes, receive: Receive) {
    for fd in [-1, 999_999, i32::MAX] {
        raw_size(notes, "no descriptor", receive(fd, &mut [0; 5]));
    }
    let (ours, theirs) = socketpair(libc::SOCK_STREAM);
    let fd = ours.as_raw_fd();
    raw_size(notes, "a connected pair", send(theirs.as_raw_fd(), b"abc"));
    // SAFETY: nothing is mapped there, and the slice is only passed on: this is what the case is about.
    let nowhere = unsafe { std::slice::from_raw_parts_mut(16 as *mut u8, 8) };
    raw_size(notes, "a bad buffer", receive(fd, nowhere));
    raw_size(notes, "the data is still there", receive(fd, &mut [0; 5]));
    let file = tempfile::tempfile().unwrap();
    let (reader, writer) = pipe(libc::O_NONBLOCK);
    for other in [file.as_raw_fd(), reader.as_raw_fd(), writer.as_raw_fd()] {
        raw_size(notes, "not a socket", receive(other, &mut [0; 5]));
    }
    let unconnected = socket(libc::AF_INET, libc::SOCK_STREAM);
    raw_size(notes, "not connected", receive(unconnected.as_raw_fd(), &mut [0; 5]));
    let (listener, _) = listener(1);
    raw_size(notes, "a listener", receive(listener.as_raw_fd(), &mut [0; 5]));
}

fn of_nothing(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        set_timeout(ours.as_raw_fd(), libc::SO_RCVTIMEO, pause());
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut []));
        send(theirs.as_raw_fd(), b"abc");
        raw_size(notes, name, receive(ours.as_raw_fd(), &mut []));
        raw_size(notes, "all is still there", receive(ours.as_raw_fd(), &mut [0; 5]));
        drop(theirs);
        raw_size(notes, "at the end", receive(ours.as_raw_fd(), &mut []));
    }
}

fn keeps_errno_when_it_succeeds(notes: &mut Notes, receive: Receive) {
    for (_, ours, theirs) in stream_pairs() {
        let sender = companion(move || {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"abc");
        });
        set_errno(libc::EXDEV);
        let count = receive(ours.as_raw_fd(), &mut [0; 5]);
        notes.push(format!("{count} {}", errno()));
        sender();
    }
}

fn shares_out_what_arrives_between_two_that_wait(notes: &mut Notes, receive: Receive) {
    for (name, ours, theirs) in stream_pairs() {
        let fd = ours.as_raw_fd();
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                companion(move || {
                    // Woken for a byte that the other has taken, it must go on waiting for the next.
                    let mut byte = [0];
                    assert_eq!((receive(fd, &mut byte), byte), (1, *b"x"));
                })
            })
            .collect();
        thread::sleep(pause());
        send(theirs.as_raw_fd(), b"x");
        thread::sleep(pause());
        send(theirs.as_raw_fd(), b"x");
        receivers.into_iter().for_each(|receiver| receiver());
        notes.push(format!("{name}: {} left", fionread(fd)));
    }
}

fn keeps_datagrams_apart(notes: &mut Notes, receive: Receive) {
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let (ours, theirs) = socketpair(kind);
        let sender = companion(move || {
            for datagram in [&b"one"[..], b"", b"longer than the buffer", b"last"] {
                thread::sleep(pause() / 4);
                send(theirs.as_raw_fd(), datagram);
            }
        });
        for _ in 0..4 {
            let mut buffer = [0; 5];
            raw_size(notes, "receive", receive(ours.as_raw_fd(), &mut buffer));
            notes.push(format!("{buffer:?}"));
        }
        sender();
        if kind == libc::SOCK_SEQPACKET {
            raw_size(notes, "the end", receive(ours.as_raw_fd(), &mut [0; 5]));
        }
    }
}

fn reports_an_error_that_arrives_meanwhile(notes: &mut Notes, receive: Receive) {
    let ours = socket(libc::AF_INET, libc::SOCK_DGRAM);
    let fd = ours.as_raw_fd();
    // A port that nobody has any more.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    raw(notes, "connect", connect(fd, nobody));
    let sender = companion(move || {
        thread::sleep(pause());
        send(fd, b"anybody there?");
    });
    raw_size(notes, "refused", receive(fd, &mut [0; 5]));
    sender();
    set_timeout(fd, libc::SO_RCVTIMEO, pause());
    raw_size(notes, "once only", receive(fd, &mut [0; 5]));
}

#[test]
fn every_call_ends_with_ebadf_when_its_descriptor_is_closed() {
    // A plain thread would go on waiting on what is no descriptor any more; a fiber learns of it.
    let calls: [Receive; 6] = [read, readv, recv, recvfrom, recvmsg, recvmmsg];
    let manager = IoManager::new(1, false).unwrap();
    for receive in calls {
        let (ours, _theirs) = socketpair(libc::SOCK_STREAM);
        let fd = ours.as_raw_fd();
        let waiting = manager.spawn(move || (receive(fd, &mut [0; 5]), errno()));
        manager.spawn(move || {
            thread::sleep(pause());
            drop(ours);
        });
        assert_eq!(waiting.join().unwrap(), (-1, libc::EBADF));
    }
}
