//! Makes load and shows what came of it.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use squall_kvserver::load::{self, Distribution, Load, OPERATIONS, Progress, Report};

use crate::{Cluster, FAILED};

const PERCENTILES: [(&str, f64); 6] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99), ("max", 100.0)];
const BAR_WIDTH: usize = 50;

const AFTER_HELP: &str = "\
Without --rate every client sends as soon as it is answered; throughput is what that yields. With --rate requests come at fixed times, and
a request's time counts from when it was due: the figure that users feel.

Examples:
  kvctl bench                                  kvctl bench --mix get=1,put=0 --keys 1000000
  kvctl bench --rate 5000 --seconds 30         kvctl bench --clients 1 --value-bytes 1024 --json";

#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Bench {
    /// How many connections, spread over the nodes.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    clients: u32,
    /// How many requests a client sends before it waits for their replies.
    #[arg(long, short = 'P', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pipeline: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long to work before that.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// What to do how often.
    #[arg(long, default_value = "get=1,put=1,append=0", value_parser = parse_mix)]
    mix: [u32; 3],
    /// How many different keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// A few keys most of the time (weights as in YCSB) instead of all equally often.
    #[arg(long)]
    zipfian: bool,
    /// How long values are, in bytes.
    #[arg(long, default_value_t = 64)]
    value_bytes: usize,
    /// Requests a second, of all clients together.
    #[arg(long, value_parser = parse_rate)]
    rate: Option<f64>,
}

fn parse_mix(text: &str) -> Result<[u32; 3], String> {
    let mut mix = [0; 3];
    for part in text.split(',') {
        let known = || format!("`{part}` is not get=N, put=N or append=N");
        let (name, weight) = part.split_once('=').ok_or_else(known)?;
        let index =
            OPERATIONS.iter().position(|operation| operation.name() == name.trim()).ok_or_else(known)?;
        mix[index] = weight.trim().parse::<u16>().map_err(|_| known())?.into();
    }
    if mix == [0; 3] { Err("nothing to do".into()) } else { Ok(mix) }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "not a positive number".into())
}

impl Bench {
    pub fn run(self, cluster: &Cluster) -> anyhow::Result<ExitCode> {
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds);
        let load = Load {
            addresses: cluster.redis_addresses()?,
            password: cluster.password().map(<[u8]>::to_vec),
            clients: self.clients as usize,
            pipeline: self.pipeline as usize,
            mix: self.mix,
            keys: self.keys,
            distribution: if self.zipfian { Distribution::Zipfian } else { Distribution::Uniform },
            value_bytes: self.value_bytes,
            rate: self.rate,
            duration: seconds(self.seconds)?,
            warm_up: seconds(self.warm_up)?,
        };
        let shows_progress = std::io::stderr().is_terminal() && !cluster.json;
        let mut last = Progress { elapsed: Duration::ZERO, requests: 0, errors: 0 };
        let report = load::run(load, |now| {
            if shows_progress && now.elapsed > last.elapsed {
                let rate = (now.requests - last.requests) as f64 / (now.elapsed - last.elapsed).as_secs_f64();
                eprint!(
                    "\r{:6.1} s {rate:10.0} requests/s {:8} errors ",
                    now.elapsed.as_secs_f64(),
                    now.errors
                );
                let _ = std::io::stderr().flush();
                last = now;
            }
            true
        })?;
        if shows_progress {
            eprintln!();
        }
        if cluster.json {
            println!("{:#}", to_json(&report));
        } else {
            print!("{}", to_text(&report));
        }
        if let Some(error) = &report.first_error {
            eprintln!("kvctl: {} requests failed; the first: {error}", report.errors);
        }
        Ok(if report.requests() == 0 { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
    }
}

fn to_json(report: &Report) -> Value {
    let latency = |latency_us: &Histogram<u64>| {
        let mut value = json!({ "requests": latency_us.len(), "mean_us": latency_us.mean() });
        for (name, percentile) in PERCENTILES {
            value[format!("{name}_us")] = json!(latency_us.value_at_percentile(percentile));
        }
        value
    };
    let mut value = json!({
        "seconds": report.elapsed.as_secs_f64(),
        "requests_per_s": report.rate(),
        "errors": report.errors,
        "first_error": report.first_error,
        "all": latency(&report.all_latency_us()),
        "timeline": report.timeline.iter().map(|second| json!([second.requests, second.latency_us_max])).collect::<Value>(),
    });
    for (operation, latency_us) in
        OPERATIONS.iter().zip(&report.latency_us).filter(|(_, latency_us)| !latency_us.is_empty())
    {
        value[operation.name()] = latency(latency_us);
    }
    value
}

fn to_text(report: &Report) -> String {
    let mut text = format!(
        "{} requests in {:.1} s: {:.0} per second, {} errors\n\n{:8}{:>10}",
        report.requests(),
        report.elapsed.as_secs_f64(),
        report.rate(),
        report.errors,
        "ms",
        "requests"
    );
    for (name, _) in PERCENTILES {
        text += &format!("{name:>10}");
    }
    text.push('\n');
    let used = OPERATIONS.iter().zip(&report.latency_us).filter(|(_, latency_us)| !latency_us.is_empty());
    for (operation, latency_us) in used {
        text += &format!("{:8}{:>10}", operation.name(), latency_us.len());
        for (_, percentile) in PERCENTILES {
            text += &format!("{:>10.3}", latency_us.value_at_percentile(percentile) as f64 / 1000.0);
        }
        text.push('\n');
    }
    text.push('\n');
    text + &bars(&report.all_latency_us())
}

/// How many requests took how long, in steps of a factor of two.
fn bars(latency_us: &Histogram<u64>) -> String {
    let mut steps: Vec<(u64, u64)> = Vec::new();
    for step in latency_us.iter_log(1, 2.0) {
        steps.push((step.value_iterated_to(), step.count_since_last_iteration()));
    }
    let most = steps.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let first = steps.iter().position(|(_, count)| *count > 0).unwrap_or(0);
    let line = |(up_to_us, count): &(u64, u64)| {
        let bar = "█".repeat((*count as f64 / most as f64 * BAR_WIDTH as f64).ceil() as usize);
        format!("up to {:>10.3} ms {count:>10} {bar}\n", (*up_to_us + 1) as f64 / 1000.0)
    };
    steps[first..].iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes() {
        assert_eq!(parse_mix("get=1,put=2"), Ok([1, 2, 0]));
        assert_eq!(parse_mix("append=3"), Ok([0, 0, 3]));
        for bad in ["", "get", "get=x", "set=1", "get=0", "get=-1"] {
            assert!(parse_mix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bars_count_every_request_once() {
        let mut latency_us = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
        for value in [1, 3, 100, 100, 900_000] {
            latency_us.record(value).unwrap();
        }
        let text = bars(&latency_us);
        let counts = text.lines().map(|line| line.split_whitespace().nth(4).unwrap().parse::<u64>().unwrap());
        assert_eq!(counts.sum::<u64>(), 5);
    }
}
