//! Clocks, randomness, and who one is.

use crate::{SHOWN, list, real, set_errno};
use core::ffi::{c_int, c_uint, c_void};
use core::mem::MaybeUninit;
use libc::{clockid_t, pid_t, size_t, ssize_t, timespec, timeval};
use squall_hook::{Errno, in_world_or};
use std::time::Duration;

list! { clock_gettime gettimeofday time getrandom getpid }

fn to_timespec(time: Duration) -> timespec {
    timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, result: *mut timespec) -> c_int {
    let store = |time| {
        // SAFETY: the caller passes a timespec, or null.
        match unsafe { result.as_mut() } {
            Some(result) => {
                *result = to_timespec(time);
                0
            }
            None => {
                set_errno(Errno(libc::EFAULT));
                -1
            }
        }
    };
    in_world_or(
        |current, world| store(world.clock(current, clock)),
        || match SHOWN.get() {
            Some(time) => store(time),
            // SAFETY: the caller's own arguments.
            None => unsafe { real::clock_gettime(clock, result) },
        },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gettimeofday(result: *mut timeval, zone: *mut c_void) -> c_int {
    in_world_or(
        |current, world| {
            let time = world.clock(current, libc::CLOCK_REALTIME);
            // SAFETY: the caller passes a timeval, or null.
            if let Some(result) = unsafe { result.as_mut() } {
                *result = timeval { tv_sec: time.as_secs() as i64, tv_usec: i64::from(time.subsec_micros()) };
            }
            0
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::gettimeofday(result, zone) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn time(result: *mut libc::time_t) -> libc::time_t {
    in_world_or(
        |current, world| {
            let seconds = world.clock(current, libc::CLOCK_REALTIME).as_secs() as libc::time_t;
            // SAFETY: the caller passes a time_t, or null.
            if let Some(result) = unsafe { result.as_mut() } {
                *result = seconds;
            }
            seconds
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::time(result) },
    )
}

/// What seeds std's hash maps in a fiber, and what the `getrandom` crate finds by its name.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    in_world_or(
        |current, world| {
            if length > 0 {
                // SAFETY: the caller passes a buffer of that length.
                let buffer =
                    unsafe { core::slice::from_raw_parts_mut(buffer.cast::<MaybeUninit<u8>>(), length) };
                world.fill_random(current, buffer);
            }
            length as ssize_t
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::getrandom(buffer, length, flags) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getpid() -> pid_t {
    in_world_or(
        |current, world| world.process_id(current),
        // SAFETY: no arguments.
        || unsafe { real::getpid() },
    )
}
