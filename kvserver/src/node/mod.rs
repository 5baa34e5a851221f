//! One node: the Raft group with the state machine, the RPC server for its peers and for clerks, the Redis
//! port, and the admin port.
//!
//! A node is a value: everything it needs comes in, nothing is global, so several may live in one process.

mod admin;
mod backend;
mod check;
mod executor;
mod machine;
mod members;
mod service;
mod transport;
mod wire;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use squall_raft::RaftError;
use squall_raft::core::types::NodeId;
use squall_raft::core::{Membership, Role};
use squall_raft::group::{Group, GroupConfig, GroupHandle, Observer, Storage};
use squall_raft::snapshot::SnapshotOptions;
use squall_raft::wal::{Identity, WalOptions};
use squall_rpc::{ClientConfig, LocalIdentity, RpcError, RpcMetrics, Server, ServerConfig};

pub use executor::{ExecuteFailure, Request};

pub(crate) use executor::call;
pub(crate) use members::{address_from_wire, address_to_wire};

use crate::config::{ClusterConfig, ConfigError, NodeConfig};
use crate::history::History;
use crate::machine::{MachineOptions, Proposal};
use crate::resp::{FrontEnd, FrontEndOptions, RedisServer};
use crate::session::SessionLimits;
use admin::{Admin, AdminServer};
use backend::NodeBackend;
use executor::{Executor, MemoryLimit};
use machine::{Gauges, ReplicatedMachine};
use service::Service;
use transport::Peers;

/// How often a leader looks for expired keys that no write has removed.
const PURGE_INTERVAL: Duration = Duration::from_millis(250);
/// A batch of pipelined commands may be this much larger than the largest request.
const BATCH_SLACK_BYTES: usize = 2 << 20;
/// What an append message may carry besides its largest entry.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// Why a node cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The operator's: the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operator's, usually: a port cannot be listened on.
    #[error(
        "node {id}: cannot listen on {address} for {purpose}: {source}; is another process using the port?"
    )]
    Listen {
        /// The node.
        id: NodeId,
        /// The address.
        address: SocketAddr,
        /// What the port is for.
        purpose: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The operator's, or the disk's: the data directory.
    #[error("node {id}: data in {}: {source}", dir.display())]
    Data {
        /// The node.
        id: NodeId,
        /// The directory.
        dir: PathBuf,
        /// What is wrong, and what to do.
        source: RaftError,
    },
    /// The RPC layer refuses the settings.
    #[error("node {id}: {source}")]
    Rpc {
        /// The node.
        id: NodeId,
        /// Why.
        source: RpcError,
    },
    /// The system gives no activity or random number.
    #[error("node {id}: {source}")]
    System {
        /// The node.
        id: NodeId,
        /// What the system says.
        source: io::Error,
    },
    /// The group stopped by itself, because of the disk or a bug. Nothing is retried.
    #[error("node {id} had to stop: {source}")]
    Stopped {
        /// The node.
        id: NodeId,
        /// Why.
        source: Arc<RaftError>,
    },
}

impl NodeError {
    /// Whether starting the node again, with nothing changed, would fail in the same way.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, NodeError::System { .. })
    }

    /// Whether the node had to stop because the cluster has no place for it.
    pub fn is_evicted(&self) -> bool {
        matches!(self, NodeError::Stopped { source, .. } if matches!(**source, RaftError::Evicted))
    }
}

/// How a node is started.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// The cluster exists, and the node waits to be added to it. Without it, a node without data founds the cluster, with all
    /// nodes of its configuration. Of no effect on a node that has data.
    pub join: bool,
    /// Who watches: for simulations and tests.
    pub observer: Option<Arc<dyn Observer>>,
}

/// A running node.
pub struct Node {
    id: NodeId,
    group: GroupHandle<ReplicatedMachine>,
    peers: Arc<Peers>,
    rpc: Server,
    redis: RedisServer,
    admin: AdminServer,
    history: Arc<History>,
}

impl Node {
    /// Starts node `id` of the cluster, with its data below `data_dir` (in `node-<id>`).
    ///
    /// # Errors
    /// [`NodeError`]; nothing runs then, and nothing on disk was changed by a wrong configuration.
    ///
    /// # Blocking
    /// While the state is read from disk.
    pub fn start(config: &ClusterConfig, id: NodeId, data_dir: &Path) -> Result<Self, NodeError> {
        Self::start_observed(config, id, data_dir, None)
    }

    /// As [`Node::start`], watched: for simulations and tests.
    ///
    /// # Errors
    /// As [`Node::start`].
    ///
    /// # Blocking
    /// As [`Node::start`].
    pub fn start_observed(
        config: &ClusterConfig,
        id: NodeId,
        data_dir: &Path,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self, NodeError> {
        Self::start_with(config, id, data_dir, NodeOptions { join: false, observer })
    }

    /// As [`Node::start`], with options.
    ///
    /// # Errors
    /// As [`Node::start`].
    ///
    /// # Blocking
    /// As [`Node::start`].
    pub fn start_with(
        config: &ClusterConfig,
        id: NodeId,
        data_dir: &Path,
        options: NodeOptions,
    ) -> Result<Self, NodeError> {
        let NodeOptions { join, observer } = options;
        let node = config.node(id)?;
        let settings = &config.settings;
        // First the ports: a second start of the same node must not get as far as its data.
        let ip = config.bind_ip(node);
        let redis_listener = listen(id, SocketAddr::new(ip, node.redis_port), "Redis clients")?;
        let admin_listener = listen(id, SocketAddr::new(ip, node.admin_port), "administration")?;

        let cluster_id = settings.cluster_id.to_be_bytes();
        let limits = settings.limits();
        let command_bytes_max = limits.request_bytes_max as usize + BATCH_SLACK_BYTES;
        let body_bytes_max = command_bytes_max + APPEND_BYTES_MAX + BATCH_SLACK_BYTES;
        let metrics = Arc::new(RpcMetrics::default());
        let peers = Peers::new(config, id, &client_config(body_bytes_max, &metrics))
            .map_err(|source| NodeError::Rpc { id, source })?;
        let peers = Arc::new(peers);

        let dir = data_dir.join(format!("node-{id}"));
        let data_error = |source| NodeError::Data { id, dir: dir.clone(), source };
        let identity = Identity { cluster_id, node_id: id };
        let storage = Storage::open(
            &dir,
            identity,
            wal_options(settings.snapshot_log_bytes),
            SnapshotOptions::default(),
        )
        .map_err(data_error)?;
        let gauges = Arc::new(Gauges::default());
        let options = MachineOptions { hash_key: settings.cluster_id, sessions: SessionLimits::DEFAULT };
        let history_bytes_max = usize::try_from(settings.watch_history_bytes).unwrap_or(usize::MAX);
        let history = Arc::new(History::new(history_bytes_max));
        let machine = ReplicatedMachine::new(options, gauges.clone(), history.clone());
        let group_config = GroupConfig { observer, ..group_config(config, id, join, command_bytes_max) };
        let group = Group::start(group_config, storage, peers.clone(), machine).map_err(data_error)?;

        let executor = Executor {
            group: group.clone(),
            peers: peers.clone(),
            value_bytes_max: settings.value_bytes_max,
            no_leader_wait: Duration::from_millis(settings.no_leader_wait_ms),
            memory: MemoryLimit { bytes_max: settings.memory_bytes_max, gauges: gauges.clone() },
        };
        let service = Service {
            executor: executor.clone(),
            limits,
            clients_must_know_the_cluster: settings.password.is_some(),
        };
        let address = SocketAddr::new(ip, node.rpc_port);
        let server_config = ServerConfig {
            body_bytes_max,
            queue_bytes_max: 2 * body_bytes_max,
            metrics: metrics.clone(),
            ..ServerConfig::default()
        };
        let local = LocalIdentity { cluster_id, node_id: id };
        let rpc = match Server::bind(address, server_config, local, Arc::new(service)) {
            Ok(rpc) => rpc,
            Err(error) => {
                stop_group(&group);
                return Err(match error {
                    RpcError::Bind { kind, .. } => {
                        NodeError::Listen { id, address, purpose: "the other nodes", source: kind.into() }
                    }
                    source => NodeError::Rpc { id, source },
                });
            }
        };

        let started = Instant::now();
        let backend =
            Arc::new(NodeBackend::new(executor, node, settings, gauges.clone(), history.clone(), started));
        let front_end = Arc::new(FrontEnd::new(
            backend,
            FrontEndOptions {
                password: settings.password.clone(),
                limits,
                connections_max: settings.connections_max as usize,
                output_bytes_max: settings.output_bytes_max as usize,
            },
        ));
        let admin = Admin {
            config: config.clone(),
            node: node.clone(),
            group: group.clone(),
            gauges: gauges.clone(),
            front_end: front_end.clone(),
            rpc_metrics: metrics,
            started,
        };
        let system = |source| NodeError::System { id, source };
        let purging = group.clone();
        crate::spawn(format!("purge-{id}"), move || purge(&purging, &gauges)).map_err(system)?;
        let redis = RedisServer::start(redis_listener, front_end).map_err(system)?;
        let admin = AdminServer::start(admin_listener, admin).map_err(system)?;
        log::info!(
            "node {id} serves Redis clients on {}, its peers on {}, administration on {}",
            redis.address(),
            rpc.local_addr(),
            admin.address()
        );
        Ok(Self { id, group, peers, rpc, redis, admin, history })
    }

    /// Waits until the node has stopped: by [`Node::stop`], or because it had to.
    ///
    /// # Errors
    /// [`NodeError::Stopped`]: the process should exit with it.
    ///
    /// # Blocking
    /// Until then.
    pub fn wait(&self) -> Result<(), NodeError> {
        self.group.wait().map_err(|source| NodeError::Stopped { id: self.id, source })
    }

    /// Stops the node in order: leadership handed over, no new requests, those under way answered, the files closed.
    ///
    /// # Blocking
    /// For some seconds at most.
    pub fn stop(&self) {
        if self.group.soft_state().role == Role::Leader {
            // Else the others would notice only after an election timeout. If nobody takes over, they will.
            match self.group.transfer_leadership(None) {
                Ok(to) => log::info!("node {} has handed leadership over to node {to}", self.id),
                Err(error) => log::info!("node {} stops as the leader: {error}", self.id),
            }
        }
        self.history.close();
        self.redis.stop();
        self.admin.stop();
        self.rpc.shutdown();
        stop_group(&self.group);
        self.peers.close();
        log::info!("node {} has stopped", self.id);
    }
}

fn stop_group(group: &GroupHandle<ReplicatedMachine>) {
    if let Err(error) = group.shutdown() {
        log::debug!("the group had stopped before: {error}");
    }
}

fn listen(id: NodeId, address: SocketAddr, purpose: &'static str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).map_err(|source| NodeError::Listen { id, address, purpose, source })
}

fn client_config(body_bytes_max: usize, metrics: &Arc<RpcMetrics>) -> ClientConfig {
    ClientConfig {
        body_bytes_max,
        queue_bytes_max: 2 * body_bytes_max,
        // A node that was restarted must hear of the election that its absence caused at once.
        backoff_max: Duration::from_millis(250),
        metrics: metrics.clone(),
        ..ClientConfig::default()
    }
}

/// The log is cut by whole segments, so they must be small against what it may grow to before a snapshot lets it be cut.
fn wal_options(snapshot_log_bytes: u64) -> WalOptions {
    let options = WalOptions::default();
    WalOptions { segment_bytes: (snapshot_log_bytes / 4).min(options.segment_bytes), ..options }
}

fn group_config(config: &ClusterConfig, id: NodeId, join: bool, command_bytes_max: usize) -> GroupConfig {
    let settings = &config.settings;
    // Two ticks to a heartbeat, so that rounding an election timeout to ticks costs little.
    let tick_ms = (settings.heartbeat_ms / 2).max(1);
    let ticks = |ms: u64| ms.div_ceil(tick_ms).min(u64::from(u32::MAX)) as u32;
    let raft = squall_raft::core::Config {
        heartbeat_ticks: ticks(settings.heartbeat_ms),
        election_ticks: ticks(settings.election_timeout_ms),
        append_bytes_max: APPEND_BYTES_MAX,
        ..squall_raft::core::Config::new(id)
    };
    let defaults = GroupConfig::new(raft);
    let founders = config.nodes.iter().map(|node| (node.id, node.to_member_address()));
    GroupConfig {
        founders: if join { Membership::default() } else { Membership::founding(founders) },
        tick: Duration::from_millis(tick_ms),
        command_bytes_max,
        proposal_bytes_max: 4 * command_bytes_max,
        snapshot_log_bytes: settings.snapshot_log_bytes,
        // Who wants a short log wants no long rest of it, either.
        log_keep_bytes: settings.snapshot_log_bytes.min(defaults.log_keep_bytes),
        log_keep_lagging_bytes: settings.snapshot_log_bytes.min(defaults.log_keep_lagging_bytes),
        ..defaults
    }
}

/// Removes expired keys while nobody writes: without writes log time would stand still, and they would stay
/// for ever.
fn purge(group: &GroupHandle<ReplicatedMachine>, gauges: &Gauges) {
    loop {
        std::thread::sleep(PURGE_INTERVAL);
        let Some(status) = group.status() else { return };
        let now_ms = executor::now_ms();
        if status.raft.leader == Some(group.id()) && gauges.is_tick_due(now_ms) {
            // A refusal means that another node leads by now; it purges.
            let _ = group.propose(Proposal::tick(now_ms).encode());
        }
    }
}

/// A role's name, as `INFO`, `/status` and the metrics spell it.
fn role_name(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

/// What nodes of one process or machine are told about `node`, for messages to people.
pub fn describe(node: &NodeConfig) -> String {
    format!(
        "node {}: Redis {}, peers {}, admin http://{}/status",
        node.id,
        node.redis_address(),
        node.rpc_address(),
        node.admin_address()
    )
}
