//! A barrier: a fixed number of fibers or threads wait for each other, again and again.

use super::error::WaitError;
use super::shim::{Latch, constructor};
use super::wait::{End, Patience, Queue, Reason, wait, wake_all};
use crate::fiber::WaitKind;
use crate::interrupt::Interrupt;
use core::fmt;
use std::time::Duration;

struct State {
    /// How many have come in this round and wait.
    arrived: usize,
    round: u64,
    /// Of each waiter its round: a waiter of the last round may still be here when the next one has begun.
    queue: Queue<u64>,
}

/// Lets a number of fibers or threads wait for each other.
///
/// ```
/// use squall_fiber::sync::Barrier;
/// use std::sync::Arc;
///
/// let barrier = Arc::new(Barrier::new(3));
/// let fibers: Vec<_> = (0..3)
///     .map(|_| {
///         let barrier = Arc::clone(&barrier);
///         squall_fiber::spawn(move || barrier.wait().unwrap().is_leader())
///     })
///     .collect();
/// let leaders = fibers.into_iter().filter_map(|fiber| fiber.join().unwrap().then_some(())).count();
/// assert_eq!(leaders, 1);
/// ```
pub struct Barrier {
    size: usize,
    state: Latch<State>,
}

/// What [`Barrier::wait`] says to one who got through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarrierWaitResult {
    is_leader: bool,
}

impl BarrierWaitResult {
    /// True for one of each round: the one that came last.
    pub fn is_leader(self) -> bool {
        self.is_leader
    }
}

impl Barrier {
    constructor! {
        /// For rounds of `size`; 0 counts as 1.
        pub fn new(size: usize) -> Self {
            Self { size, state: Latch::new(State { arrived: 0, round: 0, queue: Queue::new() }) }
        }
    }

    /// Waits for the others of this round.
    ///
    /// # Errors
    /// What interrupted the wait. The caller then does not count as arrived.
    ///
    /// # Blocking
    /// Suspends the fiber; outside a fiber, blocks the thread. Not for the one that comes last.
    pub fn wait(&self) -> Result<BarrierWaitResult, Interrupt> {
        self.arrive(Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)
    }

    /// As [`Barrier::wait`], for at most `timeout`.
    ///
    /// # Errors
    /// Why the wait ended before the round was complete. The caller then does not count as arrived.
    ///
    /// # Blocking
    /// As [`Barrier::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, WaitError> {
        self.arrive(Patience::at_most(timeout))
    }

    fn arrive(&self, patience: Patience) -> Result<BarrierWaitResult, WaitError> {
        let mut state = self.state.lock();
        let round = state.round;
        if state.arrived + 1 >= self.size {
            state.arrived = 0;
            state.round += 1;
            // Also those of the round before that its leader has not come to yet.
            wake_all(&self.state, state, |state| state.queue.grant_if(|of| *of <= round, |_| ()));
            return Ok(BarrierWaitResult { is_leader: true });
        }
        state.arrived += 1;
        let reason = Reason::new(WaitKind::Barrier, self);
        let place = (End::Back, round);
        match wait(&self.state, state, |state| &mut state.queue, place, (reason, patience), || ()) {
            Ok(_) => Ok(BarrierWaitResult { is_leader: false }),
            // The round is complete, only its leader has not come to this waiter yet.
            Err(withdrawn) if withdrawn.guard.round != round => Ok(BarrierWaitResult { is_leader: false }),
            Err(mut withdrawn) => {
                withdrawn.guard.arrived -= 1;
                Err(withdrawn.error)
            }
        }
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").field("size", &self.size).finish_non_exhaustive()
    }
}
