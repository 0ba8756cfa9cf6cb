//! The chart: what values make of it. On a real API server: `cluster`.

mod cluster;

use std::{fs, path::PathBuf, process::Command};

use pvelet_tests::{
    helm::{Helm, chart},
    program,
    script::file,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Every value that switches something on or names something.
fn full() -> Value {
    json!({
        "fullnameOverride": "pvelet",
        "replicas": 3,
        "image": {"repository": "images.example/pvelet/controller", "digest": format!("sha256:{}", "ab".repeat(32)), "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "controller": {"name": "lab", "log": {"format": "text", "level": "info,pvelet_controller=debug"}},
        "credentials": {
            "secretName": "identity",
            "agentCA": {"configMap": "hosts", "key": "bundle.pem"},
            "agentCRL": {"configMap": "revoked", "key": "lists.pem"},
            "certManager": {"enabled": true, "trustDomain": "example.org", "identityName": "controller", "issuerRef": {"name": "pvelet"}},
        },
        "serviceAccount": {"name": "keeper", "annotations": {"example.org/a": "b"}},
        "rbac": {"nodes": true},
        "userData": [{"namespace": "team-a", "secrets": ["talos"]}, {"namespace": "team-b"}],
        "tenants": [{"name": "team-a", "namespaces": ["team-a", "team-a-staging"]}],
        "metrics": {"address": "::", "port": 9999},
        "serviceMonitor": {"enabled": true, "interval": "1m", "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": true, "annotations": {"folder": "pvelet"}},
        "networkPolicy": {
            "apiServer": {"to": [{"ipBlock": {"cidr": "192.0.2.0/28"}}], "ports": [6443]},
            "agents": {"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]},
        },
        "podDisruptionBudget": {"maxUnavailable": "50%"},
        "resources": {"limits": {"memory": "512Mi"}},
        "priorityClassName": "system-cluster-critical",
        "podLabels": {"team": "infra"},
        "podAnnotations": {"example.org/c": "d"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]},
        ]}}},
        "topologySpreadConstraints": [{"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}],
    })
}

fn render(values: &Value) -> Vec<Value> {
    Helm::alone().render(values).unwrap_or_else(|e| panic!("{e}"))
}

/// The only object of a kind.
fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|o| o["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    first
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<_> = objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// The files of CRDs, in the order of their names.
fn crd_files() -> Vec<PathBuf> {
    let files = fs::read_dir(file("packaging/crds")).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "yaml")).collect();
    files.sort();
    files
}

fn yaml(path: PathBuf) -> Value {
    serde_norway::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    for values in [json!({}), full()] {
        let said = Helm::alone().run(&["lint", "--strict", &chart()], &values).unwrap_or_else(|e| panic!("{e}"));
        assert!(said.contains("0 chart(s) failed") && !said.contains("[WARNING]"), "{said}");
    }
}

#[test]
fn a_package_of_it_renders_the_same() {
    let (helm, folder) = (Helm::alone(), TempDir::new().unwrap());
    helm.run(&["package", &chart(), "--destination", &folder.path().display().to_string()], &json!({})).unwrap();
    let package = folder.path().join(concat!("pvelet-", env!("CARGO_PKG_VERSION"), ".tgz")).display().to_string();
    assert_eq!(helm.render_chart(&package, &full()).unwrap(), helm.render(&full()).unwrap());
}

/// Calls `f` for each object of a schema that names its properties, with the values at the same place.
fn walk(schema: &Value, values: &Value, at: &str, f: &mut impl FnMut(&str, &Value, &Value)) {
    let Some(properties) = schema["properties"].as_object() else { return };
    f(at, &schema["properties"], values);
    for (name, inner) in properties {
        walk(inner, &values[name], &format!("{at}.{name}"), f);
    }
}

#[test]
fn every_value_that_is_known_stands_in_the_file_of_values() {
    let schema: Value = serde_json::from_str(&fs::read_to_string(file("packaging/helm/pvelet/values.schema.json")).unwrap()).unwrap();
    let values = yaml(file("packaging/helm/pvelet/values.yaml"));
    let mut seen = 0;
    walk(&schema, &values, "", &mut |at, properties, values| {
        let keys =
            |v: &Value| v.as_object().unwrap_or_else(|| panic!("{at}: {v}")).keys().filter(|k| *k != "global").cloned().collect::<Vec<_>>();
        // Parts that are Kubernetes' own are empty there.
        if !matches!(at, ".affinity" | ".resources") {
            assert_eq!(keys(values), keys(properties), "{at}");
        }
        seen += 1;
    });
    assert!(seen > 15, "{seen}");
}

#[test]
fn mistakes_in_values_are_named() {
    let rows = [
        (json!({"replicaCount": 2}), &["replicaCount"][..]),
        (json!({"replicas": "two"}), &["replicas", "integer"]),
        (json!({"image": {"tag": "not a tag"}}), &["/image/tag", "not a tag"]),
        (json!({"image": {"digest": "sha256:12"}}), &["/image/digest"]),
        (json!({"image": {"pullPolicy": "Sometimes"}}), &["/image/pullPolicy", "IfNotPresent"]),
        (json!({"controller": {"name": "No Name"}}), &["/controller/name", "No Name"]),
        (json!({"controller": {"log": {"format": "xml"}}}), &["/controller/log/format", "json"]),
        (
            json!({"credentials": {"certManager": {"enabled": true}}}),
            &["/credentials/certManager/trustDomain", "/credentials/certManager/issuerRef/name"],
        ),
        (json!({"credentials": {"agentCA": {"configMap": "a", "secret": "b"}}}), &["/credentials/agentCA/configMap"]),
        (json!({"credentials": {"agentCRL": {"configMap": "a", "secret": "b"}}}), &["/credentials/agentCRL/configMap"]),
        (json!({"userData": ["team-a"]}), &["/userData/0", "object"]),
        (json!({"userData": [{"secrets": ["a"]}]}), &["/userData/0", "namespace"]),
        (json!({"userData": [{"namespace": "a", "secrets": []}]}), &["/userData/0/secrets"]),
        (json!({"tenants": [{"name": "a", "namespaces": []}]}), &["/tenants/0/namespaces"]),
        (json!({"metrics": {"port": 70000}}), &["/metrics/port", "65,535"]),
        (json!({"metrics": {"address": "localhost"}}), &["/metrics/address"]),
        (json!({"networkPolicy": {"agents": {"to": [{"cidr": "192.0.2.0/24"}]}}}), &["/networkPolicy/agents/to/0", "cidr"]),
        (json!({"networkPolicy": {"agents": {"ports": []}}}), &["/networkPolicy/agents/ports"]),
        (json!({"podDisruptionBudget": {"maxUnavailable": "some"}}), &["/podDisruptionBudget/maxUnavailable"]),
        (json!({"serviceMonitor": {"interval": "30"}}), &["/serviceMonitor/interval"]),
    ];
    for (values, wanted) in rows {
        let said = Helm::alone().render(&values).expect_err(&format!("{values} was taken"));
        for text in wanted {
            assert!(said.contains(text), "{values}: {text:?} is not in\n{said}");
        }
    }
}

#[test]
fn what_a_value_switches_on_is_there_and_nothing_else() {
    let always = ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Deployment", "NetworkPolicy", "PodDisruptionBudget"];
    let always: Vec<_> = always.into_iter().chain(["Role", "RoleBinding", "Service", "ServiceAccount"]).collect();
    assert_eq!(kinds(&render(&json!({}))), always);
    let mut all = [always.clone(), vec!["Certificate", "ConfigMap", "PrometheusRule", "PveTenant", "ServiceMonitor"]].concat();
    all.sort_unstable();
    assert_eq!(kinds(&render(&full())), all);
    let off = json!({
        "crds": {"install": false}, "rbac": {"create": false}, "serviceAccount": {"create": false},
        "networkPolicy": {"enabled": false}, "podDisruptionBudget": {"enabled": false},
    });
    assert_eq!(kinds(&render(&off)), ["Deployment", "Service"]);
}

#[test]
fn crds_are_the_committed_ones_and_are_kept() {
    let objects = render(&json!({}));
    let mut rendered: Vec<_> = objects.iter().filter(|o| o["kind"] == "CustomResourceDefinition").cloned().collect();
    rendered.sort_by_key(|c| c["metadata"]["name"].to_string());
    let mut committed: Vec<_> = crd_files().into_iter().map(yaml).collect();
    committed.sort_by_key(|c| c["metadata"]["name"].to_string());
    for crd in &mut committed {
        crd["metadata"]["annotations"]["helm.sh/resource-policy"] = json!("keep");
    }
    assert_eq!(rendered, committed);
    let names: Vec<_> = committed.iter().map(|c| c["metadata"]["name"].clone()).collect();
    assert_eq!(json!(names), json!(["pvehosts.pvelet.dev", "pvemachines.pvelet.dev", "pvenetworks.pvelet.dev", "pvetenants.pvelet.dev"]));
}

#[test]
fn the_deployment_is_highly_available_and_has_no_rights_on_its_node() {
    let objects = render(&json!({}));
    let deployment = one(&objects, "Deployment");
    let (spec, pod) = (&deployment["spec"], &deployment["spec"]["template"]["spec"]);
    let container = &pod["containers"][0];
    assert_eq!((&spec["replicas"], pod["containers"].as_array().map(Vec::len)), (&json!(2), Some(1)));
    let want = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container["securityContext"], want);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!((&pod["securityContext"]["runAsNonRoot"], &pod["securityContext"]["runAsUser"]), (&json!(true), &json!(65532)));
    assert_eq!(container["resources"]["limits"], json!({"memory": "256Mi"}), "a limit of CPU");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert!(pod["affinity"]["podAntiAffinity"].is_object() && pod["topologySpreadConstraints"][0].is_object(), "{pod:#}");
    assert_eq!(container["image"], format!("localhost/pvelet-controller:{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(yaml(file("packaging/helm/pvelet/Chart.yaml"))["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_controller_knows_every_argument_that_the_chart_gives() {
    let help = Command::new(program("pvelet-controller")).args(["run", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for values in [json!({}), full()] {
        let objects = render(&values);
        let args = one(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        let args: Vec<_> = args.as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        assert_eq!(args[0], "run");
        for arg in &args[1..] {
            let (flag, value) = arg.split_once('=').unwrap();
            assert!(help.contains(&format!("{flag} <")) && !value.is_empty(), "{arg} is not in\n{help}");
        }
    }
    let objects = render(&full());
    let args = one(&objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    assert!(args.contains("--metrics-address=[::]:9999"), "{args}");
}

#[test]
fn a_certificate_has_the_one_identity_and_is_good_for_clients_only() {
    let objects = render(&full());
    let spec = &one(&objects, "Certificate")["spec"];
    assert_eq!(spec["uris"], json!(["spiffe://example.org/role/operator/controller"]));
    assert_eq!(spec["usages"], json!(["digital signature", "client auth"]));
    assert_eq!((&spec["commonName"], &spec["dnsNames"]), (&Value::Null, &Value::Null));
    let volumes = &one(&objects, "Deployment")["spec"]["template"]["spec"]["volumes"];
    let sources = volumes[0]["projected"]["sources"].to_string();
    assert_eq!(spec["secretName"], "identity");
    assert!(sources.contains("\"name\":\"identity\"") && sources.contains("bundle.pem"), "{sources}");
}

#[test]
fn revocation_lists_may_be_there_and_those_that_are_named_must() {
    let of = |values: Value| {
        let objects = render(&values);
        let pod = &one(&objects, "Deployment")["spec"]["template"]["spec"];
        let sources = pod["volumes"][0]["projected"]["sources"].as_array().unwrap().last().unwrap().clone();
        (pod["containers"][0]["args"].to_string().contains("--crl=/etc/pvelet/controller/ca.crl"), sources)
    };
    let items = |key: &str| json!([{"key": key, "path": "ca.crl"}]);
    let own = json!({"secret": {"name": "pvelet-credentials", "optional": true, "items": items("ca.crl")}});
    assert_eq!(of(json!({"fullnameOverride": "pvelet"})), (false, own));
    let secret = json!({"secret": {"name": "lists", "items": items("ca.crl")}});
    assert_eq!(of(json!({"credentials": {"agentCRL": {"secret": "lists"}}})), (true, secret));
    assert_eq!(of(full()), (true, json!({"configMap": {"name": "revoked", "items": items("lists.pem")}})));
}

#[test]
fn alerts_and_dashboard_are_the_committed_ones() {
    let objects = render(&full());
    assert_eq!(one(&objects, "PrometheusRule")["spec"], yaml(file("packaging/monitoring/alerts.yaml")));
    let told = one(&objects, "ConfigMap")["data"]["pvelet.json"].as_str().unwrap();
    let committed = fs::read_to_string(file("packaging/monitoring/dashboard.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(told).unwrap(), serde_json::from_str::<Value>(&committed).unwrap());
}

#[test]
fn the_network_is_open_only_where_it_must_be() {
    let objects = render(&full());
    let spec = &one(&objects, "NetworkPolicy")["spec"];
    let rows = spec["egress"].as_array().unwrap().iter().map(|rule| {
        let ports: Vec<_> =
            rule["ports"].as_array().unwrap().iter().map(|p| format!("{}/{}", p["port"], p["protocol"].as_str().unwrap())).collect();
        (ports.join(" "), rule["to"][0].clone())
    });
    let rows: Vec<_> = rows.collect();
    let dns = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}});
    assert_eq!(
        rows,
        [
            ("53/UDP 53/TCP".to_owned(), dns),
            ("6443/TCP".to_owned(), json!({"ipBlock": {"cidr": "192.0.2.0/28"}})),
            ("7443/TCP".to_owned(), json!({"ipBlock": {"cidr": "198.51.100.0/24"}})),
        ]
    );
    assert_eq!((&spec["ingress"][0]["ports"][0]["port"], spec["ingress"].as_array().map(Vec::len)), (&json!(9999), Some(1)));
    let closed = render(&json!({"networkPolicy": {"metrics": {"from": []}}}));
    assert_eq!(one(&closed, "NetworkPolicy")["spec"]["ingress"], json!([]));
}
