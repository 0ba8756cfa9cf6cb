//! The list of revoked certificates. It is a file that is brought to the agents, which reload it when it changes; there is no address from
//! which it could be fetched, so its "next update" is the CA's end and it never goes stale by itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::{Ca, CertInfo, CrlInfo, PkiError, files};

/// One revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Serial number, hexadecimal, lower case.
    pub serial: String,
    /// When it was revoked; whole seconds.
    pub time: SystemTime,
}

/// A CRL.
#[derive(Debug, Clone)]
pub struct Crl {
    number: u64,
    revoked: Vec<Revoked>,
    issuer_key_id: Option<Vec<u8>>,
    pem: String,
}

impl Crl {
    /// The first, empty one of a CA: number 1.
    pub fn create(ca: &Ca) -> Result<Self, PkiError> {
        Self::sign(ca, 1, Vec::new())
    }

    /// Reads one back.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let info = CrlInfo::from_pem(pem)?;
        Ok(Self { number: info.number, revoked: info.revoked, issuer_key_id: info.issuer_key_id, pem: pem.to_owned() })
    }

    /// Reads every list of a PEM text: one for each CA.
    pub fn all_from_pem(pem: &str) -> Result<Vec<Self>, PkiError> {
        files::blocks(pem, "X509 CRL").into_iter().map(Self::from_pem).collect()
    }

    /// The id of the key that signed it.
    pub fn issuer_key_id(&self) -> Option<&[u8]> {
        self.issuer_key_id.as_deref()
    }

    /// Adds a serial number (hexadecimal) and signs the list anew with the next number. `false`, and nothing changed, when it was there.
    pub fn revoke(&mut self, ca: &Ca, serial: &str, time: SystemTime) -> Result<bool, PkiError> {
        let serial = normal_serial(serial)?;
        if self.revoked.iter().any(|r| r.serial == serial) {
            return Ok(false);
        }
        let mut revoked = self.revoked.clone();
        revoked.push(Revoked { serial, time });
        *self = Self::sign(ca, self.number + 1, revoked)?;
        Ok(true)
    }

    /// Signs it anew with the next number, for a CA whose certificate was renewed with its key: the list ends with the CA.
    pub fn renew(&mut self, ca: &Ca) -> Result<(), PkiError> {
        *self = Self::sign(ca, self.number + 1, self.revoked.clone())?;
        Ok(())
    }

    /// Whether it says that this certificate is revoked.
    pub fn revokes(&self, cert: &CertInfo) -> bool {
        self.issuer_key_id == cert.issuer_key_id && self.revoked.iter().any(|r| r.serial == cert.serial)
    }

    /// What is revoked, oldest first.
    pub fn list(&self) -> &[Revoked] {
        &self.revoked
    }

    /// Grows with each change.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The signed list in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    fn sign(ca: &Ca, number: u64, revoked: Vec<Revoked>) -> Result<Self, PkiError> {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let at = |t: SystemTime| epoch + Duration::from_secs(t.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        let mut certs = Vec::with_capacity(revoked.len());
        for r in &revoked {
            let serial = hex::decode(&r.serial).map_err(|e| bad_serial(&r.serial, &e.to_string()))?;
            certs.push(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: at(r.time),
                reason_code: None,
                invalidity_date: None,
            });
        }
        let params = CertificateRevocationListParams {
            this_update: at(SystemTime::now()),
            next_update: at(ca.not_after()),
            crl_number: SerialNumber::from_slice(&number.to_be_bytes()[number.leading_zeros() as usize / 8..]),
            issuing_distribution_point: None,
            revoked_certs: certs,
            // As its certificate has it: another program may have made that.
            key_identifier_method: ca.key_id().map_or(KeyIdMethod::Sha256, |id| KeyIdMethod::PreSpecified(id.to_vec())),
        };
        let pem = params.signed_by(ca.issuer())?.pem()?;
        let issuer_key_id = CrlInfo::from_pem(&pem)?.issuer_key_id;
        Ok(Self { number, revoked, issuer_key_id, pem })
    }
}

/// Lower case without colons and spaces, as `pki show` prints it and as openssl does.
pub(super) fn normal_serial(serial: &str) -> Result<String, PkiError> {
    let plain: String = serial.chars().filter(|c| *c != ':').flat_map(char::to_lowercase).collect();
    match hex::decode(&plain) {
        Ok(b) if (1..=20).contains(&b.len()) => Ok(plain),
        _ => Err(bad_serial(serial, "use 1 to 20 bytes in hexadecimal, as pveletctl pki show prints it")),
    }
}

fn bad_serial(value: &str, why: &str) -> PkiError {
    PkiError::Invalid { field: "serial", value: value.chars().take(64).collect(), why: why.to_owned() }
}
