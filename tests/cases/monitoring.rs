//! What alerts and dashboard ask for is what a real agent and a real controller tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use pve_sim::control::{Request, Seed};
use pvelet_agent::{
    health::State,
    metrics::{Metrics, Run, Snapshot},
};
use pvelet_tests::{Stack, StackOptions, agent::SOON, status};
use serde_json::Value;
use tonic::Code;

/// Metrics by the names that Prometheus keeps them under, with the names of their labels.
type Told = BTreeMap<String, BTreeSet<String>>;

/// What Prometheus adds to each.
const ADDED: &[&str] = &["instance", "job", "namespace", "pod"];

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The names of labels in `a="1",b=~"2"`; no value here holds a comma or an equals sign.
fn labels_in(text: &str) -> impl Iterator<Item = String> {
    text.split(',').map(|pair| pair.trim().chars().take_while(|c| is_name(*c)).collect::<String>()).filter(|name| !name.is_empty())
}

fn read(told: &mut Told, text: &str) {
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let name: String = line.chars().take_while(|c| is_name(*c)).collect();
        let labels = line.split_once('{').and_then(|(_, rest)| Some(rest.split_once('}')?.0)).unwrap_or_default();
        told.entry(name).or_default().extend(labels_in(labels));
    }
}

/// What a process tells at the address that its log names.
fn scrape(log: &str) -> String {
    let line = log.lines().find(|l| l.contains("serving metrics")).unwrap_or_else(|| panic!("no metrics: {log}"));
    let address = line.split_once("address=").unwrap().1.split_whitespace().next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// What an agent tells only once something has happened that does not happen here: in this process.
fn rare() -> String {
    let metrics = Metrics::new();
    metrics.call("GetHost", Code::Internal, Some(Duration::from_millis(1)));
    metrics.shed("read");
    metrics.check("containerd.ready", "containerd", State::Ok);
    metrics.check_run("live", Run::Late, Duration::from_secs(1));
    metrics.check_panicked("live");
    metrics.repaired("failed", true);
    metrics.encode(&Snapshot { operations: vec![("CLONE_VM", "RUNNING", 1)], ..Snapshot::default() })
}

/// Every expression of alerts and dashboard, with the labels that its texts name.
fn asked() -> Vec<(String, String, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/monitoring");
    let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
    let rules: Value = serde_norway::from_str(&text("alerts.yaml")).unwrap();
    let dashboard: Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let each = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let expr = |value: &Value| value["expr"].as_str().unwrap().to_owned();
    let mut all = Vec::new();
    for rule in each(&rules, "groups").iter().flat_map(|g| each(g, "rules")) {
        let words = rule["annotations"].to_string();
        let labels = words.split("$labels.").skip(1).map(|rest| rest.chars().take_while(|c| is_name(*c)).collect());
        all.push((rule["alert"].to_string(), expr(&rule), labels.collect()));
    }
    for panel in each(&dashboard, "panels") {
        for target in each(&panel, "targets") {
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            let labels = legend.split("{{").skip(1).map(|rest| rest.chars().take_while(|c| is_name(*c)).collect());
            all.push((panel["title"].to_string(), expr(&target), labels.collect()));
        }
    }
    for variable in each(&dashboard["templating"], "list").iter().filter(|v| v["type"] == "query") {
        let query = variable["query"]["query"].as_str().unwrap();
        all.push((variable["name"].to_string(), query.trim_start_matches("label_values").to_owned(), vec![]));
    }
    all
}

/// The metrics of an expression, each with the labels that are asked of it.
fn metrics_in(expr: &str) -> Vec<(String, Vec<String>)> {
    let starts = expr.match_indices("pvelet_").filter(|(at, _)| !expr[..*at].ends_with(is_name));
    let one = |at: usize| {
        let name: String = expr[at..].chars().take_while(|c| is_name(*c)).collect();
        let selector = expr[at + name.len()..].strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(inside, _)| inside);
        (name, labels_in(selector).collect())
    };
    starts.map(|(at, _)| one(at)).collect()
}

/// The labels that an expression groups by.
fn grouped_by(expr: &str) -> Vec<String> {
    let groups = ["by (", "without ("].into_iter().flat_map(|word| expr.split(word).skip(1));
    groups.flat_map(|rest| labels_in(rest.split_once(')').unwrap_or_default().0)).collect()
}

#[test]
fn every_metric_and_label_of_alerts_and_dashboard_exists() {
    let mut options = StackOptions::default();
    options.extra.insert("rest".to_owned(), "[metrics]\nlisten = \"127.0.0.1:0\"\n".to_owned());
    let mut stack = Stack::seeded(options, |control| {
        control.call(&Request::SeedTemplate(Seed { size_mib: 64, fill_mib: 1, ..Seed::new("pve1", 9000, "template") })).unwrap();
    });
    let mut controller = stack.controller();
    controller.with("--metrics-address", "127.0.0.1:0");
    controller
        .write("m.yaml", "apiVersion: pvelet.dev/v1alpha1\nkind: PveMachine\nmetadata: {name: m}\nspec: {source: {template: 9000}}\n");
    controller.start();
    let runs = |r: &status::Records| r.get("pvemachine.m").is_some_and(|m| m["status"]["phase"] == "Running");
    status::wait_for(&controller.manifests, SOON, runs).unwrap();

    let mut told = Told::new();
    read(&mut told, &scrape(&stack.agent("pve1").log()));
    read(&mut told, &scrape(&controller.log()));
    read(&mut told, &rare());
    let asked = asked();
    for (what, expr, words) in &asked {
        let metrics = metrics_in(expr);
        assert!(!metrics.is_empty(), "{what}: {expr} asks for nothing of pvelet");
        let mut known: BTreeSet<&str> = ADDED.iter().copied().collect();
        for (name, selected) in &metrics {
            let labels = told.get(name).unwrap_or_else(|| panic!("{what}: there is no metric {name}; there are {:#?}", told.keys()));
            known.extend(labels.iter().map(String::as_str));
            for label in selected {
                assert!(ADDED.contains(&label.as_str()) || labels.contains(label), "{what}: {name} has no label {label}, only {labels:?}");
            }
        }
        for label in grouped_by(expr).iter().chain(words) {
            assert!(known.contains(label.as_str()), "{what}: {expr} has no label {label}, only {known:?}");
        }
    }
    // What nobody looks at need not be counted.
    let looked_at: BTreeSet<_> = asked.iter().flat_map(|(_, expr, _)| metrics_in(expr)).map(|(name, _)| name).collect();
    let unseen = told.keys().filter(|n| !looked_at.contains(*n) && !n.ends_with("_sum") && !n.ends_with("_count"));
    assert_eq!(unseen.collect::<Vec<_>>(), Vec::<&String>::new());
}
