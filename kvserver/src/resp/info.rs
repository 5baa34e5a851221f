//! The text of `INFO`.

use std::fmt::Write;

use super::Clients;
use crate::machine::MachineStats;

/// The version of Redis whose behaviour is followed; client libraries look at it.
pub(super) const REDIS_VERSION: &str = "7.0.0";

/// What a node tells about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// The cluster's id, or a part of it that clients may know.
    pub cluster_id: String,
    /// The node's id.
    pub node_id: u64,
    /// The port of the Redis protocol.
    pub redis_port: u16,
    /// How long the node has been up, in seconds.
    pub uptime_seconds: u64,
    /// `leader`, `follower`, `candidate`, …
    pub raft_role: String,
    /// The current term.
    pub raft_term: u64,
    /// The leader's node id, if known.
    pub raft_leader: Option<u64>,
    /// The members: `voters 1 2 3, learners 4`.
    pub raft_members: String,
    /// The highest index known to be committed.
    pub raft_commit_index: u64,
    /// The highest index applied.
    pub raft_applied_index: u64,
    /// The first index in the log.
    pub raft_first_index: u64,
    /// The last index in the log.
    pub raft_last_index: u64,
    /// The size of the log on disk, in bytes.
    pub raft_log_bytes: u64,
    /// Figures about the store.
    pub machine: MachineStats,
}

impl ServerInfo {
    /// The sections asked for, in lower case; all of them if none is named.
    pub(super) fn render(&self, sections: &[String], clients: &Clients, commands_total: u64) -> String {
        let all = sections.is_empty()
            || sections.iter().any(|section| matches!(section.as_str(), "all" | "everything" | "default"));
        let leader = self.raft_leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
        let machine = &self.machine;
        let log_entries = (self.raft_last_index + 1).saturating_sub(self.raft_first_index);

        let mut text = String::new();
        let mut section = |title: &str, fields: &[(&str, &dyn std::fmt::Display)]| {
            if all || sections.iter().any(|section| section.eq_ignore_ascii_case(title)) {
                let gap = if text.is_empty() { "" } else { "\r\n" };
                // Writing to a string cannot fail.
                let _ = write!(text, "{gap}# {title}\r\n");
                for (name, value) in fields {
                    let _ = write!(text, "{name}:{value}\r\n");
                }
            }
        };
        section(
            "Server",
            &[
                ("redis_version", &REDIS_VERSION),
                ("squall_version", &env!("CARGO_PKG_VERSION")),
                ("redis_mode", &"standalone"),
                ("process_id", &std::process::id()),
                ("run_id", &self.cluster_id),
                ("tcp_port", &self.redis_port),
                ("uptime_in_seconds", &self.uptime_seconds),
                ("uptime_in_days", &(self.uptime_seconds / 86_400)),
            ],
        );
        section("Clients", &[("connected_clients", &clients.connected())]);
        section("Memory", &[("used_memory_dataset", &machine.store_bytes), ("maxmemory", &0)]);
        section(
            "Stats",
            &[
                ("total_connections_received", &clients.total()),
                ("total_commands_processed", &commands_total),
            ],
        );
        // Every node takes writes, whoever leads: a client that looks for a master has found one.
        section("Replication", &[("role", &"master")]);
        section(
            "Raft",
            &[
                ("raft_cluster_id", &self.cluster_id),
                ("raft_node_id", &self.node_id),
                ("raft_role", &self.raft_role),
                ("raft_term", &self.raft_term),
                ("raft_leader", &leader),
                ("raft_members", &self.raft_members),
                ("raft_commit_index", &self.raft_commit_index),
                ("raft_applied_index", &self.raft_applied_index),
                ("raft_first_index", &self.raft_first_index),
                ("raft_last_index", &self.raft_last_index),
                ("raft_log_entries", &log_entries),
                ("raft_log_bytes", &self.raft_log_bytes),
                ("raft_sessions", &machine.sessions),
            ],
        );
        let keyspace = format!("keys={},expires={},avg_ttl=0", machine.keys, machine.expiring_keys);
        let fields: &[(&str, &dyn std::fmt::Display)] = &[("db0", &keyspace)];
        section("Keyspace", if machine.keys > 0 { fields } else { &[] });
        text
    }
}
