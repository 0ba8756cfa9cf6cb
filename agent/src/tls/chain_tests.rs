//! Certificates of other CAs than pvelet's own: below an intermediate CA, as step-ca and cert-manager issue them, and of an RSA key.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test fails by panicking, and has an RSA key made by OpenSSL")]
use std::{process::Command, time::SystemTime};

use rustls::version::TLS13;

use super::{
    testing::{Ca, Files, Issued, NODE, client, client_config, server},
    tests::{OPTIONS, heard, serve},
    *,
};

/// With the certificate of the CA that issued it after it.
fn with_chain(issued: &Issued, ca: &Ca) -> Issued {
    Issued { cert: format!("{}{}", issued.cert, ca.pem), ..issued.clone() }
}

#[tokio::test]
async fn agents_and_clients_below_an_intermediate_ca_need_only_its_root() {
    let root = Ca::named("root");
    let between = root.intermediate("intermediate");
    let files = Files::new(&with_chain(&between.issue(&server()), &between), &root.pem, &root.crl(&[]));
    let echo = serve(&files, OPTIONS).await;
    let ann = between.issue(&client("role/operator/ann"));
    assert!(heard(&echo, client_config(&root, Some(&with_chain(&ann, &between)), &[&TLS13])).await);
    assert!(!heard(&echo, client_config(&root, Some(&ann), &[&TLS13])).await, "without its chain nobody can tell");
    assert!(heard(&echo, client_config(&root, Some(&root.issue(&client("role/reader/bob"))), &[&TLS13])).await);
}

#[tokio::test]
async fn what_an_intermediate_ca_has_revoked_stays_so_where_its_root_is_trusted_too() {
    let root = Ca::named("root");
    let between = root.intermediate("intermediate");
    let (ann, bob) = (between.issue(&client("role/operator/ann")), between.issue(&client("role/operator/bob")));
    // In either order.
    for bundle in [format!("{}{}", root.pem, between.pem), format!("{}{}", between.pem, root.pem)] {
        let lists = format!("{}{}", root.crl(&[]), between.crl(&[&ann]));
        let files = Files::new(&root.issue(&server()), &bundle, &lists);
        let echo = serve(&files, OPTIONS).await;
        let asked = async |who: &Issued| heard(&echo, client_config(&root, Some(&with_chain(who, &between)), &[&TLS13])).await;
        assert!(!asked(&ann).await);
        assert!(asked(&bob).await);
    }
}

#[test]
fn a_certificate_is_installed_with_its_chain_and_the_error_names_what_is_missing() {
    let root = Ca::named("root");
    let between = root.intermediate("intermediate");
    let files = Files::new(&root.issue(&server()), &root.pem, &root.crl(&[]));
    let (tls, now) = (files.config(), SystemTime::now());
    let request = signing_request(&tls, "lab", NODE, &Names::default()).unwrap();
    let leaf = between.sign(&request.pem, &server());
    let place = Place { files: &tls, node: NODE, cluster: Some("lab") };
    let certificate = |pem: String| New { certificate: Some(pem), ..New::default() };
    let error = install_local(&place, &certificate(leaf.clone()), now).unwrap_err().to_string();
    assert!(error.contains("CN=intermediate") && error.contains("put its certificate after this one"), "{error}");
    assert!(install_local(&place, &certificate(format!("{leaf}{}", between.pem)), now).unwrap().changed);
    assert_eq!(Material::load(&tls, NODE, now).unwrap().own.issuer, "CN=intermediate");
}

#[tokio::test]
async fn a_ca_with_an_rsa_key_is_taken() {
    let made = Command::new("openssl").args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let ca = Ca::with_key("rsa", &String::from_utf8(made.stdout).unwrap());
    let (ann, bob) = (ca.issue(&client("role/operator/ann")), ca.issue(&client("role/operator/bob")));
    let files = Files::new(&ca.issue(&server()), &ca.pem, &ca.crl(&[&ann]));
    let echo = serve(&files, OPTIONS).await;
    let asked = async |who: &Issued| heard(&echo, client_config(&ca, Some(who), &[&TLS13])).await;
    assert!(!asked(&ann).await);
    assert!(asked(&bob).await);
}
