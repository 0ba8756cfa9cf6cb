//! Rules that need more than the spec: the object's name, or what it was made with.

use serde_json::{Value, json};

use crate::kind::{Kind, Machine, Network, Tenant};

/// The rules of the whole object.
pub(super) fn of(kind: &str) -> Vec<Value> {
    match kind {
        Machine::KIND => vec![
            json!({
                "rule": "has(self.spec.name) || self.metadata.name.split('.').all(l, l.size() <= 63)",
                "fieldPath": ".metadata.name",
                "message": "it is the VM's name where spec.name is not given: use labels of up to 63 characters joined by '.', or set spec.name",
            }),
            json!({
                "rule": "!has(self.spec.disks) || self.spec.disks.all(d, self.metadata.name.size() + d.name.size() <= 180)",
                "message": "machine/<namespace>/<metadata.name>/<disk> stands in the owner record of each disk, which holds 253 characters: use names of \
                            up to 180 characters together",
            }),
            json!({
                "rule": "!has(self.spec.tenant) || !has(oldSelf.status) || !has(oldSelf.status.tenant) || self.spec.tenant == oldSelf.status.tenant \
                         || (has(oldSelf.spec.tenant) && oldSelf.spec.tenant == self.spec.tenant)",
                "message": "the VM was made for another tenant (status.tenant) and stays its: leave spec.tenant as it is, or make another machine",
                "fieldPath": ".spec.tenant",
            }),
        ],
        Network::KIND => vec![
            label("it is the network's name on the hosts"),
            json!({
                "rule": "!has(oldSelf.status) || !has(oldSelf.status.tenant) || self.spec.tenant == oldSelf.status.tenant \
                         || self.spec.tenant == oldSelf.spec.tenant",
                "message": "the network was made for another tenant (status.tenant) and stays its: leave spec.tenant as it is, or make another network",
                "fieldPath": ".spec.tenant",
            }),
        ],
        Tenant::KIND => vec![label("it is the tenant's name")],
        _ => vec![json!({
            "rule": "self.metadata.name.split('.').all(l, l.size() <= 63)",
            "message": "use labels of up to 63 characters joined by '.'",
            "fieldPath": ".metadata.name",
        })],
    }
}

fn label(what: &str) -> Value {
    let text = "use 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit";
    json!({
        "rule": "self.metadata.name.matches('^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$')",
        "message": format!("{what}: {text}"),
        "fieldPath": ".metadata.name",
    })
}
