//! The whole controller against agents over mTLS: manifests in a folder, and what the agents are asked.
#![allow(clippy::unwrap_used)]

mod adoption;
mod agent;
mod cluster;
mod disks;
mod duplicates;
mod health;
mod network;
mod room;
mod user_data;
mod volumes;

use std::{fs, path::Path, sync::Arc, time::Duration};

use pvelet_proto::{identity::Role, reason, v1};
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use self::{agent::Agent, cluster::Cluster};
use super::Controller;
use crate::{
    agents::{Agents, Limits, fake::refusal},
    crash::testing as crash,
    kind::{ConditionStatus, Kind, Machine, Object, ObjectKey, Phase, PveMachine},
    metrics::Metrics,
    nodes::{Nodes, fake::FakeNodes},
    pki::{Ca, Lifetime},
    store::{Store, StoreError, folder::FolderStore},
    tls::Credentials,
};

/// Nothing here takes that long; a test that waits longer has failed.
const DEADLINE: Duration = Duration::from_secs(60);

struct Bench {
    ca: Ca,
    cluster: Arc<Cluster>,
    agents: Vec<Agent>,
    dir: tempfile::TempDir,
    nodes: Option<Arc<FakeNodes>>,
}

struct Running {
    store: Arc<FolderStore>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), StoreError>>,
}

impl Bench {
    /// Agents on these nodes, and their manifests in the folder.
    async fn new(nodes: &[&str]) -> Self {
        let ca = Ca::create("pvelet.example", Lifetime::days(10)).unwrap();
        let cluster = Cluster::new(nodes);
        let mut bench = Self { ca, cluster, agents: Vec::new(), dir: tempfile::tempdir().unwrap(), nodes: None };
        for node in nodes {
            let agent = Agent::start(&bench.ca, &bench.cluster, node).await;
            bench.add_host(node, &agent.address.to_string());
            bench.agents.push(agent);
        }
        bench
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn add_host(&self, node: &str, address: &str) {
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata: {{name: {node}}}\n\
             spec: {{address: '{address}', cluster: lab, node: {node}}}\n"
        );
        self.write(&format!("host-{node}.yaml"), &text);
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path().join(file), text).unwrap();
    }

    fn add_machine(&self, name: &str, spec: &str) {
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: {name}}}\nspec: {{source: {{tags: [golden]}}{spec}}}\n"
        );
        self.write(&format!("{name}.yaml"), &text);
    }

    fn nodes(&self) -> Option<Arc<dyn Nodes>> {
        self.nodes.clone().map(|nodes| -> Arc<dyn Nodes> { nodes })
    }

    async fn start(&self) -> Running {
        let store = FolderStore::open_with_grace(self.path(), Duration::from_millis(20)).await.unwrap();
        let own = self.ca.issue_role(Role::Operator, "controller", Lifetime::days(1)).unwrap();
        let credentials = Credentials::from_pem(self.ca.cert_pem(), &own.cert_pem, &own.key_pem).unwrap();
        let agents = Agents::new(credentials, Limits::default());
        let metrics = Arc::<Metrics>::default();
        let controller = Controller::new(Arc::clone(&store), agents, "test", store.epoch().clone(), Arc::clone(&metrics), self.nodes());
        let stop = CancellationToken::new();
        let task = tokio::spawn(controller.run(stop.clone()));
        Running { store, metrics, stop, task }
    }
}

/// Waits until an object is as wanted.
async fn until<K: Kind>(store: &FolderStore, name: &str, wanted: impl Fn(&Object<K>) -> bool) -> Object<K> {
    let mut changes = store.watch();
    let mut last = None;
    let found = timeout(DEADLINE, async {
        loop {
            last = store.get::<K>(&ObjectKey::named(name)).await.unwrap();
            if let Some(object) = last.as_ref().filter(|o| wanted(o)) {
                return object.clone();
            }
            changes.recv().await.unwrap();
        }
    })
    .await;
    found.unwrap_or_else(|_| panic!("{name} is {last:#?}"))
}

async fn until_gone(store: &FolderStore, name: &str) {
    until_gone_of::<Machine>(store, name).await;
}

async fn until_gone_of<K: Kind>(store: &FolderStore, name: &str) {
    let mut changes = store.watch();
    let gone = timeout(DEADLINE, async {
        while store.get::<K>(&ObjectKey::named(name)).await.unwrap().is_some() {
            changes.recv().await.unwrap();
        }
    });
    if gone.await.is_err() {
        panic!("not gone: {:?}", store.get::<K>(&ObjectKey::named(name)).await.unwrap());
    }
}

impl Running {
    async fn until<K: Kind>(&self, name: &str, wanted: impl Fn(&Object<K>) -> bool) -> Object<K> {
        until(&self.store, name, wanted).await
    }

    async fn until_gone(&self, name: &str) {
        until_gone(&self.store, name).await;
    }

    /// How often machines were looked at.
    fn passes(&self) -> f64 {
        let text = self.metrics.text().unwrap();
        let lines = text.lines().filter(|l| l.starts_with("pvelet_controller_reconciles_total{kind=\"PveMachine\""));
        lines.map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Ends it as a crash would: nothing is waited for.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        // The folder's lock goes with the last reference, which passes that were cut off hold a little longer.
        let weak = Arc::downgrade(&self.store);
        drop((self.store, self.stop));
        timeout(DEADLINE, async {
            while weak.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("the store is still used {} times", weak.strong_count()));
    }
}

/// Waits for the end of `work`, through a crash and a new start if the armed crash point is reached before.
async fn through_crash<F: Future<Output = ()>>(
    bench: &Bench,
    running: Running,
    crash: &CancellationToken,
    work: impl Fn(Arc<FolderStore>) -> F,
) -> Running {
    tokio::select! {
        () = work(Arc::clone(&running.store)) => {}
        () = crash.cancelled() => {}
    }
    // The work may have been done by what the crash came right after.
    if !crash.is_cancelled() {
        return running;
    }
    running.kill().await;
    let running = bench.start().await;
    work(Arc::clone(&running.store)).await;
    running
}

#[tokio::test]
async fn a_controller_killed_between_any_two_steps_makes_one_vm_and_removes_it() {
    let mut crashes = 0;
    for name in crash::ALL {
        for nth in 1..=4 {
            let bench = Bench::new(&["pve1", "pve2"]).await;
            let crash = crash::arm(name, nth);
            let running = bench.start().await;
            bench.add_machine("web-1", "");
            let made = |store: Arc<FolderStore>| async move { drop(until::<Machine>(&store, "web-1", ready).await) };
            let running = through_crash(&bench, running, &crash, made).await;
            assert_eq!(bench.cluster.machines().len(), 1, "{name} {nth}");
            crashes += u32::from(crash.is_cancelled());

            let crash = crash::arm(name, nth);
            fs::remove_file(bench.path().join("web-1.yaml")).unwrap();
            let gone = |store: Arc<FolderStore>| async move { until_gone(&store, "web-1").await };
            drop(through_crash(&bench, running, &crash, gone).await);
            assert_eq!(bench.cluster.machines(), [], "{name} {nth}");
            crashes += u32::from(crash.is_cancelled());
            let clones = bench.cluster.lock().operations.values().flatten().filter(|o| o.kind() == v1::OperationKind::CloneVm).count();
            assert_eq!(clones, 1, "{name} {nth}");
        }
    }
    assert!(crashes >= 10, "only {crashes} crash points were reached");
}

fn ready(machine: &PveMachine) -> bool {
    machine.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == ConditionStatus::True)
}

fn because(reason: &'static str) -> impl Fn(&PveMachine) -> bool {
    move |machine| machine.status.conditions.iter().any(|c| c.kind == "Ready" && c.reason == reason)
}

#[tokio::test]
async fn a_dropped_manifest_becomes_a_running_vm_with_two_calls() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    let running = bench.start().await;
    running
        .until::<crate::kind::Host>("pve1", |h| h.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == ConditionStatus::True))
        .await;
    running
        .until::<crate::kind::Host>("pve2", |h| h.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == ConditionStatus::True))
        .await;
    bench.add_machine("web-1", ", cores: 2, memory: 1Gi");
    let machine = running.until::<Machine>("web-1", ready).await;
    assert_eq!((machine.status.phase, machine.status.host.as_deref(), machine.status.vmid), (Phase::Running, Some("pve1"), Some(1000)));
    let uid = &machine.metadata.uid;
    let asked = bench.cluster.lock().asked.clone();
    assert_eq!(asked, [("pve1".into(), "CloneVm", format!("{uid}:clone:1")), ("pve1".into(), "StartVm", format!("{uid}:start:2"))]);
    let epochs = bench.cluster.lock().epochs.clone();
    assert_eq!(epochs.len(), 2, "each agent was told once who leads");
    assert!(epochs.iter().all(|e| e.controller == "test" && e.transitions == 1));
}

#[tokio::test]
async fn a_removed_manifest_removes_its_vm_and_then_its_record() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", ready).await;
    assert!(bench.path().join("pvemachine.web-1.status.yaml").exists());
    fs::remove_file(bench.path().join("web-1.yaml")).unwrap();
    running.until_gone("web-1").await;
    assert_eq!(bench.cluster.machines(), []);
    assert!(!bench.path().join("pvemachine.web-1.status.yaml").exists());
}

#[tokio::test]
async fn retain_leaves_the_vm() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", ", deletionPolicy: Retain");
    running.until::<Machine>("web-1", ready).await;
    fs::remove_file(bench.path().join("web-1.yaml")).unwrap();
    running.until_gone("web-1").await;
    assert_eq!(bench.cluster.machines().len(), 1);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_vm() {
    let bench = Bench::new(&["pve1"]).await;
    bench.cluster.lock().lose_answer = true;
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", ready).await;
    assert_eq!(bench.cluster.machines().len(), 1);
    assert_eq!(bench.cluster.asked(), [("pve1".into(), "CloneVm"), ("pve1".into(), "StartVm")]);
}

#[tokio::test]
async fn a_controller_killed_while_its_clone_runs_finds_it_again() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    bench.cluster.lock().hold = true;
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", |m| m.status.operation.as_ref().is_some_and(|o| o.name.is_some())).await;
    running.kill().await;
    bench.cluster.let_go();
    let running = bench.start().await;
    let machine = running.until::<Machine>("web-1", ready).await;
    assert_eq!(bench.cluster.machines().len(), 1);
    assert_eq!(bench.cluster.asked(), [("pve1".into(), "CloneVm"), ("pve1".into(), "StartVm")]);
    assert_eq!(machine.status.attempt, 2);
    assert_eq!(bench.cluster.lock().epochs.iter().map(|e| e.transitions).max(), Some(2));
}

#[tokio::test]
async fn a_status_that_was_lost_finds_its_vm_by_the_mark() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", ready).await;
    running.kill().await;
    let path = bench.path().join("pvemachine.web-1.status.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let mut record: serde_json::Value = serde_norway::from_str(&text).unwrap();
    record["status"] = serde_json::Value::Null;
    fs::write(&path, serde_norway::to_string(&record).unwrap()).unwrap();
    let running = bench.start().await;
    let machine = running.until::<Machine>("web-1", ready).await;
    assert_eq!(machine.status.vmid, Some(1000));
    assert_eq!(bench.cluster.machines().len(), 1);
}

#[tokio::test]
async fn a_record_that_was_lost_whole_is_told_and_makes_no_second_vm() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", ready).await;
    running.kill().await;
    fs::remove_file(bench.path().join("pvemachine.web-1.status.yaml")).unwrap();
    let running = bench.start().await;
    running.until::<Machine>("web-1", because("NameHasVm")).await;
    assert_eq!(bench.cluster.machines().len(), 1);
}

#[tokio::test]
async fn a_dead_host_delays_no_machine_of_another() {
    let bench = Bench::new(&["pve1"]).await;
    // Takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    bench.add_host("pve2", &silent.local_addr().unwrap().to_string());
    let running = bench.start().await;
    for i in 0..8 {
        bench.add_machine(&format!("dead-{i}"), ", host: pve2");
        bench.add_machine(&format!("web-{i}"), "");
    }
    for i in 0..8 {
        running.until::<Machine>(&format!("web-{i}"), ready).await;
        running.until::<Machine>(&format!("dead-{i}"), because("HostNotUsable")).await;
    }
    assert_eq!(bench.cluster.machines().len(), 8);
}

#[tokio::test]
async fn a_failed_clone_is_tried_again_under_the_next_number() {
    let bench = Bench::new(&["pve1"]).await;
    bench.cluster.lock().failure = Some(refusal(Code::Aborted, "the template is locked", reason::LOCK_TIMEOUT, None));
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    let machine = running.until::<Machine>("web-1", ready).await;
    let uid = &machine.metadata.uid;
    let ids: Vec<String> = bench.cluster.lock().asked.iter().map(|(_, _, id)| id.clone()).collect();
    assert_eq!(ids, [format!("{uid}:clone:1"), format!("{uid}:clone:2"), format!("{uid}:start:3")]);
}

#[tokio::test]
async fn a_refused_clone_says_why_and_goes_elsewhere() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    bench.cluster.lock().refusal = Some(refusal(Code::ResourceExhausted, "storage local is full", reason::STORAGE_FULL, None));
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    let machine = running.until::<Machine>("web-1", because("CloneFailedStorageFull")).await;
    assert!(machine.status.failures[0].message.contains("storage local is full"));
    bench.cluster.lock().refusal = None;
    // A changed spec is tried at once.
    bench.add_machine("web-1", ", cores: 1");
    let machine = running.until::<Machine>("web-1", ready).await;
    let first = bench.cluster.asked()[0].0.clone();
    assert_ne!(machine.status.host.unwrap(), first);
}

#[tokio::test]
async fn a_stopped_vm_is_started_again_unless_it_was_ordered() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", ready).await;
    bench.cluster.change(1000, v1::VmEventType::Stopped, |vm| {
        vm.state = v1::VmState::Stopped.into();
        vm.start_time = None;
    });
    running.until::<Machine>("web-1", |m| !ready(m)).await;
    let machine = running.until::<Machine>("web-1", ready).await;
    assert_eq!(bench.cluster.asked().iter().filter(|(_, call)| *call == "StartVm").count(), 2);
    let vm = v1::VmRef { vmid: 1000, uuid: machine.status.uuid.unwrap() };
    let meta = v1::RequestMeta { tenant: "default".into(), request_id: "person-1".into(), ..v1::RequestMeta::default() };
    let effect = |state: &mut cluster::State| Ok(cluster::Effect::Run(state.target("pve1", Some(vm))?, false));
    bench.cluster.begin("pve1", "StopVm", Some(meta), v1::OperationKind::StopVm, effect).unwrap();
    running.until::<Machine>("web-1", because("StoppedByOrder")).await;
}

#[tokio::test]
async fn a_changed_spec_configures_what_differs() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", ", cores: 1");
    running.until::<Machine>("web-1", ready).await;
    bench.add_machine("web-1", ", cores: 4");
    running.until::<Machine>("web-1", |m| ready(m) && m.status.verified_generation == 2).await;
    assert_eq!(bench.cluster.lock().configured, [v1::VmConfig { cores: Some(4), ..v1::VmConfig::default() }]);
}

#[tokio::test]
async fn a_vm_that_migrated_is_followed_and_one_that_is_gone_is_not_made_again() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    let running = bench.start().await;
    bench.add_machine("web-1", ", host: pve1");
    running.until::<Machine>("web-1", ready).await;
    bench.cluster.change(1000, v1::VmEventType::Moved, |vm| vm.node = "pve2".into());
    running.until::<Machine>("web-1", |m| m.status.host.as_deref() == Some("pve2") && ready(m)).await;
    bench.cluster.remove(1000);
    let machine = running.until::<Machine>("web-1", |m| m.status.phase == Phase::Gone).await;
    assert!(because("VmGone")(&machine));
    assert_eq!(bench.cluster.asked().iter().filter(|(_, call)| *call == "CloneVm").count(), 1);
}

#[tokio::test]
async fn an_object_deleted_while_its_clone_runs_leaves_nothing() {
    let bench = Bench::new(&["pve1"]).await;
    bench.cluster.lock().hold = true;
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", |m| m.status.operation.as_ref().is_some_and(|o| o.name.is_some())).await;
    fs::remove_file(bench.path().join("web-1.yaml")).unwrap();
    running.until_gone("web-1").await;
    assert_eq!(bench.cluster.machines(), []);
    assert_eq!(bench.cluster.asked(), [("pve1".into(), "CloneVm"), ("pve1".into(), "CancelOperation")]);
}
