//! Certificates of a stack.

use std::path::{Path, PathBuf};

use pvelet_controller::{
    pki::{Ca, Issued, Lifetime, PkiDir},
    tls::{CredentialFiles, Credentials},
};
use pvelet_proto::identity::Role;

/// The trust domain of every stack.
pub const TRUST_DOMAIN: &str = "pvelet.test";
/// The name of a simulated PVE cluster; a node that stands alone has its own name for it.
pub const CLUSTER: &str = "sim";

/// A CA with its folder, and what was issued.
pub struct Pki {
    /// The folder as `pveletctl pki` keeps it.
    pub dir: PkiDir,
    /// The CA.
    pub ca: Ca,
    out: PathBuf,
}

impl Pki {
    /// A new CA below `dir`.
    pub fn new(dir: &Path) -> Self {
        let (pki, ca) = PkiDir::init(&dir.join("pki"), TRUST_DOMAIN, Lifetime::days(30), false).expect("a new CA");
        Self { dir: pki, ca, out: dir.join("certs") }
    }

    /// Writes what was issued; returns the paths of certificate and key.
    pub fn deliver(&self, issued: &Issued) -> (PathBuf, PathBuf) {
        let base = self.dir.deliver(issued, Some(&self.out), true).expect("certificate is written");
        let with = |end: &str| PathBuf::from(format!("{}.{end}", base.display()));
        (with("crt"), with("key"))
    }

    /// A host's certificate and key.
    pub fn host(&self, cluster: &str, node: &str) -> (PathBuf, PathBuf) {
        self.deliver(
            &self.ca.issue_host(cluster, node, &["localhost"], &[[127, 0, 0, 1].into()], Lifetime::days(20)).expect("host certificate"),
        )
    }

    /// Certificate and key of somebody with a role.
    pub fn role(&self, role: Role, name: &str) -> (PathBuf, PathBuf) {
        self.deliver(&self.ca.issue_role(role, name, Lifetime::days(20)).expect("role certificate"))
    }

    /// Certificate and key of a tenant's client.
    pub fn tenant(&self, tenant: &str, name: &str) -> (PathBuf, PathBuf) {
        self.deliver(&self.ca.issue_tenant(tenant, name, Lifetime::days(20)).expect("tenant certificate"))
    }

    /// Credentials of a client that was issued something.
    pub fn credentials(&self, (cert, key): (PathBuf, PathBuf)) -> Credentials {
        Credentials::load(CredentialFiles { ca: self.dir.ca_cert_path(), cert, key }).expect("credentials load")
    }
}
