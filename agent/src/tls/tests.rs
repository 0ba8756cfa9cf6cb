#![allow(clippy::unwrap_used)]
use std::{sync::Arc, time::Duration};

use rcgen::ExtendedKeyUsagePurpose as Usage;
use rustls::version::TLS13;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::{
    testing::{Ca, DOMAIN, Files, Issued, NODE, SERVER_NAME, Spec, client, client_config, server},
    *,
};
use crate::metrics::Metrics;

/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(10);

/// A server that answers each byte with the same byte.
pub(super) struct Echo {
    credentials: Arc<Credentials>,
    metrics: Arc<Metrics>,
    address: std::net::SocketAddr,
    arrived: CancellationToken,
    leaving: tokio_util::sync::DropGuard,
}

pub(super) async fn serve(files: &Files, options: Options) -> Echo {
    let metrics = Arc::new(Metrics::new());
    let credentials = Credentials::open(files.config(), NODE.into(), metrics.clone()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let doors = Doors::default();
    doors.open.cancel();
    let mut connections = incoming(listener, credentials.clone(), metrics.clone(), options, doors.clone());
    tokio::spawn(async move {
        while let Some(Ok(connection)) = connections.next().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(connection);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    tokio::spawn(credentials.clone().follow_files());
    Echo { credentials, metrics, address, arrived: doors.arrived, leaving: doors.leaving.drop_guard() }
}

pub(super) const OPTIONS: Options = Options { handshake_deadline: DEADLINE, max_handshakes: 8, max_connections: 64 };

async fn connect(echo: &Echo, config: Arc<rustls::ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(echo.address).await?;
    TlsConnector::from(config).connect(SERVER_NAME.try_into().unwrap(), tcp).await
}

/// In TLS 1.3 a client learns only after its handshake that it is refused: what counts is whether it gets an answer.
async fn echoes(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    let mut byte = [0];
    stream.write_all(b"x").await?;
    stream.flush().await?;
    stream.read_exact(&mut byte).await?;
    Ok(())
}

pub(super) async fn heard(echo: &Echo, config: Arc<rustls::ClientConfig>) -> bool {
    let talk = async { echoes(&mut connect(echo, config).await?).await };
    tokio::time::timeout(DEADLINE, talk).await.expect("an answer or the end in time").is_ok()
}

fn pki() -> (Ca, Issued, Files) {
    let ca = Ca::new();
    let agent = ca.issue(&server());
    let files = Files::new(&agent, &ca.pem, &ca.crl(&[]));
    (ca, agent, files)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !done() {
            tokio::task::yield_now().await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

#[tokio::test]
async fn only_a_good_client_of_the_trusted_ca_is_heard() {
    let (ca, agent, files) = pki();
    let other = Ca::new();
    let operator = || client("role/operator/ann");
    let revoked = ca.issue(&operator());
    files.put("ca.crl", &ca.crl(&[&revoked]));
    let echo = serve(&files, OPTIONS).await;
    let with = |change: fn(&mut Spec)| {
        let mut spec = operator();
        change(&mut spec);
        Some(ca.issue(&spec))
    };
    let table: Vec<(&str, Option<Issued>, bool)> = vec![
        ("good", with(|_| {}), true),
        ("tenant", with(|s| s.uris = vec![format!("spiffe://{DOMAIN}/tenant/t/x")]), true),
        ("wrong CA", Some(other.issue(&operator())), false),
        ("expired", with(|s| s.validity = Some((-600, -300))), false),
        ("not yet valid", with(|s| s.validity = Some((300, 600))), false),
        ("revoked", Some(revoked), false),
        ("the server's own", Some(agent), false),
        ("for clients and servers", with(|s| s.usages.push(Usage::ServerAuth)), false),
        ("for anything", with(|s| s.usages = vec![Usage::Any]), false),
        ("for nothing named", with(|s| s.usages.clear()), false),
        ("a host's identity", with(|s| s.uris = vec![format!("spiffe://{DOMAIN}/cluster/c/host/h")]), false),
        ("another trust domain", with(|s| s.uris = vec!["spiffe://other.test/role/admin/x".into()]), false),
        ("two identities", with(|s| s.uris.push(format!("spiffe://{DOMAIN}/role/admin/x"))), false),
        ("no identity", with(|s| s.uris.clear()), false),
        ("an unknown role", with(|s| s.uris = vec![format!("spiffe://{DOMAIN}/role/root/x")]), false),
        ("none", None, false),
    ];
    for (what, own, wanted) in table {
        assert_eq!(heard(&echo, client_config(&ca, own.as_ref(), &[&TLS13])).await, wanted, "{what}");
    }
}

/// The first message of a client that knows TLS 1.2 and nothing later: ECDHE with AES-128-GCM on P-256.
fn hello_of_tls12() -> Vec<u8> {
    let extensions: &[u8] = &[
        0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17, // supported_groups: secp256r1
        0x00, 0x0b, 0x00, 0x02, 0x01, 0x00, // ec_point_formats: uncompressed
        0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03, // signature_algorithms: ecdsa_secp256r1_sha256
    ];
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend([0x00, 0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u16::try_from(body.len()).unwrap();
    let mut hello = vec![0x16, 0x03, 0x01];
    hello.extend((length + 4).to_be_bytes());
    hello.extend([0x01, 0x00]);
    hello.extend(length.to_be_bytes());
    hello.extend(body);
    hello
}

#[tokio::test]
async fn a_client_of_tls_1_2_is_turned_away() {
    let (_, _, files) = pki();
    let echo = serve(&files, OPTIONS).await;
    let mut tcp = TcpStream::connect(echo.address).await.unwrap();
    tcp.write_all(&hello_of_tls12()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut answer)).await.expect("the end of the connection").unwrap();
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    const PROTOCOL_VERSION: u8 = 70;
    assert_eq!((answer[0], &answer[5..]), (ALERT, &[FATAL, PROTOCOL_VERSION][..]));
}

#[tokio::test]
async fn a_revoked_clients_connection_ends_and_others_stay() {
    let (ca, _, files) = pki();
    let (bad, good) = (ca.issue(&client("role/operator/bad")), ca.issue(&client("role/operator/good")));
    let echo = serve(&files, OPTIONS).await;
    let mut of_bad = connect(&echo, client_config(&ca, Some(&bad), &[&TLS13])).await.unwrap();
    let mut of_good = connect(&echo, client_config(&ca, Some(&good), &[&TLS13])).await.unwrap();
    echoes(&mut of_bad).await.unwrap();
    echoes(&mut of_good).await.unwrap();

    files.put("ca.crl", &ca.crl(&[&bad]));
    let end = tokio::time::timeout(DEADLINE, of_bad.read(&mut [0; 1])).await.expect("the end of the connection");
    assert!(matches!(end, Ok(0) | Err(_)));
    echoes(&mut of_good).await.unwrap();
    assert!(!heard(&echo, client_config(&ca, Some(&bad), &[&TLS13])).await, "it may not come back");
    until("the place is given back", || echo.credentials.connections().len() == 1).await;
}

#[tokio::test]
async fn of_two_lists_of_one_ca_the_newer_counts_in_any_order() {
    let (ca, _, files) = pki();
    let (bad, good) = (ca.issue(&client("role/operator/bad")), ca.issue(&client("role/operator/good")));
    let (older, newer) = (ca.numbered_crl(1, &[]), ca.numbered_crl(2, &[&bad]));
    for lists in [format!("{older}{newer}"), format!("{newer}{older}")] {
        files.put("ca.crl", &lists);
        let echo = serve(&files, OPTIONS).await;
        assert!(!heard(&echo, client_config(&ca, Some(&bad), &[&TLS13])).await);
        assert!(heard(&echo, client_config(&ca, Some(&good), &[&TLS13])).await);
        assert_eq!(echo.credentials.current().authorities[0].list, Some(ListInfo { number: 2, revoked: 1 }));
    }
}

#[tokio::test]
async fn a_ca_that_has_ended_lets_nobody_in() {
    let (ca, _, files) = pki();
    let ended = Ca::ended();
    files.put("ca.crt", &format!("{}{}", ended.pem, ca.pem));
    files.put("ca.crl", &format!("{}{}", ended.crl(&[]), ca.crl(&[])));
    let echo = serve(&files, OPTIONS).await;
    let me = client("role/operator/me");
    assert!(!heard(&echo, client_config(&ca, Some(&ended.issue(&me)), &[&TLS13])).await);
    assert!(heard(&echo, client_config(&ca, Some(&ca.issue(&me)), &[&TLS13])).await);
    assert!(echo.credentials.current().warnings.iter().any(|w| w.contains("ended 20") && w.contains("no client of it is heard")));
}

#[tokio::test]
async fn a_list_is_read_though_the_folder_was_away_for_a_while() {
    let (ca, _, files) = pki();
    let bad = ca.issue(&client("role/operator/bad"));
    let echo = serve(&files, OPTIONS).await;
    assert!(heard(&echo, client_config(&ca, Some(&bad), &[&TLS13])).await);
    let aside = files.dir().with_extension("aside");
    std::fs::rename(files.dir(), &aside).unwrap();
    until("the files are missed", || echo.credentials.rejected().is_some()).await;
    std::fs::write(aside.join("ca.crl"), ca.crl(&[&bad])).unwrap();
    std::fs::rename(&aside, files.dir()).unwrap();
    until("the files are read", || echo.credentials.rejected().is_none()).await;
    assert!(!heard(&echo, client_config(&ca, Some(&bad), &[&TLS13])).await);
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate() {
    let (ca, _, files) = pki();
    // Long enough for a handshake on a machine that is busy, shorter than what ends a connection otherwise.
    let short = ca.issue(&Spec { validity: Some((-300, 10)), ..client("role/reader/short") });
    let echo = serve(&files, OPTIONS).await;
    let mut stream = connect(&echo, client_config(&ca, Some(&short), &[&TLS13])).await.unwrap();
    echoes(&mut stream).await.unwrap();
    let end = tokio::time::timeout(2 * DEADLINE, stream.read(&mut [0; 1])).await.expect("the end of the connection");
    assert!(matches!(end, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_ca_is_replaced_without_a_lost_call() {
    let (old, _, files) = pki();
    let new = Ca::new();
    let (before, after) = (old.issue(&client("role/operator/a")), new.issue(&client("role/operator/a")));
    let echo = serve(&files, OPTIONS).await;
    let mut long = connect(&echo, client_config(&old, Some(&before), &[&TLS13])).await.unwrap();

    // Both are trusted, each with its own list; their names are the same.
    files.put("ca.crt", &format!("{}{}", old.pem, new.pem));
    files.put("ca.crl", &format!("{}{}", old.crl(&[]), new.crl(&[])));
    let taken = |c: &Arc<Credentials>, last: &Arc<Material>| !Arc::ptr_eq(&c.current(), last);
    let first = echo.credentials.current();
    until("the new CA is taken over", || taken(&echo.credentials, &first) && echo.credentials.current().verifier.subjects_len() == 2).await;
    for _ in 0..20 {
        echoes(&mut long).await.unwrap();
        assert!(heard(&echo, client_config(&old, Some(&before), &[&TLS13])).await);
        assert!(heard(&echo, client_config(&old, Some(&after), &[&TLS13])).await);
    }

    // The old one goes: its clients' connections end, the new one's stay.
    let mut stays = connect(&echo, client_config(&old, Some(&after), &[&TLS13])).await.unwrap();
    echoes(&mut stays).await.unwrap();
    files.put("ca.crl", &new.crl(&[]));
    files.put("ca.crt", &new.pem);
    let end = tokio::time::timeout(DEADLINE, long.read(&mut [0; 1])).await.expect("the end of the connection");
    assert!(matches!(end, Ok(0) | Err(_)));
    echoes(&mut stays).await.unwrap();
}

#[tokio::test]
async fn a_bad_file_keeps_the_last_good_set() {
    let (ca, agent, files) = pki();
    let other = Ca::new();
    let good = ca.issue(&client("role/reader/x"));
    let echo = serve(&files, OPTIONS).await;
    let expired = ca.issue(&Spec { validity: Some((-600, -300)), ..server() });
    let foreign = ca.issue(&Spec { uris: vec![format!("spiffe://{DOMAIN}/cluster/lab/host/pve2")], ..server() });
    let a_client = ca.issue(&client("role/admin/x"));
    let bad: Vec<(&str, String, &str, String)> = vec![
        ("agent.crt", String::new(), "no certificate", agent.cert.clone()),
        ("agent.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(), "certificate", agent.cert.clone()),
        ("agent.crt", expired.cert, "expired", agent.cert.clone()),
        ("agent.crt", foreign.cert, "not for host pve1", agent.cert.clone()),
        ("agent.crt", a_client.cert, "not for servers alone", agent.cert.clone()),
        ("agent.key", good.key.clone(), "does not fit", agent.key.clone()),
        ("ca.crt", "x".into(), "no certificate", ca.pem.clone()),
        ("ca.crt", good.cert.clone(), "is no CA", ca.pem.clone()),
        ("ca.crl", String::new(), "no revocation list", ca.crl(&[])),
        ("ca.crl", other.crl(&[]), "none of the client CAs signed", ca.crl(&[])),
    ];
    for (file, content, why, right) in bad {
        let failures = echo.metrics.tls_reload_failures();
        let last = echo.credentials.current();
        std::fs::write(files.path(file), &content).unwrap();
        let error = Material::load(&files.config(), NODE, std::time::SystemTime::now()).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(file), "{file} {why}: {error}");
        until(why, || echo.metrics.tls_reload_failures() > failures).await;
        assert!(Arc::ptr_eq(&last, &echo.credentials.current()), "{why}");
        assert!(heard(&echo, client_config(&ca, Some(&good), &[&TLS13])).await, "{why}");
        // Judged again only once it changes: put right, it comes into use.
        std::fs::write(files.path(file), right).unwrap();
        until("the good files are taken over", || !Arc::ptr_eq(&last, &echo.credentials.current())).await;
    }
}

#[tokio::test]
async fn a_swapped_symbolic_link_is_noticed() {
    let (ca, agent, files) = pki();
    let bad = ca.issue(&client("role/operator/bad"));
    // As Kubernetes mounts secrets: agent.crt -> data/agent.crt, data -> version-1.
    for (version, crl) in [("version-1", ca.crl(&[])), ("version-2", ca.crl(&[&bad]))] {
        let dir = files.dir().join(version);
        std::fs::create_dir(&dir).unwrap();
        for (name, content) in [("agent.crt", &agent.cert), ("agent.key", &agent.key), ("ca.crt", &ca.pem), ("ca.crl", &crl)] {
            std::fs::write(dir.join(name), content).unwrap();
        }
    }
    std::os::unix::fs::symlink("version-1", files.path("data")).unwrap();
    for name in ["agent.crt", "agent.key", "ca.crt", "ca.crl"] {
        std::fs::remove_file(files.path(name)).unwrap();
        std::os::unix::fs::symlink(format!("data/{name}"), files.path(name)).unwrap();
    }
    let echo = serve(&files, OPTIONS).await;
    let mut stream = connect(&echo, client_config(&ca, Some(&bad), &[&TLS13])).await.unwrap();
    echoes(&mut stream).await.unwrap();
    std::os::unix::fs::symlink("version-2", files.path("data.new")).unwrap();
    std::fs::rename(files.path("data.new"), files.path("data")).unwrap();
    let end = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 1])).await.expect("the end of the connection");
    assert!(matches!(end, Ok(0) | Err(_)));
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_and_a_free_place_is_given_again() {
    let (ca, _, files) = pki();
    let own = ca.issue(&client("role/reader/x"));
    let echo = serve(&files, Options { max_connections: 1, ..OPTIONS }).await;
    let config = client_config(&ca, Some(&own), &[&TLS13]);
    let mut first = connect(&echo, config.clone()).await.unwrap();
    echoes(&mut first).await.unwrap();
    assert!(!heard(&echo, config.clone()).await);
    drop(first);
    until("the place is free", || echo.credentials.connections().is_empty()).await;
    let again = tokio::time::timeout(DEADLINE, async { while !heard(&echo, config.clone()).await {} });
    again.await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_never_comes_is_given_up() {
    let (ca, _, files) = pki();
    let own = ca.issue(&client("role/reader/x"));
    let options = Options { handshake_deadline: Duration::from_millis(50), max_handshakes: 1, max_connections: 8 };
    let echo = serve(&files, options).await;
    let mut silent = TcpStream::connect(echo.address).await.unwrap();
    let end = tokio::time::timeout(DEADLINE, silent.read(&mut [0; 1])).await.expect("the end of the connection");
    assert!(matches!(end, Ok(0) | Err(_)));
    let good = Options { handshake_deadline: DEADLINE, ..options };
    let echo = serve(&files, good).await;
    assert!(heard(&echo, client_config(&ca, Some(&own), &[&TLS13])).await);
}

#[tokio::test]
async fn who_is_in_the_middle_of_a_handshake_when_the_agent_leaves_is_let_in_and_nobody_after() {
    let (ca, _agent, files) = pki();
    let echo = serve(&files, OPTIONS).await;
    let config = client_config(&ca, Some(&ca.issue(&client("role/reader/x"))), &[&TLS13]);
    let mut tls = rustls::ClientConnection::new(config, SERVER_NAME.try_into().unwrap()).unwrap();
    let mut tcp = TcpStream::connect(echo.address).await.unwrap();
    std::io::Write::write_all(&mut tls.writer(), b"x").unwrap();
    let (mut left, mut answer) = (None, Vec::new());
    let Echo { arrived, leaving, address, .. } = echo;
    left.replace(leaving);
    while answer.is_empty() {
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out).unwrap();
        }
        tcp.write_all(&out).await.unwrap();
        let mut read = [0; 4096];
        let n = tokio::time::timeout(DEADLINE, tcp.read(&mut read)).await.unwrap().unwrap();
        assert_ne!(n, 0, "the connection was closed");
        if let Some(leaving) = left.take() {
            // The server has said its first word, the client has not answered yet.
            assert!(tls.is_handshaking() && !arrived.is_cancelled());
            drop(leaving);
        }
        let mut rest = &read[..n];
        while !rest.is_empty() {
            tls.read_tls(&mut rest).unwrap();
            tls.process_new_packets().unwrap();
        }
        let _ = std::io::Read::read_to_end(&mut tls.reader(), &mut answer);
    }
    assert_eq!(answer, b"x");
    tokio::time::timeout(DEADLINE, arrived.cancelled()).await.unwrap();
    assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}
