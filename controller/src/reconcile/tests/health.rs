//! Hosts' health, from the agents to the conditions, and to Nodes of Kubernetes.

use std::{fs, net::SocketAddr, sync::Arc};

use pvelet_proto::v1::{self, CheckState, HealthCheck};
use tokio::time::timeout;

use super::{Bench, DEADLINE, ready, through_crash, until, until_gone_of};
use crate::{
    agents::fake::health::check,
    crash::testing as crash,
    kind::{Condition, ConditionStatus, Host, Machine, PveHost},
    nodes::{Minor, NodeView, Nodes, fake::FakeNodes},
    store::folder::FolderStore,
};

fn condition<'a>(host: &'a PveHost, kind: &str) -> Option<&'a Condition> {
    host.status.conditions.iter().find(|c| c.kind == kind)
}

fn is(kind: &'static str, status: ConditionStatus, reason: &'static str) -> impl Fn(&PveHost) -> bool {
    move |host| condition(host, kind).is_some_and(|c| (c.status, c.reason.as_str()) == (status, reason))
}

use ConditionStatus::{False, True, Unknown};

impl Bench {
    /// Agents, and Nodes of the same names; `wish` is what each host wants there.
    async fn with_nodes(names: &[&str], wish: &str) -> Self {
        let mut bench = Self::new(names).await;
        bench.nodes = Some(Arc::new(FakeNodes::new(names)));
        for name in names {
            bench.wish(name, wish);
        }
        bench
    }

    /// Rewrites a host's manifest with this wish.
    fn wish(&self, name: &str, wish: &str) {
        let index: usize = name.trim_start_matches("pve").parse().unwrap();
        self.wish_at(name, wish, self.agents[index - 1].address);
    }

    fn wish_at(&self, name: &str, wish: &str, address: SocketAddr) {
        let text = format!(
            "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata: {{name: {name}}}\n\
             spec: {{address: '{address}', cluster: lab, node: {name}{wish}}}\n"
        );
        self.write(&format!("host-{name}.yaml"), &text);
    }

    fn fail(&self, host: usize, id: &str) {
        self.agents[host].health.set(check(id, CheckState::Failed));
    }

    fn mend(&self, host: usize, id: &str) {
        self.agents[host].health.set(check(id, CheckState::Ok));
    }

    fn node(&self, name: &str) -> NodeView {
        self.nodes.as_ref().unwrap().view(name)
    }
}

const AT_ONCE: &str = ", kubernetesNode: {taint: NoSchedule, failedAfter: 0s, wellAfter: 0s}";

#[tokio::test]
async fn a_sick_containerd_is_a_condition_and_stops_no_vm() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    let host = running.until::<Host>("pve1", is("ContainerdHealthy", True, "AllChecksOk")).await;
    for (kind, reason) in [("KubeletHealthy", "NotApplicable"), ("HostHealthy", "AllChecksOk"), ("NetworkHealthy", "AllChecksOk")] {
        assert!(is(kind, True, reason)(&host), "{kind}: {:?}", condition(&host, kind));
    }
    assert!(is("RepairLatched", False, "NotLatched")(&host));
    assert!(condition(&host, "NodeInSync").is_none() && host.metadata.finalizers.is_empty());
    let seen = "/etc/containerd/config.toml:12: runtime 'runc' has no runtime_type".to_owned();
    bench.agents[0].health.set(HealthCheck { seen, ..check("containerd.runtime-type", CheckState::Failed) });
    let host = running.until::<Host>("pve1", is("ContainerdHealthy", False, "ContainerdRuntimeType")).await;
    let message = &condition(&host, "ContainerdHealthy").unwrap().message;
    assert_eq!(
        *message,
        "containerd.runtime-type is failed: /etc/containerd/config.toml:12: runtime 'runc' has no runtime_type; put containerd.runtime-type right"
    );
    assert!(is("Ready", True, "Ready")(&host));
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", ready).await;
}

#[tokio::test]
async fn a_clock_that_is_ahead_and_a_latch_are_told() {
    let bench = Bench::new(&["pve1", "pve2"]).await;
    bench.agents[0].health.lock().ahead = Some(0);
    bench.agents[1].health.lock().ahead = Some(40);
    let repair = bench.agents[1].health.lock().health.repair.take().unwrap();
    let latched = v1::RepairStatus { latched: true, latch_reason: "two repairs have failed".into(), ..repair };
    bench.agents[1].health.lock().health.repair = Some(latched);
    let running = bench.start().await;
    running.until::<Host>("pve1", is("ClockInSync", True, "InSync")).await;
    let host = running.until::<Host>("pve2", is("ClockInSync", False, "ClockAhead")).await;
    assert!(condition(&host, "ClockInSync").unwrap().message.contains("more than 10 s ahead of"));
    let host = running.until::<Host>("pve2", is("RepairLatched", True, "RepairsFailed")).await;
    assert!(
        condition(&host, "RepairLatched").unwrap().message.contains("two repairs have failed; look at the host, then pveletctl repair")
    );
}

#[tokio::test]
async fn an_agent_that_does_not_tell_health_is_a_condition_and_no_failure() {
    let bench = Bench::new(&["pve1"]).await;
    bench.agents[0].health.lock().old = true;
    let running = bench.start().await;
    let host = running.until::<Host>("pve1", is("ContainerdHealthy", Unknown, "NotOffered")).await;
    assert!(condition(&host, "HostHealthy").unwrap().message.contains("upgrade pvelet-agent"));
    running.until::<Host>("pve1", is("Ready", True, "Ready")).await;
    bench.add_machine("web-1", "");
    running.until::<Machine>("web-1", ready).await;
}

#[tokio::test]
async fn a_stream_that_breaks_is_opened_again_and_nothing_is_told_for_it() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    running.until::<Host>("pve1", is("HostHealthy", True, "AllChecksOk")).await;
    let health = &bench.agents[0].health;
    health.cut();
    while health.watched() {
        tokio::task::yield_now().await;
    }
    while !health.watched() {
        tokio::task::yield_now().await;
    }
    bench.fail(0, "host.quorum");
    let host = running.until::<Host>("pve1", is("HostHealthy", False, "HostQuorum")).await;
    assert!(is("ContainerdHealthy", True, "AllChecksOk")(&host));
    assert!(is("Reachable", True, "Connected")(&host));
}

#[tokio::test]
async fn what_flaps_is_written_once() {
    let bench = Bench::new(&["pve1"]).await;
    let running = bench.start().await;
    running.until::<Host>("pve1", is("HostHealthy", True, "AllChecksOk")).await;
    bench.fail(0, "host.quorum");
    let failed = is("HostHealthy", False, "HostQuorum");
    let before = running.until::<Host>("pve1", &failed).await;
    for _ in 0..50 {
        bench.mend(0, "host.quorum");
        bench.fail(0, "host.quorum");
    }
    // What is told behind all of them.
    bench.fail(0, "net.source-line");
    let after = running.until::<Host>("pve1", is("NetworkHealthy", False, "NetSourceLine")).await;
    assert!(failed(&after));
    let version = |h: &PveHost| h.metadata.resource_version.parse::<u64>().unwrap();
    assert_eq!(version(&after), version(&before) + 1, "only the second condition was written");
}

#[tokio::test]
async fn a_node_is_tainted_while_its_host_is_not_well_and_no_longer() {
    let bench = Bench::with_nodes(&["pve1", "pve2"], AT_ONCE).await;
    let running = bench.start().await;
    let host = running.until::<Host>("pve1", is("NodeInSync", True, "InSync")).await;
    assert!(is("VersionSkew", False, "Supported")(&host));
    let standing = bench.node("pve1").condition.unwrap();
    assert_eq!((standing.status.as_str(), standing.reason.as_str()), ("True", "Healthy"));
    bench.fail(0, "containerd.runtime-type");
    // What is not of the groups that count.
    bench.fail(1, "host.quorum");
    let host = running.until::<Host>("pve1", |h| h.status.kubernetes_node.as_ref().is_some_and(|n| n.unhealthy)).await;
    assert_eq!(host.metadata.finalizers, ["pvelet.dev/host"]);
    let nodes = bench.nodes.clone().unwrap();
    wait(&bench, |nodes| nodes.view("pve1").taints == ["NoSchedule"]).await;
    running.until::<Host>("pve2", is("HostHealthy", False, "HostQuorum")).await;
    wait(&bench, |nodes| nodes.view("pve1").condition.is_some_and(|c| c.status == "False" && c.reason == "ContainerdRuntimeType")).await;
    assert!(bench.node("pve2").taints.is_empty() && bench.node("pve2").condition.unwrap().status == "True");
    bench.mend(0, "containerd.runtime-type");
    wait(&bench, |nodes| nodes.view("pve1").taints.is_empty() && nodes.view("pve1").condition.unwrap().status == "True").await;
    let writes = nodes.lock().writes.clone();
    let of = |node: &str| writes.iter().filter(|w| w.starts_with(node)).map(|w| w[5..].to_owned()).collect::<Vec<_>>();
    assert_eq!(
        of("pve1"),
        ["condition True Healthy", "taint NoSchedule", "condition False ContainerdRuntimeType", "taint gone", "condition True Healthy"]
    );
    assert_eq!(of("pve2"), ["condition True Healthy"]);
}

/// Waits until the Nodes are as wanted.
async fn wait(bench: &Bench, done: impl Fn(&FakeNodes) -> bool) {
    let nodes = bench.nodes.clone().unwrap();
    let mut changes = nodes.changes().unwrap();
    let waited = timeout(DEADLINE, async {
        while !done(&nodes) {
            changes.recv().await.unwrap();
        }
    });
    assert!(waited.await.is_ok(), "{:#?}", nodes.lock().nodes);
}

#[tokio::test]
async fn a_wish_that_is_withdrawn_or_a_host_that_goes_takes_everything_away() {
    let bench = Bench::with_nodes(&["pve1", "pve2"], AT_ONCE).await;
    bench.fail(0, "containerd.runtime-type");
    bench.fail(1, "containerd.runtime-type");
    let running = bench.start().await;
    wait(&bench, |nodes| nodes.view("pve1").condition.is_some() && nodes.view("pve2").condition.is_some()).await;
    assert_eq!(bench.node("pve1").taints, ["NoSchedule"]);
    bench.wish("pve1", "");
    let host = running.until::<Host>("pve1", |h| h.status.kubernetes_node.is_none() && h.metadata.finalizers.is_empty()).await;
    assert_eq!(bench.node("pve1"), NodeView { kubelet: "v1.33.1".into(), ..NodeView::default() });
    running.until::<Host>("pve1", |h| condition(h, "NodeInSync").is_none() && condition(h, "VersionSkew").is_none()).await;
    assert!(is("ContainerdHealthy", False, "ContainerdRuntimeType")(&host));
    fs::remove_file(bench.path().join("host-pve2.yaml")).unwrap();
    until_gone_of::<Host>(&running.store, "pve2").await;
    assert_eq!(bench.node("pve2"), NodeView { kubelet: "v1.33.1".into(), ..NodeView::default() });
}

#[tokio::test]
async fn a_host_cannot_go_while_its_node_cannot_be_cleaned_unless_it_is_abandoned() {
    let bench = Bench::with_nodes(&["pve1"], AT_ONCE).await;
    bench.fail(0, "containerd.runtime-type");
    let running = bench.start().await;
    let nodes = bench.nodes.clone().unwrap();
    wait(&bench, |nodes| nodes.view("pve1").condition.is_some()).await;
    nodes.change(|s| s.away = true);
    fs::remove_file(bench.path().join("host-pve1.yaml")).unwrap();
    let waits = "what was put on Node pve1 is still to be taken away: connection refused";
    let host = running.until::<Host>("pve1", |h| condition(h, "NodeInSync").is_some_and(|c| c.message == waits)).await;
    assert!(host.is_deleting() && is("NodeInSync", Unknown, "ApiServerUnreachable")(&host));
    nodes.change(|s| s.away = false);
    until_gone_of::<Host>(&running.store, "pve1").await;
    assert!(bench.node("pve1").taints.is_empty());

    bench.wish("pve1", AT_ONCE);
    wait(&bench, |nodes| nodes.view("pve1").condition.is_some()).await;
    nodes.change(|s| s.away = true);
    fs::remove_file(bench.path().join("host-pve1.yaml")).unwrap();
    running.until::<Host>("pve1", PveHost::is_deleting).await;
    let text = format!(
        "apiVersion: pvelet.dev/v1alpha1\nkind: PveHost\nmetadata: {{name: pve1, annotations: {{pvelet.dev/abandon: 'true'}}}}\n\
         spec: {{address: '{}', cluster: lab, node: pve1}}\n",
        bench.agents[0].address
    );
    bench.write("host-pve1.yaml", &text);
    running.until::<Host>("pve1", |h| !h.is_deleting()).await;
    assert_eq!(bench.node("pve1").taints, ["NoSchedule"]);
}

#[tokio::test]
async fn why_a_node_says_nothing_is_told() {
    let bench = Bench::with_nodes(&["pve1", "pve2"], AT_ONCE).await;
    let nodes = bench.nodes.clone().unwrap();
    let taken = nodes.lock().nodes.remove("pve1").unwrap();
    let running = bench.start().await;
    running.until::<Host>("pve1", is("NodeInSync", False, "NodeNotFound")).await;
    nodes.change(|s| drop(s.nodes.insert("pve1".into(), taken)));
    running.until::<Host>("pve1", is("NodeInSync", True, "InSync")).await;
    nodes.change(|s| s.away = true);
    let host = running.until::<Host>("pve1", is("NodeInSync", Unknown, "ApiServerUnreachable")).await;
    assert!(is("Ready", True, "Ready")(&host) && is("VersionSkew", Unknown, "NotKnown")(&host));
    nodes.change(|s| (s.away, s.server) = (false, Minor::parse("v1.32.0")));
    let host = running.until::<Host>("pve1", is("VersionSkew", True, "KubeletNewer")).await;
    assert!(condition(&host, "VersionSkew").unwrap().message.contains("the kubelet is v1.33.1, newer than the API server (1.32)"));
    bench.wish("pve2", ", kubernetesNode: {name: pve1}");
    let host = running.until::<Host>("pve2", is("NodeInSync", False, "NodeTaken")).await;
    assert!(condition(&host, "NodeInSync").unwrap().message.contains("PveHost pve1 is Node pve1 too"));
    wait(&bench, |nodes| nodes.view("pve2").condition.is_none()).await;
    // The one that waits gets it once the other lets go.
    bench.wish("pve1", "");
    running.until::<Host>("pve2", is("NodeInSync", True, "InSync")).await;
    bench.wish("pve1", AT_ONCE);
    running.until::<Host>("pve2", is("NodeInSync", False, "NodeTaken")).await;
    running.kill().await;
    let bench = Bench { nodes: None, ..bench };
    let running = bench.start().await;
    running.until::<Host>("pve1", is("NodeInSync", False, "NoKubernetes")).await;
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_neither_taints_nor_heals_its_node() {
    let bench = Bench::with_nodes(&["pve1", "pve2"], AT_ONCE).await;
    bench.fail(0, "containerd.runtime-type");
    let _running = bench.start().await;
    wait(&bench, |nodes| nodes.view("pve1").condition.is_some() && nodes.view("pve2").condition.is_some()).await;
    for name in ["pve1", "pve2"] {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        bench.wish_at(name, AT_ONCE, nobody);
    }
    for name in ["pve1", "pve2"] {
        let unreachable = |node: NodeView| node.condition.is_some_and(|c| c.status == "Unknown" && c.reason == "HostUnreachable");
        wait(&bench, |nodes| unreachable(nodes.view(name))).await;
    }
    assert_eq!((bench.node("pve1").taints, bench.node("pve2").taints), (vec!["NoSchedule".to_owned()], vec![]));
}

#[tokio::test]
async fn a_controller_killed_between_any_two_steps_leaves_no_taint_behind() {
    let mut crashes = 0;
    for name in crash::NODE {
        for nth in 1..=2 {
            let bench = Bench::with_nodes(&["pve1"], AT_ONCE).await;
            bench.fail(0, "containerd.runtime-type");
            let nodes = bench.nodes.clone().unwrap();
            let crash = crash::arm(name, nth);
            let running = bench.start().await;
            let told = |store: Arc<FolderStore>| async move { drop(until::<Host>(&store, "pve1", is("NodeInSync", True, "InSync")).await) };
            let running = through_crash(&bench, running, &crash, told).await;
            wait(&bench, |nodes| nodes.view("pve1").taints == ["NoSchedule"] && nodes.view("pve1").condition.is_some()).await;
            crashes += u32::from(crash.is_cancelled());
            let crash = crash::arm(name, nth);
            bench.wish("pve1", "");
            let clean = |store: Arc<FolderStore>| async move {
                drop(until::<Host>(&store, "pve1", |h| h.status.kubernetes_node.is_none() && h.metadata.finalizers.is_empty()).await);
            };
            drop(through_crash(&bench, running, &crash, clean).await);
            assert!(nodes.view("pve1").taints.is_empty() && nodes.view("pve1").condition.is_none(), "{name} {nth}");
            crashes += u32::from(crash.is_cancelled());
        }
    }
    assert!(crashes >= 6, "only {crashes} crash points were reached");
}
