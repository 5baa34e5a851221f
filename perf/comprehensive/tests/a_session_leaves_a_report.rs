//! The whole command, with small scripts in the place of the test programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Session {
    folder: PathBuf,
    status: Option<i32>,
    said: String,
}

impl Session {
    fn read(&self, file: &str) -> String {
        let path = self.folder.join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; {}", path.display(), self.said))
    }
}

fn script(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a temporary file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its owner may");
}

fn run(folder: &Path, arguments: &[&str]) -> Session {
    let output = Command::new(env!("CARGO_BIN_EXE_comprehensive_performance_test"))
        .args(["--programs".as_ref(), folder.as_os_str(), "--out".as_ref(), folder.as_os_str()])
        .args(["--quick", "--json"])
        .args(arguments)
        .output()
        .expect("it runs");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    let sessions = fs::read_dir(folder.join("test_results_comprehensive"));
    let session = sessions.ok().and_then(|mut entries| entries.next()?.ok());
    let path = session.map(|entry| entry.path()).unwrap_or_default();
    Session { folder: path, status: output.status.code(), said }
}

#[test]
fn every_part_is_in_the_report() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    script(at, "simple_stress_test", "echo 'failed: 0'");
    script(
        at,
        "fiber_stress_test",
        r#"echo '{"phases":[{"phase":"spawn","operations":7,"failed":0,"operations_per_second":123.5}]}'"#,
    );
    script(at, "test_hook", "echo 'task2 sleep for 2s'");
    script(at, "test_iomanager", "echo 'write callback'; echo 'connect success'");
    script(at, "conn_pool_test", r#"echo '{"requests":20000,"wrong":0}'"#);
    script(at, "io_speed_test", r#"echo '{"tests":[{"test":"write <direct>","mib_per_second":55.5}]}'"#);
    let load = r#"{"write":{"requests_per_second":1000.5,"errors":0,"p50_us":1500,"p99_us":9000,"p99.9_us":9500,"timeline":[[1000,9],[1001,8]]}}"#;
    script(at, "kv_raft_performance_test", &format!("echo '{load}'"));
    let session = run(at, &["--only", "1,2,3,4,7"]);
    assert_eq!(session.status, Some(0), "{}", session.said);
    for (file, wanted) in [
        ("01_cpu_stress.txt", "failed: 0"),
        ("02_hook_test.txt", "$ test_hook --seconds 3"),
        ("03_iomanager_test.txt", "connect success"),
        ("04_system_resources.txt", "=== load ==="),
        ("07_io_performance.txt", "write <direct>"),
    ] {
        assert!(session.read(file).contains(wanted), "{file}");
    }
    let text = session.read("COMPREHENSIVE_TEST_REPORT.md");
    for wanted in [
        "| spawn | 7 | 0 | 123.5 |",
        "| requests | 20000 |",
        "| write | 1000.5 | 0 | 1500.0 |",
        "| hooks | test_hook --seconds 3 | passed |",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let html = session.read("report.html");
    assert!(
        html.contains("write &lt;direct&gt;") && html.contains("<polyline") && html.contains("<rect"),
        "{html}"
    );
    assert!(
        !html.contains("http://")
            || html.matches("http://").count() == html.matches("http://www.w3.org/2000/svg").count()
    );
}

#[test]
fn a_check_that_fails_is_told_by_the_status() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    script(folder.path(), "test_hook", "echo 'task2 sleeps for ever'");
    let session = run(folder.path(), &["--only", "2"]);
    assert_eq!(session.status, Some(1), "{}", session.said);
    assert!(
        session.read("COMPREHENSIVE_TEST_REPORT.md").contains("FAILED: it did not say `task2 sleep for 2s`")
    );
}

#[test]
fn what_is_missing_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let session = run(folder.path(), &["--only", "1,6"]);
    assert_eq!(session.status, Some(0), "{}", session.said);
    assert!(session.read("COMPREHENSIVE_TEST_REPORT.md").contains("simple_stress_test is missing"));
    let session = run(folder.path(), &["--only", "9"]);
    assert_eq!(session.status, Some(2), "{}", session.said);
    assert!(session.said.contains("there is no part 9"), "{}", session.said);
}
