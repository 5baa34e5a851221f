//! UDP: boundaries, sources, several datagrams at once.

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
