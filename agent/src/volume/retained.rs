//! What a VM's deletion must not take along: PVE frees every disk that a VM's config names and that carries the VM's id, unused ones too.

use std::collections::BTreeSet;

use pvelet_proto::volume::VolumeId;

use super::{Label, detach::detachable};
use crate::{
    error::Error,
    host::pve::{VmRecord, config_file::properties},
    vm::{Inner, view},
};

/// Volumes that stand in the VM under its own name, as the config alone tells.
pub(crate) fn by_name(vm: &VmRecord) -> Vec<String> {
    let named = |volid: &String| volid.split_once(':').is_some_and(|(_, name)| VolumeId::of_name(name).is_some());
    view::own_volumes(vm).into_iter().filter(named).collect()
}

/// Disks of the VM's own that a guest sees under a serial number such as volumes have. Where no volume has that number, the disk is what
/// is left of one: an administrator who moves a volume's disk in PVE's interface takes it from its label.
fn by_serial(vm: &VmRecord) -> Vec<(String, String)> {
    let drives = vm.config.drives().filter(|(slot, value)| detachable(vm, slot).is_ok() && !value.contains("media=cdrom"));
    let own = drives.map(|(_, value)| (super::uses::volume_of(value), properties(value).1));
    own.filter(|(volid, _)| view::owner_of(volid) == Some(vm.vmid))
        .filter_map(|(volid, keys)| Some((keys.get("serial").filter(|s| is_serial(s))?.to_string(), volid.to_owned())))
        .collect()
}

fn is_serial(text: &str) -> bool {
    text.len() == 20 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

impl Inner {
    /// Proves that what is about to be freed with a VM is no volume. Errors: `NotOurs`; those of a storage that cannot be asked.
    pub(crate) async fn not_a_volume(&self, volid: &str) -> Result<(), Error> {
        let Some((storage, name)) = volid.split_once(':') else { return Ok(()) };
        let config = self.storage_config(storage).await?;
        if self.store.abilities(&config).labels && self.store.labels(&config).await?.contains_key(name) {
            return Err(Error::NotOurs { what: format!("{volid} is a volume: it") });
        }
        Ok(())
    }

    /// Proves that no volume would be lost with a VM: none carries its id, in its config or beside it. Errors: `VolumesRetained`; those of
    /// a storage that cannot be asked and on which the VM has disks that may be volumes.
    pub(crate) async fn no_volume_retained(&self, vm: &VmRecord) -> Result<(), Error> {
        let mut volumes = by_name(vm);
        let mut serials = BTreeSet::new();
        let (storages, mut unreachable) = self.volume_storages().await?;
        for storage in &storages {
            match self.store.labels(storage).await {
                Ok(labels) => {
                    serials.extend(labels.iter().filter_map(|(name, text)| Some(Label::of(name, text)?.id.serial())));
                    // Also one whose label cannot be read or understood.
                    let own = labels.keys().filter(|name| view::owner_of(name) == Some(vm.vmid));
                    volumes.extend(own.map(|name| format!("{}:{name}", storage.id)));
                }
                Err(error) => unreachable.push((storage.id.clone(), error)),
            }
        }
        volumes.extend(by_serial(vm).into_iter().filter(|(serial, _)| !serials.contains(serial)).map(|(_, volid)| volid));
        volumes.sort();
        volumes.dedup();
        if !volumes.is_empty() {
            return Err(Error::VolumesRetained { vmid: vm.vmid, volumes });
        }
        // A VM's boot disk and the like are no volumes; whether another disk is one, only its storage tells.
        let may_be_one = |storage: &str| {
            let drives = vm.config.drives().filter(|(slot, value)| detachable(vm, slot).is_ok() && !value.contains("media=cdrom"));
            let mut own = drives.filter(|(_, value)| view::owner_of(super::uses::volume_of(value)) == Some(vm.vmid));
            own.any(|(_, value)| value.starts_with(&format!("{storage}:")))
        };
        match unreachable.into_iter().find(|(storage, _)| may_be_one(storage)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::pve::{RunState, config_file::ConfigFile};

    #[test]
    fn only_volumes_under_the_vm_s_own_name_are_in_danger() {
        let id = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";
        let text = format!(
            "scsi0: a:100/vm-100-disk-0.raw\nscsi1: a:999999999/vm-999999999-pvc-{id}.raw\nscsi2: a:100/vm-100-pvc-{id}.raw\nunused0: b:vm-100-pvc-{id}\n"
        );
        let vm = VmRecord {
            vmid: 100,
            node: "pve1".into(),
            version: 1,
            config: ConfigFile::parse(&text),
            run: RunState::Stopped,
            ha: None,
            replicated: false,
            pool: None,
        };
        assert_eq!(by_name(&vm), [format!("a:100/vm-100-pvc-{id}.raw"), format!("b:vm-100-pvc-{id}")]);
    }
}
