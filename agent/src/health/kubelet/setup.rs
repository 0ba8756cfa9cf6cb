//! How the kubelet of this host is set up: unit, command line, configuration; and whether there is one at all.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    config::{self, Broken, Config},
    flags::Flags,
    threshold::Thresholds,
};
use crate::{
    config::{Health, Worker},
    error::{Error, Trouble},
    host::{
        kubelet::Kubelet,
        units::{UnitState, Units},
    },
};

/// How long systemd may take to tell of a unit. The other checks go on without it.
const UNIT: Duration = Duration::from_secs(2);
/// Where kubelets keep what they need, unless they are told otherwise.
const ROOT: &str = "/var/lib/kubelet";

/// The kubelet's configuration, as far as it could be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Loaded {
    /// All files of it, merged.
    Good(Box<Config>),
    /// It has none: the defaults are in force.
    None,
    /// It is told to read this file, which is not there.
    Missing(PathBuf),
    /// It could not be read.
    Unreadable(Error),
    /// The kubelet does not take it.
    Broken(Broken),
}

/// How the kubelet is set up.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    /// How its unit stands.
    pub(super) unit: Result<UnitState, Error>,
    /// The flags with which it runs, or ran when it was last seen; `None`: it never was.
    pub(super) flags: Option<Flags>,
    /// Its main configuration.
    pub(super) config_path: PathBuf,
    /// Its configuration.
    pub(super) config: Loaded,
    /// Its kubeconfig; `None`: it runs stand-alone.
    pub(super) kubeconfig: Option<PathBuf>,
    /// Its certificates.
    pub(super) pki: PathBuf,
    /// Its folder: the file system that it calls nodefs.
    pub(super) root: PathBuf,
    healthz: SocketAddr,
}

/// Whether this host is a worker.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    /// It is none; says why.
    No(String),
    /// It is one.
    Worker(Box<Setup>),
}

/// What is remembered from one look to the next.
#[derive(Debug, Default)]
struct Remembered {
    flags: Option<Flags>,
    exists: Option<bool>,
}

/// Reads setups.
pub(super) struct Reader {
    pub(super) settings: Health,
    pub(super) kubelet: Arc<dyn Kubelet>,
    pub(super) units: Arc<dyn Units>,
    remembered: Mutex<Remembered>,
}

impl Reader {
    pub(super) fn new(settings: &Health, kubelet: Arc<dyn Kubelet>, units: Arc<dyn Units>) -> Self {
        Self { settings: settings.clone(), kubelet, units, remembered: Mutex::default() }
    }

    /// How things stand now.
    pub(super) async fn read(&self) -> Standing {
        if self.settings.worker == Worker::No {
            return Standing::No("`worker` of [health] is \"no\" in the agent's configuration".into());
        }
        let unit = state(&*self.units, &self.settings.kubelet_unit).await;
        let mut flags = running(&*self.kubelet, &unit).await;
        let exists = {
            let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
            match &flags {
                Some(flags) => remembered.flags = Some(flags.clone()),
                None => flags.clone_from(&remembered.flags),
            }
            if let Ok(unit) = &unit {
                remembered.exists = Some(unit.exists());
            }
            remembered.exists
        };
        let setup = setup(&self.settings, &*self.kubelet, unit, flags).await;
        if self.settings.worker == Worker::Auto
            && let Some(why) = self.no_worker(&setup, exists == Some(true)).await
        {
            return Standing::No(why);
        }
        Standing::Worker(Box::new(setup))
    }

    /// Why this host is no worker: it has not joined a cluster, whatever packages it has. Their unit restarts for ever until then.
    async fn no_worker(&self, setup: &Setup, exists: bool) -> Option<String> {
        let Self { settings, kubelet, .. } = self;
        let configured = !matches!(setup.config, Loaded::None | Loaded::Missing(_));
        let joined = match &setup.kubeconfig {
            // What cannot be looked at is there.
            Some(path) => !matches!(kubelet.file(path).await, Ok(None)),
            // It was seen to run without one.
            None => true,
        };
        let (unit, config) = (&settings.kubelet_unit, setup.config_path.display());
        match (configured || joined, exists) {
            (true, _) => None,
            (false, true) => {
                Some(format!("{unit} is there, but has neither a configuration ({config}) nor a kubeconfig: it has joined no cluster"))
            }
            (false, false) => Some(format!("no unit {unit}, no configuration {config}")),
        }
    }
}

/// Asks systemd, but not for long.
pub(super) async fn state(units: &dyn Units, unit: &str) -> Result<UnitState, Error> {
    let late = |_| Error::Look { trouble: Trouble::Silent, message: format!("systemd did not tell of {unit} within {} s", UNIT.as_secs()) };
    timeout(UNIT, units.state(unit)).await.map_err(late)?
}

/// The flags of the running kubelet.
pub(super) async fn running(kubelet: &dyn Kubelet, unit: &Result<UnitState, Error>) -> Option<Flags> {
    let pid = unit.as_ref().ok().map(|u| u.pid).filter(|p| *p != 0)?;
    Flags::parse(&kubelet.command_line(pid).await.ok()?)
}

/// Reads what flags and settings name.
pub(super) async fn setup(settings: &Health, kubelet: &dyn Kubelet, unit: Result<UnitState, Error>, flags: Option<Flags>) -> Setup {
    let path = |flag: &str| flags.as_ref().and_then(|f| f.path(flag));
    let told = |flag: &str, setting: &PathBuf| if flags.is_some() { path(flag) } else { Some(setting.clone()) };
    let main = told("config", &settings.kubelet_config);
    let config = match &main {
        Some(main) => load(kubelet, main, path("config").is_some(), path("config-dir").as_deref()).await,
        None => Loaded::None,
    };
    Setup {
        unit,
        config_path: main.unwrap_or_else(|| settings.kubelet_config.clone()),
        config,
        kubeconfig: told("kubeconfig", &settings.kubelet_kubeconfig),
        pki: path("cert-dir").unwrap_or_else(|| settings.kubelet_pki.clone()),
        root: path("root-dir").unwrap_or_else(|| ROOT.into()),
        healthz: settings.kubelet_healthz,
        flags,
    }
}

async fn load(kubelet: &dyn Kubelet, main: &Path, named: bool, drop_ins: Option<&Path>) -> Loaded {
    let mut files = Vec::new();
    match kubelet.file(main).await {
        Err(e) => return Loaded::Unreadable(e),
        Ok(None) if named => return Loaded::Missing(main.to_owned()),
        Ok(None) => return Loaded::None,
        Ok(Some(bytes)) => files.push((main.to_owned(), bytes)),
    }
    if let Some(folder) = drop_ins {
        let names = match kubelet.files(folder).await {
            Err(e) => return Loaded::Unreadable(e),
            Ok(names) => names.unwrap_or_default(),
        };
        for path in names.into_iter().filter(|p| p.extension().is_some_and(|e| e == "conf")) {
            match kubelet.file(&path).await {
                Err(e) => return Loaded::Unreadable(e),
                Ok(bytes) => files.extend(bytes.map(|bytes| (path, bytes))),
            }
        }
    }
    match config::merge(files.iter().map(|(path, bytes)| (path.as_path(), bytes.as_slice()))) {
        Ok(config) => Loaded::Good(Box::new(config)),
        Err(mut broken) => {
            if broken.path.as_os_str().is_empty() {
                broken.path = main.to_owned();
            }
            Loaded::Broken(broken)
        }
    }
}

impl Setup {
    /// Whether it runs, as far as is known.
    pub(super) fn active(&self) -> bool {
        self.unit.as_ref().is_ok_and(|u| u.active == "active")
    }

    /// The configuration that is in force but for flags. Errors: why it is not known.
    pub(super) fn config(&self) -> Result<Config, String> {
        match &self.config {
            Loaded::Good(config) => Ok((**config).clone()),
            Loaded::None => Ok(Config::default()),
            Loaded::Missing(path) => Err(format!("the kubelet's configuration {} is not there (see kubelet.config)", path.display())),
            Loaded::Unreadable(e) => Err(format!("the kubelet's configuration is not known: {e}")),
            Loaded::Broken(b) => Err(format!("the kubelet's configuration {} is broken (see kubelet.config)", b.path.display())),
        }
    }

    pub(super) fn flag(&self, name: &str) -> Option<&str> {
        self.flags.as_ref()?.get(name)
    }

    pub(super) fn switch(&self, name: &str) -> Option<bool> {
        self.flags.as_ref()?.switch(name)
    }

    /// Where `/healthz` is served. `Ok(None)`: nowhere.
    pub(super) fn healthz(&self) -> Option<SocketAddr> {
        // Without a configuration the agent's setting is the best guess.
        let config = self.config().unwrap_or_default();
        let port = self.flag("healthz-port").and_then(|p| p.parse().ok()).or(config.healthz_port).unwrap_or(self.healthz.port());
        let address: Option<IpAddr> =
            self.flag("healthz-bind-address").map(str::to_owned).or(config.healthz_bind_address).and_then(|a| a.parse().ok());
        let address = match address.unwrap_or(self.healthz.ip()) {
            // It listens everywhere: loopback is there.
            IpAddr::V4(a) if a.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
            IpAddr::V6(a) if a.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            other => other,
        };
        (port != 0).then(|| SocketAddr::new(address, port))
    }

    /// Eviction thresholds in force. Errors: why they are not known.
    pub(super) fn thresholds(&self) -> Result<Thresholds, Vec<String>> {
        let config = self.config().map_err(|e| vec![e])?;
        let flag = |name: &str| self.flags.as_ref().and_then(|f| f.thresholds(name));
        let (hard, soft) = (flag("eviction-hard").or(config.eviction_hard), flag("eviction-soft").or(config.eviction_soft));
        Thresholds::new(hard.as_ref(), config.merge_default_eviction_settings == Some(true), soft.as_ref())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        super::testing::{CONFIG, Host},
        *,
    };
    use crate::host::units_fake::FakeUnits;

    fn why(standing: Standing) -> Option<String> {
        match standing {
            Standing::No(why) => Some(why),
            Standing::Worker(_) => None,
        }
    }

    async fn worker(host: &Host) -> Setup {
        match host.reader().read().await {
            Standing::Worker(setup) => *setup,
            Standing::No(why) => panic!("{why}"),
        }
    }

    #[tokio::test]
    async fn a_host_without_kubernetes_is_no_worker_and_says_why() {
        let bare = Host::bare();
        assert!(why(bare.reader().read().await).unwrap().starts_with("no unit kubelet.service, no configuration"));
        // Packages of Kubernetes whose unit restarts for ever until the host joins a cluster.
        let waiting = UnitState { active: "activating".into(), sub: "auto-restart".into(), restarts: 4000, pid: 0, ..FakeUnits::running() };
        bare.units.set("kubelet.service", waiting);
        assert!(why(bare.reader().read().await).unwrap().contains("has joined no cluster"));
        // Seen in the moment in which it runs.
        bare.units.set("kubelet.service", FakeUnits::running());
        bare.kubelet.change(|w| {
            let line = ["kubelet", "--config=/var/lib/kubelet/config.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf"];
            w.processes.insert(4711, line.map(str::to_owned).into());
        });
        assert!(why(bare.reader().read().await).is_some());
        // Told to be one it is one.
        let mut told = Host::bare();
        told.settings.worker = Worker::Yes;
        assert!(why(told.reader().read().await).is_none());
        let mut no = Host::new();
        no.settings.worker = Worker::No;
        assert!(why(no.reader().read().await).unwrap().contains("\"no\""));
    }

    #[tokio::test]
    async fn a_worker_is_one_by_its_files_or_its_process() {
        let host = Host::new();
        assert!(why(host.reader().read().await).is_none());
        // Its unit is gone.
        host.units.remove("kubelet.service");
        assert!(why(host.reader().read().await).is_none());
        // systemd does not answer.
        host.units.fail(Some(Error::Look { trouble: Trouble::Silent, message: "no answer".into() }));
        assert!(why(host.reader().read().await).is_none());
        // Stand-alone, by flags only.
        let alone = Host::bare();
        alone.units.set("kubelet.service", FakeUnits::running());
        alone.flags(&["--root-dir=/srv/kubelet"]);
        let setup = worker(&alone).await;
        assert_eq!((setup.root, setup.kubeconfig, setup.config), ("/srv/kubelet".into(), None, Loaded::None));
    }

    #[tokio::test]
    async fn flags_override_files_also_after_the_process_has_ended() {
        let host = Host::new();
        host.flags(&[
            "--config=/etc/k.yaml",
            "--config-dir=/etc/k.d",
            "--kubeconfig=/etc/k.conf",
            "--cert-dir=/pki",
            "--healthz-port=1234",
        ]);
        host.kubelet.write("/etc/k.yaml", format!("{CONFIG}healthzPort: 99\nhealthzBindAddress: 0.0.0.0\n"));
        host.kubelet.write("/etc/k.d/10.conf", format!("{CONFIG}evictionHard:\n  memory.available: 2Gi\n"));
        host.kubelet.write("/etc/k.d/README", "no configuration");
        let reader = host.reader();
        for dead in [false, true] {
            if dead {
                host.units.set("kubelet.service", FakeUnits::dead());
            }
            let Standing::Worker(setup) = reader.read().await else { panic!("no worker") };
            assert_eq!(setup.healthz().unwrap().to_string(), "127.0.0.1:1234");
            assert_eq!((&setup.pki, setup.kubeconfig.as_deref()), (&PathBuf::from("/pki"), Some(Path::new("/etc/k.conf"))));
            assert_eq!(setup.thresholds().unwrap().hard.len(), 1);
            assert_eq!(setup.active(), !dead);
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_the_configuration_is_kept() {
        let host = Host::new();
        host.flags(&["--config=/none.yaml"]);
        assert_eq!(worker(&host).await.config, Loaded::Missing("/none.yaml".into()));
        host.kubelet.write("/none.yaml", "kind: [");
        assert!(matches!(worker(&host).await.config, Loaded::Broken(_)));
        let denied = Error::Look { trouble: Trouble::Denied, message: "/none.yaml cannot be read".into() };
        host.kubelet.change(|w| w.files.insert("/none.yaml".into(), Err(denied.clone())));
        let setup = worker(&host).await;
        assert_eq!(setup.config, Loaded::Unreadable(denied));
        assert!(setup.thresholds().is_err());
        assert_eq!(setup.healthz().unwrap().to_string(), "127.0.0.1:10248");
    }
}
