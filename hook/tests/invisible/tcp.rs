//! TCP: accepting, receiving, sending, ending.

use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

#[test]
fn accept_waits_for_a_connection() {
    differ(true, |notes| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = companion(move || {
            thread::sleep(pause());
            TcpStream::connect(address).unwrap().write_all(b"x").unwrap();
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        kind(notes, "read_to_string", stream.read_to_string(&mut text));
        notes.push(text);
        client();
    });
}

#[test]
fn read_waits_for_data_and_sees_the_end() {
    differ(true, |notes| {
        let (mut client, mut server) = tcp_pair();
        let writer = companion(move || {
            for piece in [&b"one"[..], b"two", b"three"] {
                thread::sleep(pause());
                client.write_all(piece).unwrap();
            }
        });
        let mut buffer = [0; 3];
        kind(notes, "read_exact", server.read_exact(&mut buffer));
        let mut rest = Vec::new();
        kind(notes, "read_to_end", server.read_to_end(&mut rest));
        notes.push(format!("{buffer:?} {rest:?}"));
        kind(notes, "read after the end", server.read(&mut buffer));
        writer();
    });
}

#[test]
fn a_blocking_write_sends_everything() {
    differ(true, |notes| {
        let (mut client, mut server) = tcp_pair();
        let reader = companion(move || {
            let mut total = 0;
            let mut buffer = vec![0; 64 * 1024];
            while total < 16 << 20 {
                thread::sleep(Duration::from_micros(100));
                total += server.read(&mut buffer).unwrap();
            }
        });
        // One call: the count it returns is the point.
        kind(notes, "write", client.write(&vec![7u8; 16 << 20]));
        reader();
    });
}

#[test]
fn vectored_writes_and_reads_keep_order_across_partial_transfers() {
    differ(true, |notes| {
        let (mut client, mut server) = tcp_pair();
        let pieces: Vec<Vec<u8>> = (0..40u8).map(|n| vec![n; 100_000]).collect();
        let expected: Vec<u8> = pieces.concat();
        let writer = companion(move || {
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            assert_eq!(client.write_vectored(&slices).unwrap(), 4_000_000);
        });
        let mut received = Vec::new();
        loop {
            let (mut a, mut b) = ([0; 1000], [0; 5000]);
            let count =
                server.read_vectored(&mut [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)]).unwrap();
            if count == 0 {
                break;
            }
            received.extend_from_slice(&a[..count.min(1000)]);
            received.extend_from_slice(&b[..count.saturating_sub(1000)]);
            if received.len() % 7 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        notes.push(format!("{} {}", received.len(), received == expected));
        writer();
    });
}

#[test]
fn message_flags_dontwait_peek_and_waitall() {
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let fd = server.as_raw_fd();
        let mut buffer = [0u8; 6];
        let mut receive = |notes: &mut Notes, flags| {
            // SAFETY: the buffer has that length.
            let count = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags) };
            raw_size(notes, "recv", count);
            notes.push(format!("{buffer:?}"));
        };
        receive(notes, libc::MSG_DONTWAIT);
        let writer = companion(move || {
            for piece in [b"ab", b"cd", b"ef"] {
                thread::sleep(pause());
                client.write_all(piece).unwrap();
            }
            thread::sleep(pause());
            client.write_all(b"gh").unwrap();
        });
        receive(notes, libc::MSG_PEEK | libc::MSG_WAITALL);
        receive(notes, libc::MSG_WAITALL);
        // The end comes before the buffer is full: what was received is returned.
        receive(notes, libc::MSG_WAITALL);
        receive(notes, 0);
        writer();
    });
}

#[test]
fn shutdown_wakes_a_reader_with_the_end() {
    differ(true, |notes| {
        let (client, mut server) = tcp_pair();
        let copy = server.try_clone().unwrap();
        let other = companion(move || {
            thread::sleep(pause());
            copy.shutdown(std::net::Shutdown::Read).unwrap();
        });
        kind(notes, "read", server.read(&mut [0; 8]));
        other();
        drop(client);
    });
}

#[test]
fn a_broken_connection_gives_its_error() {
    differ(true, |notes| {
        let (client, mut server) = tcp_pair();
        let closer = companion(move || {
            thread::sleep(pause());
            // Unread data makes the close a reset.
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            // SAFETY: the option takes a linger.
            unsafe {
                libc::setsockopt(
                    client.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const linger).cast(),
                    size_of::<libc::linger>() as u32,
                );
            }
            drop(client);
        });
        kind(notes, "read", server.read(&mut [0; 8]));
        kind(notes, "write", server.write(b"x"));
        closer();
    });
}

#[test]
fn two_thousand_connections_are_served_on_one_worker() {
    let manager = IoManager::new(1, false).unwrap();
    let server = manager.spawn(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        squall_hook::spawn(move || {
            for _ in 0..2000 {
                let (mut stream, _) = listener.accept().unwrap();
                squall_hook::spawn(move || {
                    let mut buffer = [0; 64];
                    loop {
                        match stream.read(&mut buffer).unwrap() {
                            0 => break,
                            count => stream.write_all(&buffer[..count]).unwrap(),
                        }
                    }
                });
            }
        });
        let clients: Vec<_> = (0..2000u32)
            .map(|number| {
                squall_hook::spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    for round in 0..5u32 {
                        let sent = (number + round).to_le_bytes();
                        stream.write_all(&sent).unwrap();
                        let mut received = [0; 4];
                        stream.read_exact(&mut received).unwrap();
                        assert_eq!(sent, received);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    });
    server.join().unwrap();
}
