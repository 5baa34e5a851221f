//! The clients connected to one node, as `CLIENT LIST` shows them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Protocol;

/// The connected clients of one node.
#[derive(Debug, Default)]
pub struct Clients {
    connected: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// How many clients ever connected; also the latest one's id.
    total: AtomicU64,
}

/// What is known about one client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    peer: SocketAddr,
    local: SocketAddr,
    connected_at: Instant,
    said: Mutex<Said>,
}

/// What a client told about itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    pub(super) name: String,
    pub(super) library_name: String,
    pub(super) library_version: String,
    pub(super) protocol: Protocol,
}

impl Clients {
    /// How many clients are connected.
    pub fn connected(&self) -> usize {
        lock(&self.connected).len()
    }

    /// How many clients ever connected.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self, peer: SocketAddr, local: SocketAddr) -> Registration<'_> {
        let id = self.total.fetch_add(1, Ordering::Relaxed) + 1;
        let client = Arc::new(Client {
            id,
            peer,
            local,
            connected_at: Instant::now(),
            said: Mutex::new(Said::default()),
        });
        lock(&self.connected).insert(id, client.clone());
        Registration { clients: self, client }
    }

    /// One line for each client.
    pub(super) fn list(&self) -> String {
        let clients: Vec<Arc<Client>> = lock(&self.connected).values().cloned().collect();
        clients.iter().map(|client| client.describe()).collect()
    }
}

impl Client {
    pub(super) fn said(&self) -> MutexGuard<'_, Said> {
        lock(&self.said)
    }

    /// The line of `CLIENT LIST`, with the fields of Redis that mean something here.
    pub(super) fn describe(&self) -> String {
        let said = self.said().clone();
        let resp = match said.protocol {
            Protocol::Resp2 => 2,
            Protocol::Resp3 => 3,
        };
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            line,
            "id={} addr={} laddr={} name={} age={} flags=N db=0 user=default lib-name={} lib-ver={} resp={resp}",
            self.id,
            self.peer,
            self.local,
            said.name,
            self.connected_at.elapsed().as_secs(),
            said.library_name,
            said.library_version,
        );
        line
    }
}

/// Keeps a client in the list until dropped.
pub(super) struct Registration<'a> {
    clients: &'a Clients,
    pub(super) client: Arc<Client>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        lock(&self.clients.connected).remove(&self.client.id);
    }
}

/// The guarded values stay consistent at every step, so a panic elsewhere does not make them unusable.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
