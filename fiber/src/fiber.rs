//! One fiber: its identity, its waits, and the memory it runs on.
//!
//! Who may touch what:
//! 1. `state` says who may run the fiber next; state.rs has its rules.
//! 2. `body` and `timer` belong to whoever has the fiber in hand. A fiber is in exactly one place: running, in one run queue, or
//!    parked. A worker has it in hand from taking it out of a queue until it queues it again or has parked it; whoever ends the
//!    wait of a parked fiber has it in hand until it has queued it. [`Ready`] is that possession as a type. `passing`
//!    belongs to the two sides of a switch, of which one runs at a time.
//! 3. `home` is written by the worker that starts to run the fiber, so it stands still while the fiber is parked.
//! 4. `limits` and `locals` belong to the fiber itself.
//! 5. `scheduler` is alive as long as the fiber is: until it has ended.

use crate::arch::{self, Saved};
use crate::backtrace::Trace;
use crate::completion::Completion;
use crate::context;
use crate::interrupt::Limits;
use crate::local::Locals;
use crate::metrics::HookCounts;
use crate::reference::FiberRef;
use crate::register::Slot;
use crate::scheduler::Shared;
use crate::stack::FiberStack;
use crate::state::{State, Woken};
use crate::task::Task;
use crate::timer::TimerId;
use crate::tls::{self, TlsBlock};
use core::any::Any;
use core::cell::{Cell, OnceCell, UnsafeCell};
use core::ffi::{c_int, c_void};
use core::fmt;
use core::marker::PhantomData;
use core::panic::AssertUnwindSafe;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::panic::catch_unwind;
use std::time::Instant;

/// What kind of thread-locals a fiber has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// Its own: the fiber is a thread to every crate. Falls back to `Shared` where the mechanism is missing
    /// (see [`crate::private_tls_support`]).
    #[default]
    Private,
    /// Those of its worker: cheaper to switch, but code inside must not keep a thread-local borrowed, or expect it
    /// unchanged, across a suspension; nor may it use `std::thread::park` or std's channels. Pinned to its worker.
    Shared,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// What was waited for has happened.
    Ready,
    /// The deadline has passed.
    TimedOut,
    /// The thing waited on is gone, such as a descriptor that was closed.
    Closed,
    /// The fiber has been cancelled. Only in [`Wait::block_interruptible`].
    Cancelled,
    /// The deadline of an enclosing [`crate::with_deadline`] has passed. Only in [`Wait::block_interruptible`].
    Expired,
}

/// What a fiber waits for, for people to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum WaitKind {
    /// Nothing: it runs or is about to.
    None,
    /// Time to pass.
    Sleep,
    /// `unpark`.
    Park,
    /// Another fiber to end.
    Join,
    /// A descriptor (the detail) to become readable.
    Readable,
    /// A descriptor (the detail) to become writable.
    Writable,
    /// One of several descriptors (the detail says how many).
    Poll,
    /// A futex word (the detail is its address).
    Futex,
    /// A call on the blocking pool.
    Blocking,
    /// A mutex or a reader-writer lock of `sync` (the detail is its address, as for all that follow).
    Lock,
    /// A condition variable to be notified.
    Condvar,
    /// Permits of a semaphore.
    Semaphore,
    /// The others at a barrier.
    Barrier,
    /// The tasks of a wait group to end.
    WaitGroup,
    /// Somebody else's initialisation.
    Once,
    /// Room in a channel.
    Send,
    /// A value from a channel.
    Receive,
    /// One of several channel operations (the detail says how many).
    Select,
}

impl WaitKind {
    pub(crate) const ALL: [Self; 18] = {
        use WaitKind::*;
        [
            None, Sleep, Park, Join, Readable, Writable, Poll, Futex, Blocking, Lock, Condvar, Semaphore,
            Barrier, WaitGroup, Once, Send, Receive, Select,
        ]
    };
    /// By their numbers, for a debugger.
    pub(crate) const NAMES: [&'static str; 18] = [
        "runs",
        "sleeps",
        "parked",
        "join",
        "read",
        "write",
        "poll",
        "futex",
        "blocking-pool",
        "lock",
        "condvar",
        "semaphore",
        "barrier",
        "wait-group",
        "once",
        "send",
        "receive",
        "select",
    ];

    fn from_u8(value: u8) -> Self {
        Self::ALL.get(usize::from(value)).copied().unwrap_or(Self::None)
    }
}

/// What a fiber tells its worker as it switches away.
#[derive(Clone, Copy)]
pub(crate) enum Suspend {
    /// Run me again after the others.
    Yield,
    /// Run me when my wait has ended.
    Wait { deadline: Option<Instant> },
    /// I have ended: nothing runs on my stack any more.
    End,
}

/// What a fiber runs on. Empty before it starts and after it has ended.
#[derive(Default)]
pub(crate) struct Body {
    pub(crate) stack: Option<FiberStack>,
    pub(crate) tls: Option<TlsBlock>,
}

/// What a fiber tells its worker, and the worker a fiber, by a switch. Written by the side that leaves, in memory that the fiber has
/// in common with whoever has it in hand. Where the fiber itself stands is in its [`Trace`].
pub(crate) struct Passing {
    /// Where the worker stands while the fiber runs.
    worker: Cell<*mut Saved>,
    /// The worker's thread pointer, if the fiber has one of its own.
    worker_thread_pointer: Cell<Option<usize>>,
    /// The worker's errno, if the fiber has none of its own: it stays on that thread, once started.
    worker_errno: Cell<*mut c_int>,
    /// Why the fiber has switched away.
    suspend: Cell<Suspend>,
}

pub(crate) struct Inner {
    pub(crate) id: u64,
    pub(crate) name: Option<Box<str>>,
    pub(crate) stack_bytes: usize,
    pub(crate) tls: Tls,
    /// It must always run on its home worker. The fiber itself may set it; whoever has it in hand reads it.
    pub(crate) pinned: Cell<bool>,
    /// How many references there are; see reference.rs.
    pub(crate) references: AtomicU32,
    scheduler: NonNull<Shared>,
    pub(crate) extension: Option<&'static (dyn Any + Send + Sync)>,
    /// Its place in the register.
    pub(crate) slot: Slot,
    pub(crate) state: State,
    pub(crate) home: AtomicUsize,
    pub(crate) body: UnsafeCell<Body>,
    pub(crate) task: Task,
    passing: Passing,
    /// The timer of the wait that the fiber is parked in, and the worker that keeps it.
    pub(crate) timer: UnsafeCell<Option<(usize, TimerId)>>,
    pub(crate) completion: Completion,
    /// The addresses of the guard below the stack in use, for the overflow report; 0..0 before the start.
    pub(crate) guard_start: AtomicUsize,
    pub(crate) guard_end: AtomicUsize,
    pub(crate) trace: Trace,
    pub(crate) hooks: HookCounts,
    unpark_token: AtomicBool,
    /// The generation of the wait inside `park`, 0 when there is none.
    park_generation: AtomicU64,
    wait_kind: AtomicU8,
    wait_detail: AtomicU64,
    pub(crate) limits: Cell<Limits>,
    pub(crate) locals: OnceCell<Box<Locals>>,
}

// SAFETY: the fields that are not atomics are handed from thread to thread by the rules at the top of this file; what they
// hold is `Send` (the task's function by the bounds of `spawn`), or made to move (stack, TLS block), or stays on one worker's
// thread (the task's function and result in `spawn_local`, with everybody who could share them).
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// What a new fiber is made of.
pub(crate) struct NewFiber {
    pub(crate) id: u64,
    pub(crate) name: Option<Box<str>>,
    pub(crate) stack_bytes: usize,
    pub(crate) tls: Tls,
    pub(crate) pinned: bool,
    pub(crate) home: usize,
    pub(crate) extension: Option<&'static (dyn Any + Send + Sync)>,
    pub(crate) slot: Slot,
    pub(crate) task: Task,
}

impl Inner {
    pub(crate) const WAIT_KIND_OFFSET: usize = core::mem::offset_of!(Inner, wait_kind);
    pub(crate) const WAIT_DETAIL_OFFSET: usize = core::mem::offset_of!(Inner, wait_detail);

    /// Its count is for the register and for whoever asked for it.
    pub(crate) fn new(scheduler: &Shared, new: NewFiber) -> Self {
        Self {
            id: new.id,
            name: new.name,
            stack_bytes: new.stack_bytes,
            tls: new.tls,
            pinned: Cell::new(new.pinned),
            references: AtomicU32::new(2),
            scheduler: NonNull::from(scheduler),
            extension: new.extension,
            slot: new.slot,
            state: State::new(),
            home: AtomicUsize::new(new.home),
            body: UnsafeCell::default(),
            task: new.task,
            passing: Passing {
                worker: Cell::new(core::ptr::null_mut()),
                worker_thread_pointer: Cell::new(None),
                worker_errno: Cell::new(core::ptr::null_mut()),
                suspend: Cell::new(Suspend::End),
            },
            timer: UnsafeCell::new(None),
            completion: Completion::new(),
            guard_start: AtomicUsize::new(0),
            guard_end: AtomicUsize::new(0),
            trace: Trace::default(),
            hooks: HookCounts::default(),
            unpark_token: AtomicBool::new(false),
            park_generation: AtomicU64::new(0),
            wait_kind: AtomicU8::new(WaitKind::None as u8),
            wait_detail: AtomicU64::new(0),
            limits: Cell::default(),
            locals: OnceCell::new(),
        }
    }

    /// The handle goes away: its result is dropped here if the fiber has ended, else by the fiber.
    pub(crate) fn detach(&self) {
        if self.completion.is_done() || self.completion.detach() {
            // SAFETY: the fiber has ended and had not been detached, so what it left is the handle's.
            unsafe { self.task.drop_result() };
        }
    }

    /// Makes the interruptible wait that the fiber is in, and every later one, end with [`Wake::Cancelled`].
    pub(crate) fn cancel(&self) {
        self.after(self.state.cancel());
    }

    /// # Safety
    /// The fiber has not ended.
    #[inline(always)]
    pub(crate) unsafe fn scheduler(&self) -> &Shared {
        // SAFETY: a scheduler outlives its fibers: it stops only when there are none.
        unsafe { self.scheduler.as_ref() }
    }

    /// Whether another worker than its home may run it: not if it is pinned, nor once it has begun to use its worker's
    /// thread-locals.
    ///
    /// # Safety
    /// The caller has the fiber in hand.
    pub(crate) unsafe fn may_move(&self) -> bool {
        // SAFETY: the body is the caller's.
        !self.pinned.get() && (self.tls == Tls::Private || unsafe { (*self.body.get()).stack.is_none() })
    }

    #[inline]
    fn wake(&self, generation: u64, reason: Wake) -> bool {
        let woken = self.state.wake(generation, reason);
        self.after(woken);
        woken != Woken::Late
    }

    #[inline]
    fn after(&self, woken: Woken) {
        if woken == Woken::InHand {
            // SAFETY: ending the wait of a parked fiber takes it in hand.
            Shared::make_runnable(unsafe { Ready::new(self) });
        }
    }

    /// Makes sure that the fiber never runs again, and that nothing it holds is dropped: not even what an entry that has not run
    /// yet has captured. For a fiber in hand, without a timer.
    pub(crate) fn give_up(&self) {
        self.state.give_up();
    }

    pub(crate) fn waits_for(&self) -> (WaitKind, u64) {
        if self.state.is_running() {
            return (WaitKind::None, 0);
        }
        let kind = WaitKind::from_u8(self.wait_kind.load(Ordering::Relaxed));
        (kind, self.wait_detail.load(Ordering::Relaxed))
    }

    pub(crate) fn unpark(&self) {
        self.unpark_token.store(true, Ordering::SeqCst);
        let generation = self.park_generation.swap(0, Ordering::SeqCst);
        if generation != 0 {
            self.wake(generation, Wake::Ready);
        }
    }

    /// Switches to the worker.
    ///
    /// Inlined into its callers, down to the API: each return above a switch is one that the processor predicts wrongly.
    ///
    /// # Safety
    /// Called by the fiber itself.
    #[inline(always)]
    unsafe fn suspend(&self, how: Suspend) {
        let passing = &self.passing;
        passing.suspend.set(how);
        let here = self.trace.stands();
        if self.tls == Tls::Private {
            // SAFETY: the worker that runs the fiber stands there and waits for this.
            unsafe { arch::switch(here, passing.worker.get(), passing.worker_thread_pointer.get()) };
            return;
        }
        // errno is the worker's: other fibers change it before this one continues.
        let errno = passing.worker_errno.get();
        // SAFETY: valid for the thread, and a shared-TLS fiber stays on its thread.
        let saved = unsafe { *errno };
        // SAFETY: as above.
        unsafe { arch::switch(here, passing.worker.get(), None) };
        // SAFETY: as above.
        unsafe { *errno = saved };
    }

    /// Runs the fiber until it switches back, and says why it did. `thread_pointer`: its own, if it has one.
    ///
    /// # Safety
    /// The caller is a worker that has the fiber in hand, and the fiber has been prepared.
    #[inline(always)]
    pub(crate) unsafe fn resume(&self, thread_pointer: Option<usize>) -> Suspend {
        let passing = &self.passing;
        passing.worker_thread_pointer.set(thread_pointer.map(|_| arch::thread_pointer()));
        let there = self.trace.resumed();
        // SAFETY: the fiber stands where it or `prepare` has noted; its block is its own.
        unsafe { arch::switch(passing.worker.as_ptr(), there, thread_pointer) };
        passing.suspend.get()
    }

    /// Makes the first [`Inner::resume`] start the fiber on a stack.
    ///
    /// # Safety
    /// The caller is the worker that has the fiber in hand, it has not started, and the stack stays until it has ended.
    pub(crate) unsafe fn prepare(&self, stack: &FiberStack) {
        if self.tls == Tls::Shared {
            // SAFETY: only asks for the address.
            self.passing.worker_errno.set(unsafe { libc::__errno_location() });
        }
        let this = core::ptr::from_ref(self).cast();
        // SAFETY: nothing runs on the stack, and `main` does not return.
        let stands = unsafe { arch::prepare_stack(stack.base(), Self::main, this) };
        self.trace.prepared(stack.base(), stands);
    }

    /// The function at the bottom of every fiber's stack. Does not return: what called it is no function.
    ///
    /// # Safety
    /// `this` is the fiber, which the register keeps until after it has ended, and the caller is its root.
    unsafe extern "C" fn main(this: *const c_void) {
        let this: *const Inner = this.cast();
        // SAFETY: by the caller's contract.
        let inner = unsafe { &*this };
        if inner.tls == Tls::Private {
            context::set_current(this);
            tls::start_thread();
        }
        // The task catches the panics of the function it runs. What can still unwind is the destructor of a result that nobody wants.
        // SAFETY: this is the fiber, and it starts once.
        or_abort("a fiber's result panicked while it was dropped", || unsafe { Task::run(inner) });
        if context::is_forked_child() {
            // As in a thread that forked: it was the child's only one, and the worker it would return to is the parent's.
            std::process::exit(0);
        }
        if let Some(locals) = inner.locals.get() {
            or_abort("a fiber-local panicked while it was dropped", || locals.drop_all());
        }
        if inner.tls == Tls::Private {
            tls::finish_thread();
        }
        // SAFETY: this is the fiber.
        unsafe { inner.suspend(Suspend::End) };
        unreachable!("a fiber that has ended is not resumed");
    }
}

/// Runs what must not unwind: beyond the root of a fiber's stack there is nobody who could catch it.
fn or_abort(what: &str, f: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(f)).is_err() {
        eprintln!("squall: {what}, aborting");
        std::process::abort();
    }
}

/// A fiber in hand, to be run or queued. The register keeps it alive: a fiber stays there until it has ended, and it does not end
/// while somebody else has it in hand.
pub(crate) struct Ready(NonNull<Inner>);

// SAFETY: `Inner` may be shared between threads, and possession may be handed over by any means that orders memory.
unsafe impl Send for Ready {}

impl core::ops::Deref for Ready {
    type Target = Inner;
    #[inline(always)]
    fn deref(&self) -> &Inner {
        // SAFETY: see the type.
        unsafe { self.0.as_ref() }
    }
}

impl Ready {
    /// # Safety
    /// The caller has the fiber in hand, by rule 2 at the top of this file, and it is in the register.
    #[inline(always)]
    pub(crate) unsafe fn new(fiber: &Inner) -> Self {
        Self(NonNull::from(fiber))
    }

    /// # Safety
    /// `raw` came from [`Ready::into_raw`], once.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(raw: *mut Inner) -> Self {
        // SAFETY: it was made from a non-null pointer.
        Self(unsafe { NonNull::new_unchecked(raw) })
    }

    #[inline(always)]
    pub(crate) fn into_raw(self) -> *mut Inner {
        self.0.as_ptr()
    }

    /// The address, for what lives as long as the fiber runs.
    #[inline(always)]
    pub(crate) fn as_ptr(&self) -> *const Inner {
        self.0.as_ptr()
    }

    /// A reference for what may outlive the possession.
    fn to_reference(&self) -> FiberRef {
        // SAFETY: the register's reference keeps it alive.
        unsafe { FiberRef::from_borrowed(self.as_ptr()) }
    }

    /// A waker for the wait that the fiber has begun, for the worker that sets its timer.
    pub(crate) fn waker_of_current_wait(&self) -> Waker {
        Waker { fiber: self.to_reference(), generation: self.state.generation() }
    }

    /// Called by the worker once the fiber has switched away with [`Suspend::Wait`]: from now on whoever ends the wait has the
    /// fiber in hand. Gives it back if the wait has ended meanwhile.
    pub(crate) fn park(self) -> Option<Self> {
        (!self.state.park()).then_some(self)
    }
}

impl FiberRef {
    /// Called by the worker that has retired the fiber.
    #[inline]
    pub(crate) fn end(self, shared: &Shared) {
        // SAFETY: if it was detached before it ended, nobody but this worker has a turn any more.
        if self.completion.set() && unsafe { self.task.has_result() } {
            self.drop_result_in_a_fiber(shared);
        }
    }

    /// It was detached after its own last look. The result's destructor is user code, which may wait, and the worker must not.
    #[cold]
    fn drop_result_in_a_fiber(self, shared: &Shared) {
        // On the same worker: the result of a local fiber may not leave it.
        let worker = self.home.load(Ordering::Relaxed);
        // SAFETY: this is the last turn.
        shared.run_in_a_fiber(worker, move || unsafe { self.task.drop_result() });
    }
}

/// Aborts the process if a panic passes it, with what that would mean.
pub(crate) struct AbortOnUnwind(pub(crate) &'static str);

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("squall: {}, aborting", self.0);
            std::process::abort();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A stack on which frames still stand leaks, with all that they own: nothing can unwind it from here.
        if let Some(locals) = self.locals.get() {
            // What is still there belongs to a fiber that has not ended, or was made while its thread-locals were destroyed.
            locals.leak();
        }
    }
}

/// A handle to a fiber; cheap to clone, and no reason for the fiber to live on.
#[derive(Clone)]
pub struct Fiber(pub(crate) FiberRef);

impl Fiber {
    /// Unique in the process, never reused.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The name given to [`crate::Builder::name`].
    pub fn name(&self) -> Option<&str> {
        self.0.name.as_deref()
    }

    /// Lets the fiber's current or next [`crate::park`] return. Several calls before that count as one.
    ///
    /// # Blocking
    /// Never.
    pub fn unpark(&self) {
        self.0.unpark();
    }

    /// Cancels the fiber, for good: the call that it waits in, and every later one that would wait, returns an error (hooked
    /// calls `ECANCELED`) or early (sleeps, [`crate::park`]). Code inside [`crate::shield`] does not notice; neither do waits that
    /// know no errors: locks of std and parking_lot, joins, calls on the blocking pool that have begun.
    ///
    /// # Blocking
    /// Never.
    pub fn cancel(&self) {
        self.0.cancel();
    }
}

impl fmt::Debug for Fiber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fiber").field("id", &self.id()).field("name", &self.name()).finish_non_exhaustive()
    }
}

/// The fiber that is running: what hooks and primitives need of it, at the price of one thread-local read.
#[derive(Clone, Copy)]
pub struct Current<'a> {
    inner: &'a FiberRef,
    /// It means "this fiber", so it must not be given to another.
    _not_send: PhantomData<*const ()>,
}

impl fmt::Debug for Current<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl<'a> Current<'a> {
    pub(crate) fn new(inner: &'a FiberRef) -> Self {
        Self { inner, _not_send: PhantomData }
    }

    pub(crate) fn inner(self) -> &'a Inner {
        self.inner
    }

    /// Makes the fiber stay on the worker that it runs on; says which that is.
    pub(crate) fn stay(self) -> usize {
        self.inner.pinned.set(true);
        self.inner.home.load(Ordering::Relaxed)
    }

    /// For the hook layer: counts a call that it serves.
    #[inline(always)]
    pub fn count_hook_hit(self) {
        self.inner.hooks.hit();
    }

    /// For the hook layer: counts a call that goes straight to libc, because the fiber must not be suspended now.
    pub fn count_hook_bypass(self) {
        crate::metrics::count_hook_bypass();
    }

    /// A handle that others may keep.
    pub fn handle(self) -> Fiber {
        Fiber(self.inner.clone())
    }

    /// Unique in the process, never reused.
    pub fn id(self) -> u64 {
        self.inner.id
    }

    /// Whether its thread-locals are its own.
    pub fn has_private_tls(self) -> bool {
        self.inner.tls == Tls::Private
    }

    /// Whether it may switch away now. Not while it unwinds a panic on thread-locals that it shares: the next fiber of the
    /// worker would find itself panicking.
    #[inline]
    pub fn may_suspend(self) -> bool {
        self.has_private_tls() || !std::thread::panicking()
    }

    /// What [`crate::Builder::extension`] attached to this fiber or to the one that spawned it, else what the creator of the
    /// scheduler attached to that: the seam through which the hook layer finds its operating system.
    #[inline]
    pub fn extension(self) -> Option<&'static (dyn Any + Send + Sync)> {
        self.inner.extension
    }

    /// Begins a wait: hand the wakers to whatever will end it, check once more that it has not happened yet, then
    /// [`Wait::block`]. `kind` and `detail` are for people who list fibers.
    #[inline]
    pub fn begin_wait(self, kind: WaitKind, detail: u64) -> Wait<'a> {
        let inner = self.inner;
        inner.wait_kind.store(kind as u8, Ordering::Relaxed);
        inner.wait_detail.store(detail, Ordering::Relaxed);
        Wait { current: self, generation: inner.state.begin(), listens: false }
    }

    /// As [`Current::begin_wait`], for a wait to be ended by [`Wait::block_interruptible`], which then costs less.
    #[inline]
    pub fn begin_interruptible_wait(self, kind: WaitKind, detail: u64) -> Wait<'a> {
        let inner = self.inner;
        if inner.limits.get().shielded {
            return self.begin_wait(kind, detail);
        }
        inner.wait_kind.store(kind as u8, Ordering::Relaxed);
        inner.wait_detail.store(detail, Ordering::Relaxed);
        Wait { current: self, generation: inner.state.begin_listening(), listens: true }
    }

    /// Goes to the end of the run queue.
    ///
    /// # Blocking
    /// Suspends the fiber.
    #[inline]
    pub fn yield_now(self) {
        // SAFETY: `Current` exists only inside the fiber that it names.
        unsafe { self.inner.suspend(Suspend::Yield) };
    }

    pub(crate) fn park(self, deadline: Option<Instant>) {
        let inner = self.inner;
        if inner.unpark_token.swap(false, Ordering::SeqCst) {
            return;
        }
        let wait = self.begin_wait(WaitKind::Park, 0);
        inner.park_generation.store(wait.generation, Ordering::SeqCst);
        // An unpark between the first look and the line above has left its token but found no generation.
        if inner.unpark_token.load(Ordering::SeqCst) {
            wait.abandon();
        } else {
            wait.block_interruptible(deadline);
        }
        // An unpark that still reads it wakes a wait that is over, which does nothing.
        inner.park_generation.store(0, Ordering::Relaxed);
        // A swap, not a store: taking a token away means seeing what its giver wrote before.
        inner.unpark_token.swap(false, Ordering::SeqCst);
    }
}

/// A wait that has begun; ends by [`Wait::block`] or [`Wait::abandon`].
#[derive(Debug)]
#[must_use = "a wait that has begun must be blocked on or abandoned"]
pub struct Wait<'a> {
    current: Current<'a>,
    generation: u64,
    /// Cancellation ends it already.
    listens: bool,
}

impl Wait<'_> {
    /// Something that ends this wait, from any thread. Harmless once the wait is over.
    #[inline]
    pub fn waker(&self) -> Waker {
        Waker { fiber: self.current.inner.clone(), generation: self.generation }
    }

    /// As [`Wait::waker`], at the price of no atomic operation, and kept valid by its user.
    #[inline]
    pub(crate) fn uncounted_waker(&self) -> UncountedWaker {
        UncountedWaker { fiber: self.current.inner.as_ptr(), generation: self.generation }
    }

    /// Waits until a waker fires or `deadline` passes. Nothing interrupts it: for waits whose callers know no errors.
    ///
    /// # Blocking
    /// Suspends the fiber.
    #[inline]
    pub fn block(self, deadline: Option<Instant>) -> Wake {
        self.suspend(deadline)
    }

    /// As [`Wait::block`], but cancelling the fiber ends it with [`Wake::Cancelled`], and the deadline of an enclosing
    /// [`crate::with_deadline`] with [`Wake::Expired`]; at once, if that has already happened. Not inside [`crate::shield`].
    ///
    /// The wakers are where they were: the caller takes them out, as after [`Wake::TimedOut`].
    ///
    /// # Blocking
    /// Suspends the fiber, also if the wait ends at once: code that does not heed interruptions and tries again and again must
    /// leave the others of its worker their turn.
    #[inline(always)]
    pub fn block_interruptible(self, deadline: Option<Instant>) -> Wake {
        let limits = self.current.inner.limits.get();
        let state = &self.current.inner.state;
        if self.listens {
            if state.is_heard() {
                let wake = state.end(self.generation, Wake::Cancelled);
                return self.over_at_once(wake);
            }
        } else if !limits.shielded
            && let Some(wake) = state.listen(self.generation)
        {
            return self.over_at_once(wake);
        }
        match limits.deadline {
            Some(end) if deadline.is_none_or(|deadline| end < deadline) => self.block_until_expiry(end),
            _ => self.suspend(deadline),
        }
    }

    /// Not inlined, to keep what is inlined small.
    #[inline(never)]
    fn block_until_expiry(self, end: Instant) -> Wake {
        if Instant::now() >= end {
            let wake = self.current.inner.state.end(self.generation, Wake::Expired);
            return self.over_at_once(wake);
        }
        match self.suspend(Some(end)) {
            Wake::TimedOut => Wake::Expired,
            wake => wake,
        }
    }

    #[cold]
    fn over_at_once(self, wake: Wake) -> Wake {
        if matches!(wake, Wake::Cancelled | Wake::Expired) {
            self.current.yield_now();
        }
        wake
    }

    #[inline(always)]
    fn suspend(self, deadline: Option<Instant>) -> Wake {
        let inner = self.current.inner;
        if let Some(wake) = inner.state.outcome() {
            return wake;
        }
        // SAFETY: `Current` exists only inside the fiber that it names.
        unsafe { inner.suspend(Suspend::Wait { deadline }) };
        inner.state.outcome().expect("a worker runs a fiber again when its wait has ended")
    }

    /// Ends the wait without waiting. Says whether a waker had fired already.
    pub fn abandon(self) -> bool {
        self.current.inner.state.abandon(self.generation)
    }
}

/// Ends one wait of one fiber.
#[derive(Clone)]
pub struct Waker {
    fiber: FiberRef,
    generation: u64,
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").field("fiber", &self.fiber.id).field("generation", &self.generation).finish()
    }
}

impl Waker {
    pub(crate) fn fiber_id(&self) -> u64 {
        self.fiber.id
    }

    /// Ends the wait, if it is not over. True if it was this call that did. [`Wake::TimedOut`] is for timers, [`Wake::Cancelled`]
    /// and [`Wake::Expired`] for the runtime.
    ///
    /// # Blocking
    /// Never.
    pub fn wake(&self, reason: Wake) -> bool {
        self.fiber.wake(self.generation, reason)
    }

    /// Whether it is the same wait of the same fiber.
    pub fn is_same(&self, other: &Waker) -> bool {
        self.fiber.is_same(&other.fiber) && self.generation == other.generation
    }

    /// Whether it ends a wait of this fiber.
    pub fn is_of(&self, current: Current<'_>) -> bool {
        self.fiber.is_same(current.inner)
    }
}

/// A [`Waker`] that does not keep the fiber's memory.
pub(crate) struct UncountedWaker {
    fiber: *const Inner,
    generation: u64,
}

// SAFETY: a fiber may be woken from any thread.
unsafe impl Send for UncountedWaker {}

impl UncountedWaker {
    /// As [`Waker::wake`].
    ///
    /// # Safety
    /// The fiber does not end before this call has ended its wait, or has returned false.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub(crate) unsafe fn wake(self, reason: Wake) -> bool {
        // SAFETY: the fiber is alive until the word has changed, and the word is the last of it that is looked at...
        let woken = unsafe { (*self.fiber).state.wake(self.generation, reason) };
        if woken == Woken::InHand {
            // SAFETY: ...unless it is in hand now, and so alive: ending the wait of a parked fiber takes it in hand.
            Shared::make_runnable(unsafe { Ready::new(&*self.fiber) });
        }
        woken != Woken::Late
    }
}
