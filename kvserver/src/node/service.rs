//! What a node does when another node, or a clerk, asks it something.

use bytes::Bytes;
use squall_raft::group::{IncomingError, SnapshotHeader};
use squall_rpc::proto::kv::{ExecuteRequest, MembersRequest};
use squall_rpc::proto::raft::{MessageBatch, SnapshotChunkRequest, SnapshotChunkResponse};
use squall_rpc::{CallContext, Handler, Method, PeerIdentity, Status, StatusCode, proto};

use super::executor::{ExecuteFailure, Executor, Request, response_to_wire};
use super::{members, wire};
use crate::command::{self, Kind};
use crate::resp::{Limits, Reply};

pub(super) struct Service {
    pub executor: Executor,
    pub limits: Limits,
    /// Whether clients must know the cluster's id even on this machine, because the cluster has a password.
    pub clients_must_know_the_cluster: bool,
}

impl Handler for Service {
    fn admit(&self, peer: &PeerIdentity) -> Result<(), String> {
        if peer.node_id != 0 {
            // A node must name the cluster's id to get here. Whether it is a member is for Raft to judge: the one that
            // leads now may have joined while this node was away.
            let own = peer.node_id == self.executor.group.id();
            return if own { Err(format!("this is node {} itself", peer.node_id)) } else { Ok(()) };
        }
        let local = peer.addr.ip().to_canonical().is_loopback();
        if peer.knows_cluster || (local && !self.clients_must_know_the_cluster) {
            return Ok(());
        }
        Err("a client must name the cluster's id, which is in its configuration file".into())
    }

    fn call(&self, context: &CallContext, body: Bytes) -> Result<Bytes, Status> {
        match context.method {
            Method::KV_EXECUTE => self.execute(body),
            Method::KV_MEMBERS => self.members(body),
            Method::RAFT_SNAPSHOT_CHUNK => self.snapshot_chunk(context.peer.node_id, body),
            method => Err(Status::new(StatusCode::Unimplemented, format!("unknown method {method}"))),
        }
    }

    fn notify(&self, context: &CallContext, body: Bytes) {
        let from = context.peer.node_id;
        if context.method != Method::RAFT_MESSAGES || from == 0 {
            log::warn!("{} sent {}, which it may not", context.peer.addr, context.method);
            return;
        }
        let batch: MessageBatch = match proto::decode(body) {
            Ok(batch) => batch,
            Err(error) => {
                log::warn!("node {from} sent messages that cannot be understood: {error}");
                return;
            }
        };
        for message in batch.messages {
            match wire::from_wire(message) {
                Some(message) => self.executor.group.receive(from, message),
                None => log::warn!("node {from} sent a message of a kind that this release does not know"),
            }
        }
    }
}

impl Service {
    fn execute(&self, body: Bytes) -> Result<Bytes, Status> {
        let request: ExecuteRequest = proto::decode(body)?;
        let result = self.request(request).and_then(|request| self.executor.execute_here(&request));
        Ok(proto::encode(&response_to_wire(result)))
    }

    fn members(&self, body: Bytes) -> Result<Bytes, Status> {
        let request: MembersRequest = proto::decode(body)?;
        Ok(proto::encode(&members::serve(&self.executor, &request)))
    }

    /// Checks what came from outside as the Redis front end does, so that nonsense never enters the log.
    fn request(&self, request: ExecuteRequest) -> Result<Request, ExecuteFailure> {
        let refused = |problem: String| ExecuteFailure::Refused(problem);
        let session = match (&request.client_id[..], request.seq) {
            ([], 0) => None,
            ([], _) => return Err(refused("a request number without a client id".into())),
            (_, 0) => return Err(refused("request numbers begin at 1".into())),
            (id, seq) => {
                let id = id.try_into().map_err(|_| refused("a client id has 16 bytes".into()))?;
                Some((u128::from_be_bytes(id), seq))
            }
        };
        let commands: Vec<Vec<Bytes>> = request.commands.into_iter().map(|command| command.args).collect();
        for arguments in &commands {
            let spec = command::validate(arguments, &self.limits).map_err(|reply| match reply {
                Reply::Error(text) => refused(text.into_owned()),
                _ => refused("invalid command".into()),
            })?;
            match spec.kind() {
                Kind::Connection(_) => {
                    return Err(refused(format!("'{}' concerns a connection only", spec.name())));
                }
                Kind::Write if request.read_only => return Err(refused(format!("'{}' writes", spec.name()))),
                _ => {}
            }
        }
        Ok(Request { session, commands, read_only: request.read_only })
    }

    fn snapshot_chunk(&self, from: u64, body: Bytes) -> Result<Bytes, Status> {
        let chunk: SnapshotChunkRequest = proto::decode(body)?;
        let bad = |problem: &str| Status::new(StatusCode::BadRequest, problem);
        if from == 0 || chunk.from != from {
            return Err(bad("only a node sends snapshots, and only its own"));
        }
        let group = &self.executor.group;
        let header = SnapshotHeader {
            from,
            to: group.id(),
            term: chunk.term,
            snapshot: wire::meta_from_wire(chunk.meta.ok_or_else(|| bad("a chunk without its snapshot"))?),
            total_bytes: chunk.total_bytes,
        };
        let term = group.soft_state().term;
        if term > chunk.term {
            return Ok(proto::encode(&SnapshotChunkResponse { term, next_offset: 0, accepted: false }));
        }
        let store = || {
            let mut next_offset = group.begin_snapshot(header)?;
            if next_offset == chunk.offset && !chunk.data.is_empty() {
                next_offset = group.snapshot_chunk(&header, chunk.offset, &chunk.data, chunk.data_crc)?;
            }
            let accepted = chunk.done && next_offset == header.total_bytes;
            if accepted {
                group.finish_snapshot(&header)?;
            }
            Ok(SnapshotChunkResponse { term, next_offset, accepted })
        };
        let response = store().map_err(|error: IncomingError| {
            log::warn!("the snapshot from node {from} is not taken: {error}");
            Status::new(StatusCode::Failed, error.to_string())
        })?;
        Ok(proto::encode(&response))
    }
}
