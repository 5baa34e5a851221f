//! The sleeping calls.

use crate::calls::*;
use crate::harness::*;
use std::thread;
use std::time::Duration;

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
fn whoever_sleeps_less_wakes_first() {
    differ(true, |notes| {
        let log = Log::default();
        let sleepers: Vec<_> = [3u32, 1, 2]
            .into_iter()
            .map(|number| {
                let log = log.clone();
                companion(move || {
                    thread::sleep(pause() * 3 * number);
                    log.note(format!("{number}"));
                })
            })
            .collect();
        sleepers.into_iter().for_each(|sleeper| sleeper());
        log.close(notes);
    });
}

#[test]
fn sleeping_for_no_time_returns() {
    differ(false, |notes| {
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let null = std::ptr::null_mut();
        // SAFETY: a live timespec.
        unsafe {
            raw(notes, "sleep", libc::sleep(0));
            raw(notes, "usleep", libc::usleep(0));
            raw(notes, "nanosleep", libc::nanosleep(&none, null));
            raw(notes, "clock", libc::clock_nanosleep(libc::CLOCK_REALTIME, 0, &none, null));
            raw(notes, "yield", libc::sched_yield());
        }
    });
}

#[test]
fn sleep_sleeps_for_seconds() {
    differ(true, |notes| {
        let log = Log::default();
        let order = log.clone();
        let other = companion(move || {
            thread::sleep(Duration::from_millis(700));
            order.note("the shorter");
        });
        // SAFETY: no memory is involved.
        let left = unsafe { libc::sleep(1) };
        log.note(format!("the longer, {left} left"));
        other();
        log.close(notes);
    });
}

#[test]
fn usleep_takes_more_than_a_second() {
    differ(true, |notes| {
        // SAFETY: no memory is involved.
        raw(notes, "usleep", unsafe { libc::usleep(1_000_001) });
    });
}

#[test]
fn every_clock_has_its_own_answer() {
    differ(true, |notes| {
        let short = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let null = std::ptr::null_mut();
        for clock in [
            libc::CLOCK_REALTIME,
            libc::CLOCK_MONOTONIC,
            libc::CLOCK_BOOTTIME,
            libc::CLOCK_TAI,
            libc::CLOCK_MONOTONIC_RAW,
            libc::CLOCK_MONOTONIC_COARSE,
            libc::CLOCK_THREAD_CPUTIME_ID,
            libc::CLOCK_REALTIME_ALARM,
            99,
            -1,
        ] {
            // SAFETY: a live timespec.
            raw(notes, "relative", unsafe { libc::clock_nanosleep(clock, 0, &short, null) });
            let past = libc::timespec { tv_sec: 1, tv_nsec: 0 };
            // SAFETY: as above.
            raw(notes, "long past", unsafe {
                libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &past, null)
            });
        }
    });
}

#[test]
fn a_moment_on_a_clock_is_waited_for() {
    differ(true, |notes| {
        for clock in [libc::CLOCK_REALTIME, libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_TAI] {
            let mut moment = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let mut after = moment;
            let null = std::ptr::null_mut();
            // SAFETY: live timespecs.
            unsafe {
                libc::clock_gettime(clock, &mut moment);
                moment.tv_nsec += 20_000_000;
                if moment.tv_nsec >= 1_000_000_000 {
                    (moment.tv_sec, moment.tv_nsec) = (moment.tv_sec + 1, moment.tv_nsec - 1_000_000_000);
                }
                let answer = libc::clock_nanosleep(clock, libc::TIMER_ABSTIME, &moment, null);
                raw(notes, "clock_nanosleep", answer);
                libc::clock_gettime(clock, &mut after);
            }
            let is_after = (after.tv_sec, after.tv_nsec) >= (moment.tv_sec, moment.tv_nsec);
            notes.push(format!("not too early: {is_after}"));
        }
    });
}

#[test]
fn what_is_left_of_a_sleep_is_told_only_of_one_that_was_cut_short() {
    differ(true, |notes| {
        let short = libc::timespec { tv_sec: 0, tv_nsec: 3_000_000 };
        let mut left = libc::timespec { tv_sec: 7, tv_nsec: 7 };
        // SAFETY: live timespecs.
        unsafe {
            raw(notes, "nanosleep", libc::nanosleep(&short, &mut left));
            raw(notes, "clock", libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &short, &mut left));
        }
        notes.push(format!("{} {}", left.tv_sec, left.tv_nsec));
    });
}

#[test]
fn null_pointers_are_refused() {
    differ(false, |notes| {
        let null = std::ptr::null();
        // SAFETY: the kernel judges the pointers.
        unsafe {
            raw(notes, "nanosleep", libc::nanosleep(null, std::ptr::null_mut()));
            let clock = libc::CLOCK_MONOTONIC;
            raw(notes, "clock", libc::clock_nanosleep(clock, 0, null, std::ptr::null_mut()));
        }
    });
}

#[test]
fn sleeping_keeps_errno() {
    differ(true, |notes| {
        let short = libc::timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let bad = libc::timespec { tv_sec: 0, tv_nsec: -1 };
        let null = std::ptr::null_mut();
        set_errno(libc::EXDEV);
        // SAFETY: live timespecs.
        let answers = unsafe {
            [
                libc::usleep(2000),
                libc::nanosleep(&short, null),
                libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &short, null),
                // This one answers with the error instead of setting errno.
                libc::clock_nanosleep(libc::CLOCK_MONOTONIC, 0, &bad, null),
            ]
        };
        notes.push(format!("{answers:?} {}", errno()));
    });
}
