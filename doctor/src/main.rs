//! `squall-doctor`: are the hooks live, on this machine, in this or another program?
//!
//! The findings are the library's (`squall::doctor`). This program makes them in its own process, or has another program make them in
//! its (`other.rs`), and says by its exit status how it went.

#![forbid(unsafe_code)]

mod file;
mod other;

use clap::Parser;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

const AFTER_HELP: &str = "\
Examples:
  squall-doctor                          this machine: what fibers get here, and whether a fiber that
                                         waits lets others run, family by family of libc's calls
  squall-doctor -- ./server --port 80    another program, which has squall linked in, or would get it
                                         by LD_PRELOAD; it is ended before its main, so nothing is served
  squall-doctor --all                    every hooked function, and who calls it
  squall-doctor --json | jq .symbols     for scripts

From inside a program: SQUALL_DOCTOR=1 in its environment writes the same to its standard error as it
starts, and goes on; squall::doctor() returns it as a value, for a test such as
  assert!(squall::doctor().is_healthy());

What can be DEAD, and then makes fibers block their workers:
  a function      somebody else's definition comes first, such as another preloaded library's
  a module        was loaded with RTLD_DEEPBIND or linked with -Bsymbolic, and calls past the hooks
  a program       is static, uses musl, or runs with another user's rights: nothing can be preloaded;
                  or is written in Go, which makes system calls by itself

Exit status: 0 all live, 1 something is dead, 2 could not look.";

/// Tells whether squall's hooks are live: which function of libc is taken over in this process or in another program, and which
/// mechanisms this machine offers.
#[derive(Parser)]
#[command(version, after_help = AFTER_HELP)]
struct Arguments {
    /// One line of JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Name every hooked function, not only the dead ones.
    #[arg(long, conflicts_with = "json")]
    all: bool,
    /// The library to preload into PROGRAM; libsquall_preload.so beside this program if not given.
    #[arg(long, value_name = "FILE", requires = "program")]
    preload: Option<PathBuf>,
    /// A program to look at instead, and its arguments.
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// How the findings are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    All,
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let form = match arguments {
        Arguments { json: true, .. } => Form::Json,
        Arguments { all: true, .. } => Form::All,
        _ => Form::Text,
    };
    let result = match arguments.program.split_first() {
        None => Ok(own(form)),
        Some((program, rest)) => other::examine(program, rest, arguments.preload, form),
    };
    match result {
        Ok((text, is_healthy)) => {
            // Whoever reads it may have seen enough.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            ExitCode::from(u8::from(!is_healthy))
        }
        Err(error) => {
            eprintln!("squall-doctor: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn own(form: Form) -> (String, bool) {
    let report = squall::doctor();
    let text = match form {
        Form::Text => report.to_string(),
        Form::All => format!("{report:#}"),
        Form::Json => report.to_json(),
    };
    (text, report.is_healthy())
}
