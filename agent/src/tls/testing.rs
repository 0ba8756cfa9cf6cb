//! Certificates for tests: a small CA, and a folder of files as `[tls]` names them.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::config;

pub(crate) const DOMAIN: &str = "pvelet.test";
pub(crate) const NODE: &str = "pve1";
/// What the server's certificate names for TLS.
pub(crate) const SERVER_NAME: &str = "pve1.test";

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    serials: std::sync::atomic::AtomicU64,
}

/// A certificate with its key, both in PEM.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) serial: SerialNumber,
}

/// How a certificate differs from a good one.
#[derive(Default, Clone)]
pub(crate) struct Spec {
    pub(crate) uris: Vec<String>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    /// Begin and end, relative to now, in seconds.
    pub(crate) validity: Option<(i64, i64)>,
}

pub(crate) fn client(path: &str) -> Spec {
    Spec { uris: vec![format!("spiffe://{DOMAIN}/{path}")], usages: vec![ExtendedKeyUsagePurpose::ClientAuth], validity: None }
}

pub(crate) fn server() -> Spec {
    Spec {
        uris: vec![format!("spiffe://{DOMAIN}/cluster/lab/host/{NODE}")],
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
        validity: None,
    }
}

fn at(offset: i64) -> SystemTime {
    let by = Duration::from_secs(offset.unsigned_abs());
    if offset < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> CertificateParams {
    let mut params = authority();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Ca {
    /// All have the same name, as a CA and its successor do.
    pub(crate) fn new() -> Self {
        Self::made(authority(), KeyPair::generate().unwrap(), None)
    }

    /// One of a name of its own.
    pub(crate) fn named(name: &str) -> Self {
        Self::made(named(name), KeyPair::generate().unwrap(), None)
    }

    /// One that ended a minute ago.
    pub(crate) fn ended() -> Self {
        let mut params = authority();
        (params.not_before, params.not_after) = (at(-3600).into(), at(-60).into());
        Self::made(params, KeyPair::generate().unwrap(), None)
    }

    /// One of a name of its own, with a key that others made.
    pub(crate) fn with_key(name: &str, key_pem: &str) -> Self {
        Self::made(named(name), KeyPair::from_pem(key_pem).unwrap(), None)
    }

    /// This one with another certificate of its name and key.
    pub(crate) fn renewed(&self) -> Self {
        let mut params = authority();
        params.not_after = at(400 * 86400).into();
        Self::made(params, KeyPair::from_pem(&self.issuer.key().serialize_pem()).unwrap(), None)
    }

    /// One that this one has signed.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        Self::made(named(name), KeyPair::generate().unwrap(), Some(self))
    }

    fn made(params: CertificateParams, key: KeyPair, by: Option<&Self>) -> Self {
        let cert = by.map_or_else(|| params.self_signed(&key), |ca| params.signed_by(&key, &ca.issuer)).unwrap();
        Self { issuer: Issuer::new(params, key), pem: cert.pem(), serials: 1.into() }
    }

    /// A certificate for the key of a signing request, PEM.
    pub(crate) fn sign(&self, request: &str, spec: &Spec) -> String {
        let request = CertificateSigningRequestParams::from_pem(request).unwrap();
        self.certify(spec, &request.public_key).0
    }

    pub(crate) fn issue(&self, spec: &Spec) -> Issued {
        let key = KeyPair::generate().unwrap();
        let (cert, serial) = self.certify(spec, &key);
        Issued { cert, key: key.serialize_pem(), serial }
    }

    fn certify(&self, spec: &Spec, key: &impl PublicKeyData) -> (String, SerialNumber) {
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        let (begin, end) = spec.validity.unwrap_or((-300, 3600));
        params.not_before = at(begin).into();
        params.not_after = at(end).into();
        let serial = SerialNumber::from(self.serials.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        params.serial_number = Some(serial.clone());
        params.subject_alt_names.extend(spec.uris.iter().map(|u| SanType::URI(u.as_str().try_into().unwrap())));
        params.extended_key_usages.clone_from(&spec.usages);
        params.use_authority_key_identifier_extension = true;
        (params.signed_by(key, &self.issuer).unwrap().pem(), serial)
    }

    pub(crate) fn crl(&self, revoked: &[&Issued]) -> String {
        self.numbered_crl(1, revoked)
    }

    pub(crate) fn numbered_crl(&self, number: u64, revoked: &[&Issued]) -> String {
        let revoked_certs = revoked
            .iter()
            .map(|i| RevokedCertParams {
                serial_number: i.serial.clone(),
                revocation_time: at(-60).into(),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let params = CertificateRevocationListParams {
            this_update: at(-60).into(),
            next_update: at(3600).into(),
            crl_number: number.into(),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// The files of `[tls]` in a folder of their own.
pub(crate) struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new(server: &Issued, client_ca: &str, crl: &str) -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap() };
        this.put("agent.crt", &server.cert);
        this.put("agent.key", &server.key);
        this.put("ca.crt", client_ca);
        this.put("ca.crl", crl);
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces a file as a careful administrator does: by rename.
    pub(crate) fn put(&self, name: &str, content: &str) {
        let new = self.path(&format!(".{name}.new"));
        fs::write(&new, content).unwrap();
        fs::rename(&new, self.path(name)).unwrap();
    }

    pub(crate) fn config(&self) -> config::Tls {
        let (config, _) = config::parse(&format!("[tls]\ntrust_domain = \"{DOMAIN}\"\n")).unwrap();
        config::Tls {
            cert: self.path("agent.crt"),
            key: self.path("agent.key"),
            client_ca: self.path("ca.crt"),
            crl: Some(self.path("ca.crl")),
            ..config.tls
        }
    }
}

/// A client that trusts `ca` and shows `own`, if anything.
pub(crate) fn client_config(ca: &Ca, own: Option<&Issued>, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            let chain = CertificateDer::pem_slice_iter(own.cert.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}
