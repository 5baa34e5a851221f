//! UDP: boundaries, sources, several datagrams at once.

use crate::calls::*;
use crate::harness::*;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::thread;

#[test]
fn udp_datagrams_keep_their_boundaries_and_sources() {
    differ(true, |notes| {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, from) = (b.local_addr().unwrap(), a.local_addr().unwrap());
        let sender = companion(move || {
            thread::sleep(pause());
            for datagram in [&b"first"[..], b"", b"a longer one"] {
                a.send_to(datagram, to).unwrap();
            }
        });
        for _ in 0..3 {
            let mut buffer = [0; 8];
            let (count, source) = b.recv_from(&mut buffer).unwrap();
            notes.push(format!("{count} {} {buffer:?}", source == from));
        }
        b.set_read_timeout(Some(pause())).unwrap();
        kind(notes, "recv", b.recv(&mut [0; 8]));
        sender();
    });
}

#[test]
fn several_datagrams_in_one_call() {
    differ(true, |notes| {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        a.connect(b.local_addr().unwrap()).unwrap();
        let sender = companion(move || {
            thread::sleep(pause());
            let mut pieces = [*b"one..", *b"two..", *b"three"];
            let mut vectors: Vec<libc::iovec> = pieces
                .iter_mut()
                .map(|piece| libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() })
                .collect();
            let mut messages = messages(&mut vectors);
            // SAFETY: three live messages.
            assert_eq!(unsafe { libc::sendmmsg(a.as_raw_fd(), messages.as_mut_ptr(), 3, 0) }, 3);
        });
        let mut buffers = [[0u8; 8]; 4];
        let mut vectors: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
            .collect();
        let mut messages = messages(&mut vectors);
        let mut receive = |notes: &mut Notes, count, flags| {
            // SAFETY: four live messages, and the count is at most that.
            let received = unsafe {
                libc::recvmmsg(b.as_raw_fd(), messages.as_mut_ptr(), count, flags, std::ptr::null_mut())
            };
            raw(notes, "recvmmsg", received);
            notes.push(format!("{:?}", messages.iter().map(|message| message.msg_len).collect::<Vec<_>>()));
        };
        receive(notes, 2, 0);
        receive(notes, 4, libc::MSG_WAITFORONE);
        receive(notes, 4, libc::MSG_DONTWAIT);
        b.set_read_timeout(Some(pause())).unwrap();
        receive(notes, 4, 0);
        sender();
        notes.push(format!("{buffers:?}"));
    });
}

fn pair() -> (UdpSocket, UdpSocket) {
    let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    a.connect(b.local_addr().unwrap()).unwrap();
    b.connect(a.local_addr().unwrap()).unwrap();
    (a, b)
}

/// `recvmmsg` into four small buffers; notes the count, the lengths and the bytes.
fn receive_several(
    notes: &mut Notes,
    what: &str,
    fd: i32,
    count: u32,
    flags: i32,
    timeout: Option<&mut libc::timespec>,
) {
    let mut buffers = [[0u8; 4]; 4];
    let mut vectors: Vec<libc::iovec> = buffers
        .iter_mut()
        .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() })
        .collect();
    let mut messages = messages(&mut vectors);
    let timeout = timeout.map_or(std::ptr::null_mut(), |timeout| timeout as *mut _);
    // SAFETY: four live messages, and the count is at most that.
    raw(notes, what, unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, timeout) });
    notes.push(format!("{:?}", messages.iter().map(|message| message.msg_len).collect::<Vec<_>>()));
    notes.push(format!("{:?}", messages.iter().map(|message| message.msg_hdr.msg_flags).collect::<Vec<_>>()));
    notes.push(format!("{buffers:?}"));
}

#[test]
fn recvmmsg_looks_at_its_timeout_after_each_message() {
    differ(true, |notes| {
        let (ours, theirs) = pair();
        for datagram in [b"one", b"two", b"six"] {
            theirs.send(datagram).unwrap();
        }
        let mut none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        receive_several(notes, "no time", ours.as_raw_fd(), 4, 0, Some(&mut none));
        notes.push(format!("{} {}", none.tv_sec, none.tv_nsec));
        let mut long = libc::timespec { tv_sec: 1000, tv_nsec: 0 };
        receive_several(notes, "as many as asked for", ours.as_raw_fd(), 2, 0, Some(&mut long));
        notes.push(format!("{}", (990..1000).contains(&long.tv_sec)));
        let sender = companion(move || {
            for datagram in [b"ten", b"low"] {
                thread::sleep(pause() * 2);
                theirs.send(datagram).unwrap();
            }
        });
        // Up before the first comes: the wait is not cut short, but it is the last.
        let mut short = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        receive_several(notes, "not much time", ours.as_raw_fd(), 2, 0, Some(&mut short));
        notes.push(format!("{} {}", short.tv_sec, short.tv_nsec));
        sender();
        for (tv_sec, tv_nsec) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
            let mut bad = libc::timespec { tv_sec, tv_nsec };
            receive_several(notes, "a bad time", ours.as_raw_fd(), 2, 0, Some(&mut bad));
        }
    });
}

#[test]
fn recvmmsg_for_one_takes_what_else_there_is() {
    differ(true, |notes| {
        let (ours, theirs) = pair();
        let fd = ours.as_raw_fd();
        let sender = companion(move || {
            thread::sleep(pause());
            theirs.send(b"one").unwrap();
            thread::sleep(pause());
            theirs.send(b"two").unwrap();
            theirs.send(b"longer").unwrap();
        });
        receive_several(notes, "for one", fd, 4, libc::MSG_WAITFORONE, None);
        sender();
        receive_several(notes, "for one", fd, 4, libc::MSG_WAITFORONE, None);
        receive_several(notes, "not waiting", fd, 4, libc::MSG_DONTWAIT, None);
        receive_several(notes, "not waiting for one", fd, 4, libc::MSG_WAITFORONE | libc::MSG_DONTWAIT, None);
    });
}

#[test]
fn recvmmsg_waits_for_all_until_its_socket_says_enough() {
    differ(true, |notes| {
        let (ours, theirs) = pair();
        let fd = ours.as_raw_fd();
        let sender = companion(move || {
            for datagram in [b"one", b"two", b"six"] {
                thread::sleep(pause());
                theirs.send(datagram).unwrap();
            }
        });
        receive_several(notes, "for two", fd, 2, 0, None);
        set_timeout(fd, libc::SO_RCVTIMEO, pause() * 5);
        receive_several(notes, "for two in time", fd, 2, 0, None);
        receive_several(notes, "nothing in time", fd, 2, 0, None);
        sender();
    });
}

#[test]
fn an_error_behind_messages_is_for_the_next_recvmmsg() {
    differ(true, |notes| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
        ours.connect(theirs.local_addr().unwrap()).unwrap();
        theirs.send_to(b"one", ours.local_addr().unwrap()).unwrap();
        let fd = ours.as_raw_fd();
        let other = companion(move || {
            thread::sleep(pause());
            drop(theirs);
            // Nobody is there any more, which comes back as an error.
            send(fd, b"anybody?");
        });
        receive_several(notes, "a message", fd, 4, 0, None);
        other();
        receive_several(notes, "the error", fd, 4, 0, None);
        receive_several(notes, "no more", fd, 4, libc::MSG_DONTWAIT, None);
    });
}

#[test]
fn the_several_message_calls_judge_their_arguments() {
    differ(false, |notes| {
        let (ours, _theirs) = pair();
        let null = std::ptr::null_mut();
        // SAFETY: the kernel judges the arguments.
        unsafe {
            for fd in [-1, 999_999] {
                raw(notes, "no descriptor", libc::recvmmsg(fd, null, 0, 0, null.cast()));
                raw(notes, "no descriptor", libc::sendmmsg(fd, null, 0, 0));
            }
            let fd = ours.as_raw_fd();
            raw(notes, "none", libc::recvmmsg(fd, null, 0, 0, null.cast()));
            raw(notes, "none", libc::sendmmsg(fd, null, 0, 0));
            raw(notes, "null", libc::recvmmsg(fd, null, 2, libc::MSG_DONTWAIT, null.cast()));
            raw(notes, "null", libc::sendmmsg(fd, null, 2, 0));
        }
    });
}

#[test]
fn sendmmsg_stops_at_the_first_that_fails() {
    differ(false, |notes| {
        let (ours, theirs) = pair();
        let mut good = *b"good";
        let mut long = vec![0u8; 70_000];
        let mut vectors = [
            libc::iovec { iov_base: good.as_mut_ptr().cast(), iov_len: 4 },
            libc::iovec { iov_base: long.as_mut_ptr().cast(), iov_len: long.len() },
            libc::iovec { iov_base: good.as_mut_ptr().cast(), iov_len: 4 },
        ];
        let mut messages = messages(&mut vectors);
        // SAFETY: live messages.
        unsafe {
            raw(notes, "all", libc::sendmmsg(ours.as_raw_fd(), messages.as_mut_ptr(), 3, 0));
            raw(notes, "the bad one", libc::sendmmsg(ours.as_raw_fd(), messages.as_mut_ptr().add(1), 2, 0));
        }
        notes.push(format!("{:?}", messages.iter().map(|message| message.msg_len).collect::<Vec<_>>()));
        theirs.set_nonblocking(true).unwrap();
        kind(notes, "arrived", theirs.recv(&mut [0; 9]));
        kind(notes, "no more", theirs.recv(&mut [0; 9]));
    });
}

#[test]
fn sources_are_told_as_far_as_there_is_room() {
    differ(true, |notes| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        for room in [16u32, 8, 0, 100] {
            let sender = companion(move || {
                thread::sleep(pause() / 2);
                UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"x", address).unwrap();
            });
            // SAFETY: an all-zero address is valid.
            let mut source: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
            let (mut length, mut byte) = (room, 0u8);
            // SAFETY: room for a byte and more than the address.
            raw_size(notes, "recvfrom", unsafe {
                libc::recvfrom(
                    ours.as_raw_fd(),
                    (&raw mut byte).cast(),
                    1,
                    0,
                    (&raw mut source).cast(),
                    &mut length,
                )
            });
            notes.push(format!("{length} {}", source.ss_family));
            sender();
        }
    });
}

#[test]
fn a_send_goes_where_it_is_told() {
    differ(false, |notes| {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        ours.connect(a.local_addr().unwrap()).unwrap();
        kind(notes, "to another than the peer", ours.send_to(b"x", b.local_addr().unwrap()));
        kind(notes, "to the peer", ours.send(b"yy"));
        kind(notes, "arrived there", b.recv(&mut [0; 9]));
        kind(notes, "and there", a.recv(&mut [0; 9]));
        let address = sockaddr(b.local_addr().unwrap());
        // SAFETY: the kernel judges the address.
        unsafe {
            let sendto = |address: *const libc::sockaddr, length| {
                libc::sendto(ours.as_raw_fd(), b"x".as_ptr().cast(), 1, 0, address, length)
            };
            raw_size(notes, "too short an address", sendto((&raw const address).cast(), 3));
            raw_size(notes, "a bad address", sendto(16 as *const _, 16));
            raw_size(notes, "far too long", sendto((&raw const address).cast(), 10_000));
        }
    });
}
