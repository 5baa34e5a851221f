//! A counting semaphore: permits in one word, and a queue of those who want more than there are.

use super::error::WaitError;
use super::shim::{AtomicUsize, Latch, LatchGuard, Ordering, constructor};
use super::wait::{End, Patience, Queue, Reason, Waiter, wait, wake_all};
use crate::fiber::WaitKind;
use crate::interrupt::Interrupt;
use core::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The queue is not empty: permits are given out under the queue's lock only, and so is this bit changed.
const QUEUED: usize = 1;
/// One permit; the bits above count them.
const PERMIT: usize = 2;

/// Permits that may be taken and given back, to limit how many do something at once.
///
/// **Fairness.** First come, first served, strictly: nobody passes somebody who waits, not even for fewer permits.
///
/// ```
/// use squall_fiber::sync::Semaphore;
/// use std::sync::Arc;
///
/// let at_most_two = Arc::new(Semaphore::new(2));
/// let fibers: Vec<_> = (0..10)
///     .map(|_| {
///         let at_most_two = Arc::clone(&at_most_two);
///         squall_fiber::spawn(move || {
///             let _permit = at_most_two.acquire().unwrap();
///             assert!(at_most_two.available() < 2);
///         })
///     })
///     .collect();
/// for fiber in fibers {
///     fiber.join().unwrap();
/// }
/// assert_eq!(at_most_two.available(), 2);
/// ```
pub struct Semaphore {
    /// Invariant: with `QUEUED`, fewer permits than the first in the queue wants, whenever the queue's lock is free.
    state: AtomicUsize,
    /// Of each waiter how many permits it wants.
    queue: Latch<Queue<usize>>,
}

impl Semaphore {
    /// More permits than this in one semaphore make its calls panic.
    pub const PERMITS_MAX: usize = usize::MAX / PERMIT / 2;

    constructor! {
        /// With so many permits.
        ///
        /// # Panics
        /// When `permits` is above [`Semaphore::PERMITS_MAX`].
        pub fn new(permits: usize) -> Self {
            assert!(permits <= Self::PERMITS_MAX, "too many permits");
            Self { state: AtomicUsize::new(permits * PERMIT), queue: Latch::new(Queue::new()) }
        }
    }

    /// How many permits are free now.
    pub fn available(&self) -> usize {
        self.state.load(Ordering::Relaxed) / PERMIT
    }

    /// Takes one permit.
    ///
    /// # Errors
    /// What interrupted the wait. A permit that is free is taken all the same.
    ///
    /// # Blocking
    /// Suspends the fiber until there is one and it is the caller's turn; outside a fiber, blocks the thread.
    #[inline]
    pub fn acquire(&self) -> Result<SemaphorePermit<'_>, Interrupt> {
        self.acquire_many(1)
    }

    /// Takes `permits` at once.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`].
    ///
    /// # Panics
    /// When `permits` is above [`Semaphore::PERMITS_MAX`].
    ///
    /// # Blocking
    /// As [`Semaphore::acquire`].
    #[inline]
    pub fn acquire_many(&self, permits: usize) -> Result<SemaphorePermit<'_>, Interrupt> {
        self.take(permits, Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)?;
        Ok(SemaphorePermit { semaphore: self, permits })
    }

    /// Takes `permits` at once, waiting no longer than `timeout`.
    ///
    /// # Errors
    /// Why they were not to be had.
    ///
    /// # Panics
    /// As [`Semaphore::acquire_many`].
    ///
    /// # Blocking
    /// As [`Semaphore::acquire`].
    pub fn try_acquire_for(
        &self,
        permits: usize,
        timeout: Duration,
    ) -> Result<SemaphorePermit<'_>, WaitError> {
        self.take(permits, Patience::at_most(timeout))?;
        Ok(SemaphorePermit { semaphore: self, permits })
    }

    /// Takes one permit if that needs no waiting.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn try_acquire(&self) -> Option<SemaphorePermit<'_>> {
        self.try_acquire_many(1)
    }

    /// Takes `permits` at once if that needs no waiting.
    ///
    /// # Panics
    /// As [`Semaphore::acquire_many`].
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn try_acquire_many(&self, permits: usize) -> Option<SemaphorePermit<'_>> {
        self.try_take(permits).then(|| SemaphorePermit { semaphore: self, permits })
    }

    /// As [`Semaphore::acquire`], with a permit that keeps the semaphore alive and can go to another fiber.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`].
    ///
    /// # Blocking
    /// As [`Semaphore::acquire`].
    pub fn acquire_owned(self: Arc<Self>) -> Result<OwnedSemaphorePermit, Interrupt> {
        self.take(1, Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)?;
        Ok(OwnedSemaphorePermit { semaphore: self })
    }

    /// Adds permits: new ones, or those of a permit that was forgotten.
    ///
    /// # Panics
    /// When there are then more than [`Semaphore::PERMITS_MAX`].
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn add_permits(&self, permits: usize) {
        let mut state = self.state.load(Ordering::Relaxed);
        while state & QUEUED == 0 {
            let wanted = Self::sum(state, permits);
            match self.state.compare_exchange_weak(state, wanted, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => state = current,
            }
        }
        self.add_permits_contended(permits);
    }

    fn sum(state: usize, permits: usize) -> usize {
        assert!(permits <= Self::PERMITS_MAX - state / PERMIT, "too many permits");
        state + permits * PERMIT
    }

    #[cold]
    fn add_permits_contended(&self, permits: usize) {
        let queue = self.queue.lock();
        let add = |state| Some(Self::sum(state, permits));
        // The closure never declines.
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, add);
        self.distribute(queue);
    }

    #[inline]
    fn try_take(&self, permits: usize) -> bool {
        assert!(permits <= Self::PERMITS_MAX, "too many permits");
        let mut state = self.state.load(Ordering::Relaxed);
        while state & QUEUED == 0 && state / PERMIT >= permits {
            let left = state - permits * PERMIT;
            match self.state.compare_exchange_weak(state, left, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(current) => state = current,
            }
        }
        false
    }

    #[inline]
    fn take(&self, permits: usize, patience: Patience) -> Result<(), WaitError> {
        match self.try_take(permits) {
            true => Ok(()),
            false => self.take_contended(permits, patience),
        }
    }

    #[cold]
    fn take_contended(&self, permits: usize, patience: Patience) -> Result<(), WaitError> {
        let queue = self.queue.lock();
        // From when the bit is set, permits come and go only under the queue's lock.
        while self.state.load(Ordering::Relaxed) & QUEUED == 0 {
            if self.try_take(permits) {
                return Ok(());
            }
            let mark = |state: usize| (state / PERMIT < permits).then_some(state | QUEUED);
            if self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, mark).is_ok() {
                break;
            }
        }
        let reason = Reason::new(WaitKind::Semaphore, self);
        match wait(&self.queue, queue, |queue| queue, (End::Back, permits), (reason, patience), || ()) {
            Ok(_) => Ok(()),
            Err(withdrawn) => {
                // Those behind may want less than this one did.
                self.distribute(withdrawn.guard);
                Err(withdrawn.error)
            }
        }
    }

    /// Gives out permits from the front of the queue as far as they go, and keeps `QUEUED` right. Called with the bit set, or with
    /// an empty queue.
    fn distribute(&self, queue: LatchGuard<'_, Queue<usize>>) {
        wake_all(&self.queue, queue, |queue| -> Option<Waiter> {
            let available = self.available();
            let mut taken = 0;
            let waiter = queue.grant_if(|wanted| *wanted <= available, |wanted| taken = *wanted);
            self.state.fetch_sub(taken * PERMIT, Ordering::Relaxed);
            if queue.is_empty() {
                self.state.fetch_and(!QUEUED, Ordering::Relaxed);
            }
            waiter
        });
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semaphore").field("available", &self.available()).finish_non_exhaustive()
    }
}

/// Permits that go back to their [`Semaphore`] when dropped.
#[derive(Debug)]
#[must_use = "the permits go back as soon as this is dropped"]
pub struct SemaphorePermit<'a> {
    semaphore: &'a Semaphore,
    permits: usize,
}

impl SemaphorePermit<'_> {
    /// Keeps the permits from going back; [`Semaphore::add_permits`] may return them later.
    pub fn forget(self) {
        core::mem::forget(self);
    }
}

impl Drop for SemaphorePermit<'_> {
    fn drop(&mut self) {
        self.semaphore.add_permits(self.permits);
    }
}

/// A permit that goes back to its [`Semaphore`] when dropped, wherever that is.
#[derive(Debug)]
#[must_use = "the permit goes back as soon as this is dropped"]
pub struct OwnedSemaphorePermit {
    semaphore: Arc<Semaphore>,
}

impl Drop for OwnedSemaphorePermit {
    fn drop(&mut self) {
        self.semaphore.add_permits(1);
    }
}
