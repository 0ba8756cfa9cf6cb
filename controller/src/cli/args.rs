//! The command line.
//!
//! Doc comments here are the help that people read: brackets and angles in them are its notation, not links.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags)]

mod health;
mod network;
mod volume;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use pvelet_proto::id;

pub(super) use health::*;
pub(super) use network::*;
pub(super) use volume::*;

use super::parse::{self, IpArg, NicArg, VolumeArg};

const EXAMPLES: &str = "\
Examples:
  pveletctl hosts                                 all hosts of the configuration, dead ones included
  pveletctl vms --tag k8s -o json                 VMs with a tag, as JSON
  pveletctl clone --host pve1 --template 9000 --name web-1 --start
  pveletctl start web-1                           by name, VMID or UUID, wherever it is
  pveletctl delete 1004 --yes                     without being asked
  pveletctl storages                              where volumes can be made, and how full it is there
  pveletctl volumes attach 0b951f20 web-1         by the beginning of the volume's id
  pveletctl network preflight                     what a change of the network would meet
  pveletctl doctor                                what is not well on the hosts, and what to do about it
  pveletctl watch                                 what happens, as it happens
  pveletctl --kubeconfig ~/.kube/config vms       on all hosts that a cluster's PveHosts name
  pveletctl --agent 10.0.0.1:7443 --ca ca.crt --cert me.crt --key me.key hosts
  pveletctl pki init --dir pki --trust-domain pvelet.example

Exit status:
  0  done
  1  a call or an operation failed
     (doctor and network preflight have their own 1 and 2: see their --help)
  3  some hosts failed; what the others answered was printed
  4  not found: no such VM, volume, host or operation
  5  no host that matters could be reached
  6  --timeout has passed; the operation goes on
 64  command line, configuration or credentials are wrong, or a VM's or volume's name is ambiguous

The configuration file is --config, else $PVELETCTL_CONFIG, else ~/.config/pvelet/config.toml;
pveletctl config init makes it. Colour only on a terminal, and not where NO_COLOR is set.
An interrupted pveletctl cancels nothing: an operation goes on without it.";

/// Hosts, VMs, volumes, networks and health of pvelet, from the command line.
#[derive(Debug, Parser)]
#[command(name = "pveletctl", version, after_help = EXAMPLES, disable_help_subcommand = true, max_term_width = 120)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) config: Option<PathBuf>,
    /// Only this host of the configuration, or of the cluster; may be repeated
    #[arg(long = "host", global = true, value_name = "NAME", help_heading = "Global options")]
    pub(super) hosts: Vec<String>,
    /// Talk to this agent instead of the configuration's hosts; with NODE= its certificate must name that node; may be repeated
    #[arg(
        long = "agent",
        global = true,
        value_name = "[NODE=]ADDRESS",
        value_parser = parse::agent,
        conflicts_with = "hosts",
        help_heading = "Global options"
    )]
    pub(super) agents: Vec<parse::AgentArg>,
    /// The hosts are the PveHosts of this kubeconfig's cluster, instead of the configuration's
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "agents", help_heading = "Global options")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Certificates of the CAs that name hosts
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) ca: Option<PathBuf>,
    /// Your certificate
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) cert: Option<PathBuf>,
    /// Your private key
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) key: Option<PathBuf>,
    /// Revocation lists of those CAs: a host whose certificate is revoked is not talked to; default: ca.crl beside the CAs where there is one
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) crl: Option<PathBuf>,
    /// Output format
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table, help_heading = "Global options")]
    pub(super) output: Format,
    /// How long a host may take to answer, such as 5s or 1m
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = parse::duration, help_heading = "Global options")]
    pub(super) deadline: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
    /// The same as JSON, as YAML
    Yaml,
    /// For people, with more columns where there are any: health
    Wide,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List hosts: one row each, with the error of those that do not answer
    Hosts,
    /// List VMs of all hosts
    Vms(Vms),
    /// List storages of all hosts that may hold disks
    Storages,
    /// List volumes of all hosts, or do something about them
    #[command(visible_alias = "volume")]
    Volumes(Volumes),
    /// Show, check and change the hosts' VLANs and bridges
    #[command(subcommand, visible_alias = "net")]
    Network(NetworkCommand),
    /// List checks of all hosts: containerd, kubelet, PVE, network, agent
    Health(Health),
    /// Tell what is not well, why it matters, and what to do; exit status 0: healthy, 1: degraded or unknown, 2: critical or not reached
    Doctor(Doctor),
    /// Run checks now
    #[command(subcommand)]
    Check(Check),
    /// Mend what a check found, where the agent knows how: show the plan, ask, change, and verify
    Repair(Repair),
    /// Show everything about hosts, VMs, volumes or operations
    #[command(subcommand)]
    Get(Get),
    /// Make a VM from a template
    Clone(Box<CloneVm>),
    /// Start VMs; one that runs already is left alone
    Start(OnVms),
    /// Ask guests to shut down
    Shutdown(Shutdown),
    /// Stop VMs at once, like pulling the plug
    Stop(OnVms),
    /// Reset running VMs
    Reset(OnVms),
    /// Remove VMs and their disks
    Delete(Delete),
    /// List operations, newest first
    Ops(Ops),
    /// Do something about an operation
    #[command(subcommand)]
    Op(Op),
    /// Print what happens on the hosts, as it happens
    Watch(Watch),
    /// Let a controller go on under a new lease, after an agent has refused it with UNKNOWN_LEASE; role admin
    AcceptController(AcceptController),
    /// Make a CA and certificates, renew those of hosts, revoke
    #[command(subcommand)]
    Pki(super::pki::Pki),
    /// Make and extend the configuration file
    #[command(subcommand)]
    Config(super::config::ConfigCommand),
    /// Print versions: this program's and the agents'
    Version {
        /// Only this program's
        #[arg(long)]
        client: bool,
    },
    /// Print a completion script: pveletctl completion bash > /etc/bash_completion.d/pveletctl
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder
    #[command(hide = true)]
    GenerateMan {
        /// The folder
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct Vms {
    /// Also VMs of nodes whose agents are not asked; their run state is unknown
    #[arg(long)]
    pub(super) all_nodes: bool,
    /// Only VMs of this tenant
    #[arg(long, value_parser = parse::tenant)]
    pub(super) tenant: Option<String>,
    /// Only VMs that carry this tag; of several, all of them
    #[arg(long = "tag", value_parser = parse::tag)]
    pub(super) tags: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Get {
    /// Hosts by name; all when none is named
    Host {
        /// Names as in the configuration
        names: Vec<String>,
    },
    /// VMs by name, VMID or UUID
    Vm {
        /// Which
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Volumes by id
    Volume {
        /// Ids, or their first 8 or more digits
        #[arg(required = true, value_parser = parse::volume)]
        volumes: Vec<VolumeArg>,
        /// Only on this storage
        #[arg(long, value_parser = parse::storage)]
        storage: Option<String>,
    },
    /// Operations by name
    Op {
        /// operations/<uuid>, or the UUID alone
        #[arg(required = true, value_parser = parse::operation)]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Mutation {
    /// For which tenant; default: the configuration's, else your certificate's, else "default"
    #[arg(long, value_parser = parse::tenant)]
    pub(super) tenant: Option<String>,
    /// Repeat an earlier attempt safely: the same id with the same request never acts twice
    #[arg(long, value_parser = parse::request_id)]
    pub(super) request_id: Option<String>,
    /// Return as soon as the agent has accepted it
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Wait for its end so long, such as 90s or 10m; the operation goes on
    #[arg(long, value_name = "DURATION", value_parser = parse::duration, conflicts_with = "no_wait")]
    pub(super) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct OnVms {
    /// Names, VMIDs or UUIDs
    #[arg(required = true, value_name = "VM")]
    pub(super) vms: Vec<String>,
    #[command(flatten)]
    pub(super) mutation: Mutation,
}

#[derive(Debug, Args)]
pub(super) struct Shutdown {
    #[command(flatten)]
    pub(super) on: OnVms,
    /// How long a guest may take, 1s to 1h; default 180s
    #[arg(long, value_name = "DURATION", value_parser = parse::grace)]
    pub(super) grace: Option<Duration>,
    /// Stop it when it does not obey in time
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    pub(super) on: OnVms,
    /// Stop it first where it runs
    #[arg(long)]
    pub(super) stop: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pveletctl clone --host pve1 --template 9000 --name web-1 --start
  pveletctl clone --host pve1 --tag debian --tag cloud --name db-1 --full --storage local-lvm --cores 4 --memory 8G \\
      --nic bridge=vmbr0,vlan=70 --user admin --ssh-key-file ~/.ssh/id_ed25519.pub --ip nic=0,ip=10.7.0.5/24,gw=10.7.0.1")]
#[command(group = clap::ArgGroup::new("source").required(true).args(["template", "tags"]))]
pub(super) struct CloneVm {
    /// The template's VMID
    #[arg(long, value_name = "VMID", value_parser = parse::vmid)]
    pub(super) template: Option<u32>,
    /// The template that carries this tag; of several, all of them
    #[arg(long = "tag", value_name = "TAG", value_parser = parse::tag)]
    pub(super) tags: Vec<String>,
    /// The new VM's name, a DNS name
    #[arg(long, value_parser = parse::dns_name)]
    pub(super) name: String,
    /// The new VM's VMID; default: one that the agent leases
    #[arg(long, value_parser = parse::vmid)]
    pub(super) vmid: Option<u32>,
    /// Copy the disks instead of linking them to the template's
    #[arg(long)]
    pub(super) full: bool,
    /// Storage of the copied disks; default: the template's
    #[arg(long, value_parser = parse::storage, requires = "full")]
    pub(super) storage: Option<String>,
    /// Pool to put it into
    #[arg(long, value_parser = parse::pool)]
    pub(super) pool: Option<String>,
    /// Cores for each socket, 1 to 512
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub(super) cores: Option<u32>,
    /// Sockets, 1 to 4
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4))]
    pub(super) sockets: Option<u32>,
    /// Memory in MiB, or with a unit: 4096, 4G
    #[arg(long, value_name = "SIZE", value_parser = parse::memory_mib)]
    pub(super) memory: Option<u64>,
    /// Size of the boot disk, such as 32G; it only grows
    #[arg(long, value_name = "SIZE", value_parser = parse::disk_bytes)]
    pub(super) disk: Option<u64>,
    /// A NIC: bridge=NAME[,vlan=1-4094][,mac=MAC][,model=virtio][,mtu=N][,firewall=on][,index=N]; may be repeated; replaces the template's
    #[arg(long = "nic", value_name = "NIC", value_parser = parse::nic)]
    pub(super) nics: Vec<NicArg>,
    /// The guest's login user (cloud-init)
    #[arg(long)]
    pub(super) user: Option<String>,
    /// File with SSH public keys for it, one a line; may be repeated
    #[arg(long = "ssh-key-file", value_name = "FILE")]
    pub(super) ssh_key_files: Vec<PathBuf>,
    /// File with the guest's whole user data (cloud-config, Talos machine configuration ...); --user and --ssh-key-file do not count beside it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "ssh_key_files"])]
    pub(super) user_data: Option<PathBuf>,
    /// The guest's address (cloud-init): nic=N,ip=dhcp|ADDRESS/BITS[,gw=ADDRESS][,ip6=auto|dhcp|ADDRESS/BITS][,gw6=ADDRESS]; may be repeated
    #[arg(long = "ip", value_name = "IP", value_parser = parse::ip)]
    pub(super) ips: Vec<IpArg>,
    /// The guest's name server; may be repeated
    #[arg(long = "nameserver", value_name = "ADDRESS")]
    pub(super) nameservers: Vec<IpAddr>,
    /// The guest's search domain
    #[arg(long, value_name = "DOMAIN", value_parser = parse::dns_name)]
    pub(super) search_domain: Option<String>,
    /// A tag of the new VM; may be repeated; replaces the template's
    #[arg(long = "vm-tag", value_name = "TAG", value_parser = parse::tag)]
    pub(super) vm_tags: Vec<String>,
    /// Text for people
    #[arg(long)]
    pub(super) description: Option<String>,
    /// Start it when the host boots
    #[arg(long)]
    pub(super) on_boot: bool,
    /// Start it once it is made
    #[arg(long, conflicts_with = "no_wait")]
    pub(super) start: bool,
    #[command(flatten)]
    pub(super) mutation: Mutation,
}

#[derive(Debug, Args)]
pub(super) struct Ops {
    /// Only those that have not ended
    #[arg(long)]
    pub(super) active: bool,
    /// Only this tenant's
    #[arg(long, value_parser = parse::tenant)]
    pub(super) tenant: Option<String>,
    /// At most so many of each host
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) limit: u16,
}

#[derive(Debug, Subcommand)]
pub(super) enum Op {
    /// Ask an operation to stop and undo what it did
    Cancel {
        /// operations/<uuid>, or the UUID alone
        #[arg(value_parser = parse::operation)]
        name: String,
        #[command(flatten)]
        mutation: Mutation,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Do this only when the controller's former lease is gone for good: after its store was made anew, never while two of them run.
The agent's refusal names the new lease.

Example:
  pveletctl accept-controller main --lease 3ce39e16-a6d8-4c28-ab96-a142978c9cd2")]
pub(super) struct AcceptController {
    /// The controller's name
    #[arg(value_parser = parse::tenant)]
    pub(super) name: String,
    /// UID of its new lease
    #[arg(long, value_name = "UUID", value_parser = parse::uuid)]
    pub(super) lease: String,
    /// The least epoch that is obeyed under that lease
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) transitions: u64,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Begin with the VMs that exist
    #[arg(long)]
    pub(super) existing: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
}

/// The longest text that a description may have.
pub(super) const DESCRIPTION_MAX: usize = 4096;

impl Mutation {
    /// The id given, or a new one.
    pub(super) fn request_id(&self) -> String {
        let id = self.request_id.clone().unwrap_or_else(|| format!("pveletctl-{}", uuid::Uuid::new_v4()));
        debug_assert!(id::request_id(&id).is_ok());
        id
    }
}
