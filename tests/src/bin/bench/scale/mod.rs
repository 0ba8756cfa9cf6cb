//! The controller with 10 to 1,000 hosts and ten machines on each: real agents, many to a process, a real API server, the controller as a process.

mod chart;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use pvelet_tests::{
    Fleet, FleetOptions,
    fleet::{Host, site::FleetSite, site::written},
    process::{cpu_seconds, resident_mib, resident_peak_mib},
};
use tokio::runtime::Runtime;

use crate::report::{Report, ms, quantile};

/// Hosts, unless PVELET_SCALE says otherwise.
const SIZES: &str = "10,100,1000";
/// Machines for each host.
const MACHINES: usize = 10;
/// Hosts in a PVE cluster, where they do not stand alone.
const IN_CLUSTER: usize = 16;
/// One host of so many can be frozen.
const MORTAL: usize = 10;
/// What nothing here takes.
const LIMIT: Duration = Duration::from_secs(3600);
/// How long the controller is left alone; watches are begun anew each minute, and so is the look at each host's clock.
const REST: Duration = Duration::from_secs(120);
/// VMs stopped by hand in one round.
const STOPS: usize = 200;

/// What was measured with one number of hosts.
pub(crate) struct Outcome {
    hosts: usize,
    made: f64,
    made_cpu: f64,
    writes: f64,
    passes: f64,
    taken_over: f64,
    resident: f64,
    peak: f64,
    rest: f64,
    rest_writes: f64,
    again_writes: f64,
    repair: (f64, f64),
    dead: (f64, f64),
}

pub(crate) fn run(runtime: &Runtime, report: &mut Report) {
    let sizes = std::env::var("PVELET_SCALE").unwrap_or_else(|_| SIZES.to_owned());
    let mut all = Vec::new();
    let sizes: Vec<usize> = sizes.split(',').map(|n| n.trim().parse().expect("PVELET_SCALE: numbers of hosts, such as 10,100")).collect();
    for hosts in &sizes {
        let found = runtime.block_on(measure(*hosts, 1));
        tell(report, &found, "");
        all.push(found);
    }
    // Hosts of a cluster tell of each other's VMs too.
    let found = runtime.block_on(measure(sizes.iter().copied().max().unwrap_or(0), IN_CLUSTER));
    tell(report, &found, &format!(" in clusters of {IN_CLUSTER}"));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    fs::write(target.join("scale.svg"), chart::draw(&all)).unwrap();
    fs::write(target.join("scale.md"), table(&all)).unwrap();
}

async fn measure(hosts: usize, cluster: usize) -> Outcome {
    let (mortal, machines) = (hosts / MORTAL, hosts * MACHINES);
    let mut site = FleetSite::start(FleetOptions { hosts: hosts - mortal, mortal, cluster }).await;
    site.add_hosts().await;
    site.add_machines(machines).await;
    let step = |what: &str| eprintln!("bench: scale: {hosts} hosts: {what}");

    step("machines are made");
    let (before, begun) = (site.writes().await, Instant::now());
    site.start_controller();
    site.settled(machines, LIMIT).await;
    let made = begun.elapsed().as_secs_f64();
    let made_cpu = cpu_seconds(site.controller.pid());
    let writes = site.writes().await;
    let sum = |writes: &pvelet_tests::fleet::site::Writes| writes.values().sum::<u64>() as f64;
    let made_writes = written(&before, &writes);
    step(&format!("written: {made_writes:?}"));
    let passes = site.passes("PveMachine").await;

    step("at rest");
    site.quiet(LIMIT).await;
    let (before, cpu, begun) = (site.writes().await, cpu_seconds(site.controller.pid()), Instant::now());
    tokio::time::sleep(REST).await;
    let rest = (cpu_seconds(site.controller.pid()) - cpu) / begun.elapsed().as_secs_f64() * 100.0;
    let resting = written(&before, &site.writes().await);
    let (resident, peak) = (resident_mib(site.controller.pid()), resident_peak_mib(site.controller.pid()));

    step("everything is looked at again");
    let before = site.writes().await;
    site.look_again(LIMIT).await;
    let again = written(&before, &site.writes().await);
    step(&format!("written at rest: {resting:?}, when looked at again: {again:?}"));

    step("VMs are stopped by hand");
    let vms = vms(site.fleet.living());
    let round = STOPS.min(vms.len() / 3);
    let first = repairs(&site.fleet, &vms[..round]).await;
    step("the same with a tenth of the hosts dead");
    site.fleet.freeze();
    let dead = repairs(&site.fleet, &vms[round..round * 2]).await;
    site.fleet.thaw();
    step("the same once they are back");
    let last = repairs(&site.fleet, &vms[round * 2..round * 3]).await;
    let (mut well, mut dead) = ([first, last].concat(), dead);
    let repair = (quantile(&mut well, 0.5), quantile(&mut well, 0.99));
    let dead = (quantile(&mut dead, 0.5) / repair.0, quantile(&mut dead, 0.99) / repair.1);

    step("another controller takes over");
    assert!(site.controller.stop().success());
    let begun = Instant::now();
    site.start_controller();
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    site.passed((machines as f64, hosts as f64), LIMIT).await;
    let taken_over = begun.elapsed().as_secs_f64();

    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let each = machines as f64;
    Outcome {
        hosts,
        made,
        made_cpu,
        writes: sum(&made_writes) / each,
        passes: passes / each,
        taken_over,
        resident,
        peak,
        rest,
        rest_writes: sum(&resting) / REST.as_secs_f64() * 60.0,
        again_writes: sum(&again),
        repair,
        dead,
    }
}

/// The VMs of all hosts, such that neighbours are on different hosts.
fn vms(hosts: &[Host]) -> Vec<(usize, u32)> {
    let of: Vec<Vec<(u32, String)>> = hosts.iter().map(Host::vms).collect();
    let most = of.iter().map(Vec::len).max().unwrap_or(0);
    (0..most).flat_map(|n| of.iter().enumerate().filter_map(move |(host, vms)| Some((host, vms.get(n)?.0)))).collect()
}

/// How long each VM is away that somebody stops, in ms; two at a time, as a rack of hosts would be.
async fn repairs(fleet: &Fleet, vms: &[(usize, u32)]) -> Vec<f64> {
    let mut took = Vec::new();
    for pair in vms.chunks(2) {
        let one = |(host, vmid): (usize, u32)| async move {
            let host = &fleet.living()[host];
            let begun = Instant::now();
            host.stop_by_hand(vmid);
            host.until_running(vmid, LIMIT).await;
            ms(begun.elapsed())
        };
        took.extend(join_all(pair.iter().copied().map(one)).await);
    }
    took
}

fn tell(report: &mut Report, of: &Outcome, how: &str) {
    let name = |what: &str| format!("controller, {} hosts{how}, {} machines: {what}", of.hosts, of.hosts * MACHINES);
    report.tell(&name("cold start to all made and running"), of.made, "s");
    report.tell(&name("processor time of that"), of.made_cpu, "s");
    report.tell(&name("API writes of that, for each machine"), of.writes, "");
    report.tell(&name("passes of that, for each machine"), of.passes, "");
    report.tell(&name("another one takes over, to all looked at"), of.taken_over, "s");
    report.at_most(&name("resident"), of.resident, "MiB", 150.0);
    report.tell(&name("resident, at most"), of.peak, "MiB");
    report.at_most(&name("at rest: share of a core"), of.rest, "%", 2.0);
    report.at_most(&name("at rest: API writes"), of.rest_writes, "/min", 0.0);
    report.at_most(&name("all looked at again: API writes"), of.again_writes, "", 0.0);
    report.tell(&name("VM stopped by hand to running again, p50"), of.repair.0, "ms");
    report.at_most(&name("VM stopped by hand to running again, p99"), of.repair.1, "ms", 1000.0);
    report.at_most(&name("the same beside a tenth of dead hosts, over alone, p50"), of.dead.0, "", 1.2);
    report.tell(&name("the same, p99"), of.dead.1, "");
}

/// The growth as a table for people.
fn table(all: &[Outcome]) -> String {
    type Value = fn(&Outcome) -> String;
    let rows: [(&str, Value); 13] = [
        ("machines", |o| (o.hosts * MACHINES).to_string()),
        ("cold start to all made and running", |o| format!("{:.1} s", o.made)),
        ("processor time of that, for each machine", |o| format!("{:.1} ms", o.made_cpu * 1000.0 / (o.hosts * MACHINES) as f64)),
        ("API writes of that, for each machine", |o| format!("{:.2}", o.writes)),
        ("passes of that, for each machine", |o| format!("{:.1}", o.passes)),
        ("another controller takes over, to all looked at", |o| format!("{:.1} s", o.taken_over)),
        ("resident", |o| format!("{:.1} MiB", o.resident)),
        ("at rest: share of a core", |o| format!("{:.2} %", o.rest)),
        ("at rest: API writes per minute", |o| format!("{:.0}", o.rest_writes)),
        ("all looked at again: API writes", |o| format!("{:.0}", o.again_writes)),
        ("VM stopped by hand to running again, p50", |o| format!("{:.0} ms", o.repair.0)),
        ("VM stopped by hand to running again, p99", |o| format!("{:.0} ms", o.repair.1)),
        ("the same beside a tenth of dead hosts, over alone, p50", |o| format!("{:.2}", o.dead.0)),
    ];
    let mut text = String::from("| hosts |");
    all.iter().for_each(|o| text.push_str(&format!(" {} |", o.hosts)));
    text.push_str("\n|---|");
    all.iter().for_each(|_| text.push_str("---|"));
    for (name, value) in rows {
        text.push_str(&format!("\n| {name} |"));
        all.iter().for_each(|o| text.push_str(&format!(" {} |", value(o))));
    }
    text + "\n"
}
