//! The reasons of `google.rpc.ErrorInfo` in domain `pvelet`. They are part of the API: a reason is never renamed, and a client may decide by
//! it. The list with code, meaning and remedy stands in `docs/api.md`.

/// The domain of every `ErrorInfo` that an agent sends.
pub const DOMAIN: &str = "pvelet";

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* pub const $name: &str = stringify!($name);)*
        /// Every reason, for tests and documentation.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

reasons! {
    // INVALID_ARGUMENT, each with a google.rpc.BadRequest that names the field.
    /// A field is malformed in a way that has no reason of its own.
    INVALID_FIELD;
    /// The VM's name is no DNS name.
    INVALID_NAME;
    /// The tenant's name is malformed.
    INVALID_TENANT;
    /// The request id is missing or malformed.
    INVALID_REQUEST_ID;
    /// The SMBIOS UUID is missing or malformed.
    INVALID_UUID;
    /// The VMID is outside the host's configured range, or outside PVE's.
    VMID_OUT_OF_RANGE;
    /// An IP address or subnet is malformed.
    INVALID_ADDRESS;
    /// The gateway is not inside the subnet.
    INVALID_GATEWAY;
    /// An SSH public key is malformed.
    INVALID_SSH_KEY;
    /// A MAC address is malformed, or another VM of the cluster has it.
    INVALID_MAC;
    /// A target storage was named for a linked clone.
    LINKED_CLONE_STORAGE;
    /// A disk would shrink.
    DISK_SHRINK;
    /// A volume's id is no UUID.
    INVALID_VOLUME_ID;
    /// A size is no multiple of 1 MiB, too small or too large.
    INVALID_SIZE;
    /// The storage has no volumes of that format.
    INVALID_FORMAT;
    /// A snapshot's name is malformed.
    INVALID_SNAPSHOT_NAME;
    /// An image that is not imported: it refers to other files, its path leaves the allowed folders, or its format is unknown.
    IMAGE_REFUSED;
    /// An image is damaged.
    IMAGE_CORRUPT;
    /// An image has another SHA-256 than the one given.
    CHECKSUM_MISMATCH;
    /// A network's name is malformed.
    INVALID_NETWORK_NAME;
    /// An interface's name is malformed, too long, reserved, or twice in a request.
    INVALID_INTERFACE_NAME;
    /// A VLAN id or range is outside 1 to 4094, or its parent has it already.
    INVALID_VLAN;
    /// An MTU is out of range, or larger than that of what the interface stands on.
    INVALID_MTU;
    /// A certificate, CA or revocation list cannot be used on this host.
    INVALID_CERTIFICATE;
    /// An address belongs to an interface of this host already.
    ADDRESS_IN_USE;
    /// A subnet overlaps with one of another interface of this host, or of the request.
    SUBNET_OVERLAP;

    // NOT_FOUND
    /// No check of health has that id.
    CHECK_NOT_FOUND;
    /// No such VM in the PVE cluster, or another tenant's.
    VM_NOT_FOUND;
    /// No template on this host has that VMID or those tags.
    TEMPLATE_NOT_FOUND;
    /// No such storage on this node.
    STORAGE_NOT_FOUND;
    /// No such bridge on this node.
    BRIDGE_NOT_FOUND;
    /// No such pool.
    POOL_NOT_FOUND;
    /// No such operation, or another tenant's.
    OPERATION_NOT_FOUND;
    /// No such volume, or another tenant's.
    VOLUME_NOT_FOUND;
    /// The volume has no such snapshot.
    SNAPSHOT_NOT_FOUND;
    /// No such image in the allowed folders.
    IMAGE_NOT_FOUND;
    /// No such link on this host.
    INTERFACE_NOT_FOUND;

    // ALREADY_EXISTS
    /// The VMID is in use in the PVE cluster.
    VMID_IN_USE;
    /// The machine for which a clone is asked has a VM already; metadata `vmid`, `node`.
    MACHINE_HAS_VM;
    /// The request id was used with another body.
    REQUEST_ID_REUSED;
    /// There is a volume with that id, of another owner, smaller, or on another storage; metadata `volid` unless it is another tenant's.
    VOLUME_EXISTS;

    // ABORTED: try again
    /// PVE holds a lock on the VM (backup, migrate, clone ...).
    VM_LOCKED;
    /// Another operation works on the same VM.
    OPERATION_IN_PROGRESS;
    /// A lock of PVE was not had before the operation's deadline.
    LOCK_TIMEOUT;
    /// Somebody else changed the VM's config meanwhile.
    CONFIG_CHANGED;
    /// The guest does not let go of a disk; it is still attached. Metadata `vmid`, `slot`.
    GUEST_HOLDS_DISK;
    /// Somebody changed the host's network between the plan and its turn.
    NETWORK_CHANGED;

    // UNAVAILABLE: try again
    /// This node's part of the cluster has no quorum.
    NO_QUORUM;
    /// PVE's local daemon does not answer.
    PVE_DOWN;
    /// The cluster file system does not answer.
    PVE_FS_HUNG;
    /// The storage is offline, disabled, or does not answer.
    STORAGE_OFFLINE;
    /// The agent shuts down.
    AGENT_DRAINING;
    /// The agent was restarted before PVE was asked for anything: nothing was done.
    AGENT_RESTARTED;
    /// The agent was restarted before the user data was on the disk, and does not have it any more.
    USER_DATA_LOST;

    // RESOURCE_EXHAUSTED
    /// The storage is full.
    STORAGE_FULL;
    /// No VMID of the configured range is free.
    VMID_RANGE_EXHAUSTED;
    /// A quota is used up.
    QUOTA;
    /// Too many calls of this kind are under way.
    OVERLOADED;
    /// The client reads its stream too slowly.
    SLOW_CONSUMER;

    // FAILED_PRECONDITION
    /// The VM's `protection` is set.
    VM_PROTECTED;
    /// The VM runs.
    VM_RUNNING;
    /// The VM does not run.
    VM_NOT_RUNNING;
    /// The VM is a template.
    VM_IS_TEMPLATE;
    /// The source of a clone is no template.
    NOT_A_TEMPLATE;
    /// PVE's HA manager decides over the VM.
    VM_HA_MANAGED;
    /// A replication job copies the VM.
    VM_REPLICATED;
    /// Linked clones depend on the template.
    TEMPLATE_IN_USE;
    /// Another VM has that VMID now.
    UUID_MISMATCH;
    /// Several VMs of the cluster have that UUID.
    AMBIGUOUS_UUID;
    /// The VM is on another node; metadata `node`.
    VM_ON_OTHER_HOST;
    /// The agent only observes.
    OBSERVE_ONLY;
    /// A newer leader of this controller has announced itself.
    STALE_EPOCH;
    /// The controller comes with a lease UID that was not accepted.
    UNKNOWN_LEASE;
    /// The VM has no cloud-init drive.
    NO_CLOUD_INIT_DRIVE;
    /// The storage for user data is not there, or cannot keep it; metadata `storage`.
    USER_DATA_STORAGE;
    /// A disk of a deleted VM could not be removed; metadata `volumes`.
    DISK_LEFT;
    /// The operation has ended, or is past the point where it can be undone.
    NOT_CANCELLABLE;
    /// The host shuts down or is in maintenance.
    HOST_SHUTTING_DOWN;
    /// The VM was not made by pvelet, or belongs to another owner.
    NOT_OURS;
    /// The volume is attached, or a snapshot of a VM refers to it; metadata `vmid`, `node`, `slot`.
    VOLUME_IN_USE;
    /// The volume is attached to no VM.
    VOLUME_NOT_ATTACHED;
    /// The volume has snapshots, which would be lost; metadata `snapshots`.
    VOLUME_HAS_SNAPSHOTS;
    /// Newer snapshots stand in the way; metadata `snapshots`.
    SNAPSHOT_NOT_NEWEST;
    /// Several volumes have that id; metadata `volids`.
    AMBIGUOUS_VOLUME;
    /// The storage cannot do it, such as snapshots of raw files; metadata `storage`.
    STORAGE_UNSUPPORTED;
    /// All slots that volumes may take are taken.
    NO_FREE_SLOT;
    /// The disk is the VM's boot, EFI, TPM or cloud-init disk, which are not detached.
    DISK_NOT_DETACHABLE;
    /// A guest has the VMID that is reserved for volumes.
    RESERVED_ID_TAKEN;
    /// Volumes would be lost with the VM: they stand under its name or aside in it; metadata `volumes`.
    VOLUMES_RETAINED;
    /// The interface belongs to somebody else's file, another network, or another bridge or bond; metadata `interface`, `owner`.
    INTERFACE_TAKEN;
    /// The change would touch what the host is reached by: default route, the agent's listener, a corosync link; metadata `interface`, `path`.
    MANAGEMENT_PATH;
    /// VMs or other interfaces use it; metadata `users`.
    NETWORK_IN_USE;
    /// Somebody's staged change waits (`interfaces.new`, SDN); metadata `change`.
    FOREIGN_CHANGE_PENDING;
    /// A preflight check failed; metadata `checks`.
    NETWORK_PREFLIGHT;
    /// An earlier change could not be undone: a person has to look, and clear it.
    NETWORK_LATCHED;
    /// The change was undone: a check failed, nobody confirmed it, or somebody asked for it. The host is as it was.
    NETWORK_ROLLED_BACK;
    /// There is no change that waits for this.
    NETWORK_NOT_WAITING;
    /// The connection was opened before the change was applied, so it proves nothing.
    STALE_CONNECTION;
    /// The administrator lets the agent repair nothing (`[repair] policy`), or nothing by request.
    REPAIR_OFF;
    /// The check is well, or nothing is known that mends what it found.
    REPAIR_NOT_POSSIBLE;
    /// Two repairs in a row have failed: nothing is repaired until ClearRepair.
    REPAIR_LATCHED;
    /// Somebody edited the file while it was being repaired; what they wrote stays.
    REPAIR_CHANGED;

    /// A revocation list is older than the present one, or missing: what is revoked would be trusted again.
    CRL_OLDER;
    /// The caller's own certificate would not be accepted afterwards.
    CALLER_LOCKED_OUT;
    /// The files of `[tls]` cannot be written: no room, no access. What was in use stays in use.
    CERTIFICATE_FILES;

    // PERMISSION_DENIED
    /// The caller's role does not allow the call.
    ROLE;
    /// The caller may not act for this tenant.
    SCOPE_TENANT;
    /// The caller's scope does not hold this VM.
    SCOPE_VM;
    /// The caller's scope does not hold this storage.
    SCOPE_STORAGE;
    /// The caller's scope does not hold this bridge or VLAN.
    SCOPE_NETWORK;

    // DEADLINE_EXCEEDED
    /// The guest did not shut down in time.
    SHUTDOWN_TIMEOUT;
    /// The operation did not end before its deadline.
    OPERATION_TIMEOUT;

    // CANCELLED
    /// Stopped by CancelOperation.
    CANCELLED;

    // INTERNAL, UNKNOWN
    /// PVE refused or failed in a way that has no reason of its own; metadata `upid` where there is a task.
    PVE_FAILED;
    /// A tool of the storage (LVM, ZFS, qemu-img ...) failed in a way that has no reason of its own; metadata `storage`.
    STORAGE_FAILED;
    /// ifupdown2 or the kernel failed in a way that has no reason of its own.
    NETWORK_FAILED;
    /// A change of the network could not be undone. The network is latched.
    NETWORK_ROLLBACK_FAILED;
    /// A repair did not make the check better, and was undone.
    REPAIR_FAILED;
    /// A repair did not make the check better, and could not be undone. Repairs are latched.
    REPAIR_RESTORE_FAILED;
    /// A fault of the agent itself.
    INTERNAL;
}
