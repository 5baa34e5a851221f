//! Random schedules of a small group: messages lost, repeated and out of order, links cut one way, disks that lag, crashes
//! that lose what was not synced, compaction at any point. Safety is checked at every step; then everything
//! heals and the group must make progress.

mod support;

use std::env;

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
        config.append_bytes_max = 20;
        config.inflight_messages_max = 3;
    });
    let ids = network.ids();
    // Each schedule has its own weather: how often things go wrong.
    let loss = network.rng.next() % 30;
    let crash = network.rng.next() % 4;
    let cuts = network.rng.next() % 4;
    for step in 0..3000 {
        let id = ids[network.rng.below(ids.len())];
        match network.rng.below(100) {
            0..25 => network.tick(id),
            25..60 => {
                if !network.messages.is_empty() {
                    let at = network.rng.below(network.messages.len().min(8));
                    let message = network.messages.remove(at);
                    if network.rng.chance(loss / 3) {
                        network.messages.push(message.clone());
                    }
                    if network.rng.chance(100 - loss) {
                        network.deliver(message);
                    } else if matches!(message.body, squall_raft::core::Body::InstallSnapshot { .. })
                        && network.is_up(message.from)
                    {
                        network.raft(message.from).report_snapshot(message.to, false);
                    }
                }
            }
            60..75 => {
                let count = 1 + network.rng.below(3);
                network.sync(id, count);
            }
            75..85 => {
                let leader = network.leader().filter(|_| step % 4 != 0).unwrap_or(id);
                network.propose(leader, &format!("{step}"));
            }
            85..90 => {
                let leader = network.leader().filter(|_| step % 4 != 0).unwrap_or(id);
                network.read(leader);
            }
            90..92 if network.rng.chance(50) => {
                let keep = network.rng.next() % 4;
                network.compact(id, keep);
            }
            92..95 if network.rng.chance(crash * 10) => {
                let keep = network.rng.below(3);
                network.crash(id, keep);
            }
            95..97 if !network.is_up(id) => network.restart(id),
            97..99 if network.rng.chance(cuts * 10) => {
                let other = ids[network.rng.below(ids.len())];
                network.cut.insert((id, other));
            }
            99 => network.heal(),
            _ => {}
        }
        if network.is_up(id) && network.rng.chance(2) {
            let other = ids[network.rng.below(ids.len())];
            network.raft(id).report_unreachable(other);
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
    for seed in 0..number("RAFT_SEEDS").unwrap_or(300) {
        run(seed);
    }
}
