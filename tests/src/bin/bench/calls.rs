//! Reads over mTLS on loopback, with 1,000 VMs on the host.

use std::time::{Duration, Instant};

use pve_sim::control::Request;
use pvelet_proto::v1;
use pvelet_tests::{Client, Stack};
use tokio::runtime::Runtime;

use crate::report::{Report, ms, quantile};

/// How many VMs a host has in these benchmarks.
pub(crate) const VMS: u32 = 1000;

/// A stack of one host with 1,000 stopped VMs, all of them seen by the agent.
pub(crate) fn full_host(runtime: &Runtime) -> (Stack, Client) {
    let stack = Stack::one();
    let client = stack.operator("pve1");
    stack.sim.control().call(&Request::SeedVms { node: "pve1".into(), first: 2000, count: VMS }).unwrap();
    runtime.block_on(async {
        let mut stream = client.agent.host().watch_host(v1::WatchHostRequest {}).await.unwrap().into_inner();
        let mut seen = std::collections::BTreeSet::new();
        tokio::time::timeout(Duration::from_secs(60), async {
            while seen.len() < VMS as usize {
                if let Some(v1::watch_host_response::Event::Vm(e)) = stream.message().await.unwrap().unwrap().event {
                    seen.insert(e.vm.unwrap().vmid);
                }
            }
        })
        .await
        .unwrap();
    });
    (stack, client)
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let (stack, client) = full_host(runtime);
    runtime.block_on(async {
        let mut get = Vec::new();
        for i in 0..2200_u32 {
            let begun = Instant::now();
            let vm = client.vm(2000 + i % VMS).await.unwrap();
            if i >= 200 {
                get.push(ms(begun.elapsed()));
            }
            assert_eq!(vm.vmid, 2000 + i % VMS);
        }
        report.at_most("GetVm, p50", quantile(&mut get, 0.5), "ms", 0.5);
        report.tell("GetVm, p99", quantile(&mut get, 0.99), "ms");
        let mut host = Vec::new();
        for _ in 0..500 {
            let begun = Instant::now();
            client.agent.get_host().await.unwrap();
            host.push(ms(begun.elapsed()));
        }
        report.at_most("GetHost, p50", quantile(&mut host, 0.5), "ms", 0.5);
        let mut list = Vec::new();
        for i in 0..220 {
            let begun = Instant::now();
            let vms = client.vms().await;
            if i >= 20 {
                list.push(ms(begun.elapsed()));
            }
            assert_eq!(vms.len(), VMS as usize);
        }
        report.at_most("ListVms of 1,000, p50", quantile(&mut list, 0.5), "ms", 5.0);
        report.tell("ListVms of 1,000, p99", quantile(&mut list, 0.99), "ms");
    });
    drop(stack);
}
