//! What can be asked for.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{faults::Hold, guest::Behaviour, ha::Mode};

fn yes() -> bool {
    true
}

fn local() -> String {
    "local".into()
}

fn qcow2() -> String {
    "qcow2".into()
}

fn size_mib() -> u64 {
    1024
}

fn backup() -> String {
    "backup".into()
}

fn started() -> String {
    "started".into()
}

/// A VM to be made with a real image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// The node under which it lies.
    pub node: String,
    /// Its VMID, free in the whole cluster.
    pub vmid: u32,
    /// Its name; `VM <vmid>` if empty.
    #[serde(default)]
    pub name: String,
    /// Its tags, `;` between them.
    #[serde(default)]
    pub tags: String,
    /// Where its disk lies.
    #[serde(default = "local")]
    pub storage: String,
    /// The size of its disk in MiB; 0: no disk.
    #[serde(default = "size_mib")]
    pub size_mib: u64,
    /// The format of its disk, `raw` or `qcow2`.
    #[serde(default = "qcow2")]
    pub format: String,
    /// MiB of the disk that are filled with data, so that a copy takes time.
    #[serde(default)]
    pub fill_mib: u64,
    /// Whether it has a cloud-init drive.
    #[serde(default = "yes")]
    pub cloudinit: bool,
    /// Lines added to the config (`key: value`), before it is sorted.
    #[serde(default)]
    pub extra: Vec<String>,
}

impl Seed {
    /// A VM with a 1 GiB qcow2 disk on `local` and nothing special.
    pub fn new(node: &str, vmid: u32, name: &str) -> Self {
        Self {
            node: node.into(),
            vmid,
            name: name.into(),
            tags: String::new(),
            storage: local(),
            size_mib: size_mib(),
            format: qcow2(),
            fill_mib: 0,
            cloudinit: true,
            extra: Vec::new(),
        }
    }
}

/// What happens to a node's `pmxcfs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PmxcfsAction {
    /// Every call blocks.
    Hang,
    /// Blocked calls go on.
    Resume,
    /// It restarts: counters begin anew.
    Restart,
    /// It ends: `/etc/pve` is an empty folder.
    Down,
    /// It is there again, with counters that begin anew.
    Up,
}

/// One line to the control socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Nodes, VMs, addresses.
    Status {},
    /// A text of everything that may be left behind: configs, images, locks, processes. Equal texts mean equal states.
    Leftovers {},

    /// Makes a template.
    SeedTemplate(Seed),
    /// Makes a stopped VM.
    SeedVm(Seed),
    /// Makes stopped VMs without disks, quickly: `first`, `first + 1` ...
    SeedVms {
        /// The node under which they lie.
        node: String,
        /// The first VMID.
        first: u32,
        /// How many.
        count: u32,
    },

    /// Replaces a file under `/etc/pve`, as another node does: nobody is told.
    WriteFile {
        /// Its path below `/etc/pve`.
        path: String,
        /// Its new content.
        content: String,
        /// The node that does it, which needs quorum; none: asks nobody.
        #[serde(default)]
        node: Option<String>,
    },
    /// The content of a file under `/etc/pve`.
    ReadFile {
        /// Its path below `/etc/pve`.
        path: String,
    },
    /// Removes a file or an empty folder under `/etc/pve`, silently.
    RemoveFile {
        /// Its path below `/etc/pve`.
        path: String,
    },
    /// Renames a file under `/etc/pve`, silently.
    Rename {
        /// The old path below `/etc/pve`.
        from: String,
        /// The new path below `/etc/pve`.
        to: String,
    },

    /// Moves a VM to another node; a running guest goes on there.
    Migrate {
        /// The VM.
        vmid: u32,
        /// The other node.
        to: String,
    },
    /// Its node is lost: the guest dies, the VM starts on another node.
    FailOver {
        /// The VM.
        vmid: u32,
        /// The other node.
        to: String,
    },
    /// A copy of a VM's config, SMBIOS UUID included, under another VMID, as by a restore without `--unique`.
    RestoreDuplicate {
        /// The VM.
        vmid: u32,
        /// The copy's VMID.
        new: u32,
        /// The copy's node; the VM's own if not given.
        #[serde(default)]
        node: Option<String>,
    },
    /// Sets or removes (no value) one line of a VM's config, silently.
    SetConfig {
        /// The VM.
        vmid: u32,
        /// The key.
        key: String,
        /// The value.
        #[serde(default)]
        value: Option<String>,
    },
    /// Sets `lock:` in a VM's config.
    LockVm {
        /// The VM.
        vmid: u32,
        /// What for.
        #[serde(default = "backup")]
        lock: String,
    },
    /// Removes `lock:` from a VM's config.
    UnlockVm {
        /// The VM.
        vmid: u32,
    },
    /// Sets or removes a VM's protection.
    Protect {
        /// The VM.
        vmid: u32,
        /// Whether it is protected.
        #[serde(default = "yes")]
        on: bool,
    },

    /// Holds the lock of a VM or of a storage (the cluster's lock if all nodes share it), as another process does; answers with a number.
    HoldLock {
        /// The node.
        node: String,
        /// The VM.
        #[serde(default)]
        vmid: Option<u32>,
        /// The storage.
        #[serde(default)]
        storage: Option<String>,
    },
    /// Releases a lock by its number.
    ReleaseLock {
        /// What `hold-lock` answered.
        id: u64,
    },
    /// Takes a cluster lock (`priv/lock/<name>`), as another node does.
    TakeClusterLock {
        /// Its name.
        name: String,
    },
    /// Releases a cluster lock.
    ReleaseClusterLock {
        /// Its name.
        name: String,
    },
    /// Lets a cluster lock look as old as one that expired.
    ExpireClusterLock {
        /// Its name.
        name: String,
    },

    /// Changes a node's faults: fields that are given replace the old ones (JSON merge patch; `null` removes).
    Faults {
        /// The node.
        node: String,
        /// The changed fields of [`crate::faults::Faults`].
        change: Value,
    },
    /// Gives or takes quorum.
    Quorum {
        /// The node; all if not given.
        #[serde(default)]
        node: Option<String>,
        /// Whether it has quorum.
        on: bool,
    },
    /// Stops, hangs or restarts a node's cluster file system.
    Pmxcfs {
        /// The node.
        node: String,
        /// What happens to it.
        action: PmxcfsAction,
    },
    /// Stops or starts a node's local API.
    Daemon {
        /// The node.
        node: String,
        /// Whether it is to run.
        up: bool,
    },

    /// Puts a VM under HA.
    HaAdd {
        /// The VM.
        vmid: u32,
        /// The state it is to be in.
        #[serde(default = "started")]
        state: String,
    },
    /// Takes a VM out of HA.
    HaRemove {
        /// The VM.
        vmid: u32,
    },
    /// How HA requests are carried out.
    HaMode(Mode),
    /// Gives a VM a replication job.
    ReplicationAdd {
        /// The VM.
        vmid: u32,
        /// The node to which it is replicated.
        target: String,
    },
    /// Removes a VM's replication jobs.
    ReplicationRemove {
        /// The VM.
        vmid: u32,
    },

    /// Starts a guest, as by hand, without a task.
    StartGuest {
        /// The VM.
        vmid: u32,
    },
    /// Ends a guest in order, as a shutdown from within.
    QuitGuest {
        /// The VM.
        vmid: u32,
    },
    /// Kills a guest: its files stay.
    KillGuest {
        /// The VM.
        vmid: u32,
    },
    /// How the system inside a guest behaves.
    GuestBehaviour {
        /// The VM.
        vmid: u32,
        /// Its behaviour.
        behaviour: Behaviour,
    },
    /// Lets a running guest hold on to a disk, or let go of it again.
    HoldDisk {
        /// The VM.
        vmid: u32,
        /// The slot, `scsi3` for instance.
        slot: String,
        /// What it holds on to; nothing: it lets go.
        #[serde(default)]
        hold: Option<Hold>,
    },
    /// Adds a storage of type dir that all nodes share: `/mnt/pve/<id>` leads to one folder from each of them.
    AddSharedStorage {
        /// Its id.
        id: String,
    },
}
