//! The messages that travel in frame bodies, generated from `proto/*.proto`, where each is explained.
//!
//! Owns nothing but the generated code and the two functions that turn bodies into messages and back. Payload
//! fields are [`Bytes`]: decoding slices the received body and copies nothing.

#![allow(
    missing_docs,
    reason = "the meaning of each field stands in the .proto file, which is its specification"
)]

use bytes::Bytes;
use prost::Message;

use crate::error::{Status, StatusCode};

/// What the connection itself says: hello, goaway, status.
pub mod rpc {
    include!(concat!(env!("OUT_DIR"), "/squall.rpc.rs"));
}

/// What members of a Raft group say to each other.
pub mod raft {
    include!(concat!(env!("OUT_DIR"), "/squall.raft.rs"));
}

/// What clients ask of a node.
pub mod kv {
    include!(concat!(env!("OUT_DIR"), "/squall.kv.rs"));
}

/// The body that carries `message`.
pub fn encode(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

/// The message in `body`.
///
/// # Errors
/// [`StatusCode::BadRequest`] when the body is no such message, ready to be a handler's answer.
pub fn decode<M: Message + Default>(body: Bytes) -> Result<M, Status> {
    M::decode(body)
        .map_err(|error| Status::new(StatusCode::BadRequest, format!("undecodable message: {error}")))
}
