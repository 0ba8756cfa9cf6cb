//! The clock, as systemd's timedated tells it: it asks the kernel, whoever it is that synchronizes it.

use std::{path::Path, time::Duration};

use zbus::{Connection, OwnedVariant};

use super::{
    ClockState,
    read::{self, look},
};
use crate::error::{Error, Trouble};

const SERVICE: &str = "org.freedesktop.timedate1";
const PATH: &str = "/org/freedesktop/timedate1";

/// Asks timedated, which the bus starts when needed. A connection for each question: there is one a minute.
pub(super) async fn ask(proc: &Path, patience: Duration) -> Result<ClockState, Error> {
    let uptime = read::must(&proc.join("uptime"), 4096)?;
    let uptime = self::uptime(&uptime).ok_or_else(|| look(Trouble::Garbled, "/proc/uptime is not understood"))?;
    let asked = async {
        let connection = Connection::system().await?;
        let synchronized = property(&connection, "NTPSynchronized").await?;
        Ok::<_, zbus::Error>(ClockState { synchronized, uptime })
    };
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(state)) => Ok(state),
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(look(Trouble::Silent, format!("{SERVICE} did not answer within {} s", patience.as_secs_f32()))),
    }
}

async fn property(connection: &Connection, name: &str) -> zbus::Result<bool> {
    let reply = connection.call_method(Some(SERVICE), PATH, Some("org.freedesktop.DBus.Properties"), "Get", &(SERVICE, name)).await?;
    bool::try_from(reply.body().deserialize::<OwnedVariant>()?)
}

fn failed(error: &zbus::Error) -> Error {
    let trouble = match error {
        zbus::Error::InputOutput(e) if e.kind() == std::io::ErrorKind::NotFound => Trouble::Missing,
        zbus::Error::InputOutput(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => Trouble::Refused,
        _ => Trouble::Failed,
    };
    look(trouble, format!("systemd's timedated cannot be asked over D-Bus: {error}"))
}

fn uptime(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_uptime_is_read() {
        assert_eq!(uptime("12.50 3.00\n"), Some(Duration::from_millis(12_500)));
        for text in ["", "x", "-1 2", "nan", "inf"] {
            assert_eq!(uptime(text), None, "{text}");
        }
    }
}
