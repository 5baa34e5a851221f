//! Waiting for several descriptors: select and epoll. (`poll` is with the files.)

use super::files::poll_with;
use super::time;
use crate::errno::{Errno, answer_int};
use crate::os::{PollEntry, in_fiber_or};
use crate::real;
use crate::real_os::masked::{self, Mask, SIGNAL_SET_BYTES};
use core::ffi::{c_int, c_short, c_uint, c_ulong};
use core::mem::MaybeUninit;
use libc::{epoll_event, fd_set, sigset_t, timespec, timeval};
use squall_fiber::Current;
use std::time::{Duration, Instant};

/// # Safety
/// `events` has room for `capacity` events, if that is positive.
unsafe fn epoll_in_fiber(
    current: Current<'_>,
    os: &dyn crate::Os,
    epoll: c_int,
    events: *mut epoll_event,
    capacity: c_int,
    timeout: Option<Duration>,
    mask: Option<Mask>,
) -> c_int {
    if capacity <= 0 {
        return answer_int(Err(Errno::INVAL));
    }
    // A simulation has no signals.
    let mask = mask.filter(|_| os.world().is_none()).and_then(Mask::unless_current);
    let wait = |events: &mut [MaybeUninit<epoll_event>]| match mask {
        Some(mask) => masked::wait_events(current, epoll, events, timeout, mask),
        None => os.wait_events(current, epoll, events, timeout),
    };
    if events.is_null() {
        // The kernel does not mind before there is something to store.
        return answer_int(match wait(&mut [MaybeUninit::uninit()]) {
            Ok(0) => Ok(0),
            Ok(_) => Err(Errno(libc::EFAULT)),
            Err(errno) => Err(errno),
        });
    }
    // SAFETY: by the contract.
    let events = unsafe {
        core::slice::from_raw_parts_mut(events.cast::<MaybeUninit<epoll_event>>(), capacity as usize)
    };
    answer_int(wait(events).map(|count| count as c_int))
}

fn from_ms(timeout_ms: c_int) -> Option<Duration> {
    u64::try_from(timeout_ms).ok().map(Duration::from_millis)
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    capacity: c_int,
    timeout_ms: c_int,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes that much room.
        |current, os| unsafe {
            epoll_in_fiber(current, os, epoll, events, capacity, from_ms(timeout_ms), None)
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::epoll_wait(epoll, events, capacity, timeout_ms) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn epoll_pwait(
    epoll: c_int,
    events: *mut epoll_event,
    capacity: c_int,
    timeout_ms: c_int,
    mask: *const sigset_t,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes that much room, and null or a mask.
        |current, os| unsafe {
            epoll_in_fiber(current, os, epoll, events, capacity, from_ms(timeout_ms), Mask::new(mask))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::epoll_pwait(epoll, events, capacity, timeout_ms, mask) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn epoll_pwait2(
    epoll: c_int,
    events: *mut epoll_event,
    capacity: c_int,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes null or a timespec, that much room, and null or a mask.
            unsafe {
                match time::timeout(timeout) {
                    Ok(timeout) => {
                        epoll_in_fiber(current, os, epoll, events, capacity, timeout, Mask::new(mask))
                    }
                    Err(errno) => answer_int(Err(errno)),
                }
            }
        },
        // By its number, since not every glibc has the function.
        // SAFETY: the caller's own arguments.
        || unsafe {
            let arguments =
                [epoll as _, events as _, capacity as _, timeout as _, mask as _, SIGNAL_SET_BYTES];
            real::syscall(libc::SYS_epoll_pwait2, arguments) as c_int
        },
    )
}

/// What each of select's sets asks for and is answered by, as the kernel's own `POLLIN_SET` and its siblings say.
const ASKS: [c_short; 3] = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
const ANSWERS: [c_short; 3] = [
    libc::POLLIN | libc::POLLHUP | libc::POLLERR | libc::POLLRDNORM | libc::POLLRDBAND,
    libc::POLLOUT | libc::POLLERR | libc::POLLWRNORM | libc::POLLWRBAND,
    libc::POLLPRI,
];

/// `select` by way of `poll`.
///
/// # Safety
/// Each set is null or valid for descriptors below `limit`.
unsafe fn select_in_fiber(
    current: Current<'_>,
    os: &dyn crate::Os,
    limit: c_int,
    sets: [*mut fd_set; 3],
    timeout: Option<Duration>,
    mask: Option<Mask>,
) -> c_int {
    if limit < 0 {
        return answer_int(Err(Errno::INVAL));
    }
    let limit = limit.min(libc::FD_SETSIZE as c_int);
    let asked = |fd: c_int| -> c_short {
        // SAFETY: by the contract, and `fd` is below the limit.
        let is_in = |set: *mut fd_set| !set.is_null() && unsafe { libc::FD_ISSET(fd, set) };
        sets.iter().zip(ASKS).filter(|(set, _)| is_in(**set)).fold(0, |events, (_, ask)| events | ask)
    };
    let mut entries: Vec<PollEntry> = (0..limit)
        .map(|fd| PollEntry { fd, events: asked(fd), revents: 0 })
        .filter(|entry| entry.events != 0)
        .collect();
    if let Err(errno) = poll_with(current, os, &mut entries, timeout, mask) {
        return answer_int(Err(errno));
    }
    if entries.iter().any(|entry| (entry.revents & libc::POLLNVAL) != 0) {
        return answer_int(Err(Errno::BADF));
    }
    // The kernel answers in whole words.
    for set in sets.into_iter().filter(|set| !set.is_null()) {
        for fd in limit..(limit as c_uint).next_multiple_of(c_ulong::BITS) as c_int {
            // SAFETY: the set is not null, and the words have room for these bits.
            unsafe { libc::FD_CLR(fd, set) };
        }
    }
    let mut ready = 0;
    for entry in &entries {
        for ((set, ask), answer) in sets.into_iter().zip(ASKS).zip(ANSWERS) {
            if (entry.events & ask) == 0 {
                continue;
            }
            if (entry.revents & answer) != 0 {
                ready += 1;
            } else {
                // SAFETY: the set is not null, since it asked for this descriptor.
                unsafe { libc::FD_CLR(entry.fd, set) };
            }
        }
    }
    answer_int(Ok(ready))
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn select(
    limit: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes null or a timeval.
            let time = unsafe { timeout.as_mut() };
            if time.as_ref().is_some_and(|time| time.tv_sec < 0 || time.tv_usec < 0) {
                return answer_int(Err(Errno::INVAL));
            }
            let wanted = time.as_ref().map(|time| {
                Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
            });
            let started = Instant::now();
            // SAFETY: the caller passes such sets.
            let ready = unsafe { select_in_fiber(current, os, limit, [read, write, except], wanted, None) };
            if let (Some(time), Some(wanted)) = (time, wanted) {
                // Linux tells how much of the time was left.
                let left = wanted.saturating_sub(started.elapsed());
                time.tv_sec = left.as_secs() as libc::time_t;
                time.tv_usec = left.subsec_micros().into();
            }
            ready
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::select(limit, read, write, except, timeout) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pselect(
    limit: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    in_fiber_or!(
        |current, os| {
            // SAFETY: the caller passes null or a timespec.
            let wanted = match unsafe { time::timeout(timeout) } {
                Ok(wanted) => wanted,
                Err(errno) => return answer_int(Err(errno)),
            };
            // SAFETY: the caller passes such sets, and null or a mask.
            unsafe {
                let mask = Mask::new(mask);
                select_in_fiber(current, os, limit, [read, write, except], wanted, mask)
            }
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::pselect(limit, read, write, except, timeout, mask) },
    )
}
