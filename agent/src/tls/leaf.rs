//! What an end-entity certificate says about its holder.

use std::time::{Duration, SystemTime};

use pvelet_proto::identity::Identity;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a certificate may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// By a client.
    Client,
    /// By a server.
    Server,
}

/// An end-entity certificate that has one purpose and one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) identity: Identity,
    pub(super) serial: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl Leaf {
    /// Reads a certificate. It must be for `purpose` alone and carry exactly one URI, a SPIFFE id of `trust_domain`.
    pub(super) fn read(der: &[u8], purpose: Purpose, trust_domain: &str) -> Result<Self, String> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|e| format!("is no certificate ({e})"))?;
        if !rest.is_empty() {
            return Err("has bytes after its end".into());
        }
        let usage = cert.extended_key_usage().map_err(|e| format!("has a malformed extended key usage ({e})"))?;
        let usage = usage.ok_or("has no extended key usage: issue it for clients or for servers")?.value;
        let others = usage.any || usage.code_signing || usage.email_protection || usage.time_stamping || usage.ocsp_signing;
        if others
            || !usage.other.is_empty()
            || (usage.client_auth, usage.server_auth) != (purpose == Purpose::Client, purpose == Purpose::Server)
        {
            return Err(match purpose {
                Purpose::Client => "is not for clients alone (extended key usage clientAuth)".into(),
                Purpose::Server => "is not for servers alone (extended key usage serverAuth, and no other: with cert-manager by usages, with step-ca by a template)".into(),
            });
        }
        let names = cert.subject_alternative_name().map_err(|e| format!("has malformed alternative names ({e})"))?;
        let names = names.map(|n| n.value.general_names.as_slice()).unwrap_or_default();
        let uris: Vec<&str> = names.iter().filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None }).collect();
        let [uri] = uris.as_slice() else {
            return Err(format!("carries {} URIs instead of one SPIFFE id", uris.len()));
        };
        let identity = Identity::parse(uri).map_err(|e| e.to_string())?;
        if identity.trust_domain != trust_domain {
            return Err(format!("'{uri}' is outside the trust domain '{trust_domain}'"));
        }
        Ok(Self {
            identity,
            serial: hex::encode(cert.raw_serial()),
            not_before: system_time(cert.validity().not_before.timestamp()),
            not_after: system_time(cert.validity().not_after.timestamp()),
        })
    }
}

pub(super) fn system_time(unix: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}
