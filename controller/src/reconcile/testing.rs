//! Objects for tests.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::view::{Facts, HostView, Link, RunState, VmView};
use crate::{
    agents::{Agents, Limits},
    kind::{Metadata, PveMachine, Quantity, parse},
    pki::{Ca, Lifetime},
    tls::Credentials,
};
use pvelet_proto::{identity::Role, v1};

pub(crate) const UID: &str = "11111111-1111-4111-8111-111111111111";
pub(crate) const UUID: &str = "aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa";

/// A CA, and agents whose certificates it made; none yet.
pub(crate) fn agents() -> (Ca, Agents) {
    let ca = Ca::create("pvelet.example", Lifetime::days(10)).unwrap();
    let own = ca.issue_role(Role::Operator, "controller", Lifetime::days(1)).unwrap();
    let credentials = Credentials::from_pem(ca.cert_pem(), &own.cert_pem, &own.key_pem).unwrap();
    (ca, Agents::new(credentials, Limits::default()))
}

/// A host of PVE cluster `lab` on which everything is well.
pub(crate) fn host(name: &str) -> HostView {
    HostView {
        name: name.into(),
        cluster: "lab".into(),
        node: name.into(),
        labels: BTreeMap::new(),
        cordon: false,
        maintenance: false,
        reserved_memory: Quantity(0),
        cpu_overcommit: 4,
        link: Link::Up,
        facts: Some(Facts {
            agent_version: "0.1.0".into(),
            api_version: "pvelet.v1".into(),
            pve_version: "9.0.10".into(),
            manage: true,
            quorate: true,
            memory_bytes: 64 << 30,
            threads: 16,
            ..Facts::default()
        }),
    }
}

/// A machine cloned from template 9000, as the store gives it.
pub(crate) fn machine(name: &str) -> PveMachine {
    let text =
        format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {{name: {name}}}\nspec: {{source: {{template: 9000}}}}\n");
    let manifest = parse(&text).0.remove(0);
    PveMachine {
        metadata: Metadata { name: name.into(), uid: UID.into(), generation: 1, resource_version: "1".into(), ..Metadata::default() },
        spec: serde_json::from_value(manifest.spec).unwrap(),
        status: crate::kind::MachineStatus::default(),
    }
}

/// The VM of machine `web-1` on node `pve1`, stopped.
pub(crate) fn vm(state: RunState) -> VmView {
    VmView {
        vmid: 101,
        uuid: UUID.into(),
        name: "web-1".into(),
        node: "pve1".into(),
        state,
        cores: 2,
        sockets: 1,
        memory_mib: 2048,
        owner: Some(v1::Owner { tenant: "default".into(), cluster: "test".into(), machine_uid: UID.into() }),
        digest: "d1".into(),
        ..VmView::default()
    }
}
