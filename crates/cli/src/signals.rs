//! The signals that end a process: Ctrl-C, SIGTERM and SIGHUP on Unix, Ctrl-C elsewhere.

use anyhow::Result;

/// Calls `told` on its own thread whenever the process is asked to end.
///
/// A signal that the process was started to ignore stays ignored, if the system says which these are: SIGHUP under
/// `nohup`, Ctrl-C in the background of a script.
///
/// # Errors
/// If the system refuses the handler.
#[cfg(unix)]
pub(crate) fn on_end(mut told: impl FnMut() + Send + 'static) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    listen(not_ignored(&[SIGHUP, SIGINT, SIGTERM]), move |_| told())
}

/// As [`on_end`], for a process that can reload its files: SIGHUP calls `reload`.
///
/// # Errors
/// If the system refuses the handler.
#[cfg(all(unix, feature = "serve"))]
pub(crate) fn on_end_or_reload(
    mut told: impl FnMut() + Send + 'static,
    mut reload: impl FnMut() + Send + 'static,
) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let wanted = not_ignored(&[SIGINT, SIGTERM]).chain([SIGHUP]);
    listen(wanted, move |signal| if signal == SIGHUP { reload() } else { told() })
}

/// Calls `told` with each of these signals, on its own thread.
#[cfg(unix)]
fn listen(wanted: impl Iterator<Item = i32>, told: impl FnMut(i32) + Send + 'static) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new(wanted)?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || signals.forever().for_each(told))?;
    Ok(())
}

/// The signals that the process was not started to ignore.
#[cfg(unix)]
fn not_ignored(signals: &[i32]) -> impl Iterator<Item = i32> {
    let ignored = ignored();
    signals.iter().copied().filter(move |signal| (ignored >> (signal - 1)) & 1 == 0)
}

/// As on Unix, but without SIGHUP, so `reload` is never called.
#[cfg(all(not(unix), feature = "serve"))]
pub(crate) fn on_end_or_reload(
    told: impl FnMut() + Send + 'static,
    _reload: impl FnMut() + Send + 'static,
) -> Result<()> {
    on_end(told)
}

/// As on Unix, but for Ctrl-C alone.
#[cfg(not(unix))]
pub(crate) fn on_end(told: impl FnMut() + Send + 'static) -> Result<()> {
    Ok(ctrlc::set_handler(told)?)
}

/// The mask of ignored signals, with bit 0 for signal 1, as Linux reports it.
#[cfg(unix)]
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Ends the process without running exit handlers of libraries, because another thread may be initialising them.
pub(crate) fn exit_at_once(code: u8) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(code.into());
    #[cfg(not(unix))]
    std::process::exit(code.into());
}
