//! Which VMs use which bridge.

use crate::host::pve::{Inventory, config_file::properties};

/// A NIC of a VM of this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BridgeUser {
    /// The VM.
    pub vmid: u32,
    /// Its NIC: `net0`, ...
    pub nic: String,
    /// The bridge it is on, or will be on from the VM's next start on.
    pub bridge: String,
}

/// The NICs of this node's VMs, by VMID, running or not. A change that waits for a VM's restart counts, and so does what it replaces.
pub fn bridge_users(inventory: &Inventory) -> Vec<BridgeUser> {
    let mut users = Vec::new();
    for vm in inventory.vms.values().filter(|vm| vm.node == inventory.node) {
        for (key, value) in vm.config.keys.iter().chain(&vm.config.pending) {
            let is_nic = key.strip_prefix("net").is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()));
            if let (true, Some(bridge)) = (is_nic, properties(value).1.get("bridge")) {
                users.push(BridgeUser { vmid: vm.vmid, nic: key.clone(), bridge: (*bridge).to_owned() });
            }
        }
    }
    users.sort();
    users.dedup();
    users
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::host::pve::{RunState, VmRecord, config_file::ConfigFile};

    fn vm(vmid: u32, node: &str, config: &str) -> (u32, Arc<VmRecord>) {
        let config = ConfigFile::parse(config);
        let record =
            VmRecord { vmid, node: node.into(), version: 1, config, run: RunState::Stopped, ha: None, replicated: false, pool: None };
        (vmid, Arc::new(record))
    }

    #[test]
    fn nics_of_this_nodes_vms_are_listed_with_those_that_wait() {
        let vms = [
            vm(100, "a", "net0: virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=7\nnet10: e1000,bridge=vmbr70\nnetx: bridge=no\n"),
            vm(101, "a", "net0: virtio,bridge=vmbr0\n\n[PENDING]\nnet0: virtio,bridge=vmbr1\n\n[snap]\nnet0: virtio,bridge=vmbr9\n"),
            vm(102, "b", "net0: virtio,bridge=vmbr0\n"),
            vm(103, "a", "net0: virtio\nnets: bridge=x\n"),
        ];
        let inventory = Inventory { node: "a".into(), vms: vms.into(), ..Inventory::default() };
        let found: Vec<_> = bridge_users(&inventory).into_iter().map(|u| (u.vmid, u.nic, u.bridge)).collect();
        let expect = |vmid: u32, nic: &str, bridge: &str| (vmid, nic.to_owned(), bridge.to_owned());
        assert_eq!(
            found,
            [expect(100, "net0", "vmbr0"), expect(100, "net10", "vmbr70"), expect(101, "net0", "vmbr0"), expect(101, "net0", "vmbr1")]
        );
    }
}
