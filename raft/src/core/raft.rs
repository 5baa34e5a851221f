//! The state machine of one member: elections, replication, commitment, reads.
//!
//! Kept whole on purpose: every rule of the algorithm is a line in one of these functions. What a call decides is
//! collected in fields and handed out by [`Raft::ready`]; appends to followers are composed only there, so
//! that everything proposed between two calls travels in one message.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::config::{Config, ConfigError};
use super::invariants::Checkpoint;
use super::log::{Log, LogError};
use super::message::{Body, Message, POSITION_MAX};
use super::progress::{Progress, ProgressState};
use super::quorum::{Majority, VoteResult};
use super::ready::{ReadState, Ready, Role, SoftState};
use super::types::{Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term};
use crate::planted::{Mistake, planted};

/// Only the leader can do this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the leader")]
pub struct NotLeader {
    /// The leader, as far as this node knows.
    pub leader: Option<NodeId>,
}

/// Where proposals were put in the log; they may still be lost if leadership is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proposed {
    /// The first proposal's index; the others follow.
    pub first_index: Index,
    /// The term under which they stand.
    pub term: Term,
}

/// A message was refused; the state is as if it had been lost. The sender, or the transport, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The message is for somebody else.
    #[error("message for node {to} arrived at node {id}")]
    Misdelivered {
        /// Whom it is for.
        to: NodeId,
        /// This node.
        id: NodeId,
    },
    /// The sender is not a member.
    #[error("message from node {from}, which is not a peer")]
    NotAPeer {
        /// The sender.
        from: NodeId,
    },
    /// No well-behaved member sends this.
    #[error("malformed message from node {from}: {reason}")]
    Malformed {
        /// The sender.
        from: NodeId,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two nodes claim to lead one term.
    #[error("nodes {leader} and {from} both lead term {term}")]
    TwoLeaders {
        /// The term.
        term: Term,
        /// The leader known so far.
        leader: NodeId,
        /// The other one.
        from: NodeId,
    },
    /// The leader believes that this node has entries that it does not have: its disk has lost them. The leader will
    /// notice and send them again; but until it has, a vote of this node may elect a leader that lacks them, too.
    #[error(
        "node {from} counts on entry {commit}, but the log ends at {last_index}; has this node lost data?"
    )]
    LostEntries {
        /// The sender.
        from: NodeId,
        /// What the leader says this node has.
        commit: Index,
        /// What it has.
        last_index: Index,
    },
    /// The follower acknowledges entries that were never sent.
    #[error("node {from} acknowledges entry {matched}, but the log ends at {last_index}")]
    AckBeyondLog {
        /// The sender.
        from: NodeId,
        /// What it acknowledges.
        matched: Index,
        /// The leader's last entry.
        last_index: Index,
    },
}

/// What the leader knows of a peer, for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// The last index known to be equal and durable there.
    pub matched: Index,
    /// The next index to be sent.
    pub next: Index,
    /// How it is treated.
    pub state: ProgressState,
    /// Whether it was heard from within the last election timeout.
    pub recent_active: bool,
}

/// A node's state, for display.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// Its part.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// The leader it knows of.
    pub leader: Option<NodeId>,
    /// Committed up to here.
    pub committed: Index,
    /// Applied up to here.
    pub applied: Index,
    /// Durable up to here.
    pub persisted: Index,
    /// The first entry in memory.
    pub first_index: Index,
    /// The last entry.
    pub last_index: Index,
    /// The latest snapshot.
    pub snapshot: SnapshotMeta,
    /// Bytes of commands in memory.
    pub log_bytes: u64,
    /// The peers; empty unless this node leads.
    pub peers: Vec<PeerStatus>,
}

/// A read that waits for its round of heartbeats.
#[derive(Debug)]
struct PendingRead {
    context: u64,
    index: Index,
    round: u64,
}

/// One member of a Raft group. See the module documentation of `core` for the contract.
#[derive(Debug)]
pub struct Raft {
    config: Config,
    quorum: Majority,
    pub(super) term: Term,
    pub(super) vote: Option<NodeId>,
    pub(super) role: Role,
    pub(super) leader: Option<NodeId>,
    pub(super) log: Log,
    /// The peers as the leader sees them; empty unless this node leads.
    pub(super) peers: BTreeMap<NodeId, Progress>,
    /// Answers to the (pre-)campaign under way.
    votes: BTreeMap<NodeId, bool>,
    /// Ticks since the election timer was reset, or, on a leader, since the last quorum check.
    election_elapsed: u32,
    /// The randomised timeout; drawn at the first tick after a reset.
    election_timeout: Option<u32>,
    heartbeat_elapsed: u32,
    heartbeat_due: bool,
    /// Reads that came before the leader had committed an entry of its own term.
    early_reads: Vec<u64>,
    /// Reads that wait for their round, in the order of rounds.
    reads: VecDeque<PendingRead>,
    /// The last ReadIndex round whose heartbeats were sent.
    read_round: u64,
    /// Term and vote as they are on disk.
    durable: (Term, Option<NodeId>),
    /// The hard state that was last handed out.
    written: HardState,
    /// The soft state that was last handed out.
    told: SoftState,
    messages: Vec<Message>,
    messages_after_persist: Vec<Message>,
    read_states: Vec<ReadState>,
    checkpoint: Checkpoint,
}

/// Why a [`Raft`] cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NewError {
    /// The settings are at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What was recovered from disk is at fault.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Raft {
    /// A member as it was when it stopped: `entries` follow `snapshot`, or begin before its end, and all of it is
    /// durable. A new member passes defaults. `snapshot` counts as applied.
    ///
    /// # Errors
    /// `config` breaks a rule, or the log has a hole.
    pub fn new(
        config: Config,
        hard_state: HardState,
        snapshot: SnapshotMeta,
        entries: Vec<Entry>,
    ) -> Result<Raft, NewError> {
        config.validate()?;
        let log = Log::new(snapshot, entries, hard_state)?;
        let told = SoftState { role: Role::Follower, leader: None, term: hard_state.term };
        let mut raft = Raft {
            quorum: Majority::new(config.voters.clone()),
            config,
            term: hard_state.term,
            vote: hard_state.vote,
            role: Role::Follower,
            leader: None,
            log,
            peers: BTreeMap::new(),
            votes: BTreeMap::new(),
            election_elapsed: 0,
            election_timeout: None,
            heartbeat_elapsed: 0,
            heartbeat_due: false,
            early_reads: Vec::new(),
            reads: VecDeque::new(),
            read_round: 0,
            durable: (hard_state.term, hard_state.vote),
            written: hard_state,
            told,
            messages: Vec::new(),
            messages_after_persist: Vec::new(),
            read_states: Vec::new(),
            checkpoint: Checkpoint::default(),
        };
        raft.check_invariants();
        Ok(raft)
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// Role, leader and term.
    pub fn soft_state(&self) -> SoftState {
        SoftState { role: self.role, leader: self.leader, term: self.term }
    }

    /// The commit index.
    pub fn committed(&self) -> Index {
        self.log.committed
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> SnapshotMeta {
        self.log.snapshot
    }

    /// Where to cut the log after a snapshot at `snapshot`, so that at most `entries_max` entries with at most
    /// `bytes_max` bytes stay from before its end.
    pub fn keep_from(&self, snapshot: Index, entries_max: u64, bytes_max: u64) -> Index {
        self.log.start_of_last(snapshot, entries_max, bytes_max)
    }

    /// The term of the entry at `index`; `None` when it is compacted or not there yet.
    pub fn entry_term(&self, index: Index) -> Option<Term> {
        self.log.term(index)
    }

    /// Everything worth displaying.
    pub fn status(&self) -> Status {
        let peer = |(&id, peer): (&NodeId, &Progress)| PeerStatus {
            id,
            matched: peer.matched,
            next: peer.next,
            state: peer.state,
            recent_active: peer.recent_active,
        };
        Status {
            id: self.config.id,
            role: self.role,
            term: self.term,
            vote: self.vote,
            leader: self.leader,
            committed: self.log.committed,
            applied: self.log.applied,
            persisted: self.log.persisted,
            first_index: self.log.first_index(),
            last_index: self.log.last_index(),
            snapshot: self.log.snapshot,
            log_bytes: self.log.bytes,
            peers: self.peers.iter().map(peer).collect(),
        }
    }

    // Inputs.

    /// One tick passed. `random` must be evenly distributed and independent between nodes: when the election
    /// timer starts anew, the next tick's number decides how long it runs.
    pub fn tick(&mut self, random: u64) {
        self.election_elapsed += 1;
        if self.role == Role::Leader {
            self.tick_leader();
        } else {
            let least = self.config.election_ticks;
            let draw = || least + (random % u64::from(least)) as u32;
            if self.election_elapsed >= *self.election_timeout.get_or_insert_with(draw) {
                self.pre_campaign();
            }
        }
        self.check_invariants();
    }

    /// A message arrived from a peer.
    ///
    /// # Errors
    /// The message is not one that a working peer sends here; it had no effect except that a higher term in it may
    /// have been adopted. For [`StepError::LostEntries`] it is this node that does not work. The caller logs and counts it.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        let (from, id) = (message.from, self.config.id);
        if message.to != id {
            return Err(StepError::Misdelivered { to: message.to, id });
        }
        if from == id || !self.quorum.contains(from) {
            return Err(StepError::NotAPeer { from });
        }
        message.check_shape().map_err(|reason| StepError::Malformed { from, reason })?;
        let result = match self.enter_term(&message) {
            true => self.step_in_term(message),
            false => Ok(()),
        };
        self.check_invariants();
        result
    }

    /// Appends commands to the leader's log, one entry each. They are replicated from the next
    /// [`ready`](Self::ready) on.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn propose(&mut self, commands: Vec<Bytes>) -> Result<Proposed, NotLeader> {
        if self.role != Role::Leader {
            return Err(NotLeader { leader: self.leader });
        }
        let first_index = self.log.last_index() + 1;
        for command in commands {
            self.log.push(self.term, EntryKind::Command, command);
        }
        self.check_invariants();
        Ok(Proposed { first_index, term: self.term })
    }

    /// Starts a linearizable read (dissertation, section 6.4). When a quorum has confirmed that this node still
    /// led after this call, a [`ReadState`] with `context` comes out of [`ready`](Self::ready). If leadership is
    /// lost first, it never comes: the owner drops its reads when the soft state changes. All reads
    /// that start between two calls of `ready` share one round of heartbeats.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn read_index(&mut self, context: u64) -> Result<(), NotLeader> {
        if self.role != Role::Leader {
            return Err(NotLeader { leader: self.leader });
        }
        // A fresh leader's commit index may lag behind what its predecessor acknowledged (section 6.4, step 1).
        if self.log.matches(self.log.committed, self.term) || planted(Mistake::EarlyRead) {
            let round = self.read_round + u64::from(!planted(Mistake::ReadJoinsOldRound));
            self.reads.push_back(PendingRead { context, index: self.log.committed, round });
        } else {
            self.early_reads.push(context);
        }
        Ok(())
    }

    /// Writes up to number `seq` are durable; see [`Ready::seq`].
    pub fn persisted(&mut self, seq: u64) {
        if let Some(hard_state) = self.log.end_writes(seq) {
            self.durable = (hard_state.term, hard_state.vote);
        }
        match self.role {
            Role::Candidate => self.count_votes(),
            Role::Leader => self.maybe_commit(),
            Role::Follower | Role::PreCandidate => {}
        }
        self.check_invariants();
    }

    /// Entries up to `index` were applied. An index that was never handed out is a bug of the caller, and ignored.
    pub fn applied(&mut self, index: Index) {
        self.log.set_applied(index);
        self.check_invariants();
    }

    /// A snapshot of the state up to `snapshot.index`, which must be applied, is durable. Entries before
    /// `keep_from` leave memory; those from there on stay, for peers that lag.
    pub fn compacted(&mut self, snapshot: SnapshotMeta, keep_from: Index) {
        self.log.compact(snapshot, keep_from);
        self.check_invariants();
    }

    /// A message to `peer` was dropped before it left this machine.
    pub fn report_unreachable(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.unreachable();
        }
    }

    /// The transfer of a snapshot to `peer` ended: `ok` if the peer has all of it on its disk. The owner
    /// reports every transfer, else the peer gets nothing more.
    pub fn report_snapshot(&mut self, peer: NodeId, ok: bool) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.snapshot_ended(ok);
        }
    }

    /// What is to be done now; `None` when there is nothing.
    #[must_use]
    pub fn ready(&mut self) -> Option<Ready> {
        if self.role == Role::Leader {
            self.compose_heartbeats();
            for peer in self.peer_ids() {
                self.compose_appends(peer);
            }
        }
        let (snapshot, entries) = self.log.take_unwritten();
        let hard_state = HardState { term: self.term, vote: self.vote, commit: self.log.committed };
        // The commit index alone is not worth a write: it is a hint that rides along with the next one.
        let votes = !planted(Mistake::VotesNotPersisted)
            && (hard_state.term, hard_state.vote) != (self.written.term, self.written.vote);
        let must_write = !entries.is_empty() || snapshot.is_some() || votes;
        let mut ready = Ready {
            hard_state: (must_write && hard_state != self.written).then_some(hard_state),
            snapshot,
            entries,
            messages: std::mem::take(&mut self.messages),
            messages_after_persist: std::mem::take(&mut self.messages_after_persist),
            read_states: std::mem::take(&mut self.read_states),
            ..Ready::default()
        };
        if must_write {
            self.written = hard_state;
        } else if !self.log.is_writing() {
            ready.messages.append(&mut ready.messages_after_persist);
        }
        if must_write || !ready.messages_after_persist.is_empty() {
            ready.seq = self.log.begin_write(hard_state);
        }
        ready.committed = self.log.take_committed();
        let soft_state = self.soft_state();
        if soft_state != self.told {
            self.told = soft_state;
            ready.soft_state = Some(soft_state);
        }
        self.check_invariants();
        (!ready.is_empty()).then_some(ready)
    }

    // Terms and elections.

    /// Compares the message's term with ours and adopts a higher one. Returns whether the message is to be handled.
    fn enter_term(&mut self, message: &Message) -> bool {
        let from = message.from;
        if message.term > self.term {
            match message.body {
                // A node that hears a leader does not help to depose it: else one that cannot hear the
                // leader would disturb all others again and again (dissertation, section 4.2.3).
                Body::PreVote { .. } | Body::Vote { .. } if self.hears_leader() => return false,
                // These two carry a term nobody has entered yet.
                Body::PreVote { .. } | Body::PreVoteReply { granted: true } => {}
                _ => {
                    let leader = message.body.is_from_leader().then_some(from);
                    self.become_follower(message.term, leader);
                }
            }
            return true;
        }
        if message.term < self.term {
            match message.body {
                // An old leader, or somebody who has missed elections. It must learn of our term even though we
                // might not be able to win an election: it would ignore our pre-votes while it leads.
                Body::Append { .. } | Body::Heartbeat { .. } | Body::InstallSnapshot { .. } => {
                    let matched = 0;
                    self.send(from, Body::AppendAccepted { matched });
                }
                Body::PreVote { .. } => self.send(from, Body::PreVoteReply { granted: false }),
                Body::Vote { .. } => self.send(from, Body::VoteReply { granted: false }),
                _ => {}
            }
            return false;
        }
        true
    }

    fn step_in_term(&mut self, message: Message) -> Result<(), StepError> {
        let Message { from, term, body, .. } = message;
        if body.is_from_leader() {
            self.follow(from)?;
        }
        match body {
            Body::PreVote { last_index, last_term } => {
                let is_behind = self.log.is_behind_or_equal(last_index, last_term);
                let granted = term > self.term && (is_behind || planted(Mistake::VoteForShorterLog));
                // A grant answers for the term that was asked about, a refusal tells ours.
                let term = if granted { term } else { self.term };
                self.send_in_term(from, term, Body::PreVoteReply { granted });
            }
            Body::Vote { last_index, last_term } => {
                let free = self.vote == Some(from) || (self.vote.is_none() && self.leader.is_none());
                let free = free || planted(Mistake::VoteTwice);
                let is_behind = self.log.is_behind_or_equal(last_index, last_term);
                let granted = free && (is_behind || planted(Mistake::VoteForShorterLog));
                if granted && planted(Mistake::VoteBeforeSync) {
                    self.vote = Some(from);
                    self.reset_election_timer();
                    self.send(from, Body::VoteReply { granted });
                } else if granted {
                    self.vote = Some(from);
                    self.reset_election_timer();
                    self.send_after_persist(from, Body::VoteReply { granted });
                } else {
                    self.send(from, Body::VoteReply { granted });
                }
            }
            Body::PreVoteReply { granted } => {
                // A grant for a term other than the one asked for is of an earlier campaign.
                if self.role == Role::PreCandidate && (!granted || term == self.term + 1) {
                    self.votes.entry(from).or_insert(granted);
                    self.count_votes();
                }
            }
            Body::VoteReply { granted } => {
                if self.role == Role::Candidate {
                    self.votes.entry(from).or_insert(granted);
                    self.count_votes();
                }
            }
            Body::Append { prev_index, prev_term, entries, commit } => {
                self.handle_append(from, prev_index, prev_term, entries, commit);
            }
            Body::Heartbeat { commit, context } => {
                let last_index = self.log.last_index();
                let _ = self.log.commit_to(commit.min(last_index));
                self.send(from, Body::HeartbeatReply { context });
                if commit > last_index {
                    let (hint_index, hint_term) = (last_index, self.log.last_term());
                    self.send(from, Body::AppendRejected { rejected: commit, hint_index, hint_term });
                    return Err(StepError::LostEntries { from, commit, last_index });
                }
            }
            Body::InstallSnapshot { snapshot } => self.handle_snapshot(from, snapshot),
            Body::AppendAccepted { matched } => return self.handle_accepted(from, matched),
            Body::AppendRejected { rejected, hint_index, hint_term } => {
                self.handle_rejected(from, rejected, hint_index, hint_term);
            }
            Body::HeartbeatReply { context } => self.handle_heartbeat_reply(from, context),
        }
        Ok(())
    }

    fn hears_leader(&self) -> bool {
        self.leader.is_some() && self.election_elapsed < self.config.election_ticks
    }

    fn reset_election_timer(&mut self) {
        self.election_elapsed = 0;
        self.election_timeout = None;
    }

    fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        if term > self.term {
            self.term = term;
            self.vote = None;
        }
        self.role = Role::Follower;
        self.leader = leader;
        self.peers.clear();
        self.votes.clear();
        self.early_reads.clear();
        self.reads.clear();
        self.heartbeat_due = false;
        self.reset_election_timer();
    }

    /// `from` leads our term.
    fn follow(&mut self, from: NodeId) -> Result<(), StepError> {
        if let Some(leader) = self.leader.filter(|&leader| leader != from) {
            return Err(StepError::TwoLeaders { term: self.term, leader, from });
        }
        if self.role != Role::Follower || self.leader.is_none() {
            self.become_follower(self.term, Some(from));
        }
        self.election_elapsed = 0;
        Ok(())
    }

    fn pre_campaign(&mut self) {
        self.become_follower(self.term, None);
        if self.term + 1 >= POSITION_MAX {
            return;
        }
        self.role = Role::PreCandidate;
        self.ask_for_votes(self.term + 1, |last_index, last_term| Body::PreVote { last_index, last_term });
    }

    fn campaign(&mut self) {
        self.become_follower(self.term + 1, None);
        self.role = Role::Candidate;
        self.vote = Some(self.config.id);
        self.ask_for_votes(self.term, |last_index, last_term| Body::Vote { last_index, last_term });
    }

    fn ask_for_votes(&mut self, term: Term, question: impl Fn(Index, Term) -> Body) {
        self.votes.insert(self.config.id, true);
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for peer in self.peer_ids() {
            self.send_in_term(peer, term, question(last_index, last_term));
        }
        self.count_votes();
    }

    fn count_votes(&mut self) {
        match (self.quorum.vote_result(|id| self.votes.get(&id).copied()), self.role) {
            (VoteResult::Won, Role::PreCandidate) => self.campaign(),
            // The vote for itself must be durable, whatever the others say: else after a crash this node could
            // win the same term again and lead it with another log.
            (VoteResult::Won, _)
                if self.durable == (self.term, Some(self.config.id))
                    || planted(Mistake::OwnVoteBeforeSync)
                    || planted(Mistake::VotesNotPersisted) =>
            {
                self.become_leader();
            }
            (VoteResult::Lost, _) => self.become_follower(self.term, None),
            (VoteResult::Won | VoteResult::Pending, _) => {}
        }
    }

    fn become_leader(&mut self) {
        self.become_follower(self.term, Some(self.config.id));
        self.role = Role::Leader;
        let next = self.log.last_index() + 1;
        let Config { inflight_messages_max, inflight_bytes_max, .. } = self.config;
        for peer in self.peer_ids() {
            self.peers.insert(peer, Progress::new(next, inflight_messages_max, inflight_bytes_max));
        }
        self.heartbeat_elapsed = 0;
        self.log.push(self.term, EntryKind::Noop, Bytes::new());
    }

    fn tick_leader(&mut self) {
        if self.election_elapsed >= self.config.election_ticks {
            self.election_elapsed = 0;
            let id = self.config.id;
            let active = |voter| Some(voter == id || self.peers.get(&voter).is_some_and(|p| p.recent_active));
            if self.quorum.vote_result(active) != VoteResult::Won {
                self.become_follower(self.term, None);
                return;
            }
            for peer in self.peers.values_mut() {
                peer.recent_active = false;
            }
        }
        self.heartbeat_elapsed += 1;
        if self.heartbeat_elapsed >= self.config.heartbeat_ticks {
            self.heartbeat_due = true;
        }
    }

    // The follower's side of replication.

    fn handle_append(
        &mut self,
        from: NodeId,
        prev_index: Index,
        prev_term: Term,
        entries: Vec<Entry>,
        commit: Index,
    ) {
        let committed = self.log.committed;
        if prev_index < committed {
            // An old or repeated message, or a leader that does not know yet how much is known to be equal.
            self.send_after_persist(from, Body::AppendAccepted { matched: committed });
            return;
        }
        let skips_check = planted(Mistake::NoPreviousCheck) && prev_index <= self.log.last_index();
        if !self.log.matches(prev_index, prev_term) && !skips_check {
            let rejected = prev_index;
            let (hint_index, hint_term) =
                self.log.agree_at_most(prev_index.min(self.log.last_index()), prev_term);
            // Everything committed is equal everywhere, so the leader need not look below it.
            let (hint_index, hint_term) = match self.log.term(committed) {
                Some(term) if hint_index < committed => (committed, term),
                _ => (hint_index, hint_term),
            };
            self.send(from, Body::AppendRejected { rejected, hint_index, hint_term });
            return;
        }
        let matched = prev_index + entries.len() as u64;
        if planted(Mistake::KeepConflictingSuffix) {
            let last = self.log.last_index();
            self.log.replace_suffix(entries.into_iter().filter(|entry| entry.index > last));
        } else if let Some(first_new) = self.log.first_new(&entries) {
            // Nothing committed is replaced: all of `entries` come after `prev_index`, which does not lie below it.
            self.log.replace_suffix(entries.into_iter().skip(first_new));
        }
        // Entries after `matched` may be an old leader's: this message says nothing of them.
        let known = if planted(Mistake::CommitBeyondMatch) { self.log.last_index() } else { matched };
        let _ = self.log.commit_to(commit.min(known));
        let matched = if planted(Mistake::AckOwnLog) { self.log.last_index() } else { matched };
        if planted(Mistake::AckBeforeSync) {
            self.send(from, Body::AppendAccepted { matched });
        } else {
            self.send_after_persist(from, Body::AppendAccepted { matched });
        }
    }

    fn handle_snapshot(&mut self, from: NodeId, snapshot: SnapshotMeta) {
        if snapshot.index > self.log.committed {
            if self.log.matches(snapshot.index, snapshot.term) {
                // All of it is in the log already: no need to throw away what follows.
                let _ = self.log.commit_to(snapshot.index);
            } else {
                self.log.restore(snapshot);
            }
        }
        self.send_after_persist(from, Body::AppendAccepted { matched: self.log.committed });
    }

    // The leader's side of replication.

    fn handle_accepted(&mut self, from: NodeId, matched: Index) -> Result<(), StepError> {
        let (first_index, last_index) = (self.log.first_index(), self.log.last_index());
        let Some(peer) = self.peers.get_mut(&from) else { return Ok(()) };
        if matched > last_index {
            return Err(StepError::AckBeyondLog { from, matched, last_index });
        }
        peer.recent_active = true;
        if peer.accepted(matched, first_index) {
            self.maybe_commit();
        }
        Ok(())
    }

    fn handle_rejected(&mut self, from: NodeId, rejected: Index, hint_index: Index, hint_term: Term) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.recent_active = true;
        let (agree_max, _) = self.log.agree_at_most(hint_index, hint_term);
        // A stale refusal changes nothing, a fresh one moves `next`, and `ready` sends the next probe.
        let _ = peer.refused(rejected, agree_max);
    }

    fn handle_heartbeat_reply(&mut self, from: NodeId, context: u64) {
        let last_index = self.log.last_index();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.heard_heartbeat(last_index);
        peer.read_round = peer.read_round.max(context.min(self.read_round));
        self.confirm_reads();
    }

    fn maybe_commit(&mut self) {
        let id = self.config.id;
        let reached = self.quorum.reached(|voter| match voter == id {
            true if planted(Mistake::LeaderCountsItselfEarly) => self.log.last_index(),
            true => self.log.persisted,
            false => self.peers.get(&voter).map_or(0, |p| p.matched),
        });
        // Counting replicas commits only entries of the own term, the older ones with them (Raft paper, figure 8).
        let is_own = self.log.matches(reached, self.term) || planted(Mistake::CommitByCount);
        if is_own && self.log.commit_to(reached) {
            for context in std::mem::take(&mut self.early_reads) {
                self.reads.push_back(PendingRead { context, index: reached, round: self.read_round + 1 });
            }
        }
    }

    fn confirm_reads(&mut self) {
        let id = self.config.id;
        let confirmed = self.quorum.reached(|voter| match voter == id {
            true => self.read_round,
            false if planted(Mistake::ReadWithoutQuorum) => self.read_round,
            false => self.peers.get(&voter).map_or(0, |p| p.read_round),
        });
        while let Some(read) = self.reads.pop_front_if(|read| read.round <= confirmed) {
            self.read_states.push(ReadState { context: read.context, index: read.index });
        }
    }

    // Outgoing messages.

    fn compose_heartbeats(&mut self) {
        if self.reads.back().is_some_and(|read| read.round > self.read_round) {
            self.read_round += 1;
            self.heartbeat_due = true;
            self.confirm_reads(); // Alone in its group, a leader needs nobody's answer.
        }
        if !std::mem::take(&mut self.heartbeat_due) {
            return;
        }
        self.heartbeat_elapsed = 0;
        for id in self.peer_ids() {
            let matched = self.peers.get(&id).map_or(0, |p| p.matched);
            let unmatched = planted(Mistake::HeartbeatCommitsUnmatched);
            let commit = if unmatched { self.log.committed } else { self.log.committed.min(matched) };
            self.send(id, Body::Heartbeat { commit, context: self.read_round });
        }
    }

    /// Sends `id` whatever it lacks and the window allows.
    fn compose_appends(&mut self, id: NodeId) {
        loop {
            let Some(peer) = self.peers.get_mut(&id) else { return };
            let (prev_index, commit) = (peer.next - 1, self.log.committed);
            let wanted = peer.state == ProgressState::Probe
                || peer.resend
                || prev_index < self.log.last_index()
                || peer.commit_sent < commit;
            if peer.is_paused() || !wanted {
                return;
            }
            let Some(prev_term) = self.log.term(prev_index) else {
                // The entry before `next` is compacted. A peer that does not answer will not take a snapshot.
                if peer.recent_active {
                    let snapshot = self.log.snapshot;
                    peer.sent_snapshot(snapshot.index);
                    self.send(id, Body::InstallSnapshot { snapshot });
                }
                return;
            };
            let (entries, bytes) = self.log.slice(peer.next, self.config.append_bytes_max);
            peer.sent_append(prev_index + entries.len() as u64, bytes);
            peer.commit_sent = commit;
            self.send(id, Body::Append { prev_index, prev_term, entries, commit });
        }
    }

    fn send(&mut self, to: NodeId, body: Body) {
        self.send_in_term(to, self.term, body);
    }

    fn send_in_term(&mut self, to: NodeId, term: Term, body: Body) {
        self.messages.push(Message { from: self.config.id, to, term, body });
    }

    fn send_after_persist(&mut self, to: NodeId, body: Body) {
        let message = Message { from: self.config.id, to, term: self.term, body };
        self.messages_after_persist.push(message);
    }

    /// The other voters, in ascending order.
    fn peer_ids(&self) -> Vec<NodeId> {
        self.quorum.voters().iter().copied().filter(|&id| id != self.config.id).collect()
    }

    fn check_invariants(&mut self) {
        if cfg!(debug_assertions) {
            self.checkpoint = self.checkpoint.check(self);
        }
    }
}
