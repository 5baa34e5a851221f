//! Clerks append while leaders die: each append is there once, in its clerk's order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use squall_kvserver::clerk::Clerk;

use crate::harness::{Cluster, PATIENCE, eventually};

const CLERKS: usize = 4;
const KEY: &str = "log of all clerks";

#[test]
fn every_append_of_every_clerk_is_applied_exactly_once() {
    let mut cluster = Cluster::start_supervised(&[]);
    let config = cluster.config();
    let stopping = AtomicBool::new(false);
    let acknowledged: Vec<AtomicU64> = (0..CLERKS).map(|_| AtomicU64::new(0)).collect();
    let append = |number: usize| {
        let clerk = Clerk::new(&config).unwrap().with_timeout(PATIENCE);
        let mut count = 0;
        while !stopping.load(Ordering::SeqCst) {
            let length = clerk.append(KEY, format!("{number}.{count};")).unwrap();
            assert!(length > 0);
            count += 1;
            acknowledged[number].store(count, Ordering::SeqCst);
        }
    };
    let wait_until_all_go_on = || {
        let goals: Vec<u64> = acknowledged.iter().map(|count| count.load(Ordering::SeqCst) + 20).collect();
        eventually("every clerk goes on", || {
            let counts = acknowledged.iter().map(|count| count.load(Ordering::SeqCst));
            counts.zip(&goals).all(|(count, goal)| count >= *goal).then_some(())
        });
    };
    /// Ends the clerks also when the test fails, which the scope waits for.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    thread::scope(|scope| {
        let _stop = Stop(&stopping);
        for number in 0..CLERKS {
            scope.spawn(move || append(number));
        }
        wait_until_all_go_on();
        for _ in 0..3 {
            let leader = cluster.wait_for_leader();
            cluster.kill_node(leader);
            wait_until_all_go_on();
        }
        for pid in cluster.supervised_pids() {
            // One may be on its way up, and so not yet known by its id.
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        wait_until_all_go_on();
    });

    let clerk = Clerk::new(&config).unwrap().with_timeout(Duration::from_secs(30));
    let value = String::from_utf8(clerk.get(KEY).unwrap().unwrap().to_vec()).unwrap();
    let mut next = [0_u64; CLERKS];
    for token in value.split_terminator(';') {
        let (number, count) = token.split_once('.').unwrap();
        let number: usize = number.parse().unwrap();
        assert_eq!(count.parse(), Ok(next[number]), "append {} of clerk {number}", next[number]);
        next[number] += 1;
    }
    let acknowledged: Vec<u64> = acknowledged.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(next.to_vec(), acknowledged);
    println!("{acknowledged:?} appends");
}

#[test]
fn one_clerk_in_many_hands_keeps_its_promise() {
    let mut cluster = Cluster::start(&[]);
    let config = cluster.config();
    let clerk = Clerk::new(&config).unwrap().with_timeout(PATIENCE);
    let leader = cluster.wait_for_leader();
    thread::scope(|scope| {
        for hand in 0..4 {
            let clerk = &clerk;
            scope.spawn(move || {
                for count in 0..50 {
                    clerk.append(format!("hand {hand}"), format!("{count};")).unwrap();
                }
            });
        }
        cluster.kill_node(leader);
    });
    let expected: String = (0..50).map(|count| format!("{count};")).collect();
    for hand in 0..4 {
        assert_eq!(clerk.get(format!("hand {hand}")).unwrap().unwrap(), expected);
    }
}
