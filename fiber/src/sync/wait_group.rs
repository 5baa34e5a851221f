//! A wait group: who waits for a number of tasks, not known beforehand, to end.

use super::error::WaitError;
use super::shim::{AtomicUsize, Latch, Ordering};
use super::wait::{End, Patience, Queue, Reason, wait, wake_all};
use crate::fiber::WaitKind;
use crate::interrupt::Interrupt;
use core::fmt;
use std::sync::Arc;
use std::time::Duration;

struct Inner {
    /// Falls from 1 to 0 only under the lock, so that whoever has looked at it there and waits is found.
    tasks: AtomicUsize,
    state: Latch<State>,
}

struct State {
    /// Of each waiter its number.
    queue: Queue<u64>,
    /// How many have ever waited.
    count: u64,
}

/// Waits for tasks to end. Each holds a [`Task`], which counts until it is dropped, also by a panic.
///
/// ```
/// use squall_fiber::sync::WaitGroup;
///
/// let group = WaitGroup::new();
/// for _ in 0..10 {
///     let task = group.task();
///     squall_fiber::spawn(move || {
///         // Work; the task ends with the closure that owns it.
///         drop(task);
///     });
/// }
/// group.wait().unwrap();
/// assert_eq!(group.tasks(), 0);
/// ```
#[derive(Clone)]
pub struct WaitGroup {
    inner: Arc<Inner>,
}

impl WaitGroup {
    /// Without tasks.
    pub fn new() -> Self {
        let state = Latch::new(State { queue: Queue::new(), count: 0 });
        Self { inner: Arc::new(Inner { tasks: AtomicUsize::new(0), state }) }
    }

    /// Adds a task.
    ///
    /// # Blocking
    /// Never.
    pub fn task(&self) -> Task {
        self.inner.tasks.fetch_add(1, Ordering::Relaxed);
        Task { inner: Arc::clone(&self.inner) }
    }

    /// How many tasks there are now.
    pub fn tasks(&self) -> usize {
        self.inner.tasks.load(Ordering::Acquire)
    }

    /// Waits until there is no task, now or at some moment of the wait.
    ///
    /// # Errors
    /// What interrupted the wait.
    ///
    /// # Blocking
    /// Suspends the fiber; outside a fiber, blocks the thread. For ever, if the caller itself holds a task.
    pub fn wait(&self) -> Result<(), Interrupt> {
        self.inner.wait(Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)
    }

    /// As [`WaitGroup::wait`], for at most `timeout`.
    ///
    /// # Errors
    /// Why the wait ended while there were tasks.
    ///
    /// # Blocking
    /// As [`WaitGroup::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<(), WaitError> {
        self.inner.wait(Patience::at_most(timeout))
    }
}

impl Inner {
    fn wait(&self, patience: Patience) -> Result<(), WaitError> {
        let mut state = self.state.lock();
        if self.tasks.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let number = state.count;
        state.count += 1;
        let reason = Reason::new(WaitKind::WaitGroup, self);
        let place = (End::Back, number);
        wait(&self.state, state, |state| &mut state.queue, place, (reason, patience), || ())
            .map(|_| ())
            .map_err(|withdrawn| withdrawn.error)
    }

    fn end_task(&self) {
        let not_the_last = |tasks| (tasks > 1).then(|| tasks - 1);
        if self.tasks.fetch_update(Ordering::AcqRel, Ordering::Relaxed, not_the_last).is_ok() {
            return;
        }
        let state = self.state.lock();
        if self.tasks.fetch_sub(1, Ordering::AcqRel) == 1 {
            let end = state.count;
            wake_all(&self.state, state, |state| state.queue.grant_if(|number| *number < end, |_| ()));
        }
    }
}

impl Default for WaitGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WaitGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitGroup").field("tasks", &self.tasks()).finish_non_exhaustive()
    }
}

/// What a [`WaitGroup`] waits to see dropped. A clone is one more task.
#[must_use = "the task ends as soon as this is dropped"]
pub struct Task {
    inner: Arc<Inner>,
}

impl Clone for Task {
    fn clone(&self) -> Self {
        self.inner.tasks.fetch_add(1, Ordering::Relaxed);
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.inner.end_task();
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").finish_non_exhaustive()
    }
}
