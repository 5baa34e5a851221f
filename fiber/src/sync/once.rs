//! Initialisation that happens once, however many ask for it at the same time.

use super::shim::{AtomicU32, Latch, Ordering, constructor};
use super::wait::{End, Patience, Queue, Reason, wait, wake_all};
use crate::fiber::WaitKind;
use core::cell::UnsafeCell;
use core::convert::Infallible;
use core::fmt;
use core::mem::MaybeUninit;

/// Nobody has begun, or whoever had has failed.
const NEW: u32 = 0;
const RUNNING: u32 = 1;
const DONE: u32 = 2;

/// Runs one initialisation, once.
///
/// If it panics, the panic is its caller's, and the next one who asks tries again. (std's `Once` is poisoned instead; its
/// `OnceLock` does as here.)
///
/// ```
/// use squall_fiber::sync::Once;
///
/// static START: Once = Once::new();
/// START.call_once(|| println!("only one of all fibers prints this"));
/// assert!(START.is_completed());
/// ```
pub struct Once {
    /// Leaves `DONE` never, `NEW` and `RUNNING` only under the lock.
    state: AtomicU32,
    queue: Latch<Queue<()>>,
}

impl Once {
    constructor! {
        /// Not run yet.
        pub fn new() -> Self {
            Self { state: AtomicU32::new(NEW), queue: Latch::new(Queue::new()) }
        }
    }

    /// Whether the initialisation has run; what it did is then visible here.
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.state.load(Ordering::Acquire) == DONE
    }

    /// Runs `f`, unless that has been done already. It has been done when this returns, here or elsewhere.
    ///
    /// # Panics
    /// When `f` does.
    ///
    /// # Blocking
    /// Suspends the fiber while another runs the initialisation, which nothing interrupts; outside a fiber, blocks the thread. For
    /// ever, if `f` itself asks for it.
    #[inline]
    pub fn call_once(&self, f: impl FnOnce()) {
        if !self.is_completed() {
            let Ok(()) = self.run(|| {
                f();
                Ok::<(), Infallible>(())
            });
        }
    }

    /// As `call_once`, for what may fail; then the next one who asks tries again.
    #[cold]
    fn run<E>(&self, f: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        loop {
            let queue = self.queue.lock();
            match self.state.load(Ordering::Acquire) {
                DONE => return Ok(()),
                NEW => {
                    self.state.store(RUNNING, Ordering::Relaxed);
                    drop(queue);
                    let mut attempt = Attempt { once: self, outcome: NEW };
                    let result = f();
                    if result.is_ok() {
                        attempt.outcome = DONE;
                    }
                    return result;
                }
                _ => {
                    let reason = (Reason::new(WaitKind::Once, self), Patience::ENDLESS);
                    // Whatever ended the wait, the state is looked at anew.
                    let _ = wait(&self.queue, queue, |queue| queue, (End::Back, ()), reason, || ());
                }
            }
        }
    }
}

impl Default for Once {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("is_completed", &self.is_completed()).finish_non_exhaustive()
    }
}

/// Ends an initialisation, also by a panic, and lets those who wait look at the state again.
struct Attempt<'a> {
    once: &'a Once,
    outcome: u32,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let queue = self.once.queue.lock();
        self.once.state.store(self.outcome, Ordering::Release);
        // Whoever comes now does not queue: it finds `DONE`, or runs its own attempt. Then who waits queues anew behind that one.
        wake_all(&self.once.queue, queue, |queue| queue.grant(|()| ()));
    }
}

/// A value that is written once and read without a lock.
///
/// ```
/// use squall_fiber::sync::OnceCell;
///
/// static GREETING: OnceCell<String> = OnceCell::new();
/// assert_eq!(GREETING.get(), None);
/// assert_eq!(GREETING.get_or_init(|| "hello".to_owned()), "hello");
/// assert_eq!(GREETING.get_or_init(|| unreachable!()), "hello");
/// ```
pub struct OnceCell<T> {
    once: Once,
    /// Initialised if and only if `once` is completed.
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value may be written by one thread and dropped or taken by another.
unsafe impl<T: Send> Send for OnceCell<T> {}
// SAFETY: as above, and `&T` is given to several at once.
unsafe impl<T: Send + Sync> Sync for OnceCell<T> {}

impl<T> OnceCell<T> {
    constructor! {
        /// Without a value.
        pub fn new() -> Self {
            Self { once: Once::new(), value: UnsafeCell::new(MaybeUninit::uninit()) }
        }
    }

    /// The value, if there is one.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: a value that is there is not written again while `self` is shared.
        self.once.is_completed().then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }

    /// The value, if there is one.
    pub fn get_mut(&mut self) -> Option<&mut T> {
        // SAFETY: initialised; and `&mut self`.
        self.once.is_completed().then(|| unsafe { self.value.get_mut().assume_init_mut() })
    }

    /// The value; made by `f` if there is none.
    ///
    /// # Panics
    /// When `f` does; then there is still no value.
    ///
    /// # Blocking
    /// As [`Once::call_once`].
    #[inline]
    pub fn get_or_init(&self, f: impl FnOnce() -> T) -> &T {
        let Ok(value) = self.get_or_try_init(|| Ok::<T, Infallible>(f()));
        value
    }

    /// The value; made by `f` if there is none.
    ///
    /// # Errors
    /// When `f` returns one; then there is still no value, and the next one who asks tries again.
    ///
    /// # Panics
    /// As [`OnceCell::get_or_init`].
    ///
    /// # Blocking
    /// As [`Once::call_once`].
    #[inline]
    pub fn get_or_try_init<E>(&self, f: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
        if !self.once.is_completed() {
            self.once.run(|| {
                let value = f()?;
                // SAFETY: `run` lets one in at a time, and nobody reads before it is done.
                unsafe { (*self.value.get()).write(value) };
                Ok(())
            })?;
        }
        Ok(self.get().expect("the initialisation has succeeded"))
    }

    /// Writes the value.
    ///
    /// # Errors
    /// The value again, if there is one already.
    ///
    /// # Blocking
    /// As [`Once::call_once`].
    pub fn set(&self, value: T) -> Result<(), T> {
        let mut value = Some(value);
        self.get_or_init(|| value.take().expect("an initialisation runs at most once"));
        value.map_or(Ok(()), Err)
    }

    /// Takes the value out.
    pub fn take(&mut self) -> Option<T> {
        core::mem::take(self).into_inner()
    }

    /// The value, if there is one.
    pub fn into_inner(mut self) -> Option<T> {
        let is_initialised = self.once.is_completed();
        // `drop` must not see the value that is taken out here.
        self.once = Once::new();
        // SAFETY: initialised, and read once.
        is_initialised.then(|| unsafe { self.value.get_mut().assume_init_read() })
    }
}

impl<T> Drop for OnceCell<T> {
    fn drop(&mut self) {
        if self.once.is_completed() {
            // SAFETY: initialised, and dropped once.
            unsafe { self.value.get_mut().assume_init_drop() };
        }
    }
}

impl<T> Default for OnceCell<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> From<T> for OnceCell<T> {
    fn from(value: T) -> Self {
        let cell = Self::new();
        // A new cell is empty.
        let _ = cell.set(value);
        cell
    }
}

impl<T: fmt::Debug> fmt::Debug for OnceCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_tuple("OnceCell");
        match self.get() {
            Some(value) => debug.field(value),
            None => debug.field(&format_args!("<empty>")),
        };
        debug.finish()
    }
}
