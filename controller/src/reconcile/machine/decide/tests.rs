#![allow(clippy::unwrap_used)]

mod disks;
mod property;
mod table;
mod world;

use jiff::Timestamp;

use self::world::{World, describe};
use super::*;
use crate::{
    kind::{Failure, Quantity, RunPolicy},
    reconcile::{RunState, testing},
};

#[test]
fn a_clone_carries_everything_the_spec_says() {
    let mut world = World::fresh();
    let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {name: web-1}\nspec:\n  source: {tags: [debian13, golden]}\n  \
                tenant: team-a\n  cloneMode: full\n  storage: fast\n  pool: web\n  vmid: 4711\n  cores: 2\n  sockets: 1\n  memory: 2Gi\n  bootDisk: 20Gi\n  \
                startOnBoot: true\n  tags: [web]\n  nics: [{bridge: vmbr0, vlan: 7, mac: 'bc:24:11:00:00:01'}]\n  cloudInit:\n    user: admin\n    \
                sshKeys: ['ssh-ed25519 AAAAC3 me']\n    ipConfigs: [{ipv4: 10.0.0.5/24, gateway4: 10.0.0.1}]\n    nameservers: [10.0.0.2]\n    \
                searchDomain: example.com\n";
    let manifest = crate::kind::parse(text).0.remove(0);
    world.machine.spec = serde_json::from_value(manifest.spec).unwrap();
    let decision = world.decide();
    let Action::Call(request) = decision.action else { panic!("{:?}", decision.action) };
    let expected = v1::CloneVmRequest {
        meta: Some(v1::RequestMeta {
            tenant: "team-a".into(),
            request_id: format!("{}:clone:1", testing::UID),
            controller_epoch: None,
            wait: None,
        }),
        source: Some(v1::CloneSource {
            source: Some(v1::clone_source::Source::Tags(v1::TagList { tags: vec!["debian13".into(), "golden".into()] })),
        }),
        vmid: 4711,
        mode: v1::CloneMode::Full.into(),
        storage: "fast".into(),
        pool: "web".into(),
        owner: Some(v1::Owner { tenant: "team-a".into(), cluster: "test".into(), machine_uid: testing::UID.into() }),
        config: Some(v1::VmConfig {
            name: Some("web-1".into()),
            cores: Some(2),
            sockets: Some(1),
            memory_mib: Some(2048),
            nics: Some(v1::NicList {
                nics: vec![v1::Nic {
                    index: 0,
                    model: "virtio".into(),
                    mac: "BC:24:11:00:00:01".into(),
                    bridge: "vmbr0".into(),
                    vlan: 7,
                    mtu: 0,
                    firewall: false,
                }],
            }),
            cloud_init: Some(v1::CloudInit {
                user: "admin".into(),
                ssh_keys: vec!["ssh-ed25519 AAAAC3 me".into()],
                ip_configs: vec![v1::IpConfig {
                    nic: 0,
                    ipv4: "10.0.0.5/24".into(),
                    gateway4: "10.0.0.1".into(),
                    ..v1::IpConfig::default()
                }],
                nameservers: vec!["10.0.0.2".into()],
                search_domain: "example.com".into(),
                user_data: None,
            }),
            tags: Some(v1::TagList { tags: vec!["web".into()] }),
            start_on_boot: Some(true),
            description: None,
            boot_disk_bytes: Some(20 << 30),
        }),
    };
    assert_eq!(*request, Request::Clone(expected));
}

#[test]
fn a_placement_is_stored_before_the_call_with_host_attempt_and_tenant() {
    let decision = World::fresh().decide();
    let status = &decision.status;
    assert!(decision.finalizer);
    assert_eq!((status.host.as_deref(), status.attempt, status.tenant.as_deref()), (Some("pve1"), 1, Some("default")));
    assert_eq!(status.operation.as_ref().unwrap().request_id, format!("{}:clone:1", testing::UID));
}

#[test]
fn only_what_differs_is_configured() {
    let mut world = World::running();
    world.machine.metadata.generation = 2;
    world.machine.spec.memory = Some(Quantity(4 << 30));
    world.machine.spec.cores = Some(2);
    let Action::Call(request) = world.decide().action else { panic!("no call") };
    let Request::Configure(request) = *request else { panic!("{request:?}") };
    assert_eq!(request.vm, Some(v1::VmRef { vmid: 101, uuid: testing::UUID.into() }));
    assert_eq!(request.config, Some(v1::VmConfig { memory_mib: Some(4096), ..v1::VmConfig::default() }));
}

#[test]
fn a_vm_that_moved_takes_its_status_along() {
    let mut world = World::running();
    world.edit_vm(|vm| vm.node = "pve2".into());
    world.see_from(&["pve1", "pve2"]);
    let status = world.decide().status;
    assert_eq!((status.host.as_deref(), status.node.as_deref()), (Some("pve2"), Some("pve2")));
}

#[test]
fn the_second_decision_changes_nothing() {
    let mut world = World::running();
    world.machine.status = world.decide().status;
    let again = world.decide();
    assert_eq!(again.status, world.machine.status);
    assert_eq!(describe(&again.action), "wait");
}

#[test]
fn backoff_grows_to_its_bound_and_is_spread() {
    let failure = |count, retryable| Failure {
        action: ActionKind::Clone,
        volume: None,
        host: "pve1".into(),
        reason: "X".into(),
        message: "x".into(),
        retryable,
        count,
        time: Timestamp::UNIX_EPOCH,
        generation: 1,
    };
    let at = |count, retryable| attempt::backoff(&failure(count, retryable), testing::UID).as_secs_f64();
    assert!((0.375..=0.5).contains(&at(1, true)) && (0.75..=1.0).contains(&at(2, true)));
    assert!((45.0..=60.0).contains(&at(40, true)) && (225.0..=300.0).contains(&at(40, false)));
    let other = attempt::backoff(&failure(5, true), "other").as_secs_f64();
    assert!((other - at(5, true)).abs() > f64::EPSILON);
}

#[test]
fn a_vm_that_does_not_stay_up_is_started_ever_more_slowly() {
    let mut world = World::running();
    world.edit_vm(|vm| vm.state = RunState::Stopped);
    world.machine.spec.run_policy = RunPolicy::Always;
    let mut pauses = Vec::new();
    for attempt in 0..6 {
        let Action::Call(_) = world.decide().action else { panic!("attempt {attempt}: {:?}", world.decide().action) };
        let decision = world.decide();
        world.machine.status = decision.status;
        world.known = Knowledge::Ended(Ending::Succeeded { vmid: 101, uuid: testing::UUID.into() });
        world.machine.status = world.decide().status;
        let start = world.now;
        while let Action::Wait(Some(at)) = world.decide().action {
            world.machine.status = world.decide().status;
            assert!(at > world.now);
            world.now = at;
        }
        pauses.push(world.now.duration_since(start).as_secs_f64());
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(pauses[5] > 4.0, "{pauses:?}");
}
