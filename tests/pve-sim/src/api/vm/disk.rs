//! Volumes of drives: allocate, import, attach, check.

use super::{drive, env::Env};
use crate::{
    api::Failure,
    storage::{NewImage, Storages, Volume},
    vmconf::{self, Drive, VmConfig},
};

/// The fixed size of an EFI variable store, in bytes.
const EFI_BYTES: u64 = 528 << 10;
/// The fixed size of a TPM state, in bytes.
const TPM_BYTES: u64 = 4 << 20;
/// The fixed size of a cloud-init drive, in bytes.
pub(super) const CLOUDINIT_BYTES: u64 = 4 << 20;

/// What a drive's volume stands for in a call.
enum Wanted<'a> {
    /// `<storage>:<GiB>`.
    New { storage: &'a str, bytes: u64 },
    /// `<storage>:cloudinit`.
    CloudInit { storage: &'a str },
    /// An existing volume.
    Volume,
    /// A device or a file of the host.
    Path,
    /// `none` or `cdrom`.
    Nothing,
}

fn wanted(file: &str) -> Wanted<'_> {
    if matches!(file, "none" | "cdrom") {
        return Wanted::Nothing;
    }
    if file.starts_with('/') {
        return Wanted::Path;
    }
    let Some((storage, name)) = file.split_once(':') else { return Wanted::Nothing };
    if name == "cloudinit" {
        return Wanted::CloudInit { storage };
    }
    let decimal = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match vmconf::size_of_gib(name).filter(|_| decimal) {
        Some(bytes) => Wanted::New { storage, bytes },
        None => Wanted::Volume,
    }
}

/// What is refused before anything is done.
pub(super) fn check(env: &Env<'_>, storages: &Storages, key: &str, text: &str) -> Result<(), Failure> {
    let drive = drive::parse(key, text)?;
    match wanted(&drive.file) {
        Wanted::New { storage, .. } | Wanted::CloudInit { storage } => {
            let target = storages.get(storage)?;
            if !target.content().contains(&"images") {
                return Err(Failure::parameter("storage", format!("storage '{storage}' does not support vm images")));
            }
            if let Some(source) = drive.option("import-from") {
                check_import(env, storages, source)?;
            }
            Ok(())
        }
        Wanted::Volume => {
            let (storage, name) = crate::storage::split(&drive.file)?;
            storages.get(storage)?;
            if Volume::of(storage, name)?.content == "iso" && !drive.is_cdrom() {
                return Err(Failure::parameter(key, "explicit 'media=cdrom' is required for iso images"));
            }
            storages.enabled(storage).map(|_| ())
        }
        Wanted::Path if drive.file.starts_with("/dev/") => Ok(()),
        Wanted::Path => Err(Failure::parameter(key, format!("unable to associate path '{}' to any storage", drive.file))),
        Wanted::Nothing => Ok(()),
    }
}

fn check_import(env: &Env<'_>, storages: &Storages, source: &str) -> Result<(), Failure> {
    if source.starts_with('/') {
        let there = env.layout.host_path(source).exists();
        return if there { Ok(()) } else { Err(Failure::die(format!("cannot import from '{source}' - file does not exist"))) };
    }
    let volume = Volume::parse(source)?;
    storages.enabled(&volume.storage)?;
    if storages.exists(&volume) { Ok(()) } else { Err(Failure::die(format!("volume '{source}' does not exist"))) }
}

/// Makes or finds a drive's volume, and gives the drive as it stands in the configuration. New volumes are noted in `made`.
pub(super) fn create(
    env: &Env<'_>,
    storages: &Storages,
    vmid: u32,
    key: &str,
    text: &str,
    template: bool,
    made: &mut Vec<Volume>,
) -> Result<String, Failure> {
    let mut drive = drive::parse(key, text)?;
    match wanted(&drive.file) {
        Wanted::Nothing => {
            drive.options.remove("size");
            return Ok(drive.print());
        }
        Wanted::Path => return Ok(drive.print()),
        Wanted::CloudInit { storage } => {
            let name = format!("vm-{vmid}-cloudinit.qcow2");
            let new = NewImage { storage, vmid, format: "qcow2", name: Some(&name), bytes: CLOUDINIT_BYTES };
            let volume = storages.allocate(&new, &|line| env.log(line))?;
            made.push(volume.clone());
            drive.file = volume.volid();
            drive.set("media", "cdrom");
            drive.options.remove("format");
            env.log(&format!("{key}: successfully created disk '{}'", drive.print()));
            return Ok(drive.print());
        }
        Wanted::Volume => {
            let volume = Volume::parse(&drive.file)?;
            attach(storages, key, &mut drive, &volume)?;
            return Ok(drive.print());
        }
        Wanted::New { storage, bytes } => {
            let storage = storage.to_owned();
            let volume = allocate(env, storages, vmid, key, &storage, bytes, &drive, made)?;
            let volume = if template { storages.make_base(&volume, &|line| env.log(line))? } else { volume };
            if template {
                made.pop();
                made.push(volume.clone());
            }
            drive.file = volume.volid();
            drive.set("size", vmconf::print_size(storages.info(&volume)?.size));
        }
    }
    drive.options.remove("format");
    drive.options.remove("import-from");
    env.log(&format!("{key}: successfully created disk '{}'", drive.print()));
    env.begun();
    Ok(drive.print())
}

/// Checks an existing volume, whoever owns it and wherever else it is attached, and notes its size.
fn attach(storages: &Storages, key: &str, drive: &mut Drive, volume: &Volume) -> Result<(), Failure> {
    if !matches!(volume.content, "images" | "iso") {
        return Err(Failure::die(format!("cannot use volume {} - content type needs to be 'images' or 'iso'", drive.file)));
    }
    if let Some(format) = drive.option("format").filter(|format| volume.content == "images" && *format != volume.format()) {
        let (file, own) = (&drive.file, volume.format());
        let text = format!("drive '{key}' - volume '{file}' - 'format={format}' option different from storage format '{own}'");
        return Err(Failure::die(text));
    }
    storages.activate(&volume.storage)?;
    if !storages.exists(volume) {
        return Err(Failure::die(format!("volume '{}' does not exist", drive.file)));
    }
    drive.set("size", vmconf::print_size(storages.info(volume)?.size));
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "one place calls it, with everything that a new volume depends on")]
fn allocate(
    env: &Env<'_>,
    storages: &Storages,
    vmid: u32,
    key: &str,
    storage: &str,
    bytes: u64,
    drive: &Drive,
    made: &mut Vec<Volume>,
) -> Result<Volume, Failure> {
    let source = drive.option("import-from");
    let (bytes, format) = match (key, source) {
        ("efidisk0", None) => (EFI_BYTES, drive.option("format").unwrap_or("raw")),
        ("tpmstate0", _) => (TPM_BYTES, "raw"),
        (_, None) => (bytes, drive.option("format").unwrap_or("raw")),
        (_, Some(source)) => {
            let (path, format) = source_image(env, storages, source)?;
            (virtual_size(&path, &format)?, drive.option("format").unwrap_or("raw"))
        }
    };
    storages.enabled(storage)?;
    if key == "efidisk0" && drive.option("efitype") != Some("4m") {
        return Err(Failure::die("EFI base image '/usr/share/pve-edk2-firmware//OVMF_CODE.fd' not found"));
    }
    let format = super::target_format(storages, storage, format)?;
    let new = NewImage { storage, vmid, format, name: None, bytes };
    let volume = storages.allocate(&new, &|line| env.log(line))?;
    made.push(volume.clone());
    if key == "efidisk0" {
        env.log("transferred 0.0 B of 528.0 KiB (0.00%)");
        env.log("transferred 528.0 KiB of 528.0 KiB (100.00%)");
    }
    if let Some(source) = source {
        let (path, format) = source_image(env, storages, source)?;
        storages.copy_file(&path, &format, None, &volume, &|line| env.log(line))?;
    }
    Ok(volume)
}

fn source_image(env: &Env<'_>, storages: &Storages, source: &str) -> Result<(std::path::PathBuf, String), Failure> {
    if source.starts_with('/') {
        let format = source.rsplit_once('.').map(|(_, end)| end).filter(|end| matches!(*end, "qcow2" | "vmdk")).unwrap_or("raw");
        return Ok((env.layout.host_path(source), format.to_owned()));
    }
    let volume = Volume::parse(source)?;
    let format = if matches!(volume.format(), "qcow2" | "vmdk") { volume.format() } else { "raw" };
    Ok((storages.path(&volume)?, format.to_owned()))
}

fn virtual_size(path: &std::path::Path, format: &str) -> Result<u64, Failure> {
    if format == "raw" {
        return Ok(std::fs::metadata(path)?.len());
    }
    let told = std::process::Command::new("qemu-img").args(["info", "--output=json", "-f", format]).arg(path).output()?;
    let info: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap_or_default();
    info["virtual-size"].as_u64().ok_or_else(|| Failure::die("could not determine the size of the image to import"))
}

/// Removes volumes that a failed call made.
pub(super) fn sweep(env: &Env<'_>, storages: &Storages, made: &[Volume]) {
    for volume in made {
        if let Err(error) = storages.free(volume, &|line| env.log(line)) {
            env.log(&error.to_string());
        }
    }
}

/// What becomes of a drive that has left its slot: cloud-init drives are removed; disks of the VM's own are kept as unused, or removed with `force`; disks of
/// others are left alone.
pub(super) fn detach(
    env: &Env<'_>,
    storages: &Storages,
    config: &mut VmConfig,
    vmid: u32,
    drive: &Drive,
    force: bool,
) -> Result<(), Failure> {
    if !drive.has_volume() || (drive.is_cdrom() && !drive.is_cloudinit()) {
        return Ok(());
    }
    let volume = Volume::parse(&drive.file)?;
    if drive.is_cloudinit() && !force {
        if let Err(error) = storages.free(&volume, &|line| env.log(line)) {
            env.log(&error.to_string());
        }
        return Ok(());
    }
    if storages.get(&volume.storage).is_err() {
        let id = &volume.storage;
        env.warn(&format!("storage '{id}' no longer exists, volume '{}' will be removed from config", drive.file));
        return Ok(());
    }
    if volume.owner != vmid {
        return Ok(());
    }
    if force {
        check_unused(config, &drive.file)?;
        return storages.free(&volume, &|line| env.log(line));
    }
    config.add_unused(&drive.file);
    Ok(())
}

/// Refuses to remove a volume that stands in another slot or in a snapshot.
pub(super) fn check_unused(config: &VmConfig, volid: &str) -> Result<(), Failure> {
    if config.uses(volid, None) {
        return Err(Failure::die(format!("unable to delete '{volid}' - volume is still in use (snapshot?)")));
    }
    Ok(())
}
