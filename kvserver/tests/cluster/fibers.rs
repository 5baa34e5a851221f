//! A node tells what its fibers do: on the admin port, and on standard error when it gets SIGUSR1.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

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

#[test]
fn a_node_draws_flame_graphs_of_itself() {
    let cluster = Cluster::start(&[]);
    let admin = cluster.admin_address(1);
    let pid = cluster.number(1, "process_id").expect("the node runs");
    assert_eq!(squall_profile::node::admin_port_of(pid as u32).unwrap(), Some(admin));
    let get = |path: &str| squall_profile::node::get(admin, path, Duration::from_secs(2));

    let svg = get("/debug/offcpu?seconds=1").unwrap();
    assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"), "{svg}");
    // The group's owner, which waits for messages of a channel of std.
    assert!(svg.contains("raft-#-owner") && svg.contains("[futex]"), "{svg}");
    let folded = get("/debug/offcpu?seconds=1&folded=1").unwrap();
    let owner = folded.lines().find(|line| line.starts_with("raft-#-owner;")).unwrap();
    let (_, waited_us) = owner.rsplit_once(' ').unwrap();
    assert!(waited_us.parse::<u64>().unwrap() > 0, "{owner}");

    // Something to compute.
    let is_over = Arc::new(AtomicBool::new(false));
    let load = {
        let (is_over, mut client) = (is_over.clone(), cluster.redis(1));
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                client.call(&["PING"]);
            }
        })
    };
    let svg = get("/debug/profile?seconds=1");
    is_over.store(true, Ordering::Relaxed);
    load.join().unwrap();
    let svg = svg.unwrap();
    assert!(svg.starts_with("<?xml") && svg.contains("squall_kvserver::resp::connection"), "{svg}");

    for wrong in ["/debug/profile?seconds=0", "/debug/offcpu?seconds=never", "/debug/profile?rate=1000000"] {
        let error = get(wrong).unwrap_err().to_string();
        assert!(error.contains("400") && error.contains("is a number from 1 to"), "{wrong}: {error}");
    }
}
