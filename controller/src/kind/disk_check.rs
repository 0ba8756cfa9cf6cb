//! What is wrong with a machine's disks. The rules are the API's (`proto/pvelet/v1/volume.proto`).

use std::collections::HashMap;

use pvelet_proto::{
    id,
    volume::{AIOS, BYTES_MAX, CACHES, IOPS_MAX, MBPS_MAX, VolumeId},
};

use super::{
    DeletionPolicy, DiskSpec, Metadata,
    check::Checker,
    disk::{DiskLimits, ImageSpec, claim},
};

/// virtio-scsi has scsi0 to scsi30, and scsi0 is the boot disk's; proxmox-csi, which shares the slots, ends at scsi29.
const MAX_DISKS: usize = 29;

pub(super) fn check(c: &mut Checker, metadata: &Metadata, disks: &[DiskSpec]) {
    c.require(disks.len() <= MAX_DISKS, "spec.disks", disks.len(), "use at most 29; there are no more slots");
    let (mut names, mut volumes) = (HashMap::new(), HashMap::new());
    for (i, disk) in disks.iter().enumerate() {
        let at = |field: &str| format!("spec.disks[{i}].{field}");
        if let Some(first) = names.insert(&disk.name, i) {
            c.require(false, &at("name"), &disk.name, &format!("spec.disks[{first}] has that name already; give each disk its own"));
        }
        if let Some(first) = disk.existing.as_ref().and_then(|id| volumes.insert(id, i)) {
            let text = format!("spec.disks[{first}] attaches that volume already; leave one of them out");
            c.require(false, &at("existing"), disk.existing.as_deref().unwrap_or_default(), &text);
        }
        check_disk(c, metadata, disk, &at);
    }
}

fn check_disk(c: &mut Checker, metadata: &Metadata, disk: &DiskSpec, at: &dyn Fn(&str) -> String) {
    let label = !disk.name.contains('.') && id::tenant(&disk.name).is_ok();
    c.require(
        label,
        &at("name"),
        &disk.name,
        "use 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
    );
    let claim = claim(metadata, &disk.name);
    c.require(claim.len() <= id::CLAIM_MAX, &at("name"), &claim, "the volume's owner record holds 253 characters; use shorter names");
    let sources = sources(disk);
    c.require(
        sources.len() <= 1,
        &at(sources.get(1).copied().unwrap_or_default()),
        sources.join(", "),
        "use one of image, snapshot, volume and existing, or none for an empty disk",
    );
    size(c, disk, at);
    if let Some(storage) = &disk.storage {
        c.id(&at("storage"), id::storage(storage));
    } else {
        c.require(disk.existing.is_some(), &at("storage"), "", "name the storage that the disk is made on");
    }
    if let Some(image) = &disk.image {
        check_image(c, image, at);
    }
    if let Some(snapshot) = &disk.snapshot {
        c.id(&at("snapshot.volume"), snapshot.volume.parse::<VolumeId>());
        c.id(&at("snapshot.name"), id::snapshot(&snapshot.name));
    }
    if let Some(volume) = &disk.volume {
        c.id(&at("volume"), volume.parse::<VolumeId>());
    }
    if let Some(existing) = &disk.existing {
        c.id(&at("existing"), existing.parse::<VolumeId>());
        if let Some(format) = disk.format {
            c.require(false, &at("format"), format.as_str(), "an existing volume has its format; leave it out");
        }
        c.require(
            disk.deletion_policy != Some(DeletionPolicy::Delete),
            &at("deletionPolicy"),
            "Delete",
            "a volume that this machine did not make is not deleted with it; use Retain or leave it out",
        );
    }
    options(c, disk, at);
}

fn sources(disk: &DiskSpec) -> Vec<&'static str> {
    let given = [
        ("image", disk.image.is_some()),
        ("snapshot", disk.snapshot.is_some()),
        ("volume", disk.volume.is_some()),
        ("existing", disk.existing.is_some()),
    ];
    given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
}

fn size(c: &mut Checker, disk: &DiskSpec, at: &dyn Fn(&str) -> String) {
    match disk.size {
        Some(size) => c.require(
            size.0 > 0 && size.0 <= BYTES_MAX && size.0.is_multiple_of(1 << 20),
            &at("size"),
            size,
            "use whole MiB from 1Mi to 1Pi, such as 20Gi; a number without a unit means bytes",
        ),
        None => c.require(!sources(disk).is_empty(), &at("size"), "", "an empty disk needs a size, such as 20Gi"),
    }
}

fn check_image(c: &mut Checker, image: &ImageSpec, at: &dyn Fn(&str) -> String) {
    let given = [&image.file, &image.volid].into_iter().flatten().cloned().collect::<Vec<_>>();
    c.require(given.len() == 1, &at("image"), given.join(", "), "name the image either by file: or by volid:");
    if let Some(file) = &image.file {
        let ok = !file.is_empty() && !file.starts_with('/') && file.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        let rule = "use a path below one of the agent's import folders, without a leading '/' and without '..'";
        c.require(ok && !file.contains(char::is_control), &at("image.file"), file, rule);
    }
    if let Some(volid) = &image.volid {
        let ok = volid.split_once(':').is_some_and(|(storage, name)| id::storage(storage).is_ok() && name.starts_with("import/"));
        c.require(ok, &at("image.volid"), volid, "use PVE's volume id of an image to import, such as local:import/debian-13.qcow2");
    }
    if let Some(sum) = &image.sha256 {
        let ok = sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        c.require(ok, &at("image.sha256"), sum, "use 64 hexadecimal digits, such as sha256sum prints");
    }
}

fn options(c: &mut Checker, disk: &DiskSpec, at: &dyn Fn(&str) -> String) {
    if let Some(cache) = &disk.cache {
        c.require(CACHES.contains(&cache.as_str()), &at("cache"), cache, "use none, directsync, writethrough, writeback or unsafe");
    }
    if let Some(aio) = &disk.aio {
        c.require(AIOS.contains(&aio.as_str()), &at("aio"), aio, "use io_uring, native or threads");
        let direct = matches!(disk.cache.as_deref(), None | Some("none" | "directsync"));
        c.require(aio != "native" || direct, &at("aio"), aio, "native needs cache none or directsync");
    }
    let DiskLimits { iops_read, iops_write, mbps_read, mbps_write } = disk.wanted_limits();
    for (field, value, max) in [
        ("limits.iopsRead", iops_read, IOPS_MAX),
        ("limits.iopsWrite", iops_write, IOPS_MAX),
        ("limits.mbpsRead", mbps_read, MBPS_MAX),
        ("limits.mbpsWrite", mbps_write, MBPS_MAX),
    ] {
        c.require(value <= max, &at(field), value, &format!("use at most {max}, or 0 for no limit"));
    }
}

#[cfg(test)]
mod tests {
    use crate::kind::parse;

    const VOLUME: &str = "0b951f20-53f9-4634-b1ce-5e6c3aa3a726";

    fn mistakes(disks: &str) -> Vec<String> {
        let disks = disks.replace("VOLUME", VOLUME);
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: db-1}}\nspec: {{source: {{template: 9000}}, disks: {disks}}}\n"
        );
        parse(&text).1.into_iter().flat_map(|p| p.mistakes).map(|m| m.to_string()).collect()
    }

    #[test]
    fn the_example_is_sound() {
        let (manifests, problems) = parse(include_str!("../../../docs/examples/db-1.yaml"));
        assert_eq!((manifests.len(), problems), (1, vec![]));
    }

    #[test]
    fn every_kind_of_disk_is_taken() {
        let told = mistakes(
            "[{name: data, size: 10Gi, storage: fast}, {name: sys, storage: fast, image: {file: a/b.qcow2, format: qcow2}}, \
             {name: iso, size: 4Gi, storage: fast, image: {volid: 'local:import/x.raw'}}, \
             {name: old, storage: fast, snapshot: {volume: VOLUME, name: before}}, {name: copy, storage: fast, volume: VOLUME}, \
             {name: mine, existing: VOLUME, size: 20Gi, deletionPolicy: Retain}, \
             {name: fine, size: 1Mi, storage: fast, format: raw, cache: none, aio: native, iothread: true, discard: true, ssd: true, \
             backup: true, replicate: false, readOnly: true, deletionPolicy: Retain, limits: {iopsRead: 10000000, mbpsWrite: 1}}]",
        );
        assert_eq!(told, Vec::<String>::new());
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let told = mistakes("[{name: data, storage: '-'}, {name: data, size: 1, storage: fast, aio: x}]");
        assert_eq!(told.len(), 5, "{told:#?}");
    }
}
