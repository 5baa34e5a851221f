//! Unix-domain sockets.

use crate::harness::*;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
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
