//! Benchmarks of the runtime against its peers: what is run (`plan`), how (`program`), on what (`machine`), and how the figures are
//! condensed and shown (`figures`, `report`).
//!
//! The figures of a program come from a process of its own. The processes of all contenders alternate, round by round, on the same
//! processor, so that a machine that becomes slower does so for all of them; ratios are taken round by round.

#![forbid(unsafe_code)]

pub mod figures;
pub mod machine;
pub mod plan;
pub mod program;
pub mod report;
