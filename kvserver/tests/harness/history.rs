//! Clients that read and write a few registers through any node, and remember when each operation was called and returned, so
//! that the whole can be checked for linearizability.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::linearizability::{Entry, Model, Verdict, check};
use super::{Redis, Reply, eventually};

const CLIENTS: usize = 6;
/// So few that operations on one of them overlap all the time.
const REGISTERS: u64 = 6;
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Beyond any history that these tests make.
const SEARCH_STEPS_MAX: u64 = 50_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    /// Values are never repeated.
    Write(u64),
    Read(Option<u64>),
}

struct Register;

impl Model for Register {
    type State = Option<u64>;
    type Operation = Operation;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn step(&self, state: &Option<u64>, operation: &Operation) -> Option<Option<u64>> {
        match operation {
            Operation::Write(value) => Some(Some(*value)),
            Operation::Read(seen) => (seen == state).then_some(*state),
        }
    }
}

type Histories = BTreeMap<u64, Vec<Entry<Operation>>>;

/// Clients at work.
pub struct Clients {
    nodes: Arc<Mutex<Vec<SocketAddr>>>,
    stopping: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Histories>>,
}

impl Clients {
    /// Starts clients of these nodes.
    pub fn start(nodes: &[SocketAddr]) -> Clients {
        let nodes = Arc::new(Mutex::new(nodes.to_vec()));
        let (stopping, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let started = Instant::now();
        let client = |number: usize| {
            let (nodes, stopping, done) = (nodes.clone(), stopping.clone(), done.clone());
            thread::spawn(move || work(number as u64, &nodes, started, &stopping, &done))
        };
        let threads = (0..CLIENTS).map(client).collect();
        Clients { nodes, stopping, done, threads }
    }

    /// From now on the clients know these nodes; who is connected to another one changes over.
    pub fn use_nodes(&self, nodes: &[SocketAddr]) {
        *self.nodes.lock().unwrap() = nodes.to_vec();
    }

    /// Waits until so many more operations have succeeded.
    #[track_caller]
    pub fn wait_for_operations(&self, more: u64) {
        let goal = self.done.load(Ordering::SeqCst) + more;
        eventually("the clients get on", || (self.done.load(Ordering::SeqCst) >= goal).then_some(()));
    }

    /// Stops the clients and checks what they have seen. Returns how many operations have succeeded.
    #[track_caller]
    pub fn check(self) -> u64 {
        self.stopping.store(true, Ordering::SeqCst);
        let mut histories = Histories::new();
        for thread in self.threads {
            for (register, operations) in thread.join().unwrap() {
                histories.entry(register).or_default().extend(operations);
            }
        }
        for (register, history) in histories {
            match check(&Register, &history, SEARCH_STEPS_MAX) {
                Verdict::Linearizable => {}
                Verdict::Undecided => panic!("the history of register {register} was too long to check"),
                Verdict::Illegal { longest } => {
                    let rest: Vec<_> = (0..history.len())
                        .filter(|at| !longest.contains(at))
                        .map(|at| &history[at])
                        .collect();
                    panic!(
                        "register {register}: no order explains these: {:#?}",
                        &rest[..rest.len().min(20)]
                    );
                }
            }
        }
        self.done.load(Ordering::SeqCst)
    }
}

fn work(
    number: u64,
    nodes: &Mutex<Vec<SocketAddr>>,
    started: Instant,
    stopping: &AtomicBool,
    done: &AtomicU64,
) -> Histories {
    let now = || started.elapsed().as_nanos() as u64;
    let mut histories = Histories::new();
    let mut connection: Option<(SocketAddr, Redis)> = None;
    for round in 1.. {
        if stopping.load(Ordering::SeqCst) {
            break;
        }
        let known = nodes.lock().unwrap().clone();
        connection = connection.filter(|(address, _)| known.contains(address));
        if connection.is_none() {
            let address = known[(number + round) as usize % known.len()];
            connection = Redis::connect(address).ok().map(|redis| (address, redis));
        }
        let Some((_, redis)) = &mut connection else {
            thread::sleep(RETRY_PAUSE);
            continue;
        };
        let register = (number + round) % REGISTERS;
        let key = format!("history:{register}");
        let writes = (number + round / REGISTERS).is_multiple_of(2);
        let value = round * CLIENTS as u64 + number;
        let command = match writes {
            true => vec!["SET".into(), key, value.to_string()],
            false => vec!["GET".into(), key],
        };
        let called = now();
        let reply = redis.pipeline(&[command]).ok().and_then(|replies| replies.into_iter().next());
        let returned = now();
        let operation = match (&reply, writes) {
            (Some(Reply::Error(text)), _) if text.starts_with("CLUSTERDOWN") => None,
            (None | Some(Reply::Error(_)), false) => None,
            (None | Some(Reply::Error(_)), true) => Some((Operation::Write(value), None)),
            (Some(_), true) => Some((Operation::Write(value), Some(returned))),
            (Some(Reply::Nil), false) => Some((Operation::Read(None), Some(returned))),
            (Some(seen), false) => {
                Some((Operation::Read(Some(seen.text().parse().unwrap())), Some(returned)))
            }
        };
        if let Some((operation, returned)) = operation {
            done.fetch_add(u64::from(returned.is_some()), Ordering::SeqCst);
            histories.entry(register).or_default().push(Entry { operation, called, returned });
        }
        if !matches!(&reply, Some(reply) if !matches!(reply, Reply::Error(_))) {
            connection = None;
            thread::sleep(RETRY_PAUSE);
        }
        // Short enough to leave the machine to the cluster, and the history to the checker.
        thread::sleep(Duration::from_millis(15));
    }
    histories
}
