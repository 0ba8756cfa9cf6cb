//! The agents that this process talks to: one channel each, made when it is first needed and made again when it broke.
//!
//! Nothing that one host does may delay another's answer. So every unary call has a deadline; calls are bounded for each agent and in all;
//! and calls to hosts that are not connected draw on a bound of their own, so that a hundred dead hosts do not hold the places of the
//! living while they wait for connections that never come. A call that is not answered soon gives its place in all back, and those that follow
//! it to the same agent draw on that bound too: an agent that stands still is connected for a while.

mod channel;
mod client;
mod error;
mod fan_out;
mod guard;
mod http2;
mod probe;
mod revoked;
mod watch;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio::sync::Semaphore;

pub use client::AgentClient;
pub use error::{AgentError, Cause, Failure, FieldError, code_name};
pub use fan_out::{HostResult, fan_out};
pub use guard::Guarded;
pub use probe::{Probe, Probed, probe};
pub use watch::{Watch, Watched};

use crate::tls::{Address, Credentials};

/// An agent: where it is, and which host it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// How people and manifests call it; the key in [`Agents`] and the name in every error.
    pub name: String,
    /// Where it listens.
    pub address: Address,
    /// The PVE cluster that its certificate must name; `None` for any.
    pub cluster: Option<String>,
    /// The node that its certificate must name; `None` for any host of the trust domain (a person at an address that he typed himself).
    pub node: Option<String>,
}

/// How much may be under way at once, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Unary calls to connected agents, in all.
    pub in_all: usize,
    /// Unary calls to one agent.
    pub per_agent: usize,
    /// How long a unary call may take, the connection included, unless [`AgentClient::with_deadline`] says otherwise.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { in_all: 256, per_agent: 8, deadline: Duration::from_secs(10) }
    }
}

/// What all agents' clients share.
struct Shared {
    credentials: Credentials,
    limits: Limits,
    /// Places for calls to agents that are connected.
    connected: Arc<Semaphore>,
    /// Places for calls that must connect first, or are to agents that have not answered another one yet.
    unconnected: Arc<Semaphore>,
}

/// The agents by name. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Agents {
    shared: Arc<Shared>,
    clients: Arc<RwLock<BTreeMap<String, AgentClient>>>,
}

impl Agents {
    /// No agents yet.
    pub fn new(credentials: Credentials, limits: Limits) -> Self {
        let place = || Arc::new(Semaphore::new(limits.in_all));
        let shared = Shared { credentials, limits, connected: place(), unconnected: place() };
        Self { shared: Arc::new(shared), clients: Arc::default() }
    }

    /// Adds an agent, or gives the client that exists when nothing about it has changed. Must be called inside a tokio runtime. Does not
    /// connect.
    pub fn set(&self, target: Target) -> AgentClient {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        match clients.get(&target.name) {
            Some(known) if *known.target() == target => known.clone(),
            _ => {
                let client = AgentClient::new(target.clone(), &self.shared);
                clients.insert(target.name, client.clone());
                client
            }
        }
    }

    /// Forgets an agent. Calls under way end by themselves.
    pub fn remove(&self, name: &str) {
        self.clients.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The agent of that name.
    pub fn get(&self, name: &str) -> Option<AgentClient> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All agents, by name.
    pub fn all(&self) -> Vec<AgentClient> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
