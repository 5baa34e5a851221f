//! The state machine of one member: elections, replication, commitment, reads.
//!
//! Kept whole on purpose: every rule of the algorithm is a line in one of these functions. What a call decides is
//! collected in fields and handed out by [`Raft::ready`]; appends to followers are composed only there, so
//! that everything proposed between two calls travels in one message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::config::{Config, ConfigError};
use super::invariants::Checkpoint;
use super::log::{Log, LogError};
use super::membership::{MemberChange, Membership, MembershipError};
use super::message::{Body, Message, POSITION_MAX};
use super::progress::{Progress, ProgressState};
use super::quorum::{Quorum, VoteResult};
use super::ready::{ReadState, Ready, Role, SoftState};
use super::types::{Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term};
use crate::planted::{Mistake, planted};

/// How far a learner may lag behind the log to be promoted, in entries: what a follower under load lags, too. One that has
/// to catch up first would make the quorum wait for it.
const PROMOTION_LAG_MAX: u64 = 4096;

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

/// Members cannot be changed, or not now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Only the leader can.
    #[error("not the leader")]
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The leader is new, or about to hand over: it has to commit an entry of its own term first.
    #[error("the leader has not committed an entry of its term yet")]
    NotReady,
    /// One change at a time.
    #[error("another change of members is under way")]
    UnderWay,
    /// A learner gets the log before it gets a vote.
    #[error("node {id} has to catch up first: it has entries up to {matched} of {last_index}")]
    NotCaughtUp {
        /// The learner.
        id: NodeId,
        /// What it has.
        matched: Index,
        /// What there is.
        last_index: Index,
    },
    /// The change makes no sense.
    #[error(transparent)]
    Membership(#[from] MembershipError),
}

/// Leadership cannot be transferred.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can.
    #[error("not the leader")]
    NotLeader {
        /// The leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// A transfer to another node is under way.
    #[error("a transfer to node {to} is under way")]
    UnderWay {
        /// The node.
        to: NodeId,
    },
    /// It cannot lead.
    #[error("node {to} is not another voter of the group")]
    NotAVoter {
        /// The node.
        to: NodeId,
    },
    /// Nobody is there to take over.
    #[error("no other voter has been heard from lately")]
    Nobody,
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
    /// The message claims to be from this very node, or from nobody.
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
    /// Which disk it has.
    pub incarnation: u64,
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
    /// The configuration in force.
    pub membership: Arc<Membership>,
    /// Where it stands in the log, or the snapshot that has it.
    pub membership_index: Index,
    /// To whom leadership is being transferred.
    pub transfer: Option<NodeId>,
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

/// A transfer of leadership under way.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    to: NodeId,
    /// Ticks since it began.
    elapsed: u32,
    /// The target has the whole log and was told to take over.
    told: bool,
}

/// One member of a Raft group. See the module documentation of `core` for the contract.
#[derive(Debug)]
pub struct Raft {
    config: Config,
    /// The configuration in force, and where it stands: a copy of the log's latest.
    pub(super) membership: Arc<Membership>,
    membership_index: Index,
    quorum: Quorum,
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
    transfer: Option<Transfer>,
    /// On a leader: an entry that was handed to its disk and is not durable yet, and for how many ticks that has been so.
    slow_write: Option<(Index, u32)>,
    /// On a leader: who was a member and is none in the configuration in force; told when that is committed.
    departed: Vec<NodeId>,
    /// The configuration in force was not yet told to the owner.
    membership_news: bool,
    /// This node has learned that it does not belong to the group.
    evicted: bool,
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
    /// durable. `membership` is the configuration at `snapshot`. A new member passes defaults: without a configuration it waits
    /// for a leader to tell it one. `snapshot` counts as applied.
    ///
    /// # Errors
    /// `config` breaks a rule, or the log has a hole.
    pub fn new(
        config: Config,
        hard_state: HardState,
        snapshot: SnapshotMeta,
        membership: Membership,
        entries: Vec<Entry>,
    ) -> Result<Raft, NewError> {
        config.validate()?;
        let log = Log::new(snapshot, membership, entries, hard_state)?;
        let (membership_index, membership) = log.membership();
        let membership = Arc::clone(membership);
        let told = SoftState { role: Role::Follower, leader: None, term: hard_state.term };
        let mut raft = Raft {
            quorum: membership.quorum(),
            membership,
            membership_index,
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
            transfer: None,
            slow_write: None,
            departed: Vec::new(),
            membership_news: true,
            evicted: false,
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

    /// The configuration in force: the latest in the log.
    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Whether the configuration in force is committed, and no change of it is under way.
    pub fn is_membership_settled(&self) -> bool {
        self.membership_index <= self.log.committed && !self.membership.is_joint()
    }

    /// Whether this node is a leader that prepares to hand over: it takes no proposals meanwhile.
    pub fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    /// Where to cut the log after a snapshot at `snapshot`, so that at most `entries_max` entries with at most
    /// `bytes_max` bytes stay from before its end; but on a leader at most `lagging_bytes_max` for a peer that
    /// follows and still lacks them: it needs the entries for a moment, and the snapshot would take it longer.
    pub fn keep_from(
        &self,
        snapshot: Index,
        entries_max: u64,
        bytes_max: u64,
        lagging_bytes_max: u64,
    ) -> Index {
        let start = self.log.start_of_last(snapshot, entries_max, bytes_max);
        let follows = |peer: &&Progress| peer.recent_active && peer.state == ProgressState::Replicate;
        let needed = self.peers.values().filter(follows).map(|peer| peer.matched + 1).min();
        match needed.filter(|needed| *needed < start) {
            Some(needed) => {
                needed.max(self.log.start_of_last(snapshot, u64::MAX, lagging_bytes_max)).min(start)
            }
            None => start,
        }
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
            incarnation: self.config.incarnation,
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
            membership: Arc::clone(&self.membership),
            membership_index: self.membership_index,
            transfer: self.transfer.map(|transfer| transfer.to),
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
            let timeout = *self.election_timeout.get_or_insert_with(draw);
            // Who does not vote does not lead. But one whose removal is not committed may have to: nobody else may have a log
            // that is long enough (dissertation, section 4.2.2).
            if self.election_elapsed >= timeout && self.log.may_vote(self.config.id) {
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
        if from == id || from == 0 {
            return Err(StepError::NotAPeer { from });
        }
        message.check_shape().map_err(|reason| StepError::Malformed { from, reason })?;
        let result = if let Body::Refused { members_index } = message.body {
            self.handle_refused(members_index);
            Ok(())
        } else if self.is_strange(&message) {
            Ok(())
        } else {
            self.note_incarnation(&message);
            match self.enter_term(&message) {
                true => self.step_in_term(message),
                false => Ok(()),
            }
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
        if let Some(transfer) = self.transfer {
            // Else the target would never have everything.
            return Err(NotLeader { leader: Some(transfer.to) });
        }
        let first_index = self.log.last_index() + 1;
        for command in commands {
            self.log.push(self.term, EntryKind::Command, command);
        }
        self.check_invariants();
        Ok(Proposed { first_index, term: self.term })
    }

    /// Starts to change the members. The change is done when [`is_membership_settled`](Self::is_membership_settled) says so
    /// after this node, leading all the time, was the one that started it; if it loses leadership, the next leader may
    /// finish the change or undo it. Returns the index of its first entry.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed.
    pub fn change_members(&mut self, changes: &[MemberChange]) -> Result<Index, ChangeError> {
        if self.role != Role::Leader {
            return Err(ChangeError::NotLeader { leader: self.leader });
        }
        // Without an entry of its own term a leader may not know of a change that its predecessor has committed
        // (the bug of single-server changes that was published on raft-dev in 2015).
        if !self.has_committed_in_term() || self.transfer.is_some() {
            return Err(ChangeError::NotReady);
        }
        if !self.is_membership_settled() {
            return Err(ChangeError::UnderWay);
        }
        let next = self.membership.changed(changes)?;
        let last_index = self.log.last_index();
        for change in changes {
            let MemberChange::Promote { id } = *change else { continue };
            let peer = self.peers.get(&id);
            let matched = peer.map_or(0, |peer| peer.matched);
            let ready = peer.is_some_and(|peer| peer.recent_active && peer.state == ProgressState::Replicate);
            if !ready || matched + PROMOTION_LAG_MAX < last_index {
                return Err(ChangeError::NotCaughtUp { id, matched, last_index });
            }
        }
        let index = self.append_membership(&next);
        self.check_invariants();
        Ok(index)
    }

    /// Starts to hand leadership over: to `to`, or to the voter that is furthest. It gets the rest of the log and is told to
    /// campaign at once; until it leads, or an election timeout has passed, this node takes no proposals. Returns whom it is
    /// handed to.
    ///
    /// # Errors
    /// [`TransferError`]; nothing has changed.
    pub fn transfer_leadership(&mut self, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        if self.role != Role::Leader {
            return Err(TransferError::NotLeader { leader: self.leader });
        }
        if let Some(Transfer { to: before, .. }) = self.transfer {
            return if to.is_none_or(|to| to == before) {
                Ok(before)
            } else {
                Err(TransferError::UnderWay { to: before })
            };
        }
        let to = match to {
            Some(to) if to != self.config.id && self.membership.stays_voter(to) => to,
            Some(to) => return Err(TransferError::NotAVoter { to }),
            None => self.successor().ok_or(TransferError::Nobody)?,
        };
        self.transfer = Some(Transfer { to, elapsed: 0, told: false });
        self.maybe_hand_over();
        self.check_invariants();
        Ok(to)
    }

    /// Gives leadership up at once, because this node cannot go on: whoever is furthest is told to campaign, whether or not it has
    /// everything. To be called when the disk has failed; what [`ready`](Self::ready) then has to send is still sent.
    pub fn abdicate(&mut self) {
        if self.role == Role::Leader {
            self.hand_over_and_step_down();
        }
        self.check_invariants();
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
        if self.has_committed_in_term() || planted(Mistake::EarlyRead) {
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
        ready.membership = std::mem::take(&mut self.membership_news).then(|| Arc::clone(&self.membership));
        ready.evicted = std::mem::take(&mut self.evicted);
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
                Body::PreVote { .. } | Body::Vote { transfer: false, .. } if self.hears_leader() => {
                    return false;
                }
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
            Body::Vote { last_index, last_term, .. } => {
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
            Body::InstallSnapshot { snapshot, members } => self.handle_snapshot(from, snapshot, members),
            Body::TimeoutNow => {
                if self.log.may_vote(self.config.id) {
                    self.campaign(true);
                }
            }
            Body::Refused { .. } => {} // Handled before its term was looked at.
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
        self.transfer = None;
        self.slow_write = None;
        self.departed.clear();
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

    /// `transfer`: on behalf of the leader.
    fn campaign(&mut self, transfer: bool) {
        if self.term + 1 >= POSITION_MAX {
            return;
        }
        self.become_follower(self.term + 1, None);
        self.role = Role::Candidate;
        self.vote = Some(self.config.id);
        let question = |last_index, last_term| Body::Vote { last_index, last_term, transfer };
        self.ask_for_votes(self.term, question);
    }

    fn ask_for_votes(&mut self, term: Term, question: impl Fn(Index, Term) -> Body) {
        self.votes.insert(self.config.id, true);
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        for peer in self.peer_ids() {
            if self.quorum.contains(peer) {
                self.send_in_term(peer, term, question(last_index, last_term));
            }
        }
        self.count_votes();
    }

    fn count_votes(&mut self) {
        match (self.quorum.vote_result(|id| self.votes.get(&id).copied()), self.role) {
            (VoteResult::Won, Role::PreCandidate) => self.campaign(false),
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
        self.track_peers();
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
        if let Some(transfer) = &mut self.transfer {
            transfer.elapsed += 1;
            // Whoever was told may still come to lead, by an ordinary election; but proposals wait no longer.
            if transfer.elapsed >= self.config.election_ticks {
                self.transfer = None;
            }
        }
        self.watch_disk();
        self.heartbeat_elapsed += 1;
        if self.heartbeat_elapsed >= self.config.heartbeat_ticks {
            self.heartbeat_due = true;
        }
    }

    /// A leader whose disk takes longer for an entry than an election, while somebody else has had it on disk for as
    /// long, is in the way: every entry it applies waits for its own disk.
    fn watch_disk(&mut self) {
        self.slow_write = match self.slow_write {
            Some((index, ticks)) if self.log.persisted < index && ticks < self.config.election_ticks => {
                Some((index, ticks + 1))
            }
            Some((index, _)) if self.log.persisted < index => {
                let better =
                    self.successor().filter(|id| self.peers.get(id).is_some_and(|p| p.matched >= index));
                if let (Some(to), None) = (better, self.transfer) {
                    self.transfer = Some(Transfer { to, elapsed: 0, told: false });
                    self.maybe_hand_over();
                }
                None
            }
            _ => (self.log.persisted < self.log.last_index()).then(|| (self.log.last_index(), 0)),
        };
    }

    // Members.

    fn has_committed_in_term(&self) -> bool {
        self.log.matches(self.log.committed, self.term)
    }

    /// Puts a configuration in the log, where it is in force at once.
    fn append_membership(&mut self, membership: &Membership) -> Index {
        let index = self.log.push(self.term, EntryKind::Members, membership.encode());
        self.adopt_membership();
        index
    }

    /// The log has another latest configuration, perhaps.
    fn adopt_membership(&mut self) {
        let (index, membership) = self.log.membership();
        if index == self.membership_index && Arc::ptr_eq(membership, &self.membership) {
            return;
        }
        self.membership = Arc::clone(membership);
        self.membership_index = index;
        self.quorum = self.membership.quorum();
        self.membership_news = true;
        if self.role == Role::Leader {
            self.track_peers();
            let stays = self.transfer.is_some_and(|transfer| self.membership.stays_voter(transfer.to));
            self.transfer = self.transfer.filter(|_| stays);
            // A smaller quorum may have been reached already.
            self.confirm_reads();
        }
    }

    /// A leader keeps track of every other member, and of nobody else.
    fn track_peers(&mut self) {
        let next = self.log.last_index() + 1;
        let Config { id, inflight_messages_max, inflight_bytes_max, .. } = self.config;
        let gone = self.peers.keys().filter(|peer| !self.membership.contains(**peer));
        self.departed.extend(gone);
        self.peers.retain(|&peer, _| self.membership.contains(peer));
        for peer in self.membership.ids().filter(|&peer| peer != id) {
            let unknown = || Progress::new(next, inflight_messages_max, inflight_bytes_max);
            self.peers.entry(peer).or_insert_with(unknown);
        }
    }

    /// Whether a message is of somebody who is not, or no longer, the member of that id, and must have no effect.
    ///
    /// Answers are what is counted, so they must be the member's own. Requests are judged by what they say: the
    /// sender may belong to a configuration that this node has not heard of. Unless this node leads, and knows the latest.
    fn is_strange(&mut self, message: &Message) -> bool {
        if self.membership.admits(message.from, message.incarnation) {
            // The disk that was heard first is the one that will be bound; what another one says must not be added to that.
            let heard = self.peers.get(&message.from).map_or(0, |peer| peer.incarnation);
            let is_other = heard != 0 && message.incarnation != 0 && message.incarnation != heard;
            return is_other && message.body.is_reply();
        }
        let leads = self.role == Role::Leader && self.membership_index <= self.log.committed;
        let asks = matches!(message.body, Body::PreVote { .. } | Body::Vote { .. });
        if leads && (asks || message.body.is_reply()) {
            let members_index = self.membership_index;
            self.send(message.from, Body::Refused { members_index });
        }
        message.body.is_reply() || (leads && asks)
    }

    /// A leader has told this node that it is a stranger, which may be news from before it was added.
    fn handle_refused(&mut self, members_index: Index) {
        let rightful = self.membership.admits(self.config.id, self.config.incarnation);
        self.evicted |=
            members_index > self.membership_index || (members_index == self.membership_index && !rightful);
    }

    /// Remembers who spoke, to be bound to the member's id.
    fn note_incarnation(&mut self, message: &Message) {
        if let Some(peer) = self.peers.get_mut(&message.from).filter(|_| message.body.is_reply()) {
            peer.incarnation = message.incarnation;
        }
    }

    /// The next step of a configuration, if it is the leader's turn: a committed joint one is left, and members that were heard
    /// from for the first time are bound to their disks.
    fn maybe_move_membership_on(&mut self) {
        if self.membership_index > self.log.committed || !self.has_committed_in_term() {
            return;
        }
        if self.membership.is_joint() {
            let next = self.membership.left();
            self.append_membership(&next);
            return;
        }
        let heard = |id: NodeId| match id == self.config.id {
            true => self.config.incarnation,
            false => self.peers.get(&id).map_or(0, |peer| peer.incarnation),
        };
        let unbound = self.membership.iter().filter(|(_, member, _)| member.incarnation == 0);
        let bound: Vec<(NodeId, u64)> =
            unbound.map(|(id, ..)| (id, heard(id))).filter(|(_, incarnation)| *incarnation != 0).collect();
        if !bound.is_empty() {
            let next = self.membership.bound(&bound);
            self.append_membership(&next);
        }
    }

    // Handing over.

    /// The voter that is furthest, of those that were heard from lately.
    fn successor(&self) -> Option<NodeId> {
        let stays = self.peers.iter().filter(|(id, _)| self.membership.stays_voter(**id));
        // A new leader has had no time to hear from anybody.
        let active = stays.filter(|(_, peer)| peer.recent_active || peer.matched > 0);
        active.max_by_key(|(_, peer)| (peer.recent_active, peer.matched)).map(|(id, _)| *id)
    }

    /// Tells the target of a transfer to take over, once it has everything.
    fn maybe_hand_over(&mut self) {
        let Some(transfer) = self.transfer.filter(|transfer| !transfer.told) else { return };
        let matched = self.peers.get(&transfer.to).map_or(0, |peer| peer.matched);
        if matched == self.log.last_index() {
            self.send(transfer.to, Body::TimeoutNow);
            self.transfer = Some(Transfer { told: true, ..transfer });
        }
    }

    /// Leads no more; whoever is furthest is told, whether or not it has everything.
    fn hand_over_and_step_down(&mut self) {
        if let Some(to) = self.successor() {
            self.send(to, Body::TimeoutNow);
        }
        self.become_follower(self.term, None);
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
            self.adopt_membership();
        } else if let Some(first_new) = self.log.first_new(&entries) {
            // Nothing committed is replaced: all of `entries` come after `prev_index`, which does not lie below it.
            self.log.replace_suffix(entries.into_iter().skip(first_new));
            self.adopt_membership();
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

    fn handle_snapshot(&mut self, from: NodeId, snapshot: SnapshotMeta, members: Membership) {
        if snapshot.index > self.log.committed {
            if self.log.matches(snapshot.index, snapshot.term) {
                // All of it is in the log already: no need to throw away what follows.
                let _ = self.log.commit_to(snapshot.index);
            } else {
                self.log.restore(snapshot, members);
                self.adopt_membership();
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
            self.maybe_hand_over();
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
            self.tell_departed();
        }
        if self.role == Role::Leader {
            self.maybe_move_membership_on();
        }
    }

    /// Once a configuration is committed, those that it has no place for are told, this node among them: a leader that was
    /// removed manages the group until then, and no longer (dissertation, section 4.2.2).
    ///
    /// A follower never draws this conclusion from its own log: one that was removed and added again reads there of its
    /// removal, and has only not read on.
    fn tell_departed(&mut self) {
        let members_index = self.membership_index;
        if members_index > self.log.committed {
            return;
        }
        for peer in std::mem::take(&mut self.departed) {
            // It may be lost. Who has a vote asks for one when it hears no leader, and is told again.
            self.send(peer, Body::Refused { members_index });
        }
        if !self.membership.admits(self.config.id, self.config.incarnation) {
            self.evicted = true;
            self.hand_over_and_step_down();
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
                    let members = self.log.membership_at(snapshot.index).as_ref().clone();
                    self.send(id, Body::InstallSnapshot { snapshot, members });
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
        let Config { id: from, incarnation, .. } = self.config;
        self.messages.push(Message { from, to, incarnation, term, body });
    }

    fn send_after_persist(&mut self, to: NodeId, body: Body) {
        let Config { id: from, incarnation, .. } = self.config;
        self.messages_after_persist.push(Message { from, to, incarnation, term: self.term, body });
    }

    /// The other members, in ascending order.
    fn peer_ids(&self) -> Vec<NodeId> {
        self.membership.ids().filter(|&id| id != self.config.id).collect()
    }

    fn check_invariants(&mut self) {
        if cfg!(debug_assertions) {
            self.checkpoint = self.checkpoint.check(self);
        }
    }
}
