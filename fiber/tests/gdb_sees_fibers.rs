//! gdb with `tools/gdb/squall.py`: on a process that it has started, and on a core file of it.

use squall_fiber::{Builder, FiberState, Scheduler, SchedulerConfig};
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CHILD: &str = "SQUALL_TEST_STOPS_FOR_GDB";

#[inline(never)]
fn function_that_waits() {
    squall_fiber::park();
    black_box(());
}

#[inline(never)]
fn function_that_computes(until: &AtomicBool) {
    while !until.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
    black_box(());
}

/// The process that gdb looks at: some fibers, and a trap when they are where they should be.
#[test]
fn child_that_stops_for_gdb() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    static NEVER: AtomicBool = AtomicBool::new(false);
    let scheduler =
        Scheduler::new(SchedulerConfig { threads: 2, ..Default::default() }).expect("a scheduler");
    drop(scheduler.spawn(Builder::new().name("parked one"), || {
        function_that_waits();
        black_box(());
    }));
    drop(scheduler.spawn(Builder::new().name("sleeping one"), || {
        squall_fiber::sleep(Duration::from_secs(3600));
        black_box(());
    }));
    drop(scheduler.spawn(Builder::new().name("running one"), || {
        function_that_computes(&NEVER);
        black_box(());
    }));
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let count = |state| squall_fiber::dump().fibers.iter().filter(|fiber| fiber.state == state).count();
        if (count(FiberState::Waiting), count(FiberState::Running)) == (2, 1) {
            break;
        }
        assert!(Instant::now() < deadline, "{}", squall_fiber::dump());
    }
    if std::env::var_os(CHILD).is_some_and(|value| value == "core") {
        let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: one valid struct. Where that is not allowed there is no core file, and the test says so.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &unlimited) };
        std::process::abort();
    }
    // SAFETY: gdb takes it.
    unsafe { libc::raise(libc::SIGTRAP) };
    std::process::exit(0);
}

/// What gdb writes; `None` if it cannot run here.
fn gdb(commands: &[&str], target: &[&str]) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/gdb/squall.py");
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"]);
    // The signal by which the dump asks the running fiber where it stands.
    for signal in 34..64 {
        gdb.args(["-ex", &format!("handle SIG{signal} nostop noprint pass")]);
    }
    gdb.arg("-x").arg(script);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = match gdb.arg("--args").args(target).env(CHILD, "1").output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: gdb cannot be run: {error}");
            return None;
        }
    };
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if text.contains("Operation not permitted") || text.contains("not compiled with Python") {
        eprintln!("SKIPPED: {text}");
        return None;
    }
    Some(text)
}

/// The lines from one that begins with `start` to one that begins with `end`.
fn section<'a>(text: &'a str, start: &str, end: &str) -> Vec<&'a str> {
    let from_start = text.lines().skip_while(|line| !line.starts_with(start));
    let lines: Vec<_> = from_start.take_while(|line| !line.starts_with(end)).collect();
    assert!(!lines.is_empty(), "no {start}: {text}");
    lines
}

fn assert_shows_the_fibers(text: &str) {
    let list = section(text, "==list", "==apply");
    let row = |name: &str| {
        let found = list.iter().find(|line| line.contains(name));
        *found.unwrap_or_else(|| panic!("{name} is not in the list: {text}"))
    };
    let parked = row("parked one");
    assert!(parked.contains("parked") && parked.contains("function_that_waits"), "{parked}");
    let sleeping = row("sleeping one");
    assert!(sleeping.contains("sleeps") && sleeping.contains("child_that_stops_for_gdb"), "{sleeping}");
    assert!(row("running one").contains("running"), "{text}");
    assert!(list.contains(&"3 fibers"), "{text}");

    // Up to the closure that was spawned, and to the very bottom of the stack.
    let position = |lines: &[&str], name: &str| {
        let found = lines.iter().position(|line| line.contains(name));
        found.unwrap_or_else(|| panic!("no {name}: {lines:#?}"))
    };
    for (name, function) in
        [("'parked one'", "function_that_waits"), ("'running one'", "function_that_computes")]
    {
        let apply = section(text, "==apply", "==one");
        let start = position(&apply, name);
        let end =
            apply[start..].iter().position(|line| line.is_empty()).map_or(apply.len(), |end| start + end);
        let fiber = &apply[start..end];
        let closure = position(fiber, "child_that_stops_for_gdb::{closure");
        assert!(position(fiber, function) <= closure, "{fiber:#?}");
        assert!(closure < position(fiber, "squall_fiber_root"), "{fiber:#?}");
        assert!(fiber[fiber.len() - 1].contains("squall_fiber_root"), "{fiber:#?}");
    }
    let one = section(text, "==one", "==back");
    position(&one, "function_that_waits");
    // Nothing is left of it.
    let back = section(text, "==back", "==end");
    assert!(!back.iter().any(|line| line.contains("squall_fiber_root")), "{back:#?}");
}

const LOOK: [&str; 12] = [
    "echo ==list\\n",
    "info fibers",
    "echo ==apply\\n",
    "fiber apply all bt",
    "echo \\n==one\\n",
    // Numbers are given in the order of spawning, from 1.
    "fiber 1",
    "bt",
    "echo ==back\\n",
    "fiber off",
    "bt 3",
    "echo ==end\\n",
    "fiber 99999",
];

fn own_program() -> String {
    let program = std::env::current_exe().expect("this program has a path");
    program.into_os_string().into_string().expect("a plain path")
}

#[test]
fn the_fibers_of_a_process() {
    let mut commands = vec!["run"];
    commands.extend(LOOK);
    commands.push("kill");
    let program = own_program();
    let child = [program.as_str(), "child_that_stops_for_gdb", "--exact", "--nocapture"];
    let Some(text) = gdb(&commands, &child) else { return };
    assert_shows_the_fibers(&text);
    assert!(text.contains("there is no fiber 99999"), "{text}");
}

/// Written by the kernel: gdb's own `generate-core-file` gives up on a mapping at its first guard page, and so leaves all stacks out.
#[test]
fn the_fibers_of_a_core_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let child = Command::new(own_program())
        .args(["child_that_stops_for_gdb", "--exact"])
        .env(CHILD, "core")
        .current_dir(&folder)
        .output()
        .expect("this program can be run");
    let cores: Vec<_> = std::fs::read_dir(&folder).expect("it was made above").flatten().collect();
    let [core] = cores.as_slice() else {
        eprintln!("SKIPPED: the system leaves no core file here ({})", child.status);
        return;
    };
    let load = format!("core-file {}", core.path().display());
    let mut commands = vec![load.as_str()];
    commands.extend(LOOK);
    let Some(text) = gdb(&commands, &[&own_program()]) else { return };
    assert_shows_the_fibers(&text);
}
