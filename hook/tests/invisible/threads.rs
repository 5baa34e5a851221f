//! Futexes by system call, and joining threads.

use crate::calls::*;
use crate::harness::*;
use libc::{
    FUTEX_CLOCK_REALTIME, FUTEX_CMP_REQUEUE, FUTEX_PRIVATE_FLAG, FUTEX_REQUEUE, FUTEX_WAIT,
    FUTEX_WAIT_BITSET, FUTEX_WAKE, FUTEX_WAKE_BITSET,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

const NO_TIME: *const libc::timespec = std::ptr::null();

/// `syscall(SYS_futex, ...)` for an operation that has a timeout or none.
fn futex(word: &AtomicU32, operation: i32, value: u32, time: *const libc::timespec, bits: u32) -> i64 {
    let no_second_word = std::ptr::null::<u32>();
    // SAFETY: the word is live, and the time is null, live or wrong on purpose.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, time, no_second_word, bits) }
}

fn wait(word: &AtomicU32, value: u32, time: *const libc::timespec) -> i64 {
    futex(word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, value, time, 0)
}

fn wake(word: &AtomicU32, count: u32) -> i64 {
    futex(word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, count, NO_TIME, 0)
}

/// Companions that wait for a word to be woken, each with some bits.
fn waiters(word: &Arc<AtomicU32>, bits: &[u32]) -> Vec<Box<dyn FnOnce()>> {
    bits.iter()
        .map(|bits| {
            let (word, bits) = (Arc::clone(word), *bits);
            companion(move || {
                let operation = FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG;
                assert_eq!(futex(&word, operation, 0, NO_TIME, bits), 0);
            })
        })
        .collect()
}

fn in_ms(milliseconds: i64) -> libc::timespec {
    libc::timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 }
}

#[test]
fn a_word_that_has_changed_is_not_waited_for() {
    differ(false, |notes| {
        let word = AtomicU32::new(5);
        raw(notes, "private", wait(&word, 4, NO_TIME));
        raw(notes, "shared", futex(&word, FUTEX_WAIT, 4, NO_TIME, 0));
        raw(notes, "in time", wait(&word, 4, &in_ms(20)));
        let bitset = FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG;
        raw(notes, "bits", futex(&word, bitset, 4, NO_TIME, 1));
        raw(notes, "no bits", futex(&word, bitset, 5, NO_TIME, 0));
        raw(notes, "no bits, changed", futex(&word, bitset, 4, NO_TIME, 0));
    });
}

#[test]
fn a_wait_ends_when_its_time_is_up() {
    differ(true, |notes| {
        let word = AtomicU32::new(5);
        raw(notes, "relative", wait(&word, 5, &in_ms(20)));
        raw(notes, "no time", wait(&word, 5, &in_ms(0)));
        raw(notes, "shared", futex(&word, FUTEX_WAIT, 5, &in_ms(20), 0));
        for (clock, flag) in [(libc::CLOCK_MONOTONIC, 0), (libc::CLOCK_REALTIME, FUTEX_CLOCK_REALTIME)] {
            let mut moment = in_ms(0);
            // SAFETY: a live timespec.
            unsafe { libc::clock_gettime(clock, &mut moment) };
            let operation = FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG | flag;
            raw(notes, "a moment ago", futex(&word, operation, 5, &moment, u32::MAX));
            moment.tv_sec += 1;
            moment.tv_nsec -= 980_000_000;
            if moment.tv_nsec < 0 {
                (moment.tv_sec, moment.tv_nsec) = (moment.tv_sec - 1, moment.tv_nsec + 1_000_000_000);
            }
            raw(notes, "a moment", futex(&word, operation, 5, &moment, u32::MAX));
            raw(notes, "long past", futex(&word, operation, 5, &in_ms(1), u32::MAX));
        }
    });
}

#[test]
fn impossible_times_are_refused() {
    differ(false, |notes| {
        let word = AtomicU32::new(5);
        for (tv_sec, tv_nsec) in [(0, 1_000_000_000), (0, -1), (-1, 0)] {
            let time = libc::timespec { tv_sec, tv_nsec };
            for operation in [FUTEX_WAIT, FUTEX_WAIT_BITSET] {
                for flags in [0, FUTEX_PRIVATE_FLAG] {
                    for value in [5, 4] {
                        raw(notes, "wait", futex(&word, operation | flags, value, &time, u32::MAX));
                    }
                }
            }
        }
    });
}

#[test]
fn impossible_words_are_refused() {
    differ(false, |notes| {
        // SAFETY: the kernel judges the addresses.
        let call = |address: usize, operation: i32| unsafe {
            libc::syscall(libc::SYS_futex, address, operation | FUTEX_PRIVATE_FLAG, 1, NO_TIME)
        };
        let word = AtomicU32::new(1);
        for address in [0, word.as_ptr() as usize + 1] {
            raw(notes, "wait", call(address, FUTEX_WAIT));
            raw(notes, "wake", call(address, FUTEX_WAKE));
        }
        raw(notes, "no such operation", call(word.as_ptr() as usize, 99));
    });
}

#[test]
fn waking_says_how_many_were_woken() {
    differ(true, |notes| {
        let word = Arc::new(AtomicU32::new(0));
        raw(notes, "nobody", wake(&word, 5));
        let waiting = waiters(&word, &[u32::MAX; 4]);
        thread::sleep(pause());
        raw(notes, "one", wake(&word, 1));
        raw(notes, "two", wake(&word, 2));
        raw(notes, "all", wake(&word, i32::MAX as u32));
        raw(notes, "nobody any more", wake(&word, i32::MAX as u32));
        waiting.into_iter().for_each(|waiter| waiter());
    });
}

#[test]
fn waking_none_wakes_one() {
    // Linux counts before it compares.
    differ(true, |notes| {
        let word = Arc::new(AtomicU32::new(0));
        let waiting = waiters(&word, &[u32::MAX; 3]);
        thread::sleep(pause());
        raw(notes, "none", wake(&word, 0));
        raw(notes, "a negative number", wake(&word, u32::MAX));
        raw(notes, "the rest", wake(&word, 9));
        waiting.into_iter().for_each(|waiter| waiter());
    });
}

#[test]
fn bits_choose_who_is_woken() {
    differ(true, |notes| {
        let word = Arc::new(AtomicU32::new(0));
        let waiting = waiters(&word, &[1, 2, 3, 4]);
        thread::sleep(pause());
        let wake = |bits| futex(&word, FUTEX_WAKE_BITSET | FUTEX_PRIVATE_FLAG, 9, NO_TIME, bits);
        raw(notes, "nobody's", wake(8));
        raw(notes, "no bits", wake(0));
        raw(notes, "two have it", wake(2));
        raw(notes, "one is left", wake(1));
        raw(notes, "the last", wake(u32::MAX));
        waiting.into_iter().for_each(|waiter| waiter());
    });
}

#[test]
fn private_and_shared_are_told_apart() {
    differ(true, |notes| {
        let word = Arc::new(AtomicU32::new(0));
        let shared = Arc::clone(&word);
        let waiter = companion(move || assert_eq!(futex(&shared, FUTEX_WAIT, 0, NO_TIME, 0), 0));
        thread::sleep(pause());
        raw(notes, "private", wake(&word, 9));
        raw(notes, "shared", futex(&word, FUTEX_WAKE, 9, NO_TIME, 0));
        waiter();
    });
}

#[test]
fn a_thread_and_whoever_runs_here_wake_each_other() {
    differ(true, |notes| {
        let word = Arc::new(AtomicU32::new(0));
        let other = Arc::clone(&word);
        let thread = thread::spawn(move || {
            while wake(&other, 1) != 1 {
                thread::sleep(pause() / 20);
            }
            wait(&other, 0, NO_TIME)
        });
        raw(notes, "woken by a thread", wait(&word, 0, NO_TIME));
        thread::sleep(pause());
        raw(notes, "a thread woken", wake(&word, 1));
        notes.push(format!("{:?}", thread.join().unwrap()));
    });
}

/// `FUTEX_REQUEUE` and its comparing sibling: wakes some, and moves others to the second word.
fn requeue(from: &AtomicU32, operation: i32, wake: u32, moves: u64, to: &AtomicU32, expected: u32) -> i64 {
    // SAFETY: both words are live; the fourth argument is a number here.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            from.as_ptr(),
            operation | FUTEX_PRIVATE_FLAG,
            wake,
            moves,
            to.as_ptr(),
            expected,
        )
    }
}

#[test]
fn requeueing_says_how_many_it_reached() {
    differ(true, |notes| {
        for operation in [FUTEX_REQUEUE, FUTEX_CMP_REQUEUE] {
            let (from, to) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
            let waiting = waiters(&from, &[u32::MAX; 4]);
            thread::sleep(pause());
            raw(notes, "none there", requeue(&to, operation, 1, 9, &from, 0));
            raw(notes, "one woken, two moved", requeue(&from, operation, 1, 2, &to, 0));
            raw(notes, "one left", wake(&from, 9));
            // Those that were moved wait here; in fibers they were let go instead, as a futex's wait may end at any time.
            let moved = wake(&to, 9);
            notes.push(format!("{}", moved == 2 || moved == 0));
            waiting.into_iter().for_each(|waiter| waiter());
        }
    });
}

#[test]
fn requeueing_compares_first() {
    differ(true, |notes| {
        let (from, to) = (Arc::new(AtomicU32::new(0)), AtomicU32::new(0));
        let waiting = waiters(&from, &[u32::MAX; 2]);
        thread::sleep(pause());
        raw(notes, "changed", requeue(&from, FUTEX_CMP_REQUEUE, 1, 9, &to, 7));
        raw(notes, "both still wait", wake(&from, 9));
        waiting.into_iter().for_each(|waiter| waiter());
    });
}

extern "C" fn gives_back(value: *mut libc::c_void) -> *mut libc::c_void {
    thread::sleep(pause());
    value
}

fn start(value: usize, attributes: *const libc::pthread_attr_t) -> libc::pthread_t {
    let mut thread = 0;
    // SAFETY: the function takes any value.
    let answer = unsafe { libc::pthread_create(&mut thread, attributes, gives_back, value as *mut _) };
    assert_eq!(answer, 0);
    thread
}

#[test]
fn a_joined_thread_gives_its_value() {
    differ(true, |notes| {
        set_errno(libc::EXDEV);
        let thread = start(77, std::ptr::null());
        let mut value = std::ptr::null_mut();
        // SAFETY: a thread that nobody else joins.
        let answer = unsafe { libc::pthread_join(thread, &mut value) };
        notes.push(format!("{answer} {} {}", value as usize, errno()));
        let thread = start(78, std::ptr::null());
        thread::sleep(pause() * 2);
        // SAFETY: as above; it has ended by now.
        let answer = unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
        notes.push(format!("{answer}"));
    });
}

#[test]
fn whoever_joins_itself_is_told() {
    differ(false, |notes| {
        // SAFETY: no memory is involved.
        let answer = unsafe { libc::pthread_join(libc::pthread_self(), std::ptr::null_mut()) };
        notes.push(format!("{answer}"));
    });
}

#[test]
fn a_thread_that_belongs_to_nobody_is_not_joined() {
    differ(false, |notes| {
        // SAFETY: the attributes are initialised before use, and the thread lives while it is asked about.
        unsafe {
            let mut attributes = std::mem::zeroed();
            assert_eq!(libc::pthread_attr_init(&mut attributes), 0);
            libc::pthread_attr_setdetachstate(&mut attributes, libc::PTHREAD_CREATE_DETACHED);
            let thread = start(1, &attributes);
            notes.push(format!("{}", libc::pthread_join(thread, std::ptr::null_mut())));
            libc::pthread_attr_destroy(&mut attributes);
        }
    });
}

#[test]
fn several_join_threads_at_once() {
    differ(true, |notes| {
        let joiners: Vec<_> = (0..8u64)
            .map(|number| {
                companion(move || {
                    let thread = thread::spawn(move || {
                        thread::sleep(pause());
                        number * 2
                    });
                    assert_eq!(thread.join().unwrap(), number * 2);
                })
            })
            .collect();
        joiners.into_iter().for_each(|joiner| joiner());
        let word = AtomicU32::new(0);
        thread::scope(|scope| {
            scope.spawn(|| word.fetch_add(1, Ordering::SeqCst));
            scope.spawn(|| word.fetch_add(1, Ordering::SeqCst));
        });
        notes.push(format!("{}", word.into_inner()));
    });
}
