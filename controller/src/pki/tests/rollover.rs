//! A request that is signed, and a CA that is replaced.

use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

/// A request as a host makes it.
fn request(uris: &[&str]) -> String {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["pve1.lab.example".to_owned()]).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())));
    params.serialize_request(&key).unwrap().pem().unwrap()
}

const PVE1: &str = "spiffe://pvelet.example/cluster/lab/host/pve1";

#[test]
fn a_request_gives_its_public_key_and_nothing_else() {
    let ca = ca();
    for uris in [&[PVE1][..], &[]] {
        let request = SigningRequest::from_pem(&request(uris)).unwrap();
        assert_eq!(request.dns, ["pve1.lab.example"]);
        let signed = ca.sign_host(&request, "lab", "pve1", &[], &[], Lifetime::days(9)).unwrap();
        let info = CertInfo::from_pem(&signed.cert_pem).unwrap();
        assert_eq!((info.uris.as_slice(), info.dns.len()), ([PVE1.to_owned()].as_slice(), 0), "names only where they are asked for here");
        assert!(info.server_auth && !info.client_auth && !info.ca);
        assert_eq!(info.serial, signed.serial);
    }
}

#[test]
fn a_request_for_somebody_else_is_refused_and_so_is_what_is_none() {
    let ca = ca();
    for uri in ["spiffe://pvelet.example/cluster/lab/host/pve2", "spiffe://pvelet.example/role/admin/x", "https://x"] {
        let request = SigningRequest::from_pem(&request(&[uri])).unwrap();
        let error = ca.sign_host(&request, "lab", "pve1", &[], &[], Lifetime::days(9)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(uri) && error.contains("another identity"), "{error}");
    }
    let good = request(&[PVE1]);
    let key = KeyPair::generate().unwrap().serialize_pem();
    // One character of the signature.
    let body = good.rfind("-----END").unwrap() - 8;
    let mut forged = good.clone();
    let other = if &good[body..=body] == "A" { "B" } else { "A" };
    forged.replace_range(body..=body, other);
    let large = format!("{good}{}", "x".repeat(70_000));
    let table = [
        ("hello", "no PEM block CERTIFICATE REQUEST"),
        ("", "pvelet-agent signing-request prints one"),
        (ca.cert_pem(), "this is a certificate"),
        (&key, "holds a private key"),
        (&large, "bytes are too many"),
        (&forged, "malformed"),
    ];
    for (text, why) in table {
        let error = SigningRequest::from_pem(text).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert!(!error.contains(&key));
    }
}

#[test]
fn a_ca_is_replaced_step_by_step_and_only_in_their_order() {
    let temp = tempfile::tempdir().unwrap();
    let (pki, old) = PkiDir::init(&temp.path().join("pki"), "pvelet.example", Lifetime::days(20), false).unwrap();
    let issue = |ca: &Ca, name: &str| {
        let issued = ca.issue_role(Role::Reader, name, Lifetime::days(9)).unwrap();
        pki.keep(&issued.serial, &issued.cert_pem).unwrap();
        issued
    };
    let (ann, bob) = (issue(&old, "ann"), issue(&old, "bob"));
    pki.revoke(&bob.serial, SystemTime::now()).unwrap();
    let now = SystemTime::now();
    assert!(!pki.finish_rollover(now).unwrap(), "there is nothing to finish");
    assert!(pki.switch_rollover().is_err());

    assert!(pki.start_rollover(Lifetime::days(20)).unwrap());
    let bundle = pki.bundle().unwrap();
    assert!(!pki.start_rollover(Lifetime::days(20)).unwrap(), "twice is once");
    assert_eq!(pki.bundle().unwrap(), bundle);
    assert_eq!(CertInfo::all_from_pem(&bundle).unwrap().len(), 2);
    assert_eq!(pki.ca().unwrap().cert_pem(), old.cert_pem(), "the old one signs");
    assert!(pki.finish_rollover(now).unwrap_err().to_string().contains("rollover switch"));
    let numbers = || Crl::all_from_pem(&pki.lists().unwrap()).unwrap().iter().map(|l| (l.number(), l.list().len())).collect::<Vec<_>>();
    assert_eq!(numbers(), [(2, 1), (1, 0)]);

    assert!(pki.switch_rollover().unwrap());
    assert!(!pki.switch_rollover().unwrap());
    let new = pki.ca().unwrap();
    assert_ne!(new.cert_pem(), old.cert_pem());
    assert_eq!(numbers(), [(1, 0), (2, 1)], "the one that signs comes first");
    assert!(pki.start_rollover(Lifetime::days(20)).is_err());
    let cat = issue(&new, "cat");
    let refused = pki.finish_rollover(now).unwrap_err().to_string();
    assert!(refused.contains("1 certificates of the old CA") && refused.contains(&ann.serial), "{refused}");
    // Each CA revokes what it issued.
    assert_eq!(pki.revoke(&cat.serial, now).unwrap(), std::slice::from_ref(&cat.serial));
    assert_eq!(pki.revoke(&ann.serial, now).unwrap(), std::slice::from_ref(&ann.serial));
    assert_eq!(numbers(), [(2, 1), (3, 2)]);

    assert!(pki.finish_rollover(now).unwrap());
    assert!(!pki.finish_rollover(now).unwrap());
    assert_eq!((pki.bundle().unwrap().as_str(), numbers()), (new.cert_pem(), vec![(2, 1)]));
    assert_eq!(pki.retired().unwrap(), [old.cert_pem()]);
    let left: Vec<_> = fs::read_dir(temp.path().join("pki")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n == "previous" || n == "next"), "the old key is gone: {left:?}");
    // And again, years later.
    assert!(pki.start_rollover(Lifetime::days(20)).unwrap());
}

#[test]
fn a_step_that_was_killed_is_done_again() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    let (pki, old) = PkiDir::init(&dir, "pvelet.example", Lifetime::days(20), false).unwrap();
    let (single, list) = (pki.bundle().unwrap(), pki.lists().unwrap());
    pki.start_rollover(Lifetime::days(20)).unwrap();
    // Killed after the new CA was made, before the bundle was written.
    fs::write(dir.join(CA_CERT), &single).unwrap();
    fs::write(dir.join(CRL), &list).unwrap();
    assert!(!pki.start_rollover(Lifetime::days(20)).unwrap());
    assert_eq!(CertInfo::all_from_pem(&pki.bundle().unwrap()).unwrap().len(), 2);
    let bundle = pki.bundle().unwrap();
    // Killed before the key was replaced: the old one still signs.
    fs::create_dir(dir.join("previous")).unwrap();
    for name in [CA_CERT, CA_KEY] {
        fs::copy(dir.join(name), dir.join("previous").join(name)).unwrap();
    }
    assert_eq!(pki.rollover().unwrap().phase, Phase::Started);
    assert!(pki.switch_rollover().unwrap());
    // Killed right after it: the new one signs, whatever the bundle's order.
    fs::write(dir.join(CA_CERT), &bundle).unwrap();
    let state = pki.rollover().unwrap();
    assert!(state.phase == Phase::Switched && state.other.unwrap().cert_pem() == old.cert_pem());
    // Killed in the middle of the end.
    let signing = pki.ca().unwrap();
    fs::write(dir.join(CA_CERT), signing.cert_pem()).unwrap();
    assert!(pki.finish_rollover(SystemTime::now()).unwrap());
    assert_eq!((pki.rollover().unwrap().phase, pki.bundle().unwrap().as_str()), (Phase::None, signing.cert_pem()));
}

/// The old CA has revoked one certificate, and the new one signs.
fn switched(dir: &Path) -> (PkiDir, Ca, Issued) {
    let (pki, old) = PkiDir::init(dir, "pvelet.example", Lifetime::days(20), false).unwrap();
    let ann = old.issue_role(Role::Reader, "ann", Lifetime::days(9)).unwrap();
    pki.keep(&ann.serial, &ann.cert_pem).unwrap();
    pki.revoke(&ann.serial, SystemTime::now()).unwrap();
    pki.start_rollover(Lifetime::days(20)).unwrap();
    pki.switch_rollover().unwrap();
    (pki, old, ann)
}

#[test]
fn no_list_is_invented_for_a_ca_that_had_one() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    let (pki, _, ann) = switched(&dir);
    let before = pki.lists().unwrap();
    fs::write(dir.join(CRL), pki.crl().unwrap().pem()).unwrap();
    let left = pki.lists().unwrap();
    let now = SystemTime::now();
    for refused in
        [pki.switch_rollover().map(drop), pki.finish_rollover(now).map(drop), pki.revoke(&ann.serial, now).map(drop), pki.put_right()]
    {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("holds no list of the CA") && error.contains("from a host"), "{error}");
    }
    assert_eq!(pki.lists().unwrap(), left);
    fs::write(dir.join(CRL), before).unwrap();
    assert!(pki.finish_rollover(now).unwrap());
}

#[test]
fn a_killed_finish_is_ended_by_whatever_comes_next() {
    type Next = fn(&PkiDir);
    let table: [(&str, Next); 4] = [
        ("finish", |pki| assert!(pki.finish_rollover(SystemTime::now()).unwrap())),
        ("start", |pki| assert!(pki.start_rollover(Lifetime::days(20)).unwrap())),
        ("revoke", |pki| drop(pki.revoke("00ff", SystemTime::now()).unwrap_err())),
        ("push", |pki| pki.put_right().unwrap()),
    ];
    for (next, step) in table {
        for lists_written in [false, true] {
            let temp = tempfile::tempdir().unwrap();
            let dir = temp.path().join("pki");
            let (pki, old, _) = switched(&dir);
            fs::rename(dir.join("previous"), dir.join("finished")).unwrap();
            if lists_written {
                fs::write(dir.join(CRL), pki.crl().unwrap().pem()).unwrap();
            }
            assert_eq!(pki.rollover().unwrap().phase, Phase::None);
            step(&pki);
            assert!(!pki.bundle().unwrap().contains(old.cert_pem()), "{next}");
            let lists = Crl::all_from_pem(&pki.lists().unwrap()).unwrap();
            assert!(lists.iter().all(|list| list.list().is_empty()), "{next}");
            assert_eq!(dir.join("finished").exists(), next == "revoke", "{next}: the old key is gone");
            assert_eq!(pki.finish_rollover(SystemTime::now()).is_ok(), next != "start");
            assert!(!dir.join("finished").exists());
        }
    }
}

/// Certificates of one identity from the old and the new CA.
fn both(pki: &PkiDir, old: &Ca, role: Role, name: &str) -> [Issued; 2] {
    [old, &pki.ca().unwrap()].map(|ca| {
        let issued = ca.issue_role(role, name, Lifetime::days(9)).unwrap();
        pki.keep(&issued.serial, &issued.cert_pem).unwrap();
        issued
    })
}

#[test]
fn after_the_switch_an_identity_means_the_certificates_of_the_old_ca() {
    let temp = tempfile::tempdir().unwrap();
    let (pki, old, ann) = switched(&temp.path().join("pki"));
    let now = SystemTime::now();
    let bob = both(&pki, &old, Role::Operator, "bob");
    let uri = bob[0].identity.to_string();
    assert_eq!(pki.revoke(&uri, now).unwrap(), [bob[0].serial.as_str()]);
    let left = pki.alive_with(&uri, now).unwrap();
    assert_eq!(left.iter().map(|c| c.serial.as_str()).collect::<Vec<_>>(), [bob[1].serial.as_str()], "the one in use lives");
    assert!(pki.revoke(&uri, now).unwrap().is_empty(), "twice is once");
    // Both lists are told, the one of the CA that signs first.
    let lists = pki.crls().unwrap();
    let told = |list: &Crl| list.list().iter().map(|r| r.serial.clone()).collect::<Vec<_>>();
    assert_eq!(lists.iter().map(told).collect::<Vec<_>>(), [vec![], vec![ann.serial, bob[0].serial.clone()]]);
    let infos = bob.each_ref().map(|issued| CertInfo::from_pem(&issued.cert_pem).unwrap());
    assert_eq!(infos.map(|c| lists.iter().any(|list| list.revokes(&c))), [true, false]);
    // Who only has one of the new CA is not meant, and is told how he would be.
    let cat = pki.ca().unwrap().issue_role(Role::Reader, "cat", Lifetime::days(9)).unwrap();
    pki.keep(&cat.serial, &cat.cert_pem).unwrap();
    let error = pki.revoke(&cat.identity.to_string(), now).unwrap_err().to_string();
    assert!(error.contains("the old CA has issued no certificate") && error.contains("name its serial number"), "{error}");
    assert_eq!(pki.revoke(&cat.serial, now).unwrap(), [cat.serial.as_str()]);
    // Afterwards an identity means all again.
    assert!(pki.finish_rollover(now).unwrap());
    assert_eq!(pki.revoke(&uri, now).unwrap(), [bob[1].serial.as_str()]);
}

#[test]
fn what_a_newer_certificate_has_replaced_is_revoked_at_once_and_nothing_else() {
    let temp = tempfile::tempdir().unwrap();
    let (pki, old, _) = switched(&temp.path().join("pki"));
    let now = SystemTime::now();
    let bob = both(&pki, &old, Role::Operator, "bob");
    let issue = |ca: &Ca, name: &str, from: SystemTime| {
        let issued = ca.issue_role(Role::Reader, name, Lifetime::between(from, now + Duration::from_secs(1_000_000))).unwrap();
        pki.keep(&issued.serial, &issued.cert_pem).unwrap();
        issued
    };
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let new = pki.ca().unwrap();
    // Has none but the old CA's; has one for later; has two of the new CA, of which the later one counts.
    let (_cat, _dan, dan_later) =
        (issue(&old, "cat", now - hours(2)), issue(&old, "dan", now - hours(2)), issue(&new, "dan", now + hours(2)));
    let (eve, eve_later) = (issue(&new, "eve", now - hours(2)), issue(&new, "eve", now - hours(1)));
    // What is revoked replaces nothing.
    let (_fay, fay_revoked) = (issue(&old, "fay", now - hours(2)), issue(&new, "fay", now - hours(1)));
    pki.revoke(&fay_revoked.serial, now).unwrap();

    let serials = |certs: Vec<CertInfo>| certs.into_iter().map(|c| c.serial).collect::<std::collections::BTreeSet<_>>();
    let replaced: std::collections::BTreeSet<String> = [bob[0].serial.clone(), eve.serial.clone()].into();
    let before = pki.lists().unwrap();
    assert_eq!(serials(pki.revoke_replaced(now, true).unwrap()), replaced);
    assert_eq!(pki.lists().unwrap(), before, "only told");
    assert_eq!(serials(pki.revoke_replaced(now, false).unwrap()), replaced);
    assert!(pki.revoke_replaced(now, false).unwrap().is_empty());
    for kept in [&bob[1], &dan_later, &eve_later] {
        assert!(pki.alive_with(&kept.identity.to_string(), now).unwrap().iter().any(|c| c.serial == kept.serial));
    }
}

#[test]
fn what_others_added_to_the_files_stays_there_until_they_take_it_out() {
    let temp = tempfile::tempdir().unwrap();
    let (pki, old) = PkiDir::init(&temp.path().join("pki"), "pvelet.example", Lifetime::days(20), false).unwrap();
    let foreign = ca();
    let list = Crl::create(&foreign).unwrap();
    // Without a line break at its end, as some programs write it.
    fs::write(pki.ca_cert_path(), format!("{}{}", foreign.cert_pem().trim_end(), "\n") + old.cert_pem()).unwrap();
    fs::write(pki.crl_path(), pki.lists().unwrap() + list.pem().trim_end()).unwrap();
    let there = |when: &str, ours: usize| {
        let (bundle, lists) = (pki.bundle().unwrap(), pki.lists().unwrap());
        let cas = CertInfo::all_from_pem(&bundle).unwrap();
        assert_eq!((cas.len(), Crl::all_from_pem(&lists).unwrap().len()), (ours + 1, ours + 1), "{when}");
        assert_eq!(cas.last().unwrap().sha256, CertInfo::from_pem(foreign.cert_pem()).unwrap().sha256, "{when}: after ours");
        assert!(lists.contains(list.pem().trim_end()), "{when}");
    };
    let now = SystemTime::now();
    pki.put_right().unwrap();
    there("push", 1);
    let ann = old.issue_role(Role::Reader, "ann", Lifetime::days(9)).unwrap();
    pki.keep(&ann.serial, &ann.cert_pem).unwrap();
    assert_eq!(pki.revoke(&ann.serial, now).unwrap().len(), 1);
    there("revoke", 1);
    pki.start_rollover(Lifetime::days(20)).unwrap();
    there("start", 2);
    pki.switch_rollover().unwrap();
    there("switch", 2);
    pki.finish_rollover(now).unwrap();
    there("finish", 1);
    assert!(!pki.bundle().unwrap().contains(old.cert_pem()));
    // Theirs are not ours to revoke.
    let theirs = foreign.issue_role(Role::Reader, "eve", Lifetime::days(9)).unwrap();
    theirs.write(temp.path(), "eve", false).unwrap();
    let error = pki.revoke(&temp.path().join("eve.crt").display().to_string(), now).unwrap_err().to_string();
    assert!(error.contains("did not issue"), "{error}");
}
