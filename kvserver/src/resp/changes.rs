//! `CHANGES`: what happened to the keys after a revision, as a request and its reply.
//!
//! ```text
//! CHANGES seen [KEY key | PREFIX prefix] [COUNT count] [BLOCK milliseconds]
//! ```
//!
//! The reply is an array of two: the revision up to which the client has now seen everything, to be asked with next, and the changes, each an array of
//! its revision, what happened, the key, and what belongs to it:
//!
//! ```text
//! revision "set" key value expiry       the expiry in milliseconds since the Unix epoch, or nil
//! revision "append" key suffix
//! revision "expiry" key expiry
//! revision "del" key
//! revision "expired" key
//! revision "clear"
//! ```

use std::time::Duration;

use bytes::Bytes;

use super::Reply;
use crate::command::{SYNTAX_ERROR, integer};
use crate::history::{Compacted, Filter, Page};
use crate::store::{Change, ChangeKind};

const COUNT_DEFAULT: usize = 1000;
/// A request waits no longer, though it says so: a client that has gone would not be noticed.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// A parsed request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub seen: u64,
    pub filter: Filter,
    pub count_max: usize,
    pub wait: Duration,
}

pub(super) fn parse(arguments: &[Bytes]) -> Result<Query, Reply> {
    let positive = |argument: &Bytes| u64::try_from(integer(argument)?).map_err(|_| SYNTAX_ERROR);
    let mut query = Query {
        seen: positive(&arguments[1])?,
        filter: Filter::Everything,
        count_max: COUNT_DEFAULT,
        wait: Duration::ZERO,
    };
    let mut options = arguments[2..].chunks_exact(2);
    for option in &mut options {
        let value = &option[1];
        match option[0].to_ascii_uppercase().as_slice() {
            b"KEY" if query.filter == Filter::Everything => query.filter = Filter::Key(value.to_vec()),
            b"PREFIX" if query.filter == Filter::Everything => query.filter = Filter::Prefix(value.to_vec()),
            b"COUNT" => query.count_max = usize::try_from(positive(value)?).unwrap_or(usize::MAX).max(1),
            // 0 stands for as long as possible, as in Redis.
            b"BLOCK" => {
                query.wait = match positive(value)? {
                    0 => WAIT_MAX,
                    milliseconds => Duration::from_millis(milliseconds).min(WAIT_MAX),
                };
            }
            _ => return Err(SYNTAX_ERROR),
        }
    }
    if options.remainder().is_empty() { Ok(query) } else { Err(SYNTAX_ERROR) }
}

pub(super) fn reply(page: Page) -> Reply {
    Reply::Array(vec![
        Reply::Integer(page.seen as i64),
        Reply::Array(page.changes.into_iter().map(change).collect()),
    ])
}

pub(super) fn compacted(error: Compacted) -> Reply {
    Reply::Error(format!("COMPACTED {error}").into())
}

fn change(change: Change) -> Reply {
    let bytes = |bytes: &[u8]| Reply::Bulk(Bytes::copy_from_slice(bytes));
    let expiry = |at_ms: Option<u64>| at_ms.map_or(Reply::Nil, |at_ms| Reply::Integer(at_ms as i64));
    let (kind, rest) = match change.kind {
        ChangeKind::Set { key, value, expires_at_ms } => {
            ("set", vec![bytes(&key), Reply::Bulk(value), expiry(expires_at_ms)])
        }
        ChangeKind::Appended { key, suffix } => ("append", vec![bytes(&key), Reply::Bulk(suffix)]),
        ChangeKind::Expiry { key, expires_at_ms } => ("expiry", vec![bytes(&key), expiry(expires_at_ms)]),
        ChangeKind::Removed { key } => ("del", vec![bytes(&key)]),
        ChangeKind::Expired { key } => ("expired", vec![bytes(&key)]),
        ChangeKind::Cleared => ("clear", vec![]),
    };
    let head = [Reply::Integer(change.revision as i64), Reply::bulk(kind)];
    Reply::Array(head.into_iter().chain(rest).collect())
}
