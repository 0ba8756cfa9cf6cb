//! The files that `pmxcfs` makes up when they are read, in the format of the recordings.

use std::fmt::Write;

use super::{counters::Owner, store::NodeState};

/// Made-up files of the root folder.
pub(super) const DOT_FILES: [&str; 6] = [".debug", ".vmlist", ".members", ".clusterlog", ".rrd", ".version"];
/// Symbolic links of the root folder.
pub(super) const LINKS: [&str; 4] = ["lxc", "local", "openvz", "qemu-server"];

/// Keys of a node's status in `.version`.
const STATUS_KEYS: [&str; 6] = ["kv/static-info", "tasklist", "kv/cpuflags-tcg", "kv/cpuflags-kvm", "kv/version-info", "kv/network"];

/// Where a link of the root folder points on this node.
pub(super) fn target(link: &str, node: &str) -> String {
    if link == "local" { format!("nodes/{node}") } else { format!("nodes/{node}/{link}") }
}

/// The content of a made-up file.
pub(super) fn render<'a>(file: &str, nodes: &[NodeState], at: usize, vms: impl Iterator<Item = (u32, &'a Owner)>) -> String {
    match file {
        ".debug" => "0\n".into(),
        ".version" => version(nodes, at),
        ".vmlist" => vmlist(&nodes[at], vms),
        ".members" => members(nodes, at),
        _ => String::new(),
    }
}

fn version(nodes: &[NodeState], at: usize) -> String {
    let counters = &nodes[at].counters;
    let mut text =
        format!("{{\n\"starttime\": {},\n\"clinfo\": {},\n\"vmlist\": {},\n", counters.starttime, counters.clinfo, counters.vmlist);
    for (file, version) in counters.files() {
        let _ = writeln!(text, "\"{file}\": {version},");
    }
    // What each node's status daemon keeps there; here it never changes, and is gone with a restart.
    let kept: Vec<String> = STATUS_KEYS.iter().map(|key| format!("\"{key}\": 0")).collect();
    let kept = if nodes[at].status_kept { kept.join(",\n") } else { String::new() };
    let stores: Vec<String> = nodes.iter().map(|node| format!("\"{}\": {{\n{kept}}}", node.name)).collect();
    let _ = write!(text, "\"kvstore\": {{\n{}\n}}\n}}\n", stores.join(",\n"));
    text
}

fn vmlist<'a>(node: &NodeState, vms: impl Iterator<Item = (u32, &'a Owner)>) -> String {
    let mut text = format!("{{\n\"version\": {},\n\"ids\": {{", node.counters.vmlist);
    let mut separator = "\n";
    for (vmid, owner) in vms {
        let version = node.counters.vm(vmid);
        let _ =
            write!(text, "{separator}\"{vmid}\": {{ \"node\": \"{}\", \"type\": \"{}\", \"version\": {version} }}", owner.node, owner.kind);
        separator = ",\n";
    }
    text.push_str("}\n\n}\n");
    text
}

/// A node alone has no cluster section: so recorded. That of a cluster follows PVE's documentation.
fn members(nodes: &[NodeState], at: usize) -> String {
    let me = &nodes[at];
    let mut text = format!("{{\n\"nodename\": \"{}\",\n\"version\": {}", me.name, me.counters.clinfo);
    if nodes.len() > 1 {
        let quorate = u8::from(me.quorate);
        let _ = write!(
            text,
            ",\n\"cluster\": {{ \"name\": \"sim\", \"version\": {n}, \"nodes\": {n}, \"quorate\": {quorate} }},\n\"nodelist\": {{\n",
            n = nodes.len()
        );
        let list: Vec<String> = nodes
            .iter()
            .enumerate()
            .map(|(other, node)| {
                // A node without quorum is cut off: it sees itself alone, and the others do not see it.
                let online = other == at || (node.up && node.quorate && me.quorate);
                format!("  \"{}\": {{ \"id\": {}, \"online\": {}, \"ip\": \"{}\"}}", node.name, other + 1, u8::from(online), node.ip)
            })
            .collect();
        let _ = write!(text, "{}\n  }}", list.join(",\n"));
    }
    text.push_str("\n}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Counters;

    fn node(name: &str, clinfo: u64) -> NodeState {
        NodeState {
            name: name.into(),
            ip: "10.99.0.1".into(),
            quorate: true,
            up: true,
            counters: Counters::new(1_795_415_595, clinfo, [9000].into_iter()),
            status_kept: true,
        }
    }

    #[test]
    fn a_node_alone_is_told_as_recorded() {
        let nodes = [node("pve1", 0)];
        assert_eq!(render(".members", &nodes, 0, std::iter::empty()), "{\n\"nodename\": \"pve1\",\n\"version\": 0\n}\n");
        let owner = Owner { node: "pve1".into(), kind: "qemu" };
        let vmlist = "{\n\"version\": 1,\n\"ids\": {\n\"9000\": { \"node\": \"pve1\", \"type\": \"qemu\", \"version\": 1 }}\n\n}\n";
        assert_eq!(render(".vmlist", &nodes, 0, [(9000, &owner)].into_iter()), vmlist);
        let version = render(".version", &nodes, 0, std::iter::empty());
        assert!(version.starts_with("{\n\"starttime\": 1795415595,\n\"clinfo\": 0,\n\"vmlist\": 1,\n\"corosync.conf\": 1,\n\"corosync.conf.new\": 1,\n\"storage.cfg\": 1,\n"), "{version}");
        assert!(version.ends_with("\"kv/version-info\": 0,\n\"kv/network\": 0}\n}\n}\n"), "{version}");
    }

    #[test]
    fn all_that_is_made_up_for_a_cluster_is_json() {
        let nodes = [node("pve1", 4), node("pve2", 4)];
        for file in [".version", ".vmlist", ".members"] {
            let text = render(file, &nodes, 1, std::iter::empty());
            assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{file}: {text}");
        }
    }
}
