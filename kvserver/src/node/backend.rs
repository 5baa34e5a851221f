//! The Redis front end's way into the cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::executor::{ExecuteFailure, Executor, Request};
use super::machine::Gauges;
use super::role_name;
use crate::config::{NodeConfig, Settings};
use crate::history::{Compacted, Filter, History, Page};
use crate::resp::{Backend, BackendError, ClientSession, Reply, ServerInfo};

pub(super) struct NodeBackend {
    executor: Executor,
    cluster_id: String,
    redis_port: u16,
    gauges: Arc<Gauges>,
    history: Arc<History>,
    started: Instant,
}

impl NodeBackend {
    pub fn new(
        executor: Executor,
        node: &NodeConfig,
        settings: &Settings,
        gauges: Arc<Gauges>,
        history: Arc<History>,
        started: Instant,
    ) -> Self {
        Self {
            executor,
            cluster_id: settings.cluster_id_short(),
            redis_port: node.redis_port,
            gauges,
            history,
            started,
        }
    }

    /// Writes with a session of the connection's own, so that a retry after a failover cannot run twice.
    fn write(
        &self,
        session: &mut ClientSession,
        commands: Vec<Vec<Bytes>>,
    ) -> Result<Vec<Reply>, ExecuteFailure> {
        if session.client_id == 0 {
            open_session(session)?;
        }
        session.seq += 1;
        let mut request =
            Request { session: Some((session.client_id, session.seq)), commands, read_only: false };
        let result = self.executor.execute(&request);
        if !matches!(result, Err(ExecuteFailure::Session(_))) {
            return result;
        }
        // Forgotten because others were more active; this request was certainly not executed. Begin anew.
        open_session(session)?;
        session.seq = 1;
        request.session = Some((session.client_id, session.seq));
        self.executor.execute(&request)
    }
}

fn open_session(session: &mut ClientSession) -> Result<(), ExecuteFailure> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| ExecuteFailure::Refused(format!("no random numbers: {error}")))?;
    session.client_id = u128::from_be_bytes(id).max(1);
    session.seq = 0;
    Ok(())
}

impl Backend for NodeBackend {
    fn execute(
        &self,
        session: &mut ClientSession,
        batch: Vec<Vec<Bytes>>,
        read_only: bool,
    ) -> Result<Vec<Reply>, BackendError> {
        let result = if read_only {
            self.executor.execute(&Request { session: None, commands: batch, read_only })
        } else {
            self.write(session, batch)
        };
        result.map_err(|failure| match failure {
            ExecuteFailure::NotLeader { .. } => BackendError::NoLeader,
            ExecuteFailure::Indefinite(reason) => BackendError::Uncertain(reason),
            ExecuteFailure::Overloaded(reason) => BackendError::Overloaded(reason),
            ExecuteFailure::Session(error) => BackendError::Refused(error.to_string()),
            ExecuteFailure::Refused(reason) => BackendError::Refused(reason),
            ExecuteFailure::OutOfMemory(reason) => BackendError::OutOfMemory(reason),
            ExecuteFailure::Stopped => BackendError::Stopping,
        })
    }

    fn changes(
        &self,
        seen: u64,
        filter: &Filter,
        count_max: usize,
        wait: Duration,
    ) -> Result<Page, Compacted> {
        self.history.read(seen, filter, count_max, wait)
    }

    fn info(&self) -> ServerInfo {
        let group = &self.executor.group;
        let status = group.status();
        let raft = status.as_ref().map(|status| &status.raft);
        ServerInfo {
            cluster_id: self.cluster_id.clone(),
            node_id: group.id(),
            redis_port: self.redis_port,
            uptime_seconds: self.started.elapsed().as_secs(),
            raft_role: raft.map_or_else(|| "stopped".into(), |raft| role_name(raft.role).to_owned()),
            raft_term: raft.map_or(0, |raft| raft.term),
            raft_leader: raft.and_then(|raft| raft.leader),
            raft_members: raft.map_or_else(String::new, |raft| raft.membership.to_string()),
            raft_commit_index: raft.map_or(0, |raft| raft.committed),
            raft_applied_index: raft.map_or(0, |raft| raft.applied),
            raft_first_index: raft.map_or(0, |raft| raft.first_index),
            raft_last_index: raft.map_or(0, |raft| raft.last_index),
            raft_log_bytes: status.as_ref().map_or(0, |status| status.log_disk_bytes),
            machine: self.gauges.stats(),
        }
    }
}
