//! A few runs of the whole cluster: enough to notice that something is badly wrong, in the time of a test. `sim` runs the many.

use squall_sim_cluster::plan::Profile;
use squall_sim_cluster::run::{Options, run};
use std::time::Duration;

fn options(profile: Profile) -> Options {
    Options { profile, length: Duration::from_secs(15), ..Options::default() }
}

fn passes(seed: u64, options: &Options) -> u64 {
    let report = run(seed, options);
    let lines: Vec<String> = report.timeline.iter().map(ToString::to_string).collect();
    assert!(report.failures.is_empty(), "seed {seed}: {:#?}\n{}", report.failures, lines.join("\n"));
    assert!(report.operations.0 > 100, "only {} operations", report.operations.0);
    assert!(report.elections > 0);
    report.digest
}

#[test]
fn every_profile_passes_and_makes_its_faults() {
    for profile in [Profile::Swarm, Profile::Disk, Profile::Net, Profile::Clock, Profile::Calm] {
        passes(1, &options(profile));
    }
    let faults = run(3, &options(Profile::Net)).faults;
    assert!(!faults.is_empty() && !faults.contains_key("power loss"), "{faults:?}");
}

/// Hash maps, addresses, threads, the machine's clock: whatever the server uses, none of it shows.
#[test]
fn a_seed_has_one_run() {
    let digests: Vec<u64> = (0..2).map(|_| passes(2, &options(Profile::Swarm))).collect();
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn five_nodes_run_as_well_as_three() {
    passes(4, &Options { nodes: 5, ..options(Profile::Swarm) });
}
