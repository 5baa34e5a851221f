//! Fibers that may borrow from the caller; mirrors `std::thread::scope`.

use crate::completion::Completion;
use crate::fiber::{Fiber, WaitKind};
use crate::handle::Builder;
use crate::scheduler;
use crate::task::Task;
use core::fmt;
use core::marker::PhantomData;
use core::panic::AssertUnwindSafe;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::panic::{catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

/// What the fibers of a scope count down.
struct Data {
    /// The running fibers, and one for the scope's own body.
    running: AtomicUsize,
    /// Fibers that panicked and whose handle nobody has joined.
    panicked: AtomicUsize,
    all_ended: Completion,
}

impl Data {
    fn leave(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all_ended.set();
        }
    }
}

/// Spawns fibers that end before [`scope`] returns.
pub struct Scope<'scope, 'env: 'scope> {
    data: Arc<Data>,
    /// Invariant in both, as std's: a longer or shorter 'scope would let a borrow end too early.
    scope: PhantomData<&'scope mut &'scope ()>,
    env: PhantomData<&'env mut &'env ()>,
}

impl fmt::Debug for Scope<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

/// Calls `f` with a scope, and waits for every fiber spawned in it.
///
/// ```
/// let mut numbers = [1, 2, 3];
/// squall_fiber::scope(|scope| {
///     for number in &mut numbers {
///         scope.spawn(move || *number *= 2);
///     }
/// });
/// assert_eq!(numbers, [2, 4, 6]);
/// ```
///
/// # Panics
/// If `f` panics, or a fiber panicked that was not joined.
///
/// # Blocking
/// Suspends the calling fiber until the others have ended; outside a fiber, blocks the thread.
pub fn scope<'env, F, T>(f: F) -> T
where
    F: for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T,
{
    let data = Arc::new(Data {
        running: AtomicUsize::new(1),
        panicked: AtomicUsize::new(0),
        all_ended: Completion::new(),
    });
    let scope = Scope { data: Arc::clone(&data), scope: PhantomData, env: PhantomData };
    let result = catch_unwind(AssertUnwindSafe(|| f(&scope)));
    data.leave();
    // Also when `f` panicked: the fibers borrow from frames that the panic is about to unwind.
    data.all_ended.wait(WaitKind::Join, 0);
    match result {
        Err(payload) => resume_unwind(payload),
        Ok(_) if data.panicked.load(Ordering::Relaxed) > 0 => panic!("a scoped fiber panicked"),
        Ok(value) => value,
    }
}

impl<'scope> Scope<'scope, '_> {
    /// Starts a fiber that may borrow what outlives the scope.
    ///
    /// # Blocking
    /// Never.
    pub fn spawn<F, T>(&'scope self, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        Builder::new().spawn_scoped(self, f)
    }

    fn spawn_with<F, T>(&'scope self, builder: Builder, f: F) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        self.data.running.fetch_add(1, Ordering::Relaxed);
        let result = Arc::new(crate::lock::Lock::new(None));
        let (data, writer) = (Arc::clone(&self.data), Arc::clone(&result));
        let entry: Box<dyn FnOnce() + Send + 'scope> = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(f));
            if outcome.is_err() {
                data.panicked.fetch_add(1, Ordering::Relaxed);
            }
            *writer.lock() = Some(outcome);
            // The result may borrow, too: if the handle is gone, it must be dropped before the scope may end.
            drop(writer);
            data.leave();
        });
        // SAFETY: only the lifetime changes. `scope` does not return, nor unwind, before `leave` has been called for this
        // entry, which is the last thing it does with anything borrowed.
        let entry = unsafe {
            core::mem::transmute::<Box<dyn FnOnce() + Send + 'scope>, Box<dyn FnOnce() + Send + 'static>>(
                entry,
            )
        };
        let fiber = Fiber(scheduler::spawn_here(builder, Task::new(entry)));
        ScopedJoinHandle { fiber, result, data: Arc::clone(&self.data), scope: PhantomData }
    }
}

impl Builder {
    /// As [`Scope::spawn`], with what this builder sets; mirrors `std::thread::Builder::spawn_scoped`.
    ///
    /// ```
    /// let mut number = 1;
    /// squall_fiber::scope(|scope| {
    ///     squall_fiber::Builder::new().name("doubler").spawn_scoped(scope, || number *= 2);
    /// });
    /// assert_eq!(number, 2);
    /// ```
    ///
    /// # Blocking
    /// Never.
    pub fn spawn_scoped<'scope, F, T>(
        self,
        scope: &'scope Scope<'scope, '_>,
        f: F,
    ) -> ScopedJoinHandle<'scope, T>
    where
        F: FnOnce() -> T + Send + 'scope,
        T: Send + 'scope,
    {
        scope.spawn_with(self, f)
    }
}

/// Owns the right to a scoped fiber's result.
pub struct ScopedJoinHandle<'scope, T> {
    fiber: Fiber,
    result: Arc<crate::lock::Lock<Option<thread::Result<T>>>>,
    data: Arc<Data>,
    scope: PhantomData<&'scope ()>,
}

impl<T> fmt::Debug for ScopedJoinHandle<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJoinHandle").field("fiber", &self.fiber).finish_non_exhaustive()
    }
}

impl<T> ScopedJoinHandle<'_, T> {
    /// Whether the fiber has ended, so that [`ScopedJoinHandle::join`] would not wait.
    pub fn is_finished(&self) -> bool {
        self.fiber.0.completion.is_done()
    }

    /// As [`Fiber::cancel`]. The scope still waits for the fiber to end.
    ///
    /// # Blocking
    /// Never.
    pub fn cancel(&self) {
        self.fiber.cancel();
    }

    /// The fiber itself.
    pub fn fiber(&self) -> &Fiber {
        &self.fiber
    }

    /// Waits for the fiber to end.
    ///
    /// # Errors
    /// The payload of the panic that ended it; the scope then does not panic for it.
    ///
    /// # Blocking
    /// Suspends the calling fiber; outside a fiber, blocks the thread.
    pub fn join(self) -> thread::Result<T> {
        self.fiber.0.completion.wait(WaitKind::Join, self.fiber.0.id);
        let result = self.result.lock().take().expect("a fiber that has ended has left its result");
        if result.is_err() {
            self.data.panicked.fetch_sub(1, Ordering::Relaxed);
        }
        result
    }
}
