//! The command line of volumes.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use pvelet_proto::{
    v1,
    volume::{IOPS_MAX, MBPS_MAX},
};

use super::Mutation;
use crate::cli::parse::{self, ImageArg, SnapshotArg, VolumeArg};

#[derive(Debug, Args)]
#[command(after_help = "\
A volume is named by its id, or by the id's first 8 or more digits, wherever it is; a VM by name, VMID or UUID.

Examples:
  pveletctl volumes                                 all volumes, each once
  pveletctl volumes --storage local-lvm --nobodys   those on a storage that nobody owns
  pveletctl volumes create --host pve1 --storage local-lvm --size 10G
  pveletctl volumes attach 0b951f20 web-1 --discard --iops-write 2000
  pveletctl volumes detach 0b951f20 web-1
  pveletctl volumes delete 0b951f20 --yes
  pveletctl get volume 0b951f20                     everything about one, its snapshots included")]
pub(in crate::cli) struct Volumes {
    #[command(flatten)]
    pub(in crate::cli) filter: VolumeFilter,
    #[command(subcommand)]
    pub(in crate::cli) verb: Option<VolumeVerb>,
}

/// Which volumes are listed.
#[derive(Debug, Args)]
pub(in crate::cli) struct VolumeFilter {
    /// Only those on this storage
    #[arg(long, value_parser = parse::storage)]
    pub(in crate::cli) storage: Option<String>,
    /// Only this tenant's
    #[arg(long, value_parser = parse::tenant)]
    pub(in crate::cli) tenant: Option<String>,
    /// Only those of this cluster
    #[arg(long, value_parser = parse::cluster)]
    pub(in crate::cli) cluster: Option<String>,
    /// Only the one for this claim
    #[arg(long, value_parser = parse::claim)]
    pub(in crate::cli) claim: Option<String>,
    /// Only those that nobody owns
    #[arg(long, conflicts_with_all = ["tenant", "cluster", "claim"])]
    pub(in crate::cli) nobodys: bool,
}

impl VolumeFilter {
    /// The first option that is given.
    pub(in crate::cli) fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("--storage", self.storage.is_some()),
            ("--tenant", self.tenant.is_some()),
            ("--cluster", self.cluster.is_some()),
            ("--claim", self.claim.is_some()),
            ("--nobodys", self.nobodys),
        ];
        given.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

    pub(in crate::cli) fn request(&self) -> v1::ListVolumesRequest {
        let text = |option: &Option<String>| option.clone().unwrap_or_default();
        v1::ListVolumesRequest {
            storage: text(&self.storage),
            tenant: text(&self.tenant),
            cluster: text(&self.cluster),
            claim: text(&self.claim),
            nobodys: self.nobodys,
            page_size: 0,
            page_token: String::new(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum VolumeVerb {
    /// Make a volume: empty, or as a copy of a volume, a snapshot or an image
    Create(Box<CreateVolume>),
    /// Remove volumes that are attached nowhere and have no snapshots
    Delete(DeleteVolumes),
    /// Attach a volume to a VM, hot where it runs, and print where its guest finds it
    Attach(Box<AttachVolume>),
    /// Detach a volume from a VM
    Detach(VolumeAndVm),
    /// Grow a volume to a size
    Grow(GrowVolume),
    /// Change limits of an attached volume, at once where its VM runs
    Limits(VolumeLimits),
    /// Take a snapshot of a volume
    Snapshot(VolumeSnapshot),
    /// Remove a snapshot of a volume
    DeleteSnapshot(SureSnapshot),
    /// Bring a volume back to a snapshot
    RollBack(SureSnapshot),
    /// Move a volume to another storage, or to another format on its own
    Move(MoveVolume),
    /// Put an attached volume of a stopped VM under the VM's name, which PVE needs to migrate it, or back under the reserved one
    HandOver(HandOver),
    /// Remove the detached volumes of an owner that is gone
    Reclaim(Reclaim),
    /// Count volumes and bytes of each owner and storage
    Usage {
        /// Only this tenant's
        #[arg(long, value_parser = parse::tenant)]
        tenant: Option<String>,
    },
}

/// A word of a closed list as it is written, on the command line and in the API; empty where none is given.
pub(in crate::cli) fn word<T: ValueEnum>(value: Option<T>) -> String {
    value.and_then(|v| v.to_possible_value()).map(|v| v.get_name().to_owned()).unwrap_or_default()
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum DiskFormat {
    Raw,
    Qcow2,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pveletctl volumes create --host pve1 --storage local-lvm --size 10G
  pveletctl volumes create --host pve1 --storage ceph --size 10G --cluster prod --claim shop/data-0 --tenant team-a
  pveletctl volumes create --storage local-lvm --from-snapshot 0b951f20@before-upgrade
  pveletctl volumes create --host pve1 --storage local-lvm --image debian-13.qcow2 --sha256 4a5e...")]
#[command(group = ArgGroup::new("source").args(["from_volume", "from_snapshot", "image"]))]
#[command(group = ArgGroup::new("filled").args(["size", "from_volume", "from_snapshot", "image"]).multiple(true).required(true))]
pub(in crate::cli) struct CreateVolume {
    /// Where to make it
    #[arg(long, value_parser = parse::storage)]
    pub(in crate::cli) storage: String,
    /// Its size, such as 512M or 10G; default: the source's
    #[arg(long, value_parser = parse::disk_bytes)]
    pub(in crate::cli) size: Option<u64>,
    /// Its format; default: the storage's own (`format` in storage.cfg), else raw
    #[arg(long)]
    pub(in crate::cli) format: Option<DiskFormat>,
    /// Its id; default: the agent chooses. With an id that exists already nothing is made twice
    #[arg(long, value_name = "UUID", value_parser = parse::volume_id)]
    pub(in crate::cli) id: Option<String>,
    /// For which Kubernetes cluster or installation
    #[arg(long, value_parser = parse::cluster)]
    pub(in crate::cli) cluster: Option<String>,
    /// For which claim there
    #[arg(long, value_parser = parse::claim)]
    pub(in crate::cli) claim: Option<String>,
    /// A copy of this volume; where it is attached, its VM must be stopped
    #[arg(long, value_name = "VOLUME", value_parser = parse::volume)]
    pub(in crate::cli) from_volume: Option<VolumeArg>,
    /// A copy of this snapshot
    #[arg(long, value_name = "VOLUME@SNAPSHOT", value_parser = parse::volume_snapshot)]
    pub(in crate::cli) from_snapshot: Option<SnapshotArg>,
    /// A copy of this image: a path below an import folder of the agent, or STORAGE:import/NAME
    #[arg(long, value_parser = parse::image)]
    pub(in crate::cli) image: Option<ImageArg>,
    /// The image's format; default: told by its content
    #[arg(long, value_name = "FORMAT", requires = "image")]
    pub(in crate::cli) image_format: Option<DiskFormat>,
    /// The image's SHA-256, which is checked
    #[arg(long, value_name = "HEX", value_parser = parse::sha256, requires = "image")]
    pub(in crate::cli) sha256: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) mutation: Mutation,
}

/// One volume.
#[derive(Debug, Args)]
pub(in crate::cli) struct OneVolume {
    /// Its id, or the id's first 8 or more digits
    #[arg(value_parser = parse::volume)]
    pub(in crate::cli) volume: VolumeArg,
    /// The storage it is on; needed only to tell two of them apart
    #[arg(long, value_parser = parse::storage)]
    pub(in crate::cli) storage: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) mutation: Mutation,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct DeleteVolumes {
    /// Their ids, or the ids' first 8 or more digits
    #[arg(required = true, value_name = "VOLUME", value_parser = parse::volume)]
    pub(in crate::cli) volumes: Vec<VolumeArg>,
    /// The storage they are on
    #[arg(long, value_parser = parse::storage)]
    pub(in crate::cli) storage: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    #[command(flatten)]
    pub(in crate::cli) mutation: Mutation,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct VolumeAndVm {
    #[command(flatten)]
    pub(in crate::cli) on: OneVolume,
    /// The VM's name, VMID or UUID
    pub(in crate::cli) vm: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  pveletctl volumes attach 0b951f20 web-1 --discard --iothread --iops-write 2000
  pveletctl volumes attach 0b951f20 1004 --cache none --aio native --read-only")]
pub(in crate::cli) struct AttachVolume {
    #[command(flatten)]
    pub(in crate::cli) what: VolumeAndVm,
    /// How the host caches it; default: none
    #[arg(long, value_enum)]
    pub(in crate::cli) cache: Option<Cache>,
    /// How the host reads and writes it; default: io_uring
    #[arg(long, value_enum)]
    pub(in crate::cli) aio: Option<Aio>,
    /// A thread of its own; the VM needs the controller virtio-scsi-single
    #[arg(long)]
    pub(in crate::cli) iothread: bool,
    /// Pass TRIM on to the storage
    #[arg(long)]
    pub(in crate::cli) discard: bool,
    /// Show it to the guest as an SSD
    #[arg(long)]
    pub(in crate::cli) ssd: bool,
    /// Hold it in PVE's backups of the VM, which restore it under the VM's name
    #[arg(long)]
    pub(in crate::cli) backup: bool,
    /// Copy it by PVE's replication
    #[arg(long)]
    pub(in crate::cli) replicate: bool,
    /// The guest may only read
    #[arg(long)]
    pub(in crate::cli) read_only: bool,
    #[command(flatten)]
    pub(in crate::cli) limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Cache {
    None,
    Directsync,
    Writethrough,
    Writeback,
    Unsafe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Aio {
    #[value(name = "io_uring")]
    IoUring,
    /// Needs cache none or directsync
    Native,
    Threads,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Limits {
    /// Reads a second, up to 10000000; 0 is no limit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(IOPS_MAX)))]
    pub(in crate::cli) iops_read: Option<u32>,
    /// Writes a second, up to 10000000; 0 is no limit
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(IOPS_MAX)))]
    pub(in crate::cli) iops_write: Option<u32>,
    /// MiB read a second, up to 100000; 0 is no limit
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(0..=i64::from(MBPS_MAX)))]
    pub(in crate::cli) mbps_read: Option<u32>,
    /// MiB written a second, up to 100000; 0 is no limit
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(0..=i64::from(MBPS_MAX)))]
    pub(in crate::cli) mbps_write: Option<u32>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct GrowVolume {
    #[command(flatten)]
    pub(in crate::cli) on: OneVolume,
    /// The size it is to have, such as 20G
    #[arg(value_parser = parse::disk_bytes)]
    pub(in crate::cli) size: u64,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A limit that is not given stays as it is; 0 lifts it.

Example:
  pveletctl volumes limits 0b951f20 --iops-write 2000 --mbps-read 0")]
#[command(group = ArgGroup::new("limit").args(["iops_read", "iops_write", "mbps_read", "mbps_write"]).multiple(true).required(true))]
pub(in crate::cli) struct VolumeLimits {
    #[command(flatten)]
    pub(in crate::cli) on: OneVolume,
    #[command(flatten)]
    pub(in crate::cli) limits: Limits,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct VolumeSnapshot {
    #[command(flatten)]
    pub(in crate::cli) on: OneVolume,
    /// The snapshot's name
    #[arg(value_parser = parse::snapshot)]
    pub(in crate::cli) name: String,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct SureSnapshot {
    #[command(flatten)]
    pub(in crate::cli) snapshot: VolumeSnapshot,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct MoveVolume {
    #[command(flatten)]
    pub(in crate::cli) on: OneVolume,
    /// The storage to move it to
    #[arg(value_name = "TO_STORAGE", value_parser = parse::storage)]
    pub(in crate::cli) to: String,
    /// The format it is to have there; default: its own where the storage has that, else raw
    #[arg(long)]
    pub(in crate::cli) format: Option<DiskFormat>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct HandOver {
    #[command(flatten)]
    pub(in crate::cli) what: VolumeAndVm,
    /// Under whose name
    #[arg(long, value_enum)]
    pub(in crate::cli) to: NameOf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum NameOf {
    /// The VM's: PVE counts the volume to the VM
    Vm,
    /// The reserved one
    Reserved,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is attached, has snapshots, or belongs to nobody is kept and told.

Examples:
  pveletctl volumes reclaim --tenant team-a --cluster prod --dry-run
  pveletctl volumes reclaim --tenant team-a --all-clusters")]
#[command(group = ArgGroup::new("of").args(["tenant"]).required(true))]
pub(in crate::cli) struct Reclaim {
    /// Those of this cluster; default: those of no cluster
    #[arg(long, value_parser = parse::cluster)]
    pub(in crate::cli) cluster: Option<String>,
    /// Those of every cluster of the tenant
    #[arg(long, conflicts_with = "cluster")]
    pub(in crate::cli) all_clusters: bool,
    /// Tell only what would be removed
    #[arg(long, conflicts_with_all = ["yes", "request_id", "no_wait", "timeout"])]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    #[command(flatten)]
    pub(in crate::cli) mutation: Mutation,
}
