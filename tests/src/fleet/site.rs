//! A cluster with the controller's resources, and a fleet that it drives.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use pvelet_controller::kind::Quantity;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{Fleet, FleetOptions};
use crate::{
    Controller,
    helm::NAMESPACE,
    kubernetes::{
        ApiServer,
        site::{HOSTS, LIMIT, MACHINES, TENANTS, allow, define, kubeconfig, machine_spec, object},
    },
    status::condition,
};

/// Connections over which objects are made.
const WRITERS: usize = 8;
/// Memory of a VM that is cloned from the template, as a `PveHost` tells it.
const MEMORY: u64 = 512 << 20;
/// How often numbers are asked for that nobody tells by himself.
const LOOK: Duration = Duration::from_millis(100);
/// How often nothing was written when nothing will be.
const QUIET: usize = 30;
const LINE: &str = "serving metrics";

/// All of it.
pub struct FleetSite {
    /// The hosts and their agents.
    pub fleet: Fleet,
    /// The cluster.
    pub server: ApiServer,
    /// The controller.
    pub controller: Controller,
    starts: usize,
}

/// What was written by the API, by resource; writes of a status and of an object count alike.
pub type Writes = BTreeMap<String, u64>;

impl FleetSite {
    /// Hosts and a cluster that does not know them yet; the controller is not started.
    pub async fn start(options: FleetOptions) -> Self {
        let (fleet, server) = tokio::join!(Fleet::start(options), ApiServer::start());
        define(&server.admin).await;
        allow(&server.admin).await;
        let kubeconfig = kubeconfig(&server).await;
        let mut controller = Controller::in_cluster(&fleet.folder(), &fleet.pki, "lab", "a", &kubeconfig, NAMESPACE);
        controller.with("--metrics-address", "127.0.0.1:0");
        Self { fleet, server, controller, starts: 0 }
    }

    /// Adds all hosts, and the tenant `default`.
    pub async fn add_hosts(&self) {
        let tenant = object("PveTenant", "default", json!({"namespaces": ["default"]}));
        self.server.admin.create(TENANTS, &tenant).await.unwrap();
        let host =
            |h: &super::Host| object("PveHost", &h.name, json!({"address": h.address.to_string(), "cluster": h.cluster, "node": h.name}));
        self.create(HOSTS, self.fleet.hosts.iter().map(host).collect()).await;
    }

    /// Adds so many machines.
    pub async fn add_machines(&self, count: usize) {
        let machine = |n: usize| object("PveMachine", &format!("machine-{n:05}"), machine_spec(json!({})));
        self.create(MACHINES, (0..count).map(machine).collect()).await;
    }

    async fn create(&self, collection: &str, objects: Vec<Value>) {
        let share = objects.len().div_ceil(WRITERS).max(1);
        let parts = objects.chunks(share).map(|part| self.server.admin.create_all(collection, part.to_vec()));
        for made in join_all(parts).await {
            made.unwrap();
        }
    }

    /// Starts the controller, for the first time or again.
    pub fn start_controller(&mut self) {
        self.controller.start();
        self.starts += 1;
    }

    /// Waits until that many machines are ready, and every host tells what they take.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn settled(&self, machines: usize, limit: Duration) {
        let end = Instant::now() + limit;
        self.all(MACHINES, machines, end, |m| {
            condition(m, "Ready") == "True" && m["status"]["observedGeneration"] == m["metadata"]["generation"]
        })
        .await;
        let taken = |h: &Value| {
            let host = self.fleet.hosts.iter().find(|host| h["metadata"]["name"] == host.name.as_str());
            host.is_some_and(|host| {
                let vms = host.vms();
                let running = vms.iter().filter(|(vmid, _)| host.runs(*vmid)).count() as u64;
                let told = serde_json::from_value::<Quantity>(h["status"]["capacity"]["allocatedMemory"].clone()).ok();
                told == Some(Quantity(running * MEMORY))
            })
        };
        self.all(HOSTS, self.fleet.hosts.len(), end, taken).await;
    }

    /// Waits until so many hosts are told to be reachable, and the others not to be.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn reached(&self, count: usize, limit: Duration) {
        let (end, others) = (Instant::now() + limit, self.fleet.hosts.len() - count);
        self.all(HOSTS, count, end, |h| condition(h, "Reachable") == "True").await;
        self.all(HOSTS, others, end, |h| condition(h, "Reachable") == "False").await;
    }

    /// Waits until so many objects of a collection are as wanted at the same time.
    async fn all(&self, collection: &str, count: usize, end: Instant, wanted: impl Fn(&Value) -> bool) {
        let admin = &self.server.admin;
        let mut good: BTreeSet<String> = BTreeSet::new();
        let mut last = Value::Null;
        let seen = async {
            loop {
                let mut list = admin.get(collection).await.unwrap();
                let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
                let name = |o: &Value| o["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                good = items.iter().filter(|o| wanted(o)).map(name).collect();
                let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                let mut events = admin.watch(collection, version).await.unwrap();
                while good.len() < count {
                    let Some((kind, object)) = events.next().await else { break };
                    match kind.as_str() {
                        "ADDED" | "MODIFIED" if wanted(&object) => drop(good.insert(name(&object))),
                        "ADDED" | "MODIFIED" | "DELETED" => {
                            good.remove(&name(&object));
                            last = object;
                        }
                        // Its version is too old: listed anew.
                        _ => break,
                    }
                }
                if good.len() >= count {
                    return;
                }
            }
        };
        if tokio::time::timeout_at(end, seen).await.is_err() {
            let log = self.controller.log();
            let log: Vec<&str> = log.lines().rev().take(20).collect();
            panic!("{} of {count} in {collection} are as wanted; the last that is not: {last:#}\n{log:#?}", good.len());
        }
    }

    /// What the controller counts: a metric's line up to its value -> the value.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let address = timeout(LIMIT, async {
            loop {
                let log = self.controller.log();
                let lines: Vec<&str> = log.lines().filter(|l| l.contains(LINE)).collect();
                // Each start takes another port.
                if let Some(line) = lines.get(self.starts - 1) {
                    return line.split("address=").nth(1).expect("an address").trim().to_owned();
                }
                sleep(LOOK).await;
            }
        });
        let address = address.await.expect("the controller serves its metrics");
        let mut stream = TcpStream::connect(&address).await.expect("the controller's metrics");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("the controller's metrics");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("the controller's metrics");
        numbers(&text)
    }

    /// Passes over objects of a kind since the controller was started, those that failed included.
    pub async fn passes(&self, kind: &str) -> f64 {
        let of = format!("pvelet_controller_reconciles_total{{kind=\"{kind}\"");
        self.metrics().await.iter().filter(|(name, _)| name.starts_with(&of)).map(|(_, value)| value).sum()
    }

    /// Lets every VM of the hosts that stay well change in nothing that counts, and waits until the controller has looked at all their machines
    /// and at them again. Returns how many machines these are.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn look_again(&self, limit: Duration) -> usize {
        let before = (self.passes("PveMachine").await, self.passes("PveHost").await);
        let hosts = self.fleet.living();
        let machines = hosts.iter().map(|host| host.vms().len()).sum::<usize>();
        hosts.iter().for_each(super::Host::stir);
        self.passed((before.0 + machines as f64, before.1 + hosts.len() as f64), limit).await;
        machines
    }

    /// Waits until there were so many passes over machines and hosts, and nothing waits for another.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn passed(&self, (machines, hosts): (f64, f64), limit: Duration) {
        let passed = async {
            loop {
                let idle = self.metrics().await.get("pvelet_controller_queue_length").copied() == Some(0.0);
                if idle && self.passes("PveMachine").await >= machines && self.passes("PveHost").await >= hosts {
                    return;
                }
                sleep(LOOK).await;
            }
        };
        timeout(limit, passed).await.expect("the controller has looked at everything again");
    }

    /// Waits until nothing is written any more: events are written one after the other, long after what they tell of.
    ///
    /// # Panics
    /// After `limit`.
    pub async fn quiet(&self, limit: Duration) {
        let quiet = async {
            let mut before = self.writes().await;
            let mut same = 0;
            while same < QUIET {
                sleep(LOOK).await;
                let now = self.writes().await;
                same = if written(&before, &now).is_empty() { same + 1 } else { 0 };
                before = now;
            }
        };
        timeout(limit, quiet).await.expect("at some time nothing is written any more");
    }

    /// What was written by the API so far. Renewals of the Lease are `leases`.
    pub async fn writes(&self) -> Writes {
        let text = self.server.admin.text("/metrics").await.unwrap();
        let mut writes = Writes::new();
        for (name, value) in numbers(&text) {
            let label = |key: &str| name.split(&format!("{key}=\"")).nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
            let write = matches!(label("verb"), "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE");
            let ours = matches!(label("group"), "pvelet.dev" | "events.k8s.io" | "coordination.k8s.io");
            if name.starts_with("apiserver_request_total{") && write && ours {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
                let value = value as u64;
                *writes.entry(label("resource").to_owned()).or_insert(0) += value;
            }
        }
        writes
    }
}

/// What was written meanwhile, without renewals of the Lease.
pub fn written(before: &Writes, after: &Writes) -> Writes {
    let grown = |(resource, count): (&String, &u64)| {
        let more = count - before.get(resource).copied().unwrap_or(0);
        (more > 0 && resource != "leases").then(|| (resource.clone(), more))
    };
    after.iter().filter_map(grown).collect()
}

/// Prometheus' text: a line up to its value -> the value.
fn numbers(text: &str) -> BTreeMap<String, f64> {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.rsplit_once(' ')).filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?))).collect()
}
