//! Prints changes as they happen. Goes on at another node when one fails, without losing or repeating any.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::json;
use squall_kvserver::resp::Reply;

use crate::Cluster;
use crate::output::{plain, quoted, reply_json, reply_text};

/// How long a node waits for a change before it says that there was none.
const BLOCK: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct Watch {
    /// The key; all if there is none.
    key: Option<String>,
    /// All keys that begin with this.
    #[arg(long, conflicts_with = "key")]
    prefix: Option<String>,
    /// Begin with the change that follows this revision; if not said, with the next one.
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
    /// End after so many changes.
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
}

impl Watch {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let mut seen = match self.from {
            Some(revision) => i64::try_from(revision).context("no cluster has that revision")?,
            // As of now, at the leader: so that what is acknowledged from now on is seen.
            None => match crate::keys::execute(cluster, vec!["REVISION".into()])? {
                Reply::Integer(revision) => revision,
                other => bail!("{}", reply_text(&other)),
            },
        };
        eprintln!("kvctl: watching from revision {seen} on; Ctrl-C ends");
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut node = 0;
        while left > 0 {
            let mut client = cluster.redis(&mut node, BLOCK)?;
            while left > 0 {
                let count = left.min(1000).to_string();
                let (revision, block) = (seen.to_string(), BLOCK.as_millis().to_string());
                let mut command: Vec<&[u8]> =
                    vec![b"CHANGES", revision.as_bytes(), b"BLOCK", block.as_bytes()];
                command.extend([&b"COUNT"[..], count.as_bytes()]);
                match (&self.key, &self.prefix) {
                    (Some(key), _) => command.extend([&b"KEY"[..], key.as_bytes()]),
                    (None, Some(prefix)) => command.extend([&b"PREFIX"[..], prefix.as_bytes()]),
                    (None, None) => {}
                }
                let page = match client.call(&command) {
                    Ok(Reply::Array(page)) => page,
                    Ok(other) => bail!("{}", reply_text(&other)),
                    Err(error) => {
                        log::info!("a node is gone, going on at the next: {error}");
                        node += 1;
                        std::thread::sleep(RETRY_PAUSE);
                        break;
                    }
                };
                let [Reply::Integer(now), Reply::Array(changes)] = &page[..] else {
                    bail!("the answer is no page of changes")
                };
                for change in changes {
                    print(cluster, change)?;
                    left -= 1;
                }
                seen = *now;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(cluster: &Cluster, change: &Reply) -> anyhow::Result<()> {
    let Reply::Array(fields) = change else { bail!("the answer is no change") };
    let mut out = std::io::stdout().lock();
    let field = |index: usize| fields.get(index).unwrap_or(&Reply::Nil);
    if cluster.json {
        let Reply::Bulk(kind) = field(1) else { bail!("the answer is no change") };
        let kind = String::from_utf8_lossy(kind).into_owned();
        let mut line = json!({ "revision": reply_json(field(0)), "change": kind });
        for (index, name) in names(&kind).iter().enumerate() {
            line[name] = reply_json(field(index + 2));
        }
        writeln!(out, "{line}")?;
    } else {
        let shown = |reply: &Reply| match reply {
            Reply::Bulk(bytes) => plain(bytes),
            Reply::Integer(number) => number.to_string(),
            Reply::Nil => "-".into(),
            other => quoted(reply_text(other).as_bytes()),
        };
        writeln!(out, "{}", fields.iter().map(shown).collect::<Vec<_>>().join("\t"))?;
    }
    Ok(out.flush()?)
}

/// What follows revision and kind, by name.
fn names(kind: &str) -> &'static [&'static str] {
    match kind {
        "set" => &["key", "value", "expires_at_ms"],
        "append" => &["key", "suffix"],
        "expiry" => &["key", "expires_at_ms"],
        "del" | "expired" => &["key"],
        _ => &[],
    }
}
