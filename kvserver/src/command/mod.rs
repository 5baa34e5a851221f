//! What each command means.
//!
//! [`find`] knows every command with its arity and keys. Commands of the connection are answered by the front
//! end; those of the store are parsed into [`Read`] or [`Write`], so that whatever can be wrong without
//! looking at the store is found by [`validate`] before anything is proposed, and [`execute`] is a
//! deterministic function: the store before it, the [`Context`] and the arguments decide the reply and the
//! store after it, on every replica alike. The texts of errors are those of Redis 7.

mod read;
#[cfg(test)]
mod tests;
mod transaction;
mod write;

use bytes::Bytes;

use crate::resp::{Limits, Refusal, Reply};
use crate::store::Store;

pub use read::{Range, Read};
pub use transaction::transaction;
pub use write::Write;

/// What a command may depend on beside the store: stamped by the leader, the same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The time, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// The longest value that appending may make, in bytes.
    pub value_bytes_max: u64,
}

/// Commands that concern the connection or the server, and not the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named after the commands")]
pub enum ConnectionCommand {
    Auth,
    Changes,
    Client,
    Command,
    Config,
    Discard,
    Echo,
    Exec,
    Hello,
    Info,
    Multi,
    Ping,
    Quit,
    Reset,
    Select,
    Unwatch,
    Watch,
}

/// What kind of command it is, and how its arguments are parsed.
#[derive(Clone, Copy)]
enum Action {
    Connection(ConnectionCommand),
    Read(for<'a> fn(&'a [Bytes]) -> Result<Read<'a>, Reply>),
    Write(for<'a> fn(&'a [Bytes]) -> Result<Write<'a>, Reply>),
    /// Commands within the arguments, see transaction.rs.
    Transaction,
}

/// Which arguments are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keys {
    None,
    First,
    All,
    EveryOther,
}

/// A command of the table.
pub struct Spec {
    name: &'static str,
    arity: i32,
    keys: Keys,
    action: Action,
}

/// Who answers a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The front end.
    Connection(ConnectionCommand),
    /// The store, without changing it.
    Read,
    /// The store, by way of the log.
    Write,
}

impl Spec {
    /// The name, in lower case.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many arguments it takes, the name included; negative for "at least that many".
    pub fn arity(&self) -> i32 {
        self.arity
    }

    /// Who answers it.
    pub fn kind(&self) -> Kind {
        match self.action {
            Action::Connection(command) => Kind::Connection(command),
            Action::Read(_) => Kind::Read,
            Action::Write(_) | Action::Transaction => Kind::Write,
        }
    }

    /// The positions of its keys as Redis states them: the first, the last (-1 for the last argument), the
    /// step.
    pub fn key_range(&self) -> (i64, i64, i64) {
        match self.keys {
            Keys::None => (0, 0, 0),
            Keys::First => (1, 1, 1),
            Keys::All => (1, -1, 1),
            Keys::EveryOther => (1, -1, 2),
        }
    }

    fn is_key(&self, argument: usize) -> bool {
        match self.keys {
            Keys::None => false,
            Keys::First => argument == 1,
            Keys::All => argument >= 1,
            Keys::EveryOther => argument % 2 == 1,
        }
    }

    fn check_arity(&self, arguments: usize) -> Result<(), Reply> {
        let expected = self.arity.unsigned_abs() as usize;
        let fits = if self.arity >= 0 { arguments == expected } else { arguments >= expected };
        if fits { Ok(()) } else { Err(wrong_arity(self.name)) }
    }

    fn check_limits(&self, arguments: &[Bytes], limits: &Limits) -> Result<(), Reply> {
        for (index, argument) in arguments.iter().enumerate() {
            let bytes = argument.len() as u64;
            if self.is_key(index) && bytes > limits.key_bytes_max {
                return Err(key_too_long(bytes, limits));
            }
            if bytes > limits.value_bytes_max {
                return Err(value_too_long(bytes, limits.value_bytes_max));
            }
        }
        Ok(())
    }
}

const fn connection(name: &'static str, arity: i32, command: ConnectionCommand) -> Spec {
    Spec { name, arity, keys: Keys::None, action: Action::Connection(command) }
}

const fn read(
    name: &'static str,
    arity: i32,
    keys: Keys,
    parse: for<'a> fn(&'a [Bytes]) -> Result<Read<'a>, Reply>,
) -> Spec {
    Spec { name, arity, keys, action: Action::Read(parse) }
}

const fn write(
    name: &'static str,
    arity: i32,
    keys: Keys,
    parse: for<'a> fn(&'a [Bytes]) -> Result<Write<'a>, Reply>,
) -> Spec {
    Spec { name, arity, keys, action: Action::Write(parse) }
}

/// Invariant: sorted by name.
static COMMANDS: &[Spec] = &[
    write("append", 3, Keys::First, write::append),
    connection("auth", -2, ConnectionCommand::Auth),
    write("cad", 3, Keys::First, write::cad),
    write("cas", -4, Keys::First, write::cas),
    connection("changes", -2, ConnectionCommand::Changes),
    write("check", 2, Keys::None, write::check),
    connection("client", -2, ConnectionCommand::Client),
    connection("command", -1, ConnectionCommand::Command),
    connection("config", -2, ConnectionCommand::Config),
    read("dbsize", 1, Keys::None, |_| Ok(Read::DbSize)),
    write("decr", 2, Keys::First, write::decr),
    write("decrby", 3, Keys::First, write::decrby),
    write("del", -2, Keys::All, write::del),
    write("delifeq", 3, Keys::First, write::delifeq),
    connection("discard", 1, ConnectionCommand::Discard),
    connection("echo", 2, ConnectionCommand::Echo),
    write("excad", 3, Keys::First, write::excad),
    write("excas", 4, Keys::First, write::excas),
    connection("exec", 1, ConnectionCommand::Exec),
    read("exget", 2, Keys::First, |arguments| Ok(Read::GetVersioned(&arguments[1]))),
    read("exists", -2, Keys::All, |arguments| Ok(Read::Exists(&arguments[1..]))),
    write("expire", -3, Keys::First, write::expire),
    write("expireat", -3, Keys::First, write::expireat),
    read("expiretime", 2, Keys::First, read::expiretime),
    write("exset", -3, Keys::First, write::exset),
    write("flushall", -1, Keys::None, write::flush),
    write("flushdb", -1, Keys::None, write::flush),
    read("get", 2, Keys::First, |arguments| Ok(Read::Get(&arguments[1]))),
    write("getdel", 2, Keys::First, write::getdel),
    write("getset", 3, Keys::First, write::getset),
    connection("hello", -1, ConnectionCommand::Hello),
    write("incr", 2, Keys::First, write::incr),
    write("incrby", 3, Keys::First, write::incrby),
    connection("info", -1, ConnectionCommand::Info),
    read("keys", 2, Keys::None, |arguments| Ok(Read::Keys(&arguments[1]))),
    read("mget", -2, Keys::All, |arguments| Ok(Read::Mget(&arguments[1..]))),
    write("mset", -3, Keys::EveryOther, write::mset),
    write("msetnx", -3, Keys::EveryOther, write::msetnx),
    connection("multi", 1, ConnectionCommand::Multi),
    write("persist", 2, Keys::First, write::persist),
    write("pexpire", -3, Keys::First, write::pexpire),
    write("pexpireat", -3, Keys::First, write::pexpireat),
    read("pexpiretime", 2, Keys::First, read::pexpiretime),
    connection("ping", -1, ConnectionCommand::Ping),
    read("prefix", -2, Keys::None, read::prefix),
    write("psetex", 4, Keys::First, write::psetex),
    read("pttl", 2, Keys::First, read::pttl),
    connection("quit", -1, ConnectionCommand::Quit),
    read("randomkey", 1, Keys::None, |_| Ok(Read::RandomKey)),
    read("range", -3, Keys::None, read::range),
    connection("reset", 1, ConnectionCommand::Reset),
    read("revision", 1, Keys::None, |_| Ok(Read::Revision)),
    read("scan", -2, Keys::None, read::scan),
    connection("select", 2, ConnectionCommand::Select),
    write("set", -3, Keys::First, write::set),
    write("setex", 4, Keys::First, write::setex),
    write("setnx", 3, Keys::First, write::setnx),
    read("strlen", 2, Keys::First, |arguments| Ok(Read::Strlen(&arguments[1]))),
    Spec { name: "transaction", arity: -3, keys: Keys::None, action: Action::Transaction },
    read("ttl", 2, Keys::First, read::ttl),
    read("type", 2, Keys::First, |arguments| Ok(Read::Type(&arguments[1]))),
    write("unlink", -2, Keys::All, write::del),
    connection("unwatch", 1, ConnectionCommand::Unwatch),
    read("version", -2, Keys::All, |arguments| Ok(Read::Versions(&arguments[1..]))),
    connection("watch", -2, ConnectionCommand::Watch),
];

/// All commands, sorted by name.
pub fn table() -> &'static [Spec] {
    COMMANDS
}

/// The command of a request, whose name may be in any case.
///
/// # Errors
/// The reply for an unknown command or a wrong number of arguments.
pub fn find(arguments: &[Bytes]) -> Result<&'static Spec, Reply> {
    let name = arguments.first().map_or(&[][..], |name| name);
    let spec = spec(name).ok_or_else(|| unknown_command(name, arguments))?;
    spec.check_arity(arguments.len())?;
    Ok(spec)
}

/// Finds the command and checks all that can be checked without the store. A command that passes may be
/// proposed.
///
/// # Errors
/// The reply for what is wrong.
pub fn validate(arguments: &[Bytes], limits: &Limits) -> Result<&'static Spec, Reply> {
    let spec = find(arguments)?;
    spec.check_limits(arguments, limits)?;
    match spec.action {
        Action::Connection(_) => {}
        Action::Read(parse) => parse(arguments).map(|_| ())?,
        Action::Write(parse) => parse(arguments).map(|_| ())?,
        Action::Transaction => transaction::parse(arguments)?.validate(limits)?,
    }
    Ok(spec)
}

/// Whether a command may make the store larger: which is refused when there is no room, so that there still is a way to make some.
pub fn may_grow(arguments: &[Bytes]) -> bool {
    match find(arguments).map(|spec| (spec.action, spec.name)) {
        Ok((Action::Transaction, _)) => transaction::parse(arguments).is_ok_and(|parsed| parsed.may_grow()),
        Ok((Action::Write(_), name)) => {
            const SHRINKING: [&str; 14] = [
                "cad",
                "check",
                "del",
                "delifeq",
                "excad",
                "expire",
                "expireat",
                "flushall",
                "flushdb",
                "getdel",
                "persist",
                "pexpire",
                "pexpireat",
                "unlink",
            ];
            !SHRINKING.contains(&name)
        }
        _ => false,
    }
}

/// Executes a command of the store. Anything else is answered with an error.
pub fn execute(store: &mut Store, context: &Context, arguments: &[Bytes]) -> Reply {
    let spec = match find(arguments) {
        Ok(spec) => spec,
        Err(reply) => return reply,
    };
    match spec.action {
        Action::Read(parse) => parse(arguments).map_or_else(|reply| reply, |read| read.run(store, context)),
        Action::Write(parse) => {
            parse(arguments).map_or_else(|reply| reply, |write| write.run(store, context))
        }
        Action::Transaction => {
            transaction::parse(arguments).map_or_else(|reply| reply, |parsed| parsed.run(store, context))
        }
        Action::Connection(_) => not_of_the_store(spec.name),
    }
}

/// Executes a command that only reads. Anything else is answered with an error.
pub fn query(store: &Store, context: &Context, arguments: &[Bytes]) -> Reply {
    let spec = match find(arguments) {
        Ok(spec) => spec,
        Err(reply) => return reply,
    };
    match spec.action {
        Action::Read(parse) => parse(arguments).map_or_else(|reply| reply, |read| read.run(store, context)),
        Action::Write(_) | Action::Transaction => {
            Reply::Error(format!("ERR '{}' is not a read", spec.name).into())
        }
        Action::Connection(_) => not_of_the_store(spec.name),
    }
}

/// The error for a request that the parser skipped because of its size.
pub fn refusal_reply(refusal: &Refusal, limits: &Limits) -> Reply {
    let Some(argument) = refusal.argument else {
        let (bytes, limit) = (refusal.bytes, limits.request_bytes_max);
        return Reply::Error(
            format!("ERR request is at least {bytes} bytes, the limit is {limit} (request_bytes_max)").into(),
        );
    };
    match spec(&refusal.name) {
        Some(spec) if spec.is_key(argument) => key_too_long(refusal.bytes, limits),
        _ => value_too_long(refusal.bytes, limits.value_bytes_max),
    }
}

fn spec(name: &[u8]) -> Option<&'static Spec> {
    let by_name = |spec: &Spec| spec.name.bytes().cmp(name.iter().map(u8::to_ascii_lowercase));
    COMMANDS.binary_search_by(by_name).ok().map(|index| &COMMANDS[index])
}

/// Redis quotes up to 128 bytes of the name, and of the arguments together.
fn unknown_command(name: &[u8], arguments: &[Bytes]) -> Reply {
    const QUOTED_BYTES_MAX: usize = 128;
    let mut quoted = String::new();
    for argument in arguments.iter().skip(1) {
        if quoted.len() >= QUOTED_BYTES_MAX {
            break;
        }
        let shown = &argument[..argument.len().min(QUOTED_BYTES_MAX - quoted.len())];
        quoted.push_str(&format!("'{}' ", String::from_utf8_lossy(shown)));
    }
    let name = String::from_utf8_lossy(&name[..name.len().min(QUOTED_BYTES_MAX)]);
    Reply::Error(format!("ERR unknown command '{name}', with args beginning with: {quoted}").into())
}

pub(crate) fn wrong_arity(name: &str) -> Reply {
    Reply::Error(format!("ERR wrong number of arguments for '{name}' command").into())
}

fn key_too_long(bytes: u64, limits: &Limits) -> Reply {
    Reply::Error(
        format!("ERR key is {bytes} bytes, the limit is {} (key_bytes_max)", limits.key_bytes_max).into(),
    )
}

fn value_too_long(bytes: u64, value_bytes_max: u64) -> Reply {
    Reply::Error(
        format!("ERR value is {bytes} bytes, the limit is {value_bytes_max} (value_bytes_max)").into(),
    )
}

fn not_of_the_store(name: &str) -> Reply {
    Reply::Error(format!("ERR '{name}' is not a command of the store").into())
}

pub(crate) const SYNTAX_ERROR: Reply = Reply::error("ERR syntax error");
pub(crate) const NOT_AN_INTEGER: Reply = Reply::error("ERR value is not an integer or out of range");

pub(crate) fn integer(argument: &[u8]) -> Result<i64, Reply> {
    crate::resp::parse_integer(argument).ok_or(NOT_AN_INTEGER)
}
