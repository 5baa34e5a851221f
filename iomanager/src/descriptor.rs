//! The descriptor table: for every descriptor of the process its registration, its readiness and who waits for it.
//!
//! Descriptors belong to the process, so there is one table. A descriptor is registered once, for both directions,
//! edge-triggered, with the reactor of the worker where a fiber first waited for it; later waits make no system call.
//!
//! How a wait loses no event. Each direction has a counter of the edges seen. A caller reads the counter, tries its call, and only
//! if that would block waits for the counter to move on from what it read: an edge between the try and the wait has moved it
//! already, and registering a descriptor that is ready makes an edge of its own.
//!
//! How a try that would fail is spared. A stream socket that gave less than was asked for was empty in that moment, and whatever
//! comes later makes an edge. So the reader notes the counter that it had read before the call ([`Slot::note_drained`]); as long
//! as the counter stands there, the next reader waits at once. What makes this hold:
//! - The edge of whatever arrives after that moment is counted later still, also if the kernel merges it with an earlier one that
//!   nobody has collected yet, so the counter has moved on from the note. An arrival that no registration saw is reported by
//!   the next registration, which every wait makes sure of.
//! - What ends a read early with more behind it announces itself: the end of the stream, an error, urgent data (a read stops at
//!   its mark) come with an edge that says so. From then on the slot's notes count for nothing, for good (`Slot::on_edge`).
//! - Others who read the same socket, here, through a duplicate or in another process, only take away.
//!
//! Which sockets and calls this is right for, the hook layer knows. The counter would have to go round between two looks of
//! a reader, four billion edges, for an old note to pass for a new one.
//!
//! How a stale event hurts nobody. The number of a closed descriptor is reused at once. Each slot has a generation, which is part of
//! the token that the kernel hands back: an event of an earlier generation is dropped.

use crate::reactor::Reactor;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};
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
    /// The fiber that has waited longest.
    first: Option<Waker>,
    #[expect(clippy::box_collection, reason = "a slot without a crowd stays small")]
    more: Option<Box<Vec<Waiter>>>,
}

impl Waiters {
    fn push(&mut self, waiter: Waiter) {
        match waiter {
            Waiter::Fiber(waker) if self.first.is_none() => self.first = Some(waker),
            waiter => self.more.get_or_insert_default().push(waiter),
        }
    }

    fn take(&mut self) -> Waiters {
        core::mem::take(self)
    }

    fn fire(self, reason: Wake) {
        if let Some(waker) = self.first {
            waker.wake(reason);
        }
        for waiter in self.more.into_iter().flat_map(|more| *more) {
            waiter.fire(reason);
        }
    }

    fn remove_fiber(&mut self, is_it: impl Fn(&Waker) -> bool) {
        if self.first.as_ref().is_some_and(&is_it) {
            // Whoever comes next takes the place. An edge fires all, so the order hardly matters.
            self.first = None;
        } else if let Some(more) = &mut self.more {
            more.retain(|waiter| !matches!(waiter, Waiter::Fiber(waker) if is_it(waker)));
        }
    }

    /// There is at most one.
    fn take_callback(&mut self) -> Option<Callback> {
        let more = self.more.as_mut()?;
        let at = more.iter().position(|waiter| matches!(waiter, Waiter::Callback(_)))?;
        match more.remove(at) {
            Waiter::Callback(callback) => Some(callback),
            Waiter::Fiber(_) => unreachable!("the position of a callback was looked for"),
        }
    }

    fn has_callback(&self) -> bool {
        self.more.iter().flat_map(|more| more.iter()).any(|waiter| matches!(waiter, Waiter::Callback(_)))
    }
}

#[derive(Default)]
struct State {
    /// Invariant: `Some` while anybody waits. May name a reactor that has just ended, until `leave_reactor` has come by.
    registered_with: Option<Arc<Reactor>>,
    waiters: [Waiters; 2],
}

/// What the table knows about one descriptor number.
///
/// A wait and its event touch little else, so with many descriptors their cost is that of the cache lines here: two, which the
/// processor fetches as a pair.
#[repr(align(128))]
pub struct Slot {
    fd: RawFd,
    /// Counts the owners that the number has had. Written by holders of the state's lock.
    generation: AtomicU32,
    /// Written by holders of the state's lock.
    edges: [AtomicU32; 2],
    /// The count of read edges at which a read left nothing behind. 0 is never.
    drained_at: AtomicU32,
    /// Whether an event has come after which a short read proves nothing.
    has_end: AtomicBool,
    /// For the hook layer: what kind of thing the descriptor is. 0 means "not looked at yet".
    note: AtomicU8,
    /// For the hook layer: whether another descriptor is known to name the same open file.
    is_shared: AtomicBool,
    /// For the hook layer: counts the changes of settings made through this descriptor.
    settings: AtomicU32,
    /// For the hook layer, per direction: as of which settings a wait is known to be without conditions. 0 is never.
    unconditional_since: [AtomicU32; 2],
    state: Lock<State>,
}

const _: () = assert!(size_of::<Slot>() == 128);

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slot").field("fd", &self.fd).finish_non_exhaustive()
    }
}

const CHUNK: usize = 1024;
const CHUNKS: usize = 1024;
/// Chunks of slots, allocated when a descriptor in their range is first looked at, and never freed.
static TABLE: [AtomicPtr<Slot>; CHUNKS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; CHUNKS];

/// The slot of a descriptor number, allocated along with its neighbours if need be; `None` if the number is negative or above the million that the table covers.
#[inline]
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
pub fn known_slot(fd: RawFd) -> Option<&'static Slot> {
    let index = usize::try_from(fd).ok()?;
    let first = TABLE.get(index / CHUNK)?.load(Ordering::Acquire);
    // SAFETY: as in `slot`.
    (!first.is_null()).then(|| unsafe { &*first.add(index % CHUNK) })
}

/// Those numbers of a range whose slots somebody may have looked at.
pub fn known(first: u32, last: u32) -> impl Iterator<Item = RawFd> {
    let last = (last as usize).min(CHUNK * CHUNKS - 1);
    (first as usize..=last)
        .filter(|index| !TABLE[index / CHUNK].load(Ordering::Acquire).is_null())
        .map(|index| index as RawFd)
}

#[cold]
fn allocate_chunk(chunk: &AtomicPtr<Slot>, first_fd: usize) -> *mut Slot {
    let slots: Box<[Slot]> = (first_fd..first_fd + CHUNK)
        .map(|fd| Slot {
            fd: fd as RawFd,
            generation: AtomicU32::new(0),
            edges: [AtomicU32::new(0), AtomicU32::new(0)],
            drained_at: AtomicU32::new(0),
            has_end: AtomicBool::new(false),
            note: AtomicU8::new(0),
            is_shared: AtomicBool::new(false),
            settings: AtomicU32::new(1),
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

    /// Which of the number's successive owners it has now. A wake-up may come to run only when the descriptor that it was for has been
    /// closed and its number given out anew: whoever has waited compares.
    #[inline]
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// Notes that a read, before which the count of read edges was `seen_edges`, has left the descriptor empty.
    #[inline]
    pub fn note_drained(&self, seen_edges: u32) {
        self.drained_at.store(seen_edges, Ordering::Relaxed);
    }

    /// Whether there is nothing to read, so that trying is no use: a read has left nothing behind, and nothing has come since. To
    /// be followed by [`Slot::wait`] with the same `seen_edges`. False if not known.
    #[inline]
    pub fn is_drained(&self, seen_edges: u32) -> bool {
        // Ordered by the load of the edges: the edge that came with the end is counted after the flag is set.
        self.drained_at.load(Ordering::Relaxed) == seen_edges
            && seen_edges != 0
            && !self.has_end.load(Ordering::Relaxed)
    }

    /// The hook layer's note about the descriptor; 0 after the descriptor was closed or made anew.
    #[inline]
    pub fn note(&self) -> u8 {
        self.note.load(Ordering::Relaxed)
    }

    /// Sets the note.
    pub fn set_note(&self, note: u8) {
        self.note.store(note, Ordering::Relaxed);
    }

    /// Whether another descriptor is known to name the same open file; false after the descriptor was closed or made anew.
    pub fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Relaxed)
    }

    /// Remembers for the hook layer that another descriptor names the same open file.
    pub fn set_shared(&self) {
        self.is_shared.store(true, Ordering::Relaxed);
    }

    /// How often [`Slot::settings_changed`] was called.
    #[inline]
    pub fn settings(&self) -> u32 {
        self.settings.load(Ordering::Acquire)
    }

    /// Counts a change of settings, for the hook layer.
    pub fn settings_changed(&self) {
        self.settings.fetch_add(1, Ordering::Release);
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
            let wait = current.begin_interruptible_wait(direction.wait_kind(), self.fd as u64);
            match self.add_fiber(direction, Some(seen_edges), || wait.waker()) {
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
                let mut state = self.state.lock();
                state.waiters[direction as usize].remove_fiber(|waker| waker.is_of(current));
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
        self.add_fiber(direction, None, || waker).map(|_| ())
    }

    /// Takes a waker out again.
    pub fn remove_waker(&self, direction: Direction, waker: &Waker) {
        self.state.lock().waiters[direction as usize].remove_fiber(|other| other.is_same(waker));
    }

    /// Adds a fiber, registering the descriptor with the reactor of its worker if it is with none. False if an edge has come
    /// since `seen_edges` was read, so that there is nothing to wait for.
    #[inline]
    fn add_fiber(
        &self,
        direction: Direction,
        seen_edges: Option<u32>,
        waker: impl FnOnce() -> Waker,
    ) -> io::Result<bool> {
        let mut state = self.state.lock();
        self.register(&mut state, Reactor::current)?;
        if seen_edges.is_some_and(|seen| seen != self.edges(direction)) {
            return Ok(false);
        }
        state.waiters[direction as usize].push(Waiter::Fiber(waker()));
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
        if callbacks.iter().any(|(direction, _)| state.waiters[*direction as usize].has_callback()) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        for (direction, callback) in callbacks {
            self.register(&mut state, || Some(Arc::clone(&callback.reactor)))?;
            state.waiters[direction as usize].push(Waiter::Callback(callback));
        }
        Ok(())
    }

    #[inline]
    fn register(&self, state: &mut State, reactor: impl FnOnce() -> Option<Arc<Reactor>>) -> io::Result<()> {
        if state.registered_with.as_ref().is_some_and(|reactor| reactor.is_alive()) {
            return Ok(());
        }
        let reactor = reactor().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSYS))?;
        reactor.register(self.fd, self.generation())?;
        state.registered_with = Some(reactor);
        Ok(())
    }

    /// Counts an edge. The caller holds the state's lock, so nobody else writes the counter.
    fn count_edge(&self, direction: Direction) {
        let edges = &self.edges[direction as usize];
        edges.store(edges.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    /// The reactor that the descriptor may be registered with has ended: whoever waits here would wait for ever.
    fn leave_reactor(&self, gone: &Arc<Reactor>) {
        let mut fibers = [Waiters::default(), Waiters::default()];
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
                fibers[direction as usize] = waiters.take();
                self.count_edge(direction);
                let Some(callback) = callback else { continue };
                match self.register(&mut state, || Some(Arc::clone(&callback.reactor))) {
                    Ok(()) => state.waiters[direction as usize].push(Waiter::Callback(callback)),
                    Err(_) => lost.push(Waiter::Callback(callback)),
                }
            }
        }
        for waiters in fibers {
            waiters.fire(Wake::Ready);
        }
        for callback in lost {
            callback.fire(Wake::Closed);
        }
    }

    /// Called by a reactor when the kernel reports an edge. `is_end` says that it is more than news of data or room: an end, an
    /// error, urgent data.
    pub(crate) fn on_edge(&self, generation: u32, directions: [bool; 2], is_end: bool) {
        let mut fired = [Waiters::default(), Waiters::default()];
        {
            let mut state = self.state.lock();
            if self.generation() != generation {
                return;
            }
            if is_end {
                self.has_end.store(true, Ordering::Relaxed);
            }
            for direction in Direction::BOTH {
                if directions[direction as usize] {
                    self.count_edge(direction);
                    fired[direction as usize] = state.waiters[direction as usize].take();
                }
            }
        }
        for waiters in fired {
            waiters.fire(Wake::Ready);
        }
    }

    /// Ends every wait with [`Wake::Closed`] and forgets all about the descriptor.
    fn forget(&self) {
        let waiters = {
            let mut state = self.state.lock();
            self.generation.store(self.generation().wrapping_add(1), Ordering::Release);
            self.note.store(0, Ordering::Relaxed);
            self.drained_at.store(0, Ordering::Relaxed);
            self.has_end.store(false, Ordering::Relaxed);
            self.is_shared.store(false, Ordering::Relaxed);
            self.unconditional_since.iter().for_each(|since| since.store(0, Ordering::Relaxed));
            if state.registered_with.is_none() {
                return;
            }
            if let Some(reactor) = state.registered_with.take() {
                // Not left to close(): a duplicate would keep the registration alive, and nobody could end it any more.
                reactor.deregister(self.fd);
            }
            Direction::BOTH.into_iter().for_each(|direction| self.count_edge(direction));
            [state.waiters[0].take(), state.waiters[1].take()]
        };
        for waiters in waiters {
            waiters.fire(Wake::Closed);
        }
    }

    /// Lets every fiber that waits try its call again.
    fn nudge(&self) {
        let mut fibers = [Waiters::default(), Waiters::default()];
        {
            let mut state = self.state.lock();
            for direction in Direction::BOTH {
                let waiters = &mut state.waiters[direction as usize];
                let callback = waiters.take_callback();
                fibers[direction as usize] = waiters.take();
                if let Some(callback) = callback {
                    waiters.push(Waiter::Callback(callback));
                }
                self.count_edge(direction);
            }
        }
        for waiters in fibers {
            waiters.fire(Wake::Ready);
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
