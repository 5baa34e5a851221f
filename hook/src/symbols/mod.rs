//! The interposed symbols: thin shims with C's signatures that pass on to the fiber's [`Os`](crate::Os), or outside a fiber to
//! libc. Nothing here allocates, logs or panics.
//!
//! Not covered: calls that libc makes inside itself (stdio, its resolver's sockets), programs that make system calls by hand,
//! and what the README lists as not hooked yet.

mod aliases;
mod descriptors;
mod files;
mod multiplex;
mod sockets;
mod threads;
mod time;
