//! The latest changes of a machine, for those who watch keys.
//!
//! Every replica makes the same changes with the same revisions, so a watcher that has seen everything up to a revision can go on from there at
//! any node: nothing is lost, repeated or out of order. What a node no longer has, because it is too old or because the node has
//! started from a snapshot, it refuses to skip: the watcher is told, and reads the keys again.
//!
//! Whoever applies entries records what they have changed; anybody reads. It is no part of the replicated state, which shares nothing: see
//! [`KvMachine::take_changes`](crate::machine::KvMachine::take_changes). A watcher is woken only by changes that it asks for, so a thousand of
//! them cost a write a thousand comparisons and not a thousand wake-ups.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::store::Change;

/// A page ends when its changes have more bytes than this.
const PAGE_BYTES: usize = 1024 * 1024;

/// Which changes a watcher asks for. Those that concern all keys are always among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// All.
    Everything,
    /// Those of one key.
    Key(Vec<u8>),
    /// Those of the keys that begin with this.
    Prefix(Vec<u8>),
}

impl Filter {
    /// Whether a change is asked for.
    pub fn matches(&self, change: &Change) -> bool {
        change.key().is_none_or(|key| match self {
            Filter::Everything => true,
            Filter::Key(wanted) => key == wanted,
            Filter::Prefix(prefix) => key.starts_with(prefix),
        })
    }
}

/// Some changes that follow each other, of those asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The watcher has now seen everything up to this revision.
    pub seen: u64,
    /// The changes, in order.
    pub changes: Vec<Change>,
}

/// Changes that follow the revision a watcher has seen are no longer here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "changes up to revision {first_after} are no longer kept, and {seen} was the last seen; read the keys again and watch from the revision of that"
)]
pub struct Compacted {
    /// What the watcher has seen.
    pub seen: u64,
    /// The first kept change follows this revision.
    pub first_after: u64,
}

/// The latest changes, up to a number of bytes.
#[derive(Debug)]
pub struct History {
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Invariant: revisions without gaps, the first one more than `first_after`.
    changes: VecDeque<Change>,
    bytes: usize,
    first_after: u64,
    watchers: Vec<Watcher>,
    next_watcher: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct Watcher {
    id: u64,
    filter: Filter,
    thread: Thread,
}

impl State {
    fn last(&self) -> u64 {
        self.first_after + self.changes.len() as u64
    }

    /// What follows `seen`, as far as it is here, but for changes that are not asked for.
    fn read(&self, seen: u64, filter: &Filter, count_max: usize) -> Result<Page, Compacted> {
        if seen < self.first_after {
            return Err(Compacted { seen, first_after: self.first_after });
        }
        let mut page = Page { seen, changes: Vec::new() };
        let mut bytes = 0;
        let skipped = usize::try_from(seen - self.first_after).unwrap_or(usize::MAX).min(self.changes.len());
        for change in self.changes.range(skipped..) {
            if page.changes.len() >= count_max || bytes > PAGE_BYTES {
                return Ok(page);
            }
            page.seen = change.revision;
            if filter.matches(change) {
                bytes += change.bytes();
                page.changes.push(change.clone());
            }
        }
        Ok(page)
    }
}

impl History {
    /// A history without changes that keeps `bytes_max` bytes of them, about.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }

    /// Adds changes that follow those recorded before, and wakes those who wait for one of them.
    pub fn record(&self, changes: impl Iterator<Item = Change>) {
        let mut state = self.lock();
        let state = &mut *state;
        for change in changes {
            debug_assert_eq!(change.revision, state.last() + 1, "revisions have no gaps");
            state.watchers.retain(|watcher| {
                let is_wanted = watcher.filter.matches(&change);
                if is_wanted {
                    watcher.thread.unpark();
                }
                !is_wanted
            });
            state.bytes += change.bytes();
            state.changes.push_back(change);
        }
        while state.bytes > self.bytes_max
            && let Some(oldest) = state.changes.pop_front()
        {
            state.bytes -= oldest.bytes();
            state.first_after = oldest.revision;
        }
    }

    /// Forgets all changes: the state is another one now, after `revision`.
    pub fn restart(&self, revision: u64) {
        let mut state = self.lock();
        state.changes.clear();
        (state.bytes, state.first_after) = (0, revision);
        wake_all(&mut state);
    }

    /// Ends every wait, now and later. The node stops.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        wake_all(&mut state);
    }

    /// The number of the last change.
    pub fn revision(&self) -> u64 {
        self.lock().last()
    }

    /// How many calls wait for changes.
    pub fn watchers(&self) -> usize {
        self.lock().watchers.len()
    }

    /// The changes that follow revision `seen` and are asked for, `count_max` at most, and not much more than a
    /// mebibyte; waits for one if there is none yet. An empty page after
    /// `wait` says how far the watcher has come.
    ///
    /// # Errors
    /// [`Compacted`] if some of them are no longer here.
    ///
    /// # Blocking
    /// Up to `wait`, and not after [`History::close`].
    pub fn read(
        &self,
        seen: u64,
        filter: &Filter,
        count_max: usize,
        wait: Duration,
    ) -> Result<Page, Compacted> {
        let started = Instant::now();
        let mut seen = seen;
        loop {
            let watcher = {
                let mut state = self.lock();
                let page = state.read(seen, filter, count_max)?;
                if !page.changes.is_empty() || state.is_closed || started.elapsed() >= wait {
                    return Ok(page);
                }
                // What was not asked for is not looked at again.
                seen = page.seen;
                let id = state.next_watcher;
                state.next_watcher += 1;
                state.watchers.push(Watcher { id, filter: filter.clone(), thread: thread::current() });
                id
            };
            thread::park_timeout(wait.saturating_sub(started.elapsed()));
            self.lock().watchers.retain(|other| other.id != watcher);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake_all(state: &mut State) {
    state.watchers.drain(..).for_each(|watcher| watcher.thread.unpark());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::ChangeKind;

    fn removed(revision: u64, key: &str) -> Change {
        Change { revision, kind: ChangeKind::Removed { key: key.as_bytes().into() } }
    }

    fn revisions(page: &Page) -> Vec<u64> {
        page.changes.iter().map(|change| change.revision).collect()
    }

    #[test]
    fn a_page_has_what_was_asked_for_and_says_how_far_it_goes() {
        let history = History::new(usize::MAX);
        history.record((1..=6).map(|revision| removed(revision, ["a", "ab", "b"][revision as usize % 3])));
        let read = |seen, filter: &Filter, count| history.read(seen, filter, count, Duration::ZERO).unwrap();
        let page = read(0, &Filter::Everything, 4);
        assert_eq!((revisions(&page), page.seen), (vec![1, 2, 3, 4], 4));
        let page = read(4, &Filter::Key(b"a".to_vec()), 4);
        assert_eq!((revisions(&page), page.seen), (vec![6], 6));
        let page = read(0, &Filter::Prefix(b"a".to_vec()), 100);
        assert_eq!((revisions(&page), page.seen), (vec![1, 3, 4, 6], 6));
        let page = read(0, &Filter::Key(b"none".to_vec()), 1);
        assert_eq!((revisions(&page), page.seen), (vec![], 6));
        let page = read(9, &Filter::Everything, 1);
        assert_eq!((revisions(&page), page.seen), (vec![], 9), "another node was ahead of this one");
        history.record([Change { revision: 7, kind: ChangeKind::Cleared }].into_iter());
        assert_eq!(revisions(&read(6, &Filter::Key(b"none".to_vec()), 9)), [7]);
    }

    #[test]
    fn what_is_no_longer_kept_is_not_skipped() {
        let history = History::new(3 * removed(1, "k").bytes());
        history.record((1..=10).map(|revision| removed(revision, "k")));
        let read = |seen| history.read(seen, &Filter::Everything, 100, Duration::ZERO);
        assert_eq!(read(6), Err(Compacted { seen: 6, first_after: 7 }));
        assert_eq!(revisions(&read(7).unwrap()), [8, 9, 10]);
        history.restart(20);
        assert_eq!(read(10), Err(Compacted { seen: 10, first_after: 20 }));
        assert_eq!(history.revision(), 20);
        history.record([removed(21, "k")].into_iter());
        assert_eq!(revisions(&read(20).unwrap()), [21]);
    }

    #[test]
    fn a_watcher_is_woken_by_what_it_asks_for_and_by_the_end() {
        let history = Arc::new(History::new(usize::MAX));
        let watch = |key: &str, seen| {
            let (history, filter) = (Arc::clone(&history), Filter::Key(key.as_bytes().to_vec()));
            thread::spawn(move || history.read(seen, &filter, 10, Duration::from_secs(60)).unwrap())
        };
        let (a, b) = (watch("a", 0), watch("b", 0));
        while history.watchers() != 2 {
            thread::yield_now();
        }
        history.record([removed(1, "c"), removed(2, "a")].into_iter());
        let page = a.join().unwrap();
        assert_eq!((revisions(&page), page.seen), (vec![2], 2));
        assert_eq!(history.watchers(), 1);
        history.close();
        assert_eq!(b.join().unwrap(), Page { seen: 2, changes: vec![] });
        assert_eq!(watch("b", 2).join().unwrap(), Page { seen: 2, changes: vec![] });
    }
}
