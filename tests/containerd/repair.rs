//! Repairs of a real containerd.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use pvelet_agent::{
    config::{self, RepairPolicy},
    error::Error,
    health::{
        Health, State,
        containerd::{self, config::ConfigSource},
        kubelet::facts::KubeletFacts,
        repair::{Parts, Repairs, Settings},
    },
    host::{
        clock::SystemClock,
        links::{BridgeInfo, Links},
        pve::fake::FakePve,
        record::FileRecord,
        runtime::{ContainerdFiles, ContainerdSocket, Runtime, RuntimeFiles},
        storage::fake::EmptyStore,
        units::Units,
    },
    metrics::Metrics,
    operation::{self, Caller, Operations},
    vm::{self, Vms},
};
use pvelet_proto::{identity::Identity, v1};
use pvelet_tests::{
    client::operation_reason,
    containerd::{Containerd, PAUSE, Place, Supervisor},
    faults::{Fault, Repaired},
};

const UNIT: &str = "containerd.service";
const TYPE: &str = "containerd.runtime-type";
const SANDBOX: &str = "containerd.sandbox";
/// For anything; a loaded machine is slow.
const LONG: Duration = Duration::from_secs(600);

struct NoBridges;

impl Links for NoBridges {
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>> {
        Ok(Vec::new())
    }
}

/// The agent's health and repairs beside a real containerd, which a supervisor keeps as a unit.
pub(crate) struct Rig {
    pub(crate) containerd: Arc<Containerd>,
    health: Health,
    ops: Arc<Operations>,
    repairs: Repairs,
    _state: tempfile::TempDir,
}

fn caller() -> Caller {
    Caller { identity: Identity::parse("spiffe://pvelet.example/role/operator/ann").unwrap() }
}

fn settings(place: &Place) -> config::Health {
    let (mut config, _) = config::parse(config::EXAMPLE).unwrap();
    config.health.worker = config::Worker::Yes;
    config.health.containerd_socket = place.socket();
    config.health.containerd_config = place.config();
    config.health.containerd_program = place.program("containerd");
    // Only when it is asked for.
    config.health.probe_period = None;
    config.health
}

impl Rig {
    async fn new(config: impl FnOnce(&Place) -> String) -> Self {
        Self::at(Place::new(), config).await
    }

    pub(crate) async fn at(place: Place, config: impl FnOnce(&Place) -> String) -> Self {
        let containerd = Containerd::at(place, config);
        containerd.launch().await.unwrap();
        containerd.import_pause(PAUSE);
        containerd.wait_image(PAUSE, true).await;
        let containerd = Arc::new(containerd);
        let settings = settings(containerd.place());
        let units: Arc<dyn Units> = Supervisor::new(UNIT, containerd.clone());
        let runtime: Arc<dyn Runtime> = Arc::new(ContainerdSocket::new(&settings.containerd_socket));
        let files: Arc<dyn RuntimeFiles> = Arc::new(ContainerdFiles::new(&settings.containerd_config, &settings.containerd_program));
        let kubelet: containerd::config::KubeletLook = Arc::new(|| Box::pin(async { None }));
        let source = Arc::new(ConfigSource::new(&settings, runtime.clone(), files.clone(), kubelet));
        let facts: containerd::FactsLook = Arc::new(|| Box::pin(async { Ok(KubeletFacts::default()) }));
        let mut sources = containerd::sources(&settings, &runtime, &files, &units, &facts);
        sources.push(source.clone());
        let metrics = Arc::new(Metrics::new());
        let health = Health::start(sources, Arc::new(SystemClock), &metrics);

        let state = tempfile::tempdir().unwrap();
        let ops = Operations::open(operation::Settings::new(state.path()), Arc::new(SystemClock)).unwrap();
        let (pve, vm_settings) = (Arc::new(FakePve::new("pve1")), vm::Settings::new("pve1", (200, 299), vm::Mode::Manage));
        let vms = Vms::new(pve, Arc::new(EmptyStore), Arc::new(NoBridges), ops.clone(), vm_settings);
        let record = Arc::new(FileRecord::new(state.path().join("repair.json")));
        let parts = Parts { checks: Arc::new(health.clone()), units, files, mender: source, record, metrics };
        let repair = Settings {
            policy: RepairPolicy::OnRequest,
            limit_per_hour: 2,
            patience: Duration::from_secs(30),
            containerd_unit: UNIT.to_owned(),
            identity: Identity::parse("spiffe://pvelet.example/cluster/lab/host/pve1").unwrap(),
        };
        let repairs = Repairs::open(&vms, parts, repair).await;
        Self { containerd, health, ops, repairs, _state: state }
    }

    async fn state(&self, check: &str) -> State {
        let known = self.health.run(&[check.to_owned()]).await.unwrap();
        known.into_iter().find(|k| k.check.id == check).unwrap().finding.state
    }

    /// As [`Self::state`], again while nothing is known: a second for an answer is short where the machine has much else to do.
    async fn known(&self, check: &str) -> State {
        let end = Instant::now() + LONG;
        loop {
            let state = self.state(check).await;
            if state != State::Unknown || Instant::now() > end {
                return state;
            }
        }
    }

    fn request(check: &str, dry_run: bool) -> v1::RepairRequest {
        let meta = Some(v1::RequestMeta { tenant: "a".into(), request_id: uuid::Uuid::new_v4().to_string(), ..Default::default() });
        v1::RepairRequest { meta, check: check.into(), dry_run }
    }

    async fn repair(&self, check: &str) -> v1::Operation {
        let response = self.repairs.repair(&caller(), Self::request(check, false)).await.unwrap();
        self.ops.wait(&response.operation.unwrap().name, LONG).await.unwrap()
    }

    fn backups(&self) -> Vec<PathBuf> {
        let config = self.containerd.place().config();
        let beside = std::fs::read_dir(config.parent().unwrap()).unwrap().map(|e| e.unwrap().path());
        beside.filter(|p| *p != config).collect()
    }
}

/// The original fault: the options of a runtime, which is thereby declared anew, and without a type.
fn without_type(place: &Place) -> String {
    let table = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  default_runtime_name = \"runc\" # as ever\n\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = false\n";
    format!("# Kept by hand.\n{}{}{table}", place.head(""), place.cri(""))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_original_fault_is_mended_and_the_real_probe_passes() {
    let mut fault = Fault::new("options without a type: no pod starts", SANDBOX);
    mended(&Rig::new(without_type).await, &mut fault).await;
}

/// Mends a default runtime that has no type.
pub(crate) async fn mended(rig: &Rig, fault: &mut Fault) {
    let error = rig.containerd.runtime().run_sandbox(LONG).await.unwrap_err();
    assert!(error.to_string().contains("Name must be set"), "{error}");
    assert_eq!((rig.known(TYPE).await, rig.known(SANDBOX).await), (State::Failed, State::Failed));
    fault.found();
    let was = rig.containerd.config();

    let plan = rig.repairs.repair(&caller(), Rig::request(TYPE, true)).await.unwrap().plan.unwrap();
    assert!(plan.file_diff.contains("+") && plan.file_diff.contains("io.containerd.runc.v2"), "{}", plan.file_diff);
    assert_eq!((rig.containerd.config(), rig.backups().len()), (was.clone(), 0), "a dry run touches nothing");

    let ended = rig.repair(TYPE).await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_eq!((rig.known(TYPE).await, rig.known(SANDBOX).await), (State::Ok, State::Ok));
    // Losslessly: every line of before is there still.
    let now = rig.containerd.config();
    assert!(was.lines().all(|line| now.contains(line)) && now.contains("# as ever"), "{now}");
    let backups = rig.backups();
    assert_eq!(backups.len(), 1, "{backups:?}");
    assert_eq!(std::fs::read_to_string(&backups[0]).unwrap(), was);
    let id = rig.containerd.runtime().run_sandbox(LONG).await.unwrap();
    rig.containerd.runtime().remove_sandbox(&id, LONG).await.unwrap();
    fault.repaired(Repaired::Yes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_cannot_work_leaves_the_file_byte_identical() {
    let mut fault = Fault::new("a type and a program missing", TYPE);
    undone(&Rig::new(|place| without_program(&without_type(place))).await, &mut fault).await;
}

/// A runtime's program is missing as well: the type alone does not help.
pub(crate) fn without_program(text: &str) -> String {
    text.replace("SystemdCgroup = false", "SystemdCgroup = false\n  BinaryName = \"/nowhere/runc\"")
}

/// A repair of a default runtime without a type that does not help, twice.
pub(crate) async fn undone(rig: &Rig, fault: &mut Fault) {
    let was = rig.containerd.config();
    for latched in [false, true] {
        let ended = rig.repair(TYPE).await;
        fault.found();
        assert_eq!(operation_reason(&ended), "REPAIR_FAILED", "{ended:?}");
        assert_eq!(rig.containerd.config(), was);
        assert_eq!(rig.known("containerd.responding").await, State::Ok, "it runs as before");
        assert_eq!(rig.repairs.status().latched, latched);
    }
    let refused = rig.repairs.repair(&caller(), Rig::request(TYPE, false)).await.unwrap_err();
    assert!(matches!(refused, Error::RepairLatched { .. }), "{refused:?}");
    assert_eq!(rig.containerd.config(), was);
    fault.repaired(Repaired::Undone);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wedged_daemon_and_a_killed_one_are_started_again() {
    let [mut wedged, mut killed] = ["wedged (SIGSTOP)", "killed"].map(|name| Fault::new(name, "containerd.responding"));
    let rig = Rig::new(Place::healthy).await;
    let pid = rig.containerd.pid().unwrap();
    rig.containerd.freeze();
    for _ in 0..4 {
        rig.state("containerd.responding").await;
    }
    assert_eq!(rig.state("containerd.responding").await, State::Failed);
    wedged.found();
    let ended = rig.repair("containerd.responding").await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert_ne!(rig.containerd.pid(), Some(pid));
    wedged.repaired(Repaired::Yes);
    rig.containerd.kill();
    assert_eq!(rig.state("containerd.responding").await, State::Failed);
    killed.found();
    let ended = rig.repair("containerd.responding").await;
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    assert!(rig.containerd.pid().is_some());
    killed.repaired(Repaired::Yes);
}
