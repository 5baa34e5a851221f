//! One run: the cluster is started, clients work while the plan's faults come, then the faults stop and a majority must get on with it, and
//! in the end everything that was seen is checked.

use crate::clients::{Traffic, read_all, watch, work};
use crate::plan::{Fault, Profile, Step, Target, draw};
use crate::watch::Watch;
use squall_kvserver::clerk::Clerk;
use squall_kvserver::config::ClusterConfig;
use squall_kvserver::node::{Node, NodeError};
use squall_raft::RaftError;
use squall_raft::core::types::NodeId;
use squall_raft::group::Observer;
use squall_raft::snapshot::SnapshotError;
use squall_raft::wal::WalError;
use squall_sim::{Conditions, DiskFaults, Host, Line, Process, Random, Simulation, World};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const PASSWORD: &str = "secret";
/// How long a majority may take to do a write once nothing goes wrong any more: some elections, and the clients' own pauses.
const RECOVERY_MAX: Duration = Duration::from_secs(30);
/// How long all nodes together may take to be at the same entry.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The kinds of faults.
    pub profile: Profile,
    /// How long clients work and faults come, in simulated time.
    pub length: Duration,
    /// How many nodes.
    pub nodes: u64,
    /// These faults and no others.
    pub steps: Option<Vec<Step>>,
    /// Every event becomes a line of the timeline.
    pub detailed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            profile: Profile::Swarm,
            length: Duration::from_secs(60),
            nodes: 3,
            steps: None,
            detailed: false,
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What is wrong; empty if all is well.
    pub failures: Vec<String>,
    /// The faults that were planned.
    pub steps: Vec<Step>,
    /// The digest of everything that happened.
    pub digest: u64,
    /// How many events are in it.
    pub events: u64,
    /// Operations of clients that returned, and those of which nobody knows.
    pub operations: (u64, u64),
    /// Keys whose history the search for an order gave up.
    pub undecided: usize,
    /// Terms that had a leader.
    pub elections: usize,
    /// How much time passed in the world.
    pub simulated: Duration,
    /// How often each kind of fault was made.
    pub faults: BTreeMap<&'static str, u64>,
    /// What happened, for people.
    pub timeline: Vec<Line>,
}

/// The faults that a seed brings.
pub fn steps_of(seed: u64, options: &Options) -> Vec<Step> {
    let drawn = || draw(options.profile, options.nodes, options.length, &mut Random::new(seed, "plan"));
    options.steps.clone().unwrap_or_else(drawn)
}

/// Makes the run of a seed.
pub fn run(seed: u64, options: &Options) -> Report {
    squall_sim::log_to_timeline(log::LevelFilter::Info);
    let steps = steps_of(seed, options);
    let mut random = Random::new(seed, "conditions");
    let conditions = Conditions {
        latency: random.duration(Duration::from_micros(50)..Duration::from_millis(3)),
        sync_latency: random.duration(Duration::from_micros(100)..Duration::from_millis(4)),
        preemption: if random.chance(0.5) { 0.0 } else { 0.1 },
    };
    let snapshot_log_bytes = *random.choice(&[3 << 10, 12 << 10, 50 << 10, 1 << 20]);
    let simulation = Simulation::new(seed).conditions(conditions);
    let simulation = if options.detailed { simulation.detailed() } else { simulation };
    let (planned, nodes, length) = (steps.clone(), options.nodes, options.length);
    let outcome = simulation.run(move |world| scenario(world, nodes, length, &planned, snapshot_log_bytes));
    let mut report = Report {
        seed,
        failures: outcome.failures,
        steps,
        digest: outcome.digest,
        events: outcome.events,
        operations: (0, 0),
        undecided: 0,
        elections: 0,
        simulated: outcome.simulated,
        faults: outcome.faults,
        timeline: outcome.timeline,
    };
    match outcome.result {
        Ok(seen) => {
            report.failures.extend(seen.failures);
            (report.operations, report.undecided, report.elections) =
                (seen.operations, seen.undecided, seen.elections);
        }
        Err(panic) => report.failures.push(format!("the scenario panicked: {panic}")),
    }
    report
}

struct Seen {
    failures: Vec<String>,
    operations: (u64, u64),
    undecided: usize,
    elections: usize,
}

/// A node's machine, and the program that runs there.
struct Member {
    id: NodeId,
    host: Host,
    process: Mutex<Option<Process>>,
    /// A bit of what it has on its disk was flipped.
    rotten: AtomicBool,
    /// What it reads may be something else.
    misled: AtomicBool,
    /// It has refused its rotten data; until somebody repairs it, it stays away.
    retired: AtomicBool,
}

impl Member {
    fn new(id: NodeId, host: Host) -> Self {
        let no = || AtomicBool::new(false);
        Self { id, host, process: Mutex::new(None), rotten: no(), misled: no(), retired: no() }
    }

    fn is_harmed(&self) -> bool {
        self.rotten.load(Ordering::Relaxed) || self.misled.load(Ordering::Relaxed)
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    fn process(&self) -> Option<Process> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Everything that the activities of a scenario share.
struct Cluster {
    world: World,
    members: Vec<Arc<Member>>,
    watch: Arc<Watch>,
    traffic: Arc<Traffic>,
    /// Nothing goes wrong any more.
    calm: AtomicBool,
    /// What the plan expected and did not come.
    unexpected: Mutex<Vec<String>>,
}

fn make_config(hosts: &[Host], snapshot_log_bytes: u64) -> ClusterConfig {
    let mut text = format!("password={PASSWORD}\n");
    for (index, host) in hosts.iter().enumerate() {
        text +=
            &format!("node{index}ip={}\nnode{index}port=7000\nnode{index}redisport=6379\n", host.address());
        text += &format!("node{index}adminport=8080\n");
    }
    let mut config = ClusterConfig::parse(Path::new("sim.conf"), &text)
        .unwrap_or_else(|error| panic!("the scenario's own configuration: {error}"));
    // Below what a file may say: snapshots and compaction must happen all the time.
    config.settings.snapshot_log_bytes = snapshot_log_bytes;
    config
}

fn scenario(world: &World, nodes: u64, length: Duration, steps: &[Step], snapshot_log_bytes: u64) -> Seen {
    let hosts: Vec<Host> = (1..=nodes).map(|id| world.add_host(&format!("node{id}"))).collect();
    let config = make_config(&hosts, snapshot_log_bytes);
    world.note(format!("snapshots are taken after {snapshot_log_bytes} bytes of log"));
    let members = (1..).zip(hosts).map(|(id, host)| Arc::new(Member::new(id, host)));
    let cluster = Arc::new(Cluster {
        world: world.clone(),
        members: members.collect(),
        watch: Arc::default(),
        traffic: Arc::new(Traffic::new(config, PASSWORD)),
        calm: AtomicBool::new(false),
        unexpected: Mutex::default(),
    });
    for member in &cluster.members {
        let (cluster, member) = (Arc::clone(&cluster), Arc::clone(member));
        squall_hook::spawn(move || supervise(&cluster, &member));
    }
    const CLIENTS: usize = 6;
    let clients: Vec<Process> = (0..CLIENTS)
        .map(|client| {
            let (traffic, inner) = (Arc::clone(&cluster.traffic), world.clone());
            let host = world.add_host(&format!("client{client}"));
            host.start("client", move || work(&traffic, &inner, client, client >= CLIENTS / 2))
        })
        .collect();

    const WATCHERS: usize = 2;
    let watchers: Vec<Process> = (0..WATCHERS)
        .map(|watcher| {
            let traffic = Arc::clone(&cluster.traffic);
            world.add_host(&format!("watcher{watcher}")).start("watcher", move || watch(&traffic, watcher))
        })
        .collect();

    for step in steps {
        std::thread::sleep(step.at.saturating_sub(world.now()));
        make(&cluster, step.fault);
    }
    std::thread::sleep(length.saturating_sub(world.now()));

    let mut failures = calm_down(&cluster);
    cluster.traffic.stop.store(true, Ordering::Relaxed);
    for client in clients.iter().chain(&watchers) {
        client.wait();
    }
    if failures.is_empty() && !read_all(&cluster.traffic, world, CLIENTS) {
        failures.push("after everything had calmed down, a key could not be read".into());
    }
    failures.extend(cluster.unexpected.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
    failures.extend(cluster.watch.violations());
    failures.extend(cluster.traffic.changes.violations());
    let nonsense = cluster.traffic.nonsense.lock().unwrap_or_else(PoisonError::into_inner).clone();
    failures.extend(nonsense);
    let (illegal, undecided) = cluster.traffic.history.check();
    failures.extend(illegal);
    Seen {
        failures,
        operations: cluster.traffic.history.counts(),
        undecided: undecided.len(),
        elections: cluster.watch.elections(),
    }
}

/// Starts a node whenever its machine has power and it does not run, as an operating system's service manager does.
fn supervise(cluster: &Arc<Cluster>, member: &Arc<Member>) {
    let mut random = cluster.world.random(&format!("supervisor of node {}", member.id));
    loop {
        if !member.host.is_up() || member.is_retired() {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        cluster.watch.starts(member.id);
        let (inner, own) = (Arc::clone(cluster), Arc::clone(member));
        let process = member.host.start("node", move || {
            let observer: Arc<dyn Observer> = Arc::clone(&inner.watch) as _;
            let config = &inner.traffic.config;
            let ended = Node::start_observed(config, own.id, Path::new("/data"), Some(observer))
                .and_then(|node| node.wait());
            if let Err(error) = ended {
                log::error!("{error}");
                if blames_data(&error) {
                    inner.note_refusal(&own, &error);
                }
            }
        });
        *member.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(process.clone());
        process.wait();
        let longest = if cluster.calm.load(Ordering::Relaxed) { 200 } else { 3_000 };
        std::thread::sleep(Duration::from_millis(random.below(longest)));
    }
}

/// Whether a node stopped because what it has on its disk cannot be what it wrote there.
fn blames_data(error: &NodeError) -> bool {
    let error = match error {
        NodeError::Data { source, .. } => source,
        NodeError::Stopped { source, .. } => &**source,
        _ => return false,
    };
    match error {
        RaftError::Log(error) => {
            matches!(
                error,
                WalError::Corrupt { .. } | WalError::Unsupported { .. } | WalError::WrongIdentity { .. }
            )
        }
        RaftError::Snapshot(error) => matches!(
            error,
            SnapshotError::Corrupt { .. }
                | SnapshotError::Unsupported { .. }
                | SnapshotError::WrongIdentity { .. }
        ),
        RaftError::Inconsistent(_) | RaftError::SnapshotMissing { .. } => true,
        _ => false,
    }
}

impl Cluster {
    /// A node says that its data are bad. If nothing was done to them, that is a bug. Rotten, they stay so; misread, they may be fine.
    fn note_refusal(&self, member: &Member, error: &NodeError) {
        if member.rotten.load(Ordering::Relaxed) {
            member.retired.store(true, Ordering::Relaxed);
            self.world.note(format!("node {} is retired", member.id));
        } else if !member.misled.load(Ordering::Relaxed) {
            let text = format!("node {} refuses data that nobody has harmed: {error}", member.id);
            let mut unexpected = self.unexpected.lock().unwrap_or_else(PoisonError::into_inner);
            if !unexpected.contains(&text) {
                unexpected.push(text);
            }
        }
    }

    /// The node to harm, if it may be: of every acknowledged entry a majority has a copy, and only as long as a minority is harmed must one
    /// of the good ones be found in every majority.
    fn find_to_harm(&self, target: Target) -> Option<&Arc<Member>> {
        let member = self.find(target);
        let others = self.members.iter().filter(|other| other.id != member.id && other.is_harmed()).count();
        (others < (self.members.len() - 1) / 2 && member.host.is_up()).then_some(member)
    }

    fn find(&self, target: Target) -> &Arc<Member> {
        let leader = self.watch.leader();
        let is_meant = |member: &&Arc<Member>| match target {
            Target::Node(id) => member.id == id,
            Target::Leader => leader.is_none_or(|leader| member.id == leader),
            Target::Follower => leader != Some(member.id),
        };
        self.members.iter().find(is_meant).unwrap_or(&self.members[0])
    }

    fn pairs(&self) -> Vec<(&Host, &Host)> {
        let hosts: Vec<&Host> = self.members.iter().map(|member| &member.host).collect();
        let pairs = hosts.iter().flat_map(|from| hosts.iter().map(|to| (*from, *to)));
        pairs.filter(|(from, to)| from.address() != to.address()).collect()
    }

    /// Does something later, unless everything has calmed down by then.
    fn later(self: &Arc<Self>, after: Duration, undo: impl FnOnce(&Self) + Send + 'static) {
        let cluster = Arc::clone(self);
        squall_hook::spawn(move || {
            std::thread::sleep(after);
            if !cluster.calm.load(Ordering::Relaxed) {
                undo(&cluster);
            }
        });
    }

    /// Cuts ways between nodes for a time.
    fn cut(self: &Arc<Self>, is_meant: impl Fn(&Host, &Host) -> bool, time: Duration, fault: &'static str) {
        self.world.count_fault(fault);
        let cuts: Vec<(Host, Host)> = self
            .pairs()
            .into_iter()
            .filter(|(from, to)| is_meant(from, to))
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect();
        for (from, to) in &cuts {
            self.world.cut(from, to);
        }
        self.later(time, move |cluster| {
            cluster.world.note(format!("the cut ends ({fault})"));
            for (from, to) in &cuts {
                cluster.world.mend(from, to);
            }
        });
    }

    fn set_links(self: &Arc<Self>, latency: Duration, loss: f64, time: Duration, fault: &'static str) {
        self.world.count_fault(fault);
        let set = |cluster: &Self, latency, loss| {
            for (from, to) in cluster.pairs() {
                cluster.world.set_link(from, to, latency, loss);
            }
        };
        set(self, latency, loss);
        self.later(time, move |cluster| {
            cluster.world.note(format!("the links are good again ({fault})"));
            set(cluster, Duration::from_micros(200), 0.0);
        });
    }

    fn set_disk(self: &Arc<Self>, target: Target, faults: DiskFaults, time: Duration, fault: &'static str) {
        self.world.count_fault(fault);
        let host = self.find(target).host.clone();
        host.set_disk_faults(faults);
        self.later(time, move |_| host.set_disk_faults(DiskFaults::default()));
    }

    /// Not a rotten one: what proves that a record was synced need not be synced itself, and without it a rotten record at the end cannot
    /// be told from one that was never finished.
    fn unplug(self: &Arc<Self>, member: &Member, time: Duration) {
        let host = member.host.clone();
        if host.is_up() && !member.rotten.load(Ordering::Relaxed) {
            host.power_off();
            self.later(time, move |_| host.power_on());
        }
    }

    /// Has a node read its data again, from a disk with these faults.
    fn restart_with(self: &Arc<Self>, member: &Arc<Member>, faults: DiskFaults, time: Duration) {
        member.host.set_disk_faults(faults);
        if let Some(process) = member.process() {
            process.kill();
        }
        let member = Arc::clone(member);
        self.later(time, move |_| {
            member.host.set_disk_faults(DiskFaults::default());
            member.misled.store(false, Ordering::Relaxed);
        });
    }

    fn rot(&self, member: &Member) {
        if let Some(process) = member.process() {
            process.kill();
        }
        let mut random = self.world.random(&format!("rot at {:?}", self.world.now()));
        let is_data = |path: &String| path.ends_with(".wal") || path.ends_with(".snap");
        let files: Vec<String> = member.host.files("/data").into_iter().filter(is_data).collect();
        if !files.is_empty() && member.host.rot(random.choice::<String>(&files)) {
            member.rotten.store(true, Ordering::Relaxed);
        }
    }
}

/// Makes a fault.
fn make(cluster: &Arc<Cluster>, fault: Fault) {
    cluster.world.note(format!("fault: {fault}"));
    let is = |host: &Host, target: Target| host.address() == cluster.find(target).host.address();
    match fault {
        Fault::Kill(target) => {
            if let Some(process) = cluster.find(target).process() {
                process.kill();
            }
        }
        Fault::KillInCall(target, calls) => {
            if let Some(process) = cluster.find(target).process() {
                process.kill_after(calls);
            }
        }
        Fault::Unplug(target, time) => cluster.unplug(cluster.find(target), time),
        Fault::UnplugAll(time) => cluster.members.iter().for_each(|member| cluster.unplug(member, time)),
        Fault::Pause(target, time) => {
            if let Some(process) = cluster.find(target).process() {
                process.pause();
                cluster.later(time, move |_| process.resume());
            }
        }
        Fault::Isolate(node, time) => {
            cluster.cut(|from, to| is(from, node) || is(to, node), time, "isolation")
        }
        Fault::Mute(node, time) => cluster.cut(|from, _| is(from, node), time, "one-way cut"),
        Fault::Deafen(node, time) => cluster.cut(|_, to| is(to, node), time, "one-way cut"),
        Fault::Unlink(one, other, time) => {
            let joins =
                |from: &Host, to: &Host| is(from, one) && is(to, other) || is(from, other) && is(to, one);
            cluster.cut(joins, time, "partial cut");
        }
        Fault::Scatter(time) => cluster.cut(|_, _| true, time, "full cut"),
        Fault::SlowLinks(ms, time) => cluster.set_links(Duration::from_millis(ms), 0.0, time, "slow links"),
        Fault::LossyLinks(percent, time) => {
            cluster.set_links(Duration::from_millis(1), percent as f64 / 100.0, time, "lossy links");
        }
        Fault::SlowDisk(node, times, time) => {
            let faults = DiskFaults { slowness: times as f64, ..DiskFaults::default() };
            cluster.set_disk(node, faults, time, "slow disk");
        }
        Fault::FailingSyncs(node, time) => {
            cluster.set_disk(
                node,
                DiskFaults { sync_error: 0.3, ..DiskFaults::default() },
                time,
                "failing syncs",
            );
        }
        Fault::FailingWrites(node, time) => {
            cluster.set_disk(
                node,
                DiskFaults { write_error: 0.1, ..DiskFaults::default() },
                time,
                "failing writes",
            );
        }
        Fault::FullDisk(node, time) => {
            cluster.set_disk(
                node,
                DiskFaults { capacity_bytes: 0, ..DiskFaults::default() },
                time,
                "full disk",
            );
        }
        Fault::HangingDisk(node, time) => {
            let faults = DiskFaults { hangs: true, ..DiskFaults::default() };
            cluster.set_disk(node, faults, time, "hanging disk");
        }
        Fault::FailingReads(node, time) => {
            let faults = DiskFaults { read_error: 0.1, ..DiskFaults::default() };
            cluster.world.count_fault("failing reads");
            cluster.restart_with(cluster.find(node), faults, time);
        }
        Fault::MisdirectedReads(node, time) => {
            if let Some(member) = cluster.find_to_harm(node) {
                let faults = DiskFaults { misdirected_read: 0.1, ..DiskFaults::default() };
                cluster.world.count_fault("misdirected reads");
                member.misled.store(true, Ordering::Relaxed);
                cluster.restart_with(member, faults, time);
            }
        }
        Fault::Rot(node) => {
            if let Some(member) = cluster.find_to_harm(node) {
                cluster.rot(member);
            }
        }
        Fault::ExpectProgress(limit) => {
            if !write_within(cluster, limit) {
                let text = format!("no write succeeded within {limit:?}, though the scenario expects it");
                cluster.unexpected.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            }
        }
        Fault::Clock(node, ahead_ms, drift_ppm) => cluster.find(node).host.set_clock(ahead_ms, drift_ppm),
    }
}

/// Ends all faults, and demands progress: first of a random majority, then of all.
fn calm_down(cluster: &Arc<Cluster>) -> Vec<String> {
    let world = &cluster.world;
    let mut random = world.random("majority");
    world.note("the faults are over; a majority must get on with it");
    cluster.calm.store(true, Ordering::Relaxed);
    world.mend_all();
    let mut members: Vec<&Arc<Member>> = cluster.members.iter().collect();
    random.shuffle(&mut members);
    // Of those whose data are rotten nothing is expected.
    members.sort_by_key(|member| !member.rotten.load(Ordering::Relaxed));
    let (others, majority) = members.split_at((members.len() - 1) / 2);
    for member in &cluster.members {
        member.host.set_disk_faults(DiskFaults::default());
        if !member.host.is_up() {
            member.host.power_on();
        }
        if let Some(process) = member.process() {
            process.resume();
        }
    }
    let some: Vec<&Host> = others.iter().map(|member| &member.host).collect();
    let rest: Vec<&Host> = majority.iter().map(|member| &member.host).collect();
    world.separate(&some, &rest);
    let began = world.now();
    if !write_within(cluster, RECOVERY_MAX) {
        return vec![format!("a majority without faults did no write within {RECOVERY_MAX:?}")];
    }
    let took = world.now() - began;
    world.note(format!("a majority writes again after {took:?}; now all nodes"));
    world.mend_all();
    let until = world.now() + CATCH_UP_MAX;
    loop {
        let known = cluster.watch.applied();
        let working = cluster.members.iter().filter(|member| !member.is_retired());
        let applied: Vec<(NodeId, Option<u64>)> =
            working.map(|member| (member.id, known.get(&member.id).copied())).collect();
        let first = applied.first().and_then(|(_, index)| *index);
        if first.is_some() && applied.iter().all(|(_, index)| *index == first) {
            world.note(format!("all nodes are at entry {}", first.unwrap_or(0)));
            return Vec::new();
        }
        if world.now() > until {
            return vec![format!("the nodes are at different entries for {CATCH_UP_MAX:?}: {applied:?}")];
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn write_within(cluster: &Cluster, limit: Duration) -> bool {
    Clerk::new(&cluster.traffic.config)
        .is_ok_and(|clerk| clerk.with_timeout(limit).put("progress", "1").is_ok())
}
