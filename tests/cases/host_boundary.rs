//! The agent's host boundary on a simulated PVE host: what it reads, hears, and asks PVE to do, with nothing between.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pve_sim::{
    Cluster, Options as ClusterOptions,
    control::{Client, PmxcfsAction, Request, Seed},
    faults::{TaskEffect, TaskFault},
};
use pvelet_agent::{
    error::Error,
    host::pve::{
        Change, CloneCall, ConfigCall, DestroyCall, Options, Paths, PowerCall, Pve, PveHost, RunState, TaskEnd, TaskState, TaskUpdate,
        Upid, classify::classify_task,
    },
};
use serde_json::json;
use tokio::sync::broadcast;

const LIMIT: Duration = Duration::from_secs(30);

struct Sim {
    cluster: Cluster,
    control: Client,
}

fn sim(nodes: &[&str]) -> Sim {
    let cluster = Cluster::start(ClusterOptions { lock_factor: 0.2, ..ClusterOptions::nodes(nodes) }).unwrap();
    let control = cluster.control();
    Sim { cluster, control }
}

impl Sim {
    fn tell(&self, request: &Request) {
        self.control.call(request).unwrap();
    }

    fn template(&self) {
        self.tell(&Request::SeedTemplate(Seed { size_mib: 64, fill_mib: 8, ..Seed::new("pve1", 9000, "template") }));
    }

    fn vm(&self, node: &str, vmid: u32) {
        self.tell(&Request::SeedVm(Seed { size_mib: 16, ..Seed::new(node, vmid, &format!("vm{vmid}")) }));
    }

    fn faults(&self, change: serde_json::Value) {
        self.tell(&Request::Faults { node: "pve1".into(), change });
    }

    fn task_fault(&self, kind: &str, effect: TaskEffect) {
        self.faults(json!({ "tasks": [TaskFault { kind: kind.into(), effect }] }));
    }

    /// The boundary of pve1.
    fn host(&self) -> Arc<PveHost> {
        let layout = self.cluster.node("pve1");
        let dir = self.cluster.dir().to_str().unwrap();
        let program = pve_sim::binary().unwrap();
        let options = Options {
            node: Some("pve1".into()),
            paths: Paths { etc_pve: layout.etc_pve(), run_qemu: layout.run_qemu(), task_log: layout.tasks(), proc: "/proc".into() },
            api: std::fs::read_to_string(layout.api_address()).unwrap().trim().parse().unwrap(),
            ticket_command: [program.to_str().unwrap(), "ticket", "--dir", dir, "--node", "pve1"].map(str::to_owned).into(),
        };
        PveHost::start(options).unwrap()
    }
}

/// Waits for a change that fits.
async fn change(changes: &mut broadcast::Receiver<Change>, fits: impl Fn(&Change) -> bool) -> Change {
    let wait = async {
        loop {
            let change = changes.recv().await.unwrap();
            if fits(&change) {
                return change;
            }
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("the change is told")
}

/// Follows a task to its end: all updates before it, and the end.
async fn followed(host: &PveHost, upid: &Upid) -> (Vec<TaskUpdate>, TaskEnd) {
    let mut updates = host.follow_task(upid);
    let mut before = Vec::new();
    loop {
        match tokio::time::timeout(LIMIT, updates.recv()).await.unwrap() {
            Some(TaskUpdate::End(end)) => return (before, end),
            Some(update) => before.push(update),
            None => panic!("closed before the end: {before:?}"),
        }
    }
}

async fn end(host: &PveHost, upid: &Upid) -> TaskEnd {
    followed(host, upid).await.1
}

fn clone_call(vmid: u32, full: bool) -> CloneCall {
    CloneCall {
        template: 9000,
        vmid,
        name: format!("clone{vmid}"),
        description: "first line\nünïcode & more".into(),
        full,
        storage: full.then(|| "local".into()),
        pool: None,
    }
}

#[tokio::test]
async fn a_vm_is_cloned_configured_started_stopped_and_destroyed() {
    let sim = sim(&["pve1"]);
    sim.template();
    let host = sim.host();
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(host.refresh().await.unwrap().complete);

    let upid = host.clone_vm(&clone_call(100, false)).await.unwrap();
    assert_eq!(end(&host, &upid).await, TaskEnd::Ok);
    assert_eq!(host.task(&upid).await.unwrap(), TaskState::Ended(TaskEnd::Ok));
    assert_eq!(host.find_tasks("qmclone", "9000", since).await.unwrap(), [upid]);
    let vm = host.read_vm(100).await.unwrap().unwrap();
    assert_eq!((vm.config.get("name"), vm.config.description.as_str()), (Some("clone100"), "first line\nünïcode & more"));

    let keys = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILr+5LSUOC/EpNknMShaCGwPEFOt8GlF0Gvscys7eZGc me@host";
    let set = BTreeMap::from([("cores".into(), "3".into()), ("sshkeys".into(), keys.into())]);
    let call = ConfigCall { set, digest: Some(vm.config.digest.clone()), ..ConfigCall::default() };
    host.set_config_now(100, &call).await.unwrap();
    assert_eq!(host.set_config_now(100, &call).await.unwrap_err(), Error::ConfigChanged { vmid: 100 }, "the digest is used up");
    let vm = host.read_vm(100).await.unwrap().unwrap();
    assert_eq!(vm.config.number("cores"), Some(3));
    assert!(
        vm.config.get("sshkeys").unwrap().contains("%2FEpNknMShaCGwPEFOt8GlF0Gvscys7eZGc%20me%40host"),
        "{:?}",
        vm.config.get("sshkeys")
    );

    let upid = host.resize_disk(100, "scsi0", 128 << 20, Some(&vm.config.digest)).await.unwrap();
    assert_eq!(end(&host, &upid).await, TaskEnd::Ok);
    let volumes = host.volumes("local", 100).await.unwrap();
    assert!(volumes.iter().any(|v| v.size == 128 << 20 && v.parent.is_some()), "{volumes:?}");

    let mut changes = host.changes();
    let upid = host.power(100, &PowerCall::Start).await.unwrap();
    assert_eq!(end(&host, &upid).await, TaskEnd::Ok);
    change(&mut changes, |c| matches!(c, Change::VmStarted(vm) if vm.vmid == 100)).await;
    assert!(matches!(host.read_vm(100).await.unwrap().unwrap().run, RunState::Running { .. }));
    let error = host.destroy_vm(100, &DestroyCall::default()).await.unwrap_err();
    assert_eq!(error, Error::VmRunning { vmid: 100 });
    let upid = host.power(100, &PowerCall::Stop).await.unwrap();
    assert_eq!(end(&host, &upid).await, TaskEnd::Ok);
    change(&mut changes, |c| matches!(c, Change::VmStopped(vm) if vm.vmid == 100)).await;

    let upid = host.destroy_vm(100, &DestroyCall::default()).await.unwrap();
    assert_eq!(end(&host, &upid).await, TaskEnd::Ok);
    change(&mut changes, |c| matches!(c, Change::VmRemoved(vm) if vm.vmid == 100)).await;
    assert!(host.read_vm(100).await.unwrap().is_none());
    assert!(host.volumes("local", 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_full_clone_tells_its_progress() {
    let sim = sim(&["pve1"]);
    sim.template();
    let host = sim.host();
    let upid = host.clone_vm(&clone_call(100, true)).await.unwrap();
    let (updates, end) = followed(&host, &upid).await;
    assert_eq!(end, TaskEnd::Ok);
    let percents: Vec<u8> =
        updates.iter().filter_map(|u| if let TaskUpdate::Progress { percent, .. } = u { Some(*percent) } else { None }).collect();
    assert!(percents.is_sorted() && percents.last() == Some(&100), "{percents:?}");
    assert!(updates.iter().any(|u| matches!(u, TaskUpdate::Line(l) if l.starts_with("allocated target volume"))), "{updates:?}");
}

#[tokio::test]
async fn changes_are_told_whoever_makes_them_on_whichever_node() {
    let sim = sim(&["pve1", "pve2"]);
    sim.vm("pve1", 100);
    sim.vm("pve2", 200);
    let host = sim.host();
    let first = host.refresh().await.unwrap();
    assert_eq!(first.vmids, BTreeMap::from([(100, "pve1".to_owned()), (200, "pve2".to_owned())]));
    assert_eq!((&first.vms[&100].run, &first.vms[&200].run), (&RunState::Stopped, &RunState::Unknown));
    assert!(first.quorate && first.nodes.len() == 2);

    let mut changes = host.changes();
    let changed = |id: u32| move |c: &Change| matches!(c, Change::VmChanged(vm) if vm.vmid == id);
    sim.tell(&Request::SetConfig { vmid: 200, key: "cores".into(), value: Some("4".into()) });
    change(&mut changes, changed(200)).await;
    sim.tell(&Request::Migrate { vmid: 100, to: "pve2".into() });
    let Change::VmMoved { vm, from } = change(&mut changes, |c| !matches!(c, Change::Cluster)).await else {
        panic!("told as moved, and as nothing else")
    };
    assert_eq!((vm.node.as_str(), from.as_str(), &vm.run), ("pve2", "pve1", &RunState::Unknown));
    sim.vm("pve2", 201);
    change(&mut changes, |c| matches!(c, Change::VmCreated(vm) if vm.vmid == 201)).await;
    sim.tell(&Request::HaAdd { vmid: 200, state: "started".into() });
    let Change::VmChanged(vm) = change(&mut changes, |c| matches!(c, Change::VmChanged(vm) if vm.ha.is_some())).await else {
        unreachable!()
    };
    assert_eq!(vm.vmid, 200);
    sim.tell(&Request::ReplicationAdd { vmid: 201, target: "pve1".into() });
    change(&mut changes, |c| matches!(c, Change::VmChanged(vm) if vm.vmid == 201 && vm.replicated)).await;
}

/// On several threads: while this one waits for the guest to end, another lets go of the guest's monitor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_dies_is_told_though_its_pid_file_stays() {
    let sim = sim(&["pve1"]);
    sim.vm("pve1", 100);
    let host = sim.host();
    host.refresh().await.unwrap();
    let mut changes = host.changes();
    sim.tell(&Request::StartGuest { vmid: 100 });
    change(&mut changes, |c| matches!(c, Change::VmStarted(_))).await;
    sim.tell(&Request::KillGuest { vmid: 100 });
    change(&mut changes, |c| matches!(c, Change::VmStopped(_))).await;
    sim.tell(&Request::StartGuest { vmid: 100 });
    change(&mut changes, |c| matches!(c, Change::VmStarted(_))).await;
    sim.tell(&Request::QuitGuest { vmid: 100 });
    change(&mut changes, |c| matches!(c, Change::VmStopped(_))).await;
}

#[tokio::test]
async fn a_restarted_cluster_file_system_is_no_change() {
    let sim = sim(&["pve1"]);
    sim.vm("pve1", 100);
    sim.vm("pve1", 101);
    let host = sim.host();
    host.refresh().await.unwrap();
    let mut changes = host.changes();
    sim.tell(&Request::Pmxcfs { node: "pve1".into(), action: PmxcfsAction::Restart });
    sim.tell(&Request::SetConfig { vmid: 101, key: "cores".into(), value: Some("4".into()) });
    let first = change(&mut changes, |c| !matches!(c, Change::Cluster)).await;
    assert!(matches!(&first, Change::VmChanged(vm) if vm.vmid == 101), "{first:?}");
    let inventory = host.refresh().await.unwrap();
    assert_eq!(inventory.vms.len(), 2);
}

#[tokio::test]
async fn a_hung_cluster_file_system_is_told_at_once_and_its_return_too() {
    let sim = sim(&["pve1"]);
    sim.vm("pve1", 100);
    let host = sim.host();
    host.refresh().await.unwrap();
    let mut changes = host.changes();
    sim.tell(&Request::Pmxcfs { node: "pve1".into(), action: PmxcfsAction::Hang });
    change(&mut changes, |_| host.inventory().hung_since.is_some()).await;
    assert_eq!(host.refresh().await.unwrap_err().reason(), "PVE_FS_HUNG");
    assert_eq!(host.read_vm(100).await.unwrap_err().reason(), "PVE_FS_HUNG");
    assert!(host.inventory().vms.contains_key(&100), "what was known is still told");
    sim.tell(&Request::Pmxcfs { node: "pve1".into(), action: PmxcfsAction::Resume });
    change(&mut changes, |_| host.inventory().hung_since.is_none()).await;
    host.refresh().await.unwrap();

    sim.tell(&Request::Pmxcfs { node: "pve1".into(), action: PmxcfsAction::Down });
    change(&mut changes, |_| host.inventory().hung_since.is_some()).await;
    sim.tell(&Request::Pmxcfs { node: "pve1".into(), action: PmxcfsAction::Up });
    change(&mut changes, |_| host.inventory().hung_since.is_none()).await;
    // The folder of this node's configs was unmounted and is watched again.
    sim.tell(&Request::SetConfig { vmid: 100, key: "cores".into(), value: Some("4".into()) });
    change(&mut changes, |c| matches!(c, Change::VmChanged(_))).await;
}

#[tokio::test]
async fn without_quorum_reads_go_on_and_writes_say_why_not() {
    let sim = sim(&["pve1", "pve2"]);
    sim.template();
    let host = sim.host();
    host.refresh().await.unwrap();
    let mut changes = host.changes();
    sim.tell(&Request::Quorum { node: Some("pve1".into()), on: false });
    change(&mut changes, |_| !host.inventory().quorate).await;
    let cores = ConfigCall { set: BTreeMap::from([("cores".into(), "2".into())]), ..ConfigCall::default() };
    assert_eq!(host.set_config_now(9000, &cores).await.unwrap_err(), Error::NoQuorum { node: "pve1".into() });
    assert!(host.read_vm(9000).await.unwrap().is_some());
}

#[tokio::test]
async fn pves_refusals_have_their_reasons() {
    let sim = sim(&["pve1"]);
    sim.template();
    for vmid in 101..=105 {
        sim.vm("pve1", vmid);
    }
    sim.tell(&Request::LockVm { vmid: 102, lock: "backup".into() });
    sim.tell(&Request::Protect { vmid: 103, on: true });
    sim.tell(&Request::HaAdd { vmid: 104, state: "stopped".into() });
    let host = sim.host();
    let clone = async |call: CloneCall| host.clone_vm(&call).await.unwrap_err();
    assert_eq!(clone(clone_call(101, false)).await, Error::VmidInUse { vmid: 101, node: None });
    let gone = CloneCall { template: 8999, ..clone_call(100, false) };
    assert_eq!(clone(gone).await, Error::TemplateNotFound { what: "VMID 8999".into(), node: "pve1".into() });
    let unknown = CloneCall { storage: Some("nosuch".into()), ..clone_call(100, true) };
    assert_eq!(clone(unknown).await, Error::StorageNotFound { storage: "nosuch".into(), node: "pve1".into() });
    let pool = CloneCall { pool: Some("nope".into()), ..clone_call(100, false) };
    assert_eq!(clone(pool).await, Error::PoolNotFound { pool: "nope".into() });
    let name = CloneCall { name: "a_b".into(), ..clone_call(100, false) };
    assert_eq!(clone(name).await.reason(), "INVALID_NAME");

    let cores = ConfigCall { set: BTreeMap::from([("cores".into(), "2".into())]), ..ConfigCall::default() };
    assert_eq!(host.set_config_now(102, &cores).await.unwrap_err(), Error::VmLocked { vmid: 102, lock: "backup".into() });
    assert_eq!(host.destroy_vm(103, &DestroyCall::default()).await.unwrap_err(), Error::VmProtected { vmid: 103 });
    assert_eq!(host.destroy_vm(104, &DestroyCall::default()).await.unwrap_err(), Error::VmHaManaged { vmid: 104 });
    assert_eq!(host.volumes("nosuch", 100).await.unwrap_err().reason(), "STORAGE_NOT_FOUND");

    // Answered with 200 and a UPID, and then refused.
    for (vmid, reason) in [(102, "VM_LOCKED"), (9000, "VM_IS_TEMPLATE")] {
        let upid = host.power(vmid, &PowerCall::Start).await.unwrap();
        let TaskEnd::Error(text) = end(&host, &upid).await else { panic!("start of {vmid} fails") };
        assert_eq!(classify_task(&upid, vmid, &text).reason(), reason, "{text}");
    }
    let upid = host.resize_disk(105, "scsi0", 1 << 20, None).await.unwrap();
    let TaskEnd::Error(text) = end(&host, &upid).await else { panic!("shrinking fails") };
    assert_eq!(classify_task(&upid, 105, &text).reason(), "DISK_SHRINK");
}

#[tokio::test]
async fn a_full_storage_is_named_with_the_cause() {
    let sim = sim(&["pve1"]);
    sim.template();
    sim.faults(json!({"storages": {"local": {"full_after_bytes": 12 << 20}}}));
    let host = sim.host();
    let upid = host.clone_vm(&clone_call(100, true)).await.unwrap();
    let TaskEnd::Error(text) = end(&host, &upid).await else { panic!("the clone fails") };
    let error = classify_task(&upid, 100, &text);
    assert!(matches!(&error, Error::StorageFull { storage, .. } if storage == "local"), "{error}");
}

#[tokio::test]
async fn a_killed_clone_ends_without_a_word_and_leaves_an_orphan_that_can_be_ended() {
    let sim = sim(&["pve1"]);
    sim.template();
    // Slow, so that the copy outlives its worker.
    sim.faults(json!({"storages": {"local": {"rate_kib": 64}}}));
    sim.task_fault("qmclone", TaskEffect::Killed);
    let host = sim.host();
    let upid = host.clone_vm(&clone_call(100, true)).await.unwrap();
    assert_eq!(end(&host, &upid).await, TaskEnd::NoEndLine);
    assert_eq!(host.task(&upid).await.unwrap(), TaskState::Ended(TaskEnd::NoEndLine));
    assert_eq!(host.read_vm(100).await.unwrap().unwrap().config.lock(), Some("clone"));
    for orphan in host.orphans(100).await.unwrap() {
        assert!(orphan.command.contains("qemu-img"), "{orphan:?}");
        host.end_process(&orphan, Duration::from_secs(5)).await.unwrap();
    }
    assert!(host.orphans(100).await.unwrap().is_empty());
    assert!(host.orphans(9000).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_task_that_is_asked_to_stop_rolls_back() {
    let sim = sim(&["pve1"]);
    sim.template();
    sim.faults(json!({"storages": {"local": {"rate_kib": 64}}}));
    let host = sim.host();
    let upid = host.clone_vm(&clone_call(100, true)).await.unwrap();
    let mut updates = host.follow_task(&upid);
    // The copy has begun.
    while !matches!(tokio::time::timeout(LIMIT, updates.recv()).await.unwrap().unwrap(), TaskUpdate::Progress { .. }) {}
    assert_eq!(host.task(&upid).await.unwrap(), TaskState::Running);
    assert!(host.orphans(100).await.unwrap().is_empty(), "its worker lives");
    host.stop_task(&upid).await.unwrap();
    assert!(matches!(end(&host, &upid).await, TaskEnd::Error(text) if text.contains("interrupted by signal")));
    assert!(host.read_vm(100).await.unwrap().is_none());
}

#[tokio::test]
async fn a_daemon_that_is_down_is_told_and_used_again_when_it_is_up() {
    let sim = sim(&["pve1"]);
    let host = sim.host();
    host.storages().await.unwrap();
    sim.tell(&Request::Daemon { node: "pve1".into(), up: false });
    assert_eq!(host.storages().await.unwrap_err().reason(), "PVE_DOWN");
    sim.tell(&Request::Daemon { node: "pve1".into(), up: true });
    let storages = host.storages().await.unwrap();
    assert!(storages.iter().any(|s| s.id == "local" && s.active), "{storages:?}");
}
