//! A volume in JSON and YAML.

use pvelet_proto::v1::{self, Volume, VolumeOwner};
use serde::Serialize;

use super::{ErrorView, OperationView, some, time};

/// `volumes`, `get volume`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Volumes {
    pub(in crate::cli) volumes: Vec<VolumeView>,
    /// Storages that could not be asked: without them the list is not whole.
    pub(in crate::cli) unreachable: Vec<UnreachableView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

/// `volumes reclaim`.
#[derive(Debug, Default, Serialize)]
pub(in crate::cli) struct Reclaimed {
    /// One for each host; none with `--dry-run`.
    pub(in crate::cli) operations: Vec<OperationView>,
    /// What is, or would be, removed.
    pub(in crate::cli) volumes: Vec<VolumeView>,
    /// The owner's volumes that are kept, each with the reason in `problem`.
    pub(in crate::cli) kept: Vec<VolumeView>,
    /// Volumes that nobody owns.
    pub(in crate::cli) nobodys: Vec<VolumeView>,
    pub(in crate::cli) unreachable: Vec<UnreachableView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

/// A storage that a host could not ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct UnreachableView {
    pub(in crate::cli) host: String,
    pub(in crate::cli) storage: String,
    pub(in crate::cli) message: String,
}

impl UnreachableView {
    /// Of `<storage>: <why>`.
    pub(in crate::cli) fn new(host: &str, text: &str) -> Self {
        let (storage, message) = text.split_once(": ").unwrap_or((text, "cannot be asked"));
        Self { host: host.to_owned(), storage: storage.to_owned(), message: message.to_owned() }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct VolumeView {
    /// The host whose agent told it.
    pub(in crate::cli) host: String,
    pub(in crate::cli) id: String,
    volid: String,
    pub(in crate::cli) storage: String,
    /// Whether it is on a storage that other hosts see too.
    shared: bool,
    pub(in crate::cli) format: String,
    pub(in crate::cli) size_bytes: u64,
    /// Null where PVE does not tell.
    pub(in crate::cli) used_bytes: Option<u64>,
    /// Null: nobody's.
    pub(in crate::cli) owner: Option<OwnerView>,
    /// Null: attached nowhere.
    pub(in crate::cli) attachment: Option<AttachmentView>,
    /// Oldest first. Absent in lists, where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshots: Option<Vec<SnapshotView>>,
    serial: String,
    device_path: String,
    name_vmid: u32,
    /// Null when it is well.
    pub(in crate::cli) problem: Option<String>,
    create_time: Option<String>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(in crate::cli) struct OwnerView {
    pub(in crate::cli) tenant: String,
    pub(in crate::cli) cluster: String,
    pub(in crate::cli) claim: String,
}

impl From<&VolumeOwner> for OwnerView {
    fn from(o: &VolumeOwner) -> Self {
        Self { tenant: o.tenant.clone(), cluster: o.cluster.clone(), claim: o.claim.clone() }
    }
}

impl OwnerView {
    /// `tenant/cluster:claim`, without what is empty.
    pub(in crate::cli) fn text(&self) -> String {
        let mut text = self.tenant.clone();
        if !self.cluster.is_empty() {
            text = format!("{text}/{}", self.cluster);
        }
        if !self.claim.is_empty() {
            text = format!("{text}:{}", self.claim);
        }
        text
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct AttachmentView {
    pub(in crate::cli) vmid: u32,
    uuid: String,
    pub(in crate::cli) node: String,
    /// Empty when only snapshots of the VM refer to it.
    pub(in crate::cli) slot: String,
    options: Option<OptionsView>,
    pub(in crate::cli) pending_attach: bool,
    pub(in crate::cli) pending_detach: bool,
    pub(in crate::cli) vm_snapshots: Vec<String>,
}

#[derive(Debug, Serialize)]
struct OptionsView {
    /// Empty: PVE's default.
    cache: String,
    /// Empty: PVE's default.
    aio: String,
    iothread: bool,
    discard: bool,
    ssd: bool,
    backup: bool,
    replicate: bool,
    read_only: bool,
    /// 0 is no limit.
    limits: LimitsView,
}

#[derive(Debug, Serialize)]
struct LimitsView {
    iops_read: u32,
    iops_write: u32,
    mbps_read: u32,
    mbps_write: u32,
}

#[derive(Debug, Serialize)]
struct SnapshotView {
    name: String,
    create_time: Option<String>,
}

impl From<&v1::DiskOptions> for OptionsView {
    fn from(o: &v1::DiskOptions) -> Self {
        let limits = o.limits.unwrap_or_default();
        Self {
            cache: o.cache.clone(),
            aio: o.aio.clone(),
            iothread: o.iothread,
            discard: o.discard,
            ssd: o.ssd,
            backup: o.backup.unwrap_or(false),
            replicate: o.replicate.unwrap_or(false),
            read_only: o.read_only,
            limits: LimitsView {
                iops_read: limits.iops_read,
                iops_write: limits.iops_write,
                mbps_read: limits.mbps_read,
                mbps_write: limits.mbps_write,
            },
        }
    }
}

impl From<&v1::VolumeAttachment> for AttachmentView {
    fn from(a: &v1::VolumeAttachment) -> Self {
        let vm = a.vm.clone().unwrap_or_default();
        Self {
            vmid: vm.vmid,
            uuid: vm.uuid,
            node: a.node.clone(),
            slot: a.slot.clone(),
            options: a.options.as_ref().map(OptionsView::from),
            pending_attach: a.pending_attach,
            pending_detach: a.pending_detach,
            vm_snapshots: a.vm_snapshots.clone(),
        }
    }
}

impl VolumeView {
    /// As a list tells it: without snapshots.
    pub(in crate::cli) fn new(host: &str, shared: bool, v: &Volume) -> Self {
        Self {
            host: host.to_owned(),
            id: v.id.clone(),
            volid: v.volid.clone(),
            storage: v.storage.clone(),
            shared,
            format: v.format.clone(),
            size_bytes: v.size_bytes,
            used_bytes: (v.used_bytes > 0).then_some(v.used_bytes),
            owner: v.owner.as_ref().map(OwnerView::from),
            attachment: v.attachment.as_ref().map(AttachmentView::from),
            snapshots: None,
            serial: v.serial.clone(),
            device_path: v.device_path.clone(),
            name_vmid: v.name_vmid,
            problem: some(&v.problem),
            create_time: v.create_time.as_ref().and_then(time),
        }
    }

    /// As GetVolume tells it.
    pub(in crate::cli) fn whole(host: &str, shared: bool, v: &Volume) -> Self {
        let snapshot = |s: &v1::VolumeSnapshot| SnapshotView { name: s.name.clone(), create_time: s.create_time.as_ref().and_then(time) };
        Self { snapshots: Some(v.snapshots.iter().map(snapshot).collect()), ..Self::new(host, shared, v) }
    }

    /// What people should know besides; empty when there is nothing.
    pub(in crate::cli) fn note(&self) -> String {
        let mut notes: Vec<String> = self.problem.iter().cloned().collect();
        if let Some(a) = &self.attachment {
            if a.node != self.host {
                notes.push(format!("VM on node {}", a.node));
            }
            if a.pending_attach {
                notes.push("comes with the VM's next start".to_owned());
            }
            if a.pending_detach {
                notes.push("the guest has not let go".to_owned());
            }
            if a.slot.starts_with("unused") {
                notes.push("put aside by PVE".to_owned());
            }
            if !a.vm_snapshots.is_empty() {
                notes.push(format!("in VM snapshots {}", a.vm_snapshots.join(",")));
            }
            if self.name_vmid == a.vmid {
                notes.push("under its VM's name".to_owned());
            }
        }
        notes.join(", ")
    }
}
