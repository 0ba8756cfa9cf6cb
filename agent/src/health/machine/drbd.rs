//! DRBD's resources on this host.

use std::sync::Arc;

use super::{
    source::{Look, check},
    words::{Worst, unknown},
};
use crate::{
    error::Error,
    health::{Check, Finding, Pace, Source, State},
    host::machine::{Drbd, DrbdResource, Machine},
};

const DRBD: Check = check(
    "host.drbd",
    "A resource without a second good copy loses data with the next disk; one whose sides have diverged (split brain) needs a person to choose.",
);

pub(super) fn source(pace: Pace, machine: &Arc<dyn Machine>) -> Arc<dyn Source> {
    let machine = Arc::clone(machine);
    let look = move || {
        let machine = Arc::clone(&machine);
        async move { vec![decide(&machine.drbd().await)] }
    };
    Look::new("drbd", &[DRBD], pace, look).done()
}

fn decide(drbd: &Result<Option<Drbd>, Error>) -> Finding {
    let id = DRBD.id;
    let drbd = match drbd {
        Ok(Some(drbd)) => drbd,
        Ok(None) => return Finding::not_applicable(id, "DRBD's module is not loaded"),
        Err(error) => return unknown(id, error),
    };
    if drbd.resources.is_empty() {
        return Finding::not_applicable(id, format!("DRBD {} has no resource here", drbd.version));
    }
    let mut worst = Worst::new();
    for resource in &drbd.resources {
        look_at(resource, &mut worst);
    }
    let remedy = "`drbdadm status`; of StandAlone decide which side's data is kept: on the other one `drbdadm connect --discard-my-data RESOURCE`; of a failed disk \
                  `dmesg`, then `drbdadm attach RESOURCE`; without quorum bring the other nodes back";
    worst.finding(id, || format!("DRBD {}: {} resources, all up to date and connected", drbd.version, drbd.resources.len()), remedy)
}

fn look_at(resource: &DrbdResource, worst: &mut Worst) {
    let name = resource.name.as_str();
    let mut bad = |state, what: String| worst.add(state, name, format!("{name} {what}"));
    if let Some(why) = &resource.suspended {
        bad(State::Failed, format!("holds up all writes: {why}"));
    }
    for volume in &resource.volumes {
        let number = volume.number;
        if !volume.quorum && resource.suspended.is_none() {
            bad(State::Failed, format!("has no quorum on volume {number}"));
        }
        match volume.disk.as_str() {
            "UpToDate" => {}
            "Diskless" if volume.client => {}
            disk @ ("Failed" | "Diskless" | "Detaching") => bad(State::Failed, format!("has lost its disk of volume {number} ({disk})")),
            disk => bad(State::Degraded, format!("has the disk of volume {number} {disk}")),
        }
    }
    for peer in &resource.peers {
        match peer.connection.as_str() {
            "Connected" => {}
            "StandAlone" => {
                bad(
                    State::Failed,
                    format!("has given up {} (StandAlone: their data has diverged, or an administrator disconnected it)", peer.name),
                );
                continue;
            }
            connection => {
                bad(State::Degraded, format!("does not reach {} ({connection})", peer.name));
                continue;
            }
        }
        for (number, disk, client) in &peer.volumes {
            if disk != "UpToDate" && !(*client && disk == "Diskless") {
                bad(State::Degraded, format!("has the disk of volume {number} on {} {disk}", peer.name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Trouble,
        host::machine::{DrbdPeer, DrbdVolume},
    };

    fn resource(disk: &str, connection: &str, there: &str) -> DrbdResource {
        DrbdResource {
            name: "r0".into(),
            suspended: None,
            volumes: vec![DrbdVolume { number: 0, disk: disk.into(), client: false, quorum: true }],
            peers: vec![DrbdPeer { name: "pve2".into(), connection: connection.into(), volumes: vec![(0, there.into(), false)] }],
        }
    }

    #[test]
    fn each_state_of_a_resource_has_a_meaning() {
        let good = || resource("UpToDate", "Connected", "UpToDate");
        let mut client = resource("Diskless", "Connected", "UpToDate");
        client.volumes[0].client = true;
        let mut of_client = good();
        of_client.peers[0].volumes = vec![(0, "Diskless".into(), true)];
        let mut lost = good();
        lost.volumes[0].quorum = false;
        let table = [
            (good(), State::Ok),
            (client, State::Ok),
            (of_client, State::Ok),
            (DrbdResource { peers: vec![], ..good() }, State::Ok),
            (lost, State::Failed),
            (DrbdResource { suspended: Some("no quorum".into()), ..good() }, State::Failed),
            (resource("Failed", "Connected", "UpToDate"), State::Failed),
            (resource("Diskless", "Connected", "UpToDate"), State::Failed),
            (resource("Inconsistent", "Connected", "UpToDate"), State::Degraded),
            (resource("UpToDate", "Connected", "Inconsistent"), State::Degraded),
            (resource("UpToDate", "Connecting", "DUnknown"), State::Degraded),
            (resource("UpToDate", "StandAlone", "DUnknown"), State::Failed),
        ];
        for (resource, expected) in table {
            let found = decide(&Ok(Some(Drbd { version: "9.2.12".into(), resources: vec![resource] })));
            assert_eq!(found.state, expected, "{found:?}");
        }
        assert_eq!(decide(&Ok(None)).state, State::NotApplicable);
        assert_eq!(decide(&Ok(Some(Drbd { version: "8.4.11".into(), resources: vec![] }))).state, State::NotApplicable);
        let late = Error::Look { trouble: Trouble::Silent, message: "drbdsetup did not end within 20 s".into() };
        assert_eq!(decide(&Err(late)).state, State::Unknown);
    }
}
