//! From a change of a config to its event at the client: changes made on this node, and silent ones from another node.

use std::time::{Duration, Instant};

use pve_sim::control::Request;
use pvelet_proto::v1;
use pvelet_tests::{Client, Stack, StackOptions};
use tokio::runtime::Runtime;

use crate::report::{Report, ms, quantile};

const ROUNDS: u32 = 200;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let stack = Stack::start(StackOptions { nodes: vec!["pve1", "pve2"], ..StackOptions::default() });
    let control = stack.sim.control();
    control.call(&Request::SeedVms { node: "pve1".into(), first: 2000, count: 1000 }).unwrap();
    let client = stack.operator("pve1");
    let file = stack.sim.node("pve1").vm_config(2500);
    let original = std::fs::read_to_string(&file).unwrap();

    let own = runtime.block_on(rounds(&client, |i| {
        std::fs::write(&file, format!("{original}onboot: {}\n", i % 2)).unwrap();
    }));
    let other = runtime.block_on(rounds(&client, |i| {
        control.call(&Request::SetConfig { vmid: 2500, key: "onboot".into(), value: Some((i % 2).to_string()) }).unwrap();
    }));
    for (name, mut values) in [("made on this node", own), ("made on another node", other)] {
        report.tell(&format!("config change {name} to event at the client, p50"), quantile(&mut values, 0.5), "ms");
        report.at_most(&format!("config change {name} to event at the client, p99"), quantile(&mut values, 0.99), "ms", 250.0);
    }
}

/// Changes VM 2500 again and again; each time the next event about it ends the clock.
async fn rounds(client: &Client, change: impl Fn(u32)) -> Vec<f64> {
    let mut stream = client.agent.host().watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
    loop {
        if let Some(v1::watch_host_response::Event::Synced(_)) = stream.message().await.unwrap().unwrap().event {
            break;
        }
    }
    let mut values = Vec::new();
    for i in 0..ROUNDS {
        let want = i % 2 == 1;
        let begun = Instant::now();
        change(i);
        let seen = async {
            loop {
                if let Some(v1::watch_host_response::Event::Vm(e)) = stream.message().await.unwrap().unwrap().event
                    && e.vm.as_ref().is_some_and(|v| v.vmid == 2500 && v.start_on_boot == want)
                {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap();
        values.push(ms(begun.elapsed()));
    }
    values
}
