//! The cluster: quorum, corosync's links, the cluster file system.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    source::{Look, check},
    unit::{self, Standing},
    words::{Worst, age, bytes, list, moment, unknown},
};
use crate::{
    error::{Error, Trouble},
    health::{Check, Finding, Pace, Source, State},
    host::{
        machine::{ClusterFs, CorosyncStatus, Machine},
        pve::{Inventory, Pve},
        units::{UnitState, Units},
    },
};

const QUORUM: Check =
    check("host.quorum", "Without quorum nothing below /etc/pve can be written: no VM is made, started, changed or moved on this host.");
const LINKS: Check = check(
    "host.corosync-links",
    "A node that is reached over no link leaves the cluster, and with HA it is fenced: a second link that is down is missed when the first one fails.",
);
const FILE_SYSTEM: Check = check(
    "host.cluster-fs",
    "All configurations of PVE lie in the cluster file system: when it hangs or refuses writes, PVE can do nothing.",
);

/// What hangs for less may be a moment's load.
const HUNG: Duration = Duration::from_secs(10);
/// pmxcfs's database has some ten megabytes and needs as much for its journal.
const DATABASE_LEAST: u64 = 64 << 20;
const PVE_CLUSTER: &str = "pve-cluster.service";

pub(super) fn quorum(pace: Pace, pve: &Arc<dyn Pve>) -> Arc<dyn Source> {
    let cluster = Arc::clone(pve);
    let look = move || {
        let found = decide_quorum(&cluster.inventory());
        async move { vec![found] }
    };
    Look::new("quorum", &[QUORUM], pace, look).stirred_by_cluster(pve).done()
}

fn decide_quorum(inventory: &Inventory) -> Finding {
    let id = QUORUM.id;
    if let Some(since) = inventory.hung_since {
        return Finding::unknown(id, format!("the cluster file system has not answered since {}", moment(since)));
    }
    if !inventory.complete {
        return Finding::unknown(id, "the cluster file system has not been read yet");
    }
    let total = inventory.nodes.len();
    let offline: Vec<String> = inventory.nodes.iter().filter(|n| !n.online).map(|n| n.name.clone()).collect();
    let online = total - offline.len();
    let missing = if offline.is_empty() { String::new() } else { format!(", offline: {}", list(&offline)) };
    if !inventory.quorate {
        let seen = if total > 1 {
            format!("no quorum: this node sees {online} of {total} nodes of cluster '{}'{missing}", inventory.cluster)
        } else {
            "no quorum: this node belongs to a cluster and has not reached it".to_owned()
        };
        let remedy = "bring the other nodes or the network between them back; `pvecm status` and `journalctl -u corosync` tell more";
        return with_subjects(Finding::failed(id, seen, remedy), offline);
    }
    if total <= 1 {
        return Finding::ok(id, "this host stands alone and needs no quorum");
    }
    let seen = format!("{online} of {total} nodes online{missing}");
    // With all nodes there nothing can be done about how few a cluster has. A vote of a QDevice is not told: the next loss may be that one.
    if !offline.is_empty() && online.saturating_sub(1) * 2 <= total {
        let remedy = format!("bring {} back: the next node that is lost takes quorum with it", list(&offline));
        return with_subjects(Finding::degraded(id, format!("{seen}; no further node may be lost"), remedy), offline);
    }
    Finding::ok(id, seen)
}

fn with_subjects(finding: Finding, subjects: Vec<String>) -> Finding {
    Finding { subjects, ..finding }
}

pub(super) fn links(pace: Pace, pve: &Arc<dyn Pve>, machine: &Arc<dyn Machine>) -> Arc<dyn Source> {
    let (pve, machine) = (Arc::clone(pve), Arc::clone(machine));
    let look = move || {
        let (pve, machine) = (Arc::clone(&pve), Arc::clone(&machine));
        async move {
            let status = machine.corosync().await;
            vec![decide_links(&status, &pve.inventory())]
        }
    };
    Look::new("corosync-links", &[LINKS], pace, look).done()
}

fn decide_links(status: &Result<Option<CorosyncStatus>, Error>, inventory: &Inventory) -> Finding {
    let id = LINKS.id;
    let status = match status {
        Ok(Some(status)) => status,
        Ok(None) => return Finding::not_applicable(id, "this host has no corosync.conf: it belongs to no cluster"),
        Err(Error::Look { trouble: Trouble::Refused, message }) => {
            let remedy = "look at `systemctl status corosync` and `journalctl -u corosync -n 50`";
            return Finding::failed(id, format!("corosync does not run: {message}"), remedy).about("corosync.service");
        }
        Err(error) => return unknown(id, error),
    };
    let known = |node: u32| inventory.nodes.iter().find(|n| n.id == node && n.id != 0);
    let name = |node: u32| known(node).map_or_else(|| format!("node {node}"), |n| n.name.clone());
    let mut worst = Worst::new();
    let mut away: Vec<String> = Vec::new();
    let mut well = Vec::new();
    for link in &status.links {
        let (mut lost, mut reached) = (Vec::new(), 0);
        for (node, connected) in &link.peers {
            if *connected {
                reached += 1;
            } else if known(*node).is_some_and(|n| !n.online) {
                // The node is down: that is told with the quorum, and no fault of a link.
                away.push(name(*node));
            } else {
                lost.push(name(*node));
            }
        }
        let label = format!("link {} ({})", link.number, link.address);
        if lost.is_empty() {
            well.push(format!("{label} reaches {reached}"));
        } else {
            worst.add(State::Degraded, &format!("link {}", link.number), format!("{label} does not reach {}", list(&lost)));
        }
    }
    if status.links.is_empty() && inventory.nodes.iter().filter(|n| n.online).count() > 1 {
        return Finding::unknown(id, "corosync tells of no link, though other nodes are online");
    }
    away.sort();
    away.dedup();
    let offline = if away.is_empty() { String::new() } else { format!("; offline: {}", list(&away)) };
    let remedy = "look at the network of that link: cable, switch, address; `corosync-cfgtool -n` shows each node's links";
    let all = || if well.is_empty() { "no other node is in the cluster".to_owned() } else { format!("{}{offline}", list(&well)) };
    worst.finding(id, all, remedy)
}

pub(super) fn file_system(pace: Pace, pve: &Arc<dyn Pve>, machine: &Arc<dyn Machine>, units: &Arc<dyn Units>) -> Arc<dyn Source> {
    let (cluster, machine, units) = (Arc::clone(pve), Arc::clone(machine), Arc::clone(units));
    let look = move || {
        let (pve, machine, units) = (Arc::clone(&cluster), Arc::clone(&machine), Arc::clone(&units));
        async move {
            let mount = machine.cluster_fs().await;
            // Only a daemon that is gone is asked for; one that hangs is not restarted by anybody but a person.
            let unit = match &mount {
                Ok(ClusterFs { mounted: true, .. }) => None,
                Err(Error::Look { trouble: Trouble::Silent, .. }) => None,
                _ => Some(units.state(PVE_CLUSTER).await),
            };
            vec![decide_file_system(&mount, unit.as_ref(), &pve.inventory(), SystemTime::now())]
        }
    };
    Look::new("cluster-fs", &[FILE_SYSTEM], pace, look).stirred_by_cluster(pve).done()
}

/// Whether it can be written is told without writing: by the modes that pmxcfs gives its folders, by the mount, and by the file system of its
/// database. (An error of that database earlier on makes pmxcfs refuse all writes until it is restarted; only a write would tell of it.)
fn decide_file_system(
    mount: &Result<ClusterFs, Error>,
    unit: Option<&Result<UnitState, Error>>,
    inventory: &Inventory,
    now: SystemTime,
) -> Finding {
    let id = FILE_SYSTEM.id;
    let hung = inventory.hung_since.filter(|since| age(*since, now) >= HUNG);
    let restart = "look at `journalctl -u pve-cluster -n 50` and `systemctl status pve-cluster`";
    let mount = match mount {
        Ok(mount) => mount,
        Err(Error::Look { trouble: Trouble::Silent, message }) => {
            return match hung {
                Some(since) => {
                    let seen = format!("/etc/pve has not answered since {}", moment(since));
                    let remedy =
                        format!("{restart}; a node whose cluster network stalls, or whose disk of /var/lib/pve-cluster hangs, does this");
                    Finding::failed(id, seen, remedy).about("/etc/pve").about(PVE_CLUSTER)
                }
                None => Finding::unknown(id, message.clone()),
            };
        }
        // A mount whose daemon has ended answers with an error at once.
        Err(error @ Error::Look { trouble: Trouble::Failed, .. }) => return down(error.to_string(), unit, now),
        Err(error) => return unknown(id, error),
    };
    if !mount.mounted {
        return down("nothing is mounted at /etc/pve".to_owned(), unit, now);
    }
    if mount.read_only {
        return Finding::failed(id, "/etc/pve is mounted read-only", format!("remount it: `systemctl restart pve-cluster`; {restart}"))
            .about("/etc/pve");
    }
    if !mount.writable_mode {
        let why = if inventory.quorate { "pmxcfs takes no writes" } else { "there is no quorum (see host.quorum)" };
        return Finding::failed(id, format!("/etc/pve can be read, not written: {why}"), "get quorum back: `pvecm status`")
            .about("/etc/pve");
    }
    if let Some(disk) = &mount.database {
        let folder = disk.folder.display().to_string();
        if disk.read_only {
            let remedy = "the kernel makes a file system read-only after errors of its disk: look at `dmesg`, then repair it";
            return Finding::failed(id, format!("{folder}, where the cluster file system keeps its database, is read-only"), remedy)
                .about(folder);
        }
        if disk.free < DATABASE_LEAST && disk.total > 0 {
            let left = if disk.free == 0 { "nothing".to_owned() } else { format!("less than {}", bytes(DATABASE_LEAST)) };
            let seen = format!("{folder}, where the cluster file system keeps its database, has {left} left of {}", bytes(disk.total));
            let remedy =
                format!("free space on the file system of {folder}: when it is full, the cluster file system takes no more writes");
            let finding = if disk.free == 0 { Finding::failed(id, seen, remedy) } else { Finding::degraded(id, seen, remedy) };
            return finding.about(folder);
        }
    }
    match hung {
        // It answers now, and the watcher has not seen that yet, or only its own call hangs.
        Some(since) => {
            Finding::degraded(id, format!("a read of /etc/pve has been hanging since {}, others are answered", moment(since)), restart)
                .about("/etc/pve")
        }
        None => Finding::ok(id, "it answers and can be written"),
    }
}

fn down(seen: String, unit: Option<&Result<UnitState, Error>>, now: SystemTime) -> Finding {
    let id = FILE_SYSTEM.id;
    let remedy = unit::remedy(PVE_CLUSTER);
    let Some(state) = unit else { return Finding::failed(id, seen, remedy).about("/etc/pve") };
    match unit::standing(PVE_CLUSTER, state, now) {
        Standing::Down(text) => {
            let finding = Finding::failed(id, format!("{seen}; {text}"), remedy).about("/etc/pve").about(PVE_CLUSTER);
            unit::mended(finding, PVE_CLUSTER, state)
        }
        Standing::Absent => Finding::not_applicable(id, format!("{seen}, and there is no {PVE_CLUSTER}: this is no PVE host")),
        Standing::Runs(text, _) | Standing::Off(text) | Standing::Shaky(text) => {
            Finding::failed(id, format!("{seen}; {text}"), remedy).about("/etc/pve").about(PVE_CLUSTER)
        }
        Standing::Unknown(_) => Finding::failed(id, seen, remedy).about("/etc/pve"),
    }
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
