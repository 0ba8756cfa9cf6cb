//! [`Units`] of the host's own systemd.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::broadcast, time::Instant};
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

use super::{
    UnitState, Units,
    bus::{Bus, Keeper, MANAGER, PROPERTIES, SYSTEMD, call, look},
};
use crate::error::{Error, Trouble};

const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
/// Below it each unit has an object.
const UNITS: &str = "/org/freedesktop/systemd1/unit/";

/// The object of a unit. Letters and digits stand for themselves, but for a digit in front; all else is written as `_` and two hexadecimal
/// digits.
pub(super) fn unit_path(unit: &str) -> String {
    let mut path = String::from(UNITS);
    if unit.is_empty() {
        path.push('_');
    }
    for (at, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            path.push(byte.into());
        } else {
            // Writing to a String does not fail.
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

/// The unit of an object; `None`: it is no unit's.
pub(super) fn unit_of(path: &str) -> Option<String> {
    let mut name = Vec::new();
    let mut rest = path.strip_prefix(UNITS)?.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'_' {
            let hex = [rest.next()?, rest.next()?];
            name.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            name.push(byte);
        }
    }
    String::from_utf8(name).ok()
}

/// systemd, over the system bus. The connection is made when it is first needed, and again whenever it breaks.
pub struct SystemdUnits {
    keeper: Keeper,
}

impl std::fmt::Debug for SystemdUnits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SystemdUnits")
    }
}

impl Default for SystemdUnits {
    fn default() -> Self {
        Self::new()
    }
}

impl SystemdUnits {
    /// The host's systemd. Must be called on a runtime.
    pub fn new() -> Self {
        Self { keeper: Keeper::start(None) }
    }

    /// The systemd at this address of D-Bus. Must be called on a runtime.
    pub fn at(address: impl Into<String>) -> Self {
        Self { keeper: Keeper::start(Some(address.into())) }
    }

    /// Whether systemd can be asked about this unit now. Errors: `Look`; then nothing was asked for.
    pub async fn ready(&self, unit: &str) -> Result<(), Error> {
        self.keeper.bus.watching(unit).await.map(drop)
    }

    /// Starts a unit and waits until the job has ended, no longer than `patience`. Runs already: a success. Errors: also when the job ended
    /// otherwise than "done".
    pub async fn start(&self, unit: &str, patience: Duration) -> Result<(), Error> {
        self.job("StartUnit", unit, patience).await
    }

    /// Starts a transient unit that is described by `properties`, and waits until the job has ended, no longer than `patience`; with `Type`
    /// "oneshot" that is when its program has ended. The unit goes on without whoever waits. Returns how the job ended: "done", "failed",
    /// "timeout", ... Errors: `Look`, also when there is such a unit already.
    pub async fn run(&self, unit: &str, properties: &[(&str, Variant<'_>)], patience: Duration) -> Result<String, Error> {
        let beside: [(&str, &[(&str, Variant<'_>)]); 0] = [];
        self.ends("StartTransientUnit", unit, &(unit, "fail", properties, &beside[..]), patience).await
    }

    /// Has systemd do something to a unit, and waits until it is done.
    async fn job(&self, method: &'static str, unit: &str, patience: Duration) -> Result<(), Error> {
        let result = self.ends(method, unit, &(unit, "replace"), patience).await?;
        if result == "done" {
            return Ok(());
        }
        let state = self.state(unit).await.unwrap_or_default();
        let seen = format!("{} ({}), result '{}', status {}", state.active, state.sub, state.result, state.status);
        Err(look(Trouble::Failed, format!("{unit}: its job ended '{result}'; it is {seen}")))
    }

    /// Asks systemd for a job, and waits until it has ended. Returns how.
    async fn ends<B>(&self, method: &'static str, unit: &str, body: &B, patience: Duration) -> Result<String, Error>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        let bus = &self.keeper.bus;
        bus.standings.forget(unit);
        let result = self.follow(method, unit, body, patience).await;
        // Whoever looks next sees what the job has come to, also where its end was not told.
        bus.standings.forget(unit);
        result
    }

    async fn follow<B>(&self, method: &'static str, unit: &str, body: &B, patience: Duration) -> Result<String, Error>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        let end = Instant::now() + patience;
        let bus = &self.keeper.bus;
        let connection = bus.watching(unit).await?;
        // Before it is asked for: it may end before the answer is read.
        let mut jobs = bus.jobs.subscribe();
        let reply = call(&connection, unit, MANAGER, method, body).await?;
        let garbled = |e: zbus::Error| look(Trouble::Garbled, format!("{unit}: systemd's answer to {method}: {e}"));
        let job: OwnedObjectPath = reply.body().deserialize().map_err(garbled)?;
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout_at(end, jobs.recv()) => next,
                () = connection.closed() => {
                    return Err(look(Trouble::Refused, format!("{unit}: the bus hung up before its job had ended")));
                }
            };
            match next {
                Ok(Ok((ended, result))) if ended == job => return Ok(result),
                Ok(Ok(_)) => {}
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => {
                    if self.gone(&connection, &job).await? {
                        return Err(look(Trouble::Failed, format!("{unit}: how its job ended was missed")));
                    }
                }
                Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => {
                    return Err(look(Trouble::Silent, format!("{unit}: its job has not ended within {} s", patience.as_secs())));
                }
            }
        }
    }

    /// Whether a job is no more.
    async fn gone(&self, connection: &Connection, job: &OwnedObjectPath) -> Result<bool, Error> {
        let state = ("org.freedesktop.systemd1.Job", "State");
        match call(connection, "a job", (SYSTEMD, job.as_str(), PROPERTIES), "Get", &state).await {
            Ok(_) => Ok(false),
            Err(Error::Look { trouble: Trouble::Unsupported, .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// The properties of an interface of a unit. One question: systemd loads a unit that nothing needs for each, and drops it again.
struct Properties<'a> {
    of: &'a str,
    values: HashMap<String, OwnedVariant>,
}

impl<'a> Properties<'a> {
    async fn read(connection: &Connection, path: &'a str, interface: &str) -> Result<Self, Error> {
        let reply = call(connection, path, (SYSTEMD, path, PROPERTIES), "GetAll", &interface).await?;
        let values = reply.body().deserialize().map_err(|e| look(Trouble::Garbled, format!("{path}: {e}")))?;
        Ok(Self { of: path, values })
    }

    fn take<T>(&mut self, name: &str) -> Result<T, Error>
    where
        T: for<'v> TryFrom<Variant<'v>, Error: Into<zbus::Error>>,
    {
        let value = self.values.remove(name).ok_or_else(|| look(Trouble::Unsupported, format!("{} has no property {name}", self.of)))?;
        Variant::from(value).downcast().map_err(|e| look(Trouble::Garbled, format!("{name} of {}: {e}", self.of)))
    }
}

/// Asks systemd how a unit stands.
async fn read(bus: &Bus, unit: &str) -> Result<UnitState, Error> {
    let connection = bus.watching(unit).await?;
    let path = unit_path(unit);
    let mut of_unit = Properties::read(&connection, &path, UNIT).await?;
    let since = of_unit.take::<u64>("StateChangeTimestamp")?;
    let state = UnitState {
        load: of_unit.take("LoadState")?,
        active: of_unit.take("ActiveState")?,
        sub: of_unit.take("SubState")?,
        enabled: of_unit.take("UnitFileState")?,
        since: (since > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_micros(since)),
        ..UnitState::default()
    };
    if !unit.ends_with(".service") || !state.exists() {
        return Ok(state);
    }
    let mut of_service = Properties::read(&connection, &path, SERVICE).await?;
    Ok(UnitState {
        result: of_service.take("Result")?,
        status: of_service.take("ExecMainStatus")?,
        restarts: of_service.take("NRestarts")?,
        pid: of_service.take("MainPID")?,
        ..state
    })
}

#[tonic::async_trait]
impl Units for SystemdUnits {
    async fn state(&self, unit: &str) -> Result<UnitState, Error> {
        let bus = Arc::clone(&self.keeper.bus);
        let name = unit.to_owned();
        self.keeper.bus.standings.shared(unit, async move { read(&bus, &name).await }).await
    }

    async fn restart(&self, unit: &str, patience: Duration) -> Result<(), Error> {
        let connection = self.keeper.bus.watching(unit).await?;
        // Else one that failed too often is refused. One that is not loaded has nothing to reset.
        match call(&connection, unit, MANAGER, "ResetFailedUnit", &unit).await {
            Ok(_) | Err(Error::Look { trouble: Trouble::Missing | Trouble::Failed, .. }) => {}
            Err(error) => return Err(error),
        }
        self.job("RestartUnit", unit, patience).await
    }

    async fn stop(&self, unit: &str, patience: Duration) -> Result<(), Error> {
        match self.job("StopUnit", unit, patience).await {
            Err(Error::Look { trouble: Trouble::Missing, message }) if message.contains("NoSuchUnit") => Ok(()),
            other => other,
        }
    }

    fn changes(&self) -> broadcast::Receiver<String> {
        self.keeper.bus.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn objects_are_named_as_systemd_names_them() {
        assert_eq!(unit_path("containerd.service"), "/org/freedesktop/systemd1/unit/containerd_2eservice");
        assert_eq!(unit_path("0a-b@c.service"), "/org/freedesktop/systemd1/unit/_30a_2db_40c_2eservice");
        assert_eq!(unit_of("/org/freedesktop/systemd1/job/7"), None);
        assert_eq!(unit_of("/org/freedesktop/systemd1/unit/a_2"), None);
    }

    proptest! {
        #[test]
        fn a_unit_is_known_by_its_object(unit in "[a-z0-9@:._\\\\-]{1,40}") {
            prop_assert_eq!(unit_of(&unit_path(&unit)), Some(unit));
        }
    }
}
