//! What the test programs share: their log format.

#![forbid(unsafe_code)]

use std::io::Write;

/// Sends log lines to standard output as `[part] message`, the format in which the predecessor of this project printed its
/// milestones. Set `RUST_LOG` for more than those.
pub fn log_milestones() {
    let environment = env_logger::Env::default().default_filter_or("scheduler=debug,fiber=debug,=debug");
    env_logger::Builder::from_env(environment)
        .target(env_logger::Target::Stdout)
        .format(|out, record| match record.target() {
            "" => writeln!(out, "{}", record.args()),
            target => writeln!(out, "[{target}] {}", record.args()),
        })
        .init();
}
