//! What a worker does when it has nothing to run, as a seam: this crate only knows how to sleep, the reactor in
//! `squall-iomanager` sleeps in epoll.

use crate::sys;
use core::any::Any;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waits on behalf of one worker. Lives on that worker's thread.
pub trait Driver: Send + Any {
    /// Waits until [`Unpark::unpark`], an event, or `timeout`, whichever is first, and wakes the fibers whose events have come.
    /// `Some(ZERO)` only looks; `None` has no limit. May return early.
    ///
    /// # Blocking
    /// Blocks the worker's thread.
    fn poll(&mut self, timeout: Option<Duration>);

    /// What ends a `poll` from another thread.
    fn unparker(&self) -> Arc<dyn Unpark>;

    /// For code in a fiber that knows which driver its scheduler has.
    fn as_any(&self) -> &dyn Any;

    /// Whether looking often is worthwhile: false when nothing but `unpark` can ever end a `poll`.
    fn has_events(&self) -> bool;

    /// The worker has ended: there will be no further `poll`.
    fn close(&mut self);

    /// The time by which the worker's timers fire. A simulation has a clock of its own.
    fn now(&self) -> Instant {
        Instant::now()
    }

    /// Whether [`Driver::pick`] decides which fiber runs next; asked once. If not, the one that has been ready longest does.
    fn picks(&self) -> bool {
        false
    }

    /// Which of the `runnable` fibers runs next; at least one is. For simulations, which draw it from their seed.
    fn pick(&mut self, runnable: usize) -> usize {
        let _ = runnable;
        0
    }
}

/// Ends a [`Driver::poll`], also one that is about to begin.
pub trait Unpark: Send + Sync {
    /// Ends the current or next poll.
    fn unpark(&self);
}

/// The driver of a scheduler without I/O: a futex.
#[derive(Debug, Default)]
pub(crate) struct ThreadDriver {
    word: Arc<Word>,
}

#[derive(Debug, Default)]
struct Word(AtomicU32);

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;

impl Driver for ThreadDriver {
    fn poll(&mut self, timeout: Option<Duration>) {
        let word = &self.word.0;
        if word.swap(EMPTY, Ordering::Acquire) == EMPTY && timeout != Some(Duration::ZERO) {
            sys::futex_wait(word, EMPTY, timeout);
            word.store(EMPTY, Ordering::Release);
        }
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::<Word>::clone(&self.word)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn has_events(&self) -> bool {
        false
    }

    fn close(&mut self) {}
}

impl Unpark for Word {
    fn unpark(&self) {
        self.0.store(NOTIFIED, Ordering::Release);
        sys::futex_wake(&self.0, 1);
    }
}
