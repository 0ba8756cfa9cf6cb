//! What people see with kubectl.

use pvelet_tests::kubernetes::soon;
use serde_json::json;

use super::{collection, kubectl, printed, server};

#[tokio::test]
async fn columns_tell_at_a_glance_and_wide_ones_tell_more() {
    let server = server().await;
    let time = "2026-01-02T03:04:05Z";
    let ready = json!({"type": "Ready", "status": "True", "reason": "Running", "message": "all is well", "observedGeneration": 1, "lastTransitionTime": time});
    let not = json!({"type": "Ready", "status": "False", "reason": "HostFailed", "message": "look at pve2", "observedGeneration": 1, "lastTransitionTime": time});
    let objects = [
        (
            "PveMachine",
            json!({"source": {"template": 9000}}),
            json!({
                "phase": "Running", "host": "pve1", "vmid": 4711, "uuid": "3ce39e16-a6d8-4c28-ab96-a142978c9cd2", "addresses": ["10.0.0.5", "10.1.0.5"],
                "conditions": [ready],
            }),
        ),
        (
            "PveHost",
            json!({"address": "pve1:7443", "cluster": "lab", "node": "node1"}),
            json!({
                "observedGeneration": 1, "agentVersion": "0.1.0", "pveVersion": "9.0.3", "mode": "manage", "conditions": [ready],
                "capacity": {"cpu": 8, "memory": "32Gi", "allocatedCpu": 4, "allocatedMemory": "8Gi"},
            }),
        ),
        (
            "PveNetwork",
            json!({"hosts": {"names": ["a"]}, "interfaces": [{"name": "b", "bridge": {}}]}),
            json!({
                "failedHost": "pve2", "conditions": [not, {"type": "Progressing", "status": "False", "reason": "Stopped", "observedGeneration": 1, "lastTransitionTime": time}],
            }),
        ),
        ("PveTenant", json!({"namespaces": ["team-a"]}), json!({"conditions": [ready]})),
    ];
    for (kind, spec, status) in objects {
        let object = json!({"apiVersion": "pvelet.dev/v1alpha1", "kind": kind, "metadata": {"name": "x-1"}, "spec": spec});
        server.admin.create(&collection(kind), &object).await.unwrap();
        server.admin.merge(&format!("{}/x-1/status", collection(kind)), &json!({"status": status})).await.unwrap();
    }
    // Short names are known a moment after the objects.
    soon("short names are known", async || kubectl(&server, &["get", "pvt"], "").status.success()).await;
    let table = |args: &[&str]| -> Vec<Vec<String>> {
        let lines = printed(&server, args, "");
        lines.lines().map(|l| l.split("  ").map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned).collect()).collect()
    };
    for (short, head, row) in [
        ("pvm", "NAME PHASE HOST VMID ADDRESS READY REASON AGE", "x-1 Running pve1 4711 10.0.0.5 True Running"),
        ("pvh", "NAME READY REASON NODE PVE AGENT MODE CPU MEMORY AGE", "x-1 True Running node1 9.0.3 0.1.0 manage 8 32Gi"),
        ("pvn", "NAME READY REASON PROGRESSING FAILED HOST AGE", "x-1 False HostFailed False pve2"),
        ("pvt", "NAME READY REASON NAMESPACES AGE", "x-1 True Running [\"team-a\"]"),
    ] {
        let rows = table(&["get", short]);
        assert_eq!(rows[0].join(" "), head);
        assert!(rows[1].join(" ").starts_with(row), "{rows:?}");
    }
    for (short, wanted) in [
        ("pvm", ["3ce39e16-a6d8-4c28-ab96-a142978c9cd2", "9000", "[\"10.0.0.5\",\"10.1.0.5\"]", "all is well"]),
        ("pvh", ["lab", "pve1:7443", "8Gi", "all is well"]),
        ("pvn", ["default", "look at pve2", "pve2", "x-1"]),
    ] {
        let rows = table(&["get", short, "--output=wide"]);
        assert!(wanted.iter().all(|w| rows[1].contains(&(*w).to_owned())), "{wanted:?}: {rows:?}");
    }
    let all = printed(&server, &["get", "pvelet", "--output=name"], "");
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(all, ["pvehost.pvelet.dev/x-1", "pvemachine.pvelet.dev/x-1", "pvenetwork.pvelet.dev/x-1", "pvetenant.pvelet.dev/x-1"]);
}

#[tokio::test]
async fn fields_are_explained_with_what_their_values_mean() {
    let server = server().await;
    // The description is served a moment after the objects.
    soon("fields are explained", async || kubectl(&server, &["explain", "pvt.spec.namespaces"], "").status.success()).await;
    for (field, wanted) in [
        ("pvm.spec.runPolicy", "`Halted`: Shut down; stopped when the guest does not obey within 180 s."),
        ("pvm.spec.disks.size", "it can only grow"),
        ("pvh.spec.kubernetesNode.taint", "`NoExecute`: No new pods come, and those that run are evicted."),
        ("pvn.spec.interfaces.vlan.id", "1 to 4094."),
        ("pvt.spec.namespaces", "A namespace is one tenant's at most."),
    ] {
        let words = printed(&server, &["explain", field], "").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(wanted), "{field}: {words}");
    }
}
