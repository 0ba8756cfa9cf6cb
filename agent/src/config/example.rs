//! The commented example that `pvelet-agent example-config` prints.

/// A configuration in which every default is written out. What has no default stands as a comment, but for the trust domain.
pub const EXAMPLE: &str = r#"# Configuration of pvelet-agent. What is left out has the value shown here.
# `pvelet-agent check-config` reports every mistake. SIGHUP (systemctl reload pvelet-agent) takes over mode, [[identity]], log.level
# and the files of [tls], which are also read again whenever they change; everything else needs a restart.

# "observe": reads, events and health only; every change is refused. "manage": changes too.
mode = "observe"
# Where the API is served (mTLS). Port 0 lets the system choose.
listen = "[::]:7443"
# Journal of operations, leases, known controllers.
state_dir = "/var/lib/pvelet"
# How long running operations may go on after SIGTERM; what is left is taken up again at the next start.
drain_deadline = "1m"

[tls]
# Certificate of this host (spiffe://<trust-domain>/cluster/<cluster>/host/<node>), its key, and the CA of the clients.
cert = "/etc/pvelet/tls/agent.crt"
key = "/etc/pvelet/tls/agent.key"
client_ca = "/etc/pvelet/tls/ca.crt"
# Revocation list: connections of a revoked certificate are closed within a second.
#crl = "/etc/pvelet/tls/ca.crl"
# Required: the trust domain of your CA.
trust_domain = "pvelet.example"
handshake_deadline = "5s"
max_handshakes = 32
max_connections = 256
# Ask a connection to end after this time, so that clients spread anew.
#max_connection_age = "1h"

[pve]
# The node's name below /etc/pve/nodes; the host's name unless set.
#node = "pve1"
api_address = "127.0.0.1:85"
# Program that prints a ticket for root@pam; PVE's own Perl unless set.
#ticket_command = ["/usr/local/bin/ticket"]
etc_pve = "/etc/pve"
run = "/run"
task_log = "/var/log/pve/tasks"
proc = "/proc"
sysfs = "/sys"
# Put before the paths of storage.cfg: another one only where a host is simulated.
storage_root = "/"
# Under a PVE major version that this agent does not know it only observes, unless this is set.
allow_untested_version = false

[vm]
# The VMIDs for new VMs: a range of its own for each host, outside PVE's next-id range. Required in manage mode.
#vmid_range = "100000-100999"
# How long a freed VMID is not used again.
vmid_quarantine = "1d"
# Work under way at once on one storage: short (linked clone, allocate, delete) and long (full clone, move, import).
short_lane = 4
long_lane = 2
# How long an operation may take in all, the wait for its turn included.
linked_clone_deadline = "15m"
full_clone_deadline = "6h"
configure_deadline = "10m"
power_deadline = "5m"
delete_deadline = "30m"
# The storage that keeps the user data of VMs, as snippets that root alone may read: one that keeps files, with content type snippets
# (`pvesm set local --content iso,vztmpl,backup,snippets`). PVE reads them at every start of the VM, on the node where it starts: for VMs
# that move between nodes, by HA too, name a shared storage here, the same on all nodes.
snippets_storage = "local"

[volumes]
# The VMID in the names of volumes that belong to no VM (vm-<this>-pvc-<uuid>). No VM may ever have it. The same on all hosts of a cluster;
# changed later, volumes under the former one are not found any more. 9999 is what proxmox-csi uses.
owner_vmid = 999999999
# Volumes are attached at scsi1 up to this slot, 1 to 30.
max_slots = 29
# Folders from which clients may have images imported. Nothing in them may be secret.
import_folders = []

[network]
# Where ifupdown2 looks; the agent writes interfaces.d/pvelet below it, and nothing else.
etc_network = "/etc/network"
# Its links are never touched.
corosync = "/etc/corosync/corosync.conf"
# How long a change waits for its confirmation before it is undone, 10s to 10m, unless the request says otherwise.
confirm_timeout = "1m"

[limits]
# Calls under way at once; the next one is refused at once (RESOURCE_EXHAUSTED OVERLOADED).
reads = 64
mutations = 128
network = 8
streams = 64
message_bytes = 1048576
read_deadline = "10s"

[health]
# Whether this host is a Kubernetes worker: "auto" (it is one where systemd has the units, or their files are there), "yes", "no".
worker = "auto"
# From one run of a cheap check to the next. What must be told at once is asked each second, or tells by itself.
period = "10s"
containerd_socket = "/run/containerd/containerd.sock"
containerd_config = "/etc/containerd/config.toml"
containerd_unit = "containerd.service"
containerd_program = "/usr/bin/containerd"
# Make and remove a pod sandbox so often, to see that pods can start (never pulls an image). probe = false: only when asked.
probe = true
probe_period = "1m"
kubelet_unit = "kubelet.service"
kubelet_config = "/var/lib/kubelet/config.yaml"
kubelet_kubeconfig = "/etc/kubernetes/kubelet.conf"
kubelet_pki = "/var/lib/kubelet/pki"
kubelet_healthz = "127.0.0.1:10248"
# Another journal than that of the system: a folder.
#journal = "/var/log/journal"
# Percent from which storages, pools and file systems are degraded, and failed.
usage_warning = 85
usage_critical = 95
# How long before its end a certificate is told.
certificate_warning = "14d"

[repair]
# "off", "on-request" (what Repair asks for), "automatic" (also what the agent finds by itself). Needs mode = "manage".
policy = "off"
# Automatic repairs in an hour, and how long a check must be failed before one. Two failed repairs in a row end all repairs until
# `pveletctl repair --clear`.
limit_per_hour = 2
patience = "30s"

[metrics]
# Prometheus metrics over plain HTTP; off unless set.
#listen = "127.0.0.1:9443"

[log]
# "error", "warn", "info", "debug", "trace", or per module: "info,pvelet_agent::tls=debug".
level = "info"
# "auto" (the journal under systemd, else text), "journal", "text", "json".
format = "auto"

# For which tenants an operator may act, and on which VLANs. With none listed, every operator may act for all; once one is listed, only the listed may.
#[[identity]]
#uri = "spiffe://pvelet.example/role/operator/controller"
#tenants = ["*"]
# VLANs that it may have made, changed, removed and probed on the host; left out: all.
#vlans = ["100-199", "4000"]
"#;
