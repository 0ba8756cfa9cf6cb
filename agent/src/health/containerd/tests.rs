//! Whose concern a fault is: the same fault is one on a worker and none elsewhere.

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    config::{Worker, defaults},
    error::Trouble,
    health::{Finding, State, kubelet::facts::FactsReader},
    host::{
        kubelet::fake::FakeKubelet,
        runtime::fake::{FakeFiles, FakeRuntime, look},
        units_fake::FakeUnits,
    },
};

fn settings(worker: Worker) -> crate::config::Health {
    crate::config::Health {
        worker,
        period: Duration::from_secs(10),
        containerd_socket: defaults::CONTAINERD_SOCKET.into(),
        containerd_config: defaults::CONTAINERD_CONFIG.into(),
        containerd_unit: defaults::CONTAINERD_UNIT.into(),
        containerd_program: defaults::CONTAINERD_PROGRAM.into(),
        probe_period: Some(Duration::from_secs(60)),
        kubelet_unit: defaults::KUBELET_UNIT.into(),
        kubelet_config: defaults::KUBELET_CONFIG.into(),
        kubelet_kubeconfig: defaults::KUBELET_KUBECONFIG.into(),
        kubelet_pki: defaults::KUBELET_PKI.into(),
        kubelet_healthz: ([127, 0, 0, 1], 10248).into(),
        journal: None,
        usage_warning: 85,
        usage_critical: 95,
        certificate_warning: Duration::from_secs(86400),
    }
}

struct Host {
    runtime: Arc<FakeRuntime>,
    files: Arc<FakeFiles>,
    units: Arc<FakeUnits>,
    kubelet: Arc<FakeKubelet>,
}

impl Host {
    /// containerd and a kubelet.
    fn worker() -> Self {
        let this = Self {
            runtime: FakeRuntime::new(),
            files: FakeFiles::new(),
            units: FakeUnits::with(&["containerd.service"]),
            kubelet: FakeKubelet::new(),
        };
        this.join("");
        this
    }

    /// A kubelet that has joined a cluster, with this in its configuration.
    fn join(&self, more: &str) {
        self.units.set("kubelet.service", FakeUnits::running());
        let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{more}\n");
        self.kubelet.write(defaults::KUBELET_CONFIG, text);
    }

    fn sources(&self, worker: Worker) -> Vec<Arc<dyn Source>> {
        let (runtime, files, units): (Arc<dyn Runtime>, Arc<dyn RuntimeFiles>, Arc<dyn Units>) =
            (self.runtime.clone(), self.files.clone(), self.units.clone());
        let reader = Arc::new(FactsReader::new(&settings(worker), self.kubelet.clone(), self.units.clone()));
        let facts: FactsLook = Arc::new(move || {
            let reader = reader.clone();
            Box::pin(async move { reader.read().await })
        });
        sources(&settings(worker), &runtime, &files, &units, &facts)
    }

    async fn find(&self, worker: Worker) -> Vec<Finding> {
        let mut findings = Vec::new();
        for source in self.sources(worker) {
            let found = source.look().await;
            assert!(found.iter().all(|f| source.checks().iter().any(|c| c.id == f.id)), "{found:?}");
            assert_eq!(found.len(), source.checks().len(), "each check has a finding");
            findings.extend(found);
        }
        findings
    }

    /// Nothing there at all.
    fn empty() -> Self {
        let this = Self { runtime: FakeRuntime::new(), files: FakeFiles::new(), units: FakeUnits::new(), kubelet: FakeKubelet::new() };
        this.down(Trouble::Missing);
        this
    }

    fn down(&self, trouble: Trouble) {
        let error = look(trouble, "/run/containerd/containerd.sock: the trouble");
        self.runtime.change(|a| {
            a.version = Err(error.clone());
            a.status = Err(error.clone());
            a.plugins = Err(error.clone());
            a.image_fs = Err(error.clone());
        });
    }
}

fn state(findings: &[Finding], id: &str) -> State {
    findings.iter().find(|f| f.id == id).map(|f| f.state).expect("a finding for each check")
}

#[tokio::test]
async fn a_host_without_containerd_is_no_worker_unless_it_is_told_to_be_one() {
    let host = Host::empty();
    for worker in [Worker::Auto, Worker::No] {
        let findings = host.find(worker).await;
        assert!(findings.iter().all(|f| f.state == State::NotApplicable && !f.seen.is_empty()), "{findings:?}");
    }
    let findings = host.find(Worker::Yes).await;
    assert_eq!(state(&findings, "containerd.unit"), State::Failed);
    assert_eq!(state(&findings, "containerd.responding"), State::Failed);
    assert_eq!(state(&findings, "containerd.sandbox"), State::Unknown);
}

#[tokio::test]
async fn a_kubelet_with_another_runtime_is_no_fault_of_containerd() {
    let host = Host::empty();
    host.join("");
    assert!(host.find(Worker::Auto).await.iter().all(|f| f.state == State::NotApplicable));
}

#[tokio::test]
async fn dockers_containerd_without_cri_is_no_fault_where_there_is_no_kubelet() {
    let host = Host {
        runtime: FakeRuntime::new(),
        files: FakeFiles::new(),
        units: FakeUnits::with(&["containerd.service"]),
        kubelet: FakeKubelet::new(),
    };
    host.down(Trouble::Unsupported);
    host.runtime.change(|a| a.plugins = Ok(Vec::new()));
    let findings = host.find(Worker::Auto).await;
    assert!(findings.iter().all(|f| matches!(f.state, State::Ok | State::NotApplicable)), "{findings:?}");
    assert_eq!(state(&findings, "containerd.responding"), State::Ok);
    host.join("");
    assert_eq!(state(&host.find(Worker::Auto).await, "containerd.plugins"), State::Failed);
}

#[tokio::test]
async fn a_containerd_beside_the_kubelets_own_runtime_need_not_be_fit_for_pods() {
    for endpoint in ["/var/run/crio/crio.sock", "/run/cri-dockerd.sock"] {
        let host = Host::worker();
        host.join(&format!("containerRuntimeEndpoint: unix://{endpoint}"));
        host.down(Trouble::Unsupported);
        host.runtime.change(|a| a.plugins = Ok(Vec::new()));
        for worker in [Worker::Auto, Worker::Yes] {
            let findings = host.find(worker).await;
            assert!(findings.iter().all(|f| matches!(f.state, State::Ok | State::NotApplicable)), "{findings:?}");
            assert!(findings.iter().any(|f| f.id == "containerd.plugins" && f.seen.contains(endpoint)), "{findings:?}");
        }
    }
}

#[tokio::test]
async fn packages_of_kubernetes_make_no_worker_before_it_has_joined_a_cluster() {
    let host = Host { kubelet: FakeKubelet::new(), ..Host::worker() };
    host.runtime.change(|a| a.status.as_mut().expect("it answers").conditions[1].status = false);
    let findings = host.find(Worker::Auto).await;
    let found = findings.iter().find(|f| f.id == "containerd.network-ready").expect("it is told");
    assert_eq!(found.state, State::NotApplicable);
    assert!(found.seen.contains("has joined no cluster"), "{found:?}");
    host.join("");
    assert_eq!(state(&host.find(Worker::Auto).await, "containerd.network-ready"), State::Failed);
}

#[tokio::test]
async fn an_image_for_sandboxes_is_missed_on_workers_only() {
    let missing = |host: &Host| {
        host.runtime
            .change(|a| a.status.as_mut().expect("it answers").config = serde_json::json!({"sandboxImage": "registry.test/pause:3"}));
    };
    let host = Host::worker();
    missing(&host);
    assert_eq!(state(&host.find(Worker::Auto).await, "containerd.sandbox"), State::Degraded);
    let host = Host { units: FakeUnits::with(&["containerd.service"]), kubelet: FakeKubelet::new(), ..Host::worker() };
    missing(&host);
    assert_eq!(state(&host.find(Worker::Auto).await, "containerd.sandbox"), State::NotApplicable);
}

#[tokio::test]
async fn a_unit_that_nobody_enabled_is_missed_on_workers_only() {
    let host = Host { runtime: FakeRuntime::new(), files: FakeFiles::new(), units: FakeUnits::new(), kubelet: FakeKubelet::new() };
    host.down(Trouble::Missing);
    host.units.set(
        "containerd.service",
        crate::host::units::UnitState { active: "inactive".into(), enabled: "disabled".into(), ..FakeUnits::dead() },
    );
    assert!(host.find(Worker::Auto).await.iter().all(|f| f.state == State::NotApplicable));
    host.join("");
    let findings = host.find(Worker::Auto).await;
    assert_eq!(state(&findings, "containerd.unit"), State::Failed);
    assert_eq!(state(&findings, "containerd.responding"), State::Failed);
}

#[tokio::test]
async fn a_containerd_that_something_else_started_needs_no_unit() {
    let host = Host {
        runtime: FakeRuntime::new(),
        files: FakeFiles::new(),
        units: FakeUnits::with(&["kubelet.service"]),
        kubelet: FakeKubelet::new(),
    };
    assert_eq!(state(&host.find(Worker::Yes).await, "containerd.unit"), State::NotApplicable);
}

#[tokio::test]
async fn what_hangs_is_unknown_and_from_the_third_time_on_a_fault_that_a_restart_mends() {
    tokio::time::pause();
    let host = Host::worker();
    let live = host.sources(Worker::Auto).remove(1);
    host.runtime.change(|a| a.silent = true);
    for wanted in [State::Unknown, State::Unknown, State::Failed, State::Failed] {
        let findings = live.look().await;
        assert_eq!(state(&findings, "containerd.responding"), wanted);
        assert_eq!(findings[0].mend.is_some(), wanted == State::Failed);
        assert_eq!(state(&findings, "containerd.version"), State::Unknown);
    }
    host.runtime.change(|a| a.silent = false);
    assert_eq!(state(&live.look().await, "containerd.responding"), State::Ok);
    host.runtime.change(|a| a.silent = true);
    assert_eq!(state(&live.look().await, "containerd.responding"), State::Unknown, "the count begins again");
}

#[tokio::test]
async fn a_daemon_that_has_come_back_is_asked_everything_anew() {
    use futures_util::FutureExt;
    let host = Host::worker();
    let sources = host.sources(Worker::Auto);
    let mut stirred: Vec<_> = sources[2..].iter().map(|s| Box::pin(s.stirred())).collect();
    assert!(stirred.iter_mut().all(|s| s.now_or_never().is_none()));
    host.down(Trouble::Refused);
    sources[1].look().await;
    assert!(stirred.iter_mut().all(|s| s.now_or_never().is_none()));
    host.runtime.change(|a| *a = crate::host::runtime::fake::Answers::default());
    sources[1].look().await;
    assert!(stirred.into_iter().all(|s| s.now_or_never().is_some()));
}

#[tokio::test]
async fn a_socket_elsewhere_is_no_reason_to_restart() {
    let host = Host::worker();
    host.down(Trouble::Missing);
    let responding = |findings: Vec<Finding>| findings.into_iter().find(|f| f.id == "containerd.responding").expect("it is told");
    assert!(responding(host.find(Worker::Auto).await).mend.is_some());
    host.files.write("/etc/containerd/config.toml", "[grpc]\naddress = \"/run/k3s/c.sock\"");
    let finding = responding(host.find(Worker::Auto).await);
    assert!(finding.mend.is_none() && finding.remedy.contains("health.containerd_socket = \"/run/k3s/c.sock\""), "{finding:?}");
}
