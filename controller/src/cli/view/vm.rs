//! A VM in JSON and YAML.

use pvelet_proto::v1::{Vm, VmState};
use serde::Serialize;

use super::{ErrorView, some, time, word};

/// `vms`, `get vm`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Vms {
    pub(in crate::cli) vms: Vec<VmView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct VmView {
    /// The host whose agent told it.
    pub(in crate::cli) host: String,
    pub(in crate::cli) vmid: u32,
    uuid: String,
    pub(in crate::cli) name: String,
    pub(in crate::cli) node: String,
    pub(in crate::cli) template: bool,
    pub(in crate::cli) state: String,
    pub(in crate::cli) lock: String,
    pub(in crate::cli) tags: Vec<String>,
    pub(in crate::cli) cores: u32,
    pub(in crate::cli) sockets: u32,
    pub(in crate::cli) memory_mib: u64,
    nics: Vec<NicView>,
    disks: Vec<DiskView>,
    cloud_init: Option<CloudInitView>,
    start_on_boot: bool,
    protection: bool,
    ha_managed: bool,
    replicated: bool,
    pub(in crate::cli) pool: String,
    description: String,
    /// Null where pvelet did not make it.
    pub(in crate::cli) mark: Option<MarkView>,
    digest: String,
    ambiguous_uuid: bool,
    start_time: Option<String>,
}

#[derive(Debug, Serialize)]
struct NicView {
    index: u32,
    model: String,
    mac: String,
    bridge: String,
    vlan: u32,
    mtu: u32,
    firewall: bool,
}

#[derive(Debug, Serialize)]
struct DiskView {
    slot: String,
    volume: String,
    storage: String,
    size_bytes: u64,
    cdrom: bool,
    /// What the guest sees; null where the config sets none.
    serial: Option<String>,
    /// Null where it is no volume.
    volume_id: Option<String>,
}

#[derive(Debug, Serialize)]
struct CloudInitView {
    user: String,
    ssh_key_count: u32,
    ip_configs: Vec<IpView>,
    nameservers: Vec<String>,
    search_domain: String,
    /// Null where none was given through pvelet.
    user_data_sha256: Option<String>,
}

#[derive(Debug, Serialize)]
struct IpView {
    nic: u32,
    ipv4: String,
    gateway4: String,
    ipv6: String,
    gateway6: String,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct MarkView {
    pub(in crate::cli) tenant: String,
    cluster: String,
    machine_uid: String,
    operation: String,
}

impl VmView {
    pub(in crate::cli) fn new(host: &str, vm: &Vm) -> Self {
        Self {
            host: host.to_owned(),
            vmid: vm.vmid,
            uuid: vm.uuid.clone(),
            name: vm.name.clone(),
            node: vm.node.clone(),
            template: vm.template,
            state: word(vm.state().as_str_name(), "VM_STATE_"),
            lock: vm.lock.clone(),
            tags: vm.tags.clone(),
            cores: vm.cores,
            sockets: vm.sockets,
            memory_mib: vm.memory_mib,
            nics: vm
                .nics
                .iter()
                .map(|n| NicView {
                    index: n.index,
                    model: n.model.clone(),
                    mac: n.mac.clone(),
                    bridge: n.bridge.clone(),
                    vlan: n.vlan,
                    mtu: n.mtu,
                    firewall: n.firewall,
                })
                .collect(),
            disks: vm
                .disks
                .iter()
                .map(|d| DiskView {
                    slot: d.slot.clone(),
                    volume: d.volume.clone(),
                    storage: d.storage.clone(),
                    size_bytes: d.size_bytes,
                    cdrom: d.cdrom,
                    serial: some(&d.serial),
                    volume_id: some(&d.volume_id),
                })
                .collect(),
            cloud_init: vm.cloud_init.as_ref().map(|c| CloudInitView {
                user: c.user.clone(),
                ssh_key_count: c.ssh_key_count,
                ip_configs: c
                    .ip_configs
                    .iter()
                    .map(|i| IpView {
                        nic: i.nic,
                        ipv4: i.ipv4.clone(),
                        gateway4: i.gateway4.clone(),
                        ipv6: i.ipv6.clone(),
                        gateway6: i.gateway6.clone(),
                    })
                    .collect(),
                nameservers: c.nameservers.clone(),
                search_domain: c.search_domain.clone(),
                user_data_sha256: some(&c.user_data_sha256),
            }),
            start_on_boot: vm.start_on_boot,
            protection: vm.protection,
            ha_managed: vm.ha_managed,
            replicated: vm.replicated,
            pool: vm.pool.clone(),
            description: vm.description.clone(),
            mark: vm.mark.as_ref().map(|m| {
                let owner = m.owner.clone().unwrap_or_default();
                MarkView { tenant: owner.tenant, cluster: owner.cluster, machine_uid: owner.machine_uid, operation: m.operation.clone() }
            }),
            digest: vm.digest.clone(),
            ambiguous_uuid: vm.ambiguous_uuid,
            start_time: vm.start_time.as_ref().and_then(time),
        }
    }

    pub(in crate::cli) fn is_running(&self) -> bool {
        self.state == word(VmState::Running.as_str_name(), "VM_STATE_")
    }
}
