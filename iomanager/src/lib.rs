//! The reactor under Squall's fibers.
//!
//! Owns the descriptor table (who waits for which descriptor), one reactor per worker, and [`IoManager`], which is a
//! scheduler with reactors. It knows mio and nothing of libc's blocking calls: turning those into waits is `squall-hook`'s work.
//!
//! Edge-triggered, one registration per descriptor: see [`descriptor`] for how no event is lost and no stale one obeyed.

pub mod descriptor;
mod manager;
mod reactor;

pub use manager::{Event, IoManager, scheduler};
