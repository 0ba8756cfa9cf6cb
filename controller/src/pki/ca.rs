//! The CA itself and what it issues, in memory.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pvelet_proto::{
    id,
    identity::{Identity, Role, Subject},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};

use super::{CertInfo, PkiError, SigningRequest, files, key};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long before its making a certificate begins to be valid.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// First second.
    pub not_before: SystemTime,
    /// Last second.
    pub not_after: SystemTime,
}

impl Lifetime {
    /// Days of the CA.
    pub const CA_DAYS: u32 = 3650;
    /// Days of a host's certificate.
    pub const HOST_DAYS: u32 = 365;
    /// Days of a person's, controller's or tenant's certificate.
    pub const CLIENT_DAYS: u32 = 90;

    /// From five minutes ago for so many days.
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        Self { not_before: now - BACKDATE, not_after: now + DAY * days }
    }

    /// Exactly these times; for tests of expiry.
    pub fn between(not_before: SystemTime, not_after: SystemTime) -> Self {
        Self { not_before, not_after }
    }

    fn cut_to(self, end: SystemTime) -> Self {
        Self { not_before: self.not_before, not_after: self.not_after.min(end) }
    }

    fn apply(self, params: &mut CertificateParams) {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |t: SystemTime| epoch + Duration::from_secs(t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        params.not_before = at(self.not_before);
        params.not_after = at(self.not_after);
    }
}

/// A certificate authority with its key.
pub struct Ca {
    trust_domain: String,
    cert_pem: String,
    key_id: Option<Vec<u8>>,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate, just made, whose key is with who asked for it.
pub struct Signed {
    /// Whose it is.
    pub identity: Identity,
    /// The certificate in PEM.
    pub cert_pem: String,
    /// Serial number, hexadecimal, lower case.
    pub serial: String,
    /// The last second of its validity.
    pub not_after: SystemTime,
}

/// A certificate and its key, just made.
pub struct Issued {
    /// Whose it is.
    pub identity: Identity,
    /// The certificate in PEM.
    pub cert_pem: String,
    /// The private key, PKCS#8 in PEM. Write it with [`Issued::write`], which keeps it from others.
    pub key_pem: String,
    /// Serial number, hexadecimal, lower case.
    pub serial: String,
    /// The last second of its validity.
    pub not_after: SystemTime,
}

impl Issued {
    /// Writes `<base>.crt` (mode 0644) and `<base>.key` (0600) into `dir`, which is made with mode 0700 where it is missing. Existing files
    /// are kept and an error returned, unless `force`. Killed between its last two steps it leaves the new key beside the certificate before;
    /// the new one's copy is in `certs/` of the CA's folder.
    pub fn write(&self, dir: &Path, base: &str, force: bool) -> Result<(), PkiError> {
        files::make_dir(dir)?;
        let (cert, key) = (dir.join(format!("{base}.crt")), dir.join(format!("{base}.key")));
        // Both are looked at first: a new key beside an old certificate would be worse than either.
        for path in [&cert, &key] {
            if !force && path.symlink_metadata().is_ok() {
                return Err(PkiError::Exists { path: path.clone() });
            }
        }
        files::write_pair((&cert, self.cert_pem.as_bytes()), (&key, self.key_pem.as_bytes()), force)
    }

    /// A file name without ending that tells whose it is: `host-lab_pve1`, `operator-ann`, `tenant-team-a_csi`. No two identities share one:
    /// `_` stands in no name. It may hold dots, so an ending is added to it, not set.
    pub fn base_name(&self) -> String {
        match &self.identity.subject {
            Subject::Host { cluster, node } => format!("host-{cluster}_{node}"),
            Subject::Role { role, name } => format!("{role}-{name}"),
            Subject::Tenant { tenant, name } => format!("tenant-{tenant}_{name}"),
        }
    }
}

impl Ca {
    /// A new CA for a trust domain (a DNS name in lower case).
    pub fn create(trust_domain: &str, lifetime: Lifetime) -> Result<Self, PkiError> {
        check_trust_domain(trust_domain)?;
        check_lifetime(lifetime)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        lifetime.apply(&mut params);
        params.serial_number = Some(random_serial());
        params.distinguished_name = name(&format!("pvelet CA {trust_domain}"));
        // SPIFFE: a signing certificate names its trust domain with an id without a path.
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?;
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            key_id: CertInfo::from_der(cert.der())?.key_id,
            cert_pem: cert.pem(),
            not_after: lifetime.not_after,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads a CA from the PEM text of its certificate and key.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        Self::from_pem_for(cert_pem, key_pem, None)
    }

    /// The same with the trust domain of a CA whose certificate names none, as other programs make them.
    pub fn from_pem_for(cert_pem: &str, key_pem: &str, trust_domain: Option<&str>) -> Result<Self, PkiError> {
        let malformed = |what: &str, why: &str| PkiError::Malformed { what: what.to_owned(), why: why.to_owned() };
        let secret = key::read(key_pem)?;
        let mut blocks = files::blocks(cert_pem, "CERTIFICATE");
        if blocks.is_empty() {
            blocks.push(cert_pem);
        }
        // While a CA is replaced there are two, and others hand theirs out with its chain: the key says which one signs.
        let (mut found, mut refusal) = (None, None);
        for pem in blocks {
            let info = CertInfo::from_pem(pem)?;
            match key::of(&secret, pem) {
                Ok(key) if key.public_key_raw() == info.public_key => {
                    found = Some((pem, info, key));
                    break;
                }
                Ok(_) => refusal = Some(malformed("the CA's key", "it does not belong to the CA's certificate")),
                Err(e) => refusal = refusal.or(Some(e)),
            }
        }
        let Some((cert_pem, info, key)) = found else {
            return Err(refusal.unwrap_or_else(|| malformed("the CA's certificate", "there is none")));
        };
        if !info.ca {
            return Err(malformed("the CA's certificate", "it is not a certificate of a CA"));
        }
        let named = info.uris.iter().find_map(|u| u.strip_prefix("spiffe://")).filter(|d| check_trust_domain(d).is_ok());
        let trust_domain = named.or(trust_domain).map(str::to_owned).ok_or_else(|| {
            let why = "it names no trust domain (a URI spiffe://<trust-domain>); take it over with: pveletctl pki init --trust-domain NAME --from-cert FILE --from-key FILE";
            malformed("the CA's certificate", why)
        })?;
        check_trust_domain(&trust_domain)?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(|e| malformed("the CA's certificate", &e.to_string()))?;
        Ok(Self { trust_domain, cert_pem: cert_pem.to_owned(), key_id: info.key_id.clone(), not_after: info.not_after_time(), issuer })
    }

    /// Reads the CA of a folder that [`super::PkiDir::init`] made.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        super::PkiDir::open(dir).ca()
    }

    /// The trust domain in which it names identities.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Its certificate in PEM: what agents and clients trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Its private key in PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// When it ends; nothing that it issues lives longer.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The id of its key, as its certificate has it and what it issues names it.
    pub fn key_id(&self) -> Option<&[u8]> {
        self.key_id.as_deref()
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// A server's certificate for the agent of one host. `dns` and `ips` are for other clients than ours, which go by the SPIFFE id.
    pub fn issue_host(&self, cluster: &str, node: &str, dns: &[&str], ips: &[IpAddr], lifetime: Lifetime) -> Result<Issued, PkiError> {
        let (subject, sans) = host(cluster, node, dns, ips)?;
        self.issue(subject, sans, lifetime)
    }

    /// A server's certificate for the agent of one host, for the key of its signing request. Nothing else is taken from the request, which
    /// must not ask for another identity.
    pub fn sign_host(
        &self,
        request: &SigningRequest,
        cluster: &str,
        node: &str,
        dns: &[&str],
        ips: &[IpAddr],
        lifetime: Lifetime,
    ) -> Result<Signed, PkiError> {
        let (subject, sans) = host(cluster, node, dns, ips)?;
        let wanted = Identity { trust_domain: self.trust_domain.clone(), subject: subject.clone() }.to_string();
        if let Some(other) = request.uris.iter().find(|uri| **uri != wanted) {
            return Err(PkiError::Invalid {
                field: "request",
                value: other.chars().take(256).collect(),
                why: format!("it asks for another identity than {wanted}; take the request of that host, or correct --cluster and --node"),
            });
        }
        self.certify(subject, sans, lifetime, &request.key)
    }

    /// A client's certificate for a person or controller.
    pub fn issue_role(&self, role: Role, name: &str, lifetime: Lifetime) -> Result<Issued, PkiError> {
        id::dns_name(name).map_err(|e| invalid("name", name, &e))?;
        self.issue(Subject::Role { role, name: name.to_owned() }, Vec::new(), lifetime)
    }

    /// A client's certificate that acts for one tenant only.
    pub fn issue_tenant(&self, tenant: &str, name: &str, lifetime: Lifetime) -> Result<Issued, PkiError> {
        id::tenant(tenant).map_err(|e| invalid("tenant", tenant, &e))?;
        id::dns_name(name).map_err(|e| invalid("name", name, &e))?;
        self.issue(Subject::Tenant { tenant: tenant.to_owned(), name: name.to_owned() }, Vec::new(), lifetime)
    }

    fn issue(&self, subject: Subject, sans: Vec<SanType>, lifetime: Lifetime) -> Result<Issued, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let Signed { identity, cert_pem, serial, not_after } = self.certify(subject, sans, lifetime, &key)?;
        Ok(Issued { identity, cert_pem, key_pem: key.serialize_pem(), serial, not_after })
    }

    fn certify(&self, subject: Subject, mut sans: Vec<SanType>, lifetime: Lifetime, key: &impl PublicKeyData) -> Result<Signed, PkiError> {
        check_lifetime(lifetime)?;
        let lifetime = lifetime.cut_to(self.not_after);
        let usage = match subject {
            Subject::Host { .. } => ExtendedKeyUsagePurpose::ServerAuth,
            Subject::Role { .. } | Subject::Tenant { .. } => ExtendedKeyUsagePurpose::ClientAuth,
        };
        let identity = Identity { trust_domain: self.trust_domain.clone(), subject };
        let mut params = CertificateParams::default();
        lifetime.apply(&mut params);
        let serial = random_serial();
        params.serial_number = Some(serial.clone());
        params.distinguished_name = name(&common_name(&identity));
        sans.insert(0, SanType::URI(identity.to_string().try_into()?));
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer)?;
        Ok(Signed { identity, cert_pem: cert.pem(), serial: hex::encode(serial.to_bytes()), not_after: lifetime.not_after })
    }
}

/// Who a host is, and the names that its certificate has beside.
fn host(cluster: &str, node: &str, dns: &[&str], ips: &[IpAddr]) -> Result<(Subject, Vec<SanType>), PkiError> {
    id::dns_name(cluster).map_err(|e| invalid("cluster", cluster, &e))?;
    id::node(node).map_err(|e| invalid("node", node, &e))?;
    let mut sans = Vec::new();
    for d in dns {
        id::dns_name(d).map_err(|e| invalid("DNS name", d, &e))?;
        sans.push(SanType::DnsName((*d).try_into()?));
    }
    sans.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
    Ok((Subject::Host { cluster: cluster.to_owned(), node: node.to_owned() }, sans))
}

fn invalid(field: &'static str, value: &str, e: &id::InvalidId) -> PkiError {
    PkiError::Invalid { field, value: value.chars().take(128).collect(), why: format!("not {}: {}", e.kind, e.rule) }
}

pub(super) fn check_trust_domain(value: &str) -> Result<(), PkiError> {
    id::dns_name(value).map_err(|e| invalid("trust domain", value, &e))?;
    if value.bytes().any(|c| c.is_ascii_uppercase()) {
        return Err(PkiError::Invalid { field: "trust domain", value: value.to_owned(), why: "use lower case".to_owned() });
    }
    Ok(())
}

fn check_lifetime(lifetime: Lifetime) -> Result<(), PkiError> {
    if lifetime.not_after <= lifetime.not_before {
        return Err(PkiError::Invalid {
            field: "lifetime",
            value: "not_after <= not_before".to_owned(),
            why: "let it end after it begins".to_owned(),
        });
    }
    Ok(())
}

/// A common name is only for people, and X.509 allows it 64 characters.
fn common_name(identity: &Identity) -> String {
    let text = match &identity.subject {
        Subject::Host { node, .. } => node.clone(),
        Subject::Role { role, name } => format!("{role} {name}"),
        Subject::Tenant { tenant, name } => format!("{tenant} {name}"),
    };
    text.chars().take(64).collect()
}

fn name(common_name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    dn
}

/// 126 random bits, positive and of fixed length.
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    SerialNumber::from_slice(&bytes)
}
