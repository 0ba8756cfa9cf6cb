//! One row a scenario: how the world is, what is done, and what `Ready` says.

use std::sync::Arc;

use jiff::SignedDuration;

use super::{
    super::{Ending, Knowledge},
    world::{World, describe, ended_badly, succeeded},
};
use crate::{
    kind::{
        ABANDON, ADOPT, ActionKind, CloudInitSpec, ConditionStatus, DeletionPolicy, MACHINE_FINALIZER, PAUSED, Quantity, RecreatePolicy,
        RunPolicy, Success, set_condition,
    },
    reconcile::{Link, RunState, Sighting, VmView, testing},
};

type Row = (&'static str, World, &'static str, &'static str);

fn with(mut world: World, edit: impl FnOnce(&mut World)) -> World {
    edit(&mut world);
    world
}

fn away(world: &mut World, host: usize) {
    world.hosts[host].link = Link::Down { reason: "AgentUnreachable", message: "no route".into() };
}

fn annotate(world: &mut World, name: &str, value: &str) {
    world.machine.metadata.annotations.insert(name.into(), value.into());
}

fn just_did(world: &mut World, action: ActionKind) {
    world.machine.status.last_success = Some(Success { action, time: world.now });
}

fn active() -> Knowledge {
    Knowledge::Active { name: "operations/x".into() }
}

fn orphan() -> Sighting {
    let mut vm = testing::vm(RunState::Stopped);
    vm.owner.as_mut().unwrap().machine_uid = "22222222-2222-4222-8222-222222222222".into();
    Sighting { cluster: "lab".into(), seen_by: "pve1".into(), vm: Arc::new(vm) }
}

fn check(rows: Vec<Row>) {
    for (name, world, action, ready) in rows {
        let decision = world.decide();
        let reason = decision.status.conditions.iter().find(|c| c.kind == "Ready").map_or("", |c| c.reason.as_str());
        assert_eq!((describe(&decision.action).as_str(), reason), (action, ready), "{name}");
    }
}

#[test]
fn before_the_vm_is_made() {
    use World as W;
    check(vec![
        ("a new machine is placed and cloned", W::fresh(), "call clone 1", "Creating"),
        ("the host it names is used", with(W::fresh(), |w| w.machine.spec.host = Some("pve2".into())), "call clone 1", "Creating"),
        ("the host it names does not exist", with(W::fresh(), |w| w.machine.spec.host = Some("pve9".into())), "wait", "HostNotUsable"),
        ("no host at all", with(W::fresh(), |w| w.hosts.clear()), "wait", "NoHostFits"),
        ("no host has the template", with(W::fresh(), |w| w.templates = false), "wait", "NoHostFits"),
        ("one dead host delays nobody", with(W::fresh(), |w| away(w, 0)), "call clone 1", "Creating"),
        ("a paused machine is not made", with(W::fresh(), |w| annotate(w, PAUSED, "true")), "wait", "Paused"),
        ("one that is to be let go of is not made", with(W::fresh(), |w| annotate(w, ABANDON, "true")), "wait", "Abandoned"),
        ("a VM with its mark is adopted, not cloned again", with(W::fresh(), |w| w.add_vm("lab", "pve2", |_| ())), "again", ""),
        ("a VM with its mark seen by several agents is one VM", with(W::fresh(), |w| w.see_from(&["pve1", "pve2"])), "again", ""),
        (
            "two VMs with its mark are touched by nobody",
            with(W::fresh(), |w| {
                w.add_vm("lab", "pve1", |_| ());
                w.add_vm("lab", "pve2", |vm| vm.vmid = 102);
            }),
            "wait",
            "DuplicateVms",
        ),
        (
            "a copy of its VM in another PVE cluster is touched by nobody",
            with(W::fresh(), |w| {
                w.add_vm("lab", "pve1", |_| ());
                w.add_vm("lab2", "pve1", |_| ());
            }),
            "wait",
            "DuplicateVms",
        ),
        ("a VM of a former object with its name", with(W::fresh(), |w| w.orphan = Some(orphan())), "wait", "NameHasVm"),
        (
            "such a VM is taken over when the annotation names it",
            with(W::fresh(), |w| {
                w.orphan = Some(orphan());
                annotate(w, ADOPT, testing::UUID);
            }),
            "again",
            "",
        ),
        (
            "such a VM is not taken over when the annotation names another",
            with(W::fresh(), |w| {
                w.orphan = Some(orphan());
                annotate(w, ADOPT, "x");
            }),
            "wait",
            "NameHasVm",
        ),
        (
            "a lost status: every host is asked first",
            with(W::fresh(), |w| {
                w.machine.metadata.finalizers = vec![MACHINE_FINALIZER.into()];
                away(w, 1);
            }),
            "wait",
            "WaitingForHosts",
        ),
        (
            "a lost status, and no host has the VM",
            with(W::fresh(), |w| w.machine.metadata.finalizers = vec![MACHINE_FINALIZER.into()]),
            "call clone 1",
            "Creating",
        ),
        ("a failed clone waits before the next attempt", W::failed(true, SignedDuration::ZERO), "wait a while", "CloneFailedStorageFull"),
        ("and is tried again under the next number", W::failed(true, SignedDuration::from_secs(9)), "call clone 2", "Creating"),
        ("what somebody must mend waits longer", W::failed(false, SignedDuration::from_secs(3)), "wait a while", "CloneFailedStorageFull"),
        (
            "a changed spec is tried at once",
            with(W::failed(false, SignedDuration::ZERO), |w| w.machine.metadata.generation = 2),
            "call clone 2",
            "Creating",
        ),
    ]);
}

#[test]
fn while_an_attempt_is_under_way() {
    use ActionKind::{Clone, Configure, Delete, Shutdown, Start};
    use World as W;
    check(vec![
        ("after a crash the agent is asked before anything is sent", W::attempting(Clone, Knowledge::Unsure), "look up", ""),
        ("it has no such operation: sent under the same number", W::attempting(Clone, Knowledge::Absent), "call clone 7", ""),
        (
            "its agent lost its journal, but the VM with the mark is there: not sent again",
            with(W::attempting(Clone, Knowledge::Absent), |w| w.add_vm("lab", "pve2", |_| ())),
            "again",
            "",
        ),
        ("just stored: sent", W::attempting(Clone, Knowledge::Unsent), "call clone 7", ""),
        ("under way: waited for", W::attempting(Clone, active()), "wait", ""),
        ("cloned", W::attempting(Clone, succeeded()), "again", ""),
        ("clone failed", W::attempting(Clone, ended_badly("STORAGE_FULL", false)), "again", "CloneFailedStorageFull"),
        (
            "its host is away: waited for, not placed again",
            with(W::attempting(Clone, Knowledge::Unsure), |w| away(w, 0)),
            "wait",
            "AgentUnreachable",
        ),
        ("its PveHost is gone", with(W::attempting(Clone, Knowledge::Unsure), |w| drop(w.hosts.remove(0))), "wait", "HostNotFound"),
        (
            "its PveHost leads to another node now: not asked there",
            with(W::attempting(Clone, Knowledge::Unsure), |w| w.hosts[0].node = "pve7".into()),
            "wait",
            "HostNotFound",
        ),
        (
            "its host only observes now",
            with(W::attempting(Clone, Knowledge::Absent), |w| w.hosts[0].facts.as_mut().unwrap().manage = false),
            "wait",
            "ObserveOnly",
        ),
        (
            "without quorum it can still be looked up",
            with(W::attempting(Clone, Knowledge::Unsure), |w| w.hosts[0].facts.as_mut().unwrap().quorate = false),
            "look up",
            "",
        ),
        ("paused before it was sent", with(W::attempting(Clone, Knowledge::Absent), |w| annotate(w, PAUSED, "true")), "wait", "Paused"),
        ("paused: its end is still taken in", with(W::attempting(Clone, succeeded()), |w| annotate(w, PAUSED, "true")), "again", ""),
        (
            "deleted while its clone runs: cancelled",
            with(W::attempting(Clone, active()), |w| w.machine.metadata.deletion_timestamp = Some(w.now)),
            "cancel operations/x",
            "",
        ),
        (
            "deleted before its clone was sent: not sent",
            with(W::attempting(Clone, Knowledge::Absent), |w| w.machine.metadata.deletion_timestamp = Some(w.now)),
            "again",
            "",
        ),
        (
            "deleted and the answer is lost: asked, not sent",
            with(W::attempting(Clone, Knowledge::Unsure), |w| w.machine.metadata.deletion_timestamp = Some(w.now)),
            "look up",
            "",
        ),
        (
            "deleted with Retain while its clone runs: it may end",
            with(W::attempting(Clone, active()), |w| {
                w.machine.metadata.deletion_timestamp = Some(w.now);
                w.machine.spec.deletion_policy = DeletionPolicy::Retain;
            }),
            "wait",
            "",
        ),
        (
            "deleted while it starts: the start ends first",
            with(W::attempting(Start, active()), |w| w.machine.metadata.deletion_timestamp = Some(w.now)),
            "wait",
            "",
        ),
        (
            "the spec changed before a configure was sent: decided anew",
            with(W::attempting(Configure, Knowledge::Absent), |w| w.machine.metadata.generation = 2),
            "again",
            "",
        ),
        ("a configure that is not needed any more is not sent", W::attempting(Configure, Knowledge::Absent), "again", ""),
        ("started", W::attempting(Start, succeeded()), "again", ""),
        ("start failed", W::attempting(Start, ended_badly("VM_LOCKED", false)), "again", "StartFailedVmLocked"),
        ("shut down", W::attempting(Shutdown, succeeded()), "again", ""),
        (
            "a delete is sent again after a crash",
            with(W::attempting(Delete, Knowledge::Absent), |w| w.machine.metadata.deletion_timestamp = Some(w.now)),
            "call delete 7",
            "",
        ),
        (
            "the call was refused",
            W::attempting(
                Start,
                Knowledge::Refused(Ending::Failed { reason: "VM_LOCKED".into(), message: "b".into(), retryable: true, remains: false }),
            ),
            "again",
            "StartFailedVmLocked",
        ),
    ]);
}

#[test]
fn once_the_vm_was_made() {
    use ActionKind::{Clone, Configure, Start};
    use World as W;
    check(vec![
        ("as it should be", W::running(), "wait", "Running"),
        (
            "moved to another node",
            with(W::running(), |w| {
                w.edit_vm(|vm| vm.node = "pve2".into());
                w.see_from(&["pve1", "pve2"]);
            }),
            "wait",
            "Running",
        ),
        ("on a node without PveHost", with(W::running(), |w| w.edit_vm(|vm| vm.node = "pve9".into())), "wait", "HostNotFound"),
        (
            "its host is away, another node still sees it",
            with(W::running(), |w| {
                w.see_from(&["pve2"]);
                away(w, 0);
            }),
            "wait",
            "AgentUnreachable",
        ),
        (
            "nobody can be asked",
            with(W::running(), |w| {
                w.sightings.clear();
                away(w, 0);
                away(w, 1);
            }),
            "wait",
            "NotSeen",
        ),
        (
            "nobody has quorum",
            with(W::running(), |w| {
                w.sightings.clear();
                for h in &mut w.hosts {
                    h.facts.as_mut().unwrap().quorate = false;
                }
            }),
            "wait",
            "NotSeen",
        ),
        (
            "only another PVE cluster can be asked",
            with(W::running(), |w| {
                w.sightings.clear();
                for h in &mut w.hosts {
                    h.cluster = "lab2".into();
                }
            }),
            "wait",
            "NotSeen",
        ),
        ("proven gone: told, not made again", with(W::running(), |w| w.sightings.clear()), "wait", "VmGone"),
        (
            "gone right after its clone may be seen too early",
            with(W::running(), |w| {
                w.sightings.clear();
                just_did(w, Clone);
            }),
            "wait a while",
            "",
        ),
        (
            "proven gone with Recreate: begun anew",
            with(W::running(), |w| {
                w.sightings.clear();
                w.machine.spec.recreate_policy = RecreatePolicy::Recreate;
            }),
            "again",
            "Recreating",
        ),
        (
            "not proven gone with Recreate: not made again",
            with(W::running(), |w| {
                w.sightings.clear();
                away(w, 0);
                away(w, 1);
                w.machine.spec.recreate_policy = RecreatePolicy::Recreate;
            }),
            "wait",
            "NotSeen",
        ),
        (
            "its VMID belongs to another VM: not touched",
            with(W::running(), |w| {
                w.edit_vm(|vm| {
                    vm.uuid = "other".into();
                    vm.owner = None;
                });
            }),
            "wait",
            "VmGone",
        ),
        ("restored under another VMID: followed by its UUID", with(W::running(), |w| w.edit_vm(|vm| vm.vmid = 555)), "wait", "Running"),
        ("a copy with the same UUID", with(W::running(), |w| w.add_vm("lab", "pve2", |vm| vm.vmid = 102)), "wait", "AmbiguousUuid"),
        ("the agent says the UUID is ambiguous", with(W::running(), |w| w.edit_vm(|vm| vm.ambiguous_uuid = true)), "wait", "AmbiguousUuid"),
        ("locked by a backup", with(W::stopped(), |w| w.edit_vm(|vm| vm.lock = "backup".into())), "wait", "VmLocked"),
        ("observe mode", with(W::stopped(), |w| w.hosts[0].facts.as_mut().unwrap().manage = false), "wait", "ObserveOnly"),
        (
            "more memory wanted",
            with(W::running(), |w| {
                w.machine.spec.memory = Some(Quantity(4 << 30));
                w.machine.metadata.generation = 2;
            }),
            "call configure 4",
            "",
        ),
        ("somebody changed the memory", with(W::running(), |w| w.machine.spec.memory = Some(Quantity(4 << 30))), "call configure 4", ""),
        (
            "what a configure set is not seen yet",
            with(W::running(), |w| {
                w.machine.spec.memory = Some(Quantity(4 << 30));
                w.machine.status.verified_generation = 0;
                just_did(w, Configure);
            }),
            "wait a while",
            "Running",
        ),
        (
            "what was set does not show: not set for ever",
            with(W::running(), |w| {
                w.machine.spec.memory = Some(Quantity(4 << 30));
                w.machine.status.verified_generation = 0;
            }),
            "wait",
            "NotInEffect",
        ),
        (
            "it changed since: set again",
            with(W::running(), |w| {
                w.machine.spec.memory = Some(Quantity(4 << 30));
                w.machine.status.configured_digest = Some("d0".into());
            }),
            "call configure 4",
            "",
        ),
        (
            "a disk cannot shrink",
            with(W::running(), |w| {
                w.machine.spec.boot_disk = Some(Quantity(1 << 30));
                w.edit_vm(|vm| vm.boot_disk_bytes = 2 << 30);
            }),
            "wait",
            "DiskShrink",
        ),
        (
            "changed by somebody while HA has it: left alone",
            with(W::running(), |w| {
                w.machine.spec.cores = Some(8);
                w.edit_vm(|vm| vm.ha_managed = true);
            }),
            "wait",
            "HaManaged",
        ),
        (
            "a new NIC",
            with(W::running(), |w| {
                w.machine.spec.nics = Some(vec![]);
                w.edit_vm(|vm| vm.nics = vec![pvelet_proto::v1::Nic::default()]);
            }),
            "call configure 4",
            "",
        ),
        ("started just now, not seen yet", with(W::stopped(), |w| just_did(w, Start)), "wait a while", ""),
    ]);
}

#[test]
fn each_run_policy_in_each_state() {
    use World as W;
    let policy = |world: World, policy: RunPolicy| with(world, |w| w.machine.spec.run_policy = policy);
    let ordered = |world: World| with(world, |w| w.stop_order = Some(("operations/s".into(), w.now)));
    let ha = |world: World| with(world, |w| w.edit_vm(|vm| vm.ha_managed = true));
    let leaving = |world: World| with(world, |w| w.hosts[0].facts.as_mut().unwrap().shutting_down = true);
    check(vec![
        ("Always, stopped", policy(W::stopped(), RunPolicy::Always), "call start 4", "Starting"),
        ("Always, stopped by order", ordered(policy(W::stopped(), RunPolicy::Always)), "call start 4", "Starting"),
        ("RerunOnFailure, stopped", W::stopped(), "call start 4", "Starting"),
        ("RerunOnFailure, stopped by order", ordered(W::stopped()), "wait", "StoppedByOrder"),
        (
            "RerunOnFailure, stopped by an order before its last start",
            with(W::stopped(), |w| w.stop_order = Some(("operations/s".into(), w.now - SignedDuration::from_hours(2)))),
            "call start 4",
            "Starting",
        ),
        ("Manual, stopped", policy(W::stopped(), RunPolicy::Manual), "wait", "Stopped"),
        ("Manual, running", policy(W::running(), RunPolicy::Manual), "wait", "Running"),
        ("Halted, running", policy(W::running(), RunPolicy::Halted), "call shutdown 4", "Stopping"),
        ("Halted, stopped", policy(W::stopped(), RunPolicy::Halted), "wait", "Stopped"),
        ("paused by somebody", with(W::running(), |w| w.edit_vm(|vm| vm.state = RunState::Paused)), "wait", "VmPaused"),
        ("not told", with(W::running(), |w| w.edit_vm(|vm| vm.state = RunState::Unknown)), "wait", "RunStateUnknown"),
        ("HA-managed, stopped", ha(W::stopped()), "wait", "HaManaged"),
        ("HA-managed, running, Halted", ha(policy(W::running(), RunPolicy::Halted)), "wait", "HaManaged"),
        ("HA-managed, running", ha(W::running()), "wait", "Running"),
        ("its host shuts down", leaving(W::stopped()), "wait", "HostShuttingDown"),
        ("its host is in maintenance", with(W::stopped(), |w| w.hosts[0].maintenance = true), "wait", "HostInMaintenance"),
        (
            "HA put its host into maintenance",
            with(W::stopped(), |w| w.hosts[0].facts.as_mut().unwrap().maintenance = true),
            "wait",
            "HostInMaintenance",
        ),
        ("paused machine, stopped", with(W::stopped(), |w| annotate(w, PAUSED, "true")), "wait", "Paused"),
    ]);
}

#[test]
fn when_the_object_goes() {
    use World as W;
    let never_made = |w: &mut World| {
        w.machine.status.created = false;
        w.machine.status.uuid = None;
        w.sightings.clear();
    };
    check(vec![
        ("its VM is removed", W::deleting(), "call delete 4", "Deleting"),
        ("Retain leaves the VM", with(W::deleting(), |w| w.machine.spec.deletion_policy = DeletionPolicy::Retain), "release", ""),
        ("never made", with(W::deleting(), never_made), "release", ""),
        (
            "made after all though the answer was lost",
            with(W::deleting(), |w| {
                never_made(w);
                w.add_vm("lab", "pve1", |_| ());
            }),
            "again",
            "",
        ),
        (
            "removed, but still seen for a moment",
            with(W::deleting(), |w| {
                w.machine.status.created = false;
                just_did(w, ActionKind::Delete);
            }),
            "release",
            "",
        ),
        ("gone already", with(W::deleting(), |w| w.sightings.clear()), "release", ""),
        (
            "its host is away",
            with(W::deleting(), |w| {
                w.see_from(&["pve2"]);
                away(w, 0);
            }),
            "wait",
            "AgentUnreachable",
        ),
        (
            "nobody can be asked",
            with(W::deleting(), |w| {
                w.sightings.clear();
                away(w, 0);
                away(w, 1);
            }),
            "wait",
            "NotSeen",
        ),
        (
            "let go of",
            with(W::deleting(), |w| {
                w.sightings.clear();
                away(w, 0);
                away(w, 1);
                annotate(w, ABANDON, "true");
            }),
            "release",
            "",
        ),
        ("locked by a backup", with(W::deleting(), |w| w.edit_vm(|vm| vm.lock = "backup".into())), "wait", "VmLocked"),
        ("a copy has its UUID", with(W::deleting(), |w| w.add_vm("lab", "pve2", |vm| vm.vmid = 102)), "wait", "AmbiguousUuid"),
        ("paused", with(W::deleting(), |w| annotate(w, PAUSED, "true")), "wait", "Paused"),
        (
            "its VMID belongs to another VM now",
            with(W::deleting(), |w| w.edit_vm(|vm: &mut VmView| vm.uuid = "other".into())),
            "release",
            "",
        ),
    ]);
}

#[test]
fn the_first_stop_after_a_start_is_repaired_at_once_and_the_next_ones_ever_later() {
    let stopped_after_start = |ran: bool, quick_stops: u32| {
        with(World::stopped(), |w| {
            let status = &mut w.machine.status;
            let start = w.now - SignedDuration::from_millis(300);
            status.last_success = Some(Success { action: ActionKind::Start, time: start });
            status.quick_stops = quick_stops;
            if ran {
                set_condition(&mut status.conditions, "Running", ConditionStatus::True, "Running", "", 1, start);
            }
        })
    };
    check(vec![
        ("seen to run since", stopped_after_start(true, 0), "call start 4", "Starting"),
        ("not seen to run since: what is seen may be old", stopped_after_start(false, 0), "wait a while", ""),
        ("for the second time", stopped_after_start(true, 1), "wait a while", "NotStayingUp"),
    ]);
}

#[test]
fn cloud_init_that_was_edited_while_the_vm_was_made_is_set_afterwards() {
    let mut world = World::attempting(ActionKind::Clone, succeeded());
    world.machine.spec.cloud_init =
        Some(Box::new(CloudInitSpec { ssh_keys: vec!["ssh-ed25519 AAAAnew".into()], ..CloudInitSpec::default() }));
    assert!(world.decide().status.cloud_init_hash.is_some());
    world.machine.metadata.generation = 2;
    assert_eq!(world.decide().status.cloud_init_hash, None);
}
