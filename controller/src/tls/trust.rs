//! The CAs that name hosts, and what they have revoked.

use std::{cmp::Reverse, path::Path};

use jiff::Timestamp;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime, pem::PemObject};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy,
    anchor_from_trusted_cert,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{TlsError, verify::time};

/// A CA with its own lists, newest first: webpki asks the first list that is one of the issuer's name, and a new CA mostly has the name of
/// the one it replaces. So each CA is asked by itself.
#[derive(Debug)]
struct Authority {
    anchor: TrustAnchor<'static>,
    lists: Vec<CertRevocationList<'static>>,
    subject: String,
    /// When it ends, in seconds since 1970: webpki takes a trust anchor for one for ever.
    end: i64,
}

/// Why a server's certificate does not count.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// webpki's words.
    Chain(webpki::Error),
    /// The CA that issued it has ended.
    Ended {
        /// The CA.
        ca: String,
        /// When, in seconds since 1970.
        at: i64,
    },
}

/// Whose certificates of hosts count, but for those that are revoked.
#[derive(Debug)]
pub(super) struct Trust {
    authorities: Vec<Authority>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Whether there is any list.
    pub(super) lists: bool,
}

/// A text in PEM, and where it came from.
pub(super) type Source<'a> = (&'a [u8], &'a Path);

fn fail(file: &Path, why: impl Into<String>) -> TlsError {
    TlsError::File { path: file.to_owned(), why: why.into() }
}

impl Trust {
    /// Reads CAs and their lists. What is no mistake, yet should be known, is added to `warnings`.
    pub(super) fn read(
        (ca, ca_file): Source<'_>,
        crl: Option<Source<'_>>,
        algorithms: WebPkiSupportedAlgorithms,
        now: Timestamp,
        warnings: &mut Vec<String>,
    ) -> Result<Self, TlsError> {
        let cas: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(ca).collect::<Result<_, _>>().map_err(|e| fail(ca_file, format!("malformed PEM: {e}")))?;
        if cas.is_empty() {
            return Err(fail(ca_file, "it holds no certificate; use the ca.crt that pveletctl pki init made"));
        }
        let lists = match crl {
            Some(crl) => revocation_lists(crl, (&cas, ca_file), algorithms, now, warnings)?,
            None => cas.iter().map(|_| Vec::new()).collect(),
        };
        let no_ca = |e: String| fail(ca_file, format!("it holds what is no CA certificate: {e}"));
        let authority = |(ca, lists): (&CertificateDer<'static>, _)| {
            let anchor = anchor_from_trusted_cert(ca).map_err(|e| no_ca(e.to_string()))?.to_owned();
            let (_, cert) = X509Certificate::from_der(ca).map_err(|e| no_ca(e.to_string()))?;
            Ok(Authority { anchor, lists, subject: cert.subject().to_string(), end: cert.validity().not_after.timestamp() })
        };
        let authorities: Vec<Authority> = cas.iter().zip(lists).map(authority).collect::<Result<_, TlsError>>()?;
        for ended in authorities.iter().filter(|ca| ca.end <= now.as_second()) {
            warnings.push(format!("{}: the CA '{}' ended {}; no host of it is taken", ca_file.display(), ended.subject, time(ended.end)));
        }
        Ok(Self { authorities, algorithms, lists: crl.is_some() })
    }

    /// Whether one of the CAs issued this server's certificate and has not ended, and none revoked it or what stands between. A CA without a
    /// list has revoked nothing; a list past its next update still counts, or one forgotten renewal would shut every host out. What an ended CA
    /// has revoked stays so.
    pub(super) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let cert = EndEntityCert::try_from(end_entity).map_err(Refusal::Chain)?;
        let ended = |ca: &Authority| u64::try_from(ca.end).is_ok_and(|end| end <= now.as_secs()) || ca.end < 0;
        let mut verdict = Err(Refusal::Chain(webpki::Error::UnknownIssuer));
        for authority in &self.authorities {
            let lists: Vec<&CertRevocationList<'_>> = authority.lists.iter().collect();
            let revocation =
                RevocationOptionsBuilder::new(&lists).ok().map(|with| with.with_status_policy(UnknownStatusPolicy::Allow).build());
            let anchors = std::slice::from_ref(&authority.anchor);
            let chain = cert.verify_for_usage(self.algorithms.all, anchors, intermediates, now, KeyUsage::server_auth(), revocation, None);
            match chain {
                Ok(_) if ended(authority) => {
                    if verdict.is_err() {
                        verdict = Err(Refusal::Ended { ca: authority.subject.clone(), at: authority.end });
                    }
                }
                Ok(_) => verdict = Ok(()),
                // Whatever another CA says of it.
                Err(webpki::Error::CertRevoked) => return Err(Refusal::Chain(webpki::Error::CertRevoked)),
                Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {}
                Err(e) if verdict.is_err() => verdict = Err(Refusal::Chain(e)),
                Err(_) => {}
            }
        }
        verdict
    }
}

/// The lists of each CA, newest first. Each must be signed by one of them: what cannot be proven revokes nothing, and is a mistake.
fn revocation_lists(
    (pem, file): Source<'_>,
    (cas, ca_file): (&[CertificateDer<'_>], &Path),
    algorithms: WebPkiSupportedAlgorithms,
    now: Timestamp,
    warnings: &mut Vec<String>,
) -> Result<Vec<Vec<CertRevocationList<'static>>>, TlsError> {
    let ders: Vec<CertificateRevocationListDer<'_>> = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| fail(file, format!("malformed PEM: {e}")))?;
    if ders.is_empty() {
        return Err(fail(file, "it holds no revocation list; use the ca.crl that pveletctl pki keeps beside ca.crt"));
    }
    let cas: Vec<X509Certificate<'_>> = cas
        .iter()
        .map(|ca| X509Certificate::from_der(ca).map(|(_, ca)| ca))
        .collect::<Result<_, _>>()
        .map_err(|e| fail(ca_file, format!("it holds what is no CA certificate: {e}")))?;
    let mut by_ca: Vec<Vec<_>> = cas.iter().map(|_| Vec::new()).collect();
    for der in &ders {
        let (_, crl) =
            CertificateRevocationList::from_der(der).map_err(|e| fail(file, format!("it holds a malformed revocation list: {e}")))?;
        let signed_by = |ca: &X509Certificate<'_>| {
            let key = &ca.public_key().subject_public_key.data;
            let signature = &crl.signature_value.data;
            ca.subject().as_raw() == crl.issuer().as_raw()
                && algorithms.all.iter().any(|a| a.verify_signature(key, crl.tbs_cert_list.as_ref(), signature).is_ok())
        };
        let order = (crl.crl_number().cloned(), crl.last_update().timestamp());
        let over = crl.next_update().is_some_and(|t| t.timestamp() < now.as_second());
        // One key may have several certificates, such as a CA's that was prolonged: the list is of all of them.
        let mut known = false;
        for (ca, lists) in cas.iter().zip(&mut by_ca).filter(|(ca, _)| signed_by(ca)) {
            let may_sign = ca.key_usage().ok().flatten().is_none_or(|usage| usage.value.crl_sign());
            if !may_sign {
                return Err(fail(
                    ca_file,
                    format!("the CA '{}' may sign no revocation lists (key usage cRLSign is missing)", ca.subject()),
                ));
            }
            let list = OwnedCertRevocationList::from_der(der)
                .map_err(|e| fail(file, format!("it holds a revocation list that cannot be used: {e}; give a full list, of version 2")))?;
            lists.push((Reverse(order.clone()), over, CertRevocationList::from(list)));
            known = true;
        }
        if !known {
            let why = format!(
                "it holds a revocation list of '{}' that no CA in {} signed; take both files from the same folder",
                crl.issuer(),
                ca_file.display()
            );
            return Err(fail(file, why));
        }
    }
    for (ca, lists) in cas.iter().zip(&mut by_ca) {
        lists.sort_by(|a, b| a.0.cmp(&b.0));
        let what = match lists.first() {
            None => "no list of",
            Some((_, true, _)) => "the newest list is past its next update, and still counts; bring the present one of",
            Some(_) => continue,
        };
        warnings.push(format!("{}: {what} the CA '{}'", file.display(), ca.subject()));
    }
    Ok(by_ca.into_iter().map(|lists| lists.into_iter().map(|(_, _, list)| list).collect()).collect())
}
