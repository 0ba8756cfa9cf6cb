//! A host's network in JSON and YAML.

use jiff::Timestamp;
use pvelet_proto::v1::{self, interface_spec::Kind};
use serde::Serialize;

use super::{ErrorView, OperationView, some, time, word};

/// `network show`, `network status`, `network preflight`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct NetworkViews {
    pub(in crate::cli) hosts: Vec<HostNetworkView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

/// The network of a host.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct HostNetworkView {
    pub(in crate::cli) host: String,
    /// Whether a change could not be undone, so that none is made until `network clear`.
    pub(in crate::cli) latched: bool,
    /// Null where there was none.
    pub(in crate::cli) last_change: Option<ChangeView>,
    /// Changes that wait for somebody, PVE's included.
    pub(in crate::cli) pending: Vec<PendingView>,
    pub(in crate::cli) networks: Vec<NetworkView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) links: Option<Vec<LinkView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) routes: Option<Vec<RouteView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::cli) checks: Option<Vec<CheckView>>,
}

impl HostNetworkView {
    /// What `status` shows.
    pub(in crate::cli) fn brief(host: &str, n: &v1::GetNetworkResponse) -> Self {
        Self {
            host: host.to_owned(),
            latched: n.latched,
            last_change: n.last_change.as_ref().map(ChangeView::from),
            pending: n.pending.iter().map(|p| PendingView { kind: p.kind.clone(), detail: p.detail.clone() }).collect(),
            networks: n.networks.iter().map(NetworkView::from).collect(),
            links: None,
            routes: None,
            checks: None,
        }
    }

    /// With links and routes.
    pub(in crate::cli) fn whole(host: &str, n: &v1::GetNetworkResponse) -> Self {
        let routes = n.routes.iter().map(RouteView::from).collect();
        Self { links: Some(n.links.iter().map(LinkView::from).collect()), routes: Some(routes), ..Self::brief(host, n) }
    }

    /// With checks.
    pub(in crate::cli) fn checked(host: &str, n: &v1::GetNetworkResponse, checks: &[v1::NetworkCheck]) -> Self {
        Self { checks: Some(checks.iter().map(CheckView::from).collect()), ..Self::brief(host, n) }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct ChangeView {
    pub(in crate::cli) operation: String,
    pub(in crate::cli) network: String,
    /// "prepared", "applying", "waiting", "confirmed", "rolling_back", "rolled_back", "rollback_failed".
    pub(in crate::cli) state: String,
    begin_time: Option<String>,
    /// By when it must be confirmed; null before it is applied.
    deadline: Option<String>,
    /// Seconds that are left, by this machine's clock; null where none counts.
    pub(in crate::cli) seconds_left: Option<i64>,
    pub(in crate::cli) detail: String,
    pub(in crate::cli) undone_by: String,
}

impl From<&v1::NetworkChange> for ChangeView {
    fn from(c: &v1::NetworkChange) -> Self {
        let waits = c.state() == v1::NetworkChangeState::Waiting;
        let end = c.deadline.as_ref().and_then(|t| Timestamp::new(t.seconds, t.nanos).ok()).filter(|_| waits);
        Self {
            operation: c.operation.clone(),
            network: c.network.clone(),
            state: word(c.state().as_str_name(), "NETWORK_CHANGE_STATE_"),
            begin_time: c.begin_time.as_ref().and_then(time),
            deadline: c.deadline.as_ref().and_then(time),
            seconds_left: end.map(|end| end.duration_since(Timestamp::now()).as_secs().max(0)),
            detail: c.detail.clone(),
            undone_by: c.undone_by.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct PendingView {
    pub(in crate::cli) kind: String,
    pub(in crate::cli) detail: String,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct NetworkView {
    pub(in crate::cli) name: String,
    pub(in crate::cli) tenant: String,
    pub(in crate::cli) in_sync: bool,
    pub(in crate::cli) differences: Vec<String>,
    pub(in crate::cli) vmids: Vec<u32>,
    pub(in crate::cli) interfaces: Vec<InterfaceView>,
}

impl From<&v1::Network> for NetworkView {
    fn from(n: &v1::Network) -> Self {
        let spec = n.spec.clone().unwrap_or_default();
        Self {
            name: spec.name,
            tenant: spec.tenant,
            in_sync: n.in_sync,
            differences: n.differences.clone(),
            vmids: n.vmids.clone(),
            interfaces: spec.interfaces.iter().map(InterfaceView::from).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct InterfaceView {
    pub(in crate::cli) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlan: Option<VlanView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge: Option<BridgeView>,
    /// Null: that of what it stands on.
    mtu: Option<u32>,
    addresses: Vec<String>,
    comment: String,
}

#[derive(Debug, Serialize)]
struct VlanView {
    parent: String,
    id: u32,
    protocol: &'static str,
}

#[derive(Debug, Serialize)]
struct BridgeView {
    ports: Vec<String>,
    vlan_aware: bool,
    vids: Vec<String>,
}

fn protocol(p: v1::VlanProtocol) -> &'static str {
    if p == v1::VlanProtocol::VlanProtocol8021ad { "802.1ad" } else { "802.1Q" }
}

impl From<&v1::InterfaceSpec> for InterfaceView {
    fn from(i: &v1::InterfaceSpec) -> Self {
        let (mut vlan, mut bridge) = (None, None);
        match &i.kind {
            Some(Kind::Vlan(v)) => vlan = Some(VlanView { parent: v.parent.clone(), id: v.id, protocol: protocol(v.protocol()) }),
            Some(Kind::Bridge(b)) => {
                bridge = Some(BridgeView { ports: b.ports.clone(), vlan_aware: b.vlan_aware, vids: b.vids.clone() });
            }
            None => {}
        }
        let mtu = Some(i.mtu).filter(|m| *m > 0);
        Self { name: i.name.clone(), vlan, bridge, mtu, addresses: i.addresses.clone(), comment: i.comment.clone() }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct LinkView {
    pub(in crate::cli) name: String,
    index: u32,
    pub(in crate::cli) kind: String,
    pub(in crate::cli) altnames: Vec<String>,
    pub(in crate::cli) up: bool,
    pub(in crate::cli) carrier: bool,
    pub(in crate::cli) mtu: u32,
    mac: String,
    /// The bridge or bond that it is a port of.
    pub(in crate::cli) master: Option<String>,
    /// What a VLAN stands on.
    pub(in crate::cli) parent: Option<String>,
    pub(in crate::cli) vlan_id: Option<u32>,
    vlan_protocol: Option<&'static str>,
    pub(in crate::cli) vlan_aware: bool,
    /// Of a bridge or its port: "100", "200-299", with " pvid" and " untagged".
    pub(in crate::cli) vlans: Vec<String>,
    pub(in crate::cli) addresses: Vec<String>,
    offloads: Vec<String>,
    pub(in crate::cli) declared_in: Vec<String>,
    /// The agent's network it belongs to.
    pub(in crate::cli) network: Option<String>,
    /// What would be cut with it.
    pub(in crate::cli) management: Vec<String>,
}

impl From<&v1::Link> for LinkView {
    fn from(l: &v1::Link) -> Self {
        let vlan = |v: &v1::BridgeVlan| {
            let range = if v.first == v.last { v.first.to_string() } else { format!("{}-{}", v.first, v.last) };
            format!("{range}{}{}", if v.pvid { " pvid" } else { "" }, if v.untagged { " untagged" } else { "" })
        };
        let is_vlan = l.vlan_id > 0;
        Self {
            name: l.name.clone(),
            index: l.index,
            kind: l.kind.clone(),
            altnames: l.altnames.clone(),
            up: l.up,
            carrier: l.carrier,
            mtu: l.mtu,
            mac: l.mac.clone(),
            master: some(&l.master),
            parent: some(&l.parent),
            vlan_id: is_vlan.then_some(l.vlan_id),
            vlan_protocol: is_vlan.then(|| protocol(l.vlan_protocol())),
            vlan_aware: l.vlan_aware,
            vlans: l.vlans.iter().map(vlan).collect(),
            addresses: l.addresses.clone(),
            offloads: l.offloads.clone(),
            declared_in: l.declared_in.clone(),
            network: some(&l.network),
            management: l.management.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct RouteView {
    pub(in crate::cli) destination: String,
    pub(in crate::cli) gateway: Option<String>,
    pub(in crate::cli) link: String,
    pub(in crate::cli) metric: u32,
    pub(in crate::cli) family: u32,
}

impl From<&v1::Route> for RouteView {
    fn from(r: &v1::Route) -> Self {
        let (destination, link) = (r.destination.clone(), r.link.clone());
        Self { destination, gateway: some(&r.gateway), link, metric: r.metric, family: r.family }
    }
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct CheckView {
    pub(in crate::cli) id: String,
    /// "ok", "failed", "unknown", "not_applicable".
    pub(in crate::cli) state: String,
    /// "info", "warning", "error".
    pub(in crate::cli) severity: String,
    pub(in crate::cli) seen: String,
    pub(in crate::cli) why: String,
    pub(in crate::cli) remedy: String,
    pub(in crate::cli) interfaces: Vec<String>,
}

impl From<&v1::NetworkCheck> for CheckView {
    fn from(c: &v1::NetworkCheck) -> Self {
        Self {
            id: c.id.clone(),
            state: word(c.state().as_str_name(), "CHECK_STATE_"),
            severity: word(c.severity().as_str_name(), "CHECK_SEVERITY_"),
            seen: c.seen.clone(),
            why: c.why.clone(),
            remedy: c.remedy.clone(),
            interfaces: c.interfaces.clone(),
        }
    }
}

/// `network plan`, and what `apply` and `remove` print.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct PlanView {
    pub(in crate::cli) host: String,
    pub(in crate::cli) network: String,
    /// One line each, with `+`, `-` or `~` in front; none: it is so already.
    pub(in crate::cli) changes: Vec<String>,
    /// In this order.
    pub(in crate::cli) steps: Vec<StepView>,
    /// A unified diff.
    pub(in crate::cli) file_diff: String,
    /// Those that failed.
    pub(in crate::cli) checks: Vec<CheckView>,
    /// Null where nothing was sent.
    pub(in crate::cli) operation: Option<OperationView>,
    /// Null where nothing was changed.
    pub(in crate::cli) change: Option<ChangeView>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct StepView {
    /// "down", "up", "change".
    pub(in crate::cli) action: String,
    pub(in crate::cli) interface: String,
}

impl PlanView {
    pub(in crate::cli) fn new(host: &str, network: &str, told: &v1::PlanNetworkResponse) -> Self {
        let plan = told.plan.clone().unwrap_or_default();
        let step =
            |s: &v1::NetworkStep| StepView { action: word(s.action().as_str_name(), "NETWORK_ACTION_"), interface: s.interface.clone() };
        let failed = told.checks.iter().filter(|c| c.state() == v1::CheckState::Failed);
        Self {
            host: host.to_owned(),
            network: network.to_owned(),
            steps: plan.steps.iter().map(step).collect(),
            changes: plan.changes,
            file_diff: plan.file_diff,
            checks: failed.map(CheckView::from).collect(),
            operation: None,
            change: None,
        }
    }

    pub(in crate::cli) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.file_diff.is_empty()
    }
}

/// `network probe`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct ProbeView {
    pub(in crate::cli) from: String,
    /// Null where addresses were asked for.
    pub(in crate::cli) to: Option<String>,
    pub(in crate::cli) interface: String,
    pub(in crate::cli) vlan: Option<u32>,
    /// Null where addresses were asked for.
    pub(in crate::cli) reached: Option<ReachedView>,
    /// Who has one of the addresses; null where a host was tried.
    pub(in crate::cli) holders: Option<Vec<HolderView>>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct ReachedView {
    pub(in crate::cli) answers: u32,
    pub(in crate::cli) largest_mtu: u32,
    pub(in crate::cli) wanted_mtu: u32,
    pub(in crate::cli) rtt_us: u64,
    /// Null where all got through.
    pub(in crate::cli) problem: Option<String>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct HolderView {
    pub(in crate::cli) address: String,
    pub(in crate::cli) mac: String,
}

/// `network confirm`, `network rollback`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct ChangedView {
    pub(in crate::cli) host: String,
    pub(in crate::cli) change: Option<ChangeView>,
}
