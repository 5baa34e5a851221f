//! The Squall server: a replicated, linearizable, durable key-value store that any Redis client can use.
//!
//! This crate owns the store, the commands, the Redis front end and the configuration. It is ordinary
//! blocking Rust over `std`: it knows neither fibers nor event loops, holds no global mutable state (several
//! nodes may live in one process), and reads no clock below the front end: the time of an operation is part
//! of it.
//!
//! - [`resp`]: the Redis protocol and the loop that serves one connection;
//! - [`command`]: what each command means, as a function of the store and the time given;
//! - [`store`]: the keys and values, with point-in-time views;
//! - [`session`]: the table that makes a retried request run once;
//! - [`history`]: the latest changes of the store, for those who watch keys;
//! - [`machine`]: store and sessions as one deterministic state machine, and the format of its log entries;
//! - [`config`]: the cluster's configuration file;
//! - [`load`]: load on a cluster, measured;
//! - [`node`]: one member of a cluster: the machine behind Raft, and its ports;
//! - [`clerk`]: the cluster's own client, exactly once across failovers;
//! - [`operator`]: the operator's client: who the members are, and changes of that;
//! - [`cluster`]: the supervisor that runs a process per node.

#![forbid(unsafe_code)]

pub mod clerk;
pub mod cluster;
mod codec;
pub mod command;
pub mod config;
pub mod history;
pub mod load;
pub mod machine;
pub mod node;
pub mod operator;
pub mod resp;
pub mod session;
pub mod store;

/// The message of an error for people, with its causes. Most errors of this workspace already say what caused them; a
/// cause is added only where the message lacks it.
pub fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text += ": ";
            text += &words;
        }
        next = cause.source();
    }
    text
}

/// Starts a concurrent activity. The one place where this crate does so.
pub(crate) fn spawn<F>(name: impl Into<String>, body: F) -> std::io::Result<()>
where
    F: FnOnce() + Send + 'static,
{
    drop(squall_hook::Builder::new().name(name).spawn(body));
    Ok(())
}
