//! The system bus: one connection, made anew whenever it breaks, and what systemd tells over it unasked.

use std::{
    collections::HashMap,
    io::ErrorKind,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::{
    sync::{Notify, broadcast, watch},
    time::timeout,
};
use zbus::{
    Connection, MessageStream, OwnedObjectPath,
    connection::Builder,
    message::{Message, Type},
};

use super::{shared::Standings, systemd::unit_of};
use crate::error::{Error, Trouble};

pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
pub(super) const MANAGER: (&str, &str, &str) = (SYSTEMD, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// A bus answers at once, and so does systemd, unless it reads all its units again: that takes seconds on a slow disk.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// From one attempt to connect to the next, doubled up to the last. Whoever asks for a unit meanwhile brings the next attempt about.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Changes that a slow reader may have outstanding; more, and it is told that it missed some.
const BACKLOG: usize = 64;

/// A failed look at systemd.
pub(super) fn look(trouble: Trouble, message: impl Into<String>) -> Error {
    Error::Look { trouble, message: message.into() }
}

/// What an error of the bus means.
pub(super) fn meaning(what: &str, error: &zbus::Error) -> Error {
    use zbus::fdo::Error as Fdo;
    let io = |kind| match kind {
        ErrorKind::NotFound => Trouble::Missing,
        ErrorKind::PermissionDenied => Trouble::Denied,
        ErrorKind::TimedOut => Trouble::Silent,
        // Also a bus that hung up.
        _ => Trouble::Refused,
    };
    let trouble = match error {
        zbus::Error::InputOutput(e) | zbus::Error::Connection(e, _) => io(e.kind()),
        zbus::Error::FDO(e) => match &**e {
            Fdo::ServiceUnknown(_) | Fdo::NameHasNoOwner(_) => Trouble::Missing,
            Fdo::AccessDenied(_) | Fdo::AuthFailed(_) | Fdo::InteractiveAuthorizationRequired(_) => Trouble::Denied,
            Fdo::NoReply(_) | Fdo::Timeout(_) | Fdo::TimedOut(_) => Trouble::Silent,
            Fdo::UnknownMethod(_) | Fdo::UnknownObject(_) | Fdo::UnknownInterface(_) | Fdo::UnknownProperty(_) => Trouble::Unsupported,
            Fdo::Disconnected(_) => Trouble::Refused,
            _ => Trouble::Failed,
        },
        zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" => Trouble::Missing,
        zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.UnitExists" => Trouble::Taken,
        zbus::Error::MethodError(..) => Trouble::Failed,
        _ => Trouble::Garbled,
    };
    look(trouble, format!("{what}: {error}"))
}

/// Calls a method; `to`: destination, object and interface. `what`: for people. Errors: `Look`.
pub(super) async fn call<B>(
    connection: &Connection,
    what: &str,
    (destination, path, interface): (&str, &str, &str),
    method: &str,
    body: &B,
) -> Result<Message, Error>
where
    B: serde::Serialize + zbus::wire::DynamicType,
{
    match timeout(ANSWER, connection.call_method(Some(destination), path, Some(interface), method, body)).await {
        Ok(result) => result.map_err(|e| meaning(what, &e)),
        Err(_) => Err(look(Trouble::Silent, format!("{what}: systemd gave no answer within {} s", ANSWER.as_secs()))),
    }
}

/// How a job of systemd ended: its object, and the word.
pub(super) type Ended = (OwnedObjectPath, String);

/// A connection that works, or why there is none.
#[derive(Clone)]
struct Link {
    /// Which attempt it came from.
    attempt: u64,
    connection: Result<Connection, Error>,
}

pub(super) struct Bus {
    /// `None`: the system bus.
    address: Option<String>,
    link: watch::Sender<Link>,
    /// Somebody wants a connection now.
    wanted: Notify,
    /// Units whose changes the bus was asked for, and on which attempt's connection.
    watched: Mutex<HashMap<String, u64>>,
    /// How units stand, as several sources have asked at about the same time.
    pub(super) standings: Standings,
    pub(super) changes: broadcast::Sender<String>,
    pub(super) jobs: broadcast::Sender<Ended>,
}

impl Bus {
    pub(super) fn new(address: Option<String>) -> Self {
        let none = look(Trouble::Missing, "the bus was not asked yet");
        Self {
            address,
            link: watch::channel(Link { attempt: 0, connection: Err(none) }).0,
            wanted: Notify::new(),
            watched: Mutex::default(),
            standings: Standings::default(),
            changes: broadcast::channel(BACKLOG).0,
            jobs: broadcast::channel(BACKLOG).0,
        }
    }

    /// Tells that a unit has changed; an empty name: any may have. Nobody listening is no error.
    fn tell(&self, unit: &str) {
        // Before it is told: whoever hears of it asks at once.
        self.standings.forget(unit);
        let _ = self.changes.send(unit.to_owned());
    }

    /// Keeps the connection, for ever.
    pub(super) async fn keep(&self) {
        let mut pause = PAUSES.0;
        for attempt in 1.. {
            let connected = match timeout(ANSWER, self.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(look(Trouble::Silent, format!("the bus gave no answer within {} s", ANSWER.as_secs()))),
            };
            match connected {
                Ok((connection, stream)) => {
                    pause = PAUSES.0;
                    self.link.send_replace(Link { attempt, connection: Ok(connection.clone()) });
                    // Whatever changed meanwhile was not told.
                    self.tell("");
                    self.listen(&connection, stream).await;
                    let gone = look(Trouble::Refused, "the bus hung up");
                    self.link.send_replace(Link { attempt, connection: Err(gone) });
                    self.tell("");
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection to systemd");
                    self.link.send_replace(Link { attempt, connection: Err(error) });
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.notified() => {}
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn connect(&self) -> Result<(Connection, MessageStream), Error> {
        let builder = match &self.address {
            Some(address) => Builder::address(address.as_str()),
            None => Builder::system(),
        };
        let connection = builder.build().await.map_err(|e| meaning("the system bus", &e))?;
        // Before anything is asked for, so that nothing is missed.
        let stream = MessageStream::from(&connection);
        let rules = [
            format!("type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'"),
            format!("type='signal',sender='{SYSTEMD}',interface='{}',member='Reloading'", MANAGER.2),
        ];
        for rule in &rules {
            add_match(&connection, rule).await?;
        }
        subscribe(&connection).await?;
        Ok((connection, stream))
    }

    /// Hears what comes unasked, until the connection ends.
    async fn listen(&self, connection: &Connection, mut stream: MessageStream) {
        while let Some(Ok(message)) = stream.next().await {
            if message.message_type() == Type::Signal {
                self.heard(connection, &message);
            }
        }
    }

    fn heard(&self, connection: &Connection, message: &Message) {
        let header = message.header();
        let name = |text: Option<&str>| text.unwrap_or_default().to_owned();
        let interface = name(header.interface().map(|i| i.as_str()));
        let member = name(header.member().map(|m| m.as_str()));
        match (interface.as_str(), member.as_str()) {
            (PROPERTIES, "PropertiesChanged") => {
                if let Some(unit) = header.path().and_then(|path| unit_of(path.as_str())) {
                    self.tell(&unit);
                }
            }
            (i, "JobRemoved") if i == MANAGER.2 => {
                let body = message.body();
                if let Ok((_, job, unit, result)) = body.deserialize::<(u32, OwnedObjectPath, String, String)>() {
                    self.tell(&unit);
                    // Nobody waiting for a job is no error.
                    let _ = self.jobs.send((job, result));
                }
            }
            // It has read its units again: any may be another one now.
            (i, "Reloading") if i == MANAGER.2 && !message.body().deserialize().unwrap_or(true) => self.tell(""),
            (BUS, "NameOwnerChanged") => {
                let back = message.body().deserialize::<(String, String, String)>().is_ok_and(|(_, _, new)| !new.is_empty());
                if back {
                    // systemd was started anew in its place. Not waited for here: answers come the same way as signals.
                    let connection = connection.clone();
                    tokio::spawn(async move {
                        if let Err(error) = subscribe(&connection).await {
                            tracing::warn!(%error, "systemd does not tell of changes any more");
                        }
                    });
                }
                self.tell("");
            }
            _ => {}
        }
    }

    /// A connection that works, and of which attempt it is. Where there is none, one is tried for. Errors: `Look`.
    async fn link(&self) -> Result<(Connection, u64), Error> {
        let mut link = self.link.subscribe();
        let seen = {
            let now = link.borrow_and_update();
            match &now.connection {
                Ok(connection) if !connection.is_closed() => return Ok((connection.clone(), now.attempt)),
                _ => now.attempt,
            }
        };
        self.wanted.notify_one();
        let next = timeout(ANSWER, link.wait_for(|l| l.attempt > seen)).await;
        match next {
            Ok(Ok(link)) => link.connection.clone().map(|connection| (connection, link.attempt)),
            _ => Err(look(Trouble::Silent, format!("no connection to systemd within {} s", ANSWER.as_secs()))),
        }
    }

    /// A connection on which changes of `unit`, and the ends of its jobs, are told. Errors: `Look`.
    ///
    /// systemd's `UnitNew` and `UnitRemoved` are not asked for: it loads a unit that is merely looked at, and forgets it again when nothing
    /// else needs it, so that each look at a stopped unit would bring about the next one.
    pub(super) async fn watching(&self, unit: &str) -> Result<Connection, Error> {
        let (connection, attempt) = self.link().await?;
        let watched = || self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched().get(unit) != Some(&attempt) {
            let path = super::systemd::unit_path(unit);
            let rules = [
                format!("type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged',path='{path}'"),
                format!("type='signal',sender='{SYSTEMD}',interface='{}',member='JobRemoved',arg2='{unit}'", MANAGER.2),
            ];
            for rule in &rules {
                add_match(&connection, rule).await?;
            }
            watched().insert(unit.to_owned(), attempt);
        }
        Ok(connection)
    }
}

async fn add_match(connection: &Connection, rule: &str) -> Result<(), Error> {
    call(connection, "asking the bus for signals", (BUS, BUS_PATH, BUS), "AddMatch", &rule).await.map(drop)
}

/// Asks systemd to tell of changes.
async fn subscribe(connection: &Connection) -> Result<(), Error> {
    match call(connection, "asking systemd to tell of changes", MANAGER, "Subscribe", &()).await {
        Err(Error::Look { message, .. }) if message.contains("AlreadySubscribed") => Ok(()),
        other => other.map(drop),
    }
}

/// Ends the keeper with the last handle.
pub(super) struct Keeper {
    pub(super) bus: Arc<Bus>,
    task: tokio::task::AbortHandle,
}

impl Keeper {
    /// Must be called on a runtime.
    pub(super) fn start(address: Option<String>) -> Self {
        let bus = Arc::new(Bus::new(address));
        let kept = Arc::clone(&bus);
        let task = tokio::spawn(async move { kept.keep().await }).abort_handle();
        Self { bus, task }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}
