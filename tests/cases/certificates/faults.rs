//! What goes wrong: certificates that cannot be used, a full disk, callers that may not.

use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pvelet_controller::pki::{Ca, Lifetime, PkiDir, SigningRequest};
use pvelet_tests::{client::reason, pki::TRUST_DOMAIN};
use tonic::Code;

use super::*;

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_with_value_and_remedy() {
    let world = World::new(vec!["pve1"]);
    let client = world.admin("pve1");
    let asked = SigningRequest::from_pem(&request(&client).await).unwrap();
    let (ca, day) = (&world.stack.pki.ca, Lifetime::days(1));
    let at = |from: i64, to: i64| {
        let time = |s: i64| {
            let by = Duration::from_secs(s.unsigned_abs());
            if s < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
        };
        Lifetime::between(time(from), time(to))
    };
    let sign = |ca: &Ca, lifetime| ca.sign_host(&asked, "pve1", "pve1", &[], &[], lifetime).unwrap().cert_pem;
    let other = Ca::create(TRUST_DOMAIN, Lifetime::days(30)).unwrap();
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("of another node", ca.issue_host("pve1", "pve9", &[], &[], day).unwrap().cert_pem, &["host/pve9", "not for host pve1"]),
        ("of another CA", sign(&other, day), &["of CA"]),
        ("expired", sign(ca, at(-7200, -3600)), &["has expired", "clock says"]),
        ("of a clock a day ahead", sign(ca, at(86400, 90000)), &["not valid yet: it begins", "clock says", "timedatectl"]),
        ("of somebody's key", ca.issue_host("pve1", "pve1", &[], &[], day).unwrap().cert_pem, &["somebody else's"]),
        ("a client's", ca.issue_role(Role::Admin, "x", day).unwrap().cert_pem, &["not for servers alone"]),
        ("a CA's", ca.cert_pem().to_owned(), &["certificate of a CA"]),
        ("no PEM", "hello\n".to_owned(), &["PEM"]),
        ("of 2 MB", format!("{}{}", ca.cert_pem(), "x".repeat(2 << 20)), &["bytes are too many", "at most 65536"]),
    ];
    let before = world.files("pve1");
    for (what, pem, words) in cases {
        let ask = v1::InstallCertificateRequest { certificate_pem: pem.clone(), ..Default::default() };
        let status = client.agent.certificate().install_certificate(ask).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "INVALID_CERTIFICATE"), "{what}: {status:?}");
        // And as people see it.
        let file = world.file("bad.crt", &pem);
        let ran = world.ctl(&["pki", "install", "pve1", &file]);
        assert!(!ran.status.success(), "{what}");
        let shown = text(&ran.stderr);
        for word in words {
            assert!(status.message().contains(word), "{what}: {word}: {}", status.message());
            assert!(shown.contains(word) || what == "no PEM", "{what}: {word}: {shown}");
        }
        assert_eq!(world.files("pve1"), before, "{what}: nothing has changed");
    }
    let log = world.stack.agents["pve1"].log();
    assert!(log.lines().any(|l| l.contains("INSTALL_CERTIFICATE") && l.contains("refused") && l.contains("INVALID_CERTIFICATE")), "{log}");
    // The right one is taken after all that.
    let file = world.file("good.crt", &sign(ca, day));
    good(&world.ctl(&["pki", "install", "pve1", &file]));
}

#[tokio::test]
async fn only_administrators_change_certificates_also_where_the_agent_only_observes() {
    let mut world = World::new(vec!["pve1"]);
    world.stack.agent("pve1").kill();
    world.stack.agent("pve1").mode = "observe".into();
    world.stack.agent("pve1").start();
    for role in [Role::Reader, Role::Operator] {
        let (cert, key) = world.stack.pki.role(role, "x");
        let client = world.client("pve1", cert, key);
        let status = client.agent.certificate().create_signing_request(v1::CreateSigningRequestRequest::default()).await.unwrap_err();
        assert_eq!(reason(&status), "ROLE");
        assert!(!get(&client).await.request_pending);
    }
    let (status, all) = world.json(&["renew", "--all", "--force"]);
    assert_eq!((status, all["hosts"][0]["result"].as_str()), (0, Some("renewed")), "{all:#}");
}

#[tokio::test]
async fn a_full_disk_leaves_the_old_pair_in_use_and_is_told() {
    let mut world = World::new(vec!["pve1"]);
    let folder = world.stack.agents["pve1"].cert().0.parent().unwrap().to_owned();
    let files = world.files("pve1");
    world.stack.agent("pve1").kill();
    mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    let _unmount = Unmount(folder.clone());
    for (name, content) in &files {
        pvelet_controller::pki::write_private(&folder.join(name), content.as_bytes(), true).unwrap();
    }
    world.stack.agent("pve1").start();
    let (client, before) = (world.admin("pve1"), world.served("pve1").await.serial);
    let asked = SigningRequest::from_pem(&request(&client).await).unwrap();
    let signed = world.stack.pki.ca.sign_host(&asked, "pve1", "pve1", &[], &[], Lifetime::days(1)).unwrap();
    // Nothing is left.
    let mut filler = fs::File::create(folder.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[0; 4096]).is_ok() {}
    let ask = v1::InstallCertificateRequest { certificate_pem: signed.cert_pem.clone(), ..Default::default() };
    let status = client.agent.certificate().install_certificate(ask.clone()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "CERTIFICATE_FILES"), "{status:?}");
    assert!(status.message().contains("No space left") && status.message().contains("make room there"), "{status:?}");
    assert_eq!(world.served("pve1").await.serial, before);
    world.stack.agent("pve1").kill();
    world.stack.agent("pve1").start();
    assert_eq!(world.served("pve1").await.serial, before, "it starts with the old pair");
    fs::remove_file(folder.join("filler")).unwrap();
    let client = world.admin("pve1");
    assert!(client.agent.certificate().install_certificate(ask).await.unwrap().into_inner().changed);
    assert_eq!(world.served("pve1").await.serial, signed.serial);
    world.stack.agent("pve1").kill();
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn an_older_list_and_a_bundle_that_shuts_the_caller_out_are_refused() {
    let world = World::new(vec!["pve1"]);
    let client = world.admin("pve1");
    let first = fs::read_to_string(world.stack.pki.dir.crl_path()).unwrap();
    good(&world.pki(&["issue", "person", "eve", "--role", "reader"]));
    good(&world.pki(&["revoke", &format!("spiffe://{TRUST_DOMAIN}/role/reader/eve")]));
    good(&world.pki(&["push", "--all"]));
    let before = world.files("pve1");
    let install = |ask| async { client.agent.certificate().install_certificate(ask).await.unwrap_err() };
    let status = install(v1::InstallCertificateRequest { crl_pem: Some(first), ..Default::default() }).await;
    assert_eq!(reason(&status), "CRL_OLDER", "{status:?}");
    let (dir, other) = PkiDir::init(&world.path("other"), TRUST_DOMAIN, Lifetime::days(9), false).unwrap();
    let crl_pem = Some(fs::read_to_string(dir.crl_path()).unwrap());
    let status = install(v1::InstallCertificateRequest { ca_pem: Some(other.cert_pem().to_owned()), crl_pem, ..Default::default() }).await;
    assert_eq!(reason(&status), "CALLER_LOCKED_OUT", "{status:?}");
    assert_eq!(world.files("pve1"), before);
}
