//! The life of descriptors: closing, duplicating, and their settings.

use crate::errno::{Errno, answer_int};
use crate::os::in_fiber_or;
use crate::real;
use crate::real_os::control::{control, note_duplicate};
use crate::real_os::wait::settings_changed;
use crate::real_os::{self, forget, forget_both, forget_range, window};
use crate::world::{World, in_world_or};
use core::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use libc::FILE;
use squall_fiber::Current;

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn close(fd: c_int) -> c_int {
    in_fiber_or!(|current, os| answer_int(os.close(current, fd).map(|()| 0)), || answer_int(
        real_os::close(fd).map(|()| 0)
    ),)
}

/// What stdio is about to close, without a call that a hook would see.
pub(super) fn forget_stream(stream: *mut FILE) {
    // SAFETY: the caller passes a stream, or null.
    let fd = if stream.is_null() { -1 } else { unsafe { libc::fileno(stream) } };
    if fd >= 0 {
        forget(fd);
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fclose(stream: *mut FILE) -> c_int {
    forget_stream(stream);
    // SAFETY: the caller's own arguments.
    unsafe { real::fclose(stream) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn freopen(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut FILE,
) -> *mut FILE {
    forget_stream(stream);
    // SAFETY: the caller's own arguments.
    unsafe { real::freopen(path, mode, stream) }
}

/// As `freopen`; what programs compiled for large files call.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn freopen64(
    path: *const c_char,
    mode: *const c_char,
    stream: *mut FILE,
) -> *mut FILE {
    // SAFETY: the same function on 64-bit Linux.
    unsafe { freopen(path, mode, stream) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    in_world_or(
        |current, world| answer_int(Err(world.refuse(current, "close_range"))),
        || {
            // With CLOSE_RANGE_CLOEXEC nothing is closed now.
            if first <= last && (flags & libc::CLOSE_RANGE_CLOEXEC as c_int) == 0 {
                forget_range(first, last);
            }
            // By its number, since not every glibc has the function.
            // SAFETY: no memory is involved.
            unsafe {
                real::syscall(libc::SYS_close_range, [first.into(), last.into(), flags.into(), 0, 0, 0])
                    as c_int
            }
        },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn closefrom(first: c_int) {
    let first = first.max(0);
    // SAFETY: no memory is involved.
    if unsafe { close_range(first as c_uint, c_uint::MAX, 0) } == 0 {
        return;
    }
    // A kernel before 5.9. There is no error to return.
    // SAFETY: no memory is involved; the caller gives up all these descriptors.
    unsafe {
        let limit = libc::sysconf(libc::_SC_OPEN_MAX).clamp(0, c_int::MAX.into()) as c_int;
        for fd in first..limit {
            let _ = real_os::close(fd);
        }
    }
}

/// `dup2` and `dup3` close what the target was, so whoever waits for it must learn of it first; but not if the call will fail.
fn forget_target(fd: c_int, target: c_int) {
    // SAFETY: F_GETFD takes no argument.
    if fd != target && unsafe { real::fcntl(fd, libc::F_GETFD, 0) } >= 0 {
        forget(target);
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn dup(fd: c_int) -> c_int {
    in_world_or(
        |current, world| answer_int(world.control(current, fd, libc::F_DUPFD, 0)),
        // SAFETY: no memory is involved.
        || note_duplicate(fd, unsafe { real::dup(fd) }),
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn dup2(fd: c_int, target: c_int) -> c_int {
    in_world_or(
        |current, world| answer_int(Err(world.refuse(current, "dup2"))),
        || {
            forget_target(fd, target);
            // SAFETY: no memory is involved.
            note_duplicate(fd, unsafe { real::dup2(fd, target) })
        },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn dup3(fd: c_int, target: c_int, flags: c_int) -> c_int {
    in_world_or(
        |current, world| answer_int(Err(world.refuse(current, "dup3"))),
        || {
            if (flags & !libc::O_CLOEXEC) == 0 {
                forget_target(fd, target);
            }
            // SAFETY: no memory is involved.
            note_duplicate(fd, unsafe { real::dup3(fd, target, flags) })
        },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pipe2(pair: *mut c_int, flags: c_int) -> c_int {
    in_world_or(
        |current, world| answer_int(Err(world.refuse(current, "pipe"))),
        || {
            // SAFETY: the caller's own arguments.
            let result = unsafe { real::pipe2(pair, flags) };
            if result == 0 {
                // SAFETY: the call has filled both.
                forget_both(unsafe { &*pair.cast::<[c_int; 2]>() });
            }
            result
        },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pipe(pair: *mut c_int) -> c_int {
    // SAFETY: pipe is pipe2 without flags.
    unsafe { pipe2(pair, 0) }
}

/// Variadic in C: the third argument, if any, travels in the same register as this one's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    in_fiber_or!(|current, os| answer_int(os.control(current, fd, command, argument)), || answer_int(
        control(fd, command, argument)
    ))
}

/// As `fcntl`; what programs compiled for large files call.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: c_ulong) -> c_int {
    // SAFETY: the same function on 64-bit Linux.
    unsafe { fcntl(fd, command, argument) }
}

/// Variadic in C, as `fcntl`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    in_world_or(
        // SAFETY: the caller's own arguments.
        |current, world| unsafe { ioctl_in_world(current, world, fd, request, argument) },
        // SAFETY: as above.
        || unsafe { plain_ioctl(fd, request, argument) },
    )
}

/// # Safety
/// `argument` is what the request takes.
unsafe fn ioctl_in_world(
    current: Current<'_>,
    world: &dyn World,
    fd: c_int,
    request: c_ulong,
    argument: *mut c_void,
) -> c_int {
    if !matches!(request, libc::FIONBIO | libc::FIONREAD) {
        return answer_int(Err(world.refuse(current, "ioctl")));
    }
    // SAFETY: both requests take a pointer to an int.
    match unsafe { argument.cast::<c_int>().as_mut() } {
        Some(argument) => answer_int(world.io_control(current, fd, request, argument).map(|()| 0)),
        None => answer_int(Err(Errno(libc::EFAULT))),
    }
}

/// # Safety
/// `argument` is what the request takes.
unsafe fn plain_ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's own arguments.
    let call = || unsafe { real::ioctl(fd, request, argument) };
    if request == libc::FIONBIO as c_ulong {
        let result = window::change(fd, call);
        settings_changed(fd);
        return result;
    }
    call()
}
