//! Plays systemd on a bus of its own for an agent that is a process: where systemd is not PID 1, a unit can be restarted all the same.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use futures_util::StreamExt;
use pvelet_agent::host::units::{UnitState, Units};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use zbus::{
    Connection, MessageStream, ObjectPath, Variant,
    connection::Builder,
    message::{Message, Type},
};

const MANAGER: &str = "/org/freedesktop/systemd1";
/// For a job; a loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// A bus with systemd's name on it. It ends when it is dropped.
#[derive(Debug)]
pub struct Systemd {
    daemon: Child,
    dir: TempDir,
    serving: JoinHandle<()>,
}

impl Systemd {
    /// Plays systemd for one unit; what is asked of it goes to `units`. Must be called on a runtime.
    pub async fn play(unit: &str, units: Arc<dyn Units>) -> Self {
        let dir = TempDir::with_prefix("pvelet-bus-").unwrap();
        let daemon = daemon(&dir);
        let connection = Builder::address(address(&dir).as_str()).build().await.unwrap();
        let unit = Unit { name: unit.to_owned(), units, connection };
        let stream = MessageStream::from(&unit.connection);
        unit.connection.request_name("org.freedesktop.systemd1").await.unwrap();
        Self { daemon, dir, serving: tokio::spawn(serve(Arc::new(unit), stream)) }
    }

    /// Its address, as `DBUS_SYSTEM_BUS_ADDRESS` has it.
    pub fn address(&self) -> String {
        address(&self.dir)
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.serving.abort();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn address(dir: &TempDir) -> String {
    format!("unix:path={}", dir.path().join("bus").display())
}

fn daemon(dir: &TempDir) -> Child {
    let config = dir.path().join("bus.conf");
    let text = format!(
        "<busconfig><type>session</type><listen>{}</listen><auth>EXTERNAL</auth><policy context='default'>\
         <allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>",
        address(dir)
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=KILL", "dbus-daemon", "--nofork", "--print-address", "--config-file"]).arg(config);
    // It complains about limits that it may not raise.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("dbus-daemon, of the package with that name");
    // It listens once it says so.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    child
}

struct Unit {
    name: String,
    units: Arc<dyn Units>,
    connection: Connection,
}

async fn serve(unit: Arc<Unit>, mut stream: MessageStream) {
    let mut changes = unit.units.changes();
    let mut jobs = 0;
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Some(Ok(call)) if call.message_type() == Type::MethodCall => unit.answer(&call, &mut jobs).await,
                Some(Ok(_)) => {}
                _ => return,
            },
            Ok(_) = changes.recv() => unit.changed().await,
        }
    }
}

impl Unit {
    fn object(&self) -> String {
        let part = |c: char| if c.is_ascii_alphanumeric() { c.to_string() } else { format!("_{:02x}", u32::from(c)) };
        format!("{MANAGER}/unit/{}", self.name.chars().map(part).collect::<String>())
    }

    /// Tells that properties are to be read again.
    async fn changed(&self) {
        let nothing: (&str, BTreeMap<&str, Variant<'_>>, Vec<&str>) = ("org.freedesktop.systemd1.Unit", BTreeMap::new(), vec![]);
        let interface = "org.freedesktop.DBus.Properties";
        let _ = self.connection.emit_signal(None::<&str>, self.object(), interface, "PropertiesChanged", &nothing).await;
    }

    async fn properties(&self, path: &str, interface: &str) -> Option<BTreeMap<&'static str, Variant<'static>>> {
        let state = if path == self.object() {
            self.units.state(&self.name).await.unwrap_or_default()
        } else {
            UnitState { load: "not-found".into(), active: "inactive".into(), sub: "dead".into(), ..UnitState::default() }
        };
        let since = state.since.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        Some(match interface {
            "org.freedesktop.systemd1.Unit" => BTreeMap::from([
                ("LoadState", Variant::from(state.load)),
                ("ActiveState", state.active.into()),
                ("SubState", state.sub.into()),
                ("UnitFileState", state.enabled.into()),
                ("StateChangeTimestamp", u64::try_from(since.as_micros()).unwrap_or(0).into()),
            ]),
            "org.freedesktop.systemd1.Service" => BTreeMap::from([
                ("Result", Variant::from(state.result)),
                ("ExecMainStatus", state.status.into()),
                ("NRestarts", state.restarts.into()),
                ("MainPID", state.pid.into()),
            ]),
            _ => return None,
        })
    }

    async fn answer(self: &Arc<Self>, call: &Message, jobs: &mut u32) {
        let header = call.header();
        let (path, method) = (header.path().unwrap().to_string(), header.member().unwrap().to_string());
        let c = &self.connection;
        // Whoever asked may be gone.
        let _ = match method.as_str() {
            "GetAll" => {
                let interface: String = call.body().deserialize().unwrap();
                match self.properties(&path, &interface).await {
                    Some(values) => c.reply(&header, &values).await,
                    None => c.reply_error(&header, "org.freedesktop.DBus.Error.UnknownInterface", &"no such interface").await,
                }
            }
            "RestartUnit" | "StopUnit" => {
                let (unit, _mode): (String, String) = call.body().deserialize().unwrap();
                if unit == self.name {
                    *jobs += 1;
                    let job = ObjectPath::try_from(format!("{MANAGER}/job/{jobs}")).unwrap();
                    tokio::spawn(Arc::clone(self).job(*jobs, job.to_string(), method == "RestartUnit"));
                    c.reply(&header, &job).await
                } else {
                    c.reply_error(&header, "org.freedesktop.systemd1.NoSuchUnit", &"NoSuchUnit: not loaded").await
                }
            }
            _ => c.reply(&header, &()).await,
        };
    }

    async fn job(self: Arc<Self>, id: u32, object: String, restart: bool) {
        let done = if restart { self.units.restart(&self.name, PATIENCE).await } else { self.units.stop(&self.name, PATIENCE).await };
        let result = if done.is_ok() { "done" } else { "failed" };
        let object = ObjectPath::try_from(object).unwrap();
        let body = (id, object, self.name.as_str(), result);
        let interface = "org.freedesktop.systemd1.Manager";
        let _ = self.connection.emit_signal(None::<&str>, MANAGER, interface, "JobRemoved", &body).await;
    }
}
