//! The one place that starts a concurrent activity, so that what an activity is stays one line's decision.

use std::io;

pub(crate) type JoinHandle = std::thread::JoinHandle<()>;

pub(crate) fn spawn(
    name: impl Into<String>,
    activity: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle> {
    std::thread::Builder::new().name(name.into()).spawn(activity)
}
