//! Has another program examine itself: with the hooks that it has, or with those that are preloaded. It is ended before its `main`,
//! and is not started at all when the hooks would not be in it.

use crate::Form;
use crate::file::{self, Program};
use anyhow::{Context, bail};
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The constructors of a program and its libraries take less.
const PATIENCE: Duration = Duration::from_secs(30);

/// The findings, and whether nothing is dead.
///
/// # Errors
/// The program is none, or cannot be started; the library to preload is missing.
pub fn examine(
    program: &OsStr,
    arguments: &[OsString],
    library: Option<PathBuf>,
    form: Form,
) -> anyhow::Result<(String, bool)> {
    let path = file::resolve(Path::new(program))?;
    let preload = match file::examine(&path)? {
        Program::Inert { reason, advice } => return Ok((dead(&path, &reason, advice, form), false)),
        Program::Linked => None,
        Program::Preloadable => Some(preload_list(library)?),
    };
    if let Some(list) = &preload
        && let Some(reason) = refusal(&path, list)?
    {
        let advice = "preload a library that was built for this system";
        return Ok((dead(&path, &reason, advice, form), false));
    }
    // Of a script the interpreter, which would otherwise be started by `env`, and that would report.
    let mut command = Command::new(&path);
    command.args(arguments).env(
        "SQUALL_DOCTOR",
        match form {
            Form::Text => "only",
            Form::All => "all",
            Form::Json => "json",
        },
    );
    if let Some(list) = &preload {
        command.env("LD_PRELOAD", list);
    }
    let (text, is_healthy) = run(command).with_context(|| path.display().to_string())?;
    match text.find(if form == Form::Json { "{\"healthy\":" } else { "squall doctor: " }) {
        Some(start) => Ok((text[start..].to_owned(), is_healthy)),
        None => {
            let reason = format!("it did not report; it wrote {:?}", text.trim());
            Ok((dead(&path, &reason, "see whether it clears its environment as it starts", form), false))
        }
    }
}

/// What to set LD_PRELOAD to: what it is, if the hooks are in that, else the hooks in front of that.
fn preload_list(library: Option<PathBuf>) -> anyhow::Result<OsString> {
    let present = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    if library.is_none() && present.to_string_lossy().contains("libsquall_preload") {
        return Ok(present);
    }
    let library = match library {
        Some(library) => library.canonicalize().with_context(|| library.display().to_string())?,
        None => beside_this_program()?,
    };
    let mut list = library.into_os_string();
    if !present.is_empty() {
        list.push(":");
        list.push(present);
    }
    Ok(list)
}

fn beside_this_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("this program's own path")?;
    let folder = program.parent().context("this program is in no folder")?;
    let library = folder.join("libsquall_preload.so");
    if !library.is_file() {
        bail!("{} is missing: `make` puts it there, or name it with --preload", library.display());
    }
    Ok(library)
}

/// Why the dynamic linker would not load the library into the program. Asked by the means of `ldd`, without running it.
fn refusal(path: &Path, preload: &OsStr) -> anyhow::Result<Option<String>> {
    let output = Command::new(path)
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .env("LD_PRELOAD", preload)
        .stdin(Stdio::null())
        .output()
        .with_context(|| path.display().to_string())?;
    let (loaded, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let names: Vec<_> = std::env::split_paths(preload).filter(|path| !path.as_os_str().is_empty()).collect();
    let is_loaded = |name: &PathBuf| loaded.contains(&*name.to_string_lossy());
    Ok(match names.iter().all(is_loaded) && output.status.success() {
        true => None,
        false => Some(format!("the dynamic linker does not load the hooks into it: {}", said.trim())),
    })
}

/// Runs it until it has ended itself, or for as long as anybody would wait. Returns what it wrote to standard error.
fn run(mut command: Command) -> anyhow::Result<(String, bool)> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stderr = child.stderr.take().context("standard error was asked for")?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What came until then is all there is.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = reader.join().unwrap_or_default();
    Ok((text, status.success()))
}

/// The findings about a program in which no hook can be.
fn dead(path: &Path, reason: &str, advice: &str, form: Form) -> String {
    let program = path.display().to_string();
    if form != Form::Json {
        return format!("squall doctor: {program}\n  DEAD {reason}\n       -> {advice}\nNOT healthy\n");
    }
    let finding =
        serde_json::json!({ "subject": "the program", "found": reason, "level": "dead", "advice": advice });
    serde_json::json!({
        "healthy": false, "program": program, "mechanisms": [finding], "symbols": [], "trials": [],
    })
    .to_string()
}
