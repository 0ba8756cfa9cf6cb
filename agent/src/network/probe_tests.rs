#![allow(clippy::unwrap_used)]
use proptest::prelude::*;
use v1::probe_network_request::Probe as P;

use super::*;

const TOKEN: &str = "0123456789-abcdef";

fn kernel() -> Kernel {
    let link = |name: &str, kind: &str| KernelLink {
        name: name.into(),
        kind: kind.into(),
        mac: "02:00:00:00:00:01".into(),
        up: true,
        mtu: 1500,
        ..Default::default()
    };
    let links = vec![
        KernelLink { kind: "loopback".into(), mtu: 65_536, ..link("lo", "") },
        KernelLink { master: Some("bond0".into()), ..link("eno1", "ether") },
        KernelLink { mtu: 9000, altnames: vec!["enp1s0f1np1-uplink".into()], ..link("eno2", "ether") },
        link("bond0", "bond"),
        KernelLink { up: false, ..link("eno3", "ether") },
        KernelLink { vlan_aware: true, ..link("vmbr0", "bridge") },
        link("vmbr1", "bridge"),
        KernelLink { master: Some("vmbr1".into()), ..link("bond0.7", "vlan") },
        KernelLink { master: Some("vrf1".into()), ..link("eno4", "ether") },
        link("vrf1", "vrf"),
        KernelLink { mac: String::new(), ..link("wg0", "wireguard") },
    ];
    Kernel { links, routes: Vec::new() }
}

fn judge(request: &v1::ProbeNetworkRequest) -> Result<Probe, Error> {
    let (timeout, what) = parse(request)?;
    on(&kernel(), request, timeout, what)
}

fn request(interface: &str, vlan: u32, probe: P) -> v1::ProbeNetworkRequest {
    v1::ProbeNetworkRequest { interface: interface.into(), vlan, probe: Some(probe), timeout: None }
}

fn answer() -> P {
    P::Answer(v1::ProbeAnswer { token: TOKEN.into() })
}

fn send(mtus: &[u32]) -> P {
    P::Send(v1::ProbeSend { token: TOKEN.into(), mtus: mtus.to_vec() })
}

fn ask(addresses: &[&str]) -> P {
    P::Addresses(v1::ProbeAddresses { addresses: addresses.iter().map(|a| (*a).to_owned()).collect() })
}

/// Field and reason of each violation.
fn violations(error: Error) -> Vec<(String, &'static str)> {
    match error {
        Error::Invalid(v) => v.into_iter().map(|v| (v.field, v.reason)).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn each_bad_field_is_named() {
    let many = vec!["192.0.2.1"; 257];
    let with = |timeout| v1::ProbeNetworkRequest { timeout: Some(timeout), ..request("eno2", 0, answer()) };
    let token = |token: &str| request("eno2", 0, P::Answer(v1::ProbeAnswer { token: token.into() }));
    let duration = |seconds, nanos| prost_types::Duration { seconds, nanos };
    let table = [
        (request("", 0, answer()), "interface", reason::INVALID_FIELD),
        (request(&"x".repeat(128), 0, answer()), "interface", reason::INVALID_FIELD),
        (request("lo", 0, answer()), "interface", reason::INVALID_FIELD),
        (request("wg0", 0, answer()), "interface", reason::INVALID_FIELD),
        (request("eno1", 0, answer()), "interface", reason::INVALID_FIELD),
        (request("bond0.7", 0, answer()), "interface", reason::INVALID_FIELD),
        (request("vmbr0", 4095, answer()), "vlan", reason::INVALID_VLAN),
        (request("vmbr0", u32::MAX, answer()), "vlan", reason::INVALID_VLAN),
        (request("vmbr1", 7, answer()), "vlan", reason::INVALID_VLAN),
        (request("eno2", 7, answer()), "vlan", reason::INVALID_VLAN),
        (with(duration(0, 99_999_999)), "timeout", reason::INVALID_FIELD),
        (with(duration(60, 1)), "timeout", reason::INVALID_FIELD),
        (with(duration(-1, 0)), "timeout", reason::INVALID_FIELD),
        (with(duration(i64::MAX, i32::MAX)), "timeout", reason::INVALID_FIELD),
        (token(""), "answer.token", reason::INVALID_FIELD),
        (token("0123456789abcde"), "answer.token", reason::INVALID_FIELD),
        (token(&"a".repeat(65)), "answer.token", reason::INVALID_FIELD),
        (token("0123456789abcdef!"), "answer.token", reason::INVALID_FIELD),
        (token("0123456789abcdé"), "answer.token", reason::INVALID_FIELD),
        (request("eno2", 0, P::Send(v1::ProbeSend::default())), "send.token", reason::INVALID_FIELD),
        (request("eno2", 0, send(&[1500, 575])), "send.mtus[1]", reason::INVALID_FIELD),
        (request("eno2", 0, send(&[65_536])), "send.mtus[0]", reason::INVALID_FIELD),
        (request("eno2", 0, send(&[1500; 17])), "send.mtus", reason::INVALID_FIELD),
        (request("eno2", 0, ask(&[])), "addresses.addresses", reason::INVALID_FIELD),
        (request("eno2", 0, ask(&many)), "addresses.addresses", reason::INVALID_FIELD),
        (v1::ProbeNetworkRequest { probe: None, ..request("eno2", 0, answer()) }, "probe", reason::INVALID_FIELD),
    ];
    for (request, field, why) in table {
        assert_eq!(violations(judge(&request).unwrap_err()), [(field.to_owned(), why)], "{request:?}");
    }
}

#[test]
fn an_address_that_no_single_host_can_have_is_refused() {
    for bad in [
        "",
        "192.0.2",
        "192.0.2.1/24",
        "fe80::1%eno1",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",
        "::",
        "127.0.0.1",
        "::1",
        "255.255.255.255",
        "::ffff:192.0.2.1",
    ] {
        let error = judge(&request("eno2", 0, ask(&["192.0.2.1", bad]))).unwrap_err();
        assert_eq!(violations(error), [("addresses.addresses[1]".to_owned(), reason::INVALID_ADDRESS)], "{bad}");
    }
}

#[test]
fn all_violations_are_told_at_once() {
    let bad = v1::ProbeNetworkRequest {
        timeout: Some(prost_types::Duration { seconds: 0, nanos: 0 }),
        ..request("", 5000, P::Send(v1::ProbeSend { token: "x".into(), mtus: vec![1] }))
    };
    let fields: Vec<_> = violations(judge(&bad).unwrap_err()).into_iter().map(|(f, _)| f).collect();
    assert_eq!(fields, ["interface", "vlan", "timeout", "send.mtus[0]", "send.token"]);
}

#[test]
fn the_link_must_exist_and_be_up() {
    let error = judge(&request("eno9", 0, answer())).unwrap_err();
    assert!(matches!(&error, Error::InterfaceNotFound { interface } if interface == "eno9"), "{error}");
    let error = judge(&request("eno3", 0, answer())).unwrap_err();
    assert!(matches!(&error, Error::NetworkPreflight { checks } if checks[0].0 == "net.probe-link-down"), "{error}");
}

#[test]
fn a_good_request_is_taken_as_it_is_meant() {
    let probe = judge(&request("enp1s0f1np1-uplink", 0, send(&[]))).unwrap();
    assert_eq!(probe.port, ProbePort { link: "eno2".into(), vlan: None });
    assert_eq!((probe.mtu, probe.timeout), (9000, Duration::from_secs(3)));
    assert_eq!(probe.what, What::Send { token: TOKEN.into(), mtus: vec![1280, 1500, 9000] });

    let probe = judge(&request("vmbr0", 100, send(&[9000, 1500, 9000]))).unwrap();
    assert_eq!(probe.port, ProbePort { link: "vmbr0".into(), vlan: Some(100) });
    assert_eq!(probe.what, What::Send { token: TOKEN.into(), mtus: vec![1500, 9000] });

    // The bridge's own view, and a link whose master leaves it its frames.
    assert_eq!(judge(&request("vmbr0", 0, answer())).unwrap().port.vlan, None);
    assert_eq!(judge(&request("eno4", 0, answer())).unwrap().what, What::Answer { token: TOKEN.into() });

    let probe = judge(&request("vmbr1", 0, ask(&["2001:db8::1", "192.0.2.1", "2001:DB8:0::1"]))).unwrap();
    assert_eq!(probe.what, What::Addresses(vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]));

    let longest = v1::ProbeNetworkRequest {
        timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..request("eno2", 0, ask(&vec!["192.0.2.1"; 256]))
    };
    assert_eq!(judge(&longest).unwrap().timeout, Duration::from_secs(60));
}

proptest! {
    #[test]
    fn no_request_panics_and_what_is_taken_is_within_bounds(
        interface in prop_oneof![Just("vmbr0".to_owned()), Just("eno2".to_owned()), ".{0,20}"],
        vlan in prop_oneof![0u32..5000, any::<u32>()],
        seconds in prop_oneof![0i64..70, any::<i64>()],
        nanos in any::<i32>(),
        token in "[A-Za-z0-9-]{0,70}",
        mtus in proptest::collection::vec(prop_oneof![500u32..70_000, any::<u32>()], 0..20),
    ) {
        let request = v1::ProbeNetworkRequest {
            timeout: Some(prost_types::Duration { seconds, nanos }),
            ..request(&interface, vlan, P::Send(v1::ProbeSend { token, mtus }))
        };
        if let Ok(probe) = judge(&request) {
            prop_assert!((Duration::from_millis(100)..=Duration::from_secs(60)).contains(&probe.timeout));
            prop_assert!(probe.port.vlan.is_none_or(|v| (1..=4094).contains(&v)));
            let What::Send { token, mtus } = probe.what else { panic!() };
            prop_assert!((16..=64).contains(&token.len()));
            prop_assert!((1..=16).contains(&mtus.len()) && mtus.iter().all(|m| (576..=65_535).contains(m)));
        }
    }
}
