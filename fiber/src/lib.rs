//! Stackful fibers that are threads to every crate and to libc.
//!
//! This crate owns stacks, the context switch, private thread-local storage, the scheduler with its timers, and the blocking pool.
//! It does no I/O: `squall-iomanager` adds the reactor, `squall-hook` makes ordinary libc calls suspend fibers.
//!
//! ```
//! use std::time::Duration;
//!
//! let sleepers: Vec<_> = (0..100)
//!     .map(|n| {
//!         squall_fiber::spawn(move || {
//!             squall_fiber::sleep(Duration::from_millis(5));
//!             n
//!         })
//!     })
//!     .collect();
//! let sum: i32 = sleepers.into_iter().map(|sleeper| sleeper.join().unwrap()).sum();
//! assert_eq!(sum, 4950);
//! ```
//!
//! # Blocking
//! Every public function says what it does when it has to wait: suspend the fiber, block the thread, or neither. All of them may
//! be called from plain threads, too.

mod arch;
mod backtrace;
mod barrier;
mod blocking;
mod completion;
mod context;
mod debugger;
mod driver;
mod dump;
mod fiber;
mod future;
mod handle;
mod interrupt;
mod local;
pub mod lock;
mod metrics;
mod overflow;
mod probe;
mod profile;
mod queue;
mod reference;
mod register;
mod scheduler;
mod scope;
mod stack;
mod state;
pub mod sync;
pub mod sys;
mod task;
mod timer;
mod tls;
mod watchdog;
mod worker;

pub use backtrace::{Backtrace, Frame};
pub use blocking::run_blocking;
pub use context::{in_fiber, is_forked_child, with_current};
pub use driver::{Driver, Unpark};
pub use dump::{Dump, FiberInfo, FiberState, dump, dump_on_signal, fibers};
pub use fiber::{Current, Fiber, Tls, Wait, WaitKind, Wake, Waker};
pub use future::block_on;
pub use handle::{Builder, JoinHandle, current, park, park_timeout, sleep, spawn, spawn_local, yield_now};
pub use interrupt::{Interrupt, is_cancelled, shield, with_deadline};
pub use local::FiberLocal;
pub use metrics::{BlockingMetrics, Metrics, SchedulerMetrics, WorkerMetrics, current_metrics, metrics};
pub use probe::signal as observer_signal;
pub use profile::{Profile, profile_off_cpu, profile_on_cpu};
pub use scheduler::{Hold, Scheduler, SchedulerConfig, abandon, set_default_scheduler, with_driver};
pub use scope::{Scope, ScopedJoinHandle, scope};
pub use stack::{GuardMethod, STACK_BYTES_DEFAULT, guard_method, stack_high_water_bytes};
pub use tls::{forget_pthread_key, note_pthread_key, support as private_tls_support};
pub use watchdog::set_watchdog;
