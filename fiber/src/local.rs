//! Fiber-local storage: values that each fiber has its own of, whatever kind of thread-locals it has.
//!
//! A fiber with private thread-locals can use `thread_local!`; in a [`crate::Tls::Shared`] fiber that is its worker's, shared with
//! every other such fiber. The values here lie in the fiber itself. A plain thread has its own, too.
//!
//! Only the fiber itself touches its values, and drops them when it ends, before its thread-locals.

use crate::context::with_current;
use core::any::Any;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::rc::Rc;

/// How often values that were made by the destructors of others are dropped in turn; then they leak. As for pthread keys.
const DROP_ROUNDS: usize = 4;

/// A value per fiber, or per thread outside fibers: made when it is first used, dropped when the fiber ends. For statics.
///
/// ```
/// use std::cell::Cell;
///
/// squall_fiber::fiber_local! {
///     static REQUEST: Cell<u64> = Cell::new(0);
/// }
///
/// let fiber = squall_fiber::Builder::new().tls(squall_fiber::Tls::Shared).spawn(|| {
///     REQUEST.set(7);
///     squall_fiber::yield_now();
///     REQUEST.get()
/// });
/// assert_eq!(fiber.join().unwrap(), 7);
/// assert_eq!(REQUEST.get(), 0);
/// ```
pub struct FiberLocal<T: 'static> {
    init: fn() -> T,
    /// Its place among a fiber's values, plus one; 0 until it is first used.
    place: AtomicUsize,
}

/// Declares fiber-locals as `thread_local!` declares thread-locals.
///
/// ```
/// use std::cell::RefCell;
///
/// squall_fiber::fiber_local! {
///     /// What the fiber has done so far.
///     pub static TRACE: RefCell<Vec<&'static str>> = RefCell::new(Vec::new());
/// }
///
/// TRACE.with_borrow_mut(|trace| trace.push("begun"));
/// assert_eq!(TRACE.take(), ["begun"]);
/// ```
#[macro_export]
macro_rules! fiber_local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty = $init:expr);+ $(;)?) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::FiberLocal<$type> = $crate::FiberLocal::new(|| $init);
        )+
    };
}

impl<T> fmt::Debug for FiberLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FiberLocal").finish_non_exhaustive()
    }
}

impl<T: 'static> FiberLocal<T> {
    /// One whose values are made by `init`.
    pub const fn new(init: fn() -> T) -> Self {
        Self { init, place: AtomicUsize::new(0) }
    }

    /// Calls `f` with the value of the calling fiber, or of the thread outside a fiber. `f` may suspend the fiber.
    ///
    /// The destructors of fiber-locals may use other ones; a value that has been dropped is then made anew.
    ///
    /// # Panics
    /// In a plain thread whose thread-locals have been destroyed.
    pub fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.value())
    }

    fn place(&self) -> usize {
        static PLACES: AtomicUsize = AtomicUsize::new(1);
        match self.place.load(Ordering::Relaxed) {
            0 => {
                let place = PLACES.fetch_add(1, Ordering::Relaxed);
                // Another thread that was faster decides; the place taken here stays empty.
                match self.place.compare_exchange(0, place, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => place - 1,
                    Err(theirs) => theirs - 1,
                }
            }
            place => place - 1,
        }
    }

    fn value(&self) -> Rc<T> {
        let place = self.place();
        let value = with_locals(|locals| locals.get(place)).unwrap_or_else(|| {
            // Not within `with_locals`: it may use others, and itself.
            let value: Rc<dyn Any> = Rc::new((self.init)());
            with_locals(|locals| locals.put(place, Rc::clone(&value)));
            value
        });
        value.downcast().expect("a place belongs to one fiber-local, and so to one type")
    }
}

impl<T: 'static> FiberLocal<Cell<T>> {
    /// Sets the value.
    pub fn set(&self, value: T) {
        self.with(|cell| cell.set(value));
    }

    /// A copy of the value.
    pub fn get(&self) -> T
    where
        T: Copy,
    {
        self.with(Cell::get)
    }

    /// Takes the value and leaves the default.
    pub fn take(&self) -> T
    where
        T: Default,
    {
        self.with(Cell::take)
    }

    /// Sets the value and returns the one before.
    pub fn replace(&self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

impl<T: 'static> FiberLocal<RefCell<T>> {
    /// Calls `f` with the value.
    ///
    /// # Panics
    /// When it is mutably borrowed.
    pub fn with_borrow<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        self.with(|cell| f(&cell.borrow()))
    }

    /// Calls `f` with the value, to change it.
    ///
    /// # Panics
    /// When it is borrowed.
    pub fn with_borrow_mut<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        self.with(|cell| f(&mut cell.borrow_mut()))
    }

    /// Takes the value and leaves the default.
    ///
    /// # Panics
    /// When it is borrowed.
    pub fn take(&self) -> T
    where
        T: Default,
    {
        self.with(RefCell::take)
    }

    /// Sets the value and returns the one before.
    ///
    /// # Panics
    /// When it is borrowed.
    pub fn replace(&self, value: T) -> T {
        self.with(|cell| cell.replace(value))
    }
}

/// The values of one fiber or thread, by place. Shared by `Rc`, so that none is dropped while [`FiberLocal::with`] uses it.
#[derive(Default)]
pub(crate) struct Locals(RefCell<Vec<Option<Rc<dyn Any>>>>);

impl Locals {
    fn get(&self, place: usize) -> Option<Rc<dyn Any>> {
        self.0.borrow().get(place).cloned().flatten()
    }

    fn put(&self, place: usize, value: Rc<dyn Any>) {
        let before = {
            let mut values = self.0.borrow_mut();
            if values.len() <= place {
                values.resize(place + 1, None);
            }
            values[place].replace(value)
        };
        // Only now, because its destructor may use other fiber-locals.
        drop(before);
    }

    /// Drops the values, in the fiber or thread whose they are.
    pub(crate) fn drop_all(&self) {
        for _ in 0..DROP_ROUNDS {
            let values = self.0.take();
            if values.is_empty() {
                return;
            }
            drop(values);
        }
        self.leak();
    }

    /// Gives up what its fiber has not dropped: nobody else may.
    pub(crate) fn leak(&self) {
        core::mem::forget(self.0.take());
    }
}

/// A plain thread's.
struct OfThread(Locals);

impl Drop for OfThread {
    fn drop(&mut self) {
        self.0.drop_all();
    }
}

fn with_locals<R>(f: impl FnOnce(&Locals) -> R) -> R {
    thread_local! {
        static OF_THREAD: OfThread = const { OfThread(Locals(RefCell::new(Vec::new()))) };
    }
    with_current(|current| match current {
        Some(current) => f(current.inner().locals.get_or_init(Box::default)),
        None => OF_THREAD.with(|locals| f(&locals.0)),
    })
}
