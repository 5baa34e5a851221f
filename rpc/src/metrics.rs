//! Counters of what happened, cheap enough to be always on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::error::CloseReason;

/// Counts one event.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts several, or bytes.
pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// What a server, a client, or several that share it, have done so far. All counters only grow; each may be
/// read at any time, and two read one after the other need not be of one moment.
#[derive(Debug, Default)]
pub struct RpcMetrics {
    /// Connections that were established, hello included.
    pub connections_opened: AtomicU64,
    /// Connections and attempts to connect that ended, by the name of the [`CloseReason`]. Too rare to need
    /// atomics.
    closed: Mutex<BTreeMap<&'static str, u64>>,
    /// Frames read, heartbeats included.
    pub frames_in: AtomicU64,
    /// Frames written, heartbeats included.
    pub frames_out: AtomicU64,
    /// Bytes read in frames, headers included.
    pub bytes_in: AtomicU64,
    /// Bytes written in frames, headers included.
    pub bytes_out: AtomicU64,
    /// Writes to connections; `frames_out / writes` is how many frames went out together.
    pub writes: AtomicU64,
    /// Requests that a server answered.
    pub requests_served: AtomicU64,
    /// Those of them that it answered with an error.
    pub requests_failed: AtomicU64,
    /// Handlers that panicked.
    pub handler_panics: AtomicU64,
    /// Calls that a client began.
    pub calls: AtomicU64,
    /// Calls that had no answer when their deadline passed.
    pub calls_expired: AtomicU64,
    /// Answers that came when nobody waited for them any more.
    pub answers_late: AtomicU64,
    /// One-way messages refused because the queue was full or the peer unavailable.
    pub notifications_refused: AtomicU64,
}

impl RpcMetrics {
    /// Connections and attempts that ended for this kind of reason; the numbers inside it do not matter.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.lock_closed().get(reason.name()).copied().unwrap_or(0)
    }

    /// Connections and attempts that ended, by the name of the reason, for an exporter.
    pub fn closed_by_reason(&self) -> Vec<(&'static str, u64)> {
        self.lock_closed().iter().map(|(name, n)| (*name, *n)).collect()
    }

    pub(crate) fn count_closed(&self, reason: CloseReason) {
        *self.lock_closed().entry(reason.name()).or_default() += 1;
    }

    fn lock_closed(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.closed.lock().expect("nothing panics while it holds the counters")
    }

    /// The counters by name, for an exporter.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        [
            ("connections_opened", &self.connections_opened),
            ("frames_in", &self.frames_in),
            ("frames_out", &self.frames_out),
            ("bytes_in", &self.bytes_in),
            ("bytes_out", &self.bytes_out),
            ("writes", &self.writes),
            ("requests_served", &self.requests_served),
            ("requests_failed", &self.requests_failed),
            ("handler_panics", &self.handler_panics),
            ("calls", &self.calls),
            ("calls_expired", &self.calls_expired),
            ("answers_late", &self.answers_late),
            ("notifications_refused", &self.notifications_refused),
        ]
        .map(|(name, counter)| (name, counter.load(Ordering::Relaxed)))
        .to_vec()
    }
}
