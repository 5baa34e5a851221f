//! **Squall: virtual threads for native code.**
//!
//! Ordinary blocking Rust runs on stackful fibers: `std::net`, `std::sync`, `std::thread::sleep`, channels, any synchronous crate.
//! libc calls that would block a thread suspend a fiber instead, and each fiber has its own thread-locals, so that to any crate
//! it *is* a thread.
//!
//! A thread-per-connection server becomes fiber-per-connection by changing `std::thread::spawn` to `squall::spawn`:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! fn echo(mut connection: TcpStream) -> std::io::Result<()> {
//!     let mut buffer = [0; 1024];
//!     loop {
//!         match connection.read(&mut buffer)? {
//!             0 => return Ok(()),
//!             count => connection.write_all(&buffer[..count])?,
//!         }
//!     }
//! }
//!
//! let listener = TcpListener::bind("127.0.0.1:0").unwrap();
//! let address = listener.local_addr().unwrap();
//! squall::spawn(move || {
//!     for connection in listener.incoming().flatten() {
//!         squall::spawn(move || echo(connection)); // was: std::thread::spawn
//!     }
//! });
//!
//! let mut client = TcpStream::connect(address).unwrap();
//! client.write_all(b"hello").unwrap();
//! let mut answer = [0; 5];
//! client.read_exact(&mut answer).unwrap();
//! assert_eq!(&answer, b"hello");
//! ```
//!
//! # What runs where
//! Outside any fiber, [`spawn`] uses a scheduler with one worker thread per processor, started on first use. A program that wants its own
//! workers makes an [`IoManager`]; inside its fibers [`spawn`] stays with it.
//!
//! # Giving up
//! What a thread cannot be told, a fiber can: [`JoinHandle::cancel`] and [`with_deadline`] make the call that it waits in return an
//! error, `ECANCELED` or `ETIMEDOUT`, and `?` does the rest. [`shield`] lets cleaning up wait once more.
//!
//! ```
//! use std::io::{ErrorKind, Read};
//! use std::net::{TcpListener, TcpStream};
//! use std::time::Duration;
//!
//! let listener = TcpListener::bind("127.0.0.1:0").unwrap();
//! let address = listener.local_addr().unwrap();
//! let fetching = squall::spawn(move || {
//!     // One limit for all of it: connecting, and however many reads it takes.
//!     squall::with_deadline(Duration::from_millis(20), || {
//!         let mut answer = String::new();
//!         TcpStream::connect(address)?.read_to_string(&mut answer)?;
//!         Ok::<_, std::io::Error>(answer)
//!     })
//! });
//! // Nobody accepts, and nobody answers.
//! assert_eq!(fetching.join().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
//! ```
//!
//! # What to know
//! - Private thread-locals need x86_64 or aarch64 Linux with glibc; [`features`] says whether they are in use.
//! - [`doctor()`] says, function by function, whether the hooks are live in this process; so does `SQUALL_DOCTOR=1` in the environment.
//! - A fiber that computes without ever waiting keeps its worker: [`yield_now`] now and then.
//! - Calls that libc makes inside itself (stdio on `FILE *`, for one) are not hooked.

#![forbid(unsafe_code)]

pub use squall_fiber::{
    Backtrace, BlockingMetrics, Builder, Dump, Fiber, FiberInfo, FiberLocal, FiberState, Frame, GuardMethod,
    Interrupt, JoinHandle, Metrics, Profile, SchedulerMetrics, Scope, ScopedJoinHandle, Tls, WaitKind,
    WorkerMetrics, block_on, current, dump, dump_on_signal, fiber_local, fibers, is_cancelled, metrics, park,
    park_timeout, profile_off_cpu, profile_on_cpu, scope, set_watchdog, shield, sleep, spawn, spawn_local,
    sync, with_deadline, yield_now,
};
pub use squall_hook::{Os, OsExtension, doctor, set_workers};
pub use squall_iomanager::{Event, IoManager};

/// Which mechanisms are in use on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Whether fibers have their own thread-locals, or why not.
    pub private_tls: Result<(), &'static str>,
    /// How the ends of stacks are guarded.
    pub stack_guard: GuardMethod,
}

/// Looks at what this machine offers.
///
/// ```
/// println!("{:?}", squall::features());
/// ```
///
/// # Blocking
/// Never.
pub fn features() -> Features {
    Features { private_tls: squall_fiber::private_tls_support(), stack_guard: squall_fiber::guard_method() }
}
