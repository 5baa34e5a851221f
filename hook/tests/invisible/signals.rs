//! Signals: waiting for them, masks for the length of a wait, handlers that run during one, SIGPIPE.
//!
//! Signals go to the process, and the runs of a case are all in one: each run claims a number of its own.

use crate::calls::*;
use crate::harness::*;
use squall_iomanager::IoManager;
use std::cell::Cell;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

/// Blocks the signals of the cases in the main thread, and so in all: before it starts any.
#[used]
#[unsafe(link_section = ".init_array")]
static BLOCK: extern "C" fn() = {
    extern "C" fn block() {
        change_mask(libc::SIG_BLOCK, &set_of(libc::SIGRTMIN() + FIRST..libc::SIGRTMIN() + FIRST + COUNT));
    }
    block
};

/// Real-time signals that nobody else in the process uses. The upper half is for cases that let them through.
const FIRST: i32 = 3;
const COUNT: i32 = 24;

static TAKEN: Mutex<[bool; COUNT as usize]> = Mutex::new([false; COUNT as usize]);
/// How often the handler of each signal has run.
static HANDLED: [AtomicU32; 128] = [const { AtomicU32::new(0) }; 128];

/// A signal for one run of one case.
struct Signal(i32);

impl Signal {
    /// One that every thread blocks all the time.
    fn blocked() -> Self {
        Self::claim(0)
    }

    /// One that the case may let through.
    fn open() -> Self {
        Self::claim(COUNT as usize / 2)
    }

    fn claim(from: usize) -> Self {
        loop {
            let mut taken = TAKEN.lock().unwrap();
            let until = from + COUNT as usize / 2;
            if let Some(free) = (from..until).find(|index| !taken[*index]) {
                taken[free] = true;
                return Self(libc::SIGRTMIN() + FIRST + free as i32);
            }
            drop(taken);
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn set(&self) -> libc::sigset_t {
        set_of(self.0..self.0 + 1)
    }

    /// Sends it to the process.
    fn send(&self) {
        send(self.0);
    }

    /// Installs a handler that counts; says how often it has run since.
    fn handle(&self, flags: i32) -> impl Fn() -> u32 {
        handle(self.0, flags);
        let (signal, before) = (self.0 as usize, HANDLED[self.0 as usize].load(Ordering::SeqCst));
        move || HANDLED[signal].load(Ordering::SeqCst) - before
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        TAKEN.lock().unwrap()[(self.0 - libc::SIGRTMIN() - FIRST) as usize] = false;
    }
}

fn send(signal: i32) {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::kill(libc::getpid(), signal) }, 0);
}

fn handle(signal: i32, flags: i32) {
    extern "C" fn count(signal: i32) {
        HANDLED[signal as usize].fetch_add(1, Ordering::SeqCst);
    }
    // SAFETY: the handler only counts.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = count as extern "C" fn(i32) as usize;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(signal, &action, null_mut()), 0);
    }
}

fn set_of(signals: impl Iterator<Item = i32>) -> libc::sigset_t {
    // SAFETY: a set that is filled here.
    unsafe {
        let mut set = zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Changes the calling thread's mask; says what it was.
fn change_mask(how: i32, set: &libc::sigset_t) -> libc::sigset_t {
    // SAFETY: live sets.
    unsafe {
        let mut before = zeroed();
        assert_eq!(libc::pthread_sigmask(how, set, &mut before), 0);
        before
    }
}

type Take = fn(&libc::sigset_t) -> i32;

/// Each call that takes a signal, with -1 and errno for an error.
const TAKES: [(&str, Take); 3] = [
    ("sigwait", |set| {
        let mut signal = 0;
        // SAFETY: a live set, and room for the answer.
        let error = unsafe { libc::sigwait(set, &mut signal) };
        set_errno(error);
        if error == 0 { signal } else { -1 }
    }),
    // SAFETY: a live set; no information is asked for.
    ("sigwaitinfo", |set| unsafe { libc::sigwaitinfo(set, null_mut()) }),
    // SAFETY: as above; no time means for ever.
    ("sigtimedwait", |set| unsafe { libc::sigtimedwait(set, null_mut(), null()) }),
];

fn relative(notes: &mut Notes, what: &str, answer: i32, signal: &Signal) {
    raw(notes, what, if answer == signal.0 { 1 } else { answer });
}

#[test]
fn a_signal_that_is_there_is_taken() {
    differ(false, |notes| {
        let signal = Signal::blocked();
        for (name, take) in TAKES {
            signal.send();
            relative(notes, name, take(&signal.set()), &signal);
        }
    });
}

#[test]
fn a_signal_to_the_thread_itself_is_taken() {
    differ(false, |notes| {
        let signal = Signal::blocked();
        for (name, take) in TAKES {
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::raise(signal.0) }, 0);
            relative(notes, name, take(&signal.set()), &signal);
        }
    });
}

#[test]
fn whoever_waits_for_a_signal_gets_it() {
    differ(true, |notes| {
        let signal = Signal::blocked();
        for (name, take) in TAKES {
            let number = signal.0;
            let sender = companion(move || {
                thread::sleep(pause());
                send(number);
            });
            relative(notes, name, take(&signal.set()), &signal);
            sender();
        }
    });
}

#[test]
fn a_wait_for_a_signal_ends_when_its_time_is_up() {
    differ(true, |notes| {
        let signal = Signal::blocked();
        for (sec, nsec) in [(0, 0), (0, 30_000_000), (0, 1_000_000_000), (-1, 0), (0, -1)] {
            let time = libc::timespec { tv_sec: sec, tv_nsec: nsec };
            // SAFETY: a live set and time.
            raw(notes, "sigtimedwait", unsafe { libc::sigtimedwait(&signal.set(), null_mut(), &time) });
        }
    });
}

#[test]
fn queued_signals_come_in_order_with_their_values() {
    differ(false, |notes| {
        let signal = Signal::blocked();
        for value in [7usize, 8, 9] {
            let value = libc::sigval { sival_ptr: value as *mut _ };
            // SAFETY: the value is passed on as it is.
            assert_eq!(unsafe { libc::sigqueue(libc::getpid(), signal.0, value) }, 0);
        }
        for _ in 0..3 {
            let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
            // SAFETY: the call fills the information.
            unsafe {
                relative(notes, "taken", libc::sigwaitinfo(&signal.set(), info.as_mut_ptr()), &signal);
                let info = info.assume_init();
                let (value, code) = (info.si_value().sival_ptr as usize, info.si_code);
                notes.push(format!("{value} {code} {}", info.si_signo == signal.0));
            }
        }
    });
}

#[test]
fn null_sets_are_refused() {
    differ(false, |notes| {
        // SAFETY: the kernel refuses the set.
        unsafe {
            raw(notes, "sigwaitinfo", libc::sigwaitinfo(null(), null_mut()));
            raw(notes, "sigtimedwait", libc::sigtimedwait(null(), null_mut(), null()));
        }
    });
}

fn signal_fd(signal: &Signal, flags: i32) -> OwnedFd {
    // SAFETY: a live set.
    owned(unsafe { libc::signalfd(-1, &signal.set(), flags | libc::SFD_CLOEXEC) })
}

const RECORD: usize = size_of::<libc::signalfd_siginfo>();

#[test]
fn a_signalfd_is_waited_for() {
    differ(true, |notes| {
        let signal = Signal::blocked();
        let fd = signal_fd(&signal, 0);
        let number = signal.0;
        let sender = companion(move || {
            for _ in 0..2 {
                thread::sleep(pause());
                send(number);
            }
        });
        let mut record = [0; RECORD];
        raw_size(notes, "read", read(fd.as_raw_fd(), &mut record));
        notes.push(format!("{}", record[0] == number as u8));
        raw(notes, "poll", poll(&mut [entry(fd.as_raw_fd(), libc::POLLIN)], -1));
        raw_size(notes, "read", read(fd.as_raw_fd(), &mut record));
        sender();
    });
}

#[test]
fn a_signalfd_judges_sizes_and_flags() {
    differ(false, |notes| {
        let signal = Signal::blocked();
        let fd = signal_fd(&signal, libc::SFD_NONBLOCK);
        raw_size(notes, "nothing there", read(fd.as_raw_fd(), &mut [0; RECORD]));
        raw_size(notes, "too short", read(fd.as_raw_fd(), &mut [0; RECORD - 1]));
        raw_size(notes, "a write", write(fd.as_raw_fd(), &[0; RECORD]));
        for _ in 0..3 {
            signal.send();
        }
        raw_size(notes, "two at once", read(fd.as_raw_fd(), &mut [0; 2 * RECORD]));
        raw_size(notes, "the last", read(fd.as_raw_fd(), &mut [0; 2 * RECORD]));
        raw_size(notes, "nothing there", read(fd.as_raw_fd(), &mut [0; RECORD]));
    });
}

type MaskedWait = fn(RawFd, Option<u32>, &libc::sigset_t) -> i32;

fn epoll_of(fd: RawFd) -> OwnedFd {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: a live event.
    unsafe {
        let epoll = owned(libc::epoll_create1(libc::EPOLL_CLOEXEC));
        assert_eq!(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event), 0);
        epoll
    }
}

fn timespec(timeout_ms: Option<u32>) -> Option<libc::timespec> {
    timeout_ms.map(|ms| libc::timespec { tv_sec: 0, tv_nsec: i64::from(ms) * 1_000_000 })
}

/// Waits until `fd` is readable, for some milliseconds or for ever, with a mask.
const MASKED_WAITS: [(&str, MaskedWait); 4] = [
    ("ppoll", |fd, timeout_ms, mask| {
        let time = timespec(timeout_ms);
        let time = time.as_ref().map_or(null(), |time| time as *const _);
        // SAFETY: one live entry, a live time or none, a live mask.
        unsafe { libc::ppoll(&mut entry(fd, libc::POLLIN), 1, time, mask) }
    }),
    ("pselect", |fd, timeout_ms, mask| {
        let time = timespec(timeout_ms);
        let time = time.as_ref().map_or(null(), |time| time as *const _);
        // SAFETY: a live set, the rest as above.
        unsafe {
            let mut set = zeroed();
            libc::FD_SET(fd, &mut set);
            libc::pselect(fd + 1, &mut set, null_mut(), null_mut(), time, mask)
        }
    }),
    ("epoll_pwait", |fd, timeout_ms, mask| {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let timeout_ms = timeout_ms.map_or(-1, |ms| ms as i32);
        // SAFETY: room for one event, a live mask.
        unsafe { libc::epoll_pwait(epoll_of(fd).as_raw_fd(), &mut event, 1, timeout_ms, mask) }
    }),
    ("epoll_pwait2", |fd, timeout_ms, mask| {
        unsafe extern "C" {
            fn epoll_pwait2(
                epoll: i32,
                events: *mut libc::epoll_event,
                capacity: i32,
                time: *const libc::timespec,
                mask: *const libc::sigset_t,
            ) -> i32;
        }
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let time = timespec(timeout_ms);
        let time = time.as_ref().map_or(null(), |time| time as *const _);
        // SAFETY: room for one event, a live time or none, a live mask.
        unsafe { epoll_pwait2(epoll_of(fd).as_raw_fd(), &mut event, 1, time, mask) }
    }),
];

/// The thread's mask but for one signal, which so is let in.
fn letting_in(signal: &Signal) -> libc::sigset_t {
    let mut mask = change_mask(libc::SIG_BLOCK, &set_of(0..0));
    // SAFETY: a live set.
    unsafe { libc::sigdelset(&mut mask, signal.0) };
    mask
}

#[test]
fn a_mask_lets_a_signal_end_the_wait() {
    differ(true, |notes| {
        let (reader, _writer) = pipe(0);
        for (name, wait) in MASKED_WAITS {
            let signal = Signal::blocked();
            let handled = signal.handle(0);
            let number = signal.0;
            let sender = companion(move || {
                thread::sleep(pause());
                send(number);
            });
            raw(notes, name, wait(reader.as_raw_fd(), None, &letting_in(&signal)));
            notes.push(format!("handled {}", handled()));
            sender();
        }
    });
}

#[test]
fn a_mask_lets_a_signal_in_that_is_there_already() {
    differ(false, |notes| {
        let (reader, _writer) = pipe(0);
        for (name, wait) in MASKED_WAITS {
            let signal = Signal::blocked();
            let handled = signal.handle(libc::SA_RESTART);
            signal.send();
            notes.push(format!("handled {}", handled()));
            raw(notes, name, wait(reader.as_raw_fd(), None, &letting_in(&signal)));
            notes.push(format!("handled {}", handled()));
            // SAFETY: no memory is involved.
            assert_eq!(unsafe { libc::raise(signal.0) }, 0);
            raw(notes, name, wait(reader.as_raw_fd(), None, &letting_in(&signal)));
            notes.push(format!("handled {}", handled()));
        }
    });
}

#[test]
fn a_wait_with_a_mask_is_otherwise_like_one_without() {
    differ(true, |notes| {
        for (name, wait) in MASKED_WAITS {
            let signal = Signal::blocked();
            let (reader, writer) = pipe(0);
            let fd = reader.as_raw_fd();
            raw(notes, name, wait(fd, Some(0), &letting_in(&signal)));
            raw(notes, name, wait(fd, Some(120), &letting_in(&signal)));
            let other = companion(move || {
                thread::sleep(pause());
                write(writer.as_raw_fd(), b"x");
                thread::sleep(pause());
            });
            raw(notes, name, wait(fd, None, &letting_in(&signal)));
            raw(notes, name, wait(fd, None, &letting_in(&signal)));
            other();
        }
    });
}

#[test]
fn sigsuspend_ends_with_a_handler() {
    differ(true, |notes| {
        let signal = Signal::blocked();
        let handled = signal.handle(libc::SA_RESTART);
        let number = signal.0;
        let sender = companion(move || {
            thread::sleep(pause());
            send(number);
        });
        // SAFETY: a live mask.
        raw(notes, "sigsuspend", unsafe { libc::sigsuspend(&letting_in(&signal)) });
        notes.push(format!("handled {}", handled()));
        sender();
        signal.send();
        unsafe extern "C" {
            fn __sigsuspend(mask: *const libc::sigset_t) -> i32;
        }
        // SAFETY: as above.
        raw(notes, "__sigsuspend", unsafe { __sigsuspend(&letting_in(&signal)) });
        notes.push(format!("handled {}", handled()));
    });
}

/// A handler with SA_RESTART runs while a case waits, which then goes on until `end` ends the wait.
fn is_restarted(
    notes: &mut Notes,
    call: impl FnOnce() -> i64,
    end: impl FnOnce() + std::marker::Send + 'static,
) {
    let signal = Signal::open();
    let handled = signal.handle(libc::SA_RESTART);
    let before = change_mask(libc::SIG_UNBLOCK, &signal.set());
    let number = signal.0;
    let other = companion(move || {
        thread::sleep(pause());
        send(number);
        thread::sleep(pause());
        end();
    });
    let answer = call();
    raw(notes, "answer", answer);
    notes.push(format!("handled {}", handled()));
    change_mask(libc::SIG_SETMASK, &before);
    other();
}

#[test]
fn a_handler_with_sa_restart_leaves_waits_going() {
    differ(true, |notes| {
        let (reader, writer) = pipe(0);
        let (input, output) = (reader.as_raw_fd(), writer.as_raw_fd());
        is_restarted(notes, || read(input, &mut [0; 5]) as i64, move || assert_eq!(write(output, b"abc"), 3));
        let (a, b) = socketpair(libc::SOCK_STREAM);
        let (near, far) = (a.as_raw_fd(), b.as_raw_fd());
        is_restarted(notes, || recv(near, &mut [0; 5]) as i64, move || assert_eq!(write(far, b"abc"), 3));
        let held = fill(near);
        let receive_all = move || {
            let mut left = held + 5000;
            while left > 0 {
                left -= read(far, &mut vec![0; left]) as usize;
            }
        };
        is_restarted(notes, || send_with(near, &[7; 5000], 0) as i64, receive_all);
        let (listening, address) = listener(5);
        is_restarted(
            notes,
            || i64::from(accept(listening.as_raw_fd(), libc::SOCK_CLOEXEC).min(0)),
            move || drop(std::net::TcpStream::connect(address).unwrap()),
        );
        let word = std::sync::Arc::new(AtomicU32::new(0));
        let theirs = std::sync::Arc::clone(&word);
        is_restarted(
            notes,
            || {
                let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
                // SAFETY: a live word.
                unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), wait, 0, null::<libc::timespec>()) }
            },
            move || {
                let wake = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
                // SAFETY: as above.
                assert_eq!(unsafe { libc::syscall(libc::SYS_futex, theirs.as_ptr(), wake, 1) }, 1);
            },
        );
    });
}

#[test]
fn without_sa_restart_a_handler_runs_and_the_fiber_waits_on() {
    // A thread's wait would end with EINTR. A handler runs on some worker, where any fiber may be waiting or none: it ends no wait but those
    // with a mask.
    let manager = IoManager::new(1, false).unwrap();
    let signal = Signal::open();
    let handled = signal.handle(0);
    let number = signal.0;
    let (reader, writer) = pipe(0);
    let set = signal.set();
    let fiber = manager.spawn(move || {
        change_mask(libc::SIG_UNBLOCK, &set);
        read(reader.as_raw_fd(), &mut [0; 5])
    });
    manager.spawn(move || {
        thread::sleep(pause());
        send(number);
        thread::sleep(pause());
        assert_eq!(write(writer.as_raw_fd(), b"abc"), 3);
    });
    manager.stop();
    assert_eq!(fiber.join().unwrap(), 3);
    assert_eq!(handled(), 1);
}

thread_local! {
    static BROKEN_PIPES: Cell<u32> = const { Cell::new(0) };
}

/// SIGPIPE goes to the thread that wrote, which counts it.
fn count_broken_pipes() {
    extern "C" fn count(_: i32) {
        BROKEN_PIPES.set(BROKEN_PIPES.get() + 1);
    }
    // SAFETY: the handler only counts.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = count as extern "C" fn(i32) as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGPIPE, &action, null_mut()), 0);
    }
    BROKEN_PIPES.set(0);
}

fn broken(notes: &mut Notes, what: &str, answer: isize) {
    raw_size(notes, what, answer);
    notes.push(format!("SIGPIPE {}", BROKEN_PIPES.replace(0)));
}

#[test]
fn every_write_that_finds_nobody_raises_sigpipe_once() {
    differ(false, |notes| {
        count_broken_pipes();
        let (a, b) = socketpair(libc::SOCK_STREAM);
        drop(b);
        let fd = a.as_raw_fd();
        let calls: [(&str, crate::calls::Send); 6] = [
            ("write", write),
            ("writev", writev),
            ("send", crate::calls::send),
            ("sendto", sendto),
            ("sendmsg", sendmsg),
            ("sendmmsg", sendmmsg),
        ];
        for (name, call) in calls {
            broken(notes, name, call(fd, b"abc"));
        }
        for flags in [libc::MSG_NOSIGNAL, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT, libc::MSG_DONTWAIT] {
            broken(notes, "send with flags", send_with(fd, b"abc", flags));
        }
        let (reader, writer) = pipe(0);
        drop(reader);
        let fd = writer.as_raw_fd();
        broken(notes, "write", write(fd, b"abc"));
        broken(notes, "writev", writev(fd, b"abc"));
        broken(notes, "nothing", write(fd, b""));
        let file = tempfile::tempfile().unwrap();
        assert_eq!(write(file.as_raw_fd(), b"abc"), 3);
        let (mut at, file) = (0, file.as_raw_fd());
        // SAFETY: live offsets and vectors.
        unsafe {
            broken(notes, "sendfile", libc::sendfile(fd, file, &mut at, 3));
            broken(notes, "sendfile", libc::sendfile(a.as_raw_fd(), file, &mut at, 3));
            let mut at = 0;
            broken(notes, "splice", libc::splice(file, &mut at, fd, null_mut(), 3, 0));
            let vector = libc::iovec { iov_base: b"abc".as_ptr().cast_mut().cast(), iov_len: 3 };
            broken(notes, "vmsplice", libc::vmsplice(fd, &vector, 1, 0));
            let (full, source) = pipe(0);
            assert_eq!(write(source.as_raw_fd(), b"abc"), 3);
            broken(notes, "tee", libc::tee(full.as_raw_fd(), fd, 3, 0));
        }
    });
}

#[test]
fn a_write_that_has_written_something_tells_the_end_as_the_kernel_does() {
    differ(true, |notes| {
        count_broken_pipes();
        // A pipe raises the signal even so, a socket does not.
        let (reader, writer) = pipe(0);
        let fd = writer.as_raw_fd();
        let closer = companion(move || {
            until_full(fd);
            drop(reader);
        });
        broken(notes, "write to a pipe", write(fd, &[7; 200_000]));
        closer();
        let (a, b) = socketpair(libc::SOCK_STREAM);
        small_buffers(&a);
        let fd = a.as_raw_fd();
        let closer = companion(move || {
            until_full(fd);
            drop(b);
        });
        let sent = send_with(fd, &[7; 2_000_000], 0);
        broken(notes, "send", sent.signum());
        broken(notes, "again", send_with(fd, &[7; 10], 0));
        closer();
    });
}
