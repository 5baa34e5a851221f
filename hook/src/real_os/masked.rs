//! Waits with a signal mask of their own (`ppoll`, `pselect`, `epoll_pwait`, `sigsuspend`) and waits for signals (`sigwait`).
//!
//! Masks and pending signals belong to threads, and a worker's thread serves other fibers while one waits. So a thread of the blocking pool
//! waits in the fiber's stead, with the mask that the fiber asks for: a signal to the process that is blocked everywhere else is handled
//! there, and the fiber's call ends with EINTR. Signals to the worker's thread itself are looked for there, without waiting. All this happens in
//! slices of time, after each of which the fiber hears of its cancellation, and the pool's thread is free for others.

use super::wait::refuse_if_interrupted;
use crate::errno::{Errno, Result};
use crate::kernel;
use core::ffi::{c_int, c_long};
use core::mem::MaybeUninit;
use libc::{siginfo_t, sigset_t, timespec};
use squall_fiber::{Current, run_blocking};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const SLICE: Duration = Duration::from_millis(50);

/// The kernel's signal set is smaller than glibc's.
pub(crate) const SIGNAL_SET_BYTES: c_long = 8;

/// A signal mask as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mask(u64);

impl Mask {
    /// # Safety
    /// `set` is null or points to a set.
    pub(crate) unsafe fn new(set: *const sigset_t) -> Option<Self> {
        // SAFETY: by the contract; the kernel's set is the beginning of glibc's.
        (!set.is_null()).then(|| Self(unsafe { set.cast::<u64>().read() }))
    }

    /// The calling thread's.
    pub(crate) fn current() -> Self {
        let mut now = 0u64;
        let (how, at) = (libc::SIG_BLOCK.into(), &raw mut now as c_long);
        // SAFETY: only fills the set that it is given.
        let _ = unsafe { kernel::call(libc::SYS_rt_sigprocmask, [how, 0, at, SIGNAL_SET_BYTES, 0, 0]) };
        Self(now)
    }

    /// The mask, unless the thread has it anyhow, so that it makes no difference.
    pub(crate) fn unless_current(self) -> Option<Self> {
        (self != Self::current()).then_some(self)
    }
}

/// Calls `look` with how long it may wait: first not at all, then in slices, until it answers other than 0 or the time is up.
///
/// # Errors
/// Those of `look`; `ECANCELED` or `ETIMEDOUT` if the fiber was interrupted.
fn in_slices(
    current: Current<'_>,
    timeout: Option<Duration>,
    mut look: impl FnMut(timespec) -> Result<usize> + Send,
) -> Result<usize> {
    // A timeout beyond the end of the clock never comes.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        // Here, where a signal to this very thread is.
        let answer = look(timespec { tv_sec: 0, tv_nsec: 0 });
        if answer != Ok(0) {
            return answer;
        }
        let left = deadline.map_or(SLICE, |deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(0);
        }
        refuse_if_interrupted(current)?;
        let slice = timespec { tv_sec: 0, tv_nsec: left.min(SLICE).as_nanos() as c_long };
        let answer = run_blocking(|| look(slice));
        if answer != Ok(0) {
            return answer;
        }
    }
}

/// `ppoll` with a mask.
pub(crate) fn poll(
    current: Current<'_>,
    entries: &mut [libc::pollfd],
    timeout: Option<Duration>,
    mask: Mask,
) -> Result<usize> {
    in_slices(current, timeout, |mut time| {
        let (start, count) = (entries.as_mut_ptr() as c_long, entries.len() as c_long);
        let (time, mask) = (&raw mut time as c_long, &raw const mask as c_long);
        // SAFETY: live entries, a live time, and a mask of that size.
        unsafe { kernel::call(libc::SYS_ppoll, [start, count, time, mask, SIGNAL_SET_BYTES, 0]) }
    })
}

/// `epoll_pwait` with a mask. The wait is one for the epoll descriptor itself: `epoll_pwait` without time would not let a signal in.
pub(crate) fn wait_events(
    current: Current<'_>,
    epoll: RawFd,
    events: &mut [MaybeUninit<libc::epoll_event>],
    timeout: Option<Duration>,
    mask: Mask,
) -> Result<usize> {
    let capacity = events.len().min(c_int::MAX as usize) as c_int;
    // A timeout beyond the end of the clock never comes.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        // SAFETY: room for so many events.
        let ready = unsafe { kernel::events_now(epoll, events.as_mut_ptr().cast(), capacity) };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if ready != Ok(0) || left == Some(Duration::ZERO) {
            return ready;
        }
        poll(current, &mut [libc::pollfd { fd: epoll, events: libc::POLLIN, revents: 0 }], left, mask)?;
    }
}

/// `sigtimedwait`: takes one of the signals in `set`, which are to be blocked.
///
/// # Errors
/// `EAGAIN` if none came in time; `ECANCELED` or `ETIMEDOUT` if the fiber was interrupted.
pub(crate) fn take_signal(
    current: Current<'_>,
    set: Mask,
    info: &mut MaybeUninit<siginfo_t>,
    timeout: Option<Duration>,
) -> Result<usize> {
    struct Room<'a>(&'a mut MaybeUninit<siginfo_t>);
    // SAFETY: plain bytes, lent to one thread at a time: the fiber waits meanwhile.
    unsafe impl Send for Room<'_> {}
    let room = Room(info);
    let answer = in_slices(current, timeout, move |time| {
        let room = &room;
        let (set, info, time) =
            (&raw const set as c_long, room.0.as_ptr() as c_long, &raw const time as c_long);
        // SAFETY: a set of that size, room for the answer, and a live time.
        match unsafe { kernel::call(libc::SYS_rt_sigtimedwait, [set, info, time, SIGNAL_SET_BYTES, 0, 0]) } {
            // None yet, or another signal, whose handler has run on a thread that is not the fiber's.
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            answer => answer,
        }
    });
    if answer == Ok(0) { Err(Errno::AGAIN) } else { answer }
}
