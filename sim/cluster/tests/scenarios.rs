//! The scripts in `scenarios/`: for each kind of failure that stores of this sort are known for, a schedule that has it, with several seeds.

use squall_sim_cluster::plan;
use squall_sim_cluster::run::{Options, run};
use std::path::Path;
use std::time::Duration;

/// Unoptimised, a run takes tens of times as long.
const SEEDS: u64 = if cfg!(debug_assertions) { 1 } else { 10 };

/// Runs a script in a cluster of so many nodes.
fn passes(name: &str, nodes: u64) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(name).with_extension("txt");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let steps = plan::parse(&text).unwrap();
    assert!(!steps.is_empty());
    let options =
        Options { nodes, length: Duration::from_secs(22), steps: Some(steps), ..Options::default() };
    for seed in 1..=SEEDS {
        let report = run(seed, &options);
        let lines: Vec<String> = report.timeline.iter().map(ToString::to_string).collect();
        assert!(report.failures.is_empty(), "seed {seed}: {:#?}\n{}", report.failures, lines.join("\n"));
        assert!(!report.faults.is_empty(), "nothing went wrong");
    }
}

macro_rules! scenarios {
    ($($name:ident with $nodes:literal nodes;)*) => {
        $(
            #[test]
            fn $name() {
                passes(stringify!($name), $nodes);
            }
        )*

        #[test]
        fn every_script_is_run() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
            let mut scripts: Vec<String> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            scripts.sort();
            let mut run = vec![$(stringify!($name).to_owned()),*];
            run.sort();
            assert_eq!(scripts, run);
        }
    };
}

scenarios! {
    quorum_loss with 5 nodes;
    constrained_election with 5 nodes;
    chained with 3 nodes;
    paused_leader with 3 nodes;
    everybody_loses_power with 3 nodes;
    kills_in_the_middle_of_calls with 3 nodes;
    failing_syncs with 3 nodes;
    full_disks with 3 nodes;
    gray_disk with 3 nodes;
    one_way_links with 3 nodes;
    clocks with 3 nodes;
    lagging_follower with 3 nodes;
    misdirected_reads with 3 nodes;
    rotten_disk with 3 nodes;
    hanging_disk with 3 nodes;
    failing_reads with 3 nodes;
}
