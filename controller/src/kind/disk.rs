//! `spec.disks`: volumes that a machine's VM has beside the disks of its template.

use std::collections::BTreeSet;

use pvelet_proto::{v1, volume::VolumeId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    DeletionPolicy, MachineSpec, Metadata, Quantity,
    schema::{self, field_rule, rule},
};

/// A disk. It is made, unless `existing` names one, and attached to the VM before that starts for the first time; later it is attached hot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "[has(self.image), has(self.snapshot), has(self.volume), has(self.existing)].filter(given, given).size() <= 1",
        "use one of image, snapshot, volume and existing, or none for an empty disk",
    ),
    field_rule(
        "size",
        "has(self.size) || has(self.image) || has(self.snapshot) || has(self.volume) || has(self.existing)",
        "an empty disk needs a size, such as 20Gi",
    ),
    field_rule("storage", "has(self.storage) || has(self.existing)", "name the storage that the disk is made on"),
    field_rule("format", "!has(self.format) || !has(self.existing)", "an existing volume has its format; leave it out"),
    field_rule(
        "deletionPolicy",
        "!has(self.existing) || !has(self.deletionPolicy) || self.deletionPolicy != 'Delete'",
        "a volume that this machine did not make is not deleted with it; use Retain or leave it out",
    ),
    field_rule(
        "aio",
        "!has(self.aio) || self.aio != 'native' || !has(self.cache) || self.cache in ['none', 'directsync']",
        "native needs cache none or directsync",
    ),
]))]
pub struct DiskSpec {
    /// A DNS label, unique in the machine. The volume's id follows from it and the machine's uid.
    #[schemars(with = "schema::Label")]
    pub name: String,
    /// Size in whole MiB; it can only grow. May be left out where there is a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::VolumeSize>")]
    pub size: Option<Quantity>,
    /// The storage it is made on; with `existing`, the one to look for it on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::StorageId>")]
    pub storage: Option<String>,
    /// Format of a disk that is made; absent for the default of the storage (`format` in storage.cfg, else raw).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// Filled with an image when it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// Made as a copy of a volume's snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotSpec>,
    /// Made as a copy of the volume with this id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::VolumeUuid>")]
    pub volume: Option<String>,
    /// Not made: the volume with this id is attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::VolumeUuid>")]
    pub existing: Option<String>,
    /// What becomes of the volume when the machine goes, or the disk leaves its spec. Absent: a disk that was made is deleted, an existing one
    /// is kept; `Delete` is refused for an existing one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// `none` (PVE's default), `directsync`, `writethrough`, `writeback`, `unsafe`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Cache>")]
    pub cache: Option<String>,
    /// `io_uring` (PVE's default), `native`, `threads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Aio>")]
    pub aio: Option<String>,
    /// A thread of its own; the template needs `scsihw: virtio-scsi-single`.
    #[serde(default)]
    pub iothread: bool,
    /// Pass TRIM on to the storage.
    #[serde(default)]
    pub discard: bool,
    /// Show it to the guest as an SSD.
    #[serde(default)]
    pub ssd: bool,
    /// Whether PVE's backups of the VM hold it; absent: they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<bool>,
    /// Whether PVE's replication copies it; absent: it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicate: Option<bool>,
    /// The guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// Bounds on what the guest does to it; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<DiskLimits>,
}

/// Format of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DiskFormat {
    /// The bytes themselves.
    Raw,
    /// QEMU's own, on file storages.
    Qcow2,
}

/// An image to fill a disk with: one of `file` and `volid`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [rule("has(self.file) != has(self.volid)", "name the image either by file: or by volid:")]))]
pub struct ImageSpec {
    /// Path below one of the folders that the agent's configuration allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::ImageFile>")]
    pub file: Option<String>,
    /// PVE's volume id of an image of content type import.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::ImageVolid>")]
    pub volid: Option<String>,
    /// The image's format; absent: told by its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<DiskFormat>,
    /// SHA-256 of the image, hexadecimal; absent: not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::Sha256>")]
    pub sha256: Option<String>,
}

/// A snapshot to copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotSpec {
    /// The volume's id.
    #[schemars(with = "schema::VolumeUuid")]
    pub volume: String,
    /// The snapshot's name.
    #[schemars(with = "schema::SnapshotName")]
    pub name: String,
}

/// Bounds on what a guest does to a disk; 0 or absent is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskLimits {
    /// Reads a second.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10_000_000))]
    pub iops_read: u32,
    /// Writes a second.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10_000_000))]
    pub iops_write: u32,
    /// MiB read a second.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub mbps_read: u32,
    /// MiB written a second.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub mbps_write: u32,
}

impl DiskFormat {
    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl DiskLimits {
    /// As the API has them.
    pub fn to_message(self) -> v1::DiskLimits {
        v1::DiskLimits { iops_read: self.iops_read, iops_write: self.iops_write, mbps_read: self.mbps_read, mbps_write: self.mbps_write }
    }
}

impl DiskSpec {
    /// The volume's id. That of a made one follows from the machine and the disk's name alone, so that a crash between a call and the
    /// status that remembers it never makes a second one, and a machine made anew finds its disks again.
    pub fn volume_id(&self, machine_uid: &str) -> VolumeId {
        if let Some(id) = self.existing.as_deref().and_then(|text| text.parse().ok()) {
            return id;
        }
        let uuid = match Uuid::try_parse(machine_uid) {
            Ok(machine) => Uuid::new_v5(&machine, self.name.as_bytes()),
            // The store gives UUIDs; another store may not.
            Err(_) => Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{machine_uid}/{}", self.name).as_bytes()),
        };
        VolumeId::new(uuid)
    }

    /// Whether the volume is made for the machine.
    pub fn is_made(&self) -> bool {
        self.existing.is_none()
    }

    /// What becomes of the volume, with the default filled in.
    pub fn policy(&self) -> DeletionPolicy {
        let default = if self.is_made() { DeletionPolicy::Delete } else { DeletionPolicy::Retain };
        self.deletion_policy.unwrap_or(default)
    }

    /// The wanted limits; those that are left out are none.
    pub fn wanted_limits(&self) -> DiskLimits {
        self.limits.unwrap_or_default()
    }

    /// How it is attached.
    pub fn options(&self) -> v1::DiskOptions {
        v1::DiskOptions {
            cache: self.cache.clone().unwrap_or_default(),
            aio: self.aio.clone().unwrap_or_default(),
            iothread: self.iothread,
            discard: self.discard,
            ssd: self.ssd,
            backup: self.backup,
            replicate: self.replicate,
            read_only: self.read_only,
            limits: Some(self.wanted_limits().to_message()),
        }
    }

    /// Identifies the options that only attaching anew can change: all but the limits.
    pub fn options_hash(&self) -> String {
        let options = v1::DiskOptions { limits: None, ..self.options() };
        hex::encode(&Sha256::digest(prost::Message::encode_to_vec(&options))[..8])
    }
}

/// For what a machine's disk is made, as its owner record says: `machine/<object>/<disk>`, with the namespace before the object's name
/// where it is not the default one.
pub fn claim(metadata: &Metadata, disk: &str) -> String {
    format!("machine/{}/{disk}", metadata.key())
}

impl MachineSpec {
    /// The disks with their volumes' ids; those of made ones follow from this uid ([`super::PveMachine::disks`]).
    pub fn disks_of(&self, machine_uid: &str) -> Vec<(VolumeId, &DiskSpec)> {
        let mut seen = BTreeSet::new();
        // The check refuses two disks of one volume; should one slip through, the first counts.
        self.disks.iter().map(|disk| (disk.volume_id(machine_uid), disk)).filter(|(id, _)| seen.insert(*id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "11111111-1111-4111-8111-111111111111";

    fn disk(name: &str) -> DiskSpec {
        DiskSpec { name: name.into(), ..DiskSpec::default() }
    }

    #[test]
    fn a_made_disks_id_is_the_same_for_ever_and_another_for_each_disk_and_machine() {
        let id = disk("data").volume_id(UID);
        assert_eq!(id.to_string(), "45aa0f64-4ff8-59b8-adad-e51f5b083b1f");
        assert_ne!(id, disk("wal").volume_id(UID));
        assert_ne!(id, disk("data").volume_id("22222222-2222-4222-8222-222222222222"));
        assert_ne!(id, disk("data").volume_id("not-a-uuid"));
    }

    #[test]
    fn an_existing_disk_has_its_own_id_and_is_kept() {
        let text = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";
        let existing = DiskSpec { existing: Some(text.into()), ..disk("data") };
        assert_eq!(existing.volume_id(UID).to_string(), text);
        assert_eq!((existing.policy(), disk("data").policy()), (DeletionPolicy::Retain, DeletionPolicy::Delete));
    }

    #[test]
    fn limits_are_no_reason_to_attach_anew_and_other_options_are() {
        let limited = DiskSpec { limits: Some(DiskLimits { iops_read: 5, ..DiskLimits::default() }), ..disk("data") };
        assert_eq!(limited.options_hash(), disk("data").options_hash());
        assert_ne!(DiskSpec { ssd: true, ..disk("data") }.options_hash(), disk("data").options_hash());
    }

    #[test]
    fn a_claim_names_object_and_disk() {
        let mut metadata = Metadata { name: "db-1".into(), ..Metadata::default() };
        assert_eq!(claim(&metadata, "data"), "machine/db-1/data");
        metadata.namespace = Some("team".into());
        assert_eq!(claim(&metadata, "data"), "machine/team/db-1/data");
    }
}
