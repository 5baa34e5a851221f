//! The Redis protocol: requests in, replies out, and the loop that serves one connection.
//!
//! [`RequestParser`] turns bytes into requests, [`Reply`] turns results into bytes, [`FrontEnd`] does both for a
//! connection and hands the commands that need the store to a [`Backend`]. Nothing here knows what a command on
//! keys means (see [`crate::command`]) or how it is replicated.

mod parser;
mod reply;

pub(crate) use parser::parse_integer;
pub use parser::{Limits, ProtocolError, Refusal, Request, RequestParser};
pub use reply::{DecodeError, Protocol, Reply};
