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
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };
    let ignored = ignored();
    let wanted = [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| (ignored >> (signal - 1)) & 1 == 0);
    let mut signals = Signals::new(wanted)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || signals.forever().for_each(|_| told()))?;
    Ok(())
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
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM},
        iterator::Signals,
    };
    let ignored = ignored();
    let ends = [SIGINT, SIGTERM].into_iter().filter(|signal| (ignored >> (signal - 1)) & 1 == 0);
    let mut signals = Signals::new(ends.chain([SIGHUP]))?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if signal == SIGHUP { reload() } else { told() }
        }
    })?;
    Ok(())
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
