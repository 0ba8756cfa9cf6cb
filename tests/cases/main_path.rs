//! The main path: manifests in, machines Ready; manifests out, nothing left.

use std::time::Duration;

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1;
use pvelet_tests::{
    Stack,
    client::vm_ref,
    status::{self, condition, count_true},
};

const LIMIT: Duration = Duration::from_secs(60);
const MANIFEST: &str = include_str!("../../docs/examples/web-1.yaml");

fn seed_templates(stack: &Stack) {
    for (vmid, node) in (9001..).zip(stack.sim.nodes().to_vec()) {
        let seed = Seed { tags: "debian-13".into(), size_mib: 64, fill_mib: 1, ..Seed::new(&node, vmid, "debian-13") };
        stack.sim.control().call(&Request::SeedTemplate(seed)).unwrap();
    }
}

fn machine(name: &str, i: u32) -> String {
    MANIFEST.replace("web-1", name).replace("10.70.0.11/", &format!("10.70.0.{}/", 10 + i))
}

#[test]
fn three_manifests_become_three_running_vms_and_go_without_a_trace() {
    let stack = Stack::three();
    seed_templates(&stack);
    let before = stack.sim.control().leftovers().unwrap();
    let mut controller = stack.controller();
    controller.start();
    for i in 1..=3 {
        controller.write(&format!("web-{i}.yaml"), &machine(&format!("web-{i}"), i));
    }
    let folder = controller.manifests.clone();
    let records = status::wait_for(&folder, LIMIT, |r| count_true(r, "pvemachine.", "Ready") == 3).unwrap();
    for (name, record) in records.iter().filter(|(n, _)| n.starts_with("pvemachine.")) {
        assert!(["pve1", "pve2", "pve3"].contains(&record["status"]["node"].as_str().unwrap_or_default()), "{name}: {record}");
    }
    let config = std::fs::read_dir(stack.sim.node("pve1").etc_pve().join("nodes"))
        .unwrap()
        .flatten()
        .flat_map(|n| std::fs::read_dir(n.path().join("qemu-server")).unwrap().flatten())
        .map(|f| std::fs::read_to_string(f.path()).unwrap())
        .find(|c| c.contains("name: web-2"))
        .expect("a VM named web-2");
    for line in ["cores: 2", "memory: 1024", "ciuser: debian", "nameserver: 10.70.0.1", "tags: web"] {
        assert!(config.contains(line), "{line} is missing in:\n{config}");
    }
    assert!(
        config.lines().any(|l| l.starts_with("ipconfig0: ") && l.contains("ip=10.70.0.12/24") && l.contains("gw=10.70.0.1")),
        "{config}"
    );
    assert!(config.lines().any(|l| l.starts_with("net0: ") && l.contains("bridge=vmbr0") && l.contains("tag=70")), "{config}");

    for i in 1..=3 {
        controller.remove(&format!("web-{i}.yaml"));
    }
    status::wait_for(&folder, LIMIT, |r| !r.keys().any(|k| k.starts_with("pvemachine."))).unwrap();
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}

#[test]
fn a_vm_that_somebody_stops_is_started_again() {
    let stack = Stack::one();
    seed_templates(&stack);
    let mut controller = stack.controller();
    controller.start();
    controller.write("web-1.yaml", &machine("web-1", 1));
    let ready = |r: &status::Records| r.get("pvemachine.web-1").is_some_and(|m| condition(m, "Ready") == "True");
    let records = status::wait_for(&controller.manifests, LIMIT, ready).unwrap();
    let vmid = u32::try_from(records["pvemachine.web-1"]["status"]["vmid"].as_u64().unwrap()).unwrap();
    let start = records["pvemachine.web-1"]["status"]["lastStart"].clone();
    stack.sim.control().call(&Request::KillGuest { vmid }).unwrap();
    status::wait_for(&controller.manifests, LIMIT, |r| ready(r) && r["pvemachine.web-1"]["status"]["lastStart"] != start).unwrap();
}

#[test]
fn a_retained_vm_outlives_its_manifest() {
    let stack = Stack::one();
    seed_templates(&stack);
    let mut controller = stack.controller();
    controller.start();
    controller.write("web-1.yaml", &format!("{}  deletionPolicy: Retain\n", machine("web-1", 1)));
    let ready = |r: &status::Records| r.get("pvemachine.web-1").is_some_and(|m| condition(m, "Ready") == "True");
    let records = status::wait_for(&controller.manifests, LIMIT, ready).unwrap();
    let vmid = records["pvemachine.web-1"]["status"]["vmid"].as_u64().unwrap();
    controller.remove("web-1.yaml");
    status::wait_for(&controller.manifests, LIMIT, |r| !r.contains_key("pvemachine.web-1")).unwrap();
    assert!(stack.sim.node("pve1").vm_config(u32::try_from(vmid).unwrap()).exists());
}

#[tokio::test]
async fn clone_configure_start_stop_delete_by_hand() {
    let stack = Stack::one();
    seed_templates(&stack);
    let before = stack.sim.control().leftovers().unwrap();
    let client = stack.operator("pve1");
    let vm = client.cloned("r1", 9001, "by-hand").await;
    assert_eq!((vm.state(), vm.name.as_str()), (v1::VmState::Stopped, "by-hand"));
    assert_eq!(vm.mark.as_ref().unwrap().owner.as_ref().unwrap().tenant, "default");
    let config = v1::VmConfig { cores: Some(4), memory_mib: Some(2048), boot_disk_bytes: Some(128 << 20), ..Default::default() };
    let op = client.configure("r2", &vm_ref(&vm), config).await.unwrap();
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
    let vm = client.vm(vm.vmid).await.unwrap();
    assert_eq!((vm.cores, vm.memory_mib), (4, 2048));
    assert_eq!(vm.disks.iter().find(|d| d.slot == "scsi0").unwrap().size_bytes, 128 << 20);
    for (id, state) in [("r3", v1::VmState::Running), ("r4", v1::VmState::Running)] {
        let op = client.start(id, &vm_ref(&vm)).await.unwrap();
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
        assert_eq!(client.vm(vm.vmid).await.unwrap().state(), state);
    }
    for id in ["r5", "r6"] {
        let op = client.stop(id, &vm_ref(&vm)).await.unwrap();
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
        assert_eq!(client.vm(vm.vmid).await.unwrap().state(), v1::VmState::Stopped);
    }
    let op = client.delete("r7", &vm_ref(&vm)).await.unwrap();
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
    assert_eq!(stack.sim.control().leftovers().unwrap(), before);
}
