//! SPIFFE identities, as they stand in the URI SAN of a certificate.
//!
//! Clients: `spiffe://<trust-domain>/role/{reader|operator|admin}/<name>` and `/tenant/<tenant>/<name>`.
//! Agents: `spiffe://<trust-domain>/cluster/<pve-cluster>/host/<node>`.

use std::fmt;

use thiserror::Error;

use crate::id;

/// What a client may do in general. Each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads and watches.
    Reader,
    /// Mutations too.
    Operator,
    /// What changes the agent's own rules too.
    Admin,
}

impl Role {
    /// As it stands in the URI.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A person or controller with a role.
    Role {
        /// The role.
        role: Role,
        /// The person's or controller's name.
        name: String,
    },
    /// A client that acts for one tenant only.
    Tenant {
        /// The tenant.
        tenant: String,
        /// The client's name.
        name: String,
    },
    /// An agent.
    Host {
        /// The PVE cluster.
        cluster: String,
        /// The PVE node.
        node: String,
    },
}

/// A SPIFFE id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The trust domain.
    pub trust_domain: String,
    /// Who in it.
    pub subject: Subject,
}

/// Why a URI is no identity of pvelet.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{uri}' is not an identity of pvelet: {why}")]
pub struct InvalidIdentity {
    /// The URI, cut to 256 characters.
    pub uri: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl Identity {
    /// Reads a SPIFFE URI. Names are one DNS label each; the trust domain is a DNS name in lower case.
    pub fn parse(uri: &str) -> Result<Self, InvalidIdentity> {
        let fail = |why| InvalidIdentity { uri: uri.chars().take(256).collect(), why };
        let rest = uri.strip_prefix("spiffe://").ok_or_else(|| fail("it does not begin with spiffe://"))?;
        let mut parts = rest.split('/');
        let trust_domain = parts.next().unwrap_or_default();
        if id::dns_name(trust_domain).is_err() || trust_domain.bytes().any(|c| c.is_ascii_uppercase()) {
            return Err(fail("the trust domain is no lower-case DNS name"));
        }
        let path: Vec<&str> = parts.collect();
        if path.iter().any(|p| id::dns_name(p).is_err()) {
            return Err(fail("a part of the path is empty or has other characters than letters, digits, '-' and '.'"));
        }
        let subject = match path.as_slice() {
            ["role", role, name] => {
                let role = match *role {
                    "reader" => Role::Reader,
                    "operator" => Role::Operator,
                    "admin" => Role::Admin,
                    _ => return Err(fail("the role is none of reader, operator, admin")),
                };
                Subject::Role { role, name: (*name).to_owned() }
            }
            ["tenant", tenant, name] => {
                id::tenant(tenant).map_err(|_| fail("the tenant's name is malformed"))?;
                Subject::Tenant { tenant: (*tenant).to_owned(), name: (*name).to_owned() }
            }
            ["cluster", cluster, "host", node] => Subject::Host { cluster: (*cluster).to_owned(), node: (*node).to_owned() },
            _ => return Err(fail("the path is none of /role/<role>/<name>, /tenant/<tenant>/<name>, /cluster/<cluster>/host/<node>")),
        };
        Ok(Self { trust_domain: trust_domain.to_owned(), subject })
    }

    /// The role that counts for a method: a tenant's client is an operator within its tenant; an agent has none.
    pub fn role(&self) -> Option<Role> {
        match &self.subject {
            Subject::Role { role, .. } => Some(*role),
            Subject::Tenant { .. } => Some(Role::Operator),
            Subject::Host { .. } => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.trust_domain)?;
        match &self.subject {
            Subject::Role { role, name } => write!(f, "role/{role}/{name}"),
            Subject::Tenant { tenant, name } => write!(f, "tenant/{tenant}/{name}"),
            Subject::Host { cluster, node } => write!(f, "cluster/{cluster}/host/{node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_kind_reads_back_as_written() {
        for uri in [
            "spiffe://pvelet.example/role/reader/ann",
            "spiffe://pvelet.example/role/admin/root",
            "spiffe://pvelet.example/tenant/team-a/csi",
            "spiffe://pvelet.example/cluster/lab/host/pve1",
        ] {
            assert_eq!(Identity::parse(uri).unwrap().to_string(), uri);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for uri in [
            "",
            "https://pvelet.example/role/admin/x",
            "spiffe://pvelet.example",
            "spiffe:///role/admin/x",
            "spiffe://pvelet.example/role/root/x",
            "spiffe://pvelet.example/role/admin/",
            "spiffe://pvelet.example/role/admin/x/y",
            "spiffe://pvelet.example/role/admin/../x",
            "spiffe://pvelet.example/tenant/Team/x",
            "spiffe://PVELET.example/role/admin/x",
            "spiffe://pvelet.example/cluster/lab/node/pve1",
        ] {
            assert!(Identity::parse(uri).is_err(), "{uri}");
        }
    }
}
