//! Fibers that accept leave the listening socket as its users know it, for children that inherit it and for threads that accept
//! from it as well; and they do not block their worker, whoever takes the connections.

use squall_hook as _;
use squall_iomanager::IoManager;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// The flags of its standard input's open file, as a child sees them.
fn flags_in_a_child(listener: &TcpListener) -> u32 {
    let input = OwnedFd::from(listener.try_clone().unwrap());
    let output = Command::new("cat").arg("/proc/self/fdinfo/0").stdin(Stdio::from(input)).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).expect("fdinfo tells the flags");
    u32::from_str_radix(flags.trim(), 8).unwrap()
}

#[test]
fn a_child_finds_no_flag_of_ours() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let before = flags_in_a_child(&listener);
    assert_eq!(before & libc::O_NONBLOCK as u32, 0);
    let manager = IoManager::new(1, false).unwrap();
    let listener = Arc::new(listener);
    let accepting = Arc::clone(&listener);
    let waits = manager.spawn(move || accepting.accept().map(drop));
    let looks = manager.spawn(move || {
        // The other fiber waits by now.
        thread::sleep(Duration::from_millis(20));
        let while_waiting = flags_in_a_child(&listener);
        drop(TcpStream::connect(address).unwrap());
        waits.join().unwrap().unwrap();
        (while_waiting, flags_in_a_child(&listener))
    });
    manager.stop();
    assert_eq!(looks.join().unwrap(), (before, before));
}

/// Connects and waits for the other side to hang up.
fn connect_often(address: SocketAddr, count: usize) {
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn fibers_and_threads_and_duplicates_take_turns() {
    const CLIENTS: usize = 4;
    const CONNECTIONS: usize = 100;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let manager = IoManager::new(2, false).unwrap();
    let accepted = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let accept_until_done = |listener: TcpListener| {
        let (accepted, done) = (Arc::clone(&accepted), Arc::clone(&done));
        move || {
            while !done.load(Ordering::SeqCst) {
                let (stream, _) = listener.accept().unwrap();
                // Before the client, which waits for the end, can be the last one done.
                accepted.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        }
    };
    let mut acceptors = 0;
    let mut threads = Vec::new();
    for _ in 0..2 {
        for _ in 0..5 {
            manager.spawn(accept_until_done(listener.try_clone().unwrap()));
            acceptors += 1;
        }
        threads.push(thread::spawn(accept_until_done(listener.try_clone().unwrap())));
        acceptors += 1;
    }
    // Would stand still with the worker.
    let ticks = Arc::new(AtomicU64::new(0));
    let (ticking, stop) = (Arc::clone(&ticks), Arc::clone(&done));
    manager.spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
            ticking.fetch_add(1, Ordering::SeqCst);
        }
    });
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| thread::spawn(move || connect_often(address, CONNECTIONS))).collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(accepted.load(Ordering::SeqCst), (CLIENTS * CONNECTIONS) as u64);
    let before = ticks.load(Ordering::SeqCst);
    while ticks.load(Ordering::SeqCst) < before + 5 {
        thread::sleep(Duration::from_millis(1));
    }
    done.store(true, Ordering::SeqCst);
    // One connection lets each of them see that it is done.
    let last: Vec<_> = (0..acceptors).map(|_| TcpStream::connect(address).unwrap()).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    manager.stop();
    drop(last);
}

#[test]
fn what_does_not_listen_says_so_at_once() {
    let manager = IoManager::new(1, false).unwrap();
    let fiber = manager.spawn(|| {
        // SAFETY: calls without memory; the descriptors are closed at the end.
        unsafe {
            let stream = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            let datagram = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
            let answers = [stream, datagram].map(|fd| {
                let answer = libc::accept(fd, std::ptr::null_mut(), std::ptr::null_mut());
                (answer, std::io::Error::last_os_error().raw_os_error())
            });
            libc::close(stream);
            libc::close(datagram);
            answers
        }
    });
    manager.stop();
    assert_eq!(fiber.join().unwrap(), [(-1, Some(libc::EINVAL)), (-1, Some(libc::EOPNOTSUPP))]);
}
