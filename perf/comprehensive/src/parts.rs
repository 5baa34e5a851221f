//! The seven parts, and the session in which they run.

use crate::programs::{self, Outcome};
use anyhow::Context;
use serde_json::Value;
use squall_profile::{flame, perf};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// One of the parts.
pub struct Part {
    pub title: &'static str,
    pub run: fn(&mut Session) -> anyhow::Result<()>,
}

pub const PARTS: [Part; 7] = [
    Part { title: "CPU stress", run: cpu },
    Part { title: "hooks", run: hook },
    Part { title: "IoManager", run: iomanager },
    Part { title: "system resources", run: system },
    Part { title: "perf", run: perf_session },
    Part { title: "flame graphs", run: flame_graphs },
    Part { title: "I/O and KV performance", run: io },
];

/// What a part has found.
pub struct Entry {
    pub title: String,
    pub outcome: Outcome,
    /// The file with all that the program said.
    pub file: String,
    /// What the program's JSON says, if it was asked for that.
    pub figures: Option<Value>,
}

/// A graph for the report.
pub struct Graph {
    pub title: String,
    pub svg: String,
}

pub struct Session {
    /// Names all files.
    pub time: String,
    pub folder: PathBuf,
    pub perf_folder: PathBuf,
    pub quick: bool,
    pub entries: Vec<Entry>,
    pub graphs: Vec<Graph>,
    pub skipped: Vec<String>,
    programs: PathBuf,
}

/// Longer than any part takes on a slow machine.
const LIMIT: Duration = Duration::from_secs(300);

impl Session {
    /// Makes the folders, and says what is missing.
    pub fn begin(out: &Path, programs: PathBuf, quick: bool) -> anyhow::Result<Self> {
        let time = time_of_day();
        let folder = out.join("test_results_comprehensive").join(format!("session_{time}"));
        let perf_folder = out.join("perf_results_comprehensive");
        for folder in [&folder, &perf_folder] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(Self {
            time,
            folder,
            perf_folder,
            quick,
            entries: Vec::new(),
            graphs: Vec::new(),
            skipped: Vec::new(),
            programs,
        })
    }

    /// A line about how far it is.
    pub fn say(&self, line: &str) {
        // Nobody need read it.
        let _ = writeln!(std::io::stderr(), "[INFO] {line}");
    }

    fn skip(&mut self, what: String) {
        let _ = writeln!(std::io::stderr(), "[WARNING] skipped: {what}");
        self.skipped.push(what);
    }

    /// What has failed, by title.
    pub fn failures(&self) -> Vec<String> {
        let failed = self.entries.iter().filter_map(|entry| {
            entry.outcome.failure.as_ref().map(|failure| format!("{}: {failure}", entry.title))
        });
        failed.collect()
    }

    fn program(&mut self, name: &str) -> Option<PathBuf> {
        let path = self.programs.join(name);
        if path.is_file() {
            return Some(path);
        }
        self.skip(format!("{} is missing: `make` builds it", path.display()));
        None
    }

    /// Runs a test program and keeps what it says in a file of the session. `must_say`: lines without which it has failed.
    fn test(
        &mut self,
        title: &str,
        name: &str,
        arguments: &[&str],
        file: &str,
        must_say: &[&str],
    ) -> anyhow::Result<()> {
        let Some(program) = self.program(name) else { return Ok(()) };
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut outcome = programs::run(&program, &arguments, LIMIT).with_context(|| name.to_owned())?;
        for wanted in must_say {
            if outcome.failure.is_none() && !outcome.stdout.lines().any(|line| line == *wanted) {
                outcome.failure = Some(format!("it did not say `{wanted}`"));
            }
        }
        let figures = if arguments.iter().any(|argument| argument == "--json") {
            serde_json::from_str(&outcome.stdout).ok()
        } else {
            None
        };
        let text = format!("$ {}\n{}{}", outcome.command, outcome.stdout, outcome.stderr);
        self.write(&self.folder.join(file), &text)?;
        let result = outcome.failure.as_deref().unwrap_or("done");
        self.say(&format!("{title}: {result}, {:.1} s", outcome.took.as_secs_f64()));
        self.entries.push(Entry { title: title.into(), outcome, file: file.into(), figures });
        Ok(())
    }

    fn write(&self, path: &Path, text: &str) -> anyhow::Result<()> {
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A file among perf's.
    fn perf_file(&self, name: &str, extension: &str) -> PathBuf {
        self.perf_folder.join(format!("{name}_{}.{extension}", self.time))
    }
}

/// As `20251028_125843`, in UTC.
fn time_of_day() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds as i64 / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}{month:02}{day:02}_{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// The date so many days after 1970-01-01. Years are counted from March, so that the day of the leap comes last, in eras of 400.
fn civil(days: i64) -> (i64, i64, i64) {
    const ERA_DAYS: i64 = 146_097;
    let since_year_0 = days + 719_468;
    let (era, day_of_era) = (since_year_0.div_euclid(ERA_DAYS), since_year_0.rem_euclid(ERA_DAYS));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

fn cpu(session: &mut Session) -> anyhow::Result<()> {
    session.test("CPU stress", "simple_stress_test", &[], "01_cpu_stress.txt", &["failed: 0"])?;
    let seconds = if session.quick { "3" } else { "10" };
    let arguments = ["--seconds", seconds, "--json"];
    session.test("fiber stress", "fiber_stress_test", &arguments, "01_fiber_stress.txt", &[])
}

fn hook(session: &mut Session) -> anyhow::Result<()> {
    let seconds = if session.quick { "3" } else { "10" };
    let must_say = ["task2 sleep for 2s"];
    session.test("hooks", "test_hook", &["--seconds", seconds], "02_hook_test.txt", &must_say)
}

fn iomanager(session: &mut Session) -> anyhow::Result<()> {
    let must_say = ["write callback", "connect success"];
    session.test("IoManager", "test_iomanager", &[], "03_iomanager_test.txt", &must_say)?;
    session.test("connection pool", "conn_pool_test", &["--json"], "03_conn_pool_test.txt", &[])
}

fn system(session: &mut Session) -> anyhow::Result<()> {
    let commands: [(&str, &str, &[&str]); 7] = [
        ("time", "date", &[]),
        ("CPU", "lscpu", &[]),
        ("memory", "free", &["-h"]),
        ("virtual memory", "vmstat", &["1", "2"]),
        ("disk I/O", "iostat", &["-x"]),
        ("network connections", "ss", &["-s"]),
        ("load", "uptime", &[]),
    ];
    let mut text = String::new();
    for (title, program, arguments) in commands {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        text += &format!("=== {title} ===\n");
        match programs::run(Path::new(program), &arguments, LIMIT) {
            Ok(outcome) => text += &outcome.stdout,
            Err(_) => {
                text += &format!("{program} is not installed\n");
                session.skip(format!("{title}: {program} is not installed"));
            }
        }
        text.push('\n');
    }
    session.write(&session.folder.join("04_system_resources.txt"), &text)
}

fn perf_session(session: &mut Session) -> anyhow::Result<()> {
    let Some(program) = session.program("simple_stress_test") else { return Ok(()) };
    if let Some(reason) = perf::objection() {
        session.skip(format!("perf: {reason}"));
        return Ok(());
    }
    let data = session.perf_file("perf_cpu", "data");
    let operations = if session.quick { "2000" } else { "20000" };
    let status = perf::record(&data, 499)
        .arg("--")
        .arg(program)
        .args(["--operations", operations, "--json"])
        .stdout(std::process::Stdio::null())
        .status()
        .context("perf record")?;
    session.say(&format!("perf record: {status}"));
    let input = data.display().to_string();
    for (name, arguments) in [
        ("perf_cpu_report", vec!["report", "--stdio", "--no-inline", "-i", &input]),
        ("perf_script", vec!["script", "--no-inline", "-i", &input]),
    ] {
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let outcome = programs::run(Path::new("perf"), &arguments, LIMIT).context("perf")?;
        session.write(&session.perf_file(name, "txt"), &outcome.stdout)?;
    }
    let folded = perf::fold(&data).context("folding perf's samples")?;
    session.write(&session.perf_file("perf", "folded"), &folded)?;
    draw(session, &folded, flame::Subject::OnCpuSamples, "simple_stress_test, on the CPU", "flamegraph")
}

/// Draws a graph, for the report, too. A profile without samples is said, not an error.
fn draw(
    session: &mut Session,
    folded: &str,
    subject: flame::Subject,
    title: &str,
    file: &str,
) -> anyhow::Result<()> {
    match flame::graph(folded, subject, title) {
        Ok(svg) => {
            session.write(&session.perf_file(file, "svg"), &svg)?;
            session.graphs.push(Graph { title: title.into(), svg });
        }
        Err(error) => session.skip(format!("{title}: {error}")),
    }
    Ok(())
}

fn flame_graphs(session: &mut Session) -> anyhow::Result<()> {
    let Some(profiler) = session.program("squall-profile") else { return Ok(()) };
    let Some(program) = session.program("fiber_stress_test") else { return Ok(()) };
    let seconds = if session.quick { "3" } else { "10" };
    for (file, title, subject, options) in [
        ("flamegraph_fibers", "fiber_stress_test, on the CPU", flame::Subject::OnCpu, None),
        (
            "flamegraph_waits",
            "fiber_stress_test, where fibers wait",
            flame::Subject::OffCpu,
            Some("--off-cpu"),
        ),
    ] {
        let svg = session.perf_file(file, "svg");
        let mut arguments = vec!["run".to_owned(), "--title".into(), title.into(), "--output".into()];
        arguments.push(svg.display().to_string());
        arguments.extend(options.map(str::to_owned));
        arguments.extend(["--".into(), program.display().to_string(), "--seconds".into(), seconds.into()]);
        let outcome = programs::run(&profiler, &arguments, LIMIT).context("squall-profile")?;
        match outcome.failure {
            None => {
                let svg = fs::read_to_string(&svg).with_context(|| svg.display().to_string())?;
                session.graphs.push(Graph { title: title.into(), svg });
            }
            Some(failure) => session.skip(format!("{title}: {failure}: {}", outcome.stderr.trim())),
        }
        session.say(&format!("{title}: {subject:?}, {:.1} s", outcome.took.as_secs_f64()));
    }
    Ok(())
}

fn io(session: &mut Session) -> anyhow::Result<()> {
    let folder = session.folder.display().to_string();
    let (mib, synced) = if session.quick { ("64", "4") } else { ("256", "16") };
    let arguments = ["--dir", &folder, "--mib", mib, "--synced-mib", synced, "--json"];
    session.test("I/O speed", "io_speed_test", &arguments, "07_io_performance.txt", &[])?;
    let arguments = if session.quick { vec!["--quick", "--json"] } else { vec!["--json"] };
    session.test("KV performance", "kv_raft_performance_test", &arguments, "07_kv_raft_performance.txt", &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(11_017), (2000, 3, 1));
        assert_eq!(civil(20_389), (2025, 10, 28));
    }
}
