#![allow(clippy::unwrap_used)]
use std::net::Ipv4Addr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proptest::prelude::*;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::{
    super::testing::{CONFIG, Host as Fixture, UNIT},
    *,
};
use crate::{error::Trouble, health::State, host::units_fake::FakeUnits};

const DAY: u64 = 86_400;
/// When the tests are, seconds.
const NOW: u64 = 1_800_000_000;
const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
const CURRENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
    }
}

/// A certificate for a subject, valid for days before and after now.
struct Made {
    name: &'static str,
    group: &'static str,
    from: i64,
    to: i64,
    dns: Vec<&'static str>,
    addresses: Vec<&'static str>,
}

/// What a kubelet gets from its cluster.
const NODE: Made = Made { name: "system:node:pve1", group: "system:nodes", from: -100, to: 265, dns: Vec::new(), addresses: Vec::new() };

impl Made {
    /// As a file of the kubelet: certificate and key.
    fn pem(&self) -> String {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(self.dns.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.extend(self.addresses.iter().map(|a| SanType::IpAddress(a.parse().unwrap())));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.name);
        if !self.group.is_empty() {
            params.distinguished_name.push(DnType::OrganizationName, self.group);
        }
        let at = |days: i64| {
            let seconds = i64::try_from(NOW).unwrap() + days * i64::try_from(DAY).unwrap();
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap())
        };
        (params.not_before, params.not_after) = (at(self.from).into(), at(self.to).into());
        format!("{}{}", params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }
}

fn kubeconfig(user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: k\n  cluster: {{server: https://10.0.0.1:6443}}\ncontexts:\n- name: c\n  context: \
         {{cluster: k, user: u}}\ncurrent-context: c\nusers:\n- name: u\n  user: {user}\n"
    )
}

fn by_file(path: &str) -> String {
    kubeconfig(&format!("{{client-certificate: {path}, client-key: {path}}}"))
}

fn inline(made: &Made) -> String {
    kubeconfig(&format!("{{client-certificate-data: {}, client-key-data: aGVsbG8=}}", STANDARD.encode(made.pem())))
}

/// A kubelet of kubeadm that rotates its certificates.
fn worker() -> Fixture {
    let host = Fixture::new();
    host.kubelet.write(&host.settings.kubelet_config, format!("{CONFIG}rotateCertificates: true\n"));
    host.kubelet.write(KUBECONFIG, by_file(CURRENT));
    host.kubelet.write(CURRENT, NODE.pem());
    host
}

async fn look(host: &Fixture) -> [Finding; 2] {
    let source = CertificateSource { reader: Arc::new(host.reader()), clock: Arc::new(Fixed) };
    source.look().await.try_into().unwrap()
}

#[tokio::test]
async fn the_client_certificate_is_told_by_its_life_and_its_name() {
    let (far, near, over) = (265, 10, -1);
    for (what, made, state, seen) in [
        ("well", NODE, State::Ok, "system:node:pve1, until 2027-10-07 08:00 UTC, renewed by the kubelet"),
        ("near its end", Made { to: near, ..NODE }, State::Degraded, "expires at"),
        ("expired", Made { to: over, ..NODE }, State::Failed, "has expired at 2027-01-14 08:00 UTC"),
        ("from the future", Made { from: 1, ..NODE }, State::Failed, "is valid only from"),
        // 24 hours in all: rotated with some of them left.
        ("short-lived", Made { from: 0, to: 1, ..NODE }, State::Ok, "until"),
        ("another node's", Made { name: "system:node:pve2", to: far, ..NODE }, State::Failed, "is for node 'pve2', and this one is 'pve1'"),
        ("another group's", Made { group: "admins", ..NODE }, State::Failed, "not in system:nodes"),
        ("a user of its own", Made { name: "kubelet", group: "workers", ..NODE }, State::Degraded, "not for system:node:<node>"),
        ("an old cluster's", Made { name: "kubelet", group: "system:masters", ..NODE }, State::Ok, "kubelet, until"),
    ] {
        let host = worker();
        host.kubelet.write(CURRENT, made.pem());
        let [client, _] = look(&host).await;
        assert!(client.state == state && client.seen.contains(seen), "{what}: {client:?}");
        assert_eq!(client.remedy.is_empty(), state == State::Ok, "{what}");
    }
}

#[tokio::test]
async fn the_nodes_name_is_that_which_the_kubelet_has() {
    let host = worker();
    host.kubelet.change(|w| w.host_name = "PVE1".into());
    assert_eq!(look(&host).await[0].state, State::Ok, "node names are lower case");
    let kubeconfig = format!("--kubeconfig={KUBECONFIG}");
    let config = "--config=/var/lib/kubelet/config.yaml";
    host.flags(&[config, &kubeconfig, "--hostname-override=worker-7"]);
    assert!(look(&host).await[0].seen.contains("this one is 'worker-7'"));
    // Of one that was never seen running the name is not known.
    host.units.set(UNIT, FakeUnits::dead());
    host.kubelet.change(|w| w.host_name = "other".into());
    assert_eq!(look(&host).await[0].state, State::Ok);
}

#[tokio::test]
async fn a_kubeconfig_that_nobody_renews_is_told_before_it_keeps_the_kubelet_from_starting() {
    for (what, kept, current, rotate, state, seen) in [
        ("fresh", NODE, Some(NODE), true, State::Ok, "kubelet-client-current.pem: system:node:pve1"),
        ("old, beside a rotated one", Made { to: 5, ..NODE }, Some(NODE), true, State::Degraded, "a certificate that nobody renews"),
        (
            "expired, beside a rotated one",
            Made { to: -5, ..NODE },
            Some(NODE),
            true,
            State::Degraded,
            "after that the kubelet does not start",
        ),
        ("not rotated yet", NODE, None, true, State::Ok, "client-certificate-data of /etc/kubernetes/kubelet.conf"),
        ("expired, and not rotated", Made { to: -5, ..NODE }, None, true, State::Failed, "client-certificate-data of"),
        ("without rotation", NODE, Some(Made { to: -5, ..NODE }), false, State::Ok, "not renewed by the kubelet"),
        ("without rotation, expired", Made { to: -5, ..NODE }, Some(NODE), false, State::Failed, "has expired"),
    ] {
        let host = worker();
        host.kubelet.write(&host.settings.kubelet_config, format!("{CONFIG}rotateCertificates: {rotate}\n"));
        host.kubelet.write(KUBECONFIG, inline(&kept));
        host.kubelet.change(|w| w.files.remove(Path::new(CURRENT)));
        if let Some(current) = current {
            host.kubelet.write(CURRENT, current.pem());
        }
        let [client, _] = look(&host).await;
        assert!(client.state == state && client.seen.contains(seen), "{what}: {client:?}");
    }
}

#[tokio::test]
async fn files_that_are_missing_or_broken_are_told_with_their_path() {
    let pem = NODE.pem();
    let cut = pem.replace("-----END CERTIFICATE-----", "");
    let garbage = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    for (text, said) in
        [("", "holds no certificate"), ("garbage", "holds no certificate"), (&cut, "PEM"), (garbage, "holds a broken certificate")]
    {
        let host = worker();
        host.kubelet.write(CURRENT, text);
        let [client, _] = look(&host).await;
        assert_eq!(client.state, State::Unknown, "{client:?}");
        assert!(client.seen.starts_with(CURRENT) && client.seen.contains(said), "{client:?}");
        assert_eq!(client.subjects, [CURRENT]);
    }
    let host = worker();
    let denied = Error::Look { trouble: Trouble::Denied, message: format!("{CURRENT} cannot be read: denied") };
    host.kubelet.change(|w| w.files.insert(CURRENT.into(), Err(denied)));
    let [client, serving] = look(&host).await;
    assert!(client.state == State::Unknown && client.seen.starts_with(CURRENT), "{client:?}");
    // The other one is told all the same.
    assert_eq!(serving.state, State::NotApplicable);

    host.kubelet.change(|w| w.files.remove(Path::new(CURRENT)));
    assert_eq!(look(&host).await[0].seen, format!("the kubeconfig names {CURRENT}, which is not there"));
    host.kubelet.write(KUBECONFIG, by_file("gone.pem"));
    host.kubelet.write(CURRENT, NODE.pem());
    let [client, _] = look(&host).await;
    assert!(client.state == State::Degraded && client.subjects == ["/etc/kubernetes/gone.pem"], "{client:?}");
    host.kubelet.change(|w| w.files.remove(Path::new(KUBECONFIG)));
    assert_eq!(look(&host).await[0].state, State::Failed);
    let (config, kubeconfig) = ("--config=/var/lib/kubelet/config.yaml", format!("--kubeconfig={KUBECONFIG}"));
    host.flags(&[config, &kubeconfig, "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf"]);
    assert_eq!(look(&host).await[0].state, State::Degraded);
}

#[tokio::test]
async fn other_credentials_are_not_looked_at_and_never_quoted() {
    const TOKEN: &str = "s3cr3t-t0k3n";
    for (text, state, seen) in [
        (kubeconfig(&format!("{{token: {TOKEN}}}")), State::NotApplicable, "authenticates with a token"),
        (kubeconfig("{exec: {command: aws}}"), State::NotApplicable, "authenticates with a program"),
        (kubeconfig("{}"), State::Failed, "its user 'u' has no credentials"),
        (kubeconfig(&format!("{{client-certificate-data: '{TOKEN}'}}")), State::Failed, "no base64"),
        (format!("users: [{{user: {{token: {TOKEN}"), State::Failed, "no kubeconfig"),
        (format!("users: {TOKEN}"), State::Failed, "line 1, column 8: no kubeconfig"),
        ("current-context: x".into(), State::Failed, "its current-context 'x' is not among"),
        (String::new(), State::Failed, "it has no current-context"),
    ] {
        let host = worker();
        host.kubelet.write(KUBECONFIG, text.clone());
        let [client, _] = look(&host).await;
        assert!(client.state == state && client.seen.contains(seen), "{text}\n{client:?}");
        assert!(!format!("{client:?}").contains(TOKEN), "{client:?}");
    }
    let alone = worker();
    alone.flags(&["--config=/var/lib/kubelet/config.yaml"]);
    assert_eq!(look(&alone).await[0].state, State::NotApplicable);
}

#[tokio::test]
async fn the_serving_certificate_is_told_by_its_life_and_its_names() {
    let made = |dns: &[&'static str], addresses: &[&'static str]| Made { dns: dns.to_vec(), addresses: addresses.to_vec(), ..NODE };
    for (what, made, key, file, state, seen) in [
        ("rotated", made(&["pve1"], &["192.0.2.11"]), "serverTLSBootstrap: true", "kubelet-server-current.pem", State::Ok, "until"),
        ("told", made(&["pve1.example.org"], &[]), "tlsCertFile: /var/lib/kubelet/pki/s.pem", "s.pem", State::Ok, "until"),
        (
            "a whole domain's",
            made(&["*.example.org"], &["192.0.2.11"]),
            "tlsCertFile: /var/lib/kubelet/pki/s.pem",
            "s.pem",
            State::Ok,
            "until",
        ),
        (
            "an old address",
            made(&["pve1"], &["192.0.2.99"]),
            "serverTLSBootstrap: true",
            "kubelet-server-current.pem",
            State::Degraded,
            "has none of this host's addresses; it is for pve1, 192.0.2.99",
        ),
        (
            "another name",
            made(&["pve2"], &[]),
            "serverTLSBootstrap: true",
            "kubelet-server-current.pem",
            State::Degraded,
            "has not this host's name 'pve1'",
        ),
        (
            "expired",
            Made { to: -1, ..made(&["pve1"], &[]) },
            "serverTLSBootstrap: true",
            "kubelet-server-current.pem",
            State::Failed,
            "has expired",
        ),
        (
            "near its end",
            Made { to: 3, ..made(&["pve1"], &[]) },
            "tlsCertFile: /var/lib/kubelet/pki/s.pem",
            "s.pem",
            State::Degraded,
            "expires at",
        ),
        ("its own, expired", Made { to: -1, ..made(&["pve1"], &[]) }, "", "kubelet.crt", State::Ok, "nobody checks it"),
        ("not approved", NODE, "serverTLSBootstrap: true", "none", State::Degraded, "nobody has approved"),
        ("not there", NODE, "tlsCertFile: /var/lib/kubelet/pki/s.pem", "none", State::Failed, "does not start"),
        ("not made yet", NODE, "", "none", State::NotApplicable, "has not made its own"),
    ] {
        let host = worker();
        host.kubelet.write(&host.settings.kubelet_config, format!("{CONFIG}rotateCertificates: true\n{key}\n"));
        host.kubelet.write(format!("/var/lib/kubelet/pki/{file}"), made.pem());
        let [client, serving] = look(&host).await;
        assert!(serving.state == state && serving.seen.contains(seen), "{what}: {serving:?}");
        assert_eq!(client.state, State::Ok, "{what}: {client:?}");
    }
}

#[tokio::test]
async fn an_address_that_the_kubelet_was_given_counts_alone() {
    let host = worker();
    host.kubelet.write(&host.settings.kubelet_config, format!("{CONFIG}rotateCertificates: true\nserverTLSBootstrap: true\n"));
    host.kubelet.write("/var/lib/kubelet/pki/kubelet-server-current.pem", Made { addresses: vec!["192.0.2.11"], ..NODE }.pem());
    let (config, kubeconfig) = ("--config=/var/lib/kubelet/config.yaml", format!("--kubeconfig={KUBECONFIG}"));
    host.flags(&[config, &kubeconfig, "--node-ip=10.1.1.1"]);
    assert_eq!(look(&host).await[1].state, State::Degraded);
    host.flags(&[config, &kubeconfig, "--node-ip=::"]);
    assert_eq!(look(&host).await[1].state, State::Ok);
    host.kubelet.change(|w| w.addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    assert_eq!(look(&host).await[1].state, State::Degraded);
}

#[tokio::test]
async fn while_the_configuration_is_not_known_neither_are_the_certificates() {
    let host = worker();
    host.kubelet.write(&host.settings.kubelet_config, "kind: [");
    assert!(look(&host).await.iter().all(|f| f.state == State::Unknown));
}

proptest! {
    #[test]
    fn no_bytes_end_the_reading_badly(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..900, byte: u8) {
        let _ = kubeconfig::credentials(&bytes);
        let _ = Leaf::from_pem(&bytes);
        let mut pem = NODE.pem().into_bytes();
        if let Some(slot) = pem.get_mut(at) {
            *slot = byte;
        }
        let _ = Leaf::from_pem(&pem);
    }
}
