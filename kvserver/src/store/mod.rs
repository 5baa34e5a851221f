//! The keys and values of one node, in memory.
//!
//! **Order.** Every key has a position, a keyed hash of 48 bits (see `hash.rs`), and all iteration goes by
//! position and then by key. The order is therefore the same on every replica and independent of history, and
//! a scan cursor is nothing but the position to go on from: a key present throughout a scan is returned
//! exactly once, no matter what is added, removed or restarted meanwhile.
//!
//! **Views.** The positions are cut into 16,384 buckets, each a sorted vector behind an [`Arc`], of records
//! behind `Arc`s. [`Store::view`] clones the bucket pointers; later changes copy the bucket (pointers only)
//! and the record they touch, once. So a snapshot can be written by another activity while changes go on.
//!
//! **Ranges.** The keys alone are also kept in the order of their bytes, for ranges and prefixes. Values are looked up by position.
//!
//! **Versions.** Every change has a number, the store's revision after it, and a record's version is the number of the last change to
//! it. What changed is noted until [`Store::take_changes`], for those who watch.
//!
//! **Time.** The store has no clock. A record past its expiry is invisible to every operation that is told
//! such a time, and stays in memory until [`Store::purge_expired`]; which records are there at all is a
//! function of the calls made, so replicas that apply the same log hold the same records.

mod change;
pub(crate) mod glob;
pub(crate) mod hash;
mod snapshot;

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

pub use change::{Change, ChangeKind};
pub use snapshot::SnapshotError;

/// Buckets take the upper bits of a position.
const BUCKET_BITS: u32 = 14;
const BUCKETS: usize = 1 << BUCKET_BITS;

/// How many records that a clear has taken out are freed at a time, about.
const FREED_RECORDS_MAX: usize = 1024;

/// What a record is counted for beside its key and value: its place, its header, and the allocator's share.
const RECORD_OVERHEAD_BYTES: u64 = 160;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    key: Arc<[u8]>,
    value: Bytes,
    expires_at_ms: Option<u64>,
    version: u64,
}

impl Record {
    /// The key.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The value.
    pub fn value(&self) -> &Bytes {
        &self.value
    }

    /// When the record expires, in milliseconds since the Unix epoch.
    pub fn expires_at_ms(&self) -> Option<u64> {
        self.expires_at_ms
    }

    /// The revision of the last change to it, at least 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the record is visible at `now_ms`.
    fn is_live(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_none_or(|expires_at_ms| now_ms < expires_at_ms)
    }

    fn bytes(&self) -> u64 {
        self.key.len() as u64 + self.value.len() as u64 + RECORD_OVERHEAD_BYTES
    }
}

#[derive(Clone, Debug)]
struct Slot {
    position: u64,
    record: Arc<Record>,
}

/// Some records next to each other, to be shared with views. An empty one costs neither memory nor, in a view, a counted reference: most
/// are empty in a small store.
///
/// Invariant: sorted by position, then key; no key twice.
#[derive(Clone, Debug, Default)]
struct Bucket(Option<Arc<Vec<Slot>>>);

impl Bucket {
    /// For a change: copies the pointers if a view has them, too.
    fn make_mut(&mut self) -> &mut Vec<Slot> {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}

impl std::ops::Deref for Bucket {
    type Target = [Slot];

    fn deref(&self) -> &[Slot] {
        self.0.as_ref().map_or(&[], |slots| slots.as_slice())
    }
}

/// One page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// Where to go on; 0 when the scan is complete.
    pub cursor: u64,
    /// The keys found.
    pub keys: Vec<Bytes>,
}

/// Keys, values and expiry times.
#[derive(Debug)]
pub struct Store {
    buckets: Vec<Bucket>,
    hash_key: u128,
    len: usize,
    /// Invariant: the sum of [`Record::bytes`] over all records.
    bytes: u64,
    /// Invariant: exactly the records with an expiry, by time and key.
    expiries: BTreeSet<(u64, Arc<[u8]>)>,
    /// Invariant: the keys of all records.
    keys: BTreeSet<Arc<[u8]>>,
    /// How many changes there have been.
    revision: u64,
    /// Those that nobody has taken yet.
    changes: Vec<Change>,
    /// The check that was asked for last, and that nobody has taken yet.
    check: Option<u64>,
    cleared: Cleared,
}

/// What was taken out by [`Store::clear`]. Freeing a million records at once would stop everything for a
/// second.
#[derive(Debug, Default)]
struct Cleared {
    buckets: Vec<Bucket>,
    expiries: Vec<BTreeSet<(u64, Arc<[u8]>)>>,
    keys: Vec<BTreeSet<Arc<[u8]>>>,
}

impl Store {
    /// An empty store. All replicas of a cluster must use the same `hash_key`, and clients should not know
    /// it.
    pub fn new(hash_key: u128) -> Self {
        Self {
            buckets: vec![Bucket::default(); BUCKETS],
            hash_key,
            len: 0,
            bytes: 0,
            expiries: BTreeSet::new(),
            keys: BTreeSet::new(),
            revision: 0,
            changes: Vec::new(),
            check: None,
            cleared: Cleared::default(),
        }
    }

    /// How many records are visible at `now_ms`. Takes time proportional to those expired but not yet purged.
    pub fn len(&self, now_ms: u64) -> usize {
        self.len - self.expiries.iter().take_while(|(expires_at_ms, _)| *expires_at_ms <= now_ms).count()
    }

    /// Whether no record is visible at `now_ms`.
    pub fn is_empty(&self, now_ms: u64) -> bool {
        self.len(now_ms) == 0
    }

    /// The memory accounted to the records, in bytes: keys, values, and 160 bytes for each record.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many records have an expiry.
    pub fn expiring_len(&self) -> usize {
        self.expiries.len()
    }

    /// When the next record expires or, if in the past, since when one waits to be purged.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(expires_at_ms, _)| *expires_at_ms)
    }

    /// The record of `key`, if visible at `now_ms`.
    pub fn get(&self, key: &[u8], now_ms: u64) -> Option<&Record> {
        let (bucket, index) = self.find(hash::position(self.hash_key, key), key);
        let record = &self.buckets[bucket][index.ok()?].record;
        record.is_live(now_ms).then_some(record)
    }

    /// Sets `key` to a copy of `value`, replacing what was there.
    ///
    /// It is a copy because arguments are slices of whole requests and log entries, which a small value would
    /// otherwise keep in memory as long as it lives.
    pub fn set(&mut self, key: &[u8], value: &[u8], expires_at_ms: Option<u64>) {
        let value = Bytes::copy_from_slice(value);
        let version = self.revision + 1;
        let (key, is_new) = self.insert(key, value.clone(), expires_at_ms, version);
        if is_new {
            self.keys.insert(key.clone());
        }
        self.note(ChangeKind::Set { key, value, expires_at_ms });
    }

    /// Appends `suffix` to the value of the record of `key`, keeping its expiry, and returns the new length;
    /// `None` if no such record is in memory.
    pub fn append(&mut self, key: &[u8], suffix: &[u8]) -> Option<usize> {
        let version = self.revision + 1;
        let record = self.record_mut(key)?;
        record.version = version;
        let key = record.key.clone();
        // The value grows in place unless a view or a reply still holds it.
        let mut value = std::mem::take(&mut record.value).try_into_mut().unwrap_or_else(|shared| {
            let mut copy = BytesMut::with_capacity(shared.len() + suffix.len());
            copy.extend_from_slice(&shared);
            copy
        });
        value.extend_from_slice(suffix);
        record.value = value.freeze();
        let length = record.value.len();
        self.bytes += suffix.len() as u64;
        self.note(ChangeKind::Appended { key, suffix: Bytes::copy_from_slice(suffix) });
        Some(length)
    }

    /// Changes when the record of `key` expires; does nothing if there is none in memory.
    pub fn set_expiry(&mut self, key: &[u8], expires_at_ms: Option<u64>) {
        let version = self.revision + 1;
        let Some(record) = self.record_mut(key) else { return };
        record.version = version;
        let previous = std::mem::replace(&mut record.expires_at_ms, expires_at_ms);
        let key = record.key.clone();
        if let Some(previous) = previous {
            self.expiries.remove(&(previous, key.clone()));
        }
        if let Some(expires_at_ms) = expires_at_ms {
            self.expiries.insert((expires_at_ms, key.clone()));
        }
        self.note(ChangeKind::Expiry { key, expires_at_ms });
    }

    /// Removes the record of `key`, whether visible at `now_ms` or not, and returns it.
    pub fn remove(&mut self, key: &[u8], now_ms: u64) -> Option<Arc<Record>> {
        let record = self.take_out(key)?;
        let key = record.key.clone();
        self.note(match record.is_live(now_ms) {
            true => ChangeKind::Removed { key },
            false => ChangeKind::Expired { key },
        });
        Some(record)
    }

    fn take_out(&mut self, key: &[u8]) -> Option<Arc<Record>> {
        let (bucket, index) = self.find(hash::position(self.hash_key, key), key);
        let record = self.buckets[bucket].make_mut().remove(index.ok()?).record;
        self.len -= 1;
        self.bytes -= record.bytes();
        if let Some(expires_at_ms) = record.expires_at_ms {
            self.expiries.remove(&(expires_at_ms, record.key.clone()));
        }
        self.keys.remove(&record.key);
        Some(record)
    }

    /// The number of the last change; 0 before the first.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What has changed since this was called last, in order.
    pub fn take_changes(&mut self) -> std::vec::Drain<'_, Change> {
        self.changes.drain(..)
    }

    /// Asks whoever applies entries to sum up the state as it is then, under this number.
    pub fn request_check(&mut self, number: u64) {
        self.check = Some(number);
    }

    /// The number of the check that was asked for since this was called last, if any.
    pub fn take_check(&mut self) -> Option<u64> {
        self.check.take()
    }

    fn note(&mut self, kind: ChangeKind) {
        self.revision += 1;
        self.changes.push(Change { revision: self.revision, kind });
    }

    /// Removes all records. Their memory is freed by later calls of [`Store::free_cleared`].
    pub fn clear(&mut self) {
        let mut cleared = std::mem::take(&mut self.cleared);
        let new = Self {
            revision: self.revision,
            changes: std::mem::take(&mut self.changes),
            check: self.check,
            ..Self::new(self.hash_key)
        };
        let old = std::mem::replace(self, new);
        cleared.buckets.extend(old.buckets.into_iter().filter(|bucket| !bucket.is_empty()));
        if !old.expiries.is_empty() {
            cleared.expiries.push(old.expiries);
        }
        if !old.keys.is_empty() {
            cleared.keys.push(old.keys);
        }
        self.cleared = cleared;
        self.note(ChangeKind::Cleared);
    }

    /// Whether there is memory for [`Store::free_cleared`] to free.
    pub fn has_cleared(&self) -> bool {
        let Cleared { buckets, expiries, keys } = &self.cleared;
        !buckets.is_empty() || !expiries.is_empty() || !keys.is_empty()
    }

    /// Frees the memory of about a thousand records that were cleared.
    pub fn free_cleared(&mut self) {
        let mut freed = 0;
        while freed < FREED_RECORDS_MAX
            && let Some(bucket) = self.cleared.buckets.pop()
        {
            freed += bucket.len();
        }
        free_some(&mut self.cleared.expiries);
        free_some(&mut self.cleared.keys);
    }

    /// Removes up to `records_max` records that have expired at `now_ms`, the longest expired first.
    pub fn purge_expired(&mut self, now_ms: u64, records_max: usize) -> usize {
        for purged in 0..records_max {
            let Some((_, key)) = self.expiries.first().filter(|(expires_at_ms, _)| *expires_at_ms <= now_ms)
            else {
                return purged;
            };
            let key = key.clone();
            self.remove(&key, now_ms);
        }
        records_max
    }

    /// One page of the visible keys that match the glob `pattern`, from `cursor` on: about `count` keys are
    /// looked at. A scan starts with cursor 0.
    pub fn scan(&self, cursor: u64, count: usize, pattern: Option<&[u8]>, now_ms: u64) -> ScanPage {
        let mut keys = Vec::new();
        let mut seen = 0;
        let mut last_position = None;
        let next = self.visit_from(cursor, |slot| {
            // Keys of one position are never split between pages, because a cursor cannot point between them.
            if seen >= count && last_position != Some(slot.position) {
                return ControlFlow::Break(slot.position);
            }
            seen += 1;
            last_position = Some(slot.position);
            if slot.record.is_live(now_ms)
                && pattern.is_none_or(|pattern| glob::matches(pattern, &slot.record.key))
            {
                keys.push(Bytes::copy_from_slice(&slot.record.key));
            }
            ControlFlow::Continue(())
        });
        ScanPage { cursor: next.unwrap_or(0), keys }
    }

    /// The visible records with keys within the bounds, by the bytes of their keys.
    pub fn range<'a>(
        &'a self,
        from: Bound<&'a [u8]>,
        to: Bound<&'a [u8]>,
        now_ms: u64,
    ) -> impl DoubleEndedIterator<Item = &'a Record> {
        // Bounds that contradict each other, for which the set would panic.
        let is_empty = match (from, to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
                from >= to
            }
            _ => false,
        };
        let keys = (!is_empty).then(|| self.keys.range::<[u8], _>((from, to)));
        keys.into_iter().flatten().filter_map(move |key| self.get(key, now_ms))
    }

    /// All visible keys that match the glob `pattern`.
    pub fn keys(&self, pattern: &[u8], now_ms: u64) -> Vec<Bytes> {
        self.scan(0, usize::MAX, Some(pattern), now_ms).keys
    }

    /// A visible key chosen by `seed`: the same for the same seed and records.
    pub fn random_key(&self, seed: u64, now_ms: u64) -> Option<Bytes> {
        let start = hash::position(self.hash_key, &seed.to_le_bytes());
        let live = |slot: &Slot| match slot.record.is_live(now_ms) {
            true => ControlFlow::Break(Bytes::copy_from_slice(&slot.record.key)),
            false => ControlFlow::Continue(()),
        };
        self.visit_from(start, live).or_else(|| self.visit_from(0, live))
    }

    /// A view of all records as they are now, for another activity. Costs one pointer per bucket.
    pub fn view(&self) -> StoreView {
        StoreView { buckets: self.buckets.clone(), len: self.len, revision: self.revision }
    }

    /// Visits the records from position `start` on, in order, until `visit` breaks with a result.
    fn visit_from<R>(&self, start: u64, mut visit: impl FnMut(&Slot) -> ControlFlow<R>) -> Option<R> {
        if start >> hash::POSITION_BITS != 0 {
            return None;
        }
        let first = bucket_of(start);
        let skipped = self.buckets[first].partition_point(|slot| slot.position < start);
        let rest = self.buckets[first + 1..].iter().flat_map(|bucket| bucket.iter());
        for slot in self.buckets[first][skipped..].iter().chain(rest) {
            if let ControlFlow::Break(result) = visit(slot) {
                return Some(result);
            }
        }
        None
    }

    /// The bucket of a key, and its index there or the index where it would be inserted.
    fn find(&self, position: u64, key: &[u8]) -> (usize, Result<usize, usize>) {
        let bucket = bucket_of(position);
        let index = self.buckets[bucket]
            .binary_search_by(|slot| slot.position.cmp(&position).then_with(|| (*slot.record.key).cmp(key)));
        (bucket, index)
    }

    fn record_mut(&mut self, key: &[u8]) -> Option<&mut Record> {
        let (bucket, index) = self.find(hash::position(self.hash_key, key), key);
        Some(Arc::make_mut(&mut self.buckets[bucket].make_mut()[index.ok()?].record))
    }

    /// Puts a record in place, and returns its key and whether that is new and must be put into `keys`.
    fn insert(
        &mut self,
        key: &[u8],
        value: Bytes,
        expires_at_ms: Option<u64>,
        version: u64,
    ) -> (Arc<[u8]>, bool) {
        let position = hash::position(self.hash_key, key);
        let (bucket, index) = self.find(position, key);
        let bucket = self.buckets[bucket].make_mut();
        let (index, is_new) = match index {
            Ok(index) => {
                let record = Arc::make_mut(&mut bucket[index].record);
                self.bytes -= record.bytes();
                if let Some(previous) = record.expires_at_ms {
                    self.expiries.remove(&(previous, record.key.clone()));
                }
                record.value = value;
                record.expires_at_ms = expires_at_ms;
                record.version = version;
                (index, false)
            }
            Err(index) => {
                let record = Record { key: key.into(), value, expires_at_ms, version };
                bucket.insert(index, Slot { position, record: Arc::new(record) });
                self.len += 1;
                (index, true)
            }
        };
        let record = &bucket[index].record;
        self.bytes += record.bytes();
        if let Some(expires_at_ms) = expires_at_ms {
            self.expiries.insert((expires_at_ms, record.key.clone()));
        }
        (record.key.clone(), is_new)
    }
}

/// All records of a store as they were at one moment. See [`Store::view`].
#[derive(Clone, Debug)]
pub struct StoreView {
    buckets: Vec<Bucket>,
    len: usize,
    revision: u64,
}

impl StoreView {
    /// How many records there are, the expired ones that were not yet purged among them.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buckets in order, each to be dropped when done with: freeing all at the end would take a while.
    fn into_buckets(self) -> impl Iterator<Item = Bucket> {
        self.buckets.into_iter()
    }

    /// The records by position, then key.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.buckets.iter().flat_map(|bucket| bucket.iter()).map(|slot| &*slot.record)
    }
}

/// Frees about as many items of the last sets as may be freed at a time.
fn free_some<T: Ord>(sets: &mut Vec<BTreeSet<T>>) {
    for _ in 0..FREED_RECORDS_MAX {
        let Some(set) = sets.last_mut() else { return };
        if set.pop_first().is_none() {
            sets.pop();
        }
    }
}

/// The end of the keys that begin with `prefix`: the first that does not and comes after all that do.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn bucket_of(position: u64) -> usize {
    (position >> (hash::POSITION_BITS - BUCKET_BITS)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Checks everything that can be recomputed from the records.
    fn check_invariants(store: &Store) {
        let records: Vec<&Slot> = store.buckets.iter().flat_map(|bucket| bucket.iter()).collect();
        assert!(records.is_sorted_by(|a, b| (a.position, &a.record.key) < (b.position, &b.record.key)));
        for (index, bucket) in store.buckets.iter().enumerate() {
            assert!(bucket.iter().all(|slot| bucket_of(slot.position) == index));
        }
        assert_eq!(store.len, records.len());
        assert_eq!(store.bytes, records.iter().map(|slot| slot.record.bytes()).sum::<u64>());
        let expiries =
            records.iter().filter_map(|slot| Some((slot.record.expires_at_ms?, slot.record.key.clone())));
        assert_eq!(store.expiries, expiries.collect());
        assert_eq!(store.keys, records.iter().map(|slot| slot.record.key.clone()).collect());
        assert!(records.iter().all(|slot| (1..=store.revision).contains(&slot.record.version)));
    }

    fn scan_all(store: &Store, count: usize, now_ms: u64) -> Vec<Bytes> {
        let mut keys = Vec::new();
        let mut cursor = 0;
        loop {
            let page = store.scan(cursor, count, None, now_ms);
            keys.extend(page.keys);
            cursor = page.cursor;
            if cursor == 0 {
                return keys;
            }
        }
    }

    fn filled(keys: u32) -> Store {
        let mut store = Store::new(7);
        for key in 0..keys {
            store.set(format!("key:{key}").as_bytes(), b"value", None);
        }
        store
    }

    #[test]
    fn an_expired_record_is_invisible_at_once_and_purged_in_order() {
        let mut store = Store::new(0);
        for (key, expires_at_ms) in [("c", 30), ("a", 10), ("b", 20), ("b2", 20)] {
            store.set(key.as_bytes(), b"1", Some(expires_at_ms));
        }
        store.set(b"stays", b"1", None);
        assert!(store.get(b"a", 9).is_some());
        assert!(store.get(b"a", 10).is_none());
        assert_eq!((store.len(9), store.len(20), store.len(30)), (5, 2, 1));
        assert_eq!(store.keys(b"*", 29).len(), 2);
        assert_eq!(store.next_expiry_ms(), Some(10));
        assert_eq!(store.purge_expired(9, 100), 0);
        assert_eq!(store.purge_expired(25, 2), 2);
        assert_eq!(store.next_expiry_ms(), Some(20), "the earlier of the two keys of the same time went");
        assert!(store.get(b"b2", 15).is_some() && store.get(b"b", 15).is_none());
        assert_eq!(store.purge_expired(100, 100), 2);
        assert_eq!(store.len(0), 1);
        check_invariants(&store);
    }

    #[test]
    fn a_view_keeps_what_was_there() {
        let mut store = filled(1000);
        let view = store.view();
        let before: Vec<Record> = view.records().cloned().collect();
        store.set(b"key:1", b"changed", Some(5));
        store.append(b"key:2", b"more");
        store.set_expiry(b"key:3", Some(9));
        store.remove(b"key:4", 0);
        store.set(b"new", b"1", None);
        assert!(view.records().eq(&before));
        store.clear();
        assert!(view.records().eq(&before));
        assert_eq!((view.len(), store.len(0), store.bytes()), (1000, 0, 0));
        check_invariants(&store);
    }

    #[test]
    fn appending_shares_nothing_with_a_reply_that_holds_the_value() {
        let mut store = Store::new(0);
        store.set(b"a", b"x", None);
        let held = store.get(b"a", 0).unwrap().value().clone();
        assert_eq!(store.append(b"a", b"yz"), Some(3));
        assert_eq!(held, "x");
        assert_eq!(store.get(b"a", 0).unwrap().value(), "xyz");
        assert_eq!(store.append(b"b", b"z"), None);
        check_invariants(&store);
    }

    #[test]
    fn a_scan_returns_each_lasting_key_once_whatever_happens_meanwhile() {
        let mut store = filled(2000);
        let mut seen = BTreeMap::new();
        let mut cursor = 0;
        for round in 0.. {
            let page = store.scan(cursor, 50, None, 0);
            assert!(page.keys.len() <= 51, "a page is about as long as asked for");
            for key in page.keys {
                *seen.entry(key).or_insert(0) += 1;
            }
            cursor = page.cursor;
            if cursor == 0 {
                break;
            }
            store.set(format!("added:{round}").as_bytes(), b"", None);
            store.remove(format!("key:{}", 1000 + round * 7 % 1000).as_bytes(), 0);
        }
        assert!(seen.values().all(|times| *times == 1));
        assert!((0..1000).all(|key| seen.contains_key(format!("key:{key}").as_bytes())));
    }

    #[test]
    fn a_cursor_out_of_range_ends_the_scan() {
        let store = filled(10);
        for cursor in [1 << hash::POSITION_BITS, u64::MAX] {
            assert_eq!(store.scan(cursor, 10, None, 0), ScanPage { cursor: 0, keys: vec![] });
        }
        assert_eq!(store.scan((1 << hash::POSITION_BITS) - 1, 10, None, 0).cursor, 0);
    }

    #[test]
    fn random_keys_are_visible_keys_and_cover_all() {
        let mut store = filled(20);
        store.set(b"expired", b"", Some(1));
        let chosen: std::collections::BTreeSet<_> =
            (0..2000).filter_map(|seed| store.random_key(seed, 1)).collect();
        assert_eq!(chosen.len(), 20);
        assert!(!chosen.contains(b"expired".as_slice()));
        assert_eq!(Store::new(0).random_key(1, 0), None);
    }

    #[test]
    fn what_was_cleared_is_freed_bit_by_bit() {
        let mut store = Store::new(0);
        for key in 0..10_000_u32 {
            store.set(&key.to_le_bytes(), b"", Some(u64::from(key)));
        }
        let record =
            Arc::downgrade(&store.buckets.iter().find(|bucket| !bucket.is_empty()).unwrap()[0].record);
        store.clear();
        store.set(b"new", b"", Some(1));
        let mut calls = 0;
        while store.has_cleared() {
            store.free_cleared();
            calls += 1;
        }
        assert!((8..=12).contains(&calls), "{calls}");
        assert!(record.upgrade().is_none());
        check_invariants(&store);
        assert_eq!(store.len(0), 1);
    }

    #[derive(Clone, Debug)]
    enum Action {
        Set(u8, Vec<u8>, Option<u64>),
        Append(u8, Vec<u8>),
        Expiry(u8, Option<u64>),
        Remove(u8),
        Purge(u64, usize),
        View,
        Clear,
    }

    fn actions() -> impl Strategy<Value = Vec<Action>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..6);
        let time = || prop::option::of(0_u64..20);
        let action = prop_oneof![
            8 => (0_u8..12, bytes(), time()).prop_map(|(key, value, expiry)| Action::Set(key, value, expiry)),
            3 => (0_u8..12, bytes()).prop_map(|(key, suffix)| Action::Append(key, suffix)),
            3 => (0_u8..12, time()).prop_map(|(key, expiry)| Action::Expiry(key, expiry)),
            3 => (0_u8..12).prop_map(Action::Remove),
            2 => (0_u64..20, 0_usize..4).prop_map(|(now_ms, max)| Action::Purge(now_ms, max)),
            1 => Just(Action::View),
            1 => Just(Action::Clear),
        ];
        prop::collection::vec(action, 0..60)
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_map(actions in actions(), hash_key in 0_u128..2) {
            let mut store = Store::new(hash_key);
            let mut model: BTreeMap<u8, (Vec<u8>, Option<u64>)> = BTreeMap::new();
            let mut views = Vec::new();
            for action in actions {
                match action {
                    Action::Set(key, value, expiry) => {
                        store.set(&[key], &value, expiry);
                        model.insert(key, (value, expiry));
                    }
                    Action::Append(key, suffix) => {
                        let expected = model.get_mut(&key).map(|(value, _)| {
                            value.extend(&suffix);
                            value.len()
                        });
                        prop_assert_eq!(store.append(&[key], &suffix), expected);
                    }
                    Action::Expiry(key, expiry) => {
                        store.set_expiry(&[key], expiry);
                        if let Some((_, old)) = model.get_mut(&key) {
                            *old = expiry;
                        }
                    }
                    Action::Remove(key) => {
                        prop_assert_eq!(store.remove(&[key], 0).is_some(), model.remove(&key).is_some());
                    }
                    Action::Purge(now_ms, max) => {
                        let mut due: Vec<(u64, u8)> =
                            model.iter().filter_map(|(key, (_, expiry))| Some(((*expiry)?, *key))).collect();
                        due.retain(|(expiry, _)| *expiry <= now_ms);
                        due.sort_unstable();
                        due.truncate(max);
                        prop_assert_eq!(store.purge_expired(now_ms, max), due.len());
                        due.iter().for_each(|(_, key)| drop(model.remove(key)));
                    }
                    Action::View => views.push((store.view(), model.clone())),
                    Action::Clear => {
                        store.clear();
                        model.clear();
                    }
                }
            }
            check_invariants(&store);
            for now_ms in [0, 10, 20] {
                let live = |expiry: Option<u64>| expiry.is_none_or(|expiry| now_ms < expiry);
                let expected: Vec<u8> =
                    model.iter().filter(|(_, (_, expiry))| live(*expiry)).map(|(key, _)| *key).collect();
                prop_assert_eq!(store.len(now_ms), expected.len());
                for count in [1, 3, 100] {
                    let mut keys: Vec<u8> = scan_all(&store, count, now_ms).iter().map(|key| key[0]).collect();
                    keys.sort_unstable();
                    prop_assert_eq!(&keys, &expected);
                }
                for (key, (value, expiry)) in &model {
                    let found = store.get(&[*key], now_ms).map(|record| (record.value().to_vec(), record.expires_at_ms()));
                    prop_assert_eq!(found, live(*expiry).then(|| (value.clone(), *expiry)));
                }
            }
            for (view, model) in views {
                let records: BTreeMap<u8, (Vec<u8>, Option<u64>)> =
                    view.records().map(|record| (record.key()[0], (record.value().to_vec(), record.expires_at_ms()))).collect();
                prop_assert_eq!(records, model);
            }
        }
    }
}
