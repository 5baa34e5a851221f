//! One worker's view of the kernel's readiness events: a mio `Poll`.
//!
//! `ReactorDriver` is owned by the worker and waits; `Reactor` is what the descriptor table keeps of it to register with.

use crate::descriptor;
use core::any::Any;
use core::sync::atomic::{AtomicBool, Ordering};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use squall_fiber::{Driver, Unpark, with_driver};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

/// More than this many events are taken by the next call.
const EVENTS_PER_POLL: usize = 1024;
const WAKE_TOKEN: Token = Token(usize::MAX);

/// The shared half: registrations.
#[derive(Debug)]
pub(crate) struct Reactor {
    registry: Registry,
    alive: AtomicBool,
}

impl Reactor {
    /// The reactor of the worker that the calling fiber runs on.
    pub(crate) fn current() -> Option<Arc<Self>> {
        with_driver(|driver| {
            driver.as_any().downcast_ref::<ReactorDriver>().map(|driver| Arc::clone(&driver.reactor))
        })?
    }

    /// False once its worker has ended, and with it every registration.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(crate) fn register(&self, fd: RawFd, generation: u32) -> io::Result<()> {
        let token = token(fd, generation);
        // Urgent data is asked for, too: `poll` may wait for it, and it makes short reads inconclusive.
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        match self.registry.register(&mut SourceFd(&fd), token, interest) {
            // The number was closed past the hooks while a duplicate kept the registration: take it over.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                self.registry.reregister(&mut SourceFd(&fd), token, interest)
            }
            result => result,
        }
    }

    pub(crate) fn deregister(&self, fd: RawFd) {
        if self.is_alive() {
            // Fails only if the descriptor is gone already, and its registration with it.
            let _ = self.registry.deregister(&mut SourceFd(&fd));
        }
    }
}

fn token(fd: RawFd, generation: u32) -> Token {
    Token(((generation as usize) << 32) | fd as usize)
}

/// The owned half: waits for events and fires the waiters of the descriptor table.
#[derive(Debug)]
pub(crate) struct ReactorDriver {
    poll: Poll,
    events: Events,
    waker: Arc<MioWaker>,
    reactor: Arc<Reactor>,
}

#[derive(Debug)]
struct MioWaker(mio::Waker);

impl ReactorDriver {
    pub(crate) fn reactor(&self) -> &Arc<Reactor> {
        &self.reactor
    }

    pub(crate) fn new() -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(MioWaker(mio::Waker::new(poll.registry(), WAKE_TOKEN)?));
        let reactor =
            Arc::new(Reactor { registry: poll.registry().try_clone()?, alive: AtomicBool::new(true) });
        Ok(Self { poll, events: Events::with_capacity(EVENTS_PER_POLL), waker, reactor })
    }
}

impl Driver for ReactorDriver {
    fn poll(&mut self, timeout: Option<Duration>) {
        // mio rounds the timeout up to a whole millisecond, so a sleeper is never woken early only to spin.
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            // The descriptor and the buffer are our own: nothing but a bug gets here.
            Err(error) => panic!("polling for events failed: {error}"),
        }
        for event in &self.events {
            if event.token() == WAKE_TOKEN {
                continue;
            }
            let (fd, generation) = ((event.token().0 & 0xFFFF_FFFF) as RawFd, (event.token().0 >> 32) as u32);
            let Some(slot) = descriptor::slot(fd) else { continue };
            // Errors and hang-ups end a wait in either direction: the call that is tried next reports them.
            let is_error = event.is_error();
            let is_end = event.is_read_closed() || event.is_write_closed() || event.is_priority() || is_error;
            let readable = event.is_readable() || event.is_read_closed() || event.is_priority() || is_error;
            let writable = event.is_writable() || event.is_write_closed() || is_error;
            slot.on_edge(generation, [readable, writable], is_end);
        }
    }

    fn unparker(&self) -> Arc<dyn Unpark> {
        Arc::<MioWaker>::clone(&self.waker)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn has_events(&self) -> bool {
        true
    }

    fn close(&mut self) {
        self.reactor.alive.store(false, Ordering::Release);
        descriptor::leave_reactor(&self.reactor);
    }
}

impl Unpark for MioWaker {
    fn unpark(&self) {
        if let Err(error) = self.0.wake() {
            // An eventfd of our own whose counter is full is as good as woken; anything else is a bug.
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "waking a worker failed: {error}");
        }
    }
}
