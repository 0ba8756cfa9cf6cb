//! Each check with a host that is well, one that is not, and one that cannot be told.

use proptest::prelude::*;

use super::{
    Severity::{Error as E, Info as I, Warning as W},
    State::{Failed, NotApplicable, Ok as Well, Unknown},
    fixtures::*,
    *,
};
use crate::host::net::KernelLink;

/// A change of a host, and how a check then comes out: state, severity, words of what was seen, interfaces.
pub(super) type Case = (&'static str, fn(&mut Host), State, Severity, &'static str, &'static [&'static str]);

pub(super) fn table(id: &str, cases: &[Case]) {
    for (name, change, state, severity, seen, interfaces) in cases {
        let mut host = Host::new();
        change(&mut host);
        let check = host.check(id, None);
        assert_eq!((check.state, check.severity), (*state, *severity), "{id}, {name}: {}", check.seen);
        assert!(check.seen.contains(seen), "{id}, {name}: {}", check.seen);
        assert_eq!(check.interfaces, *interfaces, "{id}, {name}");
        assert_eq!(check.remedy.is_empty(), matches!(state, State::Ok | State::NotApplicable), "{id}, {name}: {}", check.remedy);
    }
}

#[test]
fn a_sound_host_has_nothing_to_complain_about() {
    let mut host = Host::new();
    host.files.corosync = Some(text("/etc/corosync/corosync.conf", COROSYNC));
    for check in host.checks(None) {
        assert!(matches!(check.state, Well | NotApplicable), "{}: {}", check.id, check.seen);
    }
}

#[test]
fn ifupdown2_must_be_there() {
    table(
        "net.ifupdown2",
        &[
            ("there", |_| {}, Well, E, "installed", &[]),
            ("not there", |h| h.files.ifupdown2 = Some(false), Failed, E, "not installed", &[]),
            ("not told", |h| h.files.ifupdown2 = None, Unknown, E, "not told", &[]),
        ],
    );
}

#[test]
fn the_source_line_must_be_there() {
    table(
        "net.source-line",
        &[
            ("there", |_| {}, Well, E, "/etc/network/interfaces takes interfaces.d/pvelet in", &[]),
            ("not there", |h| h.files.own_is_sourced = false, Failed, E, "no `source` line", &[]),
            ("no file at all", |h| h.files.declared.clear(), Failed, E, "there is no /etc/network/interfaces", &[]),
        ],
    );
}

#[test]
fn an_own_file_that_was_edited_is_told() {
    table(
        "net.own-file",
        &[
            ("none", |_| {}, Well, E, "none yet", &[]),
            ("ours", |h| h.files.own = own(&[bridge("vmbr9", &[], false)]).map(|t| text(OWN_PATH, &t)), Well, E, "1 networks", &[]),
            (
                "edited",
                |h| h.files.own = own(&[bridge("vmbr9", &[], false)]).map(|t| text(OWN_PATH, &t.replace("vmbr9", "vmbr8"))),
                Failed,
                E,
                OWN_PATH,
                &[],
            ),
        ],
    );
}

#[test]
fn staged_edits_are_told() {
    table(
        "net.staged-interfaces",
        &[
            ("none", |_| {}, Well, E, "nothing", &[]),
            (
                "one",
                |h| h.files.staged = Some(text("/etc/network/interfaces.new", &INTERFACES.replace("gateway", "#gateway"))),
                Failed,
                E,
                "interfaces.new is staged: 1 lines more and 1 fewer than /etc/network/interfaces",
                &[],
            ),
            (
                "without a live file",
                |h| {
                    h.files.declared.clear();
                    h.files.staged = Some(text("/etc/network/interfaces.new", ""));
                },
                Failed,
                E,
                "is staged",
                &[],
            ),
        ],
    );
}

#[test]
fn unreadable_lines_are_told() {
    table(
        "net.syntax",
        &[
            ("none", |_| {}, Well, W, "stanzas in 1 files", &[]),
            ("some", |h| h.edit("auto lo", "nonsense here\nauto lo"), Failed, W, "/etc/network/interfaces:1", &[]),
        ],
    );
}

#[test]
fn interfaces_of_several_files_are_told() {
    table(
        "net.duplicate-stanza",
        &[
            ("none", |_| {}, Well, W, "in one file", &[]),
            (
                "another's",
                |h| {
                    h.files
                        .declared
                        .push(text("/etc/network/interfaces.d/x", "auto lo\niface lo inet loopback\niface vmbr0 inet manual\n"));
                },
                Failed,
                W,
                "vmbr0 in /etc/network/interfaces:",
                &["vmbr0"],
            ),
            (
                "two families in one file",
                |h| h.files.declared[0].text.push_str("iface vmbr0 inet6 static\n\taddress 2001:db8::1/64\n"),
                Well,
                W,
                "",
                &[],
            ),
            ("SDN's", |h| h.files.declared.push(text("/etc/network/interfaces.d/sdn", "iface vmbr0\n")), Failed, I, "vmbr0", &["vmbr0"]),
            (
                "a file taken in twice",
                |h| {
                    let file = text("/etc/network/interfaces.d/sdn", "auto vnet1\niface vnet1\n");
                    h.files.declared.extend([file.clone(), file]);
                    h.kernel.links.push(link("vnet1", "bridge"));
                },
                Failed,
                W,
                "vnet1",
                &["vnet1"],
            ),
            (
                "the agent's",
                |h| h.files.own = own(&[bridge("vmbr70", &[], false)]).map(|t| text(OWN_PATH, &t)),
                Failed,
                E,
                OWN_PATH,
                &["vmbr70"],
            ),
        ],
    );
}

#[test]
fn stanzas_without_a_link_are_told() {
    table(
        "net.stale-stanza",
        &[
            ("none", |_| {}, Well, W, "declared interfaces exist", &[]),
            ("gone", |h| h.kernel.links.retain(|l| l.name != "bond0.70"), Failed, W, "bond0.70 (/etc/network/interfaces:", &["bond0.70"]),
            (
                "a NIC with another name",
                |h| h.link("eno2").name = "enp2s0".into(),
                Failed,
                W,
                "eno2, which bond0 (/etc/network/interfaces:8) stands on, does not exist",
                &["eno2"],
            ),
            (
                "an altname",
                |h| {
                    h.link("eno2").name = "enp2s0".into();
                    h.link("enp2s0").altnames = vec!["eno2".into()];
                },
                Well,
                W,
                "",
                &[],
            ),
            ("one that does not come up by itself", |h| h.edit("iface eno1", "iface eno9 inet manual\n\niface eno1"), Well, W, "", &[]),
            ("no ports", |h| h.edit("bridge-ports bond0.70", "bridge-ports none"), Well, W, "", &[]),
            ("a pattern", |h| h.edit("bridge-ports bond0.70", "bridge-ports regex bond.*70"), Well, W, "", &[]),
        ],
    );
}

#[test]
fn links_without_a_stanza_are_told() {
    table(
        "net.undeclared-link",
        &[
            ("none", |_| {}, Well, W, "is declared", &[]),
            ("a VLAN", |h| h.kernel.links.push(link("eno3.5", "vlan")), Failed, W, "vlan eno3.5", &["eno3.5"]),
            ("an empty bridge", |h| h.kernel.links.push(link("docker0", "bridge")), Failed, I, "bridge docker0", &["docker0"]),
            (
                "a bridge of guests",
                |h| {
                    h.kernel.links.push(link("vmbr8", "bridge"));
                    h.kernel.links.push(KernelLink { master: Some("vmbr8".into()), ..link("tap102i0", "tun") });
                },
                Failed,
                W,
                "bridge vmbr8",
                &["vmbr8"],
            ),
            ("mentioned as a port", |h| h.edit("auto bond0.70\niface bond0.70 inet manual\n", ""), Well, W, "", &[]),
            (
                "made by PVE",
                |h| {
                    h.kernel.links.push(link("fwbr100i0", "bridge"));
                    h.kernel.links.push(link("vmbr70v7", "bridge"));
                    h.kernel.links.push(KernelLink { master: Some("vmbr70v7".into()), ..link("bond0.70.7", "vlan") });
                },
                Well,
                W,
                "",
                &[],
            ),
        ],
    );
}

#[test]
fn commands_that_pile_up_are_told() {
    table(
        "net.post-up",
        &[
            ("harmless", |_| {}, Well, W, "1 commands", &[]),
            ("none", |h| h.edit("post-up", "#"), NotApplicable, W, "", &[]),
            (
                "one",
                |h| h.edit("post-up echo 1", "post-up iptables -t nat -A POSTROUTING -j MASQUERADE\n\tpost-down echo 1"),
                Failed,
                W,
                "`iptables -t nat -A POSTROUTING -j MASQUERADE`",
                &["vmbr70"],
            ),
        ],
    );
}

#[test]
fn trunks_that_are_down_are_told() {
    table(
        "net.trunk-down",
        &[
            ("up", |_| {}, Well, W, "3 NICs and bonds", &[]),
            ("no carrier", |h| h.link("eno2").carrier = false, Failed, W, "eno2 (in bond0) has no carrier", &["eno2"]),
            ("down", |h| h.link("bond0").up = false, Failed, W, "bond0 (in vmbr0 and under 1 VLANs) is not brought up", &["bond0"]),
            ("not a trunk", |h| h.link("eno3").carrier = false, Well, W, "", &[]),
            ("none", |h| h.kernel.links.truncate(1), NotApplicable, W, "", &[]),
        ],
    );
}

fn qinq(h: &mut Host) {
    h.kernel.links.push(KernelLink { parent: Some("bond0.70".into()), vlan: tag(5), mtu: 1496, ..link("qinq", "vlan") });
    h.files.declared[0].text.push_str("auto qinq\niface qinq\n");
}

fn offload(h: &mut Host, names: &[&str]) {
    for name in names {
        h.offloads.insert((*name).into(), vec!["rx-vlan-hw-parse".into(), "tx-vlan-hw-insert".into()]);
    }
}

#[test]
fn nics_that_may_lose_tags_are_told() {
    table(
        "net.tx-vlan-offload",
        &[
            ("off", |_| {}, Well, W, "off on eno1, eno2", &[]),
            ("under a VLAN-aware bridge", |h| offload(h, &["eno1"]), Failed, I, "VLAN-aware bridge vmbr0", &["eno1"]),
            (
                "under QinQ",
                |h| {
                    qinq(h);
                    offload(h, &["eno1", "eno2"]);
                },
                Failed,
                W,
                "eno1 has tx-vlan-hw-insert on; on it stands QinQ qinq",
                &["eno1", "eno2"],
            ),
            (
                "ConnectX-3",
                |h| {
                    offload(h, &["eno1"]);
                    h.link("eno1").driver = "mlx4_en".into();
                },
                Failed,
                W,
                "driver mlx4_en",
                &["eno1"],
            ),
            ("not told", |h| h.offloads.clear(), Unknown, W, "eno1, eno2", &[]),
            ("not needed", |h| h.link("vmbr0").vlan_aware = false, NotApplicable, W, "", &[]),
            ("a NIC that carries nothing", |h| offload(h, &["eno3"]), Well, W, "", &[]),
        ],
    );
}

#[test]
fn mtus_that_do_not_fit_are_told() {
    table(
        "net.mtu-chain",
        &[
            ("fit", |_| {}, Well, W, "5 pairs", &[]),
            ("a VLAN", |h| h.link("bond0.70").mtu = 9000, Failed, W, "bond0.70 has 9000, its parent bond0 only 1500", &["bond0.70"]),
            ("a port", |h| h.link("vmbr0").mtu = 9000, Failed, W, "vmbr0 has 9000, its port bond0 only 1500", &["vmbr0"]),
            (
                "a member",
                |h| ["eno1", "bond0", "vmbr0"].into_iter().for_each(|n| h.link(n).mtu = 9000),
                Failed,
                W,
                "bond0 has 9000, its member eno2 only 1500",
                &["bond0"],
            ),
            ("a guest's port does not count", |h| h.link("tap100i0").mtu = 1280, Well, W, "", &[]),
            ("not read", |h| h.kernel.links.iter_mut().for_each(|l| l.mtu = 0), NotApplicable, W, "", &[]),
        ],
    );
}

#[test]
fn tags_need_room() {
    table(
        "net.zone-mtu",
        &[
            ("no tags beyond the first", |_| {}, NotApplicable, W, "", &[]),
            ("room", qinq, Well, W, "1 interfaces", &[]),
            (
                "no room",
                |h| {
                    qinq(h);
                    h.link("qinq").mtu = 1500;
                },
                Failed,
                W,
                "qinq (QinQ) has 1500, bond0 has 1500: room is for 1496",
                &["qinq"],
            ),
            (
                "VXLAN",
                |h| h.kernel.links.push(KernelLink { parent: Some("eno3".into()), ..link("vx", "vxlan") }),
                Failed,
                W,
                "room is for 1450",
                &["vx"],
            ),
            (
                "a zone of SDN",
                |h| h.sdn(".running-config", r#"{"zones":{"ids":{"dmz":{"type":"qinq","bridge":"vmbr0","tag":7,"mtu":1500}}}}"#),
                Failed,
                W,
                "zone dmz (SDN QinQ) has 1500, vmbr0 has 1500: room is for 1496",
                &["zone dmz"],
            ),
            (
                "a zone of SDN with room",
                |h| h.sdn(".running-config", r#"{"zones":{"ids":{"dmz":{"type":"qinq","bridge":"vmbr0","tag":7,"mtu":"1496"}}}}"#),
                Well,
                W,
                "",
                &[],
            ),
        ],
    );
}

proptest! {
    #[test]
    fn no_text_makes_a_check_fail_to_answer(
        interfaces in ".{0,200}", own in proptest::option::of(".{0,200}"), corosync in ".{0,200}", sdn in ".{0,200}", tokens in words_of_interfaces()
    ) {
        let mut host = Host::new();
        host.files.declared[0].text = format!("{interfaces}\n{tokens}");
        host.files.own = own.map(|t| text(OWN_PATH, &t));
        host.files.corosync = Some(text("/etc/corosync/corosync.conf", &corosync));
        for name in ["zones.cfg", ".running-config"] {
            host.sdn(name, &sdn);
        }
        let before: Vec<&str> = Host::new().checks(None).into_iter().map(|c| c.id).collect();
        let ids: Vec<&str> = host.checks(Some(&change(&[], &[vlan("a", "bond0", 5)]))).into_iter().map(|c| c.id).collect();
        prop_assert_eq!(ids, before);
    }
}

/// Text of what an `interfaces` file is made of, in any order.
fn words_of_interfaces() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "auto",
        "iface",
        "vmbr0",
        "lo",
        "inet",
        "static",
        "\n",
        "\n\t",
        "bridge-ports",
        "regex",
        "none",
        "post-up",
        "ip route add",
        ";",
        "||",
        "a.5",
        "[",
        "1-",
        "]",
        "\\",
        "#",
        "source",
        "*",
        "mtu",
    ]);
    prop::collection::vec(word, 0..60).prop_map(|words| words.join(" "))
}

#[test]
fn each_id_appears_once_in_order_and_stands_in_the_docs() {
    let ids: Vec<&str> = Host::new().checks(None).into_iter().map(|c| c.id).collect();
    assert!(ids.windows(2).all(|w| w[0] < w[1]), "{ids:?}");
    assert_eq!(RULES.map(|r| r.id).as_slice(), ids);
    let docs = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/network.md"));
    let rows = docs.lines().filter_map(|l| l.strip_prefix("| `net.")?.split_once('`')).map(|(id, _)| format!("net.{id}"));
    assert_eq!(rows.collect::<Vec<_>>(), ids, "the table \"Preflight checks\" in docs/network.md lists other checks");
}
