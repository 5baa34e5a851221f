//! Invariants that are visible in the sources: what the server's crates may not know of, what the core of Raft may not do, and where
//! `unsafe` may be written.
//!
//! Every check says what it has scanned (`--nocapture`), and fails if that is suspiciously little: a moved folder must not turn a
//! check into one that passes on nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a server in blocking style is made of.
const SERVER: [&str; 3] = ["rpc", "raft", "kvserver"];
/// Where `unsafe` may be written.
const RUNTIME: [&str; 3] = ["fiber", "iomanager", "hook"];
/// What rpc, raft and kvserver may neither name in their code nor depend on, directly or through others.
const EVENT_LOOPS: [&str; 12] = [
    "mio",
    "epoll",
    "polling",
    "io_uring",
    "tokio",
    "async_std",
    "async_io",
    "smol",
    "futures",
    "futures_util",
    "libuv",
    "squall_iomanager",
];
/// The forms in which asynchronous code begins and waits.
const ASYNC: [&str; 5] = ["async fn", "async move", "async {", "async |", ".await"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The Rust sources under a folder of the repository, with their code.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    found.sort();
    found.into_iter().map(|path| (path.clone(), code(&read(&path)))).collect()
}

/// The text without its line comments. A `//` that follows a colon is taken for a part of an address in a string.
fn code(text: &str) -> String {
    let without_comment = |line: &str| {
        let comment = line.match_indices("//").map(|(at, _)| at).find(|at| !line[..*at].ends_with(':'));
        line[..comment.unwrap_or(line.len())].to_owned()
    };
    text.lines().map(without_comment).collect::<Vec<_>>().join("\n")
}

fn words(code: &str) -> BTreeSet<&str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

/// Says what was scanned, and that it was not nothing.
fn report(what: &str, scanned: &[(PathBuf, String)], at_least: usize) {
    let lines: usize = scanned.iter().map(|(_, code)| code.lines().count()).sum();
    println!("{what}: {} files, {lines} lines", scanned.len());
    for (path, _) in scanned {
        println!("  {}", path.strip_prefix(root()).unwrap_or(path).display());
    }
    assert!(scanned.len() >= at_least, "{what}: only {} files, is the folder still there?", scanned.len());
    assert!(lines > 100, "{what}: only {lines} lines");
}

#[test]
fn the_server_is_plain_blocking_rust() {
    for folder in SERVER {
        let scanned = sources(folder);
        report(folder, &scanned, 3);
        for (path, code) in &scanned {
            for banned in EVENT_LOOPS {
                assert!(!words(code).contains(banned), "{}: `{banned}`", path.display());
            }
            for banned in ASYNC {
                assert!(!code.contains(banned), "{}: `{banned}`", path.display());
            }
        }
    }
}

/// The names under the `[…dependencies]` headings of a manifest, with underscores.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut in_dependencies = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(heading) = line.strip_prefix('[') {
            in_dependencies = heading.trim_end_matches(']').ends_with("dependencies");
        } else if in_dependencies && !line.starts_with('#') {
            let name: String =
                line.chars().take_while(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect();
            if !name.is_empty() {
                names.insert(name.replace('-', "_"));
            }
        }
    }
    names
}

#[test]
fn the_servers_manifests_name_no_event_loop() {
    for folder in SERVER {
        let names = dependencies(&read(&root().join(folder).join("Cargo.toml")));
        println!("{folder}: {names:?}");
        assert!(names.contains("log"), "{folder}: is this still how dependencies are written?");
        for banned in EVENT_LOOPS {
            assert!(!names.contains(banned), "{folder} depends on {banned}");
        }
    }
}

/// Package name to the names that it depends on, from Cargo.lock.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in read(&root().join("Cargo.lock")).split("[[package]]").skip(1) {
        let name = package
            .lines()
            .find_map(|line| line.strip_prefix("name = "))
            .map(|name| name.trim_matches('"').replace('-', "_"))
            .expect("a locked package has a name");
        // One a line, `"name",` or `"name version",`. Versions of one package are taken together.
        let uses = package
            .split_once("dependencies = [")
            .map_or("", |(_, list)| list.split(']').next().unwrap_or(""))
            .lines()
            .filter_map(|line| line.trim().strip_prefix('"'))
            .filter_map(|line| line.split(['"', ' ']).next())
            .map(|name| name.replace('-', "_"));
        packages.entry(name).or_default().extend(uses);
    }
    packages
}

#[test]
fn nothing_below_the_server_brings_an_event_loop_along() {
    let packages = locked();
    assert!(packages["squall_iomanager"].contains("mio"), "is this still how Cargo.lock is written?");
    // The runtime is what hides the event loop, so what it uses does not count.
    let runtime = RUNTIME.map(|folder| format!("squall_{folder}"));
    let mut queue: Vec<&str> = vec!["squall_rpc", "squall_raft", "squall_kvserver"];
    let mut seen = BTreeSet::new();
    while let Some(name) = queue.pop() {
        if runtime.iter().any(|part| part == name) || !seen.insert(name) {
            continue;
        }
        assert!(!EVENT_LOOPS.contains(&name), "the server depends on {name}");
        queue.extend(packages[name].iter().map(String::as_str));
    }
    println!("{} packages: {seen:?}", seen.len());
    assert!(seen.len() > 20, "only {} packages", seen.len());
}

#[test]
fn the_core_of_raft_is_pure() {
    let scanned = sources("raft/src/core");
    report("raft/src/core", &scanned, 5);
    for (path, code) in &scanned {
        // A shared value that nobody can change is as pure as a copy.
        let code = &code.replace("std::sync::Arc;", "");
        // `std::net`, `use std::{io, net}`, `core::time`: whatever follows is looked at up to the end of the statement.
        for library in ["std::", "core::", "alloc::"] {
            for (at, _) in code.match_indices(library) {
                let path_part = code[at..].split([';', '(', '<', '!', ' ', ')']).next().unwrap_or("");
                let group = code[at..].split(';').next().unwrap_or("");
                let looked_at = if group.contains('{') && group[library.len()..].starts_with('{') {
                    group
                } else {
                    path_part
                };
                for banned in ["net", "fs", "io", "thread", "time", "sync", "env", "process", "os"] {
                    assert!(!words(looked_at).contains(banned), "{}: `{looked_at}`", path.display());
                }
            }
        }
        for banned in ["getrandom", "println", "eprintln", "Instant", "SystemTime", "log_enabled"] {
            assert!(!words(code).contains(banned), "{}: `{banned}`", path.display());
        }
        for level in ["error", "warn", "info", "debug", "trace", "log"] {
            assert!(!code.contains(&format!("log::{level}!")), "{}: writes a log line", path.display());
        }
        assert!(!code.lines().any(|line| line.trim().starts_with("use log::")), "{}", path.display());
    }
}

/// The members of the workspace by their folders; the root package is `.`.
fn members() -> Vec<String> {
    let manifest = read(&root().join("Cargo.toml"));
    let list = manifest.split_once("members = [").expect("a workspace").1;
    list.split(']')
        .next()
        .unwrap_or("")
        .split(',')
        .map(|member| member.trim().trim_matches('"').to_owned())
        .collect()
}

/// The folder of the repository that a member is in.
fn top_folder(member: &str) -> &str {
    member.split('/').next().unwrap_or(member)
}

#[test]
fn unsafe_is_written_in_the_runtime_only() {
    let members = members();
    println!("members: {members:?}");
    assert!(RUNTIME.iter().all(|folder| members.iter().any(|member| member == folder)));
    let outside: Vec<_> = members.iter().filter(|member| !RUNTIME.contains(&top_folder(member))).collect();
    assert!(outside.len() >= 6, "only {outside:?}");
    for member in outside {
        let scanned = sources(&format!("{member}/src"));
        println!("{member}: {} files", scanned.len());
        assert!(!scanned.is_empty(), "{member} has no sources");
        for (path, code) in &scanned {
            assert!(!words(code).contains("unsafe"), "{}: `unsafe`", path.display());
        }
        // The compiler holds them to it, whatever macros may expand to.
        let library = root().join(member).join("src/lib.rs");
        let binaries = scanned.iter().filter(|(path, _)| {
            path.file_name().is_some_and(|name| name == "main.rs")
                || path.parent().is_some_and(|folder| folder.ends_with("bin"))
        });
        let roots: Vec<_> =
            binaries.map(|(path, _)| path).chain(library.is_file().then_some(&library)).collect();
        assert!(!roots.is_empty(), "{member} has neither a library nor a program");
        for path in roots {
            assert!(
                read(path).contains("\n#![forbid(unsafe_code)]\n"),
                "{} does not forbid it",
                path.display()
            );
        }
    }
}

/// What shares state between activities.
const SHARING: [&str; 12] = [
    "Mutex",
    "RwLock",
    "Condvar",
    "RefCell",
    "UnsafeCell",
    "AtomicBool",
    "AtomicU32",
    "AtomicU64",
    "AtomicUsize",
    "OnceLock",
    "LazyLock",
    "thread_local",
];

/// Invariant 5: one state, one owner. What the applier owns holds nothing through which a second activity could reach it.
#[test]
fn the_replicated_state_is_shared_with_nobody() {
    let mut scanned = sources("kvserver/src/store");
    for folder in ["kvserver/src/machine", "kvserver/src/command"] {
        scanned.extend(sources(folder));
    }
    let sessions = root().join("kvserver/src/session.rs");
    scanned.push((sessions.clone(), code(&read(&sessions))));
    report("the replicated state", &scanned, 8);
    for (path, code) in &scanned {
        for banned in SHARING {
            assert!(!words(code).contains(banned), "{}: `{banned}`", path.display());
        }
    }
}

/// The statics of a source that can change: several nodes of one process would share them.
fn mutable_statics(code: &str) -> Vec<&str> {
    let is_static = |line: &str| {
        let line = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        line.starts_with("static ") || line.starts_with("thread_local!")
    };
    let can_change =
        |line: &str| line.contains("static mut ") || SHARING.iter().any(|name| words(line).contains(name));
    code.lines().filter(|line| is_static(line) && can_change(line)).collect()
}

/// Invariant 3: no global mutable state above the hooks.
#[test]
fn the_server_keeps_no_global_state() {
    for folder in SERVER {
        let scanned = sources(&format!("{folder}/src"));
        report(folder, &scanned, 3);
        for (path, code) in &scanned {
            assert_eq!(mutable_statics(code), Vec::<&str>::new(), "{}", path.display());
        }
    }
}

#[test]
fn the_checks_would_notice() {
    assert_eq!(mutable_statics("pub static NEXT: AtomicU64 = AtomicU64::new(0);").len(), 1);
    assert_eq!(mutable_statics("    static mut X: u32 = 0;\nstatic NAMES: [&str; 1] = [\"a\"];").len(), 1);
    assert_eq!(mutable_statics("thread_local! {").len(), 1);
    let notices = |text: &str, word| words(&code(text)).contains(word);
    assert!(notices("use mio::Poll;", "mio"));
    assert!(notices("let x = unsafe { y };", "unsafe"));
    assert!(!notices("// tokio would do\nlet minor = 1;", "tokio"));
    assert!(!notices("#![forbid(unsafe_code)]", "unsafe"));
    assert!(notices("let url = \"http://x\"; polling::Poller::new();", "polling"));
    assert!(ASYNC.iter().any(|form| "pub async fn serve() {".contains(form)));
    assert!(dependencies("[dev-dependencies]\nasync-std.workspace = true").contains("async_std"));
    assert!(dependencies("[package]\nname = \"tokio\"").is_empty());
}
