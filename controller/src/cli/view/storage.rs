//! A storage, and what owners have there, in JSON and YAML.

use pvelet_proto::v1::StorageStatus;
use serde::Serialize;

use super::{ErrorView, some, volume::OwnerView, volume::UnreachableView};

/// `storages`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Storages {
    pub(in crate::cli) storages: Vec<StorageView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct StorageView {
    /// The host that sees it so.
    pub(in crate::cli) host: String,
    pub(in crate::cli) id: String,
    pub(in crate::cli) r#type: String,
    pub(in crate::cli) content: Vec<String>,
    pub(in crate::cli) active: bool,
    pub(in crate::cli) enabled: bool,
    pub(in crate::cli) shared: bool,
    pub(in crate::cli) total_bytes: u64,
    pub(in crate::cli) available_bytes: u64,
    /// Of volumes, the default first.
    pub(in crate::cli) formats: Vec<String>,
    /// Those of which single volumes can have snapshots.
    pub(in crate::cli) snapshot_formats: Vec<String>,
    /// Whether volumes can be made there.
    pub(in crate::cli) volumes: bool,
    /// Null when it can be used.
    pub(in crate::cli) problem: Option<String>,
}

impl StorageView {
    pub(in crate::cli) fn new(host: &str, s: &StorageStatus) -> Self {
        let storage = s.storage.clone().unwrap_or_default();
        Self {
            host: host.to_owned(),
            id: storage.id,
            r#type: storage.r#type,
            content: storage.content,
            active: storage.active,
            enabled: storage.enabled,
            shared: storage.shared,
            total_bytes: storage.total_bytes,
            available_bytes: storage.available_bytes,
            formats: s.formats.clone(),
            snapshot_formats: s.snapshot_formats.clone(),
            volumes: s.volumes,
            problem: some(&s.problem),
        }
    }
}

/// `volumes usage`.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Usages {
    pub(in crate::cli) usage: Vec<UsageView>,
    pub(in crate::cli) unreachable: Vec<UnreachableView>,
    pub(in crate::cli) errors: Vec<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct UsageView {
    /// The host that counted.
    pub(in crate::cli) host: String,
    pub(in crate::cli) storage: String,
    pub(in crate::cli) shared: bool,
    /// Without a claim; null for nobody's.
    pub(in crate::cli) owner: Option<OwnerView>,
    pub(in crate::cli) volumes: u32,
    pub(in crate::cli) size_bytes: u64,
    pub(in crate::cli) used_bytes: u64,
}
