//! The client of the echo benchmark: one thread on raw epoll, so that it takes as little as possible of the processor that it shares
//! with the server. Closed loop: each connection has one message under way.

#![forbid(unsafe_code)]

use anyhow::{Context, ensure};
use clap::Parser;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use serde_json::json;
use squall_bench_harness::{MESSAGE_BYTES, cpu_time, raise_descriptor_limit};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Sends messages on many connections and waits for their echoes; prints rate, latency and the server's processor time.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The server.
    address: SocketAddr,
    /// The server's process, whose processor time is reported.
    #[arg(long)]
    server: Option<u32>,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Seconds that count.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Seconds before them that do not.
    #[arg(long, default_value_t = 0.3)]
    warm_up_seconds: f64,
}

struct Connection {
    stream: TcpStream,
    sent: Instant,
    /// Bytes of the echo that have come.
    received: usize,
}

/// Processor time of a process, all its threads, those that have ended included.
fn cpu_of(process: u32) -> anyhow::Result<(Duration, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in parentheses, may contain anything; the fields after it are numbers. utime and stime are fields 14 and 15.
    let after_name = stat.rsplit_once(") ").context("a line of /proc/PID/stat")?.1;
    let mut fields = after_name.split(' ').skip(11);
    let mut time = || -> anyhow::Result<Duration> {
        let ticks: u64 = fields.next().context("processor time")?.parse()?;
        Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
    };
    Ok((time()?, time()?))
}

fn percentile_us(sorted: &[u32], part: f64) -> f64 {
    let at = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |ns| f64::from(*ns) / 1000.0)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    raise_descriptor_limit();
    let message = [7; MESSAGE_BYTES];
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(arguments.connections);
    for index in 0..arguments.connections {
        let mut stream = TcpStream::connect(arguments.address)
            .with_context(|| format!("connection {index} to {}", arguments.address))?;
        stream.set_nodelay(true)?;
        // One round trip each, blocking: the server has accepted it and is at work on it.
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.write_all(&message)?;
        stream.read_exact(&mut [0; MESSAGE_BYTES]).with_context(|| format!("first echo on {index}"))?;
        stream.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&poll, &stream, data, epoll::EventFlags::IN)?;
        connections.push(Connection { stream, sent: Instant::now(), received: 0 });
    }

    for connection in &mut connections {
        connection.sent = Instant::now();
        connection.stream.write_all(&message)?;
    }
    let begin = Instant::now() + Duration::from_secs_f64(arguments.warm_up_seconds);
    let end = begin + Duration::from_secs_f64(arguments.seconds);
    let mut counting = false;
    let mut started = begin;
    let (mut server_before, mut own_before) = ((Duration::ZERO, Duration::ZERO), Duration::ZERO);
    let mut latencies_ns: Vec<u32> = Vec::with_capacity((arguments.seconds * 400_000.0) as usize);
    let mut events = Vec::with_capacity(256);
    let mut now = Instant::now();
    while now < end {
        events.clear();
        epoll::wait(
            &poll,
            spare_capacity(&mut events),
            Some(&rustix::time::Timespec { tv_sec: 1, tv_nsec: 0 }),
        )?;
        ensure!(!events.is_empty() || now.elapsed() < Duration::from_secs(10), "the server does not answer");
        for event in &events {
            let data = event.data;
            let connection = &mut connections[data.u64() as usize];
            let mut buffer = [0; MESSAGE_BYTES];
            let bytes = connection.stream.read(&mut buffer).context("reading an echo")?;
            ensure!(bytes > 0, "the server has closed a connection");
            connection.received += bytes;
            if connection.received < MESSAGE_BYTES {
                continue;
            }
            ensure!(
                connection.received == MESSAGE_BYTES && buffer[..bytes] == message[..bytes],
                "a wrong echo"
            );
            now = Instant::now();
            if counting {
                latencies_ns.push(u32::try_from((now - connection.sent).as_nanos()).unwrap_or(u32::MAX));
            }
            connection.received = 0;
            connection.sent = now;
            connection.stream.write_all(&message).context("sending")?;
        }
        if !counting && now >= begin {
            counting = true;
            if let Some(server) = arguments.server {
                server_before = cpu_of(server)?;
            }
            own_before = cpu_time();
            now = Instant::now();
            started = now;
        }
    }
    let elapsed = started.elapsed();
    let own = cpu_time() - own_before;
    let (user, system) = match arguments.server {
        Some(server) => cpu_of(server)?,
        None => server_before,
    };
    let requests = latencies_ns.len() as u64;
    latencies_ns.sort_unstable();
    // To the nanosecond: more digits mean nothing.
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let per_request_us = |time: Duration| rounded(time.as_secs_f64() * 1e6 / requests.max(1) as f64);
    println!(
        "{}",
        json!({
            "requests": requests,
            "requests_per_s": rounded(requests as f64 / elapsed.as_secs_f64()),
            "p50_us": percentile_us(&latencies_ns, 0.5),
            "p99_us": percentile_us(&latencies_ns, 0.99),
            "server_user_us": per_request_us(user - server_before.0),
            "server_system_us": per_request_us(system - server_before.1),
            "client_cpu_us": per_request_us(own),
        })
    );
    Ok(())
}
