//! The files of `/etc/pve` that are not VM configs, parsed. Garbage in them yields nothing rather than a panic: other programs write them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::NodeInfo;

/// The counters of `.version` that the agent follows. All of them begin again when pmxcfs restarts, told by `starttime`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Version {
    /// When pmxcfs started, seconds since the epoch.
    #[serde(default)]
    pub starttime: u64,
    /// Membership.
    #[serde(default)]
    pub clinfo: u64,
    /// `.vmlist`, which counts every change of a VM's config.
    #[serde(default)]
    pub vmlist: u64,
    /// `user.cfg`.
    #[serde(default, rename = "user.cfg")]
    pub users: u64,
    /// `ha/resources.cfg`.
    #[serde(default, rename = "ha/resources.cfg")]
    pub ha_resources: u64,
    /// `ha/manager_status`.
    #[serde(default, rename = "ha/manager_status")]
    pub ha_status: u64,
    /// `replication.cfg`.
    #[serde(default, rename = "replication.cfg")]
    pub replication: u64,
}

/// Parses `.version`.
pub fn version(text: &[u8]) -> Option<Version> {
    serde_json::from_slice(text).ok()
}

/// One line of `.vmlist`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VmEntry {
    /// The node under which the config lies.
    pub node: String,
    /// "qemu" or "lxc".
    #[serde(rename = "type")]
    pub kind: String,
    /// Counter of the config's changes.
    #[serde(default)]
    pub version: u64,
}

/// `.vmlist`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct VmList {
    /// Its counter, the same as in `.version`.
    #[serde(default)]
    pub version: u64,
    /// Entries by VMID.
    #[serde(default, deserialize_with = "by_vmid")]
    pub ids: BTreeMap<u32, VmEntry>,
}

fn by_vmid<'de, D: Deserializer<'de>>(input: D) -> Result<BTreeMap<u32, VmEntry>, D::Error> {
    struct Ids;
    impl<'de> Visitor<'de> for Ids {
        type Value = BTreeMap<u32, VmEntry>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("VMIDs")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut ids = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                match key.parse() {
                    Ok(vmid) => {
                        ids.insert(vmid, map.next_value()?);
                    }
                    Err(_) => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(ids)
        }
    }
    input.deserialize_map(Ids)
}

/// Parses `.vmlist`.
pub fn vmlist(text: &[u8]) -> Option<VmList> {
    serde_json::from_slice(text).ok()
}

/// `.members`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// This node.
    pub node: String,
    /// The cluster's name and whether it is quorate; `None` when the node stands alone, or has not reached its cluster.
    pub cluster: Option<(String, bool)>,
    /// The nodes, by name.
    pub nodes: Vec<NodeInfo>,
}

/// Parses `.members`.
pub fn members(text: &[u8]) -> Option<Members> {
    #[derive(Deserialize)]
    struct Raw {
        nodename: String,
        cluster: Option<Cluster>,
        #[serde(default)]
        nodelist: BTreeMap<String, Node>,
    }
    #[derive(Deserialize)]
    struct Cluster {
        name: String,
        #[serde(default)]
        quorate: u8,
    }
    #[derive(Deserialize)]
    struct Node {
        #[serde(default)]
        id: u32,
        #[serde(default)]
        online: u8,
    }
    let raw: Raw = serde_json::from_slice(text).ok()?;
    let mut nodes: Vec<_> = raw.nodelist.into_iter().map(|(name, n)| NodeInfo { name, id: n.id, online: n.online != 0 }).collect();
    if nodes.is_empty() {
        nodes.push(NodeInfo { name: raw.nodename.clone(), id: 0, online: true });
    }
    Some(Members { node: raw.nodename, cluster: raw.cluster.map(|c| (c.name, c.quorate != 0)), nodes })
}

/// Sections of a PVE section file: `type: id`, then indented `key value` lines.
fn sections(text: &str) -> Vec<(&str, &str, HashMap<&str, &str>)> {
    let mut found: Vec<(&str, &str, HashMap<&str, &str>)> = Vec::new();
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            if let Some(last) = found.last_mut() {
                last.2.insert(key, value.trim());
            }
        } else if let Some((kind, id)) = line.split_once(':') {
            found.push((kind.trim(), id.trim(), HashMap::new()));
        }
    }
    found
}

/// VMs of `ha/resources.cfg` with the state that is wanted. One that HA ignores is left out: there PVE behaves as without HA.
pub fn ha_resources(text: &str) -> BTreeMap<u32, String> {
    let vms = sections(text).into_iter().filter(|(kind, ..)| *kind == "vm");
    vms.filter_map(|(_, id, keys)| {
        let state = keys.get("state").copied().unwrap_or("started");
        (state != "ignored").then(|| Some((id.parse().ok()?, state.to_owned())))?
    })
    .collect()
}

/// Guests of `replication.cfg` that a job copies.
pub fn replicated(text: &str) -> Vec<u32> {
    let mut guests: Vec<u32> = sections(text)
        .into_iter()
        .filter_map(|(_, id, keys)| keys.get("guest").copied().or_else(|| id.split_once('-').map(|(guest, _)| guest))?.parse().ok())
        .collect();
    guests.sort_unstable();
    guests.dedup();
    guests
}

/// Pools of `user.cfg` and the VMs in them. A line is `pool:<id>:<comment>:<vmids>:<storages>:`.
pub fn pools(text: &str) -> (Vec<String>, BTreeMap<u32, String>) {
    let (mut names, mut of) = (Vec::new(), BTreeMap::new());
    for line in text.lines() {
        let mut fields = line.split(':');
        if fields.next() != Some("pool") {
            continue;
        }
        let Some(name) = fields.next().filter(|n| !n.is_empty()) else { continue };
        names.push(name.to_owned());
        for vmid in fields.nth(1).unwrap_or_default().split(',').filter_map(|v| v.trim().parse().ok()) {
            of.insert(vmid, name.to_owned());
        }
    }
    names.sort();
    names.dedup();
    (names, of)
}

/// Whether `ha/manager_status` says that this node is in maintenance.
pub fn in_maintenance(text: &[u8], node: &str) -> bool {
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        node_status: HashMap<String, String>,
    }
    serde_json::from_slice::<Status>(text).is_ok_and(|s| s.node_status.get(node).is_some_and(|s| s == "maintenance"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const VERSION: &[u8] = b"{\n\"starttime\": 1795415595,\n\"clinfo\": 0,\n\"vmlist\": 355,\n\"corosync.conf\": 1,\n\"storage.cfg\": 8,\n\"user.cfg\": 5,\n\"ha/manager_status\": 1,\n\"ha/resources.cfg\": 2,\n\"replication.cfg\": 12,\n\"kvstore\": {\n\"pve1\": {\n\"kv/static-info\": 0,\n\"tasklist\": 358}\n}\n}\n";

    #[test]
    fn the_counters_are_found() {
        let v = version(VERSION).unwrap();
        assert_eq!((v.starttime, v.vmlist, v.users, v.ha_resources, v.ha_status, v.replication), (1_795_415_595, 355, 5, 2, 1, 12));
    }

    #[test]
    fn each_vm_has_node_kind_and_counter() {
        let list = vmlist(b"{\n\"version\": 358,\n\"ids\": {\n\"104\": { \"node\": \"pve1\", \"type\": \"qemu\", \"version\": 137 },\n\"700\": { \"node\": \"pve2\", \"type\": \"lxc\", \"version\": 3 }}\n\n}\n").unwrap();
        assert_eq!(list.version, 358);
        assert_eq!(list.ids[&700], VmEntry { node: "pve2".into(), kind: "lxc".into(), version: 3 });
        assert_eq!(vmlist(b"{\n\"version\": 1,\n\"ids\": {}\n\n}\n").unwrap().ids.len(), 0);
    }

    #[test]
    fn a_lone_node_is_its_own_cluster() {
        let m = members(b"{\n\"nodename\": \"pve1\",\n\"version\": 0\n}\n").unwrap();
        assert_eq!((m.node.as_str(), &m.cluster, m.nodes.len()), ("pve1", &None, 1));
    }

    #[test]
    fn a_cluster_tells_quorum_and_who_is_online() {
        let text = br#"{ "nodename": "a", "version": 4, "cluster": { "name": "lab", "version": 3, "nodes": 2, "quorate": 0 },
            "nodelist": { "a": { "id": 1, "online": 1, "ip": "10.0.0.1"}, "b": { "id": 2, "online": 0}}}"#;
        let m = members(text).unwrap();
        assert_eq!(m.cluster, Some(("lab".into(), false)));
        assert_eq!(m.nodes[1], NodeInfo { name: "b".into(), id: 2, online: false });
    }

    #[test]
    fn ha_wants_started_unless_told_otherwise() {
        let found =
            ha_resources("vm: 401\n\tcomment c\n\tstate stopped\n\nvm: 403\n\nct: 405\n\tstate started\n\nvm: 406\n\tstate ignored\n");
        assert_eq!(found, BTreeMap::from([(401, "stopped".to_owned()), (403, "started".to_owned())]));
    }

    #[test]
    fn replication_jobs_name_their_guest() {
        assert_eq!(replicated("local: 406-0\n\ttarget pve2\n\tremove_job full\n\tsource pve1\n\nlocal: 407-1\n\tguest 407\n"), [406, 407]);
    }

    #[test]
    fn pools_have_members() {
        let (names, of) = pools("user:root@pam:1:0::::::\ntoken:root@pam!rig:0:0::\n\npool:p2:c:140,799::\npool:p1::::\n");
        assert_eq!(names, ["p1", "p2"]);
        assert_eq!(of, BTreeMap::from([(140, "p2".to_owned()), (799, "p2".to_owned())]));
    }

    #[test]
    fn maintenance_is_of_one_node() {
        let text = br#"{"master_node":"a","node_status":{"a":"online","b":"maintenance"},"service_status":{},"timestamp":1}"#;
        assert!(in_maintenance(text, "b") && !in_maintenance(text, "a") && !in_maintenance(b"", "a"));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC*", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (version(&bytes), vmlist(&bytes), members(&bytes), in_maintenance(&bytes, "a"));
            let _ = (ha_resources(&text), replicated(&text), pools(&text));
        }

        #[test]
        fn what_a_vmlist_says_is_read(ids in proptest::collection::btree_map(1u32..1_000_000, (0u64..1000, "[a-z][a-z0-9]{0,5}"), 0..20)) {
            let lines: Vec<_> = ids.iter().map(|(id, (v, n))| format!("\"{id}\": {{ \"node\": \"{n}\", \"type\": \"qemu\", \"version\": {v} }}")).collect();
            let list = vmlist(format!("{{\n\"version\": 9,\n\"ids\": {{\n{}}}\n\n}}\n", lines.join(",\n")).as_bytes()).unwrap();
            prop_assert_eq!(list.ids.len(), ids.len());
            for (id, (v, n)) in &ids {
                prop_assert_eq!((list.ids[id].version, &list.ids[id].node), (*v, n));
            }
        }
    }
}
