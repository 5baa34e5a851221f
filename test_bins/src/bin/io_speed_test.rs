//! How fast a disk takes and gives a file in sequence: through the page cache, past it, and synced, which are three different questions.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Measures sequential writing and reading of a file, with each way of treating the page cache.
///
/// "buffered" stops the clock when the kernel has the bytes: it says how fast memory is. "fdatasync" includes one sync at the end; "each block
/// synced" is O_DSYNC, what a log does. "direct" (O_DIRECT) goes past the page cache, and without a sync may end in the disk's own. What is read back
/// is compared with what was written; exits with 1 if it differs.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The folder to put the file into. It is removed at the end.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// How many mebibytes to write and read.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    mib: u64,
    /// How many mebibytes where each block is synced, which takes long.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    synced_mib: u64,
    /// How many kibibytes at a time; a multiple of 4.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(4..=65_536))]
    block_kib: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// What O_DIRECT wants buffers and lengths to be multiples of.
const ALIGNMENT: usize = 4096;

struct Measurement {
    name: &'static str,
    bytes: u64,
    /// Or why there is none.
    seconds: Result<f64, String>,
}

/// A buffer whose content begins at an address that O_DIRECT accepts.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// The content of a block of the file: its number and a pattern.
fn fill(block: u64, buffer: &mut [u8]) {
    for (index, word) in buffer.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(block << 32 ^ index as u64 ^ 0x5155_414c_4c00_0000).to_le_bytes());
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    anyhow::ensure!(
        arguments.block_kib % 4 == 0,
        "--block-kib {} is not a multiple of 4",
        arguments.block_kib
    );
    let path = arguments.dir.join(format!("io_speed_test.{}.tmp", std::process::id()));
    let result = measure_all(&arguments, &path);
    // Also after a failure.
    let _ = std::fs::remove_file(&path);
    let (measurements, differences) = result?;
    let mib = |measurement: &Measurement| measurement.bytes as f64 / f64::from(1 << 20);
    if arguments.json {
        let rows: Vec<_> = measurements
            .iter()
            .map(|row| match &row.seconds {
                Ok(seconds) => json!({ "test": row.name, "bytes": row.bytes, "seconds": seconds, "mib_per_second": mib(row) / seconds }),
                Err(why) => json!({ "test": row.name, "skipped": why }),
            })
            .collect();
        println!(
            "{}",
            json!({ "block_kib": arguments.block_kib, "differences": differences, "tests": rows })
        );
    } else {
        println!("sequential I/O in blocks of {} KiB", arguments.block_kib);
        for row in &measurements {
            match &row.seconds {
                Ok(seconds) => println!(
                    "{:<30} {:>8.0} MiB {:>8.3} s {:>10.1} MiB/s",
                    row.name,
                    mib(row),
                    seconds,
                    mib(row) / seconds
                ),
                Err(why) => println!("{:<30} skipped: {why}", row.name),
            }
        }
        println!("blocks that were read differently: {differences}");
    }
    Ok(if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure_all(arguments: &Arguments, path: &PathBuf) -> anyhow::Result<(Vec<Measurement>, u64)> {
    let block = (arguments.block_kib << 10) as usize;
    let blocks = (arguments.mib << 20).div_ceil(block as u64);
    let synced_blocks = (arguments.synced_mib << 20).div_ceil(block as u64);
    let mut buffer = Aligned::new(block);
    let shows_progress = std::io::stderr().is_terminal() && !arguments.json;
    let mut measurements = Vec::new();
    let mut differences = 0;
    let mut record = |name: &'static str, blocks: u64, seconds: anyhow::Result<f64>| {
        let seconds = seconds.map_err(|error| format!("{error:#}"));
        measurements.push(Measurement { name, bytes: blocks * block as u64, seconds });
    };
    let announce = |name: &str| {
        if shows_progress {
            eprint!("\r{name:<40}\r");
        }
    };
    let writes = [
        ("write, buffered", blocks, 0, false),
        ("write, buffered, fdatasync", blocks, 0, true),
        ("write, direct", blocks, libc::O_DIRECT, false),
        ("write, direct, fdatasync", blocks, libc::O_DIRECT, true),
        ("write, each block synced", synced_blocks, libc::O_DSYNC, false),
        ("write, direct, each block synced", synced_blocks, libc::O_DIRECT | libc::O_DSYNC, false),
    ];
    for (name, blocks, flags, sync) in writes {
        announce(name);
        record(name, blocks, write(path, blocks, &mut buffer, flags, sync));
    }
    // All of it once more, for the reads.
    write(path, blocks, &mut buffer, 0, true).with_context(|| path.display().to_string())?;
    for (name, flags, cold) in
        [("read, cached", 0, false), ("read, not cached", 0, true), ("read, direct", libc::O_DIRECT, true)]
    {
        announce(name);
        let seconds = read(path, blocks, &mut buffer, flags, cold).map(|(seconds, wrong)| {
            differences += wrong;
            seconds
        });
        record(name, blocks, seconds);
    }
    Ok((measurements, differences))
}

fn write(path: &PathBuf, blocks: u64, buffer: &mut Aligned, flags: i32, sync: bool) -> anyhow::Result<f64> {
    // A new file each time: to write over blocks that exist is another question.
    let _ = std::fs::remove_file(path);
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path)?;
    let started = Instant::now();
    for block in 0..blocks {
        fill(block, buffer.bytes());
        file.write_all(buffer.bytes())?;
    }
    if sync {
        file.sync_data()?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// The time, and how many blocks were not what was written.
fn read(
    path: &PathBuf,
    blocks: u64,
    buffer: &mut Aligned,
    flags: i32,
    cold: bool,
) -> anyhow::Result<(f64, u64)> {
    let mut file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if cold {
        file.sync_data()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    } else {
        std::io::copy(&mut file, &mut std::io::sink())?;
        file.rewind()?;
    }
    let mut expected = vec![0; buffer.len];
    let mut wrong = 0;
    let mut seconds = 0.0;
    for block in 0..blocks {
        let started = Instant::now();
        file.read_exact(buffer.bytes())?;
        seconds += started.elapsed().as_secs_f64();
        fill(block, &mut expected);
        wrong += u64::from(buffer.bytes() != expected);
    }
    Ok((seconds, wrong))
}
