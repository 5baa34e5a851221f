//! Channels for any number of senders and receivers: unbounded, bounded, and of capacity zero.
//!
//! Everything is under one internal lock: the buffer, a queue of receivers and a queue of senders. A value goes directly to a receiver
//! that waits, and a waiting sender's value directly to the buffer: whoever is woken has what it waited for and need not look again.
//!
//! Invariants, whenever the lock is free (nodes of a `select` that has another winner do not count):
//! 1. While a receiver waits, the buffer is empty and no sender waits (but for the sends of the same `select`).
//! 2. While a sender waits, the buffer is full.
//! 3. Once one side is gone, nobody waits, or whoever does is about to be woken.
//!
//! Under the lock no user code runs, not even a destructor, and no memory is allocated or freed: both may take locks of their own,
//! which could suspend the fiber.

use super::buffer::{Block, Buffer};
use super::error::{RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError};
use super::shim::{AtomicUsize, Latch, LatchGuard, Ordering};
use super::wait::{End, Node, Patience, Queue, Reason, Ticket, Waiter, wait, wake_all};
use crate::fiber::WaitKind;
use core::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A channel that holds any number of values, so that sending never waits.
///
/// ```
/// let (sender, receiver) = squall_fiber::sync::unbounded();
/// for n in 0..3 {
///     sender.send(n).unwrap();
/// }
/// drop(sender);
/// assert_eq!(receiver.iter().collect::<Vec<_>>(), [0, 1, 2]);
/// ```
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    Channel::ends(usize::MAX, Buffer::unbounded())
}

/// A channel that holds `capacity` values; who sends more waits. With capacity 0 every send waits for its receive.
///
/// ```
/// let (sender, receiver) = squall_fiber::sync::bounded(0);
/// let fiber = squall_fiber::spawn(move || sender.send("met").unwrap());
/// assert_eq!(receiver.recv(), Ok("met"));
/// fiber.join().unwrap();
/// ```
///
/// # Panics
/// When so many values need more memory than there are addresses. The memory is reserved at once, and used as it fills.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    Channel::ends(capacity, Buffer::bounded(capacity))
}

/// What both ends share.
pub(super) struct Channel<T> {
    state: Latch<State<T>>,
    capacity: usize,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

struct State<T> {
    buffer: Buffer<T>,
    /// Of each waiter the value to be sent. A grant takes it; one that leaves it says that the receivers are gone.
    senders: Queue<Option<T>>,
    /// Of each waiter an empty slot. A grant fills it; one that does not says that the senders are gone.
    receivers: Queue<Option<T>>,
    /// All senders or all receivers are gone.
    is_disconnected: bool,
}

impl<T> State<T> {
    /// The waiter that this lets go on is to be woken once the lock is released. A buffer that wants a block counts as full.
    #[inline(always)]
    fn send(&mut self, capacity: usize, value: T) -> Result<Option<Waiter>, TrySendError<T>> {
        if self.is_disconnected {
            return Err(TrySendError::Disconnected(value));
        }
        let mut value = Some(value);
        let receiver = self.receivers.grant(|slot| *slot = value.take());
        match value {
            None => Ok(receiver),
            Some(value) if self.buffer.len() < capacity && !self.buffer.wants_block() => {
                self.buffer.push(value);
                Ok(None)
            }
            Some(value) => Err(TrySendError::Full(value)),
        }
    }

    /// As above.
    #[inline(always)]
    fn receive(&mut self, retired: &mut Option<Box<Block<T>>>) -> Result<(T, Option<Waiter>), TryRecvError> {
        let mut value = self.buffer.pop(retired);
        let sender = match value {
            // The place that has become free goes to the first who waits for one.
            Some(_) => {
                self.senders.grant(|slot| slot.take().into_iter().for_each(|next| self.buffer.push(next)))
            }
            None => self.senders.grant(|slot| value = slot.take()),
        };
        match value {
            Some(value) => Ok((value, sender)),
            None if self.is_disconnected => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }
}

/// What came of a send, and the lock, which is still held.
type Attempt<'a, T> = (LatchGuard<'a, State<T>>, Result<Option<Waiter>, TrySendError<T>>);

impl<T> Channel<T> {
    fn ends(capacity: usize, buffer: Buffer<T>) -> (Sender<T>, Receiver<T>) {
        let state = State { buffer, senders: Queue::new(), receivers: Queue::new(), is_disconnected: false };
        let channel = Arc::new(Self {
            state: Latch::new(state),
            capacity,
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(1),
        });
        (Sender { channel: Arc::clone(&channel) }, Receiver { channel })
    }

    /// Sends the value if that needs no waiting.
    #[inline(always)]
    fn lock_and_send(&self, value: T) -> Attempt<'_, T> {
        let mut state = self.state.lock();
        match state.send(self.capacity, value) {
            Err(TrySendError::Full(value)) if state.buffer.wants_block() => {
                self.send_with_new_block(state, value)
            }
            result => (state, result),
        }
    }

    #[cold]
    fn send_with_new_block<'a>(&'a self, mut state: LatchGuard<'a, State<T>>, value: T) -> Attempt<'a, T> {
        while state.buffer.wants_block() {
            drop(state);
            let block = Block::new();
            state = self.state.lock();
            if let Some(unwanted) = state.buffer.offer(block) {
                drop(state);
                drop(unwanted);
                state = self.state.lock();
            }
        }
        let result = state.send(self.capacity, value);
        (state, result)
    }

    #[inline]
    pub(super) fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        let (state, result) = self.lock_and_send(value);
        drop(state);
        result.map(wake)
    }

    #[inline]
    fn send(&self, value: T, patience: impl FnOnce() -> Patience) -> Result<(), SendTimeoutError<T>> {
        let (state, result) = self.lock_and_send(value);
        match result {
            Ok(receiver) => {
                drop(state);
                wake(receiver);
                Ok(())
            }
            Err(TrySendError::Disconnected(value)) => Err(SendTimeoutError::Disconnected(value)),
            Err(TrySendError::Full(value)) => self.wait_to_send(state, value, patience()),
        }
    }

    fn wait_to_send(
        &self,
        state: LatchGuard<'_, State<T>>,
        value: T,
        patience: Patience,
    ) -> Result<(), SendTimeoutError<T>> {
        let reason = (Reason::new(WaitKind::Send, self), patience);
        match wait(&self.state, state, |state| &mut state.senders, (End::Back, Some(value)), reason, || ()) {
            Ok(None) => Ok(()),
            Ok(Some(value)) => Err(SendTimeoutError::Disconnected(value)),
            Err(withdrawn) => {
                let value = withdrawn.payload.expect("nobody has taken the value");
                Err(SendTimeoutError::new(withdrawn.error, value))
            }
        }
    }

    #[inline]
    pub(super) fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut retired = None;
        let mut state = self.state.lock();
        let result = state.receive(&mut retired);
        drop(state);
        let (value, sender) = result?;
        wake(sender);
        Ok(value)
    }

    #[inline]
    fn recv(&self, patience: impl FnOnce() -> Patience) -> Result<T, RecvTimeoutError> {
        let mut retired = None;
        let mut state = self.state.lock();
        match state.receive(&mut retired) {
            Ok((value, sender)) => {
                drop(state);
                wake(sender);
                Ok(value)
            }
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {
                let reason = (Reason::new(WaitKind::Receive, self), patience());
                match wait(&self.state, state, |state| &mut state.receivers, (End::Back, None), reason, || ())
                {
                    Ok(value) => value.ok_or(RecvTimeoutError::Disconnected),
                    Err(withdrawn) => Err(withdrawn.error.into()),
                }
            }
        }
    }

    /// For a `select`: puts its node into the queue of senders, unless the value can be sent now, or never.
    ///
    /// # Safety
    /// As [`Queue::push`]; withdraw by [`Channel::withdraw_send`].
    pub(super) unsafe fn enqueue_send(&self, node: &Node<Option<T>>, ticket: &Ticket, index: usize) -> bool {
        let mut state = self.state.lock();
        let must_wait = !state.is_disconnected
            && state.buffer.len() >= self.capacity
            && !state.receivers.has_waiter_besides(ticket);
        if must_wait {
            // SAFETY: by the caller's contract.
            unsafe { state.senders.push(End::Back, node, ticket, index) };
        }
        must_wait
    }

    /// For a `select`: puts its node into the queue of receivers, unless there is a value now, or never.
    ///
    /// # Safety
    /// As [`Queue::push`]; withdraw by [`Channel::withdraw_recv`].
    pub(super) unsafe fn enqueue_recv(&self, node: &Node<Option<T>>, ticket: &Ticket, index: usize) -> bool {
        let mut state = self.state.lock();
        let must_wait =
            !state.is_disconnected && state.buffer.len() == 0 && !state.senders.has_waiter_besides(ticket);
        if must_wait {
            // SAFETY: by the caller's contract.
            unsafe { state.receivers.push(End::Back, node, ticket, index) };
        }
        must_wait
    }

    /// # Safety
    /// The node has been in no other queue since it was pushed.
    pub(super) unsafe fn withdraw_send(&self, node: &Node<Option<T>>) {
        // SAFETY: by the caller's contract. Whether it was still in does not matter: the ticket says what was granted.
        unsafe { self.state.lock().senders.remove(node) };
    }

    /// # Safety
    /// As [`Channel::withdraw_send`].
    pub(super) unsafe fn withdraw_recv(&self, node: &Node<Option<T>>) {
        // SAFETY: as above.
        unsafe { self.state.lock().receivers.remove(node) };
    }

    #[cold]
    fn senders_are_gone(&self) {
        let mut state = self.state.lock();
        state.is_disconnected = true;
        // If somebody waits, the buffer is empty.
        wake_all(&self.state, state, |state| state.receivers.grant(|_| ()));
    }

    #[cold]
    fn receivers_are_gone(&self) {
        let mut state = self.state.lock();
        state.is_disconnected = true;
        let unread = core::mem::replace(&mut state.buffer, Buffer::unbounded());
        wake_all(&self.state, state, |state| state.senders.grant(|_| ()));
        // What nobody will receive is dropped now, not when the last sender goes: a sender of another channel may be among it, whose
        // receivers wait.
        drop(unread);
    }

    fn len(&self) -> usize {
        self.state.lock().buffer.len()
    }

    fn capacity(&self) -> Option<usize> {
        (self.capacity != usize::MAX).then_some(self.capacity)
    }
}

#[inline]
fn wake(waiter: Option<Waiter>) {
    if let Some(waiter) = waiter {
        waiter.wake();
    }
}

/// The end of a channel that values are put into. A clone is one more sender of the same channel.
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
}

impl<T> Sender<T> {
    /// Sends a value, waiting for room in a bounded channel, and for a receiver if its capacity is 0. Values of one sender arrive in the
    /// order in which they were sent.
    ///
    /// # Errors
    /// The value, and why it was not sent.
    ///
    /// # Blocking
    /// Suspends the fiber while there is no room; outside a fiber, blocks the thread.
    #[inline]
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.channel.send(value, || Patience::INTERRUPTIBLE).map_err(SendTimeoutError::without_timeout)
    }

    /// As [`Sender::send`], waiting no longer than `timeout`.
    ///
    /// # Errors
    /// The value, and why it was not sent.
    ///
    /// # Blocking
    /// As [`Sender::send`].
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendTimeoutError<T>> {
        self.channel.send(value, || Patience::at_most(timeout))
    }

    /// Sends a value if that needs no waiting.
    ///
    /// # Errors
    /// The value, and why it was not sent.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
        self.channel.try_send(value)
    }

    /// How many values are in the channel.
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether no value is in the channel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values it holds at most; `None` if any number.
    pub fn capacity(&self) -> Option<usize> {
        self.channel.capacity()
    }

    pub(super) fn channel(&self) -> &Channel<T> {
        &self.channel
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.channel.senders.fetch_add(1, Ordering::Relaxed);
        Self { channel: Arc::clone(&self.channel) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.channel.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.channel.senders_are_gone();
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// The end of a channel that values come out of. A clone is one more receiver of the same channel: each value goes to one of them.
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
}

impl<T> Receiver<T> {
    /// Waits for a value.
    ///
    /// # Errors
    /// Why there is none. A value that is there is received also by a fiber that has been cancelled.
    ///
    /// # Blocking
    /// Suspends the fiber while the channel is empty; outside a fiber, blocks the thread.
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.channel.recv(|| Patience::INTERRUPTIBLE).map_err(RecvTimeoutError::without_timeout)
    }

    /// As [`Receiver::recv`], waiting no longer than `timeout`.
    ///
    /// # Errors
    /// Why there is no value.
    ///
    /// # Blocking
    /// As [`Receiver::recv`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.channel.recv(|| Patience::at_most(timeout))
    }

    /// The next value, if there is one now.
    ///
    /// # Errors
    /// Why there is none.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.channel.try_recv()
    }

    /// The values as they come, until the senders are gone or the fiber is interrupted.
    ///
    /// # Blocking
    /// The iterator, as [`Receiver::recv`].
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { receiver: self }
    }

    /// The values that are there now.
    ///
    /// # Blocking
    /// Never.
    pub fn try_iter(&self) -> TryIter<'_, T> {
        TryIter { receiver: self }
    }

    /// How many values are in the channel.
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether no value is in the channel.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values it holds at most; `None` if any number.
    pub fn capacity(&self) -> Option<usize> {
        self.channel.capacity()
    }

    pub(super) fn channel(&self) -> &Channel<T> {
        &self.channel
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.channel.receivers.fetch_add(1, Ordering::Relaxed);
        Self { channel: Arc::clone(&self.channel) }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if self.channel.receivers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.channel.receivers_are_gone();
        }
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// See [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    receiver: &'a Receiver<T>,
}

impl<T> Iterator for Iter<'_, T> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

/// See [`Receiver::try_iter`].
#[derive(Debug)]
pub struct TryIter<'a, T> {
    receiver: &'a Receiver<T>,
}

impl<T> Iterator for TryIter<'_, T> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

/// As [`Receiver::iter`], and owns the receiver.
#[derive(Debug)]
pub struct IntoIter<T> {
    receiver: Receiver<T>,
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;
    fn next(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

impl<T> IntoIterator for Receiver<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;
    fn into_iter(self) -> IntoIter<T> {
        IntoIter { receiver: self }
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;
    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}
