//! What those who watch keys were told, page by page, from whatever node: together it must be one list of changes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What all watchers were told.
#[derive(Debug, Default)]
pub struct Changes(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    /// What happened at each revision, by whoever was told first.
    known: BTreeMap<u64, String>,
    /// Everything after the first revision and up to the second was said to be these.
    pages: Vec<(u64, u64, Vec<u64>)>,
    violations: Vec<String>,
}

impl Changes {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watcher that had seen everything up to `after` is told the next changes, and that it has now seen everything up to `seen`.
    pub fn page(&self, node: usize, after: u64, seen: u64, changes: Vec<(u64, String)>) {
        let told = &mut *self.told();
        let revisions: Vec<u64> = changes.iter().map(|(revision, _)| *revision).collect();
        let in_order = revisions.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = revisions.iter().all(|revision| (after + 1..=seen).contains(revision));
        if !in_order || !inside || seen < after {
            let text =
                format!("node {node} told the changes {revisions:?} as those after {after} up to {seen}");
            told.violations.push(text);
        }
        for (revision, what) in changes {
            let first = told.known.entry(revision).or_insert_with(|| what.clone());
            if *first != what {
                let text = format!("node {node} told of revision {revision}: {what}; another told: {first}");
                told.violations.push(text);
            }
        }
        told.pages.push((after, seen, revisions));
    }

    /// How many changes were told.
    pub fn count(&self) -> usize {
        self.told().known.len()
    }

    /// What contradicts itself: also pages that leave out what somebody else was told.
    pub fn violations(&self) -> Vec<String> {
        let told = self.told();
        let mut violations = told.violations.clone();
        for (after, seen, revisions) in told.pages.iter().filter(|(after, seen, _)| after < seen) {
            let missing =
                told.known.range(after + 1..=*seen).find(|(revision, _)| !revisions.contains(revision));
            if let Some((revision, what)) = missing {
                violations.push(format!(
                    "a watcher was told the changes after {after} up to {seen} without {revision}: {what}"
                ));
            }
        }
        violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Page<'a> = (u64, u64, &'a [(u64, &'a str)]);

    fn told(pages: &[Page<'_>]) -> usize {
        let changes = Changes::default();
        for (after, seen, page) in pages {
            let page = page.iter().map(|(revision, what)| (*revision, (*what).to_owned())).collect();
            changes.page(1, *after, *seen, page);
        }
        changes.violations().len()
    }

    #[test]
    fn what_is_lost_repeated_or_out_of_order_is_seen() {
        let whole: Page<'_> = (0, 4, &[(1, "a"), (2, "b"), (4, "c")]);
        assert_eq!(told(&[whole, (0, 0, &[]), (0, 2, &[(1, "a"), (2, "b")]), (2, 4, &[(4, "c")])]), 0);
        assert_eq!(told(&[whole, (0, 3, &[(1, "a")])]), 1, "lost");
        assert_eq!(told(&[whole, (2, 4, &[(2, "b"), (4, "c")])]), 1, "repeated");
        assert_eq!(told(&[(0, 2, &[(2, "b"), (1, "a")])]), 1, "out of order");
        assert_eq!(told(&[whole, (3, 4, &[(4, "d")])]), 1, "something else");
        assert_eq!(told(&[(4, 2, &[])]), 1, "back");
    }
}
