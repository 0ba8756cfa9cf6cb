//! What a decision about the network is made with, read at one moment.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    Inner,
    declared::{self, Declared},
    own_file::OwnFile,
    preflight::Facts,
    users::{BridgeUser, bridge_users},
};
use crate::{
    error::Error,
    host::net::{Files, Kernel},
};

/// All of it.
pub(super) struct Gathered {
    pub(super) kernel: Kernel,
    pub(super) offloads: BTreeMap<String, Vec<String>>,
    pub(super) files: Files,
    pub(super) declared: Declared,
    pub(super) node: String,
    pub(super) listeners: Vec<IpAddr>,
    pub(super) users: Vec<BridgeUser>,
    /// Whether the cluster file system told which VMs there are.
    pub(super) users_known: bool,
}

impl Gathered {
    /// As the checks want it.
    pub(super) fn facts(&self) -> Facts<'_> {
        Facts {
            kernel: &self.kernel,
            offloads: &self.offloads,
            files: &self.files,
            declared: &self.declared,
            node: &self.node,
            listeners: &self.listeners,
            users: &self.users,
            sdn_known: self.files.sdn_known,
        }
    }

    /// The own file's text.
    pub(super) fn own_text(&self) -> Option<&str> {
        self.files.own.as_ref().map(|f| f.text.as_str())
    }

    /// The own file; with nothing in it where somebody edited it, and why.
    pub(super) fn own(&self) -> (OwnFile, Option<String>) {
        match OwnFile::parse(self.own_text()) {
            Ok(own) => (own, None),
            Err(why) => (OwnFile::default(), Some(why)),
        }
    }
}

impl Inner {
    /// Reads it. Errors: `NetworkFailed`.
    pub(super) async fn gather(&self) -> Result<Gathered, Error> {
        let (kernel, files, offloads) = tokio::join!(self.net.kernel(), self.net.files(), self.net.offloads());
        // Not told where the kernel has no ethtool over netlink: a check says so.
        let (kernel, files, offloads) = (kernel?, files?, offloads.unwrap_or_default());
        let inventory = Arc::clone(&self.vms.inner.pve.inventory());
        Ok(Gathered {
            declared: declared::parse(&files.declared),
            offloads,
            files,
            kernel,
            node: self.vms.inner.settings.node.clone(),
            listeners: (self.agent.listeners)(),
            users: bridge_users(&inventory),
            users_known: inventory.complete && inventory.hung_since.is_none(),
        })
    }
}
