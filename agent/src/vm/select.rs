//! Which VM a call means.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use pvelet_proto::{id, reason, v1};

use super::view;
use crate::{
    error::Error,
    host::pve::{Inventory, VmRecord},
};

/// VMs in a page at most, and when the caller does not say.
const PAGE: usize = 10_000;

fn uuid_of(vm: &VmRecord) -> String {
    vm.config.uuid().unwrap_or_default().to_ascii_lowercase()
}

fn is_tenants(vm: &VmRecord, tenant: &str) -> bool {
    view::bound_mark(vm).is_some_and(|mark| mark.tenant == tenant)
}

/// The VM that a change names, when it may be changed here by this caller.
pub(super) fn target(
    inventory: &Inventory,
    found: Option<Arc<VmRecord>>,
    wanted: &v1::VmRef,
    node: &str,
    tenant: Option<&str>,
    caller: &str,
) -> Result<Arc<VmRecord>, Error> {
    let (vmid, expected) = (wanted.vmid, wanted.uuid.to_ascii_lowercase());
    let vm = match found {
        Some(vm) => vm,
        // A container has the VMID.
        None if inventory.vmids.contains_key(&vmid) && !inventory.vms.contains_key(&vmid) => {
            return Err(Error::VmNotFound { what: format!("{vmid} (a container)") });
        }
        None => return Err(Error::VmNotFound { what: format!("{vmid} with UUID {expected}") }),
    };
    let found = uuid_of(&vm);
    if found != expected {
        return Err(Error::UuidMismatch { vmid, expected, found });
    }
    let mut same: Vec<u32> = inventory.by_uuid(&found).iter().map(|vm| vm.vmid).collect();
    if !same.contains(&vmid) {
        same.push(vmid);
    }
    if same.len() > 1 {
        return Err(Error::AmbiguousUuid { uuid: found, vmids: same });
    }
    if tenant.is_some_and(|tenant| !is_tenants(&vm, tenant)) {
        return Err(Error::ScopeVm { caller: caller.to_owned(), vmid });
    }
    if vm.node != node {
        return Err(Error::VmOnOtherHost { vmid, node: vm.node.clone() });
    }
    Ok(vm)
}

/// One VM for reading.
pub(super) fn get(inventory: &Inventory, wanted: &v1::VmRef, tenant: Option<&str>) -> Result<v1::Vm, Error> {
    if !inventory.complete {
        return Err(Error::PveFsHung { detail: "no answer below /etc/pve since the start".to_owned() });
    }
    let uuid = match wanted.uuid.as_str() {
        "" => None,
        text => Some(id::uuid(text).map_err(|e| Error::invalid("vm.uuid", reason::INVALID_UUID, e.to_string()))?),
    };
    let seen = |vm: &&Arc<VmRecord>| tenant.is_none_or(|t| is_tenants(vm, t));
    let vm = match (wanted.vmid, uuid) {
        (0, None) => return Err(Error::invalid("vm", reason::INVALID_FIELD, "a VMID or a UUID is needed")),
        (0, Some(uuid)) => {
            let all = inventory.by_uuid(&uuid);
            let found: Vec<_> = all.iter().copied().filter(seen).collect();
            match found.as_slice() {
                [] => return Err(Error::VmNotFound { what: format!("with UUID {uuid}") }),
                [vm] => *vm,
                several => return Err(Error::AmbiguousUuid { uuid, vmids: several.iter().map(|vm| vm.vmid).collect() }),
            }
        }
        (vmid, uuid) => {
            let vm = inventory.vms.get(&vmid).filter(seen).ok_or_else(|| Error::VmNotFound { what: vmid.to_string() })?;
            match uuid.filter(|uuid| *uuid != uuid_of(vm)) {
                Some(expected) => return Err(Error::UuidMismatch { vmid, expected, found: uuid_of(vm) }),
                None => vm,
            }
        }
    };
    Ok(view::to_proto(inventory, vm))
}

/// VMs by ascending VMID.
pub(super) fn list(inventory: &Inventory, request: &v1::ListVmsRequest, tenant: Option<&str>) -> Result<v1::ListVmsResponse, Error> {
    if !inventory.complete {
        return Err(Error::PveFsHung { detail: "no answer below /etc/pve since the start".to_owned() });
    }
    let size = match request.page_size as usize {
        0 => PAGE,
        n => n.min(PAGE),
    };
    let after: u32 = match request.page_token.as_str() {
        "" => 0,
        token => token
            .parse()
            .map_err(|_| Error::invalid("page_token", reason::INVALID_FIELD, format!("'{token}' is no token of an earlier page")))?,
    };
    let mut uuids: HashMap<&str, u32> = HashMap::with_capacity(inventory.vms.len());
    for uuid in inventory.vms.values().filter_map(|vm| vm.config.uuid()) {
        *uuids.entry(uuid).or_default() += 1;
    }
    let wanted = |vm: &VmRecord| {
        (request.all_nodes || vm.node == inventory.node)
            && tenant.is_none_or(|t| is_tenants(vm, t))
            && (request.tenant.is_empty() || is_tenants(vm, &request.tenant))
            && (request.tags.is_empty() || {
                let tags = vm.config.tags();
                request.tags.iter().all(|t| tags.contains(t))
            })
    };
    let mut matching = inventory.vms.range(after.saturating_add(1)..).map(|(_, vm)| vm).filter(|vm| wanted(vm)).peekable();
    let mut vms: Vec<v1::Vm> = Vec::new();
    while vms.len() < size
        && let Some(vm) = matching.next()
    {
        let ambiguous = vm.config.uuid().is_some_and(|uuid| uuids.get(uuid).is_some_and(|n| *n > 1));
        vms.push(view::with_ambiguity(vm, ambiguous));
    }
    let next_page_token = match (matching.peek(), vms.last()) {
        (Some(_), Some(last)) => last.vmid.to_string(),
        _ => String::new(),
    };
    Ok(v1::ListVmsResponse { vms, next_page_token })
}

/// The template that a clone names, on this node.
pub(super) fn template(inventory: &Inventory, node: &str, source: Option<&v1::CloneSource>) -> Result<Arc<VmRecord>, Error> {
    use v1::clone_source::Source;
    let not_found = |what: String| Error::TemplateNotFound { what, node: node.to_owned() };
    match source.and_then(|s| s.source.as_ref()) {
        None => Err(Error::invalid("source", reason::INVALID_FIELD, "a template's VMID or tags are needed")),
        Some(Source::Vmid(vmid)) => {
            let vm = inventory.vms.get(vmid).filter(|vm| vm.node == node).ok_or_else(|| not_found(format!("VMID {vmid}")))?;
            if vm.config.is_template() { Ok(Arc::clone(vm)) } else { Err(Error::NotATemplate { vmid: *vmid }) }
        }
        Some(Source::Tags(list)) if list.tags.is_empty() => {
            Err(Error::invalid("source.tags", reason::INVALID_FIELD, "at least one tag is needed"))
        }
        Some(Source::Tags(list)) => inventory
            .vms
            .values()
            .rev()
            .find(|vm| {
                vm.node == node && vm.config.is_template() && {
                    let tags = vm.config.tags();
                    list.tags.iter().all(|t| tags.contains(t))
                }
            })
            .cloned()
            .ok_or_else(|| not_found(format!("tags {}", list.tags.join(", ")))),
    }
}

/// VMs whose disks depend on the template's.
pub(super) fn linked_clones(vms: &BTreeMap<u32, Arc<VmRecord>>, template: u32) -> Vec<u32> {
    let base = format!("base-{template}-");
    let uses = |volume: &str| {
        let mut parts: Vec<&str> = volume.split(['/', ':']).collect();
        parts.pop();
        parts.iter().any(|part| part.starts_with(&base))
    };
    vms.values()
        .filter(|vm| vm.vmid != template && vm.config.drives().any(|(_, value)| uses(value.split(',').next().unwrap_or_default())))
        .map(|vm| vm.vmid)
        .collect()
}
