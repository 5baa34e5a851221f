//! Who belongs to the cluster, changes of that, and who leads.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Subcommand;
use serde_json::{Value, json};
use squall_kvserver::config::NodeConfig;
use squall_kvserver::operator::{MemberInfo, Operator};

use crate::Cluster;

/// How far a node's other ports are from its first one, unless given.
const REDIS_PORT_OFFSET: u16 = 1000;
const ADMIN_PORT_OFFSET: u16 = 2000;

#[derive(Subcommand)]
pub enum Member {
    /// Show the members, as the leader knows them.
    List,
    /// Add a node as a learner: it gets the data and does not vote yet.
    Add {
        /// The node's id; not one in use.
        id: u64,
        /// IP and port where the other nodes reach it; by default as the configuration file says.
        address: Option<SocketAddr>,
        /// Its port for Redis clients; by default 1000 above the other.
        #[arg(long, requires = "address")]
        redis_port: Option<u16>,
        /// Its port for status and metrics; by default 2000 above the other.
        #[arg(long, requires = "address")]
        admin_port: Option<u16>,
    },
    /// Make a learner a voter; waits until it has caught up.
    Promote {
        /// The learner.
        id: u64,
    },
    /// Remove a member, which then stops. A leader hands leadership over first.
    Remove {
        /// The member.
        id: u64,
    },
}

impl Member {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let mut operator = Operator::new(&cluster.config, cluster.timeout);
        let members = match self {
            Member::List => operator.members()?,
            Member::Add { id, address: None, .. } => operator.add(cluster.config.node(id)?)?,
            Member::Add { id, address: Some(address), redis_port, admin_port } => {
                let above = |given: Option<u16>, offset| {
                    let port = given.or_else(|| address.port().checked_add(offset));
                    port.with_context(|| format!("{} + {offset} is above 65535", address.port()))
                };
                operator.add(&NodeConfig {
                    id,
                    ip: address.ip(),
                    rpc_port: address.port(),
                    redis_port: above(redis_port, REDIS_PORT_OFFSET).context("give --redis-port")?,
                    admin_port: above(admin_port, ADMIN_PORT_OFFSET).context("give --admin-port")?,
                })?
            }
            Member::Promote { id } => operator.promote(id)?,
            Member::Remove { id } => operator.remove(id)?,
        };
        print(cluster, &members);
        Ok(ExitCode::SUCCESS)
    }
}

/// Hand leadership over to a node, or to whichever is furthest.
#[derive(clap::Args)]
pub struct Transfer {
    /// The node that is to lead.
    node: Option<u64>,
}

impl Transfer {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        print(cluster, &Operator::new(&cluster.config, cluster.timeout).transfer(self.node)?);
        Ok(ExitCode::SUCCESS)
    }
}

fn print(cluster: &Cluster, members: &[MemberInfo]) {
    let cluster_id = format!("{:032x}", cluster.config.settings.cluster_id);
    let address = |member: &MemberInfo| member.node.as_ref().map(NodeConfig::rpc_address);
    if cluster.json {
        let member = |member: &MemberInfo| {
            json!({
                "node_id": member.id,
                "part": member.part,
                "leader": member.leads,
                "incarnation": format!("{:016x}", member.incarnation),
                "rpc": address(member),
                "matched": member.matched,
                "recently_active": member.recently_active,
            })
        };
        let members: Vec<Value> = members.iter().map(member).collect();
        println!("{:#}", json!({ "cluster_id": cluster_id, "members": members }));
        return;
    }
    println!("cluster_id={cluster_id}");
    println!("node  part      leader     matched  heard  incarnation       address");
    for member in members {
        println!(
            "{:<5} {:<9} {:<6} {:>11}  {:<5}  {:016x}  {}",
            member.id,
            member.part,
            if member.leads { "yes" } else { "" },
            member.matched,
            if member.recently_active { "yes" } else { "no" },
            member.incarnation,
            address(member).map_or_else(|| "?".to_owned(), |address| address.to_string())
        );
    }
}
