//! The controller with 10 to 1,000 hosts and ten machines on each: real agents, many to a process, a real API server, the controller as a process.

mod chart;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use pvelet_tests::{
    FleetOptions,
    fleet::{Host, site::FleetSite, site::written},
    process::{cpu_seconds, resident_mib, resident_own_mib, resident_peak_mib},
};
use tokio::runtime::Runtime;

use crate::report::{Report, ms, quantile};

/// Hosts, unless PVELET_SCALE says otherwise; of those after an x so many are in one PVE cluster, and tell of each other's VMs too.
const SIZES: &str = "10,100,1000,1000x16";
/// Machines for each host.
const MACHINES: usize = 10;
/// One host of so many can be frozen.
const MORTAL: usize = 10;
/// What nothing here takes.
const LIMIT: Duration = Duration::from_secs(3600);
/// How long the controller is left alone; watches are begun anew each minute, and so is the look at each host's clock.
const REST: Duration = Duration::from_secs(75);
/// VMs stopped by hand while all is well, before and after the hosts are dead, and how long that takes; twice as many while they are.
const STOPS: usize = 200;
const WELL: Duration = Duration::from_secs(20);
/// A host that stands still is noticed after twenty seconds. What comes before, what that brings about, and what comes after are all in it.
const DEAD: Duration = Duration::from_secs(45);
/// The slowest of a round whose lines of the controller's log are shown.
const SLOWEST: usize = 3;

/// What was measured with one number of hosts.
#[derive(Debug)]
pub(crate) struct Outcome {
    hosts: usize,
    made: f64,
    made_cpu: f64,
    writes: f64,
    passes: f64,
    taken_over: f64,
    resident: f64,
    own: f64,
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
    let number = |n: &str| n.trim().parse::<usize>().expect("PVELET_SCALE: numbers of hosts, such as 10,100,100x16");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    for size in sizes.split(',') {
        if let Some((hosts, cluster)) = size.split_once('x') {
            let found = runtime.block_on(measure(number(hosts), number(cluster)));
            tell(report, &found, &format!(" in clusters of {cluster}"));
            continue;
        }
        let found = runtime.block_on(measure(number(size), 1));
        tell(report, &found, "");
        all.push(found);
        all.sort_by_key(|o: &Outcome| o.hosts);
        // What comes after may take long.
        fs::write(target.join("scale.svg"), chart::draw(&all)).unwrap();
        fs::write(target.join("scale.md"), table(&all)).unwrap();
    }
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
    let (resident, own) = (resident_mib(site.controller.pid()), resident_own_mib(site.controller.pid()));
    let peak = resident_peak_mib(site.controller.pid());

    step("everything is looked at again");
    let before = site.writes().await;
    site.look_again(LIMIT).await;
    let again = written(&before, &site.writes().await);
    step(&format!("written at rest: {resting:?}, when looked at again: {again:?}"));

    step("VMs are stopped by hand");
    let vms = vms(site.fleet.living());
    let round = STOPS.min(vms.len() / 4);
    let first = repairs(&site, &vms[..round], WELL).await;
    step("the same with a tenth of the hosts dead");
    let before = site.writes().await;
    site.fleet.freeze();
    let dead = repairs(&site, &vms[round..round * 3], DEAD).await;
    step(&format!("written meanwhile: {:?}", written(&before, &site.writes().await)));
    site.reached(hosts - mortal, LIMIT).await;
    site.fleet.thaw();
    site.reached(hosts, LIMIT).await;
    site.quiet(LIMIT).await;
    step("the same once they are back");
    let last = repairs(&site, &vms[round * 3..round * 4], WELL).await;
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
        own,
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

/// How long each VM is away that somebody stops, in ms; two at a time, as a rack of hosts would be, spread over this time.
async fn repairs(site: &FleetSite, vms: &[(usize, u32)], over: Duration) -> Vec<f64> {
    let hosts = site.fleet.living();
    let mut took = Vec::new();
    let mut turns = tokio::time::interval(over * 2 / u32::try_from(vms.len().max(2)).expect("a few hundred"));
    for pair in vms.chunks(2) {
        turns.tick().await;
        let one = |(host, vmid): (usize, u32)| async move {
            let host = &hosts[host];
            let begun = Instant::now();
            host.stop_by_hand(vmid);
            host.until_running(vmid, LIMIT).await;
            (ms(begun.elapsed()), host, vmid)
        };
        took.extend(join_all(pair.iter().copied().map(one)).await);
    }
    took.sort_by(|a, b| a.0.total_cmp(&b.0));
    let log = site.controller.log();
    for (time, host, vmid) in took.iter().rev().take(SLOWEST) {
        let name = host.vms().into_iter().find(|(id, _)| id == vmid).map(|(_, name)| name).unwrap_or_default();
        eprintln!("bench: scale: slowest: {name} on {}: {time:.0} ms", host.name);
        log.lines().filter(|l| l.contains(&name)).rev().take(6).for_each(|line| eprintln!("  {line}"));
    }
    took.into_iter().map(|(time, ..)| time).collect()
}

fn tell(report: &mut Report, of: &Outcome, how: &str) {
    eprintln!("bench: scale{how}: {of:?}");
    let name = |what: &str| format!("controller, {} hosts{how}, {} machines: {what}", of.hosts, of.hosts * MACHINES);
    report.tell(&name("cold start to all made and running"), of.made, "s");
    report.tell(&name("processor time of that"), of.made_cpu, "s");
    report.tell(&name("API writes of that, for each machine"), of.writes, "");
    report.tell(&name("passes of that, for each machine"), of.passes, "");
    report.tell(&name("another one takes over, to all looked at"), of.taken_over, "s");
    report.at_most(&name("resident"), of.resident, "MiB", 150.0);
    report.tell(&name("resident, without program and libraries"), of.own, "MiB");
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
    let rows: [(&str, Value); 15] = [
        ("machines", |o| (o.hosts * MACHINES).to_string()),
        ("cold start to all made and running", |o| format!("{:.1} s", o.made)),
        ("processor time of that, for each machine", |o| format!("{:.1} ms", o.made_cpu * 1000.0 / (o.hosts * MACHINES) as f64)),
        ("API writes of that, for each machine", |o| format!("{:.2}", o.writes)),
        ("passes of that, for each machine", |o| format!("{:.1}", o.passes)),
        ("another controller takes over, to all looked at", |o| format!("{:.1} s", o.taken_over)),
        ("resident", |o| format!("{:.1} MiB", o.resident)),
        ("of it without program and libraries", |o| format!("{:.1} MiB", o.own)),
        ("at rest: share of a core", |o| format!("{:.2} %", o.rest)),
        ("at rest: API writes per minute", |o| format!("{:.0}", o.rest_writes)),
        ("all looked at again: API writes", |o| format!("{:.0}", o.again_writes)),
        ("VM stopped by hand to running again, p50", |o| format!("{:.0} ms", o.repair.0)),
        ("VM stopped by hand to running again, p99", |o| format!("{:.0} ms", o.repair.1)),
        ("the same beside a tenth of dead hosts, over alone, p50", |o| format!("{:.2}", o.dead.0)),
        ("the same, p99", |o| format!("{:.2}", o.dead.1)),
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
