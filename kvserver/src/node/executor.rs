//! Executes requests wherever the leader is: on this node, or by asking the one that leads.
//!
//! A request of a client session keeps its number through every attempt, so an attempt whose outcome is not
//! known is simply repeated: the session table runs it once. That is what makes a failover invisible to a
//! client of a node that survives.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use squall_raft::core::types::NodeId;
use squall_raft::group::{GroupHandle, ProposeError, ReadError};
use squall_raft::planted::{Mistake, planted};
use squall_rpc::proto::kv::execute_error::Kind;
use squall_rpc::proto::kv::{Command, ExecuteError, ExecuteRequest, ExecuteResponse};
use squall_rpc::{Client, Method, RpcError, proto};

use super::machine::{Gauges, Output, Query, ReplicatedMachine};
use super::transport::Peers;
use crate::command;
use crate::machine::{ApplyError, Proposal};
use crate::resp::{Protocol, Reply};
use crate::session::SessionError;

/// How long the leader may take for one request. Long, because a write of 64 MiB on a slow disk is legal.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause before a request is tried again while leadership is settled.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// A batch of commands to be executed together.
#[derive(Clone, Debug)]
pub struct Request {
    /// The client's session and the request's number in it; `None` if the client does not retry, and for
    /// reads.
    pub session: Option<(u128, u64)>,
    /// The commands, validated.
    pub commands: Vec<Vec<Bytes>>,
    /// None of them writes.
    pub read_only: bool,
}

/// Why a request has no replies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExecuteFailure {
    /// Not executed: another node leads, or none does.
    #[error("not the leader")]
    NotLeader {
        /// The leader, as far as the node asked knows.
        leader: Option<NodeId>,
    },
    /// It may have been executed, or be executed later.
    #[error("the outcome is not known: {0}")]
    Indefinite(String),
    /// Not executed: there is too much to do.
    #[error("{0}")]
    Overloaded(String),
    /// Not executed now: the session was forgotten, or the request is older than its last one.
    #[error("{0}")]
    Session(#[from] SessionError),
    /// Not executed: the request cannot be.
    #[error("{0}")]
    Refused(String),
    /// Not executed: the store has no room, and this may take some.
    #[error("{0}")]
    OutOfMemory(String),
    /// Not executed: the node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

/// The group and the way to the other nodes.
#[derive(Clone)]
pub(super) struct Executor {
    pub group: GroupHandle<ReplicatedMachine>,
    pub peers: Arc<Peers>,
    pub value_bytes_max: u64,
    pub no_leader_wait: Duration,
    pub memory: MemoryLimit,
}

/// How much the store may take before writes that may take more are refused.
#[derive(Clone)]
pub(super) struct MemoryLimit {
    /// 0 for no limit.
    pub bytes_max: u64,
    pub gauges: Arc<Gauges>,
}

impl MemoryLimit {
    fn check(&self, commands: &[Vec<Bytes>]) -> Result<(), ExecuteFailure> {
        let (bytes, bytes_max) = (self.gauges.store_bytes(), self.bytes_max);
        if bytes_max == 0 || bytes <= bytes_max || !commands.iter().any(|command| command::may_grow(command))
        {
            return Ok(());
        }
        Err(ExecuteFailure::OutOfMemory(format!(
            "the store has {bytes} bytes, the limit is {bytes_max} (memory_bytes_max): delete keys, or raise it on every node"
        )))
    }
}

pub(super) fn now_ms() -> u64 {
    // A clock before 1970 counts as 1970: expiry is the only use, and log time never goes back.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Executor {
    /// Executes a request on this node, as its leader.
    ///
    /// # Blocking
    /// Until it is applied, or known not to be, or in doubt.
    pub fn execute_here(&self, request: &Request) -> Result<Vec<Reply>, ExecuteFailure> {
        let (sender, answer) = mpsc::sync_channel(1);
        if request.read_only {
            let query = Query { now_ms: now_ms(), commands: request.commands.clone() };
            self.group.read_with(query, move |result| {
                let _ = sender.send(result.map_err(|error| match error {
                    ReadError::NotLeader { leader } => ExecuteFailure::NotLeader { leader },
                    _ => ExecuteFailure::Stopped,
                }));
            });
        } else {
            self.memory.check(&request.commands)?;
            let proposal = Proposal {
                session: request.session,
                now_ms: now_ms(),
                value_bytes_max: self.value_bytes_max,
                commands: request.commands.clone(),
            };
            self.group.propose_with(proposal.encode(), move |result| {
                let _ = sender.send(result.map_err(from_propose_error));
            });
        }
        let output: Output = answer.recv().unwrap_or(Err(ExecuteFailure::Stopped))?;
        output.map_err(|error| match error {
            ApplyError::Session(error) => ExecuteFailure::Session(error),
            error => ExecuteFailure::Refused(error.to_string()),
        })
    }

    /// Executes a request on the leader, waiting for one, and repeating what is safe to repeat.
    ///
    /// # Errors
    /// `NotLeader` when no leader was found within `no_leader_wait`; anything else at once.
    ///
    /// # Blocking
    /// As long as a leader is found and works on the request.
    pub fn execute(&self, request: &Request) -> Result<Vec<Reply>, ExecuteFailure> {
        let started = Instant::now();
        let may_repeat =
            request.read_only || request.session.is_some() || planted(Mistake::RetryWithoutSession);
        let mut in_doubt: Option<ExecuteFailure> = None;
        let mut hint = None;
        loop {
            let leader = hint.take().or(self.group.soft_state().leader);
            let result = match leader {
                Some(id) if id == self.group.id() => self.execute_here(request),
                Some(id) => self.forward(id, request),
                None => Err(ExecuteFailure::NotLeader { leader: None }),
            };
            let failure = match result {
                Ok(replies) => return Ok(replies),
                Err(failure) => failure,
            };
            match &failure {
                ExecuteFailure::NotLeader { leader: other } => hint = other.filter(|id| Some(*id) != leader),
                ExecuteFailure::Indefinite(_) if may_repeat => in_doubt = Some(failure.clone()),
                // The session was forgotten between two attempts: whether the first was executed is not known
                // any more.
                ExecuteFailure::Session(_) => return Err(in_doubt.unwrap_or(failure)),
                _ => return Err(in_doubt.unwrap_or(failure)),
            }
            if started.elapsed() >= self.no_leader_wait {
                return Err(in_doubt.unwrap_or(failure));
            }
            if hint.is_none() {
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    fn forward(&self, leader: NodeId, request: &Request) -> Result<Vec<Reply>, ExecuteFailure> {
        let Some(client) = self.peers.get(leader) else {
            return Err(ExecuteFailure::NotLeader { leader: None });
        };
        let term = self.group.soft_state().term;
        // A leader whose machine froze, or lost its network, never answers. The others elect a new one, and that is the
        // news for which a request that waits for the old one must not wait out a timeout.
        let still_leads = || {
            let now = self.group.soft_state();
            now.term <= term || now.leader.is_none_or(|now| now == leader)
        };
        call(&client, request, true, REQUEST_TIMEOUT, &still_leads)
    }
}

fn from_propose_error(error: ProposeError) -> ExecuteFailure {
    match error {
        ProposeError::NotLeader { leader } => ExecuteFailure::NotLeader { leader },
        ProposeError::Indefinite => ExecuteFailure::Indefinite("leadership was lost".into()),
        ProposeError::Stopped => ExecuteFailure::Stopped,
        ProposeError::TooLarge { .. } => ExecuteFailure::Refused(error.to_string()),
        error => ExecuteFailure::Overloaded(error.to_string()),
    }
}

/// Asks another node to execute a request as its leader. Used by nodes that forward, and by clerks.
///
/// # Blocking
/// Until the answer, the timeout, or until `is_wanted` is false.
pub(crate) fn call(
    client: &Client,
    request: &Request,
    forwarded: bool,
    timeout: Duration,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Vec<Reply>, ExecuteFailure> {
    let (client_id, seq) = match request.session {
        Some((client_id, seq)) => (Bytes::copy_from_slice(&client_id.to_be_bytes()), seq),
        None => (Bytes::new(), 0),
    };
    let commands = request.commands.iter().map(|args| Command { args: args.clone() }).collect();
    let body = proto::encode(&ExecuteRequest {
        client_id,
        seq,
        commands,
        read_only: request.read_only,
        forwarded,
        deadline_ms: 0,
    });
    let answer =
        client.call_while(Method::KV_EXECUTE, body, timeout, 0, is_wanted).map_err(from_rpc_error)?;
    let undecodable = || ExecuteFailure::Indefinite("the answer cannot be understood".into());
    let response: ExecuteResponse = proto::decode(answer).map_err(|_| undecodable())?;
    if let Some(error) = response.error {
        return Err(failure_from_wire(error));
    }
    let decode = |mut bytes: Bytes| Reply::decode(&mut bytes).map_err(|_| undecodable());
    response.replies.into_iter().map(decode).collect()
}

fn from_rpc_error(error: RpcError) -> ExecuteFailure {
    match error {
        RpcError::BodyTooLong { .. } => ExecuteFailure::Refused(error.to_string()),
        RpcError::Closed => ExecuteFailure::Stopped,
        // The node that was thought to lead cannot be reached: as good as no leader.
        error if error.definitely_not_executed() => ExecuteFailure::NotLeader { leader: None },
        error => ExecuteFailure::Indefinite(error.to_string()),
    }
}

/// What a node answers to [`call`].
pub(super) fn response_to_wire(result: Result<Vec<Reply>, ExecuteFailure>) -> ExecuteResponse {
    match result {
        Ok(replies) => {
            let encode = |reply: &Reply| {
                let mut out = BytesMut::new();
                reply.encode(Protocol::Resp3, &mut out);
                out.freeze()
            };
            ExecuteResponse { replies: replies.iter().map(encode).collect(), error: None }
        }
        Err(failure) => ExecuteResponse { replies: Vec::new(), error: Some(failure_to_wire(&failure)) },
    }
}

fn failure_to_wire(failure: &ExecuteFailure) -> ExecuteError {
    let (kind, leader_id) = match failure {
        ExecuteFailure::NotLeader { leader: Some(leader) } => (Kind::NotLeader, *leader),
        ExecuteFailure::NotLeader { leader: None } | ExecuteFailure::Stopped => (Kind::NoLeader, 0),
        ExecuteFailure::Indefinite(_) => (Kind::Indefinite, 0),
        ExecuteFailure::Overloaded(_) => (Kind::Overloaded, 0),
        ExecuteFailure::OutOfMemory(_) => (Kind::OutOfMemory, 0),
        ExecuteFailure::Session(SessionError::Expired { .. }) => (Kind::SessionExpired, 0),
        ExecuteFailure::Session(SessionError::Stale { .. }) | ExecuteFailure::Refused(_) => {
            (Kind::BadRequest, 0)
        }
    };
    ExecuteError { kind: kind.into(), message: failure.to_string(), leader_id }
}

fn failure_from_wire(error: ExecuteError) -> ExecuteFailure {
    let kind = Kind::try_from(error.kind).unwrap_or(Kind::Unspecified);
    match kind {
        Kind::NotLeader => ExecuteFailure::NotLeader { leader: Some(error.leader_id) },
        Kind::NoLeader => ExecuteFailure::NotLeader { leader: None },
        Kind::Overloaded => ExecuteFailure::Overloaded(error.message),
        Kind::OutOfMemory => ExecuteFailure::OutOfMemory(error.message),
        Kind::SessionExpired => ExecuteFailure::Session(SessionError::Expired { seq: 0 }),
        Kind::BadRequest => ExecuteFailure::Refused(error.message),
        // An error that a newer release invented says nothing about what was done.
        Kind::Indefinite | Kind::Unspecified => ExecuteFailure::Indefinite(error.message),
    }
}
