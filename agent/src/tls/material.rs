//! One whole, validated set of credentials.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pvelet_proto::identity::Subject;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::CertifiedKey,
    version::TLS13,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{
    Names,
    files::{Present, Sources},
    info::{AuthorityInfo, CertificateInfo, ListInfo, crl_number, date, lasting},
    leaf::{Leaf, Purpose, system_time},
    verifier::ClientVerifier,
};
use crate::{config, error::Error};

/// From here on an administrator is reminded of a certificate's end.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86400);

pub(super) fn bad(file: &Path, why: impl Into<String>) -> Error {
    Error::Credentials { file: file.display().to_string(), why: why.into() }
}

/// A set of credentials that was checked as a whole: the agent's certificate and key, the clients' CAs, their revocation lists.
pub struct Material {
    pub(super) server: Arc<ServerConfig>,
    pub(super) verifier: Arc<ClientVerifier>,
    /// When the agent's certificate ends.
    pub not_after: SystemTime,
    /// The PVE cluster that the agent's certificate names.
    pub cluster: String,
    /// What the agent's certificate says.
    pub own: CertificateInfo,
    /// The CAs whose clients are heard.
    pub authorities: Vec<AuthorityInfo>,
    /// What an administrator should know although the set is good.
    pub warnings: Vec<String>,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Material {
    /// Reads and checks the files of `[tls]`.
    ///
    /// # Errors
    /// `Credentials` names the file and what is wrong with it.
    pub fn load(files: &config::Tls, node: &str, now: SystemTime) -> Result<Self, Error> {
        Self::build(&Sources::read(files)?, files, node, now)
    }

    /// What the certificate in the file of `[tls]` names, the cluster and names of this host, though it has ended and whatever the other files
    /// are; `None`: there is none.
    ///
    /// # Errors
    /// `Credentials`: it is not one of this host.
    pub fn named(files: &config::Tls, node: &str) -> Result<Option<(String, Names)>, Error> {
        let Some(pem) = Present::read(files)?.cert else { return Ok(None) };
        let chain = certificates(&pem, &files.cert)?;
        let (leaf, cluster) = host_leaf(&chain[0], files, node)?;
        let own = parse(&chain[0]).map(|cert| CertificateInfo::new(&leaf, &chain[0], &cert)).map_err(|e| bad(&files.cert, e))?;
        Ok(Some((cluster, Names { dns: own.dns, ips: own.ips })))
    }

    pub(super) fn build(sources: &Sources, files: &config::Tls, node: &str, now: SystemTime) -> Result<Self, Error> {
        let provider = Arc::new(ring::default_provider());
        let mut warnings = Vec::new();

        let chain = certificates(&sources.cert, &files.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&sources.key).map_err(|e| bad(&files.key, format!("holds no private key ({e})")))?;
        let (leaf, cluster) = own_leaf(&chain[0], files, node, now)?;
        if leaf.not_after < now + EXPIRY_WARNING {
            warnings.push(format!("{}: the certificate ends in less than 14 days; issue a new one", files.cert.display()));
        }

        let own = parse(&chain[0]).map(|cert| CertificateInfo::new(&leaf, &chain[0], &cert)).map_err(|e| bad(&files.cert, e))?;

        let authorities = authorities(&sources.client_ca, &files.client_ca)?;
        let lists = match (&sources.crl, &files.crl) {
            (Some(pem), Some(file)) => revocation_lists(pem, file, &authorities, &provider, now, &mut warnings)?,
            _ => vec![None; authorities.len()],
        };
        let told = told(&authorities, &lists, files, now, &mut warnings)?;
        let mut by_ca = Vec::new();
        for ((ca, list), info) in authorities.into_iter().zip(lists).zip(&told) {
            let mut roots = RootCertStore::empty();
            roots.add(ca).map_err(|e| bad(&files.client_ca, e.to_string()))?;
            // A CA without a list of its own is trusted: while a CA is replaced, the new one may not have issued its list yet. A list past
            // its next update still counts, or one forgotten renewal would shut everybody out; both are warned of.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .with_crls(list)
                .allow_unknown_revocation_status()
                .build()
                .map_err(|e| bad(&files.client_ca, e.to_string()))?;
            by_ca.push((verifier, info.not_after));
        }
        let verifier = ClientVerifier::new(by_ca, provider.signature_verification_algorithms, files.trust_domain.clone());
        let verifier = Arc::new(verifier);

        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| Error::Internal(e.to_string()))?
            .with_client_cert_verifier(verifier.clone())
            .with_single_cert(chain, key)
            .map_err(|e| bad(&files.key, format!("does not fit the certificate ({e})")))?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would skip the verification of a certificate that was revoked meanwhile.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { server: Arc::new(server), verifier, not_after: leaf.not_after, cluster, own, authorities: told, warnings })
    }
}

/// The CAs and their lists as they are told.
pub(super) fn told(
    authorities: &[CertificateDer<'static>],
    lists: &[Option<CertificateRevocationListDer<'static>>],
    files: &config::Tls,
    now: SystemTime,
    warnings: &mut Vec<String>,
) -> Result<Vec<AuthorityInfo>, Error> {
    let one = |(ca, list): (&CertificateDer<'static>, &Option<CertificateRevocationListDer<'static>>)| {
        let parsed = parse(ca).map_err(|e| bad(&files.client_ca, e))?;
        let mut info = AuthorityInfo::new(ca, &parsed);
        info.list = list.as_ref().and_then(|list| ListInfo::read(list));
        Ok(info)
    };
    let all = authorities.iter().zip(lists).map(one).collect::<Result<Vec<_>, _>>()?;
    for ca in lasting(&all) {
        let (file, end) = (files.client_ca.display(), date(ca.not_after));
        if ca.not_after <= now {
            warnings.push(format!("{file}: the CA '{}' ended {end}; no client of it is heard", ca.subject));
        } else if ca.not_after < now + EXPIRY_WARNING {
            warnings.push(format!("{file}: the CA '{}' ends {end}; no client of it is heard afterwards", ca.subject));
        }
    }
    Ok(all)
}

/// Whether a private key belongs to the first certificate of a chain, both in PEM.
pub(super) fn fits(chain: &[u8], key: &[u8]) -> bool {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
    let (Ok(chain), Ok(key)) = (chain, PrivateKeyDer::from_pem_slice(key)) else { return false };
    !chain.is_empty() && CertifiedKey::from_der(chain, key, &ring::default_provider()).is_ok()
}

/// Why a certificate is not valid at `now`; the remedy is in it.
pub(super) fn not_valid(leaf: &Leaf, now: SystemTime) -> Option<String> {
    let clock = date(now);
    if now < leaf.not_before {
        let begin = date(leaf.not_before);
        return Some(format!(
            "is not valid yet: it begins {begin}, and this host's clock says {clock}; check the host's clock (timedatectl)"
        ));
    }
    (now >= leaf.not_after).then(|| {
        let end = date(leaf.not_after);
        format!("has expired: it ended {end}, and this host's clock says {clock}; issue a new one, or put the clock right")
    })
}

pub(super) fn certificates(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let list = list.map_err(|e| bad(file, format!("is malformed ({e})")))?;
    if list.is_empty() { Err(bad(file, "holds no certificate in PEM")) } else { Ok(list) }
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    X509Certificate::from_der(der).map(|(_, c)| c).map_err(|e| format!("holds a malformed certificate ({e})"))
}

pub(super) fn authorities(pem: &[u8], file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let list = certificates(pem, file)?;
    for ca in &list {
        let parsed = parse(ca).map_err(|e| bad(file, e))?;
        if !parsed.is_ca() {
            return Err(bad(file, format!("holds '{}', which is no CA", parsed.subject())));
        }
    }
    Ok(list)
}

/// The agent's own certificate: for servers alone, valid now, for this node; with the cluster that it names.
fn own_leaf(der: &CertificateDer<'_>, files: &config::Tls, node: &str, now: SystemTime) -> Result<(Leaf, String), Error> {
    let (leaf, cluster) = host_leaf(der, files, node)?;
    if let Some(why) = not_valid(&leaf, now) {
        return Err(bad(&files.cert, why));
    }
    Ok((leaf, cluster))
}

/// A certificate for servers alone, for this node, whenever it is valid; with the cluster that it names.
fn host_leaf(der: &CertificateDer<'_>, files: &config::Tls, node: &str) -> Result<(Leaf, String), Error> {
    let leaf = Leaf::read(der, Purpose::Server, &files.trust_domain).map_err(|e| bad(&files.cert, e))?;
    match &leaf.identity.subject {
        Subject::Host { node: named, cluster } if named == node => {
            let cluster = cluster.clone();
            Ok((leaf, cluster))
        }
        _ => Err(bad(&files.cert, format!("is for '{}', not for host {node}", leaf.identity))),
    }
}

/// The newest list of each CA, each proven to be signed by it: webpki would refuse every client because of one bad signature, and of several
/// lists of one CA it looks into the first alone. One key may have several certificates, such as those of a CA that was renewed: a list is of
/// all of them.
pub(super) fn revocation_lists(
    pem: &[u8],
    file: &Path,
    authorities: &[CertificateDer<'_>],
    provider: &CryptoProvider,
    now: SystemTime,
    warnings: &mut Vec<String>,
) -> Result<Vec<Option<CertificateRevocationListDer<'static>>>, Error> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    let lists = lists.map_err(|e| bad(file, format!("is malformed ({e})")))?;
    if lists.is_empty() {
        return Err(bad(file, "holds no revocation list in PEM"));
    }
    let authorities = authorities.iter().map(parse).collect::<Result<Vec<_>, _>>().map_err(|e| bad(file, e))?;
    let mut newest: Vec<Option<(u64, bool, CertificateRevocationListDer<'static>)>> = vec![None; authorities.len()];
    for list in lists {
        let (_, crl) = CertificateRevocationList::from_der(&list).map_err(|e| bad(file, format!("holds a malformed list ({e})")))?;
        let signed_by = |ca: &X509Certificate<'_>| {
            ca.subject().as_raw() == crl.issuer().as_raw()
                && provider.signature_verification_algorithms.all.iter().any(|algorithm| {
                    let key = &ca.public_key().subject_public_key.data;
                    algorithm.verify_signature(key, crl.tbs_cert_list.as_ref(), &crl.signature_value.data).is_ok()
                })
        };
        let number = crl_number(&crl);
        let late = crl.next_update().is_some_and(|t| system_time(t.timestamp()) < now);
        let mut known = false;
        for (_, newest) in authorities.iter().zip(&mut newest).filter(|(ca, _)| signed_by(ca)) {
            known = true;
            if newest.as_ref().is_none_or(|(before, ..)| *before <= number) {
                *newest = Some((number, late, list.clone()));
            }
        }
        if !known {
            return Err(bad(file, format!("holds a list of '{}', which none of the client CAs signed", crl.issuer())));
        }
    }
    for (ca, list) in authorities.iter().zip(&newest) {
        let (file, ca) = (file.display(), ca.subject());
        match list {
            None => warnings.push(format!("{file}: no list of '{ca}', so its certificates cannot be revoked")),
            Some((_, true, _)) => warnings.push(format!("{file}: the list of '{ca}' is past its next update; renew it")),
            Some(_) => {}
        }
    }
    Ok(newest.into_iter().map(|list| list.map(|(.., list)| list)).collect())
}
