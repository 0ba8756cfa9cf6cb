#![allow(clippy::unwrap_used)]

mod property;
mod table;

use jiff::{SignedDuration, Timestamp};

use crate::{
    kind::{Metadata, NetworkStatus, PveNetwork, parse},
    reconcile::testing,
};

/// A network on hosts `pve1`, `pve2` and `pve3`, as the store gives it.
fn network() -> PveNetwork {
    let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: storage}\n\
                spec: {hosts: {names: [pve1, pve2, pve3]}, interfaces: [{name: eth1.100, vlan: {parent: eth1, id: 100}}]}\n";
    PveNetwork {
        metadata: Metadata {
            name: "storage".into(),
            uid: testing::UID.into(),
            generation: 1,
            resource_version: "1".into(),
            ..Metadata::default()
        },
        spec: serde_json::from_value(parse(text).0.remove(0).spec).unwrap(),
        status: NetworkStatus::default(),
    }
}

fn noon() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_hours(12)
}
