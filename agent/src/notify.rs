//! What the service manager is told, and what it hands over. Outside of systemd all of it does nothing.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    time::Duration,
};

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

/// The agent ends, and may take so long for it: it is not killed before, where that is more than `TimeoutStopSec=`.
pub fn stopping(status: &str, within: Duration) {
    let micros = within.as_micros().to_string();
    send(&[("STOPPING", "1".into()), ("STATUS", status.into()), ("EXTEND_TIMEOUT_USEC", micros)]);
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

/// The name under which the service manager keeps the API's socket (`FileDescriptorStoreMax=`), so that it goes on listening while the agent is
/// restarted.
const KEPT: &str = "listen";

/// Asks the service manager to keep the socket and to hand it over to the next process of this service.
pub fn keep_listener(listener: &TcpListener) {
    let pairs = [("FDSTORE", "1"), ("FDNAME", KEPT)];
    if let Err(error) = daemon::pid_notify_with_fds(0, pairs.iter(), &[listener.as_raw_fd()]) {
        tracing::debug!(%error, "the service manager could not be asked to keep the socket");
    }
}

/// The listening socket that the service manager handed over (`LISTEN_FDS`), if any: one that a former process had it keep, where it listens at
/// `configured`, or that of a socket unit, wherever it listens. What is kept and listens elsewhere is given up. `configured` with port 0 fits
/// every port. To be called once: the socket is the caller's from then on.
///
/// # Errors
/// When what a socket unit passed is no listening TCP socket.
pub fn passed_listener(configured: SocketAddr) -> io::Result<Option<TcpListener>> {
    let mut taken = None;
    let mut given_up = false;
    for (fd, name) in daemon::listen_fds_with_names().map_err(io::Error::other)?.iter() {
        let kept = name.to_bytes() == KEPT.as_bytes();
        match daemon::tcp_listener(fd).map_err(io::Error::other) {
            Ok(listener) if taken.is_none() && (!kept || fits(listener.local_addr()?, configured)) => taken = Some(listener),
            Ok(_) => given_up |= kept,
            Err(_) if kept => given_up = true,
            Err(error) => return Err(error),
        }
    }
    if given_up {
        send(&[("FDSTOREREMOVE", "1".into()), ("FDNAME", KEPT.into())]);
    }
    if let Some(listener) = &taken {
        listener.set_nonblocking(true)?;
        if given_up {
            keep_listener(listener);
        }
    }
    Ok(taken)
}

fn fits(bound: SocketAddr, configured: SocketAddr) -> bool {
    bound == configured || (configured.port() == 0 && bound.ip() == configured.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_socket_fits_where_it_listens_as_configured() {
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        for (bound, configured, fit) in [
            ("[::]:7443", "[::]:7443", true),
            ("[::]:7443", "0.0.0.0:7443", false),
            ("[::]:7443", "[::]:7444", false),
            ("127.0.0.1:40123", "127.0.0.1:0", true),
            ("127.0.0.1:40123", "127.0.0.2:0", false),
            ("127.0.0.1:40123", "[::]:0", false),
        ] {
            let both = address(bound).zip(address(configured));
            assert_eq!(both.map(|(b, c)| fits(b, c)), Some(fit), "{bound} for {configured}");
        }
    }
}
