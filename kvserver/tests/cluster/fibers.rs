//! A node tells what its fibers do: on the admin port, and on standard error when it gets SIGUSR1.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Cluster, eventually, http_get};

#[test]
fn the_admin_port_says_what_each_fiber_waits_for_and_since_when() {
    let cluster = Cluster::start(&[]);
    let idle = cluster.redis(1);
    // Whoever waits for the next command has not done anything since the connection was made.
    eventually("a fiber has waited for a second", || {
        let (code, fibers) = http_get(cluster.admin_address(1), "/fibers").unwrap();
        assert_eq!(code, 200, "{fibers}");
        let waits_for_seconds = |line: &str| {
            let (_, rest) = line.split_once("waits to read from descriptor")?;
            let mut words = rest.split_once(" for ")?.1.split([' ', ',', ';']);
            words.next()?.parse::<f64>().ok()?;
            (words.next() == Some("s")).then_some(())
        };
        fibers.lines().find_map(waits_for_seconds)
    });
    drop(idle);
}

#[test]
fn sigusr1_writes_all_fibers_with_backtraces_to_standard_error() {
    let cluster = Cluster::start(&[]);
    let pid = cluster.number(1, "process_id").expect("the node runs");
    kill(Pid::from_raw(pid as i32), Signal::SIGUSR1).unwrap();
    let log = eventually("the dump is in the log", || {
        let log = cluster.log("node-1");
        // The last fiber's last line may not be there yet, those of the group's owner are what matters.
        log.contains("src/group/owner.rs:").then_some(log)
    });
    let start = log.lines().position(|line| line.ends_with("workers")).expect("a line that says how many");
    let lines: Vec<&str> = log.lines().skip(start).collect();
    assert!(lines[0].contains(" fibers on 1 workers"), "{}", lines[0]);
    let owner = lines.iter().position(|line| line.contains("'raft-1-owner' on worker 0: "));
    let owner = owner.unwrap_or_else(|| panic!("no owner: {log}"));
    assert!(lines[owner].contains(" for "), "since when: {}", lines[owner]);
    let backtrace: Vec<_> = lines[owner + 1..].iter().take_while(|line| line.starts_with("    ")).collect();
    assert!(backtrace.iter().any(|line| line.contains("src/group/owner.rs:")), "{backtrace:#?}");
    // It goes on as if nothing had happened.
    assert!(cluster.status(1).is_some());
}
