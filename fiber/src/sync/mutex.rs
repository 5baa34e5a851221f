//! Mutual exclusion. The word says whether the lock is held and whether anybody waits; those who wait are in a queue.

use super::error::WaitError;
use super::poison::{Poison, Witness};
use super::shim::{AtomicU32, Latch, Ordering, constructor};
use super::wait::{End, Patience, Queue, Reason, wait};
use crate::fiber::WaitKind;
use crate::interrupt::Interrupt;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use std::time::Duration;

/// Somebody holds the lock.
const LOCKED: u32 = 1;
/// The queue is not empty. Changes only under the queue's lock.
const QUEUED: u32 = 2;

/// How often a waiter is woken to find the lock taken by somebody faster before it is handed the lock.
///
/// Letting the faster one have it is what makes a contended lock fast: the lock never lies idle while a waiter wakes up. The limit
/// is what makes it fair.
const PASSED_OVER_MAX: u32 = if cfg!(loom) { 1 } else { 4 };

/// How often a thread looks again before it queues: about a microsecond. A fiber does not: it has a worker to give to others.
const SPINS: u32 = if cfg!(loom) { 0 } else { 100 };

/// A place in the queue.
#[derive(Default)]
struct Turn {
    passed_over: u32,
    /// It has been handed the lock; otherwise it has been woken to try for it.
    owns: bool,
}

/// The lock without data.
///
/// Invariant: while the lock is free and the queue is not empty, a waiter that has been taken out of the queue is on its way to
/// try for the lock. If it fails, somebody holds it, and will find `QUEUED` set when it unlocks.
pub(super) struct RawMutex {
    state: AtomicU32,
    queue: Latch<Queue<Turn>>,
}

impl RawMutex {
    constructor! {
        fn new() -> Self {
            Self { state: AtomicU32::new(0), queue: Latch::new(Queue::new()) }
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        while state & LOCKED == 0 {
            match self.state.compare_exchange(state, state | LOCKED, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(current) => state = current,
            }
        }
        false
    }

    #[inline]
    fn lock(&self, patience: Patience) -> Result<(), WaitError> {
        match self.state.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(_) => self.lock_contended(patience),
        }
    }

    #[inline]
    pub(super) fn lock_uninterrupted(&self) {
        if self.lock(Patience::ENDLESS).is_err() {
            unreachable!("nothing ends this wait but the lock");
        }
    }

    #[cold]
    fn lock_contended(&self, patience: Patience) -> Result<(), WaitError> {
        if !crate::in_fiber() && self.spin() {
            return Ok(());
        }
        let mut end = End::Back;
        let mut turn = Turn::default();
        loop {
            let queue = self.queue.lock();
            if self.lock_or_mark_queued() {
                return Ok(());
            }
            let reason = Reason::new(WaitKind::Lock, self);
            match wait(&self.queue, queue, |queue| queue, (end, turn), (reason, patience), || ()) {
                Ok(Turn { owns: true, .. }) => return Ok(()),
                Ok(Turn { passed_over, .. }) => {
                    end = End::Front;
                    turn = Turn { passed_over: passed_over + 1, owns: false };
                }
                Err(withdrawn) => {
                    if withdrawn.guard.is_empty() {
                        self.state.fetch_and(!QUEUED, Ordering::Relaxed);
                    }
                    return Err(withdrawn.error);
                }
            }
        }
    }

    fn spin(&self) -> bool {
        (0..SPINS).any(|_| {
            core::hint::spin_loop();
            // Where others have queued already, spinning would only pass them over.
            self.state.load(Ordering::Relaxed) == 0
                && self.state.compare_exchange(0, LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        })
    }

    /// Called under the queue's lock. True if the lock is now the caller's; otherwise whoever holds it will look at the queue.
    fn lock_or_mark_queued(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let wanted = match state & LOCKED {
                0 => state | LOCKED,
                _ if state & QUEUED != 0 => return false,
                _ => state | QUEUED,
            };
            match self.state.compare_exchange(state, wanted, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return state & LOCKED == 0,
                Err(current) => state = current,
            }
        }
    }

    #[inline]
    pub(super) fn unlock(&self) {
        if self.state.compare_exchange(LOCKED, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.unlock_contended();
        }
    }

    #[cold]
    fn unlock_contended(&self) {
        let mut queue = self.queue.lock();
        let hand_over = queue.first().is_some_and(|turn| turn.passed_over >= PASSED_OVER_MAX);
        let next = queue.grant(|turn| turn.owns = hand_over);
        let queued = if queue.is_empty() { 0 } else { QUEUED };
        let locked = if hand_over { LOCKED } else { 0 };
        // The lock is held, by us, and the queue's lock, too: nobody else changes the word.
        self.state.store(queued | locked, Ordering::Release);
        drop(queue);
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// Guards data: one fiber or thread at a time.
///
/// Like `std::sync::Mutex`, and faster in fibers: a free lock takes one atomic operation, and one that is taken suspends the fiber
/// without a detour through libc. Which one to use is discussed in [`crate::sync`].
///
/// **Fairness.** A lock that is released goes to whoever comes first, and the waiter that has been longest in the queue is woken. If
/// it finds the lock taken again some four times, the lock is handed to it directly.
///
/// **Panics.** If the holder panics, the data may be half changed. From then on the mutex is *poisoned*: [`Mutex::lock`] panics, as
/// `lock().unwrap()` does with std's, until [`Mutex::clear_poison`]. A destructor that locks while its own thread unwinds is let in.
///
/// ```
/// use squall_fiber::sync::Mutex;
/// use std::sync::Arc;
///
/// let total = Arc::new(Mutex::new(0));
/// let fibers: Vec<_> = (1..=10)
///     .map(|n| {
///         let total = Arc::clone(&total);
///         squall_fiber::spawn(move || *total.lock() += n)
///     })
///     .collect();
/// for fiber in fibers {
///     fiber.join().unwrap();
/// }
/// assert_eq!(*total.lock(), 55);
/// ```
pub struct Mutex<T: ?Sized> {
    raw: RawMutex,
    poison: Poison,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out `&mut T` to one holder at a time, on any thread, so it needs no more than `T: Send`.
unsafe impl<T: ?Sized + Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: ?Sized + Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    constructor! {
        /// An unlocked mutex.
        pub fn new(value: T) -> Self {
            Self { raw: RawMutex::new(), poison: Poison::new(), value: UnsafeCell::new(value) }
        }
    }

    /// The data.
    ///
    /// # Panics
    /// When poisoned.
    #[track_caller]
    pub fn into_inner(self) -> T {
        self.poison.check();
        self.value.into_inner()
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Takes the lock. Nothing interrupts the wait; see [`Mutex::lock_interruptible`].
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// Suspends the fiber while another holds the lock; outside a fiber, blocks the thread. For ever, if the caller itself holds it.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.raw.lock_uninterrupted();
        self.locked()
    }

    /// As [`Mutex::lock`], but cancelling the fiber, or the deadline of a [`crate::with_deadline`] around the call, ends the wait.
    ///
    /// # Errors
    /// What interrupted the wait. A lock that is free is taken all the same.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// As [`Mutex::lock`].
    #[inline]
    #[track_caller]
    pub fn lock_interruptible(&self) -> Result<MutexGuard<'_, T>, Interrupt> {
        self.raw.lock(Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)?;
        Ok(self.locked())
    }

    /// As [`Mutex::lock_interruptible`], and waits no longer than `timeout`.
    ///
    /// # Errors
    /// Why the lock was not to be had.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// As [`Mutex::lock`].
    #[track_caller]
    pub fn try_lock_for(&self, timeout: Duration) -> Result<MutexGuard<'_, T>, WaitError> {
        if !self.raw.try_lock() {
            self.raw.lock(Patience::at_most(timeout))?;
        }
        Ok(self.locked())
    }

    /// Takes the lock if it is free.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    #[track_caller]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.raw.try_lock().then(|| self.locked())
    }

    #[inline]
    #[track_caller]
    fn locked(&self) -> MutexGuard<'_, T> {
        let guard = self.guard();
        self.poison.check();
        guard
    }

    /// Called when the lock has been taken.
    #[inline]
    fn guard(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, witness: Poison::witness(), _not_send: PhantomData }
    }

    /// Whether a holder has panicked.
    pub fn is_poisoned(&self) -> bool {
        self.poison.is_set()
    }

    /// Declares the data sound, after somebody has looked at it or replaced it.
    pub fn clear_poison(&self) {
        self.poison.clear();
    }

    /// The data, which nobody else can reach now.
    ///
    /// # Panics
    /// When poisoned.
    #[track_caller]
    pub fn get_mut(&mut self) -> &mut T {
        self.poison.check();
        self.value.get_mut()
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for Mutex<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Mutex");
        match self.raw.try_lock().then(|| self.guard()) {
            Some(guard) => debug.field("value", &&*guard),
            None => debug.field("value", &format_args!("<locked>")),
        };
        debug.field("is_poisoned", &self.is_poisoned()).finish_non_exhaustive()
    }
}

/// Holds a [`Mutex`] until dropped. It stays with the fiber that took it, which may move to another worker meanwhile.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct MutexGuard<'a, T: ?Sized> {
    mutex: &'a Mutex<T>,
    witness: Witness,
    /// As std's: code in the guard's scope may count on being on one thread, which a fiber is.
    _not_send: PhantomData<*const ()>,
}

// SAFETY: through `&MutexGuard<T>` only `&T` can be reached.
unsafe impl<T: ?Sized + Sync> Sync for MutexGuard<'_, T> {}

impl<T: ?Sized> MutexGuard<'_, T> {
    /// For [`super::Condvar`]: the lock that this guard holds.
    pub(super) fn raw(&self) -> &RawMutex {
        &self.mutex.raw
    }

    /// For [`super::Condvar`]: others have held the lock meanwhile.
    #[track_caller]
    pub(super) fn check_poison(&self) {
        self.mutex.poison.check();
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard proves that the lock is held, so nobody else has access until it is dropped.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` keeps this the only reference made through the guard.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T: ?Sized> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.poison.leave(self.witness);
        self.mutex.raw.unlock();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<T: ?Sized + fmt::Display> fmt::Display for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&**self, f)
    }
}
