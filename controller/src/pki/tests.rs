#![allow(clippy::unwrap_used)]

mod rollover;
mod taken_over;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use pvelet_proto::identity::{Identity, Role};

use super::*;

fn ca() -> Ca {
    Ca::create("pvelet.example", Lifetime::days(Lifetime::CA_DAYS)).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_host_certificate_serves_only_and_names_the_host() {
    let issued = ca()
        .issue_host(
            "lab",
            "pve1",
            &["pve1.lab.example"],
            &["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            Lifetime::days(365),
        )
        .unwrap();
    let info = CertInfo::from_pem(&issued.cert_pem).unwrap();
    assert_eq!(info.uris, ["spiffe://pvelet.example/cluster/lab/host/pve1"]);
    assert_eq!(info.identity(), Some(Identity::parse("spiffe://pvelet.example/cluster/lab/host/pve1").unwrap()));
    assert_eq!(info.dns, ["pve1.lab.example"]);
    assert_eq!(info.ips, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
    assert!(info.server_auth && !info.client_auth && !info.other_usage && !info.ca);
    assert_eq!(info.serial, issued.serial);
}

#[test]
fn clients_certificates_call_only() {
    let ca = ca();
    for issued in
        [ca.issue_role(Role::Operator, "ann", Lifetime::days(90)).unwrap(), ca.issue_tenant("team-a", "csi", Lifetime::days(90)).unwrap()]
    {
        let info = CertInfo::from_pem(&issued.cert_pem).unwrap();
        assert!(info.client_auth && !info.server_auth && !info.other_usage && !info.ca);
        assert_eq!(info.identity(), Some(issued.identity));
    }
}

#[test]
fn nothing_outlives_the_ca_and_everything_is_backdated_a_little() {
    let ca = Ca::create("pvelet.example", Lifetime::days(10)).unwrap();
    let issued = ca.issue_role(Role::Reader, "ann", Lifetime::days(90)).unwrap();
    let (own, of_ca) = (CertInfo::from_pem(&issued.cert_pem).unwrap(), CertInfo::from_pem(ca.cert_pem()).unwrap());
    assert_eq!(own.not_after, of_ca.not_after);
    assert!(of_ca.ca);
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    assert!(own.not_before < now - 60 && own.not_before > now - 3600);
}

#[test]
fn explicit_times_are_taken() {
    let at = |s| UNIX_EPOCH + Duration::from_secs(s);
    let issued = ca().issue_role(Role::Reader, "ann", Lifetime::between(at(1_000_000), at(2_000_000))).unwrap();
    let info = CertInfo::from_pem(&issued.cert_pem).unwrap();
    assert_eq!((info.not_before, info.not_after), (1_000_000, 2_000_000));
    assert!(ca().issue_role(Role::Reader, "ann", Lifetime::between(at(2), at(1))).is_err());
}

#[test]
fn no_two_identities_share_a_file_name() {
    let (ca, day) = (ca(), Lifetime::days(1));
    let names: Vec<String> = [
        ca.issue_host("lab-a", "b", &[], &[], day),
        ca.issue_host("lab", "a-b", &[], &[], day),
        ca.issue_tenant("a-b", "c", day),
        ca.issue_tenant("a", "b-c", day),
        ca.issue_role(Role::Reader, "a.b", day),
    ]
    .map(|i| i.unwrap().base_name())
    .to_vec();
    assert_eq!(names, ["host-lab-a_b", "host-lab_a-b", "tenant-a-b_c", "tenant-a_b-c", "reader-a.b"]);
}

#[test]
fn serials_are_random() {
    let ca = ca();
    let serials: std::collections::HashSet<String> =
        (0..20).map(|_| ca.issue_role(Role::Reader, "ann", Lifetime::days(1)).unwrap().serial).collect();
    assert_eq!(serials.len(), 20);
    assert!(serials.iter().all(|s| s.len() == 32));
}

#[test]
fn malformed_names_are_refused_with_field_value_and_remedy() {
    let ca = ca();
    let day = Lifetime::days(1);
    let cases = [
        (Ca::create("Pvelet.example", day).err(), "trust domain 'Pvelet.example'", "lower case"),
        (ca.issue_host("lab", "pve_1", &[], &[], day).err(), "node 'pve_1'", "letters, digits"),
        (ca.issue_host("la b", "pve1", &[], &[], day).err(), "cluster 'la b'", "letters, digits"),
        (ca.issue_host("lab", "pve1", &["a..b"], &[], day).err(), "DNS name 'a..b'", "labels"),
        (ca.issue_tenant("Team", "x", day).err(), "tenant 'Team'", "lower-case"),
        (ca.issue_role(Role::Admin, "a/b", day).err(), "name 'a/b'", "letters, digits"),
    ];
    for (error, value, remedy) in cases {
        let text = error.unwrap().to_string();
        assert!(text.contains(value) && text.contains(remedy), "{text}");
    }
}

#[test]
fn keys_are_private_from_the_beginning_and_never_overwritten() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    let (pki, ca) = PkiDir::init(&dir, "pvelet.example", Lifetime::days(3650), false).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join(CA_KEY)), 0o600);
    assert_eq!(mode(&dir.join(CA_CERT)), 0o644);
    let before = fs::read(dir.join(CA_KEY)).unwrap();
    assert!(matches!(PkiDir::init(&dir, "pvelet.example", Lifetime::days(1), false), Err(PkiError::Exists { .. })));
    assert_eq!(fs::read(dir.join(CA_KEY)).unwrap(), before);

    let issued = ca.issue_host("lab", "pve1", &[], &[], Lifetime::days(365)).unwrap();
    let base = pki.deliver(&issued, None, false).unwrap();
    assert_eq!(base, dir.join("issued/host-lab_pve1"));
    assert_eq!(mode(&base.with_extension("key")), 0o600);
    let again = ca.issue_host("lab", "pve1", &[], &[], Lifetime::days(365)).unwrap();
    let error = pki.deliver(&again, None, false).unwrap_err().to_string();
    assert!(error.contains("--force"), "{error}");
    assert_eq!(fs::read_to_string(base.with_extension("key")).unwrap(), issued.key_pem);
    assert_eq!(pki.issued().unwrap().len(), 1, "a certificate that was not delivered leaves no copy");
    pki.deliver(&again, None, true).unwrap();
    assert_eq!(fs::read_to_string(base.with_extension("key")).unwrap(), again.key_pem);
    assert_eq!(mode(&base.with_extension("key")), 0o600);
    let left: Vec<_> = fs::read_dir(dir.join("issued")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "no temporary file is left: {left:?}");
}

#[test]
fn a_key_is_not_replaced_without_its_certificate() {
    let temp = tempfile::tempdir().unwrap();
    let (ca, dir) = (ca(), temp.path());
    let issue = || ca.issue_role(Role::Reader, "ann", Lifetime::days(1)).unwrap();
    let (first, second) = (issue(), issue());
    let read = |ending: &str| fs::read_to_string(dir.join(format!("ann.{ending}"))).unwrap();
    first.write(dir, "ann", false).unwrap();
    // A certificate that cannot come into its place.
    fs::remove_file(dir.join("ann.crt")).unwrap();
    fs::create_dir(dir.join("ann.crt")).unwrap();
    second.write(dir, "ann", true).unwrap_err();
    assert_eq!(read("key"), first.key_pem, "the key that was there is there again");
    assert_eq!(mode(&dir.join("ann.key")), 0o600);
    fs::remove_file(dir.join("ann.key")).unwrap();
    second.write(dir, "ann", true).unwrap_err();
    assert!(!dir.join("ann.key").exists());
    fs::remove_dir(dir.join("ann.crt")).unwrap();
    second.write(dir, "ann", true).unwrap();
    assert_eq!((read("crt"), read("key")), (second.cert_pem, second.key_pem));
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn a_folder_that_others_may_enter_is_refused_for_a_ca() {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = PkiDir::init(temp.path(), "pvelet.example", Lifetime::days(1), false).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("0755") && error.contains("chmod 700"), "{error}");
    assert!(!temp.path().join(CA_KEY).exists());
}

#[test]
fn a_ca_reads_back_and_goes_on_issuing() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    PkiDir::init(&dir, "pvelet.example", Lifetime::days(3650), false).unwrap();
    let ca = Ca::load(&dir).unwrap();
    assert_eq!(ca.trust_domain(), "pvelet.example");
    let issued = ca.issue_role(Role::Admin, "root", Lifetime::days(90)).unwrap();
    let of_ca = CertInfo::from_pem(ca.cert_pem()).unwrap();
    assert_eq!(CertInfo::from_pem(&issued.cert_pem).unwrap().issuer_key_id, of_ca.key_id);

    let other = super::tests::ca();
    assert!(Ca::from_pem(ca.cert_pem(), &other.key_pem()).map(|_| ()).unwrap_err().to_string().contains("does not belong"));
    assert!(Ca::from_pem(&issued.cert_pem, &issued.key_pem).is_err(), "a client's certificate is no CA");
}

#[test]
fn revocation_by_file_serial_or_identity_grows_the_crl() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    let (pki, ca) = PkiDir::init(&dir, "pvelet.example", Lifetime::days(3650), false).unwrap();
    assert_eq!(pki.crl().unwrap().number(), 1);
    let issue = |name: &str| {
        let issued = ca.issue_role(Role::Operator, name, Lifetime::days(90)).unwrap();
        (pki.deliver(&issued, None, false).unwrap(), issued)
    };
    let ((file, a), (_, b), (_, c)) = (issue("ann"), issue("bob"), issue("cat"));
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);

    assert_eq!(pki.revoke(&file.with_extension("crt").display().to_string(), now).unwrap(), std::slice::from_ref(&a.serial));
    assert_eq!(pki.revoke(&b.serial.to_uppercase(), now).unwrap(), std::slice::from_ref(&b.serial));
    assert_eq!(pki.revoke("spiffe://pvelet.example/role/operator/cat", now).unwrap(), std::slice::from_ref(&c.serial));
    assert!(pki.revoke(&b.serial, now).unwrap().is_empty(), "twice is once");

    let crl = pki.crl().unwrap();
    assert_eq!(crl.number(), 4);
    assert_eq!(crl.list(), [a.serial, b.serial, c.serial].map(|serial| Revoked { serial, time: now }));

    assert!(matches!(pki.revoke("00ff", now), Err(PkiError::Unknown { .. })));
    assert!(matches!(pki.revoke("no-serial", now), Err(PkiError::Invalid { .. })));
    let strange = super::tests::ca().issue_role(Role::Reader, "eve", Lifetime::days(1)).unwrap();
    strange.write(temp.path(), "eve", false).unwrap();
    let error = pki.revoke(&temp.path().join("eve.crt").display().to_string(), now).unwrap_err().to_string();
    assert!(error.contains("did not issue"), "{error}");
}

#[test]
fn of_many_writers_one_wins_and_the_others_are_told() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("key");
    let won: Vec<usize> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|i| {
                let path = &path;
                scope.spawn(move || write_private(path, format!("{i}").as_bytes(), false).map(|()| i))
            })
            .collect();
        writers.into_iter().filter_map(|w| w.join().unwrap().ok()).collect()
    });
    assert_eq!(won.len(), 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), won[0].to_string());
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_replaced_ca_forgets_what_the_old_one_issued() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("pki");
    let (pki, old) = PkiDir::init(&dir, "pvelet.example", Lifetime::days(10), false).unwrap();
    let issued = old.issue_role(Role::Reader, "ann", Lifetime::days(1)).unwrap();
    pki.deliver(&issued, None, false).unwrap();
    pki.revoke(&issued.serial, SystemTime::now()).unwrap();
    let (pki, _) = PkiDir::init(&dir, "pvelet.example", Lifetime::days(10), true).unwrap();
    assert!(pki.issued().unwrap().is_empty());
    assert_eq!((pki.crl().unwrap().number(), pki.crl().unwrap().list().len()), (1, 0));
    assert!(matches!(pki.revoke(&issued.serial, SystemTime::now()), Err(PkiError::Unknown { .. })));
}
