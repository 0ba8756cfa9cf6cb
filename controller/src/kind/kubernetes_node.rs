//! A host that is a Node of Kubernetes too: what is to be told there.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Seconds,
    check::Checker,
    schema::{self, field_rule, rule},
};
use crate::nodes::Effect;

/// The groups of checks.
pub(super) const GROUPS: [&str; 5] = ["containerd", "kubelet", "host", "network", "agent"];
/// The longest that something must last before it is told.
const LONGEST: u32 = 3600;

/// What is told on the Node while the host is not well, and no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    rule("self.condition || self.taint != 'none'", "it wants neither a condition nor a taint: set one of them, or leave kubernetesNode out"),
    field_rule("groups", "self.groups.size() > 0", "name at least one group, or leave it out for containerd and kubelet"),
]))]
pub struct KubernetesNodeSpec {
    /// Name of the Node; absent where it is that of the PVE node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::DnsName>")]
    pub name: Option<String>,
    /// Whether the Node gets the condition `pvelet.dev/HostHealthy`.
    #[serde(default = "yes")]
    pub condition: bool,
    /// The effect of the taint `pvelet.dev/unhealthy` that the Node has while the host is not well.
    #[serde(default)]
    pub taint: TaintWish,
    /// The groups of checks that count: `containerd`, `kubelet`, `host`, `network`, `agent`.
    #[serde(default = "default_groups")]
    #[schemars(with = "Vec<schema::CheckGroup>", length(max = 5), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<String>,
    /// How long a check must have been failed, without all of them being well in between, before the host counts as not well.
    #[serde(default = "default_failed_after")]
    #[schemars(with = "schema::NodeSpan")]
    pub failed_after: Seconds,
    /// How long all must have been well before the host counts as well again.
    #[serde(default = "default_well_after")]
    #[schemars(with = "schema::NodeSpan")]
    pub well_after: Seconds,
}

/// The taint that is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TaintWish {
    /// No taint.
    #[default]
    #[serde(rename = "none")]
    None,
    /// No new pods come.
    NoSchedule,
    /// No new pods come, and those that run are evicted.
    NoExecute,
}

impl TaintWish {
    /// The effect, where there is one.
    pub fn effect(self) -> Option<Effect> {
        match self {
            Self::None => None,
            Self::NoSchedule => Some(Effect::NoSchedule),
            Self::NoExecute => Some(Effect::NoExecute),
        }
    }
}

fn yes() -> bool {
    true
}

/// What pods need to start. A full backup storage is no reason to drive them away.
fn default_groups() -> Vec<String> {
    ["containerd", "kubelet"].map(str::to_owned).to_vec()
}

fn default_failed_after() -> Seconds {
    Seconds(30)
}

fn default_well_after() -> Seconds {
    Seconds(120)
}

pub(super) fn check(c: &mut Checker, spec: &KubernetesNodeSpec) {
    let at = |field: &str| format!("spec.kubernetesNode.{field}");
    if let Some(name) = &spec.name {
        c.id(&at("name"), pvelet_proto::id::dns_name(name));
    }
    c.require(!spec.groups.is_empty(), &at("groups"), "", "name at least one group, or leave it out for containerd and kubelet");
    for (i, group) in spec.groups.iter().enumerate() {
        let rule = format!("use one of {}, each once", GROUPS.join(", "));
        let sound = GROUPS.contains(&group.as_str()) && !spec.groups[..i].contains(group);
        c.require(sound, &at(&format!("groups[{i}]")), group, &rule);
    }
    for (field, span) in [("failedAfter", spec.failed_after), ("wellAfter", spec.well_after)] {
        c.require(span.0 <= LONGEST, &at(field), span, "use 0s to 1h");
    }
    let told = spec.condition || spec.taint != TaintWish::None;
    c.require(told, "spec.kubernetesNode", "", "it wants neither a condition nor a taint: set one of them, or leave kubernetesNode out");
}

/// What has been told on a Node, and must be taken away again one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesNodeStatus {
    /// The Node.
    pub name: String,
    /// Whether the host counts as not well there.
    pub unhealthy: bool,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::kind::{HostSpec, Seconds, TaintWish, parse};

    fn manifest(node: &str) -> String {
        format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata: {{name: pve1}}\n\
             spec: {{address: 'pve1:7443', cluster: lab, node: pve1, kubernetesNode: {node}}}\n"
        )
    }

    fn spec(text: &str) -> HostSpec {
        let (mut manifests, problems) = parse(text);
        assert!(problems.is_empty(), "{problems:?}");
        serde_json::from_value(manifests.remove(0).spec).unwrap()
    }

    #[test]
    fn nothing_but_the_wish_is_needed() {
        let host = spec(&manifest("{}"));
        let (name, node) = host.wanted_node().unwrap();
        assert_eq!((name, node.condition, node.taint), ("pve1", true, TaintWish::None));
        assert_eq!((node.failed_after, node.well_after, node.groups.len()), (Seconds(30), Seconds(120), 2));
        let host = spec(&manifest("{name: worker-1.example, taint: NoExecute, failedAfter: 0s, wellAfter: 10m, groups: [host]}"));
        assert_eq!(host.wanted_node().unwrap().0, "worker-1.example");
        assert!(spec(&manifest("~")).wanted_node().is_none());
    }

    #[test]
    fn the_example_is_sound() {
        let host = spec(include_str!("../../../docs/examples/host.yaml"));
        assert_eq!(host.wanted_node().unwrap().1.taint, TaintWish::NoSchedule);
    }

    #[test]
    fn mistakes_name_field_value_and_remedy() {
        for (node, want) in [
            ("{taint: PreferNoSchedule}", "unknown variant `PreferNoSchedule`, expected one of `none`, `NoSchedule`, `NoExecute`"),
            ("{name: Worker_1}", "spec.kubernetesNode.name = Worker_1: not a DNS name"),
            ("{groups: []}", "spec.kubernetesNode.groups: name at least one group"),
            ("{groups: [kubelet, kublet]}", "spec.kubernetesNode.groups[1] = kublet: use one of containerd, kubelet"),
            ("{groups: [host, host]}", "spec.kubernetesNode.groups[1] = host: use one of"),
            ("{failedAfter: 2h}", "spec.kubernetesNode.failedAfter = 7200s: use 0s to 1h"),
            ("{condition: false}", "spec.kubernetesNode: it wants neither a condition nor a taint"),
            ("{conditions: true}", "unknown field `conditions`"),
        ] {
            let told: Vec<String> = parse(&manifest(node)).1.iter().flat_map(|p| &p.mistakes).map(ToString::to_string).collect();
            assert!(told.iter().any(|t| t.contains(want)), "{node}: {told:?}");
        }
    }
}
