//! A network of cores in memory: every message, write and crash happens when the test says so, and the safety
//! properties of the Raft paper (figure 3) are checked throughout.
#![allow(dead_code)] // Each test program uses another part.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use squall_raft::core::types::{Entry, EntryKind, HardState, Index, NodeId, SnapshotMeta, Term};
use squall_raft::core::{Body, Config, MemberChange, Membership, Message, Raft, Ready, Role, StepError};

/// A small seeded generator (splitmix64), so that every run can be repeated.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// A position in `weights`, each as likely as its weight.
    pub fn weighted(&mut self, weights: &[usize]) -> usize {
        let mut at = self.below(weights.iter().sum());
        weights.iter().position(|&weight| at.checked_sub(weight).map(|rest| at = rest).is_none()).unwrap_or(0)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

/// What survives a crash.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub hard_state: HardState,
    pub snapshot: SnapshotMeta,
    pub entries: Vec<Entry>,
    /// 0 in a network whose members never change.
    pub incarnation: u64,
}

impl Disk {
    fn write(&mut self, write: &Ready) {
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(snapshot) = write.snapshot {
            self.snapshot = snapshot;
            self.entries.clear();
        }
        if let Some(first) = write.entries.first() {
            self.entries.retain(|e| e.index < first.index);
            self.entries.extend(write.entries.iter().cloned());
        }
    }
}

pub struct Node {
    /// `None` while crashed.
    pub raft: Option<Raft>,
    pub disk: Disk,
    /// Handed to the disk, not yet durable.
    pub writes: VecDeque<Ready>,
    /// The state machine: how far, and a digest of everything applied.
    pub state: (Index, u64),
    /// Reads under way: context to the commit index that the read must see.
    pub reads: BTreeMap<u64, Index>,
    pub reads_done: u64,
    /// It has been told that it does not belong to the group, and has stopped.
    pub evicted: bool,
}

impl Node {
    fn new(disk: Disk) -> Node {
        Node {
            raft: None,
            disk,
            writes: VecDeque::new(),
            state: (0, 0),
            reads: BTreeMap::new(),
            reads_done: 0,
            evicted: false,
        }
    }
}

pub struct Network {
    pub nodes: BTreeMap<NodeId, Node>,
    pub messages: Vec<Message>,
    /// Links that lose everything, as (from, to).
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Nothing that this node appends arrives.
    pub hold: Option<NodeId>,
    /// Members lose their disks.
    pub disks_lost: bool,
    pub rng: Rng,
    tune: fn(&mut Config),
    /// The members before the first entry.
    founders: Membership,
    next_incarnation: u64,
    next_read: u64,
    /// The highest commit index that anybody has ever known.
    commit_known: Index,
    /// Every committed entry, as applied by the first node that did.
    pub committed: BTreeMap<Index, Entry>,
    /// The digest of the state after each committed entry.
    digests: BTreeMap<Index, u64>,
    /// Who led each term.
    leaders: BTreeMap<Term, NodeId>,
    /// Every entry ever created: index and term identify its content.
    created: BTreeMap<(Index, Term), Bytes>,
}

fn digest(state: u64, entry: &Entry) -> u64 {
    let mut rng = Rng(state ^ entry.index ^ entry.term.rotate_left(32));
    entry.data.iter().fold(rng.next(), |sum, &byte| Rng(sum ^ u64::from(byte)).next())
}

impl Network {
    /// A group of `size` voters, which is not meant to change.
    pub fn new(size: u64, seed: u64, tune: fn(&mut Config)) -> Network {
        let mut network = Network::empty(Membership::of_voters(1..=size), seed, tune);
        for id in 1..=size {
            network.nodes.insert(id, Node::new(Disk::default()));
        }
        for id in 1..=size {
            network.restart(id);
        }
        network
    }

    /// `size` nodes, the first `founders` of which found a group as the driver does: with a committed first entry.
    pub fn founded(size: u64, founders: u64, seed: u64, tune: fn(&mut Config)) -> Network {
        let mut network = Network::empty(Membership::default(), seed, tune);
        let data = Membership::of_voters(1..=founders).encode();
        let entry = Entry { index: 1, term: 1, kind: EntryKind::Members, data };
        network.committed.insert(1, entry.clone());
        network.digests.insert(1, digest(0, &entry));
        for id in 1..=size {
            let mut disk = network.blank_disk();
            if id <= founders {
                disk.hard_state = HardState { term: 1, vote: None, commit: 1 };
                disk.entries.push(entry.clone());
            }
            network.nodes.insert(id, Node::new(disk));
            network.restart(id);
        }
        network
    }

    fn empty(founders: Membership, seed: u64, tune: fn(&mut Config)) -> Network {
        Network {
            nodes: BTreeMap::new(),
            messages: Vec::new(),
            cut: BTreeSet::new(),
            hold: None,
            disks_lost: false,
            rng: Rng(seed),
            tune,
            founders,
            next_incarnation: 1000,
            next_read: 0,
            commit_known: 0,
            committed: BTreeMap::new(),
            digests: BTreeMap::from([(0, 0)]),
            leaders: BTreeMap::new(),
            created: BTreeMap::new(),
        }
    }

    fn blank_disk(&mut self) -> Disk {
        self.next_incarnation += 1;
        Disk { incarnation: self.next_incarnation, ..Disk::default() }
    }

    /// A node that is down loses its disk, and gets a new one.
    pub fn wipe(&mut self, id: NodeId) {
        assert!(!self.is_up(id));
        let disk = self.blank_disk();
        self.node_mut(id).disk = disk;
    }

    /// The configuration that is committed at `index`.
    pub fn members_at(&self, index: Index) -> Membership {
        let entries = self.committed.range(..=index).rev().map(|(_, entry)| entry);
        let latest = entries.into_iter().find(|entry| entry.kind == EntryKind::Members);
        latest.map_or(self.founders.clone(), |entry| Membership::decode(&entry.data).expect("committed"))
    }

    /// The latest configuration that anybody has applied.
    pub fn members(&self) -> Membership {
        self.members_at(Index::MAX)
    }

    /// Whether `id` is a member, or will be if an entry is committed that somebody has created.
    pub fn may_be_member(&self, id: NodeId) -> bool {
        let committed = self.committed.keys().next_back().copied().unwrap_or(0);
        let later = self.created.iter().filter(|((index, _), _)| *index > committed);
        let members = later.filter_map(|(_, data)| Membership::decode(data));
        self.members().contains(id) || members.into_iter().any(|members| members.contains(id))
    }

    /// Whether the node took it.
    pub fn change_members(&mut self, id: NodeId, changes: &[MemberChange]) -> bool {
        let Some(raft) = self.node_mut(id).raft.as_mut() else { return false };
        let taken = raft.change_members(changes).is_ok();
        self.drain(id);
        taken
    }

    /// Whether the node has begun to.
    pub fn transfer(&mut self, id: NodeId, to: Option<NodeId>) -> bool {
        let Some(raft) = self.node_mut(id).raft.as_mut() else { return false };
        let taken = raft.transfer_leadership(to).is_ok();
        self.drain(id);
        taken
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("the test names an existing node")
    }

    pub fn raft(&mut self, id: NodeId) -> &mut Raft {
        self.node_mut(id).raft.as_mut().expect("the test names a running node")
    }

    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes[&id].raft.is_some()
    }

    /// Starts a node on what its disk holds. Its state machine starts at the snapshot.
    pub fn restart(&mut self, id: NodeId) {
        let disk = self.nodes[&id].disk.clone();
        let mut config = Config::new(id);
        config.incarnation = disk.incarnation;
        (self.tune)(&mut config);
        let members = self.members_at(disk.snapshot.index);
        let state = (disk.snapshot.index, self.digests[&disk.snapshot.index]);
        let raft = Raft::new(config, disk.hard_state, disk.snapshot, members, disk.entries)
            .expect("the disk is sound");
        let node = self.node_mut(id);
        node.raft = Some(raft);
        node.evicted = false;
        node.state = state;
        self.drain(id);
    }

    /// Stops a node; of its pending writes the first `keep` reach the disk, but nobody is told.
    pub fn crash(&mut self, id: NodeId, keep: usize) {
        let node = self.node_mut(id);
        node.raft = None;
        node.reads.clear();
        for write in node.writes.drain(..).take(keep) {
            node.disk.write(&write);
        }
    }

    /// Carries out everything the core asks for, except that writes wait for [`Network::sync`].
    pub fn drain(&mut self, id: NodeId) {
        loop {
            let Some(raft) = self.node_mut(id).raft.as_mut() else { return };
            let commit = raft.committed();
            let Some(ready) = raft.ready() else { break };
            self.commit_known = self.commit_known.max(commit);
            if ready.soft_state.is_some_and(|soft| soft.role == Role::Leader) {
                self.check_new_leader(id);
            }
            self.carry_out(id, ready);
        }
    }

    fn carry_out(&mut self, id: NodeId, mut ready: Ready) {
        for entry in &ready.entries {
            let data = self.created.entry((entry.index, entry.term)).or_insert_with(|| entry.data.clone());
            assert_eq!(*data, entry.data, "two entries with index {} and term {}", entry.index, entry.term);
        }
        self.messages.append(&mut ready.messages);
        if let Some(snapshot) = ready.snapshot {
            assert_eq!(self.committed[&snapshot.index].term, snapshot.term, "snapshot of another history");
            self.node_mut(id).state = (snapshot.index, self.digests[&snapshot.index]);
            self.raft(id).applied(snapshot.index);
        }
        for entry in std::mem::take(&mut ready.committed) {
            self.apply(id, entry);
        }
        for read in std::mem::take(&mut ready.read_states) {
            let node = self.node_mut(id);
            let at_least = node.reads.remove(&read.context).expect("a read that was asked for");
            assert!(read.index >= at_least, "stale read: sees {}, {at_least} was committed", read.index);
            node.reads_done += 1;
        }
        let evicted = ready.evicted;
        if ready.seq != 0 {
            self.node_mut(id).writes.push_back(ready);
        }
        if evicted {
            self.evict(id);
        }
    }

    /// A node that was told to go has been removed, or its disk is not the member's.
    fn evict(&mut self, id: NodeId) {
        let incarnation = self.nodes[&id].disk.incarnation;
        // A leader may know that this is committed before anybody has applied it.
        let strange = self.created.iter().any(|(&(index, _), data)| {
            let members = Membership::decode(data).filter(|_| index <= self.commit_known);
            members.is_some_and(|members| !members.admits(id, incarnation))
        });
        assert!(strange, "node {id} was told to go without a reason: {:#?}", self.summary());
        self.crash(id, usize::MAX);
        self.node_mut(id).evicted = true;
    }

    /// State-machine safety: no two nodes apply different entries at one index.
    fn apply(&mut self, id: NodeId, entry: Entry) {
        let index = entry.index;
        let (applied, state) = self.nodes[&id].state;
        assert_eq!(index, applied + 1, "node {id} skips");
        let known = self.committed.entry(index).or_insert_with(|| entry.clone());
        assert_eq!(*known, entry, "nodes applied different entries");
        let state = digest(state, &entry);
        assert_eq!(*self.digests.entry(index).or_insert(state), state, "states differ at {index}");
        self.node_mut(id).state = (index, state);
        self.raft(id).applied(index);
    }

    /// Election safety and leader completeness.
    fn check_new_leader(&mut self, id: NodeId) {
        let status = self.raft(id).status();
        let leader = *self.leaders.entry(status.term).or_insert(id);
        assert_eq!(leader, id, "two leaders in term {}", status.term);
        for entry in self.committed.values().filter(|e| e.index >= status.first_index) {
            let here = self.nodes[&id].raft.as_ref().and_then(|raft| raft.entry_term(entry.index));
            assert_eq!(here, Some(entry.term), "leader {id} lacks committed entry {}", entry.index);
        }
    }

    /// Log matching: where two logs have the same term at an index, they have the same terms before it.
    pub fn check_logs(&self) {
        let running: Vec<&Raft> = self.nodes.values().filter_map(|n| n.raft.as_ref()).collect();
        for (at, a) in running.iter().enumerate() {
            for b in &running[at + 1..] {
                let first = a.status().first_index.max(b.status().first_index);
                let last = a.status().last_index.min(b.status().last_index);
                let mut equal = false;
                for index in (first..=last).rev() {
                    let same = a.entry_term(index) == b.entry_term(index);
                    assert!(same || !equal, "nodes {} and {} differ at {index}", a.id(), b.id());
                    equal |= same;
                }
            }
        }
    }

    pub fn tick(&mut self, id: NodeId) {
        let random = self.rng.next();
        if let Some(raft) = self.node_mut(id).raft.as_mut() {
            raft.tick(random);
            self.drain(id);
        }
    }

    /// Ends the first `count` pending writes of a node.
    pub fn sync(&mut self, id: NodeId, count: usize) {
        for _ in 0..count {
            let node = self.node_mut(id);
            let Some(write) = node.writes.pop_front() else { return };
            node.disk.write(&write);
            self.messages.extend(write.messages_after_persist);
            self.raft(id).persisted(write.seq);
            self.drain(id);
        }
    }

    /// Hands over one message, unless its link is cut or its receiver is down.
    pub fn deliver(&mut self, message: Message) {
        let Message { from, to, .. } = message;
        let snapshot = matches!(message.body, Body::InstallSnapshot { .. });
        let held = self.hold == Some(from) && matches!(message.body, Body::Append { .. });
        let arrives = !held && !self.cut.contains(&(from, to)) && self.is_up(to);
        if arrives {
            let step = self.raft(to).step(message);
            // Only a node that has lost its disk hears of entries that it should have.
            let lost_disk = self.disks_lost && matches!(step, Err(StepError::LostEntries { .. }));
            assert!(lost_disk || step.is_ok(), "well-behaved nodes send nothing that is refused: {step:?}");
            self.drain(to);
        }
        if snapshot && self.is_up(from) {
            self.raft(from).report_snapshot(to, arrives);
            self.drain(from);
        }
    }

    /// Delivers and syncs until nothing is under way.
    pub fn settle(&mut self) {
        loop {
            for id in self.ids() {
                self.sync(id, usize::MAX);
            }
            if self.messages.is_empty() {
                return;
            }
            for message in std::mem::take(&mut self.messages) {
                self.deliver(message);
            }
        }
    }

    /// One tick of every node, then everything that follows from it.
    pub fn round(&mut self) {
        for id in self.ids() {
            self.tick(id);
        }
        self.settle();
    }

    pub fn isolate(&mut self, id: NodeId) {
        for other in self.ids() {
            self.cut.insert((id, other));
            self.cut.insert((other, id));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// The leader of the highest term, if it runs.
    pub fn leader(&self) -> Option<NodeId> {
        self.nodes
            .iter()
            .filter_map(|(&id, node)| Some((node.raft.as_ref()?.soft_state(), id)))
            .filter(|(soft, _)| soft.role == Role::Leader)
            .max_by_key(|(soft, _)| soft.term)
            .map(|(_, id)| id)
    }

    pub fn elect(&mut self) -> NodeId {
        for _ in 0..200 {
            if let Some(leader) = self.leader() {
                return leader;
            }
            self.round();
        }
        panic!("no leader in 200 rounds");
    }

    /// Makes everybody else forget the leader they hear, so that `id` can be elected, and has it elected.
    pub fn elect_instead(&mut self, id: NodeId) {
        for other in self.ids() {
            for _ in 0..10 {
                if other != id && self.is_up(other) && self.raft(other).soft_state().role != Role::Leader {
                    self.tick(other);
                }
            }
        }
        self.messages.clear();
        self.elect_node(id);
    }

    /// Ticks only `id` until it campaigns, and everything that follows, until it leads.
    pub fn elect_node(&mut self, id: NodeId) {
        for _ in 0..100 {
            if self.raft(id).soft_state().role == Role::Leader {
                return;
            }
            self.tick(id);
            self.settle();
        }
        panic!("node {id} does not win");
    }

    /// Whether the node took it.
    pub fn propose(&mut self, id: NodeId, data: &str) -> bool {
        let data = Bytes::copy_from_slice(data.as_bytes());
        let Some(raft) = self.node_mut(id).raft.as_mut() else { return false };
        let taken = raft.propose(vec![data]).is_ok();
        self.drain(id);
        taken
    }

    /// Starts a read that must see everything committed by now.
    pub fn read(&mut self, id: NodeId) -> bool {
        self.next_read += 1;
        let context = self.next_read;
        let at_least = self.committed.last_key_value().map_or(0, |(&index, _)| index);
        let node = self.node_mut(id);
        let Some(raft) = node.raft.as_mut() else { return false };
        let taken = raft.read_index(context).is_ok();
        if taken {
            node.reads.insert(context, at_least);
            self.drain(id);
        }
        taken
    }

    /// Snapshots a node's applied state and drops what precedes, keeping `keep` entries.
    pub fn compact(&mut self, id: NodeId, keep: u64) {
        let (index, _) = self.nodes[&id].state;
        // A snapshot that was just installed may still be on its way to the disk.
        if !self.is_up(id) || index == 0 || self.raft(id).status().persisted < index {
            return;
        }
        let snapshot = SnapshotMeta { index, term: self.committed[&index].term };
        self.raft(id).compacted(snapshot, (index + 1).saturating_sub(keep));
        let disk = &mut self.node_mut(id).disk;
        disk.snapshot = snapshot;
        disk.entries.retain(|e| e.index > index);
        self.drain(id);
    }

    /// The commands that a node has in its log on disk.
    pub fn commands(&self, id: NodeId) -> Vec<String> {
        let entries = self.nodes[&id].disk.entries.iter();
        let commands = entries.filter(|e| e.kind == EntryKind::Command);
        commands.map(|e| String::from_utf8_lossy(&e.data).into_owned()).collect()
    }

    /// A line on each node, for failures.
    pub fn summary(&self) -> Vec<String> {
        let mut lines =
            vec![format!("committed: {} at {:?}", self.members(), self.committed.keys().next_back())];
        for (id, node) in &self.nodes {
            let incarnation = node.disk.incarnation;
            lines.push(match node.raft.as_ref().map(Raft::status) {
                Some(s) => format!(
                    "{id} ({incarnation}): {:?} in term {}, leader {:?}, log {}..={} committed {} applied {}, {} at {} {:?}, {:?}",
                    s.role, s.term, s.leader, s.first_index, s.last_index, s.committed, s.applied, s.membership,
                    s.membership_index,
                    s.membership.iter().map(|(id, member, _)| (id, member.incarnation)).collect::<Vec<_>>(),
                    s.peers
                ),
                None => format!("{id} ({incarnation}): down, evicted {}", node.evicted),
            });
        }
        lines
    }

    /// Every member runs and has applied the same.
    pub fn agrees(&self) -> bool {
        let members = self.members();
        let nodes = self.nodes.iter().filter(|(id, _)| members.contains(**id));
        let mut states = nodes.map(|(_, n)| (n.raft.is_some(), n.state));
        let first = states.next();
        first.is_some_and(|(up, _)| up) && states.all(|state| Some(state) == first)
    }
}
