//! Calls that nothing can make non-blocking, on the pool of threads that `squall-fiber` keeps for them.

use super::wait::refuse_if_interrupted;
use crate::errno::{Errno, Result};
use squall_fiber::{Current, run_blocking};

/// Moves the caller's pointers to the thread that makes the call for it.
struct Borrowed<A>(A);

// SAFETY: by the contract of `on_pool`, the only place that makes one.
unsafe impl<A> Send for Borrowed<A> {}

/// Makes a call with `arguments` on the pool, again if a signal interrupts it: one that the helper thread happened to get is not for
/// the fiber. A fiber that is interrupted already does not begin; once begun the call is not interrupted.
///
/// # Safety
/// The arguments stay valid while the calling fiber waits, and what the call does with them depends on no thread.
///
/// # Errors
/// `ECANCELED`, `ETIMEDOUT`; those of the call.
///
/// # Blocking
/// Suspends the fiber until the call is over.
pub(crate) unsafe fn on_pool<A: Copy, R: Send>(
    current: Current<'_>,
    arguments: A,
    call: impl Fn(A) -> Result<R> + Send,
) -> Result<R> {
    refuse_if_interrupted(current)?;
    let arguments = Borrowed(arguments);
    run_blocking(move || {
        // The whole, not the pointers inside, which are not `Send`.
        let arguments = arguments;
        loop {
            match call(arguments.0) {
                Err(Errno::INTR) => {}
                answer => return answer,
            }
        }
    })
}
