//! The outside world of an agent on a real host.

use std::sync::Arc;

use super::World;
use crate::{
    config::{self, Config},
    error::Error,
    health::{Outside, Source, containerd, kubelet, machine},
    host::{
        facts::HostFactsReader,
        journal::SystemJournal,
        kubelet::{HostKubelet, Kubelet},
        links::SysfsLinks,
        machine::{MachineHost, MachinePaths},
        net::{HostNetwork, NetPaths},
        pve::{Options, Paths, Pve, PveHost},
        record::FileRecord,
        runtime::{ContainerdFiles, ContainerdSocket, Runtime, RuntimeFiles},
        storage::LocalStore,
        units::{SystemdUnits, Units},
    },
};

impl World {
    /// What the configuration says of the host. Must be called on a runtime.
    ///
    /// # Errors
    /// `Start` when PVE cannot be watched.
    pub async fn of_host(config: &Config) -> Result<Self, Error> {
        let started = PveHost::start(pve_options(&config.pve));
        let pve: Arc<dyn Pve> = started.map_err(|e| Error::Start(format!("PVE cannot be watched: {e}")))?;
        let systemd = Arc::new(SystemdUnits::new());
        let network = HostNetwork::new(NetPaths {
            etc_network: config.network.etc_network.clone(),
            corosync: config.network.corosync.clone(),
            etc_pve: config.pve.etc_pve.clone(),
            state: config.state_dir.join("network"),
            proc: config.pve.proc.clone(),
            sysfs: config.pve.sysfs.clone(),
        });
        let network = network.with_bus(Arc::clone(&systemd));
        network.sweep().await;
        Ok(Self {
            health: outside(config, &pve, systemd),
            network: Arc::new(network),
            store: Arc::new(LocalStore::new(config.pve.storage_root.clone(), config.pve.proc.clone())),
            links: Arc::new(SysfsLinks::new(config.pve.sysfs.clone())),
            facts: Arc::new(HostFactsReader::new(config.pve.proc.clone())),
            pve,
            follow_tls_files: true,
        })
    }
}

/// What the host's health is read from, beside the network and the agent itself.
fn outside(config: &Config, pve: &Arc<dyn Pve>, units: Arc<dyn Units>) -> Outside {
    let settings = &config.health;
    let runtime: Arc<dyn Runtime> = Arc::new(ContainerdSocket::new(&settings.containerd_socket));
    let files: Arc<dyn RuntimeFiles> = Arc::new(ContainerdFiles::new(&settings.containerd_config, &settings.containerd_program));
    let kubelet: Arc<dyn Kubelet> = Arc::new(HostKubelet::new(config.pve.proc.clone(), &config.pve.sysfs));
    let journal = Arc::new(SystemJournal::new(settings.journal.clone()));
    let machine = Arc::new(MachineHost::new(machine_paths(config)));

    let facts = facts(settings, &kubelet, &units);
    let mender = containerd::config_source(settings, &runtime, &files, &facts);
    let mut sources = containerd::sources(settings, &runtime, &files, &units, &facts);
    sources.push(Arc::clone(&mender) as Arc<dyn Source>);
    sources.extend(kubelet::sources(settings, kubelet, journal, Arc::clone(&units), runtime));
    sources.extend(machine::sources(settings, Arc::clone(pve), machine, Arc::clone(&units)));
    let record = Arc::new(FileRecord::new(config.state_dir.join("repair.json")));
    Outside { sources, units, files, mender, record }
}

/// Reads what containerd and the kubelet must agree on.
fn facts(settings: &config::Health, kubelet: &Arc<dyn Kubelet>, units: &Arc<dyn Units>) -> containerd::FactsLook {
    let reader = Arc::new(kubelet::facts::FactsReader::new(settings, Arc::clone(kubelet), Arc::clone(units)));
    Arc::new(move || {
        let reader = Arc::clone(&reader);
        Box::pin(async move { reader.read().await })
    })
}

fn machine_paths(config: &Config) -> MachinePaths {
    MachinePaths {
        etc_pve: config.pve.etc_pve.clone(),
        corosync: config.network.corosync.clone(),
        task_log: config.pve.task_log.clone(),
        proc: config.pve.proc.clone(),
        sysfs: config.pve.sysfs.clone(),
        run: config.pve.run.clone(),
        ..MachinePaths::of(&config.pve.node, &config.pve.storage_root)
    }
}

fn pve_options(config: &config::Pve) -> Options {
    let defaults = Options::default();
    Options {
        node: Some(config.node.clone()),
        paths: Paths {
            etc_pve: config.etc_pve.clone(),
            run_qemu: config.run.join("qemu-server"),
            task_log: config.task_log.clone(),
            proc: config.proc.clone(),
        },
        api: config.api_address,
        ticket_command: config.ticket_command.clone().unwrap_or(defaults.ticket_command),
    }
}

#[cfg(test)]
#[path = "world_tests.rs"]
mod tests;
