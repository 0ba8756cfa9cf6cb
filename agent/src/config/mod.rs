//! The agent's configuration: one TOML file, read whole, every mistake reported at once, before anything is bound or changed.

mod check;
pub mod defaults;
mod example;
mod mistake;
mod parse;
mod read;
mod recovery;

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration};

pub(crate) use check::real;
pub use check::warnings;
pub use example::EXAMPLE;
pub use mistake::{Mistake, Mistakes};
pub use parse::{load, load_without_certificates, parse};
pub use recovery::{Recovery, recovery};

/// Whether the agent changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Reads, events, health; every mutation is refused.
    Observe,
    /// Mutations too.
    Manage,
}

/// The whole configuration. Reloaded by SIGHUP are `mode`, `[[identity]]`, `log.level` and the files of `[tls]`; the rest needs a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whether the agent changes anything.
    pub mode: Mode,
    /// Where the API is served; unused when systemd passes a socket.
    pub listen: SocketAddr,
    /// Where the journal of operations lies.
    pub state_dir: PathBuf,
    /// How long running operations may go on after SIGTERM.
    pub drain_deadline: Duration,
    /// `[tls]`
    pub tls: Tls,
    /// `[pve]`
    pub pve: Pve,
    /// `[vm]`
    pub vm: Vm,
    /// `[volumes]`
    pub volumes: Volumes,
    /// `[network]`
    pub network: Network,
    /// `[health]`
    pub health: Health,
    /// `[repair]`
    pub repair: Repair,
    /// `[limits]`
    pub limits: Limits,
    /// `[metrics]` `listen`; `None`: no metrics are served.
    pub metrics: Option<SocketAddr>,
    /// `[log]`
    pub log: Log,
    /// `[[identity]]`
    pub identities: Vec<IdentityRule>,
}

/// `[tls]`: who the agent is and whom it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain of the agent, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The CAs whose client certificates are accepted, PEM; several while a CA is replaced.
    pub client_ca: PathBuf,
    /// Revocation lists of those CAs, PEM.
    pub crl: Option<PathBuf>,
    /// The SPIFFE trust domain of the agent and its clients.
    pub trust_domain: String,
    /// How long a handshake may take.
    pub handshake_deadline: Duration,
    /// How many handshakes may be under way.
    pub max_handshakes: u32,
    /// How many connections may be open.
    pub max_connections: u32,
    /// After which a connection is asked to end (GOAWAY); streams under way go on. `None`: never.
    pub max_connection_age: Option<Duration>,
}

/// `[pve]`: where PVE is found on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pve {
    /// The node's name below `/etc/pve/nodes`.
    pub node: String,
    /// PVE's local daemon.
    pub api_address: SocketAddr,
    /// Program and arguments that print a ticket for root@pam; `None` for PVE's own Perl.
    pub ticket_command: Option<Vec<String>>,
    /// The cluster file system.
    pub etc_pve: PathBuf,
    /// `/run`
    pub run: PathBuf,
    /// PVE's task logs.
    pub task_log: PathBuf,
    /// procfs
    pub proc: PathBuf,
    /// sysfs
    pub sysfs: PathBuf,
    /// Put before the paths of `storage.cfg`; `/` but for hosts that are simulated.
    pub storage_root: PathBuf,
    /// Manage also under a PVE major version that this agent was not tested with.
    pub allow_untested_version: bool,
}

/// `[vm]`: which VMIDs are given out, and how much is done at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The VMIDs that this agent gives to new VMs, disjoint from those of every other host. Needed in manage mode.
    pub vmid_range: Option<RangeInclusive<u32>>,
    /// How long a freed VMID is not given out again.
    pub vmid_quarantine: Duration,
    /// How many short pieces of work (linked clone, allocate, delete) are under way on one storage.
    pub short_lane: u32,
    /// How many long ones (full clone, move, import) are.
    pub long_lane: u32,
    /// How long a linked clone may take in all, the wait for its turn and for PVE's locks included.
    pub linked_clone_deadline: Duration,
    /// How long a full clone may.
    pub full_clone_deadline: Duration,
    /// How long a change of settings may.
    pub configure_deadline: Duration,
    /// How long a start, stop or reset may; a shutdown has the caller's time-out on top.
    pub power_deadline: Duration,
    /// How long a delete may.
    pub delete_deadline: Duration,
    /// The storage that keeps user data, as snippets.
    pub snippets_storage: String,
}

/// `[volumes]`: how volumes are named, and what they may be filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volumes {
    /// The VMID in the names of volumes that belong to no VM. No VM may ever have it; the same on all hosts of a PVE cluster.
    pub owner_vmid: u32,
    /// Volumes take slots from `scsi1` to this one.
    pub max_slots: u32,
    /// Folders from which images may be imported.
    pub import_folders: Vec<PathBuf>,
}

/// `[network]`: where the host's network is declared, and how long a change waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// The folder of `interfaces` and `interfaces.d`.
    pub etc_network: PathBuf,
    /// corosync's configuration: the links it names are never touched.
    pub corosync: PathBuf,
    /// How long a change waits for its confirmation before it is undone, unless the request says otherwise.
    pub confirm_timeout: Duration,
}

/// Whether the host is a Kubernetes worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// It is one when systemd has the unit, or its socket or configuration is there.
    Auto,
    /// It is one: what is missing is a fault.
    Yes,
    /// It is none: nothing of it is looked at.
    No,
}

/// `[health]`: where containerd, the kubelet and LINSTOR are found, and how often they are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether the host is a Kubernetes worker.
    pub worker: Worker,
    /// From one run of a cheap check to the next; what a socket tells at once is asked each second, what needs a program each minute.
    pub period: Duration,
    /// containerd's socket.
    pub containerd_socket: PathBuf,
    /// containerd's configuration.
    pub containerd_config: PathBuf,
    /// containerd's unit.
    pub containerd_unit: String,
    /// containerd's program; it checks a configuration before that replaces the live one.
    pub containerd_program: PathBuf,
    /// From one pod sandbox that is made and removed to the next. `None`: none is made but by RunCheck.
    pub probe_period: Option<Duration>,
    /// The kubelet's unit.
    pub kubelet_unit: String,
    /// The kubelet's configuration.
    pub kubelet_config: PathBuf,
    /// The kubelet's kubeconfig.
    pub kubelet_kubeconfig: PathBuf,
    /// The folder of the kubelet's certificates.
    pub kubelet_pki: PathBuf,
    /// Where the kubelet serves `/healthz`, unless its configuration says otherwise.
    pub kubelet_healthz: SocketAddr,
    /// The journal's folder; `None`: that of the system.
    pub journal: Option<PathBuf>,
    /// How full a file system, a storage or a pool may be: from this share on it is degraded.
    pub usage_warning: u32,
    /// From this share on it is failed. Percent, above `usage_warning`.
    pub usage_critical: u32,
    /// How long before its end a certificate is told.
    pub certificate_warning: Duration,
}

/// What the agent may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairPolicy {
    /// Nothing.
    Off,
    /// What is asked for.
    OnRequest,
    /// What it finds, too.
    Automatic,
}

/// `[repair]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// What the agent may mend.
    pub policy: RepairPolicy,
    /// Automatic repairs in an hour.
    pub limit_per_hour: u32,
    /// How long a check must be failed before the agent mends it by itself.
    pub patience: Duration,
}

/// `[limits]`: how many calls are under way; the next one is refused with `OVERLOADED`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Reads.
    pub reads: u32,
    /// Mutations, held open or not.
    pub mutations: u32,
    /// Network changes.
    pub network: u32,
    /// Streams.
    pub streams: u32,
    /// Size of a request in bytes.
    pub message_bytes: u32,
    /// How long a read may take.
    pub read_deadline: Duration,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal when systemd runs the agent, else text.
    Auto,
    /// journald.
    Journal,
    /// Text on stderr.
    Text,
    /// JSON on stderr.
    Json,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// "error" to "trace", or directives of tracing such as "info,pvelet_agent::tls=debug".
    pub level: String,
    /// Where to, and how.
    pub format: LogFormat,
}

/// `[[identity]]`: for which tenants an operator may act, and on which VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityRule {
    /// The SPIFFE id.
    pub uri: String,
    /// Tenants, or "*" for all.
    pub tenants: Vec<String>,
    /// VLANs that it may have made and removed, first and last of each range; `None`: all.
    pub vlans: Option<Vec<(u16, u16)>>,
}

#[cfg(test)]
mod tests;
