//! Steps, drawn by lot: most are such as succeed, some must be refused, some ask for what is so already.

use pvelet_tests::rng::Rng;

use super::world::{STORAGES, VMS, World};

/// At most so many volumes at once, so that steps meet.
const VOLUMES: usize = 5;
const FORMATS: [&str; 3] = ["raw", "qcow2", "qcow2"];
const SNAPSHOTS: [&str; 3] = ["before", "middle", "after"];
/// What steps are drawn from; names that stand twice are drawn more often.
const LOTS: &str = "create create copy copy snapshot-copy attach attach attach attach detach detach detach grow grow limit \
    snapshot snapshot snapshot drop-snapshot drop-snapshot roll-back roll-back move move move hand-over hand-over hand-over \
    delete delete start start stop stop hand-over write write write own-disk own-disk-gone cores taken-out taken-out";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Create {
        id: String,
        storage: &'static str,
        format: &'static str,
        mib: u64,
        from: Option<(String, Option<String>)>,
    },
    Attach {
        id: String,
        vmid: u32,
    },
    Detach {
        id: String,
        vmid: u32,
    },
    Grow {
        id: String,
        mib: u64,
    },
    Limit {
        id: String,
        limits: (u32, u32),
    },
    Snapshot {
        id: String,
        name: String,
    },
    DropSnapshot {
        id: String,
        name: String,
    },
    RollBack {
        id: String,
        name: String,
    },
    Move {
        id: String,
        storage: &'static str,
        format: &'static str,
    },
    HandOver {
        id: String,
        vmid: u32,
        to_vm: bool,
    },
    Delete {
        id: String,
    },
    Start {
        vmid: u32,
    },
    Stop {
        vmid: u32,
    },
    /// A guest, or whoever has the volume, writes to it.
    Write {
        id: String,
        seed: u64,
        mib: u64,
    },
    /// Somebody gives the VM a disk of its own, by PVE.
    OwnDisk {
        vmid: u32,
        slot: u32,
    },
    /// Somebody removes such a disk.
    OwnDiskGone {
        vmid: u32,
        slot: u32,
    },
    /// Somebody takes the volume out of its VM, by PVE.
    TakenOut {
        id: String,
    },
    /// Somebody changes the VM.
    Cores {
        vmid: u32,
        cores: u32,
    },
}

impl Step {
    /// The volume that it is about.
    pub(super) fn volume(&self) -> Option<&String> {
        match self {
            Self::Create { id, .. }
            | Self::Attach { id, .. }
            | Self::Detach { id, .. }
            | Self::Grow { id, .. }
            | Self::Limit { id, .. }
            | Self::Snapshot { id, .. }
            | Self::DropSnapshot { id, .. }
            | Self::RollBack { id, .. }
            | Self::Move { id, .. }
            | Self::HandOver { id, .. }
            | Self::Delete { id }
            | Self::TakenOut { id }
            | Self::Write { id, .. } => Some(id),
            _ => None,
        }
    }

    /// Beginnings of the names of the crash points that its operation passes; `None`: it is no operation of the agent's.
    pub(super) fn points(&self) -> Option<&'static [&'static str]> {
        Some(match self {
            Self::Create { .. } => &["create_volume."],
            Self::Attach { .. } => &["attach_volume.", "volume.config_called", "task.upid_written"],
            Self::Detach { .. } => &["detach_volume.", "volume.config_called", "task.upid_written"],
            Self::Grow { .. } => &["grow_volume.", "task.upid_written"],
            Self::Limit { .. } => &["volume.config_called", "task.upid_written"],
            Self::Snapshot { .. } => &["snapshot_volume."],
            Self::DropSnapshot { .. } => &["delete_volume_snapshot."],
            Self::RollBack { .. } => &["roll_back_volume."],
            Self::Move { .. } => &["move_volume.", "task.upid_written"],
            Self::HandOver { .. } => &["hand_over_volume."],
            Self::Delete { .. } => &["delete_volume."],
            Self::Start { .. } | Self::Stop { .. } => &["power.", "task.upid_written"],
            Self::Write { .. } | Self::OwnDisk { .. } | Self::OwnDiskGone { .. } | Self::Cores { .. } | Self::TakenOut { .. } => {
                return None;
            }
        })
    }

    /// The next step.
    pub(super) fn draw(rng: &mut Rng, world: &World) -> Self {
        let lots: Vec<&str> = LOTS.split_ascii_whitespace().collect();
        loop {
            let lot = rng.pick(&lots);
            let Some(step) = Self::drawn(lot, rng, world) else { continue };
            let verdict = world.judge(&step);
            let keep = match (verdict.reasons.is_empty(), verdict.already) {
                (true, false) => true,
                (_, true) => rng.chance(20),
                (false, false) => rng.chance(15),
            };
            if keep {
                return step;
            }
        }
    }

    fn drawn(lot: &str, rng: &mut Rng, world: &World) -> Option<Self> {
        let ids: Vec<String> = world.volumes.keys().cloned().collect();
        // Now and then what does not exist, or is somebody else's.
        let id = match rng.below(25) {
            0 => rng.uuid(),
            1 => world.nobodys.clone(),
            2 => world.others.clone(),
            _ if ids.is_empty() => rng.uuid(),
            _ => rng.pick(&ids),
        };
        let known = world.volumes.get(&id);
        let here = known.and_then(|v| v.at.map(|(vmid, _)| vmid).or(v.aside));
        let vmid = here.filter(|_| !rng.chance(15)).unwrap_or_else(|| rng.pick(&VMS));
        let (storage, format) = (rng.pick(&STORAGES).0, rng.pick(&FORMATS));
        // A volume without an owner is in the way only where it lies.
        let (storage, format) = if id == world.nobodys { ("local", "raw") } else { (storage, format) };
        let mib = rng.between(1, 3);
        let name = {
            let names: Vec<&str> = known.map(|v| v.snapshots.iter().map(|(n, _)| n.as_str()).collect()).unwrap_or_default();
            (if names.is_empty() || lot == "snapshot" || rng.chance(10) { rng.pick(&SNAPSHOTS) } else { rng.pick(&names) }).to_owned()
        };
        Some(match lot {
            "create" | "copy" | "snapshot-copy" => {
                if ids.len() >= VOLUMES {
                    return None;
                }
                let new = if rng.chance(4) { id.clone() } else { rng.uuid() };
                let from = match lot {
                    "create" => None,
                    "copy" => Some((id, None)),
                    _ => Some((id, Some(name))),
                };
                let mib = if from.is_some() && rng.chance(60) { 0 } else { mib };
                Self::Create { id: new, storage, format, mib, from }
            }
            "attach" => Self::Attach { id, vmid: rng.pick(&VMS) },
            "detach" => Self::Detach { id, vmid },
            "grow" => Self::Grow { id, mib: (known.map_or(1, |v| v.mib) + rng.below(3) - u64::from(rng.chance(30))).max(1) },
            "limit" => Self::Limit { id, limits: rng.pick(&[(0, 0), (500, 0), (0, 20), (700, 30)]) },
            "snapshot" => Self::Snapshot { id, name },
            "drop-snapshot" => Self::DropSnapshot { id, name },
            "roll-back" => Self::RollBack { id, name },
            "move" => Self::Move { id, storage, format },
            "hand-over" => Self::HandOver { id, vmid, to_vm: rng.chance(60) },
            "delete" => Self::Delete { id },
            "start" => Self::Start { vmid },
            "stop" => Self::Stop { vmid },
            "write" => {
                let volume = known.filter(|v| !world.in_guest(v))?;
                Self::Write { mib: rng.between(1, volume.mib), id, seed: rng.number() | 1 }
            }
            "own-disk" => {
                let slot = u32::try_from(rng.between(1, 5)).expect("few");
                (world.is_free(vmid, slot) && world.vms[&vmid].own.len() < 2).then_some(Self::OwnDisk { vmid, slot })?
            }
            "own-disk-gone" => {
                // The one that was there before the sequence stays.
                let mut slots = world.vms[&vmid].own.keys().copied();
                slots.find(|slot| (vmid, *slot) != super::PLANTED_DISK).map(|slot| Self::OwnDiskGone { vmid, slot })?
            }
            "taken-out" => known?.at.map(|_| Self::TakenOut { id })?,
            _ => Self::Cores { vmid, cores: u32::try_from(rng.between(1, 4)).expect("few") },
        })
    }

    /// What brings everything back to how it was before the sequence.
    pub(super) fn tidying(world: &World) -> Vec<Self> {
        let mut steps = Vec::new();
        for (vmid, vm) in &world.vms {
            if vm.running {
                steps.push(Self::Stop { vmid: *vmid });
            }
            let own = vm.own.keys().filter(|slot| (*vmid, **slot) != super::PLANTED_DISK);
            steps.extend(own.map(|slot| Self::OwnDiskGone { vmid: *vmid, slot: *slot }));
        }
        for (id, volume) in &world.volumes {
            steps.extend(volume.snapshots.iter().map(|(name, _)| Self::DropSnapshot { id: id.clone(), name: name.clone() }));
            steps.extend(volume.at.map(|(vmid, _)| vmid).or(volume.aside).map(|vmid| Self::Detach { id: id.clone(), vmid }));
            steps.push(Self::Delete { id: id.clone() });
        }
        steps
    }
}
