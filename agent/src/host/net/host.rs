//! The network of the host itself: netlink, files, ifupdown2, systemd.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    Boot, Files, Kernel, KernelLink, NetPaths, Network, NetworkLock, ProbePort, Probed, Step, failed, files, ifquery, ifupdown, kernel,
    lock, offloads, port, probe, probe_port, state, units,
};
use crate::{
    error::Error,
    host::{blocking::Blocking, clock, units::SystemdUnits},
};

/// Files of the root file system are read at once, unless it hangs.
const FILES: Duration = Duration::from_secs(10);
/// The cluster file system may hang; the network is told without it.
const CLUSTER_FILES: Duration = Duration::from_secs(3);

/// The network of this host.
#[derive(Debug)]
pub struct HostNetwork {
    paths: NetPaths,
    /// Held while files are read or written: one write that nobody waits for any more must not meet the next.
    writing: Arc<Mutex<()>>,
    /// The cluster file system is read once and again for health, also while it hangs.
    cluster: Blocking,
    /// `None`: systemd is asked by its programs.
    bus: Option<Arc<SystemdUnits>>,
}

impl HostNetwork {
    /// The network that is declared and kept at these places.
    pub fn new(paths: NetPaths) -> Self {
        Self { paths, writing: Arc::default(), cluster: Blocking::new(), bus: None }
    }

    /// The same, with systemd asked over the bus as long as that answers.
    #[must_use]
    pub fn with_bus(self, bus: Arc<SystemdUnits>) -> Self {
        Self { bus: Some(bus), ..self }
    }

    /// Removes ports of probes that an agent left which died. To be called once, before anything is probed.
    pub async fn sweep(&self) {
        if let Err(error) = probe_port::sweep().await {
            tracing::warn!(%error, "ports of former probes may be left");
        }
    }

    /// Does file system calls on a thread of their own.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&NetPaths) -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
        let (paths, writing) = (self.paths.clone(), Arc::clone(&self.writing));
        let work = move || {
            let _one = writing.lock().unwrap_or_else(PoisonError::into_inner);
            work(&paths)
        };
        match tokio::time::timeout(FILES, tokio::task::spawn_blocking(work)).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Error::Internal(format!("the network's files: {error}"))),
            Err(_) => Err(failed(format!("{} did not answer within {} s", self.paths.etc_network.display(), FILES.as_secs()))),
        }
    }

    async fn link(&self, name: &str) -> Result<KernelLink, Error> {
        let kernel = kernel::read().await?;
        kernel.link(name).cloned().ok_or_else(|| Error::InterfaceNotFound { interface: name.to_owned() })
    }

    /// Does `work` on the link to probe from, and removes a port that was made for it.
    async fn probing<T, W, F>(&self, port: &ProbePort, work: W) -> Result<T, Error>
    where
        W: FnOnce(KernelLink) -> F,
        F: Future<Output = Result<T, Error>>,
    {
        let Some(vlan) = port.vlan else { return work(self.link(&port.link).await?).await };
        let link = self.link(&port.link).await?;
        let name = probe_port::add(&link.name, vlan).await?;
        let result = match self.link(&name).await {
            Ok(link) => work(link).await,
            Err(error) => Err(error),
        };
        if let Err(error) = probe_port::remove(&name).await {
            tracing::warn!(%error, port = name, "the port of a probe is left");
        }
        result
    }
}

#[tonic::async_trait]
impl Network for HostNetwork {
    async fn kernel(&self) -> Result<Kernel, Error> {
        kernel::read().await
    }

    async fn offloads(&self) -> Result<BTreeMap<String, Vec<String>>, Error> {
        offloads::read(&kernel::read().await?.links).await
    }

    async fn files(&self) -> Result<Files, Error> {
        let mut found = self.blocking(files::read).await?;
        let paths = self.paths.clone();
        if let Ok(sdn) = self.cluster.run("/etc/pve", CLUSTER_FILES, move || files::read_sdn(&paths)).await {
            found.sdn = sdn;
            found.sdn_known = true;
        }
        Ok(found)
    }

    async fn lock(&self, patience: Duration) -> Result<NetworkLock, Error> {
        lock::take(&self.paths, patience).await
    }

    async fn lock_to_undo(&self, patience: Duration) -> Result<NetworkLock, Error> {
        lock::take_to_undo(&self.paths, patience).await
    }

    async fn check_text_aside(&self, text: &str) -> Option<Result<(), Error>> {
        ifupdown::check_aside(&self.paths, self.bus.as_deref()?, text).await
    }

    fn check_mark(&self) -> u64 {
        ifupdown::mark()
    }

    async fn check_text(&self, text: &str) -> Result<(), Error> {
        ifupdown::check_text(&self.paths, text).await
    }

    async fn own_file(&self) -> Result<Option<String>, Error> {
        self.blocking(state::read_own).await
    }

    async fn write_own_file(&self, text: Option<&str>) -> Result<(), Error> {
        let text = text.map(str::to_owned);
        self.blocking(move |paths| state::write_own(paths, text.as_deref())).await
    }

    async fn forget_old_file(&self) -> Result<(), Error> {
        self.blocking(state::forget_old).await
    }

    async fn run_steps(&self, steps: &[Step], file: Option<&str>, patience: Duration) -> Result<String, Error> {
        ifupdown::run_steps(&self.paths, self.bus.as_deref(), steps, file, patience).await
    }

    async fn stop_steps(&self) -> Result<(), Error> {
        units::stop().await
    }

    async fn compare(&self, interfaces: &[String], when: oneshot::Receiver<()>) -> Result<Vec<String>, Error> {
        ifquery::compare(&self.paths, interfaces, when).await
    }

    async fn delete_link(&self, name: &str) -> Result<(), Error> {
        kernel::delete_link(name).await
    }

    async fn plug(&self, was: &KernelLink, bridge: &str) -> Result<(), Error> {
        port::plug(was, bridge).await
    }

    async fn enable_ipv6(&self, link: &str) -> Result<(), Error> {
        port::enable_ipv6(link).await
    }

    async fn arm(&self) -> Result<(), Error> {
        units::arm(self.bus.as_deref()).await
    }

    async fn disarm(&self) -> Result<(), Error> {
        units::disarm(self.bus.as_deref()).await
    }

    async fn read_checkpoint(&self) -> Result<Option<Vec<u8>>, Error> {
        self.blocking(state::read_checkpoint).await
    }

    async fn write_checkpoint(&self, bytes: &[u8]) -> Result<(), Error> {
        let bytes = bytes.to_vec();
        self.blocking(move |paths| state::write_checkpoint(paths, &bytes)).await
    }

    async fn remove_checkpoint(&self) -> Result<(), Error> {
        self.blocking(state::remove_checkpoint).await
    }

    async fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (name, bytes) = (name.to_owned(), bytes.to_vec());
        self.blocking(move |paths| state::keep(paths, &name, &bytes)).await
    }

    fn boot(&self) -> Result<Boot, Error> {
        let path: PathBuf = self.paths.proc.join("sys/kernel/random/boot_id");
        let id = std::fs::read_to_string(&path).map_err(|e| failed(format!("{}: {e}", path.display())))?;
        Ok(Boot { id: id.trim().to_owned(), time: clock::since_boot() })
    }

    async fn who_has(&self, port: &ProbePort, addresses: &[IpAddr], timeout: Duration) -> Result<BTreeMap<IpAddr, String>, Error> {
        self.probing(port, async |link| probe::who_has(&link, addresses, timeout).await).await
    }

    async fn probe_answer(&self, port: &ProbePort, token: &str, time: Duration) -> Result<u32, Error> {
        self.probing(port, async |link| probe::answer(&link, token, time).await).await
    }

    async fn probe_send(&self, port: &ProbePort, token: &str, mtus: &[u32], timeout: Duration) -> Result<Probed, Error> {
        self.probing(port, async |link| probe::send(&link, token, mtus, timeout).await).await
    }
}
