//! What an agent costs that has nothing to do: 1,000 VMs, the cluster file system mounted.

use std::time::{Duration, Instant};

use pvelet_tests::process::{cpu_seconds, resident_mib};
use tokio::runtime::Runtime;

use crate::{calls::full_host, report::Report};

const WINDOW: Duration = Duration::from_secs(20);

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let (mut stack, client) = full_host(runtime);
    drop(client);
    let pid = stack.agent("pve1").process().pid();
    std::thread::sleep(Duration::from_secs(3));
    let (before, begun) = (cpu_seconds(pid), Instant::now());
    std::thread::sleep(WINDOW);
    let share = (cpu_seconds(pid) - before) / begun.elapsed().as_secs_f64() * 100.0;
    report.at_most("agent at idle, 1,000 VMs: share of a core", share, "%", 0.2);
    report.at_most("agent at idle, 1,000 VMs: resident", resident_mib(pid), "MiB", 20.0);
}
