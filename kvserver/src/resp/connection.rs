//! The loop that serves one connection, and the commands that concern only the connection.
//!
//! The loop reads what is there, takes all whole requests from it, hands runs of store commands to the
//! [`Backend`] as one batch, and writes the replies in order, once per burst. Memory is bounded: the parser
//! limits a request, the batch is limited here, and replies go out as they are made.

use std::io::{self, BufWriter, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::changes;
use super::clients::{Client, Registration};
use super::info::REDIS_VERSION;
use super::transaction::{Pending, Ready};
use super::{Clients, Limits, Protocol, Reply, Request, RequestParser, ServerInfo, parse_integer};
use crate::command::{self, ConnectionCommand, Kind, SYNTAX_ERROR, Spec};
use crate::config::Password;
use crate::history::{Compacted, Filter, Page};
use crate::store::glob;

/// A batch is handed over when it reaches either of these, though more requests have arrived.
const BATCH_COMMANDS_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Replies are collected up to this size before they are written.
const OUTPUT_BUFFER_BYTES: usize = 16 * 1024;

const NO_AUTH: Reply = Reply::error("NOAUTH Authentication required.");
const WRONG_PASS: Reply = Reply::error("WRONGPASS invalid username-password pair or user is disabled.");

/// What executes the commands of the store.
pub trait Backend: Send + Sync {
    /// Executes a batch of validated commands in order, and returns a reply for each. `read_only` says that
    /// none of them writes. The reads must be linearizable.
    ///
    /// # Errors
    /// [`BackendError`], which then answers each command of the batch.
    ///
    /// # Blocking
    /// Until the batch is executed or cannot be.
    fn execute(
        &self,
        session: &mut ClientSession,
        batch: Vec<Vec<Bytes>>,
        read_only: bool,
    ) -> Result<Vec<Reply>, BackendError>;

    /// The changes that follow revision `seen`, as [`History::read`](crate::history::History::read) tells them, from this node.
    ///
    /// # Errors
    /// [`Compacted`].
    ///
    /// # Blocking
    /// Up to `wait`.
    fn changes(
        &self,
        seen: u64,
        filter: &Filter,
        count_max: usize,
        wait: Duration,
    ) -> Result<Page, Compacted>;

    /// What `INFO` tells.
    fn info(&self) -> ServerInfo;
}

/// Why a batch has no replies. Its text is the error reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// No leader was found in time. The batch was not executed.
    #[error("CLUSTERDOWN no leader")]
    NoLeader,
    /// The node is shutting down. The batch was not executed.
    #[error("CLUSTERDOWN the node is stopping")]
    Stopping,
    /// There is more to do than the node takes on. The batch was not executed.
    #[error("TRYAGAIN the node is overloaded: {0}")]
    Overloaded(String),
    /// The batch was proposed, but its fate is not known: it may or may not have been executed, or be
    /// executed later.
    #[error("UNCERTAIN the command may or may not have been executed: {0}")]
    Uncertain(String),
    /// The batch was refused. It was not executed.
    #[error("ERR {0}")]
    Refused(String),
    /// The batch may take memory, of which too much is taken. It was not executed.
    #[error("OOM {0}")]
    OutOfMemory(String),
}

/// What the backend is told about a connection, and may remember with it.
#[derive(Clone, Debug)]
pub struct ClientSession {
    /// The connection's number on this node, as `CLIENT ID` tells it.
    pub id: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// The backend's own: the id of the connection's replicated session, 0 until the backend sets it.
    pub client_id: u128,
    /// The backend's own: the number of the last request of that session.
    pub seq: u64,
}

/// The settings of a front end.
#[derive(Clone, Debug)]
pub struct FrontEndOptions {
    /// What clients must authenticate with, if anything.
    pub password: Option<Password>,
    /// How large the parts of a request may be.
    pub limits: Limits,
    /// How many connections are served at a time; further ones are refused with a message.
    pub connections_max: usize,
    /// How many bytes of replies are kept for a client that does not read them yet, about.
    pub output_bytes_max: usize,
}

impl Default for FrontEndOptions {
    /// No password, [`Limits::DEFAULT`], 10,000 connections, 64 MiB.
    fn default() -> Self {
        Self {
            password: None,
            limits: Limits::DEFAULT,
            connections_max: 10_000,
            output_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// What all Redis connections of a node have in common.
pub struct FrontEnd {
    backend: Arc<dyn Backend>,
    options: FrontEndOptions,
    clients: Clients,
    commands_total: AtomicU64,
}

impl FrontEnd {
    /// A front end to `backend`.
    pub fn new(backend: Arc<dyn Backend>, options: FrontEndOptions) -> Self {
        Self { backend, options, clients: Clients::default(), commands_total: AtomicU64::new(0) }
    }

    /// The settings.
    pub fn options(&self) -> &FrontEndOptions {
        &self.options
    }

    /// The connected clients.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// How many commands were taken on, by all connections.
    pub fn commands_total(&self) -> u64 {
        self.commands_total.load(Ordering::Relaxed)
    }

    /// Serves one connection until either side ends it.
    ///
    /// # Errors
    /// Those of `reader` and `writer`. A client that violates the protocol is told so, and is no error here.
    ///
    /// # Blocking
    /// For as long as the connection lasts.
    pub fn serve(
        &self,
        reader: &mut impl Read,
        writer: impl Write,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> io::Result<()> {
        Connection::new(self, writer, peer, local).run(reader)
    }
}

/// The message for a client at `peer` that may not connect, as Redis's protected mode has it: without a
/// password, only this machine may.
pub fn protected_mode_refusal(peer: IpAddr, has_password: bool) -> Option<&'static str> {
    if has_password || peer.to_canonical().is_loopback() {
        return None;
    }
    Some(
        "-DENIED Squall is running in protected mode because no password is set. In this mode connections are only \
         accepted from the loopback interface. To connect from other machines, set a password in the configuration \
         file of every node, restart the nodes, and authenticate with AUTH.\r\n",
    )
}

struct Connection<'a, W: Write> {
    front: &'a FrontEnd,
    registration: Registration<'a>,
    out: BufWriter<W>,
    parser: RequestParser,
    session: ClientSession,
    protocol: Protocol,
    authenticated: bool,
    /// Validated store commands that were not handed over yet.
    batch: Vec<Vec<Bytes>>,
    batch_bytes: usize,
    batch_read_only: bool,
    transaction: Pending,
    /// Set when the connection is to end after what was written.
    closing: bool,
}

impl<'a, W: Write> Connection<'a, W> {
    fn new(front: &'a FrontEnd, writer: W, peer: SocketAddr, local: SocketAddr) -> Self {
        let registration = front.clients.enter(peer, local);
        let session = ClientSession { id: registration.client.id, peer, client_id: 0, seq: 0 };
        let authenticated = front.options.password.is_none();
        let mut parser = RequestParser::new(front.options.limits);
        parser.set_authenticated(authenticated);
        Self {
            front,
            registration,
            out: BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, writer),
            parser,
            session,
            protocol: Protocol::Resp2,
            authenticated,
            batch: Vec::new(),
            batch_bytes: 0,
            batch_read_only: true,
            transaction: Pending::default(),
            closing: false,
        }
    }

    fn run(&mut self, reader: &mut impl Read) -> io::Result<()> {
        while !self.closing {
            match self.parser.read_from(reader) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
            while !self.closing {
                match self.parser.next_request() {
                    Ok(Some(Request::Command(arguments))) => self.take(arguments)?,
                    Ok(Some(Request::Refused(refusal))) => {
                        let reply = match self.authenticated {
                            true => command::refusal_reply(&refusal, &self.front.options.limits),
                            false => NO_AUTH,
                        };
                        self.transaction.note_error();
                        self.reply(&reply)?;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        log::debug!("Redis client {} violates the protocol: {error}", self.session.peer);
                        self.reply(&Reply::Error(format!("ERR {error}").into()))?;
                        self.closing = true;
                    }
                }
            }
            self.run_batch()?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// Answers one request, or puts it into the batch.
    fn take(&mut self, arguments: Vec<Bytes>) -> io::Result<()> {
        let spec = match self.admit(&arguments) {
            Ok(spec) => spec,
            Err(reply) => {
                self.transaction.note_error();
                self.closing = is_http(&arguments[0]);
                if self.closing {
                    // A web page made the browser talk to this port. Whatever the request's body holds must
                    // not run.
                    log::warn!("client {} speaks HTTP to the Redis port; disconnected", self.session.peer);
                    return self.run_batch();
                }
                return self.reply(&reply);
            }
        };
        match spec.kind() {
            Kind::Connection(command) => {
                self.run_batch()?;
                self.front.commands_total.fetch_add(1, Ordering::Relaxed);
                let reply = self.answer(command, &arguments).unwrap_or_else(|error| error);
                self.reply(&reply)
            }
            kind if self.transaction.is_queueing() => {
                let bytes_max = self.front.options.limits.request_bytes_max;
                let reply = match spec.name() {
                    "transaction" => {
                        self.transaction.note_error();
                        Reply::error("ERR Command not allowed inside a transaction")
                    }
                    _ => self.transaction.push(arguments, kind == Kind::Write, bytes_max),
                };
                self.reply(&reply)
            }
            kind => {
                self.batch_read_only &= kind == Kind::Read;
                self.batch_bytes += arguments.iter().map(Bytes::len).sum::<usize>();
                self.batch.push(arguments);
                if self.batch.len() >= BATCH_COMMANDS_MAX || self.batch_bytes >= BATCH_BYTES_MAX {
                    self.run_batch()?;
                }
                Ok(())
            }
        }
    }

    /// Finds the command and checks whether the client may run it as it is.
    fn admit(&self, arguments: &[Bytes]) -> Result<&'static Spec, Reply> {
        use ConnectionCommand::{Auth, Hello, Quit, Reset};
        let spec = command::find(arguments)?;
        if !self.authenticated && !matches!(spec.kind(), Kind::Connection(Auth | Hello | Quit | Reset)) {
            return Err(NO_AUTH);
        }
        command::validate(arguments, &self.front.options.limits)
    }

    /// Has the batch executed and writes its replies.
    fn run_batch(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        let commands = batch.len();
        let read_only = std::mem::replace(&mut self.batch_read_only, true);
        self.batch_bytes = 0;
        let replies = self.execute(batch, read_only);
        debug_assert_eq!(replies.len(), commands);
        replies.iter().try_for_each(|reply| reply.write_to(self.protocol, &mut self.out))
    }

    /// As many replies as commands.
    fn execute(&mut self, batch: Vec<Vec<Bytes>>, read_only: bool) -> Vec<Reply> {
        let commands = batch.len();
        self.front.commands_total.fetch_add(commands as u64, Ordering::Relaxed);
        match self.front.backend.execute(&mut self.session, batch, read_only) {
            Ok(replies) if replies.len() == commands => replies,
            Ok(replies) => {
                // A reply too few or too many would answer every later request with another one's reply.
                log::error!("{commands} commands were answered with {} replies", replies.len());
                vec![
                    Reply::error("ERR internal error: the command may or may not have been executed");
                    commands
                ]
            }
            Err(error) => vec![Reply::Error(error.to_string().into()); commands],
        }
    }

    /// Executes what was queued since `MULTI`.
    fn execute_transaction(&mut self) -> Result<Reply, Reply> {
        match self.transaction.take()? {
            Ready::Command(command) => Ok(self.execute(vec![command], false).remove(0)),
            Ready::Reads(commands) if commands.is_empty() => Ok(Reply::Array(Vec::new())),
            Ready::Reads(commands) => Ok(Reply::Array(self.execute(commands, true))),
        }
    }

    fn watch(&mut self, keys: &[Bytes]) -> Result<Reply, Reply> {
        self.transaction.may_watch()?;
        let mut command = vec![Bytes::from_static(b"VERSION")];
        command.extend_from_slice(keys);
        match self.execute(vec![command], true).remove(0) {
            Reply::Array(versions) => {
                let version = |reply: &Reply| match reply {
                    Reply::Integer(version) => *version as u64,
                    _ => 0,
                };
                self.transaction.watch(keys, versions.iter().map(version));
                Ok(Reply::OK)
            }
            // An error, for example that there is no leader.
            reply => Err(reply),
        }
    }

    /// Writes a reply, after those of the batch.
    fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        self.run_batch()?;
        reply.write_to(self.protocol, &mut self.out)
    }

    fn answer(&mut self, command: ConnectionCommand, arguments: &[Bytes]) -> Result<Reply, Reply> {
        use ConnectionCommand::{Discard, Exec, Multi, Quit, Reset, Unwatch, Watch};
        if self.transaction.is_queueing()
            && !matches!(command, Discard | Exec | Multi | Quit | Reset | Unwatch | Watch)
        {
            self.transaction.note_error();
            return Err(Reply::error("ERR Command not allowed inside a transaction"));
        }
        match command {
            ConnectionCommand::Multi => self.transaction.begin(),
            ConnectionCommand::Exec => self.execute_transaction(),
            ConnectionCommand::Discard => self.transaction.discard(),
            ConnectionCommand::Watch => self.watch(&arguments[1..]),
            // Within a transaction the watched keys still count, as in Redis.
            ConnectionCommand::Unwatch if self.transaction.is_queueing() => Ok(Reply::OK),
            ConnectionCommand::Unwatch => {
                self.transaction.unwatch();
                Ok(Reply::OK)
            }
            ConnectionCommand::Changes => {
                let query = changes::parse(arguments)?;
                // What was answered before must not wait for the next change.
                self.out.flush().map_err(|error| Reply::Error(format!("ERR {error}").into()))?;
                let page = self.front.backend.changes(query.seen, &query.filter, query.count_max, query.wait);
                Ok(page.map_or_else(changes::compacted, changes::reply))
            }
            ConnectionCommand::Ping => match arguments {
                [_] => Ok(Reply::Status("PONG".into())),
                [_, message] => Ok(Reply::Bulk(message.clone())),
                _ => Err(command::wrong_arity("ping")),
            },
            ConnectionCommand::Echo => Ok(Reply::Bulk(arguments[1].clone())),
            ConnectionCommand::Select => match command::integer(&arguments[1])? {
                0 => Ok(Reply::OK),
                _ => Err(Reply::error("ERR DB index is out of range")),
            },
            ConnectionCommand::Quit => {
                self.closing = true;
                Ok(Reply::OK)
            }
            ConnectionCommand::Reset => {
                self.transaction = Pending::default();
                self.set_protocol(Protocol::Resp2);
                self.set_authenticated(self.front.options.password.is_none());
                self.client().said().name.clear();
                Ok(Reply::Status("RESET".into()))
            }
            ConnectionCommand::Auth => self.auth(arguments),
            ConnectionCommand::Hello => self.hello(&arguments[1..]),
            ConnectionCommand::Client => self.client_command(arguments),
            ConnectionCommand::Command => command_command(arguments),
            ConnectionCommand::Config => self.config_command(arguments),
            ConnectionCommand::Info => {
                let sections: Vec<String> = arguments[1..]
                    .iter()
                    .map(|name| String::from_utf8_lossy(name).to_ascii_lowercase())
                    .collect();
                let info = self.front.backend.info();
                Ok(Reply::bulk(info.render(&sections, &self.front.clients, self.front.commands_total())))
            }
        }
    }

    fn auth(&mut self, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let (user, password) = match arguments {
            [_, _] if self.front.options.password.is_none() => {
                return Err(Reply::error(
                    "ERR AUTH <password> called without any password configured for the default user. Are you sure \
                     your configuration is correct?",
                ));
            }
            [_, password] => (&b"default"[..], password),
            [_, user, password] => (&user[..], password),
            _ => return Err(SYNTAX_ERROR),
        };
        self.log_in(user, password)?;
        Ok(Reply::OK)
    }

    /// Authenticates the client, or leaves it as it was.
    fn log_in(&mut self, user: &[u8], password: &[u8]) -> Result<(), Reply> {
        let right = self.front.options.password.as_ref().is_none_or(|expected| expected.matches(password));
        if !right || user != b"default" {
            log::warn!("Redis client {} failed to authenticate", self.session.peer);
            return Err(WRONG_PASS);
        }
        self.set_authenticated(true);
        Ok(())
    }

    fn hello(&mut self, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let protocol = match arguments.first().map(|version| parse_integer(version)) {
            None => self.protocol,
            Some(Some(2)) => Protocol::Resp2,
            Some(Some(3)) => Protocol::Resp3,
            Some(Some(_)) => return Err(Reply::error("NOPROTO unsupported protocol version")),
            Some(None) => return Err(Reply::error("ERR Protocol version is not an integer or out of range")),
        };
        let mut name = None;
        let mut options = arguments.iter().skip(1);
        while let Some(option) = options.next() {
            let invalid = || {
                Reply::Error(
                    format!("ERR Syntax error in HELLO option '{}'", String::from_utf8_lossy(option)).into(),
                )
            };
            if option.eq_ignore_ascii_case(b"auth") {
                let (user, password) = options.next().zip(options.next()).ok_or_else(invalid)?;
                self.log_in(user, password)?;
            } else if option.eq_ignore_ascii_case(b"setname") {
                name = Some(client_name(options.next().ok_or_else(invalid)?)?);
            } else {
                return Err(invalid());
            }
        }
        if !self.authenticated {
            return Err(Reply::error(
                "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH \
                 <user> <pass> option can be used to authenticate the client and select the RESP protocol version at \
                 the same time",
            ));
        }
        if let Some(name) = name {
            self.client().said().name = name;
        }
        self.set_protocol(protocol);
        let field = |name, value| (Reply::bulk(name), value);
        Ok(Reply::Map(vec![
            field("server", Reply::bulk("redis")),
            field("version", Reply::bulk(REDIS_VERSION)),
            field("proto", Reply::Integer(if protocol == Protocol::Resp3 { 3 } else { 2 })),
            field("id", Reply::Integer(self.session.id as i64)),
            field("mode", Reply::bulk("standalone")),
            field("role", Reply::bulk("master")),
            field("modules", Reply::Array(vec![])),
        ]))
    }

    fn client_command(&mut self, arguments: &[Bytes]) -> Result<Reply, Reply> {
        let subcommand = arguments[1].to_ascii_lowercase();
        let operands = &arguments[2..];
        let client = self.client();
        match (subcommand.as_slice(), operands) {
            (b"id", []) => Ok(Reply::Integer(self.session.id as i64)),
            (b"getname", []) => {
                let name = client.said().name.clone();
                Ok(if name.is_empty() { Reply::Nil } else { Reply::bulk(name) })
            }
            (b"setname", [name]) => {
                client.said().name = client_name(name)?;
                Ok(Reply::OK)
            }
            (b"setinfo", [attribute, value]) => {
                let value = printable(value).ok_or(Reply::error(
                    "ERR lib-name and lib-ver cannot contain spaces, newlines or special characters.",
                ))?;
                match attribute.to_ascii_lowercase().as_slice() {
                    b"lib-name" => client.said().library_name = value,
                    b"lib-ver" => client.said().library_version = value,
                    _ => {
                        let attribute = String::from_utf8_lossy(attribute);
                        return Err(Reply::Error(format!("ERR Unrecognized option '{attribute}'").into()));
                    }
                }
                Ok(Reply::OK)
            }
            (b"info", []) => Ok(Reply::bulk(client.describe())),
            (b"list", _) => Ok(Reply::bulk(self.front.clients.list())),
            (b"no-evict" | b"no-touch", [mode])
                if mode.eq_ignore_ascii_case(b"on") || mode.eq_ignore_ascii_case(b"off") =>
            {
                Ok(Reply::OK)
            }
            (b"no-evict" | b"no-touch", [_]) => Err(SYNTAX_ERROR),
            (b"id" | b"getname" | b"setname" | b"setinfo" | b"info" | b"no-evict" | b"no-touch", _) => {
                let subcommand = String::from_utf8_lossy(&subcommand);
                Err(command::wrong_arity(&format!("client|{subcommand}")))
            }
            _ => Err(unknown_subcommand("CLIENT", &arguments[1])),
        }
    }

    fn config_command(&self, arguments: &[Bytes]) -> Result<Reply, Reply> {
        match arguments[1].to_ascii_lowercase().as_slice() {
            b"get" if arguments.len() > 2 => {
                let limits = &self.front.options.limits;
                // What benchmarks and client libraries ask for.
                let settings = [
                    ("appendonly", "yes".to_owned()),
                    ("databases", "1".to_owned()),
                    ("maxclients", self.front.options.connections_max.to_string()),
                    ("maxmemory", "0".to_owned()),
                    ("proto-max-bulk-len", limits.value_bytes_max.to_string()),
                    ("save", String::new()),
                    ("timeout", "0".to_owned()),
                ];
                let wanted = |name: &str| {
                    arguments[2..]
                        .iter()
                        .any(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))
                };
                let found = settings.into_iter().filter(|(name, _)| wanted(name));
                Ok(Reply::Map(found.map(|(name, value)| (Reply::bulk(name), Reply::bulk(value))).collect()))
            }
            b"get" => Err(command::wrong_arity("config|get")),
            b"set" => Err(Reply::error("ERR CONFIG SET is not supported; edit the configuration file")),
            _ => Err(unknown_subcommand("CONFIG", &arguments[1])),
        }
    }

    fn client(&self) -> &Client {
        &self.registration.client
    }

    fn set_protocol(&mut self, protocol: Protocol) {
        self.protocol = protocol;
        self.client().said().protocol = protocol;
    }

    fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
        self.parser.set_authenticated(authenticated);
    }
}

fn command_command(arguments: &[Bytes]) -> Result<Reply, Reply> {
    let Some(subcommand) = arguments.get(1) else {
        return Ok(Reply::Array(command::table().iter().map(describe).collect()));
    };
    match subcommand.to_ascii_lowercase().as_slice() {
        b"count" => Ok(Reply::Integer(command::table().len() as i64)),
        b"docs" => Ok(Reply::Map(vec![])),
        b"list" => Ok(Reply::Array(command::table().iter().map(|spec| Reply::bulk(spec.name())).collect())),
        b"info" => {
            let named = |name: &Bytes| {
                let spec =
                    command::table().iter().find(|spec| name.eq_ignore_ascii_case(spec.name().as_bytes()));
                spec.map_or(Reply::Nil, describe)
            };
            Ok(Reply::Array(match &arguments[2..] {
                [] => command::table().iter().map(describe).collect(),
                names => names.iter().map(named).collect(),
            }))
        }
        _ => Err(unknown_subcommand("COMMAND", subcommand)),
    }
}

/// A command as `COMMAND` tells it: name, arity, flags, and the range of its keys.
fn describe(spec: &Spec) -> Reply {
    let flag = match spec.kind() {
        Kind::Read => "readonly",
        Kind::Write => "write",
        Kind::Connection(_) => "fast",
    };
    let (first, last, step) = spec.key_range();
    Reply::Array(vec![
        Reply::bulk(spec.name()),
        Reply::Integer(spec.arity().into()),
        Reply::Array(vec![Reply::Status(flag.into())]),
        Reply::Integer(first),
        Reply::Integer(last),
        Reply::Integer(step),
    ])
}

fn unknown_subcommand(command: &str, subcommand: &[u8]) -> Reply {
    let subcommand = String::from_utf8_lossy(&subcommand[..subcommand.len().min(128)]);
    Reply::Error(format!("ERR unknown subcommand '{subcommand}'. Try {command} HELP.").into())
}

fn client_name(name: &[u8]) -> Result<String, Reply> {
    printable(name)
        .ok_or(Reply::error("ERR Client names cannot contain spaces, newlines or special characters."))
}

/// The text, if it would not break the lines of `CLIENT LIST`.
fn printable(text: &[u8]) -> Option<String> {
    text.iter().all(u8::is_ascii_graphic).then(|| String::from_utf8_lossy(text).into_owned())
}

/// Whether a request that is no command is the start of an HTTP one.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::history::History;
    use crate::machine::{KvMachine, MachineOptions, Proposal};
    use crate::session::SessionLimits;

    /// A machine behind a mutex, which notes the batches it got.
    struct Recorder {
        machine: Mutex<KvMachine>,
        history: History,
        batches: Mutex<Vec<(usize, bool)>>,
        failure: Mutex<Option<BackendError>>,
    }

    impl Backend for Recorder {
        fn execute(
            &self,
            _session: &mut ClientSession,
            batch: Vec<Vec<Bytes>>,
            read_only: bool,
        ) -> Result<Vec<Reply>, BackendError> {
            self.batches.lock().unwrap().push((batch.len(), read_only));
            if let Some(error) = self.failure.lock().unwrap().clone() {
                return Err(error);
            }
            let mut machine = self.machine.lock().unwrap();
            if read_only {
                return Ok(machine.query(1000, &batch));
            }
            let proposal =
                Proposal { session: None, now_ms: 1000, value_bytes_max: 1 << 20, commands: batch };
            let result = machine.apply(&proposal.encode());
            self.history.record(machine.take_changes());
            result.map_err(|error| BackendError::Refused(error.to_string()))
        }

        fn changes(
            &self,
            seen: u64,
            filter: &Filter,
            count_max: usize,
            wait: Duration,
        ) -> Result<Page, Compacted> {
            self.history.read(seen, filter, count_max, wait)
        }

        fn info(&self) -> ServerInfo {
            ServerInfo {
                raft_role: "leader".into(),
                raft_leader: Some(0),
                machine: self.machine.lock().unwrap().stats(0),
                ..ServerInfo::default()
            }
        }
    }

    struct Fixture {
        backend: Arc<Recorder>,
        front: FrontEnd,
    }

    impl Fixture {
        fn new(password: Option<&str>) -> Self {
            let options = MachineOptions { hash_key: 0, sessions: SessionLimits::DEFAULT };
            let backend = Arc::new(Recorder {
                machine: Mutex::new(KvMachine::new(options)),
                history: History::new(1 << 20),
                batches: Mutex::default(),
                failure: Mutex::default(),
            });
            let limits = Limits { key_bytes_max: 10, value_bytes_max: 100, request_bytes_max: 1 << 20 };
            let password = password.map(|password| Password::new(password).unwrap());
            let options = FrontEndOptions { password, limits, ..FrontEndOptions::default() };
            Self { front: FrontEnd::new(backend.clone(), options), backend }
        }

        /// Sends everything in one piece, then ends the stream; returns all that was answered.
        fn talk(&self, input: &str) -> String {
            let address = "127.0.0.1:1000".parse().unwrap();
            let mut output = Vec::new();
            self.front.serve(&mut input.as_bytes(), &mut output, address, address).unwrap();
            String::from_utf8(output).unwrap()
        }
    }

    #[test]
    fn consecutive_store_commands_are_one_batch() {
        let fixture = Fixture::new(None);
        let output = fixture.talk("SET a 1\nGET a\nINCR a\nPING\nGET a\nGET b\nNOSUCH\nGET a\n");
        assert_eq!(
            output,
            "+OK\r\n$1\r\n1\r\n:2\r\n+PONG\r\n$1\r\n2\r\n$-1\r\n-ERR unknown command 'NOSUCH', with args beginning \
             with: \r\n$1\r\n2\r\n"
        );
        assert_eq!(*fixture.backend.batches.lock().unwrap(), [(3, false), (2, true), (1, true)]);
        assert_eq!(fixture.front.commands_total(), 7);
    }

    #[test]
    fn a_long_pipeline_is_cut_into_batches() {
        let fixture = Fixture::new(None);
        let output = fixture.talk(&"GET a\n".repeat(2500));
        assert_eq!(output, "$-1\r\n".repeat(2500));
        let batches = fixture.backend.batches.lock().unwrap();
        assert!(batches.iter().all(|(commands, _)| *commands <= BATCH_COMMANDS_MAX));
    }

    #[test]
    fn what_is_refused_never_reaches_the_backend() {
        let fixture = Fixture::new(None);
        let output = fixture.talk("SET a\nSET a 1 EX x\nSET 01234567890 1\n");
        assert_eq!(
            output,
            "-ERR wrong number of arguments for 'set' command\r\n-ERR value is not an integer or out of range\r\n\
             -ERR key is 11 bytes, the limit is 10 (key_bytes_max)\r\n"
        );
        assert!(fixture.backend.batches.lock().unwrap().is_empty());
    }

    #[test]
    fn a_failed_batch_answers_each_of_its_commands() {
        let fixture = Fixture::new(None);
        for (error, text) in [
            (BackendError::NoLeader, "-CLUSTERDOWN no leader\r\n"),
            (BackendError::Refused("why".into()), "-ERR why\r\n"),
        ] {
            *fixture.backend.failure.lock().unwrap() = Some(error);
            assert_eq!(fixture.talk("SET a 1\nSET b 2\nPING\n"), format!("{text}{text}+PONG\r\n"));
        }
    }

    #[test]
    fn after_a_protocol_error_nothing_more_is_read() {
        let fixture = Fixture::new(None);
        let output = fixture.talk("SET a 1\n*1\r\n$10737418240\r\nPING\nPING\n");
        assert_eq!(output, "+OK\r\n-ERR Protocol error: invalid bulk length\r\n");
    }

    #[test]
    fn an_oversized_argument_costs_only_its_own_request() {
        let fixture = Fixture::new(None);
        let value = "x".repeat(101);
        let output = fixture.talk(&format!(
            "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$101\r\n{value}\r\n*2\r\n$3\r\nGET\r\n$101\r\n{value}\r\nPING\n"
        ));
        assert_eq!(
            output,
            "-ERR value is 101 bytes, the limit is 100 (value_bytes_max)\r\n\
             -ERR key is 101 bytes, the limit is 10 (key_bytes_max)\r\n+PONG\r\n"
        );
    }

    #[test]
    fn what_is_queued_is_executed_as_one() {
        let fixture = Fixture::new(None);
        let output = fixture
            .talk("SET a 1\nMULTI\nINCR a\nGET a\nNOSUCH2\nDISCARD\nMULTI\nINCR a\nGET b\nEXEC\nEXEC\n");
        assert_eq!(
            output,
            "+OK\r\n+OK\r\n+QUEUED\r\n+QUEUED\r\n-ERR unknown command 'NOSUCH2', with args beginning with: \r\n+OK\r\n\
             +OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n:2\r\n$-1\r\n-ERR EXEC without MULTI\r\n"
        );
        assert_eq!(*fixture.backend.batches.lock().unwrap(), [(1, false), (1, false)]);
        let output = fixture.talk(
            "MULTI\nGET a\nGET a\nEXEC\nMULTI\nEXEC\nMULTI\nPING\nEXEC\nMULTI\nMULTI\nSET c\nEXEC\nGET c\n",
        );
        assert_eq!(
            output,
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n$1\r\n2\r\n$1\r\n2\r\n+OK\r\n*0\r\n\
             +OK\r\n-ERR Command not allowed inside a transaction\r\n\
             -EXECABORT Transaction discarded because of previous errors.\r\n\
             +OK\r\n-ERR MULTI calls can not be nested\r\n-ERR wrong number of arguments for 'set' command\r\n\
             -EXECABORT Transaction discarded because of previous errors.\r\n$-1\r\n"
        );
    }

    #[test]
    fn a_watched_key_that_was_changed_prevents_the_transaction() {
        let fixture = Fixture::new(None);
        let transaction = "MULTI\nSET b 1\nEXEC\n";
        let done = "+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n";
        let prevented = "+OK\r\n+QUEUED\r\n$-1\r\n";
        assert_eq!(fixture.talk(&format!("WATCH a\n{transaction}")), format!("+OK\r\n{done}"));
        assert_eq!(
            fixture.talk(&format!("WATCH a\nSET a 1\n{transaction}{transaction}")),
            format!("+OK\r\n+OK\r\n{prevented}{done}")
        );
        assert_eq!(
            fixture.talk(&format!("WATCH a b\nDEL a\n{transaction}")),
            format!("+OK\r\n:1\r\n{prevented}")
        );
        assert_eq!(
            fixture.talk(&format!("WATCH a\nSET a 1\nUNWATCH\n{transaction}")),
            format!("+OK\r\n+OK\r\n+OK\r\n{done}")
        );
        assert_eq!(
            fixture.talk("MULTI\nWATCH a\nDISCARD\nDISCARD\n"),
            "+OK\r\n-ERR WATCH inside MULTI is not allowed\r\n+OK\r\n-ERR DISCARD without MULTI\r\n"
        );
        *fixture.backend.failure.lock().unwrap() = Some(BackendError::NoLeader);
        assert_eq!(fixture.talk("WATCH a\n"), "-CLUSTERDOWN no leader\r\n");
    }

    #[test]
    fn changes_are_told_in_order_from_any_revision() {
        let fixture = Fixture::new(None);
        fixture.talk("SET a 1 PXAT 90000\nAPPEND a 2\nSET b 1\nPERSIST a\nDEL a\nFLUSHALL\n");
        let output = fixture.talk("CHANGES 0 KEY a\n");
        assert_eq!(
            output,
            "*2\r\n:6\r\n*5\r\n\
             *5\r\n:1\r\n$3\r\nset\r\n$1\r\na\r\n$1\r\n1\r\n:90000\r\n\
             *4\r\n:2\r\n$6\r\nappend\r\n$1\r\na\r\n$1\r\n2\r\n\
             *4\r\n:4\r\n$6\r\nexpiry\r\n$1\r\na\r\n$-1\r\n\
             *3\r\n:5\r\n$3\r\ndel\r\n$1\r\na\r\n\
             *2\r\n:6\r\n$5\r\nclear\r\n"
        );
        assert_eq!(fixture.talk("CHANGES 5 PREFIX x\n"), "*2\r\n:6\r\n*1\r\n*2\r\n:6\r\n$5\r\nclear\r\n");
        assert_eq!(fixture.talk("CHANGES 6 BLOCK 1\n"), "*2\r\n:6\r\n*0\r\n");
        assert!(fixture.talk("CHANGES 0 COUNT 1\n").starts_with("*2\r\n:1\r\n*1\r\n"));
        for bad in [
            "CHANGES x\n",
            "CHANGES -1\n",
            "CHANGES 1 KEY\n",
            "CHANGES 1 KEY a PREFIX b\n",
            "CHANGES 1 MATCH x\n",
        ] {
            assert!(fixture.talk(bad).starts_with("-ERR"), "{bad}");
        }
    }

    #[test]
    fn quit_ends_the_connection_after_its_reply() {
        assert_eq!(Fixture::new(None).talk("PING\nQUIT\nPING\n"), "+PONG\r\n+OK\r\n");
    }

    #[test]
    fn an_http_request_is_cut_off_before_its_body() {
        let fixture = Fixture::new(None);
        assert_eq!(fixture.talk("POST / HTTP/1.1\r\nHost: x\r\n\r\nSET a 1\r\n"), "");
        assert!(fixture.backend.batches.lock().unwrap().is_empty());
    }

    #[test]
    fn a_password_guards_everything() {
        let fixture = Fixture::new(Some("secret"));
        let no_auth = "-NOAUTH Authentication required.\r\n";
        let wrong = "-WRONGPASS invalid username-password pair or user is disabled.\r\n";
        assert_eq!(fixture.talk("PING\nGET a\nINFO\n"), no_auth.repeat(3));
        assert_eq!(fixture.talk("AUTH wrong\nGET a\n"), format!("{wrong}{no_auth}"));
        assert_eq!(fixture.talk("AUTH other secret\n"), wrong);
        assert_eq!(fixture.talk("AUTH secret\nGET a\n"), "+OK\r\n$-1\r\n");
        assert_eq!(
            fixture.talk("AUTH default secret\nAUTH wrong\nGET a\n"),
            format!("+OK\r\n{wrong}$-1\r\n")
        );
        assert_eq!(fixture.talk("AUTH secret\nRESET\nGET a\n"), format!("+OK\r\n+RESET\r\n{no_auth}"));
        assert_eq!(fixture.talk("AUTH a b c\nQUIT\n"), "-ERR syntax error\r\n+OK\r\n");
        assert!(fixture.talk("HELLO 3\n").starts_with("-NOAUTH HELLO must be called"));
        assert!(fixture.talk("HELLO 3 AUTH default secret\nGET a\n").ends_with("_\r\n"));
        assert_eq!(fixture.talk("HELLO 3 AUTH default wrong\nPING\n"), format!("{wrong}{no_auth}"));
        assert_eq!(
            fixture.talk("*2\r\n$3\r\nGET\r\n$20000\r\n"),
            "-ERR Protocol error: unauthenticated bulk length\r\n"
        );
    }

    #[test]
    fn auth_without_a_password() {
        let fixture = Fixture::new(None);
        assert!(
            fixture
                .talk("AUTH x\n")
                .starts_with("-ERR AUTH <password> called without any password configured")
        );
        assert_eq!(fixture.talk("AUTH default x\n"), "+OK\r\n");
    }

    #[test]
    fn hello_switches_the_protocol() {
        let fixture = Fixture::new(None);
        let output = fixture.talk("HELLO 3\nGET a\nHELLO 2\nGET a\n");
        assert!(output.starts_with("%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n"));
        assert!(output.contains("_\r\n*14\r\n$6\r\nserver\r\n"), "{output}");
        assert!(output.ends_with("$-1\r\n"));
        assert_eq!(fixture.talk("HELLO 4\n"), "-NOPROTO unsupported protocol version\r\n");
        assert_eq!(fixture.talk("HELLO x\n"), "-ERR Protocol version is not an integer or out of range\r\n");
        assert_eq!(fixture.talk("HELLO 2 foo\n"), "-ERR Syntax error in HELLO option 'foo'\r\n");
        assert!(fixture.talk("HELLO 2 SETNAME me\nCLIENT GETNAME\n").ends_with("$2\r\nme\r\n"));
    }

    #[test]
    fn client_and_its_subcommands() {
        let fixture = Fixture::new(None);
        assert_eq!(
            fixture.talk("CLIENT ID\nCLIENT GETNAME\nCLIENT SETNAME me\nCLIENT GETNAME\n"),
            ":1\r\n$-1\r\n+OK\r\n$2\r\nme\r\n"
        );
        assert_eq!(
            fixture.talk("CLIENT SETNAME \"a b\"\n"),
            "-ERR Client names cannot contain spaces, newlines or special characters.\r\n"
        );
        assert_eq!(fixture.talk("CLIENT SETINFO LIB-NAME x\nCLIENT SETINFO lib-ver 1\n"), "+OK\r\n+OK\r\n");
        assert_eq!(fixture.talk("CLIENT SETINFO foo x\n"), "-ERR Unrecognized option 'foo'\r\n");
        assert_eq!(fixture.talk("CLIENT NO-EVICT on\nCLIENT NO-EVICT x\n"), "+OK\r\n-ERR syntax error\r\n");
        assert_eq!(fixture.talk("CLIENT FOO\n"), "-ERR unknown subcommand 'FOO'. Try CLIENT HELP.\r\n");
        assert_eq!(
            fixture.talk("CLIENT SETNAME\n"),
            "-ERR wrong number of arguments for 'client|setname' command\r\n"
        );
        let list = fixture.talk("CLIENT SETNAME me\nCLIENT LIST\n");
        assert!(list.contains("addr=127.0.0.1:1000 laddr=127.0.0.1:1000 name=me"), "{list}");
        assert_eq!(fixture.front.clients().connected(), 0);
        assert_eq!(fixture.front.clients().total(), 8);
    }

    #[test]
    fn the_commands_about_the_server() {
        let fixture = Fixture::new(None);
        assert_eq!(fixture.talk("ECHO hi\nPING hi\n"), "$2\r\nhi\r\n".repeat(2));
        assert_eq!(fixture.talk("PING a b\n"), "-ERR wrong number of arguments for 'ping' command\r\n");
        assert_eq!(fixture.talk("SELECT 0\nSELECT 1\n"), "+OK\r\n-ERR DB index is out of range\r\n");
        assert_eq!(fixture.talk("SELECT x\n"), "-ERR value is not an integer or out of range\r\n");
        assert_eq!(fixture.talk("CONFIG GET save\n"), "*2\r\n$4\r\nsave\r\n$0\r\n\r\n");
        assert_eq!(fixture.talk("CONFIG GET append*\n"), "*2\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n");
        assert_eq!(fixture.talk("CONFIG GET nothing\n"), "*0\r\n");
        assert_eq!(
            fixture.talk("CONFIG GET\n"),
            "-ERR wrong number of arguments for 'config|get' command\r\n"
        );
        assert_eq!(fixture.talk("COMMAND DOCS\n"), "*0\r\n");
        assert_eq!(fixture.talk("COMMAND COUNT\n"), format!(":{}\r\n", command::table().len()));
        assert_eq!(
            fixture.talk("COMMAND INFO get nosuch\n"),
            "*2\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n$-1\r\n"
        );
        assert!(fixture.talk("COMMAND\n").starts_with(&format!("*{}\r\n", command::table().len())));
    }

    #[test]
    fn info_and_its_sections() {
        let fixture = Fixture::new(None);
        let all = fixture.talk("SET a 1\nINFO\n");
        for part in ["# Server\r\n", "redis_version:7.0.0\r\n", "\r\n\r\n# Raft\r\n", "raft_role:leader\r\n"]
        {
            assert!(all.contains(part), "{part:?} in {all}");
        }
        assert!(all.contains("# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0\r\n"));
        assert!(all.contains("role:master\r\n"));
        let raft = fixture.talk("INFO raft\n");
        assert!(raft.contains("# Raft") && !raft.contains("# Server"));
        assert_eq!(fixture.talk("INFO nosuch\n"), "$0\r\n\r\n");
    }

    #[test]
    fn only_this_machine_may_connect_without_a_password() {
        for (peer, has_password, refused) in [
            ("127.0.0.1", false, false),
            ("127.1.2.3", false, false),
            ("::1", false, false),
            ("::ffff:127.0.0.1", false, false),
            ("10.0.0.1", false, true),
            ("::ffff:10.0.0.1", false, true),
            ("10.0.0.1", true, false),
        ] {
            let refusal = protected_mode_refusal(peer.parse().unwrap(), has_password);
            assert_eq!(refusal.is_some(), refused, "{peer}");
            assert!(refusal.is_none_or(|text| text.starts_with("-DENIED ") && text.ends_with("\r\n")));
        }
    }
}
