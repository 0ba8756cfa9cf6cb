#![allow(clippy::unwrap_used)]

mod revocation;

use std::{
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use pvelet_proto::identity::Role;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{
    agents::fake::server_config,
    pki::{Ca, Issued, Lifetime},
};

fn ca(domain: &str) -> Ca {
    Ca::create(domain, Lifetime::days(10)).unwrap()
}

fn host(ca: &Ca, node: &str) -> Issued {
    ca.issue_host("lab", node, &[], &[], Lifetime::days(1)).unwrap()
}

fn client(ca: &Ca) -> Issued {
    ca.issue_role(Role::Operator, "ann", Lifetime::days(1)).unwrap()
}

fn at(seconds: u64) -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn long_ago() -> Lifetime {
    Lifetime::between(at(1_000_000_000), at(1_000_086_400))
}

fn far_away() -> Lifetime {
    Lifetime::between(
        std::time::SystemTime::now() + Duration::from_secs(86_400),
        std::time::SystemTime::now() + Duration::from_secs(172_800),
    )
}

/// Takes connections and says a word on each, as an agent does with its SETTINGS.
async fn serve(config: rustls::ServerConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut tls) = acceptor.accept(tcp).await {
                    let _ = tls.write_all(b"settings").await;
                    let mut rest = Vec::new();
                    let _ = tokio::io::AsyncReadExt::read_to_end(&mut tls, &mut rest).await;
                }
            });
        }
    });
    address
}

fn credentials(trusted: &Ca, own: &Issued) -> Credentials {
    Credentials::from_pem(trusted.cert_pem(), &own.cert_pem, &own.key_pem).unwrap()
}

/// Cluster and node.
type Expected<'a> = (Option<&'a str>, Option<&'a str>);

async fn try_connect(server: rustls::ServerConfig, (cluster, node): Expected<'_>, credentials: &Credentials) -> Result<(), TlsError> {
    let address: Address = serve(server).await.to_string().parse().unwrap();
    connect(&address, cluster, node, credentials).await.map(drop)
}

#[tokio::test]
async fn the_host_that_was_meant_is_taken_wherever_it_is() {
    let ca = ca("pvelet.example");
    let credentials = credentials(&ca, &client(&ca));
    for (cluster, node) in [(Some("lab"), Some("pve1")), (None, Some("pve1")), (None, None), (Some("lab"), None)] {
        // The certificate names neither this address nor any other.
        try_connect(server_config(&ca, &host(&ca, "pve1"), None), (cluster, node), &credentials).await.unwrap();
    }
}

#[tokio::test]
async fn every_wrong_server_is_refused_with_its_own_reason() {
    let (ca, same_name, other_domain) = (ca("pvelet.example"), ca("pvelet.example"), ca("other.example"));
    let own = client(&ca);
    let good = credentials(&ca, &own);
    let trusts_both = Credentials::from_pem(&format!("{}{}", ca.cert_pem(), other_domain.cert_pem()), &own.cert_pem, &own.key_pem).unwrap();
    let pve1 = || (Some("lab"), Some("pve1"));
    let cases = [
        ("another host's", &good, host(&ca, "pve2"), pve1(), "the certificate is for host pve2, expected pve1"),
        (
            "another cluster's",
            &good,
            ca.issue_host("prod", "pve1", &[], &[], Lifetime::days(1)).unwrap(),
            pve1(),
            "the certificate is for host pve1 of cluster prod, expected pve1 of cluster lab",
        ),
        ("an unknown CA's", &good, host(&same_name, "pve1"), pve1(), "unknown CA"),
        (
            "another trust domain's",
            &trusts_both,
            host(&other_domain, "pve1"),
            pve1(),
            "trust domain other.example, expected pvelet.example",
        ),
        (
            "expired",
            &good,
            ca.issue_host("lab", "pve1", &[], &[], long_ago()).unwrap(),
            pve1(),
            "the certificate expired at 2001-09-10T01:46:40Z",
        ),
        (
            "not yet valid",
            &good,
            ca.issue_host("lab", "pve1", &[], &[], far_away()).unwrap(),
            pve1(),
            "the certificate is not valid before",
        ),
        ("a client's", &good, client(&ca), (None, None), "not for servers"),
    ];
    for (what, credentials, server, expected, words) in cases {
        let error = try_connect(server_config(&ca, &server, None), expected, credentials).await.unwrap_err();
        assert!(matches!(error, TlsError::Server { .. }), "{what}: {error}");
        assert!(error.to_string().contains(words), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_refused_client_learns_why() {
    let (ca, other) = (ca("pvelet.example"), ca("pvelet.example"));
    let revoked = client(&ca);
    let mut crl = crate::pki::Crl::create(&ca).unwrap();
    crl.revoke(&ca, &revoked.serial, at(1_700_000_000)).unwrap();
    let cases = [
        ("expired", ca.issue_role(Role::Admin, "ann", long_ago()).unwrap(), "expired or not yet valid"),
        ("not yet valid", ca.issue_role(Role::Admin, "ann", far_away()).unwrap(), "expired or not yet valid"),
        ("unknown CA", client(&other), "a CA that the agent does not trust"),
        ("revoked", revoked, "it is revoked"),
        ("a host's", host(&ca, "pve2"), "not for clients"),
    ];
    for (what, own, words) in cases {
        let credentials = credentials(&ca, &own);
        let error = try_connect(server_config(&ca, &host(&ca, "pve1"), Some(&crl)), (None, Some("pve1")), &credentials).await.unwrap_err();
        assert!(matches!(error, TlsError::Refused { .. }), "{what}: {error:?}");
        assert!(error.to_string().contains(words), "{what}: {error}");
        assert!(error.to_string().contains(&own.identity.to_string()), "{what}: {error}");
    }
}

#[tokio::test]
async fn what_is_no_agent_is_named() {
    let ca = ca("pvelet.example");
    let credentials = credentials(&ca, &client(&ca));
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody: Address = free.local_addr().unwrap().to_string().parse().unwrap();
    drop(free);
    assert!(matches!(connect(&nobody, None, None, &credentials).await, Err(TlsError::Unreachable { .. })));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.write_all(b"SSH-2.0-x\r\n").await;
        }
    });
    let error = connect(&plain, None, None, &credentials).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("does not speak TLS"), "{error}");

    let mut no_h2 = server_config(&ca, &host(&ca, "pve1"), None);
    no_h2.alpn_protocols.clear();
    let error = try_connect(no_h2, (None, None), &credentials).await.unwrap_err().to_string();
    assert!(error.contains("HTTP/2"), "{error}");
}

#[tokio::test]
async fn changed_files_count_from_the_next_connection_and_bad_ones_not_at_all() {
    let (old, new) = (ca("pvelet.example"), ca("pvelet.example"));
    let dir = tempfile::tempdir().unwrap();
    let files = CredentialFiles { ca: dir.path().join("ca.crt"), cert: dir.path().join("me.crt"), key: dir.path().join("me.key") };
    let put = |ca: &Ca, own: &Issued| {
        for (path, text) in [(&files.ca, ca.cert_pem()), (&files.cert, own.cert_pem.as_str()), (&files.key, own.key_pem.as_str())] {
            crate::pki::write_private(path, text.as_bytes(), true).unwrap();
        }
    };
    put(&old, &client(&old));
    let credentials = Credentials::load(files.clone()).unwrap();
    let server = |ca: &Ca| server_config(ca, &host(ca, "pve1"), None);
    try_connect(server(&old), (None, None), &credentials).await.unwrap();
    assert!(try_connect(server(&new), (None, None), &credentials).await.is_err());

    put(&new, &client(&new));
    try_connect(server(&new), (None, None), &credentials).await.unwrap();

    fs::write(&files.cert, "half-writt").unwrap();
    try_connect(server(&new), (None, None), &credentials).await.unwrap();
    fs::remove_file(&files.key).unwrap();
    try_connect(server(&new), (None, None), &credentials).await.unwrap();

    put(&old, &client(&old));
    try_connect(server(&old), (None, None), &credentials).await.unwrap();
}

#[test]
fn credentials_that_cannot_work_are_refused_with_the_file_and_the_remedy() {
    let ca = ca("pvelet.example");
    let (own, other) = (client(&ca), client(&ca));
    let cases = [
        ("", own.cert_pem.as_str(), own.key_pem.as_str(), "<ca>: it holds no certificate"),
        (ca.cert_pem(), "", own.key_pem.as_str(), "<cert>: it holds no certificate"),
        (ca.cert_pem(), ca.cert_pem(), own.key_pem.as_str(), "<cert>: the certificate names no identity"),
        (ca.cert_pem(), own.cert_pem.as_str(), "", "<key>: it holds no private key"),
        (ca.cert_pem(), own.cert_pem.as_str(), other.key_pem.as_str(), "<key>: the key cannot be used with the certificate"),
    ];
    for (ca, cert, key, words) in cases {
        let error = Credentials::from_pem(ca, cert, key).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn addresses() {
    for (given, read) in [
        ("pve1", format!("pve1:{DEFAULT_PORT}")),
        ("pve1.lab.example:1", "pve1.lab.example:1".to_owned()),
        ("192.0.2.1:65535", "192.0.2.1:65535".to_owned()),
        ("2001:db8::1", format!("[2001:db8::1]:{DEFAULT_PORT}")),
        ("[2001:db8::1]:5", "[2001:db8::1]:5".to_owned()),
        ("[::]", format!("[::]:{DEFAULT_PORT}")),
    ] {
        assert_eq!(given.parse::<Address>().unwrap().to_string(), read);
    }
    for bad in ["", ":1", "pve1:", "pve1:0", "pve1:65536", "pve1:x", "[::1", "[::1]5", "[::1]:", "a b:1", "https://pve1:1"] {
        let error = bad.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains("malformed") && error.contains("<name>:<port>"), "{bad}: {error}");
    }
}
