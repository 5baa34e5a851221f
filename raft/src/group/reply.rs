//! Answers to clients: every proposal and read is answered exactly once, whatever happens to the group.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::core::types::NodeId;
use crate::core::{ChangeError, TransferError};

/// Why a proposal has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Not applied, and never will be: another node leads, or none does.
    #[error("not the leader")]
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Not applied: too much waits for an answer already.
    #[error("{in_flight_bytes} bytes of proposals are in flight, the limit is {limit} bytes")]
    Overloaded {
        /// What waits.
        in_flight_bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not applied: the command is too large.
    #[error("the command has {bytes} bytes, the limit is {limit} bytes")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not applied: the group has stopped.
    #[error("the raft group has stopped")]
    Stopped,
    /// The command is in the log, but this node no longer learns whether it is committed: leadership was
    /// lost, or the group stopped. It may have been applied, or be applied later, once.
    #[error("the outcome is not known")]
    Indefinite,
}

impl ProposeError {
    /// Whether the command was certainly not applied and never will be, so that it may be proposed again.
    #[must_use]
    pub fn is_definite(&self) -> bool {
        !matches!(self, ProposeError::Indefinite)
    }
}

/// Why members were not changed, or leadership was not transferred.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// Nothing has changed: the change makes no sense, or not now.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Nothing has changed: leadership cannot be transferred.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The group has stopped.
    #[error("the raft group has stopped")]
    Stopped,
    /// The change was started, but this node does not learn what comes of it: leadership was lost, or the group stopped.
    #[error("the outcome is not known; look at the members")]
    Indefinite,
    /// Leadership is where it was: the other node did not take over in time.
    #[error("node {to} did not take over")]
    NotTaken {
        /// The node.
        to: NodeId,
    },
}

/// Why a read has no result. A read changes nothing: it may always be repeated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Another node leads, or none does.
    #[error("not the leader")]
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The group has stopped.
    #[error("the raft group has stopped")]
    Stopped,
}

type Callback<O, E> = Box<dyn FnOnce(Result<O, E>) + Send>;

/// Bytes of proposals that wait for an answer.
#[derive(Debug, Default)]
pub(super) struct InFlight(AtomicUsize);

impl InFlight {
    pub fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts a proposal until it is answered.
pub(super) struct Permit {
    in_flight: Arc<InFlight>,
    bytes: usize,
}

impl Permit {
    /// # Errors
    /// The bytes in flight, when these would go beyond `limit`; a proposal that is alone always passes, else one
    /// larger than the limit could never be made.
    pub fn acquire(in_flight: &Arc<InFlight>, bytes: usize, limit: usize) -> Result<Permit, usize> {
        let fits =
            |now: usize| (now == 0 || now.saturating_add(bytes) <= limit).then(|| now.saturating_add(bytes));
        in_flight.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)?;
        Ok(Permit { in_flight: Arc::clone(in_flight), bytes })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.in_flight.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The answer to one proposal. Dropped unanswered (the group stopped, or an activity panicked), it answers by
/// itself: a client never waits for ever.
pub(super) struct ProposeReply<O> {
    callback: Option<Callback<O, ProposeError>>,
    /// Whether the command is in the log, where it may be committed even if nobody here learns of it.
    in_log: bool,
    permit: Option<Permit>,
}

impl<O> ProposeReply<O> {
    pub fn new(callback: impl FnOnce(Result<O, ProposeError>) + Send + 'static) -> ProposeReply<O> {
        ProposeReply { callback: Some(Box::new(callback)), in_log: false, permit: None }
    }

    pub fn hold(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    pub fn entered_log(&mut self) {
        self.in_log = true;
    }

    pub fn answer(mut self, result: Result<O, ProposeError>) {
        self.call(result);
    }

    fn call(&mut self, result: Result<O, ProposeError>) {
        // Given back first: a client that reacts with its next proposal must find the room it had.
        self.permit = None;
        if let Some(callback) = self.callback.take() {
            callback(result);
        }
    }
}

impl<O> Drop for ProposeReply<O> {
    fn drop(&mut self) {
        let error = if self.in_log { ProposeError::Indefinite } else { ProposeError::Stopped };
        self.call(Err(error));
    }
}

/// The answer to one read; as [`ProposeReply`].
pub(super) struct ReadReply<O> {
    callback: Option<Callback<O, ReadError>>,
}

impl<O> ReadReply<O> {
    pub fn new(callback: impl FnOnce(Result<O, ReadError>) + Send + 'static) -> ReadReply<O> {
        ReadReply { callback: Some(Box::new(callback)) }
    }

    pub fn answer(mut self, result: Result<O, ReadError>) {
        if let Some(callback) = self.callback.take() {
            callback(result);
        }
    }
}

impl<O> Drop for ReadReply<O> {
    fn drop(&mut self) {
        if let Some(callback) = self.callback.take() {
            callback(Err(ReadError::Stopped));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_dropped_reply_says_whether_the_command_can_have_been_applied() {
        let (results, answers) = mpsc::channel();
        let reply = |results: mpsc::Sender<_>| ProposeReply::<()>::new(move |r| results.send(r).unwrap());
        drop(reply(results.clone()));
        assert_eq!(answers.recv().unwrap(), Err(ProposeError::Stopped));
        let mut logged = reply(results);
        logged.entered_log();
        drop(logged);
        assert_eq!(answers.recv().unwrap(), Err(ProposeError::Indefinite));
    }

    #[test]
    fn proposals_are_limited_by_bytes_but_one_always_passes() {
        let in_flight = Arc::new(InFlight::default());
        let large = Permit::acquire(&in_flight, 500, 100).ok().unwrap();
        assert_eq!(Permit::acquire(&in_flight, 1, 100).err(), Some(500));
        drop(large);
        let _small = Permit::acquire(&in_flight, 60, 100).ok().unwrap();
        assert_eq!(Permit::acquire(&in_flight, 60, 100).err(), Some(60));
        assert!(Permit::acquire(&in_flight, 40, 100).is_ok());
        assert_eq!(in_flight.bytes(), 60);
    }
}
