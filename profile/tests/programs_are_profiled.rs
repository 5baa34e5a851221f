//! `squall-profile` as its user runs it, on programs that spawn fibers.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const CHILD: &str = "SQUALL_TEST_IS_PROFILED";

#[inline(never)]
fn function_that_computes(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {
        for number in 0..1000 {
            black_box(number);
        }
    }
}

#[inline(never)]
fn function_that_waits(duration: Duration) {
    std::thread::sleep(duration);
    black_box(());
}

/// The program that is profiled: for about a second, or until it is ended.
#[test]
fn child_that_is_profiled() {
    let Ok(how) = std::env::var(CHILD) else { return };
    let other = (how == "starts another").then(|| {
        let program = std::env::current_exe().expect("this program has a path");
        let mut other = Command::new(program);
        other.args(["child_that_is_profiled", "--exact"]).env(CHILD, "ends").spawn().expect("it can be run")
    });
    loop {
        let waiting: Vec<_> = (0..4)
            .map(|number| {
                squall::Builder::new().name(format!("{how}: waiter {number}")).spawn(|| {
                    function_that_waits(Duration::from_secs(1));
                    black_box(());
                })
            })
            .collect();
        let computing = squall::Builder::new().name("computer").spawn(|| {
            function_that_computes(Duration::from_secs(1));
            black_box(());
        });
        computing.join().expect("it does not panic");
        waiting.into_iter().for_each(|fiber| fiber.join().expect("it does not panic"));
        if let Some(mut other) = other {
            other.wait().expect("it was started");
            std::process::exit(0);
        }
        if how == "ends" {
            // As a program ends, not as a test does.
            std::process::exit(0);
        }
    }
}

struct Profiled {
    svg: String,
    folded: String,
    said: String,
    status: Option<i32>,
}

fn profile(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_squall-profile"));
    command.args(arguments);
    command
}

/// Profiles this program.
fn run(arguments: &[&str], how: &str) -> Profiled {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let svg = folder.path().join("graph.svg");
    let program = std::env::current_exe().expect("this program has a path");
    let output = profile(&["run", "--output"])
        .arg(&svg)
        .args(arguments)
        .arg("--")
        .arg(program)
        .args(["child_that_is_profiled", "--exact"])
        .env(CHILD, how)
        .output()
        .expect("it can be run");
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
    Profiled {
        folded: text(svg.with_extension("folded")),
        svg: text(svg),
        said: [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat(),
        status: output.status.code(),
    }
}

fn line<'a>(folded: &'a str, parts: &[&str]) -> &'a str {
    let found = folded.lines().find(|line| parts.iter().all(|part| line.contains(part)));
    found.unwrap_or_else(|| panic!("no line with {parts:?}: {folded}"))
}

fn weight(line: &str) -> f64 {
    line.rsplit_once(' ').and_then(|(_, weight)| weight.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

fn total(folded: &str) -> f64 {
    folded.lines().map(weight).sum()
}

#[test]
fn the_runtime_sees_what_fibers_compute() {
    let profiled = run(&["--sampler", "runtime"], "ends");
    assert_eq!(profiled.status, Some(0), "{}", profiled.said);
    let computes = line(&profiled.folded, &["computer;", "function_that_computes"]);
    assert!(computes.find("{closure") < computes.find("function_that_computes"), "{computes}");
    // The others do nothing but wait.
    let computing: f64 =
        profiled.folded.lines().filter(|line| line.contains("function_that_computes")).map(weight).sum();
    assert!(computing > 0.5 * total(&profiled.folded), "{}", profiled.folded);
    assert!(profiled.svg.contains("function_that_computes") && profiled.svg.contains("microseconds"));
    assert!(profiled.said.contains("by the runtime"), "{}", profiled.said);
}

#[test]
fn the_runtime_sees_where_fibers_wait_and_for_what() {
    let profiled = run(&["--off-cpu"], "ends");
    assert_eq!(profiled.status, Some(0), "{}", profiled.said);
    let waits = line(&profiled.folded, &["waiter #;", "function_that_waits", ";[sleeps] "]);
    assert!(waits.find("{closure") < waits.find("function_that_waits"), "{waits}");
    // Four fibers, a second each: in microseconds, give or take a busy machine.
    assert!((500_000.0..30_000_000.0).contains(&weight(waits)), "{waits}");
    assert!(!profiled.folded.contains("function_that_computes"), "{}", profiled.folded);
    assert!(profiled.svg.contains("function_that_waits") && profiled.svg.contains("[sleeps]"));
}

#[test]
fn processes_that_a_program_starts_are_in_the_same_graph() {
    let profiled = run(&["--off-cpu"], "starts another");
    assert_eq!(profiled.status, Some(0), "{}", profiled.said);
    for process in ["starts another: waiter #;", "ends: waiter #;"] {
        line(&profiled.folded, &[process, "function_that_waits", ";[sleeps] "]);
        assert!(profiled.svg.contains(process.trim_end_matches(';')));
    }
}

#[test]
fn without_perf_the_runtime_samples_and_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let svg = folder.path().join("graph.svg");
    let program = std::env::current_exe().expect("this program has a path");
    let output = profile(&["run", "--output"])
        .args([&svg, Path::new("--"), &program])
        .args(["child_that_is_profiled", "--exact"])
        .env(CHILD, "ends")
        // Where there is no perf.
        .env("PATH", folder.path())
        .output()
        .expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("the runtime samples instead"), "{said}");
    assert!(fs::read_to_string(svg).expect("it was drawn").contains("function_that_computes"));
}

#[test]
fn a_program_that_goes_on_is_ended_in_time() {
    let profiled = run(&["--off-cpu", "--seconds", "2", "--json"], "goes on");
    assert_eq!(profiled.status, Some(0), "{}", profiled.said);
    line(&profiled.folded, &["function_that_waits", "[sleeps]"]);
    let last = profiled.said.lines().rfind(|line| line.starts_with('{')).expect("a line of JSON");
    let result: serde_json::Value = serde_json::from_str(last).expect("JSON");
    assert_eq!((&result["subject"], &result["sampler"]), (&"off-cpu".into(), &"the runtime".into()));
}

#[test]
fn perf_sees_the_function_that_was_spawned() {
    if let Some(reason) = squall_profile::perf::objection() {
        eprintln!("SKIPPED: {reason}");
        return;
    }
    for arguments in [&["--sampler", "perf"][..], &["--sampler", "perf", "--seconds", "2"]] {
        let how = if arguments.len() == 2 { "ends" } else { "goes on" };
        let profiled = run(arguments, how);
        assert_eq!(profiled.status, Some(0), "{}", profiled.said);
        let computes = line(&profiled.folded, &["squall_fiber_root;", "function_that_computes"]);
        let position = |name| computes.find(name).unwrap_or_else(|| panic!("no {name}: {computes}"));
        assert!(
            position("squall_fiber_root") < position("child_that_is_profiled::{{closure}}"),
            "{computes}"
        );
        assert!(profiled.svg.contains("function_that_computes") && profiled.svg.contains("samples"));
    }
}

#[test]
fn two_runs_are_compared() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name);
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    fs::write(file("before.folded"), "main;parse 50\nmain;answer 50\n").expect("a temporary file");
    fs::write(file("after.folded"), "main;parse 30\nmain;answer 10\n").expect("a temporary file");
    let [before, after, svg] = [file("before.folded"), file("after.folded"), file("diff.svg")];
    let output =
        profile(&["diff", &text(&before), &text(&after), "-o", &text(&svg)]).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let drawn = fs::read_to_string(&svg).expect("it was written");
    assert!(drawn.contains("+25.00%") && drawn.contains("-25.00%"), "{drawn}");

    let drawn = profile(&["svg", &text(&before), "-o", &text(&svg)]).output().expect("it runs");
    assert!(drawn.status.success() && fs::read_to_string(&svg).expect("written").contains("parse"));
}

#[test]
fn mistakes_are_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let wrong = folder.path().join("wrong.folded");
    fs::write(&wrong, "this is no profile\n").expect("a temporary file");
    let wrong = wrong.to_str().expect("a plain path");
    for (arguments, status, wanted) in [
        (vec!["run"], 2, "PROGRAM"),
        (vec!["run", "--sampler", "perf", "--off-cpu", "--", "true"], 1, "perf sees no fibers that wait"),
        (vec!["run", "--off-cpu", "--", "true"], 1, "it uses no squall runtime"),
        (vec!["run", "--off-cpu", "--", "/no/such/program"], 1, "cannot run /no/such/program"),
        (vec!["attach", "nowhere"], 1, "neither the number of a process nor HOST:PORT"),
        (vec!["attach", "4194305"], 1, "there is no process"),
        (vec!["svg", wrong], 1, "line 1 is not a folded stack"),
        (vec!["diff", wrong, wrong], 1, "not a folded stack"),
        (vec!["svg", "/no/such/file"], 1, "cannot read /no/such/file"),
    ] {
        let output = profile(&arguments).current_dir(&folder).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}");
        assert!(said.contains(wanted), "{arguments:?}: {said}");
    }
}
