//! The flags of receiving and sending: what each changes about waiting, and about what is transferred.

use crate::calls::*;
use crate::harness::*;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::thread;

#[test]
fn dontwait_never_waits() {
    differ(false, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let fd = ours.as_raw_fd();
            raw_size(notes, name, recv_with(fd, &mut [0; 5], libc::MSG_DONTWAIT));
            raw_size(notes, name, recvmsg_with(fd, &mut [0; 5], libc::MSG_DONTWAIT).0);
            raw_size(notes, name, recv_with(fd, &mut [0; 5], libc::MSG_DONTWAIT | libc::MSG_WAITALL));
            raw_size(notes, name, recv_with(fd, &mut [0; 5], libc::MSG_DONTWAIT | libc::MSG_PEEK));
            send(theirs.as_raw_fd(), b"abc");
            raw_size(notes, name, recv_with(fd, &mut [0; 5], libc::MSG_DONTWAIT | libc::MSG_WAITALL));
            fill(fd);
            raw_size(notes, name, send_with(fd, b"abc", libc::MSG_DONTWAIT));
            notes.push(format!("{}", getfl(fd) & libc::O_NONBLOCK));
        }
    });
}

/// Sends pieces, a pause before each.
fn piecemeal(theirs: std::os::fd::OwnedFd, pieces: &'static [&'static [u8]]) -> Box<dyn FnOnce()> {
    companion(move || {
        for piece in pieces {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), piece);
        }
        thread::sleep(pause());
    })
}

#[test]
fn waitall_collects_the_pieces() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let sender = piecemeal(theirs, &[b"ab", b"cd", b"efgh"]);
            let mut buffer = [0; 7];
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut buffer, libc::MSG_WAITALL));
            notes.push(format!("{buffer:?}"));
            raw_size(notes, name, recv(ours.as_raw_fd(), &mut buffer));
            sender();
        }
    });
}

#[test]
fn waitall_collects_into_vectors() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let sender = piecemeal(theirs, &[b"a", b"bcd", b"efgh"]);
            let mut buffer = [0; 7];
            let (count, flags) = recvmsg_with(ours.as_raw_fd(), &mut buffer, libc::MSG_WAITALL);
            notes.push(format!("{name}: {count} {flags} {buffer:?}"));
            sender();
        }
    });
}

#[test]
fn waitall_ends_with_the_stream() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let sender = piecemeal(theirs, &[b"ab", b"cd"]);
            for _ in 0..2 {
                raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
            }
            sender();
        }
    });
}

#[test]
fn waitall_ends_with_its_time() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            set_timeout(ours.as_raw_fd(), libc::SO_RCVTIMEO, pause());
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
            send(theirs.as_raw_fd(), b"abc");
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
        }
    });
}

#[test]
fn waitall_ends_with_a_reset_which_the_next_call_tells() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let sender = companion(move || {
            send(theirs.as_raw_fd(), b"abc");
            thread::sleep(pause());
            reset_on_close(theirs.as_raw_fd());
        });
        for _ in 0..3 {
            raw_size(notes, "receive", recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
        }
        sender();
    });
}

#[test]
fn waitall_does_not_wait_on_a_nonblocking_socket() {
    differ(false, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            set_nonblocking(ours.as_raw_fd(), true);
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
            send(theirs.as_raw_fd(), b"abc");
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
        }
    });
}

#[test]
fn waitall_means_nothing_to_datagrams() {
    differ(true, |notes| {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (ours, theirs) = socketpair(kind);
            let sender = piecemeal(theirs, &[b"ab", b"cd"]);
            for _ in 0..2 {
                raw_size(notes, "receive", recv_with(ours.as_raw_fd(), &mut [0; 7], libc::MSG_WAITALL));
            }
            sender();
        }
    });
}

#[test]
fn waitall_shut_down_meanwhile_returns_what_there_is() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let fd = ours.as_raw_fd();
            send(theirs.as_raw_fd(), b"abc");
            let other = companion(move || {
                thread::sleep(pause());
                shutdown(fd, libc::SHUT_RD);
            });
            raw_size(notes, name, recv_with(fd, &mut [0; 7], libc::MSG_WAITALL));
            other();
        }
    });
}

#[test]
fn peek_waits_and_takes_nothing() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let sender = piecemeal(theirs, &[b"abc", b"def"]);
            let fd = ours.as_raw_fd();
            for flags in [libc::MSG_PEEK, libc::MSG_PEEK, libc::MSG_PEEK | libc::MSG_WAITALL, 0] {
                let mut buffer = [0; 5];
                raw_size(notes, name, recv_with(fd, &mut buffer, flags));
                notes.push(format!("{buffer:?}"));
            }
            sender();
        }
    });
}

#[test]
fn peek_with_waitall_ends_with_the_stream() {
    differ(true, |notes| {
        for (name, ours, theirs) in stream_pairs() {
            let sender = piecemeal(theirs, &[b"abc"]);
            let both = libc::MSG_PEEK | libc::MSG_WAITALL;
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 5], both));
            raw_size(notes, name, recv_with(ours.as_raw_fd(), &mut [0; 5], both));
            sender();
        }
    });
}

#[test]
fn peek_at_a_datagram_leaves_it() {
    differ(true, |notes| {
        for kind in [libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
            let (ours, theirs) = socketpair(kind);
            let sender = piecemeal(theirs, &[b"a datagram", b"next"]);
            for flags in [libc::MSG_PEEK, libc::MSG_PEEK | libc::MSG_TRUNC, 0, libc::MSG_TRUNC] {
                raw_size(notes, "receive", recv_with(ours.as_raw_fd(), &mut [0; 3], flags));
            }
            sender();
        }
    });
}

#[test]
fn trunc_tells_the_true_length_of_a_datagram() {
    differ(true, |notes| {
        let ours = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = ours.local_addr().unwrap();
        let sender = companion(move || {
            let theirs = UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..3 {
                thread::sleep(pause() / 2);
                theirs.send_to(b"a datagram", address).unwrap();
            }
        });
        raw_size(notes, "trunc", recv_with(ours.as_raw_fd(), &mut [0; 3], libc::MSG_TRUNC));
        raw_size(notes, "plain", recv_with(ours.as_raw_fd(), &mut [0; 3], 0));
        let (count, flags) = recvmsg_with(ours.as_raw_fd(), &mut [0; 3], 0);
        notes.push(format!("{count} {}", flags & libc::MSG_TRUNC));
        sender();
    });
}

#[test]
fn trunc_throws_a_streams_bytes_away() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let sender = piecemeal(theirs.into(), &[b"abcdef", b"gh"]);
        let mut buffer = [0; 4];
        raw_size(notes, "trunc", recv_with(ours.as_raw_fd(), &mut buffer, libc::MSG_TRUNC));
        notes.push(format!("{buffer:?}"));
        let all = libc::MSG_TRUNC | libc::MSG_WAITALL;
        raw_size(notes, "trunc all", recv_with(ours.as_raw_fd(), &mut buffer, all));
        notes.push(format!("{buffer:?}"));
        sender();
    });
}

#[test]
fn urgent_data_comes_apart() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let fd = ours.as_raw_fd();
        raw_size(notes, "none yet", recv_with(fd, &mut [0; 5], libc::MSG_OOB));
        let sender = companion(move || {
            thread::sleep(pause());
            send(theirs.as_raw_fd(), b"before");
            send_with(theirs.as_raw_fd(), b"!", libc::MSG_OOB);
            send(theirs.as_raw_fd(), b"after");
            thread::sleep(pause());
        });
        let mut entries = [entry(fd, libc::POLLPRI)];
        raw(notes, "poll", poll(&mut entries, -1));
        notes.push(format!("{}", entries[0].revents));
        let mut buffer = [0; 5];
        raw_size(notes, "urgent", recv_with(fd, &mut buffer, libc::MSG_OOB));
        raw_size(notes, "once only", recv_with(fd, &mut buffer, libc::MSG_OOB));
        sender();
        // A read stops where the urgent byte was.
        for _ in 0..2 {
            let mut buffer = [0; 20];
            raw_size(notes, "ordinary", recv(fd, &mut buffer));
            notes.push(String::from_utf8_lossy(&buffer).into_owned());
        }
        raw_size(notes, "the end", recv(fd, &mut buffer));
    });
}

#[test]
fn the_error_queue_never_makes_anybody_wait() {
    differ(false, |notes| {
        let (tcp, _theirs) = tcp_pair();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for fd in [tcp.as_raw_fd(), udp.as_raw_fd()] {
            raw_size(notes, "recv", recv_with(fd, &mut [0; 5], libc::MSG_ERRQUEUE));
            raw_size(notes, "recvmsg", recvmsg_with(fd, &mut [0; 5], libc::MSG_ERRQUEUE).0);
        }
    });
}

#[test]
fn nosignal_still_fails_with_epipe() {
    differ(false, |notes| {
        for (name, ours, _theirs) in stream_pairs() {
            shutdown(ours.as_raw_fd(), libc::SHUT_WR);
            raw_size(notes, name, send_with(ours.as_raw_fd(), b"abc", libc::MSG_NOSIGNAL));
        }
    });
}

#[test]
fn more_holds_back_until_the_next_send() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        let log = Log::default();
        let order = log.clone();
        let receiver = companion(move || {
            let mut buffer = [0; 9];
            let count = recv(theirs.as_raw_fd(), &mut buffer);
            order.note(format!("{count} {buffer:?}"));
        });
        raw_size(notes, "more", send_with(ours.as_raw_fd(), b"abc", libc::MSG_MORE));
        thread::sleep(pause());
        log.note("now");
        raw_size(notes, "done", send(ours.as_raw_fd(), b"def"));
        receiver();
        log.close(notes);
    });
}

#[test]
fn so_rcvlowat_makes_a_receive_wait_for_more() {
    differ(true, |notes| {
        let (ours, theirs) = tcp_pair();
        raw(notes, "set", set_option(ours.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, 4));
        let sender = piecemeal(theirs.into(), &[b"ab", b"cde", b"f"]);
        for _ in 0..3 {
            raw_size(notes, "receive", recv(ours.as_raw_fd(), &mut [0; 9]));
        }
        sender();
    });
}

#[test]
fn impossible_lengths_are_refused() {
    differ(false, |notes| {
        let (ours, theirs) = socketpair(libc::SOCK_STREAM);
        let (reader, writer) = pipe(0);
        raw_size(notes, "data", send(theirs.as_raw_fd(), b"abc"));
        raw_size(notes, "data", write(writer.as_raw_fd(), b"abc"));
        let mut byte = 0u8;
        let at: *mut libc::c_void = (&raw mut byte).cast();
        // SAFETY: the kernel judges the lengths before it touches the memory.
        unsafe {
            for length in [usize::MAX, isize::MAX as usize + 1] {
                raw_size(notes, "write", libc::write(ours.as_raw_fd(), at, length));
                raw_size(notes, "write to a pipe", libc::write(writer.as_raw_fd(), at, length));
                let vectors = [libc::iovec { iov_base: at, iov_len: length }; 2];
                raw_size(notes, "writev", libc::writev(ours.as_raw_fd(), vectors.as_ptr(), 2));
                raw_size(notes, "writev to a pipe", libc::writev(writer.as_raw_fd(), vectors.as_ptr(), 2));
                raw_size(notes, "readv", libc::readv(ours.as_raw_fd(), vectors.as_ptr(), 2));
                raw_size(notes, "readv of a pipe", libc::readv(reader.as_raw_fd(), vectors.as_ptr(), 2));
            }
            let mut message: libc::msghdr = std::mem::zeroed();
            let mut vectors = [libc::iovec { iov_base: at, iov_len: usize::MAX }; 2];
            (message.msg_iov, message.msg_iovlen) = (vectors.as_mut_ptr(), 2);
            raw_size(notes, "sendmsg", libc::sendmsg(ours.as_raw_fd(), &message, 0));
            raw_size(notes, "recvmsg", libc::recvmsg(ours.as_raw_fd(), &mut message, 0));
            message.msg_iovlen = 1025;
            raw_size(notes, "too many vectors", libc::sendmsg(ours.as_raw_fd(), &message, 0));
            raw_size(notes, "too many vectors", libc::recvmsg(ours.as_raw_fd(), &mut message, 0));
            raw_size(notes, "too many", libc::readv(ours.as_raw_fd(), vectors.as_ptr(), 1025));
            raw_size(notes, "a negative count", libc::writev(ours.as_raw_fd(), vectors.as_ptr(), -1));
            raw_size(notes, "no vectors", libc::readv(ours.as_raw_fd(), vectors.as_ptr(), 0));
            raw_size(notes, "no vectors", libc::writev(ours.as_raw_fd(), vectors.as_ptr(), 0));
            raw_size(notes, "null vectors", libc::readv(ours.as_raw_fd(), std::ptr::null(), 2));
            raw_size(notes, "null message", libc::sendmsg(ours.as_raw_fd(), std::ptr::null(), 0));
            raw_size(notes, "null message", libc::recvmsg(ours.as_raw_fd(), std::ptr::null_mut(), 0));
            raw_size(notes, "null buffer", libc::recv(ours.as_raw_fd(), std::ptr::null_mut(), 2, 0));
            raw_size(notes, "null buffer", libc::read(ours.as_raw_fd(), std::ptr::null_mut(), 2));
            raw_size(notes, "null buffer", libc::read(reader.as_raw_fd(), std::ptr::null_mut(), 2));
            raw_size(notes, "null buffer", libc::send(ours.as_raw_fd(), std::ptr::null(), 2, 0));
            raw_size(notes, "null buffer", libc::write(ours.as_raw_fd(), std::ptr::null(), 2));
            raw_size(notes, "null buffer", libc::write(writer.as_raw_fd(), std::ptr::null(), 2));
            raw_size(notes, "null, nothing", libc::write(writer.as_raw_fd(), std::ptr::null(), 0));
        }
        raw_size(notes, "the data is still there", recv(ours.as_raw_fd(), &mut [0; 9]));
        raw_size(notes, "the data is still there", read(reader.as_raw_fd(), &mut [0; 9]));
    });
}
