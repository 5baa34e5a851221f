//! `squall-doctor` as its user runs it: on itself, on ordinary programs, on scripts, and where a hook is dead.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_squall-doctor"));
    command.args(arguments).env_remove("LD_PRELOAD").env_remove("SQUALL_DOCTOR");
    command
}

/// The library that cargo has built along with this test.
fn library() -> PathBuf {
    let program = std::env::current_exe().expect("this program has a path");
    let folder = program.parent().expect("it is in a folder");
    let built = [folder.join("libsquall_preload.so"), folder.join("../libsquall_preload.so")]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max();
    built.expect("cargo builds the library for this test").1
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn run(mut command: Command) -> (String, i32) {
    let output = command.output().expect("the doctor runs");
    (text(&output), output.status.code().expect("it is not killed"))
}

/// Has it look at another program with the library preloaded.
fn examine(program: &[&str]) -> (String, i32) {
    let library = library();
    let mut arguments = vec!["--preload", library.to_str().expect("a plain path"), "--"];
    arguments.extend(program);
    run(doctor(&arguments))
}

fn executable(path: &Path, contents: &[u8]) {
    fs::write(path, contents).expect("a temporary file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its owner may");
}

#[test]
fn itself_is_healthy_and_every_trial_passes() {
    let (text, status) = run(doctor(&[]));
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("linked into the program"), "{text}");
    assert!(text.ends_with("healthy\n") && !text.contains("DEAD"), "{text}");
    for family in ["nanosleep", "accept", "epoll_wait", "waitpid"] {
        let line =
            text.lines().find(|line| line.contains(family)).unwrap_or_else(|| panic!("{family}: {text}"));
        assert!(line.trim_start().starts_with("ok"), "{line}");
    }
    let (all, status) = run(doctor(&["--all"]));
    assert_eq!(status, 0, "{all}");
    assert!(all.contains("__recv_chk") && all.lines().count() > 100, "{all}");
}

#[test]
fn the_json_form_has_every_function() {
    let (text, status) = run(doctor(&["--json"]));
    assert_eq!(status, 0, "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["healthy"], true);
    let symbols = report["symbols"].as_array().expect("a list");
    assert!(symbols.len() > 80);
    let recv = symbols.iter().find(|symbol| symbol["name"] == "recv").expect("recv is hooked");
    assert_eq!((&recv["live"], &recv["resolves_to"]), (&true.into(), &"squall-doctor".into()));
    assert!(report["trials"].as_array().is_some_and(|trials| !trials.is_empty()));
}

#[test]
fn an_ordinary_program_gets_its_hooks_and_is_not_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let trace = folder.path().join("trace");
    let (text, status) = examine(&["touch", trace.to_str().expect("a plain path")]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("libsquall_preload.so"), "{text}");
    assert!(!trace.exists(), "the program was run");
    let library = library();
    let (text, _) =
        run(doctor(&["--all", "--preload", library.to_str().expect("a plain path"), "--", "touch"]));
    let line =
        text.lines().find(|line| line.contains(" close ")).unwrap_or_else(|| panic!("no close: {text}"));
    assert!(line.contains("called by") && line.contains("touch"), "{line}");
}

#[test]
fn a_script_is_looked_at_through_its_interpreter() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = folder.path().join("script");
    executable(&script, b"#!/usr/bin/env -S sh\ntouch ran\n");
    let (text, status) = examine(&[script.to_str().expect("a plain path")]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("libsquall_preload.so"), "{text}");
}

#[test]
fn a_program_with_squall_linked_in_needs_no_library() {
    let (text, status) = run(doctor(&["--", env!("CARGO_BIN_EXE_squall-doctor")]));
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("linked into the program"), "{text}");
}

#[test]
fn a_library_that_comes_first_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, other) = (folder.path().join("other.c"), folder.path().join("libother.so"));
    fs::write(&source, "long recv(int fd, void *buffer, unsigned long size, int flags) { return -1; }\n")
        .expect("a temporary file");
    // What links Rust programs compiles C as well.
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&other, &source]).status();
    assert!(made.expect("a C compiler links Rust programs").success());
    let mut command = doctor(&["--", "cat"]);
    command.env("LD_PRELOAD", format!("{}:{}", other.display(), library().display()));
    let (text, status) = run(command);
    assert_eq!(status, 1, "{text}");
    let mut lines = text.lines().skip_while(|line| !line.contains("DEAD"));
    let (dead, advice) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    assert!(dead.contains("recv") && dead.contains("libother.so"), "{text}");
    assert!(advice.contains("-> libother.so comes before the hooks"), "{text}");
    assert_eq!(text.matches("DEAD").count(), 2, "one function, and the last line: {text}");
}

#[test]
fn what_cannot_be_preloaded_is_not_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // A copy of a real program with another dynamic linker's name written over its own.
    let mut bytes = fs::read("/bin/true").expect("every system has it");
    let name = b"/lib64/ld-linux-x86-64.so.2";
    let Some(at) = bytes.windows(name.len()).position(|window| window == name) else {
        eprintln!("SKIPPED: /bin/true has another dynamic linker here");
        return;
    };
    bytes[at..at + name.len()].copy_from_slice(b"/lib/ld-musl-x86_64.so.1\0\0\0");
    let program = folder.path().join("musl");
    executable(&program, &bytes);
    let (text, status) = examine(&[program.to_str().expect("a plain path")]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("ld-musl") && text.contains("-> build it for glibc"), "{text}");
}

#[test]
fn mistakes_of_the_user_have_a_status_of_their_own() {
    let library = library();
    let library = library.to_str().expect("a plain path");
    for (arguments, wanted) in [
        (vec!["--", "no-such-program-anywhere"], "no such program in PATH"),
        (vec!["--", "/etc"], "not an executable file"),
        (vec!["--preload", "/no/such/library.so", "--", "cat"], "/no/such/library.so"),
        (vec!["--preload", library], "PROGRAM"),
        (vec!["--frobnicate"], "unexpected argument"),
    ] {
        let (text, status) = run(doctor(&arguments));
        assert_eq!(status, 2, "{arguments:?}: {text}");
        assert!(text.contains(wanted), "{arguments:?}: {text}");
    }
}

#[test]
fn a_library_that_is_none_is_not_preloaded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let broken = folder.path().join("libbroken.so");
    fs::write(&broken, "not a library").expect("a temporary file");
    let (text, status) = run(doctor(&["--preload", broken.to_str().expect("a plain path"), "--", "cat"]));
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("the dynamic linker does not load the hooks"), "{text}");
}

#[test]
fn the_environment_makes_any_program_report_and_go_on() {
    let output = Command::new("echo")
        .arg("went on")
        .env("LD_PRELOAD", library())
        .env("SQUALL_DOCTOR", "1")
        .output()
        .expect("echo is everywhere");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "went on\n");
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(report.contains("squall doctor: ") && report.trim_end().ends_with("healthy"), "{report}");
}
