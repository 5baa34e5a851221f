//! Connecting: refused, timed out, non-blocking.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Duration;

#[test]
fn connect_is_refused_or_times_out_as_ever() {
    differ(false, |notes| {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        kind(notes, "refused", TcpStream::connect(address).map(|_| ()));
        kind(notes, "refused with a timeout", TcpStream::connect_timeout(&address, pause()).map(|_| ()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        kind(
            notes,
            "accepted",
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(|mut stream| {
                stream.set_read_timeout(Some(pause())).unwrap();
                stream.read(&mut [0]).map_err(|error| error.kind())
            }),
        );
    });
}

/// A listener that answers nobody any more, because its backlog is full: its address, and what keeps it so.
fn silent_listener() -> (SocketAddr, [OwnedFd; 2]) {
    let (listener, address) = listener(0);
    let first = socket(libc::AF_INET, libc::SOCK_STREAM);
    assert_eq!(connect(first.as_raw_fd(), address), 0);
    (address, [listener, first])
}

fn tcp() -> OwnedFd {
    socket(libc::AF_INET, libc::SOCK_STREAM)
}

/// A port that was free a moment ago.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[test]
fn bad_arguments_are_refused() {
    differ(false, |notes| {
        let (listener, address) = listener(5);
        for fd in [-1, 999_999, i32::MAX] {
            raw(notes, "no descriptor", connect(fd, address));
        }
        let (reader, _writer) = pipe(0);
        raw(notes, "no socket", connect(reader.as_raw_fd(), address));
        raw(notes, "a listener", connect(listener.as_raw_fd(), address));
        let ours = tcp();
        let fd = ours.as_raw_fd();
        let good = sockaddr(address);
        let other_family = libc::sockaddr { sa_family: libc::AF_UNIX as u16, sa_data: [0; 14] };
        let length = size_of_val(&good) as u32;
        // SAFETY: the addresses are live or wrong on purpose; the kernel judges them.
        unsafe {
            raw(notes, "null", libc::connect(fd, std::ptr::null(), length));
            raw(notes, "a bad pointer", libc::connect(fd, 16 as *const _, length));
            raw(notes, "too short", libc::connect(fd, (&raw const good).cast(), 4));
            raw(notes, "no bytes", libc::connect(fd, (&raw const good).cast(), 0));
            raw(notes, "far too long", libc::connect(fd, (&raw const good).cast(), u32::MAX));
            raw(notes, "another family", libc::connect(fd, &raw const other_family, 16));
            raw(notes, "after all that", libc::connect(fd, (&raw const good).cast(), length));
        }
        raw(notes, "twice", connect(fd, address));
    });
}

#[test]
fn a_second_connect_says_that_there_is_a_connection() {
    differ(false, |notes| {
        let (_listener, address) = listener(5);
        let ours = tcp();
        for attempt in ["first", "second", "third"] {
            raw(notes, attempt, connect(ours.as_raw_fd(), address));
        }
        notes.push(format!("{}", getfl(ours.as_raw_fd()) & libc::O_NONBLOCK));
    });
}

#[test]
fn a_refused_socket_may_try_again() {
    differ(false, |notes| {
        let address = nobody();
        let ours = tcp();
        raw(notes, "refused", connect(ours.as_raw_fd(), address));
        raw(notes, "refused again", connect(ours.as_raw_fd(), address));
        notes.push(format!("{}", socket_error(ours.as_raw_fd())));
        let (_listener, address) = listener(5);
        raw(notes, "accepted", connect(ours.as_raw_fd(), address));
        raw_size(notes, "and usable", send(ours.as_raw_fd(), b"x"));
    });
}

#[test]
fn a_send_timeout_ends_a_connect_that_goes_on_in_the_background() {
    differ(true, |notes| {
        let (address, _full) = silent_listener();
        let ours = tcp();
        set_timeout(ours.as_raw_fd(), libc::SO_SNDTIMEO, pause());
        raw(notes, "first", connect(ours.as_raw_fd(), address));
        raw(notes, "it goes on", connect(ours.as_raw_fd(), address));
        raw_size(notes, "nothing can be sent yet", send(ours.as_raw_fd(), b"x"));
        notes.push(format!("{}", socket_error(ours.as_raw_fd())));
    });
}

#[test]
fn connect_waits_until_a_full_backlog_has_room() {
    differ(true, |notes| {
        let (address, [listener, _first]) = silent_listener();
        let acceptor = companion(move || {
            thread::sleep(pause());
            for _ in 0..2 {
                drop(owned(accept(listener.as_raw_fd(), 0)));
            }
        });
        // The kernel repeats its call after a second.
        raw(notes, "connect", connect(tcp().as_raw_fd(), address));
        acceptor();
    });
}

#[test]
fn a_nonblocking_connect_is_in_progress_and_then_done() {
    differ(true, |notes| {
        let (_listener, address) = listener(5);
        for from_birth in [true, false] {
            let ours =
                socket(libc::AF_INET, libc::SOCK_STREAM | if from_birth { libc::SOCK_NONBLOCK } else { 0 });
            let fd = ours.as_raw_fd();
            set_nonblocking(fd, true);
            raw(notes, "connect", connect(fd, address));
            let mut entries = [entry(fd, libc::POLLOUT)];
            raw(notes, "poll", poll(&mut entries, -1));
            notes.push(format!("{} {}", entries[0].revents, socket_error(fd)));
            raw(notes, "done", connect(fd, address));
            raw(notes, "done before", connect(fd, address));
        }
        thread::sleep(pause());
    });
}

#[test]
fn a_nonblocking_connect_tells_of_a_refusal_by_so_error() {
    differ(false, |notes| {
        let ours = tcp();
        let fd = ours.as_raw_fd();
        fionbio(fd, true);
        raw(notes, "connect", connect(fd, nobody()));
        let mut entries = [entry(fd, libc::POLLOUT)];
        raw(notes, "poll", poll(&mut entries, -1));
        notes.push(format!("{} {}", entries[0].revents, socket_error(fd)));
        notes.push(format!("once only {}", socket_error(fd)));
    });
}

#[test]
fn a_nonblocking_connect_in_progress_says_so_when_asked_again() {
    differ(false, |notes| {
        let (address, _full) = silent_listener();
        let ours = tcp();
        let fd = ours.as_raw_fd();
        set_nonblocking(fd, true);
        for attempt in ["first", "second", "third"] {
            raw(notes, attempt, connect(fd, address));
        }
        let mut entries = [entry(fd, libc::POLLOUT)];
        raw(notes, "poll", poll(&mut entries, 0));
    });
}

#[test]
fn a_connect_begun_without_blocking_may_be_waited_for() {
    differ(true, |notes| {
        let (address, [listener, _first]) = silent_listener();
        let ours = tcp();
        let fd = ours.as_raw_fd();
        set_nonblocking(fd, true);
        raw(notes, "begun", connect(fd, address));
        set_nonblocking(fd, false);
        let acceptor = companion(move || {
            thread::sleep(pause());
            for _ in 0..2 {
                drop(owned(accept(listener.as_raw_fd(), 0)));
            }
        });
        raw(notes, "waited for", connect(fd, address));
        raw(notes, "done before", connect(fd, address));
        acceptor();
    });
}

#[test]
fn shutdown_ends_a_connect_that_waits() {
    differ(true, |notes| {
        for how in [libc::SHUT_RD, libc::SHUT_RDWR] {
            let (address, _full) = silent_listener();
            let ours = tcp();
            let fd = ours.as_raw_fd();
            let other = companion(move || {
                thread::sleep(pause());
                shutdown(fd, how);
            });
            raw(notes, "connect", connect(fd, address));
            other();
            notes.push(format!("{}", socket_error(fd)));
        }
    });
}

#[test]
fn a_closed_descriptor_ends_the_connect_that_waits_for_it() {
    let manager = IoManager::new(1, false).unwrap();
    let (address, _full) = silent_listener();
    let ours = tcp();
    let fd = ours.as_raw_fd();
    let waiting = manager.spawn(move || (connect(fd, address), errno()));
    manager.spawn(move || {
        thread::sleep(pause());
        drop(ours);
    });
    assert_eq!(waiting.join().unwrap(), (-1, libc::EBADF));
}

#[test]
fn what_cannot_be_reached_is_said_at_once() {
    differ(false, |notes| {
        let ours = tcp();
        // Wherever the test runs, the network has no say in these.
        raw(notes, "broadcast", connect(ours.as_raw_fd(), "255.255.255.255:9".parse().unwrap()));
        raw(notes, "multicast", connect(ours.as_raw_fd(), "224.0.0.1:9".parse().unwrap()));
        let udp = socket(libc::AF_INET, libc::SOCK_DGRAM);
        raw(notes, "broadcast", connect(udp.as_raw_fd(), "255.255.255.255:9".parse().unwrap()));
    });
}

#[test]
fn datagram_sockets_connect_reconnect_and_disconnect() {
    differ(false, |notes| {
        let peers = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        let ours = socket(libc::AF_INET, libc::SOCK_DGRAM);
        let fd = ours.as_raw_fd();
        for peer in &peers {
            raw(notes, "connect", connect(fd, peer.local_addr().unwrap()));
            raw_size(notes, "send", send(fd, b"hello"));
            raw_size(notes, "arrived", peer.recv(&mut [0; 9]).unwrap() as isize);
        }
        let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
        // SAFETY: an address of that length.
        raw(notes, "disconnect", unsafe { libc::connect(fd, &raw const nobody, 16) });
        raw_size(notes, "to nobody", send(fd, b"hello"));
    });
}

#[test]
fn success_keeps_errno() {
    differ(false, |notes| {
        let (_listener, address) = listener(5);
        set_errno(libc::EXDEV);
        let answer = connect(tcp().as_raw_fd(), address);
        notes.push(format!("{answer} {}", errno()));
    });
}
