use crate::kind::parse;

fn mistakes(spec: &str) -> Vec<String> {
    let text = format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {{name: storage}}\nspec: {spec}\n");
    parse(&text).1.into_iter().flat_map(|p| p.mistakes).map(|m| m.to_string()).collect()
}

fn with(interfaces: &str) -> Vec<String> {
    mistakes(&format!("{{hosts: {{names: [pve1]}}, interfaces: {interfaces}}}"))
}

#[test]
fn the_example_is_sound() {
    let (manifests, problems) = parse(include_str!("../../../../docs/examples/network.yaml"));
    assert_eq!(problems, vec![]);
    assert!(manifests.iter().all(|m| m.id.kind == "PveNetwork") && !manifests.is_empty());
}

#[test]
fn every_kind_of_interface_is_taken() {
    let told = with(
        "[{name: bond0.100, vlan: {parent: bond0, id: 100}, addresses: [192.0.2.1/24, '2001:db8::1/64'], mtu: 9000, comment: Storage}, \
         {name: outer, vlan: {parent: bond0, id: 200, protocol: 802.1ad}}, {name: inner, vlan: {parent: outer, id: 100}}, \
         {name: vmbr1, bridge: {ports: [eth1], vlanAware: true, vids: ['100', '200-299']}}, \
         {name: vmbr100, bridge: {ports: [bond0.100]}}, {name: vmbr2, bridge: {}}, {name: p2p, vlan: {parent: eth2, id: 1}, addresses: [198.51.100.0/31]}]",
    );
    assert_eq!(told, Vec::<String>::new());
    let told = mistakes(
        "{hosts: {matchLabels: {rack: a}, names: [pve1, pve2]}, confirmTimeout: 2m, probe: {mtu: 9000}, deletionPolicy: Retain, \
         interfaces: [{name: eth1.7, vlan: {parent: eth1, id: 7}, hostAddresses: {pve1: [192.0.2.1/24], pve2: [192.0.2.2/24], pve3: []}}]}",
    );
    assert_eq!(told, Vec::<String>::new());
}

#[test]
fn a_host_gets_its_own_addresses_and_a_forgotten_one_is_told() {
    let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: s}\nspec: {hosts: {matchLabels: {a: b}}, interfaces: \
                [{name: e.7, vlan: {parent: e, id: 7}, hostAddresses: {pve1: [192.0.2.1/24], pve2: []}}]}\n";
    let spec: crate::kind::NetworkSpec = serde_json::from_value(parse(text).0.remove(0).spec).unwrap_or_else(|e| panic!("{e}"));
    let on = |host: &str| spec.on_host("s", "t", host).map(|n| n.interfaces[0].addresses.clone());
    assert_eq!((on("pve1"), on("pve2")), (Ok(vec!["192.0.2.1/24".to_owned()]), Ok(vec![])));
    assert!(on("pve3").is_err_and(|e| e.contains("add hostAddresses.pve3")));
}

#[test]
fn what_others_stand_on_is_not_probed_and_of_a_trunk_one_vlan_of_each_entry() {
    let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: s}\nspec: {hosts: {names: [a]}, interfaces: \
                [{name: e.7, vlan: {parent: e, id: 7}}, {name: vmbr7, mtu: 9000, bridge: {ports: [e.7]}}, {name: alone, bridge: {}}, \
                {name: trunk, bridge: {ports: [f], vlanAware: true, vids: ['100', '200-299']}}, {name: all, bridge: {ports: [g], vlanAware: true}}]}\n";
    let spec: crate::kind::NetworkSpec = serde_json::from_value(parse(text).0.remove(0).spec).unwrap_or_else(|e| panic!("{e}"));
    let told: Vec<(String, u32, Option<u32>)> = spec.probe_targets().into_iter().map(|t| (t.interface, t.vlan, t.mtu)).collect();
    assert_eq!(told, [("vmbr7".to_owned(), 0, Some(9000)), ("trunk".to_owned(), 100, None), ("trunk".to_owned(), 200, None)]);
}
