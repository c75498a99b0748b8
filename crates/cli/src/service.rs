//! What a service manager is told, where one waits for it: systemd's protocol.

/// What happens to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happens {
    Ready,
    Stopping,
}

/// Tells a manager what happens, if one waits to be told.
#[cfg(unix)]
pub(crate) fn tell(happens: Happens) {
    let state = match happens {
        Happens::Ready => sd_notify::NotifyState::Ready,
        Happens::Stopping => sd_notify::NotifyState::Stopping,
    };
    // A manager that cannot be told finds out by itself.
    let _ = sd_notify::notify(&[state]);
}

/// Tells a manager that wants it again and again that the service works, as long as it does.
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
    // Without the thread the manager restarts the service, and says why.
    let _ = std::thread::Builder::new().name("watchdog".to_owned()).spawn(tell);
}

/// There are no such managers.
#[cfg(not(unix))]
pub(crate) fn tell(_happens: Happens) {}

/// There are no such managers.
#[cfg(not(unix))]
pub(crate) fn watch(_is_live: impl Fn() -> bool + Send + 'static) {}
