//! A host for the tests of this folder.

use std::{sync::Arc, time::SystemTime};

use super::setup::Reader;
use crate::{
    config::{self, Health},
    health::{Finding, Source},
    host::{journal::fake::FakeJournal, kubelet::fake::FakeKubelet, runtime::fake::FakeRuntime, units::UnitState, units_fake::FakeUnits},
};

/// The beginning of every configuration.
pub(super) const CONFIG: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
/// The kubelet's unit.
pub(super) const UNIT: &str = "kubelet.service";

/// A host, all of it in memory.
pub(super) struct Host {
    pub(super) settings: Health,
    pub(super) kubelet: Arc<FakeKubelet>,
    pub(super) units: Arc<FakeUnits>,
    pub(super) journal: Arc<FakeJournal>,
    pub(super) runtime: Arc<FakeRuntime>,
}

impl Host {
    /// Without a kubelet.
    pub(super) fn bare() -> Self {
        let settings = config::parse(config::EXAMPLE).expect("the example is right").0.health;
        Self { settings, kubelet: FakeKubelet::new(), units: FakeUnits::new(), journal: FakeJournal::new(), runtime: FakeRuntime::new() }
    }

    /// With a kubelet as kubeadm sets it up, but without certificates.
    pub(super) fn new() -> Self {
        let this = Self::bare();
        this.units.set(UNIT, FakeUnits::running());
        this.kubelet.write(&this.settings.kubelet_config, CONFIG);
        let (config, kubeconfig) = (this.settings.kubelet_config.display(), this.settings.kubelet_kubeconfig.display());
        let (config, kubeconfig) = (format!("--config={config}"), format!("--kubeconfig={kubeconfig}"));
        this.flags(&[&config, &kubeconfig]);
        this
    }

    /// The kubelet runs with these flags.
    pub(super) fn flags(&self, flags: &[&str]) {
        let line = ["/usr/bin/kubelet"].iter().chain(flags).map(|a| (*a).to_owned()).collect();
        self.kubelet.change(|w| w.processes.insert(4711, line));
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::new(&self.settings, self.kubelet.clone(), self.units.clone())
    }

    /// All sources.
    pub(super) fn sources(&self) -> Vec<Arc<dyn Source>> {
        super::sources(&self.settings, self.kubelet.clone(), self.journal.clone(), self.units.clone(), self.runtime.clone())
    }

    /// The finding of one check, by sources that were made just now.
    pub(super) async fn finding(&self, id: &str) -> Finding {
        self.findings().await.into_iter().find(|f| f.id == id).unwrap_or_else(|| panic!("no finding '{id}'"))
    }

    /// All findings.
    pub(super) async fn findings(&self) -> Vec<Finding> {
        let mut all = Vec::new();
        for source in self.sources() {
            all.extend(source.look().await);
        }
        all
    }
}

/// A unit between two runs.
pub(super) fn restarting(restarts: u32) -> UnitState {
    UnitState {
        active: "activating".into(),
        sub: "auto-restart".into(),
        result: "exit-code".into(),
        status: 1,
        restarts,
        pid: 0,
        ..FakeUnits::running()
    }
}

/// A moment of the tests' clock.
pub(super) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000 + seconds)
}
