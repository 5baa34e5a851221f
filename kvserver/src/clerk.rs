//! The clerk: the cluster's own client. It finds the leader, retries across nodes, and has every write applied exactly once.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use squall_rpc::proto::kv::{MembersRequest, MembersResponse};
use squall_rpc::{Client, ClientConfig, LocalIdentity, Method, RpcError, proto};

use crate::config::{ClusterConfig, NodeConfig};
use crate::node::{ExecuteFailure, Request, address_from_wire, call};
use crate::resp::Reply;

/// The pause before all nodes are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a node may take at first, before the next one is asked: it may have frozen. Each time that was
/// not enough it doubles, because a large write on a slow disk is legal.
const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// How long a node may take to say who the members are.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Why an operation has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClerkError {
    /// Not executed: no node could be reached that knows a leader, within the time given.
    #[error("no leader was found within {waited:?}; the last node asked said: {last}")]
    NoLeader {
        /// How long the clerk tried.
        waited: Duration,
        /// The last failure.
        last: ExecuteFailure,
    },
    /// It may have been executed, or be executed later: the time was up before the outcome was known.
    #[error("the outcome is not known: {0}")]
    Uncertain(String),
    /// The cluster refused it. Not executed.
    #[error("{0}")]
    Refused(String),
    /// The settings do not fit the RPC layer.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
    /// The answer is not what the operation answers.
    #[error("the cluster answered {0:?}")]
    UnexpectedReply(Reply),
}

/// A client of the cluster. Its operations may be called from several activities; writes are then made one after the other.
///
/// ```no_run
/// use squall_kvserver::{clerk::Clerk, config::ClusterConfig};
///
/// let config = ClusterConfig::load("test.conf".as_ref())?;
/// let clerk = Clerk::new(&config)?;
/// clerk.put("greeting", "hello")?;
/// clerk.append("greeting", " world")?;
/// assert_eq!(clerk.get("greeting")?.unwrap(), "hello world");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Clerk {
    local: LocalIdentity,
    rpc: ClientConfig,
    timeout: Duration,
    session: Mutex<Session>,
}

struct Session {
    /// Of the nodes in the configuration, and of members that joined later. Never empty.
    clients: Vec<(u64, Client)>,
    /// 0 until the first write opens it.
    client_id: u128,
    seq: u64,
    /// Which client was the leader's, last time.
    leader: usize,
}

impl Clerk {
    /// A clerk of the cluster; nothing is connected yet. Operations give up after ten seconds.
    ///
    /// # Errors
    /// [`ClerkError::Rpc`] if the RPC layer refuses the settings.
    pub fn new(config: &ClusterConfig) -> Result<Self, ClerkError> {
        let local = LocalIdentity { cluster_id: config.settings.cluster_id.to_be_bytes(), node_id: 0 };
        let body_bytes_max = config.settings.limits().request_bytes_max as usize + (4 << 20);
        let rpc = ClientConfig {
            body_bytes_max,
            queue_bytes_max: 2 * body_bytes_max,
            connect_timeout: Duration::from_secs(1),
            backoff_max: Duration::from_millis(200),
            ..ClientConfig::default()
        };
        let client = |node: &NodeConfig| Ok((node.id, connect(node, &rpc, local)?));
        let clients = config.nodes.iter().map(client).collect::<Result<_, RpcError>>()?;
        let session = Mutex::new(Session { clients, client_id: 0, seq: 0, leader: 0 });
        Ok(Self { local, rpc, timeout: Duration::from_secs(10), session })
    }

    /// Gives up an operation after this long.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The value of a key, linearizable; `None` if there is none.
    ///
    /// # Errors
    /// [`ClerkError`].
    ///
    /// # Blocking
    /// Until the answer, or the timeout.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ClerkError> {
        match self.one(&[b"GET", key.as_ref()], true)? {
            Reply::Bulk(value) => Ok(Some(value)),
            Reply::Nil => Ok(None),
            reply => Err(unexpected(reply)),
        }
    }

    /// Sets a key, exactly once.
    ///
    /// # Errors
    /// [`ClerkError`].
    ///
    /// # Blocking
    /// Until it is applied, or the timeout.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<(), ClerkError> {
        match self.one(&[b"SET", key.as_ref(), value.as_ref()], false)? {
            Reply::Status(_) => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    /// Appends to a key's value, exactly once, and returns the new length.
    ///
    /// # Errors
    /// [`ClerkError`].
    ///
    /// # Blocking
    /// Until it is applied, or the timeout.
    pub fn append(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<u64, ClerkError> {
        match self.one(&[b"APPEND", key.as_ref(), value.as_ref()], false)? {
            Reply::Integer(length) => Ok(length.max(0) as u64),
            reply => Err(unexpected(reply)),
        }
    }

    /// Deletes a key, exactly once. False if there was none.
    ///
    /// # Errors
    /// [`ClerkError`].
    ///
    /// # Blocking
    /// Until it is applied, or the timeout.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool, ClerkError> {
        match self.one(&[b"DEL", key.as_ref()], false)? {
            Reply::Integer(count) => Ok(count > 0),
            reply => Err(unexpected(reply)),
        }
    }

    /// Executes a batch of Redis commands together, exactly once if it writes, and returns a reply for each.
    ///
    /// # Errors
    /// [`ClerkError`].
    ///
    /// # Blocking
    /// Until it is executed, or the timeout.
    pub fn execute(&self, commands: Vec<Vec<Bytes>>, read_only: bool) -> Result<Vec<Reply>, ClerkError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if read_only {
            return self.attempt(&mut session, &Request { session: None, commands, read_only });
        }
        if session.client_id == 0 {
            let mut id = [0; 16];
            getrandom::fill(&mut id).map_err(|error| ClerkError::Random(error.to_string()))?;
            let client_id = u128::from_be_bytes(id).max(1);
            // An empty first request opens the session: it is harmless to repeat, and from the second on the cluster refuses a
            // session that it has forgotten instead of taking a late retry for a new request.
            let open = Request { session: Some((client_id, 1)), commands: Vec::new(), read_only: false };
            self.attempt(&mut session, &open)?;
            (session.client_id, session.seq) = (client_id, 1);
        }
        session.seq += 1;
        let request = Request { session: Some((session.client_id, session.seq)), commands, read_only };
        let result = self.attempt(&mut session, &request);
        if result.is_err() {
            // Its number may still be under way somewhere: a later request must not follow in the same session.
            session.client_id = 0;
        }
        result
    }

    fn one(&self, arguments: &[&[u8]], read_only: bool) -> Result<Reply, ClerkError> {
        let command = arguments.iter().map(|argument| Bytes::copy_from_slice(argument)).collect();
        let mut replies = self.execute(vec![command], read_only)?;
        match replies.pop() {
            Some(reply) if replies.is_empty() => Ok(reply),
            _ => Err(ClerkError::Uncertain("the number of replies is wrong".into())),
        }
    }

    fn attempt(&self, session: &mut Session, request: &Request) -> Result<Vec<Reply>, ClerkError> {
        let started = Instant::now();
        let mut in_doubt = None;
        let mut failures = 0;
        let mut attempt_timeout = ATTEMPT_TIMEOUT_MIN;
        loop {
            let (_, client) = &session.clients[session.leader];
            let asked = Instant::now();
            let timeout = attempt_timeout.min(self.timeout.saturating_sub(started.elapsed()));
            let failure = match call(client, request, false, timeout, &|| true) {
                Ok(replies) => return Ok(replies),
                Err(failure) => failure,
            };
            if asked.elapsed() >= attempt_timeout {
                attempt_timeout *= 2;
            }
            let hint = match &failure {
                ExecuteFailure::NotLeader { leader } => *leader,
                ExecuteFailure::Indefinite(reason) => {
                    in_doubt = Some(reason.clone());
                    None
                }
                ExecuteFailure::Overloaded(_) | ExecuteFailure::Stopped => None,
                ExecuteFailure::Session(_) | ExecuteFailure::Refused(_) | ExecuteFailure::OutOfMemory(_) => {
                    return Err(match in_doubt {
                        Some(reason) => ClerkError::Uncertain(reason),
                        None => ClerkError::Refused(failure.to_string()),
                    });
                }
            };
            if started.elapsed() >= self.timeout {
                return Err(match in_doubt {
                    Some(reason) => ClerkError::Uncertain(reason),
                    None => ClerkError::NoLeader { waited: started.elapsed(), last: failure },
                });
            }
            let position = |session: &Session, id| session.clients.iter().position(|(other, _)| *other == id);
            if hint.is_some_and(|id| position(session, id).is_none()) {
                self.learn_members(session);
            }
            let hinted = hint.and_then(|id| position(session, id));
            match hinted.filter(|position| *position != session.leader) {
                Some(position) => session.leader = position,
                None => {
                    session.leader = (session.leader + 1) % session.clients.len();
                    failures += 1;
                    if failures % session.clients.len() == 0 {
                        std::thread::sleep(RETRY_PAUSE);
                    }
                }
            }
        }
    }
}

impl Clerk {
    /// The leader joined after the configuration was written: whoever named it knows where it is.
    fn learn_members(&self, session: &mut Session) {
        let (_, client) = &session.clients[session.leader];
        let body = proto::encode(&MembersRequest::default());
        let answer = client.call(Method::KV_MEMBERS, body, MEMBERS_TIMEOUT, 0);
        let Some(response) = answer.ok().and_then(|answer| proto::decode::<MembersResponse>(answer).ok())
        else {
            return; // The next attempt asks again.
        };
        for member in response.members {
            let id = member.node_id;
            let node = member.address.and_then(|address| address_from_wire(id, &address));
            let is_known = session.clients.iter().any(|(known, _)| *known == id);
            if let Some(Ok(client)) =
                node.filter(|_| !is_known).map(|node| connect(&node, &self.rpc, self.local))
            {
                session.clients.push((id, client));
            }
        }
    }
}

fn connect(node: &NodeConfig, rpc: &ClientConfig, local: LocalIdentity) -> Result<Client, RpcError> {
    let rpc = ClientConfig { expected_node_id: Some(node.id), ..rpc.clone() };
    Client::new(node.rpc_address(), rpc, local)
}

fn unexpected(reply: Reply) -> ClerkError {
    match reply {
        Reply::Error(text) => ClerkError::Refused(text.into_owned()),
        reply => ClerkError::UnexpectedReply(reply),
    }
}

impl Drop for Clerk {
    fn drop(&mut self) {
        let session = self.session.get_mut().unwrap_or_else(PoisonError::into_inner);
        session.clients.iter().for_each(|(_, client)| client.close());
    }
}
