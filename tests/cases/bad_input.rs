//! What a caller may get wrong: the error names field, value and remedy, and nothing is left behind.

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1::{self, clone_source::Source};
use pvelet_tests::{
    Client, Stack, StackOptions,
    client::{operation_reason, reason, vm_ref},
};
use tonic::Code;
use tonic_types::StatusExt;

fn seeded() -> Stack {
    let seed = |vmid, name: &str| Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", vmid, name) };
    Stack::seeded(StackOptions::default(), |control| {
        control.call(&Request::SeedTemplate(Seed { tags: "a;b".into(), ..seed(9000, "template") })).unwrap();
        control.call(&Request::SeedTemplate(Seed { cloudinit: false, ..seed(9001, "bare") })).unwrap();
        control.call(&Request::SeedVm(seed(200, "plain"))).unwrap();
    })
}

type Change = fn(&mut v1::CloneVmRequest);

/// What is wrong, the change to a good request, code, reason, and words that the message must have (the field, the value).
const CLONES: &[(&str, Change, Code, &str, &[&str])] = &[
    ("no name", |r| config(r).name = None, Code::InvalidArgument, "INVALID_NAME", &["config.name"]),
    ("a name that is no DNS name", |r| config(r).name = Some("a_b".into()), Code::InvalidArgument, "INVALID_NAME", &["config.name", "a_b"]),
    ("no request id", |r| meta(r).request_id = String::new(), Code::InvalidArgument, "INVALID_REQUEST_ID", &["meta.request_id"]),
    ("a malformed tenant", |r| meta(r).tenant = "Team A".into(), Code::InvalidArgument, "INVALID_TENANT", &["meta.tenant", "Team A"]),
    ("a VMID outside the range", |r| r.vmid = 150, Code::InvalidArgument, "VMID_OUT_OF_RANGE", &["vmid", "150", "100000"]),
    ("a VMID in use", |r| r.vmid = 100_777, Code::AlreadyExists, "VMID_IN_USE", &["100777"]),
    ("no template with that VMID", |r| source(r, Source::Vmid(9999)), Code::NotFound, "TEMPLATE_NOT_FOUND", &["9999", "pve1"]),
    ("a VM that is no template", |r| source(r, Source::Vmid(200)), Code::FailedPrecondition, "NOT_A_TEMPLATE", &["200"]),
    ("no template with those tags", |r| tags(r, &["a", "nope"]), Code::NotFound, "TEMPLATE_NOT_FOUND", &["nope"]),
    ("no source", |r| r.source = None, Code::InvalidArgument, "INVALID_FIELD", &["source"]),
    ("an unknown storage", |r| full(r, "nosuch"), Code::NotFound, "STORAGE_NOT_FOUND", &["nosuch"]),
    (
        "a storage for a linked clone",
        |r| r.storage = "rawdir".into(),
        Code::InvalidArgument,
        "LINKED_CLONE_STORAGE",
        &["storage", "rawdir"],
    ),
    ("a storage that is offline", |r| full(r, "offline"), Code::Unavailable, "STORAGE_OFFLINE", &["offline"]),
    ("a storage that is disabled", |r| full(r, "disabled"), Code::Unavailable, "STORAGE_OFFLINE", &["disabled"]),
    ("an unknown pool", |r| r.pool = "nope".into(), Code::NotFound, "POOL_NOT_FOUND", &["nope"]),
    ("an unknown bridge", |r| nic(r, |n| n.bridge = "vmbr9".into()), Code::NotFound, "BRIDGE_NOT_FOUND", &["vmbr9"]),
    ("a VLAN beyond 4094", |r| nic(r, |n| n.vlan = 4095), Code::InvalidArgument, "INVALID_FIELD", &["vlan", "4095"]),
    ("a malformed MAC", |r| nic(r, |n| n.mac = "nope".into()), Code::InvalidArgument, "INVALID_MAC", &["mac", "nope"]),
    (
        "a gateway outside the subnet",
        |r| ip(r, "10.0.0.5/24", "10.9.0.1"),
        Code::InvalidArgument,
        "INVALID_GATEWAY",
        &["gateway4", "10.9.0.1"],
    ),
    ("an address without a prefix", |r| ip(r, "10.0.0.5", ""), Code::InvalidArgument, "INVALID_ADDRESS", &["ipv4", "10.0.0.5"]),
    (
        "a name server that is no address",
        |r| cloud_init(r).nameservers = vec!["not-an-ip".into()],
        Code::InvalidArgument,
        "INVALID_ADDRESS",
        &["nameservers[0]", "not-an-ip"],
    ),
    (
        "a malformed SSH key",
        |r| cloud_init(r).ssh_keys = vec!["ssh-ed25519 ???".into()],
        Code::InvalidArgument,
        "INVALID_SSH_KEY",
        &["ssh_keys[0]"],
    ),
    (
        "cloud-init without its drive",
        |r| {
            source(r, Source::Vmid(9001));
            cloud_init(r).user = "debian".into();
        },
        Code::FailedPrecondition,
        "NO_CLOUD_INIT_DRIVE",
        &["9001"],
    ),
    ("too little memory", |r| config(r).memory_mib = Some(1), Code::InvalidArgument, "INVALID_FIELD", &["config.memory_mib", "1"]),
    ("too many cores", |r| config(r).cores = Some(9999), Code::InvalidArgument, "INVALID_FIELD", &["config.cores", "9999"]),
    ("a smaller boot disk", |r| config(r).boot_disk_bytes = Some(1 << 20), Code::InvalidArgument, "DISK_SHRINK", &["boot_disk_bytes"]),
    (
        "a malformed tag",
        |r| config(r).tags = Some(v1::TagList { tags: vec!["A B".into()] }),
        Code::InvalidArgument,
        "INVALID_FIELD",
        &["A B"],
    ),
];

fn config(r: &mut v1::CloneVmRequest) -> &mut v1::VmConfig {
    r.config.as_mut().unwrap()
}
fn meta(r: &mut v1::CloneVmRequest) -> &mut v1::RequestMeta {
    r.meta.as_mut().unwrap()
}
fn cloud_init(r: &mut v1::CloneVmRequest) -> &mut v1::CloudInit {
    config(r).cloud_init.get_or_insert_default()
}
fn source(r: &mut v1::CloneVmRequest, source: Source) {
    r.source = Some(v1::CloneSource { source: Some(source) });
}
fn tags(r: &mut v1::CloneVmRequest, tags: &[&str]) {
    source(r, Source::Tags(v1::TagList { tags: tags.iter().map(|t| (*t).to_owned()).collect() }));
}
fn full(r: &mut v1::CloneVmRequest, storage: &str) {
    r.mode = v1::CloneMode::Full.into();
    r.storage = storage.into();
}
fn nic(r: &mut v1::CloneVmRequest, change: fn(&mut v1::Nic)) {
    let mut nic = v1::Nic { bridge: "vmbr0".into(), ..v1::Nic::default() };
    change(&mut nic);
    config(r).nics = Some(v1::NicList { nics: vec![nic] });
}
fn ip(r: &mut v1::CloneVmRequest, ipv4: &str, gateway4: &str) {
    let ip = v1::IpConfig { ipv4: ipv4.into(), gateway4: gateway4.into(), ..v1::IpConfig::default() };
    cloud_init(r).ip_configs = vec![ip];
}

/// The error of a clone, whether it comes at once or with the operation: code, reason, text with all violations.
async fn failure(client: &Client, request: v1::CloneVmRequest) -> (Code, String, String) {
    match client.clone_vm(request).await {
        Err(status) => {
            let fields = status.get_details_bad_request().map(|b| format!("{:?}", b.field_violations)).unwrap_or_default();
            (status.code(), reason(&status), format!("{} {fields}", status.message()))
        }
        Ok(op) => {
            let error = op.error.clone().unwrap_or_else(|| panic!("it should have failed: {op:?}"));
            (Code::from(error.code), operation_reason(&op), error.message)
        }
    }
}

#[tokio::test]
async fn a_bad_clone_request_names_field_value_and_remedy_and_leaves_nothing() {
    let stack = seeded();
    let control = stack.sim.control();
    control.call(&Request::SeedVms { node: "pve1".into(), first: 100_777, count: 1 }).unwrap();
    let before = control.leftovers().unwrap();
    let client = stack.operator("pve1");
    for (i, (what, change, code, why, words)) in CLONES.iter().enumerate() {
        let mut request = client.clone_request(&format!("bad-{i}"), 9000, "fine");
        change(&mut request);
        let (got_code, got_reason, text) = failure(&client, request).await;
        assert_eq!((got_code, got_reason.as_str()), (*code, *why), "{what}: {text}");
        for word in *words {
            assert!(text.contains(word), "{what}: '{word}' is missing in: {text}");
        }
        assert_eq!(control.leftovers().unwrap(), before, "{what}");
    }
    // Nothing is leased or guarded either: a good request goes through, on the first VMID of the range.
    let vm = client.cloned("good", 9000, "fine").await;
    assert_eq!(vm.vmid, 100_000);
}

#[tokio::test]
async fn every_violation_is_told_at_once() {
    let stack = seeded();
    let client = stack.operator("pve1");
    let mut request = client.clone_request("many", 9000, "a_b");
    request.vmid = 150;
    config(&mut request).cores = Some(0);
    let status = client.clone_vm(request).await.unwrap_err();
    let fields: Vec<String> = status.get_details_bad_request().unwrap().field_violations.into_iter().map(|v| v.field).collect();
    for field in ["config.name", "vmid", "config.cores"] {
        assert!(fields.iter().any(|f| f == field), "{field} is missing in {fields:?}");
    }
}

#[tokio::test]
async fn a_vm_is_changed_only_by_vmid_and_uuid() {
    let stack = seeded();
    let client = stack.operator("pve1");
    let vm = client.vm(200).await.unwrap();
    let wrong = v1::VmRef { vmid: 200, uuid: "00000000-0000-4000-8000-000000000000".into() };
    let none = v1::VmRef { vmid: 200, uuid: String::new() };
    let gone = v1::VmRef { vmid: 201, uuid: vm.uuid.clone() };
    for (i, (target, code, why)) in [
        (wrong, Code::FailedPrecondition, "UUID_MISMATCH"),
        (none, Code::InvalidArgument, "INVALID_UUID"),
        (gone, Code::NotFound, "VM_NOT_FOUND"),
    ]
    .into_iter()
    .enumerate()
    {
        for status in [
            client.start(&format!("s{i}"), &target).await.unwrap_err(),
            client.stop(&format!("p{i}"), &target).await.unwrap_err(),
            client.delete(&format!("d{i}"), &target).await.unwrap_err(),
            client.configure(&format!("c{i}"), &target, v1::VmConfig { cores: Some(2), ..Default::default() }).await.unwrap_err(),
        ] {
            assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{status:?}");
        }
    }
    assert_eq!(client.vm(200).await.unwrap().digest, vm.digest);
}

#[tokio::test]
async fn a_vm_that_must_not_be_touched_says_why() {
    let stack = seeded();
    let client = stack.operator("pve1");
    let control = stack.sim.control();
    let vm = client.vm(200).await.unwrap();
    let target = vm_ref(&vm);

    control.call(&Request::LockVm { vmid: 200, lock: "backup".into() }).unwrap();
    let (code, why) = refused(client.delete("locked", &target).await);
    assert_eq!((code, why.as_str()), (Code::Aborted, "VM_LOCKED"));
    let (code, why) = refused(client.start("locked-start", &target).await);
    assert_eq!((code, why.as_str()), (Code::Aborted, "VM_LOCKED"));
    control.call(&Request::UnlockVm { vmid: 200 }).unwrap();

    control.call(&Request::Protect { vmid: 200, on: true }).unwrap();
    let (code, why) = refused(client.delete("protected", &target).await);
    assert_eq!((code, why.as_str()), (Code::FailedPrecondition, "VM_PROTECTED"));
    control.call(&Request::Protect { vmid: 200, on: false }).unwrap();

    control.call(&Request::ReplicationAdd { vmid: 200, target: "pve2".into() }).unwrap();
    let (code, why) = refused(client.delete("replicated", &target).await);
    assert_eq!((code, why.as_str()), (Code::FailedPrecondition, "VM_REPLICATED"));
    control.call(&Request::ReplicationRemove { vmid: 200 }).unwrap();

    client.start("run", &target).await.unwrap();
    let (code, why) = refused(client.delete("running", &target).await);
    assert_eq!((code, why.as_str()), (Code::FailedPrecondition, "VM_RUNNING"));
    client.stop("stop", &target).await.unwrap();

    let clone = client.cloned("linked", 9000, "child").await;
    let template = client.vm(9000).await.unwrap();
    let (code, why) = refused(client.delete("base", &vm_ref(&template)).await);
    assert_eq!((code, why.as_str()), (Code::FailedPrecondition, "TEMPLATE_IN_USE"));
    let (code, why) = refused(client.start("template", &vm_ref(&template)).await);
    assert_eq!((code, why.as_str()), (Code::FailedPrecondition, "VM_IS_TEMPLATE"));
    assert!(client.vm(clone.vmid).await.is_ok());
}

/// Code and reason of a refusal, whether it came at once or with the operation.
fn refused(result: Result<v1::Operation, tonic::Status>) -> (Code, String) {
    match result {
        Err(status) => (status.code(), reason(&status)),
        Ok(op) => (Code::from(op.error.as_ref().unwrap_or_else(|| panic!("it should have failed: {op:?}")).code), operation_reason(&op)),
    }
}
