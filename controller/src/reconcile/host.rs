//! `PveHost`: listens to its agent and says how that goes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Fleet,
    health::{Conditions, HealthSight},
    machine::Next,
    node::{self, Keeper},
    view::{HostView, Link},
};
use crate::{
    kind::{Capacity, ConditionStatus, Host, HostStatus, ObjectKey, PveHost, Quantity, set_condition},
    placement::Size,
    store::{Store, StoreError},
};

/// When a host that another one stands in the way of is looked at again.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(30);
/// PVE's major version that the agents are tested on.
const TESTED_PVE: &str = "9";

pub(super) struct Hosts<S> {
    pub(super) store: Arc<S>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) keeper: Keeper<S>,
    /// What the conditions of each host's health remember.
    pub(super) health: Mutex<HashMap<ObjectKey, Conditions>>,
}

impl<S: Store> Hosts<S> {
    fn health(&self) -> MutexGuard<'_, HashMap<ObjectKey, Conditions>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn reconcile(&self, key: &ObjectKey) -> Result<Next, StoreError> {
        let host = match self.store.get::<Host>(key).await? {
            Some(host) if !host.is_deleting() => host,
            going => {
                self.fleet.remove(&key.to_string());
                self.health().remove(key);
                return match going {
                    Some(host) => self.remove(host).await,
                    None => {
                        self.keeper.forget(key);
                        Ok(Next::Sleep)
                    }
                };
            }
        };
        if let Some(problem) = super::invalid(&host) {
            // What was known of it before goes on.
            super::refuse(&*self.store, host, super::INVALID, problem).await?;
            return Ok(Next::Sleep);
        }
        let name = key.to_string();
        let (first, later): (Vec<String>, Vec<String>) = self.fleet.rivals(&host).into_iter().partition(|other| *other < name);
        if let Some(first) = first.first() {
            // One of the two counts, always the same one; the other one's wishes (cordon, maintenance) would count now and then.
            self.fleet.remove(&name);
            let text = format!("PveHost {first} is node {} of PVE cluster {} too; remove one of them", host.spec.node, host.spec.cluster);
            super::refuse(&*self.store, host, "DuplicateHost", text).await?;
            return Ok(Next::At(Timestamp::now() + LOOK_AGAIN));
        }
        later.iter().for_each(|other| self.fleet.remind(&ObjectKey::named(other)));
        self.fleet.apply(&host);
        let Some((view, used, sight)) = self.fleet.host(&key.to_string()) else { return Ok(Next::Sleep) };
        let now = Timestamp::now();
        if let Some(until) = self.fleet.waited_for(&view.name, now)
            && host.status.observed_generation == host.metadata.generation
        {
            // What a controller told before this one holds until the agent answers, or is known not to.
            return Ok(Next::At(until));
        }
        let (mut host, node) = self.keeper.keep(host, &view, &sight, now).await?;
        let (health, due) = self.health().entry(key.clone()).or_default().settle(&view.name, view.link == Link::Up, &sight, now);
        let mut status = status(&host, &view, used, now);
        for (kind, verdict) in health {
            let holds = verdict.status();
            set_condition(&mut status.conditions, kind, holds, &verdict.reason, verdict.message, host.metadata.generation, now);
        }
        let (latched, reason, message) = match (sight.latch(), view.link == Link::Up) {
            (Some(why), true) => {
                let remedy = format!("look at the host, then pveletctl repair --clear --host {}", view.name);
                (ConditionStatus::True, "RepairsFailed", format!("nothing is repaired any more: {why}; {remedy}"))
            }
            (None, true) if matches!(sight, HealthSight::Told(_)) => (ConditionStatus::False, "NotLatched", String::new()),
            (_, true) => (ConditionStatus::Unknown, "NotTold", String::new()),
            (_, false) => (ConditionStatus::Unknown, "NotReachable", String::new()),
        };
        set_condition(&mut status.conditions, "RepairLatched", latched, reason, message, host.metadata.generation, now);
        tell_node(&mut status, &node, host.metadata.generation, now);
        host.status = status;
        self.store.update_status(&host).await?;
        Ok(next(due.into_iter().chain(node.due).min(), node.again))
    }

    /// A host whose manifest is gone. What was put on its Node is taken away first.
    async fn remove(&self, host: PveHost) -> Result<Next, StoreError> {
        let key = host.key();
        let Err(node) = self.keeper.remove(host).await? else { return Ok(Next::Sleep) };
        let Some(mut host) = self.store.get::<Host>(&key).await? else { return Ok(Next::Sleep) };
        let generation = host.metadata.generation;
        tell_node(&mut host.status, &node, generation, Timestamp::now());
        self.store.update_status(&host).await?;
        Ok(next(node.due, node.again))
    }
}

fn next(due: Option<Timestamp>, again: bool) -> Next {
    match due {
        _ if again => Next::Backoff,
        Some(due) => Next::At(due),
        None => Next::Sleep,
    }
}

/// Conditions of the Node, which go when none is wanted any more.
fn tell_node(status: &mut HostStatus, node: &node::Told, generation: i64, now: Timestamp) {
    let Some(conditions) = &node.conditions else { return };
    let told = |kind: &str| conditions.iter().any(|(k, ..)| *k == kind);
    status.conditions.retain(|c| !node::CONDITIONS.contains(&c.kind.as_str()) || told(&c.kind));
    for (kind, holds, reason, message) in conditions {
        set_condition(&mut status.conditions, kind, *holds, reason, message.clone(), generation, now);
    }
}

/// What is to be told of a host, but for its health. Pure.
fn status(host: &PveHost, view: &HostView, used: Size, now: Timestamp) -> HostStatus {
    let mut status = HostStatus { observed_generation: host.metadata.generation, ..host.status.clone() };
    let mut conditions = std::mem::take(&mut status.conditions);
    let mut set = |kind: &str, holds: ConditionStatus, reason: &str, message: String| {
        set_condition(&mut conditions, kind, holds, reason, message, host.metadata.generation, now);
    };
    let (yes, no, unknown) = (ConditionStatus::True, ConditionStatus::False, ConditionStatus::Unknown);
    let up = match &view.link {
        Link::Up => {
            set("Reachable", yes, "Connected", String::new());
            true
        }
        Link::Connecting => {
            set("Reachable", unknown, "Connecting", String::new());
            false
        }
        Link::Down { reason, message } => {
            set("Reachable", no, reason, message.clone());
            false
        }
    };
    match (&view.facts, &view.link) {
        (_, Link::Down { reason: "VersionUnsupported", message }) => set("VersionSupported", no, "VersionUnsupported", message.clone()),
        (Some(facts), Link::Up) => {
            if facts.pve_version.split('.').next() == Some(TESTED_PVE) {
                set("VersionSupported", yes, "Supported", String::new());
            } else {
                let text = format!("PVE '{}' is not tested with this version of pvelet, which is for PVE {TESTED_PVE}", facts.pve_version);
                set("VersionSupported", no, "PveUntested", text);
            }
            let quorum_text = "the other nodes of the PVE cluster must come back before anything can be changed here".to_owned();
            let (quorate, reason, text) = if facts.quorate { (yes, "Quorate", String::new()) } else { (no, "NoQuorum", quorum_text) };
            set("Quorate", quorate, reason, text);
            let latch_text =
                "a network change could not be undone; see `pveletctl network status`, put it right, then `pveletctl network clear`";
            let (latched, reason, text) =
                if facts.network_latched { (yes, "RollbackFailed", latch_text.to_owned()) } else { (no, "NotLatched", String::new()) };
            set("NetworkLatched", latched, reason, text);
            let mode_text =
                "the agent only observes; set mode = \"manage\" in its configuration, with a vm.vmid_range, and restart it".to_owned();
            let (manages, reason, text) = if facts.manage { (yes, "Managed", String::new()) } else { (no, "ObserveOnly", mode_text) };
            set("Managed", manages, reason, text);
        }
        _ => {
            for kind in ["VersionSupported", "Quorate", "NetworkLatched", "Managed"] {
                set(kind, unknown, "NotReachable", String::new());
            }
        }
    }
    match view.obstacle().or_else(|| view.out_of_service()) {
        None => set("Ready", yes, "Ready", String::new()),
        Some((reason, message)) => set("Ready", no, reason, message),
    }
    status.conditions = conditions;
    if let Some(facts) = view.facts.as_ref().filter(|_| up) {
        status.agent_version = Some(facts.agent_version.clone());
        status.api_version = Some(facts.api_version.clone());
        status.pve_version = Some(facts.pve_version.clone());
        status.mode = Some(if facts.manage { "manage" } else { "observe" }.to_owned());
        status.quorate = Some(facts.quorate);
        status.capacity = Some(Capacity {
            cpu: facts.threads,
            memory: Some(for_people(facts.memory_bytes)),
            allocated_cpu: u32::try_from(used.cores).unwrap_or(u32::MAX),
            allocated_memory: Some(Quantity(used.memory_mib << 20)),
        });
    }
    status
}

/// Memory in whole MiB, or in whole GiB where there is much, rounded down: what a kernel has of 64 GiB is a number of KiB that nobody can read.
fn for_people(bytes: u64) -> Quantity {
    let unit = if bytes >= 16 << 30 { 1 << 30 } else { 1 << 20 };
    Quantity(bytes / unit * unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        kind::{HostSpec, Metadata},
        reconcile::{Facts, testing},
    };

    type Edit = fn(&mut HostView);

    fn told(view: &HostView) -> HostStatus {
        let spec = HostSpec {
            address: "pve1:7443".into(),
            cluster: "lab".into(),
            node: "pve1".into(),
            cordon: false,
            maintenance: false,
            reserved_memory: Quantity(0),
            cpu_overcommit: 1,
            kubernetes_node: None,
        };
        let host = PveHost {
            metadata: Metadata { name: "pve1".into(), generation: 3, ..Metadata::default() },
            spec,
            status: HostStatus::default(),
        };
        status(&host, view, Size { memory_mib: 2048, cores: 3 }, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn each_state_of_a_host_has_its_conditions() {
        let rows: &[(&str, Edit, &str, ConditionStatus, &str)] = &[
            ("all is well", |_| {}, "Ready", ConditionStatus::True, "Ready"),
            ("all is well: reachable", |_| {}, "Reachable", ConditionStatus::True, "Connected"),
            ("first connection", |v| v.link = Link::Connecting, "Reachable", ConditionStatus::Unknown, "Connecting"),
            ("away", |v| v.link = down("AgentUnreachable"), "Reachable", ConditionStatus::False, "AgentUnreachable"),
            ("away: ready", |v| v.link = down("AgentUnreachable"), "Ready", ConditionStatus::False, "AgentUnreachable"),
            ("away: quorum", |v| v.link = down("AgentUnreachable"), "Quorate", ConditionStatus::Unknown, "NotReachable"),
            ("another host answers", |v| v.link = down("IdentityMismatch"), "Ready", ConditionStatus::False, "IdentityMismatch"),
            (
                "our certificate expired",
                |v| v.link = down("ClientCertificateRefused"),
                "Ready",
                ConditionStatus::False,
                "ClientCertificateRefused",
            ),
            ("another API", |v| v.link = down("VersionUnsupported"), "VersionSupported", ConditionStatus::False, "VersionUnsupported"),
            ("PVE 10", |v| facts(v).pve_version = "10.0.1".into(), "VersionSupported", ConditionStatus::False, "PveUntested"),
            ("PVE 10 is still ready", |v| facts(v).pve_version = "10.0.1".into(), "Ready", ConditionStatus::True, "Ready"),
            ("no quorum", |v| facts(v).quorate = false, "Quorate", ConditionStatus::False, "NoQuorum"),
            ("network well", |_| {}, "NetworkLatched", ConditionStatus::False, "NotLatched"),
            ("network latched", |v| facts(v).network_latched = true, "NetworkLatched", ConditionStatus::True, "RollbackFailed"),
            ("network latched: VMs go on", |v| facts(v).network_latched = true, "Ready", ConditionStatus::True, "Ready"),
            ("observes", |v| facts(v).manage = false, "Managed", ConditionStatus::False, "ObserveOnly"),
            ("observes: ready", |v| facts(v).manage = false, "Ready", ConditionStatus::False, "ObserveOnly"),
            ("HA maintenance", |v| facts(v).maintenance = true, "Ready", ConditionStatus::False, "HostInMaintenance"),
            ("shutting down", |v| facts(v).shutting_down = true, "Ready", ConditionStatus::False, "HostShuttingDown"),
        ];
        for (name, edit, kind, want, reason) in rows {
            let mut view = testing::host("pve1");
            edit(&mut view);
            let status = told(&view);
            let found = status.conditions.iter().find(|c| c.kind == *kind).unwrap();
            assert_eq!((found.status, found.reason.as_str(), found.observed_generation), (*want, *reason, 3), "{name}");
        }
    }

    fn down(reason: &'static str) -> Link {
        Link::Down { reason, message: "because".into() }
    }

    fn facts(view: &mut HostView) -> &mut Facts {
        view.facts.as_mut().unwrap()
    }

    #[test]
    fn memory_is_told_in_a_unit_that_people_read() {
        for (kib, text) in [(65_780_348, "62Gi"), (16_777_216, "16Gi"), (16_777_215, "16383Mi"), (8_056_940, "7868Mi"), (0, "0")] {
            assert_eq!(for_people(kib << 10).to_string(), text);
        }
    }

    #[test]
    fn capacity_tells_what_runs() {
        let capacity = told(&testing::host("pve1")).capacity.unwrap();
        assert_eq!((capacity.allocated_cpu, capacity.allocated_memory), (3, Some(Quantity(2 << 30))));
    }
}
