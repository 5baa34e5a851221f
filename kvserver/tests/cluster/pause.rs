//! The leader is frozen, as by a debugger, a swapping machine or a migrating VM, and then goes on as if nothing had been.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use squall_kvserver::clerk::Clerk;

use crate::harness::load::Load;
use crate::harness::{Cluster, Reply};

const PAUSE: Duration = Duration::from_secs(3);
/// Far above what an election takes, and below the timeouts that would end the wait for a node that never answers.
const RESUME_MAX: Duration = Duration::from_secs(8);

/// Wakes the node also when the test fails, so that it can be ended.
struct Frozen<'a> {
    cluster: &'a Cluster,
    node: u64,
}

impl<'a> Frozen<'a> {
    fn new(cluster: &'a Cluster, node: u64) -> Self {
        cluster.signal(node, Signal::SIGSTOP);
        Self { cluster, node }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.cluster.signal(self.node, Signal::SIGCONT);
    }
}

#[test]
fn a_leader_that_was_frozen_loses_nothing_and_answers_no_read_from_the_past() {
    let cluster = Cluster::start(&["no_leader_wait_ms=30000"]);
    let load = Load::start(&cluster);
    load.wait_for_rounds(&cluster.ids(), 100);
    let old = cluster.wait_for_leader();
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != old).collect();
    assert_eq!(cluster.redis(old).call(&["SET", "clock", "0"]), Reply::ok());

    let stopping = AtomicBool::new(false);
    thread::scope(|scope| {
        // Whatever was acknowledged through one node is seen through the other at once.
        let clock = scope.spawn(|| {
            let (mut writer, mut reader) = (cluster.redis(others[0]), cluster.redis(others[1]));
            let mut time = 0;
            while !stopping.load(Ordering::SeqCst) {
                time += 1;
                assert_eq!(writer.call(&["SET", "clock", &time.to_string()]), Reply::ok());
                let seen: u64 = reader.call(&["GET", "clock"]).text().parse().unwrap();
                assert_eq!(seen, time, "read through node {}", others[1]);
            }
            time
        });
        // Asked while it sleeps, so that it answers first thing when it wakes: at that moment it believes to lead.
        let mut asleep = cluster.redis(old);
        let at_freeze: u64 = {
            let _frozen = Frozen::new(&cluster, old);
            let resumed = load.wait_for_rounds(&others, 1);
            println!("writes through the other nodes resumed within {resumed:?}");
            assert!(resumed < RESUME_MAX, "{resumed:?}");
            thread::sleep(PAUSE.saturating_sub(resumed));
            load.wait_for_rounds(&others, 5);
            let mut other = cluster.redis(others[0]);
            let now = other.call(&["GET", "clock"]).text().parse().unwrap();
            asleep.send(b"GET clock\r\n").unwrap();
            now
        };
        let seen: u64 = asleep.receive().unwrap().text().parse().unwrap();
        assert!(
            seen >= at_freeze,
            "node {old} woke up and read {seen}, though {at_freeze} was acknowledged before"
        );
        load.wait_for_rounds(&cluster.ids(), 100);
        stopping.store(true, Ordering::SeqCst);
        let time = clock.join().unwrap();
        assert!(time > at_freeze);
    });
    let record = load.stop();
    record.check(&cluster, &cluster.ids());
    cluster.wait_until_replicas_agree();
}

#[test]
fn a_clerk_does_not_wait_for_a_leader_that_is_frozen() {
    let cluster = Cluster::start(&[]);
    let clerk = Clerk::new(&cluster.config()).unwrap();
    clerk.append("list", "1;").unwrap();
    let old = cluster.wait_for_leader();
    {
        let _frozen = Frozen::new(&cluster, old);
        // Within the clerk's ten seconds, though nothing answers at first.
        clerk.append("list", "2;").unwrap();
        assert_eq!(clerk.get("list").unwrap().unwrap(), "1;2;");
    }
    clerk.append("list", "3;").unwrap();
    cluster.wait_until_replicas_agree();
    assert_eq!(
        clerk.get("list").unwrap().unwrap(),
        "1;2;3;",
        "what the old leader still had in hand came to nothing"
    );
}
