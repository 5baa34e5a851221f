//! Message queues and semaphores: System V's, which wait on the blocking pool, and POSIX's queues, which are descriptors.

use crate::calls::*;
use crate::harness::*;
use std::ffi::CString;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// A System V queue, which the last run of a case removes.
struct Queue(i32);

impl Queue {
    fn new() -> Self {
        // SAFETY: no memory is involved.
        let id = unsafe { libc::msgget(libc::IPC_PRIVATE, 0o600) };
        assert!(id >= 0, "{}", std::io::Error::last_os_error());
        Self(id)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: no memory is involved. The case may have removed it.
        unsafe { libc::msgctl(self.0, libc::IPC_RMID, null_mut()) };
    }
}

#[repr(C)]
struct Message {
    kind: i64,
    bytes: [u8; 8192],
}

fn send_message(queue: i32, kind: i64, bytes: &[u8], flags: i32) -> i32 {
    let mut message = Message { kind, bytes: [0; 8192] };
    message.bytes[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: a kind and so many bytes.
    unsafe { libc::msgsnd(queue, (&raw const message).cast(), bytes.len(), flags) }
}

fn receive_message(queue: i32, room: usize, kind: i64, flags: i32) -> (isize, i64) {
    let mut message = Message { kind: 0, bytes: [0; 8192] };
    // SAFETY: room for a kind and so many bytes.
    let size = unsafe { libc::msgrcv(queue, (&raw mut message).cast(), room, kind, flags) };
    (size, message.kind)
}

#[test]
fn a_message_is_waited_for() {
    differ(true, |notes| {
        let queue = Queue::new();
        let id = queue.0;
        let sender = companion(move || {
            for kind in [3, 5] {
                thread::sleep(pause());
                assert_eq!(send_message(id, kind, b"abc", 0), 0);
            }
        });
        for kind in [5, 0] {
            let (size, kind) = receive_message(id, 100, kind, 0);
            raw_size(notes, "received", size);
            notes.push(format!("kind {kind}"));
        }
        sender();
    });
}

#[test]
fn a_full_queue_is_waited_for() {
    differ(true, |notes| {
        let queue = Queue::new();
        let id = queue.0;
        let mut held = 0;
        while send_message(id, 1, &[7; 4096], libc::IPC_NOWAIT) == 0 {
            held += 1;
        }
        raw(notes, "full", send_message(id, 1, &[7; 4096], libc::IPC_NOWAIT));
        let receiver = companion(move || {
            thread::sleep(pause());
            assert_eq!(receive_message(id, 8192, 0, 0).0, 4096);
        });
        raw(notes, "send", send_message(id, 1, &[7; 4096], 0));
        receiver();
        notes.push(format!("held {held}"));
    });
}

#[test]
fn a_removed_queue_ends_the_waits_for_it() {
    differ(true, |notes| {
        let queue = Queue::new();
        let id = queue.0;
        let remover = companion(move || {
            thread::sleep(pause());
            drop(queue);
        });
        raw_size(notes, "receive", receive_message(id, 100, 0, 0).0);
        remover();
        raw_size(notes, "again", receive_message(id, 100, 0, 0).0);
        raw(notes, "send", send_message(id, 1, b"abc", 0));
    });
}

#[test]
fn messages_judge_their_arguments() {
    differ(false, |notes| {
        let queue = Queue::new();
        raw(notes, "kind 0", send_message(queue.0, 0, b"abc", 0));
        raw_size(notes, "empty", receive_message(queue.0, 100, 0, libc::IPC_NOWAIT).0);
        raw(notes, "send", send_message(queue.0, 1, b"abcdef", 0));
        raw_size(notes, "too little room", receive_message(queue.0, 3, 0, 0).0);
        raw_size(notes, "cut", receive_message(queue.0, 3, 0, libc::MSG_NOERROR).0);
        raw_size(notes, "no queue", receive_message(-1, 3, 0, 0).0);
    });
}

/// Changes the one semaphore of a set.
fn change(set: i32, by: i16, flags: i32) -> i32 {
    let mut operation = libc::sembuf { sem_num: 0, sem_op: by, sem_flg: flags as i16 };
    // SAFETY: one live operation.
    unsafe { libc::semop(set, &mut operation, 1) }
}

fn change_in_time(set: i32, by: i16, time: libc::timespec) -> i32 {
    unsafe extern "C" {
        fn semtimedop(
            set: i32,
            operations: *mut libc::sembuf,
            count: usize,
            time: *const libc::timespec,
        ) -> i32;
    }
    let mut operation = libc::sembuf { sem_num: 0, sem_op: by, sem_flg: 0 };
    // SAFETY: one live operation and a live time.
    unsafe { semtimedop(set, &mut operation, 1, &time) }
}

#[test]
fn a_semaphore_is_waited_for() {
    differ(true, |notes| {
        // SAFETY: no memory is involved.
        let set = unsafe { libc::semget(libc::IPC_PRIVATE, 1, 0o600) };
        assert!(set >= 0);
        raw(notes, "at once", change(set, -1, libc::IPC_NOWAIT));
        let other = companion(move || {
            thread::sleep(pause());
            assert_eq!(change(set, 2, 0), 0);
        });
        raw(notes, "taken", change(set, -1, 0));
        other();
        let other = companion(move || {
            thread::sleep(pause());
            assert_eq!(change(set, -1, 0), 0);
        });
        raw(notes, "all taken", change(set, 0, 0));
        other();
        let time = |nsec| libc::timespec { tv_sec: 0, tv_nsec: nsec };
        raw(notes, "not in time", change_in_time(set, -1, time(30_000_000)));
        raw(notes, "no such time", change_in_time(set, -1, time(-1)));
        let remover = companion(move || {
            thread::sleep(pause());
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::semctl(set, 0, libc::IPC_RMID) }, 0);
        });
        raw(notes, "removed", change(set, -1, 0));
        remover();
        raw(notes, "again", change(set, -1, 0));
    });
}

/// A POSIX queue without a name any more, of messages of up to 16 bytes.
fn posix_queue(flags: i32, messages: i64) -> std::os::fd::OwnedFd {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = CString::new(format!("/squall-{}-{number}", std::process::id())).unwrap();
    // SAFETY: a C string and a live attribute.
    unsafe {
        let mut attributes: libc::mq_attr = std::mem::zeroed();
        (attributes.mq_maxmsg, attributes.mq_msgsize) = (messages, 16);
        let open = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR | flags;
        let queue = owned(libc::mq_open(name.as_ptr(), open, 0o600 as libc::mode_t, &raw mut attributes));
        libc::mq_unlink(name.as_ptr());
        queue
    }
}

fn post(queue: i32, bytes: &[u8], priority: u32) -> i32 {
    // SAFETY: so many live bytes.
    unsafe { libc::mq_send(queue, bytes.as_ptr().cast(), bytes.len(), priority) }
}

fn take(queue: i32, room: usize) -> (isize, u32) {
    let (mut bytes, mut priority) = ([0u8; 16], 0);
    // SAFETY: room for so many bytes.
    let size = unsafe { libc::mq_receive(queue, bytes.as_mut_ptr().cast(), room, &mut priority) };
    (size, priority)
}

fn take_in_time(queue: i32, time: libc::timespec) -> isize {
    let mut bytes = [0u8; 16];
    // SAFETY: room for so many bytes, and a live time.
    unsafe { libc::mq_timedreceive(queue, bytes.as_mut_ptr().cast(), 16, null_mut(), &time) }
}

/// So many milliseconds from now.
fn soon(ms: i64) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills the struct that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    let nsec = now.tv_nsec + ms * 1_000_000;
    libc::timespec { tv_sec: now.tv_sec + nsec / 1_000_000_000, tv_nsec: nsec % 1_000_000_000 }
}

#[test]
fn an_empty_posix_queue_is_waited_for() {
    differ(true, |notes| {
        let queue = posix_queue(0, 4);
        let id = std::os::fd::AsRawFd::as_raw_fd(&queue);
        let sender = companion(move || {
            for priority in [1, 9] {
                thread::sleep(pause());
                assert_eq!(post(id, b"abc", priority), 0);
            }
        });
        for _ in 0..2 {
            let (size, priority) = take(id, 16);
            raw_size(notes, "taken", size);
            notes.push(format!("{priority}"));
        }
        sender();
        raw_size(notes, "not in time", take_in_time(id, soon(30)));
        raw_size(notes, "time over", take_in_time(id, libc::timespec { tv_sec: 1, tv_nsec: 0 }));
        raw_size(notes, "no such time", take_in_time(id, libc::timespec { tv_sec: 1, tv_nsec: -1 }));
        raw(notes, "post", post(id, b"abc", 1));
        raw_size(notes, "too little room", take(id, 3).0);
        raw_size(
            notes,
            "there, though the time is over",
            take_in_time(id, libc::timespec { tv_sec: 1, tv_nsec: 0 }),
        );
    });
}

#[test]
fn a_full_posix_queue_is_waited_for() {
    differ(true, |notes| {
        let queue = posix_queue(0, 2);
        let id = std::os::fd::AsRawFd::as_raw_fd(&queue);
        for priority in [1, 2] {
            raw(notes, "post", post(id, b"abc", priority));
        }
        // SAFETY: live bytes and a live time.
        let late = unsafe { libc::mq_timedsend(id, b"abc".as_ptr().cast(), 3, 1, &soon(30)) };
        raw(notes, "not in time", late);
        let receiver = companion(move || {
            thread::sleep(pause());
            assert_eq!(take(id, 16), (3, 2));
        });
        raw(notes, "post", post(id, b"abc", 3));
        receiver();
        notes.push(format!("{:?} {:?}", take(id, 16), take(id, 16)));
        raw(notes, "too long", post(id, &[7; 17], 1));
        raw(notes, "bad priority", post(id, b"abc", 1 << 20));
    });
}

#[test]
fn a_nonblocking_posix_queue_is_not_waited_for() {
    differ(false, |notes| {
        let queue = posix_queue(libc::O_NONBLOCK, 1);
        let id = std::os::fd::AsRawFd::as_raw_fd(&queue);
        raw_size(notes, "empty", take(id, 16).0);
        raw_size(notes, "empty", take_in_time(id, soon(1000)));
        raw(notes, "post", post(id, b"abc", 1));
        raw(notes, "full", post(id, b"abc", 1));
        raw_size(notes, "no queue", take(-1, 16).0);
        let (reader, _writer) = pipe(0);
        raw_size(notes, "a pipe", take(std::os::fd::AsRawFd::as_raw_fd(&reader), 16).0);
        // SAFETY: the kernel refuses the memory.
        raw(notes, "no memory", unsafe { libc::mq_send(id, null(), 3, 1) });
    });
}
