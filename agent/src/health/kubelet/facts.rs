//! What other checks need to know of the kubelet.

use std::sync::Arc;

use super::setup::{Loaded, Reader, Setup, Standing};
use crate::{
    config::Health,
    host::{kubelet::Kubelet, units::Units},
};

/// Who manages cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd does.
    Systemd,
    /// The file system is written to.
    Cgroupfs,
}

/// What containerd and the kubelet must agree on, as the kubelet has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubeletFacts {
    /// `cgroupDriver`; `None`: its configuration is not there or cannot be read. Kubelets from 1.31 on ask the runtime (CRI
    /// `RuntimeConfig`) and take its answer; this is then in force only with a runtime that has none: containerd before 2.0.
    pub cgroup_driver: Option<CgroupDriver>,
    /// `containerRuntimeEndpoint`, without `unix://`; `None`: not told.
    pub runtime_endpoint: Option<String>,
}

/// Reads the facts, and whether there is a kubelet, as the kubelet's own checks do.
pub struct FactsReader(Reader);

impl FactsReader {
    /// With what it looks at.
    pub fn new(settings: &Health, kubelet: Arc<dyn Kubelet>, units: Arc<dyn Units>) -> Self {
        Self(Reader::new(settings, kubelet, units))
    }

    /// What is so now. What is not known is `None` in the facts, and other checks say why. Errors: why this host is no worker.
    pub async fn read(&self) -> Result<KubeletFacts, String> {
        match self.0.read().await {
            Standing::No(why) => Err(why),
            // Without a process and without a configuration there is nothing to disagree with.
            Standing::Worker(setup) if setup.config == Loaded::None && setup.flags.is_none() => Ok(KubeletFacts::default()),
            Standing::Worker(setup) => Ok(facts(&setup)),
        }
    }
}

fn facts(setup: &Setup) -> KubeletFacts {
    let config = setup.config();
    let told = |flag: &str, key: Option<&String>| setup.flag(flag).map(str::to_owned).or_else(|| key.cloned());
    let driver = told("cgroup-driver", config.as_ref().ok().and_then(|c| c.cgroup_driver.as_ref()));
    let endpoint = told("container-runtime-endpoint", config.as_ref().ok().and_then(|c| c.container_runtime_endpoint.as_ref()));
    KubeletFacts {
        cgroup_driver: match driver.as_deref() {
            Some("systemd") => Some(CgroupDriver::Systemd),
            // Whatever else stands there, kubelets take for this.
            Some(_) => Some(CgroupDriver::Cgroupfs),
            // The default is in force where nothing else is told, and that is known only of flags or a file that were read: what runs in the
            // unit may be a wrapper, or another program that brings a kubelet of its own.
            None => {
                (config.is_ok() && (setup.flags.is_some() || setup.config != super::setup::Loaded::None)).then_some(CgroupDriver::Cgroupfs)
            }
        },
        runtime_endpoint: endpoint.filter(|e| !e.is_empty()).map(|e| e.strip_prefix("unix://").unwrap_or(&e).to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        super::testing::{CONFIG, Host},
        *,
    };
    use crate::{config::Worker, host::units_fake::FakeUnits};

    async fn read_of(host: &Host) -> Option<KubeletFacts> {
        FactsReader::new(&host.settings, host.kubelet.clone(), host.units.clone()).read().await.ok()
    }

    #[tokio::test]
    async fn driver_and_endpoint_are_those_in_force() {
        let host = Host::new();
        let told =
            |driver, endpoint: Option<&str>| Some(KubeletFacts { cgroup_driver: driver, runtime_endpoint: endpoint.map(str::to_owned) });
        host.kubelet
            .write(&host.settings.kubelet_config, format!("{CONFIG}cgroupDriver: systemd\ncontainerRuntimeEndpoint: unix:///run/a.sock\n"));
        assert_eq!(read_of(&host).await, told(Some(CgroupDriver::Systemd), Some("/run/a.sock")));
        host.flags(&["--config=/var/lib/kubelet/config.yaml", "--cgroup-driver=cgroupfs", "--container-runtime-endpoint=/run/b.sock"]);
        assert_eq!(read_of(&host).await, told(Some(CgroupDriver::Cgroupfs), Some("/run/b.sock")));
        host.flags(&["--config=/var/lib/kubelet/config.yaml"]);
        host.kubelet.write(&host.settings.kubelet_config, CONFIG);
        assert_eq!(read_of(&host).await, told(Some(CgroupDriver::Cgroupfs), None), "the kubelet's default");
        host.kubelet.write(&host.settings.kubelet_config, "kind: [");
        assert_eq!(read_of(&host).await, told(None, None));
    }

    #[tokio::test]
    async fn the_default_driver_is_told_only_of_a_kubelet_that_was_seen() {
        let mut host = Host::bare();
        host.settings.worker = Worker::Yes;
        host.units.set(&host.settings.kubelet_unit, FakeUnits::running());
        host.kubelet.change(|w| w.processes.insert(4711, ["/usr/local/bin/k3s", "agent"].map(str::to_owned).into()));
        assert_eq!(read_of(&host).await, Some(KubeletFacts::default()));
        host.flags(&["--root-dir=/srv/kubelet"]);
        assert_eq!(read_of(&host).await.unwrap().cgroup_driver, Some(CgroupDriver::Cgroupfs));
    }

    #[tokio::test]
    async fn without_a_kubelet_nothing_is_known() {
        assert_eq!(read_of(&Host::bare()).await, None);
        // Its packages make no worker, here as for the kubelet's own checks.
        let packages = Host::bare();
        packages.units.set("kubelet.service", FakeUnits::running());
        packages.flags(&["--config=/var/lib/kubelet/config.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf"]);
        assert_eq!(read_of(&packages).await, None);
        let mut no = Host::new();
        no.settings.worker = Worker::No;
        assert_eq!(read_of(&no).await, None);
        let mut told = Host::bare();
        told.settings.worker = Worker::Yes;
        assert_eq!(read_of(&told).await, Some(KubeletFacts::default()));
    }
}
