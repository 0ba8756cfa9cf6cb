//! `pveletctl pki renew`, `request`, `install`, `push`.

use std::{fs, os::unix::fs::PermissionsExt};

use pvelet_controller::pki::{Ca, Lifetime, PkiDir, SigningRequest};
use pvelet_proto::v1;
use pvelet_tests::{HostEvents, pki::TRUST_DOMAIN};

use super::*;

#[tokio::test]
async fn every_host_is_renewed_with_a_key_of_its_own_and_a_dead_one_delays_nobody() {
    let mut world = World::new(vec!["pve1", "pve2", "pve3"]);
    let before: Vec<_> = [world.served("pve1").await, world.served("pve3").await].into();
    let old_keys = ["pve1", "pve3"].map(|node| fs::read_to_string(&world.stack.agents[node].cert().1).unwrap());
    let mut stream = HostEvents::open(&world.admin("pve1")).await;
    world.stack.agent("pve2").kill();

    let (status, all) = world.json(&["renew", "--all", "--before", "30"]);
    assert_eq!(status, 3, "some failed: {all:#}");
    let rows = all["hosts"].as_array().unwrap();
    assert_eq!(
        rows.iter().map(|r| (r["host"].as_str().unwrap(), r["result"].as_str().unwrap())).collect::<Vec<_>>(),
        [("pve1", "renewed"), ("pve3", "renewed")]
    );
    assert_eq!(all["errors"][0]["host"], "pve2", "{all:#}");
    for ((node, was), old_key) in ["pve1", "pve3"].iter().zip(&before).zip(&old_keys) {
        let now = world.served(node).await;
        assert!(now.serial != was.serial && now.public_key != was.public_key, "{node}: certificate and key are new");
        assert_eq!((&now.uris, &now.dns, &now.ips), (&was.uris, &was.dns, &was.ips), "{node}: its names stay");
        assert!(rows.iter().any(|r| r["serial"] == now.serial.as_str()), "{all:#}");
        let key = &world.stack.agents[*node].cert().1;
        assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o7777, 0o600);
        // The key is on the host and nowhere else: not in the CA's folder, not in what was printed or logged.
        let new_key = fs::read_to_string(key).unwrap();
        assert_ne!(&new_key, old_key);
        let log = world.stack.agents[*node].log();
        for secret in secrets(&new_key) {
            assert!(!all.to_string().contains(&secret) && !log.contains(&secret), "{node}");
        }
        let audits =
            |action: &str| log.lines().filter(|l| l.contains("pvelet::audit") && l.contains(action) && l.contains("succeeded")).count();
        assert_eq!((audits("CREATE_SIGNING_REQUEST"), audits("INSTALL_CERTIFICATE")), (1, 1), "{node}: {log}");
        // The folder can name what it issued: it can be revoked.
        assert!(world.stack.pki.dir.issued().unwrap().iter().any(|c| c.serial == now.serial));
    }
    // A stream that was open goes on over the connection that it has.
    world
        .stack
        .sim
        .control()
        .call(&pve_sim::control::Request::SeedVm(pve_sim::control::Seed {
            size_mib: 64,
            fill_mib: 1,
            ..pve_sim::control::Seed::new("pve1", 777, "seen")
        }))
        .unwrap();
    stream.until(v1::VmEventType::Created, 777).await;

    // Nothing is due any more, and it says so.
    let again = world.pki(&["renew", "pve1", "pve3"]);
    good(&again);
    assert!(text(&again.stderr).contains("nothing was renewed: no certificate is due yet"), "{}", text(&again.stderr));
    assert_eq!(world.served("pve1").await.serial, rows[0]["serial"].as_str().unwrap());
}

#[tokio::test]
async fn another_ca_signs_what_a_host_asks_for() {
    let mut world = World::new(vec!["pve1"]);
    // Hosts' certificates of one CA, clients' of another, as with step-ca or cert-manager: the client knows both.
    let theirs = Ca::create(TRUST_DOMAIN, Lifetime::days(30)).unwrap();
    let both = format!("{}{}", world.stack.pki.ca.cert_pem(), theirs.cert_pem());
    let trusted = world.file("both.crt", &both);
    let csr = good(&world.ctl(&["pki", "request", "pve1", "--dns", "pve1.lab.example", "--ip", "192.0.2.7"]));
    let asked = SigningRequest::from_pem(&csr).unwrap();
    assert_eq!(asked.uris, [format!("spiffe://{TRUST_DOMAIN}/cluster/pve1/host/pve1")]);
    assert_eq!(asked.dns, ["pve1.lab.example"]);
    let signed = theirs.sign_host(&asked, "pve1", "pve1", &["pve1.lab.example"], &asked.ips, Lifetime::days(9)).unwrap();
    let file = world.file("pve1.crt", &signed.cert_pem);
    let refused = world.ctl(&["--ca", &trusted, "pki", "install", "pve1", &file]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("certificate_pem: it is of CA"), "{}", text(&refused.stderr));
    let issuer = world.file("their-ca.crt", theirs.cert_pem());
    let install = ["--ca", trusted.as_str(), "pki", "install", "pve1", &file, "--server-ca", &issuer];
    assert!(good(&world.ctl(&install)).contains("pve1: installed"));
    assert!(good(&world.ctl(&install)).contains("pve1: unchanged"));
    // The next one of the same CA needs no word about it, and the agent starts with it.
    let csr = good(&world.ctl(&["--ca", &trusted, "pki", "request", "pve1"]));
    let asked = SigningRequest::from_pem(&csr).unwrap();
    assert_eq!(asked.dns, ["pve1.lab.example"], "the names of the one in use");
    // Our folder does not take over what is another CA's.
    let other = world.ctl(&["--ca", &trusted, "pki", "renew", "--all", "--before", "30", "--dir", &world.pki]);
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other.stderr).contains("is of another CA") && text(&other.stderr).contains("--force"), "{}", text(&other.stderr));
    world.stack.agent("pve1").kill();
    world.stack.agent("pve1").start();
}

#[tokio::test]
async fn a_pushed_list_ends_the_connections_of_who_is_revoked() {
    let world = World::new(vec!["pve1"]);
    let (cert, key) = world.stack.pki.role(Role::Operator, "mallory");
    let mallory = world.client("pve1", cert, key);
    let mut stream = HostEvents::open(&mallory).await;
    good(&world.pki(&["revoke", &format!("spiffe://{TRUST_DOMAIN}/role/operator/mallory")]));
    assert!(mallory.host().await.is_ok(), "the host does not know yet");
    let (status, all) = world.json(&["push", "--all"]);
    assert_eq!(
        (status, all["hosts"][0]["result"].as_str(), all["hosts"][0]["client_cas"][0]["crl_number"].as_u64()),
        (0, Some("pushed"), Some(2))
    );
    stream.ended().await;
    assert!(mallory.host().await.is_err());
    let again = world.pki(&["push", "--all"]);
    good(&again);
    assert!(text(&again.stderr).contains("every host had them already"), "{}", text(&again.stderr));
    let status = good(&world.ctl(&["pki", "status", "--all"]));
    assert!(status.contains("in use"), "{status}");
}

#[tokio::test]
async fn a_push_takes_no_foreign_ca_out_unasked() {
    let world = World::new(vec!["pve1"]);
    let (foreign_dir, foreign) = PkiDir::init(&world.path("foreign"), TRUST_DOMAIN, Lifetime::days(9), false).unwrap();
    let client = world.admin("pve1");
    let bundle = format!("{}{}", world.stack.pki.ca.cert_pem(), foreign.cert_pem());
    let ask = v1::InstallCertificateRequest { ca_pem: Some(bundle), ..Default::default() };
    assert!(client.agent.certificate().install_certificate(ask).await.unwrap().into_inner().changed);
    let refused = world.pki(&["push", "--all"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("a CA that is not of this folder"), "{}", text(&refused.stderr));
    assert_eq!(get(&client).await.client_cas.len(), 2);
    let (ca, crl) = (foreign_dir.ca_cert_path().display().to_string(), foreign_dir.crl_path().display().to_string());
    good(&world.pki(&["push", "--all", "--also-ca", &ca, "--also-crl", &crl]));
    let now = get(&client).await;
    assert_eq!(now.client_cas.iter().map(|ca| ca.crl_number).collect::<Vec<_>>(), [Some(1), Some(1)]);
    good(&world.pki(&["push", "--all", "--replace"]));
    assert_eq!(get(&client).await.client_cas.len(), 1);
}
