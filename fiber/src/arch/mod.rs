//! What differs between processors: the thread pointer, the system-call instruction, and where a stack starts and stands. Assembly
//! only; no policy.
//!
//! Every target file supplies the same items: [`thread_pointer`], [`set_thread_pointer`] and [`can_set_thread_pointer`] for `tls.rs`
//! and `worker.rs`; [`raw_syscall`] for `sys.rs`; [`call_as_root`] for `worker.rs`; [`root_return_address`], [`note_standpoint`],
//! [`interrupted_standpoint`] and [`return_address_without_frame`] for `backtrace.rs` and those who ask it.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("Squall supports x86_64 and aarch64 Linux");
