//! A containerd as a unit of a host, for an agent that is a process.

use std::sync::Arc;

use super::{Containerd, Place, Supervisor};
use crate::{Agent, Systemd};

const UNIT: &str = "containerd.service";

/// A containerd, and a systemd that knows it.
#[derive(Debug)]
pub struct Worker {
    /// The containerd itself.
    pub containerd: Arc<Containerd>,
    systemd: Systemd,
}

impl Worker {
    /// One that runs with this configuration and has the pause image. Must be called on a runtime.
    pub async fn start_with(config: impl FnOnce(&Place) -> String) -> Self {
        let containerd = Arc::new(Containerd::start_with(config).await);
        let systemd = Systemd::play(UNIT, Supervisor::new(UNIT, Arc::clone(&containerd))).await;
        Self { containerd, systemd }
    }

    /// Starts an agent that looks at it, and repairs it as this policy says.
    pub fn host(&self, agent: &mut Agent, policy: &str) {
        let place = self.containerd.place();
        let text = format!(
            "[health]\nworker = \"yes\"\ncontainerd_socket = {:?}\ncontainerd_config = {:?}\ncontainerd_program = {:?}\n[repair]\npolicy = {policy:?}\n",
            place.socket(),
            place.config(),
            place.program("containerd"),
        );
        agent.extra.insert("rest".to_owned(), text);
        let address = self.systemd.address();
        agent.start_with(&[("DBUS_SYSTEM_BUS_ADDRESS", &address)]).unwrap_or_else(|e| panic!("agent of {}: {e}", agent.node));
    }
}
