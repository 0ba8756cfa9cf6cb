//! The host's network: what the kernel has, what the files below `/etc/network` declare, and the tools that change it.

mod command;
#[cfg(any(test, feature = "fakes"))]
pub mod fake;
mod files;
mod host;
mod ifquery;
mod ifupdown;
pub mod kernel;
mod kernel_decode;
mod kernel_socket;
mod lock;
pub mod offloads;
mod port;
pub mod probe;
pub mod probe_port;
mod state;
mod types;
mod units;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tokio::sync::oneshot;

use crate::error::Error;

pub use host::HostNetwork;
pub use types::*;

/// The network of this host. Every call has a deadline of its own and never blocks the runtime's threads.
///
/// Nothing here decides anything. What a tool says with its exit status is passed on, and believed by nobody: callers look at the kernel.
#[tonic::async_trait]
pub trait Network: Send + Sync + 'static {
    /// What the kernel has now, read by netlink. Errors: `NetworkFailed`.
    async fn kernel(&self) -> Result<Kernel, Error>;

    /// VLAN offloads that are on, by link. Links that cannot tell are left out. Errors: `NetworkFailed`.
    async fn offloads(&self) -> Result<BTreeMap<String, Vec<String>>, Error>;

    /// The texts that declare the network. Errors: `NetworkFailed` when one cannot be read.
    async fn files(&self) -> Result<Files, Error>;

    /// PVE's lock on its staged file, and the agent's own lock on network changes, in this order; held until the value is dropped. The
    /// agent's lock is held by `network-recover` too. Errors: `LockTimeout` when one is not free within `patience`.
    async fn lock(&self, patience: Duration) -> Result<NetworkLock, Error>;

    /// The same for undoing a change: PVE's lock is gone without once it was not free within `patience`; the agent's own is not. Errors:
    /// `LockTimeout`.
    async fn lock_to_undo(&self, patience: Duration) -> Result<NetworkLock, Error> {
        self.lock(patience).await
    }

    /// Whether ifupdown2 takes this text as a file of its own (`ifup -s -i`). Errors: `NetworkFailed` with what it says.
    async fn check_text(&self, text: &str) -> Result<(), Error>;

    /// The same without anybody noticing, such as whoever runs ifupdown2 at that moment. `None`: it cannot be told so here.
    async fn check_text_aside(&self, text: &str) -> Option<Result<(), Error>>;

    /// Another number whenever what checks texts is another one: what was said of a text holds no longer than that.
    fn check_mark(&self) -> u64;

    /// The agent's own file; `None`: there is none. Errors: `NetworkFailed` when it cannot be read.
    async fn own_file(&self) -> Result<Option<String>, Error>;

    /// Replaces the agent's own file, by rename, with file and folder fsynced; `None` removes it. The file that it replaces is kept beside it
    /// until [`Network::forget_old_file`]: to put that text back needs no space on the disk. Errors: `NetworkFailed`.
    async fn write_own_file(&self, text: Option<&str>) -> Result<(), Error>;

    /// Removes what [`Network::write_own_file`] kept. Nothing kept: a success.
    async fn forget_old_file(&self) -> Result<(), Error>;

    /// Runs steps one after the other with ifupdown2, in a transient unit of systemd that outlives the agent. `file`: read the declarations
    /// from this text instead of the live files (for bringing down what is not declared any more). Returns what the tools wrote. Errors:
    /// `NetworkFailed` when a step ended badly, could not be started, or took longer than `patience` (it is then ended).
    async fn run_steps(&self, steps: &[Step], file: Option<&str>, patience: Duration) -> Result<String, Error>;

    /// Ends what [`Network::run_steps`] may have left running, also that of an agent that is dead. Errors: `NetworkFailed`.
    async fn stop_steps(&self) -> Result<(), Error>;

    /// `ifquery -c`: where these interfaces differ from what is declared, at the time that `when` tells; to be called well before, since it
    /// takes long to start. Empty: nowhere. Errors: `NetworkFailed`, also where `when` is dropped.
    async fn compare(&self, interfaces: &[String], when: oneshot::Receiver<()>) -> Result<Vec<String>, Error>;

    /// Removes a link from the kernel. Gone already: a success. Errors: `NetworkFailed`.
    async fn delete_link(&self, name: &str) -> Result<(), Error>;

    /// Makes a link a port of this bridge, with the VLANs and the state that `was` tells. Gone meanwhile: a success. Errors: `NetworkFailed`.
    async fn plug(&self, was: &KernelLink, bridge: &str) -> Result<(), Error>;

    /// Turns IPv6 on again on a link. Gone meanwhile: a success. Errors: `NetworkFailed`.
    async fn enable_ipv6(&self, link: &str) -> Result<(), Error>;

    /// Starts the timer that undoes an unconfirmed change without the agent. Errors: `NetworkFailed`.
    async fn arm(&self) -> Result<(), Error>;

    /// Stops it.
    async fn disarm(&self) -> Result<(), Error>;

    /// The checkpoint as it was last written. Errors: `NetworkFailed`.
    async fn read_checkpoint(&self) -> Result<Option<Vec<u8>>, Error>;

    /// Writes the checkpoint, by rename, fsynced with its folder. Once it was written, writing one that is no larger by more than a page
    /// needs no space on the disk. Errors: `NetworkFailed`.
    async fn write_checkpoint(&self, bytes: &[u8]) -> Result<(), Error>;

    /// Removes the checkpoint. Gone already: a success. Errors: `NetworkFailed`.
    async fn remove_checkpoint(&self) -> Result<(), Error>;

    /// Keeps bytes for people, as a file of this name beside the checkpoint. Errors: `NetworkFailed`.
    async fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Time since boot, sleep included (CLOCK_BOOTTIME), and the kernel's id of this boot. Errors: `NetworkFailed`.
    fn boot(&self) -> Result<Boot, Error>;

    /// Which of these addresses somebody else on the link answers for, by ARP and neighbour solicitation, and the MAC address that does. Errors:
    /// `InterfaceNotFound`, `NetworkFailed`.
    async fn who_has(&self, port: &ProbePort, addresses: &[IpAddr], timeout: Duration) -> Result<BTreeMap<IpAddr, String>, Error>;

    /// Answers the frames of [`Network::probe_send`] that carry the token, each once and at most 4096, for the whole time; returns how many.
    /// Errors as there.
    async fn probe_answer(&self, port: &ProbePort, token: &str, time: Duration) -> Result<u32, Error>;

    /// Sends broadcast frames that carry the token, one for each MTU, again and again until each was answered or `timeout` is over. Errors:
    /// `InterfaceNotFound`, `NetworkFailed`.
    async fn probe_send(&self, port: &ProbePort, token: &str, mtus: &[u32], timeout: Duration) -> Result<Probed, Error>;
}

fn failed(message: impl Into<String>) -> Error {
    Error::NetworkFailed { message: message.into() }
}

/// A lock that is held.
pub struct NetworkLock(#[allow(dead_code, reason = "held, not read")] Box<dyn Send + Sync>);

impl NetworkLock {
    fn new(held: impl Send + Sync + 'static) -> Self {
        Self(Box::new(held))
    }
}

impl std::fmt::Debug for NetworkLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NetworkLock")
    }
}

/// Where a host's network is declared, and where the agent keeps what it needs for undoing changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetPaths {
    /// `/etc/network`
    pub etc_network: PathBuf,
    /// `/etc/corosync/corosync.conf`
    pub corosync: PathBuf,
    /// `/etc/pve`, for SDN.
    pub etc_pve: PathBuf,
    /// `network` below the agent's state: checkpoint, lock, output of the tools.
    pub state: PathBuf,
    /// procfs
    pub proc: PathBuf,
    /// sysfs
    pub sysfs: PathBuf,
}

/// The name of the agent's own file below `interfaces.d/`.
pub const OWN_FILE: &str = "pvelet";

/// A text that declares interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFile {
    /// Where it lies.
    pub path: PathBuf,
    /// What it holds; bytes that are no UTF-8 are replaced.
    pub text: String,
    /// When it was last written.
    pub modified: Option<SystemTime>,
}

/// The texts that declare the network of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// `/etc/network/interfaces` first, then what it sources, in ifupdown2's order and as often as it does; without the agent's own file.
    pub declared: Vec<TextFile>,
    /// The agent's own file; `None`: there is none.
    pub own: Option<TextFile>,
    /// Whether a `source` line of the live files takes the agent's own file in.
    pub own_is_sourced: bool,
    /// Whether ifupdown2 is installed (`ifreload`, which the older ifupdown does not have); `None`: not told.
    pub ifupdown2: Option<bool>,
    /// PVE's staged edits (`interfaces.new`).
    pub staged: Option<TextFile>,
    /// `corosync.conf`.
    pub corosync: Option<TextFile>,
    /// Below `/etc/pve/sdn`: what is configured (`zones.cfg`, `vnets.cfg`, ...), what runs (`.running-config`), and locks; read with a deadline,
    /// since the cluster file system may hang. Empty where it does not answer.
    pub sdn: Vec<TextFile>,
    /// Whether the cluster file system answered, so that `sdn` is all there is.
    pub sdn_known: bool,
}

/// CLOCK_BOOTTIME and the boot it counts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// `/proc/sys/kernel/random/boot_id`.
    pub id: String,
    /// Since that boot.
    pub time: Duration,
}

/// Where probes go in and out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbePort {
    /// The link.
    pub link: String,
    /// Of a VLAN-aware bridge: the VLAN; the probe then gets a port of its own on the bridge, as a guest has one.
    pub vlan: Option<u16>,
}

impl ProbePort {
    /// The link itself.
    pub fn link(name: impl Into<String>) -> Self {
        Self { link: name.into(), vlan: None }
    }
}

/// How a probe went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probed {
    /// How many MTUs were answered.
    pub answers: u32,
    /// The largest of them.
    pub largest_mtu: u32,
    /// From the first frame to its answer.
    pub rtt: Duration,
}
