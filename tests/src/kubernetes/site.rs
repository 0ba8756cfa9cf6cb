//! A cluster with the controller's resources, and simulated PVE hosts whose agents it drives.

use std::{path::PathBuf, time::Duration};

use pve_sim::control::{Client, Request, Seed};
use serde_json::{Value, json};

use super::{ApiServer, ApiServerOptions, Kube, soon};
use crate::{
    Controller, Stack,
    helm::{self, Helm},
    relay::Relay,
    stack::StackOptions,
};

/// The collection of hosts.
pub const HOSTS: &str = "/apis/pvelet.dev/v1alpha1/pvehosts";
/// The collection of tenants.
pub const TENANTS: &str = "/apis/pvelet.dev/v1alpha1/pvetenants";
/// The machines of the namespace `default`, which is the tenant `default`'s.
pub const MACHINES: &str = "/apis/pvelet.dev/v1alpha1/namespaces/default/pvemachines";
/// Where definitions of resources are.
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// How long something may take here, on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// All of it.
pub struct Site {
    /// The simulated hosts and their agents.
    pub stack: Stack,
    /// The cluster.
    pub server: ApiServer,
}

impl Site {
    /// One host.
    pub async fn one() -> Self {
        Self::start(StackOptions::default()).await
    }

    /// A cluster with the definitions, the chart's RBAC, the hosts, and the tenant `default` with the namespace `default`. A template for each
    /// host is there from the beginning: VMID 9001 on the first, tagged `debian-13`.
    pub async fn start(options: StackOptions) -> Self {
        let nodes = options.nodes.clone();
        let stack = Stack::seeded(options, |control| seed(control, &nodes));
        let server = ApiServer::start_with(ApiServerOptions::default()).await;
        let site = Self { stack, server };
        site.define().await;
        allow(site.admin()).await;
        for agent in site.stack.agents.values() {
            let spec = json!({"address": agent.address.to_string(), "cluster": agent.cluster, "node": agent.node});
            site.create(HOSTS, "PveHost", &agent.node, spec).await;
        }
        site.create(TENANTS, "PveTenant", "default", json!({"namespaces": ["default"]})).await;
        site
    }

    /// The cluster as its administrator.
    pub fn admin(&self) -> &Kube {
        &self.server.admin
    }

    /// Installs the definitions, and waits until they are served.
    pub async fn define(&self) {
        define(self.admin()).await;
    }

    /// Creates an object of a kind of ours.
    pub async fn create(&self, collection: &str, kind: &str, name: &str, spec: Value) -> Value {
        self.admin().create(collection, &object(kind, name, spec)).await.unwrap()
    }

    /// Creates a machine of the template, with more in its spec.
    pub async fn machine(&self, name: &str, more: Value) -> Value {
        self.create(MACHINES, "PveMachine", name, machine_spec(more)).await
    }

    /// Waits for a machine.
    pub async fn wait(&self, name: &str, wanted: impl FnMut(&Value) -> bool) -> Value {
        self.admin().wait(MACHINES, name, LIMIT, wanted).await
    }

    /// A controller of this name of the installation, in the cluster under the chart's ServiceAccount; not started yet.
    pub async fn controller(&self, installation: &str, instance: &str) -> Controller {
        let kubeconfig = kubeconfig(&self.server).await;
        Controller::in_cluster(self.stack.dir.path(), &self.stack.pki, installation, instance, &kubeconfig, helm::NAMESPACE)
    }

    /// As [`Self::controller`], but one that reaches the API server by a relay.
    pub async fn controller_by(&self, relay: &Relay, installation: &str, instance: &str) -> Controller {
        let kubeconfig = kubeconfig(&self.server).await;
        let text = std::fs::read_to_string(&kubeconfig).unwrap();
        let by = kubeconfig.with_extension("relayed");
        std::fs::write(&by, text.replace(&self.server.url(), &format!("https://{}", relay.address()))).unwrap();
        Controller::in_cluster(self.stack.dir.path(), &self.stack.pki, installation, instance, &by, helm::NAMESPACE)
    }

    /// Holds the lock of the first host's storage `local`: clones wait for it. Answers with its number, for [`Self::release`].
    pub fn hold_storage(&self) -> u64 {
        let request = Request::HoldLock { node: "pve1".into(), vmid: None, storage: Some("local".into()) };
        self.stack.sim.control().call(&request).unwrap().as_u64().expect("a number")
    }

    /// Releases a lock.
    pub fn release(&self, id: u64) {
        self.stack.sim.control().call(&Request::ReleaseLock { id }).unwrap();
    }

    /// Names of the VMs on all hosts, but for templates.
    pub async fn vms(&self) -> Vec<String> {
        let mut names = Vec::new();
        for node in self.stack.agents.keys() {
            let vms = self.stack.operator(node).vms().await;
            names.extend(vms.into_iter().filter(|vm| !vm.template && vm.node == *node).map(|vm| vm.name));
        }
        names.sort();
        names
    }
}

/// Installs the definitions, and waits until they are served.
pub async fn define(admin: &Kube) {
    let all = pvelet_controller::crd::all();
    for crd in &all {
        let name = crd["metadata"]["name"].as_str().expect("a name");
        admin.apply(&format!("{DEFINITIONS}/{name}"), "tests", true, crd).await.unwrap();
        let established = |crd: &Value| {
            let all = crd["status"]["conditions"].as_array().into_iter().flatten();
            all.into_iter().any(|c| c["type"] == "Established" && c["status"] == "True")
        };
        admin.wait(DEFINITIONS, name, LIMIT, established).await;
    }
    // Established is said a moment before it is served.
    for crd in &all {
        let (group, plural) = (&crd["spec"]["group"], &crd["spec"]["names"]["plural"]);
        let version = &crd["spec"]["versions"][0]["name"];
        let path = [group, version, plural].map(|part| part.as_str().expect("a word")).join("/");
        soon(&path, async || admin.get(&format!("/apis/{path}")).await.is_ok()).await;
    }
}

/// Installs what the chart allows the controller, and its ServiceAccount.
pub async fn allow(admin: &Kube) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": helm::NAMESPACE}});
    admin.create("/api/v1/namespaces", &namespace).await.unwrap();
    allow_more(admin, &json!({})).await;
}

/// What the chart allows the controller with more values.
pub async fn allow_more(admin: &Kube, values: &Value) {
    let mut values = values.clone();
    values["fullnameOverride"] = json!("pvelet-controller");
    let wanted = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
    let objects = Helm::alone().render(&values).unwrap_or_else(|e| panic!("{e}"));
    for object in objects.iter().filter(|o| wanted.contains(&o["kind"].as_str().unwrap_or_default())) {
        let collection = helm::collection(admin, object).await.unwrap();
        let name = object["metadata"]["name"].as_str().expect("a name");
        admin.apply(&format!("{collection}/{name}"), "tests", true, object).await.unwrap();
    }
}

/// The kubeconfig of the chart's ServiceAccount.
pub async fn kubeconfig(server: &ApiServer) -> PathBuf {
    let user = server.service_account(helm::NAMESPACE, "pvelet-controller").await.unwrap();
    server.kubeconfig(&user)
}

/// An object of a kind of ours.
pub fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "pvelet.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// The least of a machine, with more in its spec.
pub fn machine_spec(more: Value) -> Value {
    let mut spec = json!({"source": {"tags": ["debian-13"]}});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

fn seed(control: &Client, nodes: &[&str]) {
    for (vmid, node) in (9001..).zip(nodes) {
        let seed = Seed { tags: "debian-13".into(), size_mib: 16, fill_mib: 1, ..Seed::new(node, vmid, "debian-13") };
        control.call(&Request::SeedTemplate(seed)).unwrap();
    }
}
