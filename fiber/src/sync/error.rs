//! Why waits end without what was waited for. [`WaitError`] and [`Interrupt`] serve the primitives that only wait; channels have more to
//! say, and give back what they did not send.

use crate::fiber::Wake;
use crate::interrupt::Interrupt;
use core::fmt;

/// Why a wait with a time limit has ended without what was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The time given to this call is up.
    #[error("timed out")]
    TimedOut,
    /// The fiber has been cancelled (see [`crate::JoinHandle::cancel`]).
    #[error("cancelled")]
    Cancelled,
    /// The deadline of an enclosing [`crate::with_deadline`] has passed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
}

impl WaitError {
    /// Of a wait that has ended without a grant.
    pub(super) fn of(wake: Wake) -> Self {
        match wake {
            Wake::Cancelled => WaitError::Cancelled,
            Wake::Expired => WaitError::DeadlineExceeded,
            Wake::TimedOut | Wake::Ready | Wake::Closed => WaitError::TimedOut,
        }
    }
}

impl From<Interrupt> for WaitError {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Cancelled => WaitError::Cancelled,
            Interrupt::DeadlineExceeded => WaitError::DeadlineExceeded,
        }
    }
}

impl WaitError {
    /// For a wait that had no time limit of its own.
    pub(super) fn into_interrupt(self) -> Interrupt {
        match self {
            WaitError::Cancelled => Interrupt::Cancelled,
            WaitError::DeadlineExceeded => Interrupt::DeadlineExceeded,
            WaitError::TimedOut => unreachable!("a wait without a time limit has timed out"),
        }
    }
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&WaitError::from(*self), f)
    }
}

impl std::error::Error for Interrupt {}

/// Why [`Receiver::recv`](super::Receiver::recv) returned no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// All senders are gone, and every value has been received.
    #[error("the channel is empty and disconnected")]
    Disconnected,
    /// The fiber has been cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The deadline of an enclosing [`crate::with_deadline`] has passed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
}

/// Why [`Receiver::recv_timeout`](super::Receiver::recv_timeout) returned no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvTimeoutError {
    /// The time given to this call is up.
    #[error("timed out")]
    TimedOut,
    /// All senders are gone, and every value has been received.
    #[error("the channel is empty and disconnected")]
    Disconnected,
    /// The fiber has been cancelled.
    #[error("cancelled")]
    Cancelled,
    /// The deadline of an enclosing [`crate::with_deadline`] has passed.
    #[error("deadline exceeded")]
    DeadlineExceeded,
}

/// Why [`Receiver::try_recv`](super::Receiver::try_recv) returned no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TryRecvError {
    /// There is no value now.
    #[error("the channel is empty")]
    Empty,
    /// All senders are gone, and every value has been received.
    #[error("the channel is empty and disconnected")]
    Disconnected,
}

impl From<WaitError> for RecvTimeoutError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut,
            WaitError::Cancelled => Self::Cancelled,
            WaitError::DeadlineExceeded => Self::DeadlineExceeded,
        }
    }
}

impl From<Interrupt> for RecvError {
    fn from(interrupt: Interrupt) -> Self {
        match interrupt {
            Interrupt::Cancelled => Self::Cancelled,
            Interrupt::DeadlineExceeded => Self::DeadlineExceeded,
        }
    }
}

impl RecvTimeoutError {
    /// For a wait that had no time limit of its own.
    pub(super) fn without_timeout(self) -> RecvError {
        match self {
            Self::Disconnected => RecvError::Disconnected,
            Self::Cancelled => RecvError::Cancelled,
            Self::DeadlineExceeded => RecvError::DeadlineExceeded,
            Self::TimedOut => unreachable!("a wait without a time limit has timed out"),
        }
    }
}

/// Errors that give back the value that was not sent. Its type need not be `Debug`.
macro_rules! send_errors {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* })*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub enum $name<T> {
            $($(#[$variant_doc])* $variant(T),)*
        }

        impl<T> $name<T> {
            /// The value that was not sent.
            pub fn into_inner(self) -> T {
                match self {
                    $(Self::$variant(value) => value,)*
                }
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(_) => f.write_str(concat!(stringify!($variant), "(..)")),)*
                }
            }
        }

        impl<T> fmt::Display for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant(_) => f.write_str($text),)*
                }
            }
        }

        impl<T> std::error::Error for $name<T> {}
    )* };
}

send_errors! {
    /// Why [`Sender::send`](super::Sender::send) did not send the value.
    SendError {
        /// All receivers are gone.
        Disconnected = "the channel is disconnected",
        /// The fiber has been cancelled.
        Cancelled = "cancelled",
        /// The deadline of an enclosing [`crate::with_deadline`] has passed.
        DeadlineExceeded = "deadline exceeded",
    }

    /// Why [`Sender::send_timeout`](super::Sender::send_timeout) did not send the value.
    SendTimeoutError {
        /// The time given to this call is up.
        TimedOut = "timed out",
        /// All receivers are gone.
        Disconnected = "the channel is disconnected",
        /// The fiber has been cancelled.
        Cancelled = "cancelled",
        /// The deadline of an enclosing [`crate::with_deadline`] has passed.
        DeadlineExceeded = "deadline exceeded",
    }

    /// Why [`Sender::try_send`](super::Sender::try_send) did not send the value.
    TrySendError {
        /// There is no room now.
        Full = "the channel is full",
        /// All receivers are gone.
        Disconnected = "the channel is disconnected",
    }
}

impl<T> SendTimeoutError<T> {
    pub(super) fn new(error: WaitError, value: T) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut(value),
            WaitError::Cancelled => Self::Cancelled(value),
            WaitError::DeadlineExceeded => Self::DeadlineExceeded(value),
        }
    }

    /// For a wait that had no time limit of its own.
    pub(super) fn without_timeout(self) -> SendError<T> {
        match self {
            Self::Disconnected(value) => SendError::Disconnected(value),
            Self::Cancelled(value) => SendError::Cancelled(value),
            Self::DeadlineExceeded(value) => SendError::DeadlineExceeded(value),
            Self::TimedOut(_) => unreachable!("a wait without a time limit has timed out"),
        }
    }
}
