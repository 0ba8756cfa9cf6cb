//! What `HostService` means: the host as the API shows it, and the stream of what happens on it.

pub(crate) mod slow;
mod watch;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use pvelet_proto::{API_VERSION, v1};
use tokio::{
    sync::{broadcast::error::RecvError, watch as channel},
    time::timeout,
};

use self::slow::{Reading, Slow};
use crate::{
    error::Error,
    host::{
        facts::Facts,
        links::Links,
        pve::{
            Inventory, Pve, RunState,
            config_file::{ConfigFile, properties},
        },
    },
    metrics::{Metrics, Snapshot},
    vm::{self, Vms, view},
};

/// Major versions of PVE with which this agent was tested. Under another one it only observes.
pub const TESTED_PVE: &[&str] = &["9"];

/// What this agent offers, as `Host.features` tells it. A feature is never renamed.
pub const FEATURES: &[&str] = &[
    "certificates",
    "health",
    "host.get",
    "host.watch",
    "network",
    "operation.cancel",
    "operation.watch",
    "vm.clone",
    "vm.clone.full",
    "vm.clone.linked",
    "vm.configure",
    "vm.delete",
    "vm.power",
    "vm.user_data",
    "volume.attach",
    "volume.copy",
    "volume.create",
    "volume.grow",
    "volume.hand_over",
    "volume.import",
    "volume.list",
    "volume.move",
    "volume.reclaim",
    "volume.snapshot",
];

/// Whose host this is, and what is configured about it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node.
    pub node: String,
    /// The VMIDs for new VMs, first and last; `None` in observe mode without a range.
    pub vmid_range: Option<(u32, u32)>,
    /// Whether changes are configured.
    pub manage: bool,
    /// Whether they are made under an untested PVE version too.
    pub allow_untested: bool,
}

/// The host as the API shows it.
pub struct HostView {
    settings: Settings,
    pve: Arc<dyn Pve>,
    vms: Vms,
    metrics: Arc<Metrics>,
    /// What is configured; what counts depends on PVE's version too.
    manage: AtomicBool,
    shutting_down: AtomicBool,
    network_latched: AtomicBool,
    slow: Slow,
    /// Told when something of the host itself changes that PVE does not tell.
    changed: channel::Sender<()>,
    revision: AtomicU64,
    allocated: Mutex<(Option<Arc<Inventory>>, Allocated)>,
}

/// `memory: 512`, or in newer configs `memory: current=512`; PVE's default is 512 MiB.
fn memory_mib(config: &ConfigFile) -> u64 {
    let (lead, keys) = properties(config.get("memory").unwrap_or_default());
    lead.filter(|l| !l.is_empty()).or_else(|| keys.get("current").copied()).and_then(|m| m.parse().ok()).unwrap_or(512)
}

impl fmt::Debug for HostView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostView").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Default)]
struct Allocated {
    cores: u32,
    memory: u64,
}

impl HostView {
    /// The host that `pve` is on.
    pub fn new(
        settings: Settings,
        pve: Arc<dyn Pve>,
        links: Arc<dyn Links>,
        facts: Arc<dyn Facts>,
        vms: Vms,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let changed = channel::channel(()).0;
        let view = Self {
            manage: settings.manage.into(),
            settings,
            slow: Slow::new(pve.clone(), links, facts, changed.clone()),
            pve,
            vms,
            metrics,
            shutting_down: false.into(),
            network_latched: false.into(),
            changed,
            revision: 0.into(),
            allocated: Mutex::default(),
        };
        view.apply_mode();
        Arc::new(view)
    }

    /// Takes over a configured mode, and returns the one that counts.
    pub fn set_manage(&self, manage: bool) -> v1::Mode {
        self.manage.store(manage, Ordering::Relaxed);
        self.apply_mode()
    }

    /// From now on the host takes no new work.
    pub fn set_shutting_down(&self) {
        self.shutting_down.store(true, Ordering::Relaxed);
        self.changed.send_replace(());
    }

    /// Whether a change of the host's network could not be undone.
    pub fn set_network_latched(&self, latched: bool) {
        if self.network_latched.swap(latched, Ordering::Relaxed) != latched {
            self.changed.send_replace(());
        }
    }

    /// The mode that counts: "manage" only under a PVE that this agent knows, or when an administrator allows another.
    pub fn mode(&self) -> v1::Mode {
        let version = &self.pve.inventory().pve_version;
        let tested = version.split('.').next().is_some_and(|major| TESTED_PVE.contains(&major));
        if self.manage.load(Ordering::Relaxed) && (tested || self.settings.allow_untested) { v1::Mode::Manage } else { v1::Mode::Observe }
    }

    /// Tells those who carry out mutations which mode counts.
    fn apply_mode(&self) -> v1::Mode {
        let mode = self.mode();
        self.vms.set_mode(if mode == v1::Mode::Manage { vm::Mode::Manage } else { vm::Mode::Observe });
        // What a repair mends may be what keeps PVE from telling its version.
        let unknown = self.manage.load(Ordering::Relaxed) && self.pve.inventory().pve_version.is_empty();
        self.vms.set_repairs(mode == v1::Mode::Manage || unknown);
        self.changed.send_replace(());
        mode
    }

    /// Keeps the mode right while PVE's version becomes known or changes, for ever.
    pub async fn follow_version(self: Arc<Self>) {
        let mut changes = self.pve.changes();
        let mut last = String::new();
        loop {
            let version = self.pve.inventory().pve_version.clone();
            if version != last {
                let mode = self.apply_mode();
                if mode == v1::Mode::Observe && self.manage.load(Ordering::Relaxed) {
                    tracing::warn!(
                        version,
                        "this PVE version was not tested: only observing; pve.allow_untested_version = true allows changes"
                    );
                }
                last = version;
            }
            if let Err(RecvError::Closed) = changes.recv().await {
                return;
            }
        }
    }

    /// Whether changes are made.
    ///
    /// # Errors
    /// `ObserveOnly` when they are not; `PveDown` while that is not known, because PVE has not told its version yet.
    pub fn require_manage(&self) -> Result<(), Error> {
        if self.mode() == v1::Mode::Manage {
            Ok(())
        } else if self.manage.load(Ordering::Relaxed) && self.pve.inventory().pve_version.is_empty() {
            Err(Error::PveDown { detail: "it has not told its version yet, without which nothing is changed".into() })
        } else {
            Err(Error::ObserveOnly)
        }
    }

    /// The PVE cluster's name, once it is known.
    pub fn cluster(&self) -> Option<String> {
        self.inventory().ok().map(|i| i.cluster.clone())
    }

    /// Waits until VMs and PVE's version are known, no longer than `patience`. Returns whether they are.
    pub async fn known(&self, patience: Duration) -> bool {
        let mut changes = self.pve.changes();
        let known = || {
            let inventory = self.pve.inventory();
            inventory.complete && !inventory.pve_version.is_empty()
        };
        let wait = async { while !known() && !matches!(changes.recv().await, Err(RecvError::Closed)) {} };
        // Whether it was in time is told by another look.
        let _ = timeout(patience, wait).await;
        known()
    }

    /// Whether the inventory has this VM.
    pub fn has_vm(&self, vmid: u32) -> bool {
        self.pve.inventory().vms.contains_key(&vmid)
    }

    /// The tenant of a VM's mark.
    pub fn owner(&self, vmid: u32) -> Option<String> {
        self.pve.inventory().vms.get(&vmid).and_then(|vm| view::bound_mark(vm)).map(|mark| mark.tenant)
    }

    /// Now, RFC 3339.
    pub fn now(&self) -> String {
        jiff::Timestamp::now().to_string()
    }

    /// What metrics tell of it.
    pub fn snapshot(&self) -> Snapshot {
        let inventory = self.pve.inventory();
        let hung = inventory.hung_since.and_then(|since| SystemTime::now().duration_since(since).ok()).unwrap_or(Duration::ZERO);
        Snapshot { vms: inventory.vms.len(), nodes: inventory.nodes.len(), quorate: inventory.quorate, hung, ..Snapshot::default() }
    }

    /// The inventory, once it has been read as a whole.
    fn inventory(&self) -> Result<Arc<Inventory>, Error> {
        let inventory = self.pve.inventory();
        if inventory.complete {
            Ok(inventory)
        } else {
            Err(Error::PveFsHung { detail: "nothing below /etc/pve could be read since the agent started".into() })
        }
    }

    /// The host as of now.
    ///
    /// # Errors
    /// `PveFsHung` while the cluster file system has not answered since the agent started.
    pub async fn host(&self) -> Result<v1::Host, Error> {
        let inventory = self.inventory()?;
        let slow = self.slow.get().await;
        Ok(self.assemble(&inventory, &slow))
    }

    /// The host as far as it is known without waiting for anything; what is old is read again in the background, and told as a change.
    fn host_now(&self) -> Result<v1::Host, Error> {
        let inventory = self.inventory()?;
        Ok(self.assemble(&inventory, &self.slow.now()))
    }

    /// Reads ahead what the first caller would wait for, and again when a shutdown is scheduled or withdrawn, for ever.
    pub async fn follow_shutdown(self: Arc<Self>) {
        self.slow.follow_shutdown().await;
    }

    fn assemble(&self, inventory: &Arc<Inventory>, slow: &Reading) -> v1::Host {
        let allocated = self.allocated(inventory);
        let facts = &slow.facts;
        let cpu = v1::Cpu {
            threads: facts.threads,
            cores: facts.cores,
            model: facts.cpu_model.clone(),
            utilization: facts.utilization,
            load1: facts.load1,
            allocated: allocated.cores,
        };
        let memory =
            v1::Memory { total_bytes: facts.memory_total, available_bytes: facts.memory_available, allocated_bytes: allocated.memory };
        let node = |n: &crate::host::pve::NodeInfo| v1::Node { name: n.name.clone(), online: n.online, id: n.id };
        v1::Host {
            node: self.settings.node.clone(),
            cluster: inventory.cluster.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            api_version: API_VERSION.to_owned(),
            features: FEATURES.iter().map(|f| (*f).to_owned()).collect(),
            mode: self.mode().into(),
            pve_version: inventory.pve_version.clone(),
            kernel_version: facts.kernel_version.clone(),
            boot_id: facts.boot_id.clone(),
            boot_time: facts.boot_time.map(Into::into),
            cpu: Some(cpu),
            memory: Some(memory),
            quorate: inventory.quorate,
            nodes: inventory.nodes.iter().map(node).collect(),
            storages: slow.storages.clone(),
            bridges: slow.bridges.clone(),
            vmid_range: self.settings.vmid_range.map(|(first, last)| v1::VmidRange { first, last }),
            state: self.state(inventory, facts.shutdown_scheduled).into(),
            network_latched: self.network_latched.load(Ordering::Relaxed),
        }
    }

    fn state(&self, inventory: &Inventory, scheduled: bool) -> v1::HostState {
        if scheduled || self.shutting_down.load(Ordering::Relaxed) {
            v1::HostState::ShuttingDown
        } else if inventory.maintenance {
            v1::HostState::Maintenance
        } else {
            v1::HostState::Active
        }
    }

    /// What running VMs of this node have been given. Summed up anew only when the inventory has changed.
    fn allocated(&self, inventory: &Arc<Inventory>) -> Allocated {
        let mut cached = self.allocated.lock().unwrap_or_else(PoisonError::into_inner);
        if !cached.0.as_ref().is_some_and(|of| Arc::ptr_eq(of, inventory)) {
            let mut sum = Allocated::default();
            let running = |run: &RunState| matches!(run, RunState::Running { .. } | RunState::Paused { .. });
            for vm in inventory.vms.values().filter(|vm| vm.node == self.settings.node && running(&vm.run)) {
                let number = |key| vm.config.number(key).and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
                sum.cores = sum.cores.saturating_add(number("cores").saturating_mul(number("sockets")));
                sum.memory = sum.memory.saturating_add(memory_mib(&vm.config).saturating_mul(1 << 20));
            }
            *cached = (Some(inventory.clone()), sum);
        }
        cached.1
    }
}
