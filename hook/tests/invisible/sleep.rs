//! The sleeping calls.

use crate::harness::*;

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
