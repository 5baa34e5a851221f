//! Primitives for fibers and plain threads alike: locks, conditions, semaphores, channels, `select`.
//!
//! | | |
//! |---|---|
//! | [`Mutex`], [`RwLock`] | mutual exclusion, with poisoning |
//! | [`Condvar`] | waiting for a change of what a mutex guards |
//! | [`Semaphore`] | at most so many at once |
//! | [`Barrier`], [`WaitGroup`] | waiting for each other, waiting for all |
//! | [`Once`], [`OnceCell`] | initialisation |
//! | [`unbounded`], [`bounded`] | channels for any number of senders and receivers; [`bounded`]`(0)` is a rendezvous |
//! | [`oneshot`] | a channel for one value |
//! | [`select!`] | one of several channel operations |
//!
//! # These or std's?
//! std's primitives, and those of other crates, work in fibers too: that is the point of this library. These here are for hot paths,
//! and for code that is to be cancelled:
//! - They suspend a fiber and wake it without libc, a futex and the table behind it: a contended lock or a message costs a fraction.
//! - Their waits heed [`JoinHandle::cancel`](crate::JoinHandle::cancel) and [`with_deadline`](crate::with_deadline), and say so in their
//!   errors. A futex knows no errors, so a wait in std's cannot be interrupted.
//! - They work in fibers with shared thread-locals ([`Tls::Shared`](crate::Tls)), where std's channels do not.
//!
//! Fibers and plain threads may use the same primitive at the same time. What a fiber holds, it holds wherever it runs.
//!
//! # Errors
//! A wait that can be interrupted returns [`Interrupt`](crate::Interrupt), one with a time limit [`WaitError`]; channels have errors of
//! their own that tell disconnection from interruption. What needs no waiting succeeds also in a fiber that has been cancelled. On a plain
//! thread nothing interrupts. [`Mutex::lock`], [`RwLock::read`], [`RwLock::write`] and the initialisations are never interrupted, as in std.
//!
//! # Blocking
//! Waiting suspends the fiber, and outside a fiber blocks the thread. A fiber with shared thread-locals that unwinds a panic may not
//! be suspended: a destructor that waits there blocks its worker's thread, for ever if it waits for a fiber of that same worker.
//! Nothing that ends or wakes (`unlock`, `notify`, dropping a guard, a permit, a sender) ever waits.

mod barrier;
mod buffer;
mod channel;
mod condvar;
mod error;
#[cfg(not(loom))]
mod latch;
#[cfg(all(test, loom))]
mod models;
mod mutex;
mod once;
mod oneshot;
mod poison;
mod rwlock;
mod select;
mod semaphore;
mod shim;
mod wait;
mod wait_group;

pub use crate::select;
pub use barrier::{Barrier, BarrierWaitResult};
pub use channel::{IntoIter, Iter, Receiver, Sender, TryIter, bounded, unbounded};
pub use condvar::Condvar;
pub use error::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError, WaitError,
};
pub use mutex::{Mutex, MutexGuard};
pub use once::{Once, OnceCell};
pub use oneshot::{OneshotReceiver, OneshotSender, oneshot};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use select::{Operation, Receiving, Sending, select, select_timeout, try_select};
pub use semaphore::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
pub use wait_group::{Task, WaitGroup};
