//! Unix-domain sockets.

use crate::calls::*;
use crate::harness::*;
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::thread;

#[test]
fn unix_sockets_connect_accept_and_wait() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = companion(move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            thread::sleep(pause());
            stream.write_all(b"hello").unwrap();
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        kind(notes, "read", stream.read_to_string(&mut text));
        notes.push(text);
        client();
    });
}

#[test]
fn a_unix_connect_waits_for_room_in_the_backlog() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        // SAFETY: no memory is involved. A backlog of 0 has room for one.
        unsafe { libc::listen(listener.as_raw_fd(), 0) };
        let first = UnixStream::connect(&path).unwrap();
        let acceptor = companion(move || {
            thread::sleep(pause());
            let one = listener.accept().unwrap();
            let two = listener.accept().unwrap();
            drop((one, two));
        });
        kind(notes, "second connect", UnixStream::connect(&path).map(|_| ()));
        acceptor();
        drop(first);
    });
}

/// A Unix datagram socket with a name in a directory.
fn named_datagram(directory: &Path, name: &str) -> UnixDatagram {
    let socket = UnixDatagram::bind(directory.join(name)).unwrap();
    small_buffers(&socket);
    socket
}

#[test]
fn sending_to_a_full_queue_by_name_waits_until_the_receiver_has_read() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let receiver = named_datagram(directory.path(), "receiver");
        let sender = UnixDatagram::unbound().unwrap();
        let path = directory.path().join("receiver");
        // Filled by another: what the receiver takes out gives our sender nothing back.
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        let held = (0..10_000).take_while(|_| filler.send_to(b"filler", &path).is_ok()).count();
        sender.set_nonblocking(true).unwrap();
        kind(notes, "full", sender.send_to(b"too much", &path));
        sender.set_nonblocking(false).unwrap();
        let log = Log::default();
        let order = log.clone();
        let reader = companion(move || {
            thread::sleep(pause());
            order.note("makes room");
            for _ in 0..held {
                assert_eq!(receiver.recv(&mut [0; 16]).unwrap(), 6);
            }
            let mut buffer = [0; 16];
            let count = receiver.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..count], b"at last");
        });
        let answer = sender.send_to(b"at last", &path).map_err(|error| error.raw_os_error());
        log.note(format!("sent {answer:?}"));
        reader();
        log.close(notes);
    });
}

#[test]
fn sending_to_a_full_queue_when_connected_waits_until_the_receiver_has_read() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let receiver = named_datagram(directory.path(), "receiver");
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(directory.path().join("receiver")).unwrap();
        let fd = sender.as_raw_fd();
        let held = (0..10_000).take_while(|_| send_with(fd, b"filler", libc::MSG_DONTWAIT) > 0).count();
        for call in [send as Send, write, sendmsg, sendmmsg] {
            let receiver = receiver.try_clone().unwrap();
            let reader = companion(move || {
                thread::sleep(pause());
                assert!(receiver.recv(&mut [0; 16]).unwrap() > 0);
            });
            raw_size(notes, "sent", call(fd, b"at last"));
            reader();
        }
        set_timeout(fd, libc::SO_SNDTIMEO, pause());
        raw_size(notes, "in time", send(fd, b"too much"));
        receiver.set_nonblocking(true).unwrap();
        let left = (0..10_000).take_while(|_| receiver.recv(&mut [0; 16]).is_ok()).count();
        notes.push(format!("{}", left == held));
    });
}

#[test]
fn a_full_queue_whose_receiver_goes_away_refuses() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        for connected in [true, false] {
            let name = format!("receiver {connected}");
            let receiver = named_datagram(directory.path(), &name);
            let path = directory.path().join(name);
            let sender = UnixDatagram::unbound().unwrap();
            sender.set_nonblocking(true).unwrap();
            while sender.send_to(b"filler", &path).is_ok() {}
            sender.set_nonblocking(false).unwrap();
            if connected {
                sender.connect(&path).unwrap();
            }
            let closer = companion(move || {
                thread::sleep(pause());
                drop(receiver);
            });
            let answer = if connected { sender.send(b"x") } else { sender.send_to(b"x", &path) };
            kind(notes, "gone", answer);
            closer();
        }
    });
}

#[test]
fn shutting_down_the_reading_of_datagrams_ends_the_wait() {
    differ(true, |notes| {
        for first in [false, true] {
            let (ours, theirs) = socketpair(libc::SOCK_DGRAM);
            let fd = ours.as_raw_fd();
            send(theirs.as_raw_fd(), b"queued");
            let other = companion(move || {
                if !first {
                    thread::sleep(pause());
                }
                shutdown(fd, libc::SHUT_RD);
            });
            if first {
                other();
                raw_size(notes, "queued", recv(fd, &mut [0; 9]));
                raw_size(notes, "the end", recv(fd, &mut [0; 9]));
            } else {
                raw_size(notes, "queued", recv(fd, &mut [0; 9]));
                raw_size(notes, "the end", recv(fd, &mut [0; 9]));
                other();
            }
            raw_size(notes, "does not wait", recv_with(fd, &mut [0; 9], libc::MSG_DONTWAIT));
        }
    });
}

/// Sends a byte with a descriptor.
fn send_descriptor(socket: RawFd, passed: RawFd) -> isize {
    let mut byte = [7u8];
    let mut vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 4];
    // SAFETY: the message has one byte and a control message with one descriptor, all live.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut vector, 1);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(passed);
        libc::sendmsg(socket, &message, 0)
    }
}

/// Receives a byte with a descriptor.
fn receive_descriptor(notes: &mut Notes, socket: RawFd, flags: i32) -> Option<OwnedFd> {
    let mut byte = [0u8; 4];
    let mut vector = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 4 };
    let mut control = [0u64; 4];
    // SAFETY: room for a few bytes and a control message, all live.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&mut vector, 1);
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let count = libc::recvmsg(socket, &mut message, flags);
        raw_size(notes, "recvmsg", count);
        notes.push(format!("{} {}", message.msg_controllen, message.msg_flags));
        let header = libc::CMSG_FIRSTHDR(&message);
        (!header.is_null()).then(|| owned(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned()))
    }
}

#[test]
fn a_passed_descriptor_works_and_waits() {
    differ(true, |notes| {
        for flags in [0, libc::MSG_CMSG_CLOEXEC] {
            let (ours, theirs) = socketpair(libc::SOCK_STREAM);
            let (reader, writer) = pipe(0);
            let sender = companion(move || {
                thread::sleep(pause());
                assert_eq!(send_descriptor(theirs.as_raw_fd(), reader.as_raw_fd()), 1);
                drop(reader);
                thread::sleep(pause());
                write(writer.as_raw_fd(), b"through");
            });
            let received = receive_descriptor(notes, ours.as_raw_fd(), flags).unwrap();
            // SAFETY: F_GETFD takes no argument.
            raw(notes, "flags", unsafe { libc::fcntl(received.as_raw_fd(), libc::F_GETFD) });
            raw_size(notes, "read", read(received.as_raw_fd(), &mut [0; 9]));
            raw_size(notes, "the end", read(received.as_raw_fd(), &mut [0; 9]));
            sender();
        }
    });
}

#[test]
fn a_passed_descriptor_shares_its_flags() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_SEQPACKET);
        let (data, peer) = socketpair(libc::SOCK_STREAM);
        let fd = data.as_raw_fd();
        // The runtime has seen it wait, and then a copy of it comes that nobody made by a call of dup.
        let first = companion(move || {
            thread::sleep(pause());
            send(peer.as_raw_fd(), b"x");
            thread::sleep(pause() * 6);
        });
        raw_size(notes, "waits", recv(fd, &mut [0; 5]));
        send_descriptor(theirs.as_raw_fd(), fd);
        let copy = receive_descriptor(notes, ours.as_raw_fd(), 0).unwrap();
        set_nonblocking(copy.as_raw_fd(), true);
        raw_size(notes, "does not wait", recv(fd, &mut [0; 5]));
        set_nonblocking(copy.as_raw_fd(), false);
        set_timeout(copy.as_raw_fd(), libc::SO_RCVTIMEO, pause());
        raw_size(notes, "not for long", recv(fd, &mut [0; 5]));
        first();
    });
}

#[test]
fn a_receive_stops_at_a_passed_descriptor() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (reader, _writer) = pipe(0);
        send(theirs.as_raw_fd(), b"ab");
        send_descriptor(theirs.as_raw_fd(), reader.as_raw_fd());
        send(theirs.as_raw_fd(), b"cd");
        let received = receive_descriptor(notes, ours.as_raw_fd(), 0);
        notes.push(format!("{}", received.is_some()));
        let received = receive_descriptor(notes, ours.as_raw_fd(), 0);
        notes.push(format!("{}", received.is_some()));
        let sender = companion(move || {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"efgh");
        });
        raw_size(notes, "the rest", recv(ours.as_raw_fd(), &mut [0; 9]));
        raw_size(notes, "all", recv_with(ours.as_raw_fd(), &mut [0; 4], libc::MSG_WAITALL));
        sender();
    });
}

#[test]
fn unix_connects_that_fail() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        kind(notes, "no such name", UnixStream::connect(&path).map(|_| ()));
        let listener = UnixListener::bind(&path).unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        kind(notes, "another type", datagram.connect(&path));
        std::fs::write(directory.path().join("file"), b"").unwrap();
        kind(notes, "a file", UnixStream::connect(directory.path().join("file")).map(|_| ()));
        // SAFETY: no memory is involved. A backlog of 0 has room for one.
        unsafe { libc::listen(listener.as_raw_fd(), 0) };
        let _first = UnixStream::connect(&path).unwrap();
        let address = SockAddr::unix(&path).unwrap();
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        kind(notes, "full, not waiting", socket.connect(&address));
        socket.set_nonblocking(false).unwrap();
        socket.set_write_timeout(Some(pause())).unwrap();
        kind(notes, "full, not for long", socket.connect(&address));
        socket.set_write_timeout(None).unwrap();
        let closer = companion(move || {
            thread::sleep(pause());
            drop(listener);
        });
        kind(notes, "the listener goes", socket.connect(&address));
        closer();
        kind(notes, "nobody listens", socket.connect(&address));
    });
}

#[test]
fn abstract_names_and_unnamed_peers() {
    differ(true, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_DGRAM);
        let sender = companion(move || {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"x");
        });
        // SAFETY: an all-zero address is valid.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        let mut length = size_of_val(&address) as libc::socklen_t;
        let mut byte = 0u8;
        // SAFETY: room for a byte and the address.
        let count = unsafe {
            libc::recvfrom(
                ours.as_raw_fd(),
                (&raw mut byte).cast(),
                1,
                0,
                (&raw mut address).cast(),
                &mut length,
            )
        };
        raw_size(notes, "recvfrom", count);
        notes.push(format!("{length}"));
        sender();
    });
}
