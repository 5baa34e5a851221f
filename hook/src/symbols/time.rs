//! Sleeping.

use crate::errno::{Errno, Result};
use crate::futex::deadline_on;
use crate::os::in_fiber_or;
use crate::real;
use core::ffi::{c_int, c_uint};
use libc::{timespec, useconds_t};
use std::time::{Duration, Instant};

/// The duration in a timespec; `None` if the kernel would refuse it.
///
/// # Safety
/// `time` is null or points to a timespec.
unsafe fn duration(time: *const timespec) -> Option<Duration> {
    // SAFETY: by the contract.
    let time = unsafe { time.as_ref() }?;
    let valid = time.tv_sec >= 0 && (0..1_000_000_000).contains(&time.tv_nsec);
    valid.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// A timeout as `ppoll` and `pselect` take it: null is "for ever".
///
/// # Safety
/// `time` is null or points to a timespec.
pub(super) unsafe fn timeout(time: *const timespec) -> Result<Option<Duration>> {
    if time.is_null() {
        return Ok(None);
    }
    // SAFETY: by the contract.
    unsafe { duration(time) }.map(Some).ok_or(Errno::INVAL)
}

/// Sleeps in a fiber; says how much of the time is left if the fiber was interrupted.
///
/// The callers below do not say `EINTR`, as a signal would make them: whoever gets that sleeps on for what is left (std does), and
/// would do so for ever.
fn sleep_in_fiber(current: squall_fiber::Current<'_>, os: &dyn crate::Os, duration: Duration) -> Duration {
    let deadline = Instant::now().checked_add(duration);
    os.sleep_until(current, deadline);
    deadline.map_or(duration, |deadline| deadline.saturating_duration_since(Instant::now()))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sleep(seconds: c_uint) -> c_uint {
    in_fiber_or!(
        |current, os| {
            let left = sleep_in_fiber(current, os, Duration::from_secs(seconds as u64));
            // Begun seconds count: 0 would say that all of them are over.
            left.as_secs() as c_uint + c_uint::from(left.subsec_nanos() > 0)
        },
        // SAFETY: no memory is involved.
        || unsafe { real::sleep(seconds) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn usleep(microseconds: useconds_t) -> c_int {
    in_fiber_or!(
        |current, os| {
            sleep_in_fiber(current, os, Duration::from_micros(microseconds as u64));
            0
        },
        // SAFETY: no memory is involved.
        || unsafe { real::usleep(microseconds) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn nanosleep(request: *const timespec, remaining: *mut timespec) -> c_int {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes a timespec.
            let Some(duration) = (unsafe { duration(request) }) else {
                real::set_errno(if request.is_null() { libc::EFAULT } else { libc::EINVAL });
                return -1;
            };
            sleep_in_fiber(current, os, duration);
            0
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::nanosleep(request, remaining) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn clock_nanosleep(
    clock: c_int,
    flags: c_int,
    request: *const timespec,
    remaining: *mut timespec,
) -> c_int {
    in_fiber_or!(
        |current, os| {
            if !matches!(
                clock,
                libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC | libc::CLOCK_BOOTTIME | libc::CLOCK_TAI
            ) {
                // CPU-time clocks: they stand still while a fiber waits.
                // SAFETY: the caller's own arguments.
                return unsafe { real::clock_nanosleep(clock, flags, request, remaining) };
            }
            // SAFETY: the caller passes a timespec.
            let Some(duration) = (unsafe { duration(request) }) else {
                return if request.is_null() { libc::EFAULT } else { libc::EINVAL };
            };
            if (flags & libc::TIMER_ABSTIME) != 0 {
                // SAFETY: not null, since it had a duration.
                os.sleep_until(current, deadline_on(clock, unsafe { &*request }));
            } else {
                sleep_in_fiber(current, os, duration);
            }
            0
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::clock_nanosleep(clock, flags, request, remaining) },
    )
}

/// Spinning code yields to let a lock's holder run, which may be a fiber of the same worker.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sched_yield() -> c_int {
    in_fiber_or!(
        |current, _| {
            current.yield_now();
            0
        },
        // SAFETY: no arguments.
        || unsafe { real::sched_yield() },
    )
}
