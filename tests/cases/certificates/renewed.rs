//! A CA whose certificate was renewed with its key, as cert-manager does by itself.

use std::os::unix::process::ExitStatusExt;

use pvelet_controller::pki::Crl;
use pvelet_tests::{client::reason, pki::TRUST_DOMAIN};

use super::*;

/// Another certificate of the CA in a folder, of the same name and key.
fn renewed(world: &World) -> String {
    let (cert, key, out) = (format!("{}/ca.crt", world.pki), format!("{}/ca.key", world.pki), world.path("renewed.crt"));
    let openssl = Command::new("openssl")
        .args(["x509", "-in", &cert, "-signkey", &key, "-days", "200", "-set_serial", "77", "-out"])
        .arg(&out)
        .output()
        .unwrap();
    good(&openssl);
    out.display().to_string()
}

fn sha256(pem: &str) -> String {
    CertInfo::from_pem(pem).unwrap().sha256
}

#[tokio::test]
async fn a_ca_that_was_renewed_with_its_key_is_pushed_and_an_older_list_is_refused() {
    let world = World::new(vec!["pve1"]);
    let first = fs::read_to_string(world.stack.pki.dir.crl_path()).unwrap();
    let eve = world.stack.pki.role(Role::Reader, "eve");
    good(&world.pki(&["revoke", &format!("spiffe://{TRUST_DOMAIN}/role/reader/eve")]));
    good(&world.pki(&["push", "--all"]));
    let (old, host) = (fs::read_to_string(world.stack.pki.dir.ca_cert_path()).unwrap(), world.served("pve1").await);

    let (renewed, key) = (renewed(&world), format!("{}/ca.key", world.pki));
    let take = ["init", "--trust-domain", TRUST_DOMAIN, "--from-cert", &renewed, "--from-key", &key];
    let pveletctl = |args: &[&str]| {
        let mut command = Command::new(program("pveletctl"));
        command.arg("pki").args(args).args(["--dir", &world.pki]);
        command
    };
    // Killed in between the folder is still one of the former certificate, which has revoked what it had.
    let killed = pveletctl(&take).env("PVELET_CRASH_AT", "pki.renewed.list").output().unwrap();
    assert_eq!(killed.status.signal(), Some(9), "{}", text(&killed.stderr));
    assert_eq!(fs::read_to_string(world.stack.pki.dir.ca_cert_path()).unwrap(), old);
    good(&world.pki(&["push", "--all"]));
    good(&pveletctl(&take).output().unwrap());
    let new = fs::read_to_string(world.stack.pki.dir.ca_cert_path()).unwrap();
    assert_eq!((new.trim(), sha256(&new) == sha256(&old)), (fs::read_to_string(&renewed).unwrap().trim(), false));

    // Nobody has to say which of the two is meant, and what the CA has issued stays good.
    let (status, all) = world.json(&["push", "--all"]);
    let cas = &all["hosts"][0]["client_cas"];
    assert_eq!((status, all["hosts"][0]["result"].as_str()), (0, Some("pushed")), "{all:#}");
    assert_eq!((cas[0]["sha256"].as_str(), cas[0]["revoked"].as_u64()), (Some(sha256(&new).as_str()), Some(1)), "{all:#}");
    assert_eq!(world.json(&["renew", "--all"]).1["hosts"][0]["result"], "not due");
    assert_eq!(world.served("pve1").await.serial, host.serial);

    let client = world.admin("pve1");
    let install = |ca_pem: Option<String>, list: String| {
        let ask = v1::InstallCertificateRequest { ca_pem, crl_pem: Some(list), ..Default::default() };
        async { client.agent.certificate().install_certificate(ask).await }
    };
    let before = world.files("pve1");
    for ca_pem in [None, Some(new.clone()), Some(old.clone()), Some(format!("{old}{new}")), Some(format!("{new}{old}"))] {
        let status = install(ca_pem, first.clone()).await.unwrap_err();
        assert_eq!(reason(&status), "CRL_OLDER", "{status:?}");
        assert!(status.message().contains("what was revoked since would be trusted again"), "{status:?}");
    }
    assert_eq!(world.files("pve1"), before);

    // Both beside each other, as somebody may bring them: the one list is that of both.
    let former = world.file("former.crt", &old);
    let (status, all) = world.json(&["push", "--all", "--also-ca", &former]);
    assert_eq!(status, 0, "{all:#}");
    let cas = all["hosts"][0]["client_cas"].as_array().unwrap();
    let list = Crl::from_pem(&fs::read_to_string(world.stack.pki.dir.crl_path()).unwrap()).unwrap();
    let numbers: Vec<_> = cas.iter().map(|ca| (ca["crl_number"].as_u64(), ca["revoked"].as_u64())).collect();
    assert_eq!(numbers, [(Some(list.number()), Some(1)); 2], "{all:#}");
    let log = world.stack.agents["pve1"].log();
    assert!(!log.contains("so its certificates cannot be revoked"), "{log}");
    let revoked = world.client("pve1", eve.0, eve.1).agent.host().get_host(v1::GetHostRequest {}).await;
    assert!(revoked.is_err(), "who was revoked is heard again");
    let (status, all) = world.json(&["push", "--all"]);
    assert_eq!((status, all["hosts"][0]["client_cas"].as_array().map(Vec::len)), (0, Some(1)), "{all:#}");
}
