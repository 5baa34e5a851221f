//! The commands that read the store.

use bytes::Bytes;

use super::{Context, SYNTAX_ERROR, integer};
use crate::resp::Reply;
use crate::store::Store;

/// How many keys `SCAN` looks at unless told.
const SCAN_COUNT: usize = 10;

/// How a remaining time or a time of expiry is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// In seconds, rounded to the nearest.
    Seconds,
    /// In milliseconds.
    Milliseconds,
}

/// A parsed command that reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read<'a> {
    /// `GET`.
    Get(&'a [u8]),
    /// `MGET`.
    Mget(&'a [Bytes]),
    /// `STRLEN`.
    Strlen(&'a [u8]),
    /// `EXISTS`; a key given twice counts twice.
    Exists(&'a [Bytes]),
    /// `TYPE`.
    Type(&'a [u8]),
    /// `TTL` and `PTTL`: the time left.
    TimeToLive(&'a [u8], Unit),
    /// `EXPIRETIME` and `PEXPIRETIME`: the time of expiry since the Unix epoch.
    ExpireTime(&'a [u8], Unit),
    /// `SCAN`.
    Scan {
        /// Where to go on.
        cursor: u64,
        /// About how many keys to look at.
        count: usize,
        /// Which keys to return.
        pattern: Option<&'a [u8]>,
        /// Whether the `TYPE` asked for, if any, is the only one there is.
        strings: bool,
    },
    /// `KEYS`.
    Keys(&'a [u8]),
    /// `DBSIZE`.
    DbSize,
    /// `RANDOMKEY`: chosen by the time alone, so that replicas agree also when it stands between writes.
    RandomKey,
}

impl Read<'_> {
    pub(super) fn run(&self, store: &Store, context: &Context) -> Reply {
        let now_ms = context.now_ms;
        let value =
            |key: &[u8]| Reply::bulk_or_nil(store.get(key, now_ms).map(|record| record.value().clone()));
        let keys = |keys: Vec<Bytes>| Reply::Array(keys.into_iter().map(Reply::Bulk).collect());
        match *self {
            Read::Get(key) => value(key),
            Read::Mget(keys) => Reply::Array(keys.iter().map(|key| value(key)).collect()),
            Read::Strlen(key) => {
                Reply::Integer(store.get(key, now_ms).map_or(0, |record| record.value().len() as i64))
            }
            Read::Exists(keys) => {
                Reply::Integer(keys.iter().filter(|key| store.get(key, now_ms).is_some()).count() as i64)
            }
            Read::Type(key) => {
                Reply::Status(if store.get(key, now_ms).is_some() { "string" } else { "none" }.into())
            }
            Read::TimeToLive(key, unit) => {
                expiry(store, key, now_ms, unit, |expires_at_ms| expires_at_ms.saturating_sub(now_ms))
            }
            Read::ExpireTime(key, unit) => expiry(store, key, now_ms, unit, |expires_at_ms| expires_at_ms),
            Read::Scan { cursor, count, pattern, strings } => {
                let mut page = store.scan(cursor, count, pattern, now_ms);
                if !strings {
                    page.keys.clear();
                }
                Reply::Array(vec![Reply::bulk(page.cursor.to_string()), keys(page.keys)])
            }
            Read::Keys(pattern) => keys(store.keys(pattern, now_ms)),
            Read::DbSize => Reply::Integer(store.len(now_ms) as i64),
            Read::RandomKey => Reply::bulk_or_nil(store.random_key(now_ms, now_ms)),
        }
    }
}

/// -2 for no key, -1 for no expiry, else `time_ms` of the expiry in `unit`.
fn expiry(store: &Store, key: &[u8], now_ms: u64, unit: Unit, time_ms: impl Fn(u64) -> u64) -> Reply {
    Reply::Integer(match store.get(key, now_ms).map(|record| record.expires_at_ms()) {
        None => -2,
        Some(None) => -1,
        Some(Some(expires_at_ms)) => {
            let time_ms = time_ms(expires_at_ms);
            let time = match unit {
                Unit::Milliseconds => time_ms,
                Unit::Seconds => time_ms.saturating_add(500) / 1000,
            };
            i64::try_from(time).unwrap_or(i64::MAX)
        }
    })
}

pub(super) fn ttl(arguments: &[Bytes]) -> Result<Read<'_>, Reply> {
    Ok(Read::TimeToLive(&arguments[1], Unit::Seconds))
}

pub(super) fn pttl(arguments: &[Bytes]) -> Result<Read<'_>, Reply> {
    Ok(Read::TimeToLive(&arguments[1], Unit::Milliseconds))
}

pub(super) fn expiretime(arguments: &[Bytes]) -> Result<Read<'_>, Reply> {
    Ok(Read::ExpireTime(&arguments[1], Unit::Seconds))
}

pub(super) fn pexpiretime(arguments: &[Bytes]) -> Result<Read<'_>, Reply> {
    Ok(Read::ExpireTime(&arguments[1], Unit::Milliseconds))
}

pub(super) fn scan(arguments: &[Bytes]) -> Result<Read<'_>, Reply> {
    let cursor = std::str::from_utf8(&arguments[1])
        .ok()
        .filter(|text| !text.starts_with('+'))
        .and_then(|text| text.parse().ok())
        .ok_or(Reply::error("ERR invalid cursor"))?;
    let (mut count, mut pattern, mut strings) = (SCAN_COUNT, None, true);
    let mut options = arguments[2..].iter();
    while let Some(option) = options.next() {
        let value = options.next().ok_or(SYNTAX_ERROR)?;
        if option.eq_ignore_ascii_case(b"match") {
            pattern = Some(&value[..]);
        } else if option.eq_ignore_ascii_case(b"count") {
            count = usize::try_from(integer(value)?).ok().filter(|count| *count > 0).ok_or(SYNTAX_ERROR)?;
        } else if option.eq_ignore_ascii_case(b"type") {
            strings = value.eq_ignore_ascii_case(b"string");
        } else {
            return Err(SYNTAX_ERROR);
        }
    }
    Ok(Read::Scan { cursor, count, pattern, strings })
}
