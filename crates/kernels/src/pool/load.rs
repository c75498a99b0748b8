//! Estimates whether other programs compete for the CPU, from the speedup that sharing work gives.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// For how long work is shared until its gain is judged: a token or two, so that the window has large pieces of work,
/// which gain more, and small ones.
const WINDOW: Duration = Duration::from_millis(10);
/// This much waiting is judged at once: a thread that is preempted comes back after some milliseconds.
const STALL: Duration = Duration::from_millis(3);
/// The least apparent speedup over working alone. The apparent speedup exceeds the true one, because threads that
/// compute together share the memory bandwidth, so each is slower than it would be alone.
const LEAST_GAIN: f64 = 1.3;
/// Bad windows until the caller works alone: single ones occur on any machine.
const BAD: u32 = 2;
/// For how long the caller works alone at first, and at most: trying to share again costs a stall.
const ALONE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(640)];

/// A piece of work that was shared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The number of its parts, and of those that the caller has done itself.
    pub(super) parts: [usize; 2],
    /// How long the caller worked on its parts, and how long the whole piece took.
    pub(super) took: [Duration; 2],
}

/// Measurements of what sharing has gained. One thread writes at a time.
#[derive(Debug)]
pub(super) struct Load {
    /// When the clock was first read. It is read lazily, because a target without threads may have no clock either.
    begun: OnceLock<Instant>,
    /// Nanoseconds that the window's pieces of work took, and that the caller would have needed alone.
    shared: AtomicU64,
    alone: AtomicU64,
    /// Nanoseconds of these that the caller has waited.
    waited: AtomicU64,
    bad: AtomicU32,
    /// Until when the caller works alone, in nanoseconds from `begun`; 0 if it does not.
    alone_until: AtomicU64,
    /// For how long it will work alone next time, in nanoseconds.
    alone_for: AtomicU64,
}

impl Load {
    pub(super) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            begun: OnceLock::new(),
            shared: zero(),
            alone: zero(),
            waited: zero(),
            bad: AtomicU32::new(0),
            alone_until: zero(),
            alone_for: AtomicU64::new(ALONE[0].as_nanos() as u64),
        }
    }

    fn now(&self) -> Duration {
        self.begun.get_or_init(Instant::now).elapsed()
    }

    /// Whether the caller should work alone.
    pub(super) fn is_high(&self) -> bool {
        // The clock is read only if `alone_until` is set.
        self.alone_until.load(Relaxed) != 0 && self.is_high_at(self.now())
    }

    fn is_high_at(&self, now: Duration) -> bool {
        let until = self.alone_until.load(Relaxed);
        if until != 0 && now.as_nanos() as u64 >= until {
            self.alone_until.store(0, Relaxed);
        }
        self.alone_until.load(Relaxed) != 0
    }

    /// Whether sharing gained little lately. A thread that spins may then keep another one from the core that it
    /// needs.
    pub(super) fn is_suspected(&self) -> bool {
        self.bad.load(Relaxed) > 0
    }

    /// Adds a piece of work to the window, and judges the window if it is complete.
    pub(super) fn count(&self, piece: Piece) {
        if self.add(piece) {
            self.judge(self.now());
        }
    }

    /// Adds a piece of work to the window; returns whether the window is complete.
    fn add(&self, Piece { parts: [parts, own], took: [worked, all] }: Piece) -> bool {
        let add = |to: &AtomicU64, nanoseconds: u64| {
            let sum = to.load(Relaxed) + nanoseconds;
            to.store(sum, Relaxed);
            sum
        };
        let (worked, all) = (worked.as_nanos() as u64, all.as_nanos() as u64);
        let shared = add(&self.shared, all);
        // If the caller has done no part, its speed is unknown, and no gain is counted.
        add(&self.alone, if own > 0 { worked * parts as u64 / own as u64 } else { all });
        let waited = add(&self.waited, all.saturating_sub(worked));
        shared >= WINDOW.as_nanos() as u64 || waited > STALL.as_nanos() as u64
    }

    fn judge(&self, now: Duration) {
        let take = |sum: &AtomicU64| sum.swap(0, Relaxed) as f64;
        let gain = take(&self.alone) / take(&self.shared).max(1.0);
        self.waited.store(0, Relaxed);
        let bad = self.bad.load(Relaxed);
        if gain >= LEAST_GAIN {
            self.bad.store(bad.saturating_sub(1), Relaxed);
            if bad == 0 {
                self.alone_for.store(ALONE[0].as_nanos() as u64, Relaxed);
            }
            return;
        }
        if bad + 1 < BAD {
            return self.bad.store(bad + 1, Relaxed);
        }
        // From now on, each bad window makes the caller work alone.
        self.bad.store(BAD - 1, Relaxed);
        let alone_for = self.alone_for.load(Relaxed);
        self.alone_until.store(now.as_nanos() as u64 + alone_for, Relaxed);
        self.alone_for.store((2 * alone_for).min(ALONE[1].as_nanos() as u64), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;
    const US: fn(u64) -> Duration = Duration::from_micros;

    fn window(load: &Load, piece: Piece, now: Duration) {
        while !load.add(piece) {}
        load.judge(now);
    }

    #[test]
    fn a_bad_window_now_and_then_changes_nothing_and_many_do() {
        let good = Piece { parts: [8, 4], took: [US(50), US(55)] };
        // The caller had to wait for one of eight parts.
        let bad = Piece { parts: [8, 7], took: [US(90), MS(4)] };
        let load = Load::new();
        for second in 0..100 {
            window(&load, bad, MS(1000 * second));
            assert!(load.is_suspected() && !load.is_high_at(MS(1000 * second)));
            window(&load, good, MS(1000 * second));
            assert!(!load.is_suspected());
        }
        // Two bad windows in a row make the caller work alone, then each one does: for 20, 40, 80 ms and so on, up to
        // 640 ms.
        window(&load, bad, MS(200_000));
        let mut now = MS(200_001);
        for alone in [20, 40, 80, 160, 320, 640, 640] {
            window(&load, bad, now);
            assert!(load.is_high_at(now + MS(alone - 1)) && !load.is_high_at(now + MS(alone)));
            now += MS(alone);
        }
        // After enough good windows, the state is as in the beginning.
        (0..2).for_each(|_| window(&load, good, now));
        assert!(!load.is_suspected());
        (0..2).for_each(|_| window(&load, bad, now));
        assert!(load.is_high_at(now + MS(19)) && !load.is_high_at(now + MS(20)));
    }

    #[test]
    fn threads_that_come_late_gain_nothing() {
        let load = Load::new();
        // The caller does all parts, and then waits for no thread.
        let alone = Piece { parts: [8, 8], took: [US(100), US(102)] };
        (0..2).for_each(|_| window(&load, alone, MS(1)));
        assert!(load.is_high_at(MS(2)));
        // A long piece of work may include a long wait for a part, and be shared well all the same.
        let load = Load::new();
        window(&load, Piece { parts: [8, 4], took: [MS(20), MS(24)] }, MS(1));
        assert!(!load.is_suspected());
    }
}
