//! Whether other programs want the processor, as far as the gain from sharing work tells.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// For how long work is shared until that is judged: a token or two, as large pieces gain more than small ones.
const WINDOW: Duration = Duration::from_millis(10);
/// So much waiting is judged at once: a thread that is set aside comes back after some milliseconds.
const STALL: Duration = Duration::from_millis(3);
/// Times faster than alone that sharing must at least seem to be. It seems faster than it is: threads that compute
/// together have less of the memory's speed each.
const LEAST_GAIN: f64 = 1.3;
/// Bad windows until the caller works alone: one comes now and then on any machine.
const BAD: u32 = 2;
/// For how long the caller works alone at first, and at most: to look again costs a stall.
const ALONE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(640)];

/// A piece of work that was shared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Its parts, and those that the caller has done itself.
    pub(super) parts: [usize; 2],
    /// How long the caller was at work on these, and how long everything took.
    pub(super) took: [Duration; 2],
}

/// What sharing has gained. One thread writes at a time.
#[derive(Debug)]
pub(super) struct Load {
    /// The first piece of work: a target without threads may have no clock either.
    begun: OnceLock<Instant>,
    /// Nanoseconds that the window's pieces of work took, and that the caller alone would have needed.
    shared: AtomicU64,
    alone: AtomicU64,
    /// Nanoseconds of waiting among them.
    waited: AtomicU64,
    bad: AtomicU32,
    /// In nanoseconds from the beginning; 0 for not at all.
    alone_until: AtomicU64,
    /// In nanoseconds: for how long next.
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

    /// Whether to work alone.
    pub(super) fn is_high(&self) -> bool {
        // The clock is asked only where something was wrong.
        self.alone_until.load(Relaxed) != 0 && self.is_high_at(self.now())
    }

    fn is_high_at(&self, now: Duration) -> bool {
        let until = self.alone_until.load(Relaxed);
        if until != 0 && now.as_nanos() as u64 >= until {
            self.alone_until.store(0, Relaxed);
        }
        self.alone_until.load(Relaxed) != 0
    }

    /// Whether sharing gained little lately, so that a thread that spins may keep others from what they hold.
    pub(super) fn is_suspected(&self) -> bool {
        self.bad.load(Relaxed) > 0
    }

    /// Counts a piece of work.
    pub(super) fn count(&self, piece: Piece) {
        if self.add(piece) {
            self.judge(self.now());
        }
    }

    /// Whether there is enough to judge.
    fn add(&self, Piece { parts: [parts, own], took: [worked, all] }: Piece) -> bool {
        let add = |to: &AtomicU64, nanoseconds: u64| {
            let sum = to.load(Relaxed) + nanoseconds;
            to.store(sum, Relaxed);
            sum
        };
        let (worked, all) = (worked.as_nanos() as u64, all.as_nanos() as u64);
        let shared = add(&self.shared, all);
        // Of a piece of which the caller has done nothing nothing is known.
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
        // The next bad window counts at once.
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
        // Two in turn, and from then on each one: alone for 20 ms, 40, 80 and so on up to 640.
        window(&load, bad, MS(200_000));
        let mut now = MS(200_001);
        for alone in [20, 40, 80, 160, 320, 640, 640] {
            window(&load, bad, now);
            assert!(load.is_high_at(now + MS(alone - 1)) && !load.is_high_at(now + MS(alone)));
            now += MS(alone);
        }
        // When it has gone well again, all is as in the beginning.
        (0..2).for_each(|_| window(&load, good, now));
        assert!(!load.is_suspected());
        (0..2).for_each(|_| window(&load, bad, now));
        assert!(load.is_high_at(now + MS(19)) && !load.is_high_at(now + MS(20)));
    }

    #[test]
    fn threads_that_come_late_gain_nothing() {
        let load = Load::new();
        // All parts are done by the caller, which then waits for nobody.
        let alone = Piece { parts: [8, 8], took: [US(100), US(102)] };
        (0..2).for_each(|_| window(&load, alone, MS(1)));
        assert!(load.is_high_at(MS(2)));
        // Long work waits for a part for long, and is shared well all the same.
        let load = Load::new();
        window(&load, Piece { parts: [8, 4], took: [MS(20), MS(24)] }, MS(1));
        assert!(!load.is_suspected());
    }
}
