//! The state machine as Raft drives it, and the figures about it that others may read without asking.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use squall_raft::core::types::{Index, Term};
use squall_raft::group::{SnapshotView, StateMachine};

use super::check::Check;
use crate::history::History;
use crate::machine::{ApplyError, KvMachine, MachineOptions, MachineStats, MachineView};
use crate::resp::Reply;

/// A linearizable read of several commands, as of the reader's time.
pub(super) struct Query {
    pub now_ms: u64,
    pub commands: Vec<Vec<Bytes>>,
}

/// Replies in the order of the commands, or why none was executed.
pub(super) type Output = Result<Vec<Reply>, ApplyError>;

/// Figures that the applier publishes after each entry.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    keys: AtomicU64,
    expiring_keys: AtomicU64,
    store_bytes: AtomicU64,
    sessions: AtomicU64,
    log_time_ms: AtomicU64,
    /// From when on the machine wants a tick; `u64::MAX` if it does not.
    tick_due_ms: AtomicU64,
    /// The latest sum over the state.
    check: Mutex<Option<Check>>,
}

impl Gauges {
    pub fn stats(&self) -> MachineStats {
        MachineStats {
            keys: self.keys.load(Ordering::Relaxed),
            expiring_keys: self.expiring_keys.load(Ordering::Relaxed),
            store_bytes: self.store_bytes.load(Ordering::Relaxed),
            sessions: self.sessions.load(Ordering::Relaxed),
            log_time_ms: self.log_time_ms.load(Ordering::Relaxed),
        }
    }

    /// The memory accounted to keys and values, in bytes.
    pub fn store_bytes(&self) -> u64 {
        self.store_bytes.load(Ordering::Relaxed)
    }

    /// The latest sum over the state that was asked for, if it is done.
    pub fn check(&self) -> Option<Check> {
        *self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether expired or cleared keys wait to be removed by an entry.
    pub fn is_tick_due(&self, now_ms: u64) -> bool {
        self.tick_due_ms.load(Ordering::Relaxed) <= now_ms
    }

    fn publish(&self, machine: &KvMachine) {
        let stats = machine.stats(0);
        self.keys.store(stats.keys, Ordering::Relaxed);
        self.expiring_keys.store(stats.expiring_keys, Ordering::Relaxed);
        self.store_bytes.store(stats.store_bytes, Ordering::Relaxed);
        self.sessions.store(stats.sessions, Ordering::Relaxed);
        self.log_time_ms.store(stats.log_time_ms, Ordering::Relaxed);
        self.tick_due_ms.store(machine.tick_due_ms().unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// [`KvMachine`] behind Raft's contract.
pub(super) struct ReplicatedMachine {
    machine: KvMachine,
    gauges: Arc<Gauges>,
    history: Arc<History>,
}

impl ReplicatedMachine {
    pub fn new(options: MachineOptions, gauges: Arc<Gauges>, history: Arc<History>) -> Self {
        let machine = KvMachine::new(options);
        gauges.publish(&machine);
        Self { machine, gauges, history }
    }
}

impl ReplicatedMachine {
    /// Of the state as it is now, while entries are applied.
    fn sum_up(&self, number: u64, index: Index) {
        let (view, gauges) = (self.machine.view(), Arc::clone(&self.gauges));
        let started = crate::spawn("check", move || {
            let check = Check::of(number, index, view);
            *gauges.check.lock().unwrap_or_else(PoisonError::into_inner) = Some(check);
        });
        if let Err(error) = started {
            log::warn!("the state is not summed up: {error}");
        }
    }
}

impl StateMachine for ReplicatedMachine {
    type Query = Query;
    type Output = Output;

    fn apply(&mut self, index: Index, _: Term, command: &Bytes) -> Output {
        let output = self.machine.apply(command);
        self.history.record(self.machine.take_changes());
        if let Some(number) = self.machine.take_check() {
            self.sum_up(number, index);
        }
        self.gauges.publish(&self.machine);
        output
    }

    fn query(&mut self, query: Query) -> Output {
        Ok(self.machine.query(query.now_ms, &query.commands))
    }

    fn snapshot(&mut self) -> Box<dyn SnapshotView> {
        Box::new(View(self.machine.view()))
    }

    fn restore(&mut self, mut content: &mut dyn Read) -> io::Result<()> {
        self.machine.restore(&mut content).map_err(io::Error::other)?;
        self.gauges.publish(&self.machine);
        self.history.restart(self.machine.revision());
        Ok(())
    }
}

struct View(MachineView);

impl SnapshotView for View {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        self.0.write_snapshot(out)
    }
}
