//! `pveletctl pki`.

mod hosts;
mod rollover;

use std::{
    fs::File,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::SystemTime,
};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use pvelet_proto::identity::Role;
use serde::Serialize;

use super::{
    CliError, Exit, Io, Session,
    args::{Format, Global},
    output, parse,
    table::{Look, Rows},
};
use crate::pki::{CertInfo, Issued, Lifetime, PkiDir, SigningRequest, read_certs, unix, write_public};

/// Certificates that end sooner are marked.
pub(super) const SOON_DAYS: i64 = 14;

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
With another CA (step-ca, cert-manager):
  pveletctl pki request pve1 > pve1.csr
  pveletctl pki install pve1 pve1.crt

ca.key stays where it is, best on a machine without network.")]
pub(super) enum Pki {
    /// Make a CA: ca.crt, ca.key and an empty ca.crl
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
    Rollover(rollover::Rollover),
    /// Revoke certificates; bring ca.crl to the hosts afterwards (pki push)
    Revoke {
        #[command(flatten)]
        at: At,
        /// A certificate's file, its serial number, or an identity (spiffe://..., all its certificates)
        #[arg(required = true)]
        what: Vec<String>,
    },
    /// List what is revoked
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
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Sign {
    #[command(flatten)]
    at: At,
    /// The PVE cluster's name; the node's where it stands alone
    #[arg(long)]
    cluster: String,
    /// The PVE node's name
    #[arg(long)]
    node: String,
    /// A DNS name for other clients; pvelet's own go by cluster and node; may be repeated
    #[arg(long = "dns", value_name = "NAME")]
    dns: Vec<String>,
    /// An IP address, likewise
    #[arg(long = "ip", value_name = "ADDRESS")]
    ips: Vec<IpAddr>,
    /// Take the DNS names and addresses that the request asks for
    #[arg(long, conflicts_with_all = ["dns", "ips"])]
    names_from_request: bool,
    /// How long it is valid
    #[arg(long, default_value_t = Lifetime::HOST_DAYS, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: u32,
    /// Write the certificate there, in place of one that is there; default: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The request, PKCS #10 in PEM; - for standard input
    request: PathBuf,
}

/// On which hosts.
#[derive(Debug, Args)]
pub(super) struct Hosts {
    /// Hosts by name, as in the configuration
    #[arg(value_name = "HOST", required_unless_present = "all")]
    hosts: Vec<String>,
    /// All hosts of the configuration
    #[arg(long, conflicts_with = "hosts")]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Renew {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    at: At,
    /// Renew what ends within so many days; default: a third of each certificate's lifetime
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(..=36500))]
    before: Option<u32>,
    /// How long the new ones are valid; default: 365 days
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: Option<u32>,
    /// Renew what is not due too, and what another CA issued
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Request {
    /// The host
    #[arg(value_name = "HOST")]
    host: String,
    /// A DNS name to ask for; without --dns and --ip: those of the certificate in use; may be repeated
    #[arg(long = "dns", value_name = "NAME")]
    dns: Vec<String>,
    /// An IP address, likewise
    #[arg(long = "ip", value_name = "ADDRESS")]
    ips: Vec<IpAddr>,
}

#[derive(Debug, Args)]
pub(super) struct Install {
    /// The host
    #[arg(value_name = "HOST")]
    host: String,
    /// The certificate, PEM, intermediate ones after it; - for standard input
    #[arg(value_name = "CERTIFICATE")]
    certificate: PathBuf,
    /// The CAs of clients from now on, PEM: the whole bundle
    #[arg(long = "client-ca", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Their revocation lists, PEM: all of them
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// CAs by which the host checks the certificate too, where hosts' certificates are of another CA than clients'
    #[arg(long, value_name = "FILE")]
    server_ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Push {
    #[command(flatten)]
    hosts: Hosts,
    #[command(flatten)]
    at: At,
    /// Another CA whose clients hosts hear, PEM; may be repeated
    #[arg(long, value_name = "FILE")]
    also_ca: Vec<PathBuf>,
    /// Another CA's revocation list, PEM; may be repeated
    #[arg(long, value_name = "FILE")]
    also_crl: Vec<PathBuf>,
    /// Take out CAs that are not of this folder
    #[arg(long)]
    replace: bool,
    /// Bring no revocation lists, where the agents' configuration has no [tls] crl
    #[arg(long)]
    no_crl: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delivery {
    #[command(flatten)]
    at: At,
    /// Where to write the two files; default: issued/ in the CA's folder
    #[arg(long)]
    out: Option<PathBuf>,
    /// How long it is valid; default: 365 days for a host, 90 for others
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: Option<u32>,
    /// Replace existing files
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Issue {
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
pub(super) enum RoleArg {
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

/// A row of `pki show`.
#[derive(Debug, Serialize)]
struct CertView {
    identity: String,
    usage: &'static str,
    status: &'static str,
    not_before: String,
    not_after: String,
    days_left: i64,
    serial: String,
    names: Vec<String>,
    file: Option<PathBuf>,
}

/// A row of `pki crl`.
#[derive(Debug, Serialize)]
struct RevokedView {
    serial: String,
    time: String,
    identity: Option<String>,
}

#[derive(Debug, Serialize)]
struct CrlView {
    number: u64,
    revoked: Vec<RevokedView>,
}

/// What `pki revoke` did.
#[derive(Debug, Serialize)]
struct NewlyRevokedView {
    /// Serial numbers.
    revoked: Vec<String>,
    crl: PathBuf,
}

#[derive(Debug, Serialize)]
struct IssuedView {
    identity: String,
    serial: String,
    not_after: String,
    cert: PathBuf,
    key: PathBuf,
}

/// What `pki sign` did.
#[derive(Debug, Serialize)]
struct SignedView {
    identity: String,
    serial: String,
    not_after: String,
    key_sha256: String,
    cert_pem: String,
    file: Option<PathBuf>,
}

pub(super) async fn run(command: &Pki, global: &Global, io: &Io) -> Result<Exit, CliError> {
    let format = global.output;
    let session = || Session::open(global, io);
    match command {
        Pki::Sign(args) => sign(args, format, io)?,
        Pki::Renew(args) => return hosts::renew(&session().await?, args).await,
        Pki::Request(args) => return hosts::request(&session().await?, args).await,
        Pki::Install(args) => return hosts::install(&session().await?, args).await,
        Pki::Push(args) => return hosts::push(&session().await?, args).await,
        Pki::Status(args) => return hosts::status(&session().await?, args).await,
        Pki::Rollover(command) => return rollover::run(command, format, io),
        Pki::Init { at, trust_domain, days, force } => {
            PkiDir::init(&at.dir, trust_domain, Lifetime::days(*days), *force)?;
            io.note(&format!("CA of {trust_domain} made in {}; keep ca.key secret and make a copy of it", at.dir.display()));
        }
        Pki::Issue(issue) => issue_one(issue, format, io)?,
        Pki::Revoke { at, what } => revoke(&PkiDir::open(&at.dir), what, format, io)?,
        Pki::Crl { at } => crl(&PkiDir::open(&at.dir), format, io)?,
        Pki::Show { path } => show(path, format, io)?,
    }
    Ok(Exit::Ok)
}

fn issue_one(issue: &Issue, format: Format, io: &Io) -> Result<(), CliError> {
    let (Issue::Host { delivery, .. }
    | Issue::Controller { delivery, .. }
    | Issue::Person { delivery, .. }
    | Issue::Tenant { delivery, .. }) = issue;
    let pki = PkiDir::open(&delivery.at.dir);
    let ca = pki.ca()?;
    let lifetime = |default| Lifetime::days(delivery.days.unwrap_or(default));
    let issued: Issued = match issue {
        Issue::Host { cluster, node, dns, ips, .. } => {
            let dns: Vec<&str> = dns.iter().map(String::as_str).collect();
            ca.issue_host(cluster, node, &dns, ips, lifetime(Lifetime::HOST_DAYS))?
        }
        Issue::Controller { name, role, .. } | Issue::Person { name, role, .. } => {
            ca.issue_role((*role).into(), name, lifetime(Lifetime::CLIENT_DAYS))?
        }
        Issue::Tenant { tenant, name, .. } => ca.issue_tenant(tenant, name, lifetime(Lifetime::CLIENT_DAYS))?,
    };
    let base = pki.deliver(&issued, delivery.out.as_deref(), delivery.force)?;
    // A name may hold dots, so the ending is added, not set.
    let file = |ending: &str| PathBuf::from(format!("{}.{ending}", base.display()));
    let view = IssuedView {
        identity: issued.identity.to_string(),
        serial: issued.serial.clone(),
        not_after: seconds(unix(issued.not_after)),
        cert: file("crt"),
        key: file("key"),
    };
    output::print(io, format, &view, |v| {
        format!("{}\n  until {}\n  {}\n  {}\n", v.identity, v.not_after, v.cert.display(), v.key.display())
    })
}

/// Reads a small text file, or standard input.
fn read_text(path: &Path) -> Result<String, CliError> {
    const LARGEST: u64 = 4 << 20;
    let fail = |why: String| CliError::File { path: path.to_owned(), why };
    let mut bytes = Vec::new();
    let done = if path == Path::new("-") {
        std::io::stdin().lock().take(LARGEST + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
    };
    done.map_err(|e| fail(e.to_string()))?;
    if bytes.len() as u64 > LARGEST {
        return Err(fail(format!("it is larger than {} MiB, which no certificate, request or list is", LARGEST >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| fail("it is not in PEM; convert it with openssl (-inform der)".to_owned()))
}

fn sign(args: &Sign, format: Format, io: &Io) -> Result<(), CliError> {
    let pki = PkiDir::open(&args.at.dir);
    let ca = pki.ca()?;
    let request = SigningRequest::from_pem(&read_text(&args.request)?)?;
    let (dns, ips) = if args.names_from_request { (&request.dns, &request.ips) } else { (&args.dns, &args.ips) };
    let dns: Vec<&str> = dns.iter().map(String::as_str).collect();
    let signed = ca.sign_host(&request, &args.cluster, &args.node, &dns, ips, Lifetime::days(args.days))?;
    pki.keep(&signed.serial, &signed.cert_pem)?;
    if let Some(out) = &args.out {
        write_public(out, signed.cert_pem.as_bytes(), true)?;
    }
    let view = SignedView {
        identity: signed.identity.to_string(),
        serial: signed.serial,
        not_after: seconds(unix(signed.not_after)),
        key_sha256: request.key_sha256,
        cert_pem: signed.cert_pem,
        file: args.out.clone(),
    };
    output::print(io, format, &view, |v| if v.file.is_some() { String::new() } else { v.cert_pem.clone() })?;
    io.note(&format!("signed {}, serial {}, until {}", view.identity, view.serial, view.not_after));
    Ok(())
}

fn revoke(pki: &PkiDir, what: &[String], format: Format, io: &Io) -> Result<(), CliError> {
    let mut revoked = Vec::new();
    // What was done before a mistake is told too.
    let done = what.iter().try_for_each(|what| {
        let new = pki.revoke(what, SystemTime::now())?;
        if new.is_empty() {
            io.note(&format!("{what}: revoked already"));
        }
        revoked.extend(new);
        Ok(())
    });
    let view = NewlyRevokedView { revoked, crl: pki.crl_path() };
    output::print(io, format, &view, |v| v.revoked.iter().map(|serial| format!("revoked {serial}\n")).collect())?;
    if done.is_ok() || !view.revoked.is_empty() {
        io.note(&format!("bring {} to every host (pveletctl pki push --all)", view.crl.display()));
    }
    done
}

fn crl(pki: &PkiDir, format: Format, io: &Io) -> Result<(), CliError> {
    let (crl, issued) = (pki.crl()?, pki.issued()?);
    let revoked = crl.list().iter().map(|r| RevokedView {
        serial: r.serial.clone(),
        time: seconds(unix(r.time)),
        identity: issued.iter().find(|c| c.serial == r.serial).map(identity),
    });
    let view = CrlView { number: crl.number(), revoked: revoked.collect() };
    output::print(io, format, &view, |v| {
        let mut rows = Rows::new(&["SERIAL", "REVOKED", "IDENTITY"]);
        for r in &v.revoked {
            rows.add(Look::Plain, vec![r.serial.clone(), r.time.clone(), r.identity.clone().unwrap_or_default()]);
        }
        rows.render(io.colour, &format!("CRL number {}: nothing is revoked", v.number))
    })
}

fn show(path: &Path, format: Format, io: &Io) -> Result<(), CliError> {
    let pki = PkiDir::open(path);
    let mut certs = read_certs(path)?;
    let mut revoked = Vec::new();
    if pki.ca_cert_path().is_file() {
        // A CA's folder: its own certificate, then all that it issued.
        certs.retain(|c| c.ca);
        certs.extend(pki.issued()?);
        revoked = pki.crl()?.list().to_vec();
    }
    let now = Timestamp::now().as_second();
    let certs: Vec<CertView> = certs.iter().map(|c| view(c, now, revoked.iter().any(|r| r.serial == c.serial))).collect();
    output::print(io, format, &certs, |certs| {
        let mut rows = Rows::new(&["IDENTITY", "USAGE", "STATUS", "UNTIL", "DAYS", "SERIAL"]);
        for c in certs {
            let look = if c.status == "valid" { Look::Plain } else { Look::Bad };
            rows.add(
                look,
                vec![
                    c.identity.clone(),
                    c.usage.to_owned(),
                    c.status.to_owned(),
                    c.not_after.clone(),
                    c.days_left.to_string(),
                    c.serial.clone(),
                ],
            );
        }
        rows.render(io.colour, "no certificates")
    })
}

fn view(c: &CertInfo, now: i64, revoked: bool) -> CertView {
    let days_left = (c.not_after - now).div_euclid(24 * 3600);
    CertView {
        identity: identity(c),
        usage: match (c.ca, c.server_auth, c.client_auth) {
            (true, ..) => "CA",
            (false, true, false) => "server",
            (false, false, true) => "client",
            (false, true, true) => "server and client",
            (false, false, false) => "none",
        },
        status: match () {
            () if revoked => "revoked",
            () if now > c.not_after => "expired",
            () if now < c.not_before => "not yet valid",
            () if days_left < SOON_DAYS => "ends soon",
            () => "valid",
        },
        not_before: seconds(c.not_before),
        not_after: seconds(c.not_after),
        days_left,
        serial: c.serial.clone(),
        names: c.dns.iter().cloned().chain(c.ips.iter().map(ToString::to_string)).collect(),
        file: c.path.clone(),
    }
}

/// The SPIFFE id, or for what has none the common name.
fn identity(c: &CertInfo) -> String {
    c.uris.first().cloned().unwrap_or_else(|| c.subject.clone())
}

fn seconds(at: i64) -> String {
    Timestamp::from_second(at).map_or_else(|_| at.to_string(), |t| t.to_string())
}
