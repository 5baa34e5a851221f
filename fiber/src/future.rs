//! Where fibers meet futures: a fiber can wait for a future, and a future for a fiber.
//!
//! There is no executor here. [`block_on`] polls one future in the caller, and whatever executor polls a
//! [`JoinHandle`] is woken when the fiber has ended.

use crate::context::{in_fiber, with_current, with_worker};
use crate::fiber::{WaitKind, Wake, Waker};
use crate::handle::JoinHandle;
use crate::lock::Lock;
use crate::sys;
use core::future::{Future, IntoFuture};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{self, Context, Poll};
use std::sync::Arc;
use std::thread;

/// Runs a future to its end.
///
/// ```
/// let fibers: Vec<_> = (0..10).map(|n| squall_fiber::spawn(move || n * n)).collect();
/// let sum = squall_fiber::block_on(async {
///     let mut sum = 0;
///     for fiber in fibers {
///         sum += fiber.await.unwrap();
///     }
///     sum
/// });
/// assert_eq!(sum, 285);
/// ```
///
/// # Blocking
/// Suspends the calling fiber while the future waits; outside a fiber, blocks the thread. Nothing interrupts that: a future has no
/// error for it.
pub fn block_on<F: IntoFuture>(future: F) -> F::Output {
    let mut future = pin!(future.into_future());
    let signal = Arc::new(Signal { state: AtomicU32::new(EMPTY), fiber: Lock::new(None) });
    let waker = task::Waker::from(Arc::clone(&signal));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        signal.wait();
    }
}

const EMPTY: u32 = 0;
/// A wake-up that nobody has waited for yet.
const NOTIFIED: u32 = 1;
/// The waiter sleeps, or is about to: if it is a fiber, its waker is there.
const SLEEPING: u32 = 2;

/// The wake-ups of one [`block_on`]. Not the fiber's or thread's park token: the future's own code may park, and would take
/// wake-ups that are not for it.
struct Signal {
    state: AtomicU32,
    fiber: Lock<Option<Waker>>,
}

impl Signal {
    fn wait(&self) {
        // From `EMPTY` to `EMPTY` by way of `NOTIFIED`: whatever was written before the wake-up is seen after this.
        while self.state.swap(EMPTY, Ordering::Acquire) != NOTIFIED {
            let fall_asleep =
                || self.state.compare_exchange(EMPTY, SLEEPING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            with_current(|current| match current {
                Some(current) if current.may_suspend() => {
                    let wait = current.begin_wait(WaitKind::Park, 0);
                    *self.fiber.lock() = Some(wait.waker());
                    if fall_asleep() {
                        wait.block(None);
                    } else {
                        wait.abandon();
                    }
                }
                _ => {
                    // Of an earlier wait, from before the fiber began to panic.
                    *self.fiber.lock() = None;
                    if fall_asleep() {
                        sys::futex_wait(&self.state, SLEEPING, None);
                    }
                }
            });
        }
    }
}

impl std::task::Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(NOTIFIED, Ordering::AcqRel) != SLEEPING {
            return;
        }
        let fiber = self.fiber.lock().take();
        match fiber {
            Some(fiber) => drop(fiber.wake(Wake::Ready)),
            None => sys::futex_wake(&self.state, 1),
        }
    }
}

/// Ready when the fiber has ended, with what [`JoinHandle::join`] returns.
///
/// # Panics
/// When polled again after that.
impl<T> Future for JoinHandle<T> {
    type Output = thread::Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.fiber().0.completion.add_task(context.waker()) {
            return Poll::Pending;
        }
        // SAFETY: the fiber has ended, and the handle is borrowed mutably.
        Poll::Ready(unsafe { self.take_result() }.expect("a join handle is polled no more once it was ready"))
    }
}

/// Wakes a task whose fiber has ended. An executor's wake-up may take a lock, and the lock may be held by a fiber of this worker: so
/// it must not be the worker's own loop that waits for it.
pub(crate) fn wake_task(waker: task::Waker) {
    with_worker(|worker| match worker {
        Some((shared, index)) if !in_fiber() => shared.run_in_a_fiber(index, || waker.wake()),
        _ => waker.wake(),
    });
}
