//! pthread's locks, condition variables, semaphores and the like, and C11's names for them.
//!
//! Signal masks, cancellation and attributes are untouched.

use super::time;
use crate::errno::answer_int;
use crate::objects::{self, Hold, Limit, Next};
use crate::os::in_fiber_or;
use crate::real;
use core::ffi::{c_int, c_void};
use libc::{
    clockid_t, pthread_barrier_t, pthread_cond_t, pthread_mutex_t, pthread_once_t, pthread_rwlock_t,
    pthread_spinlock_t, pthread_t, sem_t, timespec,
};

/// Absolute times of functions that name no clock.
const REALTIME: clockid_t = libc::CLOCK_REALTIME;

fn knows_clock(clock: clockid_t) -> bool {
    matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_MONOTONIC)
}

/// Defines functions that wait for an object: without a limit, until a time on the usual clock, until a time on a clock that is
/// given.
macro_rules! waits {
    ($(
        $plain:ident $timed:ident $clocked:ident ($object:ident: $type:ty) = |$current:ident, $limit:ident| $wait:expr;
    )*) => {
        $(
            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $plain($object: *mut $type) -> c_int {
                in_fiber_or!(
                    |$current, _| {
                        let $limit = Limit::NONE;
                        // SAFETY: the caller's own arguments.
                        unsafe { $wait }
                    },
                    // SAFETY: as above.
                    || unsafe { real::$plain($object) }
                )
            }

            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $timed($object: *mut $type, time: *const timespec) -> c_int {
                in_fiber_or!(
                    |$current, _| {
                        // SAFETY: the caller passes a timespec.
                        let $limit = unsafe { Limit::at(REALTIME, time) };
                        // SAFETY: the caller's own arguments.
                        unsafe { $wait }
                    },
                    // SAFETY: as above.
                    || unsafe { real::$timed($object, time) }
                )
            }

            #[unsafe(no_mangle)]
            pub(super) unsafe extern "C" fn $clocked(
                $object: *mut $type,
                clock: clockid_t,
                time: *const timespec,
            ) -> c_int {
                in_fiber_or!(
                    |$current, _| {
                        if !knows_clock(clock) {
                            // SAFETY: as below; refused at once.
                            return unsafe { real::$clocked($object, clock, time) };
                        }
                        // SAFETY: the caller passes a timespec.
                        let $limit = unsafe { Limit::at(clock, time) };
                        // SAFETY: the caller's own arguments.
                        unsafe { $wait }
                    },
                    // SAFETY: as above.
                    || unsafe { real::$clocked($object, clock, time) }
                )
            }
        )*
    };
}

waits! {
    pthread_mutex_lock pthread_mutex_timedlock pthread_mutex_clocklock (mutex: pthread_mutex_t)
        = |current, limit| objects::mutex_lock(current, mutex, limit);
    pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_clockrdlock (rwlock: pthread_rwlock_t)
        = |current, limit| objects::rwlock_lock(current, rwlock, Hold::Read, limit);
    pthread_rwlock_wrlock pthread_rwlock_timedwrlock pthread_rwlock_clockwrlock (rwlock: pthread_rwlock_t)
        = |current, limit| objects::rwlock_lock(current, rwlock, Hold::Write, limit);
    sem_wait sem_timedwait sem_clockwait (semaphore: sem_t)
        = |current, limit| answer_int(objects::semaphore_wait(current, semaphore, limit));
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_mutex_unlock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's own arguments.
    unsafe { objects::mutex_unlock(mutex) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_rwlock_unlock(rwlock: *mut pthread_rwlock_t) -> c_int {
    // SAFETY: the caller's own arguments.
    let answer = unsafe { real::pthread_rwlock_unlock(rwlock) };
    objects::released(rwlock as usize, Next::OneOrReaders);
    answer
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn sem_post(semaphore: *mut sem_t) -> c_int {
    // SAFETY: the caller's own arguments.
    let answer = unsafe { real::sem_post(semaphore) };
    objects::released(semaphore as usize, Next::One);
    answer
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_spin_lock(lock: *mut pthread_spinlock_t) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments.
        |current, _| unsafe { objects::spin_lock(current, lock) },
        // SAFETY: as above.
        || unsafe { real::pthread_spin_lock(lock) }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_cond_wait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments.
        |current, _| unsafe { objects::condition_wait(current, condition, mutex, Limit::NONE) },
        // SAFETY: as above.
        || unsafe {
            if objects::fibers_wait()
                && let Some(answer) = objects::condition_wait_in_thread(condition, mutex, Limit::NONE)
            {
                return answer;
            }
            real::pthread_cond_wait(condition, mutex)
        }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_cond_timedwait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    time: *const timespec,
) -> c_int {
    // SAFETY: the caller passes a condition variable and a timespec.
    let limit = || unsafe { Limit::at(objects::clock_of(condition), time) };
    in_fiber_or!(
        // SAFETY: the caller's own arguments.
        |current, _| unsafe { objects::condition_wait(current, condition, mutex, limit()) },
        // SAFETY: as above.
        || unsafe {
            if objects::fibers_wait()
                && let Some(answer) = objects::condition_wait_in_thread(condition, mutex, limit())
            {
                return answer;
            }
            real::pthread_cond_timedwait(condition, mutex, time)
        }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_cond_clockwait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    clock: clockid_t,
    time: *const timespec,
) -> c_int {
    if !knows_clock(clock) {
        // SAFETY: the caller's own arguments; refused at once.
        return unsafe { real::pthread_cond_clockwait(condition, mutex, clock, time) };
    }
    // SAFETY: the caller passes a timespec.
    let limit = || unsafe { Limit::at(clock, time) };
    in_fiber_or!(
        // SAFETY: the caller's own arguments.
        |current, _| unsafe { objects::condition_wait(current, condition, mutex, limit()) },
        // SAFETY: as above.
        || unsafe {
            if objects::fibers_wait()
                && let Some(answer) = objects::condition_wait_in_thread(condition, mutex, limit())
            {
                return answer;
            }
            real::pthread_cond_clockwait(condition, mutex, clock, time)
        }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_cond_signal(condition: *mut pthread_cond_t) -> c_int {
    if objects::signal(condition, 1) == 1 {
        return 0;
    }
    // SAFETY: the caller's own arguments.
    unsafe { real::pthread_cond_signal(condition) }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_cond_broadcast(condition: *mut pthread_cond_t) -> c_int {
    objects::signal(condition, usize::MAX);
    // SAFETY: the caller's own arguments.
    unsafe { real::pthread_cond_broadcast(condition) }
}

/// On the blocking pool: a barrier for more fibers than the pool has threads never opens.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_barrier_wait(barrier: *mut pthread_barrier_t) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments, valid while it waits. Which thread waits at a barrier makes no difference.
        |_, _| unsafe { objects::on_pool(barrier, |barrier| real::pthread_barrier_wait(barrier)) },
        // SAFETY: as above.
        || unsafe { real::pthread_barrier_wait(barrier) }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn pthread_once(
    control: *mut pthread_once_t,
    initialise: extern "C-unwind" fn(),
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments.
        |current, _| unsafe { objects::once(current, control, initialise) },
        // SAFETY: as above.
        || unsafe { real::pthread_once(control, initialise) }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_join(thread: pthread_t, value: *mut *mut c_void) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments, valid while it waits.
        |_, _| unsafe {
            // Not with one of the pool's few threads, if the other has ended.
            match real::pthread_tryjoin_np(thread, value) {
                // The thread that would join it on the fiber's behalf is another, and would wait for ever.
                libc::EBUSY if thread == libc::pthread_self() => libc::EDEADLK,
                libc::EBUSY => {
                    objects::on_pool((thread, value), |(thread, value)| real::pthread_join(thread, value))
                }
                answer => answer,
            }
        },
        // SAFETY: as above.
        || unsafe { real::pthread_join(thread, value) }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_timedjoin_np(
    thread: pthread_t,
    value: *mut *mut c_void,
    time: *const timespec,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments, valid while it waits.
        |_, _| unsafe {
            objects::on_pool((thread, value, time), |(thread, value, time)| {
                real::pthread_timedjoin_np(thread, value, time)
            })
        },
        // SAFETY: as above.
        || unsafe { real::pthread_timedjoin_np(thread, value, time) }
    )
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn pthread_clockjoin_np(
    thread: pthread_t,
    value: *mut *mut c_void,
    clock: clockid_t,
    time: *const timespec,
) -> c_int {
    in_fiber_or!(
        // SAFETY: the caller's own arguments, valid while it waits.
        |_, _| unsafe {
            objects::on_pool((thread, value, clock, time), |(thread, value, clock, time)| {
                real::pthread_clockjoin_np(thread, value, clock, time)
            })
        },
        // SAFETY: as above.
        || unsafe { real::pthread_clockjoin_np(thread, value, clock, time) }
    )
}

/// What C11's functions answer, as glibc numbers it.
const THRD_SUCCESS: c_int = 0;
const THRD_BUSY: c_int = 1;
const THRD_ERROR: c_int = 2;
const THRD_NOMEM: c_int = 3;
const THRD_TIMEDOUT: c_int = 4;

fn in_c11(error: c_int) -> c_int {
    match error {
        0 => THRD_SUCCESS,
        libc::EBUSY => THRD_BUSY,
        libc::ENOMEM => THRD_NOMEM,
        libc::ETIMEDOUT => THRD_TIMEDOUT,
        _ => THRD_ERROR,
    }
}

/// A `mtx_t` is a mutex, a `cnd_t` a condition variable, a `thrd_t` a thread and a `once_flag` a `pthread_once_t`: glibc's functions call
/// pthread's inside themselves.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mtx_lock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's own arguments.
    in_c11(unsafe { pthread_mutex_lock(mutex) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mtx_timedlock(mutex: *mut pthread_mutex_t, time: *const timespec) -> c_int {
    // SAFETY: the caller's own arguments.
    in_c11(unsafe { pthread_mutex_timedlock(mutex, time) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn mtx_unlock(mutex: *mut pthread_mutex_t) -> c_int {
    // SAFETY: the caller's own arguments.
    in_c11(unsafe { pthread_mutex_unlock(mutex) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn cnd_wait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
) -> c_int {
    // SAFETY: the caller's own arguments.
    in_c11(unsafe { pthread_cond_wait(condition, mutex) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn cnd_timedwait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    time: *const timespec,
) -> c_int {
    // SAFETY: the caller's own arguments.
    in_c11(unsafe { pthread_cond_timedwait(condition, mutex, time) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn cnd_signal(condition: *mut pthread_cond_t) -> c_int {
    // SAFETY: the caller's own arguments.
    in_c11(unsafe { pthread_cond_signal(condition) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn cnd_broadcast(condition: *mut pthread_cond_t) -> c_int {
    // SAFETY: the caller's own arguments.
    in_c11(unsafe { pthread_cond_broadcast(condition) })
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn thrd_sleep(request: *const timespec, remaining: *mut timespec) -> c_int {
    // SAFETY: the caller's own arguments.
    match unsafe { time::clock_nanosleep(REALTIME, 0, request, remaining) } {
        0 => 0,
        libc::EINTR => -1,
        _ => -2,
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn thrd_yield() {
    // SAFETY: no arguments.
    unsafe { time::sched_yield() };
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn thrd_join(thread: pthread_t, result: *mut c_int) -> c_int {
    let mut value = core::ptr::null_mut();
    // SAFETY: the caller's own arguments.
    let error = unsafe { pthread_join(thread, &mut value) };
    if error == 0 && !result.is_null() {
        // SAFETY: the caller passes null or room for the result, which glibc keeps in the pointer.
        unsafe { *result = value as usize as c_int };
    }
    in_c11(error)
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn call_once(
    control: *mut pthread_once_t,
    initialise: extern "C-unwind" fn(),
) {
    // SAFETY: the caller's own arguments.
    unsafe { pthread_once(control, initialise) };
}
