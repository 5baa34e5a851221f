//! Many readers or one writer. The word counts the readers; those who wait are in one queue, readers and writers in the order in
//! which they came.

use super::error::WaitError;
use super::poison::{Poison, Witness};
use super::shim::{AtomicUsize, Latch, LatchGuard, Ordering, constructor};
use super::wait::{End, Patience, Queue, Reason, Waiter, wait, wake_all};
use crate::fiber::WaitKind;
use crate::interrupt::Interrupt;
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use std::time::Duration;

/// A writer holds the lock.
const WRITER: usize = 1;
/// The queue is not empty. Changes only under the queue's lock.
const QUEUED: usize = 2;
/// One reader; the bits above count them.
const READER: usize = 4;
/// Half of the range, so that no number of readers that memory can hold reaches the end.
const READERS_MAX: usize = usize::MAX / 2;

/// How often a writer is woken to find the lock taken by somebody faster before it is handed the lock (see mutex.rs).
const PASSED_OVER_MAX: u32 = if cfg!(loom) { 1 } else { 4 };

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// A place in the queue.
struct Turn {
    access: Access,
    passed_over: u32,
    /// It has been handed the lock; otherwise it is a writer that has been woken to try for it.
    owns: bool,
}

/// Invariant: while nobody holds the lock and the queue is not empty, a writer that has been taken out of the queue is on its way to
/// try for the lock. If it fails, somebody holds it, and will find `QUEUED` set on release.
///
/// While the lock is held and `QUEUED` is set, nobody joins without the queue's lock; so whoever holds the lock alone then, and the
/// queue's lock, too, is the only one who changes the word.
struct RawRwLock {
    state: AtomicUsize,
    queue: Latch<Queue<Turn>>,
}

impl RawRwLock {
    constructor! {
        fn new() -> Self {
            Self { state: AtomicUsize::new(0), queue: Latch::new(Queue::new()) }
        }
    }

    /// What the word becomes when somebody who has not queued takes the lock, if it may be taken. Past those who queue only if nobody
    /// holds it: readers that came past a waiting writer one after the other could keep it waiting for ever.
    #[inline]
    fn taken(state: usize, access: Access) -> Option<usize> {
        match access {
            Access::Write => (state & !QUEUED == 0).then_some(state | WRITER),
            Access::Read if state & WRITER != 0 || (state & QUEUED != 0 && state != QUEUED) => None,
            Access::Read => {
                assert!(state < READERS_MAX, "too many readers");
                Some(state + READER)
            }
        }
    }

    #[inline]
    fn try_lock(&self, access: Access) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        while let Some(wanted) = Self::taken(state, access) {
            match self.state.compare_exchange_weak(state, wanted, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(current) => state = current,
            }
        }
        false
    }

    #[inline]
    fn lock(&self, access: Access, patience: Patience) -> Result<(), WaitError> {
        match self.try_lock(access) {
            true => Ok(()),
            false => self.lock_contended(access, patience),
        }
    }

    #[cold]
    fn lock_contended(&self, access: Access, patience: Patience) -> Result<(), WaitError> {
        let mut end = End::Back;
        let mut turn = Turn { access, passed_over: 0, owns: false };
        loop {
            let queue = self.queue.lock();
            if self.lock_or_mark_queued(access) {
                return Ok(());
            }
            let reason = Reason::new(WaitKind::Lock, self);
            match wait(&self.queue, queue, |queue| queue, (end, turn), (reason, patience), || ()) {
                Ok(Turn { owns: true, .. }) => return Ok(()),
                Ok(Turn { passed_over, .. }) => {
                    end = End::Front;
                    turn = Turn { access, passed_over: passed_over + 1, owns: false };
                }
                Err(withdrawn) => {
                    // Readers that were behind this writer may join those who read now.
                    self.let_readers_in(withdrawn.guard);
                    return Err(withdrawn.error);
                }
            }
        }
    }

    /// Called under the queue's lock. True if the lock is now the caller's; otherwise whoever holds it will look at the queue.
    fn lock_or_mark_queued(&self, access: Access) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let taken = Self::taken(state, access);
            if taken.is_none() && state & QUEUED != 0 {
                return false;
            }
            let wanted = taken.unwrap_or(state | QUEUED);
            match self.state.compare_exchange(state, wanted, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return taken.is_some(),
                Err(current) => state = current,
            }
        }
    }

    #[inline]
    fn unlock_read(&self) {
        let mut state = self.state.load(Ordering::Relaxed);
        while state != READER | QUEUED {
            let left = state - READER;
            match self.state.compare_exchange_weak(state, left, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(current) => state = current,
            }
        }
        self.unlock_last_reader();
    }

    #[cold]
    fn unlock_last_reader(&self) {
        let queue = self.queue.lock();
        // Acquire: what the other readers did before they left comes before what the next holder does.
        match self.state.load(Ordering::Acquire) == READER | QUEUED {
            true => self.pass_on(queue),
            // The last waiter has withdrawn, and perhaps others read by now.
            false => {
                drop(queue);
                self.unlock_read();
            }
        }
    }

    #[inline]
    fn unlock_write(&self) {
        if self.state.compare_exchange(WRITER, 0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.pass_on(self.queue.lock());
        }
    }

    /// Releases a lock that the caller holds alone, to those who have queued.
    #[cold]
    fn pass_on(&self, mut queue: LatchGuard<'_, Queue<Turn>>) {
        let first = queue.first().map(|turn| (turn.access, turn.passed_over));
        let (held, owns) = match first {
            Some((Access::Read, _)) => (READER, true),
            Some((Access::Write, PASSED_OVER_MAX..)) => (WRITER, true),
            _ => (0, false),
        };
        // Before the grant: a thread may hold the lock, and release it, as soon as it has been granted.
        self.state.store(held | QUEUED, Ordering::Release);
        let next = queue.grant(|turn| turn.owns = owns);
        self.let_readers_in(queue);
        if let Some(next) = next {
            next.wake();
        }
    }

    /// Lets readers at the front of the queue join those who hold the lock for reading, if so it is held, and keeps `QUEUED` right.
    fn let_readers_in(&self, queue: LatchGuard<'_, Queue<Turn>>) {
        wake_all(&self.queue, queue, |queue| -> Option<Waiter> {
            let is_reader = queue.first().is_some_and(|turn| turn.access == Access::Read);
            let join = |state| (state & WRITER == 0 && state >= READER).then_some(state + READER);
            let joined =
                is_reader && self.state.fetch_update(Ordering::Acquire, Ordering::Relaxed, join).is_ok();
            let waiter = if joined { queue.grant(|turn| turn.owns = true) } else { None };
            if queue.is_empty() {
                self.state.fetch_and(!QUEUED, Ordering::Relaxed);
            }
            waiter
        });
    }
}

/// Guards data that many may read at once, or one may change.
///
/// Like `std::sync::RwLock`. A free lock takes one atomic operation.
///
/// **Fairness.** Whoever finds the lock held while somebody waits queues behind, readers too: a writer waits for no more than the readers
/// that came before it. So a fiber that reads must not read again before it has released the first lock: a writer between the two would
/// wait for the first, and the second for the writer. All readers at the front of the queue are let in together.
///
/// **Panics.** If a writer panics, the lock is poisoned, as described for [`Mutex`](super::Mutex).
///
/// ```
/// use squall_fiber::sync::RwLock;
///
/// let settings = RwLock::new(vec!["fast"]);
/// assert_eq!(settings.read().len(), 1);
/// settings.write().push("safe");
/// assert_eq!(*settings.read(), ["fast", "safe"]);
/// ```
pub struct RwLock<T: ?Sized> {
    raw: RawRwLock,
    poison: Poison,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out `&mut T` to one holder at a time, on any thread.
unsafe impl<T: ?Sized + Send> Send for RwLock<T> {}
// SAFETY: as above; and `&T` to several at once, hence `Sync`.
unsafe impl<T: ?Sized + Send + Sync> Sync for RwLock<T> {}

impl<T> RwLock<T> {
    constructor! {
        /// An unlocked lock.
        pub fn new(value: T) -> Self {
            Self { raw: RawRwLock::new(), poison: Poison::new(), value: UnsafeCell::new(value) }
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

impl<T: ?Sized> RwLock<T> {
    /// Takes the lock for reading. Nothing interrupts the wait.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// Suspends the fiber while a writer holds the lock or waits for it; outside a fiber, blocks the thread.
    #[inline]
    #[track_caller]
    pub fn read(&self) -> RwLockReadGuard<'_, T> {
        self.lock_uninterrupted(Access::Read);
        self.reading()
    }

    /// Takes the lock for writing. Nothing interrupts the wait.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// Suspends the fiber while others hold the lock; outside a fiber, blocks the thread.
    #[inline]
    #[track_caller]
    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        self.lock_uninterrupted(Access::Write);
        self.writing()
    }

    /// As [`RwLock::read`], but cancelling the fiber, or the deadline of a [`crate::with_deadline`] around the call, ends the wait.
    ///
    /// # Errors
    /// What interrupted the wait. A lock that is free is taken all the same.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// As [`RwLock::read`].
    #[track_caller]
    pub fn read_interruptible(&self) -> Result<RwLockReadGuard<'_, T>, Interrupt> {
        self.raw.lock(Access::Read, Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)?;
        Ok(self.reading())
    }

    /// As [`RwLock::write`], but cancelling the fiber, or the deadline of a [`crate::with_deadline`] around the call, ends the wait.
    ///
    /// # Errors
    /// What interrupted the wait. A lock that is free is taken all the same.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// As [`RwLock::write`].
    #[track_caller]
    pub fn write_interruptible(&self) -> Result<RwLockWriteGuard<'_, T>, Interrupt> {
        self.raw.lock(Access::Write, Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)?;
        Ok(self.writing())
    }

    /// As [`RwLock::read_interruptible`], and waits no longer than `timeout`.
    ///
    /// # Errors
    /// Why the lock was not to be had.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// As [`RwLock::read`].
    #[track_caller]
    pub fn try_read_for(&self, timeout: Duration) -> Result<RwLockReadGuard<'_, T>, WaitError> {
        self.lock_for(Access::Read, timeout)?;
        Ok(self.reading())
    }

    /// As [`RwLock::write_interruptible`], and waits no longer than `timeout`.
    ///
    /// # Errors
    /// Why the lock was not to be had.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// As [`RwLock::write`].
    #[track_caller]
    pub fn try_write_for(&self, timeout: Duration) -> Result<RwLockWriteGuard<'_, T>, WaitError> {
        self.lock_for(Access::Write, timeout)?;
        Ok(self.writing())
    }

    /// Takes the lock for reading if that needs no waiting.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// Never.
    #[track_caller]
    pub fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
        self.raw.try_lock(Access::Read).then(|| self.reading())
    }

    /// Takes the lock for writing if that needs no waiting.
    ///
    /// # Panics
    /// When poisoned.
    ///
    /// # Blocking
    /// Never.
    #[track_caller]
    pub fn try_write(&self) -> Option<RwLockWriteGuard<'_, T>> {
        self.raw.try_lock(Access::Write).then(|| self.writing())
    }

    /// Whether a writer has panicked.
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

    #[inline]
    fn lock_uninterrupted(&self, access: Access) {
        if self.raw.lock(access, Patience::ENDLESS).is_err() {
            unreachable!("nothing ends this wait but the lock");
        }
    }

    fn lock_for(&self, access: Access, timeout: Duration) -> Result<(), WaitError> {
        match self.raw.try_lock(access) {
            true => Ok(()),
            false => self.raw.lock(access, Patience::at_most(timeout)),
        }
    }

    #[inline]
    #[track_caller]
    fn reading(&self) -> RwLockReadGuard<'_, T> {
        let guard = RwLockReadGuard { lock: self, _not_send: PhantomData };
        self.poison.check();
        guard
    }

    #[inline]
    #[track_caller]
    fn writing(&self) -> RwLockWriteGuard<'_, T> {
        let guard = RwLockWriteGuard { lock: self, witness: Poison::witness(), _not_send: PhantomData };
        self.poison.check();
        guard
    }
}

impl<T: Default> Default for RwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> From<T> for RwLock<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RwLock");
        let guard =
            self.raw.try_lock(Access::Read).then(|| RwLockReadGuard { lock: self, _not_send: PhantomData });
        match guard {
            Some(guard) => debug.field("value", &&*guard),
            None => debug.field("value", &format_args!("<locked>")),
        };
        debug.field("is_poisoned", &self.is_poisoned()).finish_non_exhaustive()
    }
}

/// Holds a [`RwLock`] for reading until dropped.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct RwLockReadGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    /// As std's.
    _not_send: PhantomData<*const ()>,
}

// SAFETY: through `&RwLockReadGuard<T>` only `&T` can be reached.
unsafe impl<T: ?Sized + Sync> Sync for RwLockReadGuard<'_, T> {}

impl<T: ?Sized> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard proves that the lock is held for reading, so nobody has `&mut` access until it is dropped.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for RwLockReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.raw.unlock_read();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// Holds a [`RwLock`] for writing until dropped.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct RwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a RwLock<T>,
    witness: Witness,
    /// As std's.
    _not_send: PhantomData<*const ()>,
}

// SAFETY: through `&RwLockWriteGuard<T>` only `&T` can be reached.
unsafe impl<T: ?Sized + Sync> Sync for RwLockWriteGuard<'_, T> {}

impl<T: ?Sized> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard proves that the lock is held for writing, so nobody else has access until it is dropped.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T: ?Sized> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` keeps this the only reference made through the guard.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T: ?Sized> Drop for RwLockWriteGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.poison.leave(self.witness);
        self.lock.raw.unlock_write();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}
