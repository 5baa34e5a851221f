//! The one place that starts a concurrent activity, so that what an activity is stays one line's decision: a
//! fiber.

use std::io;

pub(crate) type JoinHandle = squall_hook::JoinHandle<()>;

pub(crate) fn spawn(
    name: impl Into<String>,
    activity: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle> {
    Ok(squall_hook::Builder::new().name(name).spawn(activity))
}
