//! Machines that compete for room.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use super::*;
use crate::kind::{Host, Quantity};

/// A machine of which two fit on a host.
const HALF: &str = ", memory: 30Gi, cores: 1";

/// Waits until a right number of all machines is as wanted, and returns these.
async fn until_so_many(store: &FolderStore, right: impl Fn(usize) -> bool, wanted: impl Fn(&PveMachine) -> bool) -> Vec<Arc<PveMachine>> {
    let mut changes = store.watch();
    let mut last = Vec::new();
    let found = timeout(DEADLINE, async {
        loop {
            last = store.list::<Machine>().await.unwrap();
            let good: Vec<Arc<PveMachine>> = last.iter().filter(|m| wanted(m)).cloned().collect();
            if right(good.len()) {
                return good;
            }
            changes.recv().await.unwrap();
        }
    })
    .await;
    found.unwrap_or_else(|_| panic!("not as many as wanted: {last:#?}"))
}

async fn so_many(store: &FolderStore, count: usize, wanted: impl Fn(&PveMachine) -> bool) -> Vec<Arc<PveMachine>> {
    until_so_many(store, |found| found == count, wanted).await
}

#[tokio::test]
async fn no_more_machines_are_placed_than_fit_however_many_come_at_once() {
    let bench = Bench::new(&["pve1", "pve2", "pve3"]).await;
    for i in 0..24 {
        bench.add_machine(&format!("web-{i}"), HALF);
    }
    let running = bench.start().await;
    let placed = so_many(&running.store, 6, ready).await;
    so_many(&running.store, 18, because("NoHostFits")).await;
    let mut at = BTreeMap::<&str, usize>::new();
    placed.iter().for_each(|m| *at.entry(m.status.host.as_deref().unwrap()).or_default() += 1);
    assert_eq!(at, BTreeMap::from([("pve1", 2), ("pve2", 2), ("pve3", 2)]));
    assert_eq!(bench.cluster.machines().len(), 6);
}

#[tokio::test]
async fn what_a_spec_leaves_out_counts_as_the_template_has_it_also_before_the_vm_runs() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    for vmid in [9000, 9001] {
        bench.cluster.lock().vms.get_mut(&vmid).unwrap().memory_mib = 30 << 10;
    }
    for i in 0..12 {
        bench.add_machine(&format!("web-{i}"), ", runPolicy: Halted");
    }
    let running = bench.start().await;
    let placed = so_many(&running.store, 4, ready).await;
    so_many(&running.store, 8, because("NoHostFits")).await;
    let on = |host: &str| placed.iter().filter(|m| m.status.host.as_deref() == Some(host)).count();
    assert_eq!((on("pve1"), on("pve2")), (2, 2));
}

#[tokio::test]
async fn a_machine_that_is_paused_while_it_waits_lets_others_have_the_room() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    for name in ["a", "b"] {
        bench.add_machine(name, HALF);
        running.until::<Machine>(name, ready).await;
    }
    // As many as try at once, and one more.
    for i in 0..17 {
        bench.add_machine(&format!("web-{i}"), HALF);
        running.until::<Machine>(&format!("web-{i}"), because("NoHostFits")).await;
    }
    for i in 0..16 {
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: web-{i}, annotations: {{pvelet.dev/paused: 'true'}}}}\n\
             spec: {{source: {{tags: [golden]}}{HALF}}}\n"
        );
        bench.write(&format!("web-{i}.yaml"), &text);
        running.until::<Machine>(&format!("web-{i}"), because("Paused")).await;
    }
    fs::remove_file(bench.path().join("a.yaml")).unwrap();
    running.until::<Machine>("web-16", ready).await;
}

#[tokio::test]
async fn who_waits_for_room_gets_it_as_soon_as_somebody_leaves() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    for name in ["a", "b"] {
        bench.add_machine(name, HALF);
        running.until::<Machine>(name, ready).await;
    }
    for name in ["c", "d", "e"] {
        bench.add_machine(name, HALF);
        running.until::<Machine>(name, because("NoHostFits")).await;
    }
    // One that needs less is not behind them.
    bench.add_machine("small", ", memory: 1Gi, cores: 1");
    running.until::<Machine>("small", ready).await;
    for name in ["a", "b"] {
        fs::remove_file(bench.path().join(format!("{name}.yaml"))).unwrap();
        running.until_gone(name).await;
        so_many(&running.store, 3, ready).await;
    }
    so_many(&running.store, 1, because("NoHostFits")).await;
}

#[tokio::test]
async fn a_template_or_a_host_that_comes_is_what_machines_waited_for() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    let template = bench.cluster.lock().vms.remove(&9001).unwrap();
    fs::remove_file(bench.path().join("host-pve2.yaml")).unwrap();
    let running = bench.start().await;
    for i in 0..40 {
        bench.add_machine(&format!("web-{i}"), ", hostSelector: {zone: b}");
    }
    so_many(&running.store, 40, because("NoHostFits")).await;
    let address = bench.agents[1].address;
    let text = format!(
        "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata: {{name: pve2, labels: {{zone: b}}}}\n\
         spec: {{address: '{address}', cluster: lab, node: pve2, cpuOvercommit: 8}}\n"
    );
    bench.write("host-pve2.yaml", &text);
    let lacks = |m: &PveMachine| m.status.conditions.iter().any(|c| c.kind == "Ready" && c.message.contains("pve2: has no such template"));
    // Some try for all.
    until_so_many(&running.store, |found| found > 0, lacks).await;
    bench.cluster.lock().vms.insert(9001, template);
    bench.cluster.change(9001, v1::VmEventType::Created, |_| ());
    so_many(&running.store, 40, ready).await;
}

#[tokio::test]
async fn room_that_is_only_seen_by_a_look_after_an_operation_is_tried_for() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("a", "");
    let vmid = running.until::<Machine>("a", ready).await.status.vmid.unwrap();
    bench.cluster.change(vmid, v1::VmEventType::Changed, |vm| vm.memory_mib = 40 << 10);
    let given = |h: &Object<Host>| h.status.capacity.as_ref().and_then(|c| c.allocated_memory);
    running.until::<Host>("pve1", |h| given(h) == Some(Quantity(40 << 30))).await;
    bench.add_machine("b", HALF);
    running.until::<Machine>("b", because("NoHostFits")).await;
    // From now on the agent tells what it is asked.
    bench.cluster.mute.store(true, Ordering::Relaxed);
    bench.cluster.lock().vms.get_mut(&vmid).unwrap().memory_mib = 1 << 10;
    bench.add_machine("a", ", cores: 2");
    running.until::<Machine>("b", |m| m.status.host.is_some()).await;
}

#[tokio::test]
async fn a_template_that_goes_leaves_its_place_to_the_one_before_it() {
    let bench = Bench::new(&["pve1"]).await;
    let mut large = bench.cluster.lock().vms[&9000].clone();
    (large.vmid, large.uuid, large.memory_mib) = (9001, "99999999-0000-4000-8000-000000009999".into(), 100 << 10);
    bench.cluster.lock().vms.insert(9001, large);
    let running = bench.start().await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", because("NoHostFits")).await;
    bench.cluster.remove(9001);
    running.until::<Machine>("web-1", ready).await;
}
