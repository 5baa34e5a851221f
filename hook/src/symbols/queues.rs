//! POSIX message queues. On Linux they are descriptors that can be polled, so a fiber waits for them in the reactor.

use super::time;
use crate::errno::{Errno, Result, answer_int, answer_size};
use crate::futex::deadline_on;
use crate::kernel;
use crate::os::in_fiber_or;
use crate::real;
use core::ffi::{c_char, c_int, c_long, c_uint};
use core::ptr::null;
use libc::{mqd_t, size_t, ssize_t, timespec};
use squall_fiber::{Current, Wake};
use squall_iomanager::descriptor::{Direction, slot};

/// Makes `attempt` until it need not wait. It is called with a time that is over: then the kernel says `ETIMEDOUT` where it would wait, and
/// `EAGAIN` where the user does not want to.
///
/// # Safety
/// `time` is null or points to a timespec.
unsafe fn transfer(
    current: Current<'_>,
    os: &dyn crate::Os,
    queue: mqd_t,
    direction: Direction,
    time: *const timespec,
    attempt: impl Fn(*const timespec) -> Result<usize>,
) -> Result<usize> {
    if let Some(world) = os.world() {
        return Err(world.refuse(current, "message queues"));
    }
    // SAFETY: by the contract.
    if unsafe { time::timeout(time) }.is_err() {
        return attempt(time);
    }
    let Some(slot) = slot(queue) else { return attempt(time) };
    // SAFETY: as above.
    let deadline = unsafe { time.as_ref() }.and_then(|time| deadline_on(libc::CLOCK_REALTIME, time));
    loop {
        let seen_edges = slot.edges(direction);
        match attempt(&timespec { tv_sec: 0, tv_nsec: 0 }) {
            Err(Errno::TIMEDOUT) => {}
            answer => return answer,
        }
        match slot.wait(direction, seen_edges, deadline) {
            Ok(Wake::Ready) => {}
            Ok(Wake::Cancelled) => return Err(Errno::CANCELED),
            Ok(Wake::TimedOut | Wake::Expired) => return Err(Errno::TIMEDOUT),
            Ok(Wake::Closed) => return Err(Errno::BADF),
            Err(error) => return Err(Errno(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mq_timedreceive(
    queue: mqd_t,
    message: *mut c_char,
    size: size_t,
    priority: *mut c_uint,
    time: *const timespec,
) -> ssize_t {
    in_fiber_or!(
        |current, os| {
            let (at, priority) = (message as c_long, priority as c_long);
            // SAFETY: the caller's own arguments, with another time.
            let attempt = |time: *const timespec| unsafe {
                let arguments = [queue.into(), at, size as c_long, priority, time as c_long, 0];
                kernel::call(libc::SYS_mq_timedreceive, arguments)
            };
            // SAFETY: the caller passes null or a timespec.
            answer_size(unsafe { transfer(current, os, queue, Direction::Read, time, attempt) })
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::mq_timedreceive(queue, message, size, priority, time) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mq_receive(
    queue: mqd_t,
    message: *mut c_char,
    size: size_t,
    priority: *mut c_uint,
) -> ssize_t {
    if !squall_fiber::in_fiber() {
        // SAFETY: the caller's own arguments.
        return unsafe { real::mq_receive(queue, message, size, priority) };
    }
    // SAFETY: without a time it is the same.
    unsafe { mq_timedreceive(queue, message, size, priority, null()) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mq_timedsend(
    queue: mqd_t,
    message: *const c_char,
    size: size_t,
    priority: c_uint,
    time: *const timespec,
) -> c_int {
    in_fiber_or!(
        |current, os| {
            let at = message as c_long;
            // SAFETY: the caller's own arguments, with another time.
            let attempt = |time: *const timespec| unsafe {
                let arguments = [queue.into(), at, size as c_long, priority.into(), time as c_long, 0];
                kernel::call(libc::SYS_mq_timedsend, arguments)
            };
            // SAFETY: the caller passes null or a timespec.
            answer_int(unsafe { transfer(current, os, queue, Direction::Write, time, attempt) }.map(|_| 0))
        },
        // SAFETY: the caller's own arguments.
        || unsafe { real::mq_timedsend(queue, message, size, priority, time) },
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mq_send(
    queue: mqd_t,
    message: *const c_char,
    size: size_t,
    priority: c_uint,
) -> c_int {
    if !squall_fiber::in_fiber() {
        // SAFETY: the caller's own arguments.
        return unsafe { real::mq_send(queue, message, size, priority) };
    }
    // SAFETY: without a time it is the same.
    unsafe { mq_timedsend(queue, message, size, priority, null()) }
}
