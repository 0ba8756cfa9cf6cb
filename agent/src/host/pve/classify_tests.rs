#![allow(clippy::unwrap_used)]

use super::*;

fn about() -> Subject<'static> {
    Subject { node: "pve1", vmid: 500, waited: Duration::from_secs(20), ..Subject::default() }
}

fn clone() -> Subject<'static> {
    Subject { template: Some(9010), ..about() }
}

/// Messages as recorded (of API answers and of `TASK ERROR:` lines), each with its reason.
const MESSAGES: &[(&str, &str)] = &[
    ("unable to create VM 500: config file already exists", "VMID_IN_USE"),
    ("unable to create VM 700 - VM 700 already exists on node 'pve2'", "VMID_IN_USE"),
    ("close (rename) atomic file '/etc/pve/nodes/pve1/qemu-server/700.conf' failed: File exists", "VMID_IN_USE"),
    ("VM is locked (backup)", "VM_LOCKED"),
    ("VM is locked (snapshot-delete)", "VM_LOCKED"),
    ("checksum mismatch (file change by other user?)", "CONFIG_CHANGED"),
    ("detected modified configuration - file changed by other user? Try again.", "CONFIG_CHANGED"),
    ("can't lock file '/var/lock/qemu-server/lock-101.conf' - got timeout", "LOCK_TIMEOUT"),
    ("clone failed: can't lock file '/var/lock/pve-manager/pve-storage-rawdir' - got timeout", "LOCK_TIMEOUT"),
    ("unable to create VM 203 - can't lock file '/var/lock/pve-manager/pve-storage-rawdir' - got timeout", "LOCK_TIMEOUT"),
    ("cluster not ready - no quorum?", "NO_QUORUM"),
    ("update storage failed: cfs-lock 'file-storage_cfg' error: no quorum!", "NO_QUORUM"),
    ("unable to open file '/etc/pve/nodes/pve1/qemu-server/710.conf.tmp.6189' - Permission denied", "NO_QUORUM"),
    ("RPCEnvironment init request failed: Unable to load access control list: Connection refused", "PVE_FS_HUNG"),
    ("storage 'nosuch' does not exist", "STORAGE_NOT_FOUND"),
    ("storage 'othernode' is not available on node 'pve1'", "STORAGE_NOT_FOUND"),
    ("unable to create VM 203 - storage 'othernode' is not available on node 'pve1'", "STORAGE_NOT_FOUND"),
    ("storage 'disabled' is disabled", "STORAGE_OFFLINE"),
    ("unable to create VM 203 - storage 'disabled' is disabled", "STORAGE_OFFLINE"),
    ("unable to activate storage 'small' - directory is expected to be a mount point but is not mounted: '/srv/small'", "STORAGE_OFFLINE"),
    (
        "clone failed: copy failed: command '/usr/bin/qemu-img convert' failed: exit code 1; qemu-img: error while writing at byte 54525952: No space left on device",
        "STORAGE_FULL",
    ),
    ("can't remove VM 201 - protection mode enabled", "VM_PROTECTED"),
    ("can't remove drive 'scsi1' - protection mode enabled", "VM_PROTECTED"),
    ("unable to remove VM 401 - used in HA resources and purge parameter not set.", "VM_HA_MANAGED"),
    ("There is a replication job '406-0' for guest '406' - Please remove that first.", "VM_REPLICATED"),
    ("cannot add non-replicatable volume to a replicated VM", "VM_REPLICATED"),
    ("base volume '9010/base-9010-disk-0.qcow2' is still in use by linked clones", "TEMPLATE_IN_USE"),
    ("base volume 'rawdir:407/base-407-disk-0.raw' is still in use by linked cloned", "TEMPLATE_IN_USE"),
    ("VM 215 is running - destroy failed", "VM_RUNNING"),
    ("VM 433 already running", "VM_RUNNING"),
    ("VM 302 not running", "VM_NOT_RUNNING"),
    ("you can't start a vm if it's a template", "VM_IS_TEMPLATE"),
    ("you can't convert a template to a template", "VM_IS_TEMPLATE"),
    ("Linked clone feature is not supported for 'local:214/vm-214-disk-1.raw' (scsi1)", "NOT_A_TEMPLATE"),
    ("VM quit/powerdown failed - got timeout", "SHUTDOWN_TIMEOUT"),
    ("Permission check failed (pool 'nope' does not exist)", "POOL_NOT_FOUND"),
    ("bridge 'nobr0' does not exist", "BRIDGE_NOT_FOUND"),
    ("Configuration file 'nodes/pve1/qemu-server/700.conf' does not exist", "VM_NOT_FOUND"),
    ("unable to find configuration file for VM 55555 on node 'pve1'", "VM_NOT_FOUND"),
    ("shrinking disks is not supported", "DISK_SHRINK"),
    ("SSH public key validation error", "INVALID_SSH_KEY"),
    ("parameter 'storage' not allowed for linked clones", "LINKED_CLONE_STORAGE"),
    ("disk 'scsi30' does not exist", "INVALID_FIELD"),
    ("clone failed: volume 'local:211/vm-211-disk-0.raw' does not exist", "PVE_FAILED"),
    ("volume 'local:snippets/nope.yaml' does not exist", "PVE_FAILED"),
    ("start failed: QEMU exited with code 1", "PVE_FAILED"),
    ("KVM virtualisation configured, but not available. Either disable in VM configuration or enable in BIOS.", "PVE_FAILED"),
    (
        "unable to create image: qemu-img: /var/lib/vz/images/210/vm-210-disk-8.raw: The image size is too large for file format 'raw'",
        "PVE_FAILED",
    ),
    ("disk image '/var/lib/vz/images/500/vm-500-pvc-1.raw' already exists", "PVE_FAILED"),
    ("snapshot 'nope' does not exist", "PVE_FAILED"),
    ("no options specified", "PVE_FAILED"),
    ("invalid bootorder: device 'scsi7' does not exist'", "PVE_FAILED"),
    ("clone failed: copy failed: command '/usr/bin/qemu-img convert' failed: interrupted by signal", "PVE_FAILED"),
    ("Method 'POST /nodes/pve1/qemu/210/resize' not implemented", "PVE_FAILED"),
    ("user name not set", "PVE_FAILED"),
    ("no such cluster node 'pve2'", "PVE_FAILED"),
];

#[test]
fn each_recorded_message_has_its_reason() {
    for (message, reason) in MESSAGES {
        let error = classify(about(), message);
        assert_eq!(error.reason(), *reason, "{message}: {error}");
    }
}

#[test]
fn a_message_says_more_than_its_reason() {
    let cases: &[(&str, Error)] = &[
        ("unable to create VM 501: config file already exists", Error::VmidInUse { vmid: 501, node: None }),
        ("unable to create VM 700 - VM 700 already exists on node 'pve2'", Error::VmidInUse { vmid: 700, node: Some("pve2".into()) }),
        ("VM is locked (snapshot-delete)", Error::VmLocked { vmid: 500, lock: "snapshot-delete".into() }),
        ("can't lock file '/var/lock/qemu-server/lock-101.conf' - got timeout", Error::LockTimeout { what: "VM 101".into() }),
        (
            "can't lock file '/var/lock/pve-manager/pve-storage-rawdir' - got timeout",
            Error::LockTimeout { what: "storage 'rawdir'".into() },
        ),
        (
            "unable to activate storage 'small' - directory is expected to be a mount point but is not mounted: '/srv/small'",
            Error::StorageOffline {
                storage: "small".into(),
                detail: "directory is expected to be a mount point but is not mounted: '/srv/small'".into(),
            },
        ),
        ("storage 'nosuch' does not exist", Error::StorageNotFound { storage: "nosuch".into(), node: "pve1".into() }),
        ("Permission check failed (pool 'nope' does not exist)", Error::PoolNotFound { pool: "nope".into() }),
        ("VM quit/powerdown failed - got timeout", Error::ShutdownTimeout { vmid: 500, after: Duration::from_secs(20) }),
    ];
    for (message, error) in cases {
        assert_eq!(&classify(about(), message), error);
    }
    let in_use = classify(about(), "base volume 'local:9010/base-9010-disk-0.qcow2' is still in use by linked cloned");
    assert!(matches!(in_use, Error::TemplateInUse { vmid: 9010, .. }), "{in_use}");
}

#[test]
fn a_clone_fails_because_of_its_template() {
    assert_eq!(classify(clone(), "VM is locked (backup)"), Error::VmLocked { vmid: 9010, lock: "backup".into() });
    let gone = classify(clone(), "unable to find configuration file for VM 9010 on node 'pve1'");
    assert_eq!(gone, Error::TemplateNotFound { what: "VMID 9010".into(), node: "pve1".into() });
    let upid = Upid::parse("UPID:pve1:00001664:000CD507:6B03F864:qmclone:9010:root@pam:").unwrap();
    assert_eq!(classify_task(&upid, 500, "VM is locked (clone)"), Error::VmLocked { vmid: 9010, lock: "clone".into() });
    let failed = classify_task(&upid, 500, "something new");
    assert_eq!(failed, Error::PveFailed { message: "something new".into(), upid: Some(upid.text) });
}

#[test]
fn a_full_storage_is_named() {
    let known = Subject { storage: Some("small"), ..clone() };
    assert!(matches!(classify(known, "x: No space left on device"), Error::StorageFull { storage, .. } if storage == "small"));
    let logged = "clone failed; allocated target volume 'small:502/vm-502-disk-0.qcow2'; qemu-img: No space left on device";
    assert!(matches!(classify(clone(), logged), Error::StorageFull { storage, .. } if storage == "small"));
}

/// `errors` of recorded status 400 answers.
const FIELDS: &[(&str, &str, &str)] = &[
    ("name", "invalid format - value does not look like a valid DNS name\n", "INVALID_NAME"),
    ("newid", "invalid format - value does not look like a valid VM ID\n", "VMID_OUT_OF_RANGE"),
    ("vmid", "VM 140 already exists", "VMID_IN_USE"),
    ("storage", "storage 'isoonly' does not support vm images", "INVALID_FIELD"),
    ("ipconfig0", "invalid format - format error\nipconfig0.ip: missing property required by 'ipconfig0.gw'\n", "INVALID_GATEWAY"),
    (
        "ipconfig0",
        "invalid format - format error\nipconfig0.ip: invalid format - value does not look like a valid ipv4 network configuration\n\n",
        "INVALID_ADDRESS",
    ),
    (
        "net0",
        "invalid format - format error\nnet0.macaddr: invalid format - value does not look like a valid unicast MAC address\n\n",
        "INVALID_MAC",
    ),
    ("net0", "invalid format - format error\nnet0.tag: value must have a maximum value of 4094\n", "INVALID_FIELD"),
    ("net1", "hotplug problem - no physical interface on bridge 'vmbr9'\n", "BRIDGE_NOT_FOUND"),
    ("scsi0", "hotplug problem - can't unplug bootdisk 'scsi0'\n", "PVE_FAILED"),
    ("sshkeys", "invalid format - invalid urlencoded string: ssh-ed25519 AAAA me@host\n", "INVALID_SSH_KEY"),
    ("cores", "type check ('integer') failed - got 'x'", "INVALID_FIELD"),
    ("frob", "property is not defined in schema and the schema does not allow additional properties", "INVALID_FIELD"),
    ("overrule-shutdown", "Not applicable for HA resources.", "VM_HA_MANAGED"),
];

#[test]
fn a_refused_parameter_has_its_reason() {
    for (field, text, reason) in FIELDS {
        let errors = BTreeMap::from([((*field).to_owned(), (*text).to_owned())]);
        let error = classify_answer(about(), 400, "Parameter verification failed.\n", &errors);
        assert_eq!(error.reason(), *reason, "{field}: {text}: {error}");
        if let Error::Invalid(violations) = error {
            assert_eq!(violations[0].field, *field);
            assert!(!violations[0].description.contains('\n'));
        }
    }
}

#[test]
fn each_refused_parameter_is_told() {
    let errors = BTreeMap::from([("cores".to_owned(), "bad".to_owned()), ("memory".to_owned(), "bad".to_owned())]);
    let error = classify_answer(about(), 400, "Parameter verification failed.", &errors);
    assert!(matches!(&error, Error::Invalid(v) if v.len() == 2), "{error}");
}

#[test]
fn a_refused_ticket_is_pve_down() {
    let error = classify_answer(about(), 401, "Authentication failed!", &BTreeMap::new());
    assert_eq!(error.reason(), "PVE_DOWN");
    assert!(!is_answer_lost(&error) && is_answer_lost(&Error::PveAnswerLost { detail: ANSWER_LOST.into() }));
}

proptest::proptest! {
    #[test]
    fn no_message_makes_it_panic(text in "\\PC*", status in 100u16..600) {
        let _ = classify(clone(), &text);
        let _ = classify_answer(about(), status, &text, &BTreeMap::from([(text.clone(), text.clone())]));
    }
}
