//! What operators ask about the cluster's members: translation between the wire and Raft, and nothing else.

use squall_raft::core::types::NodeId;
use squall_raft::core::{ChangeError, MemberChange, Membership, Part, TransferError};
use squall_raft::group::{GroupStatus, MemberError};
use squall_rpc::proto::kv::members_error::Kind;
use squall_rpc::proto::kv::members_request::Action;
use squall_rpc::proto::kv::{Member, MembersError, MembersRequest, MembersResponse, NodeAddress};

use super::executor::Executor;
use crate::config::NodeConfig;

/// A part's name, as the wire, `/status` and `kvctl` spell it.
pub(super) fn part_name(part: Part) -> &'static str {
    match part {
        Part::Voter => "voter",
        Part::Learner => "learner",
        Part::Incoming => "incoming",
        Part::Outgoing => "outgoing",
    }
}

/// A node's addresses as they are sent.
pub(crate) fn address_to_wire(node: &NodeConfig) -> NodeAddress {
    NodeAddress {
        ip: node.ip.to_string(),
        rpc_port: node.rpc_port.into(),
        redis_port: node.redis_port.into(),
        admin_port: node.admin_port.into(),
    }
}

/// Addresses that arrived; `None` if they are none.
pub(crate) fn address_from_wire(id: NodeId, address: &NodeAddress) -> Option<NodeConfig> {
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port != 0);
    Some(NodeConfig {
        id,
        ip: address.ip.parse().ok()?,
        rpc_port: port(address.rpc_port)?,
        redis_port: port(address.redis_port)?,
        admin_port: port(address.admin_port)?,
    })
}

/// Carries out a request on this node.
///
/// # Blocking
/// Until the change is complete, or known not to be, or in doubt.
pub(super) fn serve(executor: &Executor, request: &MembersRequest) -> MembersResponse {
    let group = &executor.group;
    let id = request.node_id;
    let change = |change| group.change_members(vec![change]).map(drop);
    let result = match Action::try_from(request.action) {
        Ok(Action::List) if group.status().is_none() => Err((Kind::NotLeader, "the node is stopping".into())),
        Ok(Action::List) => Ok(()),
        Ok(Action::Add) => {
            match request.address.as_ref().and_then(|address| address_from_wire(id, address)) {
                Some(node) => {
                    let (address, incarnation) = (node.to_member_address(), request.incarnation);
                    change(MemberChange::AddLearner { id, address, incarnation }).map_err(error_to_wire)
                }
                None => Err((Kind::Refused, "an address has an IP and three ports".into())),
            }
        }
        Ok(Action::Promote) => change(MemberChange::Promote { id }).map_err(error_to_wire),
        Ok(Action::Remove) => change(MemberChange::Remove { id }).map_err(error_to_wire),
        Ok(Action::Transfer) => {
            let to = Some(id).filter(|id| *id != 0);
            group.transfer_leadership(to).map(drop).map_err(error_to_wire)
        }
        Err(_) => Err((Kind::Refused, "this release does not know the request".into())),
    };
    let error = result.err().map(|(kind, message)| MembersError { kind: kind.into(), message });
    let Some(status) = group.status() else {
        // This node has just removed itself, or is stopping for another reason.
        return MembersResponse { error, ..MembersResponse::default() };
    };
    MembersResponse {
        members: list(&status, &status.raft.membership),
        leader_id: status.raft.leader.unwrap_or(0),
        last_index: status.raft.last_index,
        incarnation: status.raft.incarnation,
        error,
    }
}

fn list(status: &GroupStatus, members: &Membership) -> Vec<Member> {
    let raft = &status.raft;
    let member = |(id, member, part): (NodeId, &squall_raft::core::Member, Part)| {
        let peer = raft.peers.iter().find(|peer| peer.id == id);
        let own = id == raft.id;
        Member {
            node_id: id,
            part: part_name(part).into(),
            incarnation: member.incarnation,
            address: NodeConfig::from_member_address(id, &member.address).as_ref().map(address_to_wire),
            matched: peer.map_or(if own { raft.persisted } else { 0 }, |peer| peer.matched),
            recently_active: own || peer.is_some_and(|peer| peer.recent_active),
        }
    };
    members.iter().map(member).collect()
}

fn error_to_wire(error: MemberError) -> (Kind, String) {
    let kind = match &error {
        MemberError::Change(ChangeError::NotLeader { .. })
        | MemberError::Transfer(TransferError::NotLeader { .. })
        | MemberError::Stopped => Kind::NotLeader,
        MemberError::Change(
            ChangeError::NotReady | ChangeError::UnderWay | ChangeError::NotCaughtUp { .. },
        )
        | MemberError::Transfer(TransferError::UnderWay { .. } | TransferError::Nobody)
        | MemberError::NotTaken { .. } => Kind::NotNow,
        MemberError::Indefinite => Kind::Indefinite,
        _ => Kind::Refused,
    };
    (kind, error.to_string())
}
