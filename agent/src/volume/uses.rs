//! Which VMs refer to a volume: in a slot, waiting for the next start, put aside as unused, or in a snapshot. Pure.

use std::sync::Arc;

use pvelet_proto::{v1, volume::VolumeId};

use super::options;
use crate::host::pve::{Inventory, VmRecord, config_file::ConfigFile};

/// How a VM refers to a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum How {
    /// In a slot.
    Attached,
    /// In a slot from the next start on.
    Pending,
    /// As `unusedN`.
    Unused,
    /// In a snapshot of this name.
    Snapshot(String),
}

/// One reference.
#[derive(Debug, Clone)]
pub(super) struct Use {
    pub(super) vm: Arc<VmRecord>,
    pub(super) slot: String,
    /// The drive's line.
    pub(super) value: String,
    pub(super) how: How,
    /// Its removal waits for the guest.
    pub(super) pending_detach: bool,
}

/// The volid of a drive's line.
pub(super) fn volume_of(value: &str) -> &str {
    let lead = value.split(',').next().unwrap_or_default();
    match lead.strip_prefix("file=") {
        Some(volume) => volume,
        None if lead.contains('=') => value.split(',').find_map(|p| p.strip_prefix("file=")).unwrap_or_default(),
        None => lead,
    }
}

/// Whether the removal of a slot waits for the guest or the next start.
pub(super) fn waits_for_removal(config: &ConfigFile, slot: &str) -> bool {
    let list = config.pending.get("delete").map(String::as_str).unwrap_or_default();
    list.split([',', ';', ' ']).any(|key| key.trim_start_matches('!') == slot)
}

/// All references of one VM to a volume, those in slots first.
pub(super) fn of_vm(vm: &Arc<VmRecord>, volid: &str) -> Vec<Use> {
    of_vm_if(vm, |found| found == volid)
}

fn of_vm_if(vm: &Arc<VmRecord>, is: impl Fn(&str) -> bool) -> Vec<Use> {
    let config = &vm.config;
    let found = |slot: &str, value: &str, how: How| Use {
        vm: Arc::clone(vm),
        slot: slot.to_owned(),
        value: value.to_owned(),
        pending_detach: how == How::Attached && waits_for_removal(config, slot),
        how,
    };
    let mut uses = Vec::new();
    for (slot, value) in config.drives().filter(|(_, value)| is(volume_of(value))) {
        let how = if slot.starts_with("unused") { How::Unused } else { How::Attached };
        uses.push(found(slot, value, how));
    }
    for (slot, value) in config.pending.iter().filter(|(_, value)| is(volume_of(value))) {
        // A pending line for a slot that holds the same volume only changes its options.
        if !uses.iter().any(|u| u.slot == *slot) {
            uses.push(found(slot, value, How::Pending));
        }
    }
    for (snapshot, slot, value) in config.snapshot_drives.iter().filter(|(_, _, value)| is(volume_of(value))) {
        uses.push(found(slot, value, How::Snapshot(snapshot.clone())));
    }
    uses.sort_by(|a, b| a.how.cmp(&b.how));
    uses
}

/// All references to a volume: on a shared storage those of every node, else those of this one, for another node's storage of the same name
/// is another storage.
pub(super) fn all(inventory: &Inventory, volid: &str, shared: bool) -> Vec<Use> {
    let here = inventory.vms.values().filter(|vm| shared || vm.node == inventory.node);
    let mut uses: Vec<Use> = here.flat_map(|vm| of_vm(vm, volid)).collect();
    uses.sort_by(|a, b| a.how.cmp(&b.how));
    uses
}

/// All references to a volume, also by way of another storage of PVE that shows the same place: its id in the name is enough.
pub(super) fn by_name(inventory: &Inventory, volid: &str, shared: bool) -> Vec<Use> {
    let name = volid.split_once(':').map(|(_, name)| name).filter(|name| VolumeId::of_name(name).is_some());
    let is = |found: &str| found == volid || name.is_some_and(|name| found.split_once(':').is_some_and(|(_, other)| other == name));
    let here = inventory.vms.values().filter(|vm| shared || vm.node == inventory.node);
    let mut uses: Vec<Use> = here.flat_map(|vm| of_vm_if(vm, is)).collect();
    uses.sort_by(|a, b| a.how.cmp(&b.how));
    uses
}

/// Where a volume is attached, as the API shows it.
pub(super) fn attachment(uses: &[Use]) -> Option<v1::VolumeAttachment> {
    let first = uses.first()?;
    let snapshots = uses.iter().filter(|u| u.vm.vmid == first.vm.vmid);
    Some(v1::VolumeAttachment {
        vm: Some(v1::VmRef { vmid: first.vm.vmid, uuid: first.vm.config.uuid().unwrap_or_default().to_owned() }),
        node: first.vm.node.clone(),
        slot: if matches!(first.how, How::Snapshot(_)) { String::new() } else { first.slot.clone() },
        options: Some(options::read(&first.value)),
        pending_attach: first.how == How::Pending,
        pending_detach: first.pending_detach,
        vm_snapshots: snapshots
            .filter_map(|u| match &u.how {
                How::Snapshot(name) => Some(name.clone()),
                _ => None,
            })
            .collect(),
    })
}

impl Use {
    /// The reference in words.
    pub(super) fn words(&self) -> String {
        match &self.how {
            How::Attached if self.pending_detach => format!("attached as {}, which the guest does not let go of", self.slot),
            How::Attached => format!("attached as {}", self.slot),
            How::Pending => format!("attached as {} from its next start on", self.slot),
            How::Unused => format!("put aside as {}", self.slot),
            How::Snapshot(name) => format!("in its snapshot '{name}'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::pve::RunState;

    const VOLUME: &str = "local:9/vm-9-pvc-0b951f20-53f9-4634-b1ce-5e6c3aa3a726.raw";

    fn vm(vmid: u32, node: &str, text: &str) -> Arc<VmRecord> {
        Arc::new(VmRecord {
            vmid,
            node: node.into(),
            version: 1,
            config: ConfigFile::parse(&text.replace("VOLUME", VOLUME)),
            run: RunState::Stopped,
            ha: None,
            replicated: false,
            pool: None,
        })
    }

    #[test]
    fn every_kind_of_reference_is_found() {
        for (text, how, slot) in [
            ("scsi1: VOLUME,serial=x\n", How::Attached, "scsi1"),
            ("scsi1: file=VOLUME,serial=x\n", How::Attached, "scsi1"),
            ("scsi1: serial=x,file=VOLUME\n", How::Attached, "scsi1"),
            ("unused0: VOLUME\n", How::Unused, "unused0"),
            ("cores: 1\n\n[PENDING]\nscsi2: VOLUME\n", How::Pending, "scsi2"),
            ("cores: 1\n\n[before]\nscsi3: VOLUME\n", How::Snapshot("before".into()), "scsi3"),
        ] {
            let uses = of_vm(&vm(100, "pve1", text), VOLUME);
            assert_eq!((uses.len(), &uses[0].how, uses[0].slot.as_str()), (1, &how, slot), "{text}");
        }
        assert!(of_vm(&vm(100, "pve1", "scsi1: VOLUME2\nscsi2: other:VOLUME\nscsi3: none,media=cdrom\n"), VOLUME).is_empty());
    }

    #[test]
    fn a_reference_by_way_of_another_storage_of_the_same_place_counts() {
        let alias = VOLUME.replace("local:", "alias:");
        let vms = [(100, vm(100, "pve1", &format!("scsi1: {alias}\nscsi2: alias:100/vm-100-disk-1.raw\n")))];
        let inventory = Inventory { node: "pve1".into(), vms: vms.into(), ..Inventory::default() };
        assert_eq!(by_name(&inventory, VOLUME, false).len(), 1);
        assert!(all(&inventory, VOLUME, false).is_empty());
        // PVE's own names are not unique among storages.
        assert!(by_name(&inventory, "local:100/vm-100-disk-1.raw", false).is_empty());
    }

    #[test]
    fn a_slot_counts_before_a_snapshot_and_a_pending_removal_is_told() {
        let vm = vm(100, "pve1", "scsi1: VOLUME\n\n[PENDING]\ndelete: cores,scsi1\n\n[before]\nscsi3: VOLUME\n");
        let uses = of_vm(&vm, VOLUME);
        assert_eq!(uses.iter().map(|u| &u.how).collect::<Vec<_>>(), [&How::Attached, &How::Snapshot("before".into())]);
        let shown = attachment(&uses).unwrap_or_default();
        assert!(shown.pending_detach && !shown.pending_attach && shown.slot == "scsi1" && shown.vm_snapshots == ["before"]);
    }

    #[test]
    fn a_storage_of_the_same_name_on_another_node_is_another_storage() {
        let (here, there) = (vm(100, "pve1", "cores: 1\n"), vm(200, "pve2", "scsi1: VOLUME\n"));
        let inventory = Inventory { node: "pve1".into(), vms: [(100, here), (200, there)].into(), ..Inventory::default() };
        assert!(all(&inventory, VOLUME, false).is_empty());
        assert_eq!(all(&inventory, VOLUME, true).len(), 1);
    }
}
