//! A channel for one value: the answer to one question.

use super::error::{RecvError, RecvTimeoutError, TryRecvError};
use super::shim::Latch;
use super::wait::{End, Node, Patience, Queue, Reason, Ticket, Waiter, wait, wake_all};
use crate::fiber::WaitKind;
use core::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A channel for one value. Sending never waits.
///
/// ```
/// let (answer, question) = squall_fiber::sync::oneshot();
/// squall_fiber::spawn(move || answer.send(42));
/// assert_eq!(question.recv(), Ok(42));
/// ```
pub fn oneshot<T>() -> (OneshotSender<T>, OneshotReceiver<T>) {
    let state = State { value: None, receivers: Queue::new(), is_disconnected: false };
    let slot = Arc::new(OneshotSlot { state: Latch::new(state) });
    (OneshotSender { slot: Some(Arc::clone(&slot)) }, OneshotReceiver { slot })
}

/// What both ends share.
pub(super) struct OneshotSlot<T> {
    state: Latch<State<T>>,
}

struct State<T> {
    value: Option<T>,
    /// As in channel.rs.
    receivers: Queue<Option<T>>,
    /// Either end is gone.
    is_disconnected: bool,
}

impl<T> State<T> {
    fn receive(&mut self) -> Result<T, TryRecvError> {
        match self.value.take() {
            Some(value) => Ok(value),
            None if self.is_disconnected => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }
}

impl<T> OneshotSlot<T> {
    #[inline]
    fn recv(&self, patience: Patience) -> Result<T, RecvTimeoutError> {
        let mut state = self.state.lock();
        match state.receive() {
            Ok(value) => Ok(value),
            Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            Err(TryRecvError::Empty) => {
                let reason = (Reason::new(WaitKind::Receive, self), patience);
                match wait(&self.state, state, |state| &mut state.receivers, (End::Back, None), reason, || ())
                {
                    Ok(value) => value.ok_or(RecvTimeoutError::Disconnected),
                    Err(withdrawn) => Err(withdrawn.error.into()),
                }
            }
        }
    }

    pub(super) fn try_recv(&self) -> Result<T, TryRecvError> {
        self.state.lock().receive()
    }

    /// For a `select`: puts its node into the queue, unless there is a value now, or never.
    ///
    /// # Safety
    /// As [`Queue::push`]; withdraw by [`OneshotSlot::withdraw_recv`].
    pub(super) unsafe fn enqueue_recv(&self, node: &Node<Option<T>>, ticket: &Ticket, index: usize) -> bool {
        let mut state = self.state.lock();
        let must_wait = state.value.is_none() && !state.is_disconnected;
        if must_wait {
            // SAFETY: by the caller's contract.
            unsafe { state.receivers.push(End::Back, node, ticket, index) };
        }
        must_wait
    }

    /// # Safety
    /// The node has been in no other queue since it was pushed.
    pub(super) unsafe fn withdraw_recv(&self, node: &Node<Option<T>>) {
        // SAFETY: by the caller's contract.
        unsafe { self.state.lock().receivers.remove(node) };
    }
}

/// The end that the value is put into.
#[must_use = "a sender that is dropped disconnects its receiver"]
pub struct OneshotSender<T> {
    /// `None` once the value has been sent.
    slot: Option<Arc<OneshotSlot<T>>>,
}

impl<T> OneshotSender<T> {
    /// Sends the value.
    ///
    /// # Errors
    /// The value again, if the receiver is gone.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn send(mut self, value: T) -> Result<(), T> {
        let Some(slot) = self.slot.take() else { unreachable!("only `send` takes it, and only once") };
        let mut state = slot.state.lock();
        if state.is_disconnected {
            return Err(value);
        }
        state.is_disconnected = true;
        let mut value = Some(value);
        let receiver = state.receivers.grant(|slot| *slot = value.take());
        state.value = value;
        // Others who share the receiver learn that there is nothing for them.
        wake_all(&slot.state, state, |state| -> Option<Waiter> { state.receivers.grant(|_| ()) });
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        Ok(())
    }

    /// Whether the receiver is gone, so that there is no need to find an answer.
    pub fn is_disconnected(&self) -> bool {
        self.slot.as_ref().is_none_or(|slot| slot.state.lock().is_disconnected)
    }
}

impl<T> Drop for OneshotSender<T> {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            let mut state = slot.state.lock();
            state.is_disconnected = true;
            wake_all(&slot.state, state, |state| -> Option<Waiter> { state.receivers.grant(|_| ()) });
        }
    }
}

impl<T> fmt::Debug for OneshotSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneshotSender").finish_non_exhaustive()
    }
}

/// The end that the value comes out of, once.
pub struct OneshotReceiver<T> {
    slot: Arc<OneshotSlot<T>>,
}

impl<T> OneshotReceiver<T> {
    /// Waits for the value.
    ///
    /// # Errors
    /// Why there is none: `Disconnected` if the sender was dropped without sending, or if the value has been received already.
    ///
    /// # Blocking
    /// Suspends the fiber; outside a fiber, blocks the thread.
    #[inline]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.slot.recv(Patience::INTERRUPTIBLE).map_err(RecvTimeoutError::without_timeout)
    }

    /// As [`OneshotReceiver::recv`], waiting no longer than `timeout`.
    ///
    /// # Errors
    /// Why there is no value.
    ///
    /// # Blocking
    /// As [`OneshotReceiver::recv`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        self.slot.recv(Patience::at_most(timeout))
    }

    /// The value, if it is there now.
    ///
    /// # Errors
    /// Why it is not.
    ///
    /// # Blocking
    /// Never.
    #[inline]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.slot.try_recv()
    }

    pub(super) fn slot(&self) -> &OneshotSlot<T> {
        &self.slot
    }
}

impl<T> Drop for OneshotReceiver<T> {
    fn drop(&mut self) {
        let unread = {
            let mut state = self.slot.state.lock();
            state.is_disconnected = true;
            state.value.take()
        };
        // Not under the lock: its destructor is user code.
        drop(unread);
    }
}

impl<T> fmt::Debug for OneshotReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneshotReceiver").finish_non_exhaustive()
    }
}
