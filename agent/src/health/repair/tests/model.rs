//! A host with a containerd: its file, its unit, what it runs with. Any call of the agent may be its last, or fail, or come just after somebody
//! else edited the file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use tokio::sync::{Notify, broadcast, watch};

use super::super::{Checks, Edit, Mender};
use crate::{
    error::{Error, Trouble},
    health::{Check, Finding, Group, Known, Mend, State, containerd},
    host::{
        record::Record,
        runtime::{ConfigText, RuntimeFiles},
        units::{UnitState, Units},
    },
};

pub(in super::super) const PATH: &str = "/etc/containerd/config.toml";
pub(in super::super) const UNIT: &str = "containerd.service";
pub(in super::super) const OLD: &str = "version = 2\n# by hand\nruntime_type = \"\"\n";
pub(in super::super) const NEW: &str = "version = 2\n# by hand\nruntime_type = \"io.containerd.runc.v2\"\n";
pub(in super::super) const TYPE: &str = "containerd.runtime-type";

/// How a host behaves.
#[derive(Debug, Clone)]
pub(in super::super) struct World {
    /// `ActiveState` at the beginning: "active", "inactive" or "failed".
    pub(in super::super) active: &'static str,
    /// containerd takes the new text.
    pub(in super::super) taken: bool,
    /// It starts with the new text.
    pub(in super::super) starts: bool,
    /// Sandboxes can be made with the new text.
    pub(in super::super) works: bool,
    /// The image of sandboxes is there.
    pub(in super::super) image: bool,
    /// The new text mends all of it.
    pub(in super::super) all: bool,
}

impl World {
    pub(in super::super) const GOOD: Self = Self { active: "active", taken: true, starts: true, works: true, image: true, all: true };
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Model {
    /// What the file holds, and has held.
    pub(in super::super) file: String,
    pub(in super::super) history: Vec<String>,
    /// What containerd runs with.
    pub(in super::super) running: Option<String>,
    pub(in super::super) active: String,
    pub(in super::super) result: String,
    pub(in super::super) wedged: bool,
    /// A dead unit does not start at all.
    pub(in super::super) dead: bool,
    pub(in super::super) pid: u32,
    pub(in super::super) backups: Vec<String>,
    pub(in super::super) record: Option<Vec<u8>>,
}

/// A host; what outlives the agent.
#[derive(Clone)]
pub(in super::super) struct Host {
    pub(in super::super) world: World,
    model: Arc<Mutex<Model>>,
    revision: watch::Sender<u64>,
}

impl Host {
    pub(in super::super) fn new(world: World) -> Self {
        let running = (world.active == "active").then(|| OLD.to_owned());
        let model = Model {
            file: OLD.to_owned(),
            history: vec![OLD.to_owned()],
            running,
            active: world.active.to_owned(),
            result: if world.active == "failed" { "signal" } else { "success" }.to_owned(),
            wedged: false,
            dead: false,
            pid: 1,
            backups: Vec::new(),
            record: None,
        };
        Self { world, model: Arc::new(Mutex::new(model)), revision: watch::channel(0).0 }
    }

    pub(in super::super) fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Changes something from outside, and has the checks told.
    pub(in super::super) fn change(&self, change: impl FnOnce(&mut Model)) {
        change(&mut self.lock());
        self.revision.send_modify(|r| *r += 1);
    }

    pub(in super::super) fn write(&self, text: &str) {
        let mut model = self.lock();
        text.clone_into(&mut model.file);
        model.history.push(text.to_owned());
    }

    /// Starts containerd with what the file holds.
    fn start(&self, model: &mut Model) -> bool {
        model.pid += 1;
        let starts = !model.dead && (model.file != NEW || self.world.starts);
        model.running = starts.then(|| model.file.clone());
        model.wedged = false;
        let (active, result) = if starts { ("active", "success") } else { ("failed", "exit-code") };
        (model.active, model.result) = (active.to_owned(), result.to_owned());
        starts
    }

    /// The power is cut, and comes back.
    pub(in super::super) fn reboot(&self) {
        let mut model = self.lock();
        if model.active != "inactive" {
            self.start(&mut model);
        }
    }

    fn findings(&self, model: &Model) -> Vec<Finding> {
        let unit = || Mend::RestartUnit(UNIT.to_owned());
        let runtime_type = if model.file.contains("runtime_type = \"\"") {
            Finding::failed(TYPE, "no type", "write one").mended_by(Mend::ContainerdConfig)
        } else if self.world.all {
            Finding::ok(TYPE, "there")
        } else {
            Finding::degraded(TYPE, "another runtime has no type", "write one")
        };
        let responding = match &model.running {
            Some(_) if !model.wedged => Finding::ok("containerd.responding", "1.7"),
            _ => Finding::failed("containerd.responding", "no answer", "restart it").mended_by(unit()),
        };
        let sandbox = match &model.running {
            None => Finding::unknown("containerd.sandbox", "no answer"),
            Some(_) if !self.world.image => containerd::without_image("pause:3"),
            Some(text) if text == OLD => Finding::failed("containerd.sandbox", "Runtime.Name must be set", ""),
            Some(text) if text == NEW && !self.world.works => Finding::failed("containerd.sandbox", "no runc", "install it"),
            Some(_) => Finding::ok("containerd.sandbox", "made"),
        };
        vec![runtime_type, responding, sandbox]
    }

    fn known(&self, model: &Model) -> Vec<Known> {
        let known = |finding: Finding| Known {
            check: Check { id: finding.id, group: Group::Containerd, why: "" },
            finding,
            since: SystemTime::UNIX_EPOCH,
            observed: None,
        };
        self.findings(model).into_iter().map(known).collect()
    }

    pub(in super::super) fn state(&self, check: &str) -> State {
        let model = self.lock().clone();
        self.findings(&model).into_iter().find(|f| f.id == check).unwrap().state
    }
}

/// What happens at a call.
#[derive(Debug, Clone)]
pub(in super::super) enum Fault {
    /// The agent is killed before it.
    KillBefore,
    /// The agent is killed after it did its work.
    KillAfter,
    /// It fails: the disk is full, the bus is away.
    Fail,
    /// Somebody edits the file before it.
    Edit(&'static str),
}

/// A run of the agent, as the host sees it.
pub(in super::super) struct Process {
    host: Host,
    faults: Mutex<BTreeMap<usize, Fault>>,
    calls: Mutex<Vec<&'static str>>,
    killed: Notify,
    changes: broadcast::Sender<String>,
}

impl Process {
    pub(in super::super) fn new(host: &Host) -> Arc<Self> {
        let (faults, calls) = (Mutex::default(), Mutex::default());
        Arc::new(Self { host: host.clone(), faults, calls, killed: Notify::new(), changes: broadcast::channel(8).0 })
    }

    /// What happens at the call of this number, from now on counted from 1.
    pub(in super::super) fn at(&self, call: usize, fault: Fault) {
        let done = self.calls.lock().unwrap().len();
        self.faults.lock().unwrap().insert(done + call, fault);
    }

    /// Returns when it is killed.
    pub(in super::super) async fn killed(&self) {
        self.killed.notified().await;
    }

    pub(in super::super) fn calls(&self, name: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|c| **c == name).count()
    }

    async fn call<T>(&self, name: &'static str, work: impl FnOnce(&Host, &mut Model) -> Result<T, Error>) -> Result<T, Error> {
        let fault = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(name);
            self.faults.lock().unwrap().remove(&calls.len())
        };
        match fault {
            Some(Fault::KillBefore) => {
                self.killed.notify_one();
                std::future::pending::<()>().await;
            }
            Some(Fault::Fail) => {
                return Err(Error::Look { trouble: Trouble::Failed, message: format!("{name}: no space left on device") });
            }
            Some(Fault::Edit(text)) => self.host.write(text),
            _ => {}
        }
        let result = {
            let mut model = self.host.lock();
            work(&self.host, &mut model)
        };
        self.host.revision.send_modify(|r| *r += 1);
        if matches!(fault, Some(Fault::KillAfter)) {
            self.killed.notify_one();
            std::future::pending::<()>().await;
        }
        result
    }
}

#[tonic::async_trait]
impl Checks for Process {
    fn known(&self) -> Vec<Known> {
        let model = self.host.lock().clone();
        self.host.known(&model)
    }

    fn one(&self, id: &str) -> Option<Known> {
        Checks::known(self).into_iter().find(|k| k.check.id == id)
    }

    async fn run(&self, _: &[String]) -> Result<Vec<Known>, Error> {
        self.call("run", |host, model| Ok(host.known(model))).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.host.revision.subscribe()
    }
}

#[tonic::async_trait]
impl Mender for Process {
    async fn mend(&self) -> Result<Vec<Edit>, Error> {
        let edit = |model: &Model| Edit {
            path: PATH.into(),
            was: model.file.clone(),
            text: NEW.to_owned(),
            mends: vec![TYPE],
            partly: vec![TYPE],
        };
        self.call("mend", |_, model| Ok(if model.file == OLD { vec![edit(model)] } else { Vec::new() })).await
    }
}

#[tonic::async_trait]
impl Record for Process {
    async fn load(&self) -> Result<Option<Vec<u8>>, Error> {
        self.call("load", |_, model| Ok(model.record.clone())).await
    }

    async fn save(&self, bytes: &[u8]) -> Result<(), Error> {
        self.call("save", |_, model| {
            model.record = Some(bytes.to_vec());
            Ok(())
        })
        .await
    }
}

#[tonic::async_trait]
impl Units for Process {
    async fn state(&self, _: &str) -> Result<UnitState, Error> {
        self.call("state", |_, model| {
            let (load, active, result, sub) = ("loaded".into(), model.active.clone(), model.result.clone(), String::new());
            let pid = if model.running.is_some() { model.pid } else { 0 };
            let since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(model.pid.into()));
            Ok(UnitState { load, active, sub, result, pid, since, ..UnitState::default() })
        })
        .await
    }

    async fn restart(&self, unit: &str, _: Duration) -> Result<(), Error> {
        let failed = Error::Look { trouble: Trouble::Failed, message: format!("{unit}: its job ended 'failed'") };
        self.call("restart", |host, model| if host.start(model) { Ok(()) } else { Err(failed) }).await
    }

    async fn stop(&self, _: &str, _: Duration) -> Result<(), Error> {
        self.call("stop", |_, model| {
            (model.running, model.active, model.result) = (None, "inactive".to_owned(), "success".to_owned());
            Ok(())
        })
        .await
    }

    fn changes(&self) -> broadcast::Receiver<String> {
        self.changes.subscribe()
    }
}

#[tonic::async_trait]
impl RuntimeFiles for Process {
    async fn config(&self) -> Result<Vec<ConfigText>, Error> {
        self.call("config", |_, model| Ok(vec![ConfigText { path: PATH.into(), text: model.file.clone() }])).await
    }

    async fn text(&self, _: &Path) -> Result<Option<String>, Error> {
        self.call("text", |_, model| Ok(Some(model.file.clone()))).await
    }

    async fn list(&self, _: &Path) -> Result<Option<Vec<String>>, Error> {
        Ok(None)
    }

    async fn dump(&self, text: &str, _: Duration) -> Result<String, Error> {
        let refused = Error::Look { trouble: Trouble::Failed, message: "containerd: invalid plugin config".into() };
        self.call("dump", |host, _| if host.world.taken { Ok(text.to_owned()) } else { Err(refused) }).await
    }

    async fn try_edits(&self, edits: &[ConfigText], patience: Duration) -> Result<(), Error> {
        self.dump(&edits[0].text, patience).await.map(drop)
    }

    async fn replace(&self, path: &Path, was: &str, text: &str) -> Result<(), Error> {
        self.call("replace", |_, model| {
            if model.file != was {
                return Err(Error::RepairChanged { file: path.display().to_string() });
            }
            text.clone_into(&mut model.file);
            model.history.push(text.to_owned());
            Ok(())
        })
        .await
    }

    async fn back_up(&self, path: &Path) -> Result<PathBuf, Error> {
        self.call("back_up", |_, model| {
            let text = model.file.clone();
            model.backups.push(text);
            Ok(PathBuf::from(format!("{}.{}", path.display(), model.backups.len())))
        })
        .await
    }

    async fn tidy(&self) -> Result<(), Error> {
        Ok(())
    }
}
