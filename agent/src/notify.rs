//! What the service manager is told, and what it hands over. Outside of systemd all of it does nothing.

use std::{io, net::TcpListener, time::Duration};

use nix::time::{ClockId, clock_gettime};
use systemd::daemon;

fn send(pairs: &[(&str, String)]) {
    if let Err(error) = daemon::notify(pairs.iter()) {
        tracing::debug!(%error, "the service manager could not be told");
    }
}

/// The agent serves.
pub fn ready(status: &str) {
    send(&[("READY", "1".into()), ("STATUS", status.into())]);
}

/// What the agent does, in a line for people.
pub fn status(status: &str) {
    send(&[("STATUS", status.into())]);
}

/// A reload begins; [`ready`] ends it. The time is what `Type=notify-reload` (systemd 253) asks for; older ones ignore it.
pub fn reloading() {
    let micros = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() * 1_000_000 + t.tv_nsec() / 1000);
    send(&[("RELOADING", "1".into()), ("MONOTONIC_USEC", micros.to_string())]);
}

/// The agent ends.
pub fn stopping(status: &str) {
    send(&[("STOPPING", "1".into()), ("STATUS", status.into())]);
}

/// The agent is alive.
pub fn watchdog() {
    send(&[("WATCHDOG", "1".into())]);
}

/// How often [`watchdog`] is to be called: half of what the service manager waits. `None` when it does not wait.
pub fn watchdog_interval() -> Option<Duration> {
    match daemon::watchdog_enabled() {
        Ok(micros) if micros > 0 => Some(Duration::from_micros(micros / 2)),
        _ => None,
    }
}

/// The listening socket that systemd passed (`LISTEN_FDS`), if any.
///
/// # Errors
/// When what was passed is no listening TCP socket.
pub fn passed_listener() -> io::Result<Option<TcpListener>> {
    let passed = daemon::listen_fds().map_err(io::Error::other)?;
    let Some(fd) = passed.iter().next() else { return Ok(None) };
    let listener = daemon::tcp_listener(fd).map_err(io::Error::other)?;
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}
