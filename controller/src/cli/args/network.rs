//! The command line of the hosts' network.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Subcommand};

use super::Mutation;
use crate::cli::parse::{self, Addresses, VlanArg};

#[derive(Debug, Subcommand)]
#[command(after_help = "\
A network is a named group of VLANs and bridges that the agent declares in a file of its own. A change is checked, brought up,
verified, and undone unless it is confirmed over a connection that was opened after it; apply and remove do that by themselves.

Examples:
  pveletctl network preflight                            what would get in the way, on all hosts
  pveletctl network apply --host pve1 -f storage.yaml    a PveNetwork manifest, or just name and interfaces
  pveletctl network apply --host pve1 --name storage --vlan bond0:100 --mtu 9000 --address 192.0.2.1/24
  pveletctl network probe --from pve2 --to pve1 --interface bond0.100 --mtu 9000
  pveletctl network probe --host pve1 --interface vmbr0 --addresses 192.0.2.10-192.0.2.20,2001:db8::5
  pveletctl network remove --host pve1 storage")]
pub(in crate::cli) enum NetworkCommand {
    /// Show links, routes and networks, and what declares them
    Show {
        /// Only links of this network, and what they stand on
        #[arg(long, value_parser = parse::network)]
        network: Option<String>,
    },
    /// Show what was changed last, what waits for a confirmation and how long, and whether the networks are as declared
    Status,
    /// Show what a change would do, and touch nothing
    Plan(PlanNetwork),
    /// Make a network what a file says: show the plan, ask, apply, and confirm over a new connection
    Apply(Box<ApplyNetwork>),
    /// Remove a network: show the plan, ask, remove, and confirm over a new connection
    Remove(RemoveNetwork),
    /// Confirm a change that waits, over a new connection
    Confirm(WaitingChange),
    /// Undo a change that waits
    Rollback(WaitingChange),
    /// Try an interface with real frames: does a VLAN reach another host, at which MTU; is an address used by somebody
    Probe(ProbeNetwork),
    /// Check what a change depends on; exit status 0: all well, 1: warnings, 2: errors (changes are refused)
    Preflight(PreflightNetwork),
    /// End the latch after a change that could not be undone, once the network was put right by hand; role admin
    Clear {
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

/// What is wanted: a file, or one VLAN.
#[derive(Debug, Args)]
pub(in crate::cli) struct WantedNetwork {
    /// File with a PveNetwork manifest, of which the host's addresses are taken, or with name and interfaces alone
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["vlan", "name", "mtu", "addresses"])]
    pub(in crate::cli) file: Option<PathBuf>,
    /// One VLAN instead of a file; its interface is called PARENT.ID
    #[arg(long, value_name = "PARENT:ID", value_parser = parse::vlan, requires = "name")]
    pub(in crate::cli) vlan: Option<VlanArg>,
    /// The network's name, with --vlan
    #[arg(long, value_parser = parse::network, requires = "vlan")]
    pub(in crate::cli) name: Option<String>,
    /// MTU, with --vlan; default: the parent's
    #[arg(long, requires = "vlan")]
    pub(in crate::cli) mtu: Option<u32>,
    /// An address with prefix length, with --vlan; may be repeated
    #[arg(long = "address", value_name = "ADDRESS/BITS", requires = "vlan")]
    pub(in crate::cli) addresses: Vec<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("planned").args(["file", "vlan", "remove"]).required(true))]
pub(in crate::cli) struct PlanNetwork {
    #[command(flatten)]
    pub(in crate::cli) wanted: WantedNetwork,
    /// Plan the removal of this network
    #[arg(long, value_name = "NAME", value_parser = parse::network)]
    pub(in crate::cli) remove: Option<String>,
    /// For which tenant; default: the manifest's, else the configuration's, else your certificate's, else "default"
    #[arg(long, value_parser = parse::tenant)]
    pub(in crate::cli) tenant: Option<String>,
}

/// How a change is made.
#[derive(Debug, Args)]
pub(in crate::cli) struct HowToChange {
    /// Show the plan, and touch nothing
    #[arg(long, conflicts_with_all = ["yes", "no_confirm", "request_id"])]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
    /// Leave the confirmation to somebody else (pveletctl network confirm); without it the host undoes the change
    #[arg(long)]
    pub(in crate::cli) no_confirm: bool,
    /// How long the host waits for the confirmation, 10s to 10m; default: the host's own, usually 60s
    #[arg(long, value_name = "DURATION", value_parser = parse::confirm_timeout)]
    pub(in crate::cli) confirm_timeout: Option<Duration>,
    #[command(flatten)]
    pub(in crate::cli) who: Who,
}

/// Who asks.
#[derive(Debug, Args)]
pub(in crate::cli) struct Who {
    /// For which tenant; default: the manifest's, else the configuration's, else your certificate's, else "default"
    #[arg(long, value_parser = parse::tenant)]
    pub(in crate::cli) tenant: Option<String>,
    /// Repeat an earlier attempt safely: the same id with the same request never acts twice
    #[arg(long, value_parser = parse::request_id)]
    pub(in crate::cli) request_id: Option<String>,
}

impl Who {
    pub(in crate::cli) fn mutation(&self) -> Mutation {
        Mutation { tenant: self.tenant.clone(), request_id: self.request_id.clone(), no_wait: false, timeout: None }
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("applied").args(["file", "vlan"]).required(true))]
pub(in crate::cli) struct ApplyNetwork {
    #[command(flatten)]
    pub(in crate::cli) wanted: WantedNetwork,
    #[command(flatten)]
    pub(in crate::cli) how: HowToChange,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RemoveNetwork {
    /// The network
    #[arg(value_parser = parse::network)]
    pub(in crate::cli) name: String,
    #[command(flatten)]
    pub(in crate::cli) how: HowToChange,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct WaitingChange {
    /// operations/<uuid>, or the UUID alone; default: the one that waits
    #[arg(value_parser = parse::operation)]
    pub(in crate::cli) operation: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) who: Who,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").args(["to", "addresses"]).required(true))]
pub(in crate::cli) struct ProbeNetwork {
    /// The host that sends or asks; default: the one of --host or --agent
    #[arg(long, value_name = "HOST")]
    pub(in crate::cli) from: Option<String>,
    /// The host that answers
    #[arg(long, value_name = "HOST")]
    pub(in crate::cli) to: Option<String>,
    /// The interface, at both ends
    #[arg(long, value_name = "NAME", value_parser = parse::interface)]
    pub(in crate::cli) interface: String,
    /// Of a VLAN-aware bridge: which VLAN
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u32).range(1..=4094))]
    pub(in crate::cli) vlan: Option<u32>,
    /// The MTU that must get through; default: the smaller one of both ends
    #[arg(long, value_parser = clap::value_parser!(u32).range(576..=65535), requires = "to")]
    pub(in crate::cli) mtu: Option<u32>,
    /// Ask by ARP and ND who has these: addresses and ranges, joined by commas; exit status 1 where somebody has one
    #[arg(long, value_name = "LIST", value_parser = parse::addresses)]
    pub(in crate::cli) addresses: Option<Addresses>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct PreflightNetwork {
    /// Also what is well, or does not concern the host
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Check this change too: a file as for apply, on one host
    #[arg(long, short, value_name = "FILE")]
    pub(in crate::cli) file: Option<PathBuf>,
}
