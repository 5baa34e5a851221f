//! The outside of a group: starting it, and the handle through which clients and peers talk to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::GroupConfig;
use super::applier::Applier;
use super::incoming::{Incoming, IncomingError, SnapshotHeader};
use super::log_writer::LogWriter;
use super::owner::{Channels, Owner};
use super::recovery::{self, Restart, Storage};
use super::reply::{InFlight, MemberError, Permit, ProposeError, ProposeReply, ReadError, ReadReply};
use super::snapshots::SnapshotKeeper;
use super::traits::{StateMachine, Transport};
use crate::core::types::{NodeId, SnapshotMeta};
use crate::core::{Body, MemberChange, Membership, Message, Raft, Role, SoftState, Status};
use crate::error::RaftError;
use crate::{JoinHandle, spawn};

/// What a proposal takes of the memory in flight besides its command.
const PROPOSAL_OVERHEAD_BYTES: usize = 128;

/// What arrives in the owner's mailbox.
pub(super) enum Event<M: StateMachine> {
    Propose {
        command: Bytes,
        reply: ProposeReply<M::Output>,
    },
    Read {
        query: M::Query,
        reply: ReadReply<M::Output>,
    },
    Receive(Message),
    Unreachable(NodeId),
    ChangeMembers {
        changes: Vec<MemberChange>,
        reply: MemberReply<Arc<Membership>>,
    },
    Transfer {
        to: Option<NodeId>,
        reply: MemberReply<NodeId>,
    },
    Status(Sender<GroupStatus>),
    /// From the log writer: everything up to this write is durable.
    Persisted(u64),
    /// From the snapshot keeper: a snapshot is durable, or could not be written.
    SnapshotTaken(Option<SnapshotMeta>),
    /// From the transport: a snapshot arrived at the peer, or did not.
    SnapshotSent {
        to: NodeId,
        ok: bool,
    },
    /// An activity had to stop.
    Died(RaftError),
    Shutdown,
}

/// The answer to a change of members or a transfer; dropped, it says that the group has stopped.
pub(super) type MemberReply<T> = Sender<Result<T, MemberError>>;

/// What the activities and the handles share.
pub(super) struct Shared {
    in_flight: Arc<InFlight>,
    pub applied: AtomicU64,
    pub log_disk_bytes: AtomicU64,
    /// Asks long work to end early.
    pub stopping: AtomicBool,
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Clone)]
struct News {
    soft_state: SoftState,
    /// `Some` when every activity has ended; then why, unless it was asked to.
    ended: Option<Option<Arc<RaftError>>>,
}

impl Shared {
    fn news(&self) -> MutexGuard<'_, News> {
        // Whoever panicked with the lock held had written whole values only.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn proposal_bytes(&self) -> usize {
        self.in_flight.bytes()
    }

    pub fn publish(&self, soft_state: SoftState) {
        self.news().soft_state = soft_state;
        self.changed.notify_all();
    }

    fn publish_end(&self, cause: Option<RaftError>) {
        let mut news = self.news();
        let SoftState { term, .. } = news.soft_state;
        news.soft_state = SoftState { role: Role::Follower, leader: None, term };
        news.ended.get_or_insert(cause.map(Arc::new));
        drop(news);
        self.changed.notify_all();
    }
}

/// A group's state, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The core's view.
    pub raft: Status,
    /// Bytes of the log on disk.
    pub log_disk_bytes: u64,
    /// Bytes of proposals that wait for an answer.
    pub proposal_bytes: usize,
    /// Whether a snapshot is being written.
    pub snapshot_running: bool,
    /// Messages refused because no working peer sends them.
    pub messages_refused: u64,
}

/// Starts groups.
pub struct Group;

impl Group {
    /// Brings a member back to where it stopped, or starts a new one, and runs it.
    ///
    /// # Blocking
    /// Reads the newest snapshot and restores the state machine from it.
    ///
    /// # Errors
    /// `config` breaks a rule; what is on disk cannot be used; the system gives no activity or random number.
    pub fn start<M: StateMachine>(
        mut config: GroupConfig,
        storage: Storage,
        transport: Arc<dyn Transport>,
        mut machine: M,
    ) -> Result<GroupHandle<M>, RaftError> {
        config.validate()?;
        let Storage { mut log, recovered, snapshots } = storage;
        config.raft.incarnation = recovered.incarnation;
        let Restart { hard_state, snapshot, members, entries, log_snapshot } =
            recovery::restart(&mut *log, recovered, &snapshots, &mut machine, &config.founders)?;
        if let Some(observer) = &config.observer {
            observer.writes(config.raft.id, Some(snapshot), &entries);
        }
        let core = Raft::new(config.raft.clone(), hard_state, snapshot, members.clone(), entries)?;
        let seed = getrandom::u64().map_err(RaftError::Random)?;

        let (events, mailbox) = mpsc::channel();
        let (log_jobs, log_queue) = mpsc::channel();
        let (apply_jobs, apply_queue) = mpsc::channel();
        let (snapshot_jobs, snapshot_queue) = mpsc::channel();
        let shared = Arc::new(Shared {
            in_flight: Arc::default(),
            applied: AtomicU64::new(snapshot.index),
            log_disk_bytes: AtomicU64::new(log.size_bytes()),
            stopping: AtomicBool::new(false),
            news: Mutex::new(News { soft_state: core.soft_state(), ended: None }),
            changed: Condvar::new(),
        });
        let incoming = Arc::new(Incoming::new(core.id(), Arc::clone(&snapshots)));
        let handle = GroupHandle {
            events: events.clone(),
            shared: Arc::clone(&shared),
            incoming: Arc::clone(&incoming),
            id: core.id(),
            proposal_bytes_max: config.proposal_bytes_max,
            command_bytes_max: config.command_bytes_max,
        };

        let name = format!("raft-{}", core.id());
        let writer = LogWriter {
            log,
            hard_state,
            jobs: log_queue,
            events: events.clone(),
            snapshot_jobs: snapshot_jobs.clone(),
            transport: Arc::clone(&transport),
            shared: Arc::clone(&shared),
        };
        let applier = Applier::new(
            machine,
            (snapshot, members),
            apply_queue,
            snapshot_jobs.clone(),
            Arc::clone(&snapshots),
            Arc::clone(&shared),
            config.observer.clone().map(|observer| (core.id(), observer)),
        );
        let keeper = SnapshotKeeper {
            snapshots,
            jobs: snapshot_queue,
            events: events.clone(),
            transport: Arc::clone(&transport),
            shared: Arc::clone(&shared),
        };
        let activities = vec![
            start_activity(&name, "log writer", events.clone(), move || writer.run())?,
            start_activity(&name, "applier", events.clone(), move || applier.run())?,
            start_activity(&name, "snapshot keeper", events, move || keeper.run())?,
        ];
        let channels = Channels { mailbox, log_jobs, apply_jobs, snapshot_jobs };
        let owner = Owner::new(core, config, channels, transport, Arc::clone(&shared), seed, log_snapshot);
        spawn(format!("{name}-owner"), move || {
            let mut end =
                End { shared, incoming, cause: Some(RaftError::ActivityDied { activity: "owner" }) };
            let result = owner.run();
            // The owner is gone, and with it the queues: now the others run dry.
            end.shared.stopping.store(true, Ordering::Relaxed);
            for activity in activities {
                let _ = activity.join(); // Its panic was reported as it died.
            }
            end.cause = result.err();
        })
        .map_err(RaftError::Spawn)?;
        Ok(handle)
    }
}

/// Tells everybody that the group has ended, also when the owner panics.
struct End {
    shared: Arc<Shared>,
    incoming: Arc<Incoming>,
    cause: Option<RaftError>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.incoming.close();
        let cause = self.cause.take();
        if let Some(error) = &cause {
            log::error!("the raft group stops: {error}");
        }
        self.shared.publish_end(cause);
    }
}

/// Runs one of the owner's helpers and reports to the owner if it fails or panics.
fn start_activity<M: StateMachine>(
    group: &str,
    activity: &'static str,
    events: Sender<Event<M>>,
    work: impl FnOnce() -> Result<(), RaftError> + Send + 'static,
) -> Result<JoinHandle, RaftError> {
    struct Report<M: StateMachine> {
        events: Sender<Event<M>>,
        death: Option<RaftError>,
    }
    impl<M: StateMachine> Drop for Report<M> {
        fn drop(&mut self) {
            if let Some(error) = self.death.take() {
                let _ = self.events.send(Event::Died(error));
            }
        }
    }
    let name = format!("{group}-{}", activity.replace(' ', "-"));
    let body = move || {
        let mut report = Report { events, death: Some(RaftError::ActivityDied { activity }) };
        report.death = work().err();
    };
    spawn(name, body).map_err(RaftError::Spawn)
}

/// A running group; cheap to clone. The group runs until [`GroupHandle::shutdown`], also when every handle is gone.
pub struct GroupHandle<M: StateMachine> {
    events: Sender<Event<M>>,
    shared: Arc<Shared>,
    incoming: Arc<Incoming>,
    id: NodeId,
    proposal_bytes_max: usize,
    command_bytes_max: usize,
}

impl<M: StateMachine> Clone for GroupHandle<M> {
    fn clone(&self) -> GroupHandle<M> {
        GroupHandle {
            events: self.events.clone(),
            shared: Arc::clone(&self.shared),
            incoming: Arc::clone(&self.incoming),
            ..*self
        }
    }
}

impl<M: StateMachine> GroupHandle<M> {
    // For clients.

    /// Replicates and applies a command; `reply` gets what [`StateMachine::apply`] returned. `reply` is
    /// called exactly once, on an activity of the group or, for a refusal, at once on this one: it must be quick
    /// and must not block.
    ///
    /// # Blocking
    /// Does not.
    pub fn propose_with(
        &self,
        command: Bytes,
        reply: impl FnOnce(Result<M::Output, ProposeError>) + Send + 'static,
    ) {
        let mut reply = ProposeReply::new(reply);
        let (bytes, limit) = (command.len(), self.command_bytes_max);
        if bytes > limit {
            return reply.answer(Err(ProposeError::TooLarge { bytes, limit }));
        }
        let (bytes, limit) = (bytes + PROPOSAL_OVERHEAD_BYTES, self.proposal_bytes_max);
        match Permit::acquire(&self.shared.in_flight, bytes, limit) {
            Ok(permit) => reply.hold(permit),
            Err(in_flight_bytes) => {
                return reply.answer(Err(ProposeError::Overloaded { in_flight_bytes, limit }));
            }
        }
        // If the group has stopped, the event comes back, is dropped, and its reply says so.
        let _ = self.events.send(Event::Propose { command, reply });
    }

    /// Replicates and applies a command, and returns what [`StateMachine::apply`] returned.
    ///
    /// # Blocking
    /// Until the command is applied here, or known to be in trouble: a leader that cannot reach a quorum gives up after
    /// an election timeout.
    ///
    /// # Errors
    /// See [`ProposeError`], above all whether it [`is_definite`](ProposeError::is_definite).
    pub fn propose(&self, command: Bytes) -> Result<M::Output, ProposeError> {
        let (sender, result) = mpsc::sync_channel(1);
        self.propose_with(command, move |answer| {
            let _ = sender.send(answer);
        });
        result.recv().unwrap_or(Err(ProposeError::Indefinite))
    }

    /// A linearizable read: `reply` gets the answer of a state that includes everything acknowledged before
    /// this call. Reads that wait at the same time share one round of messages. For `reply` see
    /// [`GroupHandle::propose_with`].
    ///
    /// # Blocking
    /// Does not.
    pub fn read_with(
        &self,
        query: M::Query,
        reply: impl FnOnce(Result<M::Output, ReadError>) + Send + 'static,
    ) {
        let reply = ReadReply::new(reply);
        let _ = self.events.send(Event::Read { query, reply });
    }

    /// A linearizable read.
    ///
    /// # Blocking
    /// Until a quorum has confirmed the leader and the state has caught up.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, query: M::Query) -> Result<M::Output, ReadError> {
        let (sender, result) = mpsc::sync_channel(1);
        self.read_with(query, move |answer| {
            let _ = sender.send(answer);
        });
        result.recv().unwrap_or(Err(ReadError::Stopped))
    }

    // For the operator.

    /// This node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Role, leader and term, as last published. Cheap.
    #[must_use]
    pub fn soft_state(&self) -> SoftState {
        self.shared.news().soft_state
    }

    /// Waits until a leader is known.
    ///
    /// # Blocking
    /// For at most `timeout`.
    ///
    /// # Errors
    /// None was found in time, or the group has stopped: then [`ReadError`]'s `NotLeader` without a leader, or `Stopped`.
    pub fn wait_for_leader(&self, timeout: Duration) -> Result<NodeId, ReadError> {
        let deadline = Instant::now() + timeout;
        let mut news = self.shared.news();
        loop {
            if news.ended.is_some() {
                return Err(ReadError::Stopped);
            }
            if let Some(leader) = news.soft_state.leader {
                return Ok(leader);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ReadError::NotLeader { leader: None });
            }
            let waited = self.shared.changed.wait_timeout(news, left);
            news = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The group's state; `None` when it has stopped.
    ///
    /// # Blocking
    /// Until the owner comes to it.
    #[must_use]
    pub fn status(&self) -> Option<GroupStatus> {
        let (sender, status) = mpsc::channel();
        self.events.send(Event::Status(sender)).ok()?;
        status.recv().ok()
    }

    /// Stops the group and waits until nothing of it runs and its files are closed. Whoever waits for an answer
    /// gets an error. Not to be called from a reply.
    ///
    /// # Blocking
    /// Until writes under way have ended.
    ///
    /// # Errors
    /// The group had stopped by itself before, for this reason.
    pub fn shutdown(&self) -> Result<(), Arc<RaftError>> {
        let _ = self.events.send(Event::Shutdown);
        self.wait()
    }

    /// Waits until the group has stopped.
    ///
    /// # Blocking
    /// Until then.
    ///
    /// # Errors
    /// Why it stopped, unless by [`GroupHandle::shutdown`]. The process should exit with it: nothing is retried.
    pub fn wait(&self) -> Result<(), Arc<RaftError>> {
        let mut news = self.shared.news();
        loop {
            if let Some(cause) = &news.ended {
                return cause.clone().map_or(Ok(()), Err);
            }
            news = self.shared.changed.wait(news).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Changes the members, and waits until the change is complete: committed, and by as many voters as there then are. Returns
    /// the members. To be asked of the leader.
    ///
    /// # Blocking
    /// Until then; a leader that cannot reach a quorum gives up after an election timeout.
    ///
    /// # Errors
    /// [`MemberError`].
    pub fn change_members(&self, changes: Vec<MemberChange>) -> Result<Arc<Membership>, MemberError> {
        let (reply, answer) = mpsc::channel();
        let _ = self.events.send(Event::ChangeMembers { changes, reply });
        answer.recv().unwrap_or(Err(MemberError::Stopped))
    }

    /// Hands leadership over to `to`, or to the voter that is furthest, and waits until it is gone. Returns who was asked to take
    /// over. To be asked of the leader. Meanwhile proposals wait.
    ///
    /// # Blocking
    /// For an election timeout at most.
    ///
    /// # Errors
    /// [`MemberError`]; after [`MemberError::NotTaken`] this node leads on.
    pub fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, MemberError> {
        let (reply, answer) = mpsc::channel();
        let _ = self.events.send(Event::Transfer { to, reply });
        answer.recv().unwrap_or(Err(MemberError::Stopped))
    }

    // For the transport.

    /// A message arrived from the peer `from`, as the transport knows it. What no working peer sends is dropped,
    /// logged and counted.
    ///
    /// # Blocking
    /// Does not.
    pub fn receive(&self, from: NodeId, message: Message) {
        // A snapshot is installed by its bytes, never by a message alone.
        if message.from != from || matches!(message.body, Body::InstallSnapshot { .. }) {
            log::warn!(
                "node {from} sent a message it must not send: from {}, {:?}",
                message.from,
                message.body
            );
            return;
        }
        let _ = self.events.send(Event::Receive(message));
    }

    /// The connection to a peer broke, so that messages given to it may be lost.
    pub fn report_unreachable(&self, peer: NodeId) {
        let _ = self.events.send(Event::Unreachable(peer));
    }

    /// A peer begins to send a snapshot. Returns the offset of the first byte wanted, not 0 when a broken
    /// transfer is resumed.
    ///
    /// # Blocking
    /// For the disk.
    ///
    /// # Errors
    /// [`IncomingError`]; the sender gives up.
    pub fn begin_snapshot(&self, header: SnapshotHeader) -> Result<u64, IncomingError> {
        self.incoming.begin(header)
    }

    /// A part of the snapshot announced by `header`; `crc` is its CRC-32C. Returns the offset wanted next.
    ///
    /// # Blocking
    /// For the disk.
    ///
    /// # Errors
    /// [`IncomingError`]; after [`IncomingError::Damaged`] the chunk can be sent again, else the sender gives up.
    pub fn snapshot_chunk(
        &self,
        header: &SnapshotHeader,
        offset: u64,
        bytes: &[u8],
        crc: u32,
    ) -> Result<u64, IncomingError> {
        self.incoming.chunk(header, offset, bytes, crc)
    }

    /// The snapshot announced by `header` is complete: it is verified, made durable, and installed.
    ///
    /// # Blocking
    /// For the disk.
    ///
    /// # Errors
    /// [`IncomingError`]; the sender gives up, and the leader starts again.
    pub fn finish_snapshot(&self, header: &SnapshotHeader) -> Result<(), IncomingError> {
        let message = self.incoming.finish(header)?;
        self.events.send(Event::Receive(message)).map_err(|_| IncomingError::Stopped)
    }

    /// Bytes of proposals that wait for an answer.
    #[must_use]
    pub fn proposal_bytes(&self) -> usize {
        self.shared.proposal_bytes()
    }
}
