//! A thread pool whose threads busy-wait for work, because a decoding step consists of some two hundred pieces of
//! work of ten to a hundred microseconds each, and waking a sleeping thread takes as long as one of them.
//!
//! A piece of work is cut into parts that threads take one after the other, so that a thread that the system preempts
//! delays at most the part it holds. A thread that has no work for two milliseconds sleeps until there is some. When
//! other programs compete for the CPU and threads are preempted again and again, the pool notices that sharing work
//! gains little: threads then spin only briefly, and the calling thread does most of the work alone.

mod load;
mod shared;

use std::{
    cell::{Cell, UnsafeCell},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use load::Load;
pub(crate) use shared::{Shared, Unwritten};

/// How long a thread spins before it sleeps: longer than the gap between two pieces of work in a step.
const SPIN_TIME: Duration = Duration::from_millis(2);
/// The same when other programs want the CPU: about as long as it takes to wake a thread.
const SHORT_SPIN_TIME: Duration = Duration::from_micros(50);

/// Number of threads asked for by [`set_threads`]; 0 means as many as there are cores.
static ASKED: AtomicUsize = AtomicUsize::new(0);
static POOL: OnceLock<Pool> = OnceLock::new();

/// Sets the number of threads that compute, 1 or more. Without this call, `MOI_THREADS` decides, or else the number
/// of cores. Returns whether it had an effect: it has none after the first piece of work.
pub fn set_threads(threads: usize) -> bool {
    ASKED.store(threads.max(1), Relaxed);
    POOL.get().is_none()
}

/// Number of threads that compute.
pub fn threads() -> usize {
    POOL.get_or_init(Pool::start).workers.len() + 1
}

/// Runs `part(0)` to `part(parts - 1)` on all threads, and returns when all are done.
///
/// Called from within a part, or while another thread uses the pool, it runs all parts on the calling thread.
pub fn run(parts: usize, part: impl Fn(usize) + Sync) {
    run_parts(parts, part, true);
}

/// Like [`run`], for parts that take unequally long: waiting for the longest says nothing about other programs then.
pub fn run_unequal(parts: usize, part: impl Fn(usize) + Sync) {
    run_parts(parts, part, false);
}

fn run_parts(parts: usize, part: impl Fn(usize) + Sync, are_equal: bool) {
    if parts > 1 {
        let pool = POOL.get_or_init(Pool::start);
        if !pool.workers.is_empty()
            && !INSIDE.get()
            && !pool.load.is_high()
            && let Some(_own) = pool.own()
        {
            pool.work(parts, &part, are_equal);
            return;
        }
    }
    (0..parts).for_each(part);
}

/// Cuts `0..len` into parts that are multiples of `grain`, a few per thread, and runs `part(start, end)` on each.
pub fn run_ranges(len: usize, grain: usize, part: impl Fn(usize, usize) + Sync) {
    let grain = grain.max(1);
    let units = len.div_ceil(grain);
    // There are several parts for each thread, so that a slow thread can take fewer of them.
    let wanted = if units > 1 { 4 * threads() } else { 1 };
    let step = units.div_ceil(wanted.min(units).max(1)).max(1) * grain;
    run(len.div_ceil(step), |index| part(index * step, ((index + 1) * step).min(len)));
}

thread_local! {
    /// Whether this thread is computing a part.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

type Part = *const (dyn Fn(usize) + Sync);

/// Bits of [`Pool::state`]: the number of the piece of work, whether threads may still join it, and how many have
/// joined.
const JOINED: usize = (1 << 15) - 1;
const OPEN: usize = 1 << 15;
const NEXT: usize = 1 << 16;

struct Pool {
    workers: Vec<Worker>,
    busy: Mutex<()>,
    /// The piece of work. It is written only while the state is closed and no thread has joined.
    part: UnsafeCell<Option<Part>>,
    parts: AtomicUsize,
    next: AtomicUsize,
    state: AtomicUsize,
    /// Whether a part has panicked.
    failed: AtomicBool,
    /// The thread that waits for the workers, if it sleeps.
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    load: Load,
}

// SAFETY: `part` is written only while no thread may read it; see `work`.
unsafe impl Sync for Pool {}
// SAFETY: likewise.
unsafe impl Send for Pool {}

struct Worker {
    thread: Thread,
    sleeps: &'static AtomicBool,
}

impl Pool {
    fn start() -> Self {
        let asked = match ASKED.load(Relaxed) {
            0 => std::env::var("MOI_THREADS").ok().and_then(|threads| threads.parse().ok()).unwrap_or(0),
            asked => asked,
        };
        let threads = match asked {
            0 => thread::available_parallelism().map_or(1, usize::from),
            asked => asked,
        };
        let threads = if cfg!(target_family = "wasm") { 1 } else { threads.min(1024) };
        let worker = |index: usize| {
            let sleeps: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
            let named = thread::Builder::new().name(format!("moi-{index}"));
            // If a thread cannot be started, the pool has fewer of them and is only slower.
            let handle = named.spawn(move || POOL.wait().serve(sleeps)).ok()?;
            Some(Worker { thread: handle.thread().clone(), sleeps })
        };
        Self {
            workers: (1..threads).map_while(worker).collect(),
            busy: Mutex::new(()),
            part: UnsafeCell::new(None),
            parts: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            state: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            load: Load::new(),
        }
    }

    /// The right to give work to the threads. `None` while another thread has it, so that the caller does not wait
    /// for its work.
    fn own(&self) -> Option<MutexGuard<'_, ()>> {
        match self.busy.try_lock() {
            Ok(own) => Some(own),
            // A part has panicked. All threads had left it before the panic continued, so the pool can be used.
            Err(TryLockError::Poisoned(own)) => Some(own.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn work(&self, parts: usize, part: &(dyn Fn(usize) + Sync), are_equal: bool) {
        // SAFETY: the state is closed and no thread has joined, so none reads. The transmute hides the lifetime, but
        // no thread can join once this function has closed the state again, and it returns only when all have left.
        unsafe { *self.part.get() = Some(std::mem::transmute::<&(dyn Fn(usize) + Sync), Part>(part)) };
        self.parts.store(parts, Relaxed);
        self.next.store(0, Relaxed);
        let number = self.state.load(Relaxed) & !(NEXT - 1);
        let begun = Instant::now();
        self.state.store(number.wrapping_add(NEXT) | OPEN, SeqCst);
        for worker in &self.workers {
            if worker.sleeps.load(SeqCst) {
                worker.thread.unpark();
            }
        }
        // A panic must not leave this function while other threads use what the caller has lent to them.
        let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.take_parts(part)));
        self.state.fetch_and(!OPEN, AcqRel);
        let worked = begun.elapsed();
        self.wait_for_threads();
        if let (Ok(own), true) = (&own, are_equal) {
            self.load.count(load::Piece { parts: [parts, *own], took: [worked, begun.elapsed()] });
        }
        if let Err(panic) = own {
            self.failed.store(false, Relaxed);
            std::panic::resume_unwind(panic);
        }
        assert!(!self.failed.swap(false, Relaxed), "a kernel failed on another thread");
    }

    /// Waits until all threads have left the piece of work.
    fn wait_for_threads(&self) {
        let all_left = || self.state.load(SeqCst) & JOINED == 0;
        let mut turns = 0u32;
        let mut begun = None;
        while !all_left() {
            std::hint::spin_loop();
            turns += 1;
            if !turns.is_multiple_of(256) {
                continue;
            }
            if !self.load.is_suspected() {
                // With fewer cores than threads, another thread may need this core.
                if turns.is_multiple_of(1 << 12) {
                    thread::yield_now();
                }
            } else if begun.get_or_insert_with(Instant::now).elapsed() >= SHORT_SPIN_TIME {
                *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current());
                self.caller_sleeps.store(true, SeqCst);
                while !all_left() {
                    thread::park();
                }
                self.caller_sleeps.store(false, SeqCst);
            }
        }
    }

    /// Leaves the piece of work when no part is left. The last thread to leave wakes the caller if it sleeps.
    fn leave(&self) {
        let others = (self.state.fetch_sub(1, SeqCst) - 1) & JOINED;
        if others == 0
            && self.caller_sleeps.load(SeqCst)
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }

    /// Runs parts until none is left; returns how many it has run.
    fn take_parts(&self, part: &(dyn Fn(usize) + Sync)) -> usize {
        INSIDE.set(true);
        let _outside = Outside;
        let parts = self.parts.load(Relaxed);
        for done in 0.. {
            let index = self.next.fetch_add(1, Relaxed);
            if index >= parts {
                return done;
            }
            part(index);
        }
        parts
    }

    /// The main loop of a worker, which never returns.
    fn serve(&self, sleeps: &AtomicBool) {
        let mut seen = 0;
        loop {
            let state = self.wait(seen, sleeps);
            seen = state & !(NEXT - 1);
            if self.state.compare_exchange(state, state + 1, AcqRel, Relaxed).is_err() {
                // The work was closed meanwhile, or another thread has joined: check the state again.
                seen = seen.wrapping_sub(NEXT);
                std::hint::spin_loop();
                continue;
            }
            // SAFETY: this thread has joined while the work was open, so `work` waits for it.
            if let Some(part) = unsafe { *self.part.get() } {
                // SAFETY: likewise, the closure lives until this thread leaves.
                let run = std::panic::AssertUnwindSafe(|| self.take_parts(unsafe { &*part }));
                if std::panic::catch_unwind(run).is_err() {
                    self.failed.store(true, Relaxed);
                }
            }
            self.leave();
        }
    }

    /// Waits for open work with another number than `seen`; returns the state.
    fn wait(&self, seen: usize, sleeps: &AtomicBool) -> usize {
        let open = |state: usize| state & OPEN != 0 && state & !(NEXT - 1) != seen;
        let begun = Instant::now();
        let mut turns = 0u32;
        loop {
            let state = self.state.load(Acquire);
            if open(state) {
                return state;
            }
            std::hint::spin_loop();
            turns += 1;
            if !turns.is_multiple_of(256) {
                continue;
            }
            let spin_time = if self.load.is_suspected() { SHORT_SPIN_TIME } else { SPIN_TIME };
            if begun.elapsed() < spin_time {
                continue;
            }
            sleeps.store(true, SeqCst);
            while !open(self.state.load(SeqCst)) {
                thread::park();
            }
            sleeps.store(false, SeqCst);
        }
    }
}

struct Outside;

impl Drop for Outside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_once_whoever_asks() {
        let ask = || {
            for parts in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                run(parts, |index| {
                    // Nested work runs on the thread that calls it.
                    run(3, |_| {
                        counts[index].fetch_add(1, Relaxed);
                    });
                });
                assert!(counts.iter().all(|count| count.load(Relaxed) == 3));
            }
        };
        for _ in 0..200 {
            thread::scope(|scope| {
                scope.spawn(ask);
                scope.spawn(ask);
                ask();
            });
        }
    }

    #[test]
    fn threads_that_sleep_wake_up() {
        for _ in 0..3 {
            thread::sleep(2 * SPIN_TIME);
            let sum = AtomicUsize::new(0);
            run_ranges(1000, 7, |start, end| {
                assert!(start % 7 == 0 && start < end);
                sum.fetch_add((start..end).sum::<usize>(), Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 999 * 500);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        for _ in 0..20 {
            let result = std::panic::catch_unwind(|| run(8, |index| assert!(index != 5, "part five")));
            assert!(result.is_err());
        }
        let done = AtomicUsize::new(0);
        run(8, |_| {
            done.fetch_add(1, Relaxed);
        });
        assert_eq!(done.load(Relaxed), 8);
        // Other threads still take part, though not in every piece of work if the machine is busy.
        let took_part = || {
            let seen = Mutex::new(std::collections::HashSet::new());
            run(8, |_| {
                thread::sleep(Duration::from_millis(1));
                seen.lock().unwrap().insert(thread::current().id());
            });
            seen.into_inner().unwrap().len() > 1
        };
        assert!(threads() == 1 || (0..1000).any(|_| took_part()), "the threads are gone");
    }
}
