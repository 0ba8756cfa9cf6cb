//! On the host: `pvelet-agent signing-request`, `install-certificate`, `check-config --no-certificates`.

use std::os::unix::fs::PermissionsExt;

use std::time::{Duration, UNIX_EPOCH};

use pvelet_controller::pki::{Lifetime, SigningRequest};
use pvelet_tests::agent::SOON;

use super::*;

#[test]
fn a_certificate_that_has_ended_is_asked_for_anew_with_all_that_it_named() {
    let world = World::new(vec!["pve1"]);
    let agent = &world.stack.agents["pve1"];
    let config = agent.config_path().display().to_string();
    let ask = |more: &[&str]| {
        let all = [&["signing-request", "--config", &config], more].concat();
        SigningRequest::from_pem(&good(&run("pvelet-agent", &all))).unwrap()
    };
    // Another cluster than the one that would be found without it.
    let ended = Lifetime::between(UNIX_EPOCH + Duration::from_secs(1_000_000), UNIX_EPOCH + Duration::from_secs(2_000_000));
    let request = ask(&["--cluster", "former"]);
    let signed = world.stack.pki.ca.sign_host(&request, "former", "pve1", &["pve1.lab.example"], &["192.0.2.1".parse().unwrap()], ended);
    fs::write(&agent.cert().0, signed.unwrap().cert_pem).unwrap();
    let named = |asked: SigningRequest| {
        assert!(asked.uris.iter().all(|uri| uri.ends_with("/cluster/former/host/pve1")), "{:?}", asked.uris);
        assert_eq!(
            (asked.dns.as_slice(), asked.ips.as_slice()),
            (&["pve1.lab.example".to_owned()][..], &["192.0.2.1".parse().unwrap()][..])
        );
    };
    named(ask(&[]));
    // Whatever else is missing.
    fs::remove_file(&agent.cert().1).unwrap();
    named(ask(&[]));
}

#[tokio::test]
async fn a_new_host_gets_its_certificate_without_its_key_ever_leaving_it() {
    let mut world = World::new(vec!["pve1"]);
    world.stack.agent("pve1").kill();
    let (agent, folder) = (&world.stack.agents["pve1"], world.stack.agents["pve1"].cert().0.parent().unwrap().to_owned());
    for name in world.files("pve1").keys() {
        fs::remove_file(folder.join(name)).unwrap();
    }
    let config = agent.config_path().display().to_string();
    let (cert, key) = agent.cert().clone();
    assert!(!run("pvelet-agent", &["check-config", &config]).status.success());
    good(&run("pvelet-agent", &["check-config", "--no-certificates", &config]));

    let ask = ["signing-request", "--config", &config, "--cluster", "pve1", "--dns", "localhost", "--ip", "127.0.0.1"];
    let csr = good(&run("pvelet-agent", &ask));
    let again = pvelet_controller::pki::SigningRequest::from_pem(&good(&run("pvelet-agent", &ask))).unwrap();
    assert_eq!(pvelet_controller::pki::SigningRequest::from_pem(&csr).unwrap().key_sha256, again.key_sha256, "the same key");
    let waiting = PathBuf::from(format!("{}.next", key.display()));
    assert_eq!(fs::metadata(&waiting).unwrap().permissions().mode() & 0o7777, 0o600);
    let secret = secrets(&fs::read_to_string(&waiting).unwrap());
    assert!(secret.iter().all(|s| !csr.contains(s)));

    // Somebody else's request, and no request at all.
    let request = world.file("pve1.csr", &csr);
    let wrong = world.pki(&["sign", "--cluster", "pve1", "--node", "pve2", &request]);
    assert_eq!(wrong.status.code(), Some(64));
    assert!(text(&wrong.stderr).contains("it asks for another identity than spiffe://"), "{}", text(&wrong.stderr));
    let no_request = world.file("x.csr", "hello");
    assert!(
        text(&world.pki(&["sign", "--cluster", "pve1", "--node", "pve1", &no_request]).stderr)
            .contains("pvelet-agent signing-request prints one")
    );

    let out = world.path("signed.crt").display().to_string();
    let sign = ["sign", "--cluster", "pve1", "--node", "pve1", "--names-from-request", "--days", "9", "--out", &out, &request];
    good(&world.pki(&sign));
    let ca = world.stack.pki.dir.ca_cert_path().display().to_string();
    let crl = world.stack.pki.dir.crl_path().display().to_string();
    let bare = run("pvelet-agent", &["install-certificate", "--config", &config, &out]);
    assert!(text(&bare.stderr).contains("give it along (--ca FILE)"), "{}", text(&bare.stderr));
    let install = ["install-certificate", "--config", &config, "--ca", &ca, "--crl", &crl, &out];
    assert!(good(&run("pvelet-agent", &install)).starts_with("installed: spiffe://"));
    assert!(good(&run("pvelet-agent", &install)).starts_with("unchanged: "));
    good(&run("pvelet-agent", &["check-config", &config]));
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(cert.is_file() && !waiting.exists());

    world.stack.agent("pve1").start();
    let first = world.served("pve1").await;
    assert_eq!((first.dns.as_slice(), first.ips.len()), (["localhost".to_owned()].as_slice(), 1));

    // A running agent takes over what is installed beside it, by itself.
    let csr = good(&run("pvelet-agent", &["signing-request", "--config", &config]));
    let request = world.file("pve1.csr", &csr);
    good(&world.pki(&sign));
    assert!(request.ends_with("pve1.csr"));
    assert!(good(&run("pvelet-agent", &["install-certificate", "--config", &config, &out])).starts_with("installed: "));
    let serial = pvelet_controller::pki::CertInfo::from_pem(&fs::read_to_string(&out).unwrap()).unwrap().serial;
    let taken_over = async { while world.served("pve1").await.serial != serial {} };
    tokio::time::timeout(SOON, taken_over).await.expect("the agent takes it over");
}
