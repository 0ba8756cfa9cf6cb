//! The certificates of a cluster, and the key that signs tokens of service accounts.

use std::{fs, net::IpAddr, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// A certificate and its private key, in PEM.
#[derive(Debug, Clone)]
pub(super) struct KeyAndCert {
    /// The certificate.
    pub(super) cert: String,
    /// The private key.
    pub(super) key: String,
}

impl KeyAndCert {
    /// Writes `<name>.crt` and `<name>.key`.
    pub(super) fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(format!("{name}.crt")), &self.cert).expect("a certificate");
        fs::write(folder.join(format!("{name}.key")), &self.key).expect("a key");
    }
}

/// The CA of a cluster. It vouches for the server and for clients: one is enough here.
pub(super) struct ClusterCa {
    /// Its certificate in PEM.
    pub(super) cert: String,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterCa {
    /// A new one, for this test alone.
    pub(super) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "kubernetes");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let cert = params.self_signed(&key).expect("a CA").pem();
        Self { cert, issuer: Issuer::new(params, key) }
    }

    /// Its private key in PEM.
    pub(super) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A server's certificate.
    pub(super) fn server(&self, addresses: &[IpAddr], names: &[&str]) -> KeyAndCert {
        let names = names.iter().map(|name| SanType::DnsName((*name).try_into().expect("a DNS name")));
        let sans = addresses.iter().map(|ip| SanType::IpAddress(*ip)).chain(names).collect();
        self.issue("kube-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth, sans)
    }

    /// A client's certificate: user name and group, as Kubernetes reads them.
    pub(super) fn client(&self, user: &str, group: Option<&str>) -> KeyAndCert {
        self.issue(user, group, ExtendedKeyUsagePurpose::ClientAuth, Vec::new())
    }

    fn issue(&self, user: &str, group: Option<&str>, usage: ExtendedKeyUsagePurpose, sans: Vec<SanType>) -> KeyAndCert {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, user);
        if let Some(group) = group {
            name.push(DnType::OrganizationName, group);
        }
        params.distinguished_name = name;
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        KeyAndCert { cert, key: key.serialize_pem() }
    }
}

/// Writes `service-account.key` and `service-account.pub`: what signs tokens, and what checks them.
pub(super) fn write_service_account_key(folder: &Path) {
    let key = KeyPair::generate().expect("a key");
    fs::write(folder.join("service-account.key"), key.serialize_pem()).expect("a key");
    fs::write(folder.join("service-account.pub"), key.public_key_pem()).expect("a key");
}
