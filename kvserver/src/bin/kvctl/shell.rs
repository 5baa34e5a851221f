//! Commands typed at a prompt. Each is executed exactly once, like those of the command line.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use rustyline::error::ReadlineError;
use squall_kvserver::command;
use squall_kvserver::resp::split_inline;

use crate::output::{reply_json, reply_text};
use crate::{Cluster, FAILED, keys};

const HELP: &str = "\
Type a Redis command, for example SET greeting 'hello world', GET greeting, RANGE - + LIMIT 10, EXGET greeting.
COMMANDS lists all, EXIT or Ctrl-D ends. Several at once, all or none: TRANSACTION 0 3 SET a 1 2 INCR b";

pub fn run(cluster: &Cluster) -> anyhow::Result<ExitCode> {
    if !std::io::stdin().is_terminal() {
        return run_script(cluster);
    }
    println!("Connected to a cluster of {} nodes. HELP tells what can be typed.", cluster.config.nodes.len());
    let mut editor = rustyline::DefaultEditor::new()?;
    let history = history_file();
    if let Some(file) = &history {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    loop {
        match editor.readline("squall> ") {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                editor.add_history_entry(&line)?;
                match line.trim().to_ascii_lowercase().as_str() {
                    "exit" | "quit" => break,
                    "help" => println!("{HELP}"),
                    "commands" => println!("{}", names()),
                    _ => {
                        execute(cluster, &line);
                    }
                }
            }
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(file) = &history
        && let Err(error) = editor.save_history(file)
    {
        eprintln!("kvctl: the history is not kept in {}: {error}", file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Executes what comes in on a pipe or from a file, line by line, up to the first error.
fn run_script(cluster: &Cluster) -> anyhow::Result<ExitCode> {
    for line in std::io::stdin().lines() {
        let line = line?;
        if !line.trim().is_empty() && !execute(cluster, &line) {
            return Ok(ExitCode::from(FAILED));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// False if there was an error.
fn execute(cluster: &Cluster, line: &str) -> bool {
    let Some(words) = split_inline(line.as_bytes()) else {
        eprintln!("kvctl: a quotation mark is missing in: {line}");
        return false;
    };
    match keys::execute(cluster, words) {
        Ok(reply) => {
            if cluster.json {
                println!("{}", reply_json(&reply));
            } else {
                println!("{}", reply_text(&reply));
            }
            !reply.is_error()
        }
        Err(error) => {
            eprintln!("kvctl: {}", squall_kvserver::explain(error.as_ref()));
            false
        }
    }
}

fn names() -> String {
    command::table().iter().map(|spec| spec.name().to_uppercase()).collect::<Vec<_>>().join(" ")
}

/// In the user's state folder, as the XDG base directory specification has it.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    let folder = state.join("squall");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("kvctl-history"))
}
