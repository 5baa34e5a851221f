//! The operating system under the hooks, simulated: real programs in blocking style, with several machines, their disks and the network
//! between them, in one deterministic process.
//!
//! A [`Simulation`] runs a scenario in a [`World`] made from a seed. The scenario adds [`Host`]s and starts programs on them: ordinary code
//! over std, the same that runs in production. Every call that waits, tells the time, draws a random number or names a file comes here
//! instead of to the machine. Time passes when nobody has anything to do, which fiber runs next is drawn from the seed, and so is how
//! long everything takes: the same seed has the same run, event by event, and a digest to show it.
//!
//! What may go wrong, goes wrong when the scenario says so: programs are killed in the middle of a call, machines lose power and with it
//! what was not synced, links are cut in one direction or both, disks fail, clocks are wrong.
//!
//! `kernel/` is the world's state, `os.rs` is how a program sees it. The crate has no unsafe code: the symbols are `squall-hook`'s and
//! `squall-hook-world`'s.

#![forbid(unsafe_code)]

mod driver;
mod kernel;
pub mod linearizability;
mod os;
mod random;
mod simulation;
mod trace;

pub use kernel::disk::DiskFaults;
pub use kernel::{Conditions, Exit};
pub use random::Random;
pub use simulation::{Host, Outcome, Process, Simulation, World, log_to_timeline};
pub use trace::Line;
