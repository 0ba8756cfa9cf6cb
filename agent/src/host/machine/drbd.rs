//! DRBD: version 9 tells by `drbdsetup status --json`, version 8 in `/proc/drbd`.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use super::{
    Drbd, DrbdPeer, DrbdResource, DrbdVolume, command,
    read::{self, look},
};
use crate::error::{Error, Trouble};

/// Asks for all resources; `None`: the module is not loaded.
pub(super) async fn look_at(proc: &Path, patience: Duration) -> Result<Option<Drbd>, Error> {
    let Some(text) = read::text(&proc.join("drbd"), read::LARGEST)? else { return Ok(None) };
    let version = version(&text).ok_or_else(|| look(Trouble::Garbled, "/proc/drbd tells no version"))?;
    let resources = if version.starts_with("8.") {
        eight(&text)
    } else {
        let text = command::run("drbdsetup", &["status", "--json"], patience).await?.success("drbdsetup status")?;
        nine(&text).map_err(|e| look(Trouble::Garbled, format!("drbdsetup status told what cannot be read: {e}")))?
    };
    Ok(Some(Drbd { version, resources }))
}

/// The first line is `version: 9.2.12 (api:2/proto:118-122)`.
fn version(text: &str) -> Option<String> {
    text.lines().find_map(|l| l.strip_prefix("version:")?.split_whitespace().next().map(str::to_owned))
}

/// Lines of version 8 are ` 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----`.
fn eight(text: &str) -> Vec<DrbdResource> {
    let line = |line: &str| -> Option<DrbdResource> {
        let (minor, rest) = line.trim_start().split_once(':')?;
        minor.parse::<u32>().ok()?;
        let field = |key: &str| rest.split_whitespace().find_map(|w| w.strip_prefix(key));
        let connection = field("cs:")?;
        if connection == "Unconfigured" {
            return None;
        }
        let (here, there) = field("ds:")?.split_once('/')?;
        Some(DrbdResource {
            name: minor.to_owned(),
            suspended: None,
            volumes: vec![DrbdVolume { number: 0, disk: here.to_owned(), client: false, quorum: true }],
            peers: vec![DrbdPeer {
                name: "peer".into(),
                connection: connected(connection).to_owned(),
                volumes: vec![(0, there.to_owned(), false)],
            }],
        })
    };
    text.lines().filter_map(line).collect()
}

/// Version 8 mixes the connection's state with that of the replication: while it synchronizes, it is connected.
fn connected(state: &str) -> &str {
    const REPLICATING: &[&str] = &[
        "Connected",
        "SyncSource",
        "SyncTarget",
        "PausedSyncS",
        "PausedSyncT",
        "VerifyS",
        "VerifyT",
        "Ahead",
        "Behind",
        "StartingSyncS",
        "StartingSyncT",
        "WFBitMapS",
        "WFBitMapT",
        "WFSyncUUID",
        "WFReportParams",
    ];
    if REPLICATING.contains(&state) { "Connected" } else { state }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Resource {
    name: String,
    #[serde(default)]
    suspended: bool,
    #[serde(default)]
    suspended_user: bool,
    #[serde(default)]
    suspended_no_data: bool,
    #[serde(default)]
    suspended_fencing: bool,
    #[serde(default)]
    suspended_quorum: bool,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    connections: Vec<Connection>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Device {
    volume: u32,
    disk_state: String,
    #[serde(default)]
    client: bool,
    #[serde(default = "yes")]
    quorum: bool,
}

#[derive(Deserialize)]
struct Connection {
    name: String,
    #[serde(rename = "connection-state")]
    state: String,
    #[serde(default)]
    peer_devices: Vec<PeerDevice>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct PeerDevice {
    volume: u32,
    #[serde(default)]
    peer_disk_state: String,
    #[serde(default)]
    peer_client: bool,
}

fn yes() -> bool {
    true
}

fn nine(text: &str) -> Result<Vec<DrbdResource>, serde_json::Error> {
    let all: Vec<Resource> = serde_json::from_str(text)?;
    Ok(all.into_iter().map(DrbdResource::from).collect())
}

impl From<Resource> for DrbdResource {
    fn from(resource: Resource) -> Self {
        let why = [
            (resource.suspended_quorum, "no quorum"),
            (resource.suspended_no_data, "no data"),
            (resource.suspended_fencing, "fencing"),
            (resource.suspended_user, "by an administrator"),
            (resource.suspended, "suspended"),
        ];
        let volume = |d: Device| DrbdVolume { number: d.volume, disk: d.disk_state, client: d.client, quorum: d.quorum };
        let peer = |c: Connection| DrbdPeer {
            name: c.name,
            connection: c.state,
            volumes: c.peer_devices.into_iter().map(|p| (p.volume, p.peer_disk_state, p.peer_client)).collect(),
        };
        Self {
            name: resource.name,
            suspended: why.into_iter().find(|(is, _)| *is).map(|(_, why)| why.to_owned()),
            volumes: resource.devices.into_iter().map(volume).collect(),
            peers: resource.connections.into_iter().map(peer).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn version_nine_is_read() {
        let text = r#"[{"name":"vm-100","node-id":0,"role":"Primary","suspended":true,"suspended-user":false,"suspended-no-data":false,
            "suspended-fencing":false,"suspended-quorum":true,"write-ordering":"flush",
            "devices":[{"volume":0,"minor":1000,"disk-state":"UpToDate","client":false,"quorum":false,"size":4},
                       {"volume":1,"minor":1001,"disk-state":"Diskless","client":true,"quorum":true}],
            "connections":[{"peer-node-id":1,"name":"pve2","connection-state":"StandAlone","congested":false,"peer-role":"Unknown",
                "peer_devices":[{"volume":0,"replication-state":"Off","peer-disk-state":"DUnknown","peer-client":false,"out-of-sync":0}]}]}]"#;
        let resource = &nine(text).unwrap()[0];
        assert_eq!(resource.suspended.as_deref(), Some("no quorum"));
        assert!(!resource.volumes[0].quorum && resource.volumes[1].client);
        assert_eq!(resource.peers[0].connection, "StandAlone");
        assert_eq!(resource.peers[0].volumes, [(0, "DUnknown".to_owned(), false)]);
        assert_eq!(nine("[]\n").unwrap(), []);
        assert!(nine("").is_err() && nine("{}").is_err());
    }

    #[test]
    fn version_eight_is_read() {
        let text = "version: 8.4.11 (api:1/proto:86-101)\nsrcversion: 211FB288A383ED945B83420\n 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C r-----\n    ns:0 nr:0 dw:0\n 1: cs:SyncTarget ro:Secondary/Primary ds:Inconsistent/UpToDate C r-----\n 2: cs:StandAlone ro:Primary/Unknown ds:UpToDate/DUnknown   r-----\n 3: cs:Unconfigured\n";
        assert_eq!(version(text).as_deref(), Some("8.4.11"));
        let all = eight(text);
        let seen: Vec<_> = all.iter().map(|r| (r.name.as_str(), r.volumes[0].disk.as_str(), r.peers[0].connection.as_str())).collect();
        assert_eq!(seen, [("0", "UpToDate", "Connected"), ("1", "Inconsistent", "Connected"), ("2", "UpToDate", "StandAlone")]);
    }

    #[tokio::test]
    async fn without_the_module_there_is_no_drbd() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look_at(dir.path(), Duration::ZERO).await.unwrap(), None);
        std::fs::write(dir.path().join("drbd"), "version: 8.4.11 (api:1/proto:86-101)\n").unwrap();
        assert_eq!(look_at(dir.path(), Duration::ZERO).await.unwrap(), Some(Drbd { version: "8.4.11".into(), resources: vec![] }));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(version:| 0:|cs:|ds:|UpToDate|/|\n|\\PC){0,40}", json in "\\PC*") {
            let _ = (version(&text), eight(&text), nine(&json));
        }
    }
}
