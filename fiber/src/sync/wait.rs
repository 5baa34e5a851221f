//! The wait queue: how a fiber or a thread waits for a primitive, and why no wake-up is lost. Every primitive in this folder is a
//! small state under one internal lock, and one or two queues of this kind under the same lock.
//!
//! # What there is
//! A [`Ticket`] is one wait of one fiber or thread. A [`Node`] is a ticket's place in one [`Queue`], with the `payload` that the
//! primitive needs to know about it: how many permits, the value to be sent, the slot for the one received. Both live on the
//! waiter's stack, so that waiting allocates nothing. An ordinary wait is one ticket with one node; `select` has one ticket with a
//! node in the queue of each of its channels.
//!
//! # Who may touch what
//! 1. A queue, and the links of the nodes in it, are touched only under the lock of the primitive that the queue is part of.
//! 2. A node is in its queue from [`Queue::push`] until it is *granted* or *withdrawn*, each under that lock, and its owner does
//!    not leave the frame in which it lies before that.
//! 3. The payload belongs to the waiter before the push and after the grant or withdrawal; in between to whoever has the lock.
//! 4. A ticket's `waiter` is taken once, by whoever grants the ticket, before that lock is released.
//!
//! # The protocol
//! ```text
//! waiter                                        whoever lets it go on
//! lock
//!   look: the thing is not to be had
//!   push the node
//! unlock                                        lock
//! sleep ─────────────────────────┐                change the state
//!                                │                grant: take the first node out, write its payload,
//!                                │                       take its waiter
//!                                │              unlock
//! continue: the payload is set ◄─┴───────────── wake the waiter
//!
//! or, when time is up or the fiber is interrupted:
//! lock
//!   still in the queue? take it out: withdrawn, an error
//!   no? then it has been granted: success, however late
//! unlock
//! ```
//!
//! # Why no wake-up is lost
//! - *Between looking and sleeping*: looking and pushing are one critical section, so whoever changes the state afterwards finds
//!   the node. A wake-up that comes before the sleep ends the sleep: a fiber's wait has begun before its waker is handed out, and
//!   a thread sleeps on the ticket's word, which has changed by then.
//! - *To a waiter that has given up*: a grant takes a node out of the queue, a withdrawal takes a node out of the queue, and both
//!   happen under the lock: it is one or the other. What is granted counts for the waiter even if its time was up when it
//!   learnt of it, and what is withdrawn is seen by nobody. So a grant is never wasted, and there is nothing to pass on. (What a
//!   waiter owes to others as it withdraws, such as a smaller request behind a large one, is the primitive's to settle: that is
//!   why the withdrawal hands the lock's guard back.)
//! - *To a `select` that has another winner*: its ticket is claimed by one compare-and-swap, whichever of its queues it happens
//!   in. Whoever loses the swap drops the node and grants the next one in its queue instead, within the same critical section.
//!
//! # Why nothing dangles
//! Whoever grants touches the waiter's frame only under the lock, and before a waiter can have learnt of it.
//! - A *thread* may leave as soon as its word has changed: that store is the last access, and what leaves the critical section is
//!   an address to wake.
//! - For a *fiber* a waker leaves the critical section that does not keep the fiber alive: counting would cost as much as the
//!   rest. If it ends the fiber's wait, that is the last access to the fiber. If it comes too late, because something else
//!   has ended the wait (a deadline, a cancellation), it says so in the ticket, as the last access; and a fiber that was woken by
//!   something else and finds itself granted stays until it is told so ([`Ticket::await_release`]). That takes the few
//!   instructions which the other has yet to run.
//! - A *`select`* takes the lock of each of its queues before it leaves, so a critical section that has claimed its ticket is over.

use super::error::WaitError;
use super::shim::{self, AtomicBool, AtomicU32, Latch, LatchGuard, Ordering, Sleeper, sleep};
use crate::context::with_current;
use crate::fiber::{UncountedWaker, WaitKind, Wake};
use core::cell::{Cell, UnsafeCell};
use core::hint;
use core::ptr;
use std::time::{Duration, Instant};

/// What may end a wait besides a grant.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    deadline: Option<Instant>,
    is_interruptible: bool,
}

impl Patience {
    /// Nothing ends the wait: for calls that know no errors.
    pub(super) const ENDLESS: Self = Self { deadline: None, is_interruptible: false };
    /// Until the fiber is interrupted.
    pub(super) const INTERRUPTIBLE: Self = Self { deadline: None, is_interruptible: true };

    /// Until the fiber is interrupted or `timeout` is over.
    pub(super) fn at_most(timeout: Duration) -> Self {
        // A deadline past the end of the clock never comes.
        Self { deadline: Instant::now().checked_add(timeout), is_interruptible: true }
    }
}

/// What people see of a wait in a list of fibers.
#[derive(Clone, Copy)]
pub(super) struct Reason {
    kind: WaitKind,
    detail: u64,
}

impl Reason {
    /// `on` is the primitive; its address is the detail.
    pub(super) fn new<T>(kind: WaitKind, on: &T) -> Self {
        Self { kind, detail: ptr::from_ref(on) as u64 }
    }

    /// Of a `select`.
    pub(super) fn one_of(operations: usize) -> Self {
        Self { kind: WaitKind::Select, detail: operations as u64 }
    }
}

/// Who waits, as seen by those who wake.
pub(super) enum Waiter {
    Fiber(UncountedWaker, *const Ticket),
    Thread(Sleeper),
}

// SAFETY: a fiber or thread may be woken from any thread, and a ticket is made to be reached from there (see above).
unsafe impl Send for Waiter {}

impl Waiter {
    /// Called without any lock, so that whoever wakes up need not wait for it.
    pub(super) fn wake(self) {
        match self {
            Waiter::Fiber(waker, ticket) => {
                // SAFETY: a fiber that has been granted stays in its wait until it is woken by this, or else told so here.
                unsafe {
                    if !waker.wake(Wake::Ready) {
                        (*ticket).is_released.store(true, Ordering::Release);
                    }
                }
            }
            Waiter::Thread(sleeper) => sleeper.wake(),
        }
    }
}

const WAITING: u32 = 0;
/// A `select` has given up; above any index of a node.
const ABANDONED: u32 = u32::MAX;

/// One wait of one fiber or thread. Lives on its stack.
// Public for the sealed trait of select.rs; this module is not.
pub struct Ticket {
    /// `WAITING`, then the granted node's index + 1, or `ABANDONED`. A thread sleeps on it.
    state: AtomicU32,
    /// Whether nodes in more than one queue may be granted, so that `state` decides instead of the queue's lock.
    is_contested: bool,
    /// See rule 4.
    waiter: UnsafeCell<Option<Waiter>>,
    /// The waiter's own: it has been woken by whoever granted it, or would not be kept by that.
    is_woken: Cell<bool>,
    /// Whoever granted it came too late to wake it, and is done.
    is_released: AtomicBool,
}

impl Ticket {
    /// For one node.
    fn new() -> Self {
        Self {
            state: AtomicU32::new(WAITING),
            is_contested: false,
            waiter: UnsafeCell::new(None),
            is_woken: Cell::new(false),
            is_released: AtomicBool::new(false),
        }
    }

    /// For nodes in several queues, of which one will be granted.
    pub(super) fn contested() -> Self {
        Self { is_contested: true, ..Self::new() }
    }

    /// Begins a wait, lets `enqueue` push the nodes, and sleeps unless it says that there is no need to.
    ///
    /// `enqueue` must not panic, and must not suspend the fiber.
    ///
    /// # Blocking
    /// Suspends the fiber. A plain thread sleeps, and so does that of a fiber that may not suspend now.
    #[inline(always)]
    pub(super) fn wait(&self, reason: Reason, patience: Patience, enqueue: impl FnOnce() -> bool) -> Wake {
        with_current(|current| match current {
            Some(current) if current.may_suspend() => {
                let wait = match patience.is_interruptible {
                    true => current.begin_interruptible_wait(reason.kind, reason.detail),
                    false => current.begin_wait(reason.kind, reason.detail),
                };
                self.set_waiter(Waiter::Fiber(wait.uncounted_waker(), self));
                if !enqueue() {
                    self.is_woken.set(wait.abandon());
                    return Wake::Ready;
                }
                let wake = match patience.is_interruptible {
                    true => wait.block_interruptible(patience.deadline),
                    false => wait.block(patience.deadline),
                };
                // Nobody else says `Ready`.
                self.is_woken.set(wake == Wake::Ready);
                wake
            }
            _ => {
                self.set_waiter(Waiter::Thread(Sleeper::new(&self.state)));
                self.is_woken.set(true);
                match !enqueue() || sleep(&self.state, WAITING, patience.deadline) {
                    true => Wake::Ready,
                    false => Wake::TimedOut,
                }
            }
        })
    }

    fn set_waiter(&self, waiter: Waiter) {
        // SAFETY: rule 4: nobody else knows the ticket before its first node is in a queue.
        unsafe { *self.waiter.get() = Some(waiter) };
    }

    /// Whether this call made the node with this index the one to be granted. Under the lock of the node's queue.
    fn claim(&self, index: u32) -> bool {
        !self.is_contested
            || self.state.compare_exchange(WAITING, index + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends the wait of a ticket that has been claimed. Under the same lock, as the last thing done to the waiter's frame.
    fn settle(&self, index: u32) -> Waiter {
        // SAFETY: rule 4: the claim was ours, and happens once.
        let waiter = unsafe { (*self.waiter.get()).take() }.expect("a ticket in a queue has its waiter");
        if !self.is_contested {
            self.state.store(index + 1, Ordering::Release);
        }
        waiter
    }

    /// Keeps nodes from being granted, unless one has been: then its index.
    pub(super) fn abandon(&self) -> Option<usize> {
        match self.state.compare_exchange(WAITING, ABANDONED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => None,
            Err(granted) => Some(granted as usize - 1),
        }
    }

    /// Called by a waiter that has been granted, before it leaves: whoever did it may not have come to waking it yet, and has no other
    /// hold on it.
    #[inline]
    pub(super) fn await_release(&self) {
        if !self.is_woken.get() {
            self.await_release_of_fiber();
        }
    }

    #[cold]
    fn await_release_of_fiber(&self) {
        while !self.is_released.load(Ordering::Acquire) {
            hint::spin_loop();
            // If the other's thread was preempted, this may take some time.
            crate::yield_now();
        }
    }

    fn is_waiting(&self) -> bool {
        self.state.load(Ordering::Relaxed) == WAITING
    }
}

/// A ticket's place in a queue. Lives on the waiter's stack.
pub(super) struct Node<P> {
    links: UnsafeCell<Links<P>>,
    payload: shim::UnsafeCell<P>,
}

struct Links<P> {
    previous: *const Node<P>,
    next: *const Node<P>,
    /// Null outside a queue.
    ticket: *const Ticket,
    index: u32,
}

impl<P> Node<P> {
    pub(super) fn new(payload: P) -> Self {
        let links = Links { previous: ptr::null(), next: ptr::null(), ticket: ptr::null(), index: 0 };
        Self { links: UnsafeCell::new(links), payload: shim::UnsafeCell::new(payload) }
    }

    pub(super) fn into_payload(self) -> P {
        self.payload.into_inner()
    }

    /// The payload of a node that is in no queue.
    pub(super) fn payload_mut(&mut self) -> &mut P {
        // SAFETY: `&mut self`, and rule 3.
        self.payload.with_mut(|payload| unsafe { &mut *payload })
    }
}

/// Which end of a queue.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// For a waiter that has been passed over.
    Front,
    Back,
}

/// First come, first served. Part of what a primitive's lock guards.
pub(super) struct Queue<P> {
    first: *const Node<P>,
    last: *const Node<P>,
}

// SAFETY: the nodes are reached only under the lock that guards the queue (rule 1), from whichever thread holds it; what moves
// between threads that way is the payload.
unsafe impl<P: Send> Send for Queue<P> {}

impl<P> Queue<P> {
    pub(super) const fn new() -> Self {
        Self { first: ptr::null(), last: ptr::null() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    /// The payload of the first in the queue.
    pub(super) fn first(&self) -> Option<&P> {
        // SAFETY: rule 2: a node in the queue exists.
        let node = unsafe { self.first.as_ref() }?;
        // SAFETY: rule 3: the payload is ours while the lock is held, as `&self` proves.
        Some(node.payload.with(|payload| unsafe { &*payload }))
    }

    /// Whether somebody waits here who is not `besides`, and has not been granted elsewhere.
    pub(super) fn has_waiter_besides(&self, besides: &Ticket) -> bool {
        let mut node = self.first;
        while !node.is_null() {
            // SAFETY: rules 1 and 2; a node in a queue has a ticket, in the same frame or an outer one.
            let (ticket, next) = unsafe {
                let links = &*(*node).links.get();
                (&*links.ticket, links.next)
            };
            if !ptr::eq(ticket, besides) && ticket.is_waiting() {
                return true;
            }
            node = next;
        }
        false
    }

    /// Puts a node in, as number `index` of its ticket.
    ///
    /// # Safety
    /// Neither the node nor the ticket moves, is dropped, or is touched by its owner before it is granted, or removed from this
    /// queue by [`Queue::remove`] (rules 2 and 3). The node is in no queue.
    pub(super) unsafe fn push(&mut self, end: End, node: &Node<P>, ticket: &Ticket, index: usize) {
        let node: *const Node<P> = node;
        let (previous, next) = match end {
            End::Front => (ptr::null(), self.first),
            End::Back => (self.last, ptr::null()),
        };
        // SAFETY: rule 1: the lock is held, as `&mut self` proves; the node exists by the caller's contract.
        unsafe { *(*node).links.get() = Links { previous, next, ticket, index: index as u32 } };
        self.set_next(previous, node);
        self.set_previous(next, node);
    }

    /// Takes a node out. False if it is not in: it has been granted, or dropped for having another winner.
    ///
    /// # Safety
    /// The node has been in no queue but this one since its last removal.
    pub(super) unsafe fn remove(&mut self, node: &Node<P>) -> bool {
        // SAFETY: rule 1: the lock is held.
        let links = unsafe { &mut *node.links.get() };
        if links.ticket.is_null() {
            return false;
        }
        links.ticket = ptr::null();
        let (previous, next) = (links.previous, links.next);
        self.set_next(previous, next);
        self.set_previous(next, previous);
        true
    }

    /// What follows `node`, or comes first if `node` is null.
    fn set_next(&mut self, node: *const Node<P>, next: *const Node<P>) {
        match node.is_null() {
            true => self.first = next,
            // SAFETY: rules 1 and 2: the callers pass neighbours of a node in the queue.
            false => unsafe { (*(*node).links.get()).next = next },
        }
    }

    /// What precedes `node`, or comes last if `node` is null.
    fn set_previous(&mut self, node: *const Node<P>, previous: *const Node<P>) {
        match node.is_null() {
            true => self.last = previous,
            // SAFETY: as in `set_next`.
            false => unsafe { (*(*node).links.get()).previous = previous },
        }
    }

    /// Takes the first waiter out of the queue, gives it what it waits for by writing its payload, and returns it, to be woken
    /// once the lock is released. `None` if nobody waits.
    #[must_use = "a waiter that has been granted must be woken"]
    pub(super) fn grant(&mut self, give: impl FnOnce(&mut P)) -> Option<Waiter> {
        while !self.is_empty() {
            // SAFETY: rule 2: a node in the queue exists. This is its queue.
            let node = unsafe { &*self.first };
            // SAFETY: rule 1.
            let (ticket, index) = unsafe { ((*node.links.get()).ticket, (*node.links.get()).index) };
            // SAFETY: as above.
            unsafe { self.remove(node) };
            // SAFETY: the ticket's owner leaves its frame only after this critical section, or after `settle`.
            let ticket = unsafe { &*ticket };
            if ticket.claim(index) {
                // SAFETY: rule 3: the node has been granted by nobody else, and its waiter does not know of it yet.
                node.payload.with_mut(|payload| give(unsafe { &mut *payload }));
                return Some(ticket.settle(index));
            }
        }
        None
    }

    /// As [`Queue::grant`], if the first waiter is one that may have it.
    #[must_use = "a waiter that has been granted must be woken"]
    pub(super) fn grant_if(
        &mut self,
        may_have: impl FnOnce(&P) -> bool,
        give: impl FnOnce(&mut P),
    ) -> Option<Waiter> {
        match self.first().is_some_and(may_have) {
            true => self.grant(give),
            false => None,
        }
    }
}

/// A wait that was not granted: the reason, what the node held, and the lock, held since the node was taken out.
pub(super) struct Withdrawn<'a, S, P> {
    pub(super) error: WaitError,
    pub(super) payload: P,
    pub(super) guard: LatchGuard<'a, S>,
}

/// Waits in a queue of the state that `guard` holds, having looked that there is no way around it. Returns the payload as the
/// grant has left it.
///
/// `after_push` is called once the lock has been released, and must not panic or suspend the fiber.
///
/// # Blocking
/// As [`Ticket::wait`].
#[inline]
pub(super) fn wait<'a, S, P>(
    lock: &'a Latch<S>,
    mut guard: LatchGuard<'a, S>,
    queue: impl for<'s> Fn(&'s mut S) -> &'s mut Queue<P>,
    place: (End, P),
    (reason, patience): (Reason, Patience),
    after_push: impl FnOnce(),
) -> Result<P, Withdrawn<'a, S, P>> {
    let (end, payload) = place;
    let node = Node::new(payload);
    let ticket = Ticket::new();
    let wake = ticket.wait(reason, patience, || {
        // SAFETY: both stay in this frame, untouched, until this function has learnt of the grant or has removed the node.
        unsafe { queue(&mut guard).push(end, &node, &ticket, 0) };
        drop(guard);
        after_push();
        true
    });
    if wake != Wake::Ready {
        let mut guard = lock.lock();
        // SAFETY: this is the only queue that it was ever in.
        if unsafe { queue(&mut guard).remove(&node) } {
            return Err(Withdrawn { error: WaitError::of(wake), payload: node.into_payload(), guard });
        }
        drop(guard);
        ticket.await_release();
    }
    Ok(node.into_payload())
}

/// How many waiters are woken between two looks at the lock.
const BATCH: usize = 16;

/// Wakes every waiter that `next` grants, without keeping the lock for long: in batches, between which others may take it.
pub(super) fn wake_all<'a, S>(
    lock: &'a Latch<S>,
    mut guard: LatchGuard<'a, S>,
    mut next: impl FnMut(&mut S) -> Option<Waiter>,
) {
    loop {
        let mut batch: [Option<Waiter>; BATCH] = [const { None }; BATCH];
        let granted = batch.iter_mut().map_while(|place| {
            *place = next(&mut guard);
            place.as_ref().map(|_| ())
        });
        let is_full = granted.count() == BATCH;
        drop(guard);
        batch.into_iter().flatten().for_each(Waiter::wake);
        if !is_full {
            return;
        }
        guard = lock.lock();
    }
}
