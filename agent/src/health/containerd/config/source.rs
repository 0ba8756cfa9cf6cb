//! What the configuration is judged by, gathered.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::super::{
        check::{Check, Finding, Pace, Source},
        kubelet::facts::KubeletFacts,
    },
    super::concern::trouble,
    CHECKS, Cri, Facts, Folder, Mended, analyse, mend, wanted,
};
use crate::{
    config::{Health, Worker},
    error::{Error, Trouble},
    host::{
        runtime::{ConfigText, Runtime, RuntimeFiles, watch::FolderWatch},
        sockets::SocketPaths,
    },
};

/// containerd answers within a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// Its program takes a tenth of a second to start.
const DUMP_PATIENCE: Duration = Duration::from_secs(10);
/// After so long a question to it that had no answer is asked again.
const AGAIN: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(20);

/// Reads what the kubelet has; `None`: there is no kubelet on this host.
pub type KubeletLook = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Option<KubeletFacts>> + Send>> + Send + Sync>;

/// What was asked of containerd's program, which is started only when something has changed.
#[derive(Debug, Default)]
struct Asked {
    /// For these files.
    files: Option<Vec<ConfigText>>,
    /// Whether it refuses them; see [`Facts::refusal`].
    refusal: Option<String>,
    /// What it has without files, as of this release.
    builtin: Option<(Option<String>, String)>,
    /// Texts to which no answer came: since when, and why.
    unanswered: Vec<(String, Instant, Error)>,
    /// Folders in which a change is worth a look.
    folders: BTreeSet<PathBuf>,
}

/// The checks of containerd's configuration.
pub struct ConfigSource {
    settings: Health,
    runtime: Arc<dyn Runtime>,
    files: Arc<dyn RuntimeFiles>,
    kubelet: KubeletLook,
    asked: Mutex<Asked>,
    watch: tokio::sync::Mutex<Option<FolderWatch>>,
    sockets: SocketPaths,
}

impl ConfigSource {
    /// With what it looks at.
    pub fn new(settings: &Health, runtime: Arc<dyn Runtime>, files: Arc<dyn RuntimeFiles>, kubelet: KubeletLook) -> Self {
        let asked = Asked { folders: folders(settings, &[], None), ..Asked::default() };
        let (watch, sockets) = (tokio::sync::Mutex::default(), SocketPaths::default());
        Self { settings: settings.clone(), runtime, files, kubelet, asked: Mutex::new(asked), watch, sockets }
    }

    /// What is to be changed in the files, from how they are now. See [`mend`].
    ///
    /// # Errors
    /// `Look`: the files cannot be read.
    pub async fn mend(&self) -> Result<Vec<Mended>, Error> {
        let facts = self.gather().await;
        match &facts.files {
            Ok(_) => Ok(mend(&facts)),
            Err((trouble, message)) => Err(Error::Look { trouble: *trouble, message: message.clone() }),
        }
    }

    /// All that the configuration is judged by.
    pub async fn gather(&self) -> Facts {
        let (files, status, kubelet) = futures_util::join!(self.files.config(), self.runtime.status(PATIENCE), (self.kubelet)());
        let cri = match status {
            Ok(status) => Cri::Up(Box::new(status)),
            Err(Error::Look { trouble: Trouble::Missing | Trouble::Refused, message }) => Cri::Down(message),
            Err(Error::Look { trouble: Trouble::Unsupported, .. }) => Cri::NotLoaded,
            Err(error) => Cri::Unclear(error.to_string()),
        };
        let (version, plugins) = match &cri {
            Cri::Up(_) => {
                let (version, plugins) = futures_util::join!(self.runtime.version(PATIENCE), self.runtime.plugins(PATIENCE));
                (version.ok().map(|v| v.version), plugins.ok())
            }
            Cri::NotLoaded => (None, self.runtime.plugins(PATIENCE).await.ok()),
            // Nobody there, or nobody who answers: asking on only takes time.
            Cri::Down(_) | Cri::Unclear(_) => (None, None),
        };
        let mut facts = Facts {
            main: self.settings.containerd_config.clone(),
            files: files.map_err(|e| trouble(&e)),
            cri,
            version,
            plugins,
            builtin: None,
            refusal: None,
            removed: false,
            kubelet,
            worker: self.settings.worker == Worker::Yes,
            socket: self.settings.containerd_socket.clone(),
            unit: self.settings.containerd_unit.clone(),
            sandbox_image: None,
            cni_conf: None,
            cni_bin: Vec::new(),
            links: BTreeMap::new(),
        };
        (facts.refusal, facts.removed) = self.refusal(&facts).await;
        facts.builtin = self.builtin(&facts).await;
        let wanted = wanted(&facts);
        if let (Some(image), Cri::Up(_)) = (&wanted.sandbox_image, &facts.cri) {
            facts.sandbox_image = self.runtime.has_image(image, PATIENCE).await.ok().map(|here| (image.clone(), here));
        }
        if let Some(path) = &wanted.cni_conf {
            facts.cni_conf = Some(self.folder(path).await);
        }
        for path in &wanted.cni_bin {
            facts.cni_bin.push(self.folder(path).await);
        }
        for path in wanted.sockets {
            // One whose way cannot be followed is as it is written.
            if let Some(real) = self.sockets.resolve(&path).await.ok().filter(|real| *real != path) {
                facts.links.insert(path, real);
            }
        }
        let followed = folders(&self.settings, facts.files.as_deref().unwrap_or_default(), wanted.cni_conf.as_deref());
        self.asked().folders = followed;
        facts
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn folder(&self, path: &Path) -> Folder {
        Folder { path: path.to_owned(), names: self.files.list(path).await.map_err(|e| e.to_string()) }
    }

    /// Whether containerd takes the files, and whether it has no program; asked once for the same files.
    async fn refusal(&self, facts: &Facts) -> (Option<String>, bool) {
        let Ok(files) = &facts.files else { return (None, false) };
        {
            let asked = self.asked();
            if asked.files.as_ref() == Some(files) {
                return (asked.refusal.clone(), false);
            }
        }
        let Some(main) = files.first() else { return (None, false) };
        let (refusal, removed) = match self.dump(&main.text).await {
            Ok(_) => (Some(String::new()), false),
            Err(Error::Look { trouble: Trouble::Failed, message }) if is_word(&message) => (Some(message), false),
            // No program, or no answer: that says nothing about the files.
            Err(error) => return (None, matches!(error, Error::Look { trouble: Trouble::Missing, .. })),
        };
        let mut asked = self.asked();
        asked.files = Some(files.clone());
        asked.refusal.clone_from(&refusal);
        // A changed file may come with a changed program.
        asked.builtin = None;
        (refusal, removed)
    }

    /// Asks containerd's program. What did not come to an answer is asked again, but not at each look: that would write and start something
    /// each time.
    async fn dump(&self, text: &str) -> Result<String, Error> {
        {
            let asked = self.asked();
            if let Some((_, _, error)) = asked.unanswered.iter().find(|(of, since, _)| *of == text && since.elapsed() < AGAIN) {
                return Err(error.clone());
            }
        }
        let answer = self.files.dump(text, DUMP_PATIENCE).await;
        let mut asked = self.asked();
        asked.unanswered.retain(|(of, since, _)| *of != text && since.elapsed() < AGAIN);
        if let Err(error) = &answer {
            asked.unanswered.push((text.to_owned(), Instant::now(), error.clone()));
        }
        answer
    }

    /// What containerd has without files, where that is needed; asked once for a release.
    async fn builtin(&self, facts: &Facts) -> Option<String> {
        if !wanted(facts).builtin {
            return None;
        }
        {
            let asked = self.asked();
            if let Some((_, builtin)) = asked.builtin.as_ref().filter(|(version, _)| *version == facts.version) {
                return Some(builtin.clone());
            }
        }
        let builtin = self.dump("").await.ok()?;
        self.asked().builtin = Some((facts.version.clone(), builtin.clone()));
        Some(builtin)
    }
}

/// Whether that is a word of containerd's program on the files, and not that it was killed, or an error of the system: a copy for it that could
/// not be written, say.
fn is_word(message: &str) -> bool {
    let of_system = message.ends_with(')') && message.contains(" (os error ");
    !of_system && !message.contains("config dump was killed (")
}

/// Where a change is worth a look: the files' folders, and that of CNI's configuration, which network add-ons write late.
fn folders(settings: &Health, files: &[ConfigText], cni: Option<&Path>) -> BTreeSet<PathBuf> {
    let parents = files.iter().map(|f| f.path.as_path()).chain([settings.containerd_config.as_path()]).filter_map(Path::parent);
    parents.chain(cni).map(Path::to_owned).collect()
}

#[tonic::async_trait]
impl Source for ConfigSource {
    fn name(&self) -> &'static str {
        "containerd-config"
    }

    fn checks(&self) -> &'static [Check] {
        &CHECKS
    }

    fn pace(&self) -> Pace {
        Pace { period: self.settings.period, deadline: DEADLINE }
    }

    async fn look(&self) -> Vec<Finding> {
        if self.settings.worker == Worker::No {
            let why = "the agent's configuration says that this host is no worker (worker = \"no\" in [health])";
            return CHECKS.iter().map(|c| Finding::not_applicable(c.id, why)).collect();
        }
        analyse(&self.gather().await)
    }

    async fn stirred(&self) {
        let mut watch = self.watch.lock().await;
        if watch.is_none() {
            *watch = FolderWatch::new()
                .inspect_err(|error| tracing::debug!(%error, "changes of containerd's configuration are seen at the next look"))
                .ok();
        }
        let Some(watch) = watch.as_mut() else { return std::future::pending().await };
        let folders = self.asked().folders.clone();
        folders.iter().for_each(|f| watch.follow(f));
        if let Err(error) = watch.changed().await {
            tracing::debug!(%error, "changes of containerd's configuration are seen at the next look");
            std::future::pending::<()>().await;
        }
    }
}
