//! The Redis protocol: requests in, replies out, and the loop that serves one connection.
//!
//! [`RequestParser`] turns bytes into requests, [`Reply`] turns results into bytes, [`FrontEnd`] does both
//! for a connection and hands the commands that need the store to a [`Backend`]. Nothing here knows what a
//! command on keys means (see [`crate::command`]) or how it is replicated.

mod backlog;
mod changes;
mod client;
mod clients;
mod connection;
mod info;
mod parser;
mod reply;
mod server;
mod transaction;

pub use backlog::BacklogWriter;
pub use client::RespClient;
pub use clients::Clients;
pub use connection::{
    Backend, BackendError, ClientSession, FrontEnd, FrontEndOptions, protected_mode_refusal,
};
pub use info::ServerInfo;
pub(crate) use parser::parse_integer;
pub use parser::{Limits, ProtocolError, Refusal, Request, RequestParser, split_inline};
pub use reply::{DecodeError, Protocol, Reply};
pub use server::RedisServer;
