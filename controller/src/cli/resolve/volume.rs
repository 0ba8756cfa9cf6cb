//! From what people type to the volume that they mean, and to the host that a call about it goes to.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use pvelet_proto::{
    reason,
    v1::{Host, ListVolumesRequest, Volume},
};

use super::{CliError, Session};
use crate::{
    agents::{AgentClient, AgentError, HostResult, fan_out},
    cli::{parse::VolumeArg, view::UnreachableView},
};

/// What one host tells about volumes.
pub(in crate::cli) struct Told {
    pub(in crate::cli) host: Host,
    volumes: Vec<Volume>,
    pub(in crate::cli) unreachable: Vec<String>,
    /// It has no storage of the name that was asked for.
    no_storage: bool,
}

/// A volume and the hosts that told it.
#[derive(Clone)]
pub(in crate::cli) struct Located {
    pub(in crate::cli) volume: Volume,
    pub(in crate::cli) shared: bool,
    /// The host of its VM first; several only where its storage is shared. Each with its node.
    tellers: Vec<(AgentClient, String)>,
}

/// Whether all hosts of the cluster see the same there.
pub(in crate::cli) fn is_shared(host: &Host, storage: &str) -> bool {
    host.storages.iter().any(|s| s.id == storage && s.shared)
}

impl Located {
    /// The host that knows best.
    pub(in crate::cli) fn agent(&self) -> &AgentClient {
        // There is one at least: a volume that nobody told is not there.
        &self.tellers[0].0
    }

    /// The node that its VM is on; empty where it is attached nowhere.
    fn node(&self) -> &str {
        self.volume.attachment.as_ref().map_or("", |a| a.node.as_str())
    }

    /// The host that a change goes to: its VM's, where it has one.
    pub(in crate::cli) fn for_change(&self, failed: &[AgentError], session: &Session) -> Result<&AgentClient, CliError> {
        let node = self.node();
        if node.is_empty() || self.tellers[0].1 == node {
            return Ok(self.agent());
        }
        let is_there = |name: &str| {
            let target = session.agents.iter().find(|a| a.name() == name).map(AgentClient::target);
            target.is_some_and(|t| t.node.as_deref() == Some(node) || t.name == node)
        };
        match failed.iter().find(|e| is_there(&e.host)) {
            Some(e) => {
                Err(CliError::Unreachable(format!("volume {} is attached on node {node}, which cannot be asked: {e}", self.volume.id)))
            }
            // No agent of that node is known here. Those that see the volume know whether it can be changed from where they are.
            None => Ok(self.agent()),
        }
    }

    /// Refuses a VM's host that cannot see the volume. Whether one that shares the storage does is for its agent to say.
    pub(in crate::cli) fn check_on(&self, host: &AgentClient) -> Result<(), CliError> {
        if self.shared || self.tellers.iter().any(|(agent, _)| agent.name() == host.name()) {
            return Ok(());
        }
        Err(CliError::Usage(format!(
            "volume {} is on storage '{}' of {}, the VM is on {}: use a volume and a VM of one host, or move one of them",
            self.volume.id,
            self.volume.storage,
            self.agent().name(),
            host.name()
        )))
    }
}

/// Asks all hosts for the volumes that fit. A host without the storage that the filter names has none.
pub(in crate::cli) async fn gather(session: &Session, filter: &ListVolumesRequest) -> Result<Vec<HostResult<Told>>, CliError> {
    let results = fan_out(&session.agents, session.deadline, |a| async move {
        let listed = async {
            match a.list_volumes(filter).await {
                Err(e) if e.is(reason::STORAGE_NOT_FOUND) => Ok((Vec::new(), Vec::new(), true)),
                answer => answer.map(|(volumes, unreachable)| (volumes, unreachable, false)),
            }
        };
        let (host, (volumes, unreachable, no_storage)) = futures_util::try_join!(a.get_host(), listed)?;
        Ok(Told { host, volumes, unreachable, no_storage })
    })
    .await;
    if !results.is_empty() && results.iter().all(|r| r.result.as_ref().is_ok_and(|t| t.no_storage)) {
        let asked: Vec<&str> = results.iter().map(|r| r.host.as_str()).collect();
        return Err(CliError::NotFound(format!("no storage '{}' on {}; pveletctl storages lists them", filter.storage, asked.join(", "))));
    }
    Ok(results)
}

/// Every volume once, by storage and name. On a shared storage several hosts tell the same one.
pub(in crate::cli) fn each_once(agents: &[AgentClient], results: &[HostResult<Told>]) -> Vec<Located> {
    let mut found: BTreeMap<_, Located> = BTreeMap::new();
    for (agent, r) in agents.iter().zip(results) {
        let Ok(told) = &r.result else { continue };
        for volume in &told.volumes {
            let shared = is_shared(&told.host, &volume.storage);
            let host = if shared { "" } else { agent.name() };
            let key = (told.host.cluster.as_str(), volume.volid.as_str(), host);
            let teller = (agent.clone(), told.host.node.clone());
            match found.get_mut(&key) {
                None => {
                    found.insert(key, Located { volume: volume.clone(), shared, tellers: vec![teller] });
                }
                Some(known) => {
                    known.tellers.push(teller);
                    if volume.attachment.as_ref().is_some_and(|a| a.node == told.host.node) {
                        known.volume = volume.clone();
                    }
                }
            }
        }
    }
    let mut all: Vec<Located> = found.into_values().collect();
    for l in &mut all {
        let node = l.node().to_owned();
        l.tellers.sort_by_key(|(_, own)| Reverse(*own == node));
    }
    all
}

/// The storages that could not be asked. One that is shared may be out of reach of several hosts, each with its own reason.
pub(in crate::cli) fn unreachable(results: &[HostResult<Told>]) -> Vec<UnreachableView> {
    let told = results.iter().filter_map(|r| Some((r.host.as_str(), r.result.as_ref().ok()?)));
    told.flat_map(|(host, t)| t.unreachable.iter().map(move |text| UnreachableView::new(host, text))).collect()
}

/// What was found, and what could not be looked at.
pub(in crate::cli) struct Looked {
    pub(in crate::cli) found: Vec<Located>,
    pub(in crate::cli) failed: Vec<AgentError>,
}

/// Finds every volume that was named, on whichever host.
pub(in crate::cli) async fn volumes(session: &Session, names: &[VolumeArg], storage: Option<&str>) -> Result<Looked, CliError> {
    let filter = ListVolumesRequest { storage: storage.unwrap_or_default().to_owned(), ..ListVolumesRequest::default() };
    let results = gather(session, &filter).await?;
    let all = each_once(&session.agents, &results);
    let failed: Vec<AgentError> = results.iter().filter_map(|r| r.result.as_ref().err().cloned()).collect();
    let mut dark: Vec<String> = failed.iter().map(ToString::to_string).collect();
    dark.extend(unreachable(&results).iter().map(|u| format!("{}: storage {}: {}", u.host, u.storage, u.message)));
    let mut found: Vec<Located> = Vec::new();
    for name in names {
        let one = one(session, &all, name, &dark)?;
        // Naming the same volume twice means it once.
        if !found.iter().any(|f| f.volume.volid == one.volume.volid && f.agent().name() == one.agent().name()) {
            found.push(one);
        }
    }
    // The beginning of an id could be that of a second volume where nobody looked.
    if names.iter().any(|n| !n.is_whole()) {
        for d in dark.iter().collect::<BTreeSet<_>>() {
            session.io.warn(&format!("not looked at: {d}"));
        }
    }
    Ok(Looked { found, failed })
}

fn one(session: &Session, all: &[Located], name: &VolumeArg, dark: &[String]) -> Result<Located, CliError> {
    let mut fitting: Vec<&Located> = all.iter().filter(|l| name.fits(&l.volume.id)).collect();
    match (fitting.len(), dark) {
        (1, _) => Ok(fitting.remove(0).clone()),
        (0, []) => {
            let asked: Vec<&str> = session.agents.iter().map(AgentClient::name).collect();
            Err(CliError::NotFound(format!("no volume '{}' on {}; pveletctl volumes lists them", name.text, asked.join(", "))))
        }
        (0, dark) => Err(CliError::Unreachable(format!(
            "volume '{}' was not found, but not every host and storage could be asked: {}",
            name.text,
            dark.join("; ")
        ))),
        _ => {
            let candidates: Vec<String> =
                fitting.iter().map(|l| format!("{} on storage '{}' of {}", l.volume.id, l.volume.storage, l.agent().name())).collect();
            let how = if name.is_whole() { "use --storage or --host" } else { "use more of the id, --storage or --host" };
            Err(CliError::Usage(format!("volume '{}' is ambiguous: {how}, for one of: {}", name.text, candidates.join(", "))))
        }
    }
}
