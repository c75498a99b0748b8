//! Quotas of keys: a number of tokens per time, for prompts and answers together.

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::error::ApiError;

/// How many tokens a key may use in a time. Used tokens come back evenly over that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Number of tokens.
    pub tokens: u64,
    /// The time in which they come back.
    pub time: Duration,
}

impl FromStr for Quota {
    type Err = String;

    /// `TOKENS/minute`, `TOKENS/hour` or `TOKENS/day`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no quota, expected TOKENS/minute, TOKENS/hour or TOKENS/day");
        let (tokens, time) = text.split_once('/').ok_or_else(wrong)?;
        let seconds = match time {
            "minute" => 60,
            "hour" => 3600,
            "day" => 24 * 3600,
            _ => return Err(wrong()),
        };
        match tokens.replace('_', "").parse() {
            Ok(tokens) if tokens > 0 => Ok(Self { tokens, time: Duration::from_secs(seconds) }),
            _ => Err(wrong()),
        }
    }
}

/// How much of each quota is used.
#[derive(Debug, Default)]
pub(crate) struct Used(Mutex<HashMap<String, Level>>);

/// Tokens that were used and have not come back yet.
#[derive(Clone, Copy, Debug)]
struct Level {
    tokens: f64,
    at: Instant,
}

impl Level {
    fn now(self, quota: Quota, now: Instant) -> f64 {
        let back = now.saturating_duration_since(self.at).as_secs_f64() / quota.time.as_secs_f64();
        (self.tokens - back * quota.tokens as f64).max(0.0)
    }
}

impl Used {
    /// Counts tokens that an owner uses. Tokens used beyond the quota have to come back, too.
    pub(crate) fn add(&self, owner: &str, quota: Quota, tokens: usize) {
        let now = Instant::now();
        let mut levels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let level = levels.get(owner).map_or(0.0, |level| level.now(quota, now));
        levels.insert(owner.to_owned(), Level { tokens: level + tokens as f64, at: now });
    }

    /// Gives back tokens that were taken but not used.
    pub(crate) fn give_back(&self, owner: &str, tokens: usize) {
        let mut levels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(level) = levels.get_mut(owner) {
            level.tokens = (level.tokens - tokens as f64).max(0.0);
        }
    }

    /// Takes the tokens of a prompt. If there is no room for them, the error says in how many seconds there will be.
    /// A prompt larger than the whole quota waits until nothing of the quota is used.
    ///
    /// # Errors
    /// If there is no room.
    pub(crate) fn take(&self, owner: &str, quota: Quota, tokens: usize) -> Result<(), ApiError> {
        let now = Instant::now();
        let mut levels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let level = levels.get(owner).map_or(0.0, |level| level.now(quota, now));
        let most = quota.tokens as f64;
        let room = (most - tokens as f64).max(0.0);
        if level <= room {
            levels.insert(owner.to_owned(), Level { tokens: level + tokens as f64, at: now });
            return Ok(());
        }
        drop(levels);
        let seconds = ((level - room) / most * quota.time.as_secs_f64()).ceil().max(1.0) as u32;
        let message = format!(
            "the key's quota of {} tokens in {} s is used up; there is room for this prompt of {tokens} tokens in {seconds} s",
            quota.tokens,
            quota.time.as_secs()
        );
        Err(ApiError::rate_limited(message, seconds))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure must end the test")]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read() {
        let hour = Quota { tokens: 1_000_000, time: Duration::from_secs(3600) };
        assert_eq!("1_000_000/hour".parse(), Ok(hour));
        for wrong in ["", "5", "5/week", "0/day", "-1/day", "a/day", "/day"] {
            assert!(wrong.parse::<Quota>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_used_comes_back() {
        let quota: Quota = "100/minute".parse().unwrap();
        let used = Used::default();
        used.take("ann", quota, 60).unwrap();
        used.give_back("ann", 60);
        used.take("ann", quota, 60).unwrap();
        used.add("ann", quota, 20);
        let error = used.take("ann", quota, 60).unwrap_err();
        assert_eq!((error.status.as_u16(), error.retry_after), (429, Some(24)));
        // Each owner has a quota of its own.
        used.take("bob", quota, 60).unwrap();
        // A prompt larger than the quota waits until nothing of it is used.
        assert_eq!(used.take("ann", quota, 500).unwrap_err().retry_after, Some(48));
        let level = Level { tokens: 80.0, at: Instant::now() };
        let later = level.at + Duration::from_secs(30);
        assert!((level.now(quota, later) - 30.0).abs() < 1e-6);
        assert_eq!(level.now(quota, later + Duration::from_secs(600)), 0.0);
    }
}
