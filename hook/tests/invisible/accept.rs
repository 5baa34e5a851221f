//! Accepting: who gets which connection, with which flags and address, and what ends the wait.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::{Read, Write};
use std::mem::zeroed;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::ptr::null_mut;
use std::thread;

fn fd_flags(fd: i32) -> i32 {
    // SAFETY: F_GETFD takes no argument.
    unsafe { libc::fcntl(fd, libc::F_GETFD) }
}

#[test]
fn a_new_descriptor_has_the_flags_asked_for_and_inherits_none() {
    differ(false, |notes| {
        let (listener, address) = listener(9);
        for listeners_own in [false, true] {
            set_nonblocking(listener.as_raw_fd(), listeners_own);
            for flags in
                [0, libc::SOCK_NONBLOCK, libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC]
            {
                let _client = TcpStream::connect(address).unwrap();
                let accepted = owned(accept(listener.as_raw_fd(), flags));
                let fd = accepted.as_raw_fd();
                notes.push(format!("{flags}: {} {}", getfl(fd) & libc::O_NONBLOCK, fd_flags(fd)));
            }
            let _client = TcpStream::connect(address).unwrap();
            // SAFETY: no address is asked for.
            let accepted = owned(unsafe { libc::accept(listener.as_raw_fd(), null_mut(), null_mut()) });
            notes.push(format!("accept: {}", getfl(accepted.as_raw_fd()) & libc::O_NONBLOCK));
        }
    });
}

#[test]
fn flags_are_the_same_after_a_wait() {
    differ(true, |notes| {
        let (listener, address) = listener(9);
        for flags in [0, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC] {
            let client = companion(move || {
                thread::sleep(pause());
                drop(TcpStream::connect(address).unwrap());
            });
            let accepted = owned(accept(listener.as_raw_fd(), flags));
            let fd = accepted.as_raw_fd();
            notes.push(format!("{} {}", getfl(fd) & libc::O_NONBLOCK, fd_flags(fd)));
            client();
        }
    });
}

#[test]
fn nobody_sees_a_flag_that_the_user_did_not_set_while_somebody_waits() {
    differ(true, |notes| {
        let (listener, address) = listener(9);
        let fd = listener.as_raw_fd();
        let (copy, log) = (duplicate(fd), Log::default());
        let order = log.clone();
        let looker = companion(move || {
            thread::sleep(pause());
            let late_copy = duplicate(fd);
            for fd in [fd, copy.as_raw_fd(), late_copy.as_raw_fd()] {
                order.note(format!("{}", getfl(fd) & libc::O_NONBLOCK));
            }
            drop(TcpStream::connect(address).unwrap());
        });
        drop(owned(accept(fd, 0)));
        looker();
        log.close(notes);
    });
}

#[test]
fn a_nonblocking_listener_does_not_wait_however_it_became_one() {
    differ(true, |notes| {
        let (listener, address) = listener(9);
        let fd = listener.as_raw_fd();
        let copy = duplicate(fd);
        type Switch = fn(i32, bool);
        for (switched, switch) in
            [(fd, set_nonblocking as Switch), (fd, fionbio), (copy.as_raw_fd(), set_nonblocking)]
        {
            switch(switched, true);
            raw(notes, "nobody there", accept(fd, 0));
            let client = TcpStream::connect(address).unwrap();
            drop(owned(accept(fd, 0)));
            raw(notes, "nobody left", accept(fd, 0));
            switch(switched, false);
            drop(client);
            let client = companion(move || {
                thread::sleep(pause());
                drop(TcpStream::connect(address).unwrap());
            });
            // Blocking again: waits.
            drop(owned(accept(fd, 0)));
            client();
        }
    });
}

#[test]
fn goes_on_waiting_when_a_duplicate_is_made_nonblocking() {
    differ(true, |notes| {
        let (listener, address) = listener(9);
        let copy = duplicate(listener.as_raw_fd());
        let other = companion(move || {
            thread::sleep(pause());
            set_nonblocking(copy.as_raw_fd(), true);
            thread::sleep(pause());
            drop(TcpStream::connect(address).unwrap());
        });
        drop(owned(accept(listener.as_raw_fd(), 0)));
        other();
        raw(notes, "the next sees it", accept(listener.as_raw_fd(), 0));
        notes.push(format!("{}", getfl(listener.as_raw_fd()) & libc::O_NONBLOCK));
    });
}

#[test]
fn the_time_limit_of_a_listener_is_inherited() {
    differ(true, |notes| {
        let (listener, address) = listener(9);
        set_timeout(listener.as_raw_fd(), libc::SO_RCVTIMEO, pause());
        for _ in 0..2 {
            raw(notes, "nobody there", accept(listener.as_raw_fd(), 0));
        }
        let _client = TcpStream::connect(address).unwrap();
        let accepted = owned(accept(listener.as_raw_fd(), 0));
        raw_size(notes, "receive", recv(accepted.as_raw_fd(), &mut [0; 5]));
    });
}

#[test]
fn several_that_wait_get_one_connection_each() {
    differ(true, |notes| {
        let (listener, address) = listener(9);
        let fd = listener.as_raw_fd();
        let acceptors: Vec<_> = (0..3)
            .map(|_| {
                companion(move || {
                    let mut stream = TcpStream::from(owned(accept(fd, 0)));
                    stream.write_all(b"welcome").unwrap();
                })
            })
            .collect();
        thread::sleep(pause());
        for _ in 0..3 {
            let mut text = String::new();
            TcpStream::connect(address).unwrap().read_to_string(&mut text).unwrap();
            notes.push(text);
            thread::sleep(pause() / 4);
        }
        acceptors.into_iter().for_each(|acceptor| acceptor());
        set_nonblocking(fd, true);
        raw(notes, "nobody left", accept(fd, 0));
    });
}

#[test]
fn shutdown_ends_the_wait() {
    differ(true, |notes| {
        for how in [libc::SHUT_RD, libc::SHUT_RDWR] {
            let (listener, _) = listener(9);
            let fd = listener.as_raw_fd();
            let other = companion(move || {
                thread::sleep(pause());
                shutdown(fd, how);
            });
            raw(notes, "accept", accept(fd, 0));
            other();
            raw(notes, "once more", accept(fd, 0));
        }
    });
}

#[test]
fn shutdown_ends_the_wait_on_a_unix_listener() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let fd = listener.as_raw_fd();
        let other = companion(move || {
            thread::sleep(pause());
            shutdown(fd, libc::SHUT_RDWR);
        });
        raw(notes, "accept", accept(fd, 0));
        other();
    });
}

#[test]
fn closing_the_listener_ends_the_wait_with_ebadf() {
    // A plain thread goes on waiting.
    let manager = IoManager::new(1, false).unwrap();
    let (listener, _) = listener(9);
    let fd = listener.as_raw_fd();
    let waiting = manager.spawn(move || (accept(fd, 0), errno()));
    manager.spawn(move || {
        thread::sleep(pause());
        drop(listener);
    });
    assert_eq!(waiting.join().unwrap(), (-1, libc::EBADF));
}

#[test]
fn bad_arguments_are_refused() {
    differ(false, |notes| {
        let (listener, address) = listener(9);
        let fd = listener.as_raw_fd();
        for fd in [-1, 999_999, i32::MAX] {
            raw(notes, "no descriptor", accept(fd, 0));
        }
        let (reader, _writer) = pipe(0);
        raw(notes, "no socket", accept(reader.as_raw_fd(), 0));
        raw(notes, "not listening", accept(socket(libc::AF_INET, libc::SOCK_STREAM).as_raw_fd(), 0));
        raw(notes, "no connections", accept(socket(libc::AF_INET, libc::SOCK_DGRAM).as_raw_fd(), 0));
        raw(notes, "bad flags", accept(fd, 0x77));
        for (address_at, length_at) in
            [(16 as *mut libc::sockaddr, null_mut()), (16 as *mut _, 16 as *mut u32)]
        {
            let client = TcpStream::connect(address).unwrap();
            // SAFETY: the kernel judges the pointers.
            let accepted = unsafe { libc::accept4(fd, address_at, length_at, 0) };
            raw(notes, "bad pointers", accepted);
            drop(client);
        }
        set_nonblocking(fd, true);
        raw(notes, "those connections are gone", accept(fd, 0));
    });
}

#[test]
fn the_peers_address_is_told_as_far_as_there_is_room() {
    differ(true, |notes| {
        let (listener, address) = listener(9);
        for room in [16u32, 8, 0, 128] {
            let client = companion(move || {
                thread::sleep(pause() / 2);
                let stream = TcpStream::connect(address).unwrap();
                thread::sleep(pause() / 2);
                drop(stream);
            });
            // SAFETY: an all-zero address is valid.
            let mut peer: libc::sockaddr_storage = unsafe { zeroed() };
            let mut length = room;
            // SAFETY: there is that much room, and more.
            let accepted = owned(unsafe {
                libc::accept4(listener.as_raw_fd(), (&raw mut peer).cast(), &raw mut length, 0)
            });
            // SAFETY: as above; getpeername fills the address.
            let expected = unsafe {
                let mut expected: libc::sockaddr_storage = zeroed();
                let mut room = room;
                libc::getpeername(accepted.as_raw_fd(), (&raw mut expected).cast(), &raw mut room);
                expected
            };
            // SAFETY: both are plain bytes.
            let [peer, expected] = [peer, expected]
                .map(|address| unsafe { std::mem::transmute::<libc::sockaddr_storage, [u8; 128]>(address) });
            notes.push(format!("{room}: {length} {} {:?}", peer == expected, &peer[..2]));
            client();
        }
    });
}

#[test]
fn a_connection_that_was_reset_before_it_was_accepted_is_accepted() {
    differ(false, |notes| {
        let (listener, address) = listener(9);
        let client = TcpStream::connect(address).unwrap();
        reset_on_close(client.as_raw_fd());
        drop(client);
        let accepted = owned(accept(listener.as_raw_fd(), 0));
        raw_size(notes, "receive", recv(accepted.as_raw_fd(), &mut [0; 5]));
    });
}

#[test]
fn unix_sockets_are_accepted_with_their_names() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = companion(move || {
            for _ in 0..2 {
                thread::sleep(pause());
                drop(UnixStream::connect(&path).unwrap());
            }
        });
        for room in [110u32, 1] {
            // SAFETY: an all-zero address is valid.
            let mut peer: libc::sockaddr_un = unsafe { zeroed() };
            let mut length = room;
            // SAFETY: there is that much room.
            let accepted = unsafe {
                libc::accept4(
                    listener.as_raw_fd(),
                    (&raw mut peer).cast(),
                    &raw mut length,
                    libc::SOCK_CLOEXEC,
                )
            };
            drop(owned(accepted));
            notes.push(format!("{length} {}", peer.sun_family));
        }
        client();
    });
}

#[test]
fn success_keeps_errno() {
    differ(true, |notes| {
        let (listener, address): (OwnedFd, SocketAddr) = listener(9);
        let client = companion(move || {
            thread::sleep(pause());
            drop(TcpStream::connect(address).unwrap());
        });
        set_errno(libc::EXDEV);
        let accepted = accept(listener.as_raw_fd(), 0);
        notes.push(format!("{}", errno()));
        drop(owned(accepted));
        client();
    });
}
