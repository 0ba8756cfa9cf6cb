//! What a running VM takes over at once: devices that are plugged into its QEMU, pulled out of it, or changed in it.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{env::Env, power, status};
use crate::{
    faults::{Faults, Hold},
    storage::{Storages, Volume},
    vmconf::{self, Drive, VmConfig, is_drive_key},
};

/// Why a change is not taken over: with a text, it failed; without one, it waits for the next start.
pub(super) type Refused = Option<String>;

/// How often a guest is asked whether it has let go.
const LOOK: Duration = Duration::from_millis(5);
/// Seconds that PVE gives a guest to let go of a disk, and of a controller.
const DISK_S: u64 = 6;
const CONTROLLER_S: u64 = 16;

/// Options that a running VM takes over at once.
const FAST: &[&str] = &[
    "description",
    "hookscript",
    "lock",
    "migrate_downtime",
    "migrate_speed",
    "name",
    "onboot",
    "protection",
    "shares",
    "startup",
    "tags",
    "vmstatestorage",
    "affinity",
    "ciuser",
    "cipassword",
    "citype",
    "cicustom",
    "ciupgrade",
    "nameserver",
    "searchdomain",
    "sshkeys",
    "hotplug",
];

/// Options of a drive that its QEMU keeps until it is started again. Limits change at once; all others are only written down.
const FIXED: &[&str] = &["aio", "discard", "iothread", "queues", "product", "cache", "ssd", "vendor", "ro"];

/// Whether an option is taken over at once, whatever else the call changes.
pub(super) fn is_fast(key: &str) -> bool {
    FAST.contains(&key) || key.starts_with("ipconfig")
}

/// A running VM and what may be plugged into it.
pub(super) struct Running<'a> {
    pub(super) env: &'a Env<'a>,
    pub(super) storages: &'a Storages,
    pub(super) vmid: u32,
    /// `hotplug:` of the configuration.
    pub(super) features: String,
}

impl Running<'_> {
    fn has(&self, feature: &str) -> bool {
        self.features == "1" || self.features.split(',').any(|one| one == feature)
    }

    /// Takes one pending change over, or says why not.
    pub(super) fn take(&self, config: &VmConfig, key: &str, deleted: bool) -> Result<(), Refused> {
        if is_fast(key) || key.starts_with("unused") {
            return Ok(());
        }
        let value = config.pending.get(key).filter(|_| !deleted);
        if is_drive_key(key) {
            return value.map_or_else(|| self.remove_drive(config, key), |value| self.set_drive(config, key, value));
        }
        if key.strip_prefix("net").is_some_and(|rest| vmconf::number(rest).is_some()) {
            return self.card(key, value);
        }
        Err(None)
    }

    fn card(&self, key: &str, value: Option<&String>) -> Result<(), Refused> {
        if let Some(bridge) = value.and_then(|value| power::unknown_bridge(self.env, key, value)) {
            let script = "network script /usr/libexec/qemu-server/pve-bridge-hotplug failed with status 512";
            tracing::debug!(bridge, "no such bridge");
            return Err(Some(format!("VM {} qmp command 'netdev_add' failed - {script}\n", self.vmid)));
        }
        if self.has("network") { Ok(()) } else { Err(None) }
    }

    fn remove_drive(&self, config: &VmConfig, key: &str) -> Result<(), Refused> {
        if !self.has("disk") || !is_pluggable(key) {
            return Err(None);
        }
        self.unplug(config, key)
    }

    fn set_drive(&self, config: &VmConfig, key: &str, value: &str) -> Result<(), Refused> {
        if matches!(key, "efidisk0" | "tpmstate0") {
            return Err(None);
        }
        let drive = Drive::parse(value);
        if let Some(old) = config.get(key).map(Drive::parse) {
            if drive.is_cdrom() != old.is_cdrom() {
                return Err(Some(String::from("unable to change media type\n")));
            }
            if old.is_cdrom() {
                return Ok(());
            }
            if drive.file == old.file {
                let fixed = FIXED.iter().any(|option| drive.option(option) != old.option(option));
                return if fixed { Err(None) } else { Ok(()) };
            }
            if !self.has("disk") {
                return Err(None);
            }
            if !is_pluggable(key) {
                return Err(Some(format!("can't unplug device '{key}'\n")));
            }
            self.unplug(config, key)?;
        }
        if !self.has("disk") || !is_pluggable(key) {
            return Err(None);
        }
        let base = Volume::parse(&drive.file).ok().filter(Volume::is_base);
        if let Some(path) = base.and_then(|volume| self.storages.shown_path(&volume).ok()) {
            let why = format!("VM {} qmp command 'blockdev-add' failed - Could not open '{path}': Operation not permitted", self.vmid);
            return Err(Some(format!("adding blockdev 'drive-{key}' failed : {why}\n\n")));
        }
        Ok(())
    }

    /// Pulls a disk out of the guest, which may not let go.
    fn unplug(&self, config: &VmConfig, key: &str) -> Result<(), Refused> {
        if status::boot_drives(config).iter().any(|device| device == key) {
            return Err(Some(format!("can't unplug bootdisk '{key}'\n")));
        }
        let single = key.strip_prefix("scsi").filter(|_| config.get("scsihw") == Some("virtio-scsi-single"));
        let Some(hold) = self.held(key) else { return Ok(()) };
        let (device, seconds) = match (hold, single) {
            (Hold::Disk, _) => (key.to_owned(), DISK_S),
            (Hold::Controller, Some(number)) => (format!("virtioscsi{number}"), CONTROLLER_S),
            // A controller that other disks use stays where it is.
            (Hold::Controller, None) => return Ok(()),
        };
        let deadline = Instant::now() + Duration::from_secs(seconds).mul_f64(self.env.lock_factor());
        while Instant::now() < deadline {
            self.env.check().map_err(|error| Some(format!("{error}\n")))?;
            if self.held(key).is_none() {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
        if hold == Hold::Controller {
            // The disk itself has gone by then: whoever asks again finds nothing left to pull out.
            let _ = Faults::update(&self.env.layout.faults(), |faults| {
                faults.let_go(self.vmid, key);
                Ok(())
            });
        }
        Err(Some(format!("error on hot-unplugging device '{device}' - still busy in guest?\n")))
    }

    fn held(&self, key: &str) -> Option<Hold> {
        let faults = Faults::load(&self.env.layout.faults()).unwrap_or_default();
        faults.held_disks.get(&self.vmid)?.get(key).copied()
    }
}

/// Whether a drive's bus lets disks come and go.
fn is_pluggable(key: &str) -> bool {
    key.starts_with("scsi") || key.starts_with("virtio")
}
