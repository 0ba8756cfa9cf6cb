//! A container runtime in memory, and its files, for tests.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{ConfigText, Plugin, Runtime, RuntimeCondition, RuntimeFiles, RuntimeStatus, RuntimeVersion, Sandbox};
use crate::error::{Error, Trouble};

/// An error of a look.
pub fn look(trouble: Trouble, message: &str) -> Error {
    Error::Look { trouble, message: message.to_owned() }
}

/// What the runtime answers.
#[derive(Debug, Clone)]
pub struct Answers {
    /// To `version`.
    pub version: Result<RuntimeVersion, Error>,
    /// To `status`.
    pub status: Result<RuntimeStatus, Error>,
    /// To `plugins`.
    pub plugins: Result<Vec<Plugin>, Error>,
    /// To `image_fs`.
    pub image_fs: Result<Vec<PathBuf>, Error>,
    /// Images that it has.
    pub images: Result<Vec<String>, Error>,
    /// Why no sandbox is made; `Ok`: one is.
    pub run_sandbox: Result<(), Error>,
    /// Why none is removed.
    pub remove_sandbox: Result<(), Error>,
    /// Sandboxes of the agent that are there.
    pub sandboxes: Vec<Sandbox>,
    /// Nothing is answered before the caller's patience is over.
    pub silent: bool,
}

impl Default for Answers {
    /// A healthy containerd 1.7.
    fn default() -> Self {
        let condition = |kind: &str| RuntimeCondition { kind: kind.into(), status: true, ..RuntimeCondition::default() };
        Self {
            version: Ok(RuntimeVersion { name: "containerd".into(), version: "1.7.24".into(), api: "v1".into() }),
            status: Ok(RuntimeStatus {
                conditions: vec![condition("RuntimeReady"), condition("NetworkReady")],
                config: serde_json::Value::Null,
                cni: "OK".into(),
            }),
            plugins: Ok(vec![Plugin { kind: "io.containerd.grpc.v1".into(), id: "cri".into(), error: String::new() }]),
            image_fs: Ok(Vec::new()),
            images: Ok(Vec::new()),
            run_sandbox: Ok(()),
            remove_sandbox: Ok(()),
            sandboxes: Vec::new(),
            silent: false,
        }
    }
}

/// A runtime that answers what a test tells it to.
#[derive(Debug, Default)]
pub struct FakeRuntime {
    answers: Mutex<Answers>,
    calls: Mutex<Vec<String>>,
}

impl FakeRuntime {
    /// A healthy one.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Changes its answers.
    pub fn change(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.lock());
    }

    /// The calls that were made, such as "version", "remove_sandbox s1".
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn called(&self, call: String, patience: Duration) -> Result<Answers, Error> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
        let answers = self.lock().clone();
        if answers.silent {
            tokio::time::sleep(patience).await;
            return Err(look(Trouble::Silent, &format!("no answer within {} ms", patience.as_millis())));
        }
        Ok(answers)
    }
}

#[tonic::async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self, patience: Duration) -> Result<RuntimeVersion, Error> {
        self.called("version".into(), patience).await?.version
    }

    async fn status(&self, patience: Duration) -> Result<RuntimeStatus, Error> {
        self.called("status".into(), patience).await?.status
    }

    async fn plugins(&self, patience: Duration) -> Result<Vec<Plugin>, Error> {
        self.called("plugins".into(), patience).await?.plugins
    }

    async fn image_fs(&self, patience: Duration) -> Result<Vec<PathBuf>, Error> {
        self.called("image_fs".into(), patience).await?.image_fs
    }

    async fn has_image(&self, image: &str, patience: Duration) -> Result<bool, Error> {
        Ok(self.called(format!("has_image {image}"), patience).await?.images?.iter().any(|i| i == image))
    }

    async fn run_sandbox(&self, patience: Duration) -> Result<String, Error> {
        self.called("run_sandbox".into(), patience).await?.run_sandbox?;
        let mut answers = self.lock();
        let id = format!("s{}", answers.sandboxes.len() + 1);
        answers.sandboxes.push(Sandbox { id: id.clone(), ready: true });
        Ok(id)
    }

    async fn remove_sandbox(&self, id: &str, patience: Duration) -> Result<(), Error> {
        self.called(format!("remove_sandbox {id}"), patience).await?.remove_sandbox?;
        self.lock().sandboxes.retain(|s| s.id != id);
        Ok(())
    }

    async fn own_sandboxes(&self, patience: Duration) -> Result<Vec<Sandbox>, Error> {
        Ok(self.called("own_sandboxes".into(), patience).await?.sandboxes)
    }
}

/// What `dump` makes of a text.
type Dump = Arc<dyn Fn(&str) -> Result<String, Error> + Send + Sync>;

#[derive(Default)]
struct Disk {
    /// Main file first.
    config: Vec<ConfigText>,
    folders: BTreeMap<PathBuf, Vec<String>>,
    backups: Vec<ConfigText>,
    dump: Option<Dump>,
    failing: Option<Error>,
}

/// containerd's files in memory.
#[derive(Default)]
pub struct FakeFiles {
    disk: Mutex<Disk>,
}

impl FakeFiles {
    /// Without a file.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// With `/etc/containerd/config.toml`.
    pub fn with(main: &str) -> Arc<Self> {
        let this = Self::new();
        this.write("/etc/containerd/config.toml", main);
        this
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a file of the configuration; the first one ever written is the main file.
    pub fn write(&self, path: impl Into<PathBuf>, text: &str) {
        let (path, text, mut disk) = (path.into(), text.to_owned(), self.lock());
        match disk.config.iter_mut().find(|f| f.path == path) {
            Some(file) => file.text = text,
            None => disk.config.push(ConfigText { path, text }),
        }
    }

    /// What a file holds.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        self.lock().config.iter().find(|f| f.path == path.as_ref()).map(|f| f.text.clone())
    }

    /// Makes a folder with these files.
    pub fn folder(&self, path: impl Into<PathBuf>, names: &[&str]) {
        self.lock().folders.insert(path.into(), names.iter().map(|n| (*n).to_owned()).collect());
    }

    /// What containerd makes of a text; else it takes each that is TOML.
    pub fn on_dump(&self, dump: impl Fn(&str) -> Result<String, Error> + Send + Sync + 'static) {
        self.lock().dump = Some(Arc::new(dump));
    }

    /// Every call ends with this error; `None`: no longer.
    pub fn fail(&self, error: Option<Error>) {
        self.lock().failing = error;
    }

    /// Copies that were kept.
    pub fn backups(&self) -> Vec<ConfigText> {
        self.lock().backups.clone()
    }

    fn works(&self) -> Result<MutexGuard<'_, Disk>, Error> {
        let disk = self.lock();
        match &disk.failing {
            Some(error) => Err(error.clone()),
            None => Ok(disk),
        }
    }
}

#[tonic::async_trait]
impl RuntimeFiles for FakeFiles {
    async fn config(&self) -> Result<Vec<ConfigText>, Error> {
        Ok(self.works()?.config.clone())
    }

    async fn text(&self, path: &Path) -> Result<Option<String>, Error> {
        Ok(self.works()?.config.iter().find(|f| f.path == path).map(|f| f.text.clone()))
    }

    async fn list(&self, folder: &Path) -> Result<Option<Vec<String>>, Error> {
        Ok(self.works()?.folders.get(folder).cloned())
    }

    async fn dump(&self, text: &str, _: Duration) -> Result<String, Error> {
        let dump = self.works()?.dump.clone();
        match dump {
            Some(dump) => dump(text),
            None => text
                .parse::<toml_edit::DocumentMut>()
                .map(|_| text.to_owned())
                .map_err(|e| look(Trouble::Failed, &format!("containerd: failed to load TOML: {e}"))),
        }
    }

    async fn try_edits(&self, edits: &[ConfigText], patience: Duration) -> Result<(), Error> {
        for edit in edits {
            self.dump(&edit.text, patience).await?;
        }
        Ok(())
    }

    async fn replace(&self, path: &Path, was: &str, text: &str) -> Result<(), Error> {
        let mut disk = self.works()?;
        let found = disk.config.iter_mut().find(|f| f.path == path && f.text == was);
        found.ok_or_else(|| Error::RepairChanged { file: path.display().to_string() })?.text = text.to_owned();
        Ok(())
    }

    async fn back_up(&self, path: &Path) -> Result<PathBuf, Error> {
        let mut disk = self.works()?;
        let missing = || look(Trouble::Missing, &format!("{}: no such file", path.display()));
        let text = disk.config.iter().find(|f| f.path == path).map(|f| f.text.clone()).ok_or_else(missing)?;
        let copy = PathBuf::from(format!("{}.pvelet-{}", path.display(), disk.backups.len() + 1));
        disk.backups.push(ConfigText { path: copy.clone(), text });
        Ok(copy)
    }

    async fn tidy(&self) -> Result<(), Error> {
        Ok(())
    }
}
