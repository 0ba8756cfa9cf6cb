//! CAs that other programs make: keys and certificates of OpenSSL, in the forms that cert-manager and step-ca write.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "keys and certificates are made by OpenSSL")]

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use pvelet_proto::identity::Role;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;
use crate::tls::ExpectedHost;

const DOMAIN: &str = "pvelet.example";
const CA: &str = "basicConstraints=critical,CA:TRUE";
const USAGE: &str = "keyUsage=critical,keyCertSign,cRLSign";
const KEY_ID: &str = "subjectKeyIdentifier=hash";
const SIGNS: &[&str] = &[CA, USAGE, KEY_ID];

/// Runs openssl in a folder.
fn openssl(dir: &Path, arguments: &[&str]) {
    let out = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// `tls.key` by these arguments, and `tls.crt`, a CA of it.
fn made(dir: &Path, key: &[&str], name: &str, extensions: &[&str]) -> (String, String) {
    openssl(dir, key);
    // No extension but those that are asked for.
    fs::write(dir.join("req.conf"), "[req]\ndistinguished_name = name\n[name]\n").unwrap();
    let mut request =
        vec!["req", "-x509", "-new", "-config", "req.conf", "-key", "tls.key", "-out", "tls.crt", "-days", "30", "-subj", name];
    request.extend(extensions.iter().flat_map(|e| ["-addext", e]));
    openssl(dir, &request);
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    (read("tls.crt"), read("tls.key"))
}

const P256: &[&str] = &["ecparam", "-genkey", "-name", "prime256v1", "-out", "tls.key"];

fn request_of(node: &str) -> SigningRequest {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{DOMAIN}/cluster/lab/host/{node}").try_into().unwrap())];
    SigningRequest::from_pem(&params.serialize_request(&key).unwrap().pem().unwrap()).unwrap()
}

/// Whether a client with these CAs and lists takes a certificate for that of host pve1.
fn accepted(ca: &str, crl: Option<&str>, certificate: &str) -> Result<(), String> {
    let expected = ExpectedHost { trust_domain: DOMAIN.into(), cluster: Some("lab".into()), node: Some("pve1".into()) };
    crate::tls::accepts(ca, crl, certificate, expected)
}

#[test]
fn cas_of_other_programs_sign_and_revoke_like_our_own_whatever_form_their_keys_have() {
    let keys: [(&str, &[&str]); 5] = [
        ("RSA, PKCS #1 (cert-manager)", &["genrsa", "-traditional", "-out", "tls.key", "2048"]),
        ("RSA, PKCS #8", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "tls.key"]),
        ("P-256, SEC 1 (step-ca)", P256),
        ("P-384, SEC 1", &["ecparam", "-genkey", "-noout", "-name", "secp384r1", "-out", "tls.key"]),
        ("Ed25519, PKCS #8", &["genpkey", "-algorithm", "ED25519", "-out", "tls.key"]),
    ];
    for (what, key) in keys {
        let temp = tempfile::tempdir().unwrap();
        let (cert, key) = made(temp.path(), key, "/C=DE/O=Example Org/CN=example CA", SIGNS);
        let dir = temp.path().join("pki");
        let (pki, ca) = PkiDir::take_over(&dir, DOMAIN, &cert, &key, false).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!((ca.trust_domain(), pki.bundle().unwrap().trim()), (DOMAIN, cert.trim()), "{what}");
        assert_eq!(mode(&dir.join(CA_KEY)), 0o600);

        let ca = pki.ca().unwrap();
        let signed = ca.sign_host(&request_of("pve1"), "lab", "pve1", &[], &[], Lifetime::days(20)).unwrap();
        accepted(&cert, Some(&pki.lists().unwrap()), &signed.cert_pem).unwrap_or_else(|e| panic!("{what}: {e}"));
        pki.keep(&signed.serial, &signed.cert_pem).unwrap();
        assert_eq!(pki.issued().unwrap().len(), 1, "{what}: it is known as the CA's");
        assert_eq!(pki.revoke(&signed.serial, SystemTime::now()).unwrap(), [signed.serial], "{what}");
        let error = accepted(&cert, Some(&pki.lists().unwrap()), &signed.cert_pem).unwrap_err();
        assert!(error.contains("is revoked"), "{what}: {error}");
        assert_eq!((pki.crl().unwrap().number(), pki.crl().unwrap().list().len()), (2, 1), "{what}");
    }
}

#[test]
fn of_a_chain_the_certificate_of_the_key_is_taken_and_a_renewed_one_keeps_what_was_revoked() {
    let temp = tempfile::tempdir().unwrap();
    let (root, _) = made(temp.path(), P256, "/CN=root", SIGNS);
    let (cert, key) = made(temp.path(), P256, "/CN=intermediate", SIGNS);
    let dir = temp.path().join("pki");
    for chain in [format!("{cert}{root}"), format!("{root}{cert}")] {
        let (pki, ca) = PkiDir::take_over(&dir, DOMAIN, &chain, &key, true).unwrap();
        assert_eq!((ca.cert_pem(), pki.bundle().unwrap()), (cert.as_str(), cert.clone()));
    }
    let pki = PkiDir::open(&dir);
    let ann = pki.ca().unwrap().issue_role(Role::Operator, "ann", Lifetime::days(9)).unwrap();
    pki.deliver(&ann, None, false).unwrap();
    pki.revoke(&ann.serial, SystemTime::now()).unwrap();

    let (renewed, _) = made(temp.path(), &["version"], "/CN=intermediate", SIGNS);
    assert_ne!(renewed, cert);
    let number = pki.crl().unwrap().number();
    for _ in 0..2 {
        PkiDir::take_over(&dir, DOMAIN, &renewed, &key, false).unwrap();
        let list = pki.crl().unwrap();
        // The list ends with the CA, and so is a newer one; once.
        assert_eq!((pki.bundle().unwrap(), list.list().len(), list.number()), (renewed.clone(), 1, number + 1));
        // Hosts that have the former certificate are known by it.
        assert_eq!(pki.retired().unwrap(), [cert.as_str()]);
    }
    let (again, _) = made(temp.path(), &["version"], "/CN=intermediate", SIGNS);
    PkiDir::take_over(&dir, DOMAIN, &again, &key, false).unwrap();
    let mut retired = pki.retired().unwrap();
    retired.sort_by_key(|pem| *pem != cert);
    assert_eq!((pki.bundle().unwrap(), retired), (again.clone(), vec![cert, renewed]));
    // Under another name nothing is trusted that it has issued.
    let (named, _) = made(temp.path(), &["version"], "/CN=other", SIGNS);
    let error = PkiDir::take_over(&dir, DOMAIN, &named, &key, false).map(drop).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
    assert_eq!(pki.bundle().unwrap(), again);

    let (other, other_key) = made(temp.path(), P256, "/CN=intermediate", SIGNS);
    let error = PkiDir::take_over(&dir, DOMAIN, &other, &other_key, false).map(drop).unwrap_err().to_string();
    assert!(error.contains("exists already") && error.contains("--force"), "{error}");
}

#[test]
fn a_ca_that_is_renewed_while_it_is_replaced_leaves_the_other_and_those_of_others() {
    let temp = tempfile::tempdir().unwrap();
    let (foreign, _) = made(temp.path(), P256, "/CN=foreign", SIGNS);
    let (cert, key) = made(temp.path(), P256, "/CN=other", SIGNS);
    let dir = temp.path().join("pki");
    let (pki, _) = PkiDir::take_over(&dir, DOMAIN, &cert, &key, false).unwrap();
    fs::write(dir.join(CA_CERT), pki.bundle().unwrap() + &foreign).unwrap();
    pki.start_rollover(Lifetime::days(100)).unwrap();
    let next = pki.rollover().unwrap().other.unwrap().cert_pem().to_owned();
    let (renewed, _) = made(temp.path(), &["version"], "/CN=other", SIGNS);
    PkiDir::take_over(&dir, DOMAIN, &renewed, &key, false).unwrap();
    assert_eq!(pki.bundle().unwrap(), renewed + &next + &foreign);
    assert_eq!(pki.crls().unwrap().iter().map(Crl::number).collect::<Vec<_>>(), [2, 1]);
    assert!(pki.switch_rollover().unwrap());
}

#[test]
fn a_rollover_leads_from_another_program_s_ca_to_one_of_our_own() {
    let temp = tempfile::tempdir().unwrap();
    let (cert, key) = made(temp.path(), P256, "/CN=other", SIGNS);
    let (pki, _) = PkiDir::take_over(&temp.path().join("pki"), DOMAIN, &cert, &key, false).unwrap();
    assert!(pki.start_rollover(Lifetime::days(100)).unwrap());
    assert!(pki.switch_rollover().unwrap());
    assert_eq!(pki.rollover().unwrap().other.map(|ca| ca.cert_pem().to_owned()), Some(cert));
    assert!(pki.finish_rollover(SystemTime::now() + Duration::from_secs(60)).unwrap());
    assert_eq!(pki.ca().unwrap().trust_domain(), DOMAIN);
}

#[test]
fn a_ca_that_cannot_be_taken_over_is_refused_with_a_remedy_and_leaves_nothing() {
    let bits = &["genrsa", "-traditional", "-out", "tls.key", "1024"][..];
    let sealed =
        &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes256", "-pass", "pass:x", "-out", "sealed.key"];
    /// What, the key's arguments, the CA's name, its extensions, and words of the refusal.
    type Row<'a> = (&'a str, &'a [&'a str], &'a str, &'a [&'a str], &'a [&'a str]);
    let table: [Row<'_>; 5] = [
        ("no right to revoke", P256, "/CN=a", &[CA, "keyUsage=critical,keyCertSign", KEY_ID], &["cRLSign", "crl sign"]),
        ("no CA", P256, "/CN=a", &["basicConstraints=critical,CA:FALSE", KEY_ID], &["not a certificate of a CA"]),
        ("a short key", bits, "/CN=a", SIGNS, &["cannot be used", "2048"]),
        ("two units", P256, "/CN=a/OU=b/OU=c", SIGNS, &["name cannot be written again", "common name alone"]),
        ("no id of its key", P256, "/CN=a", &[CA, USAGE, "subjectKeyIdentifier=none"], &["subjectKeyIdentifier"]),
    ];
    let refused = |dir: &Path, domain: &str, cert: &str, key: &str, words: &[&str]| {
        let error = PkiDir::take_over(dir, domain, cert, key, false).map(drop).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!dir.join(CA_KEY).exists() && !dir.join(CA_CERT).exists(), "{error}");
    };
    for (what, key, name, extensions, words) in table {
        let temp = tempfile::tempdir().unwrap();
        let (cert, key) = made(temp.path(), key, name, extensions);
        eprintln!("{what}");
        refused(&temp.path().join("pki"), DOMAIN, &cert, &key, words);
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    openssl(temp.path(), sealed);
    let (cert, key) = made(temp.path(), P256, "/CN=a", &[CA, USAGE, KEY_ID, "subjectAltName=URI:spiffe://other.example"]);
    refused(&dir, DOMAIN, &cert, &fs::read_to_string(temp.path().join("sealed.key")).unwrap(), &["encrypted", "step crypto change-pass"]);
    refused(&dir, DOMAIN, &cert, &key, &["trust domain 'pvelet.example'", "'other.example'"]);
    refused(&dir, "Other", &cert, &key, &["trust domain 'Other'"]);
    refused(&dir, "other.example", "no PEM", &key, &["no PEM block CERTIFICATE"]);
    refused(&dir, "other.example", &cert, "no PEM", &["no PEM block PRIVATE KEY"]);
}
