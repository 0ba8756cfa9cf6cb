//! A hundred agents and a thousand machines: counts and ratios. How long it takes is a matter of `make bench`.

use std::{collections::BTreeSet, time::Duration};

use pvelet_tests::{
    counts,
    fleet::{
        FleetOptions, Host, TEMPLATE,
        site::{FleetSite, Writes, written},
    },
    process::resident_peak_mib,
};

const HOSTS: usize = 100;
const MACHINES: usize = 1000;
/// What a loaded machine may take for all of it.
const LIMIT: Duration = Duration::from_secs(900);
/// How often everything is looked at again.
const LOOKS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_machines_on_a_hundred_hosts_are_made_once_each_and_then_nothing_is_written() {
    let mut site = FleetSite::start(FleetOptions { hosts: HOSTS, mortal: 0, cluster: 1 }).await;
    site.add_hosts().await;
    site.add_machines(MACHINES).await;
    let before = site.writes().await;
    site.start_controller();
    site.settled(MACHINES, LIMIT).await;

    let names: Vec<String> = site.fleet.hosts.iter().flat_map(Host::vms).map(|(_, name)| name).collect();
    assert_eq!((names.len(), names.iter().collect::<BTreeSet<_>>().len()), (MACHINES, MACHINES), "one VM for each machine");
    let clones = |host: &Host| host.pve.log().iter().filter(|call| call.starts_with(&format!("clone {TEMPLATE} "))).count();
    assert_eq!(site.fleet.hosts.iter().map(clones).sum::<usize>(), MACHINES, "no clone was tried twice");
    let most = site.fleet.hosts.iter().map(|host| host.vms().len()).max().unwrap();
    assert_eq!(most, MACHINES / HOSTS, "hosts that are alike get alike many");

    let made = written(&before, &site.writes().await);
    let (passes, writes) = (site.passes("PveMachine").await, made.get("pvemachines").copied().unwrap_or(0));
    let listed: Vec<String> = made.iter().map(|(resource, writes)| format!("{resource} {writes}")).collect();
    let made = listed.join(", ");
    counts::tell(&format!(
        "scale: {HOSTS} agents, {MACHINES} machines, {} VMs; written: {made}; {passes} passes over machines",
        names.len()
    ));
    assert!(writes <= 8 * MACHINES as u64, "{writes} writes for {MACHINES} machines");
    assert!(passes <= 25.0 * MACHINES as f64, "{passes} passes over {MACHINES} machines");

    // At rest nothing is written, however often it is looked at.
    site.quiet(LIMIT).await;
    let settled = site.writes().await;
    for _ in 0..LOOKS {
        assert_eq!(site.look_again(LIMIT).await, MACHINES);
    }
    assert_eq!(written(&settled, &site.writes().await), Writes::new(), "looked at again");
    // Nor by another controller that finds everything as it should be.
    assert!(site.controller.stop().success());
    site.start_controller();
    site.passed((MACHINES as f64, HOSTS as f64), LIMIT).await;
    site.settled(MACHINES, LIMIT).await;
    assert_eq!(written(&settled, &site.writes().await), Writes::new(), "looked at by another controller");
    counts::tell(&format!("scale: 0 writes while all machines were looked at {LOOKS} times, and by another controller"));

    // What was stopped by hand runs again.
    for host in &site.fleet.hosts[..10] {
        let (vmid, _) = host.vms()[0];
        host.stop_by_hand(vmid);
        host.until_running(vmid, LIMIT).await;
    }
    let resident = resident_peak_mib(site.controller.pid());
    counts::tell(&format!("scale: the controller had {resident:.0} MiB resident at most"));
    assert!(resident <= 150.0, "{resident} MiB");
    assert!(site.controller.stop().success());
}
