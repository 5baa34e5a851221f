//! Cancellation and deadlines: what ends a fiber's waits from outside, and what keeps them from being ended.
//!
//! Nothing is ever unwound by force. An interruption makes the wait that a fiber is in, or the next one it begins, end with a
//! reason of its own; the caller of the wait turns that into an error, and the code in the fiber returns it as any other.
//!
//! The deadline and the shield are the fiber's own and need no synchronisation: only `cancel` reaches in from outside (see
//! `State::listen` for how it meets a fiber that is about to wait).

use crate::context::with_current;
use crate::fiber::{Current, Inner, Wake};
use std::time::{Duration, Instant};

/// Why waits of a fiber end before their time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// [`crate::JoinHandle::cancel`] or [`crate::Fiber::cancel`] was called.
    Cancelled,
    /// The deadline of an enclosing [`with_deadline`] has passed.
    DeadlineExceeded,
}

impl From<Interrupt> for Wake {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Cancelled => Wake::Cancelled,
            Interrupt::DeadlineExceeded => Wake::Expired,
        }
    }
}

/// What a fiber's [`with_deadline`] and [`shield`] have set, restored by whoever set it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// The earliest deadline of the enclosing [`with_deadline`]s, up to the innermost shield.
    pub(crate) deadline: Option<Instant>,
    /// In a [`shield`]: cancellation is not heard.
    pub(crate) shielded: bool,
}

/// Puts a fiber's limits back when dropped, also by a panic.
struct Restore<'a> {
    inner: &'a Inner,
    limits: Limits,
}

impl<'a> Restore<'a> {
    fn after_change(current: Current<'a>, change: impl FnOnce(&mut Limits)) -> Self {
        let inner = current.inner();
        let limits = inner.limits.get();
        let mut changed = limits;
        change(&mut changed);
        inner.limits.set(changed);
        Self { inner, limits }
    }
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        self.inner.limits.set(self.limits);
    }
}

/// Calls `f` with a limit on how long it may wait: once `duration` has passed, the wait that the fiber is in and every further
/// one inside `f` end with an error: hooked calls with `ETIMEDOUT`, sleeps early. Of nested deadlines the earliest counts.
///
/// Computing is not interrupted, and neither are the waits that know no errors: locks of std and parking_lot, joins, calls on the
/// blocking pool that have begun. Outside a fiber it only calls `f`.
///
/// ```
/// use std::time::{Duration, Instant};
///
/// let started = Instant::now();
/// let fiber = squall_fiber::spawn(|| {
///     squall_fiber::with_deadline(Duration::from_millis(10), || {
///         squall_fiber::sleep(Duration::from_secs(3600));
///     })
/// });
/// fiber.join().unwrap();
/// assert!(started.elapsed() < Duration::from_secs(3600));
/// ```
///
/// # Blocking
/// As `f` does.
pub fn with_deadline<T>(duration: Duration, f: impl FnOnce() -> T) -> T {
    // A deadline past the end of the clock never comes.
    let deadline = Instant::now().checked_add(duration);
    with_limits(
        |limits| {
            limits.deadline = match (limits.deadline, deadline) {
                (Some(outer), Some(inner)) => Some(outer.min(inner)),
                (outer, inner) => outer.or(inner),
            }
        },
        f,
    )
}

/// Calls `f` deaf to cancellation and to the deadlines around it, so that cleaning up can still wait: flush a log, say goodbye
/// to a peer. A [`with_deadline`] inside `f` counts. Outside a fiber it only calls `f`.
///
/// ```
/// let fiber = squall_fiber::spawn(|| {
///     while !squall_fiber::is_cancelled() {
///         squall_fiber::park();
///     }
///     // Without the shield this would return at once.
///     squall_fiber::shield(|| squall_fiber::sleep(std::time::Duration::from_millis(1)));
/// });
/// fiber.cancel();
/// fiber.join().unwrap();
/// ```
///
/// # Blocking
/// As `f` does.
pub fn shield<T>(f: impl FnOnce() -> T) -> T {
    with_limits(|limits| *limits = Limits { deadline: None, shielded: true }, f)
}

fn with_limits<T>(change: impl FnOnce(&mut Limits), f: impl FnOnce() -> T) -> T {
    with_current(|current| {
        let _restore = current.map(|current| Restore::after_change(current, change));
        f()
    })
}

/// Whether the calling fiber has been cancelled, also inside a [`shield`]: for code that computes without waiting. Always false
/// outside a fiber.
///
/// # Blocking
/// Never.
pub fn is_cancelled() -> bool {
    with_current(|current| current.is_some_and(|current| current.inner().state.is_cancelled()))
}

impl Current<'_> {
    /// What would end an interruptible wait now, before it has begun: for calls that have no wait to be ended in, and refuse to
    /// begin instead. A [`shield`] hides what is around it.
    pub fn interruption(self) -> Option<Interrupt> {
        let limits = self.inner().limits.get();
        if !limits.shielded && self.inner().state.is_cancelled() {
            return Some(Interrupt::Cancelled);
        }
        let deadline = limits.deadline?;
        (Instant::now() >= deadline).then_some(Interrupt::DeadlineExceeded)
    }
}
