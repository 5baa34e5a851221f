//! The commands that change the store. All of them go through the log.

use bytes::Bytes;

use super::{Context, NOT_AN_INTEGER, SYNTAX_ERROR, integer, value_too_long, wrong_arity};
use crate::resp::{Reply, parse_integer};
use crate::store::{Record, Store};

/// When `SET` takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetCondition<'a> {
    /// Always.
    Always,
    /// If the key does not exist (`NX`).
    Absent,
    /// If the key exists (`XX`).
    Present,
    /// If the key has this value (`IFEQ`).
    Value(&'a [u8]),
}

/// What a key must have for a change to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected<'a> {
    /// This value.
    Value(&'a [u8]),
    /// This version.
    Version(u64),
}

impl Expected<'_> {
    fn matches(&self, record: &Record) -> bool {
        match *self {
            Expected::Value(value) => record.value() == value,
            Expected::Version(version) => record.version() == version,
        }
    }
}

/// What a command of the `SET` family answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetReply {
    /// `OK`, or nil if the condition did not hold.
    Status,
    /// 1, or 0 if the condition did not hold.
    Integer,
    /// The previous value or nil, whether the condition held or not.
    Previous,
    /// The new version, or nil if the condition did not hold.
    Version,
}

/// What becomes of a key's expiry when its value is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetExpiry {
    /// It has none afterwards.
    Clear,
    /// It keeps the one it has (`KEEPTTL`).
    Keep,
    /// It gets this one.
    At(Deadline),
}

/// A time as the client gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Milliseconds, from the command's time or from the Unix epoch.
    amount_ms: i64,
    relative: bool,
    /// The command, for the error text.
    command: &'static str,
}

/// Which expiry a command of the `EXPIRE` family may replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpireCondition {
    /// Only none (`NX`).
    absent: bool,
    /// Only an existing one (`XX`).
    present: bool,
    /// Only an earlier one (`GT`); none counts as infinitely late.
    later: bool,
    /// Only a later one (`LT`).
    earlier: bool,
}

/// A parsed command that writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write<'a> {
    /// `SET`, `SETNX`, `SETEX`, `PSETEX`, `GETSET` and `EXSET`.
    Set {
        /// The key.
        key: &'a [u8],
        /// Its new value.
        value: &'a [u8],
        /// When to set it.
        condition: SetCondition<'a>,
        /// The version that it must have, if it exists.
        version: Option<u64>,
        /// What becomes of its expiry.
        expiry: SetExpiry,
        /// What to answer.
        reply: SetReply,
    },
    /// `MSET` and `MSETNX`.
    SetMany {
        /// Keys and values in turn.
        pairs: &'a [Bytes],
        /// Whether to set all of them only if none exists.
        if_all_absent: bool,
    },
    /// `APPEND`.
    Append(&'a [u8], &'a [u8]),
    /// `INCR`, `DECR`, `INCRBY` and `DECRBY`.
    Increment(&'a [u8], i64),
    /// `GETDEL`.
    GetRemove(&'a [u8]),
    /// `DEL` and `UNLINK`.
    Remove(&'a [Bytes]),
    /// `EXPIRE`, `PEXPIRE`, `EXPIREAT` and `PEXPIREAT`.
    Expire(&'a [u8], Deadline, ExpireCondition),
    /// `PERSIST`.
    Persist(&'a [u8]),
    /// `CAS` and `EXCAS`.
    CompareAndSet {
        /// The key.
        key: &'a [u8],
        /// What it must have.
        expected: Expected<'a>,
        /// Its new value.
        value: &'a [u8],
        /// What becomes of its expiry.
        expiry: SetExpiry,
    },
    /// `CAD`, `EXCAD` and `DELIFEQ`.
    CompareAndRemove {
        /// The key.
        key: &'a [u8],
        /// What it must have.
        expected: Expected<'a>,
        /// What to answer if it does not exist.
        absent: i64,
    },
    /// `CHECK`: every node sums up its state as it is after this, for `kvctl check` to compare.
    Check(u64),
    /// `FLUSHALL` and `FLUSHDB`.
    Clear,
}

impl Deadline {
    /// The time in milliseconds since the Unix epoch, which may lie before it.
    fn resolve(&self, now_ms: u64) -> Result<i64, Reply> {
        if !self.relative {
            return Ok(self.amount_ms);
        }
        i64::try_from(now_ms)
            .ok()
            .and_then(|now_ms| now_ms.checked_add(self.amount_ms))
            .ok_or_else(|| invalid_expire_time(self.command))
    }
}

impl SetExpiry {
    /// When the key will expire, which has been `current` so far.
    fn resolve(&self, current: Option<&Record>, now_ms: u64) -> Result<Option<u64>, Reply> {
        Ok(match self {
            SetExpiry::Clear => None,
            SetExpiry::Keep => current.and_then(Record::expires_at_ms),
            // A time before the epoch is as past as the epoch itself.
            SetExpiry::At(deadline) => Some(deadline.resolve(now_ms)?.max(0) as u64),
        })
    }
}

impl ExpireCondition {
    fn allows(&self, new_ms: i64, current_ms: Option<u64>) -> bool {
        let current_ms = current_ms.map(|current_ms| i64::try_from(current_ms).unwrap_or(i64::MAX));
        !(self.absent && current_ms.is_some()
            || self.present && current_ms.is_none()
            || self.later && current_ms.is_none_or(|current_ms| new_ms <= current_ms)
            || self.earlier && current_ms.is_some_and(|current_ms| new_ms >= current_ms))
    }
}

impl Write<'_> {
    pub(super) fn run(&self, store: &mut Store, context: &Context) -> Reply {
        let now_ms = context.now_ms;
        match *self {
            Write::Set { key, value, condition, version, expiry, reply } => {
                let current = store.get(key, now_ms);
                let holds = match condition {
                    SetCondition::Always => true,
                    SetCondition::Absent => current.is_none(),
                    SetCondition::Present => current.is_some(),
                    SetCondition::Value(value) => current.is_some_and(|record| record.value() == value),
                };
                if let (Some(record), Some(version)) = (current, version)
                    && record.version() != version
                {
                    return Reply::error("ERR update version is stale");
                }
                let answer = match reply {
                    SetReply::Status if holds => Reply::OK,
                    SetReply::Status => Reply::Nil,
                    SetReply::Integer => Reply::Integer(holds.into()),
                    SetReply::Previous => Reply::bulk_or_nil(current.map(|record| record.value().clone())),
                    SetReply::Version if holds => Reply::Integer((store.revision() + 1) as i64),
                    SetReply::Version => Reply::Nil,
                };
                let expires_at_ms = match expiry.resolve(current, now_ms) {
                    Ok(expires_at_ms) => expires_at_ms,
                    Err(error) => return error,
                };
                if holds {
                    store.set(key, value, expires_at_ms);
                }
                answer
            }
            Write::SetMany { pairs, if_all_absent } => {
                if if_all_absent && pairs.iter().step_by(2).any(|key| store.get(key, now_ms).is_some()) {
                    return Reply::Integer(0);
                }
                for pair in pairs.chunks_exact(2) {
                    store.set(&pair[0], &pair[1], None);
                }
                if if_all_absent { Reply::Integer(1) } else { Reply::OK }
            }
            Write::Append(key, suffix) => {
                let bytes = store.get(key, now_ms).map(|record| record.value().len() as u64);
                let new_bytes = bytes.unwrap_or(0) + suffix.len() as u64;
                if new_bytes > context.value_bytes_max {
                    return value_too_long(new_bytes, context.value_bytes_max);
                }
                if bytes.is_some() {
                    store.append(key, suffix);
                } else {
                    store.set(key, suffix, None);
                }
                Reply::Integer(new_bytes as i64)
            }
            Write::Increment(key, by) => {
                let current = store.get(key, now_ms);
                let expires_at_ms = current.and_then(|record| record.expires_at_ms());
                let Some(number) = current.map_or(Some(0), |record| parse_integer(record.value())) else {
                    return NOT_AN_INTEGER;
                };
                let Some(number) = number.checked_add(by) else {
                    return Reply::error("ERR increment or decrement would overflow");
                };
                store.set(key, number.to_string().as_bytes(), expires_at_ms);
                Reply::Integer(number)
            }
            Write::CompareAndSet { key, expected, value, expiry } => {
                let Some(current) = store.get(key, now_ms) else { return Reply::Integer(-1) };
                let holds = expected.matches(current);
                let answer = match expected {
                    Expected::Value(_) => Reply::Integer(holds.into()),
                    Expected::Version(_) if holds => Reply::Array(vec![
                        Reply::OK,
                        Reply::bulk(""),
                        Reply::Integer((store.revision() + 1) as i64),
                    ]),
                    Expected::Version(_) => Reply::Array(vec![
                        Reply::Status("CAS_FAILED".into()),
                        Reply::Bulk(current.value().clone()),
                        Reply::Integer(current.version() as i64),
                    ]),
                };
                let expires_at_ms = match expiry.resolve(Some(current), now_ms) {
                    Ok(expires_at_ms) => expires_at_ms,
                    Err(error) => return error,
                };
                if holds {
                    store.set(key, value, expires_at_ms);
                }
                answer
            }
            Write::CompareAndRemove { key, expected, absent } => {
                let Some(current) = store.get(key, now_ms) else { return Reply::Integer(absent) };
                let holds = expected.matches(current);
                if holds {
                    store.remove(key, now_ms);
                }
                Reply::Integer(holds.into())
            }
            Write::GetRemove(key) => {
                let value = store.get(key, now_ms).map(|record| record.value().clone());
                store.remove(key, now_ms);
                Reply::bulk_or_nil(value)
            }
            Write::Remove(keys) => {
                let removed = keys.iter().filter(|key| {
                    let visible = store.get(key, now_ms).is_some();
                    store.remove(key, now_ms);
                    visible
                });
                Reply::Integer(removed.count() as i64)
            }
            Write::Expire(key, deadline, condition) => {
                let at_ms = match deadline.resolve(now_ms) {
                    Ok(at_ms) => at_ms,
                    Err(error) => return error,
                };
                let Some(record) = store.get(key, now_ms) else { return Reply::Integer(0) };
                if !condition.allows(at_ms, record.expires_at_ms()) {
                    return Reply::Integer(0);
                }
                match u64::try_from(at_ms) {
                    Ok(at_ms) if at_ms > now_ms => store.set_expiry(key, Some(at_ms)),
                    _ => drop(store.remove(key, now_ms)),
                }
                Reply::Integer(1)
            }
            Write::Persist(key) => {
                let expires = store.get(key, now_ms).is_some_and(|record| record.expires_at_ms().is_some());
                if expires {
                    store.set_expiry(key, None);
                }
                Reply::Integer(expires.into())
            }
            Write::Check(number) => {
                store.request_check(number);
                Reply::OK
            }
            Write::Clear => {
                store.clear();
                Reply::OK
            }
        }
    }
}

pub(super) fn set(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    set_with_options(arguments, "set")
}

/// `EXSET key value [EX … | PX … | EXAT … | PXAT … | KEEPTTL] [NX | XX] [VER version] [WITHVERSION]`, as of TairString. The version of a
/// key that does not exist is not looked at.
pub(super) fn exset(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    set_with_options(arguments, "exset")
}

fn set_with_options<'a>(arguments: &'a [Bytes], command: &'static str) -> Result<Write<'a>, Reply> {
    let versioned = command == "exset";
    let mut condition = SetCondition::Always;
    let mut expected = None;
    let mut expiry = SetExpiry::Clear;
    let mut reply = SetReply::Status;
    let mut options = arguments[3..].iter();
    while let Some(option) = options.next() {
        match option.to_ascii_uppercase().as_slice() {
            b"NX" if matches!(condition, SetCondition::Always | SetCondition::Absent) => {
                condition = SetCondition::Absent;
            }
            b"XX" if matches!(condition, SetCondition::Always | SetCondition::Present) => {
                condition = SetCondition::Present;
            }
            b"IFEQ" if !versioned && condition == SetCondition::Always => {
                condition = SetCondition::Value(options.next().ok_or(SYNTAX_ERROR)?);
            }
            b"GET" if !versioned => reply = SetReply::Previous,
            b"WITHVERSION" if versioned => reply = SetReply::Version,
            b"VER" if versioned => expected = Some(version(options.next().ok_or(SYNTAX_ERROR)?)?),
            name => expiry = expiry_option(name, expiry, &mut options, command)?,
        }
    }
    let (key, value) = (&arguments[1], &arguments[2]);
    Ok(Write::Set { key, value, condition, version: expected, expiry, reply })
}

/// One of the options that say when a key expires, after `expiry` from the options before it.
fn expiry_option<'a>(
    name: &[u8],
    expiry: SetExpiry,
    options: &mut impl Iterator<Item = &'a Bytes>,
    command: &'static str,
) -> Result<SetExpiry, Reply> {
    match name {
        b"KEEPTTL" if !matches!(expiry, SetExpiry::At(_)) => Ok(SetExpiry::Keep),
        b"EX" | b"PX" | b"EXAT" | b"PXAT" if expiry == SetExpiry::Clear => {
            let amount = options.next().ok_or(SYNTAX_ERROR)?;
            let unit_ms = if name.starts_with(b"EX") { 1000 } else { 1 };
            Ok(SetExpiry::At(positive_deadline(amount, unit_ms, !name.ends_with(b"AT"), command)?))
        }
        _ => Err(SYNTAX_ERROR),
    }
}

fn version(argument: &[u8]) -> Result<u64, Reply> {
    u64::try_from(integer(argument)?).map_err(|_| NOT_AN_INTEGER)
}

/// `CAS key old new [EX … | PX … | EXAT … | PXAT … | KEEPTTL]`, as of TairString.
pub(super) fn cas(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    let mut expiry = SetExpiry::Clear;
    let mut options = arguments[4..].iter();
    while let Some(option) = options.next() {
        expiry = expiry_option(&option.to_ascii_uppercase(), expiry, &mut options, "cas")?;
    }
    let (expected, value) = (Expected::Value(&arguments[2]), &arguments[3]);
    Ok(Write::CompareAndSet { key: &arguments[1], expected, value, expiry })
}

/// `EXCAS key new version`, as of TairString.
pub(super) fn excas(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::CompareAndSet {
        key: &arguments[1],
        expected: Expected::Version(version(&arguments[3])?),
        value: &arguments[2],
        expiry: SetExpiry::Keep,
    })
}

pub(super) fn cad(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::CompareAndRemove { key: &arguments[1], expected: Expected::Value(&arguments[2]), absent: -1 })
}

pub(super) fn excad(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    let expected = Expected::Version(version(&arguments[2])?);
    Ok(Write::CompareAndRemove { key: &arguments[1], expected, absent: -1 })
}

pub(super) fn delifeq(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::CompareAndRemove { key: &arguments[1], expected: Expected::Value(&arguments[2]), absent: 0 })
}

pub(super) fn setnx(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Set {
        key: &arguments[1],
        value: &arguments[2],
        condition: SetCondition::Absent,
        version: None,
        expiry: SetExpiry::Clear,
        reply: SetReply::Integer,
    })
}

pub(super) fn getset(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Set {
        key: &arguments[1],
        value: &arguments[2],
        condition: SetCondition::Always,
        version: None,
        expiry: SetExpiry::Clear,
        reply: SetReply::Previous,
    })
}

pub(super) fn setex(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    set_expiring(arguments, 1000, "setex")
}

pub(super) fn psetex(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    set_expiring(arguments, 1, "psetex")
}

fn set_expiring<'a>(arguments: &'a [Bytes], unit_ms: i64, command: &'static str) -> Result<Write<'a>, Reply> {
    Ok(Write::Set {
        key: &arguments[1],
        value: &arguments[3],
        condition: SetCondition::Always,
        version: None,
        expiry: SetExpiry::At(positive_deadline(&arguments[2], unit_ms, true, command)?),
        reply: SetReply::Status,
    })
}

pub(super) fn mset(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    set_many(arguments, false, "mset")
}

pub(super) fn msetnx(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    set_many(arguments, true, "msetnx")
}

fn set_many<'a>(arguments: &'a [Bytes], if_all_absent: bool, command: &str) -> Result<Write<'a>, Reply> {
    let pairs = &arguments[1..];
    if !pairs.len().is_multiple_of(2) {
        return Err(wrong_arity(command));
    }
    Ok(Write::SetMany { pairs, if_all_absent })
}

pub(super) fn append(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Append(&arguments[1], &arguments[2]))
}

pub(super) fn incr(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Increment(&arguments[1], 1))
}

pub(super) fn decr(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Increment(&arguments[1], -1))
}

pub(super) fn incrby(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Increment(&arguments[1], integer(&arguments[2])?))
}

pub(super) fn decrby(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    let by = integer(&arguments[2])?.checked_neg().ok_or(Reply::error("ERR decrement would overflow"))?;
    Ok(Write::Increment(&arguments[1], by))
}

pub(super) fn getdel(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::GetRemove(&arguments[1]))
}

pub(super) fn del(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Remove(&arguments[1..]))
}

pub(super) fn persist(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Persist(&arguments[1]))
}

pub(super) fn check(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    Ok(Write::Check(version(&arguments[1])?))
}

pub(super) fn flush(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    match &arguments[1..] {
        [] => Ok(Write::Clear),
        [mode] if mode.eq_ignore_ascii_case(b"async") || mode.eq_ignore_ascii_case(b"sync") => {
            Ok(Write::Clear)
        }
        _ => Err(SYNTAX_ERROR),
    }
}

pub(super) fn expire(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    expire_generic(arguments, 1000, true, "expire")
}

pub(super) fn pexpire(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    expire_generic(arguments, 1, true, "pexpire")
}

pub(super) fn expireat(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    expire_generic(arguments, 1000, false, "expireat")
}

pub(super) fn pexpireat(arguments: &[Bytes]) -> Result<Write<'_>, Reply> {
    expire_generic(arguments, 1, false, "pexpireat")
}

fn expire_generic<'a>(
    arguments: &'a [Bytes],
    unit_ms: i64,
    relative: bool,
    command: &'static str,
) -> Result<Write<'a>, Reply> {
    let mut condition = ExpireCondition::default();
    for option in &arguments[3..] {
        match option.to_ascii_uppercase().as_slice() {
            b"NX" => condition.absent = true,
            b"XX" => condition.present = true,
            b"GT" => condition.later = true,
            b"LT" => condition.earlier = true,
            _ => {
                let option = String::from_utf8_lossy(option);
                return Err(Reply::Error(format!("ERR Unsupported option {option}").into()));
            }
        }
    }
    if condition.absent && (condition.present || condition.later || condition.earlier) {
        return Err(Reply::error("ERR NX and XX, GT or LT options at the same time are not compatible"));
    }
    if condition.later && condition.earlier {
        return Err(Reply::error("ERR GT and LT options at the same time are not compatible"));
    }
    let deadline = deadline(&arguments[2], unit_ms, relative, command)?;
    Ok(Write::Expire(&arguments[1], deadline, condition))
}

fn positive_deadline(
    amount: &[u8],
    unit_ms: i64,
    relative: bool,
    command: &'static str,
) -> Result<Deadline, Reply> {
    match deadline(amount, unit_ms, relative, command)? {
        deadline if deadline.amount_ms > 0 => Ok(deadline),
        _ => Err(invalid_expire_time(command)),
    }
}

fn deadline(amount: &[u8], unit_ms: i64, relative: bool, command: &'static str) -> Result<Deadline, Reply> {
    let amount_ms = integer(amount)?.checked_mul(unit_ms).ok_or_else(|| invalid_expire_time(command))?;
    Ok(Deadline { amount_ms, relative, command })
}

fn invalid_expire_time(command: &str) -> Reply {
    Reply::Error(format!("ERR invalid expire time in '{command}' command").into())
}
