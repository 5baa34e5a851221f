//! Writers that keep a cluster busy and remember what they were promised.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Cluster, Redis, Reply, eventually};

/// The key that all writers count with.
const COUNTER: &str = "counter";
const WRITERS_PER_NODE: usize = 3;
const MGET_KEYS: usize = 500;
/// Between two attempts to connect, or to write while there is no leader.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A load that runs until it is stopped: several writers on each node.
///
/// Each writer numbers its rounds. In round i it sets a key of that round, sets its register to i, and counts with everybody else,
/// all in one pipeline.
pub struct Load {
    stopping: Arc<AtomicBool>,
    writers: Vec<Writer>,
}

struct Writer {
    node: u64,
    acknowledged: Arc<AtomicU64>,
    thread: JoinHandle<Journal>,
}

/// What one writer knows.
#[derive(Default)]
struct Journal {
    name: String,
    acknowledged: Vec<u64>,
    /// Refused with a promise that it was not executed.
    refused: Vec<u64>,
    uncertain: BTreeSet<u64>,
    register_acknowledged: u64,
    register_uncertain: BTreeSet<u64>,
    counted: Vec<i64>,
    counts_uncertain: usize,
}

impl Load {
    /// Starts the writers of all nodes.
    pub fn start(cluster: &Cluster) -> Load {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for node in cluster.ids() {
            for number in 0..WRITERS_PER_NODE {
                let (address, stopping) = (cluster.redis_address(node), stopping.clone());
                let acknowledged = Arc::new(AtomicU64::new(0));
                let count = acknowledged.clone();
                let thread =
                    thread::spawn(move || write(format!("{node}.{number}"), address, &stopping, &count));
                writers.push(Writer { node, acknowledged, thread });
            }
        }
        Load { stopping, writers }
    }

    /// Waits until each writer of these nodes has had `rounds` more rounds acknowledged; returns how long the slowest took.
    #[track_caller]
    pub fn wait_for_rounds(&self, nodes: &[u64], rounds: u64) -> Duration {
        let started = Instant::now();
        let of_nodes = || self.writers.iter().filter(|writer| nodes.contains(&writer.node));
        let goals: Vec<u64> =
            of_nodes().map(|writer| writer.acknowledged.load(Ordering::SeqCst) + rounds).collect();
        for (writer, goal) in of_nodes().zip(goals) {
            let what = format!("the writers of node {} go on", writer.node);
            eventually(&what, || (writer.acknowledged.load(Ordering::SeqCst) >= goal).then_some(()));
        }
        started.elapsed()
    }

    /// Stops the writers.
    #[track_caller]
    pub fn stop(self) -> Record {
        self.stopping.store(true, Ordering::SeqCst);
        let journals: Vec<Journal> =
            self.writers.into_iter().map(|writer| writer.thread.join().unwrap()).collect();
        let record = Record { journals };
        println!(
            "{} rounds acknowledged, {} refused, {} uncertain",
            record.sum(|journal| journal.acknowledged.len()),
            record.sum(|journal| journal.refused.len()),
            record.sum(|journal| journal.uncertain.len())
        );
        record
    }
}

fn write(name: String, address: SocketAddr, stopping: &AtomicBool, count: &AtomicU64) -> Journal {
    let mut journal = Journal { name, ..Journal::default() };
    let mut connection: Option<Redis> = None;
    let mut round = 0;
    while !stopping.load(Ordering::SeqCst) {
        let Some(redis) = &mut connection else {
            connection = Redis::connect(address).ok();
            if connection.is_none() {
                thread::sleep(RETRY_PAUSE);
            }
            continue;
        };
        round += 1;
        let value = round.to_string();
        let commands = [
            vec!["SET".into(), journal.key(round), value.clone()],
            vec!["SET".into(), journal.register(), value],
            vec!["INCR".into(), COUNTER.into()],
        ];
        let replies = redis.pipeline(&commands);
        if replies.is_err() {
            connection = None;
        }
        journal.note(round, &replies.unwrap_or_default());
        if journal.acknowledged.last() == Some(&round) {
            count.fetch_add(1, Ordering::SeqCst);
        } else {
            thread::sleep(RETRY_PAUSE);
        }
    }
    journal
}

enum Outcome {
    Done,
    NotDone,
    Uncertain,
}

fn outcome(reply: Option<&Reply>) -> Outcome {
    match reply {
        None => Outcome::Uncertain,
        Some(Reply::Error(text)) if text.starts_with("UNCERTAIN") => Outcome::Uncertain,
        Some(Reply::Error(text)) if text.starts_with("CLUSTERDOWN") => Outcome::NotDone,
        Some(Reply::Error(text)) => panic!("a write was refused: {text}"),
        Some(_) => Outcome::Done,
    }
}

impl Journal {
    fn key(&self, round: u64) -> String {
        format!("key:{}:{round}", self.name)
    }

    fn register(&self) -> String {
        format!("register:{}", self.name)
    }

    fn note(&mut self, round: u64, replies: &[Reply]) {
        match outcome(replies.first()) {
            Outcome::Done => self.acknowledged.push(round),
            Outcome::NotDone => self.refused.push(round),
            Outcome::Uncertain => drop(self.uncertain.insert(round)),
        }
        match outcome(replies.get(1)) {
            Outcome::Done => self.register_acknowledged = round,
            Outcome::NotDone => {}
            Outcome::Uncertain => drop(self.register_uncertain.insert(round)),
        }
        match outcome(replies.get(2)) {
            Outcome::Done => self.counted.push(replies[2].integer()),
            Outcome::NotDone => {}
            Outcome::Uncertain => self.counts_uncertain += 1,
        }
    }
}

/// What a load was promised.
pub struct Record {
    journals: Vec<Journal>,
}

impl Record {
    fn sum(&self, count: impl Fn(&Journal) -> usize) -> usize {
        self.journals.iter().map(count).sum()
    }

    /// How many rounds of one node's clients ended without their knowing what became of them.
    pub fn in_doubt(&self, node: u64) -> usize {
        let of_node = self.journals.iter().filter(|journal| journal.name.starts_with(&format!("{node}.")));
        of_node.map(|journal| journal.uncertain.len()).sum()
    }

    /// Checks through each of `nodes` that every acknowledged write is there, that none which was refused is, and that each
    /// count was counted once.
    #[track_caller]
    pub fn check(&self, cluster: &Cluster, nodes: &[u64]) {
        for node in nodes {
            let mut redis = cluster.redis(*node);
            for journal in &self.journals {
                journal.check(&mut redis, *node);
            }
            let counted: BTreeSet<i64> =
                self.journals.iter().flat_map(|journal| journal.counted.iter().copied()).collect();
            let acknowledged = self.sum(|journal| journal.counted.len());
            assert_eq!(counted.len(), acknowledged, "two clients were given the same count");
            let uncertain = self.sum(|journal| journal.counts_uncertain);
            let count: usize = match redis.call(&["GET", COUNTER]) {
                Reply::Nil => 0,
                count => count.text().parse().unwrap(),
            };
            assert!(
                (acknowledged..=acknowledged + uncertain).contains(&count),
                "node {node} counted {count}; {acknowledged} counts were acknowledged, {uncertain} are uncertain"
            );
        }
    }
}

impl Journal {
    #[track_caller]
    fn check(&self, redis: &mut Redis, node: u64) {
        let mut values = |rounds: &[u64]| -> Vec<Reply> {
            let mut values = Vec::new();
            for rounds in rounds.chunks(MGET_KEYS) {
                let keys = rounds.iter().map(|round| self.key(*round));
                match redis.call(&std::iter::once("MGET".to_owned()).chain(keys).collect::<Vec<_>>()) {
                    Reply::Array(replies) => values.extend(replies),
                    other => panic!("MGET through node {node}: {other:?}"),
                }
            }
            values
        };
        for (round, value) in self.acknowledged.iter().zip(values(&self.acknowledged)) {
            let key = self.key(*round);
            assert_eq!(
                value,
                Reply::bulk(round.to_string()),
                "node {node} lost {key}, which was acknowledged"
            );
        }
        for (round, value) in self.refused.iter().zip(values(&self.refused)) {
            assert_eq!(value, Reply::Nil, "node {node} has {}, which was refused", self.key(*round));
        }
        let register = match redis.call(&["GET", &self.register()]) {
            Reply::Nil => 0,
            value => value.text().parse().unwrap(),
        };
        assert!(
            register == self.register_acknowledged || self.register_uncertain.contains(&register),
            "node {node}: {} is {register}, but {} was acknowledged last",
            self.register(),
            self.register_acknowledged
        );
    }
}
