//! Waiting for signals. What a fiber waits for are signals to the process, which are to be blocked in all of its threads; see
//! [`masked`].

use super::time;
use crate::errno::{Errno, answer_int};
use crate::os::in_fiber_or;
use crate::real;
use crate::real_os::masked::{self, Mask};
use core::ffi::c_int;
use core::mem::MaybeUninit;
use libc::{siginfo_t, sigset_t, timespec};
use squall_fiber::Current;
use std::time::Duration;

/// # Safety
/// `set` is null or points to a set, `info` is null or points to room for the answer.
unsafe fn take(
    current: Current<'_>,
    os: &dyn crate::Os,
    set: *const sigset_t,
    info: *mut siginfo_t,
    timeout: Option<Duration>,
) -> crate::Result<c_int> {
    if let Some(world) = os.world() {
        return Err(world.refuse(current, "waiting for a signal"));
    }
    // SAFETY: by the contract.
    let set = unsafe { Mask::new(set) }.ok_or(Errno(libc::EFAULT))?;
    let mut taken = MaybeUninit::uninit();
    let signal = masked::take_signal(current, set, &mut taken, timeout)?;
    if !info.is_null() {
        // SAFETY: the call has filled it, and there is room for it.
        unsafe { info.write(taken.assume_init()) };
    }
    Ok(signal as c_int)
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sigwait(set: *const sigset_t, signal: *mut c_int) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes a set and room for the signal.
        |current, os| match unsafe { take(current, os, set, core::ptr::null_mut(), None) } {
            Ok(taken) => {
                // SAFETY: as above.
                unsafe { signal.write(taken) };
                0
            }
            Err(errno) => errno.0,
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::sigwait(set, signal) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes a set, and null or room for the answer.
        |current, os| answer_int(unsafe { take(current, os, set, info, None) }),
        // SAFETY: the caller's own arguments.
        || unsafe { real::sigwaitinfo(set, info) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sigtimedwait(
    set: *const sigset_t,
    info: *mut siginfo_t,
    timeout: *const timespec,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller passes a set, null or room for the answer, and null or a timespec.
        |current, os| answer_int(unsafe {
            time::timeout(timeout).and_then(|timeout| take(current, os, set, info, timeout))
        }),
        // SAFETY: the caller's own arguments.
        || unsafe { real::sigtimedwait(set, info, timeout) },
    )
}

/// Waits until a handler has run for a signal that the mask lets in. (`pause` lets in what all threads do, so any of them may run the handler: it
/// is not hooked.)
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sigsuspend(mask: *const sigset_t) -> c_int {
    in_fiber_or!(
        |current, os| {
            if let Some(world) = os.world() {
                return answer_int(Err(world.refuse(current, "sigsuspend")));
            }
            // SAFETY: the caller passes a mask.
            answer_int(match unsafe { Mask::new(mask) } {
                Some(mask) => masked::poll(current, &mut [], None, mask).map(|_| 0),
                None => Err(Errno(libc::EFAULT)),
            })
        },
        // SAFETY: the caller's own argument.
        || unsafe { real::sigsuspend(mask) },
    )
}
