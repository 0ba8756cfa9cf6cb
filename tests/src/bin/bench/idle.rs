//! What an agent costs that has nothing to do: 1,000 VMs, the cluster file system mounted.

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::unistd::{SysconfVar, sysconf};
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

/// CPU time of a process so far: what the scheduler counted, to the nanosecond, over all its threads.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let mut sum = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
            sum += text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9;
        }
    }
    if sum > 0.0 {
        return sum;
    }
    // A kernel without schedstat: clock ticks.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    #[allow(clippy::cast_precision_loss, reason = "100")]
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap() as f64;
    ticks / per_second
}

/// Resident memory of a process.
fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}
