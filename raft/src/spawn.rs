//! How this crate starts a concurrent activity: the one place that knows what an activity is.

use std::io;
use std::thread;

/// Waits for an activity.
pub(crate) type JoinHandle = thread::JoinHandle<()>;

/// Starts `activity`. It may block: it does so alone.
pub(crate) fn spawn(
    name: impl Into<String>,
    activity: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle> {
    thread::Builder::new().name(name.into()).spawn(activity)
}
