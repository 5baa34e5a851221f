//! The `std::thread`-shaped API: `spawn`, `Builder`, `JoinHandle`, and what a fiber does to itself.

use crate::context::with_current;
use crate::fiber::{Current, Fiber, Tls, WaitKind};
use crate::reference::FiberRef;
use crate::scheduler;
use crate::stack::STACK_BYTES_DEFAULT;
use crate::task::Task;
use core::any::Any;
use core::fmt;
use core::marker::PhantomData;
use std::thread;
use std::time::{Duration, Instant};

/// How a fiber is made; mirrors `std::thread::Builder`.
///
/// ```
/// let handle = squall_fiber::Builder::new().name("adder").stack_bytes(64 * 1024).spawn(|| 1 + 1);
/// assert_eq!(handle.fiber().name(), Some("adder"));
/// assert_eq!(handle.join().unwrap(), 2);
/// ```
#[derive(Clone)]
pub struct Builder {
    pub(crate) name: Option<String>,
    pub(crate) stack_bytes: usize,
    pub(crate) tls: Tls,
    pub(crate) worker: Option<usize>,
    pub(crate) extension: Option<&'static (dyn Any + Send + Sync)>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("stack_bytes", &self.stack_bytes)
            .field("tls", &self.tls)
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// The defaults: no name, 256 KiB of stack, private thread-locals, any worker.
    pub fn new() -> Self {
        Self {
            name: None,
            stack_bytes: STACK_BYTES_DEFAULT,
            tls: Tls::default(),
            worker: None,
            extension: None,
        }
    }

    /// A name for lists of fibers and overflow reports.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Bytes of stack, rounded up to a power of two between 16 KiB and 1 GiB. Only what is touched takes memory.
    pub fn stack_bytes(mut self, bytes: usize) -> Self {
        self.stack_bytes = bytes;
        self
    }

    /// What kind of thread-locals it has.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = tls;
        self
    }

    /// Pins it to one worker (modulo their number).
    pub fn worker(mut self, index: usize) -> Self {
        self.worker = Some(index);
        self
    }

    /// Attaches something that the fiber, and every fiber that it spawns in turn, finds with [`crate::Current::extension`]; without
    /// it that is what the spawning fiber finds, or the scheduler's own.
    pub fn extension(mut self, extension: &'static (dyn Any + Send + Sync)) -> Self {
        self.extension = Some(extension);
        self
    }

    /// Starts the fiber: in the caller's scheduler, or outside any fiber in the process's default one.
    ///
    /// # Panics
    /// When the default scheduler is needed and cannot be started.
    ///
    /// # Blocking
    /// Never.
    pub fn spawn<F, T>(self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let fiber = scheduler::spawn_here(self, Task::new(f));
        // SAFETY: the task was just made of `f`.
        unsafe { JoinHandle::new(fiber) }
    }
}

impl Builder {
    /// As [`spawn_local`], with what this builder sets but for the worker, which is the caller's.
    ///
    /// # Panics
    /// Outside a fiber.
    ///
    /// # Blocking
    /// Never.
    pub fn spawn_local<F, T>(mut self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + 'static,
        T: 'static,
    {
        // What the two share must not be used by two threads at once, so neither of them may leave this one.
        let worker = with_current(|current| current.map(Current::stay));
        self.worker = Some(worker.expect("a local fiber is spawned by a fiber"));
        let fiber = scheduler::spawn_here(self, Task::new(f));
        // SAFETY: the task was just made of `f`.
        unsafe { JoinHandle::new(fiber) }
    }
}

/// Starts a fiber that shares what is not `Send` with its spawner: an `Rc`, a `RefCell` behind it. Both stay on the worker that the
/// spawner runs on, for good, so they never run at the same time.
///
/// They are two threads nonetheless to code that asks: each has its own thread-locals, unless it is a [`Tls::Shared`] fiber. Do not
/// pass on what is not `Send` because it stands for the state of a thread-local.
///
/// ```
/// use std::cell::RefCell;
/// use std::rc::Rc;
///
/// let fiber = squall_fiber::spawn(|| {
///     let names = Rc::new(RefCell::new(Vec::new()));
///     let others: Vec<_> = ["left", "right"]
///         .into_iter()
///         .map(|name| {
///             let names = Rc::clone(&names);
///             squall_fiber::spawn_local(move || names.borrow_mut().push(name))
///         })
///         .collect();
///     for other in others {
///         other.join().unwrap();
///     }
///     names.take().len()
/// });
/// assert_eq!(fiber.join().unwrap(), 2);
/// ```
///
/// The handle of a result that is not `Send` is not `Send` either:
///
/// ```compile_fail
/// let handle = squall_fiber::spawn_local(|| std::rc::Rc::new(1));
/// squall_fiber::spawn(move || handle.join());
/// ```
///
/// # Panics
/// Outside a fiber.
///
/// # Blocking
/// Never.
pub fn spawn_local<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + 'static,
    T: 'static,
{
    Builder::new().spawn_local(f)
}

/// Starts a fiber with the default [`Builder`]; mirrors `std::thread::spawn`.
///
/// ```
/// let handle = squall_fiber::spawn(|| "done");
/// assert_eq!(handle.join().unwrap(), "done");
/// ```
///
/// # Panics
/// As [`Builder::spawn`].
///
/// # Blocking
/// Never.
pub fn spawn<F, T>(f: F) -> JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    Builder::new().spawn(f)
}

/// Owns the right to a fiber's result. Dropping it detaches the fiber.
pub struct JoinHandle<T> {
    fiber: Fiber,
    result: PhantomData<fn() -> T>,
}

// SAFETY: the handle gives access to a `T` that was made on another thread, once.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: through `&JoinHandle` only the fiber's identity can be reached.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// # Safety
    /// The fiber's task was made of a function that returns a `T`, and this is its only handle.
    pub(crate) unsafe fn new(fiber: FiberRef) -> Self {
        Self { fiber: Fiber(fiber), result: PhantomData }
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        self.fiber.0.detach();
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("fiber", &self.fiber).finish_non_exhaustive()
    }
}

impl<T> JoinHandle<T> {
    /// Waits for the fiber to end.
    ///
    /// # Errors
    /// The payload of the panic that ended it.
    ///
    /// # Blocking
    /// Suspends the calling fiber; outside a fiber, blocks the thread.
    pub fn join(self) -> thread::Result<T> {
        let inner = &self.fiber.0;
        inner.completion.wait(WaitKind::Join, inner.id);
        // SAFETY: the fiber has ended, and `join` takes the only handle.
        unsafe { self.take_result() }.expect("a fiber that has ended has left its result")
    }

    /// `None` if it has been taken before.
    ///
    /// # Safety
    /// The fiber has ended, and nobody else calls this at the same time.
    pub(crate) unsafe fn take_result(&self) -> Option<thread::Result<T>> {
        // SAFETY: by the contract, and `T` is the fiber's result by the contract of `new`.
        unsafe { self.fiber.0.task.take_result() }
    }

    /// Whether the fiber has ended, so that [`JoinHandle::join`] would not wait.
    pub fn is_finished(&self) -> bool {
        self.fiber.0.completion.is_done()
    }

    /// As [`Fiber::cancel`]: the fiber's current or next wait, and all later ones, end with an error. Join it to know when it
    /// has ended.
    ///
    /// ```
    /// let fiber = squall_fiber::spawn(|| squall_fiber::sleep(std::time::Duration::from_secs(3600)));
    /// fiber.cancel();
    /// fiber.join().unwrap(); // long before the hour is over
    /// ```
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
}

/// The calling fiber, or `None` in a plain thread.
pub fn current() -> Option<Fiber> {
    with_current(|current| current.map(|current| current.handle()))
}

/// Lets the other fibers of this worker run first; outside a fiber, yields the thread.
///
/// # Blocking
/// Suspends the fiber.
#[inline]
pub fn yield_now() {
    with_current(|current| match current {
        Some(current) if current.may_suspend() => current.yield_now(),
        _ => thread::yield_now(),
    });
}

/// Sleeps at least `duration`; outside a fiber, sleeps the thread. A fiber that is cancelled, or whose
/// [`with_deadline`](crate::with_deadline) has passed, is woken early.
///
/// # Blocking
/// Suspends the fiber.
pub fn sleep(duration: Duration) {
    with_current(|current| match current {
        Some(current) if current.may_suspend() => {
            // A deadline past the end of the clock never comes.
            let deadline = Instant::now().checked_add(duration);
            current
                .begin_wait(WaitKind::Sleep, duration.as_nanos().min(u64::MAX as u128) as u64)
                .block_interruptible(deadline);
        }
        _ => thread::sleep(duration),
    });
}

/// Waits for [`Fiber::unpark`]; returns at once if that was called since the last `park`. Outside a fiber, parks the thread.
/// Like `std::thread::park` it may return early: when the fiber is cancelled or its [`with_deadline`](crate::with_deadline) has
/// passed, and in a [`Tls::Shared`] fiber that unwinds a panic, always.
///
/// # Blocking
/// Suspends the fiber.
pub fn park() {
    with_current(|current| match current {
        Some(current) if current.may_suspend() => current.park(None),
        Some(_) => {}
        None => thread::park(),
    });
}

/// As [`park`], but no longer than `timeout`.
///
/// # Blocking
/// Suspends the fiber.
pub fn park_timeout(timeout: Duration) {
    with_current(|current| match current {
        Some(current) if current.may_suspend() => current.park(Instant::now().checked_add(timeout)),
        Some(_) => {}
        None => thread::park_timeout(timeout),
    });
}
