//! Clients: some use the cluster's own clerk, some the `redis` crate, which knows nothing of any of this.

use crate::changes::Changes;
use crate::history::{History, Operation, Token, decode, encode};
use bytes::Bytes;
use squall_kvserver::clerk::{Clerk, ClerkError};
use squall_kvserver::config::ClusterConfig;
use squall_kvserver::resp::Reply;
use squall_sim::{Random, World};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How many keys are in use at a time, and for how long: new ones now and then keep histories short, and with them the search.
const KEYS: u64 = 5;
const KEYS_LAST: Duration = Duration::from_secs(8);

/// What clients share.
pub(crate) struct Traffic {
    pub(crate) config: ClusterConfig,
    pub(crate) password: &'static str,
    pub(crate) history: History,
    pub(crate) changes: Changes,
    pub(crate) stop: AtomicBool,
    tokens: AtomicU32,
    /// What a client was told that makes no sense at all.
    pub(crate) nonsense: std::sync::Mutex<Vec<String>>,
}

impl Traffic {
    pub(crate) fn new(config: ClusterConfig, password: &'static str) -> Self {
        Self {
            config,
            password,
            history: History::default(),
            changes: Changes::default(),
            stop: AtomicBool::new(false),
            tokens: AtomicU32::new(1),
            nonsense: std::sync::Mutex::default(),
        }
    }

    fn token(&self) -> Token {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    fn complain(&self, text: String) {
        self.nonsense.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(text);
    }
}

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Get,
    Set(Token),
    SetIfAbsent(Token),
    Append(Token),
    Delete,
}

impl Wish {
    /// The operation without a result; reads without one are nothing.
    fn unknown(self) -> Option<Operation> {
        match self {
            Wish::Get => None,
            Wish::Set(token) => Some(Operation::Set(token)),
            Wish::SetIfAbsent(token) => Some(Operation::SetIfAbsent(token, None)),
            Wish::Append(token) => Some(Operation::Append(token, None)),
            Wish::Delete => Some(Operation::Delete(None)),
        }
    }
}

/// What became of it.
enum Fate {
    Done(Operation),
    /// It may have happened, or happen later.
    Unknown,
    /// It has not happened, and will not.
    Refused,
    /// The answer is none that a working cluster gives.
    Nonsense(String),
}

/// Works until told to stop. `with_redis` says by which means.
pub(crate) fn work(traffic: &Arc<Traffic>, world: &World, client: usize, with_redis: bool) {
    let mut random = world.random(&format!("client {client}"));
    let mut means =
        if with_redis { Means::Redis(None) } else { Means::Clerk(new_clerk(traffic, &mut random)) };
    let pause = random.duration(Duration::from_millis(5)..Duration::from_millis(120));
    while !traffic.stop.load(Ordering::Relaxed) {
        std::thread::sleep(random.duration(Duration::ZERO..pause * 2));
        let epoch = world.now().as_secs() / KEYS_LAST.as_secs();
        let epoch = if random.chance(0.1) { epoch.saturating_sub(1) } else { epoch };
        let key = format!("key-{epoch}-{}", random.below(KEYS));
        if random.chance(0.1) {
            // What expires is not part of the history: it depends on clocks. But the replicas must agree on it.
            set_for_a_while(&means, &mut random);
            continue;
        }
        let wish = match random.below(10) {
            0..4 => Wish::Get,
            4..6 => Wish::Set(traffic.token()),
            6 => Wish::SetIfAbsent(traffic.token()),
            7..9 => Wish::Append(traffic.token()),
            _ => Wish::Delete,
        };
        step(traffic, &mut means, client, &key, wish);
    }
}

/// Watches all keys until told to stop, at one node as long as that answers, then at the next.
pub(crate) fn watch(traffic: &Arc<Traffic>, first: usize) {
    let (mut node, mut seen, mut compacted) = (first, 0, 0);
    let mut slot = None;
    loop {
        let nodes = traffic.config.nodes.len();
        if slot.is_none() {
            slot = connect(traffic, node).ok();
        }
        let ask = |connection: &mut redis::Connection| {
            redis::cmd("CHANGES").arg(seen).arg("COUNT").arg(100).arg("BLOCK").arg(300).query(connection)
        };
        let answer: Option<redis::RedisResult<redis::Value>> = slot.as_mut().map(ask);
        let quiet = match answer {
            Some(Ok(value)) => match page(&value) {
                Some((next, changes)) => {
                    let quiet = changes.is_empty();
                    traffic.changes.page(node % nodes + 1, seen, next, changes);
                    (seen, compacted) = (next, 0);
                    quiet
                }
                None => {
                    traffic.complain(format!("a watcher was told {value:?}"));
                    return;
                }
            },
            Some(Err(error)) if error.code() == Some("COMPACTED") => {
                // Another node may still have them. If none has, what follows the gap is watched.
                compacted += 1;
                let kept = error.to_string().split("revision ").nth(1).and_then(first_number);
                if let (true, Some(kept)) = (compacted >= nodes, kept) {
                    (seen, compacted) = (kept, 0);
                } else {
                    (slot, node) = (None, node + 1);
                }
                false
            }
            _ => {
                (slot, node) = (None, node + 1);
                std::thread::sleep(Duration::from_millis(100));
                true
            }
        };
        if quiet && traffic.stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// A reply to `CHANGES`: the revision up to which everything was seen, and the changes with theirs.
fn page(reply: &redis::Value) -> Option<(u64, Vec<(u64, String)>)> {
    use redis::Value::{Array, Int};
    let Array(parts) = reply else { return None };
    let [Int(seen), Array(changes)] = parts.as_slice() else { return None };
    let change = |change: &redis::Value| match change {
        Array(parts) => match parts.as_slice() {
            [Int(revision), what @ ..] => Some((u64::try_from(*revision).ok()?, format!("{what:?}"))),
            _ => None,
        },
        _ => None,
    };
    Some((u64::try_from(*seen).ok()?, changes.iter().map(change).collect::<Option<_>>()?))
}

/// Sets a key that vanishes soon. What becomes of the request does not matter.
fn set_for_a_while(means: &Means, random: &mut Random) {
    if let Means::Clerk(Some(clerk)) = means {
        let (key, ms) = (format!("fleeting-{}", random.below(20)), random.below(3_000) + 1);
        let words = ["SET".to_owned(), key, "x".to_owned(), "PX".to_owned(), ms.to_string()];
        let _ = clerk.execute(vec![words.into_iter().map(Bytes::from).collect()], false);
    }
}

/// Reads every key that was ever used, with patience. False if one cannot be read.
pub(crate) fn read_all(traffic: &Arc<Traffic>, world: &World, client: usize) -> bool {
    let mut random = world.random("reader");
    let mut means = Means::Clerk(new_clerk(traffic, &mut random));
    let keys = traffic.history.keys();
    keys.iter().all(|key| (0..20).any(|_| step(traffic, &mut means, client, key, Wish::Get)))
}

fn new_clerk(traffic: &Traffic, random: &mut Random) -> Option<Clerk> {
    let timeout = random.duration(Duration::from_secs(1)..Duration::from_secs(6));
    Clerk::new(&traffic.config).ok().map(|clerk| clerk.with_timeout(timeout))
}

enum Means {
    Clerk(Option<Clerk>),
    Redis(Option<redis::Connection>),
}

/// Has one wish fulfilled, or tries to. True if it was.
fn step(traffic: &Arc<Traffic>, means: &mut Means, client: usize, key: &str, wish: Wish) -> bool {
    let called = traffic.history.moment();
    let fate = match means {
        Means::Clerk(Some(clerk)) => by_clerk(clerk, key, wish),
        Means::Clerk(None) => Fate::Nonsense("a clerk cannot be made".into()),
        Means::Redis(connection) => by_redis(traffic, connection, client, key, wish),
    };
    match fate {
        Fate::Done(operation) => {
            traffic.history.record(client, key, operation, called, true);
            return true;
        }
        Fate::Unknown => {
            if let Some(operation) = wish.unknown() {
                traffic.history.record(client, key, operation, called, false);
            }
        }
        Fate::Refused => {}
        Fate::Nonsense(text) => traffic.complain(format!("client {client}, {wish:?} of {key}: {text}")),
    }
    false
}

fn value(bytes: &[u8]) -> Fate {
    match decode(bytes) {
        Some(tokens) => Fate::Done(Operation::Get(Some(tokens))),
        None => Fate::Nonsense(format!("the value is {:?}", String::from_utf8_lossy(bytes))),
    }
}

fn by_clerk(clerk: &Clerk, key: &str, wish: Wish) -> Fate {
    let result = match wish {
        Wish::Get => match clerk.get(key) {
            Ok(Some(bytes)) => return value(&bytes),
            Ok(None) => Ok(Operation::Get(None)),
            Err(error) => Err(error),
        },
        Wish::Set(token) => clerk.put(key, encode(token)).map(|()| Operation::Set(token)),
        Wish::Append(token) => {
            clerk.append(key, encode(token)).map(|length| Operation::Append(token, Some(length)))
        }
        Wish::Delete => clerk.delete(key).map(|was_there| Operation::Delete(Some(was_there))),
        Wish::SetIfAbsent(token) => {
            let words = ["SET".to_owned(), key.to_owned(), encode(token), "NX".to_owned()];
            let command: Vec<Bytes> = words.into_iter().map(Bytes::from).collect();
            match clerk.execute(vec![command], false) {
                Ok(replies) => match replies.as_slice() {
                    [Reply::Status(_)] => Ok(Operation::SetIfAbsent(token, Some(true))),
                    [Reply::Nil] => Ok(Operation::SetIfAbsent(token, Some(false))),
                    replies => return Fate::Nonsense(format!("{replies:?}")),
                },
                Err(error) => Err(error),
            }
        }
    };
    match result {
        Ok(operation) => Fate::Done(operation),
        Err(ClerkError::Uncertain(_)) => Fate::Unknown,
        Err(ClerkError::NoLeader { .. } | ClerkError::Refused(_)) => Fate::Refused,
        Err(error) => Fate::Nonsense(error.to_string()),
    }
}

/// Each client of its own node, so that there is one on each side of a cut.
fn connect(traffic: &Traffic, client: usize) -> redis::RedisResult<redis::Connection> {
    let nodes = &traffic.config.nodes;
    let address = nodes[client % nodes.len()].redis_address();
    let client = redis::Client::open(format!("redis://:{}@{address}/", traffic.password))?;
    let connection = client.get_connection_with_timeout(Duration::from_secs(2))?;
    connection.set_read_timeout(Some(Duration::from_secs(8)))?;
    connection.set_write_timeout(Some(Duration::from_secs(8)))?;
    Ok(connection)
}

fn by_redis(
    traffic: &Traffic,
    slot: &mut Option<redis::Connection>,
    client: usize,
    key: &str,
    wish: Wish,
) -> Fate {
    if slot.is_none() {
        *slot = connect(traffic, client).ok();
    }
    let Some(connection) = slot else { return Fate::Refused };
    let command = match wish {
        Wish::Get => redis::cmd("GET").arg(key).to_owned(),
        Wish::Set(token) => redis::cmd("SET").arg(key).arg(encode(token)).to_owned(),
        Wish::SetIfAbsent(token) => redis::cmd("SET").arg(key).arg(encode(token)).arg("NX").to_owned(),
        Wish::Append(token) => redis::cmd("APPEND").arg(key).arg(encode(token)).to_owned(),
        Wish::Delete => redis::cmd("DEL").arg(key).to_owned(),
    };
    let answer = command.query::<redis::Value>(connection);
    match (wish, answer) {
        (Wish::Get, Ok(redis::Value::BulkString(bytes))) => value(&bytes),
        (Wish::Get, Ok(redis::Value::Nil)) => Fate::Done(Operation::Get(None)),
        (Wish::Set(token), Ok(redis::Value::Okay)) => Fate::Done(Operation::Set(token)),
        (Wish::SetIfAbsent(token), Ok(redis::Value::Okay)) => {
            Fate::Done(Operation::SetIfAbsent(token, Some(true)))
        }
        (Wish::SetIfAbsent(token), Ok(redis::Value::Nil)) => {
            Fate::Done(Operation::SetIfAbsent(token, Some(false)))
        }
        (Wish::Append(token), Ok(redis::Value::Int(length))) => {
            Fate::Done(Operation::Append(token, Some(length.max(0) as u64)))
        }
        (Wish::Delete, Ok(redis::Value::Int(count))) => Fate::Done(Operation::Delete(Some(count > 0))),
        (_, Ok(value)) => Fate::Nonsense(format!("{value:?}")),
        (_, Err(error)) => match error.code() {
            Some("CLUSTERDOWN" | "TRYAGAIN" | "MOVED") => Fate::Refused,
            Some("UNCERTAIN") => Fate::Unknown,
            Some(code) => Fate::Nonsense(format!("{code}: {error}")),
            None => {
                *slot = None;
                Fate::Unknown
            }
        },
    }
}
