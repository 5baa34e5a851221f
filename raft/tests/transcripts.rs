//! Scenarios to be read: a script drives several cores, and everything they say to each other is compared with the file.
//!
//! A file in `transcripts/` consists of blocks: commands, a line `----`, and what they print, up to an empty line. Lines that begin
//! with `#` are for the reader. `UPDATE_TRANSCRIPTS=1 cargo test -p squall-raft --test transcripts` writes what is printed
//! into the files; look at the difference before you keep it.
//!
//! | command | effect |
//! |---|---|
//! | `founded N F` | N nodes, of which the first F have founded the group |
//! | `tick ID N` | N ticks of a node |
//! | `elect ID` | the node is made the leader, without output |
//! | `sync ID` | all writes of a node end |
//! | `deliver` | every message under way arrives |
//! | `settle` | the two in turn until nothing is under way |
//! | `quiet` | the same, without output |
//! | `propose ID TEXT` | a proposal |
//! | `change ID add\|promote\|remove N …` | changes of members, together |
//! | `transfer ID N` | a transfer of leadership |
//! | `isolate ID`, `heal` | links |
//! | `crash ID`, `wipe ID`, `restart ID` | nodes |
//! | `show` | a line on each node |

mod support;

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

use bytes::Bytes;
use squall_raft::core::types::{EntryKind, NodeId};
use squall_raft::core::{Body, MemberChange, Membership, Message};
use support::Network;

/// More generations of messages than any exchange of a script needs.
const GENERATIONS_MAX: usize = 50;

fn shown(message: &Message) -> String {
    let what = match &message.body {
        Body::Append { prev_index, entries, commit, .. } => {
            let entries: Vec<String> = entries
                .iter()
                .map(|entry| match entry.kind {
                    EntryKind::Command => String::from_utf8_lossy(&entry.data).into_owned(),
                    EntryKind::Noop => "no-op".into(),
                    EntryKind::Members => {
                        let members = Membership::decode(&entry.data);
                        format!("[{}]", members.expect("the core wrote it"))
                    }
                })
                .collect();
            format!("append after {prev_index}: {} (commit {commit})", entries.join(", "))
        }
        Body::PreVote { last_index, last_term } => {
            format!("pre-vote? log ends at {last_index} of term {last_term}")
        }
        Body::Vote { last_index, last_term, transfer } => {
            let on_behalf = if *transfer { ", as the leader asked" } else { "" };
            format!("vote? log ends at {last_index} of term {last_term}{on_behalf}")
        }
        Body::PreVoteReply { granted } => {
            format!("pre-vote {}", if *granted { "granted" } else { "refused" })
        }
        Body::VoteReply { granted } => format!("vote {}", if *granted { "granted" } else { "refused" }),
        Body::AppendAccepted { matched } => format!("has up to {matched}"),
        Body::AppendRejected { rejected, hint_index, .. } => {
            format!("lacks {rejected}, perhaps equal up to {hint_index}")
        }
        Body::Heartbeat { commit, .. } => format!("heartbeat (commit {commit})"),
        Body::HeartbeatReply { .. } => "heartbeat heard".into(),
        Body::InstallSnapshot { snapshot, members } => format!("snapshot at {}: [{members}]", snapshot.index),
        Body::TimeoutNow => "take over".into(),
        Body::Refused { members_index } => format!("you are no member since {members_index}"),
    };
    format!("{} -> {} term {}: {what}", message.from, message.to, message.term)
}

fn deliver(network: &mut Network, out: &mut String) -> bool {
    let messages = std::mem::take(&mut network.messages);
    for message in &messages {
        let lost = network.cut.contains(&(message.from, message.to)) || !network.is_up(message.to);
        writeln!(out, "{}{}", shown(message), if lost { " (lost)" } else { "" }).unwrap();
    }
    let any = !messages.is_empty();
    for message in messages {
        network.deliver(message);
    }
    any
}

fn sync_all(network: &mut Network) {
    for id in network.ids() {
        if network.is_up(id) {
            network.sync(id, usize::MAX);
        }
    }
}

fn show(network: &Network, out: &mut String) {
    for (id, node) in &network.nodes {
        let line = match &node.raft {
            Some(raft) => {
                let status = raft.status();
                format!(
                    "{:?} in term {}, log up to {}, commit {}, {}",
                    status.role, status.term, status.last_index, status.committed, status.membership
                )
            }
            None if node.evicted => "gone".into(),
            None => "down".into(),
        };
        writeln!(out, "node {id}: {line}").unwrap();
    }
}

fn changes(words: &[&str]) -> Vec<MemberChange> {
    let change = |pair: &[&str]| {
        let id = pair[1].parse().expect("a node");
        match pair[0] {
            "add" => MemberChange::AddLearner { id, address: Bytes::new(), incarnation: 0 },
            "promote" => MemberChange::Promote { id },
            "remove" => MemberChange::Remove { id },
            other => panic!("no change is called {other}"),
        }
    };
    words.chunks(2).map(change).collect()
}

fn run(network: &mut Network, command: &str, out: &mut String) {
    let words: Vec<&str> = command.split(' ').collect();
    let id = || -> NodeId { words[1].parse().expect("a node") };
    let number = || -> u64 { words[2].parse().expect("a number") };
    match words[0] {
        "founded" => *network = Network::founded(id(), number(), 7, |_| ()),
        "tick" => (0..number()).for_each(|_| network.tick(id())),
        "elect" => network.elect_instead(id()),
        "sync" => network.sync(id(), usize::MAX),
        "deliver" => drop(deliver(network, out)),
        "settle" => {
            for _ in 0..GENERATIONS_MAX {
                sync_all(network);
                if !deliver(network, out) {
                    return;
                }
            }
            panic!("it does not settle:\n{out}");
        }
        "quiet" => network.settle(),
        "propose" if network.propose(id(), words[2]) => {}
        "propose" => writeln!(out, "not taken").unwrap(),
        "change" => {
            let result = network.raft(id()).change_members(&changes(&words[2..]));
            if let Err(error) = result {
                writeln!(out, "refused: {error}").unwrap();
            }
            network.drain(id());
        }
        "transfer" => {
            if let Err(error) = network.raft(id()).transfer_leadership(Some(number())) {
                writeln!(out, "refused: {error}").unwrap();
            }
            network.drain(id());
        }
        "isolate" => network.isolate(id()),
        "heal" => network.heal(),
        "crash" => network.crash(id(), usize::MAX),
        "wipe" => {
            network.disks_lost = true;
            network.wipe(id());
        }
        "restart" => network.restart(id()),
        "show" => show(network, out),
        other => panic!("no command is called {other}"),
    }
}

/// The file's text with every block's output as it is now.
fn replay(text: &str) -> String {
    let mut network = Network::founded(1, 1, 7, |_| ());
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").unwrap();
        if line == "----" {
            // The commands are what stands above, up to an empty line.
            let block = out.trim_end_matches("----\n").rsplit("\n\n").next().unwrap_or_default().to_owned();
            for command in block.lines().filter(|line| !line.starts_with('#')) {
                run(&mut network, command, &mut out);
            }
            for _ in lines.by_ref().take_while(|line| !line.is_empty()) {}
            out.push('\n');
        }
    }
    out.trim_end().to_owned() + "\n"
}

#[test]
fn every_transcript_is_what_happens() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let now = replay(&text);
        if env::var_os("UPDATE_TRANSCRIPTS").is_some() {
            fs::write(&path, &now).unwrap();
        } else if now != text {
            let line = now.lines().zip(text.lines()).position(|(now, text)| now != text);
            let at = line.unwrap_or_else(|| now.lines().count().min(text.lines().count()));
            panic!(
                "{}:{}: expected\n  {}\nand it is\n  {}",
                path.display(),
                at + 1,
                text.lines().nth(at).unwrap_or("the end"),
                now.lines().nth(at).unwrap_or("the end")
            );
        }
        files += 1;
    }
    assert!(files >= 4, "{files} transcripts");
}
