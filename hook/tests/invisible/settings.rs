//! SO_RCVTIMEO, SO_SNDTIMEO and O_NONBLOCK, as the user set them and through duplicates.

use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;

#[test]
fn a_read_timeout_ends_with_eagain() {
    differ(true, |notes| {
        let (_client, mut server) = tcp_pair();
        server.set_read_timeout(Some(pause())).unwrap();
        kind(notes, "read", server.read(&mut [0; 8]));
        notes.push(format!("{:?}", server.read_timeout().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_timeout(listener.as_raw_fd(), libc::SO_RCVTIMEO, pause());
        kind(notes, "accept", listener.accept().map(|_| ()));
    });
}

#[test]
fn a_write_timeout_returns_the_partial_count_and_then_eagain() {
    differ(true, |notes| {
        let (mut client, _server) = tcp_pair();
        client.set_write_timeout(Some(pause())).unwrap();
        let data = vec![0u8; 32 << 20];
        let first = client.write(&data).unwrap();
        notes.push(format!("partial: {}", first > 0 && first < data.len()));
        // What is left of the window may take a little more first.
        let error = loop {
            if let Err(error) = client.write(&data) {
                break error;
            }
        };
        notes.push(format!("{:?} {:?}", error.kind(), error.raw_os_error()));
    });
}

#[test]
fn o_nonblock_as_the_user_set_it_is_honoured_also_through_a_duplicate() {
    differ(false, |notes| {
        let (_client, mut server) = tcp_pair();
        let copy = server.try_clone().unwrap();
        copy.set_nonblocking(true).unwrap();
        kind(notes, "read", server.read(&mut [0; 8]));
        // SAFETY: F_GETFL takes no argument.
        let flags = unsafe { libc::fcntl(server.as_raw_fd(), libc::F_GETFL) };
        notes.push(format!("{}", (flags & libc::O_NONBLOCK) != 0));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        kind(notes, "accept", listener.accept().map(|_| ()));
    });
}

#[test]
fn settings_that_change_between_two_waits_are_noticed_also_through_a_duplicate() {
    differ(true, |notes| {
        let (mut client, mut server) = tcp_pair();
        let copy = server.try_clone().unwrap();
        let writer = companion(move || {
            thread::sleep(pause());
            client.write_all(b"a").unwrap();
            thread::sleep(pause() * 20);
        });
        kind(notes, "waits for ever", server.read(&mut [0; 8]));
        copy.set_read_timeout(Some(pause())).unwrap();
        kind(notes, "times out", server.read(&mut [0; 8]));
        copy.set_nonblocking(true).unwrap();
        kind(notes, "does not wait", server.read(&mut [0; 8]));
        copy.set_nonblocking(false).unwrap();
        copy.set_read_timeout(None).unwrap();
        kind(notes, "waits for ever again", server.read(&mut [0; 8]));
        writer();
    });
}

#[test]
fn a_listener_that_was_waited_on_does_not_show_o_nonblock() {
    differ(true, |notes| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_timeout(listener.as_raw_fd(), libc::SO_RCVTIMEO, pause());
        kind(notes, "accept", listener.accept().map(|_| ()));
        let copy = listener.try_clone().unwrap();
        let flags = |fd| {
            // SAFETY: F_GETFL takes no argument.
            unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK }
        };
        notes.push(format!("{} {}", flags(listener.as_raw_fd()), flags(copy.as_raw_fd())));
        kind(notes, "accept on the copy", copy.accept().map(|_| ()));
        copy.set_nonblocking(true).unwrap();
        notes.push(format!("{}", flags(listener.as_raw_fd()) != 0));
        kind(notes, "accept on the original", listener.accept().map(|_| ()));
        listener.set_nonblocking(false).unwrap();
        notes.push(format!("{}", flags(copy.as_raw_fd()) != 0));
        kind(notes, "accept on the copy again", copy.accept().map(|_| ()));
    });
}

#[test]
fn an_accept_from_a_plain_thread_still_blocks_after_a_fiber_waited() {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    let manager = IoManager::new(1, false).unwrap();
    let in_fiber = Arc::clone(&listener);
    let fiber = manager.spawn(move || in_fiber.accept().map(|_| ()).unwrap());
    drop(TcpStream::connect(address).unwrap());
    fiber.join().unwrap();
    let thread = thread::spawn(move || listener.accept().map(|_| ()).map_err(|error| error.kind()));
    thread::sleep(pause());
    drop(TcpStream::connect(address).unwrap());
    assert_eq!(thread.join().unwrap(), Ok(()));
}
