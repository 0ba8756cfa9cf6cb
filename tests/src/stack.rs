//! A whole stack: simulated cluster, certificates, agents.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use pvelet_proto::identity::Role;
use tempfile::TempDir;

use crate::{Agent, Client, Controller, Pki, Pve};

/// What a stack is made of.
pub struct StackOptions {
    /// Nodes of the simulated cluster; each gets an agent.
    pub nodes: Vec<&'static str>,
    /// Whether the agents are started.
    pub start_agents: bool,
    /// Lines for sections of each agent's configuration.
    pub extra: BTreeMap<String, String>,
    /// PVE's lock time-outs (10 s) are multiplied by this.
    pub lock_factor: f64,
    /// Where the agents' program lies; beside the tests unless set.
    pub programs: Option<PathBuf>,
}

impl Default for StackOptions {
    fn default() -> Self {
        Self { nodes: vec!["pve1"], start_agents: true, extra: BTreeMap::new(), lock_factor: 1.0, programs: None }
    }
}

/// A simulated cluster with one agent for each node. Everything ends, and is unmounted, when it is dropped.
pub struct Stack {
    /// Agents by node.
    pub agents: BTreeMap<String, Agent>,
    /// Certificates.
    pub pki: Pki,
    /// The simulated cluster. Dropped after the agents.
    pub sim: pve_sim::Cluster,
    /// Everything else of this stack.
    pub dir: TempDir,
}

impl Stack {
    /// One node, its agent in manage mode.
    pub fn one() -> Self {
        Self::start(StackOptions::default())
    }

    /// Three nodes, their agents in manage mode.
    pub fn three() -> Self {
        Self::start(StackOptions { nodes: vec!["pve1", "pve2", "pve3"], ..StackOptions::default() })
    }

    /// Starts what the options say.
    pub fn start(options: StackOptions) -> Self {
        Self::seeded(options, |_| {})
    }

    /// Starts what the options say; the agents only after `seed`, so that they know from the beginning what it makes. (What is made
    /// silently later, they see within 250 ms.)
    pub fn seeded(options: StackOptions, seed: impl FnOnce(&pve_sim::control::Client)) -> Self {
        let dir = TempDir::with_prefix("pvelet-").expect("temporary folder");
        let sim = pve_sim::Cluster::start(pve_sim::Options {
            nodes: options.nodes.iter().map(|n| (*n).to_owned()).collect(),
            lock_factor: options.lock_factor,
            ..Default::default()
        })
        .expect("simulated cluster");
        seed(&sim.control());
        let pki = Pki::new(dir.path());
        let mut agents = BTreeMap::new();
        let cluster = if options.nodes.len() == 1 { options.nodes[0] } else { crate::pki::CLUSTER };
        for (i, node) in (0_u32..).zip(&options.nodes) {
            let layout = sim.node(node);
            add_bridge(layout.root(), "vmbr0", true);
            add_bridge(layout.root(), "vmbr1", false);
            let first = 100_000 + i * 10_000;
            let mut agent = Agent::prepare(dir.path(), sim.dir(), layout, &pki, cluster, (first, first + 9_999));
            agent.extra.clone_from(&options.extra);
            if let Some(programs) = &options.programs {
                agent.program = programs.join("pvelet-agent");
            }
            if options.start_agents {
                agent.start();
            }
            agents.insert((*node).to_owned(), agent);
        }
        Self { agents, pki, sim, dir }
    }

    /// PVE's own API on a node, as somebody else uses it.
    pub fn pve(&self, node: &str) -> Pve {
        Pve::new(self.sim.node(node))
    }

    /// The agent of a node.
    pub fn agent(&mut self, node: &str) -> &mut Agent {
        self.agents.get_mut(node).expect("a node of the stack")
    }

    /// A client with the operator's role.
    pub fn operator(&self, node: &str) -> Client {
        self.client(node, Role::Operator)
    }

    /// A client with some role.
    pub fn client(&self, node: &str, role: Role) -> Client {
        Client::new(&self.agents[node], self.pki.credentials(self.pki.role(role, "tester")))
    }

    /// A tenant's client.
    pub fn tenant(&self, node: &str, tenant: &str) -> Client {
        let mut client = Client::new(&self.agents[node], self.pki.credentials(self.pki.tenant(tenant, "tester")));
        client.tenant = tenant.into();
        client
    }

    /// Names and contents of the snippets on a node's `local`.
    pub fn snippets(&self, node: &str) -> BTreeMap<String, String> {
        let files = fs::read_dir(self.sim.node(node).host_path("/var/lib/vz/snippets")).expect("snippets").flatten();
        let text = |f: &fs::DirEntry| fs::read_to_string(f.path()).expect("snippet");
        files.map(|f| (f.file_name().to_string_lossy().into_owned(), text(&f))).collect()
    }

    /// A controller that knows all hosts; not started yet.
    pub fn controller(&self) -> Controller {
        let controller = Controller::prepare(self.dir.path(), &self.pki, "controller");
        for agent in self.agents.values() {
            controller.add_host(agent);
        }
        controller
    }
}

/// A bridge in a node's sysfs.
fn add_bridge(root: &Path, name: &str, vlan_aware: bool) {
    let link = root.join("sys/class/net").join(name);
    fs::create_dir_all(link.join("bridge")).expect("sysfs");
    fs::write(link.join("bridge/vlan_filtering"), if vlan_aware { "1\n" } else { "0\n" }).expect("sysfs");
    fs::write(link.join("operstate"), "up\n").expect("sysfs");
}
