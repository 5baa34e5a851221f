//! Closing, replacing and reusing descriptors that somebody waits for.

use crate::harness::*;
use squall_iomanager::IoManager;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

#[test]
fn closing_wakes_the_fiber_that_waits_with_ebadf() {
    // A plain thread would go on waiting (the kernel does not wake it); a fiber learns of it.
    let manager = IoManager::new(1, false).unwrap();
    let (client, server) = tcp_pair();
    let fd = server.as_raw_fd();
    let reader = manager.spawn(move || {
        let mut byte = 0u8;
        // SAFETY: one live byte.
        let count = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, 0) };
        (count, std::io::Error::last_os_error().raw_os_error())
    });
    manager.spawn(move || {
        thread::sleep(PAUSE);
        drop(server);
    });
    assert_eq!(reader.join().unwrap(), (-1, Some(libc::EBADF)));
    drop(client);
}

#[test]
fn dup2_over_a_live_descriptor_wakes_whoever_waits_for_the_old_one() {
    let manager = IoManager::new(1, false).unwrap();
    let (client, server) = tcp_pair();
    let (mut other_client, other_server) = tcp_pair();
    let fd = server.as_raw_fd();
    let receive = move || {
        let mut byte = 0u8;
        // SAFETY: one live byte.
        let count = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, 0) };
        (count, byte)
    };
    let reader = manager.spawn(receive);
    let replaced = manager.spawn(move || {
        thread::sleep(PAUSE);
        // SAFETY: no memory is involved.
        assert_eq!(unsafe { libc::dup2(other_server.as_raw_fd(), fd) }, fd);
    });
    assert_eq!(reader.join().unwrap().0, -1);
    replaced.join().unwrap();
    // The number now stands for the other connection, and waits on it work.
    let reader = manager.spawn(receive);
    manager.spawn(move || {
        thread::sleep(PAUSE);
        other_client.write_all(b"y").unwrap();
    });
    assert_eq!(reader.join().unwrap(), (1, b'y'));
    drop((client, server));
}

#[test]
fn a_reused_descriptor_number_inherits_nothing() {
    let manager = IoManager::new(1, false).unwrap();
    let fiber = manager.spawn(|| {
        for round in 0..200u8 {
            let (mut client, mut server) = tcp_pair();
            server.set_read_timeout(Some(Duration::from_micros(200))).unwrap();
            assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            drop(server);
            // The number is taken by a pipe now, which has to be found out anew.
            let (mut reader, mut writer) = std::io::pipe().unwrap();
            let other = squall_hook::spawn(move || writer.write_all(&[round]).unwrap());
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], round);
            other.join().unwrap();
            let _ = client.write(b"x");
        }
    });
    fiber.join().unwrap();
}
