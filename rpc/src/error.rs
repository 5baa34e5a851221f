//! What can go wrong, split by who is at fault: [`CloseReason`] says why a connection ended, [`Status`] is a
//! peer's answer "no", [`RpcError`] is what a caller gets.
//!
//! The question a caller must always be able to answer is "may it have been executed?":
//! [`RpcError::definitely_not_executed`].

use std::io;
use std::time::Duration;

use crate::frame::Kind;
use crate::link::OUTGOING_BYTES;
use crate::proto::rpc::{goaway, status};

/// Why a connection ended. The first reason wins; later ones are consequences of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed by this side")]
    Local,
    /// The peer closed it between two frames.
    #[error("closed by the peer")]
    PeerClosed,
    /// The connection failed, or could not be made.
    #[error("connection failed: {0}")]
    Io(io::ErrorKind),
    /// The peer took no byte for `write_stall_timeout`.
    #[error("the peer accepts no data")]
    WriteStalled,
    /// Nothing arrived for `idle_timeout`, though a live peer would have sent heartbeats: it is gone, or the
    /// network between is.
    #[error("nothing heard from the peer within the idle timeout")]
    IdleTimeout,
    /// The peer was connected, but said no hello in time.
    #[error("the peer did not introduce itself in time")]
    HandshakeTimeout,
    /// The peer refused this side, and said why; its words are in the log.
    #[error("refused by the peer: {}", .0.as_str_name())]
    Refused(goaway::Code),
    /// This side refused the peer.
    #[error("peer refused: {}", .0.as_str_name())]
    PeerRefused(goaway::Code),
    /// The connection ended inside a frame.
    #[error("the connection ended {got} bytes into a frame part of {expected}")]
    Truncated {
        /// Bytes of the header or body that arrived.
        got: usize,
        /// Bytes it should have had.
        expected: usize,
    },
    /// The first bytes of a frame are not a frame's: another protocol, or a lost frame boundary.
    #[error("bad magic number {0:#010x}: not a peer of this protocol")]
    BadMagic(u32),
    /// The frame format is not one that this side knows.
    #[error("unknown frame version {0}")]
    UnknownVersion(u8),
    /// The header does not match its checksum.
    #[error("corrupt frame header: checksum {computed:#010x}, announced {announced:#010x}")]
    CorruptHeader {
        /// What the header's bytes sum up to.
        computed: u32,
        /// What the header says.
        announced: u32,
    },
    /// The body does not match its checksum.
    #[error("corrupt frame body: checksum {computed:#010x}, announced {announced:#010x}")]
    CorruptBody {
        /// What the body's bytes sum up to.
        computed: u32,
        /// What the header says.
        announced: u32,
    },
    /// The frame is of a kind that this side does not know.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// The body is longer than this side takes.
    #[error("frame body of {announced} bytes, the limit is {limit} (body_bytes_max)")]
    BodyTooLong {
        /// Bytes the header announces.
        announced: usize,
        /// The most this side takes.
        limit: usize,
    },
    /// A well-formed frame at the wrong moment or in the wrong direction.
    #[error("unexpected {0:?} frame")]
    UnexpectedFrame(Kind),
    /// A frame of the connection's own protocol whose message cannot be decoded.
    #[error("undecodable {0:?} frame")]
    BadMessage(Kind),
}

impl CloseReason {
    /// The reason's name in metrics and logs, whatever the numbers inside it.
    pub const fn name(self) -> &'static str {
        match self {
            CloseReason::Local => "local",
            CloseReason::PeerClosed => "peer_closed",
            CloseReason::Io(_) => "io",
            CloseReason::WriteStalled => "write_stalled",
            CloseReason::IdleTimeout => "idle_timeout",
            CloseReason::HandshakeTimeout => "handshake_timeout",
            CloseReason::Refused(_) => "refused",
            CloseReason::PeerRefused(_) => "peer_refused",
            CloseReason::Truncated { .. } => "truncated",
            CloseReason::BadMagic(_) => "bad_magic",
            CloseReason::UnknownVersion(_) => "unknown_version",
            CloseReason::CorruptHeader { .. } => "corrupt_header",
            CloseReason::CorruptBody { .. } => "corrupt_body",
            CloseReason::UnknownKind(_) => "unknown_kind",
            CloseReason::BodyTooLong { .. } => "body_too_long",
            CloseReason::UnexpectedFrame(_) => "unexpected_frame",
            CloseReason::BadMessage(_) => "bad_message",
        }
    }

    /// Whether the peer broke the protocol, or something on the way broke the peer's bytes.
    pub const fn is_misbehaviour(self) -> bool {
        match self {
            CloseReason::Local
            | CloseReason::PeerClosed
            | CloseReason::Io(_)
            | CloseReason::WriteStalled
            | CloseReason::IdleTimeout
            | CloseReason::HandshakeTimeout
            | CloseReason::Refused(_)
            | CloseReason::PeerRefused(_) => false,
            CloseReason::Truncated { .. }
            | CloseReason::BadMagic(_)
            | CloseReason::UnknownVersion(_)
            | CloseReason::CorruptHeader { .. }
            | CloseReason::CorruptBody { .. }
            | CloseReason::UnknownKind(_)
            | CloseReason::BodyTooLong { .. }
            | CloseReason::UnexpectedFrame(_)
            | CloseReason::BadMessage(_) => true,
        }
    }
}

/// Why a peer did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusCode {
    /// The request makes no sense; nothing was executed.
    BadRequest,
    /// The peer does not know the method; nothing was executed.
    Unimplemented,
    /// The peer has no room for it now; nothing was executed.
    Overloaded,
    /// The peer is shutting down; nothing was executed.
    ShuttingDown,
    /// The deadline had passed before the peer began; nothing was executed.
    Expired,
    /// It was begun and failed; part of it may have been executed.
    Failed,
    /// A code that this side does not know: the peer is newer.
    Unknown,
}

impl StatusCode {
    fn to_wire(self) -> status::Code {
        match self {
            StatusCode::BadRequest => status::Code::BadRequest,
            StatusCode::Unimplemented => status::Code::Unimplemented,
            StatusCode::Overloaded => status::Code::Overloaded,
            StatusCode::ShuttingDown => status::Code::ShuttingDown,
            StatusCode::Expired => status::Code::Expired,
            StatusCode::Failed => status::Code::Failed,
            StatusCode::Unknown => status::Code::Unspecified,
        }
    }

    fn from_wire(code: status::Code) -> StatusCode {
        match code {
            status::Code::BadRequest => StatusCode::BadRequest,
            status::Code::Unimplemented => StatusCode::Unimplemented,
            status::Code::Overloaded => StatusCode::Overloaded,
            status::Code::ShuttingDown => StatusCode::ShuttingDown,
            status::Code::Expired => StatusCode::Expired,
            status::Code::Failed => StatusCode::Failed,
            status::Code::Unspecified => StatusCode::Unknown,
        }
    }
}

const STATUS_MESSAGE_CHARS_MAX: usize = 1_000;

/// A peer's answer "no" to a request. A handler that returns one promises what its code says about execution.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct Status {
    /// What kind of no.
    pub code: StatusCode,
    /// For people; never to be parsed.
    pub message: String,
}

impl Status {
    /// A status of this code; `message` is for people.
    pub fn new(code: StatusCode, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }

    pub(crate) fn to_wire(&self) -> crate::proto::rpc::Status {
        // However long a handler's message is, the frame around it must stay below every peer's limit.
        let message = self.message.chars().take(STATUS_MESSAGE_CHARS_MAX).collect();
        crate::proto::rpc::Status { code: self.code.to_wire().into(), message }
    }

    pub(crate) fn from_wire(wire: crate::proto::rpc::Status) -> Status {
        Status { code: StatusCode::from_wire(wire.code()), message: wire.message }
    }
}

/// What a caller gets instead of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// The caller's fault: a setting that cannot work. Nothing was started.
    #[error("rpc setting {setting}: {problem}")]
    BadConfig {
        /// The field's name.
        setting: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {kind}")]
    Bind {
        /// The address.
        addr: std::net::SocketAddr,
        /// What the system said.
        kind: io::ErrorKind,
    },
    /// The caller's fault: the body is longer than a frame may be. Not sent.
    #[error("body of {bytes} bytes, the limit is {limit} (body_bytes_max)")]
    BodyTooLong {
        /// The body's bytes.
        bytes: usize,
        /// The most a frame may carry.
        limit: usize,
    },
    /// The queue to this peer is full: it takes less than it is given. Not sent.
    #[error("{queued} of {limit} bytes are queued for the peer (queue_bytes_max)")]
    Full {
        /// Bytes queued, with what each frame takes beside its body.
        queued: usize,
        /// The most that may be.
        limit: usize,
    },
    /// There is no connection, and the next attempt is not due yet. Not sent.
    #[error("peer unavailable ({cause}), next attempt in {retry_after:?}")]
    Unavailable {
        /// When the next attempt is due.
        retry_after: Duration,
        /// How the last connection or attempt ended.
        cause: CloseReason,
    },
    /// The connection ended before the request was handed to the network. Not executed.
    #[error("not sent: {0}")]
    NotSent(CloseReason),
    /// The connection ended after the request was sent and before an answer came. Whether it is executed is
    /// unknown.
    #[error("sent, but no answer: {0}")]
    OutcomeUnknown(CloseReason),
    /// The peer, or the network, sent what no correct peer sends, and the connection was closed.
    #[error("the peer misbehaved: {reason}")]
    PeerMisbehaved {
        /// What it did.
        reason: CloseReason,
        /// Whether the request had been handed to the network.
        sent: bool,
    },
    /// No answer came in time.
    #[error("deadline exceeded ({})", if *.sent { "sent, outcome unknown" } else { "never sent" })]
    DeadlineExceeded {
        /// Whether the request had been handed to the network. When not, it never will be.
        sent: bool,
    },
    /// The caller did not want the answer any more. Whether the request is executed is unknown.
    #[error("given up before an answer came")]
    GivenUp,
    /// The peer answered no.
    #[error("refused by the peer: {0}")]
    Remote(#[from] Status),
    /// This client has been closed. Not sent.
    #[error("this client is closed")]
    Closed,
}

impl RpcError {
    /// Whether the request certainly was not and will not be executed, so that it may be repeated, here or
    /// elsewhere, without having it executed twice.
    pub fn definitely_not_executed(&self) -> bool {
        match self {
            RpcError::BadConfig { .. }
            | RpcError::Bind { .. }
            | RpcError::BodyTooLong { .. }
            | RpcError::Full { .. }
            | RpcError::Unavailable { .. }
            | RpcError::NotSent(_)
            | RpcError::Closed => true,
            RpcError::OutcomeUnknown(_) | RpcError::GivenUp => false,
            RpcError::PeerMisbehaved { sent, .. } | RpcError::DeadlineExceeded { sent } => !sent,
            RpcError::Remote(status) => !matches!(status.code, StatusCode::Failed | StatusCode::Unknown),
        }
    }

    /// The error of a request whose connection ended for `reason`.
    pub(crate) fn disconnected(reason: CloseReason, sent: bool) -> RpcError {
        if reason.is_misbehaviour() {
            RpcError::PeerMisbehaved { reason, sent }
        } else if sent {
            RpcError::OutcomeUnknown(reason)
        } else {
            RpcError::NotSent(reason)
        }
    }

    /// Checks a body that is to be sent against the limit.
    pub(crate) fn check_body(bytes: usize, limit: usize) -> Result<(), RpcError> {
        if bytes > limit { Err(RpcError::BodyTooLong { bytes, limit }) } else { Ok(()) }
    }

    /// Checks that a queue takes the longest frame, so that no frame waits for room that never comes.
    pub(crate) fn check_queue(
        setting: &'static str,
        queue_bytes: usize,
        body_bytes: usize,
    ) -> Result<(), RpcError> {
        if queue_bytes < body_bytes.saturating_add(OUTGOING_BYTES) {
            let problem =
                format!("{queue_bytes} is less than one frame of body_bytes_max ({body_bytes}) takes");
            return Err(RpcError::BadConfig { setting, problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_that_may_have_been_sent_has_an_unknown_outcome() {
        let misbehaved = CloseReason::BadMagic(1);
        for (error, not_executed) in [
            (RpcError::disconnected(CloseReason::PeerClosed, false), true),
            (RpcError::disconnected(CloseReason::PeerClosed, true), false),
            (RpcError::disconnected(misbehaved, false), true),
            (RpcError::disconnected(misbehaved, true), false),
            (RpcError::DeadlineExceeded { sent: false }, true),
            (RpcError::DeadlineExceeded { sent: true }, false),
            (RpcError::GivenUp, false),
            (Status::new(StatusCode::Overloaded, "").into(), true),
            (Status::new(StatusCode::Failed, "").into(), false),
            (Status::new(StatusCode::Unknown, "").into(), false),
        ] {
            assert_eq!(error.definitely_not_executed(), not_executed, "{error}");
        }
    }

    #[test]
    fn a_status_survives_the_wire_and_a_newer_peers_code_is_unknown() {
        let status = Status::new(StatusCode::Expired, "late");
        assert_eq!(Status::from_wire(status.to_wire()), status);
        let newer = crate::proto::rpc::Status { code: 999, message: String::new() };
        assert_eq!(Status::from_wire(newer).code, StatusCode::Unknown);
    }
}
