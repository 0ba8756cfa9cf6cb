//! A host whose certificate is revoked: nobody of ours talks to it until it has another one.

use pvelet_controller::tls::{Credentials, CrlFile};
use pvelet_tests::{
    agent::SOON,
    status::{Records, condition_field, condition_reason, wait_for},
};

use super::*;

/// A new key and certificate, made on the host. Returns the serial number.
fn certify_anew(world: &World, node: &str) -> String {
    let agent = &world.stack.agents[node];
    let config = agent.config_path().display().to_string();
    let request = world.file("new.csr", &good(&run("pvelet-agent", &["signing-request", "--config", &config])));
    let out = world.path("new.crt").display().to_string();
    let sign = ["sign", "--cluster", &agent.cluster, "--node", node, "--names-from-request", "--days", "9", "--out", &out, &request];
    good(&world.pki(&sign));
    good(&run("pvelet-agent", &["install-certificate", "--config", &config, &out]));
    CertInfo::from_pem(&fs::read_to_string(&out).unwrap()).unwrap().serial
}

#[tokio::test]
async fn a_host_whose_certificate_is_revoked_is_refused_until_it_has_another_one() {
    let world = World::new(vec!["pve1", "pve2"]);
    let mut controller = world.stack.controller();
    let pki = &world.stack.pki;
    let (ca, (cert, key)) = (pki.dir.ca_cert_path(), pki.role(Role::Reader, "bob"));
    let files = CredentialFiles { ca: ca.clone(), cert, key };
    let held = Client::new(&world.stack.agents["pve1"], Credentials::load_with_crl(files, CrlFile::beside(&ca)).unwrap());
    held.host().await.unwrap();
    good(&world.ctl(&["hosts"]));

    let serial = world.served("pve1").await.serial;
    good(&world.pki(&["revoke", &serial]));
    let hosts = world.ctl(&["hosts", "--output", "json"]);
    let told = text(&hosts.stdout) + &text(&hosts.stderr);
    assert_eq!(hosts.status.code(), Some(3), "{told}");
    assert!(told.contains(&serial) && told.contains("is revoked"), "{told}");
    // Over the API nothing can be mended any more: who answers may be anybody.
    let renew = world.pki(&["renew", "pve1", "--force"]);
    assert_eq!(renew.status.code(), Some(5), "{}", text(&renew.stderr));
    assert!(text(&renew.stderr).contains("pvelet-agent signing-request"), "{}", text(&renew.stderr));
    // Who has run all the time reads the list with the next connection.
    assert!(held.agent.served_certificate().await.unwrap_err().to_string().contains("is revoked"));
    // A controller says so at the host, and which certificate.
    controller.start();
    let revoked = |r: &Records| r.get("pvehost.pve1").is_some_and(|h| condition_reason(h, "Reachable") == "CertificateRevoked");
    let records = wait_for(&controller.manifests, SOON, revoked).unwrap();
    assert!(condition_field(&records["pvehost.pve1"], "Reachable", "message").contains(&serial), "{records:#?}");

    let new = certify_anew(&world, "pve1");
    let taken_over = async { while world.served("pve1").await.serial != new {} };
    tokio::time::timeout(SOON, taken_over).await.expect("the agent takes it over");
    good(&world.ctl(&["hosts"]));
    assert_eq!(held.agent.served_certificate().await.unwrap().serial, new);

    // A list that is broken: nobody starts with it, and who runs goes on with the last good one.
    let crl = pki.dir.crl_path();
    let list = fs::read_to_string(&crl).unwrap();
    fs::write(&crl, "half-writt").unwrap();
    let hosts = world.ctl(&["hosts"]);
    assert_eq!(hosts.status.code(), Some(64));
    assert!(text(&hosts.stderr).contains("ca.crl: it holds no revocation list"), "{}", text(&hosts.stderr));
    assert_eq!(held.agent.served_certificate().await.unwrap().serial, new);
    fs::write(&crl, list).unwrap();
    good(&world.ctl(&["hosts"]));
    controller.kill();
}
