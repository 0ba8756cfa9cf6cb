//! Against a real bus, on which a small service plays systemd.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests start a bus")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use tokio::sync::broadcast::Receiver;
use zbus::{
    Connection, MessageStream, ObjectPath, Variant,
    connection::Builder,
    message::{Message, Type},
};

use super::{SystemdUnits, UnitState, Units, bus::MANAGER, systemd::unit_path};
use crate::error::{Error, Trouble};

const UNIT: &str = "containerd.service";
const PATIENCE: Duration = Duration::from_secs(60);

/// A bus of its own, in a folder of its own.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Self::run(dir.path());
        Self { child, dir }
    }

    fn run(dir: &std::path::Path) -> Child {
        let socket = dir.join("bus");
        let _ = std::fs::remove_file(&socket);
        let config = dir.join("bus.conf");
        let text = format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context='default'>\
             <allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg("--print-address")
            .arg(format!("--config-file={}", config.display()))
            .stdout(Stdio::piped())
            // It complains about limits that it may not raise.
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon, of the package with that name");
        // It listens once it says so.
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        child
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.dir.path().join("bus").display())
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = Self::run(self.dir.path());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a job of the played systemd ends.
#[derive(Clone, Copy)]
enum Job {
    Ends(&'static str),
    Never,
}

struct Played {
    units: BTreeMap<&'static str, UnitState>,
    job: Job,
    /// No call is answered.
    mute: bool,
    calls: Vec<String>,
    /// Those of the last transient unit.
    properties: Vec<String>,
}

type Properties<'a> = Vec<(&'a str, Variant<'a>)>;
type Transient<'a> = (&'a str, &'a str, Properties<'a>, Vec<(&'a str, Properties<'a>)>);

/// systemd, as far as the agent asks it.
#[derive(Clone)]
struct Systemd {
    connection: Connection,
    played: Arc<Mutex<Played>>,
}

impl Systemd {
    async fn on(daemon: &Daemon) -> Self {
        let played = Played { units: BTreeMap::new(), job: Job::Ends("done"), mute: false, calls: Vec::new(), properties: Vec::new() };
        let connection = Builder::address(daemon.address().as_str()).build().await.unwrap();
        let this = Self { connection, played: Arc::new(Mutex::new(played)) };
        let mut stream = MessageStream::from(&this.connection);
        let serving = this.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                if message.message_type() == Type::MethodCall {
                    serving.answer(&message).await;
                }
            }
        });
        this.connection.request_name("org.freedesktop.systemd1").await.unwrap();
        this.set("active", "running").await;
        this
    }

    fn change(&self, change: impl FnOnce(&mut Played)) {
        change(&mut self.played.lock().unwrap());
    }

    fn called(&self, method: &str) -> usize {
        self.played.lock().unwrap().calls.iter().filter(|c| *c == method).count()
    }

    async fn set(&self, active: &str, sub: &str) {
        self.change(|p| {
            let (load, active, sub, result) = ("loaded".into(), active.into(), sub.into(), "exit-code".into());
            let unit = UnitState { load, active, sub, result, status: 2, restarts: 3, pid: 4711, ..UnitState::default() };
            p.units.insert(UNIT, unit);
        });
        let nothing: (&str, BTreeMap<&str, Variant<'_>>, Vec<&str>) = ("org.freedesktop.systemd1.Unit", BTreeMap::new(), vec![]);
        let properties = "org.freedesktop.DBus.Properties";
        self.connection.emit_signal(None::<&str>, unit_path(UNIT), properties, "PropertiesChanged", &nothing).await.unwrap();
    }

    async fn signal(&self, member: &str, body: &(impl serde::Serialize + zbus::wire::DynamicType)) {
        self.connection.emit_signal(None::<&str>, MANAGER.1, MANAGER.2, member, body).await.unwrap();
    }

    fn properties(&self, path: &str, interface: &str) -> Option<BTreeMap<&'static str, Variant<'static>>> {
        let played = self.played.lock().unwrap();
        let none = UnitState { load: "not-found".into(), active: "inactive".into(), ..UnitState::default() };
        let unit = if path == unit_path(UNIT) { &played.units[UNIT] } else { &none };
        Some(match interface {
            "org.freedesktop.systemd1.Unit" => BTreeMap::from([
                ("Id", Variant::from(UNIT)),
                ("LoadState", unit.load.clone().into()),
                ("ActiveState", unit.active.clone().into()),
                ("SubState", unit.sub.clone().into()),
                ("UnitFileState", unit.enabled.clone().into()),
                ("StateChangeTimestamp", 1_700_000_000_000_000_u64.into()),
                ("After", Variant::new(vec!["local-fs.target"])),
            ]),
            "org.freedesktop.systemd1.Service" => BTreeMap::from([
                ("Result", Variant::from(unit.result.clone())),
                ("ExecMainStatus", unit.status.into()),
                ("NRestarts", unit.restarts.into()),
                ("MainPID", unit.pid.into()),
                ("ExecStart", Variant::new(vec![("/bin/true", &["/bin/true"][..], false, 0_u64)])),
            ]),
            _ => return None,
        })
    }

    async fn answer(&self, call: &Message) {
        let header = call.header();
        let (path, method) = (header.path().unwrap().to_string(), header.member().unwrap().to_string());
        let (mute, job) = {
            let mut played = self.played.lock().unwrap();
            played.calls.push(method.clone());
            (played.mute, played.job)
        };
        if mute {
            return;
        }
        let c = &self.connection;
        match method.as_str() {
            "GetAll" => {
                let interface: String = call.body().deserialize().unwrap();
                match self.properties(&path, &interface) {
                    Some(values) => c.reply(&header, &values).await.unwrap(),
                    None => c.reply_error(&header, "org.freedesktop.DBus.Error.UnknownInterface", &"no such interface").await.unwrap(),
                }
            }
            "RestartUnit" | "StartUnit" | "StopUnit" | "StartTransientUnit" => {
                let body = call.body();
                let unit = if method == "StartTransientUnit" {
                    assert_eq!(body.signature().to_string_no_parens(), "ssa(sv)a(sa(sv))");
                    let (unit, mode, properties, beside): Transient<'_> = body.deserialize().unwrap();
                    assert_eq!((mode, beside.len()), ("fail", 0));
                    self.change(|p| p.properties = properties.iter().map(|(name, value)| format!("{name} {value:?}")).collect());
                    unit.to_owned()
                } else {
                    let (unit, mode): (String, String) = body.deserialize().unwrap();
                    assert_eq!(mode, "replace");
                    unit
                };
                if unit != UNIT {
                    c.reply_error(&header, "org.freedesktop.systemd1.NoSuchUnit", &"NoSuchUnit: not loaded").await.unwrap();
                    return;
                }
                let object = ObjectPath::try_from("/org/freedesktop/systemd1/job/7").unwrap();
                // The signal may be on its way before the answer.
                if let Job::Ends(result) = job {
                    self.signal("JobRemoved", &(7_u32, &object, unit.as_str(), result)).await;
                }
                c.reply(&header, &object).await.unwrap();
            }
            _ => c.reply(&header, &()).await.unwrap(),
        }
    }
}

/// The next change that is told of a unit; "" when all are.
async fn told(changes: &mut Receiver<String>, wanted: &str) {
    while changes.recv().await.unwrap() != wanted {}
}

fn trouble<T: std::fmt::Debug>(result: Result<T, Error>) -> Trouble {
    match result.unwrap_err() {
        Error::Look { trouble, .. } => trouble,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_unit_is_read_and_its_changes_are_told() {
    let daemon = Daemon::start();
    let systemd = Systemd::on(&daemon).await;
    let units = SystemdUnits::at(daemon.address());
    let mut changes = units.changes();
    let state = units.state(UNIT).await.unwrap();
    assert_eq!((state.load.as_str(), state.active.as_str(), state.sub.as_str()), ("loaded", "active", "running"));
    assert_eq!((state.result.as_str(), state.status, state.restarts, state.pid), ("exit-code", 2, 3, 4711));
    assert_eq!(state.since.unwrap(), std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
    assert_eq!(systemd.called("Subscribe"), 1);

    let none = units.state("kubelet.service").await.unwrap();
    assert!(!none.exists() && none.load == "not-found");

    told(&mut changes, "").await;
    systemd.set("failed", "failed").await;
    told(&mut changes, UNIT).await;
    assert_eq!(units.state(UNIT).await.unwrap().active, "failed");
    systemd.signal("Reloading", &true).await;
    systemd.signal("Reloading", &false).await;
    told(&mut changes, "").await;
}

#[tokio::test]
async fn sources_that_ask_at_once_are_one_question_and_a_job_makes_it_anew() {
    let daemon = Daemon::start();
    let systemd = Systemd::on(&daemon).await;
    let units = SystemdUnits::at(daemon.address());
    let mut changes = units.changes();
    units.state(UNIT).await.unwrap();
    told(&mut changes, "").await;
    let asked = || systemd.called("GetAll");
    let before = asked();
    // A unit that does not exist has nothing of a service.
    let all = futures_util::future::join_all((0..10).map(|_| units.state("kubelet.service"))).await;
    assert!(all.iter().all(|state| state.as_ref().is_ok_and(|s| s.load == "not-found")));
    assert_eq!((asked() - before, systemd.called("Get")), (1, 0));
    // After a job nobody gets what was true before it, told or not.
    units.state(UNIT).await.unwrap();
    systemd.change(|p| p.units.get_mut(UNIT).unwrap().active = "failed".into());
    units.restart(UNIT, PATIENCE).await.unwrap();
    let before = asked();
    let all = futures_util::future::join_all((0..10).map(|_| units.state(UNIT))).await;
    assert!(all.iter().all(|state| state.as_ref().is_ok_and(|s| s.active == "failed")));
    assert_eq!(asked() - before, 2, "one for the unit, one for the service");
}

#[tokio::test]
async fn a_job_is_followed_to_its_end() {
    let daemon = Daemon::start();
    let systemd = Systemd::on(&daemon).await;
    let units = SystemdUnits::at(daemon.address());
    units.restart(UNIT, PATIENCE).await.unwrap();
    assert_eq!((systemd.called("ResetFailedUnit"), systemd.called("RestartUnit")), (1, 1));
    systemd.change(|p| p.job = Job::Ends("failed"));
    let error = units.restart(UNIT, PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("its job ended 'failed'; it is active (running), result 'exit-code', status 2"), "{error}");
    systemd.change(|p| p.job = Job::Never);
    assert_eq!(trouble(units.restart(UNIT, Duration::from_millis(1)).await), Trouble::Silent);
    assert_eq!(trouble(units.restart("none.service", PATIENCE).await), Trouble::Missing);
    units.stop("none.service", PATIENCE).await.unwrap();
    systemd.change(|p| p.job = Job::Ends("done"));
    units.stop(UNIT, PATIENCE).await.unwrap();
    assert_eq!(systemd.called("StopUnit"), 2);
}

#[tokio::test]
async fn a_transient_unit_is_described_and_followed_to_its_end() {
    let daemon = Daemon::start();
    let systemd = Systemd::on(&daemon).await;
    let units = SystemdUnits::at(daemon.address());
    units.ready(UNIT).await.unwrap();
    let argv = ["/bin/true", "one"];
    let properties = [("Type", Variant::from("oneshot")), ("ExecStart", Variant::new(vec![(argv[0], &argv[..], false)]))];
    for (job, result) in [("done", "done"), ("failed", "failed"), ("timeout", "timeout")] {
        systemd.change(|p| p.job = Job::Ends(job));
        assert_eq!(units.run(UNIT, &properties, PATIENCE).await.unwrap(), result);
    }
    let told = systemd.played.lock().unwrap().properties.join("; ");
    for part in ["Type", "oneshot", "ExecStart", "/bin/true", "one"] {
        assert!(told.contains(part), "{told}");
    }
    systemd.change(|p| p.job = Job::Never);
    assert_eq!(trouble(units.run(UNIT, &properties, Duration::from_millis(1)).await), Trouble::Silent);
    assert_eq!(trouble(units.run("none.service", &properties, PATIENCE).await), Trouble::Missing);
    systemd.change(|p| p.job = Job::Ends("done"));
    units.start(UNIT, PATIENCE).await.unwrap();
    systemd.change(|p| p.job = Job::Ends("dependency"));
    assert_eq!(trouble(units.start(UNIT, PATIENCE).await), Trouble::Failed);
}

#[tokio::test]
async fn a_bus_that_comes_back_is_found_again() {
    let mut daemon = Daemon::start();
    let systemd = Systemd::on(&daemon).await;
    let units = SystemdUnits::at(daemon.address());
    let mut changes = units.changes();
    units.state(UNIT).await.unwrap();
    told(&mut changes, "").await;
    // A job that runs meanwhile has no end that could be told.
    systemd.change(|p| p.job = Job::Never);
    let (restarted, ()) = tokio::join!(units.restart(UNIT, PATIENCE), async {
        while systemd.called("RestartUnit") == 0 {
            tokio::task::yield_now().await;
        }
        daemon.stop();
    });
    assert_eq!(trouble(restarted), Trouble::Refused);
    told(&mut changes, "").await;
    assert_eq!(trouble(units.state(UNIT).await), Trouble::Refused);
    std::fs::remove_file(daemon.dir.path().join("bus")).unwrap();
    assert_eq!(trouble(units.state(UNIT).await), Trouble::Missing);

    daemon.start_again();
    // A bus without systemd, as in a container.
    assert_eq!(trouble(units.state(UNIT).await), Trouble::Missing);
    let systemd = Systemd::on(&daemon).await;
    assert_eq!(units.state(UNIT).await.unwrap().active, "active");
    told(&mut changes, "").await;
    systemd.set("failed", "failed").await;
    told(&mut changes, UNIT).await;
}

#[tokio::test]
async fn a_systemd_that_is_started_anew_is_asked_again_to_tell_of_changes() {
    let daemon = Daemon::start();
    let first = Systemd::on(&daemon).await;
    let units = SystemdUnits::at(daemon.address());
    let mut changes = units.changes();
    units.state(UNIT).await.unwrap();
    told(&mut changes, "").await;
    first.connection.close().await.unwrap();
    told(&mut changes, "").await;
    let second = Systemd::on(&daemon).await;
    told(&mut changes, "").await;
    while second.called("Subscribe") == 0 {
        tokio::task::yield_now().await;
    }
    second.set("failed", "failed").await;
    told(&mut changes, UNIT).await;
}

#[tokio::test]
async fn a_systemd_that_does_not_answer_is_unknown_and_never_well() {
    let daemon = Daemon::start();
    let systemd = Systemd::on(&daemon).await;
    let units = SystemdUnits::at(daemon.address());
    let mut changes = units.changes();
    units.state(UNIT).await.unwrap();
    systemd.set("active", "running").await;
    told(&mut changes, UNIT).await;
    systemd.change(|p| p.mute = true);
    assert_eq!(trouble(units.state(UNIT).await), Trouble::Silent);
    systemd.change(|p| p.mute = false);
    units.state(UNIT).await.unwrap();
}

#[tokio::test]
async fn a_socket_that_speaks_another_protocol_is_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let units = SystemdUnits::at(format!("unix:path={}", path.display()));
    let answering = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            held.push(stream);
        }
    });
    assert_eq!(trouble(units.state(UNIT).await), Trouble::Garbled);
    answering.abort();
}
