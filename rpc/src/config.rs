//! The settings of both ends, with their units and defaults. Checked once, when a server or client is made.

use std::sync::Arc;
use std::time::Duration;

use crate::error::RpcError;
use crate::metrics::RpcMetrics;

/// The longest body by default: 64 MiB.
pub const BODY_BYTES_MAX_DEFAULT: usize = 64 << 20;
/// No setting makes a body longer than this, so that lengths fit the header's 32 bits.
const BODY_BYTES_CEILING: usize = 1 << 30;
const QUEUE_BYTES_MAX_DEFAULT: usize = 2 * BODY_BYTES_MAX_DEFAULT;
/// What the wire's milliseconds can say: 49 days.
pub(crate) const TIMEOUT_CEILING: Duration = Duration::from_millis(u32::MAX as u64);

/// The settings of a [`Server`](crate::Server).
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Connections at once; one more is refused. Default 10,000.
    pub connections_max: usize,
    /// Requests of one connection that are served at once. When as many are, nothing more is read from it:
    /// the peer feels it as a slow network. Default 1,024.
    pub requests_in_flight_max: usize,
    /// Bytes of bodies of requests of one connection that are being served. Like the limit above, except that
    /// a single request is always let in. Default 128 MiB.
    pub bytes_in_flight_max: usize,
    /// The longest body, in bytes, read or written; at most 1 GiB. Default 64 MiB.
    pub body_bytes_max: usize,
    /// Bytes of answers that wait to be written to one connection; requests that finish wait while it is
    /// full. At least one frame. Default 128 MiB.
    pub queue_bytes_max: usize,
    /// How long a new connection may take to introduce itself. Default 5 s.
    pub handshake_timeout: Duration,
    /// A connection on which nothing arrives for this long is closed; the peer is told the number and sends
    /// heartbeats. Default 10 s.
    pub idle_timeout: Duration,
    /// A connection whose peer accepts no byte for this long is closed. Default 30 s.
    pub write_stall_timeout: Duration,
    /// How long [`shutdown`](crate::Server::shutdown) waits for requests to be answered and peers to leave.
    /// Default 2 s.
    pub drain_timeout: Duration,
    /// Where to count; may be shared with others.
    pub metrics: Arc<RpcMetrics>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            connections_max: 10_000,
            requests_in_flight_max: 1_024,
            bytes_in_flight_max: QUEUE_BYTES_MAX_DEFAULT,
            body_bytes_max: BODY_BYTES_MAX_DEFAULT,
            queue_bytes_max: QUEUE_BYTES_MAX_DEFAULT,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
            write_stall_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(2),
            metrics: Arc::default(),
        }
    }
}

impl ServerConfig {
    pub(crate) fn validate(&self) -> Result<(), RpcError> {
        check_at_least_one("connections_max", self.connections_max)?;
        check_at_least_one("requests_in_flight_max", self.requests_in_flight_max)?;
        check_body_limit(self.body_bytes_max)?;
        RpcError::check_queue("queue_bytes_max", self.queue_bytes_max, self.body_bytes_max)?;
        check_timeout("handshake_timeout", self.handshake_timeout)?;
        check_timeout("idle_timeout", self.idle_timeout)?;
        check_timeout("write_stall_timeout", self.write_stall_timeout)
    }
}

/// The settings of a [`Client`](crate::Client).
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Connections to the peer. With one (the default) everything shares it. With more, the first is for
    /// one-way messages alone, so that a heartbeat never queues behind a megabyte; calls take turns on the
    /// rest.
    pub connections: usize,
    /// The longest body, in bytes, sent or accepted; at most 1 GiB. Default 64 MiB.
    pub body_bytes_max: usize,
    /// Bytes that may wait to be written to one connection. At least one frame. Default 128 MiB.
    pub queue_bytes_max: usize,
    /// How long the peer may take to accept a connection. Default 2 s.
    pub connect_timeout: Duration,
    /// How long it may then take to introduce itself. Default 2 s.
    pub handshake_timeout: Duration,
    /// A connection on which nothing arrives for this long is closed; the peer is told the number and sends
    /// heartbeats. Default 10 s.
    pub idle_timeout: Duration,
    /// A connection whose peer accepts no byte for this long is closed. Default 30 s.
    pub write_stall_timeout: Duration,
    /// The pause after the first failure to connect; it doubles with each further one, and a random part of
    /// up to a half is taken off so that many clients do not return at once. Default 20 ms.
    pub backoff_min: Duration,
    /// The longest pause. Default 1 s.
    pub backoff_max: Duration,
    /// During the pause a call waits, up to its deadline, instead of failing with
    /// [`RpcError::Unavailable`]. Default false.
    pub wait_while_unavailable: bool,
    /// Refuse to talk to any other node than this. Default: any.
    pub expected_node_id: Option<u64>,
    /// Where to count; may be shared with others.
    pub metrics: Arc<RpcMetrics>,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            connections: 1,
            body_bytes_max: BODY_BYTES_MAX_DEFAULT,
            queue_bytes_max: QUEUE_BYTES_MAX_DEFAULT,
            connect_timeout: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            write_stall_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            wait_while_unavailable: false,
            expected_node_id: None,
            metrics: Arc::default(),
        }
    }
}

impl ClientConfig {
    pub(crate) fn validate(&self) -> Result<(), RpcError> {
        check_at_least_one("connections", self.connections)?;
        check_body_limit(self.body_bytes_max)?;
        RpcError::check_queue("queue_bytes_max", self.queue_bytes_max, self.body_bytes_max)?;
        check_timeout("connect_timeout", self.connect_timeout)?;
        check_timeout("handshake_timeout", self.handshake_timeout)?;
        check_timeout("idle_timeout", self.idle_timeout)?;
        check_timeout("write_stall_timeout", self.write_stall_timeout)?;
        check_timeout("backoff_min", self.backoff_min)?;
        check_timeout("backoff_max", self.backoff_max)?;
        if self.backoff_min > self.backoff_max {
            let problem = format!("{:?} is more than backoff_max, {:?}", self.backoff_min, self.backoff_max);
            return Err(RpcError::BadConfig { setting: "backoff_min", problem });
        }
        Ok(())
    }
}

fn check_at_least_one(setting: &'static str, value: usize) -> Result<(), RpcError> {
    if value == 0 {
        return Err(RpcError::BadConfig { setting, problem: "must be at least 1".into() });
    }
    Ok(())
}

fn check_body_limit(bytes: usize) -> Result<(), RpcError> {
    if bytes == 0 || bytes > BODY_BYTES_CEILING {
        let problem = format!("{bytes} is not between 1 and {BODY_BYTES_CEILING}");
        return Err(RpcError::BadConfig { setting: "body_bytes_max", problem });
    }
    Ok(())
}

fn check_timeout(setting: &'static str, timeout: Duration) -> Result<(), RpcError> {
    if timeout < Duration::from_millis(1) || timeout > TIMEOUT_CEILING {
        let problem = format!("{timeout:?} is not between 1 ms and {TIMEOUT_CEILING:?}");
        return Err(RpcError::BadConfig { setting, problem });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting_at_fault(result: Result<(), RpcError>) -> &'static str {
        match result {
            Err(RpcError::BadConfig { setting, .. }) => setting,
            other => panic!("accepted: {other:?}"),
        }
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(ServerConfig::default().validate(), Ok(()));
        assert_eq!(ClientConfig::default().validate(), Ok(()));
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let server = ServerConfig::default;
        let client = ClientConfig::default;
        let results = [
            ("connections_max", ServerConfig { connections_max: 0, ..server() }.validate()),
            ("requests_in_flight_max", ServerConfig { requests_in_flight_max: 0, ..server() }.validate()),
            ("body_bytes_max", ServerConfig { body_bytes_max: usize::MAX, ..server() }.validate()),
            ("queue_bytes_max", ServerConfig { queue_bytes_max: 1_000, ..server() }.validate()),
            ("idle_timeout", ServerConfig { idle_timeout: Duration::ZERO, ..server() }.validate()),
            ("connections", ClientConfig { connections: 0, ..client() }.validate()),
            ("connect_timeout", ClientConfig { connect_timeout: Duration::MAX, ..client() }.validate()),
            ("backoff_min", ClientConfig { backoff_min: Duration::from_secs(9), ..client() }.validate()),
        ];
        for (setting, result) in results {
            assert_eq!(setting_at_fault(result), setting);
        }
    }
}
