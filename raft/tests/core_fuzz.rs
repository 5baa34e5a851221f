//! Random schedules of a small group: messages lost, repeated and out of order, links cut one way, disks that lag, crashes
//! that lose what was not synced, compaction at any point. Safety is checked at every step; then everything
//! heals and the group must make progress.

mod support;

use std::env;

use squall_raft::core::Body;
use support::Network;

/// Names the seed when a schedule fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with RAFT_SEED={}", self.0);
        }
    }
}

fn run(seed: u64) {
    let _named = Seed(seed);
    let sizes = [1, 2, 3, 3, 3, 5];
    let mut network = Network::new(sizes[(seed % 6) as usize], seed, |config| {
        config.election_ticks = 5;
        config.append_bytes_max = 8;
        config.inflight_messages_max = 3;
    });
    let ids = network.ids();
    // Each schedule has its own weather: how fast the clock, the links and the disks are, and what goes wrong. Some
    // kinds of trouble are left out altogether: one kind alone digs deeper than all of them at once.
    let loss = network.rng.below(30) as u64 * (network.rng.next() % 2);
    let ranges = [100..300, 300..900, 100..400, 30..150, 20..100, 2..12, 0..8, 4..20, 0..10, 1..10, 0..6];
    let mut weights = ranges.map(|range| range.start + network.rng.below(range.len()));
    for trouble in [5, 6, 8, 10] {
        weights[trouble] *= network.rng.below(2);
    }
    let mut slow = || ids.get(network.rng.below(2 * ids.len())).copied();
    let (slow_disk, slow_clock) = (slow(), slow());
    for step in 0..3000 {
        let any = ids[network.rng.below(ids.len())];
        let leader = network.leader().filter(|_| step % 4 != 0).unwrap_or(any);
        let other = ids[network.rng.below(ids.len())];
        match network.rng.weighted(&weights) {
            0 if Some(any) != slow_clock || network.rng.chance(15) => network.tick(any),
            1 if !network.messages.is_empty() => {
                let at = network.rng.below(network.messages.len().min(8));
                let message = network.messages.remove(at);
                if network.rng.chance(loss / 3) {
                    network.messages.push(message.clone());
                }
                if network.rng.chance(100 - loss) {
                    network.deliver(message);
                } else if matches!(message.body, Body::InstallSnapshot { .. }) && network.is_up(message.from)
                {
                    network.raft(message.from).report_snapshot(message.to, false);
                }
            }
            2 if Some(any) != slow_disk || network.rng.chance(10) => {
                let count = 1 + network.rng.below(3);
                network.sync(any, count);
            }
            3 => {
                network.propose(leader, &format!("{step}"));
            }
            4 => {
                network.read(leader);
            }
            5 => {
                let keep = network.rng.next() % 4;
                network.compact(any, keep);
            }
            6 => {
                let keep = network.rng.below(3);
                network.crash(leader, keep);
            }
            7 => {
                if let Some(&down) = ids.iter().find(|&&id| !network.is_up(id)) {
                    network.restart(down);
                }
            }
            8 if network.rng.chance(30) => network.isolate(leader),
            8 => {
                network.cut.insert((any, other));
            }
            9 => network.heal(),
            10 if network.is_up(any) => network.raft(any).report_unreachable(other),
            _ => {}
        }
        if step % 50 == 0 {
            network.check_logs();
        }
    }

    network.heal();
    for &id in &ids {
        if !network.is_up(id) {
            network.restart(id);
        }
    }
    let reads_before: u64 = network.nodes.values().map(|n| n.reads_done).sum();
    for round in 0.. {
        assert!(round < 300, "no progress after everything healed");
        network.round();
        let Some(leader) = network.leader() else { continue };
        network.propose(leader, "last");
        network.read(leader);
        network.settle();
        let reads: u64 = network.nodes.values().map(|n| n.reads_done).sum();
        let last = network.committed.last_key_value().is_some_and(|(_, e)| &e.data[..] == b"last");
        if last && network.agrees() && reads > reads_before {
            break;
        }
    }
    network.check_logs();
}

/// `RAFT_SEED=n` replays one schedule, `RAFT_SEEDS=n` runs that many.
#[test]
fn random_schedules_keep_every_safety_property() {
    let number = |name| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if let Some(seed) = number("RAFT_SEED") {
        return run(seed);
    }
    for seed in 0..number("RAFT_SEEDS").unwrap_or(500) {
        run(seed);
    }
}
