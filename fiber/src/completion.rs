//! An event that happens once, and that fibers and plain threads can wait for alike.

use crate::context::with_current;
use crate::fiber::{WaitKind, Wake, Waker};
use crate::future::wake_task;
use crate::lock::Lock;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task;

enum Waiter {
    Fiber(Waker),
    Thread(std::thread::Thread),
    /// At most one.
    Task(task::Waker),
}

/// Somebody may wait.
const AWAITED: u32 = 1;
/// It has happened.
const DONE: u32 = 2;
/// Nobody wants the outcome.
const DETACHED: u32 = 4;

/// Set once, waited for by any number.
///
/// A waiter says so in `state` before it enters the list, both under the list's lock. So whoever sets the state to `DONE` and sees
/// that nobody had waited needs no lock: a later waiter finds `DONE`.
pub(crate) struct Completion {
    state: AtomicU32,
    waiters: Lock<Waiters>,
}

/// The usual one waiter takes no allocation.
struct Waiters {
    first: Option<Waiter>,
    others: Vec<Waiter>,
}

impl Waiters {
    fn push(&mut self, waiter: Waiter) {
        if self.first.is_none() {
            self.first = Some(waiter);
        } else {
            self.others.push(waiter);
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.first.iter_mut().chain(&mut self.others)
    }
}

impl Completion {
    pub(crate) const fn new() -> Self {
        Self { state: AtomicU32::new(0), waiters: Lock::new(Waiters { first: None, others: Vec::new() }) }
    }

    pub(crate) fn is_done(&self) -> bool {
        (self.state.load(Ordering::Acquire) & DONE) != 0
    }

    /// Nobody wants the outcome any more. True if it has happened already.
    pub(crate) fn detach(&self) -> bool {
        (self.state.fetch_or(DETACHED, Ordering::AcqRel) & DONE) != 0
    }

    pub(crate) fn is_detached(&self) -> bool {
        (self.state.load(Ordering::Acquire) & DETACHED) != 0
    }

    /// It has happened: wakes whoever waits. True if nobody wants the outcome.
    pub(crate) fn set(&self) -> bool {
        let before = self.state.swap(DONE, Ordering::AcqRel);
        if (before & AWAITED) != 0 {
            self.wake_all();
        }
        (before & DETACHED) != 0
    }

    #[cold]
    fn wake_all(&self) {
        let (first, others) = {
            let mut waiters = self.waiters.lock();
            (waiters.first.take(), core::mem::take(&mut waiters.others))
        };
        for waiter in first.into_iter().chain(others) {
            match waiter {
                Waiter::Fiber(waker) => {
                    waker.wake(Wake::Ready);
                }
                Waiter::Thread(thread) => thread.unpark(),
                Waiter::Task(waker) => wake_task(waker),
            }
        }
    }

    /// Suspends the fiber, or blocks the thread outside one, until [`Completion::set`].
    pub(crate) fn wait(&self, kind: WaitKind, detail: u64) {
        while !self.is_done() {
            with_current(|current| match current {
                Some(current) if current.may_suspend() => {
                    let wait = current.begin_wait(kind, detail);
                    if self.add(|| Waiter::Fiber(wait.waker())) {
                        wait.block(None);
                    } else {
                        wait.abandon();
                    }
                }
                _ => {
                    if self.add(|| Waiter::Thread(std::thread::current())) {
                        // Spurious returns only lead to one more registration.
                        std::thread::park();
                    }
                }
            });
        }
    }

    /// Adds a task to be woken, in place of the one added before. False if there is nothing left to wait for.
    pub(crate) fn add_task(&self, waker: &task::Waker) -> bool {
        // Made before the lock is taken and dropped after it is released: both call the executor's code.
        let mut waiter = Waiter::Task(waker.clone());
        let mut waiters = self.waiters.lock();
        if !self.announce() {
            return false;
        }
        if let Some(before) = waiters.all().find(|waiter| matches!(waiter, Waiter::Task(_))) {
            core::mem::swap(before, &mut waiter);
            return true;
        }
        waiters.push(waiter);
        true
    }

    /// Says that somebody waits. False if there is nothing left to wait for. Called with the list locked.
    fn announce(&self) -> bool {
        (self.state.fetch_or(AWAITED, Ordering::AcqRel) & DONE) == 0
    }

    /// False if there is nothing left to wait for.
    fn add(&self, waiter: impl FnOnce() -> Waiter) -> bool {
        let mut waiters = self.waiters.lock();
        let awaited = self.announce();
        if awaited {
            waiters.push(waiter());
        }
        awaited
    }
}
