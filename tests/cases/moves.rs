//! VMs that move, are copied, or whose VMID is somebody else's now: never cloned again, never touched wrongly.

use std::{fs, time::Duration};

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1::{self, OperationState, VmState};
use pvelet_tests::{
    Client, Controller, HostEvents, Stack, StackOptions,
    calls::{metadata, succeeded},
    client::vm_ref,
    status::{self, Records, condition, condition_reason},
};
use serde_json::Value;
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(60);
const MANIFEST: &str = include_str!("../../docs/examples/web-1.yaml");
const KEY: &str = "pvemachine.web-1";

/// Nodes with agents, a template on each, a controller, and machine web-1 running on pve1.
struct World {
    stack: Stack,
    controller: Controller,
    vmid: u32,
    uuid: String,
}

fn manifest(name: &str, more: &str) -> String {
    format!("{}  {more}\n", MANIFEST.replace("web-1", name))
}

fn world(nodes: &[&'static str]) -> World {
    let stack = Stack::seeded(StackOptions { nodes: nodes.to_vec(), ..StackOptions::default() }, |control| {
        for (vmid, node) in (9001..).zip(nodes) {
            let seed = Seed { tags: "debian-13".into(), size_mib: 64, fill_mib: 1, ..Seed::new(node, vmid, "debian-13") };
            control.call(&Request::SeedTemplate(seed)).unwrap();
        }
    });
    let mut controller = stack.controller();
    controller.start();
    controller.write("web-1.yaml", &manifest("web-1", "host: pve1"));
    let records = status::wait_for(&controller.manifests, LIMIT, |r| ready(r, KEY)).unwrap();
    let found = &records[KEY]["status"];
    let vmid = u32::try_from(found["vmid"].as_u64().unwrap()).unwrap();
    let uuid = found["uuid"].as_str().unwrap().to_owned();
    World { stack, controller, vmid, uuid }
}

fn ready(records: &Records, key: &str) -> bool {
    records.get(key).is_some_and(|r| condition(r, "Ready") == "True")
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record["status"][field].as_str().unwrap_or_default()
}

impl World {
    fn call(&self, request: &Request) {
        self.stack.sim.control().call(request).unwrap();
    }

    fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let records = status::wait_for(&self.controller.manifests, LIMIT, |r| r.get(KEY).is_some_and(&wanted));
        records.unwrap_or_else(|e| panic!("{e}\n{}", self.controller.log())).remove(KEY).unwrap()
    }

    /// Another machine is made from scratch: the controller has looked at everything again and again meanwhile.
    fn while_another_is_made(&self, name: &str) {
        self.controller.write(&format!("{name}.yaml"), &manifest(name, "host: pve1"));
        let key = format!("pvemachine.{name}");
        status::wait_for(&self.controller.manifests, LIMIT, |r| ready(r, &key)).unwrap();
    }

    /// How many clones PVE was asked for, on all nodes.
    fn clones(&self) -> usize {
        let index = |node: &String| fs::read_to_string(self.stack.sim.node(node).tasks().join("index")).unwrap_or_default();
        self.stack.sim.nodes().iter().map(index).map(|text| text.matches(":qmclone:").count()).sum()
    }

    fn vm_ref(&self) -> v1::VmRef {
        v1::VmRef { vmid: self.vmid, uuid: self.uuid.clone() }
    }

    fn config(&self, node: &str, vmid: u32) -> String {
        fs::read_to_string(self.stack.sim.node(node).vm_config(vmid)).unwrap()
    }
}

/// Every mutation at the old host names the new one.
async fn refused_here(client: &Client, vm: &v1::VmRef, node: &str) {
    for (what, refusal) in client.refusals(&format!("old-{node}"), vm).await {
        refusal.is(Code::FailedPrecondition, "VM_ON_OTHER_HOST", what);
        assert!(refusal.text.contains(node), "{what}: {}", refusal.text);
    }
    let status = client.start(&format!("meta-{node}"), vm).await.unwrap_err();
    assert_eq!(metadata(&status, "node"), node);
}

#[tokio::test]
async fn a_vm_that_was_migrated_or_failed_over_is_followed_and_never_made_again() {
    let world = tokio::task::spawn_blocking(|| world(&["pve1", "pve2", "pve3"])).await.unwrap();
    let client = world.stack.operator("pve1");
    world.call(&Request::Migrate { vmid: world.vmid, to: "pve2".into() });
    let record = world.wait(|r| text(r, "node") == "pve2" && condition(r, "Ready") == "True");
    assert_eq!(text(&record, "host"), "pve2");
    refused_here(&client, &world.vm_ref(), "pve2").await;
    // The agent there does what is asked.
    let there = world.stack.operator("pve2");
    let config = v1::VmConfig { description: Some("moved".into()), ..v1::VmConfig::default() };
    succeeded(there.configure("there", &world.vm_ref(), config).await);

    world.call(&Request::FailOver { vmid: world.vmid, to: "pve3".into() });
    let record = world.wait(|r| text(r, "node") == "pve3" && condition(r, "Ready") == "True");
    assert_eq!((text(&record, "host"), text(&record, "uuid")), ("pve3", world.uuid.as_str()));
    refused_here(&there, &world.vm_ref(), "pve3").await;
    world.while_another_is_made("other");
    assert_eq!(world.clones(), 2, "one for each machine");
    assert_eq!(client.all_vms().await.iter().filter(|vm| vm.name == "web-1").count(), 1);
    // And it is removed where it is.
    let mut events = HostEvents::open(&client).await;
    world.controller.remove("web-1.yaml");
    status::wait_for(&world.controller.manifests, LIMIT, |r| !r.contains_key(KEY)).unwrap();
    events.until(v1::VmEventType::Removed, world.vmid).await;
    assert!(!client.all_vms().await.iter().any(|vm| vm.name == "web-1"));
}

#[tokio::test]
async fn of_two_vms_with_one_uuid_neither_is_touched() {
    let world = tokio::task::spawn_blocking(|| world(&["pve1", "pve2"])).await.unwrap();
    let client = world.stack.operator("pve1");
    let copy = 777;
    world.call(&Request::RestoreDuplicate { vmid: world.vmid, new: copy, node: Some("pve2".into()) });
    let record = world.wait(|r| condition_reason(r, "Ready") == "AmbiguousUuid");
    assert_eq!(condition(&record, "Ready"), "False");
    assert!(status::condition_field(&record, "Ready", "message").contains("777"), "{record}");
    let (one, two) = (world.config("pve1", world.vmid), world.config("pve2", copy));

    for (what, refusal) in client.refusals("original", &world.vm_ref()).await {
        refusal.is(Code::FailedPrecondition, "AMBIGUOUS_UUID", what);
        assert!(refusal.text.contains("777") && refusal.text.contains(&world.vmid.to_string()), "{what}: {}", refusal.text);
    }
    let there = world.stack.operator("pve2");
    for (what, refusal) in there.refusals("copy", &v1::VmRef { vmid: copy, uuid: world.uuid.clone() }).await {
        refusal.is(Code::FailedPrecondition, "AMBIGUOUS_UUID", what);
    }
    let by_uuid = v1::VmRef { vmid: 0, uuid: world.uuid.clone() };
    let status = client.agent.vm().get_vm(v1::GetVmRequest { vm: Some(by_uuid) }).await.unwrap_err();
    assert_eq!((status.code(), pvelet_tests::client::reason(&status).as_str()), (Code::FailedPrecondition, "AMBIGUOUS_UUID"));
    assert!(client.all_vms().await.iter().filter(|vm| vm.uuid == world.uuid).all(|vm| vm.ambiguous_uuid));

    // It stops: with the UUID ambiguous it is not started again, nor is anything else done to it or its copy.
    world.call(&Request::KillGuest { vmid: world.vmid });
    let operations = client.agent.list_operations("", false, 100).await.unwrap().len();
    world.while_another_is_made("other");
    assert_eq!(client.vm(world.vmid).await.unwrap().state(), VmState::Stopped);
    assert_eq!((world.config("pve1", world.vmid), world.config("pve2", copy)), (one, two));
    let now = client.agent.list_operations("", false, 100).await.unwrap();
    assert!(now.len() > operations && !now.iter().take(now.len() - operations).any(|op| op.target == Some(world.vm_ref())), "{now:?}");

    // The copy goes: all is well again.
    world.call(&Request::RemoveFile { path: format!("nodes/pve2/qemu-server/{copy}.conf") });
    world.wait(|r| condition(r, "Ready") == "True");
    assert_eq!(world.clones(), 2);
}

#[tokio::test]
async fn a_vmid_that_is_somebody_elses_now_is_left_alone() {
    let world = tokio::task::spawn_blocking(|| world(&["pve1"])).await.unwrap();
    let client = world.stack.operator("pve1");
    world.call(&Request::KillGuest { vmid: world.vmid });
    world.call(&Request::RemoveFile { path: format!("nodes/pve1/qemu-server/{}.conf", world.vmid) });
    let theirs = Seed { size_mib: 0, cloudinit: false, ..Seed::new("pve1", world.vmid, "theirs") };
    world.call(&Request::SeedVm(theirs));
    let record = world.wait(|r| condition_reason(r, "Ready") == "VmGone");
    let message = status::condition_field(&record, "Ready", "message");
    assert!(message.contains(&world.vmid.to_string()), "{message}");
    let before = world.config("pve1", world.vmid);

    for (what, refusal) in client.refusals("reused", &world.vm_ref()).await {
        refusal.is(Code::FailedPrecondition, "UUID_MISMATCH", what);
    }
    world.while_another_is_made("other");
    assert_eq!(world.clones(), 2, "web-1 was made once, and other");
    world.controller.remove("web-1.yaml");
    status::wait_for(&world.controller.manifests, LIMIT, |r| !r.contains_key(KEY)).unwrap();
    assert_eq!(world.config("pve1", world.vmid), before);
    assert_eq!(client.vm(world.vmid).await.unwrap().name, "theirs");
}

#[tokio::test]
async fn a_leased_vmid_that_somebody_takes_while_the_agent_is_down_stays_theirs() {
    for point in ["clone.leased", "clone.intent_written", "clone.lane_held"] {
        let mut stack = Stack::start(StackOptions { start_agents: false, ..StackOptions::default() });
        let control = stack.sim.control();
        let seed = Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", 9000, "template") };
        control.call(&Request::SeedTemplate(seed)).unwrap();
        stack.agent("pve1").start_with(&[("PVELET_CRASH_AT", point)]).unwrap();
        let client = stack.operator("pve1");
        client.clone_vm(client.clone_request("one", 9000, "mine")).await.unwrap_err();
        stack.agent("pve1").wait_exit();

        let vmid = 100_000;
        let theirs = Seed { size_mib: 16, ..Seed::new("pve1", vmid, "theirs") };
        control.call(&Request::SeedVm(theirs)).unwrap();
        let config = fs::read_to_string(stack.sim.node("pve1").vm_config(vmid)).unwrap();
        let before = control.leftovers().unwrap();

        stack.agent("pve1").start();
        let client = stack.operator("pve1");
        // Settling ends what was begun; the same request afterwards makes one VM at most, and not there.
        let known = client.operation("one").await;
        if known.is_some() {
            client.operation_end("one").await;
        }
        assert_eq!(fs::read_to_string(stack.sim.node("pve1").vm_config(vmid)).unwrap(), config, "{point}");
        assert_eq!(control.leftovers().unwrap(), before, "{point}");
        let op = client.clone_vm(client.clone_request("two", 9000, "mine")).await.unwrap();
        assert_eq!(op.state(), OperationState::Succeeded, "{point}: {op:?}");
        assert_ne!(op.target.unwrap().vmid, vmid, "{point}");
        let vm = client.vm(vmid).await.unwrap();
        assert_eq!((vm.name.as_str(), vm.mark), ("theirs", None), "{point}");
    }
}

#[tokio::test]
async fn a_marked_vm_that_was_copied_is_not_taken_for_the_original() {
    let stack = Stack::seeded(StackOptions::default(), |control| {
        control.call(&Request::SeedTemplate(Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", 9000, "template") })).unwrap();
    });
    let client = stack.operator("pve1");
    let vm = client.cloned("one", 9000, "original").await;
    // A clone by hand copies the description, the mark in it included, and gets a UUID of its own.
    let end = stack.pve("pve1").task("POST", &format!("/qemu/{}/clone", vm.vmid), "newid=555&name=copy&full=1");
    assert_eq!(end, "TASK OK");
    let config = fs::read_to_string(stack.sim.node("pve1").vm_config(555)).unwrap();
    assert!(config.contains("pvelet"), "the mark is in the copy's description: {config}");
    let mut events = HostEvents::open(&client).await;
    let copy = match events.existing.iter().find(|vm| vm.vmid == 555 && vm.lock.is_empty()) {
        Some(vm) => vm.clone(),
        None => events.until_vm("the copy", |e| e.vm.as_ref().is_some_and(|v| v.vmid == 555 && v.lock.is_empty())).await.vm.unwrap(),
    };
    assert_eq!(copy.mark, None);
    assert_ne!(copy.uuid, vm.uuid);
    let tenant = stack.tenant("pve1", "default");
    assert!(tenant.vm(vm.vmid).await.is_ok());
    assert_eq!(tenant.vm(555).await.unwrap_err().code(), Code::NotFound);
    succeeded(client.delete("delete", &vm_ref(&vm)).await);
    assert_eq!(client.vm(555).await.unwrap().name, "copy");
}
