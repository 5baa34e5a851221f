//! The programs that stress and measure: each runs to its end with its checks passed, and says so to people, to scripts and by its exit code.

use serde_json::Value;
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> Value {
    let output = Command::new(program).args(arguments).arg("--json").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn thousands_of_fibers_pass_every_check() {
    for workers in ["1", "3"] {
        let report = run(
            env!("CARGO_BIN_EXE_fiber_stress_test"),
            &["--fibers", "2000", "--seconds", "1", "--workers", workers],
        );
        assert_eq!(report["failed"], 0);
        assert_eq!(report["phases"].as_array().unwrap().len(), 7);
        assert!(report["switches"].as_u64().unwrap() > 20_000);
    }
}

#[test]
fn a_pool_of_connections_serves_many_fibers_though_connections_break() {
    let report = run(
        env!("CARGO_BIN_EXE_conn_pool_test"),
        &["--fibers", "300", "--connections", "7", "--requests", "10", "--break-after", "50"],
    );
    assert_eq!(
        (&report["requests"], &report["wrong"], &report["failed"]),
        (&3000.into(), &0.into(), &0.into())
    );
    assert!(report["broken_met"].as_u64().unwrap() > 0, "{report}");
}

#[test]
fn a_file_is_read_as_it_was_written_whichever_way() {
    let folder = tempfile::tempdir().unwrap();
    let report = run(
        env!("CARGO_BIN_EXE_io_speed_test"),
        &["--mib", "4", "--synced-mib", "1", "--block-kib", "64", "--dir", folder.path().to_str().unwrap()],
    );
    assert_eq!(report["differences"], 0);
    assert_eq!(report["tests"].as_array().unwrap().len(), 9);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file is removed");
    let refused =
        Command::new(env!("CARGO_BIN_EXE_io_speed_test")).args(["--block-kib", "6"]).output().unwrap();
    assert!(!refused.status.success());
}

#[test]
fn an_unknown_part_is_refused_with_the_parts_there_are() {
    let output = Command::new(env!("CARGO_BIN_EXE_kv_raft_performance_test"))
        .args(["--only", "wirte"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("`wirte`") && text.contains("zipfian"), "{text}");
}
