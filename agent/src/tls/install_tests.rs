#![allow(clippy::unwrap_used)]
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use pvelet_proto::{identity::Identity, reason};
use rcgen::ExtendedKeyUsagePurpose as Usage;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    files::{self, Staged},
    testing::{Ca, DOMAIN, Files, Issued, NODE, Spec, client, server},
    *,
};
use crate::{error::Error, metrics::Metrics};

struct World {
    ca: Ca,
    files: Files,
    credentials: Arc<Credentials>,
    admin: Peer,
}

fn peer(issued: &Issued) -> Peer {
    let chain = vec![CertificateDer::from_pem_slice(issued.cert.as_bytes()).unwrap()];
    let identity = Identity::parse(&format!("spiffe://{DOMAIN}/role/admin/x")).unwrap();
    Peer::with_chain(identity, "127.0.0.1:1".parse().unwrap(), Duration::ZERO, chain)
}

fn world() -> World {
    let ca = Ca::new();
    let files = Files::new(&ca.issue(&server()), &ca.pem, &ca.crl(&[]));
    let credentials = Credentials::open(files.config(), NODE.into(), Arc::new(Metrics::new())).unwrap();
    let admin = peer(&ca.issue(&client("role/admin/x")));
    World { ca, files, credentials, admin }
}

impl World {
    /// Every file with its content.
    fn snapshot(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.files.dir()).unwrap().map(|e| e.unwrap().path());
        entries.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(p).unwrap())).collect()
    }

    fn request(&self) -> SigningRequest {
        self.credentials.signing_request(Names::default()).unwrap()
    }

    fn install(&self, new: &New) -> Result<Installed, Error> {
        self.credentials.install(new, &self.admin)
    }

    fn renewed(&self, spec: &Spec) -> New {
        certificate(&self.ca.sign(&self.request().pem, spec))
    }
}

fn certificate(pem: &str) -> New {
    New { certificate: Some(pem.to_owned()), ..New::default() }
}

#[test]
fn a_renewal_takes_a_new_key_that_stays_the_same_until_it_is_installed() {
    let world = world();
    let before = world.snapshot();
    let (first, second) = (world.request(), world.request());
    assert_eq!(first.key_sha256, second.key_sha256);
    assert_eq!(first.identity, format!("spiffe://{DOMAIN}/cluster/lab/host/{NODE}"));
    assert!(world.credentials.request_pending());
    let waiting = world.snapshot();
    assert_eq!(waiting["agent.key"], before["agent.key"], "the key in use stays in use");
    let mode = |name: &str| fs::metadata(world.files.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("agent.key.next"), 0o600);

    let signed = world.ca.sign(&second.pem, &server());
    let old = world.credentials.current().own.clone();
    let done = world.install(&certificate(&signed)).unwrap();
    assert!(done.changed && done.certificate.serial != old.serial, "{done:?}");
    assert_eq!(world.credentials.current().own, done.certificate, "it is in use");
    let after = world.snapshot();
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>(), "nothing is left beside");
    assert_eq!((&after["agent.crt"], &after["agent.key"]), (&signed, &waiting["agent.key.next"]));
    assert_eq!(mode("agent.key"), 0o600);
    assert!(!world.credentials.request_pending());

    let again = world.install(&certificate(&signed)).unwrap();
    assert!(!again.changed);
    assert_eq!(world.snapshot(), after);
    assert_ne!(world.request().key_sha256, first.key_sha256, "the next certificate has a key of its own");
}

#[test]
fn what_cannot_be_used_is_refused_with_field_and_remedy_and_changes_nothing() {
    let world = world();
    let request = world.request();
    let (other, ended) = (Ca::new(), Ca::ended());
    let with = |change: fn(&mut Spec)| {
        let mut spec = server();
        change(&mut spec);
        certificate(&world.ca.sign(&request.pem, &spec))
    };
    let mine = world.ca.issue(&server());
    let mut both = with(|_| {});
    both.certificate.as_mut().unwrap().push_str(&mine.key);
    let ca_pem = |pem: &str| New { client_ca: Some(pem.to_owned()), ..New::default() };
    let table: Vec<(&str, New, &str, &[&str])> = vec![
        ("nothing", New::default(), "certificate_pem", &["nothing to install"]),
        (
            "another node",
            with(|s| s.uris = vec![format!("spiffe://{DOMAIN}/cluster/lab/host/pve2")]),
            "certificate_pem",
            &["host/pve2", NODE],
        ),
        (
            "another cluster",
            with(|s| s.uris = vec![format!("spiffe://{DOMAIN}/cluster/x/host/{NODE}")]),
            "certificate_pem",
            &["cluster/x", "'lab'"],
        ),
        (
            "another domain",
            with(|s| s.uris = vec![format!("spiffe://a.test/cluster/lab/host/{NODE}")]),
            "certificate_pem",
            &["a.test", DOMAIN],
        ),
        ("another CA", certificate(&other.sign(&request.pem, &server())), "certificate_pem", &["of CA", "ca_pem"]),
        (
            "expired",
            with(|s| s.validity = Some((-600, -300))),
            "certificate_pem",
            &["expired", "it ended 20", "clock says 20", "clock right"],
        ),
        (
            "not yet valid",
            with(|s| s.validity = Some((86400, 90000))),
            "certificate_pem",
            &["begins 20", "clock says 20", "check the host's clock"],
        ),
        ("somebody's key", certificate(&mine.cert), "certificate_pem", &["somebody else's", "signing-request"]),
        ("for clients", with(|s| s.usages = vec![Usage::ClientAuth]), "certificate_pem", &["not for servers alone"]),
        ("for both", with(|s| s.usages.push(Usage::ClientAuth)), "certificate_pem", &["not for servers alone"]),
        ("a CA's", certificate(&world.ca.pem), "certificate_pem", &["certificate of a CA"]),
        ("no PEM", certificate("hello"), "certificate_pem", &["no certificate in PEM"]),
        ("too large", certificate(&"x".repeat(2 << 20)), "certificate_pem", &["2097152 bytes", "at most 65536"]),
        ("with a key", both, "certificate_pem", &["private key", "never leaves"]),
        ("no CA in the bundle", ca_pem(&mine.cert), "ca_pem", &["is no CA"]),
        ("an empty bundle", ca_pem(""), "ca_pem", &["no certificate in PEM"]),
        ("no list", New { crl: Some("x".into()), ..New::default() }, "crl_pem", &["no revocation list"]),
        ("a list of another CA", New { crl: Some(other.crl(&[])), ..New::default() }, "crl_pem", &["none of the client CAs signed"]),
        (
            "a CA that has ended",
            New { client_ca: Some(ended.pem.clone()), crl: Some(ended.crl(&[])), ..New::default() },
            "ca_pem",
            &["no client would be heard", "have ended", "bring a CA that is valid"],
        ),
        ("a bundle without the CA of its lists", ca_pem(&other.pem), "crl_pem", &["none of the client CAs signed"]),
    ];
    let (before, last) = (world.snapshot(), world.credentials.current());
    for (what, new, field, words) in table {
        let error = world.install(&new).unwrap_err();
        let Error::Invalid(violations) = &error else { panic!("{what}: {error:?}") };
        assert_eq!((violations[0].field.as_str(), violations[0].reason), (field, reason::INVALID_CERTIFICATE), "{what}: {error}");
        for word in words {
            assert!(error.to_string().contains(word), "{what}: {word} is not in: {error}");
        }
        assert!(!error.to_string().contains("PRIVATE KEY"), "{what}");
        assert_eq!(world.snapshot(), before, "{what}");
        assert!(Arc::ptr_eq(&last, &world.credentials.current()), "{what}");
    }
    // The request still waits: the right certificate is taken.
    assert!(world.install(&with(|_| {})).unwrap().changed);
}

#[test]
fn what_is_revoked_is_never_trusted_again_by_an_older_list() {
    let world = world();
    let bad = world.ca.issue(&client("role/admin/bad"));
    let list = |number, revoked: &[&Issued]| New { crl: Some(world.ca.numbered_crl(number, revoked)), ..New::default() };
    assert!(world.install(&list(7, &[&bad])).unwrap().changed);
    assert_eq!(world.credentials.current().authorities[0].list, Some(ListInfo { number: 7, revoked: 1 }));
    let before = world.snapshot();
    for number in [1, 6] {
        let error = world.install(&list(number, &[])).unwrap_err();
        assert_eq!(error.reason(), reason::CRL_OLDER, "{error}");
        assert!(error.to_string().contains(&format!("number {number}, and the present one 7")), "{error}");
    }
    // A list of another CA alone leaves out that of the first.
    let new_ca = Ca::new();
    let only_new = New { client_ca: Some(format!("{}{}", world.ca.pem, new_ca.pem)), crl: Some(new_ca.crl(&[])), ..New::default() };
    let error = world.install(&only_new).unwrap_err();
    assert!(error.reason() == reason::CRL_OLDER && error.to_string().contains("holds no list"), "{error}");
    assert_eq!(world.snapshot(), before);
    let both = New { crl: Some(world.ca.numbered_crl(8, &[&bad]) + &new_ca.crl(&[])), ..only_new };
    assert!(world.install(&both).unwrap().changed);
    assert_eq!(world.credentials.current().authorities.len(), 2);
}

#[test]
fn a_ca_that_was_renewed_with_its_key_keeps_its_lists() {
    let world = world();
    let renewed = world.ca.renewed();
    assert_ne!(renewed.pem, world.ca.pem);
    let bad = world.ca.issue(&client("role/admin/bad"));
    let seventh = world.ca.numbered_crl(7, &[&bad]);
    let bring = |cas: &[&Ca], list: &str| {
        let client_ca = Some(cas.iter().map(|ca| ca.pem.as_str()).collect());
        world.install(&New { client_ca, crl: Some(list.to_owned()), ..New::default() })
    };
    assert!(bring(&[&world.ca], &seventh).unwrap().changed);
    for cas in [&[&renewed][..], &[&renewed, &world.ca], &[&world.ca, &renewed]] {
        let error = bring(cas, &world.ca.numbered_crl(6, &[])).unwrap_err();
        assert_eq!(error.reason(), reason::CRL_OLDER, "{error}");
        assert!(error.to_string().contains("number 6, and the present one 7"), "{error}");
        assert!(bring(cas, &seventh).unwrap().changed);
        let now = world.credentials.current();
        // The one list is that of both certificates, and nobody is told that one of them had none.
        assert_eq!(now.authorities.len(), cas.len());
        assert!(now.authorities.iter().all(|ca| ca.list == Some(ListInfo { number: 7, revoked: 1 })), "{:?}", now.authorities);
        assert!(!now.warnings.iter().any(|w| w.contains("no list")), "{:?}", now.warnings);
        let error = world.credentials.install(&New { crl: Some(seventh.clone()), ..New::default() }, &peer(&bad)).unwrap_err();
        assert_eq!(error.reason(), reason::CALLER_LOCKED_OUT, "{error}");
    }
    // Another key of the same name is another CA.
    let other = Ca::new();
    let with = New { client_ca: Some(other.pem.clone()), crl: Some(other.crl(&[])), ..New::default() };
    assert!(world.credentials.install(&with, &peer(&other.issue(&client("role/admin/x")))).unwrap().changed);
}

#[test]
fn nobody_locks_himself_out() {
    let world = world();
    let new_ca = Ca::new();
    let only_new = New { client_ca: Some(new_ca.pem.clone()), crl: Some(new_ca.crl(&[])), ..New::default() };
    let before = world.snapshot();
    let error = world.install(&only_new).unwrap_err();
    assert_eq!(error.reason(), reason::CALLER_LOCKED_OUT, "{error}");
    let me = world.ca.issue(&client("role/admin/me"));
    let revoked = New { crl: Some(world.ca.numbered_crl(2, &[&me])), ..New::default() };
    let error = world.credentials.install(&revoked, &peer(&me)).unwrap_err();
    assert_eq!(error.reason(), reason::CALLER_LOCKED_OUT, "{error}");
    assert_eq!(world.snapshot(), before);
    // Who has a certificate of the new CA may.
    let done = world.credentials.install(&only_new, &peer(&new_ca.issue(&client("role/admin/x")))).unwrap();
    assert!(done.changed);
}

#[test]
fn an_install_that_was_killed_is_finished_by_the_next_start() {
    for left in ["nothing but the decision", "the key in its place", "the key and the certificate in their places"] {
        let world = world();
        let signed = world.ca.sign(&world.request().pem, &server());
        let (config, path) = (world.files.config(), |name: &str| world.files.path(name));
        let staged = Staged { cert: Some(signed.clone()), client_ca: None, crl: None };
        fs::write(path("agent.crt.install"), serde_json::to_vec(&staged).unwrap()).unwrap();
        if left.contains("key") {
            fs::rename(path("agent.key.next"), path("agent.key")).unwrap();
        }
        if left.contains("certificate") {
            fs::write(path("agent.crt"), &signed).unwrap();
        }
        // Whoever only looks sees what was decided, and changes nothing.
        let seen = Material::load(&config, NODE, SystemTime::now()).unwrap();
        assert!(path("agent.crt.install").exists());
        let again = Credentials::open(config.clone(), NODE.into(), Arc::new(Metrics::new())).unwrap();
        assert_eq!(again.current().own, seen.own, "{left}");
        assert_eq!(fs::read_to_string(path("agent.crt")).unwrap(), signed, "{left}");
        let names: Vec<_> = world.snapshot().into_keys().collect();
        assert_eq!(names, ["agent.crt", "agent.key", "ca.crl", "ca.crt"], "{left}");
        files::finish(&config).unwrap();
    }
}

#[test]
fn what_cannot_be_written_leaves_the_old_pair_in_use() {
    let world = world();
    let new = world.renewed(&server());
    // Nothing can be written where a folder has the name of the new file.
    for blocked in ["agent.crt.new", "agent.crt.install.new", "agent.crt.install"] {
        fs::create_dir(world.files.path(blocked)).unwrap();
        fs::write(world.files.path(blocked).join("x"), "").unwrap();
        let last = world.credentials.current();
        let error = world.install(&new).unwrap_err();
        assert_eq!(error.reason(), reason::CERTIFICATE_FILES, "{blocked}: {error}");
        assert!(error.to_string().ends_with("what was in use stays in use"), "{error}");
        assert!(Arc::ptr_eq(&last, &world.credentials.current()));
        fs::remove_dir_all(world.files.path(blocked)).unwrap();
        let names: Vec<_> = world.snapshot().into_keys().collect();
        assert_eq!(names, ["agent.crt", "agent.key", "agent.key.next", "ca.crl", "ca.crt"], "{blocked}");
        assert!(Material::load(&world.files.config(), NODE, SystemTime::now()).is_ok());
    }
    assert!(world.install(&new).unwrap().changed);
}

#[test]
fn two_installs_at_once_are_one_after_the_other_or_told() {
    let world = world();
    let new = world.renewed(&server());
    let held = files::hold(&world.files.config()).unwrap();
    let error = world.install(&new).unwrap_err();
    assert_eq!(error.reason(), reason::OPERATION_IN_PROGRESS, "{error}");
    drop(held);
    assert!(world.install(&new).unwrap().changed);
}

#[test]
fn the_first_install_needs_all_and_says_what_is_missing() {
    let ca = Ca::new();
    let files = Files::new(&ca.issue(&server()), &ca.pem, &ca.crl(&[]));
    for name in ["agent.crt", "agent.key", "ca.crt", "ca.crl"] {
        fs::remove_file(files.path(name)).unwrap();
    }
    let config = files.config();
    let request =
        signing_request(&config, "lab", NODE, &Names { dns: vec!["pve1.test".into()], ips: vec![[127, 0, 0, 1].into()] }).unwrap();
    let place = Place { files: &config, node: NODE, cluster: None };
    let mut new = certificate(&ca.sign(&request.pem, &server()));
    let now = SystemTime::now();
    let refused = |new: &New| install_local(&place, new, now).unwrap_err().to_string();
    assert!(refused(&new).contains("ca_pem: it is not given") && refused(&new).contains("--ca FILE"), "{}", refused(&new));
    new.client_ca = Some(ca.pem.clone());
    assert!(refused(&new).contains("crl_pem: it is not given"), "{}", refused(&new));
    new.crl = Some(ca.crl(&[]));
    assert!(install_local(&place, &new, now).unwrap().changed);
    assert!(!install_local(&place, &new, now).unwrap().changed);
    assert!(Material::load(&config, NODE, now).is_ok());
}

#[test]
fn a_host_of_another_ca_than_its_clients_is_renewed_by_the_same_one() {
    let clients = Ca::new();
    let servers = Ca::named("servers");
    let files = Files::new(&servers.issue(&server()), &clients.pem, &clients.crl(&[]));
    let config = files.config();
    let place = Place { files: &config, node: NODE, cluster: Some("lab") };
    let request = signing_request(&config, "lab", NODE, &Names::default()).unwrap();
    let now = SystemTime::now();
    let stranger = certificate(&Ca::named("strangers").sign(&request.pem, &server()));
    let error = install_local(&place, &stranger, now).unwrap_err().to_string();
    assert!(error.contains("of CA 'CN=strangers'"), "{error}");
    let third = Ca::named("third");
    let named = New { server_ca: Some(third.pem.clone()), ..certificate(&third.sign(&request.pem, &server())) };
    let own = certificate(&servers.sign(&request.pem, &server()));
    assert!(install_local(&place, &own, now).unwrap().changed);
    let request = signing_request(&config, "lab", NODE, &Names::default()).unwrap();
    let named = New { certificate: Some(third.sign(&request.pem, &server())), ..named };
    assert!(install_local(&place, &named, now).unwrap().changed);
}

#[test]
fn two_files_that_are_one_are_refused_and_nothing_is_written() {
    for (link, to) in [("agent.crt", "agent.key"), ("agent.key", "agent.crt"), ("ca.crt", "agent.key"), ("ca.crl", "ca.crt")] {
        // Also where the file that both name is not there yet.
        for there in [true, false] {
            let world = world();
            let new = world.renewed(&server());
            fs::remove_file(world.files.path(link)).unwrap();
            std::os::unix::fs::symlink(to, world.files.path(link)).unwrap();
            if !there {
                fs::remove_file(world.files.path(to)).unwrap();
            }
            let names = || fs::read_dir(world.files.dir()).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
            let key = || fs::read(world.files.path("agent.key")).ok();
            let before = (names(), key());
            let config = world.files.config();
            let place = Place { files: &config, node: NODE, cluster: None };
            let installed = install_local(&place, &new, SystemTime::now()).map(drop);
            for refused in [installed, signing_request(&config, "lab", NODE, &Names::default()).map(drop)] {
                let error = refused.unwrap_err();
                assert_eq!(error.reason(), reason::CERTIFICATE_FILES, "{link}: {error}");
                assert!(error.to_string().contains("a file of its own for each"), "{link}: {error}");
            }
            assert_eq!((names(), key()), before, "{link}");
        }
    }
}

#[test]
fn what_an_ended_certificate_named_is_still_known() {
    let world = world();
    let (config, path) = (world.files.config(), |name: &str| world.files.path(name));
    let ended = Spec { validity: Some((-600, -300)), uris: vec![format!("spiffe://{DOMAIN}/cluster/former/host/{NODE}")], ..server() };
    world.files.put("agent.crt", &world.ca.issue(&ended).cert);
    for gone in ["agent.key", "ca.crt", "ca.crl"] {
        fs::remove_file(path(gone)).unwrap();
    }
    let names = Names { dns: vec![super::testing::SERVER_NAME.to_owned()], ips: Vec::new() };
    assert_eq!(Material::named(&config, NODE).unwrap(), Some(("former".to_owned(), names)));
    assert!(Material::named(&config, "pve2").unwrap_err().to_string().contains("not for host pve2"));
    fs::remove_file(path("agent.crt")).unwrap();
    assert_eq!(Material::named(&config, NODE).unwrap(), None);
}
