//! The admin port: status, metrics and fibers over HTTP, to be read by people, scripts and Prometheus.
//!
//! It only reads; a profile makes it do so for a while. Requests are `GET` with an empty body; a connection serves one request.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use squall_fiber::WorkerMetrics;
use squall_profile::flame::{self, Subject};
use squall_raft::group::GroupHandle;
use squall_rpc::RpcMetrics;

use super::check::Check;
use super::machine::{Gauges, ReplicatedMachine};
use super::members::part_name;
use super::role_name;
use crate::config::{ClusterConfig, NodeConfig};
use crate::resp::{FrontEnd, protected_mode_refusal};

const REQUEST_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// How long a client may take to ask, and to read the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
const PROFILE_SECONDS_MAX: u64 = 600;
const PROFILE_RATE_HZ_MAX: u64 = 1000;
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What the admin port tells about.
pub(super) struct Admin {
    pub config: ClusterConfig,
    pub node: NodeConfig,
    pub group: GroupHandle<ReplicatedMachine>,
    pub gauges: Arc<Gauges>,
    pub front_end: Arc<FrontEnd>,
    pub rpc_metrics: Arc<RpcMetrics>,
    pub started: Instant,
}

/// The running port.
pub(super) struct AdminServer {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
}

impl AdminServer {
    /// # Errors
    /// The listener has no address, or no activity can be started.
    pub fn start(listener: TcpListener, admin: Admin) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (admin, stop) = (Arc::new(admin), stopping.clone());
        crate::spawn("admin-accept", move || {
            loop {
                let accepted = listener.accept();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok((stream, peer)) = accepted else {
                    std::thread::sleep(ACCEPT_RETRY);
                    continue;
                };
                let admin = admin.clone();
                let served = crate::spawn("admin-request", move || {
                    if let Err(error) = admin.serve(stream, peer) {
                        log::debug!("admin client {peer}: {error}");
                    }
                });
                if let Err(error) = served {
                    log::warn!("no activity can be started for admin client {peer}: {error}");
                }
            }
        })?;
        Ok(Self { address, stopping })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting. Requests under way end by themselves, within seconds.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Ends the wait for the next connection; if that fails, there is no listener any more.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
    }
}

struct Response {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Response {
    fn text(status: &'static str, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    fn json(value: &Value) -> Self {
        Self { status: "200 OK", content_type: "application/json", body: format!("{value:#}\n") }
    }
}

const HELP: &str = "\
/status   this node and its view of the cluster, as JSON
/metrics  counters and gauges, in Prometheus' text format
/fibers   the live fibers, what each waits for, and on which worker; /fibers?backtraces=1 tells where they stand, too

Flame graphs, taken while you wait; &folded=1 gives the stacks as text:
/debug/profile?seconds=10   what fibers compute
/debug/offcpu?seconds=10    where fibers wait, for what, and for how long
";

impl Admin {
    fn serve(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
        stream.set_write_timeout(Some(CLIENT_TIMEOUT))?;
        let response = match protected_mode_refusal(peer.ip(), self.config.settings.password.is_some()) {
            Some(_) => Response::text("403 Forbidden", "without a password only this machine may connect\n"),
            None => match read_request(&mut stream)? {
                Ok(path) => self.answer(&path),
                Err(problem) => problem,
            },
        };
        let head = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            response.status,
            response.content_type,
            response.body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(response.body.as_bytes())?;
        stream.shutdown(Shutdown::Write)
    }

    fn answer(&self, path: &str) -> Response {
        match path.split('?').next().unwrap_or(path) {
            "/" => Response::text("200 OK", HELP),
            "/status" => Response::json(&self.status()),
            "/metrics" => match self.metrics() {
                Ok(body) => Response {
                    status: "200 OK",
                    content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    body,
                },
                Err(error) => Response::text("500 Internal Server Error", format!("{error}\n")),
            },
            "/fibers" => Response::text("200 OK", fibers(query_has(path, "backtraces"))),
            "/debug/profile" => self.profile(path, Subject::OnCpu),
            "/debug/offcpu" => self.profile(path, Subject::OffCpu),
            _ => Response::text("404 Not Found", HELP),
        }
    }

    /// Looks at the fibers for a while, and draws what it saw.
    fn profile(&self, path: &str, subject: Subject) -> Response {
        let rate_default = if subject == Subject::OffCpu { 20 } else { 99 };
        let (seconds, rate_hz) = match (
            query_number(path, "seconds", 10, PROFILE_SECONDS_MAX),
            query_number(path, "rate", rate_default, PROFILE_RATE_HZ_MAX),
        ) {
            (Ok(seconds), Ok(rate)) => (seconds, rate as u32),
            (Err(problem), _) | (_, Err(problem)) => return Response::text("400 Bad Request", problem),
        };
        let duration = Duration::from_secs(seconds);
        let mut profile = match subject {
            Subject::OffCpu => squall_fiber::profile_off_cpu(duration, rate_hz),
            _ => squall_fiber::profile_on_cpu(duration, rate_hz),
        };
        let title = match subject {
            Subject::OffCpu => format!("node {}: where fibers wait, {seconds} s", self.node.id),
            _ => format!("node {}: on the CPU, {seconds} s", self.node.id),
        };
        let as_text = query_has(path, "folded");
        // On a thread of the blocking pool: looking up names takes time and stack.
        let drawn = squall_fiber::run_blocking(move || {
            let folded = profile.folded();
            if as_text { Ok(folded) } else { flame::graph(&folded, subject, &title) }
        });
        match drawn {
            Ok(body) if as_text => Response::text("200 OK", body),
            Ok(body) => Response { status: "200 OK", content_type: "image/svg+xml", body },
            Err(error) => Response::text("503 Service Unavailable", format!("{error}\n")),
        }
    }

    fn status(&self) -> Value {
        let machine = self.gauges.stats();
        let mut status = json!({
            "cluster_id": self.config.settings.cluster_id_short(),
            "node_id": self.node.id,
            "version": env!("CARGO_PKG_VERSION"),
            "process_id": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "addresses": {
                "rpc": self.node.rpc_address(),
                "redis": self.node.redis_address(),
                "admin": self.node.admin_address(),
            },
            "clients": self.front_end.clients().connected(),
            "keys": machine.keys,
            "expiring_keys": machine.expiring_keys,
            "store_bytes": machine.store_bytes,
            "sessions": machine.sessions,
            "role": "stopped",
            "check": self.gauges.check().map(Check::to_json),
        });
        if let Some(group) = self.group.status() {
            let raft = group.raft;
            let peers: Vec<Value> = raft
                .peers
                .iter()
                .map(|peer| {
                    json!({
                        "node_id": peer.id,
                        "matched": peer.matched,
                        "next": peer.next,
                        "state": format!("{:?}", peer.state).to_lowercase(),
                        "recently_active": peer.recent_active,
                    })
                })
                .collect();
            let members: Vec<Value> = raft
                .membership
                .iter()
                .map(|(id, member, part)| {
                    let node = NodeConfig::from_member_address(id, &member.address);
                    json!({
                        "node_id": id,
                        "part": part_name(part),
                        "incarnation": format!("{:016x}", member.incarnation),
                        "rpc": node.as_ref().map(NodeConfig::rpc_address),
                        "redis": node.as_ref().map(NodeConfig::redis_address),
                        "admin": node.as_ref().map(NodeConfig::admin_address),
                    })
                })
                .collect();
            let Value::Object(fields) = &mut status else { unreachable!("made as an object above") };
            let raft_fields = json!({
                "role": role_name(raft.role),
                "term": raft.term,
                "leader": raft.leader,
                "commit": raft.committed,
                "applied": raft.applied,
                "persisted": raft.persisted,
                "first_index": raft.first_index,
                "last_index": raft.last_index,
                "snapshot_index": raft.snapshot.index,
                "snapshot_running": group.snapshot_running,
                "log_bytes": group.log_disk_bytes,
                "proposal_bytes": group.proposal_bytes,
                "peers": peers,
                "members": members,
                "transfer_to": raft.transfer,
            });
            if let Value::Object(raft_fields) = raft_fields {
                fields.extend(raft_fields);
            }
        }
        status
    }

    /// Gathered when asked for, so that serving metrics costs nothing in between.
    fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("squall");
        let mut gauge = |name: &str, help: &str, value: u64| {
            registry.register(name, help, ConstGauge::new(value as i64));
        };
        let machine = self.gauges.stats();
        gauge("keys", "Keys in the store", machine.keys);
        gauge("expiring_keys", "Keys with an expiry", machine.expiring_keys);
        gauge("store_bytes", "Memory of keys and values", machine.store_bytes);
        gauge("sessions", "Client sessions remembered", machine.sessions);
        gauge("redis_clients", "Redis clients connected", self.front_end.clients().connected() as u64);
        gauge("uptime_seconds", "Time since the start", self.started.elapsed().as_secs());
        if let Some(group) = self.group.status() {
            let raft = group.raft;
            gauge("raft_term", "The current term", raft.term);
            gauge("raft_is_leader", "Whether this node leads", u64::from(raft.leader == Some(raft.id)));
            gauge("raft_commit_index", "Committed up to here", raft.committed);
            gauge("raft_applied_index", "Applied up to here", raft.applied);
            gauge("raft_last_index", "The last entry of the log", raft.last_index);
            gauge("raft_log_bytes", "The log on disk", group.log_disk_bytes);
            gauge("raft_proposal_bytes", "Proposals that wait for an answer", group.proposal_bytes as u64);
        }
        let fibers = squall_fiber::current_metrics();
        let process = squall_fiber::metrics();
        gauge("fibers", "Live fibers", fibers.fibers_live as u64);
        gauge("fibers_ready", "Fibers that are ready to run", fibers.run_queue as u64);
        gauge("timers", "Timers that are set", fibers.timers as u64);
        gauge("stacks", "Stacks that exist, in use or free", process.stacks_mapped as u64);
        gauge("stack_address_bytes", "Address space of the stacks", process.stack_bytes_mapped as u64);
        gauge(
            "stack_high_water_bytes",
            "The deepest use of a stack seen",
            process.stack_high_water_bytes as u64,
        );
        let blocking = process.blocking;
        gauge("blocking_jobs", "Calls that wait for a thread of the blocking pool", blocking.queued as u64);
        gauge("blocking_threads", "Threads of the blocking pool", blocking.threads as u64);

        let rpc = &self.rpc_metrics;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for (name, help, value) in [
            ("redis_commands", "Redis commands taken on", self.front_end.commands_total()),
            ("redis_connections", "Redis connections ever made", self.front_end.clients().total()),
            ("fiber_switches", "Switches into a fiber", fibers.switches),
            ("worker_sleeps", "Times a worker went to sleep", fibers.parks),
            ("fibers_spawned", "Fibers ever spawned", fibers.fibers_spawned),
            ("fiber_steals", "Times a worker took fibers from another", fibers.steals),
            ("watchdog_incidents", "Fibers that kept a worker for too long", process.watchdog_incidents),
            ("hook_hits", "Calls in fibers that the hooks served", fibers.hook_hits),
            ("hook_bypasses", "Calls in fibers that went straight to libc", process.hook_bypasses),
            ("blocking_calls", "Calls handed to the blocking pool", blocking.calls),
            ("rpc_connections", "RPC connections established", read(&rpc.connections_opened)),
            ("rpc_frames_received", "RPC frames read", read(&rpc.frames_in)),
            ("rpc_frames_sent", "RPC frames written", read(&rpc.frames_out)),
            ("rpc_received_bytes", "RPC bytes read", read(&rpc.bytes_in)),
            ("rpc_sent_bytes", "RPC bytes written", read(&rpc.bytes_out)),
            ("rpc_requests_served", "RPC requests answered", read(&rpc.requests_served)),
            ("rpc_calls", "RPC calls made", read(&rpc.calls)),
        ] {
            registry.register(name, help, ConstCounter::new(value));
        }
        register_workers(&mut registry, &fibers.workers);
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Reads the head of a request. The inner error is the answer to a bad one.
fn read_request(stream: &mut TcpStream) -> io::Result<Result<String, Response>> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..count]);
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(httparse::Status::Complete(_)) => {
                return Ok(match (request.method, request.path) {
                    (Some("GET"), Some(path)) => Ok(path.to_owned()),
                    _ => Err(Response::text("405 Method Not Allowed", "only GET is served\n")),
                });
            }
            Ok(httparse::Status::Partial) if head.len() < REQUEST_BYTES_MAX => {}
            Ok(httparse::Status::Partial) => {
                return Ok(Err(Response::text(
                    "431 Request Header Fields Too Large",
                    "the request is too long\n",
                )));
            }
            Err(error) => {
                return Ok(Err(Response::text("400 Bad Request", format!("not an HTTP request: {error}\n"))));
            }
        }
    }
}

/// The value of a key in the query of a path; empty if there is only the key.
fn query_value<'a>(path: &'a str, key: &str) -> Option<&'a str> {
    let query = path.split_once('?').map_or("", |(_, query)| query);
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// Whether the query of a path names a key, with any value but 0.
fn query_has(path: &str, key: &str) -> bool {
    query_value(path, key).is_some_and(|value| value != "0")
}

/// A number from 1 in the query of a path. The error is the answer.
fn query_number(path: &str, key: &str, default: u64, max: u64) -> Result<u64, String> {
    let Some(text) = query_value(path, key) else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=max).contains(number));
    number.ok_or_else(|| format!("{key} is a number from 1 to {max}, not {text:?}\n"))
}

fn fibers(with_backtraces: bool) -> String {
    if with_backtraces {
        // On a thread of the blocking pool: looking up names takes time and stack.
        return squall_fiber::run_blocking(|| squall_fiber::dump().to_string());
    }
    let fibers = squall_fiber::fibers();
    let mut text = format!("{} fibers\n", fibers.len());
    for fiber in fibers {
        text += &format!("{fiber}\n");
    }
    text
}

/// What the runtime counts for each worker by itself.
fn register_workers(registry: &mut Registry, workers: &[WorkerMetrics]) {
    type Labels = Vec<(&'static str, String)>;
    type Figure = (&'static str, &'static str, fn(&WorkerMetrics) -> u64);
    let gauges: [Figure; 2] = [
        ("worker_run_queue", "Fibers that are ready to run on the worker", |worker| worker.run_queue as u64),
        ("worker_timers", "Timers that the worker keeps", |worker| worker.timers as u64),
    ];
    for (name, help, value) in gauges {
        let family = Family::<Labels, Gauge>::default();
        for (index, worker) in workers.iter().enumerate() {
            family.get_or_create(&vec![("worker", index.to_string())]).set(value(worker) as i64);
        }
        registry.register(name, help, family);
    }
    let counters: [Figure; 5] = [
        ("worker_switches", "Switches into a fiber", |worker| worker.switches),
        ("worker_parks", "Times the worker went to sleep", |worker| worker.parks),
        ("worker_steals", "Times the worker took fibers from another", |worker| worker.steals),
        ("worker_hook_hits", "Hooked calls served", |worker| worker.hook_hits),
        ("worker_watchdog_incidents", "Fibers that kept the worker for too long", |worker| {
            worker.watchdog_incidents
        }),
    ];
    for (name, help, value) in counters {
        let family = Family::<Labels, Counter>::default();
        for (index, worker) in workers.iter().enumerate() {
            family.get_or_create(&vec![("worker", index.to_string())]).inc_by(value(worker));
        }
        registry.register(name, help, family);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_query_are_found() {
        for (path, wanted) in [
            ("/fibers", false),
            ("/fibers?backtraces", true),
            ("/fibers?backtraces=1", true),
            ("/fibers?x=1&backtraces=yes", true),
            ("/fibers?backtraces=0", false),
            ("/fibers?nobacktraces=1", false),
        ] {
            assert_eq!(query_has(path, "backtraces"), wanted, "{path}");
        }
    }

    #[test]
    fn numbers_of_a_query_are_checked() {
        let seconds = |query: &str| query_number(&format!("/debug/profile{query}"), "seconds", 10, 600);
        assert_eq!(seconds(""), Ok(10));
        assert_eq!(seconds("?folded=1&seconds=600"), Ok(600));
        for wrong in ["?seconds=0", "?seconds=601", "?seconds", "?seconds=-1", "?seconds=1e3"] {
            assert!(seconds(wrong).is_err_and(|problem| problem.contains("from 1 to 600")), "{wrong}");
        }
    }
}
