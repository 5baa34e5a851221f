//! Events by callback, and descriptors between managers, without any hook: the sockets here are plain non-blocking ones.

use squall_fiber::{Builder, Wake, yield_now};
use squall_iomanager::descriptor::{self, Direction};
use squall_iomanager::{Event, IoManager};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// So long that only a hang takes it.
const NEVER: Duration = Duration::from_secs(60);
/// For checks that something does not happen.
const A_WHILE: Duration = Duration::from_millis(30);

/// Non-blocking at both ends.
fn pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

fn fill(stream: &mut UnixStream) {
    while stream.write(&[0; 4096]).is_ok() {}
}

fn drain(stream: &mut UnixStream) {
    while matches!(stream.read(&mut [0; 4096]), Ok(count) if count > 0) {}
}

/// Closes as the hook layer does: whoever waits learns of it first.
fn close<T: AsRawFd>(descriptor: T) {
    descriptor::forget(descriptor.as_raw_fd());
    drop(descriptor);
}

/// A callback that counts, and the receiver that hears of it.
fn counter() -> (impl Fn() + Send + Sync + 'static, mpsc::Receiver<()>) {
    let (sender, receiver) = mpsc::channel();
    (move || sender.send(()).expect("the test is listening"), receiver)
}

#[test]
fn a_read_callback_runs_once_however_much_comes() {
    let manager = IoManager::new(1, false).unwrap();
    let (near, mut far) = pair();
    let (callback, ran) = counter();
    manager.add_event(near.as_raw_fd(), Event::READ, callback).unwrap();
    assert!(ran.recv_timeout(A_WHILE).is_err(), "there is nothing to read yet");
    for _ in 0..3 {
        far.write_all(b"more").unwrap();
        thread::sleep(Duration::from_millis(5));
    }
    ran.recv_timeout(NEVER).unwrap();
    assert!(ran.recv_timeout(A_WHILE).is_err(), "it ran twice");
    close(near);
}

#[test]
fn a_write_callback_runs_when_there_is_room() {
    let manager = IoManager::new(1, false).unwrap();
    let (mut near, mut far) = pair();
    fill(&mut near);
    let (callback, ran) = counter();
    manager.add_event(near.as_raw_fd(), Event::WRITE, callback).unwrap();
    assert!(ran.recv_timeout(A_WHILE).is_err(), "the buffer is full");
    drain(&mut far);
    ran.recv_timeout(NEVER).unwrap();
    assert!(ran.recv_timeout(A_WHILE).is_err());
    close(near);
}

#[test]
fn what_is_ready_already_fires_at_once_every_time() {
    let manager = IoManager::new(1, false).unwrap();
    let (near, mut far) = pair();
    far.write_all(b"x").unwrap();
    // The second and third find the descriptor registered, so no edge will come for them.
    for _ in 0..3 {
        let (callback, ran) = counter();
        manager.add_event(near.as_raw_fd(), Event::READ | Event::WRITE, callback).unwrap();
        ran.recv_timeout(NEVER).unwrap();
        ran.recv_timeout(NEVER).unwrap();
        assert!(ran.recv_timeout(A_WHILE).is_err(), "once for each of the two events");
    }
    close(near);
}

#[test]
fn callbacks_run_in_fibers_that_may_wait_and_add_events() {
    let manager = Arc::new(IoManager::new(1, true).unwrap());
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    let (again, log) = (Arc::clone(&manager), mpsc::channel());
    let sender = log.0.clone();
    let first = move || {
        assert!(squall_fiber::in_fiber());
        squall_fiber::sleep(Duration::from_millis(1));
        let sender = sender.clone();
        again.add_event(fd, Event::READ, move || sender.send("second").unwrap()).unwrap();
    };
    manager.add_event(fd, Event::READ, first).unwrap();
    far.write_all(b"x").unwrap();
    manager.stop();
    assert_eq!(log.1.try_recv(), Ok("second"));
    close(near);
}

#[test]
fn a_pending_callback_keeps_the_manager_from_stopping() {
    let manager = IoManager::new(1, true).unwrap();
    let (near, mut far) = pair();
    let (callback, ran) = counter();
    manager.add_event(near.as_raw_fd(), Event::READ, callback).unwrap();
    let writer = thread::spawn(move || {
        thread::sleep(A_WHILE);
        far.write_all(b"late").unwrap();
        far
    });
    manager.stop();
    assert!(ran.try_recv().is_ok(), "stop has returned before the event came");
    drop(writer.join().unwrap());
    close(near);
}

#[test]
fn errors_are_the_kernels_and_leave_nothing_behind() {
    let manager = IoManager::new(1, false).unwrap();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let regular = manager.add_event(file.as_raw_fd(), Event::READ, || unreachable!()).unwrap_err();
    assert_eq!(regular.raw_os_error(), Some(libc::EPERM));
    for fd in [-1, 900_000, i32::MAX] {
        let closed = manager.add_event(fd, Event::READ, || unreachable!()).unwrap_err();
        assert_eq!(closed.raw_os_error(), Some(libc::EBADF), "descriptor {fd}");
        assert!(!manager.cancel_all(fd));
    }
    // A callback left behind would keep this from returning.
    manager.stop();
}

#[test]
fn an_event_has_one_callback() {
    let manager = IoManager::new(1, false).unwrap();
    let (mut near, mut far) = pair();
    fill(&mut near);
    let fd = near.as_raw_fd();
    let (callback, ran) = counter();
    manager.add_event(fd, Event::READ, callback).unwrap();
    for events in [Event::READ, Event::READ | Event::WRITE] {
        let second = manager.add_event(fd, events, || unreachable!()).unwrap_err();
        assert_eq!(second.kind(), ErrorKind::AlreadyExists);
    }
    // The refused pair has not left its other half behind.
    assert!(!manager.cancel_event(fd, Event::WRITE));
    far.write_all(b"x").unwrap();
    ran.recv_timeout(NEVER).unwrap();
    manager.add_event(fd, Event::READ, || ()).unwrap();
    close(near);
}

#[test]
fn threads_that_add_the_same_event_at_once_add_one() {
    let manager = IoManager::new(1, false).unwrap();
    for _ in 0..200 {
        let (near, _far) = pair();
        let added = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    if manager.add_event(near.as_raw_fd(), Event::READ, || ()).is_ok() {
                        added.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(added.load(Ordering::SeqCst), 1);
        close(near);
    }
}

#[test]
fn a_deleted_event_does_not_run() {
    let manager = IoManager::new(1, false).unwrap();
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    let (callback, ran) = counter();
    manager.add_event(fd, Event::READ, callback).unwrap();
    assert!(!manager.del_event(fd, Event::WRITE), "nothing waits for that one");
    assert!(manager.del_event(fd, Event::READ));
    assert!(!manager.del_event(fd, Event::READ), "it is gone");
    far.write_all(b"x").unwrap();
    manager.stop();
    assert!(ran.recv_timeout(NEVER).is_err(), "the callback is gone with its sender, unused");
    close(near);
}

#[test]
fn a_cancelled_event_runs_now() {
    let manager = IoManager::new(1, false).unwrap();
    let (near, _far) = pair();
    let fd = near.as_raw_fd();
    let (callback, ran) = counter();
    manager.add_event(fd, Event::READ, callback).unwrap();
    assert!(manager.cancel_event(fd, Event::READ));
    assert!(!manager.cancel_event(fd, Event::READ));
    ran.recv_timeout(NEVER).unwrap();
    close(near);
}

#[test]
fn cancel_all_runs_both_directions() {
    let manager = IoManager::new(1, false).unwrap();
    let (mut near, _far) = pair();
    fill(&mut near);
    let fd = near.as_raw_fd();
    let (read, read_ran) = counter();
    let (write, write_ran) = counter();
    manager.add_event(fd, Event::READ, read).unwrap();
    manager.add_event(fd, Event::WRITE, write).unwrap();
    assert!(manager.cancel_all(fd));
    assert!(!manager.cancel_all(fd));
    read_ran.recv_timeout(NEVER).unwrap();
    write_ran.recv_timeout(NEVER).unwrap();
    close(near);
}

#[test]
fn a_close_wakes_fibers_with_closed_and_forgets_callbacks() {
    let manager = IoManager::new(1, false).unwrap();
    let (near, _far) = pair();
    let fd = near.as_raw_fd();
    let waiting = Arc::new(AtomicU32::new(0));
    let fibers: Vec<_> = (0..2)
        .map(|_| {
            let waiting = Arc::clone(&waiting);
            manager.spawn(move || {
                let slot = descriptor::slot(fd).unwrap();
                let seen = slot.edges(Direction::Read);
                waiting.fetch_add(1, Ordering::SeqCst);
                slot.wait(Direction::Read, seen, None).unwrap()
            })
        })
        .collect();
    let (callback, ran) = counter();
    manager.add_event(fd, Event::READ, callback).unwrap();
    while waiting.load(Ordering::SeqCst) < 2 {
        thread::yield_now();
    }
    thread::sleep(A_WHILE);
    close(near);
    for fiber in fibers {
        assert_eq!(fiber.join().unwrap(), Wake::Closed);
    }
    manager.stop();
    assert!(ran.recv().is_err(), "the callback of a closed descriptor ran");
}

#[test]
fn a_wait_ends_at_its_deadline_and_leaves_no_waiter() {
    let manager = IoManager::new(1, false).unwrap();
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    let wakes = manager.spawn(move || {
        let slot = descriptor::slot(fd).unwrap();
        let started = Instant::now();
        let deadline = started + Duration::from_millis(20);
        let first = slot.wait(Direction::Read, slot.edges(Direction::Read), Some(deadline)).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(20));
        far.write_all(b"x").unwrap();
        let second = slot.wait(Direction::Read, slot.edges(Direction::Read), None).unwrap();
        (first, second)
    });
    assert_eq!(wakes.join().unwrap(), (Wake::TimedOut, Wake::Ready));
    close(near);
}

#[test]
fn fibers_wake_in_the_order_in_which_they_came() {
    let manager = IoManager::new(1, false).unwrap();
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut fibers: Vec<_> = (0..4u64)
        .map(|number| {
            let order = Arc::clone(&order);
            manager.spawn_with(Builder::new().worker(0), move || {
                let slot = descriptor::slot(fd).unwrap();
                // The first gives up, and those behind it must keep their order.
                let deadline = (number == 0).then(|| Instant::now() + Duration::from_millis(5));
                if slot.wait(Direction::Read, slot.edges(Direction::Read), deadline).unwrap() == Wake::Ready {
                    order.lock().unwrap().push(number);
                }
            })
        })
        .collect();
    fibers.remove(0).join().unwrap();
    far.write_all(b"x").unwrap();
    for fiber in fibers {
        fiber.join().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    close(near);
}

#[test]
fn an_edge_between_the_look_and_the_wait_is_not_lost() {
    let manager = IoManager::new(1, false).unwrap();
    let (mut near, mut far) = pair();
    let rounds = manager.spawn(move || {
        let slot = descriptor::slot(near.as_raw_fd()).unwrap();
        for round in 0..2_000u32 {
            // Sometimes before the look, sometimes between it and the wait, sometimes after.
            if round % 3 == 0 {
                far.write_all(b"x").unwrap();
            }
            let seen = slot.edges(Direction::Read);
            if round % 3 == 1 {
                far.write_all(b"x").unwrap();
                // Lets the reactor see it.
                yield_now();
            }
            if near.read(&mut [0]).is_err() {
                if round % 3 == 2 {
                    far.write_all(b"x").unwrap();
                    squall_fiber::sleep(Duration::from_micros(10));
                }
                assert_eq!(slot.wait(Direction::Read, seen, None).unwrap(), Wake::Ready);
                near.read_exact(&mut [0]).unwrap();
            }
        }
        close(near);
    });
    rounds.join().unwrap();
}

#[test]
fn a_reused_number_does_not_get_its_predecessors_events() {
    let manager = IoManager::new(1, false).unwrap();
    for _ in 0..200 {
        let (near, mut far) = pair();
        let fd = near.as_raw_fd();
        manager.add_event(fd, Event::READ, || ()).unwrap();
        // An event of the old descriptor may be under way while its number is given out again.
        far.write_all(b"x").unwrap();
        close(near);
        let (near, _far) = pair();
        let (callback, ran) = counter();
        manager.add_event(near.as_raw_fd(), Event::READ, callback).unwrap();
        assert!(
            ran.recv_timeout(Duration::from_millis(1)).is_err(),
            "an event of {fd} reached its successor"
        );
        close(near);
    }
}

#[test]
fn a_listener_and_its_connections_work_through_events() {
    let manager = Arc::new(IoManager::new(2, false).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = Arc::new(listener);
    let (sender, received) = mpsc::channel();
    let (accepting, again) = (Arc::clone(&listener), Arc::clone(&manager));
    manager
        .add_event(listener.as_raw_fd(), Event::READ, move || {
            let (mut connection, _) = accepting.accept().unwrap();
            connection.set_nonblocking(true).unwrap();
            let sender = sender.clone();
            let fd = connection.as_raw_fd();
            let slot = descriptor::slot(fd).unwrap();
            again.spawn(move || {
                let mut text = [0; 5];
                let mut filled = 0;
                while filled < text.len() {
                    let seen = slot.edges(Direction::Read);
                    match connection.read(&mut text[filled..]) {
                        Ok(count) => filled += count,
                        Err(_) => assert_eq!(slot.wait(Direction::Read, seen, None).unwrap(), Wake::Ready),
                    }
                }
                sender.send(text).unwrap();
                close(connection);
            });
        })
        .unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    for byte in b"hello" {
        client.write_all(&[*byte]).unwrap();
    }
    assert_eq!(&received.recv_timeout(NEVER).unwrap(), b"hello");
    descriptor::forget(listener.as_raw_fd());
}

#[test]
fn two_managers_wait_for_two_descriptors() {
    let managers = [IoManager::new(1, false).unwrap(), IoManager::new(2, false).unwrap()];
    let mut ends = Vec::new();
    for manager in managers.iter().cycle().take(20) {
        let (near, far) = pair();
        let (callback, ran) = counter();
        manager.add_event(near.as_raw_fd(), Event::READ, callback).unwrap();
        ends.push((near, far, ran));
    }
    for (_, far, _) in &mut ends {
        far.write_all(b"x").unwrap();
    }
    for (near, _far, ran) in ends {
        ran.recv_timeout(NEVER).unwrap();
        close(near);
    }
}

#[test]
fn a_descriptor_outlives_the_manager_that_registered_it() {
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    for _ in 0..3 {
        let manager = IoManager::new(1, false).unwrap();
        let (callback, ran) = counter();
        manager.add_event(fd, Event::READ, callback).unwrap();
        far.write_all(b"x").unwrap();
        ran.recv_timeout(NEVER).unwrap();
        drain(&mut near.try_clone().unwrap());
    }
    close(near);
}

#[test]
fn who_waits_at_a_manager_that_ends_moves_to_his_own() {
    let (near, mut far) = pair();
    let fd = near.as_raw_fd();
    let first = IoManager::new(1, false).unwrap();
    // Registers the descriptor with the first manager.
    first.add_event(fd, Event::READ, || ()).unwrap();
    assert!(first.del_event(fd, Event::READ));

    let second = IoManager::new(1, false).unwrap();
    let waits = Arc::new(AtomicBool::new(false));
    let begun = Arc::clone(&waits);
    let mut reading = near.try_clone().unwrap();
    let fiber = second.spawn_with(Builder::new().name("reader"), move || {
        let slot = descriptor::slot(fd).unwrap();
        loop {
            let seen = slot.edges(Direction::Read);
            match reading.read(&mut [0]) {
                Ok(count) => return count,
                Err(_) => {
                    begun.store(true, Ordering::SeqCst);
                    slot.wait(Direction::Read, seen, None).unwrap();
                }
            }
        }
    });
    let (callback, ran) = counter();
    second.add_event(fd, Event::READ, callback).unwrap();
    while !waits.load(Ordering::SeqCst) {
        thread::yield_now();
    }
    thread::sleep(A_WHILE);
    // Before, both waited from here on for a reactor that nobody polled.
    drop(first);
    assert!(ran.recv_timeout(A_WHILE).is_err(), "a callback is not for such news");
    far.write_all(b"x").unwrap();
    assert_eq!(fiber.join().unwrap(), 1);
    ran.recv_timeout(NEVER).unwrap();
    close(near);
}
