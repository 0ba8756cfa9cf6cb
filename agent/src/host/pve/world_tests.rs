#![allow(clippy::unwrap_used)]

use super::*;

fn world() -> World {
    let world = World::new("a");
    world.set_members(&Members { node: "a".into(), cluster: Some(("lab".into(), true)), nodes: vec![] }, true);
    world
}

fn list(entries: &[(u32, &str, u64)]) -> VmList {
    let ids =
        entries.iter().map(|(id, node, version)| (*id, VmEntry { node: (*node).into(), kind: "qemu".into(), version: *version })).collect();
    VmList { version: 1, ids }
}

/// Applies a list; every config that must be read has the text that `texts` gives, or "cores: 1".
fn apply(world: &World, entries: &[(u32, &str, u64)], texts: &[(u32, &str)]) {
    let list = list(entries);
    let text = |vmid| texts.iter().find(|(id, _)| *id == vmid).map_or("cores: 1\n", |(_, t)| t);
    let read = world.outdated(&list, false).into_iter().map(|(id, e)| (id, e, ConfigFile::parse(text(id)))).collect();
    world.set_vms(&list, read);
}

fn told(changes: &mut broadcast::Receiver<Change>) -> Vec<String> {
    let mut all = Vec::new();
    while let Ok(change) = changes.try_recv() {
        all.push(match change {
            Change::VmCreated(vm) => format!("created {}", vm.vmid),
            Change::VmChanged(vm) => format!("changed {}", vm.vmid),
            Change::VmStarted(vm) => format!("started {}", vm.vmid),
            Change::VmStopped(vm) => format!("stopped {}", vm.vmid),
            Change::VmMoved { vm, from } => format!("moved {} {from} {}", vm.vmid, vm.node),
            Change::VmRemoved(vm) => format!("removed {}", vm.vmid),
            Change::Cluster => "cluster".into(),
        });
    }
    all
}

fn running() -> RunState {
    RunState::Running { pid: 7, since: SystemTime::UNIX_EPOCH }
}

#[test]
fn the_first_list_makes_no_events_for_its_vms() {
    let world = world();
    let mut changes = world.changes();
    apply(&world, &[(100, "a", 1), (101, "b", 1)], &[]);
    assert_eq!(told(&mut changes), ["cluster"]);
    let inventory = world.inventory();
    assert!(inventory.complete && inventory.quorate);
    assert_eq!((&inventory.vms[&100].run, &inventory.vms[&101].run), (&RunState::Stopped, &RunState::Unknown));
}

#[test]
fn each_difference_is_told_once() {
    let world = world();
    apply(&world, &[(100, "a", 1), (101, "a", 1), (102, "a", 1)], &[]);
    let mut changes = world.changes();
    apply(&world, &[(100, "a", 2), (101, "b", 1), (103, "a", 1)], &[(100, "cores: 2\n")]);
    let mut events = told(&mut changes);
    events.sort();
    assert_eq!(events, ["changed 100", "created 103", "moved 101 a b", "removed 102"]);
    assert_eq!(world.inventory().vmids.keys().copied().collect::<Vec<_>>(), [100, 101, 103]);
    apply(&world, &[(100, "a", 2), (101, "b", 1), (103, "a", 1)], &[]);
    assert!(told(&mut changes).is_empty());
}

#[test]
fn counters_that_began_again_are_no_change() {
    let world = world();
    apply(&world, &[(100, "a", 50)], &[]);
    let mut changes = world.changes();
    let list = list(&[(100, "a", 1)]);
    let read = world.outdated(&list, true).into_iter().map(|(id, e)| (id, e, ConfigFile::parse("cores: 1\n"))).collect();
    world.set_vms(&list, read);
    assert!(told(&mut changes).is_empty());
    assert_eq!(world.inventory().vms[&100].version, 1);
}

#[test]
fn without_quorum_nothing_is_gone() {
    let world = world();
    apply(&world, &[(100, "a", 1)], &[]);
    let members = |quorate| Members { node: "a".into(), cluster: Some(("lab".into(), quorate)), nodes: vec![] };
    world.set_members(&members(false), true);
    let mut changes = world.changes();
    apply(&world, &[], &[]);
    assert!(told(&mut changes).is_empty());
    assert!(world.inventory().vms.contains_key(&100) && world.inventory().vmids.contains_key(&100));
    world.set_members(&members(true), true);
    apply(&world, &[], &[]);
    assert_eq!(told(&mut changes), ["cluster", "removed 100"]);
}

#[test]
fn a_config_that_could_not_be_read_keeps_its_state() {
    let world = world();
    apply(&world, &[(100, "a", 1)], &[]);
    world.set_vms(&list(&[(100, "a", 2)]), vec![]);
    assert_eq!(world.inventory().vms[&100].version, 1);
    assert_eq!(world.outdated(&list(&[(100, "a", 2)]), false).len(), 1, "and is read again");
}

#[test]
fn a_process_is_told_whether_it_comes_before_or_after_the_config() {
    let world = world();
    apply(&world, &[(100, "a", 1)], &[]);
    let mut changes = world.changes();
    world.set_run(100, running());
    world.set_run(100, running());
    world.set_run(100, RunState::Paused { pid: 7, since: SystemTime::UNIX_EPOCH });
    world.set_run(100, RunState::Stopped);
    assert_eq!(told(&mut changes), ["started 100", "changed 100", "stopped 100"]);
    world.set_run(101, running());
    assert!(told(&mut changes).is_empty());
    apply(&world, &[(100, "a", 1), (101, "a", 1)], &[]);
    assert_eq!(told(&mut changes), ["created 101", "started 101"]);
}

#[test]
fn a_vm_that_moves_here_alive_is_told_as_started() {
    let world = world();
    apply(&world, &[(100, "b", 1)], &[]);
    let mut changes = world.changes();
    world.set_run(100, running());
    assert!(told(&mut changes).is_empty(), "still the other node's");
    apply(&world, &[(100, "a", 1)], &[]);
    assert_eq!(told(&mut changes), ["moved 100 b a", "started 100"]);
    apply(&world, &[(100, "b", 2)], &[]);
    assert_eq!(told(&mut changes), ["moved 100 a b"]);
    assert_eq!(world.inventory().vms[&100].run, RunState::Unknown);
}

#[test]
fn ha_replication_and_pools_are_part_of_a_vm() {
    let world = world();
    apply(&world, &[(100, "a", 1), (101, "a", 1)], &[]);
    let mut changes = world.changes();
    let extras = Extras {
        ha: BTreeMap::from([(100, "started".to_owned())]),
        replicated: BTreeSet::from([101, 999]),
        pool_of: BTreeMap::from([(100, "p".to_owned())]),
    };
    world.set_extras(extras.clone(), vec!["p".into()]);
    assert_eq!(told(&mut changes), ["cluster", "changed 100", "changed 101"]);
    world.set_extras(extras, vec!["p".into()]);
    assert!(told(&mut changes).is_empty());
    let inventory = world.inventory();
    assert_eq!(inventory.vms[&100].ha, Some(HaState { requested: "started".into() }));
    assert!(inventory.vms[&101].replicated && inventory.vms[&100].pool.as_deref() == Some("p"));
}

#[test]
fn a_node_that_has_not_reached_its_cluster_may_not_write() {
    for (clustered, quorate) in [(true, false), (false, true)] {
        let world = World::new("a");
        world.set_members(&Members { node: "a".into(), cluster: None, nodes: vec![] }, clustered);
        assert_eq!(world.inventory().quorate, quorate);
    }
}

#[test]
fn a_hung_file_system_is_told_at_begin_and_end() {
    let world = world();
    let mut changes = world.changes();
    world.set_hung(Some("x".into()));
    world.set_hung(Some("y".into()));
    assert!(world.inventory().hung_since.is_some());
    world.set_hung(None);
    assert_eq!((told(&mut changes).len(), world.hung(), world.inventory().hung_since), (2, None, None));
}

#[test]
fn a_vm_whose_uuid_another_gets_or_gives_up_has_changed() {
    let world = world();
    let text = "smbios1: uuid=6f3c1c7e-6a0b-4a86-9c9d-0d9b4d7a5a11\n";
    apply(&world, &[(100, "a", 1), (101, "a", 1)], &[(100, text)]);
    let mut changes = world.changes();
    apply(&world, &[(100, "a", 1), (101, "a", 1), (102, "b", 1)], &[(102, text)]);
    assert_eq!(told(&mut changes), ["created 102", "changed 100"]);
    // A third one changes nothing for the others.
    apply(&world, &[(100, "a", 1), (101, "a", 2), (102, "b", 1)], &[(101, text)]);
    assert_eq!(told(&mut changes), ["changed 101"]);
    apply(&world, &[(100, "a", 1), (101, "a", 3), (102, "b", 1)], &[]);
    assert_eq!(told(&mut changes), ["changed 101"]);
    apply(&world, &[(100, "a", 1), (101, "a", 3)], &[]);
    assert_eq!(told(&mut changes), ["removed 102", "changed 100"]);
}

#[test]
fn a_vm_in_destruction_is_still_known_by_what_it_was() {
    let world = world();
    let text = "#mine\nname: x\nsmbios1: uuid=6f3c1c7e-6a0b-4a86-9c9d-0d9b4d7a5a11\n";
    apply(&world, &[(100, "a", 1)], &[(100, text)]);
    let mut changes = world.changes();
    apply(&world, &[(100, "a", 2)], &[(100, "lock: destroyed\n")]);
    let vm = world.inventory().vms[&100].clone();
    assert_eq!((vm.config.lock(), vm.config.get("name"), vm.config.description.as_str()), (Some("destroyed"), Some("x"), "mine"));
    assert!(vm.config.uuid().is_some());
    apply(&world, &[], &[]);
    assert!(matches!(changes.try_recv(), Ok(Change::VmChanged(_))));
    assert!(matches!(changes.try_recv(), Ok(Change::VmRemoved(vm)) if vm.config.uuid().is_some() && vm.config.description == "mine"));
}
