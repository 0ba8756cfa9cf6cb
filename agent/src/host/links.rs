//! Network links of this host, as far as VMs are plugged into them.

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeInfo {
    /// Its name.
    pub name: String,
    /// Whether it filters VLANs.
    pub vlan_aware: bool,
    /// Whether it is up.
    pub up: bool,
}

/// Reads links.
pub trait Links: Send + Sync + 'static {
    /// All bridges, by name.
    fn bridges(&self) -> std::io::Result<Vec<BridgeInfo>>;
}
