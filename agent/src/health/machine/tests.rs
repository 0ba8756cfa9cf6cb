//! All sources together, on a machine in memory.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::{
    config::{self, defaults as d},
    error::{Error, Trouble},
    health::{Finding, Group, State},
    host::{
        machine::fake::{FakeMachine, Machines},
        pve::fake::FakePve,
        units_fake::FakeUnits,
    },
};

/// The ids of the group, as they are promised.
const IDS: [&str; 17] = [
    "host.certificates",
    "host.cluster-fs",
    "host.corosync-links",
    "host.drbd",
    "host.linstor",
    "host.locks",
    "host.lvm-thin",
    "host.memory",
    "host.pvedaemon",
    "host.pveproxy",
    "host.pvestatd",
    "host.quorum",
    "host.reboot",
    "host.storages",
    "host.tasks",
    "host.time-sync",
    "host.zfs",
];

struct Host {
    pve: Arc<FakePve>,
    machine: Arc<FakeMachine>,
    units: Arc<FakeUnits>,
    sources: Vec<Arc<dyn Source>>,
}

fn host() -> Host {
    let settings =
        config::parse("[tls]\ntrust_domain = \"pvelet.example\"\n").map(|(config, _)| config.health).unwrap_or_else(|_| panic!());
    let pve = Arc::new(FakePve::new("a"));
    let machine = FakeMachine::new();
    let units = FakeUnits::with(&["pvedaemon.service", "pvestatd.service", "pveproxy.service", "pve-cluster.service", "chrony.service"]);
    let sources = sources(&settings, pve.clone(), machine.clone(), units.clone());
    Host { pve, machine, units, sources }
}

impl Host {
    async fn look(&self) -> BTreeMap<&'static str, Finding> {
        let mut all = BTreeMap::new();
        for source in &self.sources {
            let found = source.look().await;
            let ids: Vec<_> = found.iter().map(|f| f.id).collect();
            assert_eq!(ids, source.checks().iter().map(|c| c.id).collect::<Vec<_>>(), "{}", source.name());
            all.extend(found.into_iter().map(|f| (f.id, f)));
        }
        all
    }
}

#[tokio::test]
async fn a_healthy_host_has_every_check_and_no_alarm() {
    let host = host();
    let found = host.look().await;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), IDS);
    for finding in found.values() {
        assert!(matches!(finding.state, State::Ok | State::NotApplicable), "{finding:?}");
        assert!(!finding.seen.is_empty() && finding.remedy.is_empty() && finding.mend.is_none(), "{finding:?}");
    }
}

#[tokio::test]
async fn a_machine_that_does_not_answer_is_unknown_and_never_well() {
    let host = host();
    let late = || Error::Look { trouble: Trouble::Silent, message: "it did not answer within 3 s".into() };
    host.machine.change(|m| {
        *m = Machines {
            corosync: Err(late()),
            cluster_fs: Err(late()),
            status_told: Err(late()),
            certificates: Err(late()),
            thin_pools: Err(late()),
            zfs_pools: Err(late()),
            kernels: Err(late()),
            clock: Err(late()),
            memory: Err(late()),
            running_tasks: Err(late()),
            connections: Err(late()),
            drbd: Err(late()),
        };
    });
    host.units.set("linstor-satellite.service", FakeUnits::running());
    let found = host.look().await;
    let well = ["host.pvedaemon", "host.pveproxy", "host.quorum", "host.storages"];
    for (id, finding) in &found {
        let expected = if well.contains(id) { State::Ok } else { State::Unknown };
        assert_eq!(finding.state, expected, "{finding:?}");
    }
}

#[tokio::test]
async fn faults_are_found_with_what_may_be_done() {
    let host = host();
    host.pve.set_quorate(false);
    host.pve.edit_storage("local", |s| s.active = false);
    host.units.set("pvestatd.service", FakeUnits::dead());
    let found = host.look().await;
    for id in ["host.quorum", "host.storages", "host.pvestatd"] {
        let finding = &found[id];
        assert_eq!(finding.state, State::Failed, "{finding:?}");
        assert!(!finding.remedy.is_empty(), "{finding:?}");
    }
    assert_eq!(found["host.storages"].subjects, ["local"]);
    assert!(found["host.pvestatd"].mend.is_some());
}

#[tokio::test]
async fn what_systemd_and_the_cluster_tell_brings_a_look_before_its_time() {
    let host = host();
    let by_name: BTreeMap<_, _> = host.sources.iter().map(|s| (s.name(), s)).collect();
    let (proxy, quorum) = (by_name["pveproxy"], by_name["quorum"]);
    let (mut proxy_stirred, mut quorum_stirred) = (Box::pin(proxy.stirred()), Box::pin(quorum.stirred()));
    // Polled once, so that they listen.
    assert!(futures_util::poll!(&mut proxy_stirred).is_pending() && futures_util::poll!(&mut quorum_stirred).is_pending());
    host.units.set("other.service", FakeUnits::dead());
    assert!(futures_util::poll!(&mut proxy_stirred).is_pending());
    host.units.set("pveproxy.service", FakeUnits::dead());
    proxy_stirred.await;
    host.pve.set_quorate(false);
    quorum_stirred.await;
}

#[test]
fn checks_have_a_group_a_reason_and_time_to_end() {
    let host = host();
    for source in &host.sources {
        let pace = source.pace();
        assert!(pace.period >= d::HEALTH_PERIOD && pace.deadline > Duration::from_secs(5), "{}", source.name());
        for check in source.checks() {
            assert!(check.group == Group::Host && check.why.ends_with('.') && check.id.starts_with("host."), "{check:?}");
        }
    }
}
