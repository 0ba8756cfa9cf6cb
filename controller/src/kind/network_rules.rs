//! What an API server refuses of a network: the rules of `network_check`, as far as CEL can tell at a bearable cost.

use serde_json::Value;

use super::schema::{field_rule, rule};

/// The rules of the whole spec.
pub(super) fn network() -> Vec<Value> {
    vec![
        field_rule(
            "confirmTimeout",
            "!has(self.confirmTimeout) || !self.probe.enabled || duration(self.confirmTimeout) >= duration('30s')",
            "a probe needs its time: use at least 30s, or set probe.enabled: false",
        ),
        field_rule(
            "interfaces",
            "self.interfaces.all(i, !has(i.addresses) || i.addresses.size() == 0 || (has(i.hostAddresses) && i.hostAddresses.size() > 0) \
             || ((!has(self.hosts.matchLabels) || self.hosts.matchLabels.size() == 0) && (!has(self.hosts.names) || self.hosts.names.size() <= 1)))",
            "addresses: more than one host may be selected, and each needs its own address: use hostAddresses",
        ),
        field_rule(
            "interfaces",
            "!has(self.hosts.names) || self.interfaces.all(i, !has(i.hostAddresses) || i.hostAddresses.size() == 0 \
             || self.hosts.names.all(n, n in i.hostAddresses))",
            "hostAddresses: the addresses of a host in spec.hosts.names are missing: list them, or [] for no address there",
        ),
        field_rule(
            "interfaces",
            "(has(self.hosts.matchLabels) && self.hosts.matchLabels.size() > 0) || !has(self.hosts.names) || self.interfaces.all(i, \
             !has(i.hostAddresses) || i.hostAddresses.size() <= self.hosts.names.size())",
            "hostAddresses: spec.hosts does not select one of these hosts: correct its name",
        ),
        // Which interfaces are tried is not repeated here in full: only what is sure.
        field_rule(
            "probe.mtu",
            "!has(self.probe.mtu) || self.interfaces.size() > 4 || self.interfaces.exists(i, has(i.bridge) && i.bridge.vlanAware) \
             || self.interfaces.all(i, !has(i.mtu) || i.mtu >= self.probe.mtu || (has(i.bridge) && (!has(i.bridge.ports) \
             || i.bridge.ports.size() == 0)) || self.interfaces.exists(j, (has(j.vlan) && j.vlan.parent == i.name) \
             || (has(j.bridge) && has(j.bridge.ports) && i.name in j.bridge.ports)))",
            "an interface that is probed has a smaller mtu: use at most that, or raise it",
        ),
    ]
}

/// The rules of all interfaces together.
pub(super) fn interfaces() -> Vec<Value> {
    vec![
        rule("self.size() > 0", "use 1 to 64 interfaces"),
        rule(
            "self.all(i, !has(i.vlan) || self.exists_one(j, has(j.vlan) && j.vlan.id == i.vlan.id && j.vlan.parent == i.vlan.parent \
             && (has(j.vlan.protocol) ? j.vlan.protocol : '802.1Q') == (has(i.vlan.protocol) ? i.vlan.protocol : '802.1Q')))",
            "two interfaces are the same VLAN (vlan.id) of the same parent: use another id, or leave one out",
        ),
        rule(
            "self.all(i, !has(i.bridge) || !has(i.bridge.ports) || i.bridge.ports.all(p, self.exists_one(j, has(j.bridge) && has(j.bridge.ports) \
             && p in j.bridge.ports)))",
            "an interface is a port of two bridges (bridge.ports): a port belongs to one bridge",
        ),
        rule(
            "self.all(i, self.all(j, !((has(i.vlan) && i.vlan.parent == j.name) || (has(i.bridge) && has(i.bridge.ports) \
             && j.name in i.bridge.ports)) || !((has(j.vlan) && j.vlan.parent == i.name) || (has(j.bridge) && has(j.bridge.ports) \
             && i.name in j.bridge.ports))))",
            "an interface stands on itself: take it out of the circle",
        ),
        rule(
            "self.all(i, !has(i.mtu) || self.all(j, !has(j.mtu) || i.mtu <= j.mtu || !((has(i.vlan) && i.vlan.parent == j.name) \
             || (has(i.bridge) && has(i.bridge.ports) && j.name in i.bridge.ports))))",
            "mtu: an interface has more than the one it stands on: use at most that, or raise the lower one's",
        ),
    ]
}

/// The rules of one interface.
pub(super) fn interface() -> Vec<Value> {
    vec![
        rule("has(self.vlan) != has(self.bridge)", "say what it is: either vlan: {...} or bridge: {...}, not both"),
        field_rule(
            "addresses",
            "!has(self.addresses) || self.addresses.size() == 0 || !has(self.hostAddresses) || self.hostAddresses.size() == 0",
            "hostAddresses is there too: use one of them",
        ),
        field_rule(
            "mtu",
            "!has(self.mtu) || self.mtu >= 1280 || !has(self.addresses) || self.addresses.all(a, !a.contains(':'))",
            "IPv6 needs at least 1280",
        ),
    ]
}
