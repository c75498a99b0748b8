//! Notifies a service manager, if there is one, with systemd's protocol.

/// A change of the service's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happens {
    Ready,
    Stopping,
}

/// Notifies the service manager of a change, if there is one.
#[cfg(unix)]
pub(crate) fn tell(happens: Happens) {
    let state = match happens {
        Happens::Ready => sd_notify::NotifyState::Ready,
        Happens::Stopping => sd_notify::NotifyState::Stopping,
    };
    // A failed notification is ignored: the manager notices the change by itself.
    let _ = sd_notify::notify(&[state]);
}

/// Sends watchdog notifications while the service works, if the service manager asks for them.
#[cfg(unix)]
pub(crate) fn watch(is_live: impl Fn() -> bool + Send + 'static) {
    let Some(longest) = sd_notify::watchdog_enabled() else { return };
    let tell = move || {
        loop {
            if is_live() {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            std::thread::sleep(longest / 3);
        }
    };
    // Without this thread, the service manager restarts the service, and reports why.
    let _ = std::thread::Builder::new().name("watchdog".to_owned()).spawn(tell);
}

/// Only Unix has such service managers.
#[cfg(not(unix))]
pub(crate) fn tell(_happens: Happens) {}

/// Only Unix has such service managers.
#[cfg(not(unix))]
pub(crate) fn watch(_is_live: impl Fn() -> bool + Send + 'static) {}
