//! The counters of one node's `pmxcfs`: they say that something has changed, and begin again when it restarts.

use std::collections::BTreeMap;

/// The files of which `.version` tells a counter, in its order.
pub const TRACKED: [&str; 43] = [
    "corosync.conf",
    "corosync.conf.new",
    "storage.cfg",
    "user.cfg",
    "domains.cfg",
    "notifications.cfg",
    "priv/notifications.cfg",
    "priv/shadow.cfg",
    "priv/acme/plugins.cfg",
    "priv/tfa.cfg",
    "priv/token.cfg",
    "priv/wg-keys.cfg",
    "datacenter.cfg",
    "vzdump.cron",
    "vzdump.conf",
    "jobs.cfg",
    "ha/crm_commands",
    "ha/manager_status",
    "ha/resources.cfg",
    "ha/rules.cfg",
    "ha/groups.cfg",
    "ha/fence.cfg",
    "status.cfg",
    "replication.cfg",
    "ceph.conf",
    "sdn/vnets.cfg",
    "sdn/zones.cfg",
    "sdn/controllers.cfg",
    "sdn/subnets.cfg",
    "sdn/ipams.cfg",
    "sdn/mac-cache.json",
    "sdn/pve-ipam-state.json",
    "sdn/dns.cfg",
    "sdn/fabrics.cfg",
    "sdn/route-maps.cfg",
    "sdn/prefix-lists.cfg",
    "sdn/.running-config",
    "virtual-guest/cpu-models.conf",
    "virtual-guest/profiles.cfg",
    "firewall/cluster.fw",
    "mapping/directory.cfg",
    "mapping/pci.cfg",
    "mapping/usb.cfg",
];

/// A guest's place: the node under which its config lies, and its type as `.vmlist` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The node.
    pub node: String,
    /// `qemu` or `lxc`.
    pub kind: &'static str,
}

/// The VMID and the owner that a path stands for, if it is a guest's config (`nodes/<node>/{qemu-server,lxc}/<vmid>.conf`).
pub fn vm_config_owner(path: &str) -> Option<(u32, Owner)> {
    let mut parts = path.split('/');
    let ("nodes", node, folder, file, None) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()) else {
        return None;
    };
    let kind = match folder {
        "qemu-server" => "qemu",
        "lxc" => "lxc",
        _ => return None,
    };
    let digits = file.strip_suffix(".conf")?;
    if digits.len() > 9 || digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let vmid: u32 = digits.parse().ok()?;
    (vmid >= 100).then(|| (vmid, Owner { node: node.to_owned(), kind }))
}

/// What one node's `pmxcfs` has counted since it started.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Seconds since the epoch at which it started.
    pub starttime: u64,
    /// Changes of who is in the cluster.
    pub clinfo: u64,
    /// Changes of any guest's config, removals included.
    pub vmlist: u64,
    /// The last version given to a guest.
    last_vm: u64,
    vms: BTreeMap<u32, u64>,
    files: [u64; TRACKED.len()],
    /// Grows with each change of the above: rendered files are cached by it.
    pub generation: u64,
}

impl Counters {
    /// Those of a `pmxcfs` that has just loaded these guests.
    pub fn new(starttime: u64, clinfo: u64, vmids: impl Iterator<Item = u32>) -> Self {
        let vms: BTreeMap<u32, u64> = vmids.zip(1..).collect();
        Self { starttime, clinfo, vmlist: 1, last_vm: vms.len() as u64, vms, files: [1; TRACKED.len()], generation: 0 }
    }

    /// A file was made, written, or renamed to this path.
    pub fn changed(&mut self, path: &str) {
        if let Some((vmid, _)) = vm_config_owner(path) {
            self.vmlist += 1;
            self.last_vm += 1;
            self.vms.insert(vmid, self.last_vm);
            self.generation += 1;
        }
        self.count(path);
    }

    /// A file vanished from this path; a guest's version counter is not used up by that.
    pub fn removed(&mut self, path: &str) {
        if let Some((vmid, _)) = vm_config_owner(path) {
            self.vmlist += 1;
            self.vms.remove(&vmid);
            self.generation += 1;
        }
        self.count(path);
    }

    fn count(&mut self, path: &str) {
        if let Some(at) = TRACKED.iter().position(|tracked| *tracked == path) {
            self.files[at] += 1;
            self.generation += 1;
        }
    }

    /// Somebody joined or left, or quorum came or went.
    pub fn members_changed(&mut self) {
        self.clinfo += 1;
        self.generation += 1;
    }

    /// A guest's version.
    pub fn vm(&self, vmid: u32) -> u64 {
        self.vms.get(&vmid).copied().unwrap_or_default()
    }

    /// The tracked files with their counters.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        TRACKED.iter().copied().zip(self.files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "nodes/pve1/qemu-server/703.conf";

    /// `api-cluster` v0 to v9: create and PUT write the config twice each, a delete writes it once (its lock) and removes it.
    #[test]
    fn the_counters_of_a_vm_grow_as_recorded() {
        let mut counters = Counters::new(0, 0, [701, 702].into_iter());
        let (vmlist, version) = (counters.vmlist, counters.vm(702));
        let mut writes = |n: usize| {
            for _ in 0..n {
                counters.changed(CONFIG);
            }
            (counters.vmlist - vmlist, counters.vm(703) - version)
        };
        assert_eq!(writes(2), (2, 2));
        assert_eq!(writes(2), (4, 4));
        assert_eq!(writes(1), (5, 5));
        counters.removed(CONFIG);
        assert_eq!((counters.vmlist - vmlist, counters.vm(703)), (6, 0));
        // The next VM continues where 703's last write left off.
        counters.changed("nodes/pve1/qemu-server/710.conf");
        assert_eq!(counters.vm(710) - version, 6);
    }

    /// `api-cluster` pm-after-restart: six guests have the versions 1 to 6, all else is 1; a PUT then counts on from there.
    #[test]
    fn a_restart_counts_guests_from_one() {
        let mut counters = Counters::new(7, 0, [140, 302, 503, 710, 9010, 9011].into_iter());
        assert_eq!(counters.vmlist, 1);
        let mut versions: Vec<u64> = [140, 302, 503, 710, 9010, 9011].map(|vmid| counters.vm(vmid)).to_vec();
        versions.sort_unstable();
        assert_eq!(versions, [1, 2, 3, 4, 5, 6]);
        assert!(counters.files().all(|(_, version)| version == 1));
        counters.changed("nodes/pve1/qemu-server/710.conf");
        counters.changed("nodes/pve1/qemu-server/710.conf");
        assert_eq!((counters.vmlist, counters.vm(710)), (3, 8));
    }

    #[test]
    fn a_tracked_file_counts_alone() {
        let mut counters = Counters::new(0, 0, std::iter::empty());
        counters.changed("storage.cfg");
        let grown: Vec<_> = counters.files().filter(|(_, version)| *version != 1).collect();
        assert_eq!((grown, counters.vmlist), (vec![("storage.cfg", 2)], 1));
    }

    #[test]
    fn only_a_guests_config_stands_for_a_guest() {
        let kind = |path: &str| vm_config_owner(path).map(|(vmid, owner)| (vmid, owner.node, owner.kind));
        assert_eq!(kind("nodes/pve2/qemu-server/100.conf"), Some((100, "pve2".into(), "qemu")));
        assert_eq!(kind("nodes/pve2/lxc/101.conf"), Some((101, "pve2".into(), "lxc")));
        for other in [
            "nodes/pve1/qemu-server/100.conf.tmp.12",
            "nodes/pve1/qemu-server/foo.conf",
            "nodes/pve1/qemu-server/099.conf",
            "nodes/pve1/qemu-server/99.conf",
            "qemu-server/100.conf",
            "nodes/pve1/qemu-server/x/100.conf",
        ] {
            assert_eq!(kind(other), None, "{other}");
        }
    }
}
