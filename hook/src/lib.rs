//! The libc calls that would block a thread, interposed so that they suspend a fiber.
//!
//! Link this crate (`use squall_hook as _;` is enough) and std, and every crate on top of it, runs on fibers: `std::net`,
//! `std::thread::sleep`, `std::sync`, channels, parking_lot. `squall-preload` is the same as `libsquall_preload.so`, for
//! `LD_PRELOAD`.
//!
//! Outside a fiber a hook is one thread-local read and a jump to libc. Inside, it calls the fiber's [`Os`]: the real one tries
//! without blocking and waits in the reactor, another can be attached to a scheduler. Return values and errno are what the
//! manual pages say, for O_NONBLOCK, SO_RCVTIMEO and SO_SNDTIMEO as the user set them.
//!
//! This is the only crate that knows both libc and the runtime.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! let listener = TcpListener::bind("127.0.0.1:0").unwrap();
//! let address = listener.local_addr().unwrap();
//! let server = squall_hook::spawn(move || {
//!     let (mut connection, _) = listener.accept().unwrap(); // suspends the fiber, not the thread
//!     let mut buffer = [0; 5];
//!     connection.read_exact(&mut buffer).unwrap();
//!     buffer
//! });
//! TcpStream::connect(address).unwrap().write_all(b"hello").unwrap();
//! assert_eq!(&server.join().unwrap(), b"hello");
//! ```

pub mod doctor;
mod errno;
mod futex;
mod kernel;
mod objects;
mod os;
mod real;
mod real_os;
mod symbols;
mod world;

pub use doctor::doctor;
pub use errno::{Errno, Result};
pub use os::{AddressMut, Buffer, BufferMut, Os, OsExtension, PollEntry};
pub use real_os::RealOs;
pub use squall_fiber::{
    Builder, Fiber, FiberLocal, Interrupt, JoinHandle, block_on, current, fiber_local, is_cancelled, park,
    park_timeout, scope, shield, sleep, spawn, spawn_local, with_deadline, yield_now,
};
pub use world::{DirectoryEntry, FileName, FileStatus, World, in_world_or};

use core::sync::atomic::{AtomicUsize, Ordering};
use squall_fiber::{Scheduler, SchedulerConfig};

/// Runs before `main`: fibers that are spawned outside any scheduler get one with a reactor, because their calls are hooked.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = {
    extern "C" fn construct() {
        real::resolve_all();
        futex::prepare();
        real_os::accept::watch_forks();
        objects::find_attributes();
        squall_fiber::set_default_scheduler(default_scheduler);
        doctor::report_if_asked();
    }
    construct
};

/// Workers of the default scheduler; 0 means one per processor.
static WORKERS: AtomicUsize = AtomicUsize::new(0);

/// Says how many worker threads the process's default scheduler has: the one that fibers get which are spawned outside any
/// fiber. Without it there is one per processor. No effect once such a fiber has been spawned.
pub fn set_workers(workers: usize) {
    WORKERS.store(workers, Ordering::Relaxed);
}

/// Every libc function that this crate takes over, by its name, with the address of the definition here: what `dlsym` answers
/// with where the hook is live.
///
/// ```
/// assert!(squall_hook::hooked_symbols().any(|(name, address)| name == "recv" && address != 0));
/// ```
pub fn hooked_symbols() -> impl Iterator<Item = (&'static str, usize)> {
    symbols::hooked()
}

fn default_scheduler() -> std::io::Result<Scheduler> {
    let mut config = SchedulerConfig::default();
    match WORKERS.load(Ordering::Relaxed) {
        0 => {}
        workers => config.threads = workers,
    }
    squall_iomanager::scheduler(config)
}
