//! A worker with a real containerd, looked at by the agent's sources.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pvelet_agent::{
    config::{self, Worker},
    health::{Finding, Source, State, containerd, kubelet::facts::KubeletFacts},
    host::{
        runtime::{ContainerdFiles, ContainerdSocket, Runtime, RuntimeFiles},
        units::Units,
    },
};
use pvelet_tests::containerd::{Containerd, Place, Supervisor};

pub(crate) const UNIT: &str = "containerd.service";
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A worker.
pub(crate) struct Host {
    pub(crate) containerd: Arc<Containerd>,
    pub(crate) units: Arc<Supervisor>,
    sources: Vec<Arc<dyn Source>>,
}

impl Host {
    /// With a network plugin configured, as on a node that has joined.
    pub(crate) async fn start(config: impl FnOnce(&Place) -> String) -> Self {
        let place = Place::new();
        let conflist = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge"}]}"#;
        std::fs::write(place.cni_conf().join("10-pods.conflist"), conflist).unwrap();
        Self::over(Containerd::at(place, config)).await
    }

    /// Over this containerd, which is launched.
    pub(crate) async fn over(containerd: Containerd) -> Self {
        containerd.launch().await.unwrap();
        containerd.import_pause(pvelet_tests::containerd::PAUSE);
        let containerd = Arc::new(containerd);
        let units = Supervisor::new(UNIT, Arc::clone(&containerd));
        let sources = sources(containerd.place(), units.clone());
        Self { containerd, units, sources }
    }

    /// Looks once by the source of this check.
    pub(crate) async fn look(&self, id: &str) -> Finding {
        look(&self.sources, id).await
    }

    /// As [`Self::look`], again while containerd is not heard: the second that it has for an answer is short where the machine has much else to do.
    pub(crate) async fn heard(&self, id: &str) -> Finding {
        let end = Instant::now() + LONG;
        loop {
            let finding = self.look(id).await;
            let unheard = finding.state == State::Unknown || finding.seen.contains("no answer within");
            if !unheard || Instant::now() > end {
                return finding;
            }
        }
    }

    /// What is looked at comes out in this state, though not always by the first look.
    pub(crate) async fn expect(&self, id: &str, state: State) -> Finding {
        // How often it may be unheard is what the check of its answers is about.
        let counts = state == State::Unknown || (state == State::Failed && id == "containerd.responding");
        let finding = if counts { self.look(id).await } else { self.heard(id).await };
        assert_eq!(finding.state, state, "{finding:?}\n{}", self.containerd.log());
        finding
    }

    /// The ids of all checks.
    pub(crate) fn ids(&self) -> Vec<&'static str> {
        self.sources.iter().flat_map(|s| s.checks()).map(|c| c.id).collect()
    }
}

/// Looks once by the source of this check.
pub(crate) async fn look(sources: &[Arc<dyn Source>], id: &str) -> Finding {
    let source = sources.iter().find(|s| s.checks().iter().any(|c| c.id == id)).unwrap();
    source.look().await.into_iter().find(|f| f.id == id).unwrap()
}

/// The agent's sources for what is in a place.
pub(crate) fn sources(place: &Place, units: Arc<dyn Units>) -> Vec<Arc<dyn Source>> {
    let runtime: Arc<dyn Runtime> = Arc::new(ContainerdSocket::new(place.socket()));
    let files: Arc<dyn RuntimeFiles> = Arc::new(ContainerdFiles::new(place.config(), place.program("containerd")));
    let kubelet: containerd::FactsLook = Arc::new(|| Box::pin(async { Ok(KubeletFacts::default()) }));
    containerd::sources(&settings(place), &runtime, &files, &units, &kubelet)
}

fn settings(place: &Place) -> config::Health {
    let nowhere = place.folder().join("none");
    config::Health {
        worker: Worker::Yes,
        period: Duration::from_secs(10),
        containerd_socket: place.socket(),
        containerd_config: place.config(),
        containerd_unit: UNIT.into(),
        containerd_program: place.program("containerd"),
        probe_period: Some(Duration::from_secs(60)),
        kubelet_unit: "kubelet.service".into(),
        kubelet_config: nowhere.clone(),
        kubelet_kubeconfig: nowhere.clone(),
        kubelet_pki: nowhere,
        kubelet_healthz: ([127, 0, 0, 1], 1).into(),
        journal: None,
        // The machine's own disk may be rather full.
        usage_warning: 98,
        usage_critical: 100,
        certificate_warning: Duration::from_secs(86400),
    }
}
