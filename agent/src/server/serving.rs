//! The host's health as `grpc.health.v1` tells it.

use tonic_health::{ServingStatus, server::HealthReporter};

use crate::health::{Group, Health, State};

/// The whole host.
const HOST: &str = "pvelet.host";

/// A group of checks; that of PVE and the machine has no service of its own beside that of the whole host.
fn service(group: Group) -> Option<&'static str> {
    match group {
        Group::Containerd => Some("pvelet.containerd"),
        Group::Kubelet => Some("pvelet.kubelet"),
        Group::Network => Some("pvelet.network"),
        Group::Agent => Some("pvelet.agent"),
        Group::Host => None,
    }
}

fn status(state: State) -> ServingStatus {
    match state {
        State::Ok | State::Degraded | State::NotApplicable => ServingStatus::Serving,
        State::Failed => ServingStatus::NotServing,
        State::Unknown => ServingStatus::Unknown,
    }
}

/// Tells it, for as long as the agent runs.
pub(super) async fn follow(health: Health, reporter: HealthReporter) {
    let mut changes = health.changes();
    loop {
        changes.borrow_and_update();
        reporter.set_service_status(HOST, status(health.overall().state)).await;
        for (group, state) in health.groups() {
            if let Some(service) = service(group) {
                reporter.set_service_status(service, status(state)).await;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_serves_and_only_what_failed_does_not() {
        let all = [State::Ok, State::Degraded, State::NotApplicable, State::Failed, State::Unknown].map(status);
        use ServingStatus::{NotServing, Serving, Unknown};
        assert_eq!(all, [Serving, Serving, Serving, NotServing, Unknown]);
    }
}
