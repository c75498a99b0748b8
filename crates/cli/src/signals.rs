//! What ends a process from outside: Ctrl-C, SIGTERM and SIGHUP; where there are no signals, Ctrl-C alone.

use anyhow::Result;

/// Calls `told`, on a thread of its own, whenever the process is told to end.
///
/// What whoever started the process has told it to ignore stays ignored, where the system says what that is: SIGHUP behind
/// `nohup`, Ctrl-C in the background of a script.
///
/// # Errors
/// If the system refuses.
#[cfg(unix)]
pub(crate) fn on_end(mut told: impl FnMut() + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    listen(not_ignored(&[SIGHUP, SIGINT, SIGTERM]), move |_| told())
}

/// The same for a process with something that can be read again, which SIGHUP asks for.
///
/// # Errors
/// If the system refuses.
#[cfg(all(unix, feature = "serve"))]
pub(crate) fn on_end_or_reload(
    mut told: impl FnMut() + Send + 'static,
    mut reload: impl FnMut() + Send + 'static,
) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let wanted = not_ignored(&[SIGINT, SIGTERM]).chain([SIGHUP]);
    listen(wanted, move |signal| if signal == SIGHUP { reload() } else { told() })
}

/// Calls `told` with each of these signals, on a thread of its own.
#[cfg(unix)]
fn listen(wanted: impl Iterator<Item = i32>, told: impl FnMut(i32) + Send + 'static) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.forever().for_each(told))?;
    Ok(())
}

/// Those of the signals that the process was not started to ignore.
#[cfg(unix)]
fn not_ignored(signals: &[i32]) -> impl Iterator<Item = i32> {
    let ignored = ignored();
    signals.iter().copied().filter(move |signal| (ignored >> (signal - 1)) & 1 == 0)
}

/// See the other one: there is no such signal.
#[cfg(all(not(unix), feature = "serve"))]
pub(crate) fn on_end_or_reload(
    told: impl FnMut() + Send + 'static,
    _reload: impl FnMut() + Send + 'static,
) -> Result<()> {
    on_end(told)
}

/// See the other one.
#[cfg(not(unix))]
pub(crate) fn on_end(told: impl FnMut() + Send + 'static) -> Result<()> {
    Ok(ctrlc::set_handler(told)?)
}

/// A bit for each signal that is ignored, the first for the signal 1; as Linux says it.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Ends the process without what libraries do at its end: another thread may be in the midst of starting them.
pub(crate) fn exit_at_once(code: u8) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(code.into());
    #[cfg(not(unix))]
    std::process::exit(code.into());
}
