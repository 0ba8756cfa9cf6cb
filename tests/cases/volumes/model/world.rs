//! What is true of volumes and VMs, and what a step makes of it: written from what is known of PVE and from what the API promises. It knows
//! neither the agent's code nor the simulator's.

use std::collections::BTreeMap;

use super::steps::Step;

/// The VMID under whose name volumes live that no VM owns.
pub(super) const RESERVED: u32 = 999_999_999;
pub(super) const VMS: [u32; 3] = [101, 102, 103];
/// Storages of files, and where they lie on a host.
pub(super) const STORAGES: [(&str, &str); 3] = [("local", "/var/lib/vz"), ("rawdir", "/srv/raw"), ("shared", "/mnt/pve/shared")];

/// How a volume is called on its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    /// `vm-<VMID>-pvc-<id>`.
    Pvc(u32),
    /// `vm-<VMID>-disk-<n>`, which PVE chose when it moved the disk of a VM.
    Disk(u32),
}

impl Name {
    pub(super) fn vmid(&self) -> u32 {
        match self {
            Self::Pvc(vmid) | Self::Disk(vmid) => *vmid,
        }
    }
}

/// What a guest would read: for each MiB the seed of the write that made it, 0 for zeros.
pub(super) type Blocks = Vec<u64>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) storage: &'static str,
    pub(super) format: &'static str,
    pub(super) mib: u64,
    pub(super) blocks: Blocks,
    /// Oldest first.
    pub(super) snapshots: Vec<(String, Blocks)>,
    /// VMID and number of the SCSI slot.
    pub(super) at: Option<(u32, u32)>,
    /// The VM that names it as an unused disk: PVE puts a VM's own disk there when somebody detaches it.
    pub(super) aside: Option<u32>,
    pub(super) name: Name,
    /// Writes a second and MiB read a second; 0: no limit.
    pub(super) limits: (u32, u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Vm {
    pub(super) running: bool,
    pub(super) cores: u32,
    /// Disks of the VM's own beside its boot disk: slot and volid.
    pub(super) own: BTreeMap<u32, String>,
}

/// What a step must come to.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Reasons for which it may be refused; empty: it succeeds.
    pub(super) reasons: Vec<&'static str>,
    /// What is asked for is so already.
    pub(super) already: bool,
}

impl Verdict {
    fn refuse(&mut self, when: bool, reason: &'static str) {
        if when {
            self.reasons.push(reason);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct World {
    pub(super) volumes: BTreeMap<String, Volume>,
    pub(super) vms: BTreeMap<u32, Vm>,
    /// A volume without an owner.
    pub(super) nobodys: String,
    /// Another tenant's volume.
    pub(super) others: String,
}

impl World {
    pub(super) fn volume(&self, id: &str) -> &Volume {
        &self.volumes[id]
    }

    /// Whether a VM that runs has the volume.
    pub(super) fn in_guest(&self, volume: &Volume) -> bool {
        volume.at.is_some_and(|(vmid, _)| self.vms[&vmid].running)
    }

    pub(super) fn is_free(&self, vmid: u32, slot: u32) -> bool {
        !self.vms[&vmid].own.contains_key(&slot) && !self.volumes.values().any(|v| v.at == Some((vmid, slot)))
    }

    fn first_free(&self, vmid: u32) -> u32 {
        (1..).find(|slot| self.is_free(vmid, *slot)).expect("a slot")
    }

    /// What a step must come to, as things are.
    pub(super) fn judge(&self, step: &Step) -> Verdict {
        let mut verdict = Verdict::default();
        let Some((id, volume)) = step.volume().map(|id| (id.as_str(), self.volumes.get(id))) else {
            verdict.already = match step {
                Step::Start { vmid } => self.vms[vmid].running,
                Step::Stop { vmid } => !self.vms[vmid].running,
                _ => false,
            };
            return verdict;
        };
        if let Step::Create { storage, mib, from, .. } = step {
            if let Some(there) = volume {
                verdict.already = there.storage == *storage && there.mib >= *mib;
                verdict.refuse(!verdict.already, "VOLUME_EXISTS");
            } else if id == self.nobodys || id == self.others {
                verdict.refuse(true, "VOLUME_EXISTS");
            } else if let Some((source, snapshot)) = from {
                match self.volumes.get(source) {
                    None => verdict.refuse(true, if *source == self.nobodys { "NOT_OURS" } else { "VOLUME_NOT_FOUND" }),
                    Some(source) => {
                        verdict.refuse(self.in_guest(source), "VOLUME_IN_USE");
                        verdict.refuse(*mib != 0 && *mib < source.mib, "INVALID_SIZE");
                        let there = snapshot.as_ref().is_none_or(|name| source.snapshots.iter().any(|(n, _)| n == name));
                        verdict.refuse(!there, "SNAPSHOT_NOT_FOUND");
                    }
                }
            }
            return verdict;
        }
        let Some(volume) = volume else {
            let unknown = id != self.nobodys && id != self.others;
            if matches!(step, Step::Delete { .. }) && unknown {
                verdict.already = true;
            } else {
                verdict.refuse(true, if id == self.nobodys { "NOT_OURS" } else { "VOLUME_NOT_FOUND" });
            }
            return verdict;
        };
        let snapshots = !volume.snapshots.is_empty();
        let has = |name: &String| volume.snapshots.iter().any(|(n, _)| n == name);
        let elsewhere = |vmid: u32| volume.at.map(|(at, _)| at).or(volume.aside).is_some_and(|at| at != vmid);
        let aside = volume.aside.is_some();
        match step {
            Step::Attach { vmid, .. } => {
                verdict.refuse(elsewhere(*vmid), "VOLUME_IN_USE");
                if volume.at.is_some_and(|(at, _)| at == *vmid) {
                    verdict.already = volume.limits == (0, 0);
                    // The options that stand are not those that are asked for.
                    verdict.refuse(!verdict.already, "INVALID_FIELD");
                }
            }
            Step::Detach { vmid, .. } => {
                verdict.refuse(elsewhere(*vmid), "VOLUME_IN_USE");
                verdict.already = volume.at.is_none() && !aside;
            }
            Step::Grow { mib, .. } => {
                verdict.refuse(*mib < volume.mib, "DISK_SHRINK");
                verdict.refuse(*mib > volume.mib && snapshots && volume.format == "qcow2", "VOLUME_HAS_SNAPSHOTS");
                verdict.already = *mib == volume.mib;
            }
            Step::Limit { limits, .. } => {
                verdict.refuse(volume.at.is_none(), "VOLUME_NOT_ATTACHED");
                verdict.already = volume.at.is_some() && *limits == volume.limits;
            }
            Step::Snapshot { name, .. } | Step::DropSnapshot { name, .. } | Step::RollBack { name, .. } => {
                verdict.refuse(volume.format == "raw", "STORAGE_UNSUPPORTED");
                verdict.refuse(self.in_guest(volume), "VOLUME_IN_USE");
                verdict.refuse(matches!(step, Step::RollBack { .. }) && !has(name), "SNAPSHOT_NOT_FOUND");
                verdict.already = match step {
                    Step::Snapshot { .. } => has(name),
                    Step::DropSnapshot { .. } => !has(name),
                    _ => false,
                };
            }
            Step::Move { storage, format, .. } => {
                verdict.already = *storage == volume.storage && *format == volume.format;
                verdict.refuse(!verdict.already && snapshots, "VOLUME_HAS_SNAPSHOTS");
                verdict.refuse(!verdict.already && aside, "VOLUME_IN_USE");
            }
            Step::HandOver { vmid, to_vm, .. } => {
                verdict.refuse(volume.at.is_none(), "VOLUME_NOT_ATTACHED");
                verdict.refuse(elsewhere(*vmid) || aside, "VOLUME_IN_USE");
                let there = volume.at.is_some_and(|(at, _)| at == *vmid);
                verdict.already = there && volume.name == Name::Pvc(if *to_vm { *vmid } else { RESERVED });
                let changes = there && !verdict.already;
                verdict.refuse(changes && self.in_guest(volume), "VM_RUNNING");
                verdict.refuse(changes && snapshots, "VOLUME_HAS_SNAPSHOTS");
            }
            Step::Delete { .. } => {
                verdict.refuse(volume.at.is_some() || aside, "VOLUME_IN_USE");
                verdict.refuse(snapshots, "VOLUME_HAS_SNAPSHOTS");
            }
            _ => {}
        }
        verdict
    }

    /// What is true after a step that was not refused.
    pub(super) fn apply(&mut self, step: &Step) {
        if self.judge(step).already {
            return;
        }
        match step {
            Step::Create { id, storage, format, mib, from } => {
                let source = from.as_ref().map(|(source, snapshot)| {
                    let source = self.volume(source);
                    let taken = |name: &String| source.snapshots.iter().find(|(n, _)| n == name).expect("a snapshot").1.clone();
                    (source.mib, snapshot.as_ref().map_or_else(|| source.blocks.clone(), taken))
                });
                let (least, blocks) = source.unwrap_or_default();
                let name = Name::Pvc(RESERVED);
                let volume = Volume {
                    storage,
                    format,
                    mib: least.max(*mib),
                    blocks,
                    snapshots: Vec::new(),
                    at: None,
                    aside: None,
                    name,
                    limits: (0, 0),
                };
                self.volumes.insert(id.clone(), volume);
            }
            Step::Attach { id, vmid } => {
                let slot = self.first_free(*vmid);
                self.change(id, |v| (v.at, v.aside) = (Some((*vmid, slot)), None));
            }
            Step::Detach { id, .. } => self.change(id, |v| {
                (v.at, v.aside, v.name, v.limits) = (None, None, Name::Pvc(RESERVED), (0, 0));
            }),
            Step::TakenOut { id } => self.change(id, |v| {
                let vmid = v.at.map(|(vmid, _)| vmid);
                // PVE notes as unused only what carries the VM's own number.
                (v.at, v.aside, v.limits) = (None, vmid.filter(|vmid| *vmid == v.name.vmid()), (0, 0));
            }),
            Step::Grow { id, mib } => self.change(id, |v| v.mib = *mib),
            Step::Limit { id, limits } => self.change(id, |v| v.limits = *limits),
            Step::Snapshot { id, name } => self.change(id, |v| v.snapshots.push((name.clone(), v.blocks.clone()))),
            Step::DropSnapshot { id, name } => self.change(id, |v| v.snapshots.retain(|(n, _)| n != name)),
            Step::RollBack { id, name } => self.change(id, |v| {
                v.blocks = v.snapshots.iter().find(|(n, _)| n == name).expect("a snapshot").1.clone();
            }),
            Step::Move { id, storage, format } => self.change(id, |v| {
                (v.storage, v.format) = (storage, format);
                // PVE gives what it moves a name of the VM's.
                if let Some((vmid, _)) = v.at {
                    v.name = Name::Disk(vmid);
                }
            }),
            Step::HandOver { id, vmid, to_vm } => self.change(id, |v| v.name = Name::Pvc(if *to_vm { *vmid } else { RESERVED })),
            Step::Delete { id } => drop(self.volumes.remove(id)),
            Step::Write { id, seed, mib } => self.change(id, |v| {
                let written = usize::try_from(*mib).expect("few");
                v.blocks.resize(v.blocks.len().max(written), 0);
                v.blocks[..written].fill(*seed);
            }),
            Step::Start { vmid } => self.vms.get_mut(vmid).expect("a VM").running = true,
            Step::Stop { vmid } => self.vms.get_mut(vmid).expect("a VM").running = false,
            Step::Cores { vmid, cores } => self.vms.get_mut(vmid).expect("a VM").cores = *cores,
            // What PVE called it is noted when it has been made.
            Step::OwnDisk { vmid, slot } => drop(self.vms.get_mut(vmid).expect("a VM").own.insert(*slot, String::new())),
            Step::OwnDiskGone { vmid, slot } => drop(self.vms.get_mut(vmid).expect("a VM").own.remove(slot)),
        }
    }

    fn change(&mut self, id: &str, change: impl FnOnce(&mut Volume)) {
        change(self.volumes.get_mut(id).expect("a volume"));
    }
}
