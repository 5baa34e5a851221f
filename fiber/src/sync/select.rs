//! Waiting for several channel operations, of which one is done.
//!
//! A `select` first tries its operations, one after the other. If none is possible, it puts a node for each into the queue of its
//! channel, all with one ticket, and waits: whoever would let one of them go on claims the ticket, and the other nodes are then worth
//! nothing (see wait.rs).
//!
//! While the nodes go into the queues, an operation that was impossible may become possible. `select` does not do it then, because its
//! ticket may have been claimed through another queue: it gives the ticket up, takes its nodes back and begins anew. So only those who
//! are in no queue ever claim, and no two `select`s can claim each other.

use super::channel::{Channel, Receiver, Sender};
use super::error::{RecvError, SendError, TryRecvError, TrySendError, WaitError};
use super::oneshot::{OneshotReceiver, OneshotSlot};
use super::wait::{Node, Patience, Reason, Ticket};
use crate::context::with_current;
use crate::fiber::Wake;
use crate::interrupt::Interrupt;
use core::cell::Cell;
use core::fmt;
use std::time::Duration;

/// One channel operation that [`select`](select()) may do: a [`Receiving`] or a [`Sending`].
///
/// Sealed: nobody else can implement it.
pub trait Operation: private::Operation {}

mod private {
    use super::Ticket;

    pub trait Operation {
        /// Does the operation if that needs no waiting. False if it would.
        fn attempt(&mut self) -> bool;

        /// Puts a node into the channel's queue. False if there is no need to, because the operation is possible now.
        ///
        /// # Safety
        /// Neither this nor the ticket moves or is used otherwise until `withdraw`, which must follow. Both take `&self`, because
        /// others touch the node in between.
        unsafe fn enqueue(&self, ticket: &Ticket, index: usize) -> bool;

        /// Ends what `enqueue` began; `is_done` if the ticket says that this is the operation that was done.
        fn withdraw(&self, is_done: bool);
    }
}

/// Waits until one of the operations is done, and says which. If several are possible, each has its turn.
///
/// The operation's own `finish` gives its result. The others have not happened, and may be used again. The [`select!`](macro@super::select)
/// macro puts all of this together.
///
/// ```
/// use squall_fiber::sync::{select, unbounded};
///
/// let (sender, numbers) = unbounded();
/// let (_keep, words) = unbounded::<&str>();
/// sender.send(7).unwrap();
///
/// let (mut number, mut word) = (numbers.receiving(), words.receiving());
/// match select(&mut [&mut number, &mut word]).unwrap() {
///     0 => assert_eq!(number.finish(), Ok(7)),
///     _ => println!("{:?}", word.finish()),
/// }
/// ```
///
/// # Errors
/// What interrupted the wait; then none of the operations has happened.
///
/// # Panics
/// When there is no operation, or one that has been done already.
///
/// # Blocking
/// Suspends the fiber; outside a fiber, blocks the thread.
pub fn select(operations: &mut [&mut dyn Operation]) -> Result<usize, Interrupt> {
    wait_for_one(operations, || Patience::INTERRUPTIBLE).map_err(WaitError::into_interrupt)
}

/// As [`select`](select()), waiting no longer than `timeout`.
///
/// # Errors
/// Why the wait ended; then none of the operations has happened.
///
/// # Panics
/// As [`select`](select()).
///
/// # Blocking
/// As [`select`](select()).
pub fn select_timeout(operations: &mut [&mut dyn Operation], timeout: Duration) -> Result<usize, WaitError> {
    wait_for_one(operations, || Patience::at_most(timeout))
}

/// As [`select`](select()), if one of the operations is possible now.
///
/// # Panics
/// As [`select`](select()).
///
/// # Blocking
/// Never.
pub fn try_select(operations: &mut [&mut dyn Operation]) -> Option<usize> {
    let start = rotation(operations.len());
    attempt_one(operations, start)
}

fn attempt_one(operations: &mut [&mut dyn Operation], start: usize) -> Option<usize> {
    let count = operations.len();
    (0..count).map(|n| (start + n) % count).find(|index| operations[*index].attempt())
}

fn wait_for_one(
    operations: &mut [&mut dyn Operation],
    patience: impl FnOnce() -> Patience,
) -> Result<usize, WaitError> {
    let start = rotation(operations.len());
    if let Some(index) = attempt_one(operations, start) {
        return Ok(index);
    }
    let patience = patience();
    loop {
        let ticket = Ticket::contested();
        let mut enqueued = 0;
        let wake = ticket.wait(Reason::one_of(operations.len()), patience, || {
            operations.iter().enumerate().all(|(index, operation)| {
                enqueued = index + 1;
                // SAFETY: all stay where they are until they are withdrawn below, and so does the ticket.
                unsafe { operation.enqueue(&ticket, index) }
            })
        });
        let done = ticket.abandon();
        // Also the one that has been done: what it takes for that may still be under way, under its channel's lock.
        for (index, operation) in operations[..enqueued].iter().enumerate() {
            operation.withdraw(done == Some(index));
        }
        match (done, wake) {
            (Some(index), _) => {
                ticket.await_release();
                return Ok(index);
            }
            (None, Wake::Ready) => {}
            (None, wake) => return Err(WaitError::of(wake)),
        }
        if let Some(index) = attempt_one(operations, start) {
            return Ok(index);
        }
    }
}

/// Which of `count` operations is tried first: another one each time, or the first of two busy channels would starve the second.
/// Not random, so that a simulation stays reproducible.
fn rotation(count: usize) -> usize {
    thread_local! {
        static TURNS: Cell<u64> = const { Cell::new(0) };
    }
    assert!(count > 0, "a select needs an operation to wait for");
    // A model repeats the same run, and these would not begin the same in it.
    if cfg!(loom) {
        return 0;
    }
    // A fiber's thread-locals begin the same in each: its id makes them differ.
    let offset = with_current(|current| current.map_or(0, |current| current.id()));
    let turn = TURNS.with(|turns| turns.replace(turns.get() + 1)) + offset;
    // Spread by a multiplication (Fibonacci hashing): a program that takes turns itself must not fall into step with this.
    (turn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as usize % count
}

/// Where an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    NotDone,
    Enqueued,
    Done,
}

impl Progress {
    fn assert_not_done(self) {
        assert!(self != Progress::Done, "this operation has been done, and its result not been taken");
    }
}

/// What a [`Receiving`] receives from.
enum Source<'a, T> {
    Channel(&'a Channel<T>),
    Oneshot(&'a OneshotSlot<T>),
}

/// Receiving a value, as an [`Operation`].
pub struct Receiving<'a, T> {
    source: Source<'a, T>,
    /// Once done, without a value if the channel is disconnected.
    node: Node<Option<T>>,
    progress: Cell<Progress>,
}

impl<'a, T> Receiving<'a, T> {
    fn new(source: Source<'a, T>) -> Self {
        Self { source, node: Node::new(None), progress: Cell::new(Progress::NotDone) }
    }

    /// What was received.
    ///
    /// # Errors
    /// `Disconnected` if there will be no value any more.
    ///
    /// # Panics
    /// When this is not the operation that was done.
    pub fn finish(self) -> Result<T, RecvError> {
        assert!(self.progress.get() == Progress::Done, "this operation has not been done");
        self.node.into_payload().ok_or(RecvError::Disconnected)
    }
}

impl<T> private::Operation for Receiving<'_, T> {
    fn attempt(&mut self) -> bool {
        self.progress.get().assert_not_done();
        let result = match self.source {
            Source::Channel(channel) => channel.try_recv(),
            Source::Oneshot(slot) => slot.try_recv(),
        };
        match result {
            Ok(value) => *self.node.payload_mut() = Some(value),
            Err(TryRecvError::Disconnected) => {}
            Err(TryRecvError::Empty) => return false,
        }
        self.progress.set(Progress::Done);
        true
    }

    unsafe fn enqueue(&self, ticket: &Ticket, index: usize) -> bool {
        // SAFETY: by the caller's contract, and `withdraw` takes the node out of the same queue.
        let is_enqueued = unsafe {
            match self.source {
                Source::Channel(channel) => channel.enqueue_recv(&self.node, ticket, index),
                Source::Oneshot(slot) => slot.enqueue_recv(&self.node, ticket, index),
            }
        };
        if is_enqueued {
            self.progress.set(Progress::Enqueued);
        }
        is_enqueued
    }

    fn withdraw(&self, is_done: bool) {
        if self.progress.get() == Progress::Enqueued {
            // SAFETY: `enqueue` has put it into this queue.
            unsafe {
                match self.source {
                    Source::Channel(channel) => channel.withdraw_recv(&self.node),
                    Source::Oneshot(slot) => slot.withdraw_recv(&self.node),
                }
            }
            self.progress.set(if is_done { Progress::Done } else { Progress::NotDone });
        }
    }
}

impl<T> Operation for Receiving<'_, T> {}

impl<T> fmt::Debug for Receiving<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiving").field("progress", &self.progress.get()).finish_non_exhaustive()
    }
}

/// Sending a value, as an [`Operation`].
pub struct Sending<'a, T> {
    channel: &'a Channel<T>,
    /// Holds the value until it has been sent.
    node: Node<Option<T>>,
    progress: Cell<Progress>,
}

impl<T> Sending<'_, T> {
    /// Whether the value was sent.
    ///
    /// # Errors
    /// `Disconnected`, with the value, if the receivers are gone.
    ///
    /// # Panics
    /// When this is not the operation that was done.
    pub fn finish(self) -> Result<(), SendError<T>> {
        assert!(self.progress.get() == Progress::Done, "this operation has not been done");
        self.node.into_payload().map_or(Ok(()), |value| Err(SendError::Disconnected(value)))
    }

    /// The value of an operation that was not done.
    ///
    /// # Panics
    /// When it has been sent.
    pub fn into_value(self) -> T {
        self.node.into_payload().expect("the value has not been sent")
    }
}

impl<T> private::Operation for Sending<'_, T> {
    fn attempt(&mut self) -> bool {
        self.progress.get().assert_not_done();
        let slot = self.node.payload_mut();
        let value = slot.take().expect("an operation that is not done has its value");
        match self.channel.try_send(value) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(value)) => *slot = Some(value),
            Err(TrySendError::Full(value)) => {
                *slot = Some(value);
                return false;
            }
        }
        self.progress.set(Progress::Done);
        true
    }

    unsafe fn enqueue(&self, ticket: &Ticket, index: usize) -> bool {
        // SAFETY: by the caller's contract, and `withdraw` takes the node out of the same queue.
        let is_enqueued = unsafe { self.channel.enqueue_send(&self.node, ticket, index) };
        if is_enqueued {
            self.progress.set(Progress::Enqueued);
        }
        is_enqueued
    }

    fn withdraw(&self, is_done: bool) {
        if self.progress.get() == Progress::Enqueued {
            // SAFETY: `enqueue` has put it into this queue.
            unsafe { self.channel.withdraw_send(&self.node) };
            self.progress.set(if is_done { Progress::Done } else { Progress::NotDone });
        }
    }
}

impl<T> Operation for Sending<'_, T> {}

impl<T> fmt::Debug for Sending<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("progress", &self.progress.get()).finish_non_exhaustive()
    }
}

impl<T> Receiver<T> {
    /// Receiving, for [`select`](select()).
    pub fn receiving(&self) -> Receiving<'_, T> {
        Receiving::new(Source::Channel(self.channel()))
    }
}

impl<T> OneshotReceiver<T> {
    /// Receiving, for [`select`](select()).
    pub fn receiving(&self) -> Receiving<'_, T> {
        Receiving::new(Source::Oneshot(self.slot()))
    }
}

impl<T> Sender<T> {
    /// Sending `value`, for [`select`](select()).
    pub fn sending(&self, value: T) -> Sending<'_, T> {
        Sending {
            channel: self.channel(),
            node: Node::new(Some(value)),
            progress: Cell::new(Progress::NotDone),
        }
    }
}

/// Waits for one of several channel operations, and runs the code that goes with it.
///
/// Each arm is `recv(receiver) -> result => code` or `send(sender, value) -> result => code`, where `result` is a pattern for what
/// `Receiver::recv` or `Sender::send` would return; of the errors only `Disconnected` occurs. A oneshot's receiver is as good as a
/// channel's. If several operations are possible, each has its turn.
///
/// The last arm may be
/// - `timeout(duration) => code`, run if none has been possible for so long;
/// - `default => code`, run if none is possible now.
///
/// The code of all arms has one type, `R`. With `default` the whole is an `R`; without it, it is a `Result<R, Interrupt>`, because a wait
/// may be interrupted (see [`Interrupt`](crate::Interrupt)). Control flow such as `break` and `?` in the code means the code around the macro.
///
/// ```
/// use squall_fiber::sync::{bounded, oneshot, select};
/// use std::time::Duration;
///
/// let (jobs, queue) = bounded(1);
/// let (stop, stopped) = oneshot();
/// let worker = squall_fiber::spawn(move || {
///     let mut sum = 0;
///     loop {
///         select! {
///             recv(queue) -> job => sum += job.unwrap_or(0),
///             recv(stopped) -> _ => break sum,
///             timeout(Duration::from_secs(3600)) => panic!("nothing to do"),
///         }
///         .unwrap();
///     }
/// });
/// jobs.send(1).unwrap();
/// jobs.send(2).unwrap();
/// while !jobs.is_empty() {
///     squall_fiber::yield_now();
/// }
/// stop.send(()).unwrap();
/// assert_eq!(worker.join().unwrap(), 3);
///
/// // Nobody receives any more: the send is possible at once, and fails.
/// let was_sent = select! {
///     send(jobs, 3) -> result => result.is_ok(),
///     default => false,
/// };
/// assert!(!was_sent);
/// ```
#[macro_export]
macro_rules! select {
    ($($arms:tt)+) => {
        $crate::__select!(@parse [] $($arms)+)
    };
}

/// The steps of [`select!`]. First the arms are sorted out; then each operation is made, by a name of its own thanks to hygiene, with
/// its number; then one is waited for.
#[doc(hidden)]
#[macro_export]
macro_rules! __select {
    // The arms.
    (@parse [$($arms:tt)*] recv($receiver:expr) -> $result:pat => $code:block $(, $($rest:tt)*)?) => {
        $crate::__select!(@parse [$($arms)* { ($receiver).receiving() ; $result => $code }] $($($rest)*)?)
    };
    (@parse [$($arms:tt)*] recv($receiver:expr) -> $result:pat => $code:block $($rest:tt)*) => {
        $crate::__select!(@parse [$($arms)* { ($receiver).receiving() ; $result => $code }] $($rest)*)
    };
    (@parse [$($arms:tt)*] recv($receiver:expr) -> $result:pat => $code:expr $(, $($rest:tt)*)?) => {
        $crate::__select!(@parse [$($arms)* { ($receiver).receiving() ; $result => $code }] $($($rest)*)?)
    };
    (@parse [$($arms:tt)*] send($sender:expr, $value:expr) -> $result:pat => $code:block $(, $($rest:tt)*)?) => {
        $crate::__select!(@parse [$($arms)* { ($sender).sending($value) ; $result => $code }] $($($rest)*)?)
    };
    (@parse [$($arms:tt)*] send($sender:expr, $value:expr) -> $result:pat => $code:block $($rest:tt)*) => {
        $crate::__select!(@parse [$($arms)* { ($sender).sending($value) ; $result => $code }] $($rest)*)
    };
    (@parse [$($arms:tt)*] send($sender:expr, $value:expr) -> $result:pat => $code:expr $(, $($rest:tt)*)?) => {
        $crate::__select!(@parse [$($arms)* { ($sender).sending($value) ; $result => $code }] $($($rest)*)?)
    };
    (@parse [$($arms:tt)*] timeout($timeout:expr) => $code:expr $(,)?) => {
        $crate::__select!(@make { timeout ($timeout) $code } [0] [] $($arms)*)
    };
    (@parse [$($arms:tt)*] default => $code:expr $(,)?) => {
        $crate::__select!(@make { default $code } [0] [] $($arms)*)
    };
    (@parse [$($arms:tt)*]) => {
        $crate::__select!(@make { wait } [0] [] $($arms)*)
    };

    // The operations.
    (@make $last:tt [$($number:tt)*] [$($made:tt)*] { $operation:expr ; $result:pat => $code:expr } $($rest:tt)*) => {{
        let mut operation = $operation;
        $crate::__select!(
            @make $last [$($number)* + 1] [$($made)* { operation ; ($($number)*) ; $result => $code }] $($rest)*
        )
    }};

    // The wait.
    (@make { wait } $_count:tt [$($made:tt)*]) => {{
        let selected = $crate::__select!(@call select [] $($made)*);
        $crate::__select!(@take selected.ok() ; $($made)*);
        // All arms may leave the code around the macro.
        #[allow(unreachable_code)]
        let outcome = match selected {
            Ok(selected) => Ok($crate::__select!(@run selected ; $($made)*)),
            Err(interrupt) => Err::<_, $crate::Interrupt>(interrupt),
        };
        outcome
    }};
    (@make { timeout ($timeout:expr) $late:expr } $_count:tt [$($made:tt)*]) => {{
        let selected = $crate::__select!(@call select_timeout [$timeout] $($made)*);
        $crate::__select!(@take selected.ok() ; $($made)*);
        #[allow(unreachable_code)]
        let outcome = match selected {
            Ok(selected) => Ok($crate::__select!(@run selected ; $($made)*)),
            Err($crate::sync::WaitError::TimedOut) => Ok($late),
            Err($crate::sync::WaitError::Cancelled) => Err($crate::Interrupt::Cancelled),
            Err($crate::sync::WaitError::DeadlineExceeded) => Err($crate::Interrupt::DeadlineExceeded),
        };
        outcome
    }};
    (@make { default $otherwise:expr } $_count:tt [$($made:tt)*]) => {{
        let selected = $crate::__select!(@call try_select [] $($made)*);
        $crate::__select!(@take selected ; $($made)*);
        match selected {
            Some(selected) => $crate::__select!(@run selected ; $($made)*),
            None => $otherwise,
        }
    }};
    (@call $function:ident [$($timeout:expr)?] $({ $operation:ident ; $number:expr ; $result:pat => $code:expr })*) => {
        $crate::sync::$function(
            &mut [$(&mut $operation as &mut dyn $crate::sync::Operation),*] $(, $timeout)?
        )
    };
    // Ends the borrows of all channels before the code runs: it may drop them.
    (@take $selected:expr ; $({ $operation:ident ; $number:expr ; $result:pat => $code:expr })*) => {
        $(let $operation = ($selected == Some($number)).then(move || $operation.finish());)*
    };
    (@run $selected:ident ; $({ $operation:ident ; $number:expr ; $result:pat => $code:expr })*) => {
        match $selected {
            $(number if number == $number => match $operation {
                Some($result) => $code,
                None => unreachable!("the operation that was done has a result"),
            },)*
            _ => unreachable!("one of the operations was done"),
        }
    };
}
