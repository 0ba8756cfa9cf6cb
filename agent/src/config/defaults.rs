//! Every default and bound of the configuration, each with its reason.

use std::time::Duration;

/// Where the configuration lies unless `--config` says otherwise.
pub const CONFIG_FILE: &str = "/etc/pvelet/agent.toml";
/// All interfaces: controllers reach the host from outside, and mTLS decides who is heard. The port is used by no part of PVE.
pub const LISTEN: &str = "[::]:7443";
/// `StateDirectory=pvelet` of the unit.
pub const STATE_DIR: &str = "/var/lib/pvelet";
/// A linked clone, a start or a delete ends well within it; a longer copy is journalled and followed again after the restart.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// Where the packages expect the certificate.
pub const TLS_CERT: &str = "/etc/pvelet/tls/agent.crt";
/// Where the packages expect the key.
pub const TLS_KEY: &str = "/etc/pvelet/tls/agent.key";
/// Where the packages expect the CA of clients.
pub const TLS_CLIENT_CA: &str = "/etc/pvelet/tls/ca.crt";
/// A handshake takes two round trips; whoever needs longer than this holds a socket for nothing.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Handshakes cost CPU before anybody is known: few at once keep a flood from starving the host.
pub const MAX_HANDSHAKES: u32 = 32;
/// A controller, its standby, a few people and the metrics of a fleet need a dozen.
pub const MAX_CONNECTIONS: u32 = 256;

/// PVE's daemon listens on loopback only, on this port.
pub const API_ADDRESS: &str = "127.0.0.1:85";
/// The cluster file system.
pub const ETC_PVE: &str = "/etc/pve";
/// Run files of QEMU VMs lie below `qemu-server/` here.
pub const RUN: &str = "/run";
/// PVE's task logs.
pub const TASK_LOG: &str = "/var/log/pve/tasks";
/// procfs.
pub const PROC: &str = "/proc";
/// sysfs.
pub const SYSFS: &str = "/sys";

/// `qmeventd`'s clean-up after a stop may hold a VMID's lock for 30 s; a day also keeps people from mistaking a new VM for the old one.
pub const VMID_QUARANTINE: Duration = Duration::from_secs(24 * 3600);
/// A linked clone holds the storage's lock for about 0.1 s; PVE gives up after 10 s, so four in front of it never come near.
pub const SHORT_LANE: u32 = 4;
/// Two copies at once keep a disk busy; more only make each slower.
pub const LONG_LANE: u32 = 2;
/// Seconds of work, but a backup may hold the template's lock.
pub const LINKED_CLONE_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Hours on a slow storage with a full lane.
pub const FULL_CLONE_DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// Config changes wait at most for PVE's locks.
pub const CONFIGURE_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// A start waits for locks and for the clean-up of an earlier run (30 s); a shutdown has the time given to the guest on top.
pub const POWER_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// Removing large disks from a slow storage takes minutes.
pub const DELETE_DEADLINE: Duration = Duration::from_secs(1800);
/// The storage that PVE has on every node, in `/var/lib/vz`. It holds snippets once that content type is added.
pub const SNIPPETS_STORAGE: &str = "local";

/// The largest VMID there is: PVE's `next-id` never comes near it, and nobody types it by mistake.
pub const VOLUME_OWNER_VMID: u32 = 999_999_999;
/// `scsi1` to `scsi29`, as proxmox-csi has it: `scsi0` is the boot disk, and `scsi30` stays free for people.
pub const VOLUME_MAX_SLOTS: u32 = 29;
/// Paths of `storage.cfg` are those of the host.
pub const STORAGE_ROOT: &str = "/";

/// Where ifupdown2 looks.
pub const ETC_NETWORK: &str = "/etc/network";
/// corosync's configuration on a node.
pub const COROSYNC: &str = "/etc/corosync/corosync.conf";
/// A controller confirms within a second; a person who types the command needs less than a minute. Until then a host that was cut off stays
/// so.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(60);
/// Shorter, and a busy controller is too late; longer, and nobody waits for the host to come back by itself.
pub const CONFIRM_TIMEOUT_RANGE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

/// Often enough for what changes by hand; what must be told within two seconds is asked each second, or tells by itself.
pub const HEALTH_PERIOD: Duration = Duration::from_secs(10);
/// Where Debian's and Docker's packages have containerd's socket.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// Where they have its configuration.
pub const CONTAINERD_CONFIG: &str = "/etc/containerd/config.toml";
/// Its unit.
pub const CONTAINERD_UNIT: &str = "containerd.service";
/// Its program.
pub const CONTAINERD_PROGRAM: &str = "/usr/bin/containerd";
/// A pod sandbox costs the host a few tens of milliseconds.
pub const PROBE_PERIOD: Duration = Duration::from_secs(60);
/// The kubelet's unit.
pub const KUBELET_UNIT: &str = "kubelet.service";
/// Where kubeadm puts the kubelet's configuration.
pub const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";
/// Where kubeadm puts its kubeconfig.
pub const KUBELET_KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
/// Where the kubelet keeps its certificates.
pub const KUBELET_PKI: &str = "/var/lib/kubelet/pki";
/// The kubelet's default for `/healthz`.
pub const KUBELET_HEALTHZ: &str = "127.0.0.1:10248";
/// LVM-thin pools and file systems get slow, and are hard to free in time, well before they are full.
pub const USAGE_WARNING: u32 = 85;
/// The next large copy may fill it.
pub const USAGE_CRITICAL: u32 = 95;
/// Time for somebody to be on holiday.
pub const CERTIFICATE_WARNING: Duration = Duration::from_secs(14 * 86400);

/// One mistake and one more try; whatever needs more, needs a person.
pub const REPAIR_LIMIT: u32 = 2;
/// Upgrades restart containerd and the kubelet: those are over by then.
pub const REPAIR_PATIENCE: Duration = Duration::from_secs(30);

/// Reads are answered from memory in well under a millisecond: this many wait only when something is wrong.
pub const READS: u32 = 64;
/// Held-open mutations cost little; the lanes bound the work itself.
pub const MUTATIONS: u32 = 128;
/// Network changes go one at a time, and a call may be held open until its change is confirmed: the others are told who is at it.
pub const NETWORK: u32 = 8;
/// Each controller holds two streams, each person one.
pub const STREAMS: u32 = 64;
/// The largest request is a clone with 32 NICs and a few dozen keys: far below.
pub const MESSAGE_BYTES: u32 = 1024 * 1024;
/// A read comes from memory; one that takes longer than this waits for a hung cluster file system.
pub const READ_DEADLINE: Duration = Duration::from_secs(10);

/// What an administrator wants to see of a healthy agent.
pub const LOG_LEVEL: &str = "info";
