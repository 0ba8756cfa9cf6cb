//! `pveletctl pki`.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use pvelet_proto::identity::Role;
use serde::Serialize;

use super::{
    CliError, Exit, Io,
    args::Format,
    output, parse,
    table::{Look, Rows},
};
use crate::pki::{CertInfo, Issued, Lifetime, PkiDir, read_certs};

/// Certificates that end sooner are marked.
const SOON_DAYS: i64 = 14;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pveletctl pki init --dir pki --trust-domain pvelet.example
  pveletctl pki issue host --dir pki --cluster lab --node pve1 --dns pve1.lab.example --ip 10.0.0.1
  pveletctl pki issue person ann --dir pki --role operator
  pveletctl pki issue controller main --dir pki
  pveletctl pki show pki
  pveletctl pki revoke spiffe://pvelet.example/role/operator/ann --dir pki

Copy ca.crt, ca.crl and the host's two files to each host. ca.key stays where it is, best on a machine without network.")]
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
    /// Revoke certificates; bring ca.crl to the hosts afterwards
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
pub(super) struct At {
    /// The CA's folder
    #[arg(long, default_value = "pki")]
    dir: PathBuf,
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

pub(super) fn run(command: &Pki, format: Format, io: &Io) -> Result<Exit, CliError> {
    match command {
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
        not_after: seconds(issued.not_after.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))),
        cert: file("crt"),
        key: file("key"),
    };
    output::print(io, format, &view, |v| {
        format!("{}\n  until {}\n  {}\n  {}\n", v.identity, v.not_after, v.cert.display(), v.key.display())
    })
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
        io.note(&format!("bring {} to every host; agents read it again by themselves", view.crl.display()));
    }
    done
}

fn crl(pki: &PkiDir, format: Format, io: &Io) -> Result<(), CliError> {
    let (crl, issued) = (pki.crl()?, pki.issued()?);
    let revoked = crl.list().iter().map(|r| RevokedView {
        serial: r.serial.clone(),
        time: seconds(r.time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))),
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
