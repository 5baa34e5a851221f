//! What the one worker of a simulation does when it has nothing to run: it lets the next thing happen, at once.

use crate::kernel::Kernel;
use core::any::Any;
use squall_fiber::{Driver, Unpark};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) struct SimDriver {
    pub(crate) kernel: Arc<Kernel>,
}

impl Driver for SimDriver {
    /// Moves time to the next thing that is due, instead of sleeping until then.
    ///
    /// # Panics
    /// If every fiber waits and nothing will ever happen again.
    fn poll(&mut self, timeout: Option<Duration>) {
        let mut state = self.kernel.lock();
        if timeout != Some(Duration::ZERO) {
            let timer = timeout.map(|timeout| state.now + timeout.as_nanos() as u64);
            let Some(next) = timer.into_iter().chain(state.next_happening()).min() else {
                let (seed, now) = (state.seed, Duration::from_nanos(state.now));
                drop(state);
                panic!("seed {seed}: every fiber waits, and nothing more will happen after {now:?}");
            };
            if next > state.now {
                state.advance(next);
            }
        }
        state.run_happenings();
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::new(Nobody)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn has_events(&self) -> bool {
        true
    }

    fn close(&mut self) {}

    fn now(&self) -> Instant {
        let now = self.kernel.lock().now;
        self.kernel.instant(now)
    }

    fn picks(&self) -> bool {
        true
    }

    fn pick(&mut self, runnable: usize) -> usize {
        self.kernel.lock().pick(runnable)
    }
}

/// No other thread has anything to do with a simulation, and its worker never sleeps.
struct Nobody;

impl Unpark for Nobody {
    fn unpark(&self) {}
}
