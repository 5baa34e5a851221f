//! The doctor: is every hook live in this process, and which mechanisms are in use?
//!
//! A hook that is silently inactive is the worst fault that a runtime of this kind can have: everything works, one fiber at a time.
//! So `symbols.rs` looks name by name at what the dynamic linker resolves it to, and module by module at what is in the table of
//! imported functions; `mechanisms.rs` at what the machine offers; and `trials.rs` tries family by family whether a call that waits
//! lets another fiber run. This file is the report that they fill.

mod mechanisms;
mod symbols;
mod trials;

use core::fmt::{self, Write as _};
use std::io::{self, Write};

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Level {
    /// As it should be.
    Good,
    /// Works, with a limit that is worth knowing.
    Notice,
    /// Something is dead: fibers block their workers.
    Bad,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Good => "ok",
            Level::Notice => "note",
            Level::Bad => "DEAD",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, in a few words.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What that means.
    pub level: Level,
    /// What to do about it; empty if there is nothing to do.
    pub advice: String,
}

impl Finding {
    fn good(subject: &str, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), found: found.into(), level: Level::Good, advice: String::new() }
    }

    fn notice(subject: &str, found: impl Into<String>, advice: &str) -> Self {
        Self { level: Level::Notice, advice: advice.into(), ..Self::good(subject, found) }
    }

    fn bad(subject: &str, found: impl Into<String>, advice: &str) -> Self {
        Self { level: Level::Bad, ..Self::notice(subject, found, advice) }
    }

    fn to_json(&self) -> String {
        format!(
            "{{\"subject\":{},\"found\":{},\"level\":{},\"advice\":{}}}",
            quoted(&self.subject),
            quoted(&self.found),
            quoted(&self.level.to_string().to_lowercase()),
            quoted(&self.advice)
        )
    }
}

/// One hooked function.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HookedSymbol {
    /// Its name.
    pub name: String,
    /// The file whose definition the name resolves to.
    pub resolves_to: String,
    /// Whether that is the hook.
    pub is_live: bool,
    /// Why it is not, and what to do about it; empty if it is live.
    pub advice: String,
    /// Loaded modules that call it, and whose calls reach the hook.
    pub callers: Vec<String>,
    /// Loaded modules whose calls go past the hook, with the file that they go to.
    pub bypassed_by: Vec<String>,
}

impl HookedSymbol {
    fn is_healthy(&self) -> bool {
        self.is_live && self.bypassed_by.is_empty()
    }

    fn to_json(&self) -> String {
        let names = |names: &[String]| list(names.iter().map(|name| quoted(name)));
        format!(
            "{{\"name\":{},\"live\":{},\"resolves_to\":{},\"advice\":{},\"callers\":{},\"bypassed_by\":{}}}",
            quoted(&self.name),
            self.is_live,
            quoted(&self.resolves_to),
            quoted(&self.advice),
            names(&self.callers),
            names(&self.bypassed_by)
        )
    }
}

/// What the doctor has found. Its text form is for people; the alternate one (`{:#}`) names every hooked function, not only those
/// that are dead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The program's file.
    pub program: String,
    /// The machine and the mechanisms in use.
    pub mechanisms: Vec<Finding>,
    /// Every hooked function, by name.
    pub symbols: Vec<HookedSymbol>,
    /// What was tried; empty if nothing was.
    pub trials: Vec<Finding>,
}

impl Report {
    /// Whether nothing is dead.
    pub fn is_healthy(&self) -> bool {
        let mut findings = self.mechanisms.iter().chain(&self.trials);
        self.symbols.iter().all(HookedSymbol::is_healthy)
            && findings.all(|finding| finding.level != Level::Bad)
    }

    /// The same as one JSON object on one line, which begins with `{"healthy":`.
    ///
    /// ```
    /// assert!(squall_hook::doctor::examine().to_json().starts_with("{\"healthy\":"));
    /// ```
    pub fn to_json(&self) -> String {
        format!(
            "{{\"healthy\":{},\"program\":{},\"mechanisms\":{},\"symbols\":{},\"trials\":{}}}",
            self.is_healthy(),
            quoted(&self.program),
            list(self.mechanisms.iter().map(Finding::to_json)),
            list(self.symbols.iter().map(HookedSymbol::to_json)),
            list(self.trials.iter().map(Finding::to_json))
        )
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            // Writing to a string cannot fail.
            c if c.is_control() => drop(write!(out, "\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn write_findings(f: &mut fmt::Formatter<'_>, findings: &[Finding]) -> fmt::Result {
    for finding in findings {
        writeln!(f, "  {:<5}{:<26}{}", finding.level, finding.subject, finding.found)?;
        if !finding.advice.is_empty() {
            writeln!(f, "       -> {}", finding.advice)?;
        }
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "squall doctor: {}", self.program)?;
        writeln!(f, "mechanisms")?;
        write_findings(f, &self.mechanisms)?;
        let live = self.symbols.iter().filter(|symbol| symbol.is_live).count();
        writeln!(f, "hooks: {live} of {} functions are live", self.symbols.len())?;
        let all = f.alternate();
        for symbol in self.symbols.iter().filter(|symbol| all || !symbol.is_healthy()) {
            let level = if symbol.is_healthy() { Level::Good } else { Level::Bad };
            write!(f, "  {level:<5}{:<26}{}", symbol.name, symbol.resolves_to)?;
            if !symbol.callers.is_empty() {
                write!(f, "; called by {}", symbol.callers.join(", "))?;
            }
            writeln!(f)?;
            if !symbol.advice.is_empty() {
                writeln!(f, "       -> {}", symbol.advice)?;
            }
            for module in &symbol.bypassed_by {
                writeln!(
                    f,
                    "       -> calls from {module} go past the hook: it was loaded with RTLD_DEEPBIND, or \
                     linked with -Bsymbolic; load or link it without"
                )?;
            }
        }
        if !self.trials.is_empty() {
            writeln!(f, "trials: does another fiber run while one waits in the call?")?;
            write_findings(f, &self.trials)?;
        }
        f.write_str(match self.is_healthy() {
            true => "healthy\n",
            false => "NOT healthy: see the lines marked DEAD\n",
        })
    }
}

/// Looks at the mechanisms and at every hooked function, and tries nothing: safe at any time, even before `main`.
///
/// # Blocking
/// Reads files below `/proc`.
pub fn examine() -> Report {
    Report {
        program: symbols::program(),
        mechanisms: mechanisms::examine(),
        symbols: symbols::examine(),
        trials: Vec::new(),
    }
}

/// Is every hook live in this process? As [`examine`], and tries each family of calls with fibers on a scheduler of its own.
///
/// ```
/// let report = squall_hook::doctor();
/// assert!(report.is_healthy(), "{report}");
/// ```
///
/// # Blocking
/// A fraction of a second if all is well, two seconds for each family that is dead: suspends the fiber, or blocks the thread.
pub fn doctor() -> Report {
    Report { trials: trials::run(), ..examine() }
}

const VARIABLE: &str = "SQUALL_DOCTOR";
/// Found in the file of every program and library that has the hooks in it, so that `squall-doctor` knows without running it.
#[used]
static MARK: [u8; 27] = *b"squall-hook: is linked in.\0";

/// At the start of a process: `SQUALL_DOCTOR=1` writes the report to standard error, `SQUALL_DOCTOR=only` does that and ends the process
/// before `main`, with status 0 if it is healthy, else 1; so do `all`, with every function, and `json`, in one line of JSON.
pub(crate) fn report_if_asked() {
    let Ok(value) = std::env::var(VARIABLE) else { return };
    if value.is_empty() || value == "0" {
        return;
    }
    let report = examine();
    let text = match value.as_str() {
        "json" => report.to_json() + "\n",
        "all" => format!("{report:#}"),
        _ => report.to_string(),
    };
    // There is nowhere to report a failure to.
    let _ = io::stderr().write_all(text.as_bytes());
    if matches!(value.as_str(), "json" | "all" | "only") {
        // SAFETY: ends the process at once, before anything has been set up that would need to be torn down.
        unsafe { libc::_exit(i32::from(!report.is_healthy())) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_are_escaped() {
        assert_eq!(quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }

    #[test]
    fn a_dead_hook_is_told_with_what_to_do() {
        let symbol = HookedSymbol {
            name: "read".into(),
            resolves_to: "libother.so".into(),
            is_live: false,
            advice: "take it away".into(),
            callers: Vec::new(),
            bypassed_by: vec!["plugin.so (to libc.so.6)".into()],
        };
        let report = Report { symbols: vec![symbol], ..Report::default() };
        assert!(!report.is_healthy());
        let text = report.to_string();
        for wanted in ["DEAD", "libother.so", "-> take it away", "calls from plugin.so"] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        assert!(report.to_json().starts_with("{\"healthy\":false"));
    }

    #[test]
    fn only_the_alternate_form_names_what_is_live() {
        let report = examine();
        assert!(report.is_healthy(), "{report}");
        assert!(!report.to_string().contains("epoll_pwait"));
        assert!(format!("{report:#}").contains("epoll_pwait"));
    }
}
