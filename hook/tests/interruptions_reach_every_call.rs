//! Cancellation and deadlines end hooked calls: each with the error it should, at the right moment, and without a trace.
//!
//! Method: every call that can wait for ever is made in a fiber of its own, in both kinds of fiber, and interrupted in four ways:
//! while it waits, before it begins, by a deadline that passes, and by one that has passed already.

use squall_fiber::{Builder, JoinHandle, Tls, WaitKind, shield, with_current, with_deadline};
use squall_hook as _;
use squall_iomanager::IoManager;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(5);

/// Runs the test's body in a fiber, on a manager with two workers.
fn in_fiber(body: impl FnOnce() + Send + 'static) {
    let manager = IoManager::new(2, false).unwrap();
    let fiber = manager.spawn(body);
    fiber.join().unwrap();
    manager.stop();
}

fn waits_for(id: u64) -> WaitKind {
    squall_fiber::fibers().iter().find(|fiber| fiber.id == id).map_or(WaitKind::None, |fiber| fiber.waits_for)
}

/// Returns once the fiber waits.
fn until_waiting<T>(fiber: &JoinHandle<T>) {
    while waits_for(fiber.fiber().id()) == WaitKind::None {
        assert!(!fiber.is_finished(), "it did not wait");
        squall_fiber::sleep(Duration::from_micros(200));
    }
}

fn cancel_myself() {
    squall_fiber::current().unwrap().cancel();
}

/// -1 with errno, as C says it.
fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// `make` prepares what a call needs and returns the call, which waits for ever.
fn is_interrupted_in_every_way<C>(make: impl Fn() -> C)
where
    C: FnOnce() -> io::Result<usize> + Send + 'static,
{
    for tls in [Tls::Private, Tls::Shared] {
        let spawn = |f: Box<dyn FnOnce() -> io::Result<usize> + Send>| {
            Builder::new().tls(tls).spawn(move || f().map_err(|error| error.raw_os_error()))
        };

        let call = make();
        let waiting = spawn(Box::new(call));
        until_waiting(&waiting);
        waiting.cancel();
        assert_eq!(waiting.join().unwrap(), Err(Some(libc::ECANCELED)), "while it waits, {tls:?}");

        let call = make();
        let cancelled_before = spawn(Box::new(move || {
            cancel_myself();
            call()
        }));
        assert_eq!(cancelled_before.join().unwrap(), Err(Some(libc::ECANCELED)), "before it begins, {tls:?}");

        for limit in [SHORT, Duration::ZERO] {
            let call = make();
            let late = spawn(Box::new(move || with_deadline(limit, call)));
            assert_eq!(late.join().unwrap(), Err(Some(libc::ETIMEDOUT)), "deadline after {limit:?}, {tls:?}");
        }
    }
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Fills what is written to until no byte more goes in.
fn fill(fd: RawFd) {
    let bytes = [0u8; 1 << 16];
    // SAFETY: plain calls on the caller's descriptor.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
        while libc::write(fd, bytes.as_ptr().cast(), bytes.len()) > 0 {}
        while libc::write(fd, bytes.as_ptr().cast(), 1) > 0 {}
        libc::fcntl(fd, libc::F_SETFL, flags);
    }
}

#[test]
fn read_and_its_family() {
    in_fiber(|| {
        is_interrupted_in_every_way(|| {
            let (mut mine, theirs) = tcp_pair();
            move || {
                let _open = theirs;
                mine.read(&mut [0; 8])
            }
        });
        is_interrupted_in_every_way(|| {
            let (mut reader, writer): (PipeReader, PipeWriter) = io::pipe().unwrap();
            move || {
                let _open = writer;
                reader.read(&mut [0; 8])
            }
        });
        is_interrupted_in_every_way(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            move || socket.recv_from(&mut [0; 8]).map(|(count, _)| count)
        });
        is_interrupted_in_every_way(|| {
            let (mine, theirs) = UnixStream::pair().unwrap();
            move || {
                let _open = theirs;
                let mut message: libc::msghdr =
                    // SAFETY: an all-zero message is an empty one.
                    unsafe { core::mem::zeroed() };
                let mut bytes = [0u8; 8];
                let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 8 };
                (message.msg_iov, message.msg_iovlen) = (&mut vector, 1);
                // SAFETY: the message and what it points to are live.
                check(unsafe { libc::recvmsg(mine.as_raw_fd(), &mut message, 0) })
            }
        });
        is_interrupted_in_every_way(|| {
            // SAFETY: no memory is involved; the descriptor is new.
            let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
            move || File::from(event).read(&mut [0; 8])
        });
    });
}

#[test]
fn write_and_its_family() {
    in_fiber(|| {
        is_interrupted_in_every_way(|| {
            let (mut mine, theirs) = tcp_pair();
            fill(mine.as_raw_fd());
            move || {
                let _open = theirs;
                mine.write(&[0; 1 << 20])
            }
        });
        is_interrupted_in_every_way(|| {
            let (reader, mut writer) = io::pipe().unwrap();
            fill(writer.as_raw_fd());
            move || {
                let _open = reader;
                writer.write(&[0; 8])
            }
        });
        is_interrupted_in_every_way(|| {
            let (mine, theirs) = UnixStream::pair().unwrap();
            fill(mine.as_raw_fd());
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[0; 100]).unwrap();
            move || {
                let _open = theirs;
                let mut offset = 0;
                // SAFETY: the offset is live.
                check(unsafe { libc::sendfile(mine.as_raw_fd(), file.as_raw_fd(), &mut offset, 100) })
            }
        });
    });
}

#[test]
fn accept_and_connect() {
    in_fiber(|| {
        is_interrupted_in_every_way(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            move || listener.accept().map(|_| 0)
        });
        is_interrupted_in_every_way(|| {
            // A listener whose queue is full drops what comes after.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
            let address = listener.local_addr().unwrap();
            let filling = TcpStream::connect(address).unwrap();
            move || {
                let _open = (listener, filling);
                TcpStream::connect(address).map(|_| 0)
            }
        });
    });
}

#[test]
fn multiplexers() {
    in_fiber(|| {
        is_interrupted_in_every_way(|| {
            let (mine, theirs) = tcp_pair();
            move || {
                let _open = theirs;
                let mut entry = libc::pollfd { fd: mine.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one live entry.
                check(unsafe { libc::poll(&mut entry, 1, -1) } as isize)
            }
        });
        is_interrupted_in_every_way(|| {
            let (mine, theirs) = tcp_pair();
            move || {
                let _open = theirs;
                // SAFETY: a set of one descriptor, and a live timeout.
                unsafe {
                    let mut set: libc::fd_set = core::mem::zeroed();
                    libc::FD_SET(mine.as_raw_fd(), &mut set);
                    let mut timeout = libc::timeval { tv_sec: 3600, tv_usec: 0 };
                    let none = core::ptr::null_mut();
                    check(libc::select(mine.as_raw_fd() + 1, &mut set, none, none, &mut timeout) as isize)
                }
            }
        });
        is_interrupted_in_every_way(|| {
            // SAFETY: no memory is involved; the descriptor is new.
            let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
            move || {
                let mut event = libc::epoll_event { events: 0, u64: 0 };
                // SAFETY: room for one event.
                check(unsafe { libc::epoll_wait(epoll.as_raw_fd(), &mut event, 1, 3_600_000) } as isize)
            }
        });
    });
}

#[test]
fn locks_on_files_and_transfers() {
    in_fiber(|| {
        is_interrupted_in_every_way(|| {
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let (ours, theirs) = (File::open(&path).unwrap(), File::open(&path).unwrap());
            theirs.lock().unwrap();
            move || {
                let _held = theirs;
                ours.lock().map(|()| 0)
            }
        });
        is_interrupted_in_every_way(|| {
            let (from, to) = (io::pipe().unwrap(), io::pipe().unwrap());
            move || {
                let (input, output) = (from.0.as_raw_fd(), to.1.as_raw_fd());
                let (none, still_none) = (core::ptr::null_mut(), core::ptr::null_mut());
                // SAFETY: no offsets.
                let result = check(unsafe { libc::splice(input, none, output, still_none, 10, 0) });
                drop((from, to));
                result
            }
        });
        is_interrupted_in_every_way(|| {
            let (reader, writer) = io::pipe().unwrap();
            fill(writer.as_raw_fd());
            move || {
                let _open = reader;
                let vector = libc::iovec { iov_base: b"abc".as_ptr().cast_mut().cast(), iov_len: 3 };
                // SAFETY: one live vector, which is only read.
                check(unsafe { libc::vmsplice(writer.as_raw_fd(), &vector, 1, 0) })
            }
        });
    });
}

#[test]
fn queues() {
    in_fiber(|| {
        // Nothing tells of room in the queue of a receiver that the sender is not connected to.
        is_interrupted_in_every_way(|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let (receiver, sender) = (UnixDatagram::bind(&path).unwrap(), UnixDatagram::unbound().unwrap());
            sender.set_nonblocking(true).unwrap();
            while sender.send_to(b"x", &path).is_ok() {}
            sender.set_nonblocking(false).unwrap();
            move || {
                let _open = (receiver, &directory);
                sender.send_to(b"x", &path)
            }
        });
        for is_full in [false, true] {
            is_interrupted_in_every_way(move || {
                let queue = message_queue();
                let fd = queue.as_raw_fd();
                // SAFETY: one live byte, room for one.
                move || unsafe {
                    let _open = queue;
                    if is_full {
                        assert_eq!(libc::mq_send(fd, b"x".as_ptr().cast(), 1, 0), 0);
                        check(libc::mq_send(fd, b"x".as_ptr().cast(), 1, 0) as isize)
                    } else {
                        check(libc::mq_receive(fd, [0u8; 1].as_mut_ptr().cast(), 1, core::ptr::null_mut()))
                    }
                }
            });
        }
    });
}

/// A POSIX queue for one message of one byte, without a name any more.
fn message_queue() -> OwnedFd {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = CString::new(format!("/squall-interrupted-{}-{number}", std::process::id())).unwrap();
    // SAFETY: a C string, live attributes, and a descriptor that was just made.
    unsafe {
        let mut attributes: libc::mq_attr = core::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (1, 1);
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
        let fd = libc::mq_open(name.as_ptr(), flags, 0o600 as libc::mode_t, &raw mut attributes);
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        libc::mq_unlink(name.as_ptr());
        OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn waits_for_signals_and_with_signal_masks() {
    in_fiber(|| {
        let usr2 = || {
            // SAFETY: a set that is filled here.
            unsafe {
                let mut set = core::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, libc::SIGUSR2);
                set
            }
        };
        is_interrupted_in_every_way(|| {
            // SAFETY: a live set; no information is asked for.
            move || check(unsafe { libc::sigwaitinfo(&usr2(), core::ptr::null_mut()) } as isize)
        });
        is_interrupted_in_every_way(|| {
            let (reader, writer) = io::pipe().unwrap();
            move || {
                let _open = writer;
                let mut entry = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one live entry, a live mask.
                check(unsafe { libc::ppoll(&mut entry, 1, core::ptr::null(), &usr2()) } as isize)
            }
        });
    });
}

#[test]
fn what_is_ready_is_returned_although_the_fiber_is_cancelled() {
    in_fiber(|| {
        let (mut mine, mut theirs) = tcp_pair();
        theirs.write_all(b"abc").unwrap();
        let fiber = squall_fiber::spawn(move || {
            // Until it is there, before the cancellation.
            mine.peek(&mut [0; 3]).unwrap();
            cancel_myself();
            let mut bytes = [0; 8];
            let count = mine.read(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"abc");
            mine.write_all(b"and back").unwrap();
            mine.read(&mut bytes).unwrap_err().raw_os_error()
        });
        assert_eq!(fiber.join().unwrap(), Some(libc::ECANCELED));
        let mut answer = [0; 8];
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"and back");
    });
}

#[test]
fn a_transfer_that_has_begun_returns_its_count_and_then_the_error() {
    in_fiber(|| {
        let (mine, theirs) = tcp_pair();
        let writing = squall_fiber::spawn(move || {
            let bytes = vec![7; 64 << 20];
            let first = (&mine).write(&bytes).unwrap();
            assert!(0 < first && first < bytes.len());
            let mut count = first;
            // The peer has begun to read: there may be room for some more.
            let error = loop {
                match (&mine).write(&bytes) {
                    Ok(more) => count += more,
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
            mine.shutdown(Shutdown::Write).unwrap();
            count
        });
        until_waiting(&writing);
        writing.cancel();
        let mut received = Vec::new();
        let count = (&theirs).read_to_end(&mut received).unwrap();
        assert_eq!(writing.join().unwrap(), count);

        let (mine, mut theirs) = tcp_pair();
        let reading = squall_fiber::spawn(move || {
            let mut bytes = [0u8; 10];
            let mut receive = || {
                let start = bytes.as_mut_ptr().cast();
                // SAFETY: room for ten bytes.
                check(unsafe { libc::recv(mine.as_raw_fd(), start, 10, libc::MSG_WAITALL) })
            };
            let first = receive().unwrap();
            (first, receive().unwrap_err().raw_os_error())
        });
        theirs.write_all(b"four").unwrap();
        until_waiting(&reading);
        // What it has read decides: it may have begun to wait before the bytes were there.
        squall_fiber::sleep(10 * SHORT);
        reading.cancel();
        assert_eq!(reading.join().unwrap(), (4, Some(libc::ECANCELED)));
    });
}

#[test]
fn question_marks_unwind_and_a_shield_lets_the_goodbye_through() {
    struct Goodbye(TcpStream);
    impl Drop for Goodbye {
        fn drop(&mut self) {
            shield(|| {
                self.0.write_all(b"goodbye?").unwrap();
                let mut answer = [0; 8];
                self.0.read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"goodbye!");
            });
        }
    }

    fn serve(connection: TcpStream) -> io::Result<()> {
        let mut connection = Goodbye(connection);
        let mut request = [0; 4];
        loop {
            connection.0.read_exact(&mut request)?;
            connection.0.write_all(&request)?;
        }
    }

    in_fiber(|| {
        let (mine, mut theirs) = tcp_pair();
        let serving = squall_fiber::spawn(move || serve(mine));
        theirs.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        theirs.read_exact(&mut answer).unwrap();
        serving.cancel();
        let mut question = [0; 8];
        theirs.read_exact(&mut question).unwrap();
        assert_eq!(&question, b"goodbye?");
        // The fiber waits for this inside the shield.
        squall_fiber::sleep(SHORT);
        theirs.write_all(b"goodbye!").unwrap();
        assert_eq!(serving.join().unwrap().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        // `close` is not refused.
        assert_eq!(theirs.read(&mut question).unwrap(), 0);
    });
}

#[test]
fn a_shorter_timeout_of_the_descriptor_stays_its_own() {
    in_fiber(|| {
        let (mut mine, _theirs) = tcp_pair();
        mine.set_read_timeout(Some(SHORT)).unwrap();
        let error = with_deadline(LONG, || mine.read(&mut [0; 8])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        mine.set_read_timeout(Some(LONG)).unwrap();
        let error = with_deadline(SHORT, || mine.read(&mut [0; 8])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        // The deadline is over, and so is its effect.
        mine.set_read_timeout(Some(SHORT)).unwrap();
        assert_eq!(mine.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    });
}

#[test]
fn a_wait_that_was_interrupted_takes_no_wake_up_from_another() {
    in_fiber(|| {
        let (mine, mut theirs) = tcp_pair();
        for _ in 0..50 {
            let reader = || {
                let mut mine = mine.try_clone().unwrap();
                squall_fiber::spawn(move || mine.read(&mut [0; 1]))
            };
            let (first, second) = (reader(), reader());
            until_waiting(&first);
            until_waiting(&second);
            first.cancel();
            assert!(first.join().unwrap().is_err());
            theirs.write_all(b"x").unwrap();
            assert_eq!(second.join().unwrap().unwrap(), 1);
        }
    });
}

#[test]
fn sleeps_return_early() {
    in_fiber(|| {
        let an_hour = libc::timespec { tv_sec: 3600, tv_nsec: 0 };
        let sleeps: [fn(&libc::timespec) -> i32; 4] = [
            // SAFETY: no memory is involved.
            |_| unsafe { libc::sleep(3600) as i32 },
            // SAFETY: no memory is involved.
            |_| unsafe { libc::usleep(3_600_000_000) },
            // SAFETY: the request is live.
            |hour| unsafe { libc::nanosleep(hour, core::ptr::null_mut()) },
            // SAFETY: the request is live.
            |hour| unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, hour, core::ptr::null_mut()) },
        ];
        for (index, sleep) in sleeps.into_iter().enumerate() {
            let cancelled = squall_fiber::spawn(move || sleep(&an_hour));
            until_waiting(&cancelled);
            cancelled.cancel();
            let late = squall_fiber::spawn(move || with_deadline(SHORT, || sleep(&an_hour)));
            for fiber in [cancelled, late] {
                let answer = fiber.join().unwrap();
                // Only `sleep` says what is left.
                assert!(if index == 0 { (3500..=3600).contains(&answer) } else { answer == 0 }, "{answer}");
            }
        }
        let std_sleep = squall_fiber::spawn(|| std::thread::sleep(LONG));
        until_waiting(&std_sleep);
        std_sleep.cancel();
        std_sleep.join().unwrap();
    });
}

#[test]
fn calls_on_the_blocking_pool_are_refused_and_close_is_not() {
    in_fiber(|| {
        let file = tempfile::tempfile().unwrap();
        file.sync_all().unwrap();
        let fiber = squall_fiber::spawn(move || {
            with_deadline(Duration::ZERO, || {
                assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::ETIMEDOUT));
                let name = c"localhost";
                let mut list = core::ptr::null_mut();
                // SAFETY: a C string, and room for the list, which is freed.
                unsafe {
                    let answer =
                        libc::getaddrinfo(name.as_ptr(), core::ptr::null(), core::ptr::null(), &mut list);
                    assert_eq!(answer, libc::EAI_SYSTEM);
                    assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ETIMEDOUT));
                    let answer = shield(|| {
                        libc::getaddrinfo(name.as_ptr(), core::ptr::null(), core::ptr::null(), &mut list)
                    });
                    assert_eq!(answer, 0);
                    libc::freeaddrinfo(list);
                }
            });
            cancel_myself();
            assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
            shield(|| file.sync_data()).unwrap();
            let fd = file.as_raw_fd();
            drop(file);
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, -1);
        });
        fiber.join().unwrap();
    });
}

#[test]
fn waiting_for_a_child() {
    in_fiber(|| {
        // One that ends by itself, while its fiber waits.
        let status = squall_fiber::spawn(|| {
            Command::new("sh").args(["-c", "sleep 0.05; exit 7"]).spawn().unwrap().wait().unwrap()
        });
        assert_eq!(status.join().unwrap().code(), Some(7));

        for deadline in [false, true] {
            let (say, hear) = std::sync::mpsc::channel();
            let waiting = squall_fiber::spawn(move || {
                // A group of its own, which it leads: nothing it starts outlives the test.
                let mut child = Command::new("sleep").arg("3600").process_group(0).spawn().unwrap();
                say.send(()).unwrap();
                let waited = if deadline { with_deadline(SHORT, || child.wait()) } else { child.wait() };
                child.kill().unwrap();
                let status = shield(|| child.wait()).unwrap();
                assert!(!status.success());
                waited.unwrap_err().raw_os_error()
            });
            if deadline {
                assert_eq!(waiting.join().unwrap(), Some(libc::ETIMEDOUT));
            } else {
                hear.recv().unwrap();
                until_waiting(&waiting);
                waiting.cancel();
                assert_eq!(waiting.join().unwrap(), Some(libc::ECANCELED));
            }
        }
    });
}

#[test]
fn locks_and_channels_of_std_are_not_interrupted() {
    in_fiber(|| {
        let (say, hear) = std::sync::mpsc::channel();
        let listening = squall_fiber::spawn(move || {
            cancel_myself();
            with_deadline(Duration::ZERO, || hear.recv())
        });
        until_waiting(&listening);
        assert_eq!(waits_for(listening.fiber().id()), WaitKind::Futex);
        say.send(5).unwrap();
        assert_eq!(listening.join().unwrap(), Ok(5));
    });
}

#[test]
fn a_server_ends_when_all_its_fibers_are_cancelled() {
    let manager = IoManager::new(2, false).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = manager.spawn(move || -> io::Result<()> {
        loop {
            let (mut connection, _) = listener.accept()?;
            squall_fiber::spawn(move || -> io::Result<()> {
                let mut byte = [0];
                loop {
                    connection.read_exact(&mut byte)?;
                    connection.write_all(&byte)?;
                }
            });
        }
    });
    let mut clients: Vec<_> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }
    manager.cancel_fibers();
    // It returns, although the clients are still there.
    manager.stop();
    assert_eq!(server.join().unwrap().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
    for client in &mut clients {
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

/// Data and cancellations come at the same moment, from another worker, thousands of times: every fiber ends, and no byte is lost.
#[test]
fn cancel_races_with_readiness() {
    const ROUNDS: u32 = 3_000;
    in_fiber(|| {
        let (mine, theirs) = UnixStream::pair().unwrap();
        let mut sent = 0u64;
        let mut received = 0u64;
        for round in 0..ROUNDS {
            let mut reader = mine.try_clone().unwrap();
            let reading = squall_fiber::spawn(move || {
                let mut count = 0;
                loop {
                    match reader.read(&mut [0; 16]) {
                        Ok(bytes) => count += bytes as u64,
                        Err(error) => return (count, error.raw_os_error()),
                    }
                }
            });
            let mut writer = theirs.try_clone().unwrap();
            let writing = squall_fiber::spawn(move || {
                (0..5).for_each(|_| writer.write_all(b"x").unwrap());
            });
            for _ in 0..round % 50 {
                core::hint::spin_loop();
            }
            reading.cancel();
            writing.join().unwrap();
            let (count, errno) = reading.join().unwrap();
            assert_eq!(errno, Some(libc::ECANCELED));
            sent += 5;
            received += count;
        }
        drop(theirs);
        let mut rest = Vec::new();
        received += (&mine).read_to_end(&mut rest).unwrap() as u64;
        assert_eq!(received, sent);
    });
}

#[test]
fn a_plain_thread_has_nothing_to_interrupt() {
    let bytes = with_deadline(Duration::ZERO, || {
        shield(|| {
            let (mut reader, mut writer) = io::pipe().unwrap();
            writer.write_all(b"ok").unwrap();
            std::thread::sleep(SHORT);
            let mut bytes = [0; 2];
            reader.read_exact(&mut bytes).unwrap();
            bytes
        })
    });
    assert_eq!(&bytes, b"ok");
    assert!(!squall_fiber::is_cancelled());
    assert!(with_current(|current| current.is_none()));
}
