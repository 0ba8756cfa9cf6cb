//! From a manifest dropped into the controller's folder to its VM running, over the sum of PVE's own tasks.

use std::time::{Duration, Instant};

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1;
use pvelet_tests::{
    Stack,
    status::{self, condition, count_true},
};
use tokio::runtime::Runtime;

use crate::{
    clones::task_ms,
    report::{Report, ms, quantile},
};

const ROUNDS: u32 = 15;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let stack = Stack::one();
    let seed = Seed { tags: "debian-13".into(), fill_mib: 16, size_mib: 256, ..Seed::new("pve1", 9000, "template") };
    stack.sim.control().call(&Request::SeedTemplate(seed)).unwrap();
    let client = stack.operator("pve1");
    let layout = stack.sim.node("pve1");
    let mut controller = stack.controller();
    controller.start();
    let limit = Duration::from_secs(60);
    status::wait_for(&controller.manifests, limit, |r| count_true(r, "pvehost.", "Ready") == 1).unwrap();
    let (mut over, mut whole) = (Vec::new(), Vec::new());
    for i in 0..ROUNDS {
        let name = format!("bench-{i}");
        let text = include_str!("../../../../docs/examples/web-1.yaml")
            .replace("web-1", &name)
            .replace("10.70.0.11/", &format!("10.70.0.{}/", 20 + i));
        let begun = Instant::now();
        controller.write(&format!("{name}.yaml"), &text);
        // The clock ends when the client's stream tells that the VM runs, not when the controller has written its status.
        let vm = runtime.block_on(started(&client, &name));
        let took = ms(begun.elapsed());
        status::wait_for(&controller.manifests, limit, |r| {
            r.get(&format!("pvemachine.{name}")).is_some_and(|m| condition(m, "Ready") == "True")
        })
        .unwrap();
        let request = v1::ListOperationsRequest { page_size: 1000, ..Default::default() };
        let ops = runtime.block_on(client.agent.operation().list_operations(request)).unwrap().into_inner().operations;
        let mine = ops.iter().filter(|o| o.target.as_ref().is_some_and(|t| t.vmid == vm));
        let pve: f64 = mine.flat_map(|o| &o.upids).map(|u| task_ms(&layout, u)).sum();
        if i >= 3 {
            over.push(took - pve);
            whole.push(took);
        }
        // Gone again, so that the host never fills up.
        controller.remove(&format!("{name}.yaml"));
        status::wait_for(&controller.manifests, limit, |r| !r.contains_key(&format!("pvemachine.{name}"))).unwrap();
    }
    report.tell("manifest dropped to VM running, p50", quantile(&mut whole, 0.5), "ms");
    report.at_most("manifest dropped to VM running, over PVE's tasks, p50", quantile(&mut over, 0.5), "ms", 50.0);
}

/// Waits until a VM of this name runs, and returns its VMID.
async fn started(client: &pvelet_tests::Client, name: &str) -> u32 {
    let mut stream = client.agent.host().watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    let seen = async {
        loop {
            if let Some(v1::watch_host_response::Event::Vm(e)) = stream.message().await.unwrap().unwrap().event
                && let Some(vm) = e.vm.filter(|v| v.name == name && v.state() == v1::VmState::Running)
            {
                return vm.vmid;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap()
}
