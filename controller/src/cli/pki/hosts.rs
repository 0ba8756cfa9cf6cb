//! `pveletctl pki renew|request|install|push|status`: what needs the hosts. Each has its own deadline and its own row.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use pvelet_proto::{
    identity::{Identity, Subject},
    v1,
};
use serde::Serialize;
use tonic::Code;

use super::{
    super::{CliError, Exit, Session, error::of_many, output, table::Look, table::Rows, view::ErrorView},
    Hosts, Install, Push, Renew, Request, read_text, seconds,
};
use crate::{
    agents::{AgentClient, AgentError, Cause, HostResult, fan_out},
    pki::{Ca, CertInfo, Lifetime, PkiDir, PkiError, SigningRequest, unix},
};

/// Connection, request, install, and another connection: each within the deadline of a call.
const STEPS: u32 = 4;
const DAY: u64 = 24 * 3600;

impl Hosts {
    fn of(&self, session: &Session) -> Result<Vec<AgentClient>, CliError> {
        if self.hosts.is_empty() {
            return Ok(session.agents.clone());
        }
        self.hosts.iter().map(|name| session.agent(name).cloned()).collect()
    }
}

/// What was done on all hosts.
#[derive(Debug, Serialize)]
struct All<T> {
    hosts: Vec<T>,
    errors: Vec<ErrorView>,
}

/// Prints rows and errors, and says how it ended.
fn end<T: Serialize>(session: &Session, results: Vec<HostResult<T>>, rows: impl FnOnce(&[T]) -> String) -> Result<Exit, CliError> {
    let (total, mut hosts, mut failed) = (results.len(), Vec::new(), Vec::new());
    for result in results {
        match result.result {
            Ok(row) => hosts.push(row),
            Err(error) => failed.push(error),
        }
    }
    let all = All { hosts, errors: failed.iter().map(ErrorView::from).collect() };
    output::print(&session.io, session.format, &all, |all| rows(&all.hosts))?;
    for error in &failed {
        session.io.error(&error.to_string());
    }
    Ok(of_many(total, &failed))
}

#[derive(Debug, Serialize)]
struct RenewedView {
    host: String,
    /// "renewed" or "not due".
    result: &'static str,
    identity: String,
    serial: String,
    not_after: String,
    /// The end of the certificate before.
    previous_not_after: String,
}

/// What all hosts' renewals share.
struct Renewal {
    pki: PkiDir,
    ca: Ca,
    /// The id of the key that signs.
    key_id: Option<Vec<u8>>,
    /// Ids of all CAs of the folder.
    known: Vec<Option<Vec<u8>>>,
    before: Option<Duration>,
    lifetime: Lifetime,
    force: bool,
}

pub(super) async fn renew(session: &Session, args: &Renew) -> Result<Exit, CliError> {
    let pki = PkiDir::open(&args.at.dir);
    let state = pki.rollover()?;
    let key_id = |ca: &Ca| CertInfo::from_pem(ca.cert_pem()).map(|info| info.key_id);
    let known = std::iter::once(&state.signing).chain(&state.other).map(key_id).collect::<Result<Vec<_>, _>>()?;
    let work = Renewal {
        key_id: key_id(&state.signing)?,
        known,
        pki,
        ca: state.signing,
        before: args.before.map(|days| Duration::from_secs(u64::from(days) * DAY)),
        lifetime: Lifetime::days(args.days.unwrap_or(Lifetime::HOST_DAYS)),
        force: args.force,
    };
    let (hosts, work_ref) = (args.hosts.of(session)?, &work);
    let results = fan_out(&hosts, session.deadline * STEPS, |agent| async move { work_ref.one(&agent).await }).await;
    let nothing = results.iter().all(|r| r.result.as_ref().is_ok_and(|row| row.result == "not due"));
    let exit = end(session, results, |rows| {
        let mut table = Rows::new(&["HOST", "RESULT", "UNTIL", "BEFORE", "SERIAL"]);
        for row in rows {
            let look = if row.result == "renewed" { Look::Good } else { Look::Plain };
            let cells = [&row.host, row.result, &row.not_after, &row.previous_not_after, &row.serial];
            table.add(look, cells.map(str::to_owned).to_vec());
        }
        table.render(session.io.colour, "")
    })?;
    if nothing {
        session.io.note("nothing was renewed: no certificate is due yet (--before DAYS, --force)");
    }
    Ok(exit)
}

impl Renewal {
    /// Whether a certificate is to be replaced.
    fn due(&self, served: &CertInfo, now: SystemTime) -> bool {
        let (from, until) = (served.not_before_time(), served.not_after_time());
        let lifetime = until.duration_since(from).unwrap_or_default();
        let left = until.duration_since(now).unwrap_or_default();
        self.force || served.issuer_key_id != self.key_id || left < self.before.unwrap_or(lifetime / 3)
    }

    async fn one(&self, agent: &AgentClient) -> Result<RenewedView, AgentError> {
        let served = agent.served_certificate().await?;
        let here = |message: &str| AgentError::here(agent.name(), message);
        let of_pki = |e: PkiError| here(&e.to_string());
        let (cluster, node) = host_of(&served).ok_or_else(|| here("its certificate names no host"))?;
        let row = |result, info: &CertInfo| RenewedView {
            host: agent.name().to_owned(),
            result,
            identity: info.uris.first().cloned().unwrap_or_default(),
            serial: info.serial.clone(),
            not_after: seconds(info.not_after),
            previous_not_after: seconds(served.not_after),
        };
        if !self.known.contains(&served.issuer_key_id) && !self.force {
            return Err(here(&format!(
                "its certificate is of another CA ({}) than this folder's; renew it there (pveletctl pki request, pki install), or give --force to take it over",
                served.issuer
            )));
        }
        if !self.due(&served, SystemTime::now()) {
            return Ok(row("not due", &served));
        }
        let request = v1::CreateSigningRequestRequest::default();
        let asked = agent.answer(agent.certificate().create_signing_request(request).await)?;
        let request = SigningRequest::from_pem(&asked.request_pem).map_err(of_pki)?;
        // Who it is and how it is called stands in the certificate by which we know the host, not in what it asks for.
        let dns: Vec<&str> = served.dns.iter().map(String::as_str).collect();
        let signed = self.ca.sign_host(&request, &cluster, &node, &dns, &served.ips, self.lifetime).map_err(of_pki)?;
        let copy = self.pki.keep(&signed.serial, &signed.cert_pem).map_err(of_pki)?;
        let request = v1::InstallCertificateRequest { certificate_pem: signed.cert_pem, ..Default::default() };
        let installed = agent.answer(agent.certificate().install_certificate(request).await);
        if installed.as_ref().is_err_and(not_taken) {
            // It would live on for nobody, and keep a rollover from its end. Who cannot be named here cannot be revoked: what may be in use stays.
            let _ = fs::remove_file(&copy);
        }
        installed?;
        Ok(row("renewed", &shows(agent, &signed.serial).await?))
    }
}

/// Whether a certificate was surely not installed: it did not arrive, or was refused.
fn not_taken(error: &AgentError) -> bool {
    let refused = matches!(
        error.code,
        Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
    );
    match error.cause {
        Cause::Connect(_) => true,
        Cause::Agent => refused,
        Cause::Lost | Cause::Deadline | Cause::Operation => false,
    }
}

/// The certificate that the host shows on a new connection, if it is the one with that serial number.
async fn shows(agent: &AgentClient, serial: &str) -> Result<CertInfo, AgentError> {
    let seen = agent.served_certificate().await.map_err(|e| {
        AgentError::here(
            agent.name(),
            &format!("the new certificate (serial {serial}) is installed, yet a new connection fails: {}", e.text()),
        )
    })?;
    if seen.serial != serial {
        let text = format!(
            "it says that the new certificate is installed (serial {serial}), yet a new connection shows serial {}; is the address another host's, or a proxy's? see its log",
            seen.serial
        );
        return Err(AgentError::here(agent.name(), &text));
    }
    Ok(seen)
}

fn host_of(info: &CertInfo) -> Option<(String, String)> {
    match info.identity()? {
        Identity { subject: Subject::Host { cluster, node }, .. } => Some((cluster, node)),
        _ => None,
    }
}

#[derive(Debug, Serialize)]
struct RequestView {
    host: String,
    identity: String,
    key_sha256: String,
    request_pem: String,
}

pub(super) async fn request(session: &Session, args: &Request) -> Result<Exit, CliError> {
    let agent = session.agent(&args.host)?;
    let ask =
        v1::CreateSigningRequestRequest { dns_names: args.dns.clone(), ip_addresses: args.ips.iter().map(ToString::to_string).collect() };
    let asked = agent.answer(agent.certificate().create_signing_request(ask).await)?;
    let view = RequestView {
        host: agent.name().to_owned(),
        identity: asked.identity,
        key_sha256: asked.key_sha256,
        request_pem: asked.request_pem,
    };
    output::print(&session.io, session.format, &view, |v| v.request_pem.clone())?;
    session.io.note(&format!("{}: request for {}; its key stays on the host", view.host, view.identity));
    Ok(Exit::Ok)
}

#[derive(Debug, Serialize)]
struct InstalledView {
    host: String,
    /// "installed" or "unchanged".
    result: &'static str,
    identity: String,
    serial: String,
    not_after: String,
    closed_connections: u32,
}

pub(super) async fn install(session: &Session, args: &Install) -> Result<Exit, CliError> {
    let agent = session.agent(&args.host)?;
    let text = |path: &Option<PathBuf>| path.as_deref().map(read_text).transpose();
    let certificate_pem = read_text(&args.certificate)?;
    let sent = CertInfo::from_pem(&certificate_pem)
        .map_err(|e| CliError::File { path: args.certificate.clone(), why: format!("{e}; give the certificate in PEM") })?;
    let ask = v1::InstallCertificateRequest {
        certificate_pem,
        ca_pem: text(&args.ca_file)?,
        crl_pem: text(&args.crl_file)?,
        server_ca_pem: text(&args.server_ca)?,
    };
    let done = agent.answer(agent.certificate().install_certificate(ask).await)?;
    let seen = shows(agent, &sent.serial).await?;
    let view = InstalledView {
        host: agent.name().to_owned(),
        result: if done.changed { "installed" } else { "unchanged" },
        identity: seen.uris.first().cloned().unwrap_or_default(),
        serial: seen.serial,
        not_after: seconds(seen.not_after),
        closed_connections: done.closed_connections,
    };
    output::print(&session.io, session.format, &view, |v| {
        format!("{}: {}, {}, serial {}, until {}\n", v.host, v.result, v.identity, v.serial, v.not_after)
    })?;
    Ok(Exit::Ok)
}

#[derive(Debug, Serialize)]
struct PushedView {
    host: String,
    /// "pushed" or "unchanged".
    result: &'static str,
    client_cas: Vec<CaView>,
    closed_connections: u32,
}

#[derive(Debug, Serialize)]
struct CaView {
    subject: String,
    sha256: String,
    not_after: String,
    crl_number: Option<u64>,
    revoked: u32,
}

impl From<&v1::ClientCa> for CaView {
    fn from(ca: &v1::ClientCa) -> Self {
        let not_after = ca.not_after.as_ref().map_or(0, |t| t.seconds);
        Self {
            subject: ca.subject.clone(),
            sha256: ca.sha256.clone(),
            not_after: seconds(not_after),
            crl_number: ca.crl_number,
            revoked: ca.revoked,
        }
    }
}

/// What is brought to every host.
struct Bundle {
    ca_pem: String,
    crl_pem: Option<String>,
    /// SHA-256 of its CAs.
    cas: Vec<String>,
    /// SHA-256 of what may be taken out.
    former: Vec<String>,
    replace: bool,
}

pub(super) async fn push(session: &Session, args: &Push) -> Result<Exit, CliError> {
    let pki = PkiDir::open(&args.at.dir);
    pki.put_right()?;
    let mut ca_pem = pki.bundle()?;
    let mut crl_pem = pki.lists()?;
    for (paths, text) in [(&args.also_ca, &mut ca_pem), (&args.also_crl, &mut crl_pem)] {
        for path in paths {
            *text += &read_text(path)?;
        }
    }
    let sha256 = |pem: &String| CertInfo::from_pem(pem).map(|info| info.sha256);
    let cas = CertInfo::all_from_pem(&ca_pem)?.into_iter().map(|info| info.sha256).collect();
    let former = pki.retired()?.iter().map(sha256).collect::<Result<_, _>>()?;
    let bundle = Bundle { ca_pem, crl_pem: (!args.no_crl).then_some(crl_pem), cas, former, replace: args.replace };
    let (hosts, bundle_ref) = (args.hosts.of(session)?, &bundle);
    let results = fan_out(&hosts, session.deadline * STEPS, |agent| async move { bundle_ref.one(&agent).await }).await;
    let nothing = results.iter().all(|r| r.result.as_ref().is_ok_and(|row| row.result == "unchanged"));
    let exit = end(session, results, |rows| {
        let mut table = Rows::new(&["HOST", "RESULT", "CAS", "CRL", "REVOKED", "CLOSED"]);
        for row in rows {
            let look = if row.result == "pushed" { Look::Good } else { Look::Plain };
            let revoked: u32 = row.client_cas.iter().map(|ca| ca.revoked).sum();
            let cells = vec![
                row.host.clone(),
                row.result.to_owned(),
                row.client_cas.len().to_string(),
                numbers(&row.client_cas),
                revoked.to_string(),
                row.closed_connections.to_string(),
            ];
            table.add(look, cells);
        }
        table.render(session.io.colour, "")
    })?;
    if nothing {
        session.io.note("every host had them already");
    }
    Ok(exit)
}

/// The numbers of the CAs' lists.
fn numbers(cas: &[CaView]) -> String {
    cas.iter().map(|ca| ca.crl_number.map_or_else(|| "none".to_owned(), |n| n.to_string())).collect::<Vec<_>>().join(",")
}

impl Bundle {
    async fn one(&self, agent: &AgentClient) -> Result<PushedView, AgentError> {
        let now = agent.answer(agent.certificate().get_certificate(v1::GetCertificateRequest {}).await)?;
        let foreign = now.client_cas.iter().find(|ca| !self.cas.contains(&ca.sha256) && !self.former.contains(&ca.sha256));
        if let Some(ca) = foreign.filter(|_| !self.replace) {
            return Err(AgentError::here(
                agent.name(),
                &format!(
                    "it trusts a CA that is not of this folder: '{}' (SHA-256 {}); bring it along (--also-ca FILE, --also-crl FILE), or take it out with --replace",
                    ca.subject, ca.sha256
                ),
            ));
        }
        let ask = v1::InstallCertificateRequest { ca_pem: Some(self.ca_pem.clone()), crl_pem: self.crl_pem.clone(), ..Default::default() };
        let done = agent.answer(agent.certificate().install_certificate(ask).await)?;
        // Over a new connection: we are still heard, and by an agent that uses the new ones.
        let fresh = agent.fresh();
        let seen = fresh.answer(fresh.certificate().get_certificate(v1::GetCertificateRequest {}).await)?;
        if seen.client_cas.iter().map(|ca| &ca.sha256).ne(&self.cas) {
            return Err(AgentError::here(agent.name(), "it says that the CAs are installed, yet uses others; see its log"));
        }
        Ok(PushedView {
            host: agent.name().to_owned(),
            result: if done.changed { "pushed" } else { "unchanged" },
            client_cas: seen.client_cas.iter().map(CaView::from).collect(),
            closed_connections: done.closed_connections,
        })
    }
}

#[derive(Debug, Serialize)]
struct StatusView {
    host: String,
    identity: String,
    serial: String,
    issuer: String,
    not_after: String,
    days_left: i64,
    dns_names: Vec<String>,
    ip_addresses: Vec<String>,
    request_pending: bool,
    /// Why the host's files are not in use; empty: they are.
    rejected: String,
    client_cas: Vec<CaView>,
}

pub(super) async fn status(session: &Session, hosts: &Hosts) -> Result<Exit, CliError> {
    let hosts = hosts.of(session)?;
    let results = fan_out(&hosts, session.deadline, |agent| async move {
        let now = agent.answer(agent.certificate().get_certificate(v1::GetCertificateRequest {}).await)?;
        let own = now.certificate.ok_or_else(|| agent.incomplete("GetCertificate", "certificate"))?;
        let end = own.not_after.as_ref().map_or(0, |t| t.seconds);
        Ok(StatusView {
            host: agent.name().to_owned(),
            identity: own.identity,
            serial: own.serial,
            issuer: own.issuer,
            not_after: seconds(end),
            days_left: (end - unix(SystemTime::now())).div_euclid(24 * 3600),
            dns_names: own.dns_names,
            ip_addresses: own.ip_addresses,
            request_pending: now.request_pending,
            rejected: now.rejected,
            client_cas: now.client_cas.iter().map(CaView::from).collect(),
        })
    })
    .await;
    end(session, results, |rows| {
        let mut table = Rows::new(&["HOST", "UNTIL", "DAYS", "SERIAL", "CAS", "CRL", "FILES"]);
        for row in rows {
            let (look, files) = match () {
                () if !row.rejected.is_empty() => (Look::Bad, row.rejected.as_str()),
                () if row.days_left < super::SOON_DAYS => (Look::Warn, "in use"),
                () => (Look::Plain, "in use"),
            };
            let cells = vec![
                row.host.clone(),
                row.not_after.clone(),
                row.days_left.to_string(),
                row.serial.clone(),
                row.client_cas.len().to_string(),
                numbers(&row.client_cas),
                files.to_owned(),
            ];
            table.add(look, cells);
        }
        table.render(session.io.colour, "")
    })
}
