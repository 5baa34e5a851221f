//! The configuration of a cluster: one file, the same on every node.
//!
//! It is read in two stages. The first takes the file apart and keeps the line of every key (`raw.rs`); the
//! second, here, checks everything and yields a [`ClusterConfig`] that the rest of the program need not
//! doubt. Every error names the file, the line and the key, and says what to do.
//!
//! Two forms are read: lines of `node0ip=127.0.0.1`, and TOML with `[[node]]` tables if the file's name ends
//! in `.toml`. The settings have the same names in both; [`ClusterConfig::write_default`] writes each with
//! its explanation.

mod password;
mod raw;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::resp::Limits;
use crate::store::hash;

pub use password::Password;
use raw::{Malformed, RawSetting};

/// The most nodes of a cluster. Each write is sent to all of them, so more only make it slower.
pub const NODES_MAX: usize = 31;

/// Ports of the nodes of a default cluster, each counting up from here.
const DEFAULT_RPC_PORT: u16 = 7001;
const DEFAULT_REDIS_PORT: u16 = 7379;
const DEFAULT_ADMIN_PORT: u16 = 7479;
/// Where a node's other ports are, unless given: this far above its first one.
const REDIS_PORT_OFFSET: u16 = 1000;
const ADMIN_PORT_OFFSET: u16 = 2000;

/// Why there is no configuration. All are for the operator to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot read the configuration: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file cannot be written, or exists already.
    #[error("{}: cannot write the configuration: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file says something impossible.
    #[error("{}{}: {}{problem}", path.display(), Shown(":", line), Shown("", &key.as_ref().map(|key| format!("{key}: "))))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line, from 1, if one is at fault.
        line: Option<usize>,
        /// The key at fault, if any.
        key: Option<String>,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A default cluster of this size is not possible.
    #[error("a cluster of {nodes} nodes is not possible; choose 1 to {NODES_MAX}")]
    NodeCount {
        /// The number asked for.
        nodes: usize,
    },
    /// The cluster has no such node.
    #[error("there is no node {id}; the configuration has nodes 1 to {nodes}")]
    NoSuchNode {
        /// The id asked for.
        id: u64,
        /// How many nodes there are.
        nodes: usize,
    },
}

/// Shows a prefix and a value, or nothing for `None`.
struct Shown<'a, T>(&'static str, &'a Option<T>);

impl<T: fmt::Display> fmt::Display for Shown<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.1.as_ref().map_or(Ok(()), |value| write!(formatter, "{}{value}", self.0))
    }
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's id, from 1. Node 1 is `node0` in the file.
    pub id: u64,
    /// Where the others and the clients reach it.
    pub ip: IpAddr,
    /// The port for the other nodes and for clerks.
    pub rpc_port: u16,
    /// The port of the Redis protocol.
    pub redis_port: u16,
    /// The port for status and metrics.
    pub admin_port: u16,
}

impl NodeConfig {
    /// The node's addresses as its cluster remembers them: `IP RPC-PORT REDIS-PORT ADMIN-PORT`.
    pub(crate) fn to_member_address(&self) -> Bytes {
        let Self { ip, rpc_port, redis_port, admin_port, .. } = self;
        format!("{ip} {rpc_port} {redis_port} {admin_port}").into()
    }

    /// What [`to_member_address`](Self::to_member_address) wrote.
    pub(crate) fn from_member_address(id: u64, address: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(address).ok()?.split(' ');
        let ip = parts.next()?.parse().ok()?;
        let mut port = || parts.next()?.parse().ok();
        Some(Self { id, ip, rpc_port: port()?, redis_port: port()?, admin_port: port()? })
    }

    /// Where the other nodes and clerks reach it.
    pub fn rpc_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.rpc_port)
    }

    /// Where Redis clients reach it.
    pub fn redis_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.redis_port)
    }

    /// Where status and metrics are.
    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.admin_port)
    }
}

/// The settings that all nodes share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tells this cluster from any other. Part of everything on disk and of every handshake. It also keys the
    /// hash of the store, so the whole of it should not be shown to clients.
    pub cluster_id: u128,
    /// The file does not name an id: it was made of the nodes' addresses, and changes with them.
    pub cluster_id_is_derived: bool,
    /// What clients must authenticate with, if anything. Without it only this machine may connect.
    pub password: Option<Password>,
    /// What to bind to instead of a node's own address.
    pub listen: Option<IpAddr>,
    /// A follower that hears nothing from a leader for this long, and up to twice as long, stands for
    /// election.
    pub election_timeout_ms: u64,
    /// How often an idle leader tells its followers that it is there.
    pub heartbeat_ms: u64,
    /// How long a request waits for a leader before it fails.
    pub no_leader_wait_ms: u64,
    /// How large the log may grow before a snapshot is taken.
    pub snapshot_log_bytes: u64,
    /// The longest key.
    pub key_bytes_max: u64,
    /// The longest value.
    pub value_bytes_max: u64,
    /// How many Redis connections a node serves at a time.
    pub connections_max: u64,
    /// How many bytes of replies a node keeps for a Redis client that does not read them yet.
    pub output_bytes_max: u64,
    /// How many bytes of changes a node keeps for those who watch keys.
    pub watch_history_bytes: u64,
    /// Above this a leader refuses writes that may take memory; 0 for no limit.
    pub memory_bytes_max: u64,
}

impl Settings {
    /// The limits on requests. The whole request has room for one key and one value of the greatest length
    /// beside 1 MiB.
    pub fn limits(&self) -> Limits {
        Limits {
            key_bytes_max: self.key_bytes_max,
            value_bytes_max: self.value_bytes_max,
            request_bytes_max: self.key_bytes_max + self.value_bytes_max + (1 << 20),
        }
    }

    /// The start of the cluster's id, to be shown.
    pub fn cluster_id_short(&self) -> String {
        format!("{:08x}", self.cluster_id >> 96)
    }

    fn with_id(cluster_id: u128) -> Self {
        let mut settings = Self {
            cluster_id,
            cluster_id_is_derived: false,
            password: None,
            listen: None,
            election_timeout_ms: 0,
            heartbeat_ms: 0,
            no_leader_wait_ms: 0,
            snapshot_log_bytes: 0,
            key_bytes_max: 0,
            value_bytes_max: 0,
            connections_max: 0,
            output_bytes_max: 0,
            watch_history_bytes: 0,
            memory_bytes_max: 0,
        };
        for number in NUMBERS {
            *(number.field)(&mut settings) = number.default;
        }
        settings
    }
}

/// A numeric setting. The one place for its name, bounds, and meaning.
struct Number {
    name: &'static str,
    default: u64,
    min: u64,
    max: u64,
    /// One or more lines for the written file.
    meaning: &'static [&'static str],
    field: fn(&mut Settings) -> &mut u64,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

static NUMBERS: &[Number] = &[
    Number {
        name: "election_timeout_ms",
        default: 500,
        min: 50,
        max: 60_000,
        meaning: &[
            "A follower that hears nothing from a leader for this long, and up to twice as long, stands for",
            "election. Lower finds a new leader sooner; too low elects a new one whenever the machine is busy.",
        ],
        field: |settings| &mut settings.election_timeout_ms,
    },
    Number {
        name: "heartbeat_ms",
        default: 100,
        min: 5,
        max: 20_000,
        meaning: &[
            "How often an idle leader tells its followers that it is there: at most a third of the above.",
        ],
        field: |settings| &mut settings.heartbeat_ms,
    },
    Number {
        name: "no_leader_wait_ms",
        default: 5_000,
        min: 0,
        max: 600_000,
        meaning: &[
            "How long a request waits for a leader before it fails with CLUSTERDOWN; 0 fails at once.",
        ],
        field: |settings| &mut settings.no_leader_wait_ms,
    },
    Number {
        name: "snapshot_log_bytes",
        default: 256 * MIB,
        min: MIB,
        max: 1024 * GIB,
        meaning: &["How large the log may grow before a snapshot is taken and the log is cut."],
        field: |settings| &mut settings.snapshot_log_bytes,
    },
    Number {
        name: "key_bytes_max",
        default: 64 * KIB,
        min: 1,
        max: 512 * MIB,
        meaning: &["The longest key."],
        field: |settings| &mut settings.key_bytes_max,
    },
    Number {
        name: "value_bytes_max",
        default: 64 * MIB,
        min: 1,
        max: 512 * MIB,
        meaning: &["The longest value."],
        field: |settings| &mut settings.value_bytes_max,
    },
    Number {
        name: "connections_max",
        default: 10_000,
        min: 1,
        max: 1_000_000,
        meaning: &[
            "How many Redis connections a node serves at a time; further ones are refused with a message.",
        ],
        field: |settings| &mut settings.connections_max,
    },
    Number {
        name: "output_bytes_max",
        default: 64 * MIB,
        min: 64 * KIB,
        max: 16 * GIB,
        meaning: &["How many bytes of replies are kept for a Redis client that does not read them yet."],
        field: |settings| &mut settings.output_bytes_max,
    },
    Number {
        name: "watch_history_bytes",
        default: 16 * MIB,
        min: 64 * KIB,
        max: 64 * GIB,
        meaning: &[
            "How many bytes of changes a node keeps in memory for those who watch keys (CHANGES). A watcher that was away",
            "for longer must read the keys again.",
        ],
        field: |settings| &mut settings.watch_history_bytes,
    },
    Number {
        name: "memory_bytes_max",
        default: 0,
        min: 0,
        max: 1024 * 1024 * GIB,
        meaning: &[
            "Above this many bytes of keys and values (with 160 bytes for each key) writes that may take memory are refused",
            "with OOM, until keys are deleted or expire; 0 for no limit. The process takes somewhat more.",
        ],
        field: |settings| &mut settings.memory_bytes_max,
    },
];

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The nodes, by id without gaps.
    pub nodes: Vec<NodeConfig>,
    /// What they share.
    pub settings: Settings,
}

impl ClusterConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] with the place and the remedy.
    ///
    /// # Blocking
    /// On the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of the file `path`, whose name tells its form.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the place and the remedy.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw = if is_toml(path) { raw::parse_toml(text) } else { raw::parse_lines(text) };
        raw.and_then(|raw| validate(&raw, is_toml(path))).map_err(|malformed| ConfigError::Invalid {
            path: path.to_owned(),
            line: malformed.line,
            key: malformed.key,
            problem: malformed.problem,
        })
    }

    /// The cluster that runs without any file: `nodes` nodes on this machine.
    ///
    /// # Errors
    /// [`ConfigError::NodeCount`] if that many are not possible.
    pub fn default_cluster(nodes: usize, cluster_id: u128) -> Result<Self, ConfigError> {
        if !(1..=NODES_MAX).contains(&nodes) {
            return Err(ConfigError::NodeCount { nodes });
        }
        let node = |index: u16| NodeConfig {
            id: u64::from(index) + 1,
            ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            rpc_port: DEFAULT_RPC_PORT + index,
            redis_port: DEFAULT_REDIS_PORT + index,
            admin_port: DEFAULT_ADMIN_PORT + index,
        };
        Ok(Self { nodes: (0..nodes as u16).map(node).collect(), settings: Settings::with_id(cluster_id) })
    }

    /// The node with this id.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchNode`].
    pub fn node(&self, id: u64) -> Result<&NodeConfig, ConfigError> {
        let nodes = self.nodes.len();
        self.nodes.iter().find(|node| node.id == id).ok_or(ConfigError::NoSuchNode { id, nodes })
    }

    /// What `node` binds its ports to: its own address, unless `listen` says otherwise.
    pub fn bind_ip(&self, node: &NodeConfig) -> IpAddr {
        self.settings.listen.unwrap_or(node.ip)
    }
}

fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"))
}

/// What a file says about one node.
#[derive(Default)]
struct RawNode<'a> {
    ip: Option<&'a RawSetting>,
    port: Option<&'a RawSetting>,
    redis_port: Option<&'a RawSetting>,
    admin_port: Option<&'a RawSetting>,
}

fn malformed(setting: &RawSetting, problem: impl Into<String>) -> Malformed {
    Malformed { line: Some(setting.line), key: Some(setting.key.clone()), problem: problem.into() }
}

fn validate(raw: &[RawSetting], is_toml: bool) -> Result<ClusterConfig, Malformed> {
    let mut seen: BTreeMap<(Option<usize>, &str), &RawSetting> = BTreeMap::new();
    let mut raw_nodes: BTreeMap<usize, RawNode<'_>> = BTreeMap::new();
    let mut settings = Settings::with_id(0);
    let mut cluster_id = None;
    for setting in raw {
        if let Some(first) = seen.insert((setting.node, &setting.name), setting) {
            return Err(malformed(setting, format!("set twice, first on line {}; remove one", first.line)));
        }
        let Some(index) = setting.node else {
            match setting.name.as_str() {
                "cluster_id" => cluster_id = Some(parse_cluster_id(setting)?),
                "password" => {
                    let problem = "a password has 1 to 16384 bytes; remove the line to have none";
                    settings.password =
                        Some(Password::new(&setting.value).ok_or_else(|| malformed(setting, problem))?);
                }
                "listen" => settings.listen = Some(parse_ip(setting)?),
                name => match NUMBERS.iter().find(|number| number.name == name) {
                    Some(number) => *(number.field)(&mut settings) = parse_number(setting, number)?,
                    None => return Err(unknown_key(setting, is_toml)),
                },
            }
            continue;
        };
        if index >= NODES_MAX {
            return Err(malformed(
                setting,
                format!("a cluster has at most {NODES_MAX} nodes, counted from 0"),
            ));
        }
        let node = raw_nodes.entry(index).or_default();
        match (setting.name.as_str(), is_toml) {
            ("ip", _) => node.ip = Some(setting),
            ("port", _) => node.port = Some(setting),
            ("redis_port", true) | ("redisport", false) => node.redis_port = Some(setting),
            ("admin_port", true) | ("adminport", false) => node.admin_port = Some(setting),
            _ => return Err(unknown_key(setting, is_toml)),
        }
    }

    let heartbeat_ms_max = settings.election_timeout_ms / 3;
    if settings.heartbeat_ms > heartbeat_ms_max {
        let at_fault = seen.get(&(None, "heartbeat_ms")).or_else(|| seen.get(&(None, "election_timeout_ms")));
        let problem = format!(
            "heartbeat_ms is {}, but may be at most a third of election_timeout_ms ({}), {heartbeat_ms_max}: one lost \
             heartbeat must not cause an election",
            settings.heartbeat_ms, settings.election_timeout_ms
        );
        return Err(Malformed {
            line: at_fault.map(|setting| setting.line),
            key: at_fault.map(|setting| setting.key.clone()),
            problem,
        });
    }

    let nodes = validate_nodes(&raw_nodes, is_toml)?;
    settings.cluster_id_is_derived = cluster_id.is_none();
    settings.cluster_id = cluster_id.unwrap_or_else(|| derived_cluster_id(&nodes));
    Ok(ClusterConfig { nodes, settings })
}

fn validate_nodes(
    raw_nodes: &BTreeMap<usize, RawNode<'_>>,
    is_toml: bool,
) -> Result<Vec<NodeConfig>, Malformed> {
    let key = |index: usize, name: &str| match is_toml {
        true => format!("node[{index}].{name}"),
        false => format!("node{index}{}", name.replace('_', "")),
    };
    let Some(last) = raw_nodes.last_key_value().map(|(index, _)| *index) else {
        let example =
            if is_toml { "add a [[node]] with ip and port" } else { "add node0ip=… and node0port=…" };
        return Err(Malformed {
            line: None,
            key: None,
            problem: format!("no nodes; {example} for each node"),
        });
    };
    let mut nodes = Vec::new();
    let mut taken: BTreeMap<SocketAddr, String> = BTreeMap::new();
    for index in 0..=last {
        let missing = |name: &str| Malformed {
            line: None,
            key: Some(key(index, name)),
            problem: "missing; every node from 0 up needs an ip and a port".into(),
        };
        let raw = raw_nodes.get(&index).ok_or_else(|| missing("ip"))?;
        let raw_ip = raw.ip.ok_or_else(|| missing("ip"))?;
        let ip = parse_ip(raw_ip)?;
        if ip.is_unspecified() || ip.is_multicast() {
            let problem =
                "an address at which the others reach the node is needed; `listen` sets what to bind to";
            return Err(malformed(raw_ip, problem));
        }
        let raw_port = raw.port.ok_or_else(|| missing("port"))?;
        let rpc_port = parse_port(raw_port)?;
        let other_port = |given: Option<&RawSetting>, name: &str, offset: u16| match given {
            Some(setting) => parse_port(setting),
            None => rpc_port.checked_add(offset).ok_or_else(|| {
                let default = u32::from(rpc_port) + u32::from(offset);
                let problem =
                    format!("{default}, the default {name} for it, is above 65535; set {}", key(index, name));
                malformed(raw_port, problem)
            }),
        };
        let redis_port = other_port(raw.redis_port, "redis_port", REDIS_PORT_OFFSET)?;
        let admin_port = other_port(raw.admin_port, "admin_port", ADMIN_PORT_OFFSET)?;
        for (name, given, port) in [
            ("port", raw.port, rpc_port),
            ("redis_port", raw.redis_port, redis_port),
            ("admin_port", raw.admin_port, admin_port),
        ] {
            let owner = key(index, name);
            if let Some(other) = taken.insert(SocketAddr::new(ip, port), owner.clone()) {
                let at_fault = given.unwrap_or(raw_port);
                let problem = format!("{owner} is {port}, and so is {other} at {ip}; give each its own port");
                return Err(malformed(at_fault, problem));
            }
        }
        nodes.push(NodeConfig { id: index as u64 + 1, ip, rpc_port, redis_port, admin_port });
    }
    Ok(nodes)
}

fn unknown_key(setting: &RawSetting, is_toml: bool) -> Malformed {
    let node_keys = match (is_toml, setting.node) {
        (true, Some(_)) => {
            return malformed(setting, "unknown; a node has ip, port, redis_port and admin_port");
        }
        (true, None) => "[[node]]",
        (false, _) => "node0ip, node0port, node0redisport, node0adminport (and so on for node1, …)",
    };
    let numbers: Vec<&str> = NUMBERS.iter().map(|number| number.name).collect();
    let problem =
        format!("unknown; the keys are {node_keys}, cluster_id, password, listen, {}", numbers.join(", "));
    malformed(setting, problem)
}

fn parse_number(setting: &RawSetting, number: &Number) -> Result<u64, Malformed> {
    let Number { min, max, default, .. } = number;
    setting.value.parse().ok().filter(|value| (min..=max).contains(&value)).ok_or_else(|| {
        let value = &setting.value;
        malformed(
            setting,
            format!("`{value}` is not a number from {min} to {max} (the default is {default})"),
        )
    })
}

fn parse_ip(setting: &RawSetting) -> Result<IpAddr, Malformed> {
    let value = &setting.value;
    value
        .parse()
        .map_err(|_| malformed(setting, format!("`{value}` is not an IP address such as 127.0.0.1 or ::1")))
}

fn parse_port(setting: &RawSetting) -> Result<u16, Malformed> {
    let value = &setting.value;
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(malformed(setting, format!("`{value}` is not a port from 1 to 65535"))),
    }
}

fn parse_cluster_id(setting: &RawSetting) -> Result<u128, Malformed> {
    let digits = setting.value.replace('-', "");
    let valid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let id = valid.then(|| u128::from_str_radix(&digits, 16).ok()).flatten();
    id.ok_or_else(|| malformed(setting, format!("`{}` is not an id of 32 hexadecimal digits", setting.value)))
}

/// The id of a cluster whose file has none: made of the nodes' addresses, so that all nodes find the same.
fn derived_cluster_id(nodes: &[NodeConfig]) -> u128 {
    let addresses: Vec<String> = nodes.iter().map(|node| node.rpc_address().to_string()).collect();
    let text = addresses.join(",");
    let half = |key| u128::from(hash::siphash_1_3(key, 0, text.as_bytes()));
    half(0) << 64 | half(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_NODES: &str = "node0ip=127.0.0.1\nnode0port=29016\nnode1ip=127.0.0.1\nnode1port=29017\n";

    fn lines(text: &str) -> Result<ClusterConfig, ConfigError> {
        ClusterConfig::parse(Path::new("test.conf"), text)
    }

    fn toml(text: &str) -> Result<ClusterConfig, ConfigError> {
        ClusterConfig::parse(Path::new("test.toml"), text)
    }

    #[test]
    fn the_form_of_lines_with_its_default_ports() {
        let config = lines(TWO_NODES).unwrap();
        let node = |id, rpc_port| NodeConfig {
            id,
            ip: "127.0.0.1".parse().unwrap(),
            rpc_port,
            redis_port: rpc_port + 1000,
            admin_port: rpc_port + 2000,
        };
        assert_eq!(config.nodes, [node(1, 29016), node(2, 29017)]);
        assert_eq!(config.settings.election_timeout_ms, 500);
        assert!(config.settings.password.is_none());
        assert_eq!(config.bind_ip(&config.nodes[0]), config.nodes[0].ip);
        assert_eq!(config.node(2).unwrap().redis_address(), "127.0.0.1:30017".parse().unwrap());
        assert_eq!(
            config.node(0).unwrap_err().to_string(),
            "there is no node 0; the configuration has nodes 1 to 2"
        );
    }

    #[test]
    fn both_forms_say_the_same() {
        let settings = "password=secret\nlisten=0.0.0.0\nelection_timeout_ms=900\nvalue_bytes_max=1000\n\
             cluster_id=01234567-89ab-cdef-0123-456789abcdef\n";
        let a = lines(&format!("{settings}{TWO_NODES}node1redisport=1\nnode1adminport=2\n")).unwrap();
        let b = toml(
            "password = \"secret\"\nlisten = \"0.0.0.0\"\nelection_timeout_ms = 900\nvalue_bytes_max = 1000\n\
             cluster_id = \"0123456789ABCDEF0123456789abcdef\"\n[[node]]\nip = \"127.0.0.1\"\nport = 29016\n[[node]]\n\
             ip = \"127.0.0.1\"\nport = 29017\nredis_port = 1\nadmin_port = 2\n",
        )
        .unwrap();
        assert_eq!(a.nodes, b.nodes);
        for config in [a, b] {
            assert!(config.settings.password.as_ref().unwrap().matches(b"secret"));
            assert_eq!(config.settings.cluster_id, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
            assert_eq!(config.settings.cluster_id_short(), "01234567");
            assert_eq!(config.bind_ip(&config.nodes[1]), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            assert_eq!((config.nodes[1].redis_port, config.nodes[1].admin_port), (1, 2));
            assert_eq!(config.settings.limits().value_bytes_max, 1000);
        }
    }

    #[test]
    fn without_an_id_the_addresses_make_one() {
        let id = |text: &str| lines(text).unwrap().settings.cluster_id;
        assert_eq!(id(TWO_NODES), id(&format!("heartbeat_ms=50\n{TWO_NODES}")));
        assert_ne!(id(TWO_NODES), id(&TWO_NODES.replace("29017", "29018")));
    }

    #[test]
    fn errors_name_the_file_the_line_the_key_and_the_remedy() {
        for (extra, expected) in [
            ("foo=1", "test.conf:5: foo: unknown; the keys are node0ip, node0port"),
            ("node0foo=1", "test.conf:5: node0foo: unknown; the keys are"),
            ("nonsense", "test.conf:5: expected `key=value`, found `nonsense`"),
            ("node0ip=127.0.0.2", "test.conf:5: node0ip: set twice, first on line 1; remove one"),
            ("node2ip=localhost", "test.conf:5: node2ip: `localhost` is not an IP address"),
            (
                "node2ip=0.0.0.0",
                "test.conf:5: node2ip: an address at which the others reach the node is needed",
            ),
            (
                "node2ip=127.0.0.1",
                "test.conf: node2port: missing; every node from 0 up needs an ip and a port",
            ),
            ("node2port=1", "test.conf: node2ip: missing"),
            ("node3port=1", "test.conf: node2ip: missing"),
            ("node31port=1", "test.conf:5: node31port: a cluster has at most 31 nodes"),
            ("node0redisport=0", "test.conf:5: node0redisport: `0` is not a port from 1 to 65535"),
            ("node0redisport=65536", "test.conf:5: node0redisport: `65536` is not a port from 1 to 65535"),
            ("node0redisport=-1", "test.conf:5: node0redisport: `-1` is not a port"),
            (
                "node0redisport=29017",
                "test.conf:4: node1port: node1port is 29017, and so is node0redisport at 127.0.0.1; give each its own port",
            ),
            (
                "node0adminport=30016",
                "test.conf:5: node0adminport: node0adminport is 30016, and so is node0redisport",
            ),
            (
                "election_timeout_ms=10",
                "test.conf:5: election_timeout_ms: `10` is not a number from 50 to 60000",
            ),
            ("election_timeout_ms=1s", "test.conf:5: election_timeout_ms: `1s` is not a number"),
            (
                "election_timeout_ms=200",
                "test.conf:5: election_timeout_ms: heartbeat_ms is 100, but may be at most",
            ),
            (
                "heartbeat_ms=400",
                "test.conf:5: heartbeat_ms: heartbeat_ms is 400, but may be at most a third",
            ),
            (
                "value_bytes_max=99999999999999999999",
                "test.conf:5: value_bytes_max: `99999999999999999999` is not",
            ),
            ("password=", "test.conf:5: password: a password has 1 to 16384 bytes"),
            ("cluster_id=xyz", "test.conf:5: cluster_id: `xyz` is not an id of 32 hexadecimal digits"),
            ("listen=everywhere", "test.conf:5: listen: `everywhere` is not an IP address"),
        ] {
            let error = lines(&format!("{TWO_NODES}{extra}\n")).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{extra}: {error}");
        }
    }

    #[test]
    fn errors_in_toml_and_in_whole_files() {
        for (text, expected) in [
            ("", "test.toml: no nodes; add a [[node]] with ip and port"),
            ("foo = 1\n", "test.toml:1: foo: unknown; the keys are [[node]], cluster_id"),
            (
                "[[node]]\nip = \"::1\"\nredisport = 1\n",
                "test.toml:3: node[0].redisport: unknown; a node has ip, port",
            ),
            ("[[node]]\nip = \"::1\"\n", "test.toml: node[0].port: missing"),
            ("heartbeat_ms = 1.5\n", "test.toml:1: heartbeat_ms: expected a string or an integer"),
            ("a = 1\nb = \n", "test.toml:2: "),
        ] {
            let error = toml(text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(
            lines("# nothing\n").unwrap_err().to_string().starts_with("test.conf: no nodes; add node0ip=")
        );
        let high = "node0ip=127.0.0.1\nnode0port=65000\n";
        assert_eq!(
            lines(high).unwrap_err().to_string(),
            "test.conf:2: node0port: 66000, the default redis_port for it, is above 65535; set node0redisport"
        );
        let error = ClusterConfig::load(Path::new("/nonexistent/test.conf")).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/test.conf: cannot read the configuration: "), "{error}");
    }

    #[test]
    fn the_default_cluster() {
        let config = ClusterConfig::default_cluster(3, 7).unwrap();
        let ports: Vec<_> =
            config.nodes.iter().map(|node| (node.rpc_port, node.redis_port, node.admin_port)).collect();
        assert_eq!(ports, [(7001, 7379, 7479), (7002, 7380, 7480), (7003, 7381, 7481)]);
        for nodes in [0, NODES_MAX + 1] {
            assert!(ClusterConfig::default_cluster(nodes, 7).is_err());
        }
    }

    #[test]
    fn the_defaults_are_within_their_bounds_and_the_limits_agree() {
        assert!(NUMBERS.iter().all(|number| (number.min..=number.max).contains(&number.default)));
        let limits = Settings::with_id(0).limits();
        assert_eq!(
            (limits.key_bytes_max, limits.value_bytes_max),
            (Limits::DEFAULT.key_bytes_max, Limits::DEFAULT.value_bytes_max)
        );
    }
}
