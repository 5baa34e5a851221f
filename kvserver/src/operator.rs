//! The operator's client: who belongs to the cluster, and changes of that. Finds the leader by itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use squall_rpc::proto::kv::members_error::Kind;
use squall_rpc::proto::kv::members_request::Action;
use squall_rpc::proto::kv::{MembersRequest, MembersResponse};
use squall_rpc::{Client, ClientConfig, LocalIdentity, Method, RpcError, proto};

use crate::config::{ClusterConfig, NodeConfig};
use crate::node::{address_from_wire, address_to_wire};

/// The pause before all nodes are asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long one node may take to say who leads.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node that is to be added may take to say which disk it has.
const JOIN_TIMEOUT: Duration = Duration::from_secs(3);

/// Why nothing was changed, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Nothing was changed: no leader could be reached within the time given.
    #[error("no leader was found within {waited:?}; the last node asked said: {last}")]
    NoLeader {
        /// How long the search took.
        waited: Duration,
        /// What the last node said.
        last: String,
    },
    /// Nothing was changed: it makes no sense.
    #[error("{0}")]
    Refused(String),
    /// Nothing was changed within the time given: the cluster was not ready for it.
    #[error("{0}")]
    NotNow(String),
    /// It may have been changed.
    #[error("{0}")]
    Uncertain(String),
    /// The settings do not fit the RPC layer.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

/// A member as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub id: u64,
    /// `voter`, `learner`, and while voters change `incoming` or `outgoing`.
    pub part: String,
    /// Whether it leads.
    pub leads: bool,
    /// Which disk it has; 0 until the leader has heard from it.
    pub incarnation: u64,
    /// Where it is reached; `None` if the cluster was told nonsense.
    pub node: Option<NodeConfig>,
    /// How far its log is known to be; 0 when no leader could be asked.
    pub matched: u64,
    /// Whether the leader has heard from it lately.
    pub recently_active: bool,
}

/// A client for operators.
pub struct Operator {
    nodes: BTreeMap<u64, NodeConfig>,
    clients: BTreeMap<u64, Client>,
    local: LocalIdentity,
    timeout: Duration,
}

impl Operator {
    /// An operator of the cluster; nothing is connected yet.
    #[must_use]
    pub fn new(config: &ClusterConfig, timeout: Duration) -> Self {
        let local = LocalIdentity { cluster_id: config.settings.cluster_id.to_be_bytes(), node_id: 0 };
        let nodes = config.nodes.iter().map(|node| (node.id, node.clone())).collect();
        Self { nodes, clients: BTreeMap::new(), local, timeout }
    }

    /// The members: as the leader knows them, or, if there is none, as any node does.
    ///
    /// # Errors
    /// [`OperatorError::NoLeader`] when no node answers at all.
    ///
    /// # Blocking
    /// Until then, or the timeout.
    pub fn members(&mut self) -> Result<Vec<MemberInfo>, OperatorError> {
        let started = Instant::now();
        let mut last = String::from("nothing was asked");
        let mut known = None;
        let mut ask = self.nodes.keys().copied().collect::<Vec<_>>();
        // Each node once; then whoever they say leads.
        while let Some(id) = ask.pop() {
            match self.ask(id, &MembersRequest::default(), LOOK_TIMEOUT) {
                Ok(MembersResponse { error: Some(error), .. }) => last = error.message,
                Ok(response) if response.leader_id == id => return Ok(infos(&response)),
                Ok(response) => {
                    self.learn(&response);
                    if started.elapsed() < self.timeout && known.is_none() && response.leader_id != 0 {
                        ask.retain(|other| *other != response.leader_id);
                        ask.push(response.leader_id);
                    }
                    known = Some(response);
                }
                Err(error) => last = error.to_string(),
            }
        }
        known
            .map(|response| infos(&response))
            .ok_or(OperatorError::NoLeader { waited: started.elapsed(), last })
    }

    /// Adds a node as a learner.
    ///
    /// # Errors
    /// [`OperatorError`].
    ///
    /// # Blocking
    /// Until the cluster has agreed, or the timeout.
    pub fn add(&mut self, node: &NodeConfig) -> Result<Vec<MemberInfo>, OperatorError> {
        let address = Some(address_to_wire(node));
        self.nodes.insert(node.id, node.clone());
        // If it does not run yet, the first disk that is heard under its id will be taken for its own.
        let asked = self.ask(node.id, &MembersRequest::default(), JOIN_TIMEOUT);
        let incarnation = asked.map_or(0, |response| response.incarnation);
        self.change(&MembersRequest { action: Action::Add.into(), node_id: node.id, address, incarnation })
    }

    /// Makes a learner a voter, once it has caught up.
    ///
    /// # Errors
    /// [`OperatorError`].
    ///
    /// # Blocking
    /// Until the cluster has agreed, or the timeout.
    pub fn promote(&mut self, id: u64) -> Result<Vec<MemberInfo>, OperatorError> {
        self.change(&request(Action::Promote, id))
    }

    /// Removes a member. The leader, too: it hands leadership over.
    ///
    /// # Errors
    /// [`OperatorError`].
    ///
    /// # Blocking
    /// Until the cluster has agreed, or the timeout.
    pub fn remove(&mut self, id: u64) -> Result<Vec<MemberInfo>, OperatorError> {
        self.change(&request(Action::Remove, id))
    }

    /// Has leadership handed over to a voter, or to the one that is furthest.
    ///
    /// # Errors
    /// [`OperatorError`].
    ///
    /// # Blocking
    /// Until it is, or the timeout.
    pub fn transfer(&mut self, to: Option<u64>) -> Result<Vec<MemberInfo>, OperatorError> {
        self.change(&request(Action::Transfer, to.unwrap_or(0)))
    }

    /// Asks the leader, wherever it is. What certainly had no effect is tried again.
    fn change(&mut self, request: &MembersRequest) -> Result<Vec<MemberInfo>, OperatorError> {
        let started = Instant::now();
        let mut last = String::from("nothing was asked");
        let mut not_now = None;
        loop {
            let asked = match self.find_leader() {
                Ok(leader) => self.ask(leader, request, self.timeout),
                Err(error) => {
                    last = error;
                    Err(RpcError::Closed)
                }
            };
            match asked {
                Ok(response) => {
                    self.learn(&response);
                    let Some(error) = &response.error else {
                        // A leader that has removed itself has nothing more to say.
                        return if response.members.is_empty() {
                            self.members()
                        } else {
                            Ok(infos(&response))
                        };
                    };
                    last.clone_from(&error.message);
                    match Kind::try_from(error.kind).unwrap_or(Kind::Unspecified) {
                        Kind::NotLeader => {}
                        Kind::NotNow => not_now = Some(error.message.clone()),
                        Kind::Refused => return Err(OperatorError::Refused(error.message.clone())),
                        Kind::Indefinite | Kind::Unspecified => {
                            return Err(OperatorError::Uncertain(error.message.clone()));
                        }
                    }
                }
                Err(RpcError::Closed) => {}
                Err(error) if error.definitely_not_executed() => last = error.to_string(),
                Err(error) => return Err(OperatorError::Uncertain(error.to_string())),
            }
            if started.elapsed() >= self.timeout {
                let waited = started.elapsed();
                return Err(not_now.map_or(OperatorError::NoLeader { waited, last }, OperatorError::NotNow));
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }

    /// Who leads, as the first node says that knows. The error is what the last one said.
    fn find_leader(&mut self) -> Result<u64, String> {
        let mut last = String::from("nothing was asked");
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            match self.ask(id, &MembersRequest::default(), LOOK_TIMEOUT) {
                Ok(MembersResponse { error: Some(error), .. }) => last = error.message,
                Ok(response) => {
                    self.learn(&response);
                    if self.nodes.contains_key(&response.leader_id) {
                        return Ok(response.leader_id);
                    }
                    last = format!("node {id} knows no leader");
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn ask(
        &mut self,
        id: u64,
        request: &MembersRequest,
        timeout: Duration,
    ) -> Result<MembersResponse, RpcError> {
        let Some(node) = self.nodes.get(&id) else { return Err(RpcError::Closed) };
        if !self.clients.contains_key(&id) {
            let rpc = ClientConfig {
                expected_node_id: Some(id),
                connect_timeout: Duration::from_secs(1),
                backoff_max: Duration::from_millis(200),
                ..ClientConfig::default()
            };
            self.clients.insert(id, Client::new(node.rpc_address(), rpc, self.local)?);
        }
        let answer = self.clients[&id].call(Method::KV_MEMBERS, proto::encode(request), timeout, 0)?;
        proto::decode(answer).map_err(RpcError::Remote)
    }

    /// Members that the configuration file does not know.
    fn learn(&mut self, response: &MembersResponse) {
        for info in infos(response) {
            if let (Some(node), None) = (info.node, self.clients.get(&info.id)) {
                self.nodes.insert(info.id, node);
            }
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.clients.values().for_each(Client::close);
    }
}

fn request(action: Action, node_id: u64) -> MembersRequest {
    MembersRequest { action: action.into(), node_id, ..MembersRequest::default() }
}

fn infos(response: &MembersResponse) -> Vec<MemberInfo> {
    let info = |member: &squall_rpc::proto::kv::Member| MemberInfo {
        id: member.node_id,
        part: member.part.clone(),
        leads: member.node_id == response.leader_id,
        incarnation: member.incarnation,
        node: member.address.as_ref().and_then(|address| address_from_wire(member.node_id, address)),
        matched: member.matched,
        recently_active: member.recently_active,
    };
    response.members.iter().map(info).collect()
}
