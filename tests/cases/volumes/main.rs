//! Volumes through the whole stack: real agents as processes on a simulated PVE cluster, real images, over mTLS.
#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking")]

mod attaching;
mod bad_input;
mod bytes;
mod crash;
mod images;
mod loss;
mod model;
mod ownership;
mod shared;
mod truth;

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1;
use pvelet_tests::{Client, Stack, StackOptions, client::vm_ref};

/// One node with three stopped VMs, 101 to 103, each with a small boot disk.
fn one_node() -> Stack {
    nodes(vec!["pve1"])
}

/// Some nodes, with VMs 101 to 103 on the first, 201 to 203 on the second ...
fn nodes(nodes: Vec<&'static str>) -> Stack {
    Stack::seeded(StackOptions { nodes: nodes.clone(), lock_factor: 0.2, ..StackOptions::default() }, |control| {
        for (i, node) in (1..).zip(&nodes) {
            for n in 1..=3 {
                let seed = Seed { size_mib: 16, cloudinit: false, ..Seed::new(node, i * 100 + n, &format!("vm-{i}-{n}")) };
                control.call(&Request::SeedVm(seed)).unwrap();
            }
        }
    })
}

/// A VM that was seeded.
async fn seeded(client: &Client, vmid: u32) -> v1::VmRef {
    vm_ref(&client.vm(vmid).await.unwrap())
}

/// Slots of a VM that hold volumes, with the volumes' ids.
async fn slots(client: &Client, vmid: u32) -> Vec<(String, String)> {
    let vm = client.vm(vmid).await.unwrap();
    let mut slots: Vec<_> = vm.disks.into_iter().filter(|d| !d.volume_id.is_empty()).map(|d| (d.slot, d.volume_id)).collect();
    slots.sort();
    slots
}
