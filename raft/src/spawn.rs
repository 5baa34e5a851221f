//! How this crate starts a concurrent activity: the one place that knows what an activity is.

use std::io;

/// Waits for an activity.
pub(crate) type JoinHandle = squall_hook::JoinHandle<()>;

/// Starts `activity` as a fiber. It may block: it does so alone.
pub(crate) fn spawn(
    name: impl Into<String>,
    activity: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle> {
    Ok(squall_hook::Builder::new().name(name).spawn(activity))
}
