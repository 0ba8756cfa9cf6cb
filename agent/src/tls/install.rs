//! What may be put in place of the files of `[tls]`: everything is checked as a whole before anything is written.

use std::{path::Path, time::SystemTime};

use pvelet_proto::{identity::Subject, reason};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime},
    server::ParsedCertificate,
};
use x509_parser::prelude::{ParsedExtension, X509Certificate};

use super::{
    CertificateInfo, Material, Peer, connection,
    files::{self, Present, Sources, Staged},
    info::{AuthorityInfo, date},
    leaf::{Leaf, Purpose},
    material::{authorities, certificates, fits, not_valid, parse, revocation_lists, told},
};
use crate::{config, error::Error};

/// A chain of a few certificates.
const LARGEST_CERTIFICATE: usize = 64 << 10;
/// A bundle of a few CAs.
const LARGEST_CA: usize = 256 << 10;
/// Some ten thousand revoked certificates.
const LARGEST_CRL: usize = 1 << 20;

const CERTIFICATE: &str = "certificate_pem";
const CA: &str = "ca_pem";
const LIST: &str = "crl_pem";
const SERVER_CA: &str = "server_ca_pem";

/// What is to be put in place; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct New {
    /// The agent's certificate, intermediate ones after it, PEM.
    pub certificate: Option<String>,
    /// The CAs of clients, PEM.
    pub client_ca: Option<String>,
    /// Their revocation lists, PEM.
    pub crl: Option<String>,
    /// CAs by which the certificate is checked too, PEM.
    pub server_ca: Option<String>,
}

/// What an install has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// `false`: everything was in place already.
    pub changed: bool,
    /// The certificate in use.
    pub certificate: CertificateInfo,
    /// Connections that were closed since their clients are no longer accepted.
    pub closed: usize,
}

/// Where it is put.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// `[tls]`
    pub files: &'a config::Tls,
    /// The PVE node.
    pub node: &'a str,
    /// The PVE cluster that the certificate must name; `None`: any.
    pub cluster: Option<&'a str>,
}

fn refuse(field: &'static str, why: impl AsRef<str>) -> Error {
    Error::invalid(field, reason::INVALID_CERTIFICATE, why.as_ref())
}

/// Installs on the host itself, for root: without a caller that could be locked out.
///
/// # Errors
/// `Invalid`, `CrlOlder`, `CertificateFiles`, `OperationInProgress`, `Credentials` of a file that stays; nothing has changed then.
pub fn install_local(place: &Place<'_>, new: &New, now: SystemTime) -> Result<Installed, Error> {
    let (_, material, changed) = install(place, new, None, now)?;
    Ok(Installed { changed, certificate: material.own, closed: 0 })
}

/// Checks `new`, and puts it in place where it differs from what is there. Returns what the files hold now. A caller must be accepted afterwards
/// too.
pub(super) fn install(place: &Place<'_>, new: &New, caller: Option<&Peer>, now: SystemTime) -> Result<(Sources, Material, bool), Error> {
    let files = place.files;
    sizes(new, files)?;
    let held = files::hold(files)?;
    files::finish_held(files, &held)?;
    let present = Present::read(files)?;
    let (sources, staged) = merge(place, new, &present, now)?;
    let material = Material::build(&sources, files, place.node, now).map_err(|e| named(e, files, new))?;
    lists_go_on(files, &present, &material, now)?;
    if new.client_ca.is_some() && material.authorities.iter().all(|ca| ca.not_after <= now) {
        let ends: Vec<_> = material.authorities.iter().map(|ca| format!("'{}' {}", ca.subject, date(ca.not_after))).collect();
        let why = format!("no client would be heard, since its CAs have ended ({}); bring a CA that is valid", ends.join(", "));
        return Err(refuse(CA, why));
    }
    if let Some(caller) = caller
        && (new.client_ca.is_some() || new.crl.is_some())
    {
        let why = connection::verify(&material, caller.chain()).err();
        if let Some(why) = why {
            return Err(Error::CallerLockedOut { caller: caller.name().to_owned(), why: why.to_string() });
        }
    }
    let changed = staged != Staged::default();
    if changed {
        files::install(files, &staged)?;
    }
    Ok((sources, material, changed))
}

fn sizes(new: &New, files: &config::Tls) -> Result<(), Error> {
    let New { certificate, client_ca, crl, server_ca } = new;
    let table = [
        (CERTIFICATE, certificate, LARGEST_CERTIFICATE, "send the certificate and its intermediate ones alone"),
        (CA, client_ca, LARGEST_CA, "send the certificates of the CAs alone"),
        (LIST, crl, LARGEST_CRL, "send the revocation lists of the CAs alone"),
        (SERVER_CA, server_ca, LARGEST_CA, "send the certificates of the CAs alone"),
    ];
    for (field, text, most, remedy) in table {
        let Some(text) = text else { continue };
        if text.len() > most {
            return Err(refuse(field, format!("{} bytes are too many, at most {most}; {remedy}", text.len())));
        }
        // It would end up in a file that everybody may read.
        if text.contains("PRIVATE KEY-----") {
            return Err(refuse(field, "it holds a private key, which never leaves the host on which it was made; send certificates alone"));
        }
    }
    if certificate.is_none() && client_ca.is_none() && crl.is_none() {
        return Err(refuse(CERTIFICATE, "there is nothing to install; give certificate_pem, ca_pem or crl_pem"));
    }
    if crl.is_some() && files.crl.is_none() {
        let why = "[tls] crl is not set in the agent's configuration, so the list would not be looked at; set it, and restart the agent";
        return Err(refuse(LIST, why));
    }
    Ok(())
}

/// What the files will hold, and which of them change.
fn merge(place: &Place<'_>, new: &New, present: &Present, now: SystemTime) -> Result<(Sources, Staged), Error> {
    let files = place.files;
    let mut next = present.clone();
    let mut staged = Staged::default();
    let differs = |text: &String, there: &Option<Vec<u8>>| there.as_deref() != Some(text.as_bytes());
    if let Some(ca) = &new.client_ca {
        staged.client_ca = differs(ca, &present.client_ca).then(|| ca.clone());
        next.client_ca = Some(ca.clone().into_bytes());
    }
    if let Some(crl) = &new.crl {
        staged.crl = differs(crl, &present.crl).then(|| crl.clone());
        next.crl = Some(crl.clone().into_bytes());
    }
    missing(&next, files)?;
    if let Some(certificate) = &new.certificate {
        let chain = certificates(certificate.as_bytes(), &files.cert).map_err(|e| refuse(CERTIFICATE, without_file(&e)))?;
        own(place, &chain, now)?;
        next.key = Some(key_of(files, certificate, present)?);
        issued_by_known(files, &chain, new, &next, present)?;
        let same_key = next.key == present.key;
        staged.cert = (differs(certificate, &present.cert) || !same_key).then(|| certificate.clone());
        next.cert = Some(certificate.clone().into_bytes());
    }
    if next.cert.is_none() || next.key.is_none() {
        return Err(not_there(CERTIFICATE, &files.cert, "pvelet-agent install-certificate CERTIFICATE"));
    }
    Ok((next.whole(files)?, staged))
}

fn not_there(field: &'static str, file: &Path, option: &str) -> Error {
    refuse(field, format!("it is not given, and there is no {} yet; give it along ({option})", file.display()))
}

/// Without these the agent would not start.
fn missing(next: &Present, files: &config::Tls) -> Result<(), Error> {
    if next.client_ca.is_none() {
        return Err(not_there(CA, &files.client_ca, "--ca FILE"));
    }
    match &files.crl {
        Some(file) if next.crl.is_none() => Err(not_there(LIST, file, "--crl FILE, or take crl out of [tls]")),
        _ => Ok(()),
    }
}

/// Whether the certificate is one for this host's agent, valid now.
fn own(place: &Place<'_>, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), Error> {
    let files = place.files;
    let cert = parse(&chain[0]).map_err(|e| refuse(CERTIFICATE, e))?;
    if cert.is_ca() {
        let why = format!("'{}' is the certificate of a CA; send the one that it issued for this host, first of all", cert.subject());
        return Err(refuse(CERTIFICATE, why));
    }
    let remedy = "sign the request of this host (pveletctl pki sign)";
    let leaf = Leaf::read(&chain[0], Purpose::Server, &files.trust_domain).map_err(|e| refuse(CERTIFICATE, format!("it {e}; {remedy}")))?;
    match &leaf.identity.subject {
        Subject::Host { node, cluster } if node == place.node => {
            if let Some(wanted) = place.cluster.filter(|wanted| wanted != cluster) {
                let why = format!(
                    "it is for '{}', and this host's is of cluster '{wanted}'; where the host has moved to another cluster, install it on the host itself (pvelet-agent install-certificate)",
                    leaf.identity
                );
                return Err(refuse(CERTIFICATE, why));
            }
        }
        _ => return Err(refuse(CERTIFICATE, format!("it is for '{}', not for host {}; {remedy}", leaf.identity, place.node))),
    }
    not_valid(&leaf, now).map_or(Ok(()), |why| Err(refuse(CERTIFICATE, format!("it {why}"))))
}

/// The private key of the certificate: the one that waits, or the one in use.
fn key_of(files: &config::Tls, certificate: &str, present: &Present) -> Result<Vec<u8>, Error> {
    let fitting = |key: &Vec<u8>| fits(certificate.as_bytes(), key);
    if let Some(key) = present.key.clone().filter(fitting) {
        return Ok(key);
    }
    let waiting = files::read(&files::next_key(files))?;
    let none = waiting.is_none();
    waiting.filter(fitting).ok_or_else(|| {
        let known = if none { "no request waits on this host" } else { "it is not that of the request that waits on this host" };
        let why = format!(
            "its public key is somebody else's: not that of the key in use, and {known}; sign the request that this host makes (pveletctl pki request, pvelet-agent signing-request)"
        );
        refuse(CERTIFICATE, why)
    })
}

/// Whether a CA that is known here issued it: one of clients, one that the caller names, or the one of the certificate in use.
fn issued_by_known(
    files: &config::Tls,
    chain: &[CertificateDer<'static>],
    new: &New,
    next: &Present,
    present: &Present,
) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    let clients = next.client_ca.as_deref().unwrap_or_default();
    let clients =
        authorities(clients, &files.client_ca).map_err(|e| if new.client_ca.is_some() { refuse(CA, without_file(&e)) } else { e })?;
    let named = match &new.server_ca {
        Some(pem) => authorities(pem.as_bytes(), &files.cert).map_err(|e| refuse(SERVER_CA, without_file(&e)))?,
        None => Vec::new(),
    };
    let mut key_ids = Vec::new();
    for ca in clients.into_iter().chain(named) {
        key_ids.extend(parse(&ca).ok().and_then(|cert| key_id(&cert)));
        roots.add(ca).map_err(|e| refuse(CA, format!("it holds a CA that cannot be used ({e})")))?;
    }
    let parsed = ParsedCertificate::try_from(&chain[0]).map_err(|e| refuse(CERTIFICATE, format!("it is malformed ({e})")))?;
    let algorithms = ring::default_provider().signature_verification_algorithms;
    let leaf = parse(&chain[0]).map_err(|e| refuse(CERTIFICATE, e))?;
    let Err(error) = verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &chain[1..], UnixTime::now(), algorithms.all) else {
        return Ok(());
    };
    // A host whose certificates are of another CA than its clients': of the same one as the one in use. That CA is not here to verify it by.
    let before = present.cert.as_deref().and_then(|pem| certificates(pem, &files.cert).ok());
    let before = before.as_ref().and_then(|chain| parse(&chain[0]).ok()).map(|cert| issuer(&cert));
    let own = issuer(&leaf);
    if own.1.as_ref().is_some_and(|id| !key_ids.contains(id)) && before.as_ref() == Some(&own) {
        return Ok(());
    }
    let why = format!(
        "it is of CA '{}', which is neither among those of {} nor that of the certificate in use ({error}); {}have it signed by one of them, or name its CA (ca_pem; server_ca_pem where clients' is another)",
        leaf.issuer(),
        files.client_ca.display(),
        if chain.len() == 1 { "where that is an intermediate CA put its certificate after this one; else " } else { "" }
    );
    Err(refuse(CERTIFICATE, why))
}

/// Name and key of the CA that issued a certificate.
fn issuer(cert: &X509Certificate<'_>) -> (String, Option<Vec<u8>>) {
    let id = cert.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|k| k.0.to_vec()),
        _ => None,
    });
    (cert.issuer().to_string(), id)
}

fn key_id(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

/// What is revoked stays so: the lists of CAs that stay are not older than those in place. One that was renewed with its key stays.
fn lists_go_on(files: &config::Tls, present: &Present, material: &Material, now: SystemTime) -> Result<(), Error> {
    let (Some(file), Some(before)) = (&files.crl, known(files, present, now)) else { return Ok(()) };
    for ca in &material.authorities {
        let lists = before.iter().filter(|b| b.signer == ca.signer).filter_map(|b| b.list);
        let Some(was) = lists.max_by_key(|list| list.number) else { continue };
        let older = |why: String| Err(Error::CrlOlder { file: file.display().to_string(), why });
        match ca.list {
            None => {
                return older(format!(
                    "crl_pem: it holds no list of '{}', whose present one has number {}; bring the lists of all CAs (ca.crl of the CA's folder)",
                    ca.subject, was.number
                ));
            }
            Some(is) if is.number < was.number => {
                return older(format!(
                    "crl_pem: the list of '{}' has number {}, and the present one {}: what was revoked since would be trusted again; bring the newest",
                    ca.subject, is.number, was.number
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The CAs and lists in place; `None` where they cannot be used anyhow.
fn known(files: &config::Tls, present: &Present, now: SystemTime) -> Option<Vec<AuthorityInfo>> {
    let (ca, crl, file) = (present.client_ca.as_deref()?, present.crl.as_deref()?, files.crl.as_deref()?);
    let authorities = authorities(ca, &files.client_ca).ok()?;
    let lists = revocation_lists(crl, file, &authorities, &ring::default_provider(), now, &mut Vec::new()).ok()?;
    told(&authorities, &lists, files, now, &mut Vec::new()).ok()
}

/// An error about a file as one about the field from which its content comes.
fn named(error: Error, files: &config::Tls, new: &New) -> Error {
    let Error::Credentials { file, .. } = &error else { return error };
    let of = |path: &Path| path.display().to_string() == *file;
    let field = match () {
        () if of(&files.client_ca) && new.client_ca.is_some() => CA,
        () if files.crl.as_deref().is_some_and(of) && (new.crl.is_some() || new.client_ca.is_some()) => LIST,
        () if (of(&files.cert) || of(&files.key)) && new.certificate.is_some() => CERTIFICATE,
        () => return error,
    };
    refuse(field, without_file(&error))
}

fn without_file(error: &Error) -> String {
    match error {
        Error::Credentials { why, .. } => format!("it {why}"),
        other => other.to_string(),
    }
}
