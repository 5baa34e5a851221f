//! What differs between processors: the switch between stacks, the thread pointer and the system-call instruction. Assembly only; no
//! policy.
//!
//! Every target file supplies the same items: [`prepare_stack`] and [`switch`] for `fiber.rs`, [`thread_pointer`] and
//! [`can_set_thread_pointer`] for `tls.rs`, [`raw_syscall`] for `sys.rs`; [`root_return_address`], [`standpoint`],
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
