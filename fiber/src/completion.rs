//! An event that happens once, and that fibers and plain threads can wait for alike.

use crate::context::with_current;
use crate::fiber::{WaitKind, Wake, Waker};
use crate::future::wake_task;
use crate::lock::Lock;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task;

enum Waiter {
    Fiber(Waker),
    Thread(std::thread::Thread),
    /// At most one.
    Task(task::Waker),
}

/// Set once, waited for by any number.
pub(crate) struct Completion {
    done: AtomicBool,
    waiters: Lock<Vec<Waiter>>,
}

impl Completion {
    pub(crate) const fn new() -> Self {
        Self { done: AtomicBool::new(false), waiters: Lock::new(Vec::new()) }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    pub(crate) fn set(&self) {
        let waiters = {
            let mut waiters = self.waiters.lock();
            self.done.store(true, Ordering::Release);
            core::mem::take(&mut *waiters)
        };
        for waiter in waiters {
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
        if self.is_done() {
            return false;
        }
        match waiters.iter_mut().find(|waiter| matches!(waiter, Waiter::Task(_))) {
            Some(before) => core::mem::swap(before, &mut waiter),
            None => waiters.push(waiter),
        }
        true
    }

    /// False if there is nothing left to wait for.
    fn add(&self, waiter: impl FnOnce() -> Waiter) -> bool {
        let mut waiters = self.waiters.lock();
        if self.is_done() {
            return false;
        }
        waiters.push(waiter());
        true
    }
}
