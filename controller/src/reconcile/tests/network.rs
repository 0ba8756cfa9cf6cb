//! Networks, from the manifest to the agents and back.

use std::{fs, sync::Arc};

use pvelet_proto::{id::OperationName, reason, v1};
use tonic::{Code, Status};

use super::{
    Bench, Running,
    cluster::{Cluster, Told},
    through_crash, until, until_gone_of,
};
use crate::{
    agents::fake::{
        network::{Book, Net},
        refusal,
    },
    crash::testing as crash,
    kind::{Condition, ConditionStatus, Network, NetworkHostState as State, PveNetwork},
    store::folder::FolderStore,
};

/// The operations of one node of the cluster in memory.
pub(super) struct NodeBook {
    pub(super) cluster: Arc<Cluster>,
    pub(super) node: String,
}

impl Book for NodeBook {
    fn begin(&self, meta: &v1::RequestMeta, kind: v1::OperationKind, network: &str) -> Result<(v1::Operation, bool), Status> {
        let mut state = self.cluster.lock();
        assert!(meta.controller_epoch.is_some() || meta.request_id.starts_with("person"), "a controller's call without its epoch");
        let call = if kind == v1::OperationKind::ApplyNetwork { "ApplyNetwork" } else { "RemoveNetwork" };
        state.asked.push((self.node.clone(), call, meta.request_id.clone()));
        if let Some(known) = state.operations.get(&self.node).into_iter().flatten().find(|o| o.request_id == meta.request_id) {
            return Ok((known.clone(), false));
        }
        state.revision += 1;
        let operation = v1::Operation {
            name: OperationName::random().to_string(),
            request_id: meta.request_id.clone(),
            tenant: meta.tenant.clone(),
            kind: kind.into(),
            state: v1::OperationState::Running.into(),
            network: network.to_owned(),
            revision: state.revision,
            ..v1::Operation::default()
        };
        state.operations.entry(self.node.clone()).or_default().push(operation.clone());
        let lose = std::mem::take(&mut state.lose_answer);
        let _ = self.cluster.told.send(Told::Operation(self.node.clone(), operation.clone()));
        if lose { Err(Status::unavailable("transport error")) } else { Ok((operation, true)) }
    }

    fn update(&self, mut operation: v1::Operation) {
        let mut state = self.cluster.lock();
        state.revision += 1;
        operation.revision = state.revision;
        if let Some(kept) = state.operations.get_mut(&self.node).and_then(|all| all.iter_mut().find(|o| o.name == operation.name)) {
            kept.clone_from(&operation);
        }
        let _ = self.cluster.told.send(Told::Operation(self.node.clone(), operation));
    }
}

const THREE: &str = "hosts: {names: [pve1, pve2, pve3]}, interfaces: [{name: eth1.100, vlan: {parent: eth1, id: 100}}]";

impl Bench {
    async fn three() -> Self {
        Self::new(&["pve1", "pve2", "pve3"]).await
    }

    fn add_network(&self, spec: &str, annotations: &str) {
        let metadata = format!("{{name: storage, annotations: {{{annotations}}}}}");
        let text = format!("apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {metadata}\nspec: {{{spec}}}\n");
        self.write("network.yaml", &text);
    }

    fn net<T>(&self, host: usize, edit: impl FnOnce(&mut Net) -> T) -> T {
        edit(&mut self.agents[host].network.lock())
    }

    fn have(&self) -> Vec<bool> {
        self.agents.iter().map(|a| a.network.lock().has("storage")).collect()
    }

    fn calls(&self, host: usize) -> Vec<String> {
        self.net(host, |net| net.calls.clone())
    }
}

fn condition<'n>(network: &'n PveNetwork, kind: &str) -> Option<&'n Condition> {
    network.status.conditions.iter().find(|c| c.kind == kind)
}

fn ready(network: &PveNetwork) -> bool {
    condition(network, "Ready").is_some_and(|c| c.status == ConditionStatus::True && c.observed_generation == network.metadata.generation)
}

fn degraded(reason: &'static str) -> impl Fn(&PveNetwork) -> bool {
    move |n| condition(n, "Degraded").is_some_and(|c| c.status == ConditionStatus::True && c.reason == reason)
}

fn states(network: &PveNetwork) -> Vec<State> {
    network.status.hosts.iter().map(|h| h.state).collect()
}

async fn up(running: &Running, names: &[&str]) {
    for name in names {
        let is_up = |h: &crate::kind::PveHost| h.status.conditions.iter().any(|c| c.kind == "Ready" && c.status == ConditionStatus::True);
        running.until::<crate::kind::Host>(name, is_up).await;
    }
}

#[tokio::test]
async fn a_network_comes_to_each_host_in_turn_probed_and_confirmed_over_a_new_connection() {
    let bench = Bench::three().await;
    let running = bench.start().await;
    bench.add_network(THREE, "");
    let network = running.until::<Network>("storage", ready).await;
    assert_eq!(bench.have(), [true; 3]);
    assert_eq!(states(&network), [State::Ready; 3]);
    let order: Vec<String> = bench.cluster.lock().asked.iter().map(|(node, ..)| node.clone()).collect();
    assert_eq!(order, ["pve1", "pve2", "pve3"]);
    // The fakes refuse confirmations over connections that are older than the change.
    assert_eq!(bench.calls(0), ["apply storage", "confirm"]);
    assert_eq!(bench.calls(1), ["apply storage", "probe eth1.100 0", "confirm"]);
    assert_eq!(bench.calls(2), ["apply storage", "probe eth1.100 0", "probe eth1.100 0", "confirm"]);
    let peers: Vec<&str> = network.status.hosts[2].probes.iter().map(|p| p.peer.as_str()).collect();
    assert_eq!(peers, ["pve1", "pve2"]);
    let uid = &network.metadata.uid;
    let ids: Vec<String> = bench.cluster.lock().asked.iter().map(|(_, _, id)| id.clone()).collect();
    assert_eq!(ids, [1, 2, 3].map(|n| format!("{uid}:apply:1:pve{n}:{n}")));
}

#[tokio::test]
async fn a_vlan_that_does_not_reach_the_others_is_undone_and_the_next_hosts_are_left_alone() {
    let bench = Bench::three().await;
    bench.net(1, |net| net.deaf = true);
    let running = bench.start().await;
    bench.add_network(THREE, "");
    let network = running.until::<Network>("storage", degraded("ProbeFailed")).await;
    assert_eq!(states(&network), [State::Ready, State::RolledBack, State::Pending]);
    assert_eq!(network.status.failed_host.as_deref(), Some("pve2"));
    assert_eq!(bench.have(), [true, false, false]);
    let message = &condition(&network, "Ready").unwrap().message;
    assert!(message.starts_with("pve2: eth1.100 to pve1: no answer came"), "{message}");
    assert!(message.contains("annotation pvelet.dev/retry"), "{message}");
    // The cable was put right, and somebody says so.
    bench.net(1, |net| net.deaf = false);
    bench.add_network(THREE, "pvelet.dev/retry: '1'");
    running.until::<Network>("storage", ready).await;
    assert_eq!(bench.have(), [true; 3]);
    assert_eq!(bench.calls(1).iter().filter(|c| *c == "apply storage").count(), 2);
}

#[tokio::test]
async fn a_switch_that_carries_no_jumbo_frames_is_found() {
    let bench = Bench::three().await;
    for host in 0..3 {
        bench.net(host, |net| (net.interface_mtu, net.path_mtu) = (9000, 1500));
    }
    let running = bench.start().await;
    bench.add_network(THREE, "");
    let network = running.until::<Network>("storage", degraded("ProbeFailed")).await;
    assert!(condition(&network, "Degraded").unwrap().message.contains("MTU 9000 do not get through, only up to 1500"));
    assert_eq!(network.status.hosts[1].probes[0].mtu, 1500);
    // A changed spec is tried at once.
    bench.add_network(&format!("{THREE}, probe: {{mtu: 1500}}"), "");
    running.until::<Network>("storage", ready).await;
}

#[tokio::test]
async fn a_host_that_undoes_the_change_itself_stops_the_rest() {
    let bench = Bench::three().await;
    bench.net(0, |net| net.bad = true);
    let running = bench.start().await;
    bench.add_network(THREE, "");
    let network = running.until::<Network>("storage", degraded("NetworkRolledBack")).await;
    assert_eq!(states(&network), [State::RolledBack, State::Pending, State::Pending]);
    assert!(condition(&network, "Degraded").unwrap().message.contains("verification failed: no carrier"));
    assert_eq!(bench.have(), [false; 3]);
    assert_eq!(bench.cluster.lock().asked.len(), 1);
}

#[tokio::test]
async fn a_refusal_is_told_and_the_hosts_after_it_wait() {
    let bench = Bench::three().await;
    bench.net(1, |net| net.refusal = Some(refusal(Code::FailedPrecondition, "interfaces.new waits", reason::FOREIGN_CHANGE_PENDING, None)));
    let running = bench.start().await;
    bench.add_network(THREE, "");
    let network = running.until::<Network>("storage", degraded("ForeignChangePending")).await;
    assert_eq!(states(&network), [State::Ready, State::Failed, State::Pending]);
    assert_eq!(bench.have(), [true, false, false]);
    assert!(network.status.hosts[1].failure.as_ref().unwrap().retry_time.is_some(), "nothing was touched, so it is tried again");
}

#[tokio::test]
async fn a_host_that_is_away_holds_those_after_it_and_goes_on_when_it_is_back() {
    let bench = Bench::new(&["pve1"]).await;
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    bench.add_host("pve2", &free.to_string());
    bench.add_host("pve3", &bench.agents[0].address.to_string());
    let running = bench.start().await;
    bench.add_network(THREE, "");
    let waits =
        |n: &PveNetwork| n.status.hosts.get(1).is_some_and(|h| h.reason == "AgentUnreachable") && n.status.hosts[0].state == State::Ready;
    let network = running.until::<Network>("storage", waits).await;
    assert_eq!(states(&network), [State::Ready, State::Pending, State::Pending]);
    let progressing = condition(&network, "Progressing").unwrap();
    assert_eq!((progressing.status, progressing.reason.as_str()), (ConditionStatus::True, "AgentUnreachable"));
}

#[tokio::test]
async fn a_removed_manifest_removes_the_network_host_by_host_and_users_hold_it() {
    let bench = Bench::three().await;
    let running = bench.start().await;
    bench.add_network(THREE, "");
    running.until::<Network>("storage", ready).await;
    bench.net(1, |net| net.users = vec![104, 105]);
    fs::remove_file(bench.path().join("network.yaml")).unwrap();
    let held = |n: &PveNetwork| n.status.hosts.len() == 1 && n.status.hosts[0].reason == "NetworkInUse";
    let network = running.until::<Network>("storage", held).await;
    assert_eq!(bench.have(), [false, true, false]);
    assert!(network.status.hosts[0].message.contains("users: VM 104, VM 105"), "{}", network.status.hosts[0].message);
    assert_eq!(bench.calls(0)[2..], ["remove storage", "confirm"]);
    bench.net(1, |net| net.users.clear());
    running.kill().await;
    // A new process looks again once the pause is over.
    let path = bench.path().join("pvenetwork.storage.status.yaml");
    let mut record: serde_json::Value = serde_norway::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    record["status"]["hosts"][0]["failure"] = serde_json::Value::Null;
    fs::write(&path, serde_norway::to_string(&record).unwrap()).unwrap();
    let running = bench.start().await;
    until_gone_of::<Network>(&running.store, "storage").await;
    assert_eq!(bench.have(), [false; 3]);
}

#[tokio::test]
async fn a_host_that_is_no_longer_selected_loses_the_network_unless_it_is_retained() {
    let bench = Bench::three().await;
    let running = bench.start().await;
    bench.add_network(THREE, "");
    running.until::<Network>("storage", ready).await;
    bench.add_network(&THREE.replace("pve1, pve2, pve3", "pve1, pve3"), "");
    let network = running.until::<Network>("storage", |n| ready(n) && n.status.hosts.len() == 2).await;
    assert_eq!((bench.have(), states(&network)), (vec![true, false, true], vec![State::Ready; 2]));
    bench.add_network(&format!("{}, deletionPolicy: Retain", THREE.replace("pve1, pve2, pve3", "pve1")), "");
    running.until::<Network>("storage", |n| ready(n) && n.status.hosts.len() == 1).await;
    assert_eq!(bench.have(), [true, false, true]);
}

#[tokio::test]
async fn a_controller_killed_between_any_two_steps_leaves_every_host_confirmed_once() {
    let mut crashes = 0;
    for name in crash::NETWORK {
        for nth in [1, 2, 4] {
            let bench = Bench::new(&["pve1", "pve2"]).await;
            let two = THREE.replace(", pve3", "");
            let crash = crash::arm(name, nth);
            let running = bench.start().await;
            bench.add_network(&two, "");
            let made = |store: Arc<FolderStore>| async move { drop(until::<Network>(&store, "storage", ready).await) };
            let running = through_crash(&bench, running, &crash, made).await;
            assert_eq!(bench.have(), [true; 2], "{name} {nth}");
            crashes += u32::from(crash.is_cancelled());
            // Each change was made once, whatever was sent twice.
            let operations = bench.cluster.lock().operations.values().flatten().count();
            assert_eq!(operations, 2, "{name} {nth}");

            let crash = crash::arm(name, nth);
            fs::remove_file(bench.path().join("network.yaml")).unwrap();
            let gone = |store: Arc<FolderStore>| async move { until_gone_of::<Network>(&store, "storage").await };
            drop(through_crash(&bench, running, &crash, gone).await);
            assert_eq!(bench.have(), [false; 2], "{name} {nth}");
            crashes += u32::from(crash.is_cancelled());
        }
    }
    assert!(crashes >= 20, "only {crashes} crash points were reached");
}

#[tokio::test]
async fn a_controller_killed_while_a_bad_change_is_undone_does_not_confirm_it() {
    for name in ["network.status.stored", "network.probed", "network.rolled_back"] {
        for nth in [1, 3, 5, 7] {
            let bench = Bench::new(&["pve1", "pve2"]).await;
            bench.net(1, |net| net.deaf = true);
            let crash = crash::arm(name, nth);
            let running = bench.start().await;
            bench.add_network(&THREE.replace(", pve3", ""), "");
            let stopped = |store: Arc<FolderStore>| async move { drop(until::<Network>(&store, "storage", degraded("ProbeFailed")).await) };
            drop(through_crash(&bench, running, &crash, stopped).await);
            assert_eq!(bench.have(), [true, false], "{name} {nth}");
            assert!(!bench.calls(1).contains(&"confirm".to_owned()), "{name} {nth}");
        }
    }
}

#[tokio::test]
async fn a_controller_that_comes_back_while_a_host_waits_confirms_it_or_finds_it_undone() {
    for in_time in [true, false] {
        let bench = Bench::new(&["pve1"]).await;
        bench.net(0, |net| net.stall = true);
        let running = bench.start().await;
        bench.add_network(&THREE.replace(", pve2, pve3", ""), "");
        running.until::<Network>("storage", |n| n.status.operation.as_ref().is_some_and(|o| o.name.is_some())).await;
        running.kill().await;
        bench.net(0, |net| net.stall = false);
        bench.agents[0].network.go_on();
        if !in_time {
            bench.agents[0].network.expire();
        }
        let running = bench.start().await;
        if in_time {
            running.until::<Network>("storage", ready).await;
        } else {
            running.until::<Network>("storage", degraded("NetworkRolledBack")).await;
        }
        assert_eq!(bench.have(), [in_time]);
        assert_eq!(bench.cluster.lock().asked.len(), 1);
    }
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_change() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    up(&running, &["pve1"]).await;
    bench.cluster.lock().lose_answer = true;
    bench.net(0, |net| net.stall = true);
    bench.add_network(&THREE.replace(", pve2, pve3", ""), "");
    running.until::<Network>("storage", |n| n.status.operation.as_ref().is_some_and(|o| o.name.is_some())).await;
    assert_eq!(bench.cluster.lock().operations.values().flatten().count(), 1);
}

#[tokio::test]
async fn two_networks_never_change_two_hosts_at_once() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    bench.net(0, |net| net.stall = true);
    let running = bench.start().await;
    up(&running, &["pve1", "pve2"]).await;
    bench.add_network(&THREE.replace(", pve2, pve3", ""), "");
    running.until::<Network>("storage", |n| n.status.operation.as_ref().is_some_and(|o| o.name.is_some())).await;
    let text = "apiVersion: pvelet.dev/v1alpha1\nkind: PveNetwork\nmetadata: {name: guests}\nspec: {hosts: {names: [pve2]}, interfaces: [{name: vmbr9, bridge: {}}]}\n";
    bench.write("guests.yaml", text);
    let network = running.until::<Network>("guests", |n| n.status.hosts.first().is_some_and(|h| h.reason == "WaitingForTurn")).await;
    assert!(network.status.hosts[0].message.contains("pve1 for PveNetwork storage is first"), "{}", network.status.hosts[0].message);
    // The first host can no longer be asked, but its change may be under way still.
    fs::remove_file(bench.path().join("host-pve1.yaml")).unwrap();
    running.until::<Network>("storage", |n| n.status.hosts.first().is_some_and(|h| h.reason == "HostNotFound")).await;
    bench.write("guests.yaml", &text.replace("bridge: {}", "bridge: {}, comment: again"));
    let waits = |n: &PveNetwork| n.status.observed_generation == 2 && n.status.hosts[0].reason == "WaitingForTurn";
    running.until::<Network>("guests", waits).await;
    assert!(bench.calls(1).is_empty());
    bench.add_host("pve1", &bench.agents[0].address.to_string());
    bench.agents[0].network.go_on();
    running.until::<Network>("storage", ready).await;
    running.until::<Network>("guests", ready).await;
}

#[tokio::test]
async fn an_interface_that_another_bridge_has_as_a_port_is_tried_at_that_bridge() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    let link = |name: &str, kind: &str, master: &str| v1::Link {
        name: name.into(),
        kind: kind.into(),
        master: master.into(),
        ..v1::Link::default()
    };
    bench.net(1, |net| net.links = vec![link("eth1.100", "vlan", "vmbr100"), link("vmbr100", "bridge", "")]);
    let running = bench.start().await;
    // The VLAN may carry more than the bridge on it.
    bench.add_network(&THREE.replace(", pve3", "").replace("{name: eth1.100,", "{name: eth1.100, mtu: 9000,"), "");
    let network = running.until::<Network>("storage", ready).await;
    assert_eq!(bench.calls(1), ["apply storage", "probe vmbr100 0", "confirm"]);
    assert_eq!(network.status.hosts[1].probes[0].interface, "eth1.100");
}
