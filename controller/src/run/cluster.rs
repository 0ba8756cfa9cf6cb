//! The controller on a cluster's custom resources: terms of leadership, one after the other.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use nix::unistd::gethostname;
use tracing::{info, warn};
use uuid::Uuid;

use super::{Common, RunError, args::LeaseSettings};
use crate::{
    nodes::{KubernetesNodes, Nodes},
    store::kubernetes::{KubernetesStore, Leader, LeaseOptions, definitions},
};

/// How often it is looked whether the definitions of the resources have come.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The pause before objects are read again that could not be read.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// What a Deployment puts the pod's name into.
const POD_NAME: &str = "POD_NAME";

/// Stands by until it leads, leads until the Lease is lost, and stands by again, until told to stop.
///
/// A former leader needs no restart: everything that its term knew (connections to agents, what they told, attempts under way) goes with the
/// term, and the agents refuse what still comes of it once the next leader has announced itself.
pub(super) async fn run(common: Common, client: kube::Client, lease: LeaseSettings) -> Result<(), RunError> {
    let identity = format!("{}_{}", instance(), Uuid::new_v4());
    let namespace = lease.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    info!(controller = common.name, identity, %namespace, lease = lease.name, "started");
    let Some(()) = common.stop.run_until_cancelled(await_definitions(&client)).await else { return Ok(()) };
    let Some(store) = common.stop.run_until_cancelled(KubernetesStore::open(client.clone(), &identity)).await else { return Ok(()) };
    common.ready.store(true, Ordering::Relaxed);
    let leader = Leader::new(client.clone(), LeaseOptions { namespace, name: lease.name, identity, duration: lease.duration });
    while let Some(term) = leader.lead(&common.stop).await {
        // What was watched while another one led may be out of date by more than the watch knows, and the definitions another version's.
        let fresh = async {
            await_definitions(&client).await;
            refresh(&store).await;
        };
        let fresh = term.over.run_until_cancelled(common.stop.run_until_cancelled(fresh)).await;
        let result = if let Some(Some(())) = fresh {
            let nodes: Arc<dyn Nodes> = Arc::new(KubernetesNodes::new(client.clone()));
            let controller = common.controller(Arc::clone(&store), term.epoch.clone(), Some(nodes));
            common.metrics.leader.set(1);
            controller.lead(common.stop.clone(), term.over.clone()).await
        } else {
            Ok(())
        };
        common.metrics.leader.set(0);
        // After the last pass: whoever leads next meets none of this term.
        term.end().await;
        result?;
    }
    Ok(())
}

/// What tells instances apart for people: the pod, or the machine.
fn instance() -> String {
    let pod = std::env::var(POD_NAME).ok().filter(|name| !name.is_empty());
    pod.or_else(|| gethostname().ok()?.into_string().ok()).unwrap_or_else(|| "pvelet-controller".to_owned())
}

/// Reads all objects anew, for as long as it takes.
async fn refresh(store: &KubernetesStore) {
    let mut told = String::new();
    while let Err(problem) = store.refresh().await.map_err(|e| e.to_string()) {
        if problem != told {
            warn!("{problem}");
            told = problem;
        }
        tokio::time::sleep(READ_AGAIN).await;
    }
}

/// Waits until the definitions of all kinds are there and new enough. Nothing may be written before: what an older definition does not know
/// of a status is dropped by the API server, and with it what keeps a VM from being made twice.
async fn await_definitions(client: &kube::Client) {
    let mut told = String::new();
    while let Err(problem) = definitions::check(client).await {
        if problem != told {
            warn!("{problem}");
            told = problem;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
