//! What other checks need to know of the kubelet.

/// Who manages cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd does.
    Systemd,
    /// The file system is written to.
    Cgroupfs,
}

/// What containerd and the kubelet must agree on, as the kubelet has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubeletFacts {
    /// `cgroupDriver`; `None`: there is no kubelet, its configuration cannot be read, or it asks the runtime.
    pub cgroup_driver: Option<CgroupDriver>,
    /// `containerRuntimeEndpoint`, without `unix://`; `None`: not told.
    pub runtime_endpoint: Option<String>,
}
