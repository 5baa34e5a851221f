//! The commands on keys.

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use bytes::Bytes;
use serde_json::json;
use squall_kvserver::command::{self, Kind};
use squall_kvserver::resp::Reply;
use squall_kvserver::store::prefix_end;

use crate::output::{bytes_json, plain, reply_json, reply_text};
use crate::{Cluster, NOT_DONE};

/// How many keys are asked for at a time.
const PAGE: usize = 1000;

#[derive(clap::Args)]
pub struct Put {
    /// The key.
    key: String,
    /// The value.
    value: String,
    /// Only if there is no such key.
    #[arg(long, conflicts_with_all = ["if_value", "if_version"])]
    if_absent: bool,
    /// Only if the key has this value.
    #[arg(long, value_name = "VALUE", conflicts_with = "if_version")]
    if_value: Option<String>,
    /// Only if the key has this version, which `get --with-version` tells.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Let the key expire after so many seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "if_version")]
    ttl: Option<u64>,
}

#[derive(clap::Args)]
pub struct Get {
    /// The key.
    key: String,
    /// Print the version first, and a space: it changes with every change of the key.
    #[arg(long)]
    with_version: bool,
}

#[derive(clap::Args)]
pub struct Append {
    /// The key.
    key: String,
    /// What to append.
    value: String,
}

#[derive(clap::Args)]
pub struct Del {
    /// The key.
    key: String,
    /// Only if the key has this value.
    #[arg(long, value_name = "VALUE", conflicts_with = "if_version")]
    if_value: Option<String>,
    /// Only if the key has this version.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

#[derive(clap::Args)]
pub struct List {
    /// Only keys that begin with this.
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
    /// Begin with this key, or the first after it.
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// End before this key.
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
    /// Print so many at most.
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Print the values, too, after a tab.
    #[arg(long)]
    values: bool,
}

#[derive(clap::Args)]
pub struct Exec {
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The replies to one command.
pub fn execute(cluster: &Cluster, command: Vec<Bytes>) -> anyhow::Result<Reply> {
    let is_read = match command::find(&command) {
        Ok(spec) => match spec.kind() {
            Kind::Read => true,
            Kind::Write => false,
            Kind::Connection(_) => bail!("'{}' concerns a connection; use redis-cli for it", spec.name()),
        },
        Err(reply) => return Ok(reply),
    };
    let mut replies = cluster.clerk()?.execute(vec![command], is_read)?;
    anyhow::ensure!(replies.len() == 1, "the cluster answered one command with {} replies", replies.len());
    Ok(replies.remove(0))
}

fn words(words: &[&str]) -> Vec<Bytes> {
    words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect()
}

fn refuse(cluster: &Cluster, why: &str) -> ExitCode {
    if cluster.json {
        println!("{}", json!({ "done": false, "reason": why }));
    } else {
        eprintln!("kvctl: {why}");
    }
    ExitCode::from(NOT_DONE)
}

fn done(cluster: &Cluster) -> ExitCode {
    if cluster.json {
        println!("{}", json!({ "done": true }));
    }
    ExitCode::SUCCESS
}

impl Put {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let Put { key, value, .. } = &self;
        if let Some(version) = self.if_version {
            let reply = execute(cluster, words(&["EXCAS", key, value, &version.to_string()]))?;
            return Ok(match &reply {
                Reply::Array(items) if items.first() == Some(&Reply::OK) => done(cluster),
                Reply::Array(items) => {
                    let now = items.get(2).map(reply_text).unwrap_or_default();
                    refuse(cluster, &format!("'{key}' has another version now: {now}"))
                }
                Reply::Integer(_) => refuse(cluster, &format!("there is no key '{key}'")),
                other => bail!("{}", reply_text(other)),
            });
        }
        let mut command = words(&["SET", key, value]);
        if self.if_absent {
            command.extend(words(&["NX"]));
        }
        if let Some(expected) = &self.if_value {
            command.extend(words(&["IFEQ", expected]));
        }
        if let Some(seconds) = self.ttl {
            command.extend(words(&["EX", &seconds.to_string()]));
        }
        Ok(match execute(cluster, command)? {
            Reply::Status(_) => done(cluster),
            Reply::Nil if self.if_absent => refuse(cluster, &format!("there is a key '{key}' already")),
            Reply::Nil => refuse(cluster, &format!("'{key}' does not have that value")),
            other => bail!("{}", reply_text(&other)),
        })
    }
}

impl Get {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let key = &self.key;
        let Reply::Array(found) = execute(cluster, words(&["EXGET", key]))? else {
            return Ok(refuse(cluster, &format!("there is no key '{key}'")));
        };
        let [Reply::Bulk(value), Reply::Integer(version)] = &found[..] else {
            bail!("the cluster answered {}", reply_text(&Reply::Array(found)));
        };
        if cluster.json {
            println!("{}", json!({ "key": key, "value": bytes_json(value), "version": version }));
            return Ok(ExitCode::SUCCESS);
        }
        let mut out = std::io::stdout().lock();
        if self.with_version {
            write!(out, "{version} ")?;
        }
        out.write_all(value)?;
        out.write_all(b"\n")?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Append {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        match execute(cluster, words(&["APPEND", &self.key, &self.value]))? {
            Reply::Integer(bytes) if cluster.json => println!("{}", json!({ "done": true, "bytes": bytes })),
            Reply::Integer(bytes) => println!("{bytes}"),
            other => bail!("{}", reply_text(&other)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Del {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let key = &self.key;
        let missing = format!("there is no key '{key}'");
        let command = match (&self.if_value, self.if_version) {
            (Some(value), _) => words(&["CAD", key, value]),
            (None, Some(version)) => words(&["EXCAD", key, &version.to_string()]),
            (None, None) => words(&["DEL", key]),
        };
        let is_conditional = self.if_value.is_some() || self.if_version.is_some();
        Ok(match execute(cluster, command)? {
            Reply::Integer(1) => done(cluster),
            Reply::Integer(0) if is_conditional => {
                refuse(cluster, &format!("'{key}' is not what it should be"))
            }
            Reply::Integer(_) => refuse(cluster, &missing),
            other => bail!("{}", reply_text(&other)),
        })
    }
}

impl List {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let clerk = cluster.clerk()?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let bound = |kind: &[u8], key: &[u8]| Bytes::from([kind, key].concat());
        let prefix = self.prefix.as_bytes();
        let from = self.from.as_deref().unwrap_or_default().as_bytes();
        let mut from = bound(b"[", from.max(prefix));
        let ends = [prefix_end(prefix), self.to.map(String::into_bytes)];
        let to = ends.into_iter().flatten().min().map_or(Bytes::from_static(b"+"), |end| bound(b"(", &end));
        let mut left = self.limit.unwrap_or(usize::MAX);
        while left > 0 {
            let mut command = vec![Bytes::from_static(b"RANGE"), from.clone(), to.clone()];
            command.extend(words(&["LIMIT", &left.min(PAGE).to_string()]));
            if !self.values {
                command.extend(words(&["KEYSONLY"]));
            }
            let reply = clerk.execute(vec![command], true)?.pop();
            let Some(Reply::Array(page)) = reply else {
                bail!("the cluster answered {}", reply.as_ref().map(reply_text).unwrap_or_default());
            };
            let [next, Reply::Array(found)] = &page[..] else { bail!("the cluster's answer is no range") };
            for item in found.chunks(if self.values { 2 } else { 1 }) {
                let bytes = |index: usize| match item.get(index) {
                    Some(Reply::Bulk(bytes)) => bytes.clone(),
                    _ => Bytes::new(),
                };
                match (cluster.json, self.values) {
                    (true, true) => {
                        writeln!(
                            out,
                            "{}",
                            json!({ "key": bytes_json(&bytes(0)), "value": bytes_json(&bytes(1)) })
                        )?;
                    }
                    (true, false) => writeln!(out, "{}", json!({ "key": bytes_json(&bytes(0)) }))?,
                    (false, true) => writeln!(out, "{}\t{}", plain(&bytes(0)), plain(&bytes(1)))?,
                    (false, false) => writeln!(out, "{}", plain(&bytes(0)))?,
                }
                left -= 1;
            }
            match next {
                Reply::Bulk(next) => from = next.clone(),
                _ => break,
            }
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Exec {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let reply = execute(cluster, self.command.into_iter().map(Bytes::from).collect())?;
        if cluster.json {
            println!("{}", reply_json(&reply));
        } else {
            println!("{}", reply_text(&reply));
        }
        Ok(if reply.is_error() { ExitCode::from(crate::FAILED) } else { ExitCode::SUCCESS })
    }
}
