//! The first frame in each direction: who is there, and whether the two may talk.
//!
//! Owns the identities and the rules of admission. The client speaks first. The server answers with its own
//! hello, or with a goaway that says why not; then the client judges the server's hello by the same rules.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;

use crate::error::CloseReason;
use crate::frame::{FrameReader, Header, Kind};
use crate::proto::rpc::goaway::Code;
use crate::proto::rpc::{Goaway, Hello};
use crate::stream::{TimedStream, write_all};

/// The newest protocol version this crate speaks. The frame layout has a version of its own.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest protocol version this crate speaks.
pub const PROTOCOL_VERSION_MIN: u32 = 1;

/// A stranger gets no more memory than this before it is known: longer hellos are refused.
const HELLO_BYTES_MAX: usize = 4 << 10;
/// How often a peer wants to be heard from at most; protects from one that asks for a storm of heartbeats.
const HEARTBEAT_INTERVAL_MIN: Duration = Duration::from_millis(20);
/// How often one is sent to a peer that does not care.
const HEARTBEAT_INTERVAL_MAX: Duration = Duration::from_secs(10);
/// Heartbeats sent within the peer's idle timeout: one may be late, and one more.
const HEARTBEATS_PER_IDLE_TIMEOUT: u32 = 3;

/// What this side says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalIdentity {
    /// The cluster it belongs to, or, for a client, that it wants to talk to. A client that does not know
    /// says zero; a server never does.
    pub cluster_id: [u8; 16],
    /// Its node id; 0: not a member (a client, a tool).
    pub node_id: u64,
}

/// What is known of the other side once it is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its node id; 0: not a member of the cluster.
    pub node_id: u64,
    /// Whether it named this cluster's id. A client may come without; whether that is enough is the handler's
    /// to decide.
    pub knows_cluster: bool,
    /// Where the connection comes from or goes to.
    pub addr: SocketAddr,
    /// The newest protocol version that both sides speak.
    pub protocol_version: u32,
}

/// Why a peer is refused: a code for its program, words for its operator.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

/// How often to send a heartbeat to this peer when there is nothing else to send.
pub(crate) fn heartbeat_interval(hello: &Hello) -> Duration {
    match hello.idle_timeout_ms {
        0 => HEARTBEAT_INTERVAL_MAX,
        ms => (Duration::from_millis(ms.into()) / HEARTBEATS_PER_IDLE_TIMEOUT)
            .clamp(HEARTBEAT_INTERVAL_MIN, HEARTBEAT_INTERVAL_MAX),
    }
}

pub(crate) fn send_hello(
    stream: &TimedStream,
    local: &LocalIdentity,
    idle_timeout: Duration,
) -> Result<(), CloseReason> {
    let hello = Hello {
        cluster_id: Bytes::copy_from_slice(&local.cluster_id),
        node_id: local.node_id,
        protocol_version: PROTOCOL_VERSION,
        protocol_version_min: PROTOCOL_VERSION_MIN,
        idle_timeout_ms: u32::try_from(idle_timeout.as_millis()).unwrap_or(u32::MAX),
    };
    send(stream, Kind::Hello, &hello)
}

pub(crate) fn send_goaway(stream: &TimedStream, refusal: &Refusal) -> Result<(), CloseReason> {
    send(stream, Kind::Goaway, &goaway(refusal))
}

pub(crate) fn goaway(refusal: &Refusal) -> Goaway {
    Goaway { code: refusal.code.into(), message: refusal.message.clone() }
}

fn send(stream: &TimedStream, kind: Kind, message: &impl Message) -> Result<(), CloseReason> {
    let body = message.encode_to_vec();
    write_all(stream, &[&Header::new(kind, &body).encode(), &body]).map(drop)
}

/// What the other side opens with.
#[derive(Debug)]
pub(crate) enum Opening {
    Hello(Hello),
    Goaway(Goaway),
}

/// Reads the first frame, which may take until `deadline`, and leaves the reader with the connection's
/// limits.
pub(crate) fn receive_opening(
    reader: &mut FrameReader<TimedStream>,
    deadline: Instant,
    body_bytes_max: usize,
) -> Result<Opening, CloseReason> {
    reader.set_body_bytes_max(HELLO_BYTES_MAX.min(body_bytes_max));
    reader.source_mut().read_until(deadline);
    let opening = receive(reader).map_err(|reason| match reason {
        CloseReason::IdleTimeout => CloseReason::HandshakeTimeout,
        other => other,
    })?;
    reader.source_mut().end_read_deadline()?;
    reader.set_body_bytes_max(body_bytes_max);
    Ok(opening)
}

fn receive(reader: &mut FrameReader<TimedStream>) -> Result<Opening, CloseReason> {
    let header = reader.read_header()?;
    let body = reader.read_body(&header)?;
    let undecodable = |_| CloseReason::BadMessage(header.kind);
    match header.kind {
        Kind::Hello => Ok(Opening::Hello(Hello::decode(body).map_err(undecodable)?)),
        Kind::Goaway => Ok(Opening::Goaway(Goaway::decode(body).map_err(undecodable)?)),
        kind => Err(CloseReason::UnexpectedFrame(kind)),
    }
}

/// Judges the hello of a peer.
pub(crate) fn judge(local: &LocalIdentity, hello: &Hello, addr: SocketAddr) -> Result<PeerIdentity, Refusal> {
    let Ok(cluster_id) = <[u8; 16]>::try_from(&hello.cluster_id[..]) else {
        let message = format!("a cluster id has 16 bytes, not {}", hello.cluster_id.len());
        return Err(Refusal::new(Code::BadHello, message));
    };
    // Checked on both sides, so either may be the client that does not know the cluster's id.
    let unknowing = |node_id: u64, cluster_id: [u8; 16]| node_id == 0 && cluster_id == [0; 16];
    if cluster_id != local.cluster_id
        && !unknowing(hello.node_id, cluster_id)
        && !unknowing(local.node_id, local.cluster_id)
    {
        let message = format!("this is cluster {}, not {}", hex(&local.cluster_id), hex(&cluster_id));
        return Err(Refusal::new(Code::WrongCluster, message));
    }
    if hello.node_id != 0 && hello.node_id == local.node_id {
        let message = format!("node id {} is taken: it is mine", local.node_id);
        return Err(Refusal::new(Code::WrongNode, message));
    }
    let protocol_version = hello.protocol_version.min(PROTOCOL_VERSION);
    if protocol_version < PROTOCOL_VERSION_MIN.max(hello.protocol_version_min) {
        let message = format!(
            "protocol versions {}-{} are spoken here, not {}-{}",
            PROTOCOL_VERSION_MIN, PROTOCOL_VERSION, hello.protocol_version_min, hello.protocol_version
        );
        return Err(Refusal::new(Code::IncompatibleVersion, message));
    }
    let knows_cluster = cluster_id == local.cluster_id;
    Ok(PeerIdentity { node_id: hello.node_id, knows_cluster, addr, protocol_version })
}

fn hex(id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: LocalIdentity = LocalIdentity { cluster_id: [7; 16], node_id: 1 };

    fn hello(cluster_id: &[u8], node_id: u64) -> Hello {
        Hello {
            cluster_id: Bytes::copy_from_slice(cluster_id),
            node_id,
            protocol_version: PROTOCOL_VERSION,
            protocol_version_min: PROTOCOL_VERSION_MIN,
            idle_timeout_ms: 0,
        }
    }

    fn refusal_of(local: &LocalIdentity, hello: &Hello) -> Option<Code> {
        judge(local, hello, SocketAddr::from(([127, 0, 0, 1], 1))).err().map(|refusal| refusal.code)
    }

    #[test]
    fn members_and_clients_of_the_cluster_are_admitted() {
        assert_eq!(refusal_of(&LOCAL, &hello(&[7; 16], 2)), None);
        assert_eq!(refusal_of(&LOCAL, &hello(&[7; 16], 0)), None);
    }

    #[test]
    fn only_a_client_may_be_ignorant_of_the_cluster() {
        assert_eq!(refusal_of(&LOCAL, &hello(&[0; 16], 0)), None);
        assert_eq!(refusal_of(&LOCAL, &hello(&[0; 16], 2)), Some(Code::WrongCluster));
        let ignorant = LocalIdentity { cluster_id: [0; 16], node_id: 0 };
        assert_eq!(refusal_of(&ignorant, &hello(&[7; 16], 2)), None);
    }

    #[test]
    fn strangers_are_refused_with_the_reason() {
        assert_eq!(refusal_of(&LOCAL, &hello(&[8; 16], 2)), Some(Code::WrongCluster));
        assert_eq!(refusal_of(&LOCAL, &hello(&[8; 16], 0)), Some(Code::WrongCluster));
        assert_eq!(refusal_of(&LOCAL, &hello(&[7; 15], 2)), Some(Code::BadHello));
        assert_eq!(refusal_of(&LOCAL, &hello(&[7; 16], 1)), Some(Code::WrongNode));
    }

    #[test]
    fn versions_that_do_not_overlap_are_refused() {
        let newer = Hello { protocol_version: 9, ..hello(&[7; 16], 2) };
        assert_eq!(refusal_of(&LOCAL, &newer), None);
        let too_new = Hello { protocol_version_min: 9, ..newer };
        assert_eq!(refusal_of(&LOCAL, &too_new), Some(Code::IncompatibleVersion));
        let too_old = Hello { protocol_version: 0, protocol_version_min: 0, ..hello(&[7; 16], 2) };
        assert_eq!(refusal_of(&LOCAL, &too_old), Some(Code::IncompatibleVersion));
    }

    #[test]
    fn heartbeats_come_several_times_within_the_peers_patience() {
        let interval = |idle_timeout_ms| heartbeat_interval(&Hello { idle_timeout_ms, ..hello(&[], 0) });
        assert_eq!(interval(3_000), Duration::from_secs(1));
        assert_eq!(interval(0), HEARTBEAT_INTERVAL_MAX);
        assert_eq!(interval(1), HEARTBEAT_INTERVAL_MIN);
        assert_eq!(interval(u32::MAX), HEARTBEAT_INTERVAL_MAX);
    }
}
