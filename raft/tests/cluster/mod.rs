//! A cluster in one process: real logs and snapshots in temporary directories, links that a test can cut, disks that
//! it can stop or break.
#![allow(dead_code)] // Each test program uses another part.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use squall_raft::RaftError;
use squall_raft::core::types::{Entry, HardState, Index, NodeId, SnapshotMeta, Term};
use squall_raft::core::{Config, Membership, Message, Role};
use squall_raft::group::{
    Group, GroupConfig, GroupHandle, LogStore, Sent, SnapshotTransfer, SnapshotView, StateMachine, Storage,
    Transport,
};
use squall_raft::snapshot::SnapshotOptions;
use squall_raft::wal::{Identity, WalError, WalOptions};
use tempfile::TempDir;

/// Long enough for any machine: only a test that would hang for ever meets it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A list of all commands, in order.
#[derive(Default)]
pub struct List(Vec<String>);

impl StateMachine for List {
    type Query = ();
    type Output = Vec<String>;

    fn apply(&mut self, _: Index, _: Term, command: &Bytes) -> Vec<String> {
        self.0.push(String::from_utf8_lossy(command).into_owned());
        Vec::new()
    }

    fn query(&mut self, (): ()) -> Vec<String> {
        self.0.clone()
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotView> {
        Box::new(View(self.0.clone()))
    }

    fn restore(&mut self, content: &mut dyn Read) -> io::Result<()> {
        let mut text = String::new();
        content.read_to_string(&mut text)?;
        self.0 = text.lines().map(str::to_owned).collect();
        Ok(())
    }
}

struct View(Vec<String>);

impl SnapshotView for View {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        self.0.iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

/// What a test can do to a node's log.
#[derive(Default)]
pub struct Disk {
    /// Every write fails, as after a crash: nothing more reaches the disk.
    broken: AtomicBool,
    /// Syncs wait.
    held: Mutex<bool>,
    released: Condvar,
}

impl Disk {
    pub fn break_down(&self) {
        self.broken.store(true, Ordering::SeqCst);
        self.release();
    }

    pub fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    pub fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.released.notify_all();
    }

    fn check(&self) -> Result<(), WalError> {
        let held = self.held.lock().unwrap();
        drop(self.released.wait_while(held, |held| *held).unwrap());
        match self.broken.load(Ordering::SeqCst) {
            true => Err(WalError::Poisoned { cause: "the test broke the disk".into() }),
            false => Ok(()),
        }
    }
}

struct TestLog {
    log: Box<dyn LogStore>,
    disk: Arc<Disk>,
}

impl LogStore for TestLog {
    fn append(&mut self, hard_state: Option<&HardState>, entries: &[Entry]) -> Result<(), WalError> {
        self.log.append(hard_state, entries)
    }

    fn sync(&mut self) -> Result<(), WalError> {
        self.disk.check()?;
        self.log.sync()
    }

    fn compact(&mut self, snapshot: SnapshotMeta, keep_from: Index) -> Result<(), WalError> {
        self.disk.check()?;
        self.log.compact(snapshot, keep_from)
    }

    fn reset(&mut self, snapshot: SnapshotMeta, hard_state: HardState) -> Result<(), WalError> {
        self.disk.check()?;
        self.log.reset(snapshot, hard_state)
    }

    fn size_bytes(&self) -> u64 {
        self.log.size_bytes()
    }
}

/// The links between the nodes.
#[derive(Default)]
pub struct Links {
    nodes: Mutex<BTreeMap<NodeId, GroupHandle<List>>>,
    cut: Mutex<HashSet<(NodeId, NodeId)>>,
    pub snapshots_delivered: AtomicU64,
}

impl Links {
    fn target(&self, from: NodeId, to: NodeId) -> Option<GroupHandle<List>> {
        match self.cut.lock().unwrap().contains(&(from, to)) {
            true => None,
            false => self.nodes.lock().unwrap().get(&to).cloned(),
        }
    }
}

/// One node's way to the others.
struct Link {
    from: NodeId,
    links: Arc<Links>,
}

impl Transport for Link {
    fn send(&self, to: NodeId, messages: Vec<Message>) -> Sent {
        let Some(target) = self.links.target(self.from, to) else { return Sent::Dropped };
        for message in messages {
            target.receive(self.from, message);
        }
        Sent::Queued
    }

    fn send_snapshot(&self, to: NodeId, transfer: SnapshotTransfer) {
        let (from, links) = (self.from, Arc::clone(&self.links));
        thread::spawn(move || {
            if deliver_snapshot(&links, from, to, &transfer).is_some() {
                links.snapshots_delivered.fetch_add(1, Ordering::SeqCst);
                transfer.finish();
            }
        });
    }
}

fn deliver_snapshot(links: &Links, from: NodeId, to: NodeId, transfer: &SnapshotTransfer) -> Option<()> {
    let header = transfer.header;
    let mut offset = links.target(from, to)?.begin_snapshot(header).ok()?;
    let mut file = Vec::new();
    (&transfer.file).read_to_end(&mut file).unwrap();
    while offset < header.total_bytes {
        let end = file.len().min(offset as usize + 100);
        let chunk = &file[offset as usize..end];
        let target = links.target(from, to)?;
        offset = target.snapshot_chunk(&header, offset, chunk, crc32c::crc32c(chunk)).ok()?;
    }
    links.target(from, to)?.finish_snapshot(&header).ok()
}

pub struct Cluster {
    pub links: Arc<Links>,
    pub disks: BTreeMap<NodeId, Arc<Disk>>,
    size: u64,
    dir: TempDir,
    tune: fn(&mut GroupConfig),
}

impl Cluster {
    pub fn new(size: u64) -> Cluster {
        Cluster::tuned(size, |_| ())
    }

    /// One that keeps its leader for sure, even on a machine that is busy with something else for a second.
    pub fn steady(size: u64) -> Cluster {
        Cluster::tuned(size, |config| config.raft.election_ticks = 100)
    }

    pub fn tuned(size: u64, tune: fn(&mut GroupConfig)) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut cluster = Cluster { links: Arc::default(), disks: BTreeMap::new(), size, dir, tune };
        for id in 1..=size {
            cluster.start(id);
        }
        cluster
    }

    pub fn dir(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub fn identity(id: NodeId) -> Identity {
        Identity { cluster_id: [7; 16], node_id: id }
    }

    pub fn storage(&self, id: NodeId) -> Result<Storage, RaftError> {
        let wal = WalOptions { segment_bytes: 64 << 10, zeroed_slice_bytes: 16 << 10, spare_segments_max: 1 };
        Storage::open(&self.dir(id), Cluster::identity(id), wal, SnapshotOptions::default())
    }

    pub fn start(&mut self, id: NodeId) {
        self.try_start(id).unwrap();
    }

    pub fn try_start(&mut self, id: NodeId) -> Result<(), RaftError> {
        let disk = Arc::new(Disk::default());
        let Storage { log, recovered, snapshots } = self.storage(id)?;
        let log = Box::new(TestLog { log, disk: Arc::clone(&disk) });
        let mut config = GroupConfig::new(Config::new(id));
        config.founders = Membership::of_voters(1..=self.size);
        config.tick = Duration::from_millis(10);
        (self.tune)(&mut config);
        let link = Arc::new(Link { from: id, links: Arc::clone(&self.links) });
        let storage = Storage { log, recovered, snapshots };
        let handle = Group::start(config, storage, link, List::default())?;
        self.links.nodes.lock().unwrap().insert(id, handle);
        self.disks.insert(id, disk);
        Ok(())
    }

    pub fn node(&self, id: NodeId) -> GroupHandle<List> {
        self.links.nodes.lock().unwrap()[&id].clone()
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.links.nodes.lock().unwrap().keys().copied().collect()
    }

    /// Stops a node in good order.
    pub fn stop(&mut self, id: NodeId) {
        self.take(id).shutdown().unwrap();
    }

    /// Stops a node as a crash does: what was not synced is lost.
    pub fn kill(&mut self, id: NodeId) {
        self.disks[&id].break_down();
        let _ = self.take(id).shutdown();
    }

    fn take(&self, id: NodeId) -> GroupHandle<List> {
        self.links.nodes.lock().unwrap().remove(&id).expect("the test names a running node")
    }

    pub fn isolate(&self, id: NodeId) {
        let mut cut = self.links.cut.lock().unwrap();
        for other in 1..=self.size {
            cut.insert((id, other));
            cut.insert((other, id));
        }
    }

    pub fn heal(&self) {
        self.links.cut.lock().unwrap().clear();
    }

    /// The leader that a majority could follow: the one of the highest term.
    pub fn leader(&self) -> NodeId {
        self.leader_among(&self.ids())
    }

    pub fn leader_among(&self, ids: &[NodeId]) -> NodeId {
        wait_for("a leader", || {
            let leaders = ids.iter().map(|&id| (self.node(id).soft_state(), id));
            let leaders = leaders.filter(|(soft_state, _)| soft_state.role == Role::Leader);
            leaders.max_by_key(|(soft_state, _)| soft_state.term).map(|(_, id)| id)
        })
    }

    /// Proposes on whoever leads until one succeeds.
    pub fn propose(&self, command: &str) {
        wait_for("a proposal", || {
            self.node(self.leader()).propose(Bytes::copy_from_slice(command.as_bytes())).ok()
        });
    }

    /// A linearizable read on whoever leads.
    pub fn read(&self) -> Vec<String> {
        wait_for("a read", || self.node(self.leader()).read(()).ok())
    }

    /// Waits until every running node has applied the same index.
    pub fn converge(&self) {
        wait_for("the nodes to agree", || {
            let statuses: Vec<_> = self.ids().iter().filter_map(|&id| self.node(id).status()).collect();
            let last = statuses.iter().map(|s| s.raft.last_index).max()?;
            statuses.iter().all(|s| s.raft.applied == last).then_some(())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for disk in self.disks.values() {
            disk.release();
        }
        for id in self.ids() {
            let _ = self.take(id).shutdown();
        }
    }
}

pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}
