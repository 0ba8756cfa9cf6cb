//! Volumes: what the agent adds to PVE's own task when one is attached, and what a hundred of them take over three hosts.

use std::time::Instant;

use pve_sim::control::{Request, Seed};
use pvelet_proto::v1;
use pvelet_tests::{
    Client, Stack,
    client::vm_ref,
    volumes::{MIB, volume_ref},
};
use tokio::runtime::Runtime;

use crate::{
    clones::task_ms,
    report::{Report, ms, quantile},
};

const ROUNDS: u32 = 40;
const NODES: [&str; 3] = ["pve1", "pve2", "pve3"];
/// As many at once on each host as its short lane takes.
const AT_ONCE: u32 = 4;
const VOLUMES: u32 = 100;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let stack = Stack::three();
    for (n, node) in (1..).zip(NODES) {
        for vm in 0..AT_ONCE {
            let seed = Seed { size_mib: 16, cloudinit: false, ..Seed::new(node, n * 100 + vm, &format!("vm-{n}-{vm}")) };
            stack.sim.control().call(&Request::SeedVm(seed)).unwrap();
        }
    }
    runtime.block_on(async {
        attach(&stack, report).await;
        hundred(&stack, report).await;
    });
}

async fn attach(stack: &Stack, report: &mut Report) {
    let (client, layout) = (stack.operator("pve1"), stack.sim.node("pve1"));
    let vm = vm_ref(&client.vm(100).await.unwrap());
    done(client.start("start", &vm).await);
    let id = client.made_volume("create", "local", MIB, "raw").await;
    let (mut over, mut whole) = (Vec::new(), Vec::new());
    for i in 0..ROUNDS {
        // As a controller names it: with its storage, so that no other is looked through.
        let volume = volume_ref(&id).map(|v| v1::VolumeRef { storage: "local".into(), ..v });
        let request = v1::AttachVolumeRequest { meta: client.meta(&format!("attach-{i}")), volume, vm: Some(vm.clone()), options: None };
        let begun = Instant::now();
        let op = done(client.agent.volume().attach_volume(request).await.map(|r| r.into_inner().operation.unwrap()));
        let took = ms(begun.elapsed());
        let pve: f64 = op.upids.iter().map(|u| task_ms(&layout, u)).sum();
        if i >= 5 {
            over.push(took - pve);
            whole.push(took);
        }
        done(client.detach_volume(&format!("detach-{i}"), &id, &vm).await);
    }
    done(client.delete_volume("delete", &id).await);
    report.tell("volume attached to a running VM through the agent, p50", quantile(&mut whole, 0.5), "ms");
    report.at_most("volume attached over PVE's own task time, p50", quantile(&mut over, 0.5), "ms", 10.0);
}

/// Each host has as many workers as its lane has places. The measure is the lane that has most to do: all of PVE's work in it, one after the
/// other.
async fn hundred(stack: &Stack, report: &mut Report) {
    let begun = Instant::now();
    let work = (0..VOLUMES).map(|n| n % (AT_ONCE * 3)).fold(vec![0_u32; (AT_ONCE * 3) as usize], |mut shares, worker| {
        shares[worker as usize] += 1;
        shares
    });
    let workers = (0_u32..).zip(work).map(|(worker, share)| {
        let (host, vm) = (worker / AT_ONCE, worker % AT_ONCE);
        let client = stack.operator(NODES[host as usize]);
        async move { (host, life(&client, (host + 1) * 100 + vm, share).await) }
    });
    let spent = futures_util::future::join_all(workers).await;
    let took = ms(begun.elapsed());
    let lanes = (0..3).map(|host| spent.iter().filter(|(h, _)| *h == host).map(|(_, ms)| ms).sum::<f64>());
    let longest = lanes.fold(0.0, f64::max);
    report.tell("100 volumes made, attached, detached, deleted over 3 hosts", took / 1000.0, "s");
    report.at_most("the same over the sum of PVE's work in the busiest lane", took / longest, "ratio", 1.1);
    report.tell("the same over that sum with all four places of the lane busy", took / longest * f64::from(AT_ONCE), "ratio");
}

/// Makes, attaches, detaches and deletes `share` volumes; the sum of PVE's time in milliseconds.
async fn life(client: &Client, vmid: u32, share: u32) -> f64 {
    let vm = vm_ref(&client.vm(vmid).await.unwrap());
    let mut spent = 0.0;
    #[allow(clippy::cast_precision_loss, reason = "milliseconds of a benchmark")]
    let mut add = |op: v1::Operation| spent += op.pve_task_ms as f64;
    for n in 0..share {
        let (id, step) = (pvelet_tests::volumes::new_id(), |what: &str| format!("{what}-{vmid}-{n}"));
        let request = v1::CreateVolumeRequest { format: "raw".into(), ..client.volume_request(&step("c"), &id, "local", MIB) };
        add(done(client.create_volume(request).await));
        add(done(client.attach_volume(&step("a"), &id, &vm).await));
        add(done(client.detach_volume(&step("d"), &id, &vm).await));
        add(done(client.delete_volume(&step("x"), &id).await));
    }
    spent
}

fn done(result: Result<v1::Operation, tonic::Status>) -> v1::Operation {
    let op = result.unwrap();
    assert_eq!(op.state(), v1::OperationState::Succeeded, "{op:?}");
    op
}
