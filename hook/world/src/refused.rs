//! What a world does not have: whatever these make would run on the machine's own time, in the machine's own order.

use crate::{answer_done, list, real, set_errno};
use core::ffi::{c_char, c_int, c_uint, c_void};
use libc::{pid_t, pthread_attr_t, pthread_t};
use squall_hook::in_world_or;

list! { pthread_create fork epoll_create1 eventfd realpath }

/// Returns its error, as pthread functions do.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    start: extern "C" fn(*mut c_void) -> *mut c_void,
    argument: *mut c_void,
) -> c_int {
    in_world_or(
        |current, world| world.refuse(current, "pthread_create").0,
        // SAFETY: the caller's own arguments.
        || unsafe { real::pthread_create(thread, attributes, start, argument) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fork() -> pid_t {
    in_world_or(
        |current, world| answer_done(Err(world.refuse(current, "fork"))),
        // SAFETY: the caller's own decision.
        || unsafe { real::fork() },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_create1(flags: c_int) -> c_int {
    in_world_or(
        |current, world| answer_done(Err(world.refuse(current, "epoll_create1"))),
        // SAFETY: no memory is involved.
        || unsafe { real::epoll_create1(flags) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn eventfd(initial: c_uint, flags: c_int) -> c_int {
    in_world_or(
        |current, world| answer_done(Err(world.refuse(current, "eventfd"))),
        // SAFETY: no memory is involved.
        || unsafe { real::eventfd(initial, flags) },
    )
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realpath(path: *const c_char, resolved: *mut c_char) -> *mut c_char {
    in_world_or(
        |current, world| {
            set_errno(world.refuse(current, "realpath"));
            core::ptr::null_mut()
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::realpath(path, resolved) },
    )
}
