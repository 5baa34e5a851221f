//! Flame graphs of programs on fibers: where they compute, and where they wait.
//!
//! - [`flame`] draws them, from folded stacks: a line per stack, its calls with `;` between them, outermost first, then a space and a
//!   number.
//! - [`perf`] has the system's `perf` sample a program, and folds what it has found.
//! - [`node`] asks a running kvserver for a profile that it takes of itself.
//!
//! The runtime's own sampler is in `squall-fiber` (`profile_on_cpu`, `profile_off_cpu`); this crate knows nothing of the inside of the
//! runtime. `squall-profile` is the program that puts all of it together.

#![forbid(unsafe_code)]

pub mod flame;
pub mod node;
pub mod perf;
