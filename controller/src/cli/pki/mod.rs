//! `pveletctl pki`.

mod args;
mod hosts;
mod rollover;

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::SystemTime,
};

use jiff::Timestamp;
use serde::Serialize;

pub(super) use args::Pki;
use args::{At, Hosts, Install, Issue, Push, Renew, Request, Sign};

use super::{
    CliError, Exit, Io, Session,
    args::{Format, Global},
    output,
    table::{Look, Rows},
};
use crate::pki::{CertInfo, Crl, Issued, Lifetime, PkiDir, SigningRequest, read_certs, unix, write_public};

/// Certificates that end sooner are marked.
pub(super) const SOON_DAYS: i64 = 14;

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
    /// Of the list of the CA that signs.
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
        Pki::Init { at, trust_domain, force, from_cert: Some(cert), from_key: Some(key), .. } => {
            PkiDir::take_over(&at.dir, trust_domain, &read_text(cert)?, &read_text(key)?, *force)?;
            io.note(&format!("CA of {trust_domain} taken over in {}; keep ca.key secret", at.dir.display()));
        }
        Pki::Init { at, trust_domain, days, force, .. } => {
            PkiDir::init(&at.dir, trust_domain, Lifetime::days(*days), *force)?;
            io.note(&format!("CA of {trust_domain} made in {}; keep ca.key secret and make a copy of it", at.dir.display()));
        }
        Pki::Issue(issue) => issue_one(issue, format, io)?,
        Pki::Revoke { at, replaced: true, dry_run, .. } => revoke_replaced(&PkiDir::open(&at.dir), *dry_run, format, io)?,
        Pki::Revoke { at, what, .. } => revoke(&PkiDir::open(&at.dir), what, format, io)?,
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
    let copy = pki.keep(&signed.serial, &signed.cert_pem)?;
    if let Some(out) = &args.out {
        // Nobody has a certificate that was not written: it would live on for nobody, and keep a rollover from its end.
        write_public(out, signed.cert_pem.as_bytes(), true).inspect_err(|_| drop(fs::remove_file(&copy)))?;
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
        let left = if what.starts_with("spiffe://") { pki.alive_with(what, SystemTime::now())? } else { Vec::new() };
        if !left.is_empty() {
            let serials: Vec<&str> = left.iter().map(|c| c.serial.as_str()).collect();
            io.warn(&format!(
                "{what}: the certificate of the new CA stays valid; its serial number, to revoke it too: {}",
                serials.join(", ")
            ));
        }
        Ok(())
    });
    let view = NewlyRevokedView { revoked, crl: pki.crl_path() };
    output::print(io, format, &view, |v| v.revoked.iter().map(|serial| format!("revoked {serial}\n")).collect())?;
    if done.is_ok() || !view.revoked.is_empty() {
        bring(&view.crl, io);
    }
    done
}

fn bring(crl: &Path, io: &Io) {
    io.note(&format!("bring {} to every host (pveletctl pki push --all), and beside ca.crt of every client", crl.display()));
}

fn revoke_replaced(pki: &PkiDir, only_tell: bool, format: Format, io: &Io) -> Result<(), CliError> {
    let replaced = pki.revoke_replaced(SystemTime::now(), only_tell)?;
    let certs: Vec<CertView> = replaced.iter().map(|c| view(c, Timestamp::now().as_second(), !only_tell)).collect();
    output::print(io, format, &certs, |certs| {
        let mut rows = Rows::new(&["IDENTITY", "STATUS", "UNTIL", "SERIAL"]);
        for c in certs {
            rows.add(Look::Plain, vec![c.identity.clone(), c.status.to_owned(), c.not_after.clone(), c.serial.clone()]);
        }
        rows.render(io.colour, "nothing is replaced")
    })?;
    match (certs.len(), only_tell) {
        (0, _) => {}
        (_, true) => io.note("nothing was revoked (--dry-run)"),
        (_, false) => bring(&pki.crl_path(), io),
    }
    Ok(())
}

fn crl(pki: &PkiDir, format: Format, io: &Io) -> Result<(), CliError> {
    let (lists, issued) = (pki.crls()?, pki.issued()?);
    let revoked = lists.iter().flat_map(|list| list.list().iter().map(move |r| (list, r))).map(|(list, r)| RevokedView {
        serial: r.serial.clone(),
        time: seconds(unix(r.time)),
        identity: issued.iter().find(|c| c.serial == r.serial && list.revokes(c)).map(identity),
    });
    let view = CrlView { number: lists.first().map_or(0, Crl::number), revoked: revoked.collect() };
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
    let mut lists = Vec::new();
    if pki.ca_cert_path().is_file() {
        // A CA's folder: its own certificate, then all that it issued.
        certs.retain(|c| c.ca);
        certs.extend(pki.issued()?);
        lists = pki.crls()?;
    }
    let now = Timestamp::now().as_second();
    let certs: Vec<CertView> = certs.iter().map(|c| view(c, now, lists.iter().any(|list| list.revokes(c)))).collect();
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
