//! Where the machine's VM is, and whether "nowhere" can be believed.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use super::{Inputs, SETTLE, after, is_ours};
use crate::reconcile::{HostView, Link, Sighting};

/// How long a VM that was made but never told of since may stay unseen: far longer than any event takes, because making it again would be
/// worse than waiting.
const UNSEEN: Duration = Duration::from_secs(30);

pub(super) enum Place<'a> {
    /// Here; the host is missing where no `PveHost` stands for its node.
    Found(&'a Sighting, Option<&'a HostView>),
    /// Several VMs have its UUID.
    Ambiguous(String),
    /// Not seen, but nobody who could know can be asked.
    Unproven(String),
    /// Not seen, but what is seen may be older than the last operation.
    Settling(Timestamp),
    /// Proven gone from its whole PVE cluster.
    Gone(String),
}

pub(super) fn host_of<'a>(inputs: &Inputs<'a>, cluster: Option<&str>, node: Option<&str>) -> Option<&'a HostView> {
    inputs.hosts.iter().map(|h| &**h).find(|h| Some(h.cluster.as_str()) == cluster && Some(h.node.as_str()) == node)
}

/// The VM of a machine whose VM was made.
pub(super) fn locate<'a>(inputs: &Inputs<'a>) -> Place<'a> {
    let status = &inputs.machine.status;
    let (cluster, uuid) = (status.cluster.as_deref().unwrap_or_default(), status.uuid.as_deref().unwrap_or_default());
    let hits: Vec<&Sighting> = inputs.sightings.iter().filter(|s| s.cluster == cluster && s.vm.uuid == uuid).collect();
    let ids: BTreeSet<u32> = hits.iter().map(|s| s.vm.vmid).collect();
    if ids.len() > 1 || hits.iter().any(|s| s.vm.ambiguous_uuid) {
        let list = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        return Place::Ambiguous(format!(
            "several VMs of PVE cluster {cluster} have UUID {uuid} (seen: {list}); nothing is done to any. Give the copy another UUID \
             (qm set <vmid> --smbios1 uuid=...) or remove it"
        ));
    }
    // The node that holds a VM knows it best; what others see of it says nothing about its run state.
    if let Some(hit) = hits.iter().find(|s| s.seen_by == s.vm.node).or(hits.first()) {
        return Place::Found(hit, host_of(inputs, Some(cluster), Some(&hit.vm.node)));
    }
    if let Some(success) = &status.last_success {
        let until = after(success.time, if status.seen { SETTLE } else { UNSEEN });
        if inputs.now < until {
            return Place::Settling(until);
        }
    }
    let witnesses: Vec<&HostView> = inputs.hosts.iter().map(|h| &**h).filter(|h| h.cluster == cluster).collect();
    let proven = witnesses.iter().any(|h| h.link == Link::Up && h.facts.as_ref().is_some_and(|f| f.quorate));
    if !proven {
        return Place::Unproven(format!("no agent of PVE cluster {cluster} that has quorum can be asked where VM {uuid} is"));
    }
    let reused = status.vmid.and_then(|id| inputs.sightings.iter().find(|s| s.cluster == cluster && s.vm.vmid == id));
    let note = reused.map(|s| format!("; VMID {} belongs to another VM now ({}), which is not touched", s.vm.vmid, s.vm.uuid));
    Place::Gone(format!("VM {uuid} is gone from the whole PVE cluster {cluster}{}", note.unwrap_or_default()))
}

/// A VM that carries the mark of this machine, which does not know of it: `None` when there is none, an error when there are several.
pub(super) fn marked<'a>(inputs: &Inputs<'a>) -> Option<Result<&'a Sighting, String>> {
    let uid = &inputs.machine.metadata.uid;
    let hits: Vec<&Sighting> = inputs.sightings.iter().filter(|s| is_ours(s, uid)).collect();
    let first = hits.iter().find(|s| s.seen_by == s.vm.node).or(hits.first())?;
    let same = |s: &&Sighting| (&s.cluster, s.vm.vmid, &s.vm.uuid) == (&first.cluster, first.vm.vmid, &first.vm.uuid);
    if hits.iter().all(same) && !hits.iter().any(|s| s.vm.ambiguous_uuid) {
        return Some(Ok(first));
    }
    let list: BTreeSet<String> = hits.iter().map(|s| format!("{} on {}/{}", s.vm.vmid, s.cluster, s.vm.node)).collect();
    let list = list.into_iter().collect::<Vec<_>>().join(", ");
    Some(Err(format!("several VMs carry the mark of this machine: {list}. Nothing is done to any; remove all but the right one")))
}
