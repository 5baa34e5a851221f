//! Invariant 7: what a hooked call returns is what the plain call returns.
//!
//! Each case is a function that makes calls and notes what came back: values, errno, bytes, flags, the order of events. It runs on a
//! plain thread, where the hooks pass through, and then in fibers of several kinds (see [`harness`]). The notes must be equal; and
//! where the case waits, another fiber of the same worker must have gone on meanwhile, or the wait blocked the thread.
//!
//! A module is a family of calls. No case measures time: who came first, and whether anything went on, is all that is noted.

mod accept;
mod aliases;
mod calls;
mod closing;
mod connect;
mod disk;
mod epoll;
mod events;
mod files;
mod flags;
mod harness;
mod locks;
mod names;
mod pipes;
mod poll;
mod processes;
mod queues;
mod receiving;
mod select;
mod sending;
mod settings;
mod signals;
mod sleep;
mod tcp;
mod threads;
mod transfers;
mod udp;
mod unix;
