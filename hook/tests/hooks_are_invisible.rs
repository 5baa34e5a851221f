//! Invariant 7: what a hooked call returns is what the plain call returns.
//!
//! Each case is a function that makes calls and notes what came back. It runs twice: on a plain thread, where the hooks pass
//! through, and in a fiber that shares its only worker with a fiber that counts. The notes must be equal; and where the case
//! waits in the fiber, the counting fiber must have gone on meanwhile, or the wait blocked the thread.

use squall_iomanager::IoManager;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

type Notes = Vec<String>;

/// Runs a case both ways. `waits` says whether it has to wait somewhere.
fn differ(waits: bool, case: fn(&mut Notes)) {
    let mut plain = Notes::new();
    case(&mut plain);

    let manager = IoManager::new(1, false).unwrap();
    let (ticks, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counter, stop) = (Arc::clone(&ticks), Arc::clone(&done));
    manager.spawn(move || {
        while !stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let fiber = manager.spawn(move || {
        let mut notes = Notes::new();
        case(&mut notes);
        done.store(true, Ordering::SeqCst);
        notes
    });
    manager.stop();
    let hooked = fiber.join().expect("the case did not panic in the fiber");
    assert_eq!(plain, hooked, "plain (left) and hooked (right) differ");
    if waits {
        assert!(ticks.load(Ordering::SeqCst) > 1, "the wait blocked the worker");
    }
}

/// Starts a companion: a thread beside a plain case, a fiber beside a hooked one.
fn companion(f: impl FnOnce() + Send + 'static) -> Box<dyn FnOnce()> {
    if squall_fiber::in_fiber() {
        let fiber = squall_hook::spawn(f);
        Box::new(move || fiber.join().unwrap())
    } else {
        let thread = thread::spawn(f);
        Box::new(move || thread.join().unwrap())
    }
}

const PAUSE: Duration = Duration::from_millis(20);

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn raw<T>(notes: &mut Notes, what: &str, result: T)
where
    T: Into<i64>,
{
    let result = result.into();
    let errno = std::io::Error::last_os_error().raw_os_error();
    notes.push(format!("{what}: {result} {:?}", (result < 0).then_some(errno)));
}

fn kind<T: std::fmt::Debug>(notes: &mut Notes, what: &str, result: std::io::Result<T>) {
    notes.push(format!("{what}: {:?}", result.map_err(|error| (error.kind(), error.raw_os_error()))));
}

#[test]
fn accept_waits_for_a_connection() {
    differ(true, |notes| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = companion(move || {
            thread::sleep(PAUSE);
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
                thread::sleep(PAUSE);
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
fn a_read_timeout_ends_with_eagain() {
    differ(true, |notes| {
        let (_client, mut server) = tcp_pair();
        server.set_read_timeout(Some(PAUSE)).unwrap();
        kind(notes, "read", server.read(&mut [0; 8]));
        notes.push(format!("{:?}", server.read_timeout().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        set_timeout(listener.as_raw_fd(), libc::SO_RCVTIMEO, PAUSE);
        kind(notes, "accept", listener.accept().map(|_| ()));
    });
}

fn set_timeout(fd: RawFd, option: libc::c_int, timeout: Duration) {
    let value = libc::timeval { tv_sec: 0, tv_usec: timeout.as_micros() as i64 };
    // SAFETY: the option takes a timeval.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            (&raw const value).cast(),
            size_of::<libc::timeval>() as u32,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn a_write_timeout_returns_the_partial_count_and_then_eagain() {
    differ(true, |notes| {
        let (mut client, _server) = tcp_pair();
        client.set_write_timeout(Some(PAUSE)).unwrap();
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
            thread::sleep(PAUSE);
            client.write_all(b"a").unwrap();
            thread::sleep(PAUSE * 20);
        });
        kind(notes, "waits for ever", server.read(&mut [0; 8]));
        copy.set_read_timeout(Some(PAUSE)).unwrap();
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
        set_timeout(listener.as_raw_fd(), libc::SO_RCVTIMEO, PAUSE);
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
    thread::sleep(PAUSE);
    drop(TcpStream::connect(address).unwrap());
    assert_eq!(thread.join().unwrap(), Ok(()));
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
            raw(notes, "recv", count as i64);
            notes.push(format!("{buffer:?}"));
        };
        receive(notes, libc::MSG_DONTWAIT);
        let writer = companion(move || {
            for piece in [b"ab", b"cd", b"ef"] {
                thread::sleep(PAUSE);
                client.write_all(piece).unwrap();
            }
            thread::sleep(PAUSE);
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
fn udp_datagrams_keep_their_boundaries_and_sources() {
    differ(true, |notes| {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (to, from) = (b.local_addr().unwrap(), a.local_addr().unwrap());
        let sender = companion(move || {
            thread::sleep(PAUSE);
            for datagram in [&b"first"[..], b"", b"a longer one"] {
                a.send_to(datagram, to).unwrap();
            }
        });
        for _ in 0..3 {
            let mut buffer = [0; 8];
            let (count, source) = b.recv_from(&mut buffer).unwrap();
            notes.push(format!("{count} {} {buffer:?}", source == from));
        }
        b.set_read_timeout(Some(PAUSE)).unwrap();
        kind(notes, "recv", b.recv(&mut [0; 8]));
        sender();
    });
}

#[test]
fn unix_sockets_connect_accept_and_wait() {
    differ(true, |notes| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = companion(move || {
            let mut stream = UnixStream::connect(&path).unwrap();
            thread::sleep(PAUSE);
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
            thread::sleep(PAUSE);
            let one = listener.accept().unwrap();
            let two = listener.accept().unwrap();
            drop((one, two));
        });
        kind(notes, "second connect", UnixStream::connect(&path).map(|_| ()));
        acceptor();
        drop(first);
    });
}

#[test]
fn connect_is_refused_or_times_out_as_ever() {
    differ(false, |notes| {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        kind(notes, "refused", TcpStream::connect(address).map(|_| ()));
        kind(notes, "refused with a timeout", TcpStream::connect_timeout(&address, PAUSE).map(|_| ()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        kind(
            notes,
            "accepted",
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(|mut stream| {
                stream.set_read_timeout(Some(PAUSE)).unwrap();
                stream.read(&mut [0]).map_err(|error| error.kind())
            }),
        );
    });
}

#[test]
fn pipes_block_a_reader_and_a_writer_and_end() {
    differ(true, |notes| {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let other = companion(move || {
            thread::sleep(PAUSE);
            // More than the pipe holds: waits for the reader.
            writer.write_all(&vec![3; 300_000]).unwrap();
        });
        let mut buffer = vec![0; 1000];
        kind(notes, "first read", reader.read(&mut buffer));
        thread::sleep(PAUSE);
        let mut rest = Vec::new();
        kind(notes, "the rest", reader.read_to_end(&mut rest));
        // SAFETY: F_GETFL takes no argument.
        raw(notes, "flags", unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_GETFL) });
        other();
    });
}

#[test]
fn eventfds_block_until_written() {
    differ(true, |notes| {
        // SAFETY: no memory is involved; the descriptor is new.
        let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, 0)) };
        let fd = event.as_raw_fd();
        let writer = companion(move || {
            thread::sleep(PAUSE);
            let value = 5u64;
            // SAFETY: eight live bytes.
            assert_eq!(unsafe { libc::write(fd, (&raw const value).cast(), 8) }, 8);
        });
        let mut value = 0u64;
        // SAFETY: eight live bytes.
        raw(notes, "read", unsafe { libc::read(fd, (&raw mut value).cast(), 8) } as i64);
        notes.push(format!("{value}"));
        writer();
    });
}

fn poll(entries: &mut [libc::pollfd], timeout_ms: i32) -> i32 {
    // SAFETY: the entries are a live slice.
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, timeout_ms) }
}

fn entry(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

#[test]
fn poll_waits_reports_and_times_out() {
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let (reader, writer_end) = std::io::pipe().unwrap();
        let mut entries =
            [entry(server.as_raw_fd(), libc::POLLIN), entry(reader.as_raw_fd(), libc::POLLIN), entry(-1, 7)];
        raw(notes, "nothing", poll(&mut entries, 20));
        let writer = companion(move || {
            thread::sleep(PAUSE);
            client.write_all(b"x").unwrap();
            thread::sleep(PAUSE);
            drop(writer_end);
            thread::sleep(PAUSE);
            drop(client);
        });
        raw(notes, "data", poll(&mut entries, -1));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
        raw(notes, "hang-up of a pipe", poll(&mut entries[1..], 5000));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
        writer();
        raw(notes, "a pause", poll(&mut [], 20));
    });
}

#[test]
fn poll_knows_files_devices_and_bad_descriptors() {
    differ(false, |notes| {
        let file = tempfile::tempfile().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut entries = [
            entry(file.as_raw_fd(), libc::POLLIN | libc::POLLOUT),
            entry(null.as_raw_fd(), libc::POLLIN),
            entry(999_999, libc::POLLIN),
        ];
        raw(notes, "poll", poll(&mut entries, -1));
        notes.push(format!("{:?}", entries.map(|entry| entry.revents)));
    });
}

#[test]
fn shutdown_wakes_a_reader_with_the_end() {
    differ(true, |notes| {
        let (client, mut server) = tcp_pair();
        let copy = server.try_clone().unwrap();
        let other = companion(move || {
            thread::sleep(PAUSE);
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
            thread::sleep(PAUSE);
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
fn files_are_read_written_and_synced() {
    differ(false, |notes| {
        let mut file = tempfile::tempfile().unwrap();
        kind(notes, "write", file.write(b"some bytes"));
        kind(notes, "sync_data", file.sync_data());
        kind(notes, "sync_all", file.sync_all());
        kind(notes, "metadata", file.metadata().map(|metadata| metadata.len()));
        let (reader, _writer) = std::io::pipe().unwrap();
        // SAFETY: no memory is involved.
        raw(notes, "fsync of a pipe", unsafe { libc::fsync(reader.as_raw_fd()) });
    });
}

#[test]
fn sleeps_judge_their_arguments() {
    differ(true, |notes| {
        let bad = libc::timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
        let negative = libc::timespec { tv_sec: -1, tv_nsec: 0 };
        let short = libc::timespec { tv_sec: 0, tv_nsec: 3_000_000 };
        let past = libc::timespec { tv_sec: 1, tv_nsec: 0 };
        let null = std::ptr::null_mut();
        // SAFETY: the timespecs are live.
        unsafe {
            raw(notes, "bad", libc::nanosleep(&bad, null));
            raw(notes, "negative", libc::nanosleep(&negative, null));
            raw(notes, "short", libc::nanosleep(&short, null));
            raw(notes, "clock bad", libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &bad, null));
            raw(
                notes,
                "absolute past",
                libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &past, null),
            );
            raw(notes, "usleep", libc::usleep(2000));
        }
    });
}

#[test]
fn names_resolve() {
    differ(false, |notes| {
        notes.push(format!("{:?}", ("127.0.0.1", 80).to_socket_addrs().unwrap().collect::<Vec<_>>()));
        let local = ("localhost", 80).to_socket_addrs().unwrap().all(|address| address.ip().is_loopback());
        notes.push(format!("{local}"));
    });
}

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

#[test]
fn standard_streams_are_left_alone() {
    differ(false, |notes| {
        for fd in 0..3 {
            // SAFETY: F_GETFL takes no argument.
            let before = unsafe { libc::fcntl(fd, libc::F_GETFL) };
            std::io::stderr().write_all(b"").unwrap();
            // SAFETY: as above.
            notes.push(format!("{}", before == unsafe { libc::fcntl(fd, libc::F_GETFL) }));
        }
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

#[test]
fn epoll_waits_reports_and_times_out() {
    differ(true, |notes| {
        let (mut client, mut server) = tcp_pair();
        // SAFETY: no memory is involved; the descriptor is new.
        let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
        let mut interest = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 77 };
        // SAFETY: one live event.
        unsafe {
            libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, server.as_raw_fd(), &mut interest);
        }
        let wait = |notes: &mut Notes, capacity: i32, timeout_ms| {
            let mut events = [libc::epoll_event { events: 0, u64: 0 }; 4];
            // SAFETY: room for four events, and the capacity is at most that.
            let count =
                unsafe { libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), capacity, timeout_ms) };
            raw(notes, "epoll_wait", count);
            let (bits, data) = (events[0].events, events[0].u64);
            notes.push(format!("{bits} {data}"));
        };
        wait(notes, 4, 20);
        wait(notes, 0, 20);
        let writer = companion(move || {
            thread::sleep(PAUSE);
            client.write_all(b"x").unwrap();
            thread::sleep(PAUSE * 2);
            client.write_all(b"y").unwrap();
            thread::sleep(PAUSE * 2);
        });
        wait(notes, 4, -1);
        // Level-triggered: what was not read is reported again, at once.
        wait(notes, 4, -1);
        server.read_exact(&mut [0]).unwrap();
        wait(notes, 4, 5000);
        server.read_exact(&mut [0]).unwrap();
        wait(notes, 4, 5000);
        kind(notes, "the end", server.read(&mut [0]));
        writer();
        // SAFETY: one live event; a bad descriptor is an error.
        raw(notes, "bad", unsafe { libc::epoll_wait(999_999, &mut interest, 1, 5) });
    });
}

#[test]
fn select_waits_reports_and_times_out() {
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let (idle, _idle_writer) = std::io::pipe().unwrap();
        let select = |notes: &mut Notes, fds: &[RawFd], timeout_ms: Option<i64>| {
            // SAFETY: the sets are live, and the descriptors below FD_SETSIZE.
            unsafe {
                let mut read: libc::fd_set = std::mem::zeroed();
                fds.iter().for_each(|fd| libc::FD_SET(*fd, &mut read));
                let mut time =
                    timeout_ms.map(|ms| libc::timeval { tv_sec: ms / 1000, tv_usec: ms % 1000 * 1000 });
                let time = time.as_mut().map_or(std::ptr::null_mut(), |time| time as *mut _);
                let (none, limit) = (std::ptr::null_mut(), fds.iter().max().unwrap() + 1);
                raw(notes, "select", libc::select(limit, &mut read, none, none, time));
                notes.push(format!(
                    "{:?}",
                    fds.iter().map(|fd| libc::FD_ISSET(*fd, &read)).collect::<Vec<_>>()
                ));
            }
        };
        let fds = [server.as_raw_fd(), idle.as_raw_fd()];
        select(notes, &fds, Some(20));
        let writer = companion(move || {
            thread::sleep(PAUSE);
            client.write_all(b"x").unwrap();
            thread::sleep(PAUSE);
        });
        select(notes, &fds, None);
        writer();
    });
}

#[test]
fn sendfile_sends_all_that_is_there() {
    differ(true, |notes| {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let (client, mut server) = tcp_pair();
        let reader = companion(move || {
            let mut received = Vec::new();
            let mut buffer = vec![0; 100_000];
            loop {
                thread::sleep(Duration::from_micros(200));
                match server.read(&mut buffer).unwrap() {
                    0 => break,
                    count => received.extend_from_slice(&buffer[..count]),
                }
            }
            assert_eq!(received.len(), 3_999_000 + 1000);
            assert!(received[..3_999_000] == content[1000..] && received[3_999_000..] == content[..1000]);
        });
        let mut offset = 1000i64;
        let send = |offset: &mut i64, count| {
            // SAFETY: the offset is live.
            unsafe { libc::sendfile(client.as_raw_fd(), file.as_raw_fd(), offset, count) }
        };
        raw(notes, "to the end", send(&mut offset, 5_000_000) as i64);
        notes.push(format!("{offset}"));
        raw(notes, "at the end", send(&mut offset, 10) as i64);
        let mut offset = 0;
        raw(notes, "the start", send(&mut offset, 1000) as i64);
        drop(client);
        reader();
    });
}

#[test]
fn several_datagrams_in_one_call() {
    differ(true, |notes| {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        a.connect(b.local_addr().unwrap()).unwrap();
        let sender = companion(move || {
            thread::sleep(PAUSE);
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
        b.set_read_timeout(Some(PAUSE)).unwrap();
        receive(notes, 4, 0);
        sender();
        notes.push(format!("{buffers:?}"));
    });
}

fn messages(vectors: &mut [libc::iovec]) -> Vec<libc::mmsghdr> {
    vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: an all-zero message is valid.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect()
}

#[test]
fn the_other_names_of_calls_wait_like_the_calls() {
    unsafe extern "C" {
        fn __read(fd: libc::c_int, buffer: *mut libc::c_void, length: usize) -> isize;
        fn __read_chk(fd: libc::c_int, buffer: *mut libc::c_void, length: usize, room: usize) -> isize;
        fn __recv_chk(
            fd: libc::c_int,
            buffer: *mut libc::c_void,
            length: usize,
            room: usize,
            flags: libc::c_int,
        ) -> isize;
        fn __poll(entries: *mut libc::pollfd, count: libc::nfds_t, timeout_ms: libc::c_int) -> libc::c_int;
    }
    differ(true, |notes| {
        let (mut client, server) = tcp_pair();
        let fd = server.as_raw_fd();
        let writer = companion(move || {
            for _ in 0..4 {
                thread::sleep(PAUSE);
                client.write_all(b"x").unwrap();
            }
        });
        let mut byte = 0u8;
        let at = (&raw mut byte).cast();
        // SAFETY: one live byte, one live entry.
        unsafe {
            raw(notes, "__read", __read(fd, at, 1) as i64);
            raw(notes, "__read_chk", __read_chk(fd, at, 1, 1) as i64);
            raw(notes, "__recv_chk", __recv_chk(fd, at, 1, 1, 0) as i64);
            raw(notes, "__poll", __poll(&mut entry(fd, libc::POLLIN), 1, -1));
        }
        writer();
    });
}
