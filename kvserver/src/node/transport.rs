//! The way to the peers: one RPC client each, for Raft's messages, for snapshots, and for requests forwarded
//! to the leader. Follows the members as they come and go.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use squall_raft::core::types::NodeId;
use squall_raft::core::{Membership, Message};
use squall_raft::group::{Sent, SnapshotTransfer, Transport};
use squall_rpc::proto::raft::{MessageBatch, SnapshotChunkRequest, SnapshotChunkResponse};
use squall_rpc::{Client, ClientConfig, LocalIdentity, Method, RpcError, proto};

use super::wire;
use crate::config::{ClusterConfig, NodeConfig};

/// Bytes of a snapshot in one request.
const CHUNK_BYTES: usize = 1 << 20;
/// How long a peer may take to store one chunk; the last one has the whole file verified and synced.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a chunk is sent again after an error that may pass, and the pause before.
const CHUNK_ATTEMPTS: u32 = 5;
const CHUNK_RETRY: Duration = Duration::from_millis(200);

/// The clients of all peers: of those in the configuration file, and of the cluster's members. A node that joins knows its
/// leader from the file; where file and cluster differ, the cluster is right.
pub(super) struct Peers {
    id: NodeId,
    rpc: ClientConfig,
    local: LocalIdentity,
    /// One that is no member any more keeps its client: it costs nothing unless it is used.
    clients: RwLock<BTreeMap<NodeId, (NodeConfig, Arc<Client>)>>,
}

impl Peers {
    /// # Errors
    /// The settings do not fit the RPC layer.
    pub fn new(config: &ClusterConfig, id: NodeId, rpc: &ClientConfig) -> Result<Self, RpcError> {
        let local = LocalIdentity { cluster_id: config.settings.cluster_id.to_be_bytes(), node_id: id };
        let peers = Self { id, rpc: rpc.clone(), local, clients: RwLock::default() };
        config.nodes.iter().try_for_each(|node| peers.learn(node.clone()))?;
        Ok(peers)
    }

    pub fn get(&self, id: NodeId) -> Option<Arc<Client>> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.get(&id).map(|(_, client)| client.clone())
    }

    /// Where a node is reached.
    pub fn address(&self, id: NodeId) -> Option<NodeConfig> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.get(&id).map(|(node, _)| node.clone())
    }

    fn learn(&self, node: NodeConfig) -> Result<(), RpcError> {
        let known = self.address(node.id);
        if node.id == self.id || known.as_ref() == Some(&node) {
            return Ok(());
        }
        // The first connection is for Raft's messages alone: a heartbeat must not queue behind a large
        // request.
        let rpc = ClientConfig { connections: 2, expected_node_id: Some(node.id), ..self.rpc.clone() };
        let client = Arc::new(Client::new(node.rpc_address(), rpc, self.local)?);
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        let before = clients.insert(node.id, (node, client));
        drop(clients);
        if let Some((_, client)) = before {
            // It takes a while, and a failure to start the activity leaves only an idle connection behind.
            let _ = crate::spawn("close-client", move || client.close());
        }
        Ok(())
    }

    /// # Blocking
    /// Until the activities of all clients have ended.
    pub fn close(&self) {
        let clients = std::mem::take(&mut *self.clients.write().unwrap_or_else(PoisonError::into_inner));
        clients.values().for_each(|(_, client)| client.close());
    }
}

impl Transport for Peers {
    fn members_changed(&self, members: &Membership) {
        for (id, member, _) in members.iter() {
            let learned = match NodeConfig::from_member_address(id, &member.address) {
                Some(node) => self.learn(node).map_err(|error| error.to_string()),
                None => Err("its address cannot be understood".into()),
            };
            if let Err(error) = learned {
                log::warn!("node {id} cannot be reached: {error}");
            }
        }
    }

    fn send(&self, to: NodeId, messages: Vec<Message>) -> Sent {
        let Some(client) = self.get(to) else { return Sent::Dropped };
        let messages = messages.into_iter().map(wire::to_wire).collect();
        match client.notify(Method::RAFT_MESSAGES, proto::encode(&MessageBatch { group: 0, messages })) {
            Ok(()) => Sent::Queued,
            Err(error) => {
                log::debug!("messages to node {to} are dropped: {error}");
                Sent::Dropped
            }
        }
    }

    fn send_snapshot(&self, to: NodeId, transfer: SnapshotTransfer) {
        let Some(client) = self.get(to) else { return };
        let started = crate::spawn(format!("snapshot-to-{to}"), move || {
            let index = transfer.header.snapshot.index;
            log::info!("sending the snapshot at {index} to node {to}");
            match send_file(&client, transfer) {
                Ok(bytes) => log::info!("node {to} has the snapshot at {index} ({bytes} bytes)"),
                Err(error) => log::warn!("the snapshot at {index} did not reach node {to}: {error}"),
            }
        });
        if let Err(error) = started {
            // The transfer was dropped with the activity, which reports it as failed: Raft tries again.
            log::warn!("no activity can be started to send a snapshot to node {to}: {error}");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("cannot read the snapshot file: {0}")]
    Read(#[from] std::io::Error),
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error("the peer is in term {0}: this node is no longer the leader")]
    Superseded(u64),
    #[error("the peer wants byte {wanted} of {total}")]
    OutOfRange { wanted: u64, total: u64 },
    #[error("the peer's answer cannot be understood")]
    Undecodable,
}

/// Sends the whole file, from where the peer says it wants it. Returns the file's length.
fn send_file(client: &Client, mut transfer: SnapshotTransfer) -> Result<u64, SendError> {
    let header = transfer.header;
    let total = header.total_bytes;
    let chunk = |offset: u64, data: Bytes, done: bool| SnapshotChunkRequest {
        group: 0,
        from: header.from,
        term: header.term,
        meta: Some(wire::meta_to_wire(header.snapshot)),
        total_bytes: total,
        offset,
        data_crc: crc32c::crc32c(&data),
        data,
        done,
    };
    // An empty chunk asks where to begin.
    let mut next = request(client, &chunk(0, Bytes::new(), false))?;
    let mut at = 0;
    loop {
        if next.term > header.term {
            return Err(SendError::Superseded(next.term));
        }
        if next.accepted {
            transfer.finish();
            return Ok(total);
        }
        let wanted = next.next_offset;
        if wanted > total || wanted < at {
            return Err(SendError::OutOfRange { wanted, total });
        }
        // A transfer that is resumed skips what the peer has.
        std::io::copy(&mut (&mut transfer.file).take(wanted - at), &mut std::io::sink())?;
        let mut data = BytesMut::zeroed(CHUNK_BYTES.min((total - wanted) as usize));
        transfer.file.read_exact(&mut data)?;
        at = wanted + data.len() as u64;
        next = request(client, &chunk(wanted, data.freeze(), at == total))?;
    }
}

fn request(client: &Client, chunk: &SnapshotChunkRequest) -> Result<SnapshotChunkResponse, SendError> {
    let body = proto::encode(chunk);
    let mut attempt = 1;
    let answer = loop {
        match client.call(Method::RAFT_SNAPSHOT_CHUNK, body.clone(), CHUNK_TIMEOUT, 0) {
            Ok(answer) => break answer,
            // A refusal is final; a broken connection is not: the peer says where to go on.
            Err(error)
                if attempt == CHUNK_ATTEMPTS || matches!(error, RpcError::Remote(_) | RpcError::Closed) =>
            {
                return Err(error.into());
            }
            Err(_) => {
                attempt += 1;
                std::thread::sleep(CHUNK_RETRY);
            }
        }
    };
    proto::decode(answer).map_err(|_| SendError::Undecodable)
}
