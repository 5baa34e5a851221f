//! Condition variables: a queue of those who wait, each numbered, so that `notify_all` wakes those who were there when it began.

use super::error::WaitError;
use super::mutex::MutexGuard;
use super::shim::{AtomicBool, Latch, Ordering, constructor};
use super::wait::{End, Patience, Queue, Reason, Waiter, wait, wake_all};
use crate::fiber::WaitKind;
use crate::interrupt::Interrupt;
use core::fmt;
use std::time::Duration;

struct State {
    /// Of each waiter its number.
    queue: Queue<u64>,
    /// How many have ever waited.
    count: u64,
}

/// Lets those who hold a [`Mutex`](super::Mutex) wait until another has changed what it guards.
///
/// The guard stays with the caller: it is released during the wait, and held again when the call returns, also when it returns an
/// error.
///
/// ```
/// use squall_fiber::sync::{Condvar, Mutex};
/// use std::sync::Arc;
///
/// let pair = Arc::new((Mutex::new(false), Condvar::new()));
/// let theirs = Arc::clone(&pair);
/// let fiber = squall_fiber::spawn(move || {
///     let (is_ready, changed) = &*theirs;
///     *is_ready.lock() = true;
///     changed.notify_one();
/// });
/// let (is_ready, changed) = &*pair;
/// let mut guard = is_ready.lock();
/// changed.wait_while(&mut guard, |is_ready| !*is_ready).unwrap();
/// assert!(*guard);
/// drop(guard);
/// fiber.join().unwrap();
/// ```
pub struct Condvar {
    state: Latch<State>,
    /// Whether the queue may be occupied. Changes under the lock; see [`Condvar::has_waiters`] for who may read it without.
    is_occupied: AtomicBool,
}

impl Condvar {
    constructor! {
        /// Nobody waits.
        pub fn new() -> Self {
            Self {
                state: Latch::new(State { queue: Queue::new(), count: 0 }),
                is_occupied: AtomicBool::new(false),
            }
        }
    }

    /// Waits for [`Condvar::notify_one`] or [`Condvar::notify_all`]. There are no spurious returns, but others may have changed the
    /// data before this one holds the lock again.
    ///
    /// # Errors
    /// What interrupted the wait.
    ///
    /// # Panics
    /// When the mutex has been poisoned meanwhile.
    ///
    /// # Blocking
    /// Suspends the fiber; outside a fiber, blocks the thread. Taking the lock again is part of it, and is never interrupted.
    #[track_caller]
    pub fn wait<T: ?Sized>(&self, guard: &mut MutexGuard<'_, T>) -> Result<(), Interrupt> {
        self.wait_for(guard, Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)
    }

    /// As [`Condvar::wait`], for at most `timeout`.
    ///
    /// # Errors
    /// Why the wait ended without a notification.
    ///
    /// # Panics
    /// As [`Condvar::wait`].
    ///
    /// # Blocking
    /// As [`Condvar::wait`].
    #[track_caller]
    pub fn wait_timeout<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        timeout: Duration,
    ) -> Result<(), WaitError> {
        self.wait_for(guard, Patience::at_most(timeout))
    }

    /// Waits as long as `condition` says that there is reason to.
    ///
    /// # Errors
    /// What interrupted the wait, while the condition still held.
    ///
    /// # Panics
    /// As [`Condvar::wait`].
    ///
    /// # Blocking
    /// As [`Condvar::wait`].
    #[track_caller]
    pub fn wait_while<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> Result<(), Interrupt> {
        let mut result = Ok(());
        // The condition decides, however the wait has ended.
        while condition(&mut **guard) {
            result?;
            result = self.wait(guard);
        }
        Ok(())
    }

    /// As [`Condvar::wait_while`], for at most `timeout` in all.
    ///
    /// # Errors
    /// Why the wait ended, while the condition still held.
    ///
    /// # Panics
    /// As [`Condvar::wait`].
    ///
    /// # Blocking
    /// As [`Condvar::wait`].
    #[track_caller]
    pub fn wait_timeout_while<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> Result<(), WaitError> {
        let patience = Patience::at_most(timeout);
        let mut result = Ok(());
        while condition(&mut **guard) {
            result?;
            result = self.wait_for(guard, patience);
        }
        Ok(())
    }

    /// Wakes the one that has waited longest, if anybody waits.
    ///
    /// # Blocking
    /// Never.
    pub fn notify_one(&self) {
        if !self.has_waiters() {
            return;
        }
        let mut state = self.state.lock();
        let waiter = state.queue.grant(|_| ());
        self.note_occupancy(&state);
        drop(state);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Wakes all who wait now.
    ///
    /// # Blocking
    /// Never.
    pub fn notify_all(&self) {
        if !self.has_waiters() {
            return;
        }
        let state = self.state.lock();
        let end = state.count;
        wake_all(&self.state, state, |state| -> Option<Waiter> {
            let waiter = state.queue.grant_if(|number| *number < end, |_| ());
            self.note_occupancy(state);
            waiter
        });
    }

    /// Whoever has changed the data under the mutex, after a waiter released it, sees here what that waiter had written before:
    /// relaxed is enough, because the mutex orders the two. Whoever has changed nothing has nobody to notify.
    fn has_waiters(&self) -> bool {
        self.is_occupied.load(Ordering::Relaxed)
    }

    fn note_occupancy(&self, state: &State) {
        self.is_occupied.store(!state.queue.is_empty(), Ordering::Relaxed);
    }

    #[track_caller]
    fn wait_for<T: ?Sized>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        patience: Patience,
    ) -> Result<(), WaitError> {
        let mutex = guard.raw();
        let mut state = self.state.lock();
        let number = state.count;
        state.count += 1;
        self.is_occupied.store(true, Ordering::Relaxed);
        let reason = Reason::new(WaitKind::Condvar, self);
        let result = wait(
            &self.state,
            state,
            |state| &mut state.queue,
            (End::Back, number),
            (reason, patience),
            || mutex.unlock(),
        );
        let result = result.map(|_| ()).map_err(|withdrawn| {
            self.note_occupancy(&withdrawn.guard);
            withdrawn.error
        });
        mutex.lock_uninterrupted();
        guard.check_poison();
        result
    }
}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar").finish_non_exhaustive()
    }
}
