//! VMs whose machines' records were lost, and that are taken over.

use std::fs;

use super::{Bench, Running, because, ready};
use crate::kind::{Machine, PveMachine};

const DISK: &str = ", disks: [{name: data, size: 1Gi, storage: local}]";

/// Loses the records of these machines: all that the controller knew of them.
async fn lose(bench: &Bench, running: Running, names: &[&str]) -> Running {
    running.kill().await;
    for name in names {
        fs::remove_file(bench.path().join(format!("pvemachine.{name}.status.yaml"))).unwrap();
    }
    bench.start().await
}

fn told(machine: &PveMachine) -> String {
    machine.status.conditions.iter().find(|c| c.kind == "Ready").unwrap().message.clone()
}

fn adopt(bench: &Bench, name: &str, spec: &str, uuid: &str) {
    let text = format!(
        "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\n\
         metadata: {{name: {name}, annotations: {{pvelet.dev/adopt: {uuid}}}}}\nspec: {{source: {{tags: [golden]}}{spec}}}\n"
    );
    bench.write(&format!("{name}.yaml"), &text);
}

/// The UUID that the annotation is to have.
fn offered(machine: &PveMachine) -> String {
    told(machine).rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn namesakes_take_over_a_vm_each_and_none_is_offered_what_another_has() {
    const SPEC: &str = ", name: web";
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    let names = ["web-1", "web-2"];
    for name in names {
        bench.add_machine(name, SPEC);
        running.until::<Machine>(name, ready).await;
    }
    let running = lose(&bench, running, &names).await;
    let first = offered(&running.until::<Machine>("web-1", because("NameHasVm")).await);
    running.until::<Machine>("web-2", because("NameHasVm")).await;
    adopt(&bench, "web-1", SPEC, &first);
    running.until::<Machine>("web-1", |m| ready(m) && m.status.uuid.as_deref() == Some(&first)).await;
    let second = offered(&running.until::<Machine>("web-2", |m| because("NameHasVm")(m) && !told(m).contains(&first)).await);
    // Not even where somebody insists.
    adopt(&bench, "web-2", SPEC, &first);
    running.until::<Machine>("web-2", |m| m.metadata.annotations.contains_key("pvelet.dev/adopt") && offered(m) == second).await;
    adopt(&bench, "web-2", SPEC, &second);
    running.until::<Machine>("web-2", |m| ready(m) && m.status.uuid.as_deref() == Some(&second)).await;
    fs::remove_file(bench.path().join("web-1.yaml")).unwrap();
    running.until_gone("web-1").await;
    assert_eq!(bench.cluster.machines().len(), 1, "the other one's VM is still there");
}

#[tokio::test]
async fn a_vm_that_is_taken_over_comes_with_the_disks_that_were_made_for_it() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    bench.add_machine("db-1", DISK);
    let made = running.until::<Machine>("db-1", ready).await.status.disks[0].volume_id.clone();
    let running = lose(&bench, running, &["db-1"]).await;
    let offered = offered(&running.until::<Machine>("db-1", because("NameHasVm")).await);
    bench.cluster.lock().asked.clear();
    adopt(&bench, "db-1", DISK, &offered);
    let taken = running.until::<Machine>("db-1", |m| ready(m) && m.status.disks.iter().all(|d| d.created)).await;
    assert_eq!(taken.status.disks[0].volume_id, made);
    assert_eq!(bench.cluster.lock().volume_ids(), [made.as_str()]);
    assert!(bench.cluster.asked().iter().all(|(_, call)| *call != "CreateVolume"), "{:?}", bench.cluster.asked());
    // And goes with them.
    fs::remove_file(bench.path().join("db-1.yaml")).unwrap();
    running.until_gone("db-1").await;
    assert!(bench.cluster.lock().volume_ids().is_empty() && bench.cluster.machines().is_empty());
}
