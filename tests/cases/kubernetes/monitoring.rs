//! Alerts and dashboard, tried by promtool: their expressions are sound, each alert fires when it should, and none does when all is well.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use pvelet_tests::{
    counts,
    script::{file, folder_of},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Series of an installation in which all is well, whatever happened long ago: a value, and what is added each minute.
const HEALTHY: &[(&str, &str)] = &[
    (r#"pvelet_controller_leader{instance="c1",node="w1",pod="a"}"#, "1+0"),
    (r#"pvelet_controller_leader{instance="c2",node="w2",pod="b"}"#, "0+0"),
    (r#"pvelet_controller_queue_length{instance="c1"}"#, "0+0"),
    (r#"pvelet_controller_queue_length{instance="c2"}"#, "0+0"),
    (r#"pvelet_controller_hosts{instance="c1",state="up"}"#, "3+0"),
    (r#"pvelet_controller_hosts{instance="c1",state="down"}"#, "0+0"),
    (r#"pvelet_controller_machines{instance="c1",phase="Running"}"#, "30+0"),
    (r#"pvelet_controller_machines{instance="c1",phase="Failed"}"#, "0+0"),
    (r#"pvelet_controller_machines{instance="c1",phase="Unknown"}"#, "0+0"),
    (r#"pvelet_controller_machines{instance="c1",phase="Gone"}"#, "0+0"),
    (r#"pvelet_controller_reconciles_total{instance="c1",kind="PveMachine",result="ok"}"#, "0+10"),
    (r#"pvelet_controller_reconciles_total{instance="c1",kind="PveMachine",result="error"}"#, "0+2"),
    (r#"pvelet_agent_quorate{instance="pve1"}"#, "1+0"),
    (r#"pvelet_agent_pmxcfs_hung_seconds{instance="pve1"}"#, "0+0"),
    (r#"pvelet_agent_check_state{check="containerd.ready",group="containerd",instance="pve1"}"#, "0+0"),
    (r#"pvelet_agent_check_state{check="kubelet.unit",group="kubelet",instance="pve1"}"#, "-1+0"),
    (r#"pvelet_agent_repairs_total{by="agent",instance="pve1",result="succeeded"}"#, "0+1"),
    (r#"pvelet_agent_repairs_total{by="agent",instance="pve1",result="failed"}"#, "2+0"),
    (r#"pvelet_agent_check_panics_total{instance="pve1",source="live"}"#, "1+0"),
    (r#"pvelet_agent_tls_certificate_expiry_timestamp_seconds{instance="pve1"}"#, "3000000+0"),
    (r#"pvelet_agent_tls_certificate_expiry_timestamp_seconds{instance="pve2"}"#, "0+0"),
    (r#"pvelet_agent_tls_client_ca_expiry_timestamp_seconds{instance="pve1"}"#, "3000000+0"),
    (r#"pvelet_agent_tls_reload_failures_total{instance="pve1"}"#, "3+0"),
    (r#"pvelet_agent_tls_handshake_failures_total{instance="pve1"}"#, "0+1"),
    (r#"pvelet_agent_shed_total{instance="pve1",pool="read"}"#, "7+0"),
    (r#"pvelet_agent_rpc_total{code="OK",instance="pve1",method="GetHost"}"#, "0+100"),
    (r#"pvelet_agent_rpc_total{code="UNAVAILABLE",instance="pve1",method="GetHost"}"#, "0+1"),
    (r#"pvelet_agent_rpc_total{code="INTERNAL",instance="pve1",method="GetHost"}"#, "1+0"),
];

/// What is so, by series that differ (named by a part; `""`: it is missing), and all alerts that fire then.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);
const CASES: &[Case] = &[
    ("all is well", &[], &[]),
    ("no controller", &[(r#"leader{instance="c1""#, ""), (r#"leader{instance="c2""#, "")], &["PveletControllerAbsent"]),
    ("one of two controllers", &[(r#"leader{instance="c2""#, "")], &[]),
    ("none leads", &[(r#"leader{instance="c1""#, "0+0")], &["PveletControllerLeaderless"]),
    ("a host is down", &[(r#"state="down""#, "1+0")], &["PveletHostsDown"]),
    (
        "machines need a person",
        &[(r#"phase="Failed""#, "2+0"), (r#"phase="Unknown""#, "1+0"), (r#"phase="Gone""#, "1+0")],
        &["PveletMachinesFailed", "PveletMachinesGone", "PveletMachinesUnknown"],
    ),
    ("the controller cannot write", &[(r#"kind="PveMachine",result="error""#, "0+20")], &["PveletReconcilesFail"]),
    ("the controller does not keep up", &[(r#"length{instance="c2"}"#, "500+0")], &["PveletQueueGrows"]),
    ("no quorum", &[("quorate", "0+0")], &["PveletAgentNoQuorum"]),
    ("/etc/pve hangs", &[("pmxcfs_hung", "0+60")], &["PveletAgentClusterFileSystemHung"]),
    ("a check failed", &[("containerd.ready", "2+0")], &["PveletAgentCheckFailed"]),
    ("a check is degraded", &[("containerd.ready", "1+0")], &["PveletAgentCheckDegraded"]),
    ("a check is unknown", &[("containerd.ready", "3+0")], &["PveletAgentCheckUnknown"]),
    ("a check panics", &[("check_panics", "0+1")], &["PveletAgentCheckPanics"]),
    ("repairs do not help", &[(r#"result="failed""#, "0+0.1")], &["PveletAgentRepairFailed"]),
    (
        "a certificate ends in nine days",
        &[(r#"certificate_expiry_timestamp_seconds{instance="pve1"}"#, "800000+0")],
        &["PveletAgentCertificateExpires"],
    ),
    (
        "a certificate has ended",
        &[(r#"certificate_expiry_timestamp_seconds{instance="pve1"}"#, "5000+0")],
        &["PveletAgentCertificateExpired", "PveletAgentCertificateExpires"],
    ),
    (
        "a CA of clients ends in nine days",
        &[(r#"client_ca_expiry_timestamp_seconds{instance="pve1"}"#, "800000+0")],
        &["PveletAgentClientCaExpires"],
    ),
    ("TLS files are bad", &[("reload_failures", "0+1")], &["PveletAgentCertificateReloadFails"]),
    ("strangers call", &[("handshake_failures", "0+30")], &["PveletAgentHandshakesFail"]),
    ("an agent sheds", &[("shed_total", "0+1")], &["PveletAgentSheds"]),
    ("calls fail", &[(r#"code="INTERNAL""#, "0+1")], &["PveletAgentCallsFail"]),
];

/// Three hours of minutes, and one more.
const MINUTES: u32 = 181;

fn promtool(args: &[&str], path: &Path) {
    let out = Command::new(folder_of("tests/monitoring/fetch.sh").join("promtool")).args(args).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
}

fn series_of(changes: &[(&str, &str)]) -> Vec<Value> {
    for (part, _) in changes {
        assert_eq!(HEALTHY.iter().filter(|(name, _)| name.contains(part)).count(), 1, "{part}");
    }
    let changed = |name: &str| changes.iter().find(|(part, _)| name.contains(part)).map(|(_, values)| *values);
    let all = HEALTHY.iter().map(|(name, values)| (name, changed(name).unwrap_or(values)));
    all.filter(|(_, values)| !values.is_empty())
        .map(|(name, values)| json!({"series": name, "values": format!("{values}x{MINUTES}")}))
        .collect()
}

#[test]
fn each_alert_fires_when_it_should_and_no_other_one() {
    let rules = file("packaging/monitoring/alerts.yaml");
    let tests = CASES.iter().map(|(name, changes, alerts)| {
        let fired: Vec<_> = alerts.iter().map(|a| json!({"labels": format!("{{alertname={a:?}}}"), "value": 1})).collect();
        json!({
            "name": name, "interval": "1m", "input_series": series_of(changes),
            "promql_expr_test": [{"expr": "group by (alertname) (ALERTS{alertstate=\"firing\"})", "eval_time": "3h", "exp_samples": fired}],
        })
    });
    let tests = json!({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests.collect::<Vec<_>>()});
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("alerts.test.yaml");
    fs::write(&path, tests.to_string()).unwrap();
    promtool(&["test", "rules"], &path);

    let rules: Value = serde_norway::from_str(&fs::read_to_string(rules).unwrap()).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter().flat_map(|g| g["rules"].as_array().unwrap());
    let names: BTreeSet<_> = groups.map(|r| r["alert"].as_str().unwrap()).collect();
    assert_eq!(CASES.iter().flat_map(|(_, _, alerts)| *alerts).copied().collect::<BTreeSet<_>>(), names);
    counts::tell(&format!(
        "alerts: {} states of an installation, {} alerts, each fired where it should and nowhere else",
        CASES.len(),
        names.len()
    ));
}

#[test]
fn the_expressions_of_alerts_and_dashboard_are_sound() {
    promtool(&["check", "rules"], &file("packaging/monitoring/alerts.yaml"));
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file("packaging/monitoring/dashboard.json")).unwrap()).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|p| p["targets"].as_array().into_iter().flatten());
    let rules: Vec<_> = targets
        .enumerate()
        .map(|(i, t)| json!({"record": format!("panel:{i}"), "expr": t["expr"].as_str().unwrap().replace("$__rate_interval", "5m")}))
        .collect();
    assert!(rules.len() > 20, "{rules:#?}");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("dashboard.yaml");
    fs::write(&path, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    promtool(&["check", "rules"], &path);
}
