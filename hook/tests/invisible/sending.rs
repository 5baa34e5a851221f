//! Every sending call under the same conditions: a buffer that is full, timeouts, O_NONBLOCK, a peer that goes away, arguments that make
//! no sense.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::os::fd::AsRawFd;
use std::thread;

macro_rules! sending {
    ($($call:ident)*) => {
        $(cases! { $call:
            sends_everything_while_the_peer_is_slow true
            returns_what_was_sent_when_the_time_is_up true
            sends_a_part_if_nonblocking_by_fcntl false
            sends_a_part_if_nonblocking_by_ioctl false
            sends_a_part_if_nonblocking_through_a_duplicate false
            goes_on_when_a_duplicate_is_made_nonblocking true
            returns_what_was_sent_when_writing_is_shut_down_meanwhile true
            returns_what_was_sent_when_the_peer_resets_meanwhile true
            returns_what_was_sent_when_the_peer_closes_meanwhile true
            fails_with_epipe_when_the_peer_is_gone false
            refuses_bad_arguments false
            of_nothing_never_waits false
            keeps_errno_when_it_succeeds true
            waits_until_a_datagram_fits true
            refuses_a_datagram_that_is_too_long false
        })*
    };
}

sending! { write writev send sendto sendmsg sendmmsg }

/// More than two sockets with small buffers hold.
const MUCH: usize = 1 << 20;

fn sends_everything_while_the_peer_is_slow(notes: &mut Notes, send: Send) {
    for (name, ours, theirs) in stream_pairs() {
        let log = Log::default();
        let total = log.clone();
        let receiver = companion(move || {
            thread::sleep(pause());
            let count = drain(theirs.as_raw_fd());
            total.note(format!("drained {count}"));
        });
        let data = vec![7; MUCH];
        raw_size(notes, name, send(ours.as_raw_fd(), &data));
        drop(ours);
        receiver();
        log.close(notes);
    }
}

/// Sends until the call says EAGAIN: what is sent first is a part; how much, and in how many calls, is the kernel's affair.
fn a_part_and_then_eagain(notes: &mut Notes, name: &str, fd: i32, send: Send) {
    let data = vec![7; MUCH];
    let first = send(fd, &data);
    notes.push(format!("{name}: a part {}", first > 0 && first < MUCH as isize));
    let last = (0..1000).map(|_| send(fd, &data)).find(|count| *count < 0).unwrap_or(0);
    raw_size(notes, name, last);
    notes.push(format!("{}", getfl(fd) & libc::O_NONBLOCK));
}

fn returns_what_was_sent_when_the_time_is_up(notes: &mut Notes, send: Send) {
    for (name, ours, _theirs) in stream_pairs() {
        set_timeout(ours.as_raw_fd(), libc::SO_SNDTIMEO, pause());
        a_part_and_then_eagain(notes, name, ours.as_raw_fd(), send);
    }
}

fn sends_a_part_if_nonblocking_by_fcntl(notes: &mut Notes, send: Send) {
    for (name, ours, _theirs) in stream_pairs() {
        set_nonblocking(ours.as_raw_fd(), true);
        a_part_and_then_eagain(notes, name, ours.as_raw_fd(), send);
    }
}

fn sends_a_part_if_nonblocking_by_ioctl(notes: &mut Notes, send: Send) {
    for (name, ours, _theirs) in stream_pairs() {
        fionbio(ours.as_raw_fd(), true);
        a_part_and_then_eagain(notes, name, ours.as_raw_fd(), send);
    }
}

fn sends_a_part_if_nonblocking_through_a_duplicate(notes: &mut Notes, send: Send) {
    for (name, ours, _theirs) in stream_pairs() {
        let copy = duplicate(ours.as_raw_fd());
        set_nonblocking(copy.as_raw_fd(), true);
        a_part_and_then_eagain(notes, name, ours.as_raw_fd(), send);
    }
}

fn goes_on_when_a_duplicate_is_made_nonblocking(notes: &mut Notes, send: Send) {
    for (name, ours, theirs) in stream_pairs() {
        let copy = duplicate(ours.as_raw_fd());
        let receiver = companion(move || {
            until_full(copy.as_raw_fd());
            set_nonblocking(copy.as_raw_fd(), true);
            drop(copy);
            drain(theirs.as_raw_fd());
        });
        raw_size(notes, name, send(ours.as_raw_fd(), &vec![7; MUCH]));
        drop(ours);
        receiver();
    }
}

fn returns_what_was_sent_when_writing_is_shut_down_meanwhile(notes: &mut Notes, send: Send) {
    for (name, ours, _theirs) in stream_pairs() {
        let fd = ours.as_raw_fd();
        let other = companion(move || {
            until_full(fd);
            shutdown(fd, libc::SHUT_WR);
        });
        let count = send(fd, &vec![7; MUCH]);
        notes.push(format!("{name}: a part {}", count > 0 && count < MUCH as isize));
        other();
        raw_size(notes, name, send(fd, b"x"));
    }
}

fn returns_what_was_sent_when_the_peer_resets_meanwhile(notes: &mut Notes, send: Send) {
    let (ours, theirs) = tcp_pair();
    small_buffers(&ours);
    small_buffers(&theirs);
    let fd = ours.as_raw_fd();
    let other = companion(move || {
        until_full(fd);
        reset_on_close(theirs.as_raw_fd());
        drop(theirs);
    });
    let count = send(fd, &vec![7; MUCH]);
    notes.push(format!("a part {}", count > 0 && count < MUCH as isize));
    other();
    // The call that has sent something returns the count. The reason is for the next, once.
    raw_size(notes, "the reason", send(fd, b"x"));
    raw_size(notes, "from then on", send(fd, b"x"));
    raw_size(notes, "the other direction", recv(fd, &mut [0]));
}

fn returns_what_was_sent_when_the_peer_closes_meanwhile(notes: &mut Notes, send: Send) {
    let (ours, theirs) = socketpair(libc::SOCK_STREAM);
    let fd = ours.as_raw_fd();
    let other = companion(move || {
        until_full(fd);
        drop(theirs);
    });
    let count = send(fd, &vec![7; MUCH]);
    notes.push(format!("a part {}", count > 0 && count < MUCH as isize));
    other();
    for _ in 0..2 {
        raw_size(notes, "after that", send(fd, b"x"));
    }
}

fn fails_with_epipe_when_the_peer_is_gone(notes: &mut Notes, send: Send) {
    for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
        let (ours, theirs) = socketpair(kind);
        drop(theirs);
        raw_size(notes, "unix", send(ours.as_raw_fd(), b"abc"));
    }
    let (ours, _theirs) = tcp_pair();
    shutdown(ours.as_raw_fd(), libc::SHUT_WR);
    raw_size(notes, "tcp", send(ours.as_raw_fd(), b"abc"));
}

fn refuses_bad_arguments(notes: &mut Notes, send: Send) {
    for fd in [-1, 999_999, i32::MAX] {
        raw_size(notes, "no descriptor", send(fd, b"abc"));
    }
    let (ours, theirs) = socketpair(libc::SOCK_STREAM);
    // SAFETY: nothing is mapped there, and the slice is only passed on: this is what the case is about.
    let nowhere = unsafe { std::slice::from_raw_parts(16 as *const u8, 8) };
    raw_size(notes, "a bad buffer", send(ours.as_raw_fd(), nowhere));
    notes.push(format!("{} arrived", fionread(theirs.as_raw_fd())));
    let (reader, _writer) = pipe(0);
    raw_size(notes, "the wrong end", send(reader.as_raw_fd(), b"abc"));
    let unconnected = socket(libc::AF_INET, libc::SOCK_STREAM);
    raw_size(notes, "not connected", send(unconnected.as_raw_fd(), b"abc"));
    let nowhere = socket(libc::AF_INET, libc::SOCK_DGRAM);
    raw_size(notes, "to nobody", send(nowhere.as_raw_fd(), b"abc"));
}

fn of_nothing_never_waits(notes: &mut Notes, send: Send) {
    for (name, ours, theirs) in stream_pairs() {
        raw_size(notes, name, send(ours.as_raw_fd(), b""));
        fill(ours.as_raw_fd());
        raw_size(notes, name, send(ours.as_raw_fd(), b""));
        drop(theirs);
    }
}

fn keeps_errno_when_it_succeeds(notes: &mut Notes, send: Send) {
    for (_, ours, theirs) in stream_pairs() {
        fill(ours.as_raw_fd());
        let receiver = companion(move || {
            thread::sleep(pause());
            drain(theirs.as_raw_fd());
        });
        set_errno(libc::EXDEV);
        let count = send(ours.as_raw_fd(), b"abc");
        notes.push(format!("{count} {}", errno()));
        drop(ours);
        receiver();
    }
}

fn waits_until_a_datagram_fits(notes: &mut Notes, send: Send) {
    for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let (ours, theirs) = socketpair(kind);
        let held = fill(ours.as_raw_fd()) / 4096;
        let log = Log::default();
        let order = log.clone();
        let receiver = companion(move || {
            thread::sleep(pause());
            order.note("makes room");
            for _ in 0..held {
                assert_eq!(recv(theirs.as_raw_fd(), &mut [0; 5000]), 4096);
            }
            let mut buffer = [0; 5000];
            let count = recv(theirs.as_raw_fd(), &mut buffer);
            assert!((count, &buffer[..3]) == (4000, &[9; 3]));
        });
        let count = send(ours.as_raw_fd(), &[9; 4000]);
        log.note(format!("sent {count}"));
        receiver();
        log.close(notes);
    }
}

fn refuses_a_datagram_that_is_too_long(notes: &mut Notes, send: Send) {
    let (ours, theirs) = socketpair(libc::SOCK_SEQPACKET);
    raw_size(notes, "unix", send(ours.as_raw_fd(), &vec![0; 4 << 20]));
    notes.push(format!("{} arrived", fionread(theirs.as_raw_fd())));
    let udp = socket(libc::AF_INET, libc::SOCK_DGRAM);
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    raw(notes, "connect", connect(udp.as_raw_fd(), peer.local_addr().unwrap()));
    raw_size(notes, "udp", send(udp.as_raw_fd(), &[0; 70_000]));
    raw_size(notes, "udp", send(udp.as_raw_fd(), &[0; 60_000]));
}

#[test]
fn every_call_ends_with_ebadf_when_its_descriptor_is_closed() {
    // As for receiving. What was sent before is lost to the caller as well: it closed the connection.
    let calls: [Send; 6] = [write, writev, send, sendto, sendmsg, sendmmsg];
    let manager = IoManager::new(1, false).unwrap();
    for send in calls {
        let (ours, _theirs) = socketpair(libc::SOCK_STREAM);
        let fd = ours.as_raw_fd();
        fill(fd);
        let waiting = manager.spawn(move || (send(fd, b"abc"), errno()));
        manager.spawn(move || {
            thread::sleep(pause());
            drop(ours);
        });
        assert_eq!(waiting.join().unwrap(), (-1, libc::EBADF));
    }
}
