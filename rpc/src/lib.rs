//! Framed, checksummed, multiplexed remote calls in blocking style over `std::net`.
//!
//! A [`Server`] hands requests to a [`Handler`]; a [`Client`] stands for one peer and has two verbs:
//! [`Client::call`] asks and waits for the answer, [`Client::notify`] tells and does not. Any number of calls
//! share a connection and are answered in any order. Both ends are ordinary blocking code, and every activity
//! is a fiber: what waits here keeps no thread waiting.
//!
//! - `frame`: how bytes become requests and answers, and how corruption is noticed.
//! - `handshake`: who may talk to whom.
//! - `link`: the sending half of a connection: queue, back-pressure, heartbeats.
//! - `server`, `client`: the two receiving halves.
//! - `proto`, `method`: what is said in bodies, and the numbers for asking it.
//!
//! What never happens here: a panic, an overflow or an allocation that a peer decides on; a request executed
//! twice (nothing is repeated that may have been sent); a wait without an end (every one has a deadline, or
//! ends with the connection, which ends when the peer falls silent).
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use bytes::Bytes;
//! use squall_rpc::{CallContext, Client, ClientConfig, Handler, LocalIdentity, Method};
//! use squall_rpc::{Server, ServerConfig, Status};
//!
//! struct Echo;
//! impl Handler for Echo {
//!     fn call(&self, _: &CallContext, body: Bytes) -> Result<Bytes, Status> {
//!         Ok(body)
//!     }
//!     fn notify(&self, _: &CallContext, _: Bytes) {}
//! }
//!
//! let node = |node_id| LocalIdentity { cluster_id: [1; 16], node_id };
//! let server = Server::bind(([127, 0, 0, 1], 0).into(), ServerConfig::default(), node(1), Arc::new(Echo))?;
//! let client = Client::new(server.local_addr(), ClientConfig::default(), node(2))?;
//! let answer = client.call(Method(1_000), Bytes::from("hello"), Duration::from_secs(5), 0)?;
//! assert_eq!(answer, "hello");
//! client.close();
//! server.shutdown();
//! # Ok::<(), squall_rpc::RpcError>(())
//! ```

#![forbid(unsafe_code)]

mod client;
mod config;
mod error;
pub mod frame;
mod handshake;
mod link;
mod method;
mod metrics;
pub mod proto;
mod server;
mod spawn;
mod stream;

pub use client::Client;
pub use config::{BODY_BYTES_MAX_DEFAULT, ClientConfig, ServerConfig};
pub use error::{CloseReason, RpcError, Status, StatusCode};
pub use handshake::{LocalIdentity, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, PeerIdentity};
pub use method::Method;
pub use metrics::RpcMetrics;
pub use server::{CallContext, Handler, Server};
