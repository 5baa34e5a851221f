//! The commands that read the store.

use std::ops::Bound;

use bytes::Bytes;

use super::{Context, SYNTAX_ERROR, integer};
use crate::resp::Reply;
use crate::store::{Record, Store, prefix_end};

/// How many keys `SCAN` looks at unless told.
const SCAN_COUNT: usize = 10;
/// How many keys a range returns unless told.
const RANGE_LIMIT: usize = 1000;
/// A range stops, to be gone on with, when what it returns has more bytes than this.
const RANGE_BYTES: usize = 1024 * 1024;

/// How a remaining time or a time of expiry is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// In seconds, rounded to the nearest.
    Seconds,
    /// In milliseconds.
    Milliseconds,
}

/// Which keys a range covers and what is told of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range<'a> {
    /// The first key, or the last if `reverse`.
    from: Bound<&'a [u8]>,
    /// The last key, or the first if `reverse`.
    to: RangeEnd<'a>,
    limit: usize,
    reverse: bool,
    with_values: bool,
    with_versions: bool,
}

/// Where a range ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum RangeEnd<'a> {
    At(Bound<&'a [u8]>),
    /// With the last key that has this prefix.
    Prefix(&'a [u8]),
}

/// A parsed command that reads.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// `RANGE` and `PREFIX`.
    Range(Range<'a>),
    /// `REVISION`: the number of the last change.
    Revision,
    /// `VERSION`: of each key, 0 if it does not exist.
    Versions(&'a [Bytes]),
    /// `EXGET`: value and version.
    GetVersioned(&'a [u8]),
}

impl Read<'_> {
    pub(super) fn run(&self, store: &Store, context: &Context) -> Reply {
        let now_ms = context.now_ms;
        let value =
            |key: &[u8]| Reply::bulk_or_nil(store.get(key, now_ms).map(|record| record.value().clone()));
        let keys = |keys: Vec<Bytes>| Reply::Array(keys.into_iter().map(Reply::Bulk).collect());
        match *self {
            Read::Range(ref range) => range.run(store, now_ms),
            Read::Revision => Reply::Integer(store.revision() as i64),
            Read::Versions(keys) => {
                let version = |key: &Bytes| store.get(key, now_ms).map_or(0, Record::version);
                Reply::Array(keys.iter().map(|key| Reply::Integer(version(key) as i64)).collect())
            }
            Read::GetVersioned(key) => store.get(key, now_ms).map_or(Reply::Nil, |record| {
                Reply::Array(vec![
                    Reply::Bulk(record.value().clone()),
                    Reply::Integer(record.version() as i64),
                ])
            }),
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

impl Range<'_> {
    /// An array of two: the `from` with which to go on, nil if there is no more, and what was found.
    fn run(&self, store: &Store, now_ms: u64) -> Reply {
        let end;
        let to = match self.to {
            RangeEnd::At(to) => to,
            RangeEnd::Prefix(prefix) => {
                end = prefix_end(prefix);
                end.as_deref().map_or(Bound::Unbounded, Bound::Excluded)
            }
        };
        if self.reverse {
            self.page(store.range(to, self.from, now_ms).rev())
        } else {
            self.page(store.range(self.from, to, now_ms))
        }
    }

    fn page<'s>(&self, records: impl Iterator<Item = &'s Record>) -> Reply {
        let (mut found, mut count, mut bytes) = (Vec::new(), 0, 0);
        let mut last: Option<&Record> = None;
        for record in records {
            if count == self.limit || bytes > RANGE_BYTES {
                let next = [&b"("[..], last.map_or(&[], Record::key)].concat();
                return Reply::Array(vec![Reply::bulk(next), Reply::Array(found)]);
            }
            count += 1;
            found.push(Reply::Bulk(Bytes::copy_from_slice(record.key())));
            bytes += record.key().len();
            if self.with_values {
                found.push(Reply::Bulk(record.value().clone()));
                bytes += record.value().len();
            }
            if self.with_versions {
                found.push(Reply::Integer(record.version() as i64));
            }
            last = Some(record);
        }
        Reply::Array(vec![Reply::Nil, Reply::Array(found)])
    }
}

/// `RANGE from to [REV] [LIMIT count] [KEYSONLY] [WITHVERSIONS]`, the bounds as those of `ZRANGE … BYLEX`.
pub(super) fn range(arguments: &[Bytes]) -> Result<Read<'_>, Reply> {
    let (from, to) = (bound(&arguments[1])?, bound(&arguments[2])?);
    range_options(Range::new(from, RangeEnd::At(to)), &arguments[3..], false)
}

/// `PREFIX prefix [FROM bound] [LIMIT count] [KEYSONLY] [WITHVERSIONS]`.
pub(super) fn prefix(arguments: &[Bytes]) -> Result<Read<'_>, Reply> {
    let prefix = &arguments[1];
    range_options(Range::new(Bound::Included(prefix), RangeEnd::Prefix(prefix)), &arguments[2..], true)
}

impl<'a> Range<'a> {
    fn new(from: Bound<&'a [u8]>, to: RangeEnd<'a>) -> Self {
        Self { from, to, limit: RANGE_LIMIT, reverse: false, with_values: true, with_versions: false }
    }
}

fn range_options<'a>(mut range: Range<'a>, options: &'a [Bytes], is_prefix: bool) -> Result<Read<'a>, Reply> {
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match option.to_ascii_uppercase().as_slice() {
            b"KEYSONLY" => range.with_values = false,
            b"WITHVERSIONS" => range.with_versions = true,
            b"REV" if !is_prefix => range.reverse = true,
            b"FROM" if is_prefix => {
                let from = bound(options.next().ok_or(SYNTAX_ERROR)?)?;
                let begins_before = |prefix: &[u8]| match from {
                    Bound::Included(from) | Bound::Excluded(from) => from < prefix,
                    Bound::Unbounded => true,
                };
                // Never before the prefix.
                if !matches!(range.to, RangeEnd::Prefix(prefix) if begins_before(prefix)) {
                    range.from = from;
                }
            }
            b"LIMIT" => {
                let limit = integer(options.next().ok_or(SYNTAX_ERROR)?)?;
                range.limit = usize::try_from(limit)
                    .ok()
                    .filter(|limit| *limit > 0)
                    .ok_or(Reply::error("ERR LIMIT must be positive"))?;
            }
            _ => return Err(SYNTAX_ERROR),
        }
    }
    Ok(Read::Range(range))
}

/// `-` and `+` for before and after all keys, `[key` with the key itself, `(key` without it.
fn bound(argument: &[u8]) -> Result<Bound<&[u8]>, Reply> {
    match argument {
        b"-" | b"+" => Ok(Bound::Unbounded),
        [b'[', key @ ..] => Ok(Bound::Included(key)),
        [b'(', key @ ..] => Ok(Bound::Excluded(key)),
        _ => Err(Reply::error(
            "ERR a bound of a range is - or + for no bound, [key for the key and what follows, or (key for what follows it",
        )),
    }
}
