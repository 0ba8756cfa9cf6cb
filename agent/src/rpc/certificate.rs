//! `CertificateService`.

use std::time::{Instant, SystemTime};

use pvelet_proto::v1::{self, certificate_service_server::CertificateService};
use tonic::{Request, Response, Status};

use super::{Shared, caller, detached};
use crate::{
    auth::{Target, Verb},
    error::Error,
    operation::{AuditLine, Caller},
    tls::{AuthorityInfo, CertificateInfo, Names, New, Peer},
};

/// `CertificateService` of this agent.
#[derive(Clone)]
pub struct CertificateRpc(Shared);

/// What an audit line tells of a call.
struct Told {
    caller: Caller,
    action: &'static str,
    begun: Instant,
}

impl CertificateRpc {
    /// On top of what the services share.
    pub fn new(shared: Shared) -> Self {
        Self(shared)
    }

    fn may_read(&self, caller: &Caller) -> Result<(), Error> {
        self.0.authorizer.authorize(&caller.identity, "", Verb::Read, Target::Host).map(drop)
    }

    fn audit<T>(&self, told: &Told, target: String, result: &Result<T, Error>) {
        self.0.operations.audit(&AuditLine {
            time: self.0.host.now(),
            caller: told.caller.identity.to_string(),
            action: told.action.to_owned(),
            target,
            decision: if result.is_ok() { "succeeded" } else { "refused" }.to_owned(),
            reason: result.as_ref().err().map(Error::reason).unwrap_or_default().to_owned(),
            duration_ms: u64::try_from(told.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..AuditLine::default()
        });
    }
}

fn time(time: SystemTime) -> Option<prost_types::Timestamp> {
    Some(time.into())
}

fn certificate(info: &CertificateInfo) -> v1::CertificateInfo {
    v1::CertificateInfo {
        identity: info.identity.clone(),
        serial: info.serial.clone(),
        not_before: time(info.not_before),
        not_after: time(info.not_after),
        dns_names: info.dns.clone(),
        ip_addresses: info.ips.iter().map(ToString::to_string).collect(),
        issuer: info.issuer.clone(),
        sha256: info.sha256.clone(),
    }
}

fn client_ca(info: &AuthorityInfo) -> v1::ClientCa {
    v1::ClientCa {
        subject: info.subject.clone(),
        sha256: info.sha256.clone(),
        not_after: time(info.not_after),
        crl_number: info.list.map(|list| list.number),
        revoked: info.list.map_or(0, |list| list.revoked),
    }
}

/// What an install was about, in words.
fn parts(new: &New) -> String {
    let named = [("certificate", new.certificate.is_some()), ("CAs of clients", new.client_ca.is_some()), ("CRL", new.crl.is_some())];
    let named: Vec<&str> = named.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
    if named.is_empty() { "nothing".to_owned() } else { named.join(", ") }
}

#[tonic::async_trait]
impl CertificateService for CertificateRpc {
    async fn get_certificate(&self, request: Request<v1::GetCertificateRequest>) -> Result<Response<v1::GetCertificateResponse>, Status> {
        self.may_read(&caller(&request)?)?;
        let now = self.0.certificates.in_use().await?;
        Ok(Response::new(v1::GetCertificateResponse {
            certificate: Some(certificate(&now.material.own)),
            client_cas: now.material.authorities.iter().map(client_ca).collect(),
            request_pending: now.request_pending,
            rejected: now.rejected.unwrap_or_default(),
        }))
    }

    async fn create_signing_request(
        &self,
        request: Request<v1::CreateSigningRequestRequest>,
    ) -> Result<Response<v1::CreateSigningRequestResponse>, Status> {
        let told = Told { caller: caller(&request)?, action: "CREATE_SIGNING_REQUEST", begun: Instant::now() };
        let request = request.into_inner();
        let this = self.clone();
        let made = detached(async move {
            let result = match Names::parse(request.dns_names, &request.ip_addresses) {
                Ok(names) => this.0.certificates.signing_request(names).await,
                Err(error) => Err(error),
            };
            let key = result.as_ref().map(|made| format!("key {}", made.key_sha256)).unwrap_or_default();
            this.audit(&told, key, &result);
            result
        })
        .await?;
        Ok(Response::new(v1::CreateSigningRequestResponse { request_pem: made.pem, identity: made.identity, key_sha256: made.key_sha256 }))
    }

    async fn install_certificate(
        &self,
        request: Request<v1::InstallCertificateRequest>,
    ) -> Result<Response<v1::InstallCertificateResponse>, Status> {
        let told = Told { caller: caller(&request)?, action: "INSTALL_CERTIFICATE", begun: Instant::now() };
        let peer = request.extensions().get::<Peer>().cloned().ok_or_else(|| Error::Internal("a call without identity".into()))?;
        let request = request.into_inner();
        let new = New {
            certificate: Some(request.certificate_pem).filter(|pem| !pem.is_empty()),
            client_ca: request.ca_pem,
            crl: request.crl_pem,
            server_ca: request.server_ca_pem,
        };
        let this = self.clone();
        let done = detached(async move {
            let parts = parts(&new);
            let result = this.0.certificates.install(new, peer).await;
            let target = match &result {
                Ok(done) if done.changed => format!("{parts}; in use: serial {}", done.certificate.serial),
                Ok(done) => format!("{parts}; unchanged, in use: serial {}", done.certificate.serial),
                Err(_) => parts,
            };
            this.audit(&told, target, &result);
            result
        })
        .await?;
        Ok(Response::new(v1::InstallCertificateResponse {
            changed: done.changed,
            certificate: Some(certificate(&done.certificate)),
            closed_connections: u32::try_from(done.closed).unwrap_or(u32::MAX),
        }))
    }
}
