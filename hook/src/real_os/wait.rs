//! The loop that all calls share: try, and if that would block, ask the kernel whether and how long the user wants to wait.
//!
//! The usual answer, "for ever", is remembered for the descriptor until anything in the process changes O_NONBLOCK or a timeout of it.
//! Duplicates share these settings, so a change through a descriptor that has some is a change of others that nobody can name: then
//! all descriptors are asked about again, which costs two system calls each, once.

use super::kind::{self, Kind};
use super::window;
use crate::errno::{Errno, Result};
use crate::real;
use core::sync::atomic::{AtomicU32, Ordering};
use squall_fiber::{Current, WaitKind, Wake};
use squall_iomanager::descriptor::{self, Direction, Slot};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// Tries until the answer is not `EAGAIN`, waiting in between as the descriptor's settings say.
#[inline]
pub(crate) fn retry<T>(
    fd: RawFd,
    slot: &Slot,
    direction: Direction,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut waiting = Waiting::new(fd, slot, direction);
    loop {
        let seen_edges = slot.edges(direction);
        match attempt() {
            Err(Errno::AGAIN) => waiting.wait(slot, seen_edges)?,
            answer => return answer,
        }
    }
}

/// [`retry`] for a read of up to `size` bytes, not 0, whose short counts are conclusive: waits at once where the last one has left nothing,
/// and notes it for the next.
#[inline]
pub(crate) fn retry_stream(
    fd: RawFd,
    slot: &Slot,
    size: usize,
    mut attempt: impl FnMut() -> Result<usize>,
) -> Result<usize> {
    let mut waiting = Waiting::new(fd, slot, Direction::Read);
    loop {
        let seen_edges = slot.edges(Direction::Read);
        // Whoever does not want to wait is owed a try: something may have come that the reactor has not reported yet.
        if slot.is_drained(seen_edges) && waiting.may_wait(slot) {
            waiting.wait(slot, seen_edges)?;
            continue;
        }
        match attempt() {
            Err(Errno::AGAIN) => waiting.wait(slot, seen_edges)?,
            Ok(count) => {
                // None at all is the end, which is reported again and again.
                if 0 < count && count < size {
                    slot.note_drained(seen_edges);
                }
                return Ok(count);
            }
            error => return error,
        }
    }
}

/// The waits of one call, which share one deadline.
pub(crate) struct Waiting {
    fd: RawFd,
    direction: Direction,
    deadline: Option<Option<Instant>>,
    /// Which of the number's successive owners the call is about.
    generation: u32,
}

impl Waiting {
    pub(crate) fn new(fd: RawFd, slot: &Slot, direction: Direction) -> Self {
        Self { fd, direction, deadline: None, generation: slot.generation() }
    }

    /// Until when the user wants to wait.
    ///
    /// # Errors
    /// `EAGAIN` if not at all.
    fn ask(&self, slot: &Slot) -> Result<Option<Instant>> {
        // Read before asking: a change in between leaves an old epoch behind, and the next wait asks again. Both counters only
        // grow, so their sum stands still only if both do.
        let epoch = SETTINGS_EPOCH.load(Ordering::Acquire).wrapping_add(slot.settings());
        if slot.unconditional_since(self.direction) == epoch {
            return Ok(None);
        }
        if is_nonblocking(self.fd)? {
            return Err(Errno::AGAIN);
        }
        let timeout = timeout(self.fd, self.direction);
        if timeout.is_none() {
            slot.set_unconditional_since(self.direction, epoch);
        }
        Ok(timeout.map(|timeout| Instant::now() + timeout))
    }

    /// Whether the user wants to wait at all.
    #[inline(never)]
    pub(crate) fn may_wait(&mut self, slot: &Slot) -> bool {
        if self.deadline.is_none() {
            self.deadline = self.ask(slot).ok();
        }
        self.deadline.is_some()
    }

    /// Waits for an edge after `seen_edges`.
    ///
    /// # Errors
    /// `EAGAIN` if the user does not want to wait, or the time is up; `EBADF` if the descriptor was closed meanwhile; `ECANCELED`
    /// or `ETIMEDOUT` if the fiber was interrupted.
    #[inline(never)]
    pub(crate) fn wait(&mut self, slot: &Slot, seen_edges: u32) -> Result<()> {
        let deadline = match self.deadline {
            // A pipe's wait looks at O_NONBLOCK each time around, any other at its beginning.
            Some(deadline) if !matches!(kind::of(slot), Some(Kind::NoWait | Kind::PollFirst)) => deadline,
            _ => *self.deadline.insert(self.ask(slot)?),
        };
        match slot.wait(self.direction, seen_edges, deadline) {
            // Between the wake-up and now the number may have gone to something else, whose data is not for this caller.
            Ok(Wake::Ready) if slot.generation() == self.generation => Ok(()),
            Ok(Wake::Ready) => Err(Errno::BADF),
            Ok(Wake::TimedOut) => Err(Errno::AGAIN),
            Ok(Wake::Cancelled) => Err(Errno::CANCELED),
            Ok(Wake::Expired) => Err(Errno::TIMEDOUT),
            Ok(Wake::Closed) => Err(Errno::BADF),
            Err(error) => Err(Errno(error.raw_os_error().unwrap_or(libc::EIO))),
        }
    }
}

/// The pauses between the tries of a call for which nothing tells when it need not wait any more. They grow.
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn up_to(longest: Duration) -> Self {
        Self { next: Duration::from_millis(1).min(longest), longest }
    }

    /// # Errors
    /// `EAGAIN` if `deadline` has passed; `ECANCELED` or `ETIMEDOUT` if the fiber was interrupted.
    pub(crate) fn make(&mut self, current: Current<'_>, deadline: Option<Instant>) -> Result<()> {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Errno::AGAIN);
        }
        let end = deadline.map_or(now + self.next, |deadline| deadline.min(now + self.next));
        self.next = (self.next * 2).min(self.longest);
        match current.begin_interruptible_wait(WaitKind::Sleep, 0).block_interruptible(Some(end)) {
            Wake::Cancelled => Err(Errno::CANCELED),
            Wake::Expired => Err(Errno::TIMEDOUT),
            Wake::Ready | Wake::TimedOut | Wake::Closed => Ok(()),
        }
    }
}

/// For calls on the blocking pool: once begun they cannot be interrupted, so an interrupted fiber does not begin them.
///
/// # Errors
/// `ECANCELED`, `ETIMEDOUT`.
pub(crate) fn refuse_if_interrupted(current: Current<'_>) -> Result<()> {
    match current.interruption() {
        Some(interrupt) => Err(Errno::of_interrupt(interrupt)),
        None => Ok(()),
    }
}

/// Counts the changes of settings that decide how a call waits, where they may concern any descriptor.
static SETTINGS_EPOCH: AtomicU32 = AtomicU32::new(1);

/// To be called after O_NONBLOCK or a timeout of some descriptor was changed.
pub(crate) fn settings_changed(fd: RawFd) {
    match descriptor::known_slot(fd) {
        Some(slot) if !slot.is_shared() && !super::UNKNOWN_DUPLICATES.load(Ordering::Relaxed) => {
            slot.settings_changed();
        }
        _ => {
            SETTINGS_EPOCH.fetch_add(1, Ordering::Release);
        }
    }
}

/// Whether the user has set O_NONBLOCK, by whatever way.
pub(crate) fn is_nonblocking(fd: RawFd) -> Result<bool> {
    Ok((window::flags(fd)? & libc::O_NONBLOCK) != 0)
}

/// SO_RCVTIMEO or SO_SNDTIMEO; `None` if not set or not a socket.
pub(crate) fn timeout(fd: RawFd, direction: Direction) -> Option<Duration> {
    let option = match direction {
        Direction::Read => libc::SO_RCVTIMEO,
        Direction::Write => libc::SO_SNDTIMEO,
    };
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = size_of::<libc::timeval>() as libc::socklen_t;
    // SAFETY: the option fills a timeval of the length given.
    let result =
        unsafe { real::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut value).cast(), &mut length) };
    let set = result == 0 && (value.tv_sec, value.tv_usec) != (0, 0);
    set.then(|| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000))
}
