//! Clusters of real processes for the integration tests: started from the built programs on free ports, killed in every way a
//! process can end, and gone when the test is, also when it panics.

pub mod history;
/// The simulation's checker. Only the file: to link that crate would put its clocks under everything here.
#[path = "../../../sim/src/linearizability.rs"]
#[allow(dead_code)]
mod linearizability;
pub mod load;
pub mod redis;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use squall_kvserver::config::ClusterConfig;

pub use redis::{Redis, Reply};

/// Only keeps a broken test from hanging.
pub const PATIENCE: Duration = Duration::from_secs(60);

const KVSERVER: &str = env!("CARGO_BIN_EXE_kvserver");
const KVCTL: &str = env!("CARGO_BIN_EXE_kvctl");
/// Clusters that run at the same time: more would only slow each other down.
const CLUSTERS_MAX: usize = 2;
/// Below the range from which the system takes the local ends of outgoing connections. A port from that range could be
/// taken by any client while the node that owns it is down.
const PORTS: Range<u16> = 10_000..32_000;
/// Processes claim ports in blocks of this size.
const PORT_BLOCK: u16 = 500;

/// The ports of one node.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    pub rpc: u16,
    pub redis: u16,
    pub admin: u16,
}

/// A cluster below a temporary directory.
pub struct Cluster {
    pub ports: Vec<Ports>,
    nodes: BTreeMap<u64, Child>,
    supervisor: Option<Child>,
    dir: tempfile::TempDir,
    _turn: Turn,
}

impl Cluster {
    /// Three nodes that do not run yet, with these lines in their configuration beside the addresses.
    pub fn prepare(settings: &[&str]) -> Cluster {
        Cluster::prepare_at("127.0.0.1", settings)
    }

    /// The same, reached at another address of this machine.
    pub fn prepare_at(ip: &str, settings: &[&str]) -> Cluster {
        let cluster = Cluster::of(3);
        cluster.write_config(ip, settings);
        cluster
    }

    /// `nodes` nodes that do not run yet, of which the first `founders` are in the configuration.
    pub fn prepare_to_grow(nodes: usize, founders: usize, settings: &[&str]) -> Cluster {
        let cluster = Cluster::of(nodes);
        cluster.write_config_of(founders, settings);
        cluster
    }

    fn of(nodes: usize) -> Cluster {
        let turn = Turn::take();
        let dir = tempfile::tempdir().unwrap();
        let free = free_ports(3 * nodes);
        let ports: Vec<Ports> =
            free.chunks(3).map(|free| Ports { rpc: free[0], redis: free[1], admin: free[2] }).collect();
        Cluster { ports, nodes: BTreeMap::new(), supervisor: None, dir, _turn: turn }
    }

    /// Replaces the configuration file.
    pub fn write_config(&self, ip: &str, settings: &[&str]) {
        self.write(ip, self.ports.len(), settings);
    }

    /// Replaces the configuration file by one with the first `nodes` nodes.
    pub fn write_config_of(&self, nodes: usize, settings: &[&str]) {
        self.write("127.0.0.1", nodes, settings);
    }

    fn write(&self, ip: &str, nodes: usize, settings: &[&str]) {
        let mut text: String = settings.iter().map(|line| format!("{line}\n")).collect();
        for (index, ports) in self.ports.iter().enumerate().take(nodes) {
            let Ports { rpc, redis, admin } = ports;
            text += &format!("node{index}ip={ip}\nnode{index}port={rpc}\n");
            text += &format!("node{index}redisport={redis}\nnode{index}adminport={admin}\n");
        }
        fs::write(self.config_file(), text).unwrap();
    }

    /// Three nodes, each started by the test, with a leader.
    pub fn start(settings: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(settings);
        for id in cluster.ids() {
            cluster.start_node(id);
        }
        cluster.wait_for_leader();
        cluster
    }

    /// Three nodes under a supervisor that restarts them, with a leader.
    pub fn start_supervised(settings: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepare(settings);
        cluster.start_supervisor();
        cluster.wait_for_leader();
        cluster
    }

    pub fn start_supervisor(&mut self) {
        let mut command = self.kvserver(&["cluster"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.open_log("cluster"));
        self.supervisor = Some(command.spawn().unwrap());
    }

    /// Starts one node; it need not be ready when this returns.
    pub fn start_node(&mut self, id: u64) {
        self.start_node_with(id, &[]);
    }

    /// Starts one node that waits to be added to the cluster.
    pub fn start_node_to_join(&mut self, id: u64) {
        self.start_node_with(id, &["--join"]);
    }

    fn start_node_with(&mut self, id: u64, options: &[&str]) {
        // Its standard input is a pipe that ends with the test, so the node cannot outlive it.
        let mut command = self.kvserver(&["node", "--supervised", "--id", &id.to_string()]);
        command.args(options);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(self.open_log(&format!("node-{id}")));
        let previous = self.nodes.insert(id, command.spawn().unwrap());
        assert!(previous.is_none(), "node {id} runs already");
    }

    /// Starts one node that is expected to refuse, and returns its exit code and what it said.
    pub fn run_node_to_its_end(&self, id: u64) -> (Option<i32>, String) {
        self.run_node_to_its_end_with(id, &[])
    }

    /// The same, with more options.
    pub fn run_node_to_its_end_with(&self, id: u64, options: &[&str]) -> (Option<i32>, String) {
        let mut command = self.kvserver(&["node", "--supervised", "--id", &id.to_string()]);
        command.args(options);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let give_up_at = Instant::now() + PATIENCE;
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > give_up_at {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// The server program with this cluster's configuration and data.
    pub fn kvserver(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(KVSERVER);
        command.args(arguments).arg("-f").arg(self.config_file()).arg("--data").arg(self.data_dir());
        command.env("RUST_LOG", "info");
        command
    }

    /// Runs kvctl to its end.
    pub fn kvctl(&self, arguments: &[&str]) -> Output {
        Command::new(KVCTL).arg("-f").arg(self.config_file()).args(arguments).output().unwrap()
    }

    pub fn ids(&self) -> Vec<u64> {
        (1..=self.ports.len() as u64).collect()
    }

    /// The nodes that the test has started and not seen end.
    pub fn running(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.path().join("test.conf")
    }

    pub fn config(&self) -> ClusterConfig {
        ClusterConfig::load(&self.config_file()).unwrap()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn node_dir(&self, id: u64) -> PathBuf {
        self.data_dir().join(format!("node-{id}"))
    }

    pub fn redis_address(&self, id: u64) -> SocketAddr {
        self.config().node(id).unwrap().redis_address()
    }

    pub fn admin_address(&self, id: u64) -> SocketAddr {
        self.config().node(id).unwrap().admin_address()
    }

    pub fn rpc_address(&self, id: u64) -> SocketAddr {
        self.config().node(id).unwrap().rpc_address()
    }

    /// A connection to a node's Redis port, as soon as there is one.
    pub fn redis(&self, id: u64) -> Redis {
        eventually(&format!("node {id} accepts connections"), || Redis::connect(self.redis_address(id)).ok())
    }

    /// What a node says about itself; `None` if it does not answer.
    pub fn status(&self, id: u64) -> Option<Value> {
        let (code, body) = http_get(self.admin_address(id), "/status").ok()?;
        assert_eq!(code, 200, "{body}");
        Some(serde_json::from_str(&body).unwrap())
    }

    /// A number in a node's status; `None` if it does not answer.
    pub fn number(&self, id: u64, field: &str) -> Option<u64> {
        let status = self.status(id)?;
        Some(status[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {status}")))
    }

    /// The leader, if one is known to be.
    pub fn leader(&self) -> Option<u64> {
        let configured = self.config().nodes.into_iter().map(|node| node.id);
        let statuses = configured.filter_map(|id| Some((id, self.status(id)?)));
        let (id, newest) =
            statuses.max_by_key(|(_, status)| (status["term"].as_u64(), status["role"] == "leader"))?;
        (newest["role"] == "leader").then_some(id)
    }

    pub fn wait_for_leader(&self) -> u64 {
        eventually("there is a leader", || self.leader())
    }

    /// Waits until another node than `old` leads.
    pub fn wait_for_other_leader(&self, old: u64) -> u64 {
        eventually("another node leads", || self.leader().filter(|leader| *leader != old))
    }

    /// The process of a node, whoever started it.
    pub fn pid(&self, id: u64) -> Pid {
        let number = match self.nodes.get(&id) {
            Some(child) => u64::from(child.id()),
            None => eventually(&format!("node {id} answers"), || self.number(id, "process_id")),
        };
        Pid::from_raw(number.try_into().unwrap())
    }

    pub fn signal(&self, id: u64, signal: Signal) {
        kill(self.pid(id), signal).unwrap();
    }

    /// kill -9. A node that the test started is gone for good when this returns; a supervised one comes back.
    pub fn kill_node(&mut self, id: u64) {
        self.signal(id, Signal::SIGKILL);
        if let Some(mut child) = self.nodes.remove(&id) {
            child.wait().unwrap();
        }
    }

    /// Stops a node in order.
    pub fn stop_node(&mut self, id: u64) -> ExitStatus {
        self.signal(id, Signal::SIGTERM);
        self.wait_for_node(id)
    }

    /// Waits until a node that the test started has ended by itself.
    pub fn wait_for_node(&mut self, id: u64) -> ExitStatus {
        let mut child = self.nodes.remove(&id).unwrap();
        // Kept open until the end: closing it asks the node to stop.
        let lifeline = child.stdin.take();
        let status = wait_for(&mut child);
        drop(lifeline);
        status
    }

    pub fn supervisor_pid(&self) -> Pid {
        Pid::from_raw(self.supervisor.as_ref().unwrap().id() as i32)
    }

    pub fn wait_for_supervisor(&mut self) -> ExitStatus {
        wait_for(&mut self.supervisor.take().unwrap())
    }

    /// The processes of the nodes that the supervisor has started.
    pub fn supervised_pids(&self) -> Vec<Pid> {
        self.supervisor.as_ref().map_or_else(Vec::new, |child| children_of(child.id()))
    }

    /// What a node, or `cluster` for a supervised one, has logged so far.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_file(name)).unwrap_or_default()
    }

    fn log_file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    fn open_log(&self, name: &str) -> File {
        File::options().create(true).append(true).open(self.log_file(name)).unwrap()
    }

    /// Waits until every node has applied all that any has, and checks that they hold the same amount of data.
    pub fn wait_until_replicas_agree(&self) {
        const FIELDS: [&str; 5] = ["applied", "keys", "expiring_keys", "store_bytes", "sessions"];
        eventually("all replicas agree", || {
            let figures: Option<BTreeSet<Vec<Option<u64>>>> = self
                .ids()
                .into_iter()
                .map(|id| {
                    let status = self.status(id)?;
                    Some(FIELDS.iter().map(|field| status[field].as_u64()).collect())
                })
                .collect();
            (figures?.len() == 1).then_some(())
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut supervisor) = self.supervisor.take() {
            // Stopped first, so that it starts no node between the two.
            let pid = Pid::from_raw(supervisor.id() as i32);
            let _ = kill(pid, Signal::SIGSTOP);
            let nodes = children_of(supervisor.id());
            let _ = supervisor.kill();
            let _ = supervisor.wait();
            for node in nodes {
                let _ = kill(node, Signal::SIGKILL);
            }
        }
        for child in self.nodes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let nodes = self.ids().into_iter().map(|id| format!("node-{id}"));
            for name in std::iter::once("cluster".to_owned()).chain(nodes) {
                let log = self.log(&name);
                let lines: Vec<&str> = log.lines().collect();
                for line in &lines[lines.len().saturating_sub(40)..] {
                    eprintln!("{name}.log: {line}");
                }
            }
        }
    }
}

/// The right to run a cluster.
struct Turn;

static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(CLUSTERS_MAX), Condvar::new());

impl Turn {
    fn take() -> Turn {
        let turns = TURNS.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut turns =
            TURNS.1.wait_while(turns, |turns| *turns == 0).unwrap_or_else(PoisonError::into_inner);
        *turns -= 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        TURNS.1.notify_one();
    }
}

/// Ports on which nobody listens, none of them given out twice, by this process or by another one that runs the same tests.
pub fn free_ports(count: usize) -> Vec<u16> {
    /// The blocks that this process has claimed, each by listening on its first port, and what is left of the last one.
    static CLAIMED: Mutex<(Vec<TcpListener>, Range<u16>)> = Mutex::new((Vec::new(), 0..0));
    let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
    let (guards, left) = &mut *claimed;
    let mut free = Vec::new();
    while free.len() < count {
        let Some(port) = left.next() else {
            let mut blocks = PORTS.step_by(PORT_BLOCK.into());
            let (guard, first) = blocks
                .find_map(|first| Some((TcpListener::bind(("0.0.0.0", first)).ok()?, first)))
                .expect("some block of ports is free");
            guards.push(guard);
            *left = first + 1..first + PORT_BLOCK;
            continue;
        };
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            free.push(port);
        }
    }
    free
}

/// Asks until there is an answer.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < give_up_at, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for(child: &mut Child) -> ExitStatus {
    let what = format!("process {} ends", child.id());
    eventually(&what, || child.try_wait().unwrap())
}

/// Whether a process exists and is not merely waiting to be reaped.
pub fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain anything.
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

fn children_of(parent: u32) -> Vec<Pid> {
    let parent_of = |pid: i32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).map(Pid::from_raw).collect()
}

/// The status code and body of an answer.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// Every file below a directory with its content.
pub fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}
