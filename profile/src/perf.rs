//! The system's sampler, `perf`: sees every thread of a program and, where that is permitted, the kernel.

use inferno::collapse::Collapse;
use inferno::collapse::perf::{Folder, Options};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Why perf is of no use here, in words; `None` if it is.
pub fn objection() -> Option<String> {
    let Ok(folder) = tempfile::tempdir() else { return Some("there is no temporary folder".into()) };
    let tried = record(&folder.path().join("perf.data"), 99).args(["--", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it failed");
            Some(format!("perf may not observe here: {first}"))
        }
        Err(error) => Some(format!("perf cannot be run: {error}")),
    }
}

/// `perf record`, so many times a second, still without what to record.
pub fn record(data: &Path, rate_hz: u32) -> Command {
    let mut command = Command::new("perf");
    command.args(["record", "--quiet", "--call-graph", "fp", "--freq", &rate_hz.to_string(), "--output"]);
    command.arg(data).stdin(Stdio::null());
    command
}

/// Folds what perf has recorded. What the runtime does between the bottom of a fiber's stack and the function that was spawned is left out.
///
/// # Errors
/// `perf script` fails, or writes what nobody expects.
pub fn fold(data: &Path) -> io::Result<String> {
    let script = Command::new("perf")
        // The names of inlined functions would take minutes. Without the periods, each sample counts for one.
        .args(["script", "--no-inline", "--fields", "comm,pid,tid,time,event,ip,sym,dso", "--input"])
        .arg(data)
        .stderr(Stdio::null())
        .output()?;
    if !script.status.success() {
        return Err(io::Error::other("`perf script` failed"));
    }
    let mut folded = Vec::new();
    let mut options = Options::default();
    options.annotate_kernel = true;
    Folder::from(options).collapse(script.stdout.as_slice(), &mut folded)?;
    Ok(String::from_utf8_lossy(&folded).lines().map(|line| tidy(line) + "\n").collect())
}

/// One folded stack as people want to read it.
fn tidy(line: &str) -> String {
    let Some((stack, count)) = line.rsplit_once(' ') else { return line.to_owned() };
    let mut kept: Vec<&str> = Vec::new();
    let mut above_root = false;
    for name in stack.split(';').map(without_hash) {
        above_root |= name == ROOT;
        let is_startup = above_root && name != ROOT && is_of_runtime_or_std(name);
        above_root = name == ROOT || is_startup;
        if !is_startup {
            kept.push(name);
        }
    }
    format!("{} {count}", kept.join(";"))
}

/// The function at the bottom of every fiber's stack.
const ROOT: &str = "squall_fiber_root";

fn is_of_runtime_or_std(name: &str) -> bool {
    let name = name.trim_start_matches(['<', '&', '*', '(']);
    ["squall_fiber::", "std::", "core::", "alloc::", "__rust_"].iter().any(|start| name.starts_with(start))
}

/// Without the hash that tells apart functions of one name.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((rest, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => rest,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_fiber_is_left_out_and_nothing_else() {
        let line = "squall-0;squall_fiber_root;squall_fiber::fiber::Inner::main::h0123456789abcdef;\
                    std::panicking::catch_unwind;__rust_try;<core::panic::AssertUnwindSafe<F> as X>::call_once;\
                    app::serve::{{closure}}::hfedcba9876543210;std::io::Read::read;recv 17";
        assert_eq!(
            tidy(line),
            "squall-0;squall_fiber_root;app::serve::{{closure}};std::io::Read::read;recv 17"
        );
        assert_eq!(tidy("main;std::rt::lang_start;app::main 3"), "main;std::rt::lang_start;app::main 3");
    }
}
