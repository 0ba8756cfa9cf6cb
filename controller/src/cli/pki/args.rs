//! The command line of `pveletctl pki`.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use pvelet_proto::identity::Role;

use super::super::parse;
use crate::pki::Lifetime;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pveletctl pki init --dir pki --trust-domain pvelet.example
  pveletctl pki issue host --dir pki --cluster lab --node pve1 --dns pve1.lab.example --ip 10.0.0.1
  pveletctl pki issue person ann --dir pki --role operator
  pveletctl pki issue controller main --dir pki
  pveletctl pki show pki
  pveletctl pki revoke spiffe://pvelet.example/role/operator/ann --dir pki
  pveletctl pki push --all --dir pki

A host's key is best made on the host, and never leaves it:
  pvelet-agent signing-request > pve1.csr                              (on the host)
  pveletctl pki sign --dir pki --cluster lab --node pve1 --out pve1.crt pve1.csr
  pvelet-agent install-certificate --ca ca.crt --crl ca.crl pve1.crt   (on the host)
Later, over the API, long before a certificate ends (role admin):
  pveletctl pki renew --all --dir pki
With another CA (step-ca, cert-manager) that signs itself:
  pveletctl pki request pve1 > pve1.csr
  pveletctl pki install pve1 pve1.crt
or with its key here, as cert-manager keeps it in a Secret (tls.crt, tls.key):
  pveletctl pki init --dir pki --trust-domain pvelet.example --from-cert tls.crt --from-key tls.key

ca.key stays where it is, best on a machine without network.")]
pub(in crate::cli) enum Pki {
    /// Make a CA: ca.crt, ca.key and an empty ca.crl. Or take over one that another program made, with --from-cert and --from-key
    Init {
        #[command(flatten)]
        at: At,
        /// A DNS name in lower case that stands for this installation, in all identities
        #[arg(long)]
        trust_domain: String,
        /// How long it is valid
        #[arg(long, default_value_t = Lifetime::CA_DAYS, value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: u32,
        /// Replace an existing CA. Nothing that it issued will be trusted any more
        #[arg(long)]
        force: bool,
        /// The certificate of a CA of cert-manager, step-ca or OpenSSL, PEM: root or intermediate. One that was renewed with its key is taken
        /// over again in the same way
        #[arg(long, value_name = "FILE", requires = "from_key", conflicts_with = "days")]
        from_cert: Option<PathBuf>,
        /// Its private key, PEM, without a password
        #[arg(long, value_name = "FILE", requires = "from_cert")]
        from_key: Option<PathBuf>,
    },
    /// Issue a certificate and key
    #[command(subcommand)]
    Issue(Issue),
    /// Sign the request of a host, whose key never leaves it. Only its public key is taken over: who it is stands in --cluster and --node
    Sign(Sign),
    /// Renew the certificates of hosts that end soon, over the API: a new key on the host, signed here, installed there, and seen on a new
    /// connection. Exit status 3 where some hosts failed
    Renew(Renew),
    /// Have a host make a signing request, for another CA
    Request(Request),
    /// Install a certificate of another CA on a host
    Install(Install),
    /// Bring the CAs of clients and their revocation lists to hosts
    Push(Push),
    /// List the hosts' certificates, the CAs that they trust, and their revocation lists
    Status(Hosts),
    /// Replace the CA without a gap
    #[command(subcommand)]
    Rollover(super::rollover::Rollover),
    /// Revoke certificates; bring ca.crl to the hosts (pki push) and to every client afterwards
    Revoke {
        #[command(flatten)]
        at: At,
        /// What a newer certificate of the same identity has replaced. The newer one must be in use: look at pki status first
        #[arg(long, conflicts_with = "what")]
        replaced: bool,
        /// Only tell what would be revoked
        #[arg(long, requires = "replaced")]
        dry_run: bool,
        /// A certificate's file, its serial number, or an identity (spiffe://..., all its certificates; after a rollover's switch only those
        /// of the old CA)
        #[arg(required_unless_present = "replaced")]
        what: Vec<String>,
    },
    /// List what is revoked, by all CAs of the folder
    Crl {
        #[command(flatten)]
        at: At,
    },
    /// List the certificates of a file, a folder, or a CA's folder
    Show {
        /// The file or folder
        #[arg(default_value = "pki")]
        path: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(in crate::cli) struct At {
    /// The CA's folder
    #[arg(long, default_value = "pki")]
    pub(super) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Sign {
    #[command(flatten)]
    pub(super) at: At,
    /// The PVE cluster's name; the node's where it stands alone
    #[arg(long)]
    pub(super) cluster: String,
    /// The PVE node's name
    #[arg(long)]
    pub(super) node: String,
    /// A DNS name for other clients; pvelet's own go by cluster and node; may be repeated
    #[arg(long = "dns", value_name = "NAME")]
    pub(super) dns: Vec<String>,
    /// An IP address, likewise
    #[arg(long = "ip", value_name = "ADDRESS")]
    pub(super) ips: Vec<IpAddr>,
    /// Take the DNS names and addresses that the request asks for
    #[arg(long, conflicts_with_all = ["dns", "ips"])]
    pub(super) names_from_request: bool,
    /// How long it is valid
    #[arg(long, default_value_t = Lifetime::HOST_DAYS, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(super) days: u32,
    /// Write the certificate there, in place of one that is there; default: standard output
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// The request, PKCS #10 in PEM; - for standard input
    pub(super) request: PathBuf,
}

/// On which hosts.
#[derive(Debug, Args)]
pub(in crate::cli) struct Hosts {
    /// Hosts by name, as in the configuration
    #[arg(value_name = "HOST", required_unless_present = "all")]
    pub(super) hosts: Vec<String>,
    /// All hosts of the configuration
    #[arg(long, conflicts_with = "hosts")]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Renew {
    #[command(flatten)]
    pub(super) hosts: Hosts,
    #[command(flatten)]
    pub(super) at: At,
    /// Renew what ends within so many days; default: a third of each certificate's lifetime
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(..=36500))]
    pub(super) before: Option<u32>,
    /// How long the new ones are valid; default: 365 days
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(super) days: Option<u32>,
    /// Renew what is not due too, and what another CA issued
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Request {
    /// The host
    #[arg(value_name = "HOST")]
    pub(super) host: String,
    /// A DNS name to ask for; without --dns and --ip: those of the certificate in use; may be repeated
    #[arg(long = "dns", value_name = "NAME")]
    pub(super) dns: Vec<String>,
    /// An IP address, likewise
    #[arg(long = "ip", value_name = "ADDRESS")]
    pub(super) ips: Vec<IpAddr>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Install {
    /// The host
    #[arg(value_name = "HOST")]
    pub(super) host: String,
    /// The certificate, PEM, intermediate ones after it; - for standard input
    #[arg(value_name = "CERTIFICATE")]
    pub(super) certificate: PathBuf,
    /// The CAs of clients from now on, PEM: the whole bundle
    #[arg(long = "client-ca", value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// Their revocation lists, PEM: all of them
    #[arg(long = "client-crl", value_name = "FILE")]
    pub(super) crl_file: Option<PathBuf>,
    /// CAs by which the host checks the certificate too, where hosts' certificates are of another CA than clients'
    #[arg(long, value_name = "FILE")]
    pub(super) server_ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Push {
    #[command(flatten)]
    pub(super) hosts: Hosts,
    #[command(flatten)]
    pub(super) at: At,
    /// Another CA whose clients hosts hear, PEM; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) also_ca: Vec<PathBuf>,
    /// Another CA's revocation list, PEM; may be repeated
    #[arg(long, value_name = "FILE")]
    pub(super) also_crl: Vec<PathBuf>,
    /// Take out CAs that are not of this folder
    #[arg(long)]
    pub(super) replace: bool,
    /// Bring no revocation lists, where the agents' configuration has no [tls] crl
    #[arg(long)]
    pub(super) no_crl: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Delivery {
    #[command(flatten)]
    pub(super) at: At,
    /// Where to write the two files; default: issued/ in the CA's folder
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    /// How long it is valid; default: 365 days for a host, 90 for others
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub(super) days: Option<u32>,
    /// Replace existing files
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Issue {
    /// For a host's agent
    Host {
        /// The PVE cluster's name; the node's where it stands alone
        #[arg(long)]
        cluster: String,
        /// The PVE node's name
        #[arg(long)]
        node: String,
        /// A DNS name for other clients; pvelet's own go by cluster and node; may be repeated
        #[arg(long = "dns")]
        dns: Vec<String>,
        /// An IP address, likewise
        #[arg(long = "ip")]
        ips: Vec<IpAddr>,
        #[command(flatten)]
        delivery: Delivery,
    },
    /// For a controller
    Controller {
        /// Its name
        name: String,
        /// What it may do
        #[arg(long, value_enum, default_value_t = RoleArg::Operator)]
        role: RoleArg,
        #[command(flatten)]
        delivery: Delivery,
    },
    /// For a person
    Person {
        /// The person's name
        name: String,
        /// What the person may do
        #[arg(long, value_enum)]
        role: RoleArg,
        #[command(flatten)]
        delivery: Delivery,
    },
    /// For a client that acts for one tenant only
    Tenant {
        /// The tenant
        #[arg(value_parser = parse::tenant)]
        tenant: String,
        /// The client's name
        name: String,
        #[command(flatten)]
        delivery: Delivery,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::cli) enum RoleArg {
    /// Reads and watches
    Reader,
    /// Mutations too
    Operator,
    /// What changes the agents' own rules too
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Reader => Self::Reader,
            RoleArg::Operator => Self::Operator,
            RoleArg::Admin => Self::Admin,
        }
    }
}
