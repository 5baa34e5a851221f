//! Snapshots that arrive from the leader, in chunks. Used by the transport's activities, not by the owner, so a slow
//! disk delays nobody else.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::types::{NodeId, SnapshotMeta, Term};
use crate::core::{Body, Message};
use crate::snapshot::{SnapshotError, SnapshotReceiver, SnapshotStore};

/// What precedes the bytes of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The leader that sends it.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The leader's term.
    pub term: Term,
    /// The snapshot.
    pub snapshot: SnapshotMeta,
    /// The length of the file, in bytes.
    pub total_bytes: u64,
}

/// Why a snapshot, or a part of one, is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IncomingError {
    /// The peer's: it is for another node, or from none.
    #[error("snapshot from node {} for node {} arrived at node {id}", header.from, header.to)]
    Misdelivered {
        /// What it said.
        header: SnapshotHeader,
        /// This node.
        id: NodeId,
    },
    /// The peer's: no transfer with this header is under way; it must begin again.
    #[error("no such snapshot transfer is under way")]
    NotBegun,
    /// The peer's, or the wire's: a chunk's checksum is wrong.
    #[error("the chunk at {offset} is damaged")]
    Damaged {
        /// Where it belongs.
        offset: u64,
    },
    /// The disk's, or the peer's: the file cannot be written, or is not what was announced.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The group has stopped.
    #[error("the raft group has stopped")]
    Stopped,
}

struct Transfer {
    header: SnapshotHeader,
    receiver: SnapshotReceiver,
}

/// The transfer under way; at most one.
pub(super) struct Incoming {
    id: NodeId,
    state: Mutex<State>,
}

struct State {
    /// `None` when the group has stopped: then its directory may be opened anew.
    snapshots: Option<Arc<SnapshotStore>>,
    transfer: Option<Transfer>,
}

impl Incoming {
    pub fn new(id: NodeId, snapshots: Arc<SnapshotStore>) -> Incoming {
        Incoming { id, state: Mutex::new(State { snapshots: Some(snapshots), transfer: None }) }
    }

    /// Starts a transfer, or resumes the one with the same header; another one is given up, unless its leader is
    /// of a later term. Returns the offset wanted first.
    pub fn begin(&self, header: SnapshotHeader) -> Result<u64, IncomingError> {
        if header.to != self.id || header.from == self.id {
            return Err(IncomingError::Misdelivered { header, id: self.id });
        }
        let mut state = self.lock();
        match &state.transfer {
            Some(transfer) if transfer.header == header => return Ok(transfer.receiver.next_offset()),
            Some(transfer) if transfer.header.term > header.term => return Err(IncomingError::NotBegun),
            _ => {}
        }
        state.transfer = None;
        let snapshots = state.snapshots.as_ref().ok_or(IncomingError::Stopped)?;
        let receiver = snapshots.receive(header.snapshot, header.total_bytes)?;
        state.transfer = Some(Transfer { header, receiver });
        Ok(0)
    }

    /// Takes a chunk. Returns the offset wanted next.
    pub fn chunk(
        &self,
        header: &SnapshotHeader,
        offset: u64,
        bytes: &[u8],
        crc: u32,
    ) -> Result<u64, IncomingError> {
        if crc32c::crc32c(bytes) != crc {
            return Err(IncomingError::Damaged { offset });
        }
        let slot = &mut self.lock().transfer;
        let transfer = slot.as_mut().filter(|t| t.header == *header).ok_or(IncomingError::NotBegun)?;
        let result = transfer.receiver.chunk(offset, bytes);
        if result.is_err() {
            *slot = None;
        }
        Ok(result?)
    }

    /// Verifies the file and makes it durable. Returns the message with which the core installs it.
    pub fn finish(&self, header: &SnapshotHeader) -> Result<Message, IncomingError> {
        // The lock is held to the end: the leader may begin anew while a slow disk still works on this one.
        let mut state = self.lock();
        let transfer = state.transfer.take_if(|t| t.header == *header).ok_or(IncomingError::NotBegun)?;
        let (snapshot, members, _) = transfer.receiver.finish()?;
        let SnapshotHeader { from, to, term, .. } = *header;
        // Whatever sends a snapshot leads its term, and a leader is believed whichever disk it has.
        Ok(Message { from, to, incarnation: 0, term, body: Body::InstallSnapshot { snapshot, members } })
    }

    /// Gives up what is under way and lets go of the directory.
    pub fn close(&self) {
        *self.lock() = State { snapshots: None, transfer: None };
    }

    /// A panic while the lock was held leaves a transfer that fails its checks, not a broken one that passes.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
