//! A read that came back short says that the socket is empty, and the next read waits without trying. Here is everything that
//! could make such a conclusion wrong: data that comes between, the end of the stream, errors, urgent data, others who read the
//! same socket. A wrong conclusion shows as a reader that waits for ever, so each test must only end.

use squall_iomanager::IoManager;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// Small, seeded, and the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

const BYTES: usize = 20_000;

fn byte_at(position: usize) -> u8 {
    (position * 31 % 251) as u8
}

/// Sends `BYTES` bytes in pieces of all sizes, now in one go, now with pauses.
fn send_in_pieces(mut stream: TcpStream, seed: u64) {
    let mut random = Random(seed);
    let mut sent = 0;
    while sent < BYTES {
        let size = (1 + random.below(700) as usize).min(BYTES - sent);
        let piece: Vec<u8> = (sent..sent + size).map(byte_at).collect();
        stream.write_all(&piece).unwrap();
        sent += size;
        match random.below(8) {
            0 => thread::sleep(Duration::from_micros(random.below(300))),
            1..4 => thread::yield_now(),
            _ => {}
        }
    }
}

fn receive_in_pieces(mut stream: TcpStream, seed: u64) {
    let mut random = Random(seed);
    let mut buffer = [0; 1000];
    let mut received = 0;
    loop {
        let size = 1 + random.below(1000) as usize;
        let count = stream.read(&mut buffer[..size]).unwrap();
        if count == 0 {
            break;
        }
        for byte in &buffer[..count] {
            assert_eq!(*byte, byte_at(received));
            received += 1;
        }
        if random.below(4) == 0 {
            thread::yield_now();
        }
    }
    assert_eq!(received, BYTES);
}

#[test]
fn streams_arrive_whole_in_pieces_of_all_sizes() {
    for workers in [1, 2] {
        let manager = IoManager::new(workers, false).unwrap();
        let mut threads = Vec::new();
        for seed in 0..200 {
            let (client, server) = tcp_pair();
            manager.spawn(move || receive_in_pieces(server, seed));
            if seed % 8 == 0 {
                threads.push(thread::spawn(move || send_in_pieces(client, seed)));
            } else {
                manager.spawn(move || send_in_pieces(client, seed));
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        manager.stop();
    }
}

/// Reads until the end, counting.
fn drain(mut stream: TcpStream, total: &AtomicU64) {
    let mut buffer = [0; 300];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => total.fetch_add(count as u64, Ordering::Relaxed),
            Err(error) => panic!("{error}"),
        };
    }
}

#[test]
fn others_read_the_same_socket() {
    let manager = IoManager::new(2, false).unwrap();
    let total = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for seed in 0..20 {
        let (client, server) = tcp_pair();
        // The same number in several fibers, a duplicate in a fiber, and a duplicate in a thread that knows no fibers.
        let shared = Arc::new(server.try_clone().unwrap());
        for _ in 0..3 {
            let (shared, total) = (Arc::clone(&shared), Arc::clone(&total));
            manager.spawn(move || {
                let mut buffer = [0; 300];
                loop {
                    match (&*shared).read(&mut buffer).unwrap() {
                        0 => return,
                        count => total.fetch_add(count as u64, Ordering::Relaxed),
                    };
                }
            });
        }
        let (duplicate, counter) = (server.try_clone().unwrap(), Arc::clone(&total));
        manager.spawn(move || drain(duplicate, &counter));
        let counter = Arc::clone(&total);
        threads.push(thread::spawn(move || drain(server, &counter)));
        manager.spawn(move || send_in_pieces(client, seed));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    manager.stop();
    assert_eq!(total.load(Ordering::Relaxed), 20 * BYTES as u64);
}

/// Lets the reader wait once, so that its socket is registered and events come to it.
fn greet(client: &mut TcpStream, server: &mut TcpStream) {
    let mut buffer = [0; 100];
    let mut writer = client.try_clone().unwrap();
    let greeting = squall_hook::spawn(move || writer.write_all(b"hello").unwrap());
    assert_eq!(server.read(&mut buffer).unwrap(), 5);
    greeting.join().unwrap();
}

fn in_fiber(f: impl FnOnce() + Send + 'static) {
    let manager = IoManager::new(1, false).unwrap();
    let fiber = manager.spawn(f);
    manager.stop();
    fiber.join().unwrap();
}

#[test]
fn an_end_that_came_with_the_last_bytes_is_found() {
    // With and without the reader being told of it before it reads.
    for pause in [Duration::ZERO, Duration::from_millis(5)] {
        in_fiber(move || {
            let (mut client, mut server) = tcp_pair();
            greet(&mut client, &mut server);
            client.write_all(b"bye").unwrap();
            drop(client);
            thread::sleep(pause);
            let mut buffer = [0; 100];
            assert_eq!(server.read(&mut buffer).unwrap(), 3);
            assert_eq!(server.read(&mut buffer).unwrap(), 0);
            assert_eq!(server.read(&mut buffer).unwrap(), 0);
        });
    }
}

#[test]
fn an_end_that_comes_after_a_short_read_is_found() {
    in_fiber(|| {
        let (mut client, mut server) = tcp_pair();
        greet(&mut client, &mut server);
        let closing = squall_hook::spawn(move || drop(client));
        let mut buffer = [0; 100];
        assert_eq!(server.read(&mut buffer).unwrap(), 0);
        closing.join().unwrap();
    });
}

#[test]
fn a_reset_after_a_short_read_is_found() {
    in_fiber(|| {
        let (mut client, mut server) = tcp_pair();
        greet(&mut client, &mut server);
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: the option takes a linger.
        let result = unsafe {
            libc::setsockopt(
                client.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                (&raw const linger).cast(),
                size_of::<libc::linger>() as u32,
            )
        };
        assert_eq!(result, 0);
        let closing = squall_hook::spawn(move || drop(client));
        assert_eq!(server.read(&mut [0; 100]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        closing.join().unwrap();
    });
}

#[test]
fn a_shutdown_of_ones_own_ends_the_wait() {
    in_fiber(|| {
        let (mut client, mut server) = tcp_pair();
        greet(&mut client, &mut server);
        let other = server.try_clone().unwrap();
        let closing = squall_hook::spawn(move || other.shutdown(std::net::Shutdown::Read).unwrap());
        assert_eq!(server.read(&mut [0; 100]).unwrap(), 0);
        closing.join().unwrap();
    });
}

#[test]
fn urgent_data_stops_a_read_with_more_behind_it() {
    for pause in [Duration::ZERO, Duration::from_millis(5)] {
        in_fiber(move || {
            let (mut client, mut server) = tcp_pair();
            greet(&mut client, &mut server);
            client.write_all(b"abc").unwrap();
            // SAFETY: one byte of a literal.
            let sent = unsafe { libc::send(client.as_raw_fd(), c"d".as_ptr().cast(), 1, libc::MSG_OOB) };
            assert_eq!(sent, 1);
            client.write_all(b"efg").unwrap();
            thread::sleep(pause);
            let mut text = Vec::new();
            while text.len() < 6 {
                let mut buffer = [0; 100];
                let count = server.read(&mut buffer).unwrap();
                assert_ne!(count, 0);
                text.extend_from_slice(&buffer[..count]);
            }
            assert_eq!(text, b"abcefg");
        });
    }
}

#[test]
fn a_timeout_and_nonblocking_hold_without_a_try() {
    in_fiber(|| {
        let (mut client, mut server) = tcp_pair();
        greet(&mut client, &mut server);
        server.set_nonblocking(true).unwrap();
        assert_eq!(server.read(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
        server.set_nonblocking(false).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        assert_eq!(server.read(&mut [0; 100]).unwrap_err().kind(), ErrorKind::WouldBlock);
        server.set_read_timeout(None).unwrap();
        client.write_all(b"again").unwrap();
        assert_eq!(server.read(&mut [0; 100]).unwrap(), 5);
    });
}

#[test]
fn a_number_that_is_used_again_starts_afresh() {
    in_fiber(|| {
        for _ in 0..50 {
            let (mut client, mut server) = tcp_pair();
            greet(&mut client, &mut server);
            client.write_all(b"more").unwrap();
            assert_eq!(server.read(&mut [0; 100]).unwrap(), 4);
        }
    });
}
