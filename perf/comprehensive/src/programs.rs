//! Runs a program with a limit of time, and keeps what it said.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command, for the report.
    pub command: String,
    pub stdout: String,
    pub stderr: String,
    /// Why it counts as failed; `None` if it does not.
    pub failure: Option<String>,
    pub took: Duration,
}

/// Runs it to its end, or ends it after `limit`, which is a failure.
///
/// # Errors
/// It cannot be started.
pub fn run(program: &Path, arguments: &[String], limit: Duration) -> io::Result<Outcome> {
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if started.elapsed() > limit => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => thread::sleep(Duration::from_millis(20)),
        }
    };
    let failure = match status {
        Some(status) if status.success() => None,
        Some(status) => Some(status.to_string()),
        None => Some(format!("did not end within {} s", limit.as_secs())),
    };
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    Ok(Outcome {
        command: [name.into_owned()].iter().chain(arguments).cloned().collect::<Vec<_>>().join(" "),
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
        failure,
        took: started.elapsed(),
    })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What came until then is all there is.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
