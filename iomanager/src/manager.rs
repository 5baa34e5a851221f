//! `IoManager`: a scheduler with a reactor on every worker, and events by callback.

use crate::descriptor::{self, Callback, Direction};
use crate::reactor::{Reactor, ReactorDriver};
use core::any::Any;
use core::fmt;
use core::ops::BitOr;
use squall_fiber::{Builder, Hold, JoinHandle, Scheduler, SchedulerConfig, Wake};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

/// A set of events to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event(u8);

impl Event {
    /// The descriptor can be read without waiting.
    pub const READ: Event = Event(1);
    /// The descriptor can be written without waiting.
    pub const WRITE: Event = Event(2);

    fn directions(self) -> impl Iterator<Item = Direction> {
        Direction::BOTH.into_iter().filter(move |direction| (self.0 & (1 << *direction as u8)) != 0)
    }
}

impl BitOr for Event {
    type Output = Event;
    fn bitor(self, other: Event) -> Event {
        Event(self.0 | other.0)
    }
}

/// Runs fibers on worker threads that wait for descriptors.
///
/// ```
/// use squall_iomanager::IoManager;
///
/// let manager = IoManager::new(1, true).unwrap();
/// let answer = manager.spawn(|| 6 * 7);
/// manager.stop(); // The calling thread is the worker, so the fiber runs now.
/// assert_eq!(answer.join().unwrap(), 42);
/// ```
pub struct IoManager {
    scheduler: Scheduler,
    /// That of the first worker, for events that are added outside its fibers.
    reactor: Arc<Reactor>,
}

impl fmt::Debug for IoManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoManager").field("scheduler", &self.scheduler).finish()
    }
}

impl IoManager {
    /// A manager with `threads` workers. With `use_caller` the calling thread is one of them: it works from when it calls
    /// [`IoManager::stop`] (or drops the manager) until every fiber has ended.
    ///
    /// # Errors
    /// When a thread or an epoll descriptor cannot be had.
    ///
    /// # Panics
    /// When `threads` is 0.
    pub fn new(threads: usize, use_caller: bool) -> io::Result<Self> {
        Self::with_extension(threads, use_caller, None)
    }

    /// As [`IoManager::new`], with something that the layers above find from inside a fiber (see
    /// [`squall_fiber::Current::extension`]).
    ///
    /// # Errors
    /// As [`IoManager::new`].
    pub fn with_extension(
        threads: usize,
        use_caller: bool,
        extension: Option<&'static (dyn Any + Send + Sync)>,
    ) -> io::Result<Self> {
        let (sender, reactors) = std::sync::mpsc::channel();
        let scheduler = Scheduler::new(SchedulerConfig {
            name: "squall".into(),
            threads,
            use_caller,
            extension,
            driver: Box::new(move |_| {
                let driver = ReactorDriver::new()?;
                // Only the first is received; the channel lives until the constructor returns.
                let _ = sender.send(Arc::clone(driver.reactor()));
                Ok(Box::new(driver))
            }),
        })?;
        let reactor = reactors.recv().expect("the first worker's driver has been made");
        Ok(Self { scheduler, reactor })
    }

    /// Starts a fiber.
    ///
    /// # Panics
    /// When the manager has stopped.
    ///
    /// # Blocking
    /// Never.
    pub fn spawn<F, T>(&self, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.spawn_with(Builder::new(), f)
    }

    /// Starts a fiber made by `builder`.
    ///
    /// # Panics
    /// When the manager has stopped.
    ///
    /// # Blocking
    /// Never.
    pub fn spawn_with<F, T>(&self, builder: Builder, f: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.scheduler.spawn(builder, f)
    }

    /// Cancels every fiber that is live now: see [`Scheduler::cancel_fibers`].
    ///
    /// # Blocking
    /// Never.
    pub fn cancel_fibers(&self) {
        self.scheduler.cancel_fibers();
    }

    /// The scheduler, for its list of fibers and its counters.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Runs `callback` in a new fiber, once, when one of `events` is there. For both events that is twice: once each.
    /// If one is there already, its callback is started at once. A callback that waits keeps the manager from stopping, as a
    /// fiber would. When the descriptor is closed its callbacks are forgotten.
    ///
    /// # Errors
    /// `AlreadyExists` if a callback waits for one of the events; `EPERM` for a regular file, which is always ready; `EBADF`.
    ///
    /// # Panics
    /// When the manager has stopped.
    ///
    /// # Blocking
    /// Never.
    pub fn add_event(
        &self,
        fd: RawFd,
        events: Event,
        callback: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<()> {
        let slot = descriptor::slot(fd).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        let callback = Arc::new(callback);
        slot.add_callbacks(events.directions(), || {
            let hold = self.hold();
            let callback = Arc::clone(&callback);
            Callback {
                run: Box::new(move |reason| {
                    if reason == Wake::Ready {
                        hold.spawn(Builder::new(), move || callback());
                    }
                }),
                reactor: Arc::clone(&self.reactor),
            }
        })?;
        // Edge-triggered: an event that came before the waiter makes no new edge.
        for direction in events.directions() {
            if is_ready(fd, direction)
                && let Some(callback) = slot.take_callback(direction)
            {
                (callback.run)(Wake::Ready);
            }
        }
        Ok(())
    }

    fn hold(&self) -> Hold {
        self.scheduler.hold().expect("events are added before the manager has stopped")
    }

    /// Forgets the callbacks for `events`, without running them. False if there was none.
    pub fn del_event(&self, fd: RawFd, events: Event) -> bool {
        !self.take(fd, events).is_empty()
    }

    /// Runs the callbacks for `events` now. False if there was none.
    pub fn cancel_event(&self, fd: RawFd, events: Event) -> bool {
        let callbacks = self.take(fd, events);
        let any = !callbacks.is_empty();
        for callback in callbacks {
            (callback.run)(Wake::Ready);
        }
        any
    }

    /// Runs every callback that waits for the descriptor now. False if there was none.
    pub fn cancel_all(&self, fd: RawFd) -> bool {
        self.cancel_event(fd, Event::READ | Event::WRITE)
    }

    fn take(&self, fd: RawFd, events: Event) -> Vec<Callback> {
        let Some(slot) = descriptor::slot(fd) else { return Vec::new() };
        events.directions().filter_map(|direction| slot.take_callback(direction)).collect()
    }

    /// Waits until every fiber has ended and every callback that was added has run or been taken back, then ends the workers.
    ///
    /// # Panics
    /// When called from one of the manager's own fibers.
    ///
    /// # Blocking
    /// Blocks the thread; with `use_caller` the thread works meanwhile.
    pub fn stop(&self) {
        self.scheduler.stop();
    }
}

/// A scheduler whose workers wait in a reactor.
///
/// # Errors
/// As [`Scheduler::new`].
pub fn scheduler(config: SchedulerConfig) -> io::Result<Scheduler> {
    Scheduler::new(SchedulerConfig { driver: Box::new(|_| Ok(Box::new(ReactorDriver::new()?))), ..config })
}

fn is_ready(fd: RawFd, direction: Direction) -> bool {
    let events = match direction {
        Direction::Read => libc::POLLIN | libc::POLLRDHUP,
        Direction::Write => libc::POLLOUT,
    };
    let mut entry = libc::pollfd { fd, events, revents: 0 };
    let no_wait = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: one live pollfd and a live timespec; the raw call keeps the hooks out, and does not wait.
    let ready = unsafe {
        squall_fiber::sys::raw_syscall(
            libc::SYS_ppoll,
            [(&raw mut entry) as i64, 1, (&raw const no_wait) as i64, 0, 8, 0],
        )
    };
    ready > 0
}
