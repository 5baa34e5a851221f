//! The descriptor table: for every descriptor of the process its registration, its readiness and who waits for it.
//!
//! Descriptors belong to the process, so there is one table. A descriptor is registered once, for both directions,
//! edge-triggered, with the reactor of the worker where a fiber first waited for it; later waits make no system call.
//!
//! How a wait loses no event. Each direction has a counter of the edges seen. A caller reads the counter, tries its call, and only
//! if that would block waits for the counter to move on from what it read: an edge between the try and the wait has moved it
//! already, and registering a descriptor that is ready makes an edge of its own.
//!
//! How a stale event hurts nobody. The number of a closed descriptor is reused at once. Each slot has a generation, which is part of
//! the token that the kernel hands back: an event of an earlier generation is dropped.

use crate::reactor::Reactor;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use squall_fiber::lock::Lock;
use squall_fiber::{WaitKind, Wake, Waker, with_current};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

/// Which way data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Readable, or ready to accept, or closed by the peer.
    Read,
    /// Writable, or connected.
    Write,
}

impl Direction {
    pub(crate) const BOTH: [Direction; 2] = [Direction::Read, Direction::Write];

    fn wait_kind(self) -> WaitKind {
        match self {
            Direction::Read => WaitKind::Readable,
            Direction::Write => WaitKind::Writable,
        }
    }
}

/// Something to run once when a direction becomes ready.
pub(crate) struct Callback {
    /// Runs, with the reason; it must be quick.
    pub(crate) run: Box<dyn FnOnce(Wake) + Send>,
    /// Where the descriptor is to be registered; lives at least until the callback has run.
    pub(crate) reactor: Arc<Reactor>,
}

/// What happens when a direction becomes ready.
enum Waiter {
    /// A fiber's wait ends.
    Fiber(Waker),
    /// A callback runs.
    Callback(Callback),
}

impl Waiter {
    fn fire(self, reason: Wake) {
        match self {
            Waiter::Fiber(waker) => {
                waker.wake(reason);
            }
            Waiter::Callback(callback) => (callback.run)(reason),
        }
    }
}

/// Usually one fiber waits for one direction: that takes no allocation.
#[derive(Default)]
struct Waiters {
    first: Option<Waiter>,
    more: Vec<Waiter>,
}

impl Waiters {
    fn push(&mut self, waiter: Waiter) {
        if self.first.is_none() {
            self.first = Some(waiter);
        } else {
            self.more.push(waiter);
        }
    }

    fn take(&mut self) -> impl Iterator<Item = Waiter> + use<> {
        self.first.take().into_iter().chain(core::mem::take(&mut self.more))
    }

    fn remove_fiber(&mut self, waker: &Waker) {
        let is_it = |waiter: &Waiter| matches!(waiter, Waiter::Fiber(other) if other.is_same(waker));
        if self.first.as_ref().is_some_and(is_it) {
            // The one that has waited longest moves up.
            self.first = (!self.more.is_empty()).then(|| self.more.remove(0));
        } else {
            self.more.retain(|waiter| !is_it(waiter));
        }
    }

    /// There is at most one.
    fn take_callback(&mut self) -> Option<Callback> {
        let mut taken = None;
        for waiter in self.take() {
            match waiter {
                Waiter::Callback(callback) => taken = Some(callback),
                fiber => self.push(fiber),
            }
        }
        taken
    }

    fn callback(&self) -> Option<&Callback> {
        self.first.iter().chain(&self.more).find_map(|waiter| match waiter {
            Waiter::Callback(callback) => Some(callback),
            Waiter::Fiber(_) => None,
        })
    }
}

#[derive(Default)]
struct State {
    generation: u32,
    /// Invariant: `Some` while anybody waits. May name a reactor that has just ended, until `leave_reactor` has come by.
    registered_with: Option<Arc<Reactor>>,
    waiters: [Waiters; 2],
}

/// What the table knows about one descriptor number.
pub struct Slot {
    fd: RawFd,
    edges: [AtomicU32; 2],
    /// For the hook layer: what kind of thing the descriptor is. 0 means "not looked at yet".
    note: AtomicU32,
    /// For the hook layer, per direction: since which epoch of settings a wait is known to be without conditions. 0 is never.
    unconditional_since: [AtomicU32; 2],
    state: Lock<State>,
}

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slot").field("fd", &self.fd).finish_non_exhaustive()
    }
}

const CHUNK: usize = 1024;
const CHUNKS: usize = 1024;
/// Chunks of slots, allocated when a descriptor in their range is first looked at, and never freed.
static TABLE: [AtomicPtr<Slot>; CHUNKS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS];

/// The slot of a descriptor number; `None` if the number is negative or above the million that the table covers.
pub fn slot(fd: RawFd) -> Option<&'static Slot> {
    let index = usize::try_from(fd).ok()?;
    let chunk = TABLE.get(index / CHUNK)?;
    let mut first = chunk.load(Ordering::Acquire);
    if first.is_null() {
        first = allocate_chunk(chunk, index / CHUNK * CHUNK);
    }
    // SAFETY: a chunk has CHUNK slots, is never freed, and only shared references to it exist.
    Some(unsafe { &*first.add(index % CHUNK) })
}

/// The slot of a descriptor that somebody has looked at before; `None` without allocating otherwise.
fn known_slot(fd: RawFd) -> Option<&'static Slot> {
    let index = usize::try_from(fd).ok()?;
    let first = TABLE.get(index / CHUNK)?.load(Ordering::Acquire);
    // SAFETY: as in `slot`.
    (!first.is_null()).then(|| unsafe { &*first.add(index % CHUNK) })
}

#[cold]
fn allocate_chunk(chunk: &AtomicPtr<Slot>, first_fd: usize) -> *mut Slot {
    let slots: Box<[Slot]> = (first_fd..first_fd + CHUNK)
        .map(|fd| Slot {
            fd: fd as RawFd,
            edges: [AtomicU32::new(0), AtomicU32::new(0)],
            note: AtomicU32::new(0),
            unconditional_since: [AtomicU32::new(0), AtomicU32::new(0)],
            state: Lock::new(State::default()),
        })
        .collect();
    let made = Box::into_raw(slots).cast::<Slot>();
    match chunk.compare_exchange(core::ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => made,
        Err(theirs) => {
            // SAFETY: `made` came from `into_raw` above with this length, and nobody has seen it.
            drop(unsafe { Box::from_raw(core::ptr::slice_from_raw_parts_mut(made, CHUNK)) });
            theirs
        }
    }
}

impl Slot {
    /// How many edges of a direction have been seen: to be read before a call that might block, and given to [`Slot::wait`] if
    /// it would have.
    #[inline]
    pub fn edges(&self, direction: Direction) -> u32 {
        self.edges[direction as usize].load(Ordering::Acquire)
    }

    /// The hook layer's note about the descriptor; 0 after the descriptor was closed or made anew.
    #[inline]
    pub fn note(&self) -> u32 {
        self.note.load(Ordering::Relaxed)
    }

    /// Sets the note.
    pub fn set_note(&self, note: u32) {
        self.note.store(note, Ordering::Relaxed);
    }

    /// The epoch last given to [`Slot::set_unconditional_since`]; 0 after the descriptor was closed or made anew.
    #[inline]
    pub fn unconditional_since(&self, direction: Direction) -> u32 {
        self.unconditional_since[direction as usize].load(Ordering::Relaxed)
    }

    /// Remembers for the hook layer that, as of an epoch of its own, whoever waits in this direction waits without a condition.
    pub fn set_unconditional_since(&self, direction: Direction, epoch: u32) {
        self.unconditional_since[direction as usize].store(epoch, Ordering::Relaxed);
    }

    /// Waits until an edge comes after `seen_edges`, or the deadline passes, or the descriptor is closed, or the fiber is
    /// interrupted.
    ///
    /// # Errors
    /// What the kernel says when the descriptor cannot be registered: `EPERM` for a regular file, `EBADF`, `ENOSPC`.
    ///
    /// # Panics
    /// Outside a fiber whose scheduler has a reactor.
    ///
    /// # Blocking
    /// Suspends the fiber.
    pub fn wait(&self, direction: Direction, seen_edges: u32, deadline: Option<Instant>) -> io::Result<Wake> {
        with_current(|current| {
            let current = current.expect("a descriptor is waited for in a fiber");
            let wait = current.begin_wait(direction.wait_kind(), self.fd as u64);
            let waker = wait.waker();
            match self.add_fiber(direction, Some(seen_edges), waker.clone()) {
                Ok(true) => {}
                Ok(false) => {
                    wait.abandon();
                    return Ok(Wake::Ready);
                }
                Err(error) => {
                    wait.abandon();
                    return Err(error);
                }
            }
            let wake = wait.block_interruptible(deadline);
            if matches!(wake, Wake::TimedOut | Wake::Cancelled | Wake::Expired) {
                self.remove_waker(direction, &waker);
            }
            Ok(wake)
        })
    }

    /// Adds a fiber's waker to those that the next edge fires: for waits on several descriptors. The caller checks for
    /// readiness after this, and removes the waker when its wait is over.
    ///
    /// # Errors
    /// As [`Slot::wait`].
    pub fn add_waker(&self, direction: Direction, waker: Waker) -> io::Result<()> {
        self.add_fiber(direction, None, waker).map(|_| ())
    }

    /// Takes a waker out again.
    pub fn remove_waker(&self, direction: Direction, waker: &Waker) {
        self.state.lock().waiters[direction as usize].remove_fiber(waker);
    }

    /// Adds a fiber, registering the descriptor with the reactor of its worker if it is with none. False if an edge has come
    /// since `seen_edges` was read, so that there is nothing to wait for.
    fn add_fiber(&self, direction: Direction, seen_edges: Option<u32>, waker: Waker) -> io::Result<bool> {
        let mut state = self.state.lock();
        self.register(&mut state, Reactor::current)?;
        if seen_edges.is_some_and(|seen| seen != self.edges(direction)) {
            return Ok(false);
        }
        state.waiters[direction as usize].push(Waiter::Fiber(waker));
        Ok(true)
    }

    /// Adds a callback for each of the directions, or none at all.
    ///
    /// # Errors
    /// `AlreadyExists` if one of the directions has a callback; as [`Slot::wait`].
    pub(crate) fn add_callbacks(
        &self,
        directions: impl Iterator<Item = Direction>,
        mut callback: impl FnMut() -> Callback,
    ) -> io::Result<()> {
        let callbacks: Vec<_> = directions.map(|direction| (direction, callback())).collect();
        let mut state = self.state.lock();
        if callbacks.iter().any(|(direction, _)| state.waiters[*direction as usize].callback().is_some()) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        for (direction, callback) in callbacks {
            self.register(&mut state, || Some(Arc::clone(&callback.reactor)))?;
            state.waiters[direction as usize].push(Waiter::Callback(callback));
        }
        Ok(())
    }

    fn register(&self, state: &mut State, reactor: impl FnOnce() -> Option<Arc<Reactor>>) -> io::Result<()> {
        if state.registered_with.as_ref().is_some_and(|reactor| reactor.is_alive()) {
            return Ok(());
        }
        let reactor = reactor().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))?;
        reactor.register(self.fd, state.generation)?;
        state.registered_with = Some(reactor);
        Ok(())
    }

    /// The reactor that the descriptor may be registered with has ended: whoever waits here would wait for ever.
    fn leave_reactor(&self, gone: &Arc<Reactor>) {
        let mut fibers = Vec::new();
        let mut lost = Vec::new();
        {
            let mut state = self.state.lock();
            if state.registered_with.take_if(|reactor| Arc::ptr_eq(reactor, gone)).is_none() {
                return;
            }
            for direction in Direction::BOTH {
                let waiters = &mut state.waiters[direction as usize];
                let callback = waiters.take_callback();
                // Fibers try their call again, and if it still would block, register with a reactor of their own.
                fibers.extend(waiters.take());
                self.edges[direction as usize].fetch_add(1, Ordering::Release);
                let Some(callback) = callback else { continue };
                match self.register(&mut state, || Some(Arc::clone(&callback.reactor))) {
                    Ok(()) => state.waiters[direction as usize].push(Waiter::Callback(callback)),
                    Err(_) => lost.push(Waiter::Callback(callback)),
                }
            }
        }
        for fiber in fibers {
            fiber.fire(Wake::Ready);
        }
        for callback in lost {
            callback.fire(Wake::Closed);
        }
    }

    /// Called by a reactor when the kernel reports an edge.
    pub(crate) fn on_edge(&self, generation: u32, directions: [bool; 2]) {
        let mut fired = [None, None];
        {
            let mut state = self.state.lock();
            if state.generation != generation {
                return;
            }
            for direction in Direction::BOTH {
                if directions[direction as usize] {
                    self.edges[direction as usize].fetch_add(1, Ordering::Release);
                    fired[direction as usize] = Some(state.waiters[direction as usize].take());
                }
            }
        }
        for waiter in fired.into_iter().flatten().flatten() {
            waiter.fire(Wake::Ready);
        }
    }

    /// Ends every wait with [`Wake::Closed`] and forgets all about the descriptor.
    fn forget(&self) {
        let waiters = {
            let mut state = self.state.lock();
            self.note.store(0, Ordering::Relaxed);
            self.unconditional_since.iter().for_each(|since| since.store(0, Ordering::Relaxed));
            if state.registered_with.is_none() {
                return;
            }
            if let Some(reactor) = state.registered_with.take() {
                // Not left to close(): a duplicate would keep the registration alive, and nobody could end it any more.
                reactor.deregister(self.fd);
            }
            state.generation = state.generation.wrapping_add(1);
            let [read, write] = &mut state.waiters;
            read.take().chain(write.take())
        };
        for direction in Direction::BOTH {
            self.edges[direction as usize].fetch_add(1, Ordering::Release);
        }
        for waiter in waiters {
            waiter.fire(Wake::Closed);
        }
    }

    /// Lets every fiber that waits try its call again.
    fn nudge(&self) {
        let mut fibers = Vec::new();
        {
            let mut state = self.state.lock();
            for direction in Direction::BOTH {
                let waiters = &mut state.waiters[direction as usize];
                let callback = waiters.take_callback();
                fibers.extend(waiters.take());
                if let Some(callback) = callback {
                    waiters.push(Waiter::Callback(callback));
                }
                self.edges[direction as usize].fetch_add(1, Ordering::Release);
            }
        }
        for fiber in fibers {
            fiber.fire(Wake::Ready);
        }
    }

    pub(crate) fn take_callback(&self, direction: Direction) -> Option<Callback> {
        self.state.lock().waiters[direction as usize].take_callback()
    }
}

/// Called by a reactor that has just ended, so that nobody waits for events that it will not report.
pub(crate) fn leave_reactor(gone: &Arc<Reactor>) {
    for chunk in &TABLE {
        let first = chunk.load(Ordering::Acquire);
        if first.is_null() {
            continue;
        }
        // SAFETY: a chunk has CHUNK slots, is never freed, and only shared references to it exist.
        for slot in unsafe { core::slice::from_raw_parts(first, CHUNK) } {
            slot.leave_reactor(gone);
        }
    }
}

/// To be called when a descriptor is about to be closed, and when its number has been given to something new: whoever waits for
/// it gets [`Wake::Closed`].
///
/// # Blocking
/// Never.
pub fn forget(fd: RawFd) {
    if squall_fiber::is_forked_child() {
        // The epoll descriptors are shared with the parent, whose registrations would end, and a thread that does not exist
        // here may have held the lock.
        return;
    }
    if let Some(slot) = known_slot(fd) {
        slot.forget();
    }
}

/// To be called after something that ends waits for a descriptor and that the kernel reports no event for: the fibers that wait for
/// it try again.
///
/// # Blocking
/// Never.
pub fn nudge(fd: RawFd) {
    if let Some(slot) = known_slot(fd) {
        slot.nudge();
    }
}
