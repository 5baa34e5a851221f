//! The owner of the core: the only activity that decides anything. Never touches the disk, never waits for a peer.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use bytes::Bytes;

use super::GroupConfig;
use super::applier::ApplyJob;
use super::handle::{Event, GroupStatus, MemberReply, Shared};
use super::log_writer::LogJob;
use super::reply::{MemberError, ProposeError, ProposeReply, ReadError, ReadReply};
use super::snapshots::SnapshotJob;
use super::traits::{Sent, StateMachine, Transport};
use crate::core::types::{Entry, Index, NodeId, SnapshotMeta, Term};
use crate::core::{Body, MemberChange, Membership, Message, NotLeader, Raft, Ready, Role, SoftState};
use crate::error::RaftError;
use crate::planted::{Mistake, planted};

/// Events taken from the mailbox before the clock is looked at and the outcome is carried out: a flood cannot
/// delay a heartbeat by more than that.
const EVENTS_MAX: usize = 4096;
/// What an entry takes of the log besides its command.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// A command of this node's clients that is in the log.
pub(super) struct PendingProposal<M: StateMachine> {
    pub index: Index,
    pub term: Term,
    pub reply: ProposeReply<M::Output>,
}

/// A read of this node's clients.
pub(super) struct PendingRead<M: StateMachine> {
    pub query: M::Query,
    pub reply: ReadReply<M::Output>,
}

/// The owner's ends of the channels.
pub(super) struct Channels<M: StateMachine> {
    pub mailbox: Receiver<Event<M>>,
    pub log_jobs: Sender<LogJob>,
    pub apply_jobs: Sender<ApplyJob<M>>,
    pub snapshot_jobs: Sender<SnapshotJob>,
}

pub(super) struct Owner<M: StateMachine> {
    core: Raft,
    config: GroupConfig,
    channels: Channels<M>,
    transport: Arc<dyn Transport>,
    shared: Arc<Shared>,
    /// State of the generator of election timeouts (splitmix64).
    random: u64,
    /// Proposals of the current batch, not yet in the log.
    commands: Vec<Bytes>,
    replies: Vec<ProposeReply<M::Output>>,
    /// Proposals in the log, in its order.
    pending: VecDeque<PendingProposal<M>>,
    /// Reads that wait for the next round.
    reads: Vec<PendingRead<M>>,
    /// The round under way. Only one is at a time, so that under load many reads share it.
    read_round: Option<(u64, Vec<PendingRead<M>>)>,
    read_rounds: u64,
    /// Who waits for a change of members to be complete, and the term in which this node started it.
    change: Option<(Term, MemberReply<Arc<Membership>>)>,
    /// Who waits for leadership to be gone to another node.
    transfers: Vec<(NodeId, MemberReply<NodeId>)>,
    /// Committed since the last snapshot.
    bytes_since_snapshot: u64,
    entries_since_snapshot: u64,
    snapshot_running: bool,
    /// The snapshot after which the log on disk begins.
    log_snapshot: Index,
    messages_refused: u64,
    soft_state: SoftState,
}

impl<M: StateMachine> Owner<M> {
    pub fn new(
        core: Raft,
        config: GroupConfig,
        channels: Channels<M>,
        transport: Arc<dyn Transport>,
        shared: Arc<Shared>,
        seed: u64,
        log_snapshot: Index,
    ) -> Owner<M> {
        Owner {
            soft_state: core.soft_state(),
            core,
            config,
            channels,
            transport,
            shared,
            random: seed,
            commands: Vec::new(),
            replies: Vec::new(),
            pending: VecDeque::new(),
            reads: Vec::new(),
            read_round: None,
            read_rounds: 0,
            change: None,
            transfers: Vec::new(),
            bytes_since_snapshot: 0,
            entries_since_snapshot: 0,
            snapshot_running: false,
            log_snapshot,
            messages_refused: 0,
        }
    }

    /// Runs until shutdown or a failure. When it returns, every client that waits has been or is about to be
    /// answered, and the other activities run dry.
    pub fn run(mut self) -> Result<(), RaftError> {
        let result = self.serve();
        if result.is_err() {
            self.abdicate();
        }
        result
    }

    fn serve(&mut self) -> Result<(), RaftError> {
        let mut next_tick = Instant::now() + self.config.tick;
        self.carry_out_all()?; // What the log is known to have committed is applied at once.
        loop {
            let wait = next_tick.saturating_duration_since(Instant::now());
            let mut event = match self.channels.mailbox.recv_timeout(wait) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let mut events = 0;
            while let Some(now) = event {
                match now {
                    Event::Shutdown => return Ok(()),
                    Event::Died(error) => return Err(error),
                    other => self.take(other)?,
                }
                events += 1;
                event = if events < EVENTS_MAX { self.channels.mailbox.try_recv().ok() } else { None };
            }
            let now = Instant::now();
            if now >= next_tick {
                let random = self.random();
                self.core.tick(random);
                // Time that this process did not run is not counted: a node that was paused looks at the messages that
                // piled up before it takes its leader for dead.
                next_tick = (next_tick + self.config.tick).max(now);
            }
            self.core.applied(self.shared.applied.load(Ordering::Acquire));
            self.propose();
            self.carry_out_all()?;
        }
    }

    fn take(&mut self, event: Event<M>) -> Result<(), RaftError> {
        match event {
            Event::Propose { command, reply } => {
                self.commands.push(command);
                self.replies.push(reply);
            }
            Event::Read { query, reply } => self.reads.push(PendingRead { query, reply }),
            Event::Receive(message) => {
                if let Err(error) = self.core.step(message) {
                    self.messages_refused += 1;
                    log::warn!("node {}: refused a message: {error}", self.core.id());
                }
            }
            Event::ChangeMembers { changes, reply } => self.change_members(&changes, reply),
            Event::Transfer { to, reply } => match self.core.transfer_leadership(to) {
                Ok(to) => {
                    log::info!("node {}: hands leadership over to node {to}", self.core.id());
                    self.transfers.push((to, reply));
                }
                Err(error) => {
                    let _ = reply.send(Err(error.into()));
                }
            },
            Event::Unreachable(peer) => self.core.report_unreachable(peer),
            Event::Persisted(seq) => self.core.persisted(seq),
            Event::SnapshotTaken(snapshot) => self.snapshot_taken(snapshot)?,
            Event::SnapshotSent { to, ok } => self.core.report_snapshot(to, ok),
            Event::Status(reply) => {
                let _ = reply.send(self.status());
            }
            Event::Died(error) => return Err(error),
            Event::Shutdown => {}
        }
        Ok(())
    }

    fn change_members(&mut self, changes: &[MemberChange], reply: MemberReply<Arc<Membership>>) {
        match self.core.change_members(changes) {
            Ok(index) => {
                log::info!("node {}: changes members with entry {index}: {changes:?}", self.core.id());
                self.change = Some((self.core.soft_state().term, reply));
            }
            Err(error) => {
                let _ = reply.send(Err(error.into()));
            }
        }
    }

    /// Answers those whose change of members is complete, or whose transfer has ended.
    fn end_changes(&mut self) {
        let SoftState { role, term, .. } = self.core.soft_state();
        if let Some((started_in, reply)) = self.change.take() {
            let members = self.core.membership();
            let leads = role == Role::Leader || !members.contains(self.core.id());
            if self.core.is_membership_settled() && leads && term == started_in {
                let _ = reply.send(Ok(Arc::clone(members)));
            } else if role == Role::Leader && term == started_in {
                self.change = Some((started_in, reply));
            } else {
                let _ = reply.send(Err(MemberError::Indefinite));
            }
        }
        if !self.core.is_transferring() {
            for (to, reply) in self.transfers.drain(..) {
                let taken = role != Role::Leader;
                let _ = reply.send(if taken { Ok(to) } else { Err(MemberError::NotTaken { to }) });
            }
        }
    }

    /// This node cannot go on: whoever is furthest is told to lead, instead of finding out by an election timeout.
    fn abdicate(&mut self) {
        self.core.abdicate();
        let messages = self.core.ready().map_or_else(Vec::new, |ready| ready.messages);
        let farewell = messages.into_iter().filter(|message| matches!(message.body, Body::TimeoutNow));
        send_messages(&*self.transport, farewell.collect(), |_| ());
    }

    /// Everything proposed in this batch becomes one append.
    fn propose(&mut self) {
        // A leader that hands over takes no more; if nobody takes over, it goes on with what has waited.
        if self.commands.is_empty() || self.core.is_transferring() {
            return;
        }
        let replies = mem::take(&mut self.replies);
        match self.core.propose(mem::take(&mut self.commands)) {
            Ok(proposed) => {
                for (index, mut reply) in (proposed.first_index..).zip(replies) {
                    reply.entered_log();
                    self.pending.push_back(PendingProposal { index, term: proposed.term, reply });
                }
            }
            Err(NotLeader { leader }) => {
                for reply in replies {
                    reply.answer(Err(ProposeError::NotLeader { leader }));
                }
            }
        }
    }

    /// Starts a round for all reads that wait, unless one is under way.
    fn start_reads(&mut self) {
        if self.reads.is_empty() || self.read_round.is_some() {
            return;
        }
        let reads = mem::take(&mut self.reads);
        self.read_rounds += 1;
        match self.core.read_index(self.read_rounds) {
            Ok(()) => self.read_round = Some((self.read_rounds, reads)),
            Err(NotLeader { leader }) => refuse_reads(reads, leader),
        }
    }

    fn carry_out_all(&mut self) -> Result<(), RaftError> {
        loop {
            self.start_reads();
            match self.core.ready() {
                Some(ready) => self.carry_out(ready)?,
                None => {
                    self.end_changes();
                    return Ok(());
                }
            }
        }
    }

    fn carry_out(&mut self, ready: Ready) -> Result<(), RaftError> {
        let Ready {
            seq,
            hard_state,
            snapshot,
            membership,
            evicted,
            entries,
            messages,
            messages_after_persist,
            committed,
            read_states,
            soft_state,
        } = ready;
        if let Some(observer) = &self.config.observer {
            if snapshot.is_some() || !entries.is_empty() {
                observer.writes(self.core.id(), snapshot, &entries);
            }
            observer.commits(self.core.id(), self.core.committed());
        }
        if let Some(members) = membership {
            log::info!("node {}: the members are {members}", self.core.id());
            self.transport.members_changed(&members);
        }
        // The peers' disks work while ours does.
        self.send(messages)?;
        if seq != 0 {
            self.log_snapshot = snapshot.map_or(self.log_snapshot, |s| s.index);
            let messages = messages_after_persist;
            self.write(LogJob::Write { seq, hard_state, snapshot, entries, messages })?;
        }
        if let Some(snapshot) = snapshot {
            log::info!("node {}: installs the snapshot at {}", self.core.id(), snapshot.index);
            self.bytes_since_snapshot = 0;
            self.entries_since_snapshot = 0;
            self.apply(ApplyJob::Restore(snapshot))?;
        }
        if let Some(last) = committed.last() {
            let own = self.pending.partition_point(|p| p.index <= last.index);
            let proposals = self.pending.drain(..own).collect();
            self.count_committed(&committed);
            self.apply(ApplyJob::Apply { entries: committed, proposals })?;
            self.maybe_snapshot()?;
        }
        for state in read_states {
            if let Some((_, reads)) = self.read_round.take_if(|(context, _)| *context == state.context) {
                self.apply(ApplyJob::Read { index: state.index, reads })?;
            }
        }
        if let Some(soft_state) = soft_state {
            self.enter(soft_state);
        }
        if evicted {
            // A leader that has removed itself knows that this is done.
            self.end_changes();
            return Err(RaftError::Evicted);
        }
        Ok(())
    }

    fn send(&mut self, messages: Vec<Message>) -> Result<(), RaftError> {
        let mut plain = Vec::with_capacity(messages.len());
        for message in messages {
            match message.body {
                Body::InstallSnapshot { snapshot, .. } => {
                    let Message { from, to, term, .. } = message;
                    log::info!("node {from}: sends the snapshot at {} to node {to}", snapshot.index);
                    let job = SnapshotJob::Send { from, to, term, snapshot };
                    self.channels.snapshot_jobs.send(job).map_err(|_| self.death("snapshot keeper"))?;
                }
                _ => plain.push(message),
            }
        }
        let core = &mut self.core;
        send_messages(&*self.transport, plain, |peer| core.report_unreachable(peer));
        Ok(())
    }

    /// The node's part has changed: whoever waits for this node as a leader is told.
    fn enter(&mut self, soft_state: SoftState) {
        let SoftState { role, leader, term } = soft_state;
        if (self.soft_state.leader, self.soft_state.term) != (leader, term) {
            log::info!("node {}: {role:?} in term {term}, leader {leader:?}", self.core.id());
        }
        if let Some(observer) = &self.config.observer {
            observer.part(self.core.id(), soft_state);
        }
        self.soft_state = soft_state;
        self.shared.publish(soft_state);
        if role == Role::Leader {
            return;
        }
        // What is committed will be applied here and then answered; of the rest nobody knows.
        let committed = self.core.committed();
        let kept = self.pending.partition_point(|p| p.index <= committed);
        for proposal in self.pending.drain(kept..) {
            let refused = planted(Mistake::UncertainReportedAsRefused);
            let error = if refused { ProposeError::NotLeader { leader } } else { ProposeError::Indefinite };
            proposal.reply.answer(Err(error));
        }
        let round = self.read_round.take().map(|(_, reads)| reads);
        refuse_reads(mem::take(&mut self.reads).into_iter().chain(round.into_iter().flatten()), leader);
    }

    // Snapshots of our own.

    fn count_committed(&mut self, entries: &[Entry]) {
        self.entries_since_snapshot += entries.len() as u64;
        self.bytes_since_snapshot +=
            entries.iter().map(|e| e.data.len() as u64 + ENTRY_OVERHEAD_BYTES).sum::<u64>();
    }

    fn maybe_snapshot(&mut self) -> Result<(), RaftError> {
        let due = self.bytes_since_snapshot >= self.config.snapshot_log_bytes
            || self.entries_since_snapshot >= self.config.snapshot_log_entries;
        if !due || self.snapshot_running {
            return Ok(());
        }
        self.snapshot_running = true;
        self.bytes_since_snapshot = 0;
        self.entries_since_snapshot = 0;
        self.apply(ApplyJob::Snapshot)
    }

    fn snapshot_taken(&mut self, snapshot: Option<SnapshotMeta>) -> Result<(), RaftError> {
        self.snapshot_running = false;
        let Some(snapshot) = snapshot else { return Ok(()) };
        self.core.applied(self.shared.applied.load(Ordering::Acquire));
        let GroupConfig { log_keep_entries, log_keep_bytes, log_keep_lagging_bytes, .. } = self.config;
        let keep_from =
            self.core.keep_from(snapshot.index, log_keep_entries, log_keep_bytes, log_keep_lagging_bytes);
        self.core.compacted(snapshot, keep_from);
        // One from the leader may have overtaken it.
        if self.core.snapshot() == snapshot && snapshot.index > self.log_snapshot {
            self.log_snapshot = snapshot.index;
            self.write(LogJob::Compact { snapshot, keep_from })?;
        }
        Ok(())
    }

    // The other activities.

    fn write(&self, job: LogJob) -> Result<(), RaftError> {
        self.channels.log_jobs.send(job).map_err(|_| self.death("log writer"))
    }

    fn apply(&self, job: ApplyJob<M>) -> Result<(), RaftError> {
        self.channels.apply_jobs.send(job).map_err(|_| self.death("applier"))
    }

    /// Why an activity hung up. It reports that right after, whatever ended it.
    fn death(&self, activity: &'static str) -> RaftError {
        while let Ok(event) = self.channels.mailbox.recv() {
            if let Event::Died(error) = event {
                return error;
            }
        }
        RaftError::ActivityDied { activity }
    }

    fn status(&self) -> GroupStatus {
        GroupStatus {
            raft: self.core.status(),
            log_disk_bytes: self.shared.log_disk_bytes.load(Ordering::Relaxed),
            proposal_bytes: self.shared.proposal_bytes(),
            snapshot_running: self.snapshot_running,
            messages_refused: self.messages_refused,
        }
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn refuse_reads<M: StateMachine>(reads: impl IntoIterator<Item = PendingRead<M>>, leader: Option<NodeId>) {
    for read in reads {
        read.reply.answer(Err(ReadError::NotLeader { leader }));
    }
}

/// Gives each peer its messages in one go, and names the peers for which some were dropped.
pub(super) fn send_messages(
    transport: &dyn Transport,
    messages: Vec<Message>,
    mut dropped: impl FnMut(NodeId),
) {
    let mut by_peer: BTreeMap<NodeId, Vec<Message>> = BTreeMap::new();
    for message in messages {
        by_peer.entry(message.to).or_default().push(message);
    }
    for (to, messages) in by_peer {
        if transport.send(to, messages) == Sent::Dropped {
            dropped(to);
        }
    }
}
