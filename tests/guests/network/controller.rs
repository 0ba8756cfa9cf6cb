//! A `PveNetwork` on three hosts: one after the other, each confirmed and probed, and no further than the first that fails.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use pvelet_tests::{
    Controller,
    guest::Shell,
    status::{self, condition, records, wait_for},
};

use crate::{
    host::{Lab, Peer, name},
    kinds::ping,
    report::{End, Report, Row},
};

/// The case's name.
pub const NAME: &str = "PveNetwork on three hosts";
/// For three changes, one after the other.
const LIMIT: Duration = Duration::from_secs(600);
const HOSTS: [u8; 3] = [1, 2, 3];

/// What a lane lends once it has run its cases.
pub struct Lent {
    pub n: u8,
    pub shell: Shell,
}

/// Runs the case on the peer and the lanes' hosts.
pub fn run(lab: &Lab, peer: &mut Peer, lent: &Receiver<Lent>, report: &Report) {
    let begun = Instant::now();
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let way_in = peer.way_in();
        peer.host.install(lab, &way_in);
        let mut shells: Vec<Lent> = lent.iter().collect();
        shells.push(Lent { n: 3, shell: peer.host.guest.shell() });
        shells.sort_by_key(|l| l.n);
        assert_eq!(shells.len(), HOSTS.len(), "a lane has lost its host");
        three_hosts(lab, &way_in.ports(), &shells);
    }));
    let (end, detail) = match attempt {
        Ok(()) => (End::Old, String::new()),
        Err(panic) => (End::Failed, panic.downcast_ref::<String>().cloned().unwrap_or_default()),
    };
    report.add(Row { case: NAME.into(), step: "-".into(), fault: "one host's trunk is cut".into(), end, detail, time: begun.elapsed() });
}

fn manifest(object: &str, vlan: u32, subnet: &str) -> String {
    let address = |n: u8| format!("        pve{n}: [\"{subnet}.{n}/24\"]\n");
    format!(
        "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata:\n  name: {object}\nspec:\n  hosts:\n    names: [pve1, pve2, pve3]\n  \
         confirmTimeout: 120s\n  probe:\n    mtu: 9000\n  interfaces:\n    - name: bond0.{vlan}\n      vlan:\n        parent: bond0\n        \
         id: {vlan}\n      mtu: 9000\n      hostAddresses:\n{}",
        HOSTS.map(address).concat()
    )
}

fn three_hosts(lab: &Lab, ports: &[u16], hosts: &[Lent]) {
    let mut controller = Controller::prepare(lab.dir(), &lab.pki, "controller");
    for (n, port) in HOSTS.iter().zip(ports) {
        let node = name(*n);
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata:\n  name: {node}\nspec:\n  address: \"127.0.0.1:{port}\"\n  \
             cluster: {node}\n  node: {node}\n"
        );
        controller.write(&format!("host-{node}.yaml"), &text);
    }
    controller.start();
    controller.write("storage.yaml", &manifest("storage", 500, "10.50.0"));
    let wait = |what: &str, wanted: &dyn Fn(&status::Records) -> bool| {
        wait_for(&controller.manifests, LIMIT, wanted).unwrap_or_else(|e| panic!("{what}: {e}\n{}", controller.log()))
    };
    let ready = |records: &status::Records, object: &str| {
        records
            .iter()
            .any(|(key, record)| key.to_lowercase().contains("network") && key.ends_with(object) && condition(record, "Ready") == "True")
    };
    wait("storage is ready", &|records| ready(records, "storage"));
    for other in 2..=3 {
        hosts[0].shell.sh(&ping(&format!("-M do -s 8972 10.50.0.{other}")));
    }

    // The second host's cable for everything but management is out: the first has the network, the third is not touched.
    hosts[1].shell.sh("ip link set bond0 down");
    controller.write("backup.yaml", &manifest("backup", 501, "10.51.0"));
    let stopped = wait("backup stops", &|records| {
        records.iter().any(|(key, record)| key.ends_with("backup") && record["status"]["failedHost"] == "pve2")
    });
    drop(stopped);
    assert_eq!(hosts[0].shell.run("ip link show bond0.501").status, 0);
    for host in &hosts[1..] {
        assert_ne!(host.shell.run("ip link show bond0.501").status, 0, "pve{} has it", host.n);
    }
    hosts[1].shell.sh("ip link set bond0 up");
    controller.remove("backup.yaml");
    controller.remove("storage.yaml");
    wait("both are gone", &|records| !records.keys().any(|key| key.ends_with("backup") || key.ends_with("storage")));
    for host in hosts {
        assert_eq!(host.shell.run("ip -br link | grep -q 'bond0[.]50'").status, 1, "pve{} has something left", host.n);
        assert_ne!(host.shell.run("test -e /etc/network/interfaces.d/pvelet").status, 0, "pve{} has a file left", host.n);
    }
    assert!(!records(&controller.manifests).is_empty());
    controller.stop();
}
