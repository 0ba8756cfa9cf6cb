//! Clones: what the agent adds to PVE's own task, and whether a quick one waits behind a slow one.

use std::{fs, time::Instant};

use pve_sim::{
    control::{Request, Seed},
    layout::NodeLayout,
};
use pvelet_proto::v1;
use pvelet_tests::{Client, Stack, client::vm_ref};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::report::{Report, ms, quantile};

const ROUNDS: u32 = 40;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let stack = Stack::one();
    let control = stack.sim.control();
    control.call(&Request::SeedTemplate(Seed { fill_mib: 64, size_mib: 256, ..Seed::new("pve1", 9000, "template") })).unwrap();
    let client = stack.operator("pve1");
    let layout = stack.sim.node("pve1");
    runtime.block_on(async {
        overhead(&client, &layout, report).await;

        let mut alone = Vec::new();
        for i in 0..10 {
            alone.push(linked(&client, &format!("alone-{i}")).await);
        }
        control.call(&Request::Faults { node: "pve1".into(), change: json!({"storages": {"local": {"rate_kib": 4096}}}) }).unwrap();
        let mut full = client.clone_request("slow", 9000, "slow");
        full.mode = v1::CloneMode::Full.into();
        full.meta.as_mut().unwrap().wait = None;
        let slow = client.clone_vm(full).await.unwrap();
        let mut beside = Vec::new();
        for i in 0..10 {
            beside.push(linked(&client, &format!("beside-{i}")).await);
        }
        let request = v1::GetOperationRequest { name: slow.name };
        let still = client.agent.operation().get_operation(request).await.unwrap().into_inner().operation.unwrap();
        assert!(still.end_time.is_none(), "the throttled full clone ended too early to prove anything");
        let ratio = quantile(&mut beside, 0.5) / quantile(&mut alone, 0.5);
        report.at_most("linked clone beside a throttled full clone, over alone, p50", ratio, "ratio", 1.5);
    });
}

async fn linked(client: &Client, name: &str) -> f64 {
    let begun = Instant::now();
    client.cloned(name, 9000, name).await;
    ms(begun.elapsed())
}

/// PVE's own time for a task: from the making of its log to the last line. Taken from the files, not from the agent.
pub(crate) fn task_ms(layout: &NodeLayout, upid: &str) -> f64 {
    let start = upid.split(':').nth(4).unwrap();
    let meta = fs::metadata(layout.tasks().join(&start[start.len() - 1..]).join(upid)).unwrap();
    ms(meta.modified().unwrap().duration_since(meta.created().unwrap()).unwrap_or_default())
}

async fn overhead(client: &Client, layout: &NodeLayout, report: &mut Report) {
    let (mut over, mut whole) = (Vec::new(), Vec::new());
    for i in 0..ROUNDS {
        let name = format!("over-{i}");
        let begun = Instant::now();
        let op = client.clone_vm(client.clone_request(&name, 9000, &name)).await.unwrap();
        let took = ms(begun.elapsed());
        assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
        let pve: f64 = op.upids.iter().map(|u| task_ms(layout, u)).sum();
        if i >= 5 {
            over.push(took - pve);
            whole.push(took);
        }
        let vm = client.vm(op.target.unwrap().vmid).await.unwrap();
        client.delete(&format!("del-{i}"), &vm_ref(&vm)).await.unwrap();
    }
    report.tell("linked clone through the agent, p50", quantile(&mut whole, 0.5), "ms");
    report.at_most("linked clone over PVE's own task time, p50", quantile(&mut over, 0.5), "ms", 10.0);
}
