#![allow(clippy::unwrap_used)]
//! Whole commands against fake agents over real mTLS.

mod act;
mod health;
mod local;
mod network;
mod volume;
mod volume_act;

use std::{
    fs,
    io::Cursor,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use pvelet_proto::{identity::Role, reason, v1};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::{
    agents::fake::{Ending, FakeAgent, Relay, refusal, vm},
    pki::{Ca, Lifetime},
};

/// Hosts pve1, pve2, ... of one CA, and a configuration that names them.
struct World {
    dir: TempDir,
    hosts: Vec<FakeAgent>,
}

struct Ran {
    exit: Exit,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.out, self.err))
    }

    #[track_caller]
    fn expect(self, exit: Exit) -> Self {
        assert_eq!(self.exit, exit, "out: {}\nerr: {}", self.out, self.err);
        self
    }
}

impl World {
    async fn new(vms: Vec<Vec<v1::Vm>>) -> Self {
        let ca = Ca::create("pvelet.example", Lifetime::days(10)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.crt"), ca.cert_pem()).unwrap();
        ca.issue_role(Role::Operator, "ann", Lifetime::days(1)).unwrap().write(dir.path(), "me", false).unwrap();
        let mut config = "ca = \"ca.crt\"\ncert = \"me.crt\"\nkey = \"me.key\"\n".to_owned();
        let mut hosts = Vec::new();
        for (i, vms) in vms.into_iter().enumerate() {
            let name = format!("pve{}", i + 1);
            let host = FakeAgent::start(&ca, &name, vms).await;
            config += &format!("[[host]]\nname = \"{name}\"\naddress = \"{}\"\ncluster = \"lab\"\n", host.address);
            hosts.push(host);
        }
        fs::write(dir.path().join("config.toml"), config).unwrap();
        Self { dir, hosts }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    /// Adds a host at an address where nobody listens.
    async fn add_dead(&self) {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let config = fs::read_to_string(self.config()).unwrap() + &format!("[[host]]\nname = \"dead\"\naddress = \"{free}\"\n");
        fs::write(self.config(), config).unwrap();
    }

    /// Puts a relay before the first host.
    async fn relay(&self) -> Relay {
        let relay = Relay::start(self.hosts[0].address).await;
        let config = fs::read_to_string(self.config()).unwrap().replace(&self.hosts[0].address.to_string(), &relay.address);
        fs::write(self.config(), config).unwrap();
        relay
    }

    async fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, None, |_| {}).await
    }

    async fn run_with(&self, args: &[&str], answer: Option<&str>, set: impl FnOnce(&mut Io)) -> Ran {
        let config = self.config().display().to_string();
        let mut all = vec!["pveletctl", "--config", &config];
        all.extend(args);
        run_plain(&all, answer, set).await
    }
}

async fn run_plain(args: &[&str], answer: Option<&str>, set: impl FnOnce(&mut Io)) -> Ran {
    let (out, err) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let mut io = Io {
        out: out.clone(),
        err: err.clone(),
        input: Arc::new(Mutex::new(Cursor::new(answer.unwrap_or_default().as_bytes().to_vec()))),
        interactive: answer.is_some(),
        colour: false,
        err_colour: false,
        bars: false,
        default_config: None,
    };
    set(&mut io);
    let exit = Box::pin(run(args.iter().copied(), &io)).await;
    let text = |s: &Mutex<Vec<u8>>| String::from_utf8(s.lock().unwrap().clone()).unwrap();
    Ran { exit, out: text(&out), err: text(&err) }
}

fn two_hosts() -> Vec<Vec<v1::Vm>> {
    let mut running = vm(100, "web-1", "pve1");
    running.state = v1::VmState::Running.into();
    running.tags = vec!["k8s".to_owned()];
    let mut template = vm(9000, "debian-13", "pve1");
    template.template = true;
    vec![vec![running, template, vm(101, "db-1", "pve1")], vec![vm(200, "web-2", "pve2"), vm(201, "twin", "pve2"), vm(202, "twin", "pve2")]]
}

#[tokio::test]
async fn hosts_shows_every_host_and_hides_no_dead_one() {
    let world = World::new(two_hosts()).await;
    world.add_dead().await;
    let ran = world.run(&["hosts"]).await.expect(Exit::Partial);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", ran.out);
    assert!(lines[0].starts_with("HOST  STATUS  NODE  CLUSTER  MODE"), "{}", lines[0]);
    assert!(lines[1].starts_with("pve1  ok      pve1  lab      manage  25% of 16  48 GiB of 64 GiB  9.0.10  0.1.0"), "{}", lines[1]);
    assert!(lines[3].starts_with("dead  error") && lines[3].contains("cannot connect to 127.0.0.1:"), "{}", lines[3]);
    assert!(!ran.out.contains('\u{1b}'), "no colour in pipes");

    let json = world.run(&["hosts", "-o", "json"]).await.expect(Exit::Partial).json();
    assert_eq!(json["hosts"][0]["facts"]["memory"]["total_bytes"], 64_u64 << 30);
    assert_eq!(json["hosts"][2]["facts"], Value::Null);
    assert_eq!(json["hosts"][2]["error"]["code"], "UNAVAILABLE");
    assert_eq!(json["hosts"][2]["error"]["retryable"], true);

    let yaml = world.run(&["hosts", "--output", "yaml"]).await.expect(Exit::Partial);
    let same: Value = serde_norway::from_str(&yaml.out).unwrap();
    assert_eq!(same["hosts"][1]["name"], "pve2");

    world.run(&["hosts", "--host", "dead"]).await.expect(Exit::Unreachable);
    let ran = world.run(&["vms", "--host", "dead"]).await.expect(Exit::Unreachable);
    assert!(ran.out.is_empty(), "a host that does not answer is not one without VMs: {}", ran.out);
    world.run(&["hosts", "--host", "pve2"]).await.expect(Exit::Ok);
    let coloured = world.run_with(&["hosts"], None, |io| io.colour = true).await;
    assert!(coloured.out.contains("\u{1b}[31mdead"), "{}", coloured.out);
}

#[tokio::test]
async fn vms_of_all_hosts_are_one_list() {
    let world = World::new(two_hosts()).await;
    let ran = world.run(&["vms"]).await.expect(Exit::Ok);
    let vmids: Vec<&str> = ran.out.lines().skip(1).map(|l| l.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(vmids, ["100", "101", "200", "201", "202", "9000"]);
    assert!(ran.out.contains("pve1  100   web-1      running  2      2 GiB   k8s   -     -       -\n"), "{}", ran.out);
    assert!(ran.out.contains("template"), "{}", ran.out);
    assert!(ran.err.is_empty(), "{}", ran.err);

    let json = world.run(&["vms", "--tag", "k8s", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["vms"].as_array().unwrap().len(), 1);
    assert_eq!(json["vms"][0]["state"], "running");
    assert_eq!(json["vms"][0]["memory_mib"], 2048);
    assert_eq!(json["errors"].as_array().unwrap().len(), 0);

    world.add_dead().await;
    let ran = world.run(&["vms"]).await.expect(Exit::Partial);
    assert_eq!(ran.out.lines().count(), 7, "what the living say is complete: {}", ran.out);
    assert!(ran.err.contains("error: dead: cannot connect"), "{}", ran.err);
}

#[tokio::test]
async fn with_all_nodes_every_vm_is_there_once() {
    let world = World::new(two_hosts()).await;
    world.hosts[0].lock().vms.push(v1::Vm { state: v1::VmState::Unknown.into(), ..vm(200, "web-2", "pve2") });
    world.hosts[0].lock().vms.push(v1::Vm { state: v1::VmState::Unknown.into(), ..vm(300, "far", "pve9") });
    let json = world.run(&["vms", "--all-nodes", "-o", "json"]).await.expect(Exit::Ok).json();
    let rows: Vec<(u64, &str, &str)> = json["vms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| (v["vmid"].as_u64().unwrap(), v["host"].as_str().unwrap(), v["state"].as_str().unwrap()))
        .collect();
    assert!(rows.contains(&(200, "pve2", "stopped")) && rows.contains(&(300, "pve1", "unknown")), "{rows:?}");
    assert_eq!(rows.iter().filter(|r| r.0 == 200).count(), 1);
}

#[tokio::test]
async fn get_shows_everything() {
    let world = World::new(two_hosts()).await;
    let ran = world.run(&["get", "vm", "web-1", "200"]).await.expect(Exit::Ok);
    assert!(ran.out.contains("uuid: 00000000-0000-4000-8000-000000000100") && ran.out.contains("vmid: 200"), "{}", ran.out);
    let json = world.run(&["get", "host", "pve1", "-o", "json"]).await.expect(Exit::Ok).json();
    assert_eq!(json["hosts"][0]["facts"]["vmid_range"]["first"], 1000);
    let ran = world.run(&["get", "host", "pve7"]).await.expect(Exit::NotFound);
    assert!(ran.err.contains("host 'pve7' is not known: use one of pve1, pve2"), "{}", ran.err);
    world.run(&["get", "op", "operations/3ce39e16-a6d8-4c28-ab96-a142978c9cd2"]).await.expect(Exit::NotFound);
}

#[tokio::test]
async fn watch_tells_each_event_once() {
    use v1::watch_host_response::Event;
    let world = World::new(two_hosts()).await;
    let event = |kind: v1::VmEventType, vm: v1::Vm| v1::WatchHostResponse {
        revision: 1,
        time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 250_000_000 }),
        event: Some(Event::Vm(v1::VmEvent { r#type: kind.into(), vm: Some(vm), from_node: String::new() })),
    };
    world.hosts[0].lock().events = vec![
        event(v1::VmEventType::Existing, vm(100, "web-1", "pve1")),
        v1::WatchHostResponse { event: Some(Event::Synced(v1::Synced {})), ..Default::default() },
        event(v1::VmEventType::Started, v1::Vm { state: v1::VmState::Running.into(), ..vm(100, "web-1", "pve1") }),
    ];
    let ran = world.run(&["watch", "--host", "pve1", "--count", "1"]).await.expect(Exit::Ok);
    assert_eq!(ran.out, "2027-01-15T08:00:00.25Z  pve1  started  100  web-1  running\n");
    let ran = world.run(&["watch", "--host", "pve1", "--existing", "--count", "2", "-o", "json"]).await.expect(Exit::Ok);
    let lines: Vec<Value> = ran.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&lines[0]["event"], &lines[1]["event"]), (&Value::from("existing"), &Value::from("started")));
    assert_eq!(lines[1]["vm"]["vmid"], 100);
}

#[tokio::test]
async fn one_agent_can_be_named_by_address() {
    let world = World::new(two_hosts()).await;
    let file = |name: &str| world.dir.path().join(name).display().to_string();
    let (ca, cert, key) = (file("ca.crt"), file("me.crt"), file("me.key"));
    let address = world.hosts[1].address.to_string();
    let own = ["--ca", &ca, "--cert", &cert, "--key", &key];
    let with = |agent: &str, rest: &[&str]| {
        [&["pveletctl", "--agent", agent][..], &own, rest].concat().iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()
    };
    let call = |args: Vec<String>| async move { run_plain(&args.iter().map(String::as_str).collect::<Vec<_>>(), None, |_| {}).await };
    let ran = call(with(&address, &["hosts"])).await.expect(Exit::Ok);
    assert!(ran.out.contains("pve2"), "{}", ran.out);
    call(with(&format!("pve2={address}"), &["vms"])).await.expect(Exit::Ok);
    let ran = call(with(&format!("pve1={address}"), &["vms"])).await.expect(Exit::Unreachable);
    assert!(ran.err.contains("the certificate is for host pve2, expected pve1"), "{}", ran.err);
    let json = call(with(&address, &["version", "-o", "json"])).await.expect(Exit::Ok).json();
    assert_eq!(json["agents"][0]["agent"], "0.1.0");
}
