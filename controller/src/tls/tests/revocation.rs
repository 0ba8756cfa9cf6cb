//! Hosts whose certificates are revoked, and the files that say so.

use std::path::PathBuf;

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber};

use super::*;

const DAY: u64 = 86_400;

/// A list of a CA: its number, the serial numbers in it, and the end of its validity.
fn list(ca: &Ca, number: u64, revoked: &[&Issued], next_update: std::time::SystemTime) -> String {
    let issuer = Issuer::from_ca_cert_pem(ca.cert_pem(), KeyPair::from_pem(&ca.key_pem()).unwrap()).unwrap();
    let revoked = revoked.iter().map(|issued| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&hex::decode(&issued.serial).unwrap()),
        revocation_time: at(1_700_000_000).into(),
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: at(1_700_000_000).into(),
        next_update: next_update.into(),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&issuer).unwrap().pem().unwrap()
}

fn later() -> std::time::SystemTime {
    std::time::SystemTime::now() + Duration::from_secs(DAY)
}

/// The files of a client.
struct Files {
    dir: tempfile::TempDir,
    own: Issued,
}

impl Files {
    fn new(ca: &Ca) -> Self {
        let this = Self { dir: tempfile::tempdir().unwrap(), own: client(ca) };
        this.own.write(this.dir.path(), "me", false).unwrap();
        this.put("ca.crt", ca.cert_pem());
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        crate::pki::write_public(&self.path(name), text.as_bytes(), true).unwrap();
    }

    fn credentials(&self) -> CredentialFiles {
        CredentialFiles { ca: self.path("ca.crt"), cert: self.path("me.crt"), key: self.path("me.key") }
    }

    fn load(&self) -> Result<Credentials, TlsError> {
        Credentials::load_with_crl(self.credentials(), CrlFile::File(self.path("ca.crl")))
    }
}

/// `ca` is the client's.
async fn reach(ca: &Ca, host: &Issued, credentials: &Credentials) -> Result<(), TlsError> {
    try_connect(server_config(ca, host, None), (Some("lab"), Some("pve1")), credentials).await
}

#[tokio::test]
async fn a_revoked_host_is_refused_with_its_serial_number_and_the_remedy() {
    let ca = ca("pvelet.example");
    let (stolen, new) = (host(&ca, "pve1"), host(&ca, "pve1"));
    let files = Files::new(&ca);
    reach(&ca, &stolen, &Credentials::load(files.credentials()).unwrap()).await.unwrap();
    files.put("ca.crl", &list(&ca, 2, &[&stolen], later()));
    let credentials = files.load().unwrap();
    assert!(credentials.current().warnings.is_empty());
    let error = reach(&ca, &stolen, &credentials).await.unwrap_err();
    assert!(matches!(&error, TlsError::Server { fault: ServerFault::Revoked { serial }, .. } if *serial == stolen.serial), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&stolen.serial) && text.contains("is revoked") && text.contains("pvelet-agent signing-request"), "{text}");
    reach(&ca, &new, &credentials).await.unwrap();
}

#[tokio::test]
async fn the_newest_list_of_each_ca_counts_wherever_it_stands() {
    // A CA and its successor have one name.
    let (old, new) = (ca("pvelet.example"), ca("pvelet.example"));
    let (of_old, of_new, good) = (host(&old, "pve1"), host(&new, "pve1"), host(&new, "pve1"));
    let files = Files::new(&old);
    files.put("ca.crt", &format!("{}{}", old.cert_pem(), new.cert_pem()));
    let lists = [
        list(&old, 1, &[], later()),
        list(&old, 2, &[&of_old], later()),
        list(&new, 256, &[&of_new], later()),
        list(&new, 255, &[], later()),
    ];
    let (reversed, mut order) = (lists.iter().rev().cloned().collect::<String>(), lists.concat());
    for _ in 0..2 {
        files.put("ca.crl", &order);
        let credentials = files.load().unwrap();
        for host in [&of_old, &of_new] {
            let error = reach(&old, host, &credentials).await.unwrap_err().to_string();
            assert!(error.contains(&host.serial), "{error}");
        }
        reach(&old, &good, &credentials).await.unwrap();
        order.clone_from(&reversed);
    }
}

#[tokio::test]
async fn a_list_is_of_every_certificate_of_its_key() {
    // A CA that was prolonged: one key, two certificates.
    let ca = ca("pvelet.example");
    let stolen = host(&ca, "pve1");
    let key = KeyPair::from_pem(&ca.key_pem()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "pvelet CA pvelet.example");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let prolonged = params.self_signed(&key).unwrap().pem();
    let files = Files::new(&ca);
    files.put("ca.crl", &list(&ca, 2, &[&stolen], later()));
    for bundle in [format!("{prolonged}{}", ca.cert_pem()), format!("{}{prolonged}", ca.cert_pem())] {
        files.put("ca.crt", &bundle);
        let error = reach(&ca, &stolen, &files.load().unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("is revoked"), "{error}");
    }
}

#[tokio::test]
async fn a_ca_that_has_ended_is_none_whatever_it_once_issued_and_what_it_revoked_stays_so() {
    // A CA of somebody else's: what it issued outlives it. Prolonged, it has one key and two certificates.
    let ca = ca("pvelet.example");
    let (good, stolen) = (host(&ca, "pve1"), host(&ca, "pve1"));
    let key = KeyPair::from_pem(&ca.key_pem()).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "pvelet CA pvelet.example");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(1_000_000_000).into(), at(1_000_086_400).into());
    let ended = params.self_signed(&key).unwrap().pem();
    let files = Files::new(&ca);
    files.put("ca.crl", &list(&ca, 2, &[&stolen], later()));

    files.put("ca.crt", &ended);
    let credentials = files.load().unwrap();
    let warnings = credentials.current().warnings.join("\n");
    assert!(warnings.contains("'CN=pvelet CA pvelet.example' ended 2001-09-10T01:46:40Z; no host of it is taken"), "{warnings}");
    let error = reach(&ca, &good, &credentials).await.unwrap_err();
    assert!(matches!(&error, TlsError::Server { fault: ServerFault::CaExpired { .. }, .. }), "{error:?}");
    assert!(
        error.to_string().contains("which ended at 2001-09-10T01:46:40Z; give the host a certificate of a CA that is valid"),
        "{error}"
    );
    assert!(reach(&ca, &stolen, &credentials).await.unwrap_err().to_string().contains("is revoked"));

    for bundle in [format!("{ended}{}", ca.cert_pem()), format!("{}{ended}", ca.cert_pem())] {
        files.put("ca.crt", &bundle);
        let credentials = files.load().unwrap();
        reach(&ca, &good, &credentials).await.unwrap();
        assert!(reach(&ca, &stolen, &credentials).await.unwrap_err().to_string().contains("is revoked"));
    }
}

#[tokio::test]
async fn a_list_past_its_next_update_counts_and_is_warned_of_and_so_is_a_ca_without_one() {
    let (ca, other) = (ca("pvelet.example"), ca("pvelet.example"));
    let stolen = host(&ca, "pve1");
    let files = Files::new(&ca);
    files.put("ca.crt", &format!("{}{}", ca.cert_pem(), other.cert_pem()));
    files.put("ca.crl", &list(&ca, 2, &[&stolen], at(1_700_086_400)));
    let credentials = files.load().unwrap();
    let warnings = credentials.current().warnings.join("\n");
    assert!(warnings.contains("past its next update") && warnings.contains("no list of the CA"), "{warnings}");
    assert!(reach(&ca, &stolen, &credentials).await.unwrap_err().to_string().contains("is revoked"));
    reach(&ca, &host(&other, "pve1"), &credentials).await.unwrap();
}

#[test]
fn lists_that_prove_nothing_are_refused_with_file_and_remedy() {
    let (ca, stranger) = (ca("pvelet.example"), ca("pvelet.example"));
    let files = Files::new(&ca);
    let good = list(&ca, 1, &[], later());
    let broken = good.replacen("MI", "MA", 1);
    let foreign = list(&stranger, 1, &[], later());
    let table = [
        ("", "it holds no revocation list"),
        (ca.cert_pem(), "it holds no revocation list"),
        (&broken, "ca.crl: it holds a malformed revocation list"),
        (&foreign, "take both files from the same folder"),
        (&format!("{good}{foreign}"), "signed"),
    ];
    let missing = files.load().unwrap_err().to_string();
    assert!(missing.contains("ca.crl: cannot be read") && missing.contains("the right file for crl"), "{missing}");
    for (text, why) in table {
        files.put("ca.crl", text);
        let error = files.load().unwrap_err().to_string();
        assert!(error.contains("ca.crl") && error.contains(why), "{why}: {error}");
    }
    files.put("ca.crl", &good);
    files.load().unwrap();
}

#[tokio::test]
async fn a_list_is_read_again_and_a_bad_one_or_none_changes_nothing() {
    let ca = ca("pvelet.example");
    let (first, second) = (host(&ca, "pve1"), host(&ca, "pve1"));
    let files = Files::new(&ca);
    let credentials = Credentials::load_with_crl(files.credentials(), CrlFile::beside(&files.path("ca.crt"))).unwrap();
    reach(&ca, &first, &credentials).await.unwrap();
    // It comes later.
    files.put("ca.crl", &list(&ca, 1, &[&first], later()));
    assert!(reach(&ca, &first, &credentials).await.is_err());
    reach(&ca, &second, &credentials).await.unwrap();
    files.put("ca.crl", "half-writt");
    assert!(reach(&ca, &first, &credentials).await.is_err());
    fs::remove_file(files.path("ca.crl")).unwrap();
    assert!(reach(&ca, &first, &credentials).await.is_err(), "what is revoked stays so");
    reach(&ca, &second, &credentials).await.unwrap();
    files.put("ca.crl", &list(&ca, 2, &[&first, &second], later()));
    assert!(reach(&ca, &second, &credentials).await.is_err());
}
